/*
 * Buttons, textboxes, dialogs and notices.
 *
 * All ids and classes start with lora_trainer / lora-trainer-, because the page is the host's.
 */
import { Problem, expected } from "./api.js";
import { mute } from "./connection.js";
import { el, fill, find, uniqueId } from "./elements.js";
import { root } from "./host.js";
import { t } from "./language.js";

/**
 * @import {
 *     ButtonOptions, Child, DialogOptions, NumberOptions, Option, Remark, SelectOptions,
 *     SliderOptions, TextBox, TextOptions, ToastOptions
 * } from "./types"
 */

/**
 * Elements side by side.
 *
 * @param {Child[]} content
 */
export const row = (...content) => el("div.lora-trainer-row", content);

/**
 * The same, spread apart.
 *
 * @param {Child[]} content
 */
export const apart = (...content) => el("div.lora-trainer-row.lora-trainer-between", content);

/**
 * A paragraph of help text.
 *
 * @param {Child[]} content
 */
export const help = (...content) => el("p.lora-trainer-help", content);

/**
 * Help text within a line.
 *
 * @param {Child[]} content
 */
export const small = (...content) => el("span.lora-trainer-help", content);

/**
 * A button. `onclick` may return a promise: until it settles the button is disabled; a Problem is
 * shown as a toast.
 *
 * @param {ButtonOptions} options
 */
export function button({ label, kind = "secondary", onclick, disabled, title, local }) {
    const button = el(
        "button",
        {
            type: "button",
            "data-local": local || null,
            class: "lora-trainer-button lora-trainer-" + kind,
            disabled,
            title: title || null,
        },
        label,
    );
    button.addEventListener("click", async (event) => {
        if (
            button.getAttribute("aria-busy") === "true" ||
            button.getAttribute("aria-disabled") === "true"
        )
            return;
        const work = onclick?.(event);
        if (!(work instanceof Promise)) return;
        button.setAttribute("aria-busy", "true");
        try {
            await work;
        } catch (problem) {
            toastProblem(problem);
        } finally {
            button.removeAttribute("aria-busy");
        }
    });
    mute(button);
    return button;
}

/** Make a button primary, or not. */
export function makePrimary(/** @type {HTMLElement} */ button, /** @type {boolean} */ is) {
    button.classList.toggle("lora-trainer-primary", is);
    button.classList.toggle("lora-trainer-secondary", !is);
}

/**
 * The bar at the bottom of the window with the section's next step: {element, setText(text),
 * fill(...buttons)}. One of them is the primary button.
 */
export function actions() {
    const words = el("p.lora-trainer-actions-text", { role: "status" });
    const buttons = el("div.lora-trainer-row.lora-trainer-actions-buttons");
    const element = el(
        "div.lora-trainer-actions",
        { role: "group", "aria-label": t("Next step") },
        el("div.lora-trainer-actions-inner", words, buttons),
    );
    // fixed, because the hosts' container prevents position: sticky; the page reserves space for it
    new ResizeObserver(() => {
        if (element.offsetHeight)
            root().style.setProperty("--lora-trainer-actions", element.offsetHeight + "px");
    }).observe(element);
    return {
        element,
        setText(/** @type {string} */ text) {
            if (words.textContent !== text) words.textContent = words.title = text;
        },
        /** @param {(HTMLElement | null)[]} wanted */
        fill(...wanted) {
            const focused = find(buttons, ":focus");
            refill(buttons, wanted);
            if (focused?.isConnected) focused.focus();
        },
    };
}

/**
 * Replace an element's children unless they are the same.
 *
 * @param {HTMLElement} place
 * @param {(HTMLElement | null)[]} wanted
 */
export function refill(place, wanted) {
    const now = wanted.filter((one) => one !== null);
    if (now.length !== place.children.length || now.some((one, at) => place.children[at] !== one))
        fill(place, now);
}

