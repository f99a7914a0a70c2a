/*
 * State and events shared by the parts of the workbench.
 *
 * The section calls begin() with its page. Selection and filter belong to this browser session; the
 * captions are the server's.
 */
import { el } from "../common/elements.js";
import { t } from "../common/language.js";
import { Later, home, kept, settings } from "../common/store.js";
import { draft } from "../settings/draft.js";

/** @import { EditEnds, FilterBody } from "../common/answers" */
/** @import { PageAnswer } from "../common/types" */

/** @import { ImagePages } from "../images/pages.js" */
/** @import { CaptionRow } from "./row.js" */

/**
 * The section's page, for images. For texts it is a TextPage, with only what undo needs.
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
 * Which images are selected: some by their keys, or all that match a filter. `anchor`: the one that
 * was clicked last.
 *
 * @typedef {{keys: Set<string>, where: FilterBody | null, anchor: string}} Selected
 */

/**
 * @typedef {Omit<BenchPage, "pages"> & {
 *     pages: {load: (options?: {quietly?: boolean}) => Promise<unknown>}}} TextPage
 */

/** @type {Later<BenchPage>} */
const drawn = new Later();

/** @returns {Selected} */
const nothing = () => ({ keys: new Set(), where: null, anchor: "" });

const elsewhere = () => t("Changed elsewhere");

/** State shared by the parts of the workbench. */
export const bench = {
    get page() {
        return drawn.need();
    },
    /** Whether there is a page. */
    isOpen: () => drawn.now !== null,
    /** @type {EditEnds} */
    edits: { undo: null, redo: null },
    /** The revision of the dataset that is shown. */
    revision: "",
    /** Conditions of the filter besides the controls. */
    chips: el("div.lora-trainer-row.lora-trainer-bench-chips"),
    selection: nothing(),
    /** The message for rows whose caption has changed. */
    mark: elsewhere,
};

/**
 * Reload the page; rows whose caption has changed show this message.
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

const IMAGE_SIZE_KEY = "lora-trainer-captions-images";

/**
 * The events of the page, and their arguments.
 *
 * @typedef {{selection: [], answer: [PageAnswer], revision: [], edits: [EditEnds]}} BenchEvents
 */

/** @type {{[W in keyof BenchEvents]: Set<(...details: BenchEvents[W]) => unknown>}} */
const listeners = {
    selection: new Set(),
    answer: new Set(),
    edits: new Set(),
    revision: new Set(),
};

/**
 * @template {keyof BenchEvents} W
 * @param {W} what
 * @param {BenchEvents[W]} details
 */
export function emit(what, ...details) {
    for (const listener of [...listeners[what]]) listener(...details);
}

/**
 * Listen to "selection", "answer" (the page was loaded), "revision" (and has changed) and "edits".
 *
 * @template {keyof BenchEvents} W
 * @param {W} what
 * @param {(...details: BenchEvents[W]) => unknown} listener
 */
export const listen = (what, listener) => listeners[what].add(listener);

/** Start a new page; listeners of the previous one are removed. */
export function begin(/** @type {BenchPage | TextPage} */ page) {
    for (const all of Object.values(listeners)) all.clear();
    // the parts that need more of a page than undo does are those of images
    drawn.now = /** @type {BenchPage} */ (page);
    bench.edits = { undo: null, redo: null };
    bench.selection = nothing();
    page.panel.dataset.images = imagesAreLarge() ? "large" : "small";
}

/** Whether the page's captions are in several places: two tables, or a table and text files. */
export function hasSeveralSources(items = drawn.now?.pages.answer?.items ?? []) {
    return (
        new Set(
            items
                .filter((item) => item.caption_file)
                .map((item) => (item.source === "text" ? "" : item.caption_file)),
        ).size > 1
    );
}

export const imagesAreLarge = () => kept.get(IMAGE_SIZE_KEY) === "large";

/** "small" or "large" images beside the captions; kept in this browser. */
export function setImageSize(/** @type {string} */ size) {
    kept.set(IMAGE_SIZE_KEY, size);
    bench.page.panel.dataset.images = imagesAreLarge() ? "large" : "small";
    for (const row of bench.page.rows().values()) row.redraw();
}

export const triggerWord = () => String(settings().trigger_word || "").trim();

/** Number of tokens to which captions are truncated: the model's limit, or max_token_length. */
export function tokenLimit() {
    const { checkpoints, loaded } = home();
    const chosen =
        draft.checkpoint === "loaded"
            ? loaded
            : checkpoints?.find((known) => known.id === draft.checkpoint);
    return chosen?.caption_tokens ?? (Number(settings().max_token_length) || 75);
}

/** Whether the page was loaded with a trigger word or length other than in the settings. */
export function isOutOfDate() {
    const { query } = bench.page.pages;
    return query.trigger !== triggerWord() || query.tokens !== tokenLimit();
}
