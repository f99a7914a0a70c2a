/*
 * Captions that were typed but not saved yet, by dataset and image. They are also kept in
 * sessionStorage, shown when their textbox is redrawn, and sent until the server has them.
 *
 *     unsaved.note(id, item, text, was)    text was typed when the server had `was`
 *     unsaved.forget(id, key)
 *     unsaved.send(entry)                  -> the server's item; rejects with Problem, with
 *     .current
 *                                          after a conflict
 *
 * Used by each row (row.js); the section "captions" sends those without a row.
 */
import { api, expected } from "../common/api.js";
import { kept } from "../common/store.js";
import * as datasets from "../images/datasets.js";
import { tokenLimit, triggerWord } from "./bench.js";
import { tidy } from "./text.js";

/** @import { ItemView, SavedItem } from "../common/answers" */

/**
 * A text that the server does not have yet. `was`: what the server had; `sent`: the texts that were
 * sent and may have arrived without an answer.
 *
 * @typedef {{id: string, key: string, item: ItemView, text: string, was: string,
 *     sent: string[]}} Entry
 */

const KEY = "lora-trainer-unsaved";

const SECONDS = 30;

const CONFLICT = 409;

/** @type {Map<string, Entry>} */
const entries = new Map();

/** The texts that were refused. @type {Map<string, string>} */
const refused = new Map();

const place = (/** @type {string} */ id, /** @type {string} */ key) => id + "\n" + key;

const placeOf = (/** @type {Entry} */ { id, key }) => place(id, key);

const remember = () => kept.set(KEY, all(), { session: true });

try {
    for (const entry of kept.get(KEY, { session: true }) ?? []) entries.set(placeOf(entry), entry);
} catch {
    /*
     * start empty
     */
}

/**
 * @param {string} id
 * @param {ItemView} item
 * @param {string} text
 * @param {string} was
 */
export function note(id, item, text, was) {
    const { key } = item;
    const before = get(id, key);
    const entry = { id, key, item, text, was, sent: before?.sent ?? [] };
    if (before && before.was !== was) refused.delete(placeOf(entry));
    entries.set(placeOf(entry), entry);
    remember();
    return entry;
}

export function forget(/** @type {string} */ id, /** @type {string} */ key) {
    if (entries.delete(place(id, key))) remember();
}

/**
 * @param {Entry} entry
 * @param {string} text
 * @param {string} was
 */
const body = (entry, text, was) => ({
    key: entry.key,
    caption: text,
    was,
    trigger: triggerWord(),
    tokens: tokenLimit(),
});

const address = (/** @type {Entry} */ entry) => datasets.path("caption", entry.id);

/**
 * Save one; text typed since stays noted. If the server already has our text, that is no conflict.
 */
export async function send(/** @type {Entry} */ entry) {
    const text = tidy(entry.text);
    if (!entry.sent.includes(text)) entry.sent.push(text);
    refused.delete(placeOf(entry));
    remember();
    let answer;
    try {
        answer = await ours(entry, text);
    } catch (caught) {
        const problem = expected(caught);
        // errors other than of the connection are not retried
        if (problem.status && problem.status < 500) refused.set(placeOf(entry), text);
        throw problem;
    }
    const now = entries.get(placeOf(entry));
    if (now && tidy(now.text) === text) forget(entry.id, entry.key);
    else if (now) {
        now.was = answer.caption;
        remember();
    }
    return answer;
}

/**
 * @param {Entry} entry
 * @param {string} text
 * @returns {Promise<SavedItem>}
 */
async function ours(entry, text, was = entry.was) {
    try {
        return await api.post(address(entry), body(entry, text, was), { seconds: SECONDS });
    } catch (caught) {
        const problem = expected(caught);
        const { current } = problem;
        if (problem.status !== CONFLICT || !entry.sent.includes(current) || current === was)
            throw problem;
        return ours(entry, text, current);
    }
}

/** Whether a retry may succeed. */
export const shouldSend = (/** @type {Entry} */ entry) =>
    refused.get(placeOf(entry)) !== tidy(entry.text);

/** A new textbox shows it: send it again, and show the error if it is refused again. */
export const tryAgain = (/** @type {Entry} */ entry) => refused.delete(placeOf(entry));

/**
 * When the page is closed, send each with keepalive. The rest stays in sessionStorage for the next
 * page.
 */
window.addEventListener("pagehide", () => {
    for (const entry of entries.values())
        api.post(address(entry), body(entry, tidy(entry.text), entry.was), {
            keepalive: true,
        }).catch(() => {});
});

window.addEventListener("beforeunload", (event) => {
    const known = new Set(datasets.cards().map((card) => card.id));
    if (all().some((entry) => known.has(entry.id))) event.preventDefault();
});

export const get = (/** @type {string} */ id, /** @type {string} */ key) =>
    entries.get(place(id, key));

export const all = () => [...entries.values()];

export const of = (/** @type {string} */ id) => all().filter((entry) => entry.id === id);
