/*
 * An image and its caption's textbox, saved on blur with conflict detection. Shows token count,
 * author, review mark and findings with their fixes.
 */
import { api, expected } from "../common/api.js";
import { el, fill, need, uniqueId } from "../common/elements.js";
import { dotted, formatNumber, plural, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { enlarge, thumbnail } from "../images/images.js";
import { bench, hasSeveralSources, imagesAreLarge, triggerWord } from "./bench.js";
import * as check from "./check.js";
import { complete } from "./complete.js";
import * as controls from "./controls.js";
import * as selection from "./selection.js";
import { hasTrigger, tidy, wordCount } from "./text.js";
import * as tokens from "./tokens.js";
import * as unsaved from "./unsaved.js";
import * as vocabulary from "./vocabulary.js";

/** @import { ItemView } from "../common/answers" */

/** @import { Entry } from "./unsaved.js" */

/** Alt and a key, without other modifiers. */
const isAlt = (/** @type {KeyboardEvent} */ event, /** @type {string} */ code) =>
    event.altKey && !event.ctrlKey && event.code === code;

/** The thumbnail, or the image if large ones are chosen; loaded lazily. */
const shownImage = (/** @type {ItemView} */ item) =>
    thumbnail(imagesAreLarge() ? { ...item, thumbnail: item.image } : item);

/** Where a caption is stored; shown only if there are several places. */
function sourceText(/** @type {ItemView} */ item) {
    const file = hasSeveralSources() ? t("from {file}", { file: item.caption_file }) : "";
    const sources = {
        metadata: file,
        text: file,
        folder_name: t("from the folder's name"),
        trigger_word: t("the trigger word"),
    };
    return item.source ? sources[item.source] : "";
}

/**
 * Facts about the text in a textbox; `isSaved`: the server has it.
 *
 * @param {string} text
 * @param {ItemView} item
 * @param {boolean} isSaved
 */
function captionFacts(text, item, isSaved) {
    const word = triggerWord();
    return dotted(
        plural(wordCount(text), "{count} word", "{count} words"),
        isSaved && text.includes("\n") && item.captions === 1
            ? t("a list of tags, one per line")
            : "",
        isSaved && item.captions > 1
            ? t("{count} captions, one per line: each time one is chosen at random", {
                  count: formatNumber(item.captions),
              })
            : "",
        isSaved ? sourceText(item) : "",
        isSaved && item.author === "machine" ? t("written by a captioner") : "",
        word && text && !hasTrigger(text, word)
            ? t("trained as \u201c{word}, \u2026\u201d", { word })
            : "",
    );
}

/**
 * A conflict: the user chooses one of two texts.
 *
 * @param {string} mine
 * @param {string} theirs
 * @param {() => unknown} keepMine
 * @param {() => unknown} takeTheirs
 */
const conflictNotice = (mine, theirs, keepMine, takeTheirs) =>
    el(
        "div.lora-trainer-notice.lora-trainer-notice-warning",
        { role: "alert" },
        el(
            "p",
            t(
                "Someone else has changed this caption in the meantime. Which one do you want to keep?",
            ),
        ),
        el(
            "dl.lora-trainer-two-texts",
            el("dt", t("Yours")),
            el("dd", mine || t("(empty)")),
            el("dt", t("Theirs")),
            el("dd", theirs || t("(empty)")),
        ),
        widgets.row(
            widgets.button({ label: t("Keep mine"), onclick: keepMine }),
            widgets.button({ label: t("Take theirs"), onclick: takeTheirs }),
        ),
    );

/** A row. When saved, the text is compared with the server's last one. */
export class CaptionRow {
    constructor(/** @type {ItemView} */ first) {
        this.dataset = store.get("dataset") ?? "";
        const kept = unsaved.get(this.dataset, first.key);
        // text typed into an earlier textbox of this image that is not saved yet
        const typed = kept && tidy(kept.text) !== first.caption ? kept : null;
        if (typed) unsaved.tryAgain(typed);
        else if (kept) unsaved.forget(this.dataset, first.key);
        this.current = first;
        /** The server's last state. */
        this.base = typed ? typed.was : first.caption;
        /** @type {Promise<void> | null} */
        this.saving = null;
        this.conflict = false;
        this.touched = false;
        this.reviewedAddress = datasets.path("reviewed");
        this.box = widgets.lines(4, {
            value: typed ? typed.text : this.base,
            label: t("Caption of {name}", { name: first.name }),
            placeholder: t("What is in the image?"),
            oninput: () => this.onInput(),
        });
        this.state = el("span.lora-trainer-caption-state", { role: "status" });
        this.facts = widgets.small();
        this.length = tokens.line(() => this.current);
        this.remarks = el("ul.lora-trainer-caption-remarks");
        this.choice = el("div");
        this.image = el(
            "button.lora-trainer-caption-image",
            {
                type: "button",
                tabindex: "-1",
                "aria-label": t("Enlarge {name}", { name: first.name }),
                onclick: () => this.showLarge(),
            },
            shownImage(first),
        );
        this.select = this.makeSelect();
        this.reviewed = this.makeReviewed();
        this.element = this.makeElement(complete(this.box, () => this.onInput()));
        this.listen();
        this.describe();
        this.length.update(this.base);
        this.showSelected(selection.has(first.key));
    }

    // --- its parts -----------------------------------------------------------------------------

    makeSelect() {
        const select = widgets.checkbox(selection.has(this.current.key));
        select.setAttribute("aria-label", t("Select {name}", { name: this.current.name }));
        select.title = t("Shortcut in the textbox: Alt+X");
        // Tab moves between textboxes; these buttons have keyboard shortcuts
        select.tabIndex = -1;
        select.addEventListener("click", (event) =>
            selection.toggle(this.current.key, select.checked, event.shiftKey),
        );
        return select;
    }

    makeReviewed() {
        const reviewed = widgets.checkbox(Boolean(this.current.reviewed), (chosen) =>
            this.review(chosen).catch(widgets.toastProblem),
        );
        reviewed.id = uniqueId("reviewed");
        reviewed.title = t("Shortcut in the textbox: Alt+R");
        reviewed.tabIndex = -1;
        return reviewed;
    }

    makeElement(/** @type {HTMLElement} */ offered) {
        const { key, name } = this.current;
        return el(
            "div.lora-trainer-caption-row",
            { dataset: { key } },
            el("div.lora-trainer-caption-side", this.image, this.select),
            el(
                "div.lora-trainer-caption-text",
                widgets.apart(el("b.lora-trainer-cell-name", { title: name }, name), this.state),
                el("div.lora-trainer-caption-box", this.box, offered),
                this.choice,
                this.length.tail,
                el(
                    "div.lora-trainer-row.lora-trainer-between.lora-trainer-caption-foot",
                    this.facts,
                    el(
                        "span.lora-trainer-row",
                        controls.link(t("Fields"), () => vocabulary.compose(this), {
                            tabindex: "-1",
                            "aria-label": t("Fields of {name}", { name }),
                            title: t("Shortcut in the textbox: F2"),
                        }),
                        el(
                            "span.lora-trainer-bench-flag",
                            this.reviewed,
                            el("label", { for: this.reviewed.id }, t("Reviewed")),
                        ),
                    ),
                ),
                this.remarks,
            ),
        );
    }

    // --- user input ----------------------------------------------------------------------------

    listen() {
        this.box.addEventListener("blur", () => {
            this.finish();
            this.save();
        });
        // with large images, the image is scrolled into view too
        this.box.addEventListener("focus", () => {
            if (imagesAreLarge()) this.element.scrollIntoView({ block: "nearest" });
        });
        this.box.addEventListener("keydown", (event) => {
            if (event.isComposing) return;
            const act = this.actionOf(event);
            if (act) {
                event.preventDefault();
                act();
            } else if (event.key === "Escape" && !this.conflict) {
                this.box.value = this.base;
                this.onInput();
            } else if (event.key === "Enter" && !event.shiftKey && !this.base.includes("\n"))
                event.preventDefault(); // most captions have one line
        });
    }

    /**
     * The action of a key in the textbox.
     *
     * @returns {(() => unknown) | null}
     */
    actionOf(/** @type {KeyboardEvent} */ event) {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey))
            return () => {
                this.finish();
                this.approve().catch(widgets.toastProblem);
                this.goOn();
            };
        if (event.key === "PageDown") return () => this.goOn();
        if (event.key === "PageUp") return () => this.goBack();
        if (isAlt(event, "KeyX")) {
            const { key } = this.current;
            return () => selection.toggle(key, !selection.has(key), event.shiftKey);
        }
        if (isAlt(event, "KeyR"))
            return () => this.review(!this.reviewed.checked).catch(widgets.toastProblem);
        if (event.key === "F2") return () => vocabulary.compose(this);
        return null;
    }

    goOn() {
        const next = this.element.nextElementSibling;
        if (next) need(next, "textarea").focus();
        else bench.page.next().catch(widgets.toastProblem);
    }

    goBack() {
        const before = this.element.previousElementSibling;
        if (before) need(before, "textarea").focus();
    }

    /** A trailing comma is for a next tag that was not typed. */
    finish() {
        const text = this.box.value.replace(/[\s,\uff0c]+$/, "");
        if (this.isUnsaved() && tidy(text) !== this.text()) {
            this.box.value = text;
            this.onInput();
        }
    }

    onInput() {
        this.note();
        this.mark("", "");
        this.describe();
        this.length.update(this.text());
    }

    showLarge() {
        const { items } = bench.page.pages.known();
        const shown = items.find((one) => one.key === this.current.key);
        enlarge(shown ? items : [this.current], shown || this.current);
    }

    // --- display -------------------------------------------------------------------------------

    mark(/** @type {"" | "saving" | "saved" | "problem"} */ kind, /** @type {string} */ text) {
        this.state.dataset.kind = kind;
        this.state.textContent = text;
    }

    describe() {
        const text = this.text();
        fill(this.facts, this.length.count, captionFacts(text, this.current, text === this.base));
        const found = this.current.findings.filter((finding) => finding.kind !== "no-caption");
        fill(
            this.remarks,
            found.map((finding) => check.line(finding, this.current)),
        );
    }

    showSelected(/** @type {boolean} */ chosen) {
        this.select.checked = chosen;
        this.element.classList.toggle("lora-trainer-caption-selected", chosen);
    }

    /** Another image size was chosen. */
    redraw() {
        fill(this.image, shownImage(this.current));
    }

    // --- state ---------------------------------------------------------------------------------

    item() {
        return this.current;
    }

    text() {
        return tidy(this.box.value);
    }

    isUnsaved() {
        return this.text() !== this.base;
    }

    isBusy() {
        return Boolean(this.saving) || this.conflict || this.isUnsaved();
    }

    /** Whether it was saved since the page was loaded. */
    isTouched() {
        return this.touched;
    }

    isEmpty() {
        return !this.base;
    }

    isReviewed() {
        return this.reviewed.checked;
    }

    // --- saving --------------------------------------------------------------------------------

    /** Keep the text outside the textbox until the server has it. */
    note() {
        const { dataset, current, box, base } = this;
        if (this.isUnsaved()) unsaved.note(dataset, current, box.value, base);
        else if (!this.saving) unsaved.forget(dataset, current.key);
    }

    /** @returns {Promise<void>} */
    async save() {
        if (this.saving) return this.saving;
        if (this.conflict || !this.isUnsaved()) return;
        const { dataset, current, box, base } = this;
        this.saving = this.send(unsaved.note(dataset, current, box.value, base));
        try {
            await this.saving;
        } finally {
            this.saving = null;
        }
        // the text changed while it was being saved
        if (
            document.activeElement !== box &&
            this.isUnsaved() &&
            this.state.dataset.kind === "saved"
        )
            await this.save();
    }

    /** Set the text and save it. */
    write(/** @type {string} */ text) {
        this.box.value = text;
        this.note();
        this.describe();
        return this.save();
    }

    /** Save an unfocused textbox with unsaved text. */
    catchUp() {
        const entry = unsaved.get(this.dataset, this.current.key);
        return this.isUnsaved() &&
            document.activeElement !== this.box &&
            (!entry || unsaved.shouldSend(entry))
            ? this.save()
            : null;
    }

    async send(/** @type {Entry} */ entry) {
        const text = tidy(entry.text);
        this.mark("saving", t("Saving"));
        try {
            const before = this.base;
            const answer = await unsaved.send(entry);
            this.current = { ...this.current, ...answer };
            this.base = answer.caption;
            // the server may normalize the text; what was typed since is kept
            if (this.text() === text) this.box.value = this.base;
            this.note();
            this.settle(before);
        } catch (caught) {
            const { status, current, message } = expected(caught);
            if (status === 409) this.ask(text, current);
            else this.mark("problem", t("Not saved: {reason}", { reason: message }));
        }
    }

    settle(/** @type {string} */ before) {
        this.touched = true;
        this.mark("saved", t("Saved"));
        this.reviewed.checked = Boolean(this.current.reviewed);
        this.describe();
        this.length.update(this.text());
        const card = datasets.chosen();
        if (!card || card.id !== this.dataset || !before === !this.base) return;
        const captioned = card.captioned + (this.base ? 1 : -1);
        datasets.update(card.id, { captioned });
        bench.page.showCounts(captioned, card.count);
    }

    async review(/** @type {boolean} */ reviewed) {
        this.touched = true;
        this.reviewed.checked = reviewed;
        await api.post(this.reviewedAddress, { select: { keys: [this.current.key] }, reviewed });
        this.current = { ...this.current, reviewed };
    }

    /** The caption is correct: save it and mark it as reviewed. */
    async approve() {
        await this.save();
        if (this.base && !this.conflict && !this.current.reviewed) await this.review(true);
    }

    /** A conflict: show both texts. */
    ask(/** @type {string} */ mine, /** @type {string} */ theirs) {
        this.conflict = true;
        this.mark("problem", t("Not saved"));
        const done = () => {
            this.conflict = false;
            fill(this.choice);
            this.base = theirs;
        };
        const keepMine = async () => {
            done();
            await this.save();
        };
        const takeTheirs = () => {
            done();
            this.box.value = theirs;
            this.note();
            this.mark("", "");
            this.describe();
            bench.page.pages.load();
        };
        fill(this.choice, conflictNotice(mine, theirs, keepMine, takeTheirs));
    }

    /** The server's current state. Unsaved text is kept; saving it detects a conflict. */
    take(/** @type {ItemView} */ now, /** @type {boolean} */ quietly) {
        if (!quietly) this.touched = false;
        if (this.saving || this.conflict) return;
        const untouched = !this.isUnsaved();
        const repainted = now.thumbnail !== this.current.thumbnail;
        this.current = now;
        if (repainted) this.redraw();
        this.reviewed.checked = Boolean(now.reviewed);
        if (!untouched) return;
        if (this.base !== now.caption) {
            this.base = now.caption;
            this.box.value = this.base;
            this.mark("", bench.mark());
        }
        this.describe();
        this.length.update(this.base);
    }
}