/**
 * A notice.
 *
 * @param {"error" | "warning" | "info" | "done"} severity
 * @param {string} message
 * @param {string} [hint]
 * @param {Child[]} actions
 */
export function notice(severity, message, hint, ...actions) {
    return el(
        "div",
        {
            class: "lora-trainer-notice lora-trainer-notice-" + severity,
            role: severity === "error" ? "alert" : "status",
        },
        el("p", message),
        hint ? el("p.lora-trainer-hint", hint) : null,
        actions.length ? row(actions) : null,
    );
}

/** @returns {Remark} the message and hint of a caught value */
function remarkOf(/** @type {unknown} */ caught) {
    return caught instanceof Error ? caught : { message: String(caught) };
}

/**
 * An error notice.
 *
 * @param {unknown} caught
 * @param {Child[]} actions
 */
export function problem(caught, ...actions) {
    const { message, hint } = remarkOf(caught);
    return notice("error", message, hint, ...actions);
}

/** A close button with an icon. */
export const closeButton = (/** @type {() => void} */ onclick, label = t("Close")) =>
    el("button.lora-trainer-close", { type: "button", "aria-label": label, onclick }, "\u00d7");

/** The container of toasts. */
function toastContainer() {
    const there = find(root(), ".lora-trainer-toasts");
    if (there) return there;
    const made = el("div.lora-trainer-toasts", { role: "status", "aria-live": "polite" });
    root().append(made);
    return made;
}

/**
 * A toast: a short message that disappears.
 *
 * @param {string} message
 * @param {ToastOptions} [options]
 */
export function toast(message, { severity = "info", hint = "", action, seconds = 6 } = {}) {
    const leave = () => toast.remove();
    const toast = el(
        "div",
        { class: "lora-trainer-toast lora-trainer-notice-" + severity },
        el("div", el("p", message), hint ? el("p.lora-trainer-hint", hint) : null),
        action
            ? button({
                  label: action.label,
                  onclick: () => {
                      leave();
                      return action.onclick();
                  },
              })
            : null,
        closeButton(leave),
    );
    toastContainer().append(toast);
    let timer = setTimeout(leave, seconds * 1000);
    toast.addEventListener("pointerenter", () => clearTimeout(timer));
    toast.addEventListener("focusin", () => clearTimeout(timer));
    toast.addEventListener("pointerleave", () => {
        timer = setTimeout(leave, 2000);
    });
    return toast;
}

export function toastProblem(/** @type {unknown} */ caught) {
    if (!(caught instanceof Problem)) console.error(caught);
    else if (caught.kind === "Cancelled") return;
    const { message, hint } = remarkOf(caught);
    toast(message || String(caught), { severity: "error", hint, seconds: 12 });
}

/**
 * A modal dialog: closed by Escape and its close button; it traps and restores the focus.
 *
 * @param {DialogOptions} options
 */
// not a <footer>: the hosts hide all of them
export function dialog({ title, body, actions = [], wide, fit, onclose }) {
    const heading = uniqueId("dialog");
    const dialog = el("dialog", {
        class:
            "lora-trainer-dialog" +
            (wide ? " lora-trainer-dialog-wide" : "") +
            (fit ? " lora-trainer-dialog-fit" : ""),
        "aria-labelledby": heading,
    });
    const close = () => dialog.close();
    // a toast would be behind it
    const errorPlace = el("div");
    const act = async (/** @type {ButtonOptions} */ action) => {
        fill(errorPlace);
        try {
            if ((await action.onclick?.()) !== false) close();
        } catch (caught) {
            fill(errorPlace, problem(expected(caught)));
            errorPlace.scrollIntoView({ block: "nearest" });
        }
    };
    const buttons = actions.map((action) =>
        button({ local: !action.onclick, ...action, onclick: () => act(action) }),
    );
    fill(
        dialog,
        el("header", el("h3", { id: heading }, title), closeButton(close)),
        el("div.lora-trainer-dialog-body", body, errorPlace),
        actions.length ? el("div.lora-trainer-row.lora-trainer-dialog-actions", buttons) : null,
    );
    dialog.addEventListener("close", () => {
        dialog.remove();
        onclose?.();
    });
    // a click outside closes it; a text selection that ends outside does not
    let beside = false;
    dialog.addEventListener("pointerdown", (event) => {
        beside = event.target === dialog;
    });
    dialog.addEventListener("click", (event) => beside && event.target === dialog && close());
    // the host has key listeners on the document
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    root().append(dialog);
    dialog.showModal();
    // the main button is last
    return { element: dialog, close, main: buttons[buttons.length - 1] };
}

