/*
 * Structured captions: editing a caption by fields (subject, action, ... colour), and the dataset's
 * vocabulary: opening phrase, preferred words, captions that deviate from them, and the fix.
 */
import { api, expected } from "../common/api.js";
import { el, fill, need, uniqueId } from "../common/elements.js";
import { plural, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { thumbnail } from "../images/images.js";
import { bench, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";
import { shownDifference } from "./difference.js";

/**
 * @import {
 *    ItemView, SelectBody, TemplateField, TemplateView, VocabularyView
 * } from "../common/answers"
 */
/** @import { ButtonOptions, TextBox } from "../common/types" */

/** @import { Problem } from "../common/api.js" */
/** @import { CaptionRow } from "./row.js" */

const WAIT = 300;

const MOST_SHOWN = 100;

export const listed = (/** @type {string} */ text) =>
    text
        .split(/[,\uff0c\n]/)
        .map((word) => word.trim())
        .filter(Boolean);

// --- one caption in fields ---------------------------------------------------------------------

/** @typedef {Map<TemplateField["name"], TextBox>} Inputs a box for each field, by its name */

/**
 * A field with buttons for its preferred words; `soon()` is called after a click.
 *
 * @param {TemplateField} field
 * @param {TextBox} input
 * @param {string[]} preferred
 * @param {() => void} soon
 */
function fieldRow(field, input, preferred, soon) {
    return el(
        "div.lora-trainer-field",
        widgets.labelled(field.label, input),
        preferred.length
            ? el(
                  "div.lora-trainer-bench-suggestions",
                  preferred.map((word) =>
                      controls.link(
                          word,
                          () => {
                              const words = listed(input.value);
                              if (!words.includes(word)) input.value = [...words, word].join(", ");
                              input.focus();
                              return soon();
                          },
                          { "aria-label": t("Add {word}", { word }) },
                      ),
                  ),
              )
            : null,
    );
}

/** @type {(item: ItemView, number: number, count: number) => HTMLElement[]} */
const itemImage = (item, number, count) => [
    thumbnail({ thumbnail: item.image }),
    widgets.help(t("{label} ({number} of {count})", { label: item.name, number, count })),
];

/**
 * @param {() => Promise<void>} save
 * @param {(step: number) => Promise<void>} go
 * @returns {ButtonOptions[]}
 */
function composeActions(save, go) {
    const saveAndGo = async (/** @type {number} */ step) => {
        await save();
        await go(step);
        return false;
    };
    return [
        { label: t("Previous"), onclick: () => saveAndGo(-1) },
        { label: t("Save"), onclick: save },
        { label: t("Save and next"), kind: "primary", onclick: () => saveAndGo(1) },
    ];
}

/** Ctrl+Enter presses the dialog's main button. */
function pressOnCtrlEnter(/** @type {ReturnType<typeof widgets.dialog>} */ { element, main }) {
    element.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        main.click();
    });
}

const inOrder = (/** @type {TemplateView} */ { order, fields }) =>
    order.flatMap((name) => fields.find((field) => field.name === name) ?? []);

const valuesOf = (/** @type {Inputs} */ inputs) =>
    Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));

/**
 * Composes the caption from its fields, debounced: `show(was, caption)` shows it, `fail(problem)`
 * an error.
 *
 * @param {Inputs} inputs
 * @param {(was: string, caption: string) => void} show
 * @param {(problem: Problem) => void} fail
 */
function composition(inputs, show, fail) {
    /** @type {Promise<void> | null} */
    let waiting = null;
    let timer = 0,
        serial = 0,
        was = "",
        caption = "";

    async function put() {
        const mine = (serial += 1);
        const answer = await api.post(datasets.path("compose"), { fields: valuesOf(inputs) });
        if (mine !== serial) return;
        caption = answer.caption;
        show(was, caption);
    }

    return {
        soon() {
            clearTimeout(timer);
            waiting = new Promise((resolve) => {
                timer = setTimeout(resolve, WAIT);
            })
                .then(put)
                .catch((caught) => fail(expected(caught)));
        },
        /** Another caption is in the fields. */
        start(/** @type {string} */ text) {
            clearTimeout(timer);
            serial += 1;
            waiting = null;
            was = caption = text;
        },
        /** Composes pending input. Returns the caption before and after. */
        async finish() {
            clearTimeout(timer);
            if (waiting) {
                await put();
                waiting = null;
            }
            return { was, caption };
        },
        stop: () => clearTimeout(timer),
    };
}

