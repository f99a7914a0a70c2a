/*
 * The section "images": choose or create a dataset, add, view and remove images.
 */
import { api } from "../common/api.js";
import { el, fill, find, findAll, need, put, wayOf } from "../common/elements.js";
import { formatDate, formatNumber, plural, t, withColon } from "../common/language.js";
import { openSection } from "../common/sections.js";
import { Later, home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";
import { Grid } from "./grid.js";
import { ImagePages, pageFilters } from "./pages.js";
import { encodedRow } from "./encoded.js";
import { remarksCard } from "./images.js";
import { textFiles } from "./text_files.js";
import { OF_TEXTS, uploadArea } from "./upload.js";

/** @import { KnownCard, PageAnswer } from "../common/types" */

/** @import { Entry } from "./upload.js" */

/** The section's elements. */
class Parts {
    cards = el("div.lora-trainer-datasets", { role: "radiogroup", "aria-label": t("Datasets") });
    deleted = widgets.row();
    panel = el("div.lora-trainer-images");
    place = el("div");
    tools = widgets.row();
    grid = new Grid(drawTools, (keys) => remove(keys).catch(widgets.toastProblem));
    next = widgets.actions();
    texts = textFiles();
    encoded = encodedRow();
    onward = widgets.button({
        label: t("Continue to the captions"),
        kind: "primary",
        local: true,
        onclick: () => openSection("captions"),
    });
    choice = el(
        "div.lora-trainer-card",
        widgets.apart(
            el("h3", t("Your datasets")),
            widgets.row(
                widgets.button({ label: t("New dataset"), onclick: create }),
                isRemote()
                    ? null
                    : widgets.button({
                          label: t("Use a folder in place"),
                          title: t(
                              "Your images stay in their folder; captions are written beside them.",
                          ),
                          onclick: openFolder,
                      }),
            ),
        ),
        this.cards,
        this.deleted,
    );
    pages = new ImagePages({
        show: drawItems,
        fail: (problem) => fill(this.place, widgets.problem(problem)),
    });
    upload = uploadArea({
        target: async (entries) => store.get("dataset") || makeFor(entries),
        done: async () => {
            await datasets.refresh();
            if (datasets.isTexts()) await this.texts.load();
            else await this.pages.load();
        },
    });

    constructor() {
        this.next.fill(this.onward);
    }
}

/** @type {Later<Parts>} */
const drawn = new Later();

const isRemote = () => home().host.remote;

export const section = {
    id: "images",
    title: () => (datasets.isTexts() ? t("Texts") : t("Images")),
    draw(/** @type {HTMLElement} */ container) {
        const { choice, upload, panel, next, pages } = (drawn.now = new Parts());
        fill(container, choice, upload.element, panel, next.element);
        nameUpload();
        drawCards();
        drawPanel();
        pages.watch("images");
    },
    shown() {
        const { pages, texts, encoded } = drawn.need();
        if (datasets.isTexts()) texts.load().catch(widgets.toastProblem);
        else if (pages.answer) pages.load({ quietly: true });
        encoded.update().catch(() => {});
    },
};

store.on("datasets", () => {
    if (!drawn.now) return;
    drawCards();
    showNext();
    nameUpload();
});

store.on("dataset", () => {
    if (!drawn.now) return;
    drawCards();
    drawPanel();
    nameUpload();
});

const nameUpload = () =>
    drawn.need().upload.name(datasets.chosen()?.name ?? "", datasets.chosen()?.kind ?? "");

/** The next step: add images if there are none, else go on. */
function showNext() {
    const { next, onward, upload } = drawn.need();
    const card = datasets.chosen();
    const ready = Boolean(card?.count);
    next.element.hidden = !card;
    next.setText(
        card ? (card.problem?.message ?? withColon(card.name, datasets.countOf(card))) : "",
    );
    put(
        onward,
        card?.kind === "texts" ? t("Continue to the pairs") : t("Continue to the captions"),
    );
    onward.disabled = !ready;
    widgets.makePrimary(onward, ready);
    upload.isNext(!ready);
}

// --- datasets ----------------------------------------------------------------------------------

function drawCards() {
    if (!store.get("datasets")) return;
    const place = drawn.need().cards;
    const focused = place.contains(document.activeElement);
    const all = datasets.cards();
    const chosen = store.get("dataset");
    fill(
        place,
        all.length
            ? all.map((card, at) =>
                  datasetCard(card, card.id === chosen, chosen ? card.id === chosen : at === 0),
              )
            : widgets.help(
                  t(
                      "There are no datasets yet. Drop your images below: 10 to 100 images of one style, character or thing are enough. Or question and answer pairs, for a language model.",
                  ),
              ),
    );
    showDeleted();
    if (focused) (find(place, "[aria-checked=true]") ?? find(place, "button") ?? place).focus();
}

/**
 * @param {KnownCard} card
 * @param {boolean} chosen
 * @param {boolean} reachable with the Tab key
 */
function datasetCard(card, chosen, reachable) {
    const words = card.problem
        ? card.problem.message
        : card.count && card.kind === "texts"
          ? datasets.countOf(card)
          : card.count
            ? t("{images}, {captioned} with a caption", {
                  images: datasets.count(card.count),
                  captioned: formatNumber(card.captioned),
              })
            : t("Empty");
    const cover = el(
        "span.lora-trainer-thumb",
        card.cover ? el("img", { src: card.cover, alt: "", loading: "lazy" }) : null,
        card.kind === "texts"
            ? el("span.lora-trainer-thumb-texts", { "aria-hidden": "true" }, "\u201c \u201d")
            : null,
    );
    return el(
        "button.lora-trainer-dataset",
        {
            type: "button",
            role: "radio",
            "aria-checked": String(chosen),
            tabindex: reachable ? "0" : "-1",
            title: card.path || card.name,
            onclick: () => datasets.choose(card.id),
            onkeydown: moveAmongCards,
        },
        cover,
        el("span.lora-trainer-dataset-name", card.name),
        widgets.small(words),
    );
}

/** @param {KeyboardEvent & {currentTarget: HTMLElement}} event */
function moveAmongCards(event) {
    const way = wayOf(event, { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 });
    if (!way) return;
    event.preventDefault();
    const all = findAll(drawn.need().cards, "[role=radio]");
    const next = all[(all.indexOf(event.currentTarget) + way + all.length) % all.length];
    next.focus();
    next.click();
}

async function make(/** @type {string} */ name, kind = "images") {
    const card = await api.post("datasets", { name, kind });
    datasets.add(card);
    return card.id;
}

/**
 * The dataset for dropped files; null if cancelled. It is named after a folder or zip; for loose
 * files the user is asked, because the LoRA gets the same name.
 *
 * @param {Entry[]} entries
 * @returns {Promise<string | null>}
 */
async function makeFor(entries) {
    const first = entries[0].path;
    const named = first.includes("/")
        ? first.split("/")[0]
        : /\.zip$/i.test(first)
          ? first.replace(/\.zip$/i, "")
          : "";
    const kind = entries.every(({ path }) => OF_TEXTS.test(path)) ? "texts" : "images";
    if (named) return make(named, kind);
    return new Promise((resolve) => {
        /** @type {string | null} */
        let made = null;
        askName({
            title: t("New dataset"),
            label: kind === "texts" ? t("Add the texts") : t("Add the images"),
            act: async (name) => {
                made = await make(name, kind);
            },
            onclose: () => resolve(made),
        });
    });
}

/**
 * A dialog with one textbox, in which Enter presses the main button.
 *
 * @param {string} title
 * @param {string} name what the box is called
 * @param {HTMLInputElement} input
 * @param {{help: string, label: string, act: () => unknown, onclose?: () => void,
 *     more?: HTMLElement | null}} options
 */
function askText(title, name, input, { help, label, act, onclose, more = null }) {
    const asked = widgets.dialog({
        title,
        onclose,
        body: [widgets.labelled(name, input, { help }), more],
        actions: [{ label: t("Cancel") }, { label, kind: "primary", onclick: act }],
    });
    input.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.isComposing) asked.main.click();
    });
    input.focus();
    input.select();
}