/**
 * The action of a dialog without a choice.
 *
 * @returns {ButtonOptions}
 */
export const closing = () => ({ label: t("Close"), kind: "primary" });

/**
 * Confirm a destructive action.
 *
 * @param {{title: string, message: string, label: string}} question
 * @returns {Promise<boolean>}
 */
export function confirm({ title, message, label }) {
    return new Promise((resolve) => {
        let answer = false;
        dialog({
            title,
            body: el("p", message),
            onclose: () => resolve(answer),
            actions: [
                { label: t("Cancel") },
                {
                    label,
                    kind: "stop",
                    onclick: () => {
                        answer = true;
                    },
                },
            ],
        });
    });
}

/**
 * A labelled input with help and a place for its problem.
 *
 * @param {string} label
 * @param {HTMLElement} input
 * @param {{help?: string, problem?: Child}} [more]
 */
export function labelled(label, input, { help, problem } = {}) {
    input.id ||= uniqueId("input");
    const helpId = input.id + "_help";
    if (help) input.setAttribute("aria-describedby", helpId);
    return el(
        "div.lora-trainer-field",
        el("label", { for: input.id }, label),
        input,
        help ? el("p.lora-trainer-help", { id: helpId }, help) : null,
        problem,
    );
}

// the host uses Ctrl+Enter to generate
const keepKeys = (/** @type {HTMLElement} */ input) =>
    input.addEventListener("keydown", (event) => event.stopPropagation());

/**
 * Common parts of the textboxes.
 *
 * @template {TextBox} B
 * @param {B} box
 * @param {TextOptions} options
 */
function textBox(box, { value = "", placeholder = "", oninput, onchange, maxlength, label, id }) {
    box.className = "lora-trainer-input";
    box.placeholder = placeholder;
    if (maxlength) box.maxLength = maxlength;
    if (label) box.setAttribute("aria-label", label);
    if (id) box.id = id;
    if (oninput) box.addEventListener("input", () => oninput(box.value));
    if (onchange) box.addEventListener("change", () => onchange(box.value));
    box.value = value;
    keepKeys(box);
    return box;
}

/** A single-line textbox. */
export const text = (/** @type {TextOptions} */ options) =>
    textBox(el("input", { type: "text", spellcheck: "false" }), options);

/** A multi-line textbox. */
export const lines = (/** @type {number} */ rows, /** @type {TextOptions} */ options) =>
    textBox(el("textarea", { rows }), options);

/**
 * A number input with bounds.
 *
 * @param {NumberOptions} options
 */
export function number({ value, minimum, maximum, step = 1, id, oninput }) {
    const input = el("input.lora-trainer-input", {
        type: "number",
        id,
        min: minimum,
        max: maximum,
        step,
        value: String(value),
        oninput: oninput && ((event) => oninput(Number(event.currentTarget.value))),
    });
    keepKeys(input);
    return input;
}

/**
 * A checkbox.
 *
 * @param {boolean} [checked]
 * @param {(checked: boolean) => unknown} [onchange]
 */
export function checkbox(checked = false, onchange = () => {}) {
    return el("input.lora-trainer-checkbox", {
        type: "checkbox",
        checked,
        onchange: (event) => onchange(event.currentTarget.checked),
    });
}

