/*
 * The section "images": choose or make a dataset, bring images in, look at them, take some out
 * again.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatDate, formatNumber, plural, t, withColon } from "../common/language.js";
import { openSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";
import { imagePages, pageFilters } from "./pages.js";
import { enlarge, remarksCard, thumbnail } from "./pictures.js";
import { uploadArea } from "./upload.js";

let parts = null;

export const section = {
    id: "images",
    title: () => t("Images"),
    draw(container) {
        parts = build();
        fill(container, parts.choice, parts.upload.element, parts.panel, parts.next.element);
        parts.upload.name((datasets.chosen() || { name: "" }).name);
        drawCards();
        drawPanel();
        parts.pages.watch("images");
    },
    shown() {
        if (parts && parts.pages.answer) parts.pages.load({ quietly: true });
    },
};

store.on("datasets", () => {
    if (parts) {
        drawCards();
        showNext();
    }
});

store.on("dataset", () => {
    if (parts) {
        drawCards();
        drawPanel();
    }
});

for (const key of ["dataset", "datasets"])
    store.on(key, () => {
        if (parts) parts.upload.name((datasets.chosen() || { name: "" }).name);
    });

function build() {
    const made = {
        cards: el("div", {
            class: "lora-trainer-datasets",
            role: "radiogroup",
            "aria-label": t("Datasets"),
        }),
        deleted: el("div", { class: "lora-trainer-row" }),
        panel: el("div", { class: "lora-trainer-images" }),
        selected: new Set(),
        anchor: null,
        focus: 0,
    };
    const remote = (store.get("home") || { host: { remote: true } }).host.remote;
    made.choice = el(
        "div",
        { class: "lora-trainer-card" },
        el(
            "div",
            { class: "lora-trainer-row lora-trainer-between" },
            el("h3", {}, t("Your datasets")),
            el(
                "div",
                { class: "lora-trainer-row" },
                widgets.button({ label: t("New dataset"), onclick: () => create() }),
                remote
                    ? null
                    : widgets.button({
                          label: t("Use a folder in place"),
                          title: t(
                              "Your images stay where they are; captions are written beside them.",
                          ),
                          onclick: openFolder,
                      }),
            ),
        ),
        made.cards,
        made.deleted,
    );
    made.upload = uploadArea({
        target: async (entries) => store.get("dataset") || makeFor(entries),
        done: async () => {
            await datasets.refresh();
            await made.pages.load();
        },
    });
    made.pages = imagePages({
        show: drawItems,
        fail: (problem) => fill(made.place, widgets.problem(problem)),
    });
    made.place = el("div");
    made.next = widgets.actions();
    made.onward = widgets.button({
        label: t("Go on to the captions"),
        kind: "primary",
        local: true,
        onclick: () => openSection("captions"),
    });
    made.next.fill(made.onward);
    return made;
}

/** Without images the next thing is to bring some, with them to go on. */
function showNext() {
    const card = datasets.chosen();
    const ready = Boolean(card && card.count);
    parts.next.element.hidden = !card;
    parts.next.say(
        !card
            ? ""
            : card.problem
              ? card.problem.message
              : withColon(card.name, datasets.count(card.count)),
    );
    parts.onward.disabled = !ready;
    widgets.makePrimary(parts.onward, ready);
    parts.upload.isNext(!ready);
}

// --- datasets ----------------------------------------------------------------------------------

function drawCards() {
    const cards = datasets.cards();
    if (!cards) return;
    const focused = parts.cards.contains(document.activeElement);
    const chosen = store.get("dataset");
    fill(
        parts.cards,
        cards.length
            ? cards.map((card, at) =>
                  datasetCard(card, card.id === chosen, chosen ? card.id === chosen : at === 0),
              )
            : el(
                  "p",
                  { class: "lora-trainer-help" },
                  t(
                      "There is none yet. Drop your images below: 10 to 100 pictures of one style, character or thing are enough.",
                  ),
              ),
    );
    showDeleted();
    if (focused)
        (
            parts.cards.querySelector("[aria-checked=true]") ||
            parts.cards.querySelector("button") ||
            parts.cards
        ).focus();
}

