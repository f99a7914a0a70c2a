/*
 * The images of a page as a grid: arrow keys move the focus, images can be selected and enlarged.
 */
import { el, fill, wayOf } from "../common/elements.js";
import { t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { enlarge, sizeText, thumbnail } from "./images.js";

/** @import { ItemView } from "../common/answers" */

export class Grid {
    /** @type {ItemView[]} */
    items = [];
    /** @type {HTMLElement[]} */
    cells = [];
    /** The keys of the images that are selected. @type {Set<string>} */
    selected = new Set();
    /** @type {number | null} start of a range selection */
    anchor = null;
    /** The cell in the tab order. */
    focus = 0;
    element = el("div.lora-trainer-grid", {
        role: "listbox",
        "aria-multiselectable": "true",
        "aria-label": t("Images. Arrow keys move, Enter enlarges, Space selects, Delete removes."),
        onkeydown: (event) => this.onKeydown(event),
    });

    /**
     * @param {() => void} onselect called when the selection has changed
     * @param {(keys: string[]) => void} onremove
     */
    constructor(onselect, onremove) {
        this.onselect = onselect;
        this.onremove = onremove;
    }

    /** Reset for another dataset. */
    reset() {
        this.selected.clear();
        this.focus = 0;
    }

    draw(/** @type {ItemView[]} */ items) {
        const keys = new Set(items.map((item) => item.key));
        this.selected = new Set([...this.selected].filter((key) => keys.has(key)));
        this.focus = Math.min(this.focus, Math.max(0, items.length - 1));
        this.items = items;
        this.cells = items.map((item, at) => this.cell(item, at));
        fill(this.element, this.cells);
    }

    cell(/** @type {ItemView} */ item, /** @type {number} */ at) {
        const remarks = item.findings.map((finding) => finding.message).join("\n");
        const worst = item.findings.some((finding) => finding.kind !== "no-caption");
        return el(
            "div.lora-trainer-cell",
            {
                role: "option",
                tabindex: at === this.focus ? "0" : "-1",
                "aria-selected": String(this.selected.has(item.key)),
                dataset: { key: item.key },
                title: item.name + (remarks ? "\n" + remarks : ""),
                "aria-label": [item.name, item.caption || t("no caption"), worst ? remarks : ""]
                    .filter(Boolean)
                    .join(", "),
                onclick: (event) => this.click(event, at),
            },
            thumbnail(item),
            el("span.lora-trainer-check", { "aria-hidden": "true" }),
            el("span.lora-trainer-cell-name", item.name),
            widgets.small(
                sizeText(item) || t("Cannot be read"),
                worst
                    ? el("b", " \u00b7 " + t("issue"))
                    : item.caption
                      ? null
                      : " \u00b7 " + t("no caption"),
            ),
        );
    }

    click(/** @type {MouseEvent} */ event, /** @type {number} */ at) {
        const { target } = event;
        const checks = target instanceof Element && target.closest(".lora-trainer-check");
        this.focusOn(at);
        if (event.shiftKey && this.anchor !== null) this.selectRange(this.anchor, at);
        else if (event.ctrlKey || event.metaKey || checks) this.toggle(at);
        else enlarge(this.items, this.items[at]);
    }

    focusOn(/** @type {number} */ at) {
        for (const [place, cell] of this.cells.entries()) cell.tabIndex = place === at ? 0 : -1;
        this.focus = at;
        this.cells[at].focus();
    }

    toggle(/** @type {number} */ at) {
        const { key } = this.items[at];
        if (!this.selected.delete(key)) this.selected.add(key);
        this.anchor = at;
        this.showSelection();
    }

    selectRange(/** @type {number} */ from, /** @type {number} */ to) {
        for (const { key } of this.items.slice(Math.min(from, to), Math.max(from, to) + 1))
            this.selected.add(key);
        this.showSelection();
    }

    selectAll() {
        this.selectRange(0, this.items.length - 1);
    }

    selectNone() {
        this.selected.clear();
        this.showSelection();
    }

    showSelection() {
        for (const [at, cell] of this.cells.entries())
            cell.setAttribute("aria-selected", String(this.selected.has(this.items[at].key)));
        this.onselect();
    }

    /** Number of columns. */
    columns() {
        const next = this.cells.findIndex((cell) => cell.offsetTop !== this.cells[0].offsetTop);
        return next === -1 ? this.cells.length : next;
    }

    onKeydown(/** @type {KeyboardEvent} */ event) {
        // the host has key listeners on the document
        event.stopPropagation();
        const count = this.cells.length,
            columns = this.columns();
        const way = wayOf(event, {
            ArrowRight: 1,
            ArrowLeft: -1,
            ArrowDown: columns,
            ArrowUp: -columns,
            Home: -count,
            End: count,
        });
        const { key } = this.items[this.focus];
        if (way) {
            const to = Math.min(count - 1, Math.max(0, this.focus + way));
            if (event.shiftKey) this.selectRange(this.focus, to);
            this.focusOn(to);
        } else if (event.key === " ") this.toggle(this.focus);
        else if (event.key === "Enter") enlarge(this.items, this.items[this.focus]);
        else if (event.key === "Delete")
            this.onremove(this.selected.size ? [...this.selected] : [key]);
        else if (event.key === "a" && (event.ctrlKey || event.metaKey)) this.selectAll();
        else if (event.key === "Escape") this.selectNone();
        else return;
        event.preventDefault();
    }
}
