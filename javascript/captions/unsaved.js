/*
 * Captions that were typed and that the server does not have yet, by dataset and image. A box may
 * be drawn again, or go away with its page: its text is here, and also in the browser's session, so
 * that a new box shows it, and it is sent until the server has it.
 *
 *     unsaved.note(id, item, text, was)    text was typed where the server had `was`
 *     unsaved.forget(id, key)
 *     unsaved.send(entry)                  -> the server's item; rejects with Problem, with .current
 *                                          where somebody else wrote something
 *
 * Used by each row (row.js); the section "captions" sends what no row shows. /
 */
import { api } from "../common/api.js";
import * as datasets from "../images/datasets.js";
import { tokenLimit, triggerWord } from "./bench.js";
import { tidy } from "./text.js";

const KEY = "lora-trainer-unsaved";

const SECONDS = 30;

const CONFLICT = 409;

const entries = new Map(),
    refused = new Map();

const place = (id, key) => id + "\n" + key;

function remember() {
    try {
        sessionStorage.setItem(KEY, JSON.stringify([...entries.values()]));
    } catch {
        /* private windows keep nothing */
    }
}

try {
    for (const entry of JSON.parse(sessionStorage.getItem(KEY)) || [])
        entries.set(place(entry.id, entry.key), entry);
} catch {
    /* begin anew */
}

/** `sent` holds the texts that were sent and may have arrived without an answer. */
export function note(id, item, text, was) {
    const before = entries.get(place(id, item.key));
    const entry = { id, key: item.key, item, text, was, sent: before ? before.sent : [] };
    if (before && before.was !== was) refused.delete(place(id, item.key));
    entries.set(place(id, item.key), entry);
    remember();
    return entry;
}

export function forget(id, key) {
    if (entries.delete(place(id, key))) remember();
}

const body = (entry, text, was) => ({
    key: entry.key,
    caption: text,
    was,
    trigger: triggerWord(),
    tokens: tokenLimit(),
});

const address = (entry) => datasets.path("caption", entry.id);

/**
 * Save one; what was typed since stays noted. A text of ours that is there already is no conflict.
 */
export async function send(entry) {
    const text = tidy(entry.text);
    if (!entry.sent.includes(text)) entry.sent.push(text);
    refused.delete(place(entry.id, entry.key));
    remember();
    let answer;
    try {
        answer = await ours(entry, text);
    } catch (problem) {
        // what is no trouble of the connection does not go away by itself
        if (problem.status && problem.status < 500) refused.set(place(entry.id, entry.key), text);
        throw problem;
    }
    const now = entries.get(place(entry.id, entry.key));
    if (now && tidy(now.text) === text) forget(entry.id, entry.key);
    else if (now) {
        now.was = answer.caption;
        remember();
    }
    return answer;
}

async function ours(entry, text, was = entry.was) {
    try {
        return await api.post(address(entry), body(entry, text, was), { seconds: SECONDS });
    } catch (problem) {
        const { current } = problem;
        if (problem.status !== CONFLICT || !entry.sent.includes(current) || current === was)
            throw problem;
        return ours(entry, text, current);
    }
}

/** Whether sending it again may end otherwise than the last time. */
export const isWorthSending = (entry) =>
    refused.get(place(entry.id, entry.key)) !== tidy(entry.text);

/** A new box shows it, and says why if it is refused again. */
export const tryAgain = (entry) => refused.delete(place(entry.id, entry.key));

/**
 * The page goes away: one last request each, which outlives it. What it cannot bring stays in the
 * session for the next page.
 */
window.addEventListener("pagehide", () => {
    for (const entry of entries.values())
        api.post(address(entry), body(entry, tidy(entry.text), entry.was), {
            keepalive: true,
        }).catch(() => {});
});

window.addEventListener("beforeunload", (event) => {
    const known = new Set((datasets.cards() || []).map((card) => card.id));
    if ([...entries.values()].some((entry) => known.has(entry.id))) event.preventDefault();
});

export const get = (id, key) => entries.get(place(id, key)) || null;

export const all = () => [...entries.values()];

export const of = (id) => [...entries.values()].filter((entry) => entry.id === id);
