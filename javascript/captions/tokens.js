/*
 * Token counts of captions, the truncated part, and how the model tokenizes the trigger word.
 *
 * Counts are part of each page; while the user types, the server counts the current text. Without a
 * vocabulary nothing is shown.
 */
import { api, expected } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, sentences, t } from "../common/language.js";
import { settings, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { bench, tokenLimit, triggerWord } from "./bench.js";
import * as filter from "./filter.js";

/** @import { ItemView, TokensView } from "../common/answers" */

const WAIT = 400;

const SHOWN_BEFORE = 60;

/** A text split where it is truncated. */
export function cut(
    /** @type {string} */ text,
    /** @type {number} */ keptEnd,
    before = SHOWN_BEFORE,
) {
    const kept = text.slice(0, keptEnd),
        dropped = text.slice(keptEnd);
    const shown =
        kept.length > before ? "\u2026" + kept.slice(-before).replace(/^\S*\s/, "") : kept;
    return { kept: shown, dropped };
}

/**
 * The token count of a row: {count, tail} to show, update(text) after a change. `of()` is the row's
 * item.
 */
export function line(/** @type {() => ItemView} */ of) {
    const count = el("span.lora-trainer-bench-tokens");
    const tail = el("p.lora-trainer-help.lora-trainer-bench-tail", { hidden: true });
    let timer = 0,
        serial = 0;

    function show(/** @type {string} */ text, /** @type {TokensView} */ found, available = true) {
        const known = available && (found.count > 0 || !text);
        count.textContent = known
            ? t("{count} / {limit} tokens", {
                  count: formatNumber(found.count),
                  limit: formatNumber(found.limit),
              }) + " \u00b7 "
            : "";
        const over = known && found.over;
        count.classList.toggle("lora-trainer-bench-over", over);
        tail.hidden = !over;
        if (!over) return;
        const { kept, dropped } = cut(text, found.kept_end);
        fill(tail, t("The struck-out part is cut off in training:"), " ", kept, el("s", dropped));
    }

    async function ask(/** @type {string} */ text) {
        const mine = (serial += 1);
        try {
            const found = await api.post("tokens", {
                caption: text,
                trigger: triggerWord(),
                limit: tokenLimit(),
            });
            if (mine === serial) show(text, found, found.available);
        } catch (caught) {
            expected(caught);
        }
    }

    return {
        count,
        tail,
        update(/** @type {string} */ text) {
            clearTimeout(timer);
            serial += 1;
            const item = of();
            if (text === item.caption) show(text, item.tokens);
            else timer = setTimeout(() => ask(text), WAIT);
        },
    };
}

/**
 * The trigger word's textbox, with how the model tokenizes it: {element, input, show() after a
 * change of the settings}.
 */
export function triggerField() {
    const remark = el("p.lora-trainer-help.lora-trainer-bench-trigger", { role: "status" });
    const set = (/** @type {string} */ value) => {
        store.set("settings", { ...settings(), trigger_word: value.trim() });
        look(value.trim());
        filter.turn({ offset: bench.page.pages.query.offset }).catch(widgets.toastProblem);
    };
    async function look(/** @type {string} */ word) {
        if (!word) {
            fill(remark);
            return;
        }
        try {
            const found = await api.get("trigger", { word });
            if (word !== triggerWord()) return;
            remark.dataset.good = String(found.is_good);
            fill(remark, found.available && sentences(found.message, found.hint));
        } catch (caught) {
            expected(caught);
            fill(remark);
        }
    }
    const word = widgets.text({ value: triggerWord(), maxlength: 60, onchange: set });
    look(triggerWord());
    const show = () => {
        if (word.value.trim() === triggerWord()) return;
        word.value = triggerWord();
        look(triggerWord());
    };
    const element = widgets.labelled(t("Trigger word"), word, {
        help: t(
            "A rare word that activates the LoRA in a prompt. Training adds it at the front of every caption that lacks it.",
        ),
        problem: remark,
    });
    return { element, input: word, show };
}