function datasetCard(card, chosen, reachable) {
    const words = card.problem
        ? card.problem.message
        : card.count
          ? t("{images}, {captioned} with a caption", {
                images: datasets.count(card.count),
                captioned: formatNumber(card.captioned),
            })
          : t("Empty");
    const cover = el(
        "span",
        { class: "lora-trainer-thumb" },
        card.cover ? el("img", { src: card.cover, alt: "", loading: "lazy" }) : null,
    );
    return el(
        "button",
        {
            type: "button",
            role: "radio",
            class: "lora-trainer-dataset",
            "aria-checked": String(chosen),
            tabindex: reachable ? "0" : "-1",
            title: card.path || card.name,
            onclick: () => datasets.choose(card.id),
            onkeydown: moveAmongCards,
        },
        cover,
        el("span", { class: "lora-trainer-dataset-name" }, card.name),
        el("span", { class: "lora-trainer-help" }, words),
    );
}

function moveAmongCards(event) {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    const all = [...parts.cards.querySelectorAll("[role=radio]")];
    const next = all[(all.indexOf(event.currentTarget) + way + all.length) % all.length];
    next.focus();
    next.click();
}

async function make(name) {
    const card = await api.post("datasets", { name });
    datasets.update(card);
    datasets.choose(card.id);
    return card;
}

/**
 * A dataset for what was dropped; null if nobody wants one. A folder and a zip have a name; the
 * LoRA will have it too, so loose files get one.
 */
async function makeFor(entries) {
    const first = entries[0].path;
    const named = first.includes("/")
        ? first.split("/")[0]
        : /\.zip$/i.test(first)
          ? first.replace(/\.zip$/i, "")
          : "";
    if (named) return (await make(named)).id;
    return new Promise((resolve) => {
        let made = null;
        askName(
            t("New dataset"),
            "",
            t("Add the images"),
            async (name) => {
                made = (await make(name)).id;
            },
            () => resolve(made),
        );
    });
}

function askName(title, value, label, act, onclose = null) {
    const input = widgets.text({ value, maxlength: 100 });
    const asked = widgets.dialog({
        title,
        onclose,
        body: widgets.labelled(t("Name"), input, {
            help: t(
                "For example what the images show. The LoRA gets this name too, unless you give it another.",
            ),
        }),
        actions: [
            { label: t("Cancel") },
            { label, kind: "primary", onclick: () => act(input.value) },
        ],
    });
    input.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.isComposing)
            asked.element.querySelector(".lora-trainer-primary").click();
    });
    input.focus();
    input.select();
}

function create() {
    askName(t("New dataset"), "", t("Create"), make);
}

function openFolder() {
    const input = widgets.text({ placeholder: "C:\\Pictures\\my style" });
    const asked = widgets.dialog({
        title: t("Use a folder in place"),
        body: widgets.labelled(t("Folder"), input, {
            help: t(
                "The folder with your images on this computer. It stays where it is; captions are written into it.",
            ),
        }),
        actions: [
            { label: t("Cancel") },
            {
                label: t("Use this folder"),
                kind: "primary",
                onclick: async () => {
                    const card = await api.post("datasets/open", { folder: input.value });
                    datasets.update(card);
                    datasets.choose(card.id);
                },
            },
        ],
    });
    input.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.isComposing)
            asked.element.querySelector(".lora-trainer-primary").click();
    });
    input.focus();
}

async function discard(card) {
    if (card.lost) {
        datasets.choose("");
        await datasets.refresh();
        return;
    }
    const message = card.external
        ? t("The folder itself stays as it is.")
        : t("{count} go to the trash in the data folder.", { count: datasets.count(card.count) });
    const title = card.external
        ? t("Take {name} off the list?", { name: card.name })
        : t("Delete {name}?", { name: card.name });
    if (
        !(await widgets.confirm({
            title,
            message,
            label: card.external ? t("Take off the list") : t("Delete"),
            kind: "stop",
        }))
    )
        return;
    const { trash } = await api.post(datasets.path("delete", card.id));
    datasets.choose("");
    await datasets.refresh();
    if (trash)
        widgets.toast(t("{name} is in the trash.", { name: card.name }), {
            seconds: 15,
            action: { label: t("Undo"), onclick: () => bringBack(trash) },
        });
}

async function bringBack(trash) {
    const card = await api.post("deleted-datasets/" + encodeURIComponent(trash) + "/restore", {});
    datasets.update(card);
    datasets.choose(card.id);
}

/**
 * Somebody else may have deleted it: whoever misses it finds it here, as long as the trash is not
 * emptied.
 */
async function showDeleted() {
    const all = await api.get("deleted-datasets");
    fill(
        parts.deleted,
        all.length
            ? widgets.button({
                  label: t("Deleted datasets ({count})", { count: formatNumber(all.length) }),
                  onclick: () => chooseDeleted(all),
              })
            : null,
    );
}

