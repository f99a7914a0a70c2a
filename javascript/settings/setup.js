/*
 * The set-up screen, shown while the worker's packages are missing.
 */
import { api } from "../common/api.js";
import { el, put } from "../common/elements.js";
import { formatBytes, formatDuration, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { refreshHome } from "../common/start.js";
import { home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";

/** @import { SetupView } from "../common/answers" */
/** @import { Poll } from "../common/types" */

// --- set-up ------------------------------------------------------------------------------------

const SECONDS_INSTALLING = 1,
    SECONDS_MISSING = 4;

/** @type {Poll | null} */
let poll = null;

/** Check whether the packages have been installed in the meantime. */
export const pollSetUp = () => poll?.wake();

async function copyReport() {
    const answer = await api.get("setup", { report: "1" });
    await widgets.copyText(answer.report);
    widgets.dialog({
        title: t("Report"),
        wide: true,
        body: el("pre.lora-trainer-setup-lines", { tabindex: "0" }, answer.report),
    });
}

const TITLES = {
    ready: () => t("Training is set up"),
    missing: () => t("One step before training"),
    broken: () => t("The set-up is incomplete"),
    installing: () => t("Setting up ..."),
    failed: () => t("The set-up failed"),
};

function startText(/** @type {SetupView} */ now) {
    if (now.state === "failed") return t("Try again");
    if (now.state === "ready") return t("Set up again");
    const size = now.megabytes ? formatBytes(now.megabytes * 1e6) : "";
    return size ? t("Set up (about {size})", { size }) : t("Set up");
}

/** Whether training can start depends on it. */
function announceState(/** @type {SetupView} */ now) {
    store.set("home", { ...home(), setup: now });
    if (now.state !== "ready") return;
    widgets.toast(t("Everything is installed. You can train now."), { severity: "done" });
    refreshHome();
}

function showLines(/** @type {HTMLElement} */ lines, /** @type {SetupView} */ now) {
    const text = now.lines.join("\n");
    lines.hidden = !text || now.state === "ready";
    if (lines.textContent !== text) {
        lines.textContent = text;
        lines.scrollTop = lines.scrollHeight;
    }
}

export function setUpCard(/** @type {SetupView} */ setup) {
    const message = el("p.lora-trainer-setup-message");
    const hint = el("p.lora-trainer-hint");
    const lines = el("pre.lora-trainer-setup-lines", {
        tabindex: "0",
        "aria-label": t("Output of the set-up"),
    });
    const bar = widgets.progress(t("Setting up"));
    const start = widgets.button({
        label: t("Set up"),
        kind: "primary",
        onclick: async () => {
            show(await api.post("setup"));
            pollSetUp();
        },
    });
    const copy = widgets.button({
        label: t("Copy a report"),
        title: t(
            "For a bug report: versions, the WebUI and the last log lines, without user names and passwords.",
        ),
        onclick: copyReport,
    });
    const later = widgets.button({
        label: t("Later"),
        onclick: () => {
            postponed = message.textContent;
            element.hidden = true;
        },
    });
    const heading = el("h3");
    const element = el(
        "section.lora-trainer-card.lora-trainer-setup",
        { "aria-label": t("Set-up"), role: "status" },
        heading,
        message,
        hint,
        bar.element,
        widgets.row(start, copy, later),
        lines,
    );
    let was = "";
    /** @type {string | null} the message that was dismissed with Later; not shown again */
    let postponed = null;

    function show(/** @type {SetupView} */ now) {
        const busy = now.state === "installing";
        put(heading, TITLES[now.state]());
        put(message, now.message);
        put(hint, now.hint);
        element.dataset.state = now.state;
        // it disappears when done, with a message
        element.hidden = now.state === "ready" && (!now.hint || now.message === postponed);
        bar.element.hidden = !busy;
        if (busy) bar.set(0, 0, now.seconds ? formatDuration(now.seconds) : "");
        start.hidden = busy || (now.state === "ready" && !now.hint);
        put(start, startText(now));
        // if training is possible already, this step is optional
        widgets.makePrimary(start, now.state !== "ready");
        copy.hidden = now.state === "ready" && !now.hint;
        later.hidden = now.state !== "ready";
        showLines(lines, now);
        if (was && was !== now.state) announceState(now);
        was = now.state;
    }

    /** It may have been started or finished in another window or on the command line. */
    async function look() {
        const now = await api.get("setup");
        show(now);
        if (now.state === "ready") return null;
        return now.state === "installing" ? SECONDS_INSTALLING : SECONDS_MISSING;
    }

    show(setup);
    poll = startPolling(look);
    return element;
}
