/*
 * Questions that are asked again and again, but only while somebody can see the tab.
 */
import { Problem } from "./api.js";
import { root } from "./host.js";

const polls = new Set();

let onScreen = false;

/** Whether somebody can see the tab now. */
export const isVisible = () => onScreen && document.visibilityState === "visible";

/**
 * Call fn now and again: it returns (or resolves to) the seconds until the next call, or null to
 * rest until .wake(). It rests while the tab cannot be seen.
 */
export function startPolling(fn) {
    const poll = { timer: 0, busy: false, stopped: false, due: false };
    const run = async () => {
        clearTimeout(poll.timer);
        if (poll.stopped || poll.busy) {
            poll.due = poll.busy;
            return;
        }
        if (!isVisible()) {
            poll.due = true;
            return;
        }
        poll.busy = true;
        poll.due = false;
        let seconds = null;
        try {
            seconds = await fn();
        } catch (problem) {
            if (!(problem instanceof Problem)) console.error(problem);
            seconds = 3;
        }
        poll.busy = false;
        if (poll.stopped) return;
        if (poll.due) run();
        else if (seconds !== null && seconds !== undefined)
            poll.timer = setTimeout(run, seconds * 1000);
    };
    poll.run = run;
    polls.add(poll);
    run();
    return {
        wake: run,
        stop() {
            poll.stopped = true;
            clearTimeout(poll.timer);
            polls.delete(poll);
        },
    };
}

/** End all of them. */
export function stopPolling() {
    for (const poll of polls) {
        poll.stopped = true;
        clearTimeout(poll.timer);
    }
    polls.clear();
}

/** Go on with what was due while nobody could see the tab. */
export function lookAround() {
    for (const poll of polls) if (poll.due && isVisible()) poll.run();
}

export function watchVisibility() {
    document.addEventListener("visibilitychange", lookAround);
    new IntersectionObserver((entries) => {
        onScreen = entries[entries.length - 1].isIntersecting;
        lookAround();
    }).observe(root());
}
