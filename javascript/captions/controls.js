/*
 * The small controls that only the workbench has.
 */
import { el, uniqueId } from "../common/elements.js";
import { plural } from "../common/language.js";
import * as widgets from "../common/widgets.js";

/** Remarks on several files, folded together when there are many. */
export function notes(notes) {
    if (!notes.length) return null;
    return el(
        "details",
        { open: notes.length <= 3 },
        el("summary", {}, plural(notes.length, "{count} note", "{count} notes")),
        el(
            "ul",
            { class: "lora-trainer-bench-list lora-trainer-bench-notes" },
            notes.map((note) => el("li", {}, note)),
        ),
    );
}

/** A box to tick with its words behind it. */
export function flag(input, label, help = "") {
    input.id = input.id || uniqueId("flag");
    return el(
        "div",
        { class: "lora-trainer-bench-flag" },
        input,
        el("label", { for: input.id }, label),
        help ? el("p", { class: "lora-trainer-help" }, help) : null,
    );
}

export const checkbox = (checked = false, onchange = null) =>
    el("input", {
        type: "checkbox",
        class: "lora-trainer-checkbox",
        checked,
        onchange: onchange && ((event) => onchange(event.target.checked, event)),
    });

/** A number to type, within bounds. */
export function number({ value, minimum, maximum, step = 1, oninput }) {
    const input = el("input", {
        type: "number",
        class: "lora-trainer-input",
        min: minimum,
        max: maximum,
        step,
        oninput: oninput && (() => oninput(Number(input.value))),
    });
    input.value = String(value);
    input.addEventListener("keydown", (event) => event.stopPropagation());
    return input;
}

// --- toolbar -----------------------------------------------------------------------------------

const menuList = (items, choose) =>
    el(
        "div",
        { class: "lora-trainer-bench-menu-list", role: "menu", hidden: true },
        items.map((item) =>
            el(
                "button",
                { type: "button", role: "menuitem", tabindex: "-1", onclick: () => choose(item) },
                item.label,
            ),
        ),
    );

const menuButton = (label) =>
    el(
        "button",
        {
            type: "button",
            class: "lora-trainer-button lora-trainer-secondary lora-trainer-bench-menu-button",
            "aria-haspopup": "menu",
            "aria-expanded": "false",
        },
        label,
        el("span", { "aria-hidden": "true" }, " \u25be"),
    );

/**
 * A button with a list of further actions below it: [{label, onclick}]. Escape and a click
 * elsewhere close it; arrow keys move in it.
 */
export function menu(label, items) {
    const list = menuList(items, (item) => choose(item));
    const button = menuButton(label);
    const entries = [...list.children];
    const show = (open) => {
        list.hidden = !open;
        button.setAttribute("aria-expanded", String(open));
    };
    const away = (event) => {
        if (!element.contains(event.target)) leave();
    };
    const leave = () => {
        show(false);
        document.removeEventListener("pointerdown", away);
    };
    async function choose(item) {
        leave();
        button.focus();
        try {
            await item.onclick();
        } catch (problem) {
            widgets.toastProblem(problem);
        }
    }
    button.addEventListener("click", () => {
        if (!list.hidden) {
            leave();
            return;
        }
        show(true);
        entries[0].focus();
        document.addEventListener("pointerdown", away);
    });
    const element = el(
        "div",
        {
            class: "lora-trainer-bench-menu",
            onfocusout: (event) => {
                if (event.relatedTarget && !element.contains(event.relatedTarget)) leave();
            },
            onkeydown: (event) => {
                const at = entries.indexOf(document.activeElement);
                const to = {
                    ArrowDown: (at + 1) % entries.length,
                    ArrowUp: (at - 1 + entries.length) % entries.length,
                    Home: 0,
                    End: entries.length - 1,
                }[event.key];
                if (event.key === "Escape" && !list.hidden) {
                    leave();
                    button.focus();
                } else if (to !== undefined && !list.hidden) entries[to].focus();
                else return;
                event.preventDefault();
                event.stopPropagation();
            },
        },
        button,
        list,
    );
    return element;
}

/** A button that reads like a link, for what is seldom needed. */
export const link = (label, onclick, more) =>
    el(
        "button",
        {
            type: "button",
            class: "lora-trainer-bench-link",
            onclick: async (event) => {
                try {
                    await onclick(event);
                } catch (problem) {
                    widgets.toastProblem(problem);
                }
            },
            ...(more || {}),
        },
        label,
    );