/** A dialog with the fields of a row's caption; "Save and next" continues with the next row. */
export async function compose(/** @type {CaptionRow} */ row) {
    await bench.page.saveAll();
    const [template, vocabulary] = await Promise.all([
        api.get(datasets.path("template")),
        api.get(datasets.path("vocabulary"), { trigger: triggerWord() }),
    ]);
    const rows = [...bench.page.rows().values()];
    let at = rows.findIndex((one) => one.item().key === row.item().key);
    const image = el("div.lora-trainer-bench-image");
    const shown = el("p.lora-trainer-bench-composed", { role: "status" });
    const errorPlace = el("div");
    const ordered = inOrder(template);
    /** @type {Inputs} */
    const inputs = new Map();
    const lines = ordered.map((field) => {
        const input = widgets.text({
            placeholder: field.example,
            maxlength: 500,
            oninput: () => text.soon(),
        });
        inputs.set(field.name, input);
        const preferred = (vocabulary.fields[field.name] ?? []).slice(0, 12);
        return fieldRow(field, input, preferred, () => text.soon());
    });
    const focusFirst = () => [...inputs.values()][0]?.focus();
    const text = composition(
        inputs,
        (was, caption) => {
            fill(errorPlace);
            fill(shown, caption === was ? caption || t("(empty)") : shownDifference(was, caption));
        },
        (problem) => fill(errorPlace, widgets.problem(problem)),
    );

    async function show(/** @type {number} */ to) {
        const next = (to + rows.length) % rows.length;
        const item = rows[next].item(),
            caption = rows[next].text();
        const { fields } = await api.post(datasets.path("split"), { caption });
        at = next;
        text.start(caption);
        fill(image, itemImage(item, at + 1, rows.length));
        fill(shown, caption || t("(empty)"));
        for (const [name, input] of inputs) input.value = fields[name] || "";
        focusFirst();
    }

    async function save() {
        const { was, caption } = await text.finish();
        if (caption !== was) await rows[at].write(caption);
    }

    await show(at);
    const dialog = widgets.dialog({
        title: t("Fields of a caption"),
        wide: true,
        onclose: text.stop,
        body: el(
            "div.lora-trainer-bench-two.lora-trainer-bench-compose",
            image,
            el(
                "div.lora-trainer-bench-form",
                el("div.lora-trainer-bench-fields", lines),
                shown,
                errorPlace,
            ),
        ),
        actions: composeActions(save, (step) => show(at + step)),
    });
    pressOnCtrlEnter(dialog);
    focusFirst();
}

// --- the vocabulary ----------------------------------------------------------------------------

/**
 * Deviations from the vocabulary; `fix(select)` fixes some captions, or all.
 *
 * @param {VocabularyView} vocabulary
 * @param {(select: SelectBody) => Promise<void>} fix
 */
function departureList(vocabulary, fix) {
    const { count, list: found } = vocabulary.departures;
    if (!vocabulary.exists)
        return [
            widgets.help(
                t(
                    "There is no vocabulary yet. Enter how these captions begin, and the one word you use for each thing; captions that use other words are then listed here.",
                ),
            ),
        ];
    return [
        widgets.apart(
            el(
                "b",
                count
                    ? plural(
                          count,
                          "{count} caption differs from it",
                          "{count} captions differ from it",
                      )
                    : t("All captions follow it."),
            ),
            count
                ? widgets.button({
                      label: t("Fix all"),
                      kind: "primary",
                      onclick: () => fix({ where: {} }),
                  })
                : null,
        ),
        el(
            "ul.lora-trainer-bench-list",
            found
                .slice(0, MOST_SHOWN)
                .map((departure) =>
                    el(
                        "li.lora-trainer-bench-line",
                        el(
                            "div",
                            el("b", departure.name),
                            shownDifference(departure.caption, departure.fixed),
                        ),
                        widgets.button({
                            label: t("Fix"),
                            onclick: () => fix({ keys: [departure.key] }),
                        }),
                    ),
                ),
        ),
    ];
}

