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

/** A dialog with the fields of a row's caption; "Save and next" goes on through the page. */
export async function compose(row) {
    await bench.page.saveAll();
    const [template, vocabulary] = await Promise.all([
        api.get(datasets.path("template")),
        api.get(datasets.path("vocabulary"), { trigger: triggerWord() }),
    ]);
    const rows = [...bench.page.rows().values()];
    let at = rows.findIndex((one) => one.item().key === row.item().key),
        timer = 0,
        serial = 0,
        caption = "",
        composing = null,
        was = "";
    const picture = el("div", { class: "lora-trainer-bench-picture" });
    const shown = el("p", { class: "lora-trainer-bench-composed", role: "status" });
    const trouble = el("div");
    const ordered = template.order
        .map((name) => template.fields.find((field) => field.name === name))
        .filter(Boolean);
    const inputs = new Map(
        ordered.map((field) => [
            field.name,
            widgets.text({ placeholder: field.example, maxlength: 500, oninput: soon }),
        ]),
    );
    const values = () =>
        Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));

    const fieldRow = (field) => {
        const input = inputs.get(field.name);
        const preferred = (vocabulary.fields[field.name] || []).slice(0, 12);
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
                                  if (!words.includes(word))
                                      input.value = [...words, word].join(", ");
                                  input.focus();
                                  return soon();
                              },
                              { "aria-label": t("Add {word}", { word }) },
                          ),
                      ),
                  )
                : null,
        );
    };

    function soon() {
        clearTimeout(timer);
        composing = new Promise((resolve) => {
            timer = setTimeout(resolve, WAIT);
        })
            .then(put)
            .catch(fail);
    }

    const fail = (problem) => {
        if (!(problem instanceof Problem)) throw problem;
        fill(trouble, widgets.problem(problem));
    };

    async function put() {
        const mine = (serial += 1);
        const answer = await api.post(datasets.path("compose"), { fields: values() });
        if (mine !== serial) return;
        caption = answer.caption;
        fill(trouble);
        fill(shown, caption === was ? caption || t("(empty)") : shownDifference(was, caption));
    }

    async function show(to) {
        const next = (to + rows.length) % rows.length;
        const item = rows[next].item(),
            text = rows[next].text();
        const { fields } = await api.post(datasets.path("split"), { caption: text });
        clearTimeout(timer);
        serial += 1;
        at = next;
        composing = null;
        was = caption = text;
        fill(
            picture,
            thumbnail({ thumbnail: item.picture }),
            el(
                "p",
                { class: "lora-trainer-help" },
                t("{label} ({number} of {count})", {
                    label: item.name,
                    number: at + 1,
                    count: rows.length,
                }),
            ),
        );
        fill(shown, was || t("(empty)"));
        for (const [name, input] of inputs) input.value = fields[name] || "";
        inputs.values().next().value.focus();
    }

    async function save() {
        // what was typed last is composed first
        clearTimeout(timer);
        if (composing) {
            await put();
            composing = null;
        }
        if (caption !== was) await rows[at].write(caption);
    }

    await show(at);
    const dialog = widgets.dialog({
        title: t("Fields of a caption"),
        wide: true,
        onclose: () => clearTimeout(timer),
        body: el(
            "div",
            { class: "lora-trainer-bench-two lora-trainer-bench-compose" },
            picture,
            el(
                "div",
                { class: "lora-trainer-bench-form" },
                el("div", { class: "lora-trainer-bench-fields" }, ordered.map(fieldRow)),
                shown,
                trouble,
            ),
        ),
        actions: [
            {
                label: t("Previous"),
                onclick: async () => {
                    await save();
                    await show(at - 1);
                    return false;
                },
            },
            { label: t("Save"), onclick: save },
            {
                label: t("Save and next"),
                kind: "primary",
                onclick: async () => {
                    await save();
                    await show(at + 1);
                    return false;
                },
            },
        ],
    });
    dialog.element.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        dialog.element.querySelector(".lora-trainer-dialog-actions .lora-trainer-primary").click();
    });
    inputs.values().next().value.focus();
}

// --- the vocabulary ----------------------------------------------------------------------------

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
    const inputs = new Map(
        template.fields.map((field) => [
            field.name,
            widgets.text({
                value: (vocabulary.fields[field.name] || []).join(", "),
                rows: 2,
                placeholder: field.example,
            }),
        ]),
    );
    const list = el("ol", { class: "lora-trainer-bench-order" });
    const departures = el("div", { class: "lora-trainer-bench-form", role: "status" });

    function drawOrder(focus) {
        fill(
            list,
            order.map((name, at) => {
                const field = template.fields.find((one) => one.name === name);
                return el(
                    "li",
                    { dataset: { field: name } },
                    el(
                        "div",
                        { class: "lora-trainer-row lora-trainer-between" },
                        el(
                            "label",
                            {
                                for:
                                    inputs.get(name).id ||
                                    (inputs.get(name).id = uniqueId("words")),
                            },
                            field.label,
                        ),
                        el(
                            "span",
                            { class: "lora-trainer-row" },
                            mover(
                                name,
                                at,
                                -1,
                                t("Up"),
                                t("Move {field} up", { field: field.label }),
                            ),
                            mover(
                                name,
                                at,
                                1,
                                t("Down"),
                                t("Move {field} down", { field: field.label }),
                            ),
                        ),
                    ),
                    inputs.get(name),
                );
            }),
        );
        if (focus)
            list.querySelector(
                '[data-field="' + focus.name + '"] [data-way="' + focus.way + '"]',
            ).focus();
    }

    const mover = (name, at, way, words, label) =>
        controls.link(
            words,
            async () => {
                const next = [...order];
                [next[at], next[at + way]] = [next[at + way], next[at]];
                await api.post(datasets.path("template"), { order: next });
                order = next;
                drawOrder({ name, way });
                await changes.readEdits();
            },
            {
                "aria-label": label,
                "data-way": String(way),
                disabled: at + way < 0 || at + way >= order.length,
            },
        );

    async function save() {
        const fields = Object.fromEntries(
            [...inputs]
                .map(([name, input]) => [name, listed(input.value)])
                .filter(([, words]) => words.length),
        );
        await api.post(datasets.path("vocabulary"), { opening: opening.value, fields });
        await look();
        await bench.page.pages.load();
        return false;
    }

    async function look() {
        vocabulary = await api.get(datasets.path("vocabulary"), { trigger: triggerWord() });
        drawDepartures();
    }

    function drawDepartures() {
        const { count, list: found } = vocabulary.departures;
        if (!vocabulary.exists) {
            fill(
                departures,
                el(
                    "p",
                    { class: "lora-trainer-help" },
                    t(
                        "Nothing is agreed on yet. Write down how these captions begin, and the one word you use for each thing; then captions that say it otherwise are listed here.",
                    ),
                ),
            );
            return;
        }
        const mend = async (select) => {
            await changes.change(select, { do: "vocabulary", trigger: triggerWord() });
            await look();
        };
        fill(
            departures,
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
        );
    }

    drawOrder();
    drawDepartures();
    widgets.dialog({
        title: t("Template and vocabulary"),
        wide: true,
        body: el(
            "div",
            { class: "lora-trainer-bench-two" },
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
            ),
            departures,
        ),
        actions: [
            { label: t("Close") },
            { label: t("Save and look"), kind: "primary", onclick: save },
        ],
    });
}