/**
 * @param {object} wanted
 * @param {string} wanted.title
 * @param {string} wanted.label
 * @param {(name: string) => unknown} wanted.act
 * @param {string} [wanted.value]
 * @param {() => void} [wanted.onclose]
 * @param {HTMLElement} [wanted.more]
 */
function askName({ title, label, act, value, onclose, more }) {
    const input = widgets.text({ value, maxlength: 100 });
    askText(title, t("Name"), input, {
        help: t(
            "For example what it shows or is about. The LoRA gets this name too, unless you give it another.",
        ),
        label,
        act: () => act(input.value),
        onclose,
        more,
    });
}

function create() {
    const kind = widgets.select({
        options: [
            { value: "images", label: t("Images, for a checkpoint") },
            { value: "texts", label: t("Texts, for a language model") },
        ],
        value: "images",
    });
    askName({
        title: t("New dataset"),
        label: t("Create"),
        act: (name) => make(name, kind.value),
        more: widgets.labelled(t("Kind of data"), kind),
    });
}

function openFolder() {
    const input = widgets.text({ placeholder: "C:\\Pictures\\my style" });
    askText(t("Use a folder in place"), t("Folder"), input, {
        help: t(
            "The folder with your images or texts on this computer. It is not copied; captions are written into it.",
        ),
        label: t("Use this folder"),
        act: async () => datasets.add(await api.post("datasets/open", { folder: input.value })),
    });
}

