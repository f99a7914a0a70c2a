/*
 * The toolbar above the captions, and the selection bar.
 */
import { api } from "../common/api.js";
import { el, uniqueId } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { bench, listen } from "./bench.js";
import * as bulk from "./bulk.js";
import * as changes from "./changes.js";
import * as check from "./check.js";
import * as controls from "./controls.js";
import * as crop from "./crop.js";
import { showExport, showImport } from "./import_export.js";
import * as selection from "./selection.js";
import { tagPanel } from "./tag_panel.js";
import * as vocabulary from "./vocabulary.js";

/** @import { EditEnds } from "../common/answers" */

function showKeys() {
    const keys = [
        ["Tab", t("Go to the next caption; Shift+Tab goes back. Your text is saved.")],
        ["Page Down, Page Up", t("The same, also across pages")],
        ["Ctrl+Enter", t("Mark the caption as reviewed, and go to the next")],
        ["\u2193 \u2191 Enter", t("Choose and insert a suggested tag")],
        ["Esc", t("Discard what was typed since the last save")],
        ["Alt+X", t("Select the image; Alt+Shift+X selects all from the last one")],
        ["Alt+R", t("Mark as reviewed, or not reviewed")],
        ["Shift+Enter", t("A new line: another caption of the same image")],
        ["F2", t("Edit the caption in fields")],
        ["Ctrl+Z, Ctrl+Y", t("Outside of a textbox: undo and redo the last change")],
    ];
    widgets.dialog({
        title: t("Keyboard shortcuts"),
        wide: true,
        body: el(
            "dl.lora-trainer-bench-keys",
            keys.map(([key, does]) => [el("dt", el("kbd", key)), el("dd", does)]),
        ),
        actions: [widgets.closing()],
    });
}

export function toolbar() {
    const undo = widgets.button({ label: t("Undo"), onclick: changes.undo });
    undo.classList.add("lora-trainer-bench-undo");
    const draw = (/** @type {EditEnds} */ { undo: last }) => {
        undo.disabled = !last;
        undo.textContent = last ? t("Undo: {title}", { title: last.title }) : t("Undo");
        undo.title = last ? undo.textContent : "";
    };
    listen("edits", draw);
    draw(bench.edits);
    const tags = widgets.button({
        label: t("Tags"),
        title: t("How often each tag is used, in a column beside the images"),
        onclick: () => tagPanel.toggle(),
    });
    tagPanel.toggler = tags;
    return el(
        "div.lora-trainer-row.lora-trainer-bench-toolbar",
        { role: "toolbar", "aria-label": t("Captions") },
        widgets.button({ label: t("Batch edit"), onclick: () => bulk.open() }),
        widgets.button({ label: t("Check images"), onclick: () => check.start() }),
        tags,
        controls.menu(t("More"), [
            { label: t("Template and vocabulary"), onclick: () => vocabulary.open() },
            { label: t("What training will read"), onclick: () => bulk.shuffle() },
            { label: t("Crop into a new dataset"), onclick: () => crop.open() },
            { label: t("Import captions"), onclick: showImport },
            { label: t("Export captions"), onclick: showExport },
            { label: t("Changes"), onclick: changes.showHistory },
            { label: t("Keyboard shortcuts"), onclick: showKeys },
        ]),
        undo,
    );
}

/** The bar that shows how many images are selected. */
export function selectionBar() {
    const words = el("span", { role: "status" });
    const page = widgets.checkbox(false, (chosen) =>
        chosen ? selection.page() : selection.clear(),
    );
    page.id = uniqueId("select_page");
    const matching = widgets.button({ label: "", onclick: selection.matching });
    const none = widgets.button({ label: t("Select none"), onclick: selection.clear });
    const mark = widgets.button({ label: t("Mark as reviewed"), onclick: () => review(true) });
    const unmark = widgets.button({
        label: t("Mark as not reviewed"),
        onclick: () => review(false),
    });
    const leave = widgets.button({ label: t("Remove images"), onclick: leaveOut });
    const change = widgets.button({ label: t("Batch edit"), onclick: () => bulk.open() });
    let passed = false;
    const draw = () => {
        const { answer } = bench.page.pages;
        const count = selection.count();
        // sticky, because the toolbar is scrolled out of view far down the page
        bar.classList.toggle("lora-trainer-bench-floating", passed && count > 0);
        place.style.height = passed && count > 0 ? Math.max(height, bar.offsetHeight) + "px" : "";
        change.hidden = !(passed && count);
        const keys = selection.shownKeys();
        page.checked = keys.length > 0 && keys.every(selection.has);
        page.indeterminate = !page.checked && count > 0;
        words.textContent = count ? t("{count} selected", { count: formatNumber(count) }) : "";
        for (const button of [none, mark, unmark, leave]) button.hidden = !count;
        const all = answer?.matching ?? 0;
        matching.hidden = all <= keys.length || Boolean(bench.selection.where) || !count;
        if (all > keys.length)
            matching.textContent = t("Select all {count}", { count: formatNumber(all) });
    };
    listen("selection", draw);
    listen("answer", draw);
    const bar = el(
        "div.lora-trainer-row.lora-trainer-bench-selection",
        el(
            "div.lora-trainer-bench-flag",
            page,
            el("label", { for: page.id }, t("Select this page")),
        ),
        words,
        change,
        matching,
        none,
        mark,
        unmark,
        leave,
        bench.chips,
    );
    const place = el("div.lora-trainer-bench-selection-place", bar);
    let height = 0;
    // images below the viewport count as visible: only those above are scrolled out
    new IntersectionObserver(
        (all) => {
            const seen = all.at(-1);
            if (!seen || !place.isConnected || !place.offsetParent) return;
            passed = !seen.isIntersecting;
            if (!passed) height = seen.boundingClientRect.height;
            draw();
        },
        { rootMargin: "0px 0px 1000000px 0px" },
    ).observe(place);
    draw();
    return place;
}

async function review(/** @type {boolean} */ reviewed) {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path("reviewed"), {
        select: selection.asked(),
        reviewed,
    });
    await changes.afterEdit(answer, {
        message: reviewed
            ? plural(
                  answer.count,
                  "{count} caption marked as reviewed",
                  "{count} captions marked as reviewed",
              )
            : plural(
                  answer.count,
                  "{count} caption marked as not reviewed",
                  "{count} captions marked as not reviewed",
              ),
    });
}

async function leaveOut() {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path("remove"), { select: selection.asked() });
    selection.clear();
    await changes.afterEdit(answer, {
        message: plural(answer.changed, "{count} image removed", "{count} images removed"),
    });
    await datasets.refresh();
}
