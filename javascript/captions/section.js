/*
 * The section "captions": images with their captions, saved on blur. Changes by another browser or
 * an editor are shown, and never overwritten: the server detects conflicts, and the user chooses.
 * row.js is one row; the other files of this folder are for changing many captions.
 */
import { Problem, expected } from "../common/api.js";
import { el, fill, find, findAll, redraw } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { openSection } from "../common/sections.js";
import { Later, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { ImagePages, pollInterval } from "../images/pages.js";
import { remarksCard } from "../images/images.js";
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

/** @import { PageAnswer } from "../common/types" */

/** @import { Entry } from "./unsaved.js" */

/** The section's elements, redrawn for each dataset except the bar and the pager. */
class Parts {
    panel = el("div.lora-trainer-captions");
    /** By their images' keys. @type {Map<string, CaptionRow>} */
    rows = new Map();
    place = el("div");
    list = el("div.lora-trainer-caption-rows");
    // above the textboxes, not instead of them: the user may be typing. Connection errors are shown
    // at the bottom of the window
    errorPlace = el("div");
    counts = el("p.lora-trainer-help", { role: "status" });
    findings = el("div");
    /** @type {ReturnType<typeof tokens.triggerField> | null} */
    trigger = null;
    pages = new ImagePages({
        show: drawRows,
        fail: (caught) =>
            fill(
                this.errorPlace,
                caught instanceof Problem && caught.status ? widgets.problem(caught) : null,
            ),
        gone: countGone,
    });
    next = widgets.actions();
    write = widgets.button({ label: t("Write captions"), onclick: () => captioner.ask() });
    onward = widgets.button({
        label: t("Continue to the settings"),
        kind: "primary",
        local: true,
        onclick: () => openSection("settings"),
    });

    constructor() {
        this.next.fill(this.write, this.onward);
    }
}

/** @type {Later<Parts>} */
const drawn = new Later();

export const section = {
    id: "captions",
    title: () => t("Captions"),
    draw(/** @type {HTMLElement} */ container) {
        drawn.now = new Parts();
        fill(container, drawn.now.panel);
        drawPanel();
        drawn.now.pages.watch("captions");
        startPolling(catchUp);
        captioner.watch();
        check.watch();
    },
    shown() {
        const pages = drawn.now?.pages;
        if (!pages?.answer) return;
        // token counts and filters depend on the settings, which may have changed
        if (isOutOfDate()) filter.turn({ offset: pages.query.offset });
        else pages.load({ quietly: true });
        captioner.pollNow();
        check.pollNow();
    },
    hidden() {
        saveAll();
    },
};

store.on("dataset", () => {
    if (drawn.now && !datasets.isTexts()) drawPanel();
});

store.on("settings", () => {
    if (!drawn.now) return;
    const { rows, trigger } = drawn.now;
    for (const row of rows.values()) row.describe();
    if (document.activeElement !== trigger?.input) trigger?.show();
});

document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") saveAll();
});

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

const head = (/** @type {string} */ name, /** @type {HTMLElement[]} */ [counts, trigger]) =>
    el(
        "div.lora-trainer-card.lora-trainer-captions-top",
        el(
            "div",
            el("h3", name),
            counts,
            widgets.help(
                t(
                    "Describe each image, including what should be able to change: clothes, place, light. A caption is saved when you leave its box; Ctrl+Enter marks it as reviewed and goes to the next, Escape undoes your typing.",
                ),
            ),
        ),
        trigger,
    );

function drawPanel() {
    const parts = drawn.need();
    const { pages, panel, errorPlace, place, counts, findings, next } = parts;
    saveAll();
    parts.rows.clear();
    const card = datasets.chosen();
    if (!card) {
        fill(panel, chooseFirst());
        return;
    }
    begin({ pages, panel, rows: () => parts.rows, saveAll: settled, showCounts, next: nextPage });
    listen("selection", () => {
        for (const [key, row] of parts.rows) row.showSelected(selection.has(key));
    });
    Object.assign(pages.query, filter.recall());
    for (const one of [place, errorPlace, counts, findings]) fill(one);
    delete findings.dataset.drawn;
    parts.trigger = tokens.triggerField();
    fill(
        panel,
        head(card.name, [counts, parts.trigger.element]),
        toolbar(),
        captioner.panel(),
        check.panel(),
        findings,
        el(
            "div.lora-trainer-bench-sides",
            tagPanel.panel(),
            el(
                "div.lora-trainer-captions-list",
                filterBar(),
                selectionBar(),
                errorPlace,
                place,
                pages.bar,
            ),
        ),
        next.element,
    );
    pages.load();
    captioner.pollNow();
    check.pollNow();
}

