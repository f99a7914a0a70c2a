/*
 * "Crop into a new dataset": crops and resizes images into a new dataset. The originals are not
 * changed.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, plural, sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { bench } from "./bench.js";
import * as controls from "./controls.js";
import * as selection from "./selection.js";

/** @import { CopyView } from "../common/answers" */

const MILLISECONDS = 700;

const pause = () =>
    new Promise((resolve) => {
        setTimeout(resolve, MILLISECONDS);
    });

/** The result; `goTo(id)` selects the new dataset. */
function result(/** @type {CopyView} */ copy, /** @type {(id: string) => void} */ goTo) {
    const { error, dataset } = copy;
    if (error) return widgets.notice("error", error.message, error.hint);
    const words =
        copy.state === "done"
            ? plural(
                  copy.done,
                  "{count} image in the new dataset",
                  "{count} images in the new dataset",
              )
            : t("Stopped after {done} of {count} images.", {
                  done: formatNumber(copy.done),
                  count: formatNumber(copy.total),
              });
    return widgets.notice(
        copy.state === "done" ? "done" : "warning",
        words,
        "",
        dataset
            ? widgets.button({
                  label: t("Go to the new dataset"),
                  kind: "primary",
                  onclick: () => goTo(dataset),
              })
            : null,
    );
}

/**
 * The controls for size and shape; `resized()` is called when the size changes.
 *
 * @param {{size: number, buckets: boolean}} settings
 * @param {() => void} resized
 */
const choices = (settings, resized) => ({
    size: widgets.select({
        value: "512",
        options: [
            { value: "512", label: t("512 (SD 1.5)") },
            { value: "768", label: t("768 (SD 2)") },
            { value: "1024", label: t("1024 (SDXL)") },
        ],
        onchange: (value) => {
            settings.size = Number(value);
            resized();
        },
    }),
    shape: widgets.select({
        value: "square",
        options: [
            { value: "square", label: t("Squares") },
            { value: "buckets", label: t("The nearest aspect-ratio bucket of each image") },
        ],
        onchange: (value) => {
            settings.buckets = value === "buckets";
        },
    }),
});

const progressText = (/** @type {CopyView} */ copy) =>
    t("{done} of {count} images", {
        done: formatNumber(copy.done),
        count: formatNumber(copy.total),
    });

export async function open() {
    await bench.page.saveAll();
    const settings = { size: 512, buckets: false, subject: true };
    const targets = selection.targets();
    const name = widgets.text({ value: "", maxlength: 100 });
    const { size, shape } = choices(settings, () => suggest());
    const subject = controls.flag(
        widgets.checkbox(true, (value) => {
            settings.subject = value;
        }),
        t("Keep the subject in the crop"),
        t("Otherwise the middle of the image is kept."),
    );
    const place = el("div", { "aria-live": "polite" });
    const form = el(
        "div.lora-trainer-bench-form",
        widgets.help(
            t(
                "Training crops automatically. Use this to see and choose the crops; the originals are kept, and captions are copied.",
            ),
        ),
        widgets.labelled(t("Apply to"), targets.element),
        widgets.labelled(t("Size"), size),
        widgets.labelled(t("Shape"), shape),
        subject,
        widgets.labelled(t("Name of the new dataset"), name),
        place,
    );
    function suggest() {
        name.value = t("{name} {size}", { name: datasets.needChosen().name, size: settings.size });
    }
    suggest();

    async function begin() {
        let copy = await api.post(datasets.path("crop-copy"), {
            ...settings,
            name: name.value,
            select: targets.select(),
        });
        const progress = widgets.progress(t("Cropping"));
        const stop = widgets.button({
            label: t("Stop"),
            onclick: async () => {
                copy = await api.post(`crop-copies/${copy.id}/stop`);
            },
        });
        fill(place, el("div.lora-trainer-bench-progress", progress.element, stop));
        while (copy.state === "running") {
            progress.set(copy.done, copy.total, progressText(copy));
            await pause();
            copy = await api.get(`crop-copies/${copy.id}`);
        }
        await datasets.refresh();
        fill(
            place,
            result(copy, (id) => {
                dialog.close();
                datasets.choose(id);
            }),
            controls.notes(copy.notes.map((note) => sentences(note.message, note.hint))),
        );
        return false;
    }

    const dialog = widgets.dialog({
        title: t("Crop into a new dataset"),
        body: form,
        actions: [{ label: t("Close") }, { label: t("Crop"), kind: "primary", onclick: begin }],
    });
}
