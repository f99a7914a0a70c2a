/*
 * What the parts of the workbench share, and how they hear of one another.
 *
 * The section calls begin() with its page. What is chosen and filtered is this browser session's;
 * the captions are the server's.
 */
import { el } from "../common/elements.js";
import { t } from "../common/language.js";
import { Later, kept, settings } from "../common/store.js";

/** @import { EditEnds, FilterBody } from "../common/answers" */
/** @import { PageAnswer } from "../common/types" */

/** @import { ImagePages } from "../images/pages.js" */
/** @import { CaptionRow } from "./row.js" */

/**
 * What the section shows.
 *
 * @typedef {object} BenchPage
 * @property {ImagePages} pages
 * @property {HTMLElement} panel
 * @property {() => Map<string, CaptionRow>} rows by their images' keys
 * @property {() => Promise<unknown>} saveAll
 * @property {(captioned: number, total: number) => void} showCounts
 * @property {() => Promise<void>} next go on to the next page
 */

/**
 * Which images are selected: some by their keys, or all that a filter lets pass. `anchor`: the one
 * that was clicked last.
 *
 * @typedef {{keys: Set<string>, where: FilterBody | null, anchor: string}} Selected
 */

/** @type {Later<BenchPage>} */
const drawn = new Later();

/** @returns {Selected} */
const nothing = () => ({ keys: new Set(), where: null, anchor: "" });

const elsewhere = () => t("Changed elsewhere");

/** What the parts of the workbench share. */
export const bench = {
    get page() {
        return drawn.need();
    },
    /** Whether there is a page. */
    isOpen: () => drawn.now !== null,
    /** @type {EditEnds} */
    edits: { undo: null, redo: null },
    /** Of the dataset, as it is shown. */
    revision: "",
    /** What the filter asks for besides the boxes. */
    chips: el("div.lora-trainer-row.lora-trainer-bench-chips"),
    selection: nothing(),
    /** What is put on a row whose caption is another than before. */
    mark: elsewhere,
};

/**
 * The page is read again, and rows whose caption is another than before say so in these words.
 *
 * @param {() => string} words
 * @param {{quietly?: boolean}} [options]
 */
export async function reload(words, options) {
    bench.mark = words;
    try {
        await bench.page.pages.load(options);
    } finally {
        bench.mark = elsewhere;
    }
}

const PICTURES_KEY = "lora-trainer-captions-pictures";

/**
 * What can be heard of, and what is said then.
 *
 * @typedef {{selection: [], answer: [PageAnswer], revision: [], edits: [EditEnds]}} News
 */

/** @type {{[W in keyof News]: Set<(...told: News[W]) => unknown>}} */
const listeners = {
    selection: new Set(),
    answer: new Set(),
    edits: new Set(),
    revision: new Set(),
};

/**
 * @template {keyof News} W
 * @param {W} what
 * @param {News[W]} told
 */
export function tell(what, ...told) {
    for (const listener of [...listeners[what]]) listener(...told);
}

/**
 * Hear of "selection", "answer" (a page was read), "revision" (and something is another than
 * before) and "edits".
 *
 * @template {keyof News} W
 * @param {W} what
 * @param {(...told: News[W]) => unknown} listener
 */
export const listen = (what, listener) => listeners[what].add(listener);

/** A new page takes the place of the one before; what listened to that one is forgotten. */
export function begin(/** @type {BenchPage} */ page) {
    for (const all of Object.values(listeners)) all.clear();
    drawn.now = page;
    bench.edits = { undo: null, redo: null };
    bench.selection = nothing();
    page.panel.dataset.pictures = picturesAreLarge() ? "large" : "small";
}

/**
 * Whether the captions of this page lie in several places: in two tables, or in a table and in text
 * files.
 */
export function hasSeveralSources(items = drawn.now?.pages.answer?.items ?? []) {
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
export function showPictures(/** @type {string} */ size) {
    kept.set(PICTURES_KEY, size);
    bench.page.panel.dataset.pictures = picturesAreLarge() ? "large" : "small";
    for (const row of bench.page.rows().values()) row.redraw();
}

export const triggerWord = () => String(settings().trigger_word || "").trim();

/** How many tokens of a caption training reads. */
export const tokenLimit = () => Number(settings().max_token_length) || 75;

/**
 * Whether the page was read with a trigger word or a length that are no longer those of the
 * settings.
 */
export function isOutOfDate() {
    const { query } = bench.page.pages;
    return query.trigger !== triggerWord() || query.tokens !== tokenLimit();
}
