/*
 * State shared by the sections, and localStorage.
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
     * Listen to changes of a key. Returns a function that stops it.
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

/** The server's initial data, available before any section is drawn. */
export function home() {
    const known = store.get("home");
    if (!known) throw new Error("The initial data is not loaded yet.");
    return known;
}

/** The settings of the next training; {} before the draft is loaded. */
export const settings = () => store.get("settings") ?? {};

/**
 * A value that is set later, such as a section's elements.
 *
 * @template T
 */
export class Later {
    /** @type {T | null} */
    now = null;

    /** The value. Throws if it is not set. */
    need() {
        if (this.now === null) throw new Error("This part of the tab is not drawn yet.");
        return this.now;
    }
}

const storage = (/** @type {boolean} */ session) => (session ? sessionStorage : localStorage);

/**
 * Values kept in localStorage, or with `session` in sessionStorage. Errors are ignored: private
 * windows may forbid it.
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
            /*
             * cannot be stored
             */
        }
    },
};
