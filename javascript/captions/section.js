/*
 * The section "captions": each picture with its caption beside it, saved when the box is left. What
 * another browser or an editor wrote meanwhile is shown when it is seen, and never overwritten: the
 * server compares, and the visitor chooses. One row is row.js; what is done with many captions at
 * once is in the other files of this folder, the workbench. /
 */
import { Problem } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { openSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { imagePages, lookEvery } from "../images/pages.js";
import { remarksCard } from "../images/pictures.js";
import { begin, isOutOfDate, listen } from "./bench.js";
import * as captioner from "./captioner.js";
import * as changes from "./changes.js";
import * as check from "./check.js";
import * as filter from "./filter.js";
import { filterBar } from "./filter_bar.js";
import { CaptionRow } from "./row.js";
import * as selection from "./selection.js";
import { tagPanel } from "./tag_panel.js";
import * as tokens from "./tokens.js";
import { selectionBar, toolbar } from "./toolbar.js";
import * as unsaved from "./unsaved.js";

let parts = null;

export const section = {
    id: "captions",
    title: () => t("Captions"),
    draw(container) {
        parts = build();
        fill(container, parts.panel);
        drawPanel();
        parts.pages.watch("captions");
        startPolling(catchUp);
        captioner.watch();
        check.watch();
    },
    shown() {
        if (!parts || !parts.pages.answer) return;
        // lengths and filters depend on the settings, which may be others now
        if (isOutOfDate()) filter.turn({ offset: parts.pages.query.offset });
        else parts.pages.load({ quietly: true });
        captioner.lookAgain();
        check.lookAgain();
    },
    hidden() {
        saveAll();
    },
};

store.on("dataset", () => {
    if (parts) drawPanel();
});

store.on("settings", () => {
    if (!parts) return;
    for (const row of parts.rows.values()) row.describe();
    if (parts.trigger && document.activeElement !== parts.trigger.input) parts.trigger.show();
});

document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") saveAll();
});

function build() {
    const made = {
        panel: el("div", { class: "lora-trainer-captions" }),
        rows: new Map(),
        list: null,
    };
    made.pages = imagePages({
        show: drawRows,
        fail: (problem) => fill(made.trouble, problem.status ? widgets.problem(problem) : null),
        gone: countGone,
    });
    made.place = el("div");
    // above the boxes, never in their place: somebody may be typing. That the WebUI does not answer
    // is said at the window's edge
    made.trouble = el("div");
    made.next = widgets.actions();
    made.write = widgets.button({ label: t("Write captions"), onclick: () => captioner.ask() });
    made.onward = widgets.button({
        label: t("Go on to the settings"),
        kind: "primary",
        local: true,
        onclick: () => openSection("settings"),
    });
    made.next.fill(made.write, made.onward);
    return made;
}

const chooseFirst = () =>
    widgets.notice(
        "info",
        t("Choose the images first."),
        "",
        widgets.button({
            label: t("Go to the images"),
            kind: "primary",
            local: true,
            onclick: () => openSection("images"),
        }),
    );

const head = (card) =>
    el(
        "div",
        { class: "lora-trainer-card lora-trainer-captions-top" },
        el(
            "div",
            {},
            el("h3", {}, card.name),
            parts.counts,
            el(
                "p",
                { class: "lora-trainer-help" },
                t(
                    "Say what is in each picture, also what should be able to change: clothes, place, light. A box is saved when you leave it; Ctrl+Enter marks it as reviewed and goes on to the next, Escape takes back what was typed.",
                ),
            ),
        ),
        parts.trigger.element,
    );

function drawPanel() {
    saveAll();
    parts.rows.clear();
    const card = datasets.chosen();
    if (!card) {
        fill(parts.panel, chooseFirst());
        return;
    }
    begin({
        pages: parts.pages,
        panel: parts.panel,
        rows: () => parts.rows,
        saveAll: settled,
        showCounts,
        next: nextPage,
    });
    listen("selection", () => {
        for (const [key, row] of parts.rows) row.showSelected(selection.has(key));
    });
    Object.assign(parts.pages.query, filter.recall());
    parts.place = el("div");
    parts.list = null;
    fill(parts.trouble);
    parts.counts = el("p", { class: "lora-trainer-help", role: "status" });
    parts.findings = el("div");
    parts.trigger = tokens.triggerField();
    fill(
        parts.panel,
        head(card),
        toolbar(),
        captioner.panel(),
        check.panel(),
        parts.findings,
        el(
            "div",
            { class: "lora-trainer-bench-sides" },
            tagPanel.panel(),
            el(
                "div",
                { class: "lora-trainer-captions-list" },
                filterBar(),
                selectionBar(),
                parts.trouble,
                parts.place,
                parts.pages.bar,
            ),
        ),
        parts.next.element,
    );
    parts.pages.load();
    captioner.lookAgain();
    check.lookAgain();
}

