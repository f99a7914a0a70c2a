/*
 * The card of checkpoint and name.
 */
import { api, expected } from "../common/api.js";
import { el, fill, put } from "../common/elements.js";
import { dotted, plural, sentences, t } from "../common/language.js";
import { home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { draft, same } from "./draft.js";
import { edited, publish } from "./values.js";
import { state } from "./state.js";

/** @import { CheckpointView, ListedCheckpoint, LoadedView } from "../common/answers" */
/** @import { Option, Row } from "../common/types" */

// --- checkpoints -------------------------------------------------------------------------------

/** Load the facts about the selected checkpoint immediately, so that presets match its family. */
export async function loadCheckpoint() {
    const asked = draft.checkpoint;
    const found = await api.post("checkpoint", { id: asked }).catch((caught) => unknown(caught));
    if (asked !== draft.checkpoint) return;
    state.facts = found;
    publish();
}

/** The view of a checkpoint whose request failed. @returns {CheckpointView} */
function unknown(/** @type {unknown} */ caught) {
    const { message, hint } = expected(caught);
    return {
        id: null,
        title: "",
        practice: false,
        vae: null,
        clip_skip: null,
        notes: [],
        family: null,
        family_name: null,
        resolution: null,
        steps: null,
        cfg: null,
        caption_tokens: null,
        data: "images",
        language_model: null,
        problem: message,
        hint,
    };
}

export async function loadCheckpoints() {
    const answer = await api.get("checkpoints");
    store.set("home", { ...home(), ...answer });
    return answer.checkpoints.some((known) => !known.seen);
}

/** The models for the chosen dataset: language models for texts, checkpoints for images. */
const offered = () =>
    (home().checkpoints ?? []).filter(
        (known) => (known.data === "texts") === datasets.isTexts() || !known.seen,
    );

const described = (/** @type {ListedCheckpoint | LoadedView} */ { title, family_name }) =>
    family_name ? title + " \u2014 " + family_name : title;

function loadedText(/** @type {LoadedView | null} */ loaded) {
    if (!loaded) return t("No checkpoint is loaded");
    return loaded.in_memory
        ? t("{title} (currently loaded)", { title: described(loaded) })
        : t("{title} (chosen, not loaded yet)", { title: described(loaded) });
}

function checkpointOptions() {
    const { loaded } = home();
    return [
        {
            value: "loaded",
            label: datasets.isTexts() ? t("Choose a language model") : loadedText(loaded),
        },
        ...offered().map((known) => ({
            value: known.id,
            disabled: Boolean(known.problem),
            label: known.problem
                ? t("{title} (cannot be trained on)", { title: known.title })
                : described(known),
        })),
    ];
}

function checkpointText() {
    if (!state.facts) return t("Reading the checkpoint ...");
    const { family_name, resolution, vae, clip_skip, notes, problem, language_model } = state.facts;
    if (language_model) return language_model;
    if (datasets.isTexts())
        return t(
            "The folder of a model in Hugging Face format, such as Qwen2.5-1.5B-Instruct, in the WebUI's models/LLM or anywhere else.",
        );
    // the plan shows its problems
    if (problem) return "";
    const line = dotted(
        family_name,
        resolution ? t("made for {side} pixels", { side: resolution }) : "",
        vae ? t("VAE {name}", { name: vae }) : "",
        clip_skip ? t("clip skip {number}", { number: clip_skip }) : "",
    );
    return notes.length ? sentences(line, notes) : line;
}

/** @returns {Row} */
export function checkpointCard() {
    const select = widgets.select({
        value: draft.checkpoint,
        options: checkpointOptions(),
        id: "lora_trainer_checkpoint",
        onchange: (id) => {
            draft.checkpoint = id;
            state.facts = null;
            edited();
            loadCheckpoint();
        },
    });
    const words = el("p.lora-trainer-help.lora-trainer-settings-line", {
        role: "status",
        id: "lora_trainer_checkpoint_text",
    });
    select.setAttribute("aria-describedby", words.id);
    const unusable = el("details.lora-trainer-settings-unusable");
    const problem = el("div.lora-trainer-settings-problem");
    /** @type {Option[] | null} */
    let drawn = null;
    const label = el("label", { for: select.id });
    const open = widgets.button({ label: t("Open a model folder"), onclick: openModel });
    const element = el("div.lora-trainer-field", label, select, words, open, problem, unusable);

    function update() {
        put(label, datasets.isTexts() ? t("Language model") : t("Checkpoint"));
        open.hidden = home().host.remote || !datasets.isTexts();
        const options = checkpointOptions();
        if (!same(options, drawn)) {
            drawn = options;
            fill(select, widgets.options(options));
            const refused = offered().filter((known) => known.problem);
            unusable.hidden = !refused.length;
            fill(
                unusable,
                el(
                    "summary",
                    datasets.isTexts()
                        ? plural(
                              refused.length,
                              "{count} language model cannot be trained on",
                              "{count} language models cannot be trained on",
                          )
                        : plural(
                              refused.length,
                              "{count} checkpoint cannot be trained on",
                              "{count} checkpoints cannot be trained on",
                          ),
                ),
                el(
                    "ul",
                    refused.map((known) => el("li", sentences(known.problem, known.hint))),
                ),
            );
        }
        select.value = draft.checkpoint;
        // a long name is cut off
        select.title = select.selectedOptions[0]?.label ?? "";
        put(words, checkpointText());
    }
    return { element, update, input: select, problem };
}

/** A dialog for the folder of a language model on this machine, which is then chosen. */
function openModel() {
    const input = widgets.text({ placeholder: "D:\\LLM\\Qwen2.5-1.5B-Instruct" });
    widgets.dialog({
        title: t("Open a model folder"),
        body: widgets.labelled(t("Folder"), input, {
            help: t(
                "With config.json, the tokenizer and .safetensors; or a folder with several models in it. It is not copied.",
            ),
        }),
        actions: [
            { label: t("Cancel") },
            {
                label: t("Use this folder"),
                kind: "primary",
                onclick: async () => {
                    const { id, ...lists } = await api.post("checkpoints/open", {
                        folder: input.value,
                    });
                    store.set("home", { ...home(), ...lists });
                    draft.checkpoint = id;
                    state.facts = null;
                    edited();
                    loadCheckpoint();
                },
            },
        ],
    });
    input.focus();
}

/** @returns {Row} */
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
    const problem = el("div.lora-trainer-settings-problem");
    const element = widgets.labelled(t("Name of the LoRA"), input, {
        help: datasets.isTexts()
            ? t("The name of its folder. Empty: the name of the dataset.")
            : t("Its name in a prompt: <lora:NAME:0.7>. Empty: the name of the dataset."),
        problem,
    });
    return {
        element,
        input,
        problem,
        update() {
            input.placeholder = datasets.chosen()?.name ?? "";
            if (document.activeElement !== input) input.value = draft.name;
        },
    };
}
