/*
 * What the sections share, and what this browser remembers.
 */

/** @import { Shared } from "./types" */

/** @type {Partial<Shared>} */
const values = {};

/** @type {Map<keyof Shared, Set<(value: any) => unknown>>} */
const listeners = new Map();

export const store = {
    /**
     * @template {keyof Shared} K
     * @param {K} key
     */
    get: (key) => values[key],
    /**
     * @template {keyof Shared} K
     * @param {K} key
     * @param {Shared[K]} value
     */
    set(key, value) {
        if (values[key] === value) return;
        values[key] = value;
        for (const listener of [...(listeners.get(key) ?? [])]) listener(value);
    },
    /**
     * Hear of every change of a key; returns how to stop.
     *
     * @template {keyof Shared} K
     * @param {K} key
     * @param {(value: Shared[K]) => unknown} listener
     */
    on(key, listener) {
        const all = listeners.get(key) ?? new Set();
        listeners.set(key, all.add(listener));
        return () => all.delete(listener);
    },
};

/** The page's facts, which are known before any section is drawn. */
export function home() {
    const known = store.get("home");
    if (!known) throw new Error("The page's facts are not known yet.");
    return known;
}

/** What is set for the next training; nothing before the draft is known. */
export const settings = () => store.get("settings") ?? {};

/**
 * A place for what is made later, such as a section's elements when it is drawn.
 *
 * @template T
 */
export class Later {
    /** @type {T | null} */
    now = null;

    /** What is there. Throws where nothing has been made. */
    need() {
        if (this.now === null) throw new Error("This part of the tab is not drawn yet.");
        return this.now;
    }
}

const storage = (/** @type {boolean} */ session) => (session ? sessionStorage : localStorage);

/**
 * What this browser remembers: for good, or with `session` until its window is closed. A private
 * window keeps nothing, and another page's word is none.
 */
export const kept = {
    get(/** @type {string} */ key, { session = false } = {}) {
        try {
            return JSON.parse(storage(session).getItem(key) ?? "null");
        } catch {
            return null;
        }
    },
    set(/** @type {string} */ key, /** @type {unknown} */ value, { session = false } = {}) {
        try {
            storage(session).setItem(key, JSON.stringify(value));
        } catch {
            /* forgotten, then */
        }
    },
};