/** Of the rows shown, how many have left the filter by what was written into them. */
function countGone() {
    const { filter } = parts.pages.query;
    const left = {
        missing: (row) => !row.isEmpty(),
        captioned: (row) => row.isEmpty(),
        unreviewed: (row) => row.isReviewed(),
        reviewed: (row) => !row.isReviewed(),
    }[filter];
    return left ? [...parts.rows.values()].filter(left).length : 0;
}

function drawRows(answer, quietly) {
    const items = new Map(answer.items.map((item) => [item.key, item]));
    const kept = new Map();
    // nobody asked for this page: what the visitor has just written stays where it is, though it
    // may no longer fit the filter or the order
    if (quietly)
        for (const [key, row] of parts.rows)
            if (items.has(key) || row.isBusy() || row.isTouched()) kept.set(key, row);
    for (const item of answer.items)
        kept.set(item.key, parts.rows.get(item.key) || new CaptionRow(item));
    // and a row whose text is not saved yet never leaves
    for (const [key, row] of parts.rows) if (!kept.has(key) && row.isBusy()) kept.set(key, row);
    for (const entry of unsaved.of(answer.id))
        if (!kept.has(entry.key)) kept.set(entry.key, new CaptionRow(entry.item));
    for (const [key, row] of kept) if (items.has(key)) row.take(items.get(key), quietly);
    parts.rows = kept;
    fill(parts.trouble);
    showCounts(answer.captioned, answer.total);
    // what is found of the folder as a whole; the check has its own place
    const found = JSON.stringify(answer.findings);
    if (found !== parts.findings.dataset.shown)
        fill(parts.findings, remarksCard(answer.findings, parts.pages));
    parts.findings.dataset.shown = found;
    drawList(
        [...kept.values()].map((row) => row.element),
        answer,
    );
    changes.answered(answer);
    catchUp().catch(widgets.toastProblem);
}

function drawList(elements, answer) {
    if (!elements.length) {
        fill(
            parts.place,
            el(
                "p",
                { class: "lora-trainer-help lora-trainer-empty" },
                answer.total ? t("No image is like that.") : t("There are no images yet."),
            ),
        );
        return;
    }
    if (!parts.list || !parts.list.isConnected)
        fill(parts.place, (parts.list = el("div", { class: "lora-trainer-caption-rows" })));
    const wanted = new Set(elements);
    for (const element of [...parts.list.children]) if (!wanted.has(element)) element.remove();
    // the row that is being typed in does not move, the others move around it: the focus, and a
    // word half composed, stay
    const pinned = elements.findIndex((element) => element.contains(document.activeElement));
    arrange(elements.slice(0, Math.max(0, pinned)), 0, elements[pinned]);
    arrange(elements.slice(pinned + 1), pinned + 1, null);
}

/**
 * Put elements in this order before another one, from a place in the list on; those that stand
 * right already stay.
 */
function arrange(elements, from, before) {
    const first = elements.findIndex((element, at) => parts.list.children[from + at] !== element);
    if (first >= 0)
        for (const element of elements.slice(first)) parts.list.insertBefore(element, before);
}

/**
 * Send what a box lost without being left, and what was typed in another dataset and has not
 * arrived.
 */
async function catchUp() {
    await Promise.all([...parts.rows.values()].map((row) => row.catchUp()));
    // those of the chosen dataset get a box with its page
    for (const entry of unsaved.all())
        if (entry.id !== store.get("dataset") && unsaved.isWorthSending(entry))
            await sendUnseen(entry);
    return lookEvery;
}

async function sendUnseen(entry) {
    try {
        await unsaved.send(entry);
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (entry.id !== store.get("dataset"))
            widgets.toast(
                t("The caption of {name} is not saved: {reason}", {
                    name: entry.item.name,
                    reason: problem.message,
                }),
                {
                    severity: "error",
                    hint: t("Your text is kept. Choose its dataset again to see it."),
                    seconds: 12,
                },
            );
    }
}

/** Behind the last row: the next page, with its first box to type in. Says whether there is one. */
async function nextPage() {
    const button = [...parts.pages.bar.querySelectorAll("button")].pop();
    if (!button || button.disabled) return;
    const { offset } = parts.pages.query;
    await saveAll();
    await filter.turn({ offset: offset + parts.pages.size - countGone() });
    const first = parts.place.querySelector("textarea");
    if (first) first.focus();
}

function showCounts(captioned, total) {
    const words = t("{done} of {count} with a caption", {
        done: formatNumber(captioned),
        count: formatNumber(total),
    });
    parts.counts.textContent = words;
    parts.next.say(words);
    // while images lack a caption, writing them comes before going on
    widgets.makePrimary(parts.write, captioned < total);
    widgets.makePrimary(parts.onward, captioned >= total);
}

const saveAll = () => Promise.all(parts ? [...parts.rows.values()].map((row) => row.save()) : []);

/** Before many captions are changed: what is typed is saved, and it is known what there is. */
async function settled() {
    const { answer } = parts.pages;
    if (!answer || answer.id !== store.get("dataset")) await parts.pages.load();
    await saveAll();
}
