/*
 * What the sections share, and what this browser remembers.
 */
const values = new Map(),
    listeners = new Map();

export const store = {
    get: (key) => values.get(key),
    set(key, value) {
        if (values.get(key) === value) return;
        values.set(key, value);
        for (const listener of [...(listeners.get(key) || [])]) listener(value);
    },
    /** Hear of every change of a key; returns how to stop. */
    on(key, listener) {
        if (!listeners.has(key)) listeners.set(key, new Set());
        listeners.get(key).add(listener);
        return () => listeners.get(key).delete(listener);
    },
};

/**
 * What this browser remembers: for good, or with `session` until its window is closed. A private
 * window keeps nothing, and another page's word is none.
 */
export const kept = {
    get(key, { session = false } = {}) {
        try {
            return JSON.parse((session ? window.sessionStorage : window.localStorage).getItem(key));
        } catch {
            return null;
        }
    },
    set(key, value, { session = false } = {}) {
        try {
            (session ? window.sessionStorage : window.localStorage).setItem(
                key,
                JSON.stringify(value),
            );
        } catch {
            /* forgotten, then */
        }
    },
};
