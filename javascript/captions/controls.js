/*
 * Controls that only the workbench uses.
 */
import { el, findAll, uniqueId } from "../common/elements.js";
import { plural } from "../common/language.js";
import * as widgets from "../common/widgets.js";

/** Messages about several files, collapsed if there are many. */
export function notes(/** @type {string[]} */ notes) {
    if (!notes.length) return null;
    return el(
        "details",
        { open: notes.length <= 3 },
        el("summary", plural(notes.length, "{count} note", "{count} notes")),
        el(
            "ul.lora-trainer-bench-list.lora-trainer-bench-notes",
            notes.map((note) => el("li", note)),
        ),
    );
}

/**
 * A checkbox with its label.
 *
 * @param {HTMLInputElement} input
 * @param {string} label
 * @param {string} [help]
 */
export function flag(input, label, help) {
    input.id ||= uniqueId("flag");
    return el(
        "div.lora-trainer-bench-flag",
        input,
        el("label", { for: input.id }, label),
        help ? widgets.help(help) : null,
    );
}

// --- toolbar -----------------------------------------------------------------------------------

/** @typedef {{label: string, onclick: () => unknown}} MenuItem */

/**
 * @param {MenuItem[]} items
 * @param {(item: MenuItem) => void} choose
 */
const menuList = (items, choose) =>
    el(
        "div.lora-trainer-bench-menu-list",
        { role: "menu", hidden: true },
        items.map((item) =>
            el(
                "button",
                { type: "button", role: "menuitem", tabindex: "-1", onclick: () => choose(item) },
                item.label,
            ),
        ),
    );

const menuButton = (/** @type {string} */ label) =>
    el(
        "button.lora-trainer-button.lora-trainer-secondary.lora-trainer-bench-menu-button",
        { type: "button", "aria-haspopup": "menu", "aria-expanded": "false" },
        label,
        el("span", { "aria-hidden": "true" }, " \u25be"),
    );

/** A button with a menu. Escape and a click elsewhere close it; arrow keys move in it. */
export function menu(/** @type {string} */ label, /** @type {MenuItem[]} */ items) {
    const list = menuList(items, (item) => choose(item));
    const button = menuButton(label);
    const entries = findAll(list, "button");
    const show = (/** @type {boolean} */ open) => {
        list.hidden = !open;
        button.setAttribute("aria-expanded", String(open));
    };
    const away = (/** @type {PointerEvent} */ { target }) => {
        if (target instanceof Node && !element.contains(target)) leave();
    };
    const leave = () => {
        show(false);
        document.removeEventListener("pointerdown", away);
    };
    async function choose(/** @type {MenuItem} */ item) {
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
        "div.lora-trainer-bench-menu",
        {
            onfocusout: ({ relatedTarget, currentTarget }) => {
                if (relatedTarget instanceof Node && !currentTarget.contains(relatedTarget))
                    leave();
            },
            onkeydown: (event) => {
                const at = entries.findIndex((entry) => entry === document.activeElement);
                /** @type {Record<string, number>} */
                const places = {
                    ArrowDown: (at + 1) % entries.length,
                    ArrowUp: (at - 1 + entries.length) % entries.length,
                    Home: 0,
                    End: entries.length - 1,
                };
                const to = places[event.key];
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

/**
 * A button styled as a link, for rare actions.
 *
 * @param {string} label
 * @param {() => unknown} onclick
 * @param {Record<string, unknown>} [more] attributes
 */
export const link = (label, onclick, more) =>
    el(
        "button.lora-trainer-bench-link",
        {
            type: "button",
            onclick: async () => {
                try {
                    await onclick();
                } catch (problem) {
                    widgets.toastProblem(problem);
                }
            },
            ...more,
        },
        label,
    );