async function discard(/** @type {KnownCard} */ card) {
    if (card.lost) {
        datasets.choose("");
        await datasets.refresh();
        return;
    }
    const message = card.external
        ? t("The folder itself is not changed.")
        : t("This moves {count} to the trash in the data folder.", {
              count: datasets.countOf(card),
          });
    const title = card.external
        ? t("Remove {name} from the list?", { name: card.name })
        : t("Delete {name}?", { name: card.name });
    const label = card.external ? t("Remove from the list") : t("Delete");
    if (!(await widgets.confirm({ title, message, label }))) return;
    const { trash } = await api.post(datasets.path("delete", card.id));
    datasets.choose("");
    await datasets.refresh();
    if (trash)
        widgets.toast(t("{name} is in the trash.", { name: card.name }), {
            seconds: 15,
            action: { label: t("Undo"), onclick: () => restoreDataset(trash) },
        });
}

const restoreDataset = async (/** @type {string} */ trash) =>
    datasets.add(await api.post(`deleted-datasets/${encodeURIComponent(trash)}/restore`));

/** The list of deleted datasets, also those deleted in another browser. */
async function showDeleted() {
    const all = await api.get("deleted-datasets");
    fill(
        drawn.need().deleted,
        all.length
            ? widgets.button({
                  label: t("Deleted datasets ({count})", { count: formatNumber(all.length) }),
                  onclick: () => {
                      const dialog = showGone(t("Deleted datasets"), all, async (entry) => {
                          await restoreDataset(entry.id);
                          dialog.close();
                      });
                  },
              })
            : null,
    );
}

/**
 * A list of removed things, each with a button to restore it.
 *
 * @template {{name: string, time: number}} E
 * @param {string} title
 * @param {E[]} entries
 * @param {(entry: E, line: HTMLElement) => unknown} act
 */
function showGone(title, entries, act) {
    const line = (/** @type {E} */ entry) => {
        const made = el("li", el("span", entry.name, widgets.small(" " + formatDate(entry.time))));
        made.append(widgets.button({ label: t("Restore"), onclick: () => act(entry, made) }));
        return made;
    };
    const body = el("ul.lora-trainer-removed", entries.map(line));
    return widgets.dialog({ title, body });
}

