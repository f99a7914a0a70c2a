/*
 * The visitor's language: sentences from the server's table, numbers, sizes and times as people say
 * them.
 */
import { store } from "./store.js";

/** @type {Record<string, string>} */
export let texts = {};

/** Say everything with this table from now on: English sentence -> sentence. */
export function setTexts(/** @type {Record<string, string>} */ table) {
    texts = table;
}

/**
 * The text in the visitor's language, with its {named} values put in. The first argument is always
 * a literal: a test collects them.
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
 * One of two texts, by number; both take {count}.
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
 * Sentences in a row, each with its full stop, as the language sets them.
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
 * Facts in a row, with dots between; those that say nothing are left out.
 *
 * @param {Words[]} parts
 */
export const dotted = (...parts) => parts.filter((part) => part).join(" \u00b7 ");

/** "Name: words", as the language sets it. */
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
