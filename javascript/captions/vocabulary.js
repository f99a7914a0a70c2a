/*
 * Captions built alike: the fields of a caption (subject, action, ... colour) for one image after
 * the other, and the dataset's vocabulary: the opening phrase, the preferred words, which captions
 * depart from them, and the mend.
 */
import { Problem, api } from "../common/api.js";
import { el, fill, uniqueId } from "../common/elements.js";
import { plural, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { thumbnail } from "../images/pictures.js";
import { bench, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";
import { shownDifference } from "./difference.js";

const WAIT = 300;

const MOST_SHOWN = 100;

export const listed = (text) =>
    text
        .split(/[,\uff0c\n]/)
        .map((word) => word.trim())
        .filter(Boolean);

// --- one caption in fields ---------------------------------------------------------------------

/** A field with the preferred words to click; `soon()` is told of one that was clicked. */
function fieldRow(field, input, preferred, soon) {
    return el(
        "div",
        { class: "lora-trainer-field" },
        widgets.labelled(field.label, input),
        preferred.length
            ? el(
                  "div",
                  { class: "lora-trainer-bench-suggestions" },
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

const itemPicture = (item, number, count) => [
    thumbnail({ thumbnail: item.picture }),
    el(
        "p",
        { class: "lora-trainer-help" },
        t("{label} ({number} of {count})", { label: item.name, number, count }),
    ),
];

function composeActions(save, go) {
    const saveAndGo = async (step) => {
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

/** Ctrl+Enter is the dialog's main button. */
function pressOnCtrlEnter(dialog) {
    dialog.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        dialog.querySelector(".lora-trainer-dialog-actions .lora-trainer-primary").click();
    });
}

const inOrder = (template) =>
    template.order
        .map((name) => template.fields.find((field) => field.name === name))
        .filter(Boolean);

const valuesOf = (inputs) =>
    Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));

/**
 * A caption made from what is typed into its fields, a moment later: `show(was, caption)` tells of
 * it, `fail(problem)` why there is none.
 */
function composition(inputs, show, fail) {
    let timer = 0,
        serial = 0,
        waiting = null,
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
                .catch((problem) => {
                    if (!(problem instanceof Problem)) throw problem;
                    fail(problem);
                });
        },
        /** Another caption is in the fields. */
        start(text) {
            clearTimeout(timer);
            serial += 1;
            waiting = null;
            was = caption = text;
        },
        /** What was typed last is composed, too. Returns the caption before and now. */
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

const fieldRows = (fields, inputs, vocabulary, soon) =>
    el(
        "div",
        { class: "lora-trainer-bench-fields" },
        fields.map((field) =>
            fieldRow(
                field,
                inputs.get(field.name),
                (vocabulary.fields[field.name] || []).slice(0, 12),
                soon,
            ),
        ),
    );

/** A dialog with the fields of a row's caption; "Save and next" goes on through the page. */
export async function compose(row) {
    await bench.page.saveAll();
    const [template, vocabulary] = await Promise.all([
        api.get(datasets.path("template")),
        api.get(datasets.path("vocabulary"), { trigger: triggerWord() }),
    ]);
    const rows = [...bench.page.rows().values()];
    let at = rows.findIndex((one) => one.item().key === row.item().key);
    const picture = el("div", { class: "lora-trainer-bench-picture" });
    const shown = el("p", { class: "lora-trainer-bench-composed", role: "status" });
    const trouble = el("div");
    const ordered = inOrder(template);
    const inputs = new Map(
        ordered.map((field) => [
            field.name,
            widgets.text({
                placeholder: field.example,
                maxlength: 500,
                oninput: () => text.soon(),
            }),
        ]),
    );
    const text = composition(
        inputs,
        (was, caption) => {
            fill(trouble);
            fill(shown, caption === was ? caption || t("(empty)") : shownDifference(was, caption));
        },
        (problem) => fill(trouble, widgets.problem(problem)),
    );

    async function show(to) {
        const next = (to + rows.length) % rows.length;
        const item = rows[next].item(),
            caption = rows[next].text();
        const { fields } = await api.post(datasets.path("split"), { caption });
        at = next;
        text.start(caption);
        fill(picture, itemPicture(item, at + 1, rows.length));
        fill(shown, caption || t("(empty)"));
        for (const [name, input] of inputs) input.value = fields[name] || "";
        inputs.values().next().value.focus();
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
            "div",
            { class: "lora-trainer-bench-two lora-trainer-bench-compose" },
            picture,
            el(
                "div",
                { class: "lora-trainer-bench-form" },
                fieldRows(ordered, inputs, vocabulary, text.soon),
                shown,
                trouble,
            ),
        ),
        actions: composeActions(save, (step) => show(at + step)),
    });
    pressOnCtrlEnter(dialog.element);
    inputs.values().next().value.focus();
}

// --- the vocabulary ----------------------------------------------------------------------------

/** What departs from the vocabulary; `mend(select)` mends some captions, or all. */
function departureList(vocabulary, mend) {
    const { count, list: found } = vocabulary.departures;
    if (!vocabulary.exists)
        return [
            el(
                "p",
                { class: "lora-trainer-help" },
                t(
                    "Nothing is agreed on yet. Write down how these captions begin, and the one word you use for each thing; then captions that say it otherwise are listed here.",
                ),
            ),
        ];
    return [
        el(
            "div",
            { class: "lora-trainer-row lora-trainer-between" },
            el(
                "b",
                {},
                count
                    ? plural(
                          count,
                          "{count} caption departs from it",
                          "{count} captions depart from it",
                      )
                    : t("All captions keep to it."),
            ),
            count
                ? widgets.button({
                      label: t("Mend all"),
                      kind: "primary",
                      onclick: () => mend({ where: {} }),
                  })
                : null,
        ),
        el(
            "ul",
            { class: "lora-trainer-bench-list" },
            found.slice(0, MOST_SHOWN).map((departure) =>
                el(
                    "li",
                    { class: "lora-trainer-bench-line" },
                    el(
                        "div",
                        {},
                        el("b", {}, departure.name),
                        shownDifference(departure.caption, departure.mended),
                    ),
                    widgets.button({
                        label: t("Mend"),
                        onclick: () => mend({ keys: [departure.key] }),
                    }),
                ),
            ),
        ),
    ];
}

/** A field with its preferred words, and the two links that move it up and down. */
function orderLine(field, input, [canRise, canSink], move) {
    input.id = input.id || uniqueId("words");
    const mover = (way, words, label, can) =>
        controls.link(words, () => move(way), {
            "aria-label": label,
            "data-way": String(way),
            disabled: !can,
        });
    return el(
        "li",
        { dataset: { field: field.name } },
        el(
            "div",
            { class: "lora-trainer-row lora-trainer-between" },
            el("label", { for: input.id }, field.label),
            el(
                "span",
                { class: "lora-trainer-row" },
                mover(-1, t("Up"), t("Move {field} up", { field: field.label }), canRise),
                mover(1, t("Down"), t("Move {field} down", { field: field.label }), canSink),
            ),
        ),
        input,
    );
}

const agreement = (opening, list) =>
    el(
        "div",
        { class: "lora-trainer-bench-form" },
        widgets.labelled(t("How captions begin"), opening, {
            help: t("A phrase for every caption, behind the trigger word."),
        }),
        el(
            "p",
            { class: "lora-trainer-help" },
            t(
                "Preferred words, with commas between; the order of the fields is the order in a caption.",
            ),
        ),
        list,
    );

/** Of each field that has any the preferred words. */
const wordsOf = (inputs) =>
    Object.fromEntries(
        [...inputs]
            .map(([name, input]) => [name, listed(input.value)])
            .filter(([, words]) => words.length),
    );

/** A box for each field's preferred words. */
const wordInputs = (template, vocabulary) =>
    new Map(
        template.fields.map((field) => [
            field.name,
            widgets.text({
                value: (vocabulary.fields[field.name] || []).join(", "),
                rows: 2,
                placeholder: field.example,
            }),
        ]),
    );

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
    const inputs = wordInputs(template, vocabulary);
    const list = el("ol", { class: "lora-trainer-bench-order" });
    const departures = el("div", { class: "lora-trainer-bench-form", role: "status" });

    function drawOrder(focus) {
        fill(
            list,
            order.map((name, at) =>
                orderLine(
                    template.fields.find((one) => one.name === name),
                    inputs.get(name),
                    [at > 0, at < order.length - 1],
                    (way) => move(at, way),
                ),
            ),
        );
        if (focus)
            list.querySelector(
                '[data-field="' + focus.name + '"] [data-way="' + focus.way + '"]',
            ).focus();
    }

    async function move(at, way) {
        const next = [...order];
        [next[at], next[at + way]] = [next[at + way], next[at]];
        await api.post(datasets.path("template"), { order: next });
        order = next;
        drawOrder({ name: next[at + way], way });
        await changes.readEdits();
    }

    const mend = async (select) => {
        await changes.change(select, { do: "vocabulary", trigger: triggerWord() });
        await look();
    };
    const drawDepartures = () => fill(departures, departureList(vocabulary, mend));

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
        body: el("div", { class: "lora-trainer-bench-two" }, agreement(opening, list), departures),
        actions: [
            { label: t("Close") },
            { label: t("Save and look"), kind: "primary", onclick: save },
        ],
    });
}
