/*
 * Uploads dropped or chosen files, three at a time, images before captions, and reports what was
 * skipped and why.
 */
import { api, expected } from "../common/api.js";
import { el, fill, put } from "../common/elements.js";
import { formatBytes, formatNumber, plural, sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";
import { hintBehind } from "./images.js";

/** @import { AcceptedView } from "../common/answers" */
/** @import { Remark } from "../common/types" */

/** @import { Query } from "../common/api.js" */

/** @typedef {{file: File, path: string}} Entry a dropped or chosen file; `path`: within its folder */

/**
 * The progress and result of an upload.
 *
 * @typedef {object} State
 * @property {number} sent bytes
 * @property {number} finished files
 * @property {number} added images
 * @property {number} captions
 * @property {number} texts
 * @property {Record<string, number>} converted format -> how many
 * @property {Record<string, number>} waiting
 * @property {Remark[]} skipped
 * @property {Entry[]} kept files with captions for images that already have one
 * @property {boolean} cancelled
 * @property {Map<Entry, {share: number, size: number, cancel: () => void}>} active
 */

const AT_ONCE = 3;

const CAPTIONS = /\.(txt|caption|tags|cap|csv|tsv|json|jsonl|ndjson)$/i;

/** Files that a dataset of texts is made of, if there is nothing else. */
export const OF_TEXTS = /\.(txt|md|csv|tsv|jsonl|ndjson|json)$/i;

const ARCHIVE = /\.zip$/i;

const HIDDEN = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i;

/** Captions are uploaded after their images; a zip contains both. */
export const rank = (/** @type {{path: string}} */ entry) =>
    ARCHIVE.test(entry.path) ? 1 : CAPTIONS.test(entry.path) ? 2 : 0;

/**
 * Dropped items -> [{file, path}], with folders traversed. Must be called synchronously in the drop
 * event: the list is empty afterwards.
 */
async function dropped(/** @type {DataTransfer} */ transfer) {
    const entries = [...transfer.items]
        .map((item) => item.webkitGetAsEntry())
        .filter((entry) => entry !== null);
    const plain = [...transfer.files].map((file) => ({ file, path: file.name }));
    if (!entries.some((entry) => entry.isDirectory)) return plain;
    const found = await Promise.all(entries.map((entry) => walk(entry, "")));
    return found.flat().filter((one) => !HIDDEN.test(one.path));
}

/**
 * The files of a folder and its subfolders; of a file itself.
 *
 * @param {FileSystemEntry} entry
 * @param {string} before path of its folder, with a slash at the end
 * @returns {Promise<Entry[]>}
 */
async function walk(entry, before) {
    const path = before + entry.name;
    if (entry instanceof FileSystemFileEntry)
        return [
            { path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) },
        ];
    if (!(entry instanceof FileSystemDirectoryEntry)) return [];
    const reader = entry.createReader();
    const found = [];
    for (;;) {
        /** @type {FileSystemEntry[]} */
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!some.length) return found;
        for (const inner of some) found.push(...(await walk(inner, path + "/")));
    }
}

const skippedList = (/** @type {Remark[]} */ all) =>
    el(
        "details.lora-trainer-skipped",
        { open: all.length <= 8 },
        el("summary", plural(all.length, "{count} file was skipped", "{count} files were skipped")),
        el(
            "ul",
            all.map((skipped) => el("li", skipped.message, hintBehind(skipped))),
        ),
    );

/** Messages about images that browsers cannot show: converted, or to be converted. */
const formatText = (/** @type {State} */ state) => ({
    converted: Object.entries(state.converted).map(([form, count]) =>
        plural(
            count,
            "{count} {form} image was converted to JPEG or PNG.",
            "{count} {form} images were converted to JPEG or PNG.",
            { form },
        ),
    ),
    waiting: Object.entries(state.waiting).map(([form, count]) =>
        plural(
            count,
            "{count} {form} image is kept as it is.",
            "{count} {form} images are kept as they are.",
            { form },
        ),
    ),
});

/**
 * The notice after an upload.
 *
 * @param {State} state
 * @param {() => void} close
 * @param {(kept: Entry[]) => void} replaceKept
 */
