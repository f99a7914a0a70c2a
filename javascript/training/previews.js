/*
 * The previews of a run.
 */
import { el, redraw } from "../common/elements.js";
import { t } from "../common/language.js";
import * as viewer from "../common/viewer.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "../prompt/lora_tags.js";
import * as runActions from "./runs.js";

/** @import { PreviewView, RunView } from "../common/answers" */
/** @import { ViewerImage } from "../common/types" */

// --- previews ----------------------------------------------------------------------------------

function viewerImage(/** @type {PreviewView} */ preview) {
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

/** The text shown without previews. */
export function noPreviews(/** @type {RunView} */ run) {
    if (!runActions.isActive(run) && run.status !== "queued")
        return t("This run has made no previews.");
    return run.has_preview_prompts
        ? t("Previews appear here during the training.")
        : t("No preview prompts are set. “Preview now” makes one image immediately.");
}

const strengthOf = (/** @type {PreviewView} */ preview) =>
    preview.strength === null
        ? ""
        : t("Strength {strength}", { strength: loraTags.format(preview.strength) });

/** Newest step first, grouped by step. */
export function previewGrid() {
    const place = el("div.lora-trainer-previews");
    const compare = widgets.button({ label: t("Compare"), onclick: () => viewer.compare(images) });
    const head = el("div.lora-trainer-live-head", el("h4", t("Previews")), compare);
    const element = el("div.lora-trainer-previews-box", head, place);
    /** @type {ViewerImage[]} */
    let images = [];
    return {
        element,
        set(/** @type {PreviewView[]} */ previews, /** @type {string} */ empty) {
            redraw(place, JSON.stringify([previews, previews.length ? "" : empty]), () => {
                images = previews.map(viewerImage);
                compare.hidden = images.length < 2;
                if (!previews.length) return widgets.help(empty);
                const steps = [...new Set(previews.map((preview) => preview.step))].sort(
                    (a, b) => b - a,
                );
                return steps.map((step) =>
                    el(
                        "div.lora-trainer-previews-step",
                        el("h5", step ? t("Step {step}", { step }) : t("Before training")),
                        el(
                            "div.lora-trainer-previews-row",
                            previews.map((preview, at) =>
                                preview.step === step
                                    ? viewer.thumbnail(
                                          images[at],
                                          () => viewer.open(images, at),
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
