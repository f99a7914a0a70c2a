/*
 * Buttons, boxes, dialogs and notices, which all sections are made of.
 *
 * All ids and classes begin with lora_trainer / lora-trainer-: the page is the host's.
 */
import { Problem } from "./api.js";
import { mute } from "./connection.js";
import { el, fill, uniqueId } from "./elements.js";
import { root } from "./host.js";
import { t } from "./language.js";

/**
 * A button. `onclick` may return a promise: until it settles the button is busy and cannot be
 * pressed again; a Problem is shown as a toast.
 */
/** `local`: it needs nothing of the server. */
export function button({
    label,
    kind = "secondary",
    onclick,
    disabled = false,
    title = "",
    describedby = "",
    local = false,
}) {
    const button = el(
        "button",
        {
            type: "button",
            "data-local": local || null,
            class: "lora-trainer-button lora-trainer-" + kind,
            disabled,
            title: title || null,
            "aria-describedby": describedby || null,
        },
        label,
    );
    button.addEventListener("click", async (event) => {
        if (
            button.getAttribute("aria-busy") === "true" ||
            button.getAttribute("aria-disabled") === "true"
        )
            return;
        const work = onclick && onclick(event);
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

/** Make a button the primary one of its screen, or one of the others. */
export function makePrimary(button, is) {
    button.classList.toggle("lora-trainer-primary", is);
    button.classList.toggle("lora-trainer-secondary", !is);
}

/**
 * The bar at the window's lower edge with what a section's next step is: {element, say(text),
 * fill(...buttons)}. One of them is the screen's primary button.
 */
export function actions() {
    const words = el("p", { class: "lora-trainer-actions-words", role: "status" });
    const buttons = el("div", { class: "lora-trainer-row lora-trainer-actions-buttons" });
    const element = el(
        "div",
        { class: "lora-trainer-actions", role: "group", "aria-label": t("Next step") },
        el("div", { class: "lora-trainer-actions-inner" }, words, buttons),
    );
    // fixed, because the hosts' own container cuts what sticks: the page keeps room for it below
    new ResizeObserver(() => {
        if (element.offsetHeight)
            root().style.setProperty("--lora-trainer-actions", element.offsetHeight + "px");
    }).observe(element);
    return {
        element,
        say(text) {
            if (words.textContent !== text) words.textContent = words.title = text;
        },
        fill(...wanted) {
            const now = wanted.flat().filter(Boolean);
            if (
                now.length === buttons.children.length &&
                now.every((button, at) => buttons.children[at] === button)
            )
                return;
            const focused = buttons.contains(document.activeElement)
                ? document.activeElement
                : null;
            fill(buttons, now);
            if (focused instanceof HTMLElement && focused.isConnected) focused.focus();
        },
    };
}

/** A sentence in a box: severity error, warning, info or done. */
export function notice(severity, message, hint, ...actions) {
    return el(
        "div",
        {
            class: "lora-trainer-notice lora-trainer-notice-" + severity,
            role: severity === "error" ? "alert" : "status",
        },
        el("p", {}, message),
        hint ? el("p", { class: "lora-trainer-hint" }, hint) : null,
        actions.length ? el("div", { class: "lora-trainer-row" }, actions) : null,
    );
}

export const problem = (problem, ...actions) =>
    notice("error", problem.message, problem.hint, ...actions);

/** A short message at the edge that goes away by itself; `action` is {label, onclick}. */
export function toast(message, { severity = "info", hint = "", action = null, seconds = 6 } = {}) {
    let shelf = root().querySelector(".lora-trainer-toasts");
    if (!shelf)
        root().append(
            (shelf = el("div", {
                class: "lora-trainer-toasts",
                role: "status",
                "aria-live": "polite",
            })),
        );
    const leave = () => toast.remove();
    const toast = el(
        "div",
        { class: "lora-trainer-toast lora-trainer-notice-" + severity },
        el(
            "div",
            {},
            el("p", {}, message),
            hint ? el("p", { class: "lora-trainer-hint" }, hint) : null,
        ),
        action
            ? button({
                  label: action.label,
                  onclick: () => {
                      leave();
                      return action.onclick();
                  },
              })
            : null,
        el(
            "button",
            {
                type: "button",
                class: "lora-trainer-close",
                "aria-label": t("Close"),
                onclick: leave,
            },
            "\u00d7",
        ),
    );
    shelf.append(toast);
    let timer = setTimeout(leave, seconds * 1000);
    toast.addEventListener("pointerenter", () => clearTimeout(timer));
    toast.addEventListener("focusin", () => clearTimeout(timer));
    toast.addEventListener("pointerleave", () => {
        timer = setTimeout(leave, 2000);
    });
    return toast;
}

export function toastProblem(problem) {
    if (problem && problem.kind === "Cancelled") return;
    if (!(problem instanceof Problem)) console.error(problem);
    toast(problem.message || String(problem), {
        severity: "error",
        hint: problem.hint || "",
        seconds: 12,
    });
}

/**
 * A modal dialog: Escape and the close button leave it; focus stays in it and goes back. actions:
 * [{label, kind, onclick}]; onclick may return a promise or false to stay. `wide`: as wide as there
 * is room for; `fit`: as wide as what is in it.
 */
// its actions stand in no <footer>: the hosts hide all of them, to be rid of gradio's
export function dialog({ title, body, actions = [], wide = false, fit = false, onclose = null }) {
    const heading = uniqueId("dialog");
    const dialog = el("dialog", {
        class:
            "lora-trainer-dialog" +
            (wide ? " lora-trainer-dialog-wide" : "") +
            (fit ? " lora-trainer-dialog-fit" : ""),
        "aria-labelledby": heading,
    });
    const close = () => dialog.close();
    // a toast would lie behind it
    const trouble = el("div");
    const act = async (action) => {
        fill(trouble);
        try {
            if ((await (action.onclick && action.onclick())) !== false) close();
        } catch (found) {
            if (!(found instanceof Problem)) throw found;
            fill(trouble, problem(found));
            trouble.scrollIntoView({ block: "nearest" });
        }
    };
    fill(
        dialog,
        el(
            "header",
            {},
            el("h3", { id: heading }, title),
            el(
                "button",
                {
                    type: "button",
                    class: "lora-trainer-close",
                    "aria-label": t("Close"),
                    onclick: close,
                },
                "\u00d7",
            ),
        ),
        el("div", { class: "lora-trainer-dialog-body" }, body, trouble),
        actions.length
            ? el(
                  "div",
                  { class: "lora-trainer-row lora-trainer-dialog-actions" },
                  actions.map((action) =>
                      button({ local: !action.onclick, ...action, onclick: () => act(action) }),
                  ),
              )
            : null,
    );
    dialog.addEventListener("close", () => {
        dialog.remove();
        if (onclose) onclose();
    });
    // a click beside it closes it; text that is selected from a box in it to beyond its edge does
    // not
    let beside = false;
    dialog.addEventListener("pointerdown", (event) => {
        beside = event.target === dialog;
    });
    dialog.addEventListener("click", (event) => beside && event.target === dialog && close());
    // the host's keyboard shortcuts listen on the document
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    root().append(dialog);
    dialog.showModal();
    return { element: dialog, close };
}

/** Ask before something is done; resolves to true or false. */
export function confirm({ title, message, label, kind = "primary" }) {
    return new Promise((resolve) => {
        let answer = false;
        dialog({
            title,
            body: el("p", {}, message),
            onclose: () => resolve(answer),
            actions: [
                { label: t("Cancel") },
                {
                    label,
                    kind,
                    onclick: () => {
                        answer = true;
                    },
                },
            ],
        });
    });
}

/**
 * A labelled input with its help, its unit and room for a problem. `input` is the element that
 * holds the value.
 */
export function labelled(label, input, { help = "", problem = null } = {}) {
    if (!input.id) input.id = uniqueId("input");
    const helpId = input.id + "_help";
    if (help) input.setAttribute("aria-describedby", helpId);
    return el(
        "div",
        { class: "lora-trainer-field" },
        el("label", { for: input.id }, label),
        input,
        help ? el("p", { class: "lora-trainer-help", id: helpId }, help) : null,
        problem,
    );
}

export function text({
    value = "",
    placeholder = "",
    oninput = null,
    onchange = null,
    rows = 0,
    maxlength = null,
    label = null,
    id = null,
}) {
    const attributes = {
        class: "lora-trainer-input",
        placeholder,
        maxlength,
        "aria-label": label,
        id,
        spellcheck: rows ? null : "false",
        oninput: oninput && ((event) => oninput(event.target.value)),
        onchange: onchange && ((event) => onchange(event.target.value)),
    };
    const input = rows
        ? el("textarea", { ...attributes, rows })
        : el("input", { type: "text", ...attributes });
    input.value = value;
    // Ctrl+Enter and others belong to the host's generation
    input.addEventListener("keydown", (event) => event.stopPropagation());
    return input;
}

export function select({ value = "", options, onchange = null, label = null, id = null }) {
    const select = el(
        "select",
        {
            class: "lora-trainer-input",
            "aria-label": label,
            id,
            onchange: onchange && ((event) => onchange(event.target.value)),
        },
        options.map((option) =>
            el("option", { value: option.value, disabled: option.disabled || null }, option.label),
        ),
    );
    select.value = value;
    return select;
}

/**
 * A slider with its number beside it; `mark` is {value, label} of a recommended value. Has .value,
 * .set(value) (silent).
 */
export function slider({ label, value, minimum, maximum, step, mark = null, onchange }) {
    const name = uniqueId("slider");
    const range = el("input", {
        type: "range",
        id: name,
        min: minimum,
        max: maximum,
        step,
        class: "lora-trainer-range",
        "aria-label": label,
        list: mark ? name + "_marks" : null,
    });
    const number = el("input", {
        type: "number",
        min: minimum,
        max: maximum,
        step,
        class: "lora-trainer-input lora-trainer-number",
        "aria-label": label,
    });
    // browsers choose a dark rail for some accent colours, also on a light page: the rail is ours
    const paint = () =>
        range.style.setProperty(
            "--lora-trainer-share",
            (Number(range.value) - minimum) / (maximum - minimum),
        );
    const show = (shown) => {
        range.value = shown;
        number.value = shown;
        paint();
    };
    const hear = (event) => {
        if (event.target.value === "" || Number.isNaN(Number(event.target.value))) return;
        const chosen = Number(event.target.value);
        if (event.target === range) number.value = chosen;
        else range.value = chosen;
        paint();
        onchange(chosen);
    };
    range.addEventListener("input", hear);
    number.addEventListener("input", hear);
    number.addEventListener("keydown", (event) => event.stopPropagation());
    show(value);
    const share = mark && ((mark.value - minimum) / (maximum - minimum)) * 100;
    const element = el(
        "div",
        { class: "lora-trainer-slider" },
        el(
            "div",
            { class: "lora-trainer-slider-track" },
            range,
            mark && share >= 0 && share <= 100
                ? el("button", {
                      type: "button",
                      class: "lora-trainer-mark",
                      style: { left: "calc(16px + (100% - 32px) * " + share / 100 + ")" },
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

/** A progress bar; .set(done, total, text): without a total it only says that something goes on. */
export function progress(label) {
    const bar = el("div", { class: "lora-trainer-bar-fill" });
    const words = el("span", { class: "lora-trainer-bar-text" });
    const element = el(
        "div",
        {
            class: "lora-trainer-bar",
            role: "progressbar",
            "aria-label": label,
            "aria-valuemin": "0",
            "aria-valuemax": "100",
        },
        bar,
        words,
    );
    return {
        element,
        set(done, total, text = "") {
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
 * Copy a text; the WebUI is often reached over plain http, where the clipboard needs the old way.
 */
export async function copyText(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        const area = el("textarea", { class: "lora-trainer-offscreen" });
        area.value = text;
        const home = document.querySelector("dialog[open]") || root();
        home.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
    toast(t("Copied."), { seconds: 2 });
}
