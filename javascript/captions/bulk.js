/*
 * "Batch edit": a bulk edit with preview. The server previews it while the user types; the button
 * applies exactly what was shown. Also "What training will read": examples of a caption with
 * shuffling, dropout and trigger word.
 */
import { api, expected } from "../common/api.js";
import { el, fill, find } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import { settings } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { bench, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import { completed } from "./complete.js";
import * as controls from "./controls.js";
import { shownDifference } from "./difference.js";
import * as selection from "./selection.js";
import { listed } from "./vocabulary.js";

/** @import { BulkPlan, BulkSample, TrainedSample } from "../common/answers" */
/** @import { Child, Option } from "../common/types" */

/** @import { Problem } from "../common/api.js" */

const WAIT = 300;

// --- the kinds of change -----------------------------------------------------------------------

/**
 * A box of a change's form. In those of the kinds "tags" and "tag" the dataset's tags are offered.
 *
 * @typedef {object} Field
 * @property {string} key
 * @property {"text" | "tags" | "tag" | "flag" | "number" | "choice"} kind
 * @property {string} label
 * @property {Value} [start]
 * @property {string} [help]
 * @property {Option[]} [options]
 */

/** @typedef {string | number | boolean} Value */

/** @typedef {Record<string, Value>} Values what is typed, by the keys of the fields */

/**
 * A kind of change. `action`: the action for the server; null while a required field is empty.
 *
 * @typedef {object} Kind
 * @property {string} id
 * @property {string} label
 * @property {Field[]} fields
 * @property {(values: Values) => Record<string, unknown> | null} action
 */

const isBlank = (/** @type {Value} */ value) => !String(value).trim();

/** @returns {Kind[]} */
const kinds = () => [
    addText(),
    removeTags(),
    replaceText(),
    {
        id: "replace-tag",
        label: t("Rename a tag"),
        fields: [
            { key: "tag", kind: "tag", label: t("Tag") },
            { key: "replace", kind: "tag", label: t("New name") },
        ],
        action: ({ tag, replace }) => (isBlank(tag) ? null : { do: "replace-tag", tag, replace }),
    },
    setTrigger(),
    sortTags(),
    {
        id: "dedupe",
        label: t("Remove repeated tags"),
        fields: [],
        action: () => ({ do: "dedupe" }),
    },
    { id: "tidy", label: t("Tidy spaces and commas"), fields: [], action: () => ({ do: "tidy" }) },
    {
        id: "set",
        label: t("One caption for all"),
        fields: [{ key: "caption", kind: "text", label: t("Caption") }],
        action: ({ caption }) => (isBlank(caption) ? null : { do: "set", caption }),
    },
    { id: "clear", label: t("Clear the captions"), fields: [], action: () => ({ do: "clear" }) },
];

/** @returns {Kind} */
const addText = () => ({
    id: "add",
    label: t("Add words"),
    fields: [
        {
            key: "text",
            kind: "tags",
            label: t("Words"),
            help: t(
                "Separate several with commas. Words that a caption already has are not added again.",
            ),
        },
        {
            key: "at",
            kind: "choice",
            label: t("Where"),
            options: [
                { value: "end", label: t("At the end") },
                { value: "front", label: t("At the front") },
                { value: "after-first", label: t("After the first tag") },
            ],
        },
    ],
    action: ({ text, at }) => (isBlank(text) ? null : { do: "add", text, at }),
});

/** @returns {Kind} */
const removeTags = () => ({
    id: "remove",
    label: t("Remove tags"),
    fields: [
        {
            key: "tags",
            kind: "tags",
            label: t("Tags"),
            help: t("Separate several with commas. A tag is the text between two commas."),
        },
    ],
    action: ({ tags }) => {
        const wanted = listed(String(tags));
        return wanted.length ? { do: "remove", tags: wanted } : null;
    },
});

/** @returns {Kind} */
const replaceText = () => ({
    id: "replace",
    label: t("Replace text"),
    fields: [
        { key: "find", kind: "text", label: t("Find") },
        {
            key: "replace",
            kind: "text",
            label: t("Replace with"),
            help: t("Empty: matches are removed."),
        },
        { key: "whole", kind: "flag", label: t("Whole words only"), start: true },
        { key: "case", kind: "flag", label: t("Match case") },
        {
            key: "regex",
            kind: "flag",
            label: t("Regular expression"),
            help: t("For example (\\w+) dress, replaced with \\1 gown."),
        },
    ],
    action: (values) =>
        values.find ? { do: "replace", ...values, whole: values.whole && !values.regex } : null,
});

/** @returns {Kind} */
const setTrigger = () => ({
    id: "trigger",
    label: t("Set the trigger word"),
    fields: [
        {
            key: "word",
            kind: "text",
            label: t("Trigger word"),
            start: triggerWord(),
            help: t("It is added at the front where it is missing."),
        },
        {
            key: "instead_of",
            kind: "text",
            label: t("Replaces"),
            help: t("An older trigger word to remove."),
        },
    ],
    action: ({ word, instead_of }) => (isBlank(word) ? null : { do: "trigger", word, instead_of }),
});

/** @returns {Kind} */
const sortTags = () => ({
    id: "sort",
    label: t("Sort tags"),
    fields: [
        {
            key: "by",
            kind: "choice",
            label: t("Order"),
            options: [
                { value: "frequency", label: t("Most frequent first") },
                { value: "name", label: t("By name") },
            ],
        },
        {
            key: "keep_first",
            kind: "number",
            label: t("Tags to keep at the front"),
            help: t("For example 1 for the trigger word."),
        },
    ],
    action: ({ by, keep_first }) => ({ do: "sort", by, keep_first: Number(keep_first) || 0 }),
});

/**
 * The input of a field; changes are written to `values`, and `onchange()` is called.
 *
 * @param {Field} field
 * @param {Values} values
 * @param {() => void} onchange
 */
function entry({ key, kind, label, start, help, options = [] }, values, onchange) {
    const take = (/** @type {Value} */ value) => {
        values[key] = value;
        onchange();
    };
    if (kind === "flag") {
        values[key] = Boolean(start);
        return controls.flag(widgets.checkbox(Boolean(start), take), label, help);
    }
    if (kind === "number") {
        values[key] = Number(start ?? 0);
        const box = widgets.number({
            value: Number(start ?? 0),
            minimum: 0,
            maximum: 100,
            oninput: take,
        });
        return widgets.labelled(label, box, { help });
    }
    if (kind === "choice") {
        const value = String(start ?? options[0].value);
        values[key] = value;
        return widgets.labelled(label, widgets.select({ value, options, onchange: take }));
    }
    const value = String(start ?? "");
    values[key] = value;
    const box = widgets.text({ value, maxlength: 2000, oninput: take });
    const field = widgets.labelled(label, box, { help });
    return kind === "text"
        ? field
        : completed(field, box, () => take(box.value), { single: kind === "tag" });
}

// --- the dialog --------------------------------------------------------------------------------

/** The preview: number of changed captions, and some of them before and after. */
function preview() {
    const words = el("p", { role: "status" });
    const errorPlace = el("div");
    const samples = el("ul.lora-trainer-bench-list.lora-trainer-bench-samples");
    const line = (/** @type {BulkSample} */ sample) =>
        el("li", widgets.small(sample.name), shownDifference(sample.before, sample.after));
    const setText = (/** @type {string} */ text, /** @type {Child[]} */ lines = []) => {
        words.textContent = text;
        fill(errorPlace);
        fill(samples, lines);
    };
    const showProblem = (/** @type {Problem} */ problem) =>
        fill(errorPlace, widgets.problem(problem));
    return {
        element: el("div.lora-trainer-bench-preview", words, errorPlace, samples),
        showProblem,
        wait: () => setText(t("A preview of the changes is shown here.")),
        show(/** @type {BulkPlan} */ found) {
            const more = found.changing - found.samples.length;
            setText(
                found.changing
                    ? t("{changing} of {count} captions will change.", {
                          changing: formatNumber(found.changing),
                          count: formatNumber(found.selected),
                      })
                    : t("No caption will change."),
                [
                    ...found.samples.map(line),
                    more > 0 &&
                        el(
                            "li.lora-trainer-help",
                            t("and {count} more", { count: formatNumber(more) }),
                        ),
                ],
            );
        },
        fail(/** @type {Problem} */ problem) {
            setText("");
            showProblem(problem);
        },
    };
}

function kindOf(/** @type {string} */ wanted) {
    const [first, ...others] = kinds();
    return others.find(({ id }) => id === wanted) ?? first;
}

const kindChoice = (/** @type {string} */ value, /** @type {(kind: string) => void} */ onchange) =>
    widgets.select({
        value,
        label: t("Change"),
        options: kinds().map(({ id, label }) => ({ value: id, label })),
        onchange,
    });

/**
 * Apply the previewed edit. `again(problem)`: it must be previewed again. Returns whether it was
 * applied.
 *
 * @param {string} plan
 * @param {(problem: Problem) => void} again
 */
async function applyPlan(plan, again) {
    let answer;
    try {
        answer = await api.post(datasets.path("bulk"), { plan });
    } catch (caught) {
        const problem = expected(caught);
        if (problem.status !== 409 && problem.status !== 404) throw problem;
        // the server was restarted meanwhile: preview and confirm again
        again(problem);
        return false;
    }
    await changes.afterEdit(answer, { message: changes.changedText(answer.changed) });
    return true;
}

const applyText = (/** @type {number} */ count) =>
    count ? plural(count, "Change {count} caption", "Change {count} captions") : t("Change");

/**
 * @param {HTMLElement} what
 * @param {HTMLElement} targets
 * @param {HTMLElement[]} rest
 */
const form = (what, targets, [fields, preview]) =>
    el(
        "div.lora-trainer-bench-two",
        el(
            "div.lora-trainer-bench-form",
            widgets.labelled(t("Change"), what),
            widgets.labelled(t("Apply to"), targets),
            fields,
        ),
        preview,
    );

/** @param {Values} [given] initial values of the fields of the first kind */
export async function open(kind = "add", given = {}) {
    await bench.page.saveAll();
    /** @type {BulkPlan | null} */
    let plan = null;
    /** @type {Values} */
    let values = {};
    let timer = 0,
        serial = 0,
        chosen = kindOf(kind);
    const fields = el("div.lora-trainer-bench-form");
    const shown = preview();
    const targets = selection.targets(() => soon());
    const what = kindChoice(kind, (id) => {
        chosen = kindOf(id);
        drawFields({});
    });

    function drawFields(/** @type {Values} */ start) {
        values = {};
        fill(
            fields,
            chosen.fields.map((field) =>
                entry({ ...field, start: start[field.key] ?? field.start }, values, soon),
            ),
        );
        soon();
    }

    function soon() {
        clearTimeout(timer);
        serial += 1;
        setPlan(null);
        timer = setTimeout(() => look().catch(widgets.toastProblem), WAIT);
    }

    function setPlan(/** @type {BulkPlan | null} */ found) {
        plan = found;
        dialog.main.disabled = !found?.changing;
        dialog.main.textContent = applyText(found?.changing ?? 0);
    }

    async function look() {
        const mine = serial;
        const action = chosen.action(values);
        if (!action) {
            shown.wait();
            return;
        }
        try {
            const body = { select: targets.select(), action };
            const found = await api.post(datasets.path("bulk/preview"), body);
            if (mine !== serial) return;
            setPlan(found);
            shown.show(found);
        } catch (caught) {
            const problem = expected(caught);
            if (mine === serial) shown.fail(problem);
        }
    }

    const change = () =>
        plan &&
        applyPlan(plan.plan, (problem) => {
            soon();
            shown.showProblem(problem);
        });

    const dialog = widgets.dialog({
        title: t("Batch edit captions"),
        wide: true,
        body: form(what, targets.element, [fields, shown.element]),
        actions: [{ label: t("Cancel") }, { label: t("Change"), kind: "primary", onclick: change }],
    });
    drawFields(given);
    (find(fields, "input, select") ?? what).focus();
}

// --- what training will read -------------------------------------------------------------------

const trainedCard = (/** @type {TrainedSample} */ sample) =>
    el(
        "section.lora-trainer-card",
        el("h4", sample.name),
        el(
            "ol.lora-trainer-bench-trained",
            sample.trained.map((text) => el("li", text || el("i", t("(no caption this time)")))),
        ),
    );

/** @typedef {{shuffle: boolean, keep_tokens: number, dropout: number, seed: number}} ShuffleOptions */

/**
 * The settings to try: `soon(changes)` is called after a change, `look()` redraws.
 *
 * @param {ShuffleOptions} shuffling
 * @param {(changes: Partial<ShuffleOptions>) => void} soon
 * @param {() => Promise<void>} look
 */
const shuffleForm = (shuffling, soon, look) =>
    el(
        "div.lora-trainer-bench-form",
        widgets.help(
            t("These are the current settings. Trying other values here does not change them."),
        ),
        controls.flag(
            widgets.checkbox(shuffling.shuffle, (value) => soon({ shuffle: value })),
            t("Shuffle the tags"),
        ),
        widgets.labelled(
            t("Tags to keep at the front"),
            widgets.number({
                value: shuffling.keep_tokens,
                minimum: 0,
                maximum: 100,
                oninput: (value) => soon({ keep_tokens: value || 0 }),
            }),
            { help: t("The trigger word counts as one.") },
        ),
        widgets.labelled(
            t("Share of images without a caption"),
            widgets.number({
                value: shuffling.dropout,
                minimum: 0,
                maximum: 1,
                step: 0.05,
                oninput: (value) => soon({ dropout: value || 0 }),
            }),
        ),
        widgets.button({
            label: t("Shuffle again"),
            onclick: () => {
                shuffling.seed += 1;
                return look();
            },
        }),
    );

export async function shuffle() {
    await bench.page.saveAll();
    const { shuffle_caption, keep_tokens, caption_dropout } = settings();
    const shuffling = {
        shuffle: Boolean(shuffle_caption),
        keep_tokens: Number(keep_tokens) || 0,
        dropout: Number(caption_dropout) || 0,
        seed: 0,
    };
    const chosen = [...bench.selection.keys];
    const keys = (chosen.length ? chosen : [...bench.page.rows().keys()]).slice(0, 5);
    const place = el("div", { "aria-live": "polite" });
    let timer = 0,
        serial = 0;

    async function look() {
        const mine = (serial += 1);
        const { samples } = await api.post(datasets.path("shuffle"), {
            keys,
            trigger: triggerWord(),
            ...shuffling,
        });
        if (mine !== serial) return;
        fill(place, samples.map(trainedCard));
    }
    const soon = (/** @type {Partial<ShuffleOptions>} */ changes) => {
        Object.assign(shuffling, changes);
        clearTimeout(timer);
        timer = setTimeout(() => look().catch(widgets.toastProblem), WAIT);
    };

    widgets.dialog({
        title: t("What training will read"),
        wide: true,
        body: el("div.lora-trainer-bench-two", shuffleForm(shuffling, soon, look), place),
        actions: [widgets.closing()],
    });
    await look();
}
