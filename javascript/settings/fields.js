/*
 * One row a setting: its entry, its help, its change against the preset.
 */
import { el, fill, put, uniqueId } from "../common/elements.js";
import { plural, t, withColon } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { draft } from "./draft.js";
import { currentPlan } from "./plan.js";
import {
    baseValue,
    change,
    edited,
    familyValues,
    presetOf,
    presetValues,
    same,
    suggested,
    valueOf,
} from "./values.js";

/** Of these two one decides how long is trained: they are one field. */
export const LENGTH = ["max_train_steps", "epochs"];

const EXAMPLES = { trigger_word: "ohwx, mychar ..." };

// --- fields ------------------------------------------------------------------------------------

/** A number as people write it: 0.0001 -> 1e-4. */
function written(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    return value !== 0 && Math.abs(value) < 0.001
        ? value.toExponential().replace("e+", "e")
        : String(value);
}

/**
 * What was typed, as the setting's kind; what is no number stays as it is, and the server says so.
 */
function number(text, optional) {
    const trimmed = text.trim();
    if (trimmed === "" || trimmed === "auto") return optional ? null : "";
    return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

/** An entry that is one input; `show` where a value is not shown as it is written. */
const plain = (input, show = null) => ({
    element: input,
    input,
    show:
        show ||
        ((value) => {
            if (document.activeElement !== input) input.value = written(value);
        }),
});

function flagEntry(field, id, hear) {
    const input = el("input", {
        type: "checkbox",
        id,
        class: "lora-trainer-checkbox",
        onchange: (event) => hear(event.target.checked),
    });
    return {
        element: input,
        input,
        row: true,
        show: (value) => {
            input.checked = Boolean(value);
        },
    };
}

function autoFlagEntry(field, id, hear) {
    const words = { auto: null, yes: true, no: false };
    const input = widgets.select({
        id,
        options: [
            { value: "auto", label: t("auto") },
            { value: "yes", label: t("yes") },
            { value: "no", label: t("no") },
        ],
        onchange: (value) => hear(words[value]),
    });
    return plain(input, (value) => {
        input.value = value === null ? "auto" : value ? "yes" : "no";
    });
}

function choiceEntry(field, id, hear) {
    const input = widgets.select({
        id,
        options: field.choices.map((choice) => ({
            value: String(choice.value),
            label: choice.label,
        })),
        onchange: (value) =>
            hear(field.choices.find((choice) => String(choice.value) === value).value),
    });
    return plain(input, (value) => {
        input.value = String(value);
    });
}

function linesEntry(field, id, hear) {
    const input = widgets.text({
        id,
        rows: 3,
        oninput: (value) =>
            hear(
                value
                    .split("\n")
                    .map((line) => line.trim())
                    .filter(Boolean),
            ),
    });
    return plain(input, (value) => {
        if (document.activeElement !== input) input.value = (value || []).join("\n");
    });
}

function listEntry(field, id, hear) {
    const parts = (value) =>
        value
            .split(/[,\uff0c]/)
            .map((part) => part.trim())
            .filter(Boolean);
    const input = widgets.text({
        id,
        oninput: (value) =>
            hear(
                field.type === "list"
                    ? parts(value)
                    : parts(value).map((part) => number(part, false)),
            ),
    });
    return plain(input, (value) => {
        if (document.activeElement !== input) input.value = (value || []).join(", ");
    });
}

function numberEntry(field, id, hear) {
    const optional = field.optional;
    const whole = field.type.endsWith("integer");
    const input = widgets.text({
        id,
        placeholder: optional ? t("auto") : "",
        oninput: (value) => hear(number(value, optional)),
    });
    input.inputMode = whole ? "numeric" : "decimal";
    input.addEventListener("keydown", (event) => nudge(event, field, input, hear));
    return plain(input);
}

const textEntry = (field, id, hear) =>
    plain(
        widgets.text({
            id,
            placeholder: EXAMPLES[field.key] || "",
            oninput: (value) => hear(value),
        }),
    );

const paragraphEntry = (field, id, hear) =>
    plain(widgets.text({ id, rows: 3, oninput: (value) => hear(value) }));

const ENTRIES = {
    flag: flagEntry,
    auto_flag: autoFlagEntry,
    choice: choiceEntry,
    lines: linesEntry,
    list: listEntry,
    number_list: listEntry,
    paragraph: paragraphEntry,
    text: textEntry,
};

/**
 * {element to show, input to label, show(value)} for a field; `hear(value)` is called when the
 * visitor changes it.
 */
export function settingEntry(field, hear, id = "lora_trainer_field_" + field.key) {
    const make =
        ENTRIES[field.type] || (field.key === "preferred_weight" ? weightEntry : numberEntry);
    return make(field, id, hear);
}

function weightEntry(field, id, hear) {
    const slider = widgets.slider({
        label: field.label,
        value: field.default,
        minimum: 0,
        maximum: 1.5,
        step: 0.05,
        onchange: hear,
    });
    slider.number.id = id;
    return {
        element: slider.element,
        input: slider.number,
        show: (value) => {
            if (document.activeElement !== slider.number) slider.set(value);
        },
    };
}

/** Arrow up and down, as in a number box: by the field's step, within its bounds. */
function nudge(event, field, input, hear) {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const now = Number(input.value);
    if (!way || !field.step || input.value.trim() === "" || !Number.isFinite(now)) return;
    event.preventDefault();
    const raised = Number((now + way * field.step).toPrecision(12));
    const next = Math.min(
        field.maximum === null ? raised : field.maximum,
        Math.max(field.minimum === null ? raised : field.minimum, raised),
    );
    input.value = written(next);
    hear(next);
}

export function shownValue(field, value) {
    if (value === null || value === undefined || value === "")
        return field.optional ? t("auto") : t("empty");
    if (typeof value === "boolean") return value ? t("yes") : t("no");
    if (field.choices.length)
        return (
            field.choices.find((choice) => same(choice.value, value)) || { label: String(value) }
        ).label;
    return Array.isArray(value) ? value.join(", ") : written(value);
}

export function fieldRow(field) {
    const made = settingEntry(field, (value) => change(field, value));
    const { input } = made;
    const label = el(
        "label",
        { for: input.id },
        field.label,
        field.unit
            ? el("span", { class: "lora-trainer-settings-unit" }, " (" + field.unit + ")")
            : null,
    );
    const back = el("button", {
        type: "button",
        class: "lora-trainer-settings-back",
        hidden: true,
        onclick: () => {
            delete draft.changes[field.key];
            input.blur();
            edited();
            input.focus();
        },
    });
    const help = el("p", { class: "lora-trainer-help", id: input.id + "_help" }, field.help);
    const note = el("p", {
        class: "lora-trainer-help lora-trainer-settings-note",
        id: input.id + "_note",
    });
    const problem = el("div", {
        class: "lora-trainer-settings-problem",
        id: input.id + "_problem",
    });
    input.setAttribute("aria-describedby", [help.id, note.id, problem.id].join(" "));
    const element = el(
        "div",
        {
            class:
                "lora-trainer-field lora-trainer-settings-field" +
                (made.row ? " lora-trainer-settings-flag" : ""),
            dataset: { key: field.key },
        },
        el("div", { class: "lora-trainer-settings-label" }, label, back),
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
        if (changed) {
            const before = shownValue(field, baseValue(field));
            put(
                back,
                t("changed; back to {value}", {
                    value: before.length > 24 ? before.slice(0, 24) + " ..." : before,
                }),
            );
            back.setAttribute(
                "aria-label",
                t("{field} is changed; back to {value}", { field: field.label, value: before }),
            );
        }
        put(note, noteOf(field, changed));
    }
    return { element, update, input, problem };
}

const lengthFrame = (key, [back, slot, unit, problem, help, note]) => {
    const name = uniqueId("length");
    return el(
        "div",
        {
            class: "lora-trainer-field lora-trainer-settings-field",
            role: "group",
            "aria-labelledby": name,
            dataset: { key },
        },
        el(
            "div",
            { class: "lora-trainer-settings-label" },
            el("span", { class: "lora-trainer-label", id: name }, t("Training length")),
            back,
        ),
        el("div", { class: "lora-trainer-settings-length" }, slot, unit),
        problem,
        help,
        note,
    );
};

function sayBack(back, value) {
    put(back, t("changed; back to {value}", { value }));
    back.setAttribute(
        "aria-label",
        t("{field} is changed; back to {value}", { field: t("Training length"), value }),
    );
}

/**
 * Steps or epochs: whichever is chosen decides how long is trained, and the other box is not there.
 */
export function lengthRow(steps, epochs) {
    const both = [steps, epochs];
    const boxes = {
        steps: settingEntry(steps, (value) => change(steps, value)),
        epochs: settingEntry(epochs, (value) => change(epochs, value)),
    };
    const unit = widgets.select({
        label: t("Count in"),
        options: [
            { value: "steps", label: steps.label },
            { value: "epochs", label: epochs.label },
        ],
        onchange: choose,
    });
    boxes.steps.input.setAttribute("aria-label", steps.label);
    boxes.epochs.input.setAttribute("aria-label", epochs.label);
    const slot = el("div");
    const back = el("button", {
        type: "button",
        class: "lora-trainer-settings-back",
        hidden: true,
        onclick: () => {
            for (const field of both) delete draft.changes[field.key];
            edited();
            unit.focus();
        },
    });
    const help = el("p", { class: "lora-trainer-help" });
    const note = el("p", { class: "lora-trainer-help lora-trainer-settings-note" });
    const problem = el("div", { class: "lora-trainer-settings-problem" });
    const element = lengthFrame(steps.key, [back, slot, unit, problem, help, note]);
    let last = null,
        by = "";

    /** Steps begin with what the epochs come to, or with what was there before. */
    function choose(wanted) {
        const plan = currentPlan();
        change(
            steps,
            wanted === "epochs" ? null : last || baseValue(steps) || (plan && plan.steps) || 1000,
        );
        boxes[wanted].input.focus();
    }

    function update() {
        const count = valueOf(steps);
        if (count !== null) last = count;
        // a box that was emptied to type another number in stays
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
        if (changed) sayBack(back, shownValue(before, baseValue(before)) + " " + before.label);
        put(help, field.help);
        const plan = currentPlan();
        put(
            note,
            by === "epochs" && plan && plan.steps
                ? plural(plan.steps, "That is {count} step.", "That is {count} steps.")
                : noteOf(field, changed),
        );
    }
    return {
        element,
        update,
        get input() {
            return boxes[by].input;
        },
        problem,
    };
}

/**
 * Why the preset sets this value, what auto comes to, or that another field goes before this one.
 */
function noteOf(field, changed) {
    const plan = currentPlan();
    const preset = presetOf();
    if (field.key in suggested() && !changed)
        return suggested()[field.key].length
            ? t("From the first caption. Write others, or empty it for no previews on the way.")
            : "";
    if (
        field.optional &&
        valueOf(field) === null &&
        plan &&
        plan.resolved &&
        field.key in plan.resolved
    )
        return t("auto is {value} here.", { value: written(plan.resolved[field.key]) });
    if (changed || !preset || !(field.key in presetValues()) || !preset.notes[field.key]) return "";
    // the reason is that of the common value: another value for one family has another
    return field.key in preset.values && field.key in familyValues(preset)
        ? ""
        : withColon(preset.title, preset.notes[field.key]);
}