function chooseDeleted(all) {
    const list = el(
        "ul",
        { class: "lora-trainer-removed" },
        all.map((entry) =>
            el(
                "li",
                {},
                el(
                    "span",
                    {},
                    entry.name,
                    el("span", { class: "lora-trainer-help" }, " " + formatDate(entry.time)),
                ),
                widgets.button({
                    label: t("Bring back"),
                    onclick: async () => {
                        await bringBack(entry.id);
                        shown.close();
                    },
                }),
            ),
        ),
    );
    const shown = widgets.dialog({ title: t("Deleted datasets"), body: list });
}

// --- the chosen dataset ------------------------------------------------------------------------

function drawPanel() {
    const card = datasets.chosen();
    parts.selected.clear();
    parts.focus = 0;
    parts.shownRevision = "";
    Object.assign(parts.pages.query, { offset: 0, filter: "all", text: "" });
    showNext();
    if (!card) {
        fill(parts.panel);
        return;
    }
    const remote = store.get("home").host.remote;
    parts.place = el("div");
    parts.tools = el("div", { class: "lora-trainer-row" });
    fill(
        parts.panel,
        el(
            "div",
            { class: "lora-trainer-row lora-trainer-between" },
            el("h3", {}, card.name),
            el(
                "div",
                { class: "lora-trainer-row" },
                widgets.button({
                    label: t("Rename"),
                    onclick: () =>
                        askName(t("Rename"), datasets.chosen().name, t("Rename"), async (name) => {
                            datasets.update(await api.post(datasets.path("rename"), { name }));
                            parts.panel.querySelector("h3").textContent = datasets.chosen().name;
                        }),
                }),
                remote
                    ? null
                    : widgets.button({
                          label: t("Show in file manager"),
                          onclick: () => api.post(datasets.path("folder")),
                      }),
                widgets.button({
                    label: card.external ? t("Take off the list") : t("Delete"),
                    onclick: () => discard(datasets.chosen()),
                }),
            ),
        ),
        el(
            "div",
            { class: "lora-trainer-row lora-trainer-between" },
            pageFilters(parts.pages),
            parts.tools,
        ),
        parts.place,
        parts.pages.bar,
    );
    parts.pages.load();
}

function drawItems(answer) {
    const keys = new Set(answer.items.map((item) => item.key));
    for (const key of [...parts.selected]) if (!keys.has(key)) parts.selected.delete(key);
    parts.focus = Math.min(parts.focus, Math.max(0, answer.items.length - 1));
    const had = parts.grid && parts.grid.contains(document.activeElement);
    parts.grid = el(
        "div",
        {
            class: "lora-trainer-grid",
            role: "listbox",
            "aria-multiselectable": "true",
            "aria-label": t(
                "Images. Arrow keys move, Enter enlarges, Space selects, Delete removes.",
            ),
            onkeydown: onKey,
        },
        answer.items.map((item, at) => cell(item, at)),
    );
    fill(
        parts.place,
        remarksCard(answer.findings, parts.pages),
        answer.items.length
            ? parts.grid
            : el(
                  "p",
                  { class: "lora-trainer-help lora-trainer-empty" },
                  answer.total ? t("No image is like that.") : t("No images yet. Drop some above."),
              ),
    );
    drawTools();
    if (had && answer.items.length) cells()[parts.focus].focus();
}

const cells = () => [...parts.grid.children];

function cell(item, at) {
    const remarks = item.findings.map((finding) => finding.message).join("\n");
    const worst = item.findings.some((finding) => finding.kind !== "no-caption");
    const element = el(
        "div",
        {
            role: "option",
            class: "lora-trainer-cell",
            tabindex: at === parts.focus ? "0" : "-1",
            "aria-selected": String(parts.selected.has(item.key)),
            dataset: { key: item.key },
            title: item.name + (remarks ? "\n" + remarks : ""),
            "aria-label": [item.name, item.caption || t("no caption"), worst ? remarks : ""]
                .filter(Boolean)
                .join(", "),
        },
        thumbnail(item),
        el("span", { class: "lora-trainer-check", "aria-hidden": "true" }),
        el("span", { class: "lora-trainer-cell-name" }, item.name),
        el(
            "span",
            { class: "lora-trainer-help" },
            item.width ? item.width + " \u00d7 " + item.height : t("Cannot be read"),
            worst
                ? el("b", {}, " \u00b7 " + t("remark"))
                : item.caption
                  ? null
                  : " \u00b7 " + t("no caption"),
        ),
    );
    element.addEventListener("click", (event) => {
        focusOn(at);
        if (event.shiftKey && parts.anchor !== null) selectRange(parts.anchor, at);
        else if (event.ctrlKey || event.metaKey || event.target.closest(".lora-trainer-check"))
            toggle(at);
        else enlarge(parts.pages.answer.items, item);
    });
    return element;
}

