/*
 * The pictures that a run has made on the way.
 */
import { el, redraw } from "../common/elements.js";
import { t } from "../common/language.js";
import * as viewer from "../common/viewer.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "../prompt/lora_tags.js";
import * as runActions from "./runs.js";

/** @typedef {import("../common/answers").PreviewView} PreviewView */
/** @typedef {import("../common/answers").RunView} RunView */

// --- previews ----------------------------------------------------------------------------------

/** @param {PreviewView} preview */
function pictureOf(preview) {
    const strength = preview.strength === null ? "" : loraTags.format(preview.strength);
    return {
        url: preview.url,
        note: preview.prompt,
        kind: preview.strength + preview.prompt,
        label: preview.step
            ? t("Step {step}, strength {strength}", { step: preview.step, strength })
            : t("Before training, strength {strength}", { strength }),
    };
}

/**
 * What stands where there is none.
 *
 * @param {RunView} run
 */
export function noPreviews(run) {
    if (!runActions.isActive(run) && run.status !== "queued")
        return t("This run has made no previews.");
    return run.has_preview_prompts
        ? t("Previews appear here during the training.")
        : t("No preview prompts are set. Preview now makes a picture at once.");
}

/** @param {PreviewView} preview */
const strengthOf = (preview) =>
    preview.strength === null
        ? ""
        : t("Strength {strength}", { strength: loraTags.format(preview.strength) });

/** Newest step first; a step's pictures stand together. */
export function previewGrid() {
    const place = el("div", { class: "lora-trainer-previews" });
    const compare = widgets.button({
        label: t("Compare"),
        onclick: () => viewer.compare(pictures),
    });
    const head = el(
        "div",
        { class: "lora-trainer-live-head" },
        el("h4", {}, t("Previews")),
        compare,
    );
    const element = el("div", { class: "lora-trainer-previews-box" }, head, place);
    let pictures = [];
    return {
        element,
        set(previews, empty) {
            redraw(place, JSON.stringify([previews, previews.length ? "" : empty]), () => {
                pictures = previews.map(pictureOf);
                compare.hidden = pictures.length < 2;
                if (!previews.length) return el("p", { class: "lora-trainer-help" }, empty);
                const steps = [...new Set(previews.map((preview) => preview.step))].sort(
                    (a, b) => b - a,
                );
                return steps.map((step) =>
                    el(
                        "div",
                        { class: "lora-trainer-previews-step" },
                        el("h5", {}, step ? t("Step {step}", { step }) : t("Before training")),
                        el(
                            "div",
                            { class: "lora-trainer-previews-row" },
                            previews.map((preview, at) =>
                                preview.step === step
                                    ? viewer.thumbnail(
                                          pictures[at],
                                          () => viewer.open(pictures, at),
                                          strengthOf(preview),
                                      )
                                    : null,
                            ),
                        ),
                    ),
                );
            });
        },
    };
}
