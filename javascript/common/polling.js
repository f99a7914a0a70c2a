/*
 * Questions that are asked again and again, but only while somebody can see the tab.
 */
import { Problem } from "./api.js";
import { root } from "./host.js";

/** @import { Poll } from "./types" */

/** @type {Set<Poll & {isDue: () => boolean}>} */
const polls = new Set();

let onScreen = false;

/** Whether somebody can see the tab now. */
export const isVisible = () => onScreen && document.visibilityState === "visible";

/**
 * Call fn now and again: it returns (or resolves to) the seconds until the next call, or null to
 * rest until .wake(). It rests while the tab cannot be seen.
 *
 * @param {() => Promise<number | null>} fn
 * @returns {Poll}
 */
export function startPolling(fn) {
    let timer = 0,
        busy = false,
        stopped = false,
        due = false;
    async function wake() {
        clearTimeout(timer);
        if (stopped || busy) {
            due = busy;
            return;
        }
        if (!isVisible()) {
            due = true;
            return;
        }
        busy = true;
        due = false;
        /** @type {number | null} */
        let seconds = 3;
        try {
            seconds = await fn();
        } catch (problem) {
            if (!(problem instanceof Problem)) console.error(problem);
        }
        busy = false;
        if (stopped) return;
        if (due) wake();
        else if (seconds !== null) timer = setTimeout(wake, seconds * 1000);
    }
    const poll = {
        wake,
        isDue: () => due,
        stop() {
            stopped = true;
            clearTimeout(timer);
            polls.delete(poll);
        },
    };
    polls.add(poll);
    wake();
    return poll;
}

/** End all of them. */
export function stopPolling() {
    for (const poll of polls) poll.stop();
}

/** Go on with what was due while nobody could see the tab. */
export function lookAround() {
    for (const poll of polls) if (poll.isDue() && isVisible()) poll.wake();
}

export function watchVisibility() {
    document.addEventListener("visibilitychange", lookAround);
    new IntersectionObserver((entries) => {
        onScreen = entries.at(-1)?.isIntersecting ?? false;
        lookAround();
    }).observe(root());
}
