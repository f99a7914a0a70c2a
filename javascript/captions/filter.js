/*
 * The image filter, tags and order, kept for the browser session. filter_bar.js draws the controls.
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

/** Whether the page's filter excludes images. */
const isOn = (/** @type {Filter} */ name) => !["", "all"].includes(bench.page.pages.query[name]);

export const isFiltered = () => FILTERS.some(isOn);

/** The page's filter for the server. */
export function where() {
    const { query } = bench.page.pages;
    /** @type {FilterBody} */
    const where = { trigger: triggerWord(), tokens: tokenLimit() };
    for (const name of FILTERS) if (isOn(name)) where[name] = query[name];
    if (where.tag) where.match = query.match;
    return where;
}

/** The tags that the filter requires ("tag") or excludes ("without"), as written. */
export const tags = (/** @type {"tag" | "without"} */ name) =>
    vocabulary.listed(bench.page.pages.query[name]);

/** Add or remove a tag of the filter; a required tag is not excluded at the same time. */
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

/** Show other images; the selection is cleared. */
export function ask(/** @type {Partial<PageQuery>} */ changes) {
    selection.clear();
    return turn({ offset: 0, ...changes });
}

/** Another page or order of the same images. */
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
 * The last filter for this dataset in this browser session.
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