function reportNotice(state, close, replaceKept) {
    const arrived = [
        state.texts
            ? plural(state.texts, "{count} text added", "{count} texts added")
            : plural(state.added, "{count} image added", "{count} images added"),
        state.captions
            ? plural(state.captions, "{count} caption written", "{count} captions written")
            : "",
    ];
    const words =
        arrived.filter(Boolean).join(", ") +
        (state.cancelled
            ? ". " + t("The rest was cancelled; files that were uploaded are kept.")
            : ".");
    const replace = state.kept.length
        ? widgets.button({
              label: t("Replace the captions that were kept"),
              onclick: () => replaceKept(state.kept),
          })
        : null;
    const { converted, waiting } = formatText(state);
    const later = t(
        "They are converted with the packages for training, which are not installed yet. Press Set up; when it is done, press Convert below.",
    );
    const notice = widgets.notice(
        state.skipped.length || waiting.length ? "warning" : "done",
        words,
        "",
        converted.length ? el("p", sentences(converted)) : null,
        waiting.length ? el("p", sentences(waiting), " ", later) : null,
        state.skipped.length ? skippedList(state.skipped) : null,
        replace,
    );
    notice.classList.add("lora-trainer-upload-done");
    notice.append(widgets.closeButton(close));
    return notice;
}

/** @typedef {Record<string, number>} Counts */

function add(/** @type {Counts} */ counts, /** @type {Counts} */ more) {
    for (const [form, count] of Object.entries(more)) counts[form] = (counts[form] ?? 0) + count;
}

/**
 * Add the response for one file to the totals.
 *
 * @param {State} state
 * @param {Entry} entry
 * @param {AcceptedView} answer
 */
function count(state, entry, answer) {
    state.added += answer.added.length;
    state.captions += answer.captions;
    state.texts += answer.texts;
    add(state.converted, answer.converted);
    add(state.waiting, answer.waiting);
    state.skipped.push(...answer.skipped);
    if (answer.skipped.some((skipped) => skipped.kept_caption)) state.kept.push(entry);
}

/**
 * Upload a file, with its progress bar in `list`; `show()` is called at each change.
 *
 * @param {string} id
 * @param {Entry} entry
 * @param {Query} query
 * @param {State} state
 * @param {HTMLElement} list
 * @param {() => void} show
 */
async function sendOne(id, entry, query, state, list, show) {
    const bar = widgets.progress(entry.path);
    const row = el("li", el("span.lora-trainer-upload-name", entry.path), bar.element);
    list.append(row);
    bar.set(0, 1, formatBytes(entry.file.size));
    const moving = { share: 0, size: entry.file.size, cancel: () => upload.cancel() };
    const upload = api.upload(
        datasets.path("upload", id),
        entry.file,
        (share) => {
            moving.share = share;
            if (share < 1) bar.set(share, 1, formatBytes(entry.file.size));
            else
                bar.set(
                    0,
                    0,
                    ARCHIVE.test(entry.path) ? t("Unpacking and checking") : t("Checking"),
                );
            show();
        },
        { name: entry.path, ...query },
    );
    state.active.set(entry, moving);
    try {
        count(state, entry, await upload);
    } catch (caught) {
        const { kind, message, hint } = expected(caught);
        if (kind !== "Cancelled") state.skipped.push({ message, hint });
    } finally {
        state.active.delete(entry);
        state.sent += entry.file.size;
        state.finished += 1;
        row.remove();
        show();
    }
}

/**
 * Upload all, with progress bars in `report`. Returns the result.
 *
 * @param {string} id
 * @param {Entry[]} entries
 * @param {Query} query
 * @param {HTMLElement} report
 */
async function send(id, entries, query, report) {
    const queue = [...entries].sort(
        (one, other) =>
            rank(one) - rank(other) ||
            one.path.localeCompare(other.path, undefined, { numeric: true }),
    );
    const total = queue.reduce((sum, entry) => sum + entry.file.size, 0) || 1;
    /** @type {State} */
    const state = {
        sent: 0,
        finished: 0,
        added: 0,
        captions: 0,
        texts: 0,
        converted: {},
        waiting: {},
        skipped: [],
        kept: [],
        cancelled: false,
        active: new Map(),
    };
    const whole = widgets.progress(t("Upload"));
    const list = el("ul.lora-trainer-upload-files", { "aria-label": t("Files being uploaded") });
    const show = () => {
        const moving = [...state.active.values()].reduce(
            (sum, one) => sum + one.share * one.size,
            0,
        );
        whole.set(
            state.sent + moving,
            total,
            t("{done} of {count} files, {size}", {
                done: formatNumber(state.finished),
                count: formatNumber(queue.length),
                size: formatBytes(total),
            }),
        );
    };
    const cancel = widgets.button({
        label: t("Cancel"),
        kind: "stop",
        onclick: () => {
            state.cancelled = true;
            for (const one of state.active.values()) one.cancel();
        },
    });
    fill(
        report,
        el(
            "div.lora-trainer-card.lora-trainer-upload",
            el("div.lora-trainer-upload-whole", whole.element, cancel),
            list,
        ),
    );
    show();

    // one kind after the other
    for (const kind of [0, 1, 2]) {
        const waiting = queue.filter((entry) => rank(entry) === kind).values();
        const worker = async () => {
            // the workers share one iterator
            for (const entry of waiting) {
                if (state.cancelled) return;
                await sendOne(id, entry, query, state, list, show);
            }
        };
        await Promise.all(Array.from({ length: kind === 0 ? AT_ONCE : 1 }, worker));
    }
    return state;
}

