/*
 * Autocompletion of tags: the dataset's tags by frequency, and its vocabulary's preferred words.
 * Arrow keys choose one, Enter inserts it, Escape closes the list; Tab moves on unless one was
 * chosen. Nothing is offered for captions that are sentences.
 *
 *     complete(box, oninput)                      -> the list's element, to be placed below the
 *     textbox
 *     completed(field, box, oninput, {single})    the same for a labelled textbox
 */
import { api, expected } from "../common/api.js";
import { el, fill, findAll, uniqueId } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { store } from "../common/store.js";
import * as datasets from "../images/datasets.js";
import { bench } from "./bench.js";

/** @import { TagCountView } from "../common/answers" */
/** @import { TextBox } from "../common/types" */

const MOST = 2000,
    SHOWN = 8;

const COMMA = /[,\uff0c\n]/;

/**
 * The tags of one dataset at one revision.
 *
 * @type {{id: string, revision: string, tags: TagCountView[]} | null}
 */
let known = null;

/** @type {Promise<void> | null} */
let asking = null;

async function read(/** @type {string} */ id, /** @type {string} */ revision) {
    const [table, vocabulary] = await Promise.all([
        api.get(datasets.path("tags", id), { kind: "tags", limit: MOST }),
        api.get(datasets.path("vocabulary", id)),
    ]);
    const tags = table.mostly === "tags" ? table.tags : [];
    const there = new Set(tags.map(({ tag }) => tag.toLowerCase()));
    const words = Object.values(vocabulary.fields)
        .flat()
        .filter((word) => !there.has(word.toLowerCase()));
    return {
        id,
        revision,
        tags: [...tags, ...[...new Set(words)].map((tag) => ({ tag, count: 0 }))],
    };
}

/** The dataset's tags; the previous ones while they are reloaded. */
async function tags() {
    const id = store.get("dataset") ?? "";
    if (known?.id !== id || known.revision !== bench.revision) {
        asking ??= read(id, bench.revision)
            .then((found) => {
                known = found;
            })
            .finally(() => {
                asking = null;
            });
        if (known?.id !== id) await asking;
        else asking.catch(() => {});
    }
    return known?.id === id ? known.tags : [];
}

/** The tag around a position in a text: {from, to, typed (before the position), whole}. */
export function tagAt(/** @type {string} */ text, /** @type {number} */ place) {
    let from = place,
        to = place;
    while (from > 0 && !COMMA.test(text[from - 1])) from -= 1;
    while (to < text.length && !COMMA.test(text[to])) to += 1;
    while (from < place && /\s/.test(text[from])) from += 1;
    return { from, to, typed: text.slice(from, place), whole: text.slice(from, to).trim() };
}

/**
 * The matching tags: those that start with the input, then those with a word that does, then those
 * that contain it.
 *
 * @param {TagCountView[]} all
 * @param {string} typed
 * @param {string[]} present in the caption already
 */
export function fitting(all, typed, present) {
    const wanted = typed
        .toLowerCase()
        .replace(/[_\s]+/g, " ")
        .trim();
    if (!wanted) return [];
    const rank = (/** @type {string} */ tag) => {
        const plain = tag.toLowerCase().replace(/_/g, " ");
        if (plain.startsWith(wanted)) return 0;
        if (plain.includes(" " + wanted) || plain.includes("(" + wanted)) return 1;
        // nearly every tag contains any letter
        return wanted.length > 1 && plain.includes(wanted) ? 2 : 3;
    };
    const there = new Set(present.map((tag) => tag.toLowerCase()));
    const found = all
        .filter(({ tag }) => !there.has(tag.toLowerCase()))
        .map((one) => ({ one, place: rank(one.tag) }))
        .filter(({ place }) => place < 3);
    // stable: the server's order by frequency is kept among equals
    return found
        .sort((a, b) => a.place - b.place)
        .slice(0, SHOWN)
        .map(({ one }) => one);
}

/**
 * @param {TagCountView} tag
 * @param {string} id
 * @param {(tag: string) => void} take
 */
const option = ({ tag, count }, id, take) =>
    el(
        "li",
        {
            id,
            role: "option",
            "aria-selected": "false",
            dataset: { tag },
            // before the textbox loses the focus
            onpointerdown: (event) => {
                event.preventDefault();
                take(tag);
            },
        },
        el("span", tag),
        widgets.small(count ? formatNumber(count) : t("vocabulary")),
    );

/** Show the list below its textbox, or above it at the bottom of the window. */
function place(/** @type {HTMLElement} */ list, /** @type {TextBox} */ box) {
    list.hidden = false;
    list.classList.remove("lora-trainer-bench-above");
    const { bottom, height } = list.getBoundingClientRect();
    list.classList.toggle(
        "lora-trainer-bench-above",
        bottom > window.innerHeight && box.getBoundingClientRect().top > height,
    );
}

