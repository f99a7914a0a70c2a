/*
 * The selected images: some of the page, or all that match the filter.
 */
import { formatNumber, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { bench, emit } from "./bench.js";
import * as filter from "./filter.js";

/** @import { SelectBody } from "../common/answers" */

export const has = (/** @type {string} */ key) =>
    Boolean(bench.selection.where) || bench.selection.keys.has(key);

export const count = () =>
    bench.selection.where ? (bench.page.pages.answer?.matching ?? 0) : bench.selection.keys.size;

export function shownKeys() {
    return [...bench.page.rows().keys()];
}

/** Select or deselect an image; with `range`, all from the last clicked one. */
/**
 * @param {string} key
 * @param {boolean} chosen
 * @param {boolean} range
 */
export function toggle(key, chosen, range) {
    const { selection } = bench;
    if (selection.where) Object.assign(selection, { keys: new Set(shownKeys()), where: null });
    const keys = shownKeys();
    const from = keys.indexOf(selection.anchor),
        to = keys.indexOf(key);
    const touched =
        range && from >= 0 ? keys.slice(Math.min(from, to), Math.max(from, to) + 1) : [key];
    for (const each of touched)
        if (chosen) selection.keys.add(each);
        else selection.keys.delete(each);
    selection.anchor = key;
    emit("selection");
}

export function page() {
    bench.selection.where = null;
    for (const key of shownKeys()) bench.selection.keys.add(key);
    emit("selection");
}

export function matching() {
    bench.selection.where = filter.where();
    emit("selection");
}

export function clear() {
    bench.selection.keys.clear();
    Object.assign(bench.selection, { where: null, anchor: "" });
    emit("selection");
}

/** The selection for the server. */
/** @returns {SelectBody} */
export const asked = () =>
    bench.selection.where ? { where: bench.selection.where } : { keys: [...bench.selection.keys] };

/**
 * The images of a change: {element to show, select() for the request, count()}. The selected ones,
 * if any.
 *
 * @param {() => void} [onchange]
 */
export function targets(onchange) {
    const answer = bench.page.pages.known();
    const selected = count();
    const options = [
        selected
            ? {
                  value: "selected",
                  label: t("The selected images ({count})", { count: formatNumber(selected) }),
                  count: selected,
              }
            : null,
        filter.isFiltered()
            ? {
                  value: "matching",
                  label: t("All that match the filter ({count})", {
                      count: formatNumber(answer.matching),
                  }),
                  count: answer.matching,
              }
            : null,
        {
            value: "all",
            label: t("All images ({count})", { count: formatNumber(answer.total) }),
            count: answer.total,
        },
    ].filter((option) => option !== null);
    const element = widgets.select({
        value: options[0].value,
        options,
        label: t("Which images"),
        onchange,
    });
    return {
        element,
        count: () => options.find((option) => option.value === element.value)?.count ?? 0,
        /** @returns {SelectBody} */
        select() {
            if (element.value === "all") return { where: {} };
            if (element.value === "matching") return { where: filter.where() };
            return asked();
        },
    };
}