/** @typedef {(entries: Entry[]) => unknown} Start */

/** Let the user choose a folder; `start(entries)` receives its files. */
function askFolder(/** @type {Start} */ start) {
    const folder = el("input", { type: "file", multiple: true, webkitdirectory: true });
    folder.addEventListener("change", () =>
        start(entriesOf(folder).filter((one) => !HIDDEN.test(one.path))),
    );
    folder.click();
}

const entriesOf = (/** @type {HTMLInputElement} */ { files }) =>
    [...(files ?? [])].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

function takeDrops(/** @type {HTMLElement} */ place, /** @type {Start} */ start) {
    const hover = (/** @type {boolean} */ over) =>
        place.classList.toggle("lora-trainer-drop-over", over);
    place.addEventListener("dragover", (event) => {
        event.preventDefault();
        event.stopPropagation();
        hover(true);
    });
    place.addEventListener("dragleave", () => hover(false));
    place.addEventListener("drop", (event) => {
        // the host handles images dropped anywhere else
        event.preventDefault();
        event.stopPropagation();
        hover(false);
        if (event.dataTransfer) dropped(event.dataTransfer).then(start).catch(widgets.toastProblem);
    });
}

function fileInput(/** @type {Start} */ start) {
    const input = el("input.lora-trainer-offscreen", {
        type: "file",
        multiple: true,
        tabindex: "-1",
        "aria-hidden": "true",
        accept: "image/*,.heic,.heif,.hif,.avif,.zip,.txt,.caption,.tags,.cap,.csv,.tsv,.jsonl,.json,.md",
    });
    input.addEventListener("change", () => {
        const entries = entriesOf(input);
        input.value = "";
        start(entries);
    });
    return input;
}

function dropWords(/** @type {string} */ dataset, /** @type {string} */ kind) {
    if (kind === "texts")
        return t(
            "Drop more texts for {name} here: pairs of question and answer (.jsonl, .csv, .json) or documents (.txt, .md)",
            { name: dataset },
        );
    return dataset
        ? t(
              "Drop more images for {name} here: files, a folder or a .zip, with captions if you have them",
              { name: dataset },
          )
        : t("Drop images here: files, a folder or a .zip, with captions if you have them");
}

/**
 * The drop area. `target()` resolves to the dataset's id, or null to cancel; `done()` is called
 * after an upload; name(text) sets the dataset's name.
 *
 * @param {object} area
 * @param {(entries: Entry[]) => Promise<string | null>} area.target
 * @param {() => Promise<void>} area.done
 */
export function uploadArea({ target, done }) {
    const report = el("div.lora-trainer-upload-report");
    const input = fileInput((entries) => start(entries));
    const choose = widgets.button({
        label: t("Add images"),
        title: t("They are copied into this dataset."),
        kind: "primary",
        onclick: () => input.click(),
    });
    const chooseFolder = widgets.button({
        label: t("Add a folder"),
        title: t("Its images and captions are copied into this dataset."),
        onclick: () => askFolder(start),
    });
    const words = el("p");
    const consent = widgets.help(
        t("Somebody's face or an artist's work? You need their consent to publish."),
    );
    const drop = el(
        "div.lora-trainer-drop",
        words,
        widgets.row(choose, chooseFolder),
        consent,
        input,
    );
    takeDrops(drop, start);

    let running = false,
        named = "";

    async function start(/** @type {Entry[]} */ entries, /** @type {Query} */ query = {}) {
        if (!entries.length) return;
        if (running) {
            widgets.toast(t("Wait until the current upload has finished."), {
                severity: "warning",
            });
            return;
        }
        running = true;
        choose.disabled = true;
        try {
            const id = await target(entries);
            if (!id) return;
            const state = await send(id, entries, query, report);
            fill(
                report,
                reportNotice(
                    state,
                    () => fill(report),
                    (kept) => start(kept, { captions: "replace" }),
                ),
            );
            await done();
        } catch (problem) {
            widgets.toastProblem(problem);
        } finally {
            running = false;
            choose.disabled = false;
        }
    }

    return {
        isNext: (/** @type {boolean} */ is) => widgets.makePrimary(choose, is),
        element: el("div.lora-trainer-upload-area", drop, report),
        name(/** @type {string} */ dataset, /** @type {string} */ kind) {
            // the report is about another dataset's files
            if (dataset !== named && !running) fill(report);
            named = dataset;
            consent.hidden = kind === "texts";
            put(choose, kind === "texts" ? t("Add texts") : t("Add images"));
            words.textContent = dropWords(dataset, kind);
        },
    };
}
