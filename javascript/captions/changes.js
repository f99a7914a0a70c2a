/*
 * Telling what was changed, undo and the list of changes. Every part that changes captions asks the
 * server and hands the answer to took().
 */
import { Problem, api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatDate, plural, t } from "../common/language.js";
import { currentSection } from "../common/sections.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { replan } from "../settings/plan.js";
import { bench, tell } from "./bench.js";

export const changedWords = (count) =>
    plural(count, "{count} caption changed", "{count} captions changed");

/** The page was read: its counts, and whether somebody changed something. */
export function answered(answer) {
    if (bench.selection.where) tell("selection");
    const before = bench.revision;
    bench.revision = answer.revision;
    tell("answer", answer);
    if (before === answer.revision) return;
    tell("revision");
    readEdits();
}

export async function readEdits() {
    try {
        setEdits((await api.get(datasets.path("edits"))).edits);
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
    }
}

function setEdits(edits) {
    bench.edits = edits;
    tell("edits", edits);
}

/**
 * Captions were changed from here: read the page again, and say what was left alone because
 * somebody else had changed it.
 */
export async function took(answer, { say = "", takesBack = true } = {}) {
    if (answer.edits) setEdits(answer.edits);
    if (said) said.remove();
    said =
        say &&
        widgets.toast(say, {
            severity: "done",
            seconds: 10,
            action:
                takesBack && answer.edits && answer.edits.undo
                    ? { label: t("Undo"), onclick: undo }
                    : null,
        });
    if (answer.conflicts && answer.conflicts.length) showConflicts(answer.conflicts);
    bench.mark = () => t("Changed");
    try {
        await bench.page.pages.load();
    } finally {
        bench.mark = () => t("Changed elsewhere");
    }
    replan();
}

function showConflicts(conflicts) {
    widgets.dialog({
        title: plural(
            conflicts.length,
            "{count} caption was left alone",
            "{count} captions were left alone",
        ),
        wide: true,
        body: [
            el(
                "p",
                {},
                t("Someone else changed them meanwhile. Nothing of theirs was overwritten."),
            ),
            el(
                "ul",
                { class: "lora-trainer-bench-list" },
                conflicts.map((conflict) =>
                    el(
                        "li",
                        { class: "lora-trainer-card" },
                        el("b", {}, conflict.name),
                        el("p", { class: "lora-trainer-help" }, conflict.message),
                        el("p", {}, conflict.current || t("(empty)")),
                    ),
                ),
            ),
        ],
        actions: [{ label: t("Close"), kind: "primary" }],
    });
}

/** A change of many captions, at once; resolves when the page shows it. */
export async function change(select, action) {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path("bulk"), { select, action });
    await took(answer, { say: changedWords(answer.changed) });
    return answer;
}

// the last word on a change; the next takes its place
let said = null;

export const undo = () => step("undo");

export const redo = () => step("redo");

async function step(way, id) {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path(way), id ? { id } : {});
    await took(answer, { takesBack: false });
    await datasets.refresh();
    said = widgets.toast(
        way === "undo"
            ? t("Undone: {title}", { title: answer.title })
            : t("Done again: {title}", { title: answer.title }),
        {
            seconds: 8,
            action: way === "undo" ? { label: t("Do it again"), onclick: redo } : null,
        },
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
                ? el("ul", { class: "lora-trainer-bench-list" }, list.map(line))
                : el("p", {}, t("Nothing has been changed yet.")),
        );
    };
    const line = (edit) =>
        el(
            "li",
            { class: "lora-trainer-bench-line" },
            el(
                "div",
                {},
                el("b", {}, edit.title),
                el(
                    "p",
                    { class: "lora-trainer-help" },
                    [
                        edit.count ? plural(edit.count, "{count} image", "{count} images") : "",
                        formatDate(edit.time),
                        edit.undone ? t("undone") : "",
                    ]
                        .filter(Boolean)
                        .join(" \u00b7 "),
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
                label: t("Do the last undone again"),
                disabled: !bench.edits.redo,
                onclick: async () => {
                    await step("redo");
                    await draw();
                    return false;
                },
            },
            { label: t("Close"), kind: "primary" },
        ],
    });
}

// Ctrl+Z and Ctrl+Shift+Z (or Ctrl+Y) anywhere but in a box, where they take back what is typed
document.addEventListener("keydown", (event) => {
    if (
        !(event.ctrlKey || event.metaKey) ||
        event.altKey ||
        event.isComposing ||
        !bench.page ||
        currentSection() !== "captions" ||
        !bench.page.panel.offsetParent
    )
        return;
    const key = event.key.toLowerCase();
    const way = key === "z" ? (event.shiftKey ? "redo" : "undo") : key === "y" ? "redo" : "";
    const { target } = event;
    const types =
        target instanceof Element &&
        target.matches(
            "input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]",
        );
    if (
        !way ||
        types ||
        document.querySelector("dialog[open]") ||
        !bench.edits ||
        !bench.edits[way]
    )
        return;
    event.preventDefault();
    step(way).catch(widgets.toastProblem);
});
