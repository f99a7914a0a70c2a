/*
 * Files that are dropped or chosen -> uploads, three at a time, images before captions; what is on
 * its way, what was left out and why.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatBytes, formatNumber, plural, sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";

const AT_ONCE = 3;

const CAPTIONS = /\.(txt|caption|csv|tsv|jsonl|ndjson)$/i;

const ARCHIVE = /\.zip$/i;

const HIDDEN = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i;

/** Captions need their images there, so they come last; a zip brings both. */
export const rank = (entry) => (ARCHIVE.test(entry.path) ? 1 : CAPTIONS.test(entry.path) ? 2 : 0);

/**
 * What was dropped -> [{file, path}], folders walked. Must be called while the drop is being
 * handled: the list is gone afterwards.
 */
async function dropped(transfer) {
    const entries = [...transfer.items]
        .map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry())
        .filter(Boolean);
    const plain = [...transfer.files].map((file) => ({ file, path: file.name }));
    if (!entries.some((entry) => entry.isDirectory)) return plain;
    const found = [];
    for (const entry of entries) await walk(entry, "", found);
    return found.filter((one) => !HIDDEN.test(one.path));
}

async function walk(entry, before, found) {
    const path = before + entry.name;
    if (entry.isFile) {
        found.push({
            path,
            file: await new Promise((resolve, reject) => entry.file(resolve, reject)),
        });
        return;
    }
    const reader = entry.createReader();
    for (;;) {
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!some.length) return;
        for (const inner of some) await walk(inner, path + "/", found);
    }
}

/**
 * The place to drop files on. `target()` resolves to the dataset's id, or null for none; `done()`
 * hears when something has arrived; name(text) says where it goes.
 */
