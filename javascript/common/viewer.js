/*
 * Shows images large: in a dialog with navigation, or two of them with a comparison slider.
 *
 * Used by the sections "train" and "try".
 */
import { el, fill, wayOf } from "./elements.js";
import { t } from "./language.js";
import * as widgets from "./widgets.js";

/** @import { ViewerImage } from "./types" */

/** A dialog that shows images[index]; arrow keys and two buttons navigate. */
export function open(/** @type {ViewerImage[]} */ images, /** @type {number} */ index) {
    const image = el("img.lora-trainer-viewer-image", { alt: "" });
    const label = el("p.lora-trainer-viewer-label", { "aria-live": "polite" });
    const note = widgets.help();
    let at = index;
    const show = (/** @type {number} */ next) => {
        at = (next + images.length) % images.length;
        const shown = images[at];
        image.src = shown.url;
        image.alt = shown.label;
        label.textContent =
            images.length > 1
                ? t("{label} ({number} of {count})", {
                      label: shown.label,
                      number: at + 1,
                      count: images.length,
                  })
                : shown.label;
        note.textContent = shown.note || "";
    };
    const several = images.length > 1;
    const body = el(
        "div.lora-trainer-viewer",
        image,
        label,
        note,
        several &&
            widgets.row(
                widgets.button({ label: t("Previous"), onclick: () => show(at - 1) }),
                widgets.button({ label: t("Next"), onclick: () => show(at + 1) }),
            ),
    );
    const dialog = widgets.dialog({ title: t("Image"), body, wide: true });
    dialog.element.addEventListener("keydown", (event) => {
        const way = wayOf(event, { ArrowLeft: -1, ArrowRight: 1 });
        if (!way || !several) return;
        event.preventDefault();
        show(at + way);
    });
    show(index);
}

/** Two images of equal size on top of each other, with a slider between them. */
function comparison(/** @type {ViewerImage} */ first, /** @type {ViewerImage} */ second) {
    const over = el("img.lora-trainer-compare-over", { src: second.url, alt: second.label });
    const move = () => {
        over.style.clipPath = "inset(0 0 0 " + range.value + "%)";
    };
    const range = el("input.lora-trainer-range", {
        type: "range",
        min: 0,
        max: 100,
        step: 1,
        value: 50,
        oninput: move,
        "aria-label": t("How much of the left image is shown"),
        "aria-valuetext": null,
    });
    move();
    return el(
        "div.lora-trainer-compare",
        el("div.lora-trainer-compare-stack", el("img", { src: first.url, alt: first.label }), over),
        range,
        el("div.lora-trainer-compare-labels", el("span", first.label), el("span", second.label)),
    );
}

/** A dialog with two selects and the comparison of the chosen images. */
export function compare(/** @type {ViewerImage[]} */ images) {
    const place = el("div");
    const last = images.length - 1;
    // the first and the last: the largest difference
    const first = images.findIndex((shown) => shown.kind === images[last].kind);
    const chosen = [first === last ? 0 : first, last];
    const draw = () => fill(place, comparison(images[chosen[0]], images[chosen[1]]));
    const choice = (/** @type {number} */ side, /** @type {string} */ label) =>
        widgets.select({
            label,
            value: String(chosen[side]),
            options: images.map((shown, number) => ({ value: String(number), label: shown.label })),
            onchange: (number) => {
                chosen[side] = Number(number);
                draw();
            },
        });
    draw();
    widgets.dialog({
        title: t("Compare"),
        wide: true,
        body: el(
            "div.lora-trainer-viewer",
            el(
                "div.lora-trainer-compare-choices",
                choice(0, t("Left image")),
                choice(1, t("Right image")),
            ),
            place,
        ),
    });
}

/**
 * A thumbnail with a label, which opens the image.
 *
 * @param {ViewerImage} shown
 * @param {() => void} onclick
 * @param {string} [caption]
 */
export function thumbnail(shown, onclick, caption = shown.label) {
    return el(
        "figure.lora-trainer-figure",
        el(
            "button.lora-trainer-figure-button",
            {
                type: "button",
                "aria-label": t("Enlarge: {label}", { label: shown.label }),
                onclick,
            },
            el("img", { src: shown.url, alt: shown.label, loading: "lazy" }),
        ),
        el("figcaption", caption),
    );
}
