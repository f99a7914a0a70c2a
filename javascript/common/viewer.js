/*
 * Pictures, large: one after the other in a dialog, and two of them under one another with a slider
 * between.
 *
 * A picture is {url, label, note, kind}: `note` is shown below it, pictures of one `kind` are worth
 * comparing. Called by the sections "train" and "try"; knows neither.
 */
import { el, fill } from "./elements.js";
import { t } from "./language.js";
import * as widgets from "./widgets.js";

/** A dialog that shows pictures[index]; the arrow keys and two buttons go on to the others. */
export function open(pictures, index) {
    const image = el("img", { class: "lora-trainer-viewer-image", alt: "" });
    const label = el("p", { class: "lora-trainer-viewer-label", "aria-live": "polite" });
    const note = el("p", { class: "lora-trainer-help" });
    let at = index;
    const show = (next) => {
        at = (next + pictures.length) % pictures.length;
        const picture = pictures[at];
        image.src = picture.url;
        image.alt = picture.label;
        label.textContent =
            pictures.length > 1
                ? t("{label} ({number} of {count})", {
                      label: picture.label,
                      number: at + 1,
                      count: pictures.length,
                  })
                : picture.label;
        note.textContent = picture.note || "";
    };
    const several = pictures.length > 1;
    const body = el(
        "div",
        { class: "lora-trainer-viewer" },
        image,
        label,
        note,
        several
            ? el(
                  "div",
                  { class: "lora-trainer-row" },
                  widgets.button({ label: t("Previous"), onclick: () => show(at - 1) }),
                  widgets.button({ label: t("Next"), onclick: () => show(at + 1) }),
              )
            : null,
    );
    const dialog = widgets.dialog({ title: t("Picture"), body, wide: true });
    dialog.element.addEventListener("keydown", (event) => {
        const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!way || !several) return;
        event.preventDefault();
        show(at + way);
    });
    show(index);
}

/** Two pictures of equal size over one another; a slider says how much of each is seen. */
function comparison(first, second) {
    const over = el("img", {
        class: "lora-trainer-compare-over",
        src: second.url,
        alt: second.label,
    });
    const move = (event) => {
        over.style.clipPath = "inset(0 0 0 " + event.target.value + "%)";
    };
    const range = el("input", {
        type: "range",
        class: "lora-trainer-range",
        min: 0,
        max: 100,
        step: 1,
        value: 50,
        oninput: move,
        "aria-label": t("How much of the left picture is shown"),
        "aria-valuetext": null,
    });
    move({ target: range });
    return el(
        "div",
        { class: "lora-trainer-compare" },
        el(
            "div",
            { class: "lora-trainer-compare-stack" },
            el("img", { src: first.url, alt: first.label }),
            over,
        ),
        range,
        el(
            "div",
            { class: "lora-trainer-compare-labels" },
            el("span", {}, first.label),
            el("span", {}, second.label),
        ),
    );
}

/** A dialog with two choices and the comparison of what is chosen. */
export function compare(pictures) {
    const place = el("div");
    const last = pictures.length - 1;
    // the first and the last of a kind: how far it has come
    const first = pictures.findIndex((picture) => picture.kind === pictures[last].kind);
    const chosen = [first === last ? 0 : first, last];
    const draw = () => fill(place, comparison(pictures[chosen[0]], pictures[chosen[1]]));
    const choice = (side, label) =>
        widgets.select({
            label,
            value: String(chosen[side]),
            options: pictures.map((picture, number) => ({
                value: String(number),
                label: picture.label,
            })),
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
            "div",
            { class: "lora-trainer-viewer" },
            el(
                "div",
                { class: "lora-trainer-compare-choices" },
                choice(0, t("Left picture")),
                choice(1, t("Right picture")),
            ),
            place,
        ),
    });
}

/** A small picture with its label (or a shorter caption), to be pressed to see it large. */
export function thumbnail(picture, onclick, caption) {
    return el(
        "figure",
        { class: "lora-trainer-figure" },
        el(
            "button",
            {
                type: "button",
                class: "lora-trainer-figure-button",
                "aria-label": t("Show large: {label}", { label: picture.label }),
                onclick,
            },
            el("img", { src: picture.url, alt: picture.label, loading: "lazy" }),
        ),
        el("figcaption", {}, caption === undefined ? picture.label : caption),
    );
}