export const options = (/** @type {Option[]} */ options) =>
    options.map(({ value, label, disabled }) => el("option", { value, disabled }, label));

/** @param {SelectOptions} wanted */
export function select({ value = "", options: offered, onchange, label, id }) {
    const select = el(
        "select.lora-trainer-input",
        {
            "aria-label": label,
            id,
            onchange: onchange && ((event) => onchange(event.currentTarget.value)),
        },
        options(offered),
    );
    select.value = value;
    return select;
}

/**
 * A slider with a number input. Has .value, and .set(value) without an event.
 *
 * @param {SliderOptions} options
 */
export function slider({ label, value, minimum, maximum, step, mark, onchange }) {
    const name = uniqueId("slider");
    const range = el("input.lora-trainer-range", {
        type: "range",
        id: name,
        min: minimum,
        max: maximum,
        step,
        "aria-label": label,
        list: mark ? name + "_marks" : null,
    });
    const number = el("input.lora-trainer-input.lora-trainer-number", {
        type: "number",
        min: minimum,
        max: maximum,
        step,
        "aria-label": label,
    });
    // browsers choose a dark track for some accent colours, even on a light page
    const paint = () =>
        range.style.setProperty(
            "--lora-trainer-share",
            String((Number(range.value) - minimum) / (maximum - minimum)),
        );
    const show = (/** @type {number} */ shown) => {
        range.value = number.value = String(shown);
        paint();
    };
    const pair = (/** @type {HTMLInputElement} */ moved, /** @type {HTMLInputElement} */ other) =>
        moved.addEventListener("input", () => {
            if (moved.value === "") return;
            other.value = moved.value;
            paint();
            onchange(Number(moved.value));
        });
    pair(range, number);
    pair(number, range);
    keepKeys(number);
    show(value);
    const element = el(
        "div.lora-trainer-slider",
        el(
            "div.lora-trainer-slider-track",
            range,
            mark && mark.value >= minimum && mark.value <= maximum
                ? el("button.lora-trainer-mark", {
                      type: "button",
                      style: {
                          left: `calc(16px + (100% - 32px) * ${(mark.value - minimum) / (maximum - minimum)})`,
                      },
                      title: mark.label,
                      "aria-label": mark.label,
                      onclick: () => {
                          show(mark.value);
                          onchange(mark.value);
                      },
                  })
                : null,
            mark
                ? el("datalist", { id: name + "_marks" }, el("option", { value: mark.value }))
                : null,
        ),
        number,
    );
    return {
        element,
        range,
        number,
        set: show,
        get value() {
            return Number(number.value);
        },
    };
}

/** A progress bar; .set(done, total, text): indeterminate without a total. */
export function progress(/** @type {string} */ label) {
    const bar = el("div.lora-trainer-bar-fill");
    const words = el("span.lora-trainer-bar-text");
    const element = el(
        "div.lora-trainer-bar",
        { role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" },
        bar,
        words,
    );
    return {
        element,
        set(/** @type {number} */ done, /** @type {number} */ total, text = "") {
            const share = total ? Math.min(100, (done / total) * 100) : 0;
            element.classList.toggle("lora-trainer-bar-unknown", !total);
            if (total) element.setAttribute("aria-valuenow", share.toFixed(0));
            else element.removeAttribute("aria-valuenow");
            element.setAttribute("aria-valuetext", text);
            bar.style.width = share + "%";
            words.textContent = text;
        },
    };
}

/**
 * Copy a text. Over plain http, where the WebUI is often used, the clipboard API is missing, and
 * execCommand is used.
 */
export async function copyText(/** @type {string} */ text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        const area = el("textarea.lora-trainer-offscreen");
        area.value = text;
        (find(document, "dialog[open]") ?? root()).append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
    toast(t("Copied."), { seconds: 2 });
}
