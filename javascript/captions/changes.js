/*
 * Messages about changes, undo, and the list of changes. Every part that changes captions passes
 * the server's answer to afterEdit().
 */
import { api, expected } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { dotted, formatDate, plural, t } from "../common/language.js";
import { currentSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { replan } from "../settings/plan.js";
import { bench, reload, emit } from "./bench.js";

/** @import { ConflictView, EditEnds, EditView, OutcomeView, SelectBody } from "../common/answers" */
/** @import { PageAnswer } from "../common/types" */

export const changedText = (/** @type {number} */ count) =>
    plural(count, "{count} caption changed", "{count} captions changed");

/** The page was loaded: its counts, and whether someone else changed something. */
export function answered(/** @type {PageAnswer} */ answer) {
    if (bench.selection.where) emit("selection");
    const before = bench.revision;
    bench.revision = answer.revision;
    emit("answer", answer);
    if (before === answer.revision) return;
    emit("revision");
    readEdits();
}

export async function readEdits() {
    try {
        setEdits((await api.get(datasets.path("edits"))).edits);
    } catch (caught) {
        expected(caught);
    }
}

function setEdits(/** @type {EditEnds} */ edits) {
    bench.edits = edits;
    emit("edits", edits);
}

/**
 * Captions were changed here: reload the page, and report those that were not changed because
 * someone else had.
 *
 * @param {Partial<OutcomeView>} [answer]
 * @param {{message?: string}} [options]
 */
export async function afterEdit({ edits, conflicts, edit } = {}, { message } = {}) {
    if (edits) setEdits(edits);
    lastToast?.remove();
    if (message)
        lastToast = widgets.toast(message, {
            severity: "done",
            seconds: 10,
            action: turning("undo", edit),
        });
    if (conflicts?.length) showConflicts(conflicts);
    await reload(() => t("Changed"));
    replan();
}

function showConflicts(/** @type {ConflictView[]} */ conflicts) {
    widgets.dialog({
        title: datasets.isTexts()
            ? plural(
                  conflicts.length,
                  "{count} text was not changed",
                  "{count} texts were not changed",
              )
            : plural(
                  conflicts.length,
                  "{count} caption was not changed",
                  "{count} captions were not changed",
              ),
        wide: true,
        body: [
            el(
                "p",
                t(
                    "Someone else has changed them in the meantime. Their changes were not overwritten.",
                ),
            ),
            el(
                "ul.lora-trainer-bench-list",
                conflicts.map((conflict) =>
                    el(
                        "li.lora-trainer-card",
                        el("b", conflict.name),
                        widgets.help(conflict.message),
                        el("p", conflict.current || t("(empty)")),
                    ),
                ),
            ),
        ],
        actions: [widgets.closing()],
    });
}

/** Change many captions; resolves when the page shows it. */
export async function change(
    /** @type {SelectBody} */ select,
    /** @type {Record<string, unknown>} */ action,
) {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path("bulk"), { select, action });
    await afterEdit(answer, { message: changedText(answer.changed) });
}

// the toast of the last change, replaced by the next one
/** @type {HTMLElement | null} */
let lastToast = null;

export const undo = () => step("undo");

/**
 * The button that undoes or redoes one change, though another one may be made, or another dataset
 * chosen, before it is pressed.
 *
 * @param {"undo" | "redo"} way
 * @param {number | null} [id]
 * @param {string} [dataset] by default the chosen one
 */
function turning(way, id, dataset = store.get("dataset")) {
    return id === null || id === undefined
        ? null
        : { label: way === "undo" ? t("Undo") : t("Redo"), onclick: () => step(way, id, dataset) };
}

/**
 * @param {"undo" | "redo"} way
 * @param {number} [id] of a change; by default the last one
 * @param {string} [dataset] by default the chosen one
 */
async function step(way, id, dataset) {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path(way, dataset), { id });
    await afterEdit(answer);
    // not waited for: the button is for the next one already
    datasets.refresh().catch((caught) => void expected(caught));
    lastToast = widgets.toast(
        way === "undo"
            ? t("Undone: {title}", { title: answer.title })
            : t("Redone: {title}", { title: answer.title }),
        { seconds: 8, action: way === "undo" ? turning("redo", answer.edit, dataset) : null },
    );
}

export async function showHistory() {
    const place = el("div");
    const draw = async () => {
        const { edits, list } = await api.get(datasets.path("edits"));
        setEdits(edits);
        fill(
            place,
            list.length
                ? el("ul.lora-trainer-bench-list", list.map(line))
                : el("p", t("Nothing has been changed yet.")),
        );
    };
    const line = (/** @type {EditView} */ edit) =>
        el(
            "li.lora-trainer-bench-line",
            el(
                "div",
                el("b", edit.title),
                widgets.help(
                    dotted(
                        edit.count ? datasets.countInChosen(edit.count) : "",
                        formatDate(edit.time),
                        edit.undone ? t("undone") : "",
                    ),
                ),
            ),
            edit.undone
                ? null
                : widgets.button({
                      label: t("Undo"),
                      onclick: async () => {
                          await step("undo", edit.id);
                          await draw();
                      },
                  }),
        );
    await draw();
    widgets.dialog({
        title: t("Changes"),
        body: place,
        wide: true,
        actions: [
            {
                label: t("Redo the last one"),
                disabled: !bench.edits.redo,
                onclick: async () => {
                    await step("redo");
                    await draw();
                    return false;
                },
            },
            widgets.closing(),
        ],
    });
}

// Ctrl+Z and Ctrl+Shift+Z (or Ctrl+Y), except in a textbox, where they undo typing
document.addEventListener("keydown", (event) => {
    if (
        !(event.ctrlKey || event.metaKey) ||
        event.altKey ||
        event.isComposing ||
        !bench.isOpen() ||
        currentSection() !== "captions" ||
        !bench.page.panel.offsetParent
    )
        return;
    const key = event.key.toLowerCase();
    const way = key === "y" || event.shiftKey ? "redo" : "undo";
    const { target } = event;
    const types =
        target instanceof Element &&
        target.matches(
            "input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]",
        );
    if (
        !["z", "y"].includes(key) ||
        types ||
        document.querySelector("dialog[open]") ||
        !bench.edits[way]
    )
        return;
    event.preventDefault();
    step(way).catch(widgets.toastProblem);
});
