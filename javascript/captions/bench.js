/*
 * What the parts of the workbench share, and how they hear of one another.
 *
 * The section calls begin() with its page. What is chosen and filtered is this browser session's;
 * the captions are the server's. /
 */
import { t } from "../common/language.js";
import { kept, store } from "../common/store.js";

/**
 * What the parts of the workbench share: the page of the section ({pages, panel, rows, saveAll}),
 * its edits, which images are selected, what is put on a row whose caption is another than before.
 */
export const bench = {
    page: null,
    edits: null,
    revision: null,
    chips: null,
    selection: { keys: new Set(), where: null, anchor: null },
    mark: () => t("Changed elsewhere"),
};

const PICTURES_KEY = "lora-trainer-captions-pictures";

const listeners = {
    selection: new Set(),
    answer: new Set(),
    edits: new Set(),
    revision: new Set(),
};

export const tell = (what, ...all) => {
    for (const listener of [...listeners[what]]) listener(...all);
};

/**
 * Hear of "selection", "answer" (a page was read), "revision" (and something is another than
 * before) and "edits".
 */
export const listen = (what, listener) => listeners[what].add(listener);

/** A new page takes the place of the one before; what listened to that one is forgotten. */
export function begin(page) {
    for (const all of Object.values(listeners)) all.clear();
    Object.assign(bench, { page, edits: null });
    bench.selection = { keys: new Set(), where: null, anchor: null };
    page.panel.dataset.pictures = picturesAreLarge() ? "large" : "small";
}

/**
 * Whether the captions of this page lie in several places: in two tables, or in a table and in text
 * files.
 */
export function hasSeveralSources(
    items = ((bench.page && bench.page.pages.answer) || { items: [] }).items,
) {
    return (
        new Set(
            items
                .filter((item) => item.caption_file)
                .map((item) => (item.source === "text" ? "" : item.caption_file)),
        ).size > 1
    );
}

export const picturesAreLarge = () => kept.get(PICTURES_KEY) === "large";

/** "small" or "large", beside the captions; remembered by this browser. */
export function showPictures(size) {
    kept.set(PICTURES_KEY, size);
    bench.page.panel.dataset.pictures = picturesAreLarge() ? "large" : "small";
    for (const row of bench.page.rows().values()) row.redraw();
}

export const triggerWord = () => String((store.get("settings") || {}).trigger_word || "").trim();

/** How many tokens of a caption training reads. */
export const tokenLimit = () => Number((store.get("settings") || {}).max_token_length) || 75;

/**
 * Whether the page was read with a trigger word or a length that are no longer those of the
 * settings.
 */
export function isOutOfDate() {
    const { query } = bench.page.pages;
    return query.trigger !== triggerWord() || query.tokens !== tokenLimit();
}
