/*
 * One entry of a dataset of texts: a textbox for each of its texts, saved on blur.
 */
import { api, expected } from "../common/api.js";
import { el, fill, put } from "../common/elements.js";
import { sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";

/** @import { TextItemView } from "../common/answers" */

const CONFLICT = 409;

/**
 * @typedef {object} Owner
 * @property {(row: PairRow, before: string) => unknown} saved called after a save, which changes its
 *     key; `before`: the previous one
 * @property {(row: PairRow) => Promise<unknown>} remove
 */

/** Number of rows of a textbox for a text. */
const heightOf = (/** @type {string} */ text) =>
    Math.min(12, Math.max(1, text.split("\n").length + Math.floor(text.length / 90)));

export class PairRow {
    state = el("span.lora-trainer-caption-state", { role: "status" });
    remarks = el("div.lora-trainer-caption-remarks");
    element = el("article.lora-trainer-pair");
    /** @type {HTMLTextAreaElement[]} */
    boxes = [];
    /** @type {Promise<void> | null} */
    saving = null;
    /** Whether someone else has changed it while the user was typing. */
    isGone = false;

    /**
     * @param {TextItemView} item
     * @param {Owner} owner
     */
    constructor(item, owner) {
        this.item = item;
        this.owner = owner;
        this.draw();
    }

    draw() {
        const { item } = this;
        this.boxes = item.fields.map((field) => {
            const box = widgets.lines(heightOf(field.text), {
                value: field.text,
                label: field.label,
                onchange: () => this.save().catch(widgets.toastProblem),
            });
            box.addEventListener("keydown", (event) => {
                if (event.key === "Escape") this.revert();
            });
            return box;
        });
        fill(
            this.element,
            el(
                "div.lora-trainer-row.lora-trainer-between",
                widgets.small(item.name),
                this.state,
                widgets.button({ label: t("Remove"), onclick: () => this.owner.remove(this) }),
            ),
            item.fields.length
                ? el(
                      "div.lora-trainer-pair-fields",
                      item.fields.map((field, at) => [
                          el("span.lora-trainer-label", { "aria-hidden": "true" }, field.label),
                          this.boxes[at],
                      ]),
                  )
                : el("pre.lora-trainer-pre", item.raw),
            this.remarks,
        );
        this.describe();
    }

    describe() {
        fill(
            this.remarks,
            this.item.findings.map((finding) =>
                el(
                    "p.lora-trainer-bench-finding",
                    { dataset: { severity: finding.severity } },
                    sentences(finding.message, finding.hint),
                ),
            ),
        );
    }

    texts() {
        return this.boxes.map((box) => box.value);
    }

    isChanged() {
        return this.item.fields.some((field, at) => this.boxes[at].value.trim() !== field.text);
    }

    isBusy() {
        return this.isChanged() || this.element.contains(document.activeElement);
    }

    /** The server's current state; its text is the same, but name and findings may have changed. */
    take(/** @type {TextItemView} */ item) {
        const moved = item.name !== this.item.name;
        this.item = item;
        if (moved && !this.isBusy()) this.draw();
        else this.describe();
    }

    revert() {
        this.item.fields.forEach((field, at) => {
            this.boxes[at].value = field.text;
        });
        put(this.state, "");
    }

    /** The entry was changed or removed in its file by someone else. */
    gone() {
        if (this.isGone) return;
        this.isGone = true;
        this.showStatus(
            t("Changed elsewhere: copy what you typed, and reload the page"),
            "problem",
        );
    }

    showStatus(/** @type {string} */ text, kind = "") {
        put(this.state, text);
        this.state.dataset.kind = kind;
    }

    async save() {
        if (this.isGone || !this.isChanged()) return;
        this.saving ??= this.send().finally(() => {
            this.saving = null;
        });
        await this.saving;
    }

    async send() {
        const before = this.item.key;
        const sent = this.texts();
        this.showStatus(t("Saving"));
        try {
            const { item } = await api.post(datasets.path("text"), { key: before, texts: sent });
            this.item = item;
            this.showStatus(t("Saved"));
            this.describe();
            this.owner.saved(this, before);
        } catch (caught) {
            const problem = expected(caught);
            if (problem.status === CONFLICT) this.gone();
            else this.showStatus(sentences(problem.message, problem.hint), "problem");
        }
    }
}