/** Number of shown rows that no longer match the filter since they were edited. */
function countGone() {
    const { pages, rows } = drawn.need();
    /** @type {Record<string, (row: CaptionRow) => boolean>} */
    const left = {
        missing: (row) => !row.isEmpty(),
        captioned: (row) => row.isEmpty(),
        unreviewed: (row) => row.isReviewed(),
        reviewed: (row) => !row.isReviewed(),
    };
    const has = left[pages.query.filter];
    return has ? [...rows.values()].filter(has).length : 0;
}

function drawRows(/** @type {PageAnswer} */ answer, /** @type {boolean} */ quietly) {
    const parts = drawn.need();
    const items = new Map(answer.items.map((item) => [item.key, item]));
    /** @type {Map<string, CaptionRow>} */
    const kept = new Map();
    // after polling, an edited row keeps its position, though it may no longer match the filter or
    // the order
    if (quietly)
        for (const [key, row] of parts.rows)
            if (items.has(key) || row.isBusy() || row.isTouched()) kept.set(key, row);
    for (const item of answer.items)
        kept.set(item.key, parts.rows.get(item.key) ?? new CaptionRow(item));
    // a row with unsaved text is never removed
    for (const [key, row] of parts.rows) if (!kept.has(key) && row.isBusy()) kept.set(key, row);
    for (const entry of unsaved.of(answer.id))
        if (!kept.has(entry.key)) kept.set(entry.key, new CaptionRow(entry.item));
    for (const [key, row] of kept) {
        const item = items.get(key);
        if (item) row.take(item, quietly);
    }
    parts.rows = kept;
    fill(parts.errorPlace);
    showCounts(answer.captioned, answer.total);
    // findings of the scan; the check has its own panel
    redraw(parts.findings, JSON.stringify(answer.findings), () =>
        remarksCard(answer.findings, parts.pages),
    );
    drawList(
        [...kept.values()].map((row) => row.element),
        answer,
    );
    changes.answered(answer);
    catchUp().catch(widgets.toastProblem);
}

function drawList(/** @type {HTMLElement[]} */ elements, /** @type {PageAnswer} */ answer) {
    const { place, list } = drawn.need();
    if (!elements.length) {
        fill(list);
        fill(
            place,
            el(
                "p.lora-trainer-help.lora-trainer-empty",
                answer.total ? t("No images match.") : t("There are no images yet."),
            ),
        );
        return;
    }
    if (list.parentElement !== place) {
        fill(list);
        fill(place, list);
    }
    const wanted = new Set(elements);
    for (const element of findAll(list, ":scope > *")) if (!wanted.has(element)) element.remove();
    // the focused row is not moved, but the others around it: that preserves the focus and an input
    // method's composition
    const pinned = elements.findIndex((element) => element.contains(document.activeElement));
    arrange(list, elements.slice(0, Math.max(0, pinned)), 0, elements[pinned]);
    arrange(list, elements.slice(pinned + 1), pinned + 1, null);
}

/**
 * Insert elements before another one in this order, from an index on; those in place are not moved.
 *
 * @param {HTMLElement} list
 * @param {HTMLElement[]} elements
 * @param {number} from
 * @param {HTMLElement | null} before
 */
function arrange(list, elements, from, before) {
    const first = elements.findIndex((element, at) => list.children[from + at] !== element);
    if (first >= 0) for (const element of elements.slice(first)) list.insertBefore(element, before);
}

/** Save textboxes without a blur event, and unsent captions of other datasets. */
async function catchUp() {
    await Promise.all([...drawn.need().rows.values()].map((row) => row.catchUp()));
    // those of the selected dataset get a textbox with their page
    for (const entry of unsaved.all())
        if (entry.id !== store.get("dataset") && unsaved.shouldSend(entry)) await sendUnseen(entry);
    return pollInterval;
}

async function sendUnseen(/** @type {Entry} */ entry) {
    try {
        await unsaved.send(entry);
    } catch (caught) {
        const problem = expected(caught);
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

/**
 * After the last row: load the next page and focus its first textbox. Returns whether there is one.
 */
async function nextPage() {
    const { pages, place } = drawn.need();
    if (!pages.next || pages.next.disabled) return;
    const { offset } = pages.query;
    await saveAll();
    await filter.turn({ offset: offset + pages.size - countGone() });
    find(place, "textarea")?.focus();
}

function showCounts(/** @type {number} */ captioned, /** @type {number} */ total) {
    const { counts, next, write, onward } = drawn.need();
    const words = t("{done} of {count} with a caption", {
        done: formatNumber(captioned),
        count: formatNumber(total),
    });
    counts.textContent = words;
    next.setText(words);
    // captions come before the next step
    widgets.makePrimary(write, captioned < total);
    widgets.makePrimary(onward, captioned >= total);
}

const saveAll = () => Promise.all([...(drawn.now?.rows.values() ?? [])].map((row) => row.save()));

/** Before changing many captions: save what was typed, and load the current state. */
async function settled() {
    const { pages } = drawn.need();
    if (pages.answer?.id !== store.get("dataset")) await pages.load();
    await saveAll();
}