export function uploadArea({ target, done }) {
    const report = el("div", { class: "lora-trainer-upload-report" });
    const input = el("input", {
        type: "file",
        multiple: true,
        class: "lora-trainer-offscreen",
        tabindex: "-1",
        "aria-hidden": "true",
        accept: "image/*,.heic,.heif,.hif,.avif,.zip,.txt,.caption,.csv,.tsv,.jsonl",
    });
    input.addEventListener("change", () => {
        const entries = [...input.files].map((file) => ({
            file,
            path: file.webkitRelativePath || file.name,
        }));
        input.value = "";
        start(entries);
    });
    const choose = widgets.button({
        label: t("Add images"),
        title: t("They are copied into this dataset."),
        kind: "primary",
        onclick: () => input.click(),
    });
    const chooseFolder = widgets.button({
        label: t("Add a folder"),
        title: t("Its images and captions are copied into this dataset."),
        onclick: () => {
            const folder = el("input", { type: "file", multiple: true, webkitdirectory: true });
            folder.addEventListener("change", () =>
                start(
                    [...folder.files]
                        .map((file) => ({ file, path: file.webkitRelativePath || file.name }))
                        .filter((one) => !HIDDEN.test(one.path)),
                ),
            );
            folder.click();
        },
    });
    const words = el("p");
    const drop = el(
        "div",
        { class: "lora-trainer-drop" },
        words,
        el("div", { class: "lora-trainer-row" }, choose, chooseFolder),
        input,
    );
    const hover = (over) => drop.classList.toggle("lora-trainer-drop-over", over);
    drop.addEventListener("dragover", (event) => {
        event.preventDefault();
        event.stopPropagation();
        hover(true);
    });
    drop.addEventListener("dragleave", () => hover(false));
    drop.addEventListener("drop", (event) => {
        // the host takes a picture dropped anywhere for its own
        event.preventDefault();
        event.stopPropagation();
        hover(false);
        dropped(event.dataTransfer).then(start).catch(widgets.toastProblem);
    });

    let running = false,
        named = "";

    async function start(entries, query = {}) {
        if (!entries.length) return;
        if (running) {
            widgets.toast(t("Wait until the files before have arrived."), { severity: "warning" });
            return;
        }
        running = true;
        choose.disabled = true;
        try {
            const id = await target(entries);
            if (id) await send(id, entries, query);
        } catch (problem) {
            widgets.toastProblem(problem);
        } finally {
            running = false;
            choose.disabled = false;
        }
    }

    async function send(id, entries, query) {
        const queue = [...entries].sort(
            (one, other) =>
                rank(one) - rank(other) ||
                one.path.localeCompare(other.path, undefined, { numeric: true }),
        );
        const total = queue.reduce((sum, entry) => sum + entry.file.size, 0) || 1;
        const state = {
            sent: 0,
            finished: 0,
            added: 0,
            captions: 0,
            converted: {},
            waiting: {},
            skipped: [],
            kept: [],
            cancelled: false,
            active: new Map(),
        };
        const whole = widgets.progress(t("Upload"));
        const list = el("ul", {
            class: "lora-trainer-upload-files",
            "aria-label": t("Files on their way"),
        });
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
                for (const one of state.active.values()) one.promise.cancel();
            },
        });
        fill(
            report,
            el(
                "div",
                { class: "lora-trainer-card lora-trainer-upload" },
                el("div", { class: "lora-trainer-upload-whole" }, whole.element, cancel),
                list,
            ),
        );
        show();

        async function one(entry) {
            const bar = widgets.progress(entry.path);
            const row = el(
                "li",
                {},
                el("span", { class: "lora-trainer-upload-name" }, entry.path),
                bar.element,
            );
            list.append(row);
            bar.set(0, 1, formatBytes(entry.file.size));
            const moving = { share: 0, size: entry.file.size };
            moving.promise = api.upload(
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
                const answer = await moving.promise;
                state.added += answer.added.length;
                state.captions += answer.captions;
                for (const kind of ["converted", "waiting"]) {
                    for (const [form, count] of Object.entries(answer[kind]))
                        state[kind][form] = (state[kind][form] || 0) + count;
                }
                state.skipped.push(...answer.skipped);
                if (answer.skipped.some((skipped) => skipped.kept_caption)) state.kept.push(entry);
            } catch (problem) {
                if (problem.kind !== "Cancelled")
                    state.skipped.push({
                        name: entry.path,
                        message: problem.message,
                        hint: problem.hint || "",
                    });
            } finally {
                state.active.delete(entry);
                state.sent += entry.file.size;
                state.finished += 1;
                row.remove();
                show();
            }
        }

        // each kind ends before the next begins
        for (const kind of [0, 1, 2]) {
            const waiting = queue.filter((entry) => rank(entry) === kind);
            const worker = async () => {
                while (waiting.length && !state.cancelled) await one(waiting.shift());
            };
            await Promise.all(Array.from({ length: kind === 0 ? AT_ONCE : 1 }, worker));
        }
        drawReport(state);
        await done(id);
    }

    function drawReport(state) {
        const arrived = [
            plural(state.added, "{count} image added", "{count} images added"),
            state.captions
                ? plural(state.captions, "{count} caption written", "{count} captions written")
                : "",
        ];
        const words =
            arrived.filter(Boolean).join(", ") +
            (state.cancelled ? ". " + t("The rest was cancelled; what had arrived stays.") : ".");
        const close = el(
            "button",
            {
                type: "button",
                class: "lora-trainer-close",
                "aria-label": t("Close"),
                onclick: () => fill(report),
            },
            "\u00d7",
        );
        const replace = state.kept.length
            ? widgets.button({
                  label: t("Replace the captions that were kept"),
                  onclick: () => {
                      start(state.kept, { captions: "replace" });
                  },
              })
            : null;
        const converted = Object.entries(state.converted).map(([form, count]) =>
            plural(
                count,
                "{count} {form} picture was converted to JPEG or PNG.",
                "{count} {form} pictures were converted to JPEG or PNG.",
                { form },
            ),
        );
        const waiting = Object.entries(state.waiting).map(([form, count]) =>
            plural(
                count,
                "{count} {form} picture is kept as it is.",
                "{count} {form} pictures are kept as they are.",
                { form },
            ),
        );
        const later = t(
            "They are converted with the packages for training, which are not installed yet. Press Set up; when it is done, press Convert below.",
        );
        const notice = widgets.notice(
            state.skipped.length || waiting.length ? "warning" : "done",
            words,
            "",
            converted.length ? el("p", {}, sentences(converted)) : null,
            waiting.length ? el("p", {}, sentences(waiting), " ", later) : null,
            state.skipped.length
                ? el(
                      "details",
                      { class: "lora-trainer-skipped", open: state.skipped.length <= 8 },
                      el(
                          "summary",
                          {},
                          plural(
                              state.skipped.length,
                              "{count} was left out",
                              "{count} were left out",
                          ),
                      ),
                      el(
                          "ul",
                          {},
                          state.skipped.map((skipped) =>
                              el(
                                  "li",
                                  {},
                                  skipped.message,
                                  skipped.hint
                                      ? el(
                                            "span",
                                            { class: "lora-trainer-help" },
                                            " " + skipped.hint,
                                        )
                                      : null,
                              ),
                          ),
                      ),
                  )
                : null,
            replace,
        );
        notice.classList.add("lora-trainer-upload-done");
        notice.append(close);
        fill(report, notice);
    }

    return {
        isNext: (is) => widgets.makePrimary(choose, is),
        element: el("div", { class: "lora-trainer-upload-area" }, drop, report),
        name(dataset) {
            // what was said of another dataset's files
            if (dataset !== named && !running) fill(report);
            named = dataset;
            words.textContent = dataset
                ? t(
                      "Drop more images for {name} here: files, a folder or a .zip, with captions if you have them",
                      { name: dataset },
                  )
                : t("Drop images here: files, a folder or a .zip, with captions if you have them");
        },
    };
}
