/*
 * The visitor's language: sentences from the server's table, numbers, sizes and times as people say
 * them. /
 */
import { store } from "./store.js";

export let texts = {};

/** Say everything with this table from now on: English sentence -> sentence. */
export function setTexts(table) {
    texts = table;
}

/**
 * The text in the visitor's language, with its {named} values put in. The first argument is always
 * a literal: a test collects them.
 */
export function t(text, values) {
    const known = texts[text] || text;
    return values
        ? known.replace(/\{(\w+)\}/g, (whole, name) =>
              name in values ? String(values[name]) : whole,
          )
        : known;
}

/** One of two texts, by number; both take {count}. */
export function plural(count, one, many, values = {}) {
    return t(count === 1 ? one : many, { ...values, count: formatNumber(count) });
}

/** Sentences in a row, each with its full stop, as the language sets them. */
export function sentences(...parts) {
    const wide = /^(zh|ja)/.test(locale());
    return parts
        .flat()
        .filter(Boolean)
        .map((part) =>
            /[.!?:\u3002\uff01\uff1f\uff1a\u2026]$/.test(part)
                ? part
                : part + (wide ? "\u3002" : "."),
        )
        .join(wide ? "" : " ");
}

/** "Name: words", as the language sets it. */
export const withColon = (name, words) =>
    name + (/^(zh|ja)/.test(locale()) ? "\uff1a" : ": ") + words;

export const formatNumber = (value, digits = 0) =>
    Number(value).toLocaleString(locale(), {
        minimumFractionDigits: 0,
        maximumFractionDigits: digits,
    });

/** Seconds -> "1 h 5 min", "40 s". */
export function formatDuration(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 90) return t("{seconds} s", { seconds: whole });
    if (whole < 5400) return t("{minutes} min", { minutes: Math.round(whole / 60) });
    return t("{hours} h {minutes} min", {
        hours: Math.floor(whole / 3600),
        minutes: Math.round((whole % 3600) / 60),
    });
}

/** Bytes -> "1.2 GB". */
export function formatBytes(bytes) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let value = bytes,
        unit = 0;
    while (value >= 1000 && unit < units.length - 1) {
        value /= 1000;
        unit += 1;
    }
    return formatNumber(value, value < 10 && unit > 0 ? 1 : 0) + " " + units[unit];
}

export const formatDate = (seconds) =>
    new Date(seconds * 1000).toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" });

function locale() {
    return (store.get("language") || "en").replace("_", "-");
}