// --- the chosen dataset ------------------------------------------------------------------------

function rename() {
    askName({
        title: t("Rename"),
        label: t("Rename"),
        value: datasets.needChosen().name,
        act: async (name) => {
            const card = await api.post(datasets.path("rename"), { name });
            datasets.update(card.id, card);
            need(drawn.need().panel, "h3").textContent = datasets.needChosen().name;
        },
    });
}

function drawPanel() {
    const { panel, place, tools, pages, grid, texts, encoded } = drawn.need();
    const card = datasets.chosen();
    grid.reset();
    Object.assign(pages.query, { offset: 0, filter: "all", text: "" });
    showNext();
    fill(place);
    fill(tools);
    if (!card) {
        fill(panel);
        return;
    }
    fill(
        panel,
        widgets.apart(
            el("h3", card.name),
            widgets.row(
                widgets.button({ label: t("Rename"), onclick: rename }),
                isRemote()
                    ? null
                    : widgets.button({
                          label: t("Show in file manager"),
                          onclick: () => api.post(datasets.path("folder")),
                      }),
                widgets.button({
                    label: card.external ? t("Remove from the list") : t("Delete"),
                    onclick: () => discard(datasets.needChosen()),
                }),
            ),
        ),
        ...(card.kind === "texts"
            ? [texts.element]
            : [widgets.apart(pageFilters(pages), tools), place, pages.bar, encoded.element]),
    );
    encoded.update().catch(() => {});
    if (card.kind === "texts") texts.load().catch(widgets.toastProblem);
    else pages.load();
}

function drawItems(/** @type {PageAnswer} */ answer) {
    const { place, pages, grid } = drawn.need();
    const had = grid.element.contains(document.activeElement);
    grid.draw(answer.items);
    fill(
        place,
        remarksCard(answer.findings, pages),
        answer.items.length
            ? grid.element
            : el(
                  "p.lora-trainer-help.lora-trainer-empty",
                  answer.total ? t("No images match.") : t("No images yet. Drop some above."),
              ),
    );
    drawTools();
    if (had && answer.items.length) grid.focusOn(grid.focus);
}

function drawTools() {
    const { pages, grid, tools } = drawn.need();
    const { items, removed } = pages.known();
    const count = grid.selected.size;
    const every = items.length > 0 && count === items.length;
    fill(
        tools,
        items.length
            ? widgets.button({
                  label: every ? t("Select none") : t("Select this page"),
                  onclick: () => (every ? grid.selectNone() : grid.selectAll()),
              })
            : null,
        widgets.button({
            label: count ? t("Remove {count}", { count: formatNumber(count) }) : t("Remove"),
            disabled: !count,
            onclick: () => remove([...grid.selected]),
        }),
        removed
            ? widgets.button({
                  label: t("Removed images ({count})", { count: formatNumber(removed) }),
                  onclick: showRemoved,
              })
            : null,
    );
}

// --- removing and bringing back ----------------------------------------------------------------

async function remove(/** @type {string[]} */ keys) {
    const id = store.get("dataset");
    const { grid, pages } = drawn.need();
    await api.post(datasets.path("remove", id), { keys });
    grid.selected.clear();
    await pages.load();
    widgets.toast(plural(keys.length, "{count} image removed", "{count} images removed"), {
        seconds: 12,
        action: { label: t("Undo"), onclick: () => restore(id, keys) },
    });
}

async function restore(/** @type {string | undefined} */ id, /** @type {string[]} */ keys) {
    await api.post(datasets.path("restore", id), { keys });
    await drawn.need().pages.load();
}

async function showRemoved() {
    const id = store.get("dataset");
    const removed = await api.get(datasets.path("removed", id));
    showGone(t("Removed images"), removed, async (entry, line) => {
        await restore(id, [entry.key]);
        line.remove();
    });
}
