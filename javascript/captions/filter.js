/*
 * Which images are shown: the filter, the tags in it, the order, and what this browser session
 * looked at last. filter_bar.js draws its boxes.
 */
import { kept, store } from "../common/store.js";
import { EVERY } from "../images/pages.js";
import { bench, tokenLimit, triggerWord } from "./bench.js";
import * as selection from "./selection.js";
import * as vocabulary from "./vocabulary.js";

/** @import { FilterBody } from "../common/answers" */
/** @import { PageQuery } from "../common/types" */

/** @typedef {typeof FILTERS[number]} Filter */

const VIEW_KEY = "lora-trainer-captions-view";

const FILTERS = /** @type {const} */ (["filter", "text", "lacks", "tag", "without", "finding"]);

// --- which images ------------------------------------------------------------------------------

/** Whether a filter of the page lets not all images pass. */
const isOn = (/** @type {Filter} */ name) => !["", "all"].includes(bench.page.pages.query[name]);

export const isFiltered = () => FILTERS.some(isOn);

/** The page's filter as the server takes it beside a change. */
export function where() {
    const { query } = bench.page.pages;
    /** @type {FilterBody} */
    const where = { trigger: triggerWord(), tokens: tokenLimit() };
    for (const name of FILTERS) if (isOn(name)) where[name] = query[name];
    if (where.tag) where.match = query.match;
    return where;
}

/** The tags that the filter asks for ("tag") or does without ("without"), as they are written. */
export const tags = (/** @type {"tag" | "without"} */ name) =>
    vocabulary.listed(bench.page.pages.query[name]);

/** One tag more or less in the filter; one that is asked for is not kept away at the same time. */
export function toggleTag(/** @type {"tag" | "without"} */ name, /** @type {string} */ tag) {
    const same = (/** @type {string} */ one) => one.toLowerCase() === tag.toLowerCase();
    const other = name === "tag" ? "without" : "tag";
    const wanted = tags(name),
        on = wanted.some(same);
    return ask({
        [name]: (on ? wanted.filter((one) => !same(one)) : [...wanted, tag]).join(", "),
        [other]: tags(other)
            .filter((one) => !same(one))
            .join(", "),
    });
}

/** Show other images; a selection of those shown before ends. */
export function ask(/** @type {Partial<PageQuery>} */ changes) {
    selection.clear();
    return turn({ offset: 0, ...changes });
}

/** Another page, or another order, of the same images. */
export async function turn(/** @type {Partial<PageQuery>} */ changes) {
    const { pages } = bench.page;
    await pages.ask({ trigger: triggerWord(), tokens: tokenLimit(), ...changes });
    remember();
}

function remember() {
    kept.set(
        VIEW_KEY,
        { dataset: store.get("dataset"), query: bench.page.pages.query },
        { session: true },
    );
}

/**
 * What this browser session looked at last in this dataset.
 *
 * @returns {PageQuery}
 */
export function recall() {
    const before = kept.get(VIEW_KEY, { session: true });
    return {
        offset: 0,
        order: "name",
        ...EVERY,
        ...(before?.dataset === store.get("dataset") ? before?.query : {}),
        trigger: triggerWord(),
        tokens: tokenLimit(),
    };
}
