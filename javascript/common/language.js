/*
 * Translation and formatting in the user's language.
 */
import { store } from "./store.js";

/** @type {Record<string, string>} */
export let texts = {};

/** Set the table: English text -> translation. */
export function setTexts(/** @type {Record<string, string>} */ table) {
    texts = table;
}

/**
 * The translated text, with its {named} values. The first argument must be a literal: a test
 * collects them.
 *
 * @param {string} text
 * @param {Record<string, unknown>} [values]
 */
export function t(text, values = {}) {
    return (texts[text] || text).replace(/\{(\w+)\}/g, (whole, name) =>
        name in values ? String(values[name]) : whole,
    );
}

/**
 * One of two texts, by number; both contain {count}.
 *
 * @param {number} count
 * @param {string} one
 * @param {string} many
 * @param {Record<string, unknown>} [values]
 */
export function plural(count, one, many, values = {}) {
    return t(count === 1 ? one : many, { ...values, count: formatNumber(count) });
}

const isWide = () => /^(zh|ja)/.test(locale());

/** @typedef {string | false | null | undefined} Words */

/**
 * Sentences with full stops, joined as in the language.
 *
 * @param {(Words | Words[])[]} parts
 */
export function sentences(...parts) {
    const wide = isWide();
    return parts
        .flat()
        .flatMap((part) => part || [])
        .map((part) =>
            /[.!?:\u3002\uff01\uff1f\uff1a\u2026]$/.test(part)
                ? part
                : part + (wide ? "\u3002" : "."),
        )
        .join(wide ? "" : " ");
}

/**
 * Parts joined by dots; empty ones are left out.
 *
 * @param {Words[]} parts
 */
export const dotted = (...parts) => parts.filter((part) => part).join(" \u00b7 ");

/** "Name: words", as in the language. */
export const withColon = (/** @type {string} */ name, /** @type {string} */ words) =>
    name + (isWide() ? "\uff1a" : ": ") + words;

export const formatNumber = (/** @type {number} */ value, digits = 0) =>
    Number(value).toLocaleString(locale(), {
        minimumFractionDigits: 0,
        maximumFractionDigits: digits,
    });

/** Seconds -> "1 h 5 min", "40 s". */
export function formatDuration(/** @type {number} */ seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 90) return t("{seconds} s", { seconds: whole });
    if (whole < 5400) return t("{minutes} min", { minutes: Math.round(whole / 60) });
    return t("{hours} h {minutes} min", {
        hours: Math.floor(whole / 3600),
        minutes: Math.round((whole % 3600) / 60),
    });
}

/** Bytes -> "1.2 GB". */
export function formatBytes(/** @type {number} */ bytes) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let value = bytes,
        unit = 0;
    while (value >= 1000 && unit < units.length - 1) {
        value /= 1000;
        unit += 1;
    }
    return formatNumber(value, value < 10 && unit > 0 ? 1 : 0) + " " + units[unit];
}

export const formatDate = (/** @type {number} */ seconds) =>
    new Date(seconds * 1000).toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" });

function locale() {
    return (store.get("language") || "en").replace("_", "-");
}
