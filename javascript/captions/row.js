/*
 * One picture and the box of its caption: saved when the box is left, compared with what the server
 * has. Beside it what is known of it: its length in tokens, who wrote it, whether it was reviewed,
 * what the check found, each with the button that mends it.
 */
import { api } from "../common/api.js";
import { el, fill, uniqueId } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { enlarge, thumbnail } from "../images/pictures.js";
import { bench, hasSeveralSources, picturesAreLarge, triggerWord } from "./bench.js";
import * as check from "./check.js";
import { complete } from "./complete.js";
import * as controls from "./controls.js";
import * as selection from "./selection.js";
import { hasTrigger, tidy, wordCount } from "./text.js";
import * as tokens from "./tokens.js";
import * as unsaved from "./unsaved.js";
import * as vocabulary from "./vocabulary.js";

/** `base` is what the server said last; what is typed is compared with it when it is saved. */
export function captionRow(first) {
    const id = store.get("dataset");
    const kept = unsaved.get(id, first.key);
    // what was typed into another box for this image, and has not arrived
    const typed = kept && tidy(kept.text) !== first.caption ? kept : null;
    if (typed) unsaved.tryAgain(typed);
    else if (kept) unsaved.forget(id, first.key);
    let item = first,
        base = typed ? typed.was : first.caption,
        saving = null,
        conflict = false,
        touched = false;
    const reviewedAddress = datasets.path("reviewed");
    const box = widgets.text({
        value: typed ? typed.text : base,
        rows: 4,
        label: t("Caption of {name}", { name: item.name }),
        placeholder: t("What is in the picture?"),
        oninput: heard,
    });
    const state = el("span", { class: "lora-trainer-caption-state", role: "status" });
    const facts = el("span", { class: "lora-trainer-help" });
    const length = tokens.line(() => item);
    const remarks = el("ul", { class: "lora-trainer-caption-remarks" });
    const choice = el("div");
    const offered = complete(box, heard);
    const picture = el(
        "button",
        {
            type: "button",
            class: "lora-trainer-caption-picture",
            tabindex: "-1",
            "aria-label": t("Enlarge {name}", { name: item.name }),
            onclick: showLarge,
        },
        pictured(),
    );
    const select = controls.checkbox(selection.has(item.key));
    select.setAttribute("aria-label", t("Select {name}", { name: item.name }));
    select.title = t("Alt+X in the caption's box does the same");
    // Tab goes from box to box; each of these has its key
    select.tabIndex = -1;
    select.addEventListener("click", (event) =>
        selection.toggle(item.key, select.checked, event.shiftKey),
    );
    const reviewed = controls.checkbox(Boolean(item.reviewed), (chosen) =>
        review(chosen).catch(widgets.toastProblem),
    );
    reviewed.id = uniqueId("reviewed");
    reviewed.title = t("Alt+R in the caption's box does the same");
    reviewed.tabIndex = -1;
    const element = el(
        "div",
        { class: "lora-trainer-caption-row", dataset: { key: item.key } },
        el("div", { class: "lora-trainer-caption-side" }, picture, select),
        el(
            "div",
            { class: "lora-trainer-caption-text" },
            el(
                "div",
                { class: "lora-trainer-row lora-trainer-between" },
                el("b", { class: "lora-trainer-cell-name", title: item.name }, item.name),
                state,
            ),
            el("div", { class: "lora-trainer-caption-box" }, box, offered),
            choice,
            length.tail,
            el(
                "div",
                { class: "lora-trainer-row lora-trainer-between lora-trainer-caption-foot" },
                facts,
                el(
                    "span",
                    { class: "lora-trainer-row" },
                    controls.link(t("Fields"), () => vocabulary.compose(row), {
                        tabindex: "-1",
                        "aria-label": t("Fields of {name}", { name: item.name }),
                        title: t("F2 in the caption's box does the same"),
                    }),
                    el(
                        "span",
                        { class: "lora-trainer-bench-flag" },
                        reviewed,
                        el("label", { for: reviewed.id }, t("Reviewed")),
                    ),
                ),
            ),
            remarks,
        ),
    );

    function goOn() {
        const next = element.nextElementSibling;
        if (next) next.querySelector("textarea").focus();
        else bench.page.next().catch(widgets.toastProblem);
    }

    /** A comma behind the last tag waits for the next one, which does not come. */
    function finish() {
        const text = box.value.replace(/[\s,\uff0c]+$/, "");
        if (isUnsaved() && tidy(text) !== tidy(box.value)) {
            box.value = text;
            heard();
        }
    }

    box.addEventListener("blur", () => {
        finish();
        save();
    });
    // a large picture comes into view with its box
    box.addEventListener("focus", () => {
        if (picturesAreLarge()) element.scrollIntoView({ block: "nearest" });
    });
    box.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            finish();
            approve().catch(widgets.toastProblem);
            goOn();
        } else if (event.key === "PageDown") {
            event.preventDefault();
            goOn();
        } else if (event.key === "PageUp") {
            event.preventDefault();
            const before = element.previousElementSibling;
            if (before) before.querySelector("textarea").focus();
        } else if (event.altKey && !event.ctrlKey && event.code === "KeyX") {
            event.preventDefault();
            selection.toggle(item.key, !selection.has(item.key), event.shiftKey);
        } else if (event.altKey && !event.ctrlKey && event.code === "KeyR") {
            event.preventDefault();
            review(!reviewed.checked).catch(widgets.toastProblem);
        } else if (event.key === "F2") {
            event.preventDefault();
            vocabulary.compose(row);
        } else if (event.key === "Escape" && !conflict) {
            box.value = base;
            heard();
        } else if (event.key === "Enter" && !event.shiftKey && !base.includes("\n"))
            event.preventDefault(); // most captions are one line
    });

    /**
     * The thumbnail, or the picture itself where large ones are wanted; both are fetched when they
     * are scrolled to.
     */
    function pictured() {
        return thumbnail(picturesAreLarge() ? { ...item, thumbnail: item.picture } : item);
    }

    function heard() {
        note();
        mark("", "");
        describe();
        length.hear(tidy(box.value));
    }

    function showLarge() {
        const { items } = bench.page.pages.answer;
        const shown = items.find((one) => one.key === item.key);
        enlarge(shown ? items : [item], shown || item);
    }

    function mark(kind, text) {
        state.dataset.kind = kind;
        state.textContent = text;
    }

    function describe() {
        const text = tidy(box.value),
            word = triggerWord();
        // a person needs to know only where captions come from several places
        const file = hasSeveralSources() ? t("from {file}", { file: item.caption_file }) : "";
        const sources = {
            metadata: file,
            text: file,
            folder_name: t("from the folder's name"),
            trigger_word: t("the trigger word"),
        };
        fill(
            facts,
            length.count,
            [
                plural(wordCount(text), "{count} word", "{count} words"),
                text === base && text.includes("\n") && item.captions === 1
                    ? t("a list of tags, one a line")
                    : "",
                text === base && item.captions > 1
                    ? t("{count} captions, one a line: each time one of them is drawn", {
                          count: formatNumber(item.captions),
                      })
                    : "",
                text === base && item.source ? sources[item.source] : "",
                text === base && item.author === "machine" ? t("written by a captioner") : "",
                word && text && !hasTrigger(text, word)
                    ? t("trained as \u201c{word}, \u2026\u201d", { word })
                    : "",
            ]
                .filter(Boolean)
                .join(" \u00b7 "),
        );
        const found = item.findings.filter((finding) => finding.kind !== "no-caption");
        fill(
            remarks,
            found.map((finding) => check.line(finding, item)),
        );
    }

    const isUnsaved = () => tidy(box.value) !== base;

    /** Kept beyond this box, until the server has it. */
    function note() {
        if (isUnsaved()) unsaved.note(id, item, box.value, base);
        else if (!saving) unsaved.forget(id, item.key);
    }

    async function save() {
        if (saving) return saving;
        if (conflict || !isUnsaved()) return null;
        saving = send(unsaved.note(id, item, box.value, base));
        try {
            await saving;
        } finally {
            saving = null;
        }
        // typed on while it was being saved
        return document.activeElement !== box && isUnsaved() && state.dataset.kind === "saved"
            ? save()
            : null;
    }

    async function send(entry) {
        const text = tidy(entry.text);
        mark("saving", t("Saving"));
        try {
            const before = base;
            const answer = await unsaved.send(entry);
            item = { ...item, ...answer };
            base = answer.caption;
            // what the server keeps may be tidier; what was typed since stays
            if (tidy(box.value) === text) box.value = base;
            note();
            settle(before);
        } catch (problem) {
            if (problem.status === 409) ask(text, problem.current);
            else mark("problem", t("Not saved: {reason}", { reason: problem.message }));
        }
    }

    function settle(before) {
        touched = true;
        mark("saved", t("Saved"));
        reviewed.checked = Boolean(item.reviewed);
        describe();
        length.hear(tidy(box.value));
        const card = datasets.chosen();
        if (!card || card.id !== id || !before === !base) return;
        const captioned = card.captioned + (base ? 1 : -1);
        datasets.update({ id: card.id, captioned });
        bench.page.showCounts(captioned, card.count);
    }

    async function review(wanted) {
        touched = true;
        reviewed.checked = wanted;
        await api.post(reviewedAddress, { select: { keys: [item.key] }, reviewed: wanted });
        item = { ...item, reviewed: wanted };
    }

    /** The caption is right as it stands: saved, and marked. */
    async function approve() {
        await save();
        if (base && !conflict && !item.reviewed && "reviewed" in item) await review(true);
    }

    /** Two texts, one place: the visitor chooses. */
    function ask(mine, theirs) {
        conflict = true;
        mark("problem", t("Not saved"));
        const done = () => {
            conflict = false;
            fill(choice);
        };
        fill(
            choice,
            el(
                "div",
                { class: "lora-trainer-notice lora-trainer-notice-warning", role: "alert" },
                el(
                    "p",
                    {},
                    t("Someone else changed this caption meanwhile. Which one is to stay?"),
                ),
                el(
                    "dl",
                    { class: "lora-trainer-two-texts" },
                    el("dt", {}, t("Yours")),
                    el("dd", {}, mine || t("(empty)")),
                    el("dt", {}, t("Theirs")),
                    el("dd", {}, theirs || t("(empty)")),
                ),
                el(
                    "div",
                    { class: "lora-trainer-row" },
                    widgets.button({
                        label: t("Keep mine"),
                        onclick: async () => {
                            done();
                            base = theirs;
                            await save();
                        },
                    }),
                    widgets.button({
                        label: t("Take theirs"),
                        onclick: () => {
                            done();
                            base = theirs;
                            box.value = theirs;
                            note();
                            mark("", "");
                            describe();
                            bench.page.pages.load();
                        },
                    }),
                ),
            ),
        );
    }

    const row = {
        element,
        save,
        describe,
        isUnsaved,
        item: () => item,
        text: () => tidy(box.value),
        /** Put a text into the box and save it. */
        write(text) {
            box.value = text;
            note();
            describe();
            return save();
        },
        showSelected(chosen) {
            select.checked = chosen;
            element.classList.toggle("lora-trainer-caption-selected", chosen);
        },
        /** Save what is left unsaved in a box where nobody types. */
        catchUp() {
            const entry = unsaved.get(id, item.key);
            return isUnsaved() &&
                document.activeElement !== box &&
                (!entry || unsaved.isWorthSending(entry))
                ? save()
                : null;
        },
        isBusy: () => Boolean(saving) || conflict || isUnsaved(),
        /** Whether something was saved since the visitor asked for this page. */
        isTouched: () => touched,
        isEmpty: () => !base,
        isReviewed: () => reviewed.checked,
        /** Pictures are wanted in another size. */
        redraw() {
            fill(picture, pictured());
        },
        /** What the server says now. What is being typed stays; saving it will compare. */
        take(now, quietly) {
            if (!quietly) touched = false;
            if (saving || conflict) return;
            const untouched = !isUnsaved();
            const repainted = now.thumbnail !== item.thumbnail;
            item = now;
            if (repainted) fill(picture, pictured());
            reviewed.checked = Boolean(now.reviewed);
            if (untouched) {
                if (base !== now.caption) {
                    base = now.caption;
                    box.value = base;
                    mark("", bench.mark());
                }
                describe();
                length.hear(base);
            }
        },
    };
    describe();
    length.hear(base);
    row.showSelected(selection.has(item.key));
    return row;
}
