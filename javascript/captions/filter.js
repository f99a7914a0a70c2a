/*
 * Which images are shown: the filter, the tags in it, the order, and what this browser session
 * looked at last. filter_bar.js draws its boxes. /
 */
import { kept, store } from "../common/store.js";
import { bench, tokenLimit, triggerWord } from "./bench.js";
import * as selection from "./selection.js";
import * as vocabulary from "./vocabulary.js";

const VIEW_KEY = "lora-trainer-captions-view";

const FILTERS = ["filter", "text", "lacks", "tag", "without", "finding"];

// --- which images ------------------------------------------------------------------------------

export const none = () => ({
    filter: "all",
    text: "",
    lacks: "",
    tag: "",
    match: "all",
    without: "",
    finding: "",
});

export const isFiltered = () =>
    FILTERS.some((name) => bench.page.pages.query[name] && bench.page.pages.query[name] !== "all");

/** The page's filter as the server takes it beside a change. */
export function where() {
    const { query } = bench.page.pages;
    const where = { trigger: triggerWord(), tokens: tokenLimit() };
    for (const name of FILTERS) if (query[name] && query[name] !== "all") where[name] = query[name];
    if (where.tag) where.match = query.match;
    return where;
}

/** The tags that the filter asks for ("tag") or does without ("without"), as they are written. */
export const tags = (name) => vocabulary.listed(bench.page.pages.query[name] || "");

/** One tag more or less in the filter; one that is asked for is not kept away at the same time. */
export function toggleTag(name, tag) {
    const same = (one) => one.toLowerCase() === tag.toLowerCase();
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
export function ask(changes) {
    selection.clear();
    return turn({ offset: 0, ...changes });
}

/** Another page, or another order, of the same images. */
export async function turn(changes) {
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

/** What this browser session looked at last in this dataset. */
export function recall() {
    const before = kept.get(VIEW_KEY, { session: true });
    const query = before && before.dataset === store.get("dataset") ? before.query : {};
    return {
        offset: 0,
        order: "name",
        ...none(),
        ...query,
        trigger: triggerWord(),
        tokens: tokenLimit(),
    };
}