function focusOn(at) {
    const all = cells();
    if (all[parts.focus]) all[parts.focus].tabIndex = -1;
    parts.focus = at;
    all[at].tabIndex = 0;
    all[at].focus();
}

function toggle(at) {
    const { key } = cells()[at].dataset;
    if (!parts.selected.delete(key)) parts.selected.add(key);
    parts.anchor = at;
    showSelection();
}

function selectRange(from, to) {
    for (const each of cells().slice(Math.min(from, to), Math.max(from, to) + 1))
        parts.selected.add(each.dataset.key);
    showSelection();
}

function showSelection() {
    for (const each of cells())
        each.setAttribute("aria-selected", String(parts.selected.has(each.dataset.key)));
    drawTools();
}

function columns() {
    const all = cells();
    const top = all[0].offsetTop;
    const next = all.findIndex((each) => each.offsetTop !== top);
    return next === -1 ? all.length : next;
}

function onKey(event) {
    const all = cells();
    const moves = {
        ArrowRight: 1,
        ArrowLeft: -1,
        ArrowDown: columns(),
        ArrowUp: -columns(),
        Home: -all.length,
        End: all.length,
    };
    // the host listens for keys everywhere
    event.stopPropagation();
    if (event.key in moves) {
        const to = Math.min(all.length - 1, Math.max(0, parts.focus + moves[event.key]));
        if (event.shiftKey) selectRange(parts.focus, to);
        focusOn(to);
    } else if (event.key === " ") toggle(parts.focus);
    else if (event.key === "Enter")
        enlarge(parts.pages.answer.items, parts.pages.answer.items[parts.focus]);
    else if (event.key === "Delete")
        remove(parts.selected.size ? [...parts.selected] : [all[parts.focus].dataset.key]).catch(
            widgets.toastProblem,
        );
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) selectRange(0, all.length - 1);
    else if (event.key === "Escape") {
        parts.selected.clear();
        showSelection();
    } else return;
    event.preventDefault();
}

function drawTools() {
    const { answer } = parts.pages;
    const every = answer.items.length > 0 && parts.selected.size === answer.items.length;
    fill(
        parts.tools,
        answer.items.length
            ? widgets.button({
                  label: every ? t("Select none") : t("Select this page"),
                  onclick: () => {
                      parts.selected = new Set(every ? [] : answer.items.map((item) => item.key));
                      showSelection();
                  },
              })
            : null,
        widgets.button({
            label: parts.selected.size
                ? t("Remove {count}", { count: formatNumber(parts.selected.size) })
                : t("Remove"),
            disabled: !parts.selected.size,
            onclick: () => remove([...parts.selected]),
        }),
        answer.removed
            ? widgets.button({
                  label: t("Removed images ({count})", { count: formatNumber(answer.removed) }),
                  onclick: showRemoved,
              })
            : null,
    );
}

// --- removing and bringing back ----------------------------------------------------------------

async function remove(keys) {
    const id = store.get("dataset");
    await api.post(datasets.path("remove", id), { keys });
    parts.selected.clear();
    await parts.pages.load();
    widgets.toast(plural(keys.length, "{count} image removed", "{count} images removed"), {
        seconds: 12,
        action: { label: t("Undo"), onclick: () => restore(id, keys) },
    });
}

async function restore(id, keys) {
    await api.post(datasets.path("restore", id), { keys });
    await parts.pages.load();
}

async function showRemoved() {
    const id = store.get("dataset");
    const removed = await api.get(datasets.path("removed", id));
    const list = el("ul", { class: "lora-trainer-removed" });
    const line = (entry) => {
        const row = el(
            "li",
            {},
            el(
                "span",
                {},
                entry.name,
                el("span", { class: "lora-trainer-help" }, " " + formatDate(entry.time)),
            ),
            widgets.button({
                label: t("Bring back"),
                onclick: async () => {
                    await restore(id, [entry.key]);
                    row.remove();
                },
            }),
        );
        return row;
    };
    fill(list, removed.map(line));
    widgets.dialog({ title: t("Removed images"), body: list });
}