/**
 * A field with its preferred words, and two buttons to move it.
 *
 * @param {TemplateField} field
 * @param {TextBox} input
 * @param {{rise: boolean, sink: boolean}} can
 * @param {(way: number) => unknown} move
 */
function orderLine(field, input, can, move) {
    input.id ||= uniqueId("words");
    /** @type {(way: number, words: string, label: string, can: boolean) => HTMLElement} */
    const mover = (way, words, label, can) =>
        controls.link(words, () => move(way), {
            "aria-label": label,
            "data-way": String(way),
            disabled: !can,
        });
    return el(
        "li",
        { dataset: { field: field.name } },
        widgets.apart(
            el("label", { for: input.id }, field.label),
            el(
                "span.lora-trainer-row",
                mover(-1, t("Up"), t("Move {field} up", { field: field.label }), can.rise),
                mover(1, t("Down"), t("Move {field} down", { field: field.label }), can.sink),
            ),
        ),
        input,
    );
}

const agreement = (/** @type {HTMLElement} */ opening, /** @type {HTMLElement} */ list) =>
    el(
        "div.lora-trainer-bench-form",
        widgets.labelled(t("Opening phrase"), opening, {
            help: t("A phrase at the start of every caption, after the trigger word."),
        }),
        widgets.help(
            t(
                "Preferred words, separated by commas; the order of the fields is the order in a caption.",
            ),
        ),
        list,
    );

/** The preferred words of each field that has some. */
const wordsOf = (/** @type {Inputs} */ inputs) =>
    Object.fromEntries(
        [...inputs].flatMap(([name, input]) => {
            const words = listed(input.value);
            return words.length ? [[name, words]] : [];
        }),
    );

/** A textbox for a field's preferred words. */
const wordInput = (/** @type {TemplateField} */ field, /** @type {VocabularyView} */ vocabulary) =>
    widgets.lines(2, {
        value: vocabulary.fields[field.name]?.join(", "),
        placeholder: field.example,
    });

export async function open() {
    await bench.page.saveAll();
    const template = await api.get(datasets.path("template"));
    let { order } = template;
    let vocabulary = await api.get(datasets.path("vocabulary"), { trigger: triggerWord() });
    const opening = widgets.text({
        value: vocabulary.opening,
        maxlength: 300,
        placeholder: t("sci-fi laboratory"),
    });
    const fields = new Map(template.fields.map((field) => [field.name, field]));
    /** @type {Inputs} */
    const inputs = new Map(
        template.fields.map((field) => [field.name, wordInput(field, vocabulary)]),
    );
    const list = el("ol.lora-trainer-bench-order");
    const departures = el("div.lora-trainer-bench-form", { role: "status" });

    function drawOrder() {
        fill(
            list,
            order.map((name, at) => {
                const field = fields.get(name),
                    input = inputs.get(name);
                const can = { rise: at > 0, sink: at < order.length - 1 };
                return field && input && orderLine(field, input, can, (way) => move(at, way));
            }),
        );
    }

    async function move(/** @type {number} */ at, /** @type {number} */ way) {
        const next = [...order];
        [next[at], next[at + way]] = [next[at + way], next[at]];
        await api.post(datasets.path("template"), { order: next });
        order = next;
        drawOrder();
        need(list, `[data-field="${next[at + way]}"] [data-way="${way}"]`).focus();
        await changes.readEdits();
    }

    const fix = async (/** @type {SelectBody} */ select) => {
        await changes.change(select, { do: "vocabulary", trigger: triggerWord() });
        await look();
    };
    const drawDepartures = () => fill(departures, departureList(vocabulary, fix));

    async function save() {
        await api.post(datasets.path("vocabulary"), {
            opening: opening.value,
            fields: wordsOf(inputs),
        });
        await look();
        await bench.page.pages.load();
        return false;
    }

    async function look() {
        vocabulary = await api.get(datasets.path("vocabulary"), { trigger: triggerWord() });
        drawDepartures();
    }

    drawOrder();
    drawDepartures();
    widgets.dialog({
        title: t("Template and vocabulary"),
        wide: true,
        body: el("div.lora-trainer-bench-two", agreement(opening, list), departures),
        actions: [
            { label: t("Close") },
            { label: t("Save and check"), kind: "primary", onclick: save },
        ],
    });
}
