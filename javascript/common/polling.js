/*
 * Polling, paused while the tab is not visible.
 */
import { Problem } from "./api.js";
import { root } from "./host.js";

/** @import { Poll } from "./types" */

/** @type {Set<Poll & {isDue: () => boolean}>} */
const polls = new Set();

let onScreen = false;

/** Whether the tab is visible. */
export const isVisible = () => onScreen && document.visibilityState === "visible";

/**
 * Call fn repeatedly: it returns (or resolves to) the seconds until the next call, or null to wait
 * for .wake(). Paused while the tab is not visible.
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

/** Stop all of them. */
export function stopPolling() {
    for (const poll of polls) poll.stop();
}

/** Resume polls that became due while the tab was not visible. */
export function pollVisible() {
    for (const poll of polls) if (poll.isDue() && isVisible()) poll.wake();
}

export function watchVisibility() {
    document.addEventListener("visibilitychange", pollVisible);
    new IntersectionObserver((entries) => {
        onScreen = entries.at(-1)?.isIntersecting ?? false;
        pollVisible();
    }).observe(root());
}
