/*
 * A row per setting: input, help, and a button to revert a change.
 */
import { el, fill, put, uniqueId, wayOf } from "../common/elements.js";
import { plural, t, withColon } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { draft, same } from "./draft.js";
import { currentPlan } from "./plan.js";
import {
    baseValue,
    change,
    edited,
    familyValues,
    presetOf,
    presetValues,
    suggested,
    valueOf,
} from "./values.js";

/** @import { FormField, SettingView } from "../common/answers" */
/** @import { Row, TextBox } from "../common/types" */

/**
 * The input of a setting. `row`: its label is beside it.
 *
 * @typedef {{element: HTMLElement, input: HTMLElement, row?: boolean,
 *     show: (value: unknown) => void}} Entry
 */

/** @typedef {(value: unknown) => void} OnChange called when the user changes the value */

/** @typedef {(field: SettingView, id: string, onchange: OnChange) => Entry} Maker */

/** Steps and epochs are alternatives, shown as one field. */
export const LENGTH = ["max_train_steps", "epochs"];

/** @type {Record<string, string>} */
const EXAMPLES = { trigger_word: "ohwx, mychar ..." };

// --- fields ------------------------------------------------------------------------------------

/** Format a number: 0.0001 -> 1e-4. */
function written(/** @type {unknown} */ value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    return value !== 0 && Math.abs(value) < 0.001
        ? value.toExponential().replace("e+", "e")
        : String(value);
}

