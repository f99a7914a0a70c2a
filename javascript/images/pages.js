/*
 * One page of the chosen dataset's images, as the sections "images" and "captions" need it. A page
 * is asked for again now and then, by its revision, so that what another browser or an editor
 * changed is seen. /
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";

const PAGE = 60;

/** Seconds until it is looked again whether something has changed. */
export const lookEvery = 4;

/** Back and on, and where this page is; nothing where there is one page only. */
function pageButtons(pages, gone) {
    const { matching } = pages.answer;
    const { offset } = pages.query;
    if (matching <= PAGE) return [];
    const go = (to) => async () => {
        await pages.ask({ offset: to() });
    };
    return [
        widgets.button({
            label: t("Previous page"),
            disabled: offset === 0,
            onclick: go(() => Math.max(0, offset - PAGE)),
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
        widgets.button({
            label: t("Next page"),
            disabled: offset + PAGE >= matching,
            onclick: go(() => offset + PAGE - gone()),
        }),
    ];
}

/** What a card says of a dataset whose images could be read. */
const THERE = { problem: null, gone: false, lost: false };

/**
 * One page of the chosen dataset. `show(answer, quietly)` draws it, quietly when nobody asked for
 * it; `fail(problem)` says why there is none. `gone()` is how many of those shown no longer pass
 * the filter, so that the next page does not leave out as many. Has query, load(), ask(changes),
 * bar.
 */
export function imagePages({ show, fail, gone = () => 0 }) {
    const pages = {
        query: { offset: 0, filter: "all", text: "", order: "name" },
        answer: null,
        size: PAGE,
    };
    let serial = 0,
        asked = 0,
        failed = false;

    pages.bar = el("nav", { class: "lora-trainer-pages", "aria-label": t("Pages") });

    /**
     * Ask for the page; with `known`, only if something has changed since. Answers that were
     * overtaken are dropped.
     */
    pages.load = async function ({ quietly = false } = {}) {
        const id = store.get("dataset");
        if (!id) {
            pages.answer = null;
            return;
        }
        // what somebody waits for must not be overtaken by a look at the page before
        if (quietly && asked) return;
        const mine = (serial += 1);
        if (!quietly) asked += 1;
        try {
            // what shows a problem is drawn again
            const known =
                quietly && !failed && pages.answer && pages.answer.id === id
                    ? pages.answer.revision
                    : "";
            const answer = await api.get(datasets.path("items"), {
                ...pages.query,
                limit: PAGE,
                known,
            });
            if (mine !== serial || id !== store.get("dataset") || answer.unchanged) return;
            if (!answer.items.length && answer.matching) {
                pages.query.offset = Math.floor((answer.matching - 1) / PAGE) * PAGE;
                await pages.load();
                return;
            }
            failed = false;
            pages.answer = { ...answer, id };
            datasets.update({ id, ...THERE, count: answer.total, captioned: answer.captioned });
            fill(pages.bar, pageButtons(pages, gone));
            show(pages.answer, quietly);
        } catch (problem) {
            if (mine !== serial || id !== store.get("dataset")) return;
            // the cards say what has become of it
            if (!failed && problem.status >= 400 && problem.status < 500)
                datasets.refresh().catch(() => {});
            failed = true;
            fail(problem);
        } finally {
            if (!quietly) asked -= 1;
        }
    };

    pages.ask = function (changes) {
        Object.assign(pages.query, { offset: 0 }, changes);
        return pages.load();
    };

    /** Look now and again while the section is open. */
    pages.watch = (id) =>
        startPolling(async () => {
            if (currentSection() === id && (pages.answer || failed))
                await pages.load({ quietly: true });
            return lookEvery;
        });

    return pages;
}

/** The boxes above a page: which images, containing what, in which order. */
export function pageFilters(pages, { order = true } = {}) {
    let timer = 0;
    const soon = (text) => {
        clearTimeout(timer);
        timer = setTimeout(() => pages.ask({ text }), 250);
    };
    return el(
        "div",
        { class: "lora-trainer-filters" },
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
        order
            ? widgets.select({
                  label: t("Order"),
                  value: pages.query.order,
                  onchange: (chosen) => pages.ask({ order: chosen }),
                  options: [
                      { value: "name", label: t("By name") },
                      { value: "changed", label: t("Newest first") },
                      { value: "caption", label: t("By caption") },
                  ],
              })
            : null,
    );
}
