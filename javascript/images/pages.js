/*
 * One page of the chosen dataset's images, as the sections "images" and "captions" need it. A page
 * is asked for again now and then, by its revision, so that what another browser or an editor
 * changed is seen.
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

/** Seconds until it is looked again whether something has changed. */
export const lookEvery = 4;

/** What a card says of a dataset whose images could be read. */
const THERE = { problem: null, gone: false, lost: false };

/** A filter that lets all images pass. */
export const EVERY = {
    filter: "all",
    text: "",
    lacks: "",
    tag: "",
    match: "all",
    without: "",
    finding: "",
};

/** One page of the chosen dataset. */
export class ImagePages {
    /** @type {PageQuery} */
    query = { offset: 0, order: "name", ...EVERY };
    /** @type {PageAnswer | null} */
    answer = null;
    size = PAGE;
    /** The buttons to other pages. */
    bar = el("nav.lora-trainer-pages", { "aria-label": t("Pages") });
    /** @type {HTMLButtonElement | null} to the next page; null where there is one page only */
    next = null;

    serial = 0;
    asked = 0;
    failed = false;

    /**
     * `show(answer, quietly)` draws the page, quietly when nobody asked for it; `fail(problem)`
     * says why there is none. `gone()` is how many of those shown no longer pass the filter, so
     * that the next page does not leave out as many.
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

    /** The page, where something in it is asked for. */
    known() {
        if (!this.answer) throw new Error("The page has not been read yet.");
        return this.answer;
    }

    /**
     * Ask for the page; quietly, only if something has changed since. Answers that were overtaken
     * are dropped.
     */
    async load({ quietly = false } = {}) {
        const id = store.get("dataset");
        if (!id) {
            this.answer = null;
            return;
        }
        // what somebody waits for must not be overtaken by a look at the page before
        if (quietly && this.asked) return;
        const mine = (this.serial += 1);
        const isOvertaken = () => mine !== this.serial || id !== store.get("dataset");
        if (!quietly) this.asked += 1;
        try {
            // what shows a problem is drawn again
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
            // the cards say what has become of it
            if (!this.failed && status >= 400 && status < 500) datasets.refresh().catch(() => {});
            this.failed = true;
            this.fail(caught);
        } finally {
            if (!quietly) this.asked -= 1;
        }
    }

    /** Ask for other images, from the first one on unless another is named. */
    ask(/** @type {Partial<PageQuery>} */ changes) {
        Object.assign(this.query, { offset: 0 }, changes);
        return this.load();
    }

    /** Look now and again while the section is open. */
    watch(/** @type {string} */ id) {
        startPolling(async () => {
            if (currentSection() === id && (this.answer || this.failed))
                await this.load({ quietly: true });
            return lookEvery;
        });
    }

    /** Back and on, and where this page is; nothing where there is one page only. */
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

/** The boxes above a page: which images, containing what, in which order. */
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
                { value: "findings", label: t("With a remark") },
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
