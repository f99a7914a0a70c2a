/*
 * "Change many": one change for many captions, seen before it is made. What is typed is tried on
 * the server at once; what the button applies is exactly what was shown. Also "What training will
 * read": the same caption as shuffling, dropping and the trigger word make it. /
 */
import { Problem, api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { bench, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import { completed } from "./complete.js";
import * as controls from "./controls.js";
import { shownDifference } from "./difference.js";
import * as selection from "./selection.js";

const WAIT = 300;

// --- the kinds of change -----------------------------------------------------------------------

/**
 * [id, label, fields of the form, action from their values or null while something is missing]. A
 * field is [key, kind, label, start, help or choices]; in those of the kinds "tags" and "tag" the
 * dataset's tags are offered.
 */
const kinds = () => [
    addWords(),
    removeTags(),
    replaceText(),
    [
        "replace-tag",
        t("Rename a tag"),
        [
            ["tag", "tag", t("Tag"), ""],
            ["replace", "tag", t("New name"), ""],
        ],
        ({ tag, replace }) => tag.trim() && { do: "replace-tag", tag, replace },
    ],
    setTrigger(),
    sortTags(),
    ["dedupe", t("Remove repeated tags"), [], () => ({ do: "dedupe" })],
    ["tidy", t("Tidy spaces and commas"), [], () => ({ do: "tidy" })],
    [
        "set",
        t("One caption for all"),
        [["caption", "text", t("Caption"), ""]],
        ({ caption }) => caption.trim() && { do: "set", caption },
    ],
    ["clear", t("Empty the captions"), [], () => ({ do: "clear" })],
];

const addWords = () => [
    "add",
    t("Add words"),
    [
        [
            "text",
            "tags",
            t("Words"),
            "",
            t("Several with commas between. What a caption has already is not added again."),
        ],
        [
            "at",
            "choice",
            t("Where"),
            "end",
            [
                ["end", t("At the end")],
                ["front", t("At the front")],
                ["after-first", t("After the first tag")],
            ],
        ],
    ],
    ({ text, at }) => text.trim() && { do: "add", text, at },
];

const removeTags = () => [
    "remove",
    t("Remove tags"),
    [
        [
            "tags",
            "tags",
            t("Tags"),
            "",
            t("Several with commas between. A tag is what stands between two commas."),
        ],
    ],
    ({ tags }) =>
        tags.trim() && {
            do: "remove",
            tags: tags
                .split(/[,\uff0c]/)
                .map((tag) => tag.trim())
                .filter(Boolean),
        },
];

const replaceText = () => [
    "replace",
    t("Replace text"),
    [
        ["find", "text", t("Find"), ""],
        ["replace", "text", t("Replace with"), "", t("Empty: what was found is removed.")],
        ["whole", "flag", t("Whole words only"), true],
        ["case", "flag", t("Capital letters matter"), false],
        [
            "regex",
            "flag",
            t("Regular expression"),
            false,
            t("For example (\\w+) dress, replaced with \\1 gown."),
        ],
    ],
    ({ find, replace, whole, case: letters, regex }) =>
        find && { do: "replace", find, replace, regex, case: letters, whole: whole && !regex },
];

const setTrigger = () => [
    "trigger",
    t("Set the trigger word"),
    [
        [
            "word",
            "text",
            t("Trigger word"),
            triggerWord(),
            t("It is put in front where it is missing."),
        ],
        ["instead_of", "text", t("Instead of"), "", t("An older trigger word that is to go.")],
    ],
    ({ word, instead_of }) => word.trim() && { do: "trigger", word, instead_of },
];

const sortTags = () => [
    "sort",
    t("Sort tags"),
    [
        [
            "by",
            "choice",
            t("Order"),
            "frequency",
            [
                ["frequency", t("The most frequent first")],
                ["name", t("By name")],
            ],
        ],
        [
            "keep_first",
            "number",
            t("Tags at the front that stay"),
            0,
            t("For example 1 for the trigger word."),
        ],
    ],
    ({ by, keep_first }) => ({ do: "sort", by, keep_first: Number(keep_first) || 0 }),
];

function entry([key, kind, label, start, more], values, hear) {
    const take = (value) => {
        values[key] = value;
        hear();
    };
    values[key] = start;
    if (kind === "flag") return controls.flag(controls.checkbox(start, take), label, more || "");
    if (kind === "choice")
        return widgets.labelled(
            label,
            widgets.select({
                value: start,
                options: more.map(([value, words]) => ({ value, label: words })),
                onchange: take,
            }),
        );
    if (kind === "number")
        return widgets.labelled(
            label,
            controls.number({ value: start, minimum: 0, maximum: 100, oninput: take }),
            { help: more },
        );
    const box = widgets.text({ value: start, maxlength: 2000, oninput: take });
    const field = widgets.labelled(label, box, { help: more || "" });
    return kind === "text"
        ? field
        : completed(field, box, () => take(box.value), { single: kind === "tag" });
}

// --- the dialog --------------------------------------------------------------------------------

/**
 * What a change would do, beside its form: how many captions, and some of them before and after.
 */
function preview() {
    const words = el("p", { role: "status" });
    const trouble = el("div");
    const samples = el("ul", { class: "lora-trainer-bench-list lora-trainer-bench-samples" });
    const line = (sample) =>
        el(
            "li",
            {},
            el("span", { class: "lora-trainer-help" }, sample.name),
            shownDifference(sample.before, sample.after),
        );
    const say = (text, lines = []) => {
        words.textContent = text;
        fill(trouble);
        fill(samples, lines);
    };
    const complain = (problem) => fill(trouble, widgets.problem(problem));
    return {
        element: el("div", { class: "lora-trainer-bench-preview" }, words, trouble, samples),
        complain,
        wait: () => say(t("What will change is shown here.")),
        show(found) {
            const more = found.changing - found.samples.length;
            say(
                found.changing
                    ? t("{changing} of {count} captions will change.", {
                          changing: formatNumber(found.changing),
                          count: formatNumber(found.selected),
                      })
                    : t("No caption will change."),
                [
                    ...found.samples.map(line),
                    more > 0
                        ? el(
                              "li",
                              { class: "lora-trainer-help" },
                              t("and {count} more", { count: formatNumber(more) }),
                          )
                        : null,
                ],
            );
        },
        fail(problem) {
            say("");
            complain(problem);
        },
    };
}

/** The form of one kind of change, filled in from `start`; what is typed goes into `values`. */
function entries(chosen, start, values, hear) {
    const [, , wanted] = kinds().find(([id]) => id === chosen);
    return wanted.map(([key, type, label, usual, more]) =>
        entry([key, type, label, key in start ? start[key] : usual, more], values, hear),
    );
}

const kindChoice = (kind, onchange) =>
    widgets.select({
        value: kind,
        label: t("Change"),
        options: kinds().map(([value, label]) => ({ value, label })),
        onchange,
    });

/** Do what was shown. `again(problem)`: it has to be shown anew. Returns whether it is done. */
async function applyPlan(plan, again) {
    let answer;
    try {
        answer = await api.post(datasets.path("bulk"), { plan: plan.plan });
    } catch (problem) {
        if (problem.status !== 409 && problem.status !== 404) throw problem;
        // the server was started again meanwhile: show it anew, and ask again
        again(problem);
        return false;
    }
    await changes.took(answer, { say: changes.changedWords(answer.changed) });
    return true;
}

const form = (what, targets, fields) =>
    el(
        "div",
        { class: "lora-trainer-bench-form" },
        widgets.labelled(t("Change"), what),
        widgets.labelled(t("In"), targets.element),
        fields,
    );

const applyWords = (plan) =>
    plan && plan.changing
        ? plural(plan.changing, "Change {count} caption", "Change {count} captions")
        : t("Change");

export async function open(kind = "add", given = {}) {
    await bench.page.saveAll();
    let plan = null,
        values = {},
        timer = 0,
        serial = 0,
        chosen = kind;
    const fields = el("div", { class: "lora-trainer-bench-form" });
    const shown = preview();
    const targets = selection.targets(() => soon());
    const what = kindChoice(kind, (id) => {
        chosen = id;
        drawFields({});
    });

    function drawFields(start) {
        values = {};
        fill(fields, entries(chosen, start, values, soon));
        soon();
    }

    function soon() {
        clearTimeout(timer);
        serial += 1;
        setPlan(null);
        timer = setTimeout(() => look().catch(widgets.toastProblem), WAIT);
    }

    function setPlan(found) {
        plan = found;
        apply.disabled = !found || !found.changing;
        apply.textContent = applyWords(found);
    }

    async function look() {
        const mine = serial;
        const action = kinds().find(([id]) => id === chosen)[3](values);
        if (!action) {
            shown.wait();
            return;
        }
        try {
            const found = await api.post(datasets.path("bulk/preview"), {
                select: targets.select(),
                action,
            });
            if (mine !== serial) return;
            setPlan(found);
            shown.show(found);
        } catch (problem) {
            if (!(problem instanceof Problem)) throw problem;
            if (mine !== serial) return;
            shown.fail(problem);
        }
    }

    const change = () =>
        applyPlan(plan, (problem) => {
            soon();
            shown.complain(problem);
        });

    const dialog = widgets.dialog({
        title: t("Change many captions"),
        wide: true,
        body: el(
            "div",
            { class: "lora-trainer-bench-two" },
            form(what, targets, fields),
            shown.element,
        ),
        actions: [{ label: t("Cancel") }, { label: t("Change"), kind: "primary", onclick: change }],
    });
    const apply = dialog.element.querySelector(
        ".lora-trainer-dialog-actions .lora-trainer-primary",
    );
    drawFields(given);
    const first = fields.querySelector("input, select") || what;
    first.focus();
}

// --- what training will read -------------------------------------------------------------------

const trainedCard = (sample) =>
    el(
        "section",
        { class: "lora-trainer-card" },
        el("h4", {}, sample.name),
        el(
            "ol",
            { class: "lora-trainer-bench-trained" },
            sample.trained.map((text) =>
                el("li", {}, text || el("i", {}, t("(no caption this time)"))),
            ),
        ),
    );

/** The values to try: `soon(changes)` is told of another one, `look()` draws again. */
const shuffleForm = (wish, soon, look) =>
    el(
        "div",
        { class: "lora-trainer-bench-form" },
        el(
            "p",
            { class: "lora-trainer-help" },
            t("As the settings are now. Trying other values here changes nothing in them."),
        ),
        controls.flag(
            controls.checkbox(wish.shuffle, (value) => soon({ shuffle: value })),
            t("Shuffle the tags"),
        ),
        widgets.labelled(
            t("Tags at the front that stay"),
            controls.number({
                value: wish.keep_tokens,
                minimum: 0,
                maximum: 100,
                oninput: (value) => soon({ keep_tokens: value || 0 }),
            }),
            { help: t("The trigger word counts as one.") },
        ),
        widgets.labelled(
            t("Share of images without a caption"),
            controls.number({
                value: wish.dropout,
                minimum: 0,
                maximum: 1,
                step: 0.05,
                oninput: (value) => soon({ dropout: value || 0 }),
            }),
        ),
        widgets.button({
            label: t("Draw again"),
            onclick: () => {
                wish.seed += 1;
                return look();
            },
        }),
    );

export async function shuffle() {
    await bench.page.saveAll();
    const settings = store.get("settings") || {};
    const wish = {
        shuffle: Boolean(settings.shuffle_caption),
        keep_tokens: Number(settings.keep_tokens) || 0,
        dropout: Number(settings.caption_dropout) || 0,
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
            ...wish,
        });
        if (mine !== serial) return;
        fill(place, samples.map(trainedCard));
    }
    const soon = (changes) => {
        Object.assign(wish, changes);
        clearTimeout(timer);
        timer = setTimeout(() => look().catch(widgets.toastProblem), WAIT);
    };

    widgets.dialog({
        title: t("What training will read"),
        wide: true,
        body: el("div", { class: "lora-trainer-bench-two" }, shuffleForm(wish, soon, look), place),
        actions: [{ label: t("Close"), kind: "primary" }],
    });
    await look();
}