/** The input as the setting's type; an invalid number is passed on, and the server reports it. */
function number(/** @type {string} */ text, /** @type {boolean} */ optional) {
    const trimmed = text.trim();
    if (trimmed === "" || trimmed === "auto") return optional ? null : "";
    return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

/**
 * An entry with one textbox or select; `format` formats its value.
 *
 * @param {TextBox | HTMLSelectElement} input
 * @param {(value: unknown) => string} [format]
 */
const plain = (input, format = written) => ({
    element: input,
    input,
    show(/** @type {unknown} */ value) {
        // a focused textbox is not changed; a select is
        if (document.activeElement !== input || input instanceof HTMLSelectElement)
            input.value = format(value);
    },
});

const joined = (/** @type {string} */ between) => (/** @type {unknown} */ value) =>
    Array.isArray(value) ? value.join(between) : "";

const parts = (/** @type {string} */ text, /** @type {RegExp} */ between) =>
    text
        .split(between)
        .map((part) => part.trim())
        .filter(Boolean);

/** @type {Maker} */
const flagEntry = (field, id, onchange) => {
    const input = widgets.checkbox(false, onchange);
    input.id = id;
    return {
        element: input,
        input,
        row: true,
        show(value) {
            input.checked = Boolean(value);
        },
    };
};

/** @type {Maker} */
const autoFlagEntry = (field, id, onchange) =>
    plain(
        widgets.select({
            id,
            options: [
                { value: "auto", label: t("auto") },
                { value: "yes", label: t("yes") },
                { value: "no", label: t("no") },
            ],
            onchange: (word) => onchange(word === "auto" ? null : word === "yes"),
        }),
        (value) => (value === null ? "auto" : value ? "yes" : "no"),
    );

/** @type {Maker} */
const choiceEntry = ({ choices }, id, onchange) => {
    const select = widgets.select({
        id,
        options: choices.map(({ value, label }) => ({ value: String(value), label })),
        onchange: (word) =>
            onchange(
                (choices.find(({ value }) => String(value) === word) ?? { value: word }).value,
            ),
    });
    return plain(select, (value) => {
        // a settings file may contain values that are not among the choices
        if (![...select.options].some((option) => option.value === String(value)))
            select.append(new Option(String(value)));
        return String(value);
    });
};

/** @type {Maker} */
const linesEntry = (field, id, onchange) =>
    plain(widgets.lines(3, { id, oninput: (text) => onchange(parts(text, /\n/)) }), joined("\n"));

/** @type {Maker} */
const listEntry = (field, id, onchange) =>
    plain(
        widgets.text({ id, oninput: (text) => onchange(parts(text, /[,\uff0c]/)) }),
        joined(", "),
    );

/** @type {Maker} */
const numberListEntry = (field, id, onchange) =>
    listEntry(field, id, (words) =>
        onchange(Array.isArray(words) ? words.map((word) => number(word, false)) : []),
    );

/** @type {Maker} */
const numberEntry = (field, id, onchange) => {
    const { optional } = field;
    const input = widgets.text({
        id,
        placeholder: optional ? t("auto") : "",
        oninput: (text) => onchange(number(text, optional)),
    });
    input.inputMode = field.type.endsWith("integer") ? "numeric" : "decimal";
    input.addEventListener("keydown", (event) => nudge(event, field, input, onchange));
    return plain(input);
};

/** @type {Maker} */
const textEntry = (field, id, onchange) =>
    plain(widgets.text({ id, placeholder: EXAMPLES[field.key], oninput: onchange }));

/** @type {Maker} */
const paragraphEntry = (field, id, onchange) => plain(widgets.lines(3, { id, oninput: onchange }));

/** @type {Partial<Record<SettingView["type"], Maker>>} */
const ENTRIES = {
    flag: flagEntry,
    auto_flag: autoFlagEntry,
    choice: choiceEntry,
    lines: linesEntry,
    list: listEntry,
    number_list: numberListEntry,
    paragraph: paragraphEntry,
    text: textEntry,
};

/**
 * The entry of a field; `onchange(value)` is called when the user changes it.
 *
 * @param {SettingView} field
 * @param {OnChange} onchange
 */
export function settingEntry(field, onchange, id = "lora_trainer_field_" + field.key) {
    const make = ENTRIES[field.type] ?? numberEntry;
    return make(field, id, onchange);
}

/**
 * Arrow up and down as in a number input: by the field's step, within its bounds.
 *
 * @param {KeyboardEvent} event
 * @param {SettingView} field
 * @param {HTMLInputElement} input
 * @param {OnChange} onchange
 */
function nudge(event, field, input, onchange) {
    const way = wayOf(event, { ArrowUp: 1, ArrowDown: -1 });
    const now = Number(input.value);
    if (!way || !field.step || input.value.trim() === "" || !Number.isFinite(now)) return;
    event.preventDefault();
    const raised = Number((now + way * field.step).toPrecision(12));
    const next = Math.min(field.maximum ?? raised, Math.max(field.minimum ?? raised, raised));
    input.value = written(next);
    onchange(next);
}

export function shownValue(/** @type {SettingView} */ field, /** @type {unknown} */ value) {
    if (value === null || value === undefined || value === "")
        return field.optional ? t("auto") : t("empty");
    if (typeof value === "boolean") return value ? t("yes") : t("no");
    if (field.choices.length)
        return field.choices.find((choice) => same(choice.value, value))?.label ?? String(value);
    return Array.isArray(value) ? value.join(", ") : written(value);
}

/** A button that reverts a change, hidden without one. */
const backButton = (/** @type {() => void} */ onclick) =>
    el("button.lora-trainer-settings-back", { type: "button", hidden: true, onclick });

/**
 * Set its label to the value that it restores.
 *
 * @param {HTMLElement} back
 * @param {string} field label of the field
 * @param {string} value
 */
function labelResetButton(back, field, value) {
    const short = value.length > 24 ? value.slice(0, 24) + " ..." : value;
    put(back, t("changed; reset to {value}", { value: short }));
    back.setAttribute("aria-label", t("{field} is changed; reset to {value}", { field, value }));
}

/** @returns {Row} */
export function fieldRow(/** @type {FormField} */ field) {
    const made = settingEntry(field, (value) => change(field, value));
    const { input } = made;
    const label = el(
        "label",
        { for: input.id },
        field.label,
        field.unit ? el("span.lora-trainer-settings-unit", " (" + field.unit + ")") : null,
    );
    const back = backButton(() => {
        delete draft.changes[field.key];
        input.blur();
        edited();
        input.focus();
    });
    const help = el("p.lora-trainer-help", { id: input.id + "_help" }, field.help);
    const note = el("p.lora-trainer-help.lora-trainer-settings-note", { id: input.id + "_note" });
    const problem = el("div.lora-trainer-settings-problem", { id: input.id + "_problem" });
    input.setAttribute("aria-describedby", [help.id, note.id, problem.id].join(" "));
    const element = el(
        "div",
        {
            class:
                "lora-trainer-field lora-trainer-settings-field" +
                (made.row ? " lora-trainer-settings-flag" : ""),
            dataset: { key: field.key },
        },
        el("div.lora-trainer-settings-label", label, back),
        made.element,
        problem,
        help,
        note,
    );

    function update() {
        made.show(valueOf(field));
        const changed = field.key in draft.changes;
        element.classList.toggle("lora-trainer-settings-changed", changed);
        back.hidden = !changed;
        if (changed) labelResetButton(back, field.label, shownValue(field, baseValue(field)));
        put(note, noteOf(field, changed));
    }
    return { element, update, input, problem };
}

/**
 * @param {string} key
 * @param {HTMLElement[]} parts
 */
const lengthFrame = (key, [back, slot, unit, problem, help, note]) => {
    const name = uniqueId("length");
    return el(
        "div.lora-trainer-field.lora-trainer-settings-field",
        { role: "group", "aria-labelledby": name, dataset: { key } },
        el(
            "div.lora-trainer-settings-label",
            el("span.lora-trainer-label", { id: name }, t("Training length")),
            back,
        ),
        el("div.lora-trainer-settings-length", slot, unit),
        problem,
        help,
        note,
    );
};

/**
 * Steps or epochs: only the textbox of the chosen one is shown.
 *
 * @param {FormField} steps
 * @param {FormField} epochs
 * @returns {Row}
 */
export function lengthRow(steps, epochs) {
    const both = [steps, epochs];
    const boxes = {
        steps: settingEntry(steps, (value) => change(steps, value)),
        epochs: settingEntry(epochs, (value) => change(epochs, value)),
    };
    const unit = widgets.select({
        label: t("Unit"),
        options: [
            { value: "steps", label: steps.label },
            { value: "epochs", label: epochs.label },
        ],
        onchange: (unit) => choose(unit === "steps" ? "steps" : "epochs"),
    });
    boxes.steps.input.setAttribute("aria-label", steps.label);
    boxes.epochs.input.setAttribute("aria-label", epochs.label);
    const slot = el("div");
    const back = backButton(() => {
        for (const field of both) delete draft.changes[field.key];
        edited();
        unit.focus();
    });
    const help = widgets.help();
    const note = el("p.lora-trainer-help.lora-trainer-settings-note");
    const problem = el("div.lora-trainer-settings-problem");
    const element = lengthFrame(steps.key, [back, slot, unit, problem, help, note]);
    /** @type {unknown} */
    let last = null;
    /** @type {"steps" | "epochs" | ""} */
    let by = "";

    /** Steps start with the resolved value, or the last one. */
    function choose(/** @type {"steps" | "epochs"} */ wanted) {
        change(
            steps,
            wanted === "epochs" ? null : last || baseValue(steps) || currentPlan()?.steps || 1000,
        );
        boxes[wanted].input.focus();
    }

    function update() {
        const count = valueOf(steps);
        if (count !== null) last = count;
        // a textbox that was cleared to type another number is kept
        const now =
            count !== null || document.activeElement === boxes.steps.input ? "steps" : "epochs";
        if (now !== by) fill(slot, boxes[now].element);
        unit.value = by = now;
        boxes.steps.show(count);
        boxes.epochs.show(valueOf(epochs));
        const field = by === "steps" ? steps : epochs;
        const changed = both.some(({ key }) => key in draft.changes);
        element.classList.toggle("lora-trainer-settings-changed", changed);
        back.hidden = !changed;
        const before = baseValue(steps) !== null ? steps : epochs;
        if (changed)
            labelResetButton(
                back,
                t("Training length"),
                shownValue(before, baseValue(before)) + " " + before.label,
            );
        put(help, field.help);
        const total = currentPlan()?.steps;
        put(
            note,
            by === "epochs" && total
                ? plural(total, "That is {count} step.", "That is {count} steps.")
                : noteOf(field, changed),
        );
    }
    return {
        element,
        update,
        get input() {
            return boxes[by || "epochs"].input;
        },
        problem,
    };
}

/**
 * The preset's reason for its value, the value for auto, or which other field takes precedence.
 */
function noteOf(/** @type {FormField} */ field, /** @type {boolean} */ changed) {
    const resolved = currentPlan()?.resolved ?? {};
    const preset = presetOf();
    const prompts = suggested()[field.key];
    if (prompts && !changed)
        return Array.isArray(prompts) && prompts.length
            ? datasets.isTexts()
                ? t(
                      "The first question. Write others, or leave it empty for no answers during training.",
                  )
                : t(
                      "From the first caption. Write others, or leave it empty for no previews during training.",
                  )
            : "";
    if (field.optional && valueOf(field) === null && field.key in resolved)
        return t("auto is {value} here.", { value: written(resolved[field.key]) });
    if (changed || !preset || !(field.key in presetValues()) || !preset.notes[field.key]) return "";
    // the reason is for the common value, not for a family's
    return field.key in preset.values && field.key in familyValues(preset)
        ? ""
        : withColon(preset.title, preset.notes[field.key]);
}
