/*
 * The card of checkpoint and name.
 */
import { api } from "../common/api.js";
import { el, fill, put } from "../common/elements.js";
import { plural, sentences, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { draft } from "./draft.js";
import { edited, publish, same } from "./values.js";
import { state } from "./state.js";

// --- checkpoints -------------------------------------------------------------------------------

/** What the chosen checkpoint is; asked at once, so that presets fit its family. */
export async function learnCheckpoint() {
    const asked = draft.checkpoint;
    let found;
    try {
        found = await api.post("checkpoint", { id: asked });
    } catch (problem) {
        found = { problem: problem.message, hint: problem.hint, family: null, notes: [] };
    }
    if (asked !== draft.checkpoint) return;
    state.facts = found;
    publish();
}

export async function learnCheckpoints() {
    const answer = await api.get("checkpoints");
    const home = store.get("home");
    store.set("home", { ...home, checkpoints: answer.checkpoints, loaded: answer.loaded });
    return answer.checkpoints.some((known) => !known.seen);
}

function checkpointOptions(home) {
    const described = (known) =>
        known.family_name ? known.title + " \u2014 " + known.family_name : known.title;
    const loaded = home.loaded;
    const now =
        loaded &&
        (loaded.in_memory
            ? t("Loaded now: {title}", { title: described(loaded) })
            : t("Not loaded yet: {title}", { title: described(loaded) }));
    const first = { value: "loaded", label: now || t("Loaded now: none") };
    return [
        first,
        ...(home.checkpoints || []).map((known) => ({
            value: known.id,
            disabled: Boolean(known.problem),
            label: known.problem
                ? t("{title} (cannot be trained on)", { title: known.title })
                : described(known),
        })),
    ];
}

function checkpointWords() {
    if (!state.facts) return t("Looking at the checkpoint ...");
    // the plan says what is wrong with it, in its place below
    if (state.facts.problem) return "";
    const parts = [
        state.facts.family_name,
        state.facts.resolution ? t("made for {side} pixels", { side: state.facts.resolution }) : "",
        state.facts.vae ? t("VAE {name}", { name: state.facts.vae }) : "",
        state.facts.clip_skip ? t("clip skip {number}", { number: state.facts.clip_skip }) : "",
    ];
    const line = parts.filter(Boolean).join(" \u00b7 ");
    return state.facts.notes.length ? sentences(line, state.facts.notes) : line;
}

export function checkpointCard() {
    const home = () => store.get("home");
    const select = widgets.select({
        value: draft.checkpoint,
        options: checkpointOptions(home()),
        id: "lora_trainer_checkpoint",
        onchange: (id) => {
            draft.checkpoint = id;
            state.facts = null;
            edited();
            learnCheckpoint();
        },
    });
    const words = el("p", {
        class: "lora-trainer-help lora-trainer-settings-line",
        role: "status",
        id: "lora_trainer_checkpoint_words",
    });
    select.setAttribute("aria-describedby", words.id);
    const unusable = el("details", { class: "lora-trainer-settings-unusable" });
    const problem = el("div", { class: "lora-trainer-settings-problem" });
    let drawn = null;
    const element = el(
        "div",
        { class: "lora-trainer-field" },
        el("label", { for: select.id }, t("Checkpoint")),
        select,
        words,
        problem,
        unusable,
    );

    function update() {
        const options = checkpointOptions(home());
        if (!same(options, drawn)) {
            drawn = options;
            fill(
                select,
                options.map((option) =>
                    el(
                        "option",
                        { value: option.value, disabled: option.disabled || null },
                        option.label,
                    ),
                ),
            );
            const refused = (home().checkpoints || []).filter((known) => known.problem);
            unusable.hidden = !refused.length;
            fill(
                unusable,
                el(
                    "summary",
                    {},
                    plural(
                        refused.length,
                        "{count} checkpoint cannot be trained on",
                        "{count} checkpoints cannot be trained on",
                    ),
                ),
                el(
                    "ul",
                    {},
                    refused.map((known) => el("li", {}, sentences(known.problem, known.hint))),
                ),
            );
        }
        select.value = draft.checkpoint;
        put(words, checkpointWords());
    }
    return { element, update, input: select, problem };
}

export function nameCard() {
    const input = widgets.text({
        value: draft.name,
        maxlength: 100,
        id: "lora_trainer_name",
        oninput: (name) => {
            draft.name = name;
            edited();
        },
    });
    const problem = el("div", { class: "lora-trainer-settings-problem" });
    const element = widgets.labelled(t("Name of the LoRA"), input, {
        help: t("What you will write in a prompt: <lora:NAME:0.7>. Empty: the name of the images."),
        problem,
    });
    return {
        element,
        input,
        problem,
        update() {
            const dataset = datasets.chosen();
            input.placeholder = dataset ? dataset.name : "";
            if (document.activeElement !== input) input.value = draft.name;
        },
    };
}
