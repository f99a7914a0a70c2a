/*
 * A page of the selected dataset's images, for the sections "images" and "captions". It is polled
 * by revision, so that changes by another browser or an editor appear.
 */
import { Problem, api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";

/** @import { PageAnswer, PageQuery } from "../common/types" */

const PAGE = 60;

/** Polling interval in seconds. */
export const pollInterval = 4;

/** Card values of a dataset whose images were read. */
const THERE = { problem: null, gone: false, lost: false };

/** A filter that matches all images. */
export const EVERY = {
    filter: "all",
    text: "",
    lacks: "",
    tag: "",
    match: "all",
    without: "",
    finding: "",
};

/** A page of the selected dataset. */
export class ImagePages {
    /** @type {PageQuery} */
    query = { offset: 0, order: "name", ...EVERY };
    /** @type {PageAnswer | null} */
    answer = null;
    size = PAGE;
    /** The pager. */
    bar = el("nav.lora-trainer-pages", { "aria-label": t("Pages") });
    /** @type {HTMLButtonElement | null} to the next page; null where there is one page only */
    next = null;

    serial = 0;
    asked = 0;
    failed = false;

    /**
     * `show(answer, quietly)` draws the page, quietly after polling; `fail(problem)` shows an
     * error. `gone()` is the number of shown images that no longer match the filter, by which the
     * next page's offset is reduced.
     *
     * @param {object} page
     * @param {(answer: PageAnswer, quietly: boolean) => void} page.show
     * @param {(caught: unknown) => void} page.fail
     * @param {() => number} [page.gone]
     */
    constructor({ show, fail, gone = () => 0 }) {
        this.show = show;
        this.fail = fail;
        this.gone = gone;
    }

    /** The loaded page. Throws without one. */
    known() {
        if (!this.answer) throw new Error("The page has not been read yet.");
        return this.answer;
    }

    /** Load the page; quietly: only if it has changed. Outdated answers are dropped. */
    async load({ quietly = false } = {}) {
        const id = store.get("dataset");
        if (!id) {
            this.answer = null;
            return;
        }
        // a requested load must not be overtaken by a poll
        if (quietly && this.asked) return;
        const mine = (this.serial += 1);
        const isOvertaken = () => mine !== this.serial || id !== store.get("dataset");
        if (!quietly) this.asked += 1;
        try {
            // a shown problem is redrawn
            const known =
                quietly && !this.failed && this.answer?.id === id ? this.answer.revision : "";
            const query = { ...this.query, limit: PAGE, known };
            const answer = await api.get(datasets.path("items"), query);
            if (isOvertaken() || "unchanged" in answer) return;
            if (!answer.items.length && answer.matching) {
                this.query.offset = Math.floor((answer.matching - 1) / PAGE) * PAGE;
                await this.load();
                return;
            }
            this.failed = false;
            this.answer = { ...answer, id };
            const { total, captioned } = answer;
            datasets.update(id, { ...THERE, count: total, captioned });
            this.drawBar(answer.matching);
            this.show(this.answer, quietly);
        } catch (caught) {
            if (isOvertaken()) return;
            const status = caught instanceof Problem ? caught.status : 0;
            // the cards show the reason
            if (!this.failed && status >= 400 && status < 500) datasets.refresh().catch(() => {});
            this.failed = true;
            this.fail(caught);
        } finally {
            if (!quietly) this.asked -= 1;
        }
    }

    /** Load other images, by default from the first one. */
    ask(/** @type {Partial<PageQuery>} */ changes) {
        Object.assign(this.query, { offset: 0 }, changes);
        return this.load();
    }

    /** Poll while the section is open. */
    watch(/** @type {string} */ id) {
        startPolling(async () => {
            if (currentSection() === id && (this.answer || this.failed))
                await this.load({ quietly: true });
            return pollInterval;
        });
    }

    /** The pager; null for a single page. */
    drawBar(/** @type {number} */ matching) {
        const { offset } = this.query;
        this.next = null;
        if (matching <= PAGE) {
            fill(this.bar);
            return;
        }
        this.next = widgets.button({
            label: t("Next page"),
            disabled: offset + PAGE >= matching,
            onclick: () => this.ask({ offset: offset + PAGE - this.gone() }),
        });
        fill(
            this.bar,
            widgets.button({
                label: t("Previous page"),
                disabled: offset === 0,
                onclick: () => this.ask({ offset: Math.max(0, offset - PAGE) }),
            }),
            el(
                "span",
                { "aria-live": "polite" },
                t("{first} to {last} of {count}", {
                    first: formatNumber(offset + 1),
                    last: formatNumber(Math.min(matching, offset + PAGE)),
                    count: formatNumber(matching),
                }),
            ),
            this.next,
        );
    }
}

/** The filter controls: filter, text, order. */
export function pageFilters(/** @type {ImagePages} */ pages) {
    let timer = 0;
    const soon = (/** @type {string} */ text) => {
        clearTimeout(timer);
        timer = setTimeout(() => pages.ask({ text }), 250);
    };
    return el(
        "div.lora-trainer-filters",
        widgets.select({
            label: t("Which images"),
            value: pages.query.filter,
            onchange: (filter) => pages.ask({ filter }),
            options: [
                { value: "all", label: t("All images") },
                { value: "missing", label: t("Without a caption") },
                { value: "captioned", label: t("With a caption") },
                { value: "findings", label: t("With an issue") },
            ],
        }),
        widgets.text({
            value: pages.query.text,
            label: t("Caption or name contains"),
            placeholder: t("Caption or name contains"),
            oninput: soon,
        }),
        widgets.select({
            label: t("Order"),
            value: pages.query.order,
            onchange: (order) => pages.ask({ order }),
            options: [
                { value: "name", label: t("By name") },
                { value: "changed", label: t("Newest first") },
                { value: "caption", label: t("By caption") },
            ],
        }),
    );
}