const caret = (/** @type {TextBox} */ box) => box.selectionStart ?? box.value.length;

/**
 * Replace the typed part by a tag as if typed: Ctrl+Z undoes it.
 *
 * @param {TextBox} box
 * @param {string} tag
 * @param {boolean} single
 * @param {() => void} oninput
 */
function write(box, tag, single, oninput) {
    const { from, to } = tagAt(box.value, caret(box));
    const behind = box.value.slice(to);
    const text = behind.trim() || single ? tag : tag + ", ";
    box.setSelectionRange(from, behind.trim() ? to : box.value.length);
    if (!document.execCommand("insertText", false, text)) {
        box.setRangeText(text, caret(box), box.selectionEnd ?? caret(box), "end");
        oninput();
    }
}

/** The tags that complete the input; null if unknown. */
async function offersFor(/** @type {TextBox} */ box) {
    const all = await tags().catch((caught) => void expected(caught));
    if (!all) return null;
    const { typed, whole } = tagAt(box.value, caret(box));
    const present = box.value.split(COMMA).map((tag) => tag.trim());
    return fitting(all, typed, present).filter(({ tag }) => tag !== whole);
}

const listBox = (/** @type {string} */ id) =>
    el("ul.lora-trainer-bench-complete", {
        id,
        role: "listbox",
        hidden: true,
        "aria-label": t("Tags of this dataset"),
    });

const isTyped = (/** @type {Event} */ event) =>
    !(event instanceof InputEvent) ||
    (!event.isComposing && !["historyUndo", "historyRedo"].includes(event.inputType));

/**
 * `single`: the box is for one tag, so no comma follows it.
 *
 * @param {TextBox} box
 * @param {() => void} oninput
 * @param {{single?: boolean}} [options]
 */
export function complete(box, oninput, { single = false } = {}) {
    const id = uniqueId("complete");
    const list = listBox(id);
    let at = -1,
        serial = 0;
    /** @type {HTMLElement} */
    const element = box;
    box.setAttribute("aria-autocomplete", "list");
    box.setAttribute("autocomplete", "off");

    function close() {
        serial += 1;
        at = -1;
        list.hidden = true;
        box.removeAttribute("aria-controls");
        box.removeAttribute("aria-activedescendant");
    }

    async function look() {
        const mine = (serial += 1);
        const found = await offersFor(box);
        if (!found || mine !== serial || document.activeElement !== box) return;
        if (!found.length) {
            close();
            return;
        }
        at = -1;
        fill(
            list,
            found.map((one, number) => option(one, id + "_" + number, take)),
        );
        place(list, box);
        box.setAttribute("aria-controls", id);
        box.removeAttribute("aria-activedescendant");
    }

    function choose(/** @type {number} */ next) {
        const options = findAll(list, "[role=option]");
        at = (next + options.length) % options.length;
        options.forEach((option, number) =>
            option.setAttribute("aria-selected", String(number === at)),
        );
        box.setAttribute("aria-activedescendant", options[at].id);
        options[at].scrollIntoView({ block: "nearest" });
    }

    function take(/** @type {string} */ tag) {
        write(box, tag, single, oninput);
        close();
    }

    box.addEventListener("input", (event) => {
        if (isTyped(event)) look();
    });
    box.addEventListener("compositionend", look);
    box.addEventListener("blur", close);
    // before the row's listener: keys used by the list are not for the row
    element.addEventListener(
        "keydown",
        (event) => {
            if (list.hidden || event.isComposing || event.ctrlKey || event.metaKey || event.altKey)
                return;
            const offered = findAll(list, "[role=option]").map((one) => one.dataset.tag ?? "");
            const chosen = at >= 0 ? offered[at] : "";
            if (event.key === "ArrowDown") choose(at + 1);
            else if (event.key === "ArrowUp") choose(at < 0 ? -1 : at - 1);
            else if (event.key === "Enter") take(chosen || offered[0]);
            else if (event.key === "Tab" && chosen && !event.shiftKey) take(chosen);
            else if (event.key === "Escape") close();
            else return;
            event.preventDefault();
            event.stopImmediatePropagation();
        },
        true,
    );
    return list;
}

/**
 * @param {HTMLElement} field
 * @param {TextBox} box
 * @param {() => void} oninput
 * @param {{single?: boolean}} options
 */
export function completed(field, box, oninput, options) {
    const place = el("div.lora-trainer-caption-box");
    box.replaceWith(place);
    place.append(box, complete(box, oninput, options));
    return field;
}
