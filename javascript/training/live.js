/*
 * The live view of a run, from the route "live"; updated in place, without layout shifts.
 *
 *     const view = liveView(done)   view.element;  view.set(live, points);  view.connection(problem
 *                                   or null)
 *     runButtons(done)              the requests to an active run: {all: [buttons], set(run)}, for
 *                                   the bar
 *
 * done(run?) is called after a change by a button. Used by the section "train".
 */
import { el, put, redraw } from "../common/elements.js";
import { formatBytes, formatDuration, formatNumber, t } from "../common/language.js";
import { Later, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { answerList } from "./answers.js";
import { lossChart } from "./chart.js";
import { handOverText, noticesOf } from "./notices.js";
import { noPreviews, previewGrid } from "./previews.js";
import * as runActions from "./runs.js";
import { verdictBox } from "./verdict.js";

/** @import { LiveView, RunProgress, RunView } from "../common/answers" */

/** @import { Done } from "./runs.js" */

/** @typedef {typeof ASKS[number]} Ask */

/** The requests that an active run accepts, with their buttons. */
const ASKS = /** @type {const} */ (["pause", "resume", "stop", "save", "preview"]);

/** Placeholder for an unknown number. */
const NONE = "\u2013";

function logBox(/** @type {() => void} */ done) {
    const log = el("pre.lora-trainer-pre.lora-trainer-log", {
        tabindex: "0",
        "aria-label": t("Log"),
    });
    const element = el(
        "details.lora-trainer-log-box",
        { ontoggle: () => done() },
        el("summary", t("Log")),
        log,
    );
    return { element, set: (/** @type {string} */ text) => putLog(log, text) };
}

/** A key of the data that a run's notices are drawn from. */
const noticesKey = (/** @type {RunView} */ run) =>
    JSON.stringify([
        run.id,
        run.failure,
        run.warnings,
        run.status,
        run.lora,
        run.can,
        store.get("delivered"),
    ]);

export function liveView(/** @type {Done} */ done) {
    /** @type {RunView | null} */
    let shown = null;
    const name = el("h3");
    const status = el("span.lora-trainer-badge");
    const sentence = el("p.lora-trainer-live-sentence");
    const spoken = el("p.lora-trainer-visually-hidden", { role: "status", "aria-live": "polite" });
    const lost = el("p.lora-trainer-live-connection.lora-trainer-hint", { role: "status" });
    const bar = widgets.progress(t("Progress of the training"));
    const facts = factsTable();
    const notices = el("div.lora-trainer-live-notices");
    const verdict = verdictBox(done);
    const handed = el("p.lora-trainer-help.lora-trainer-live-handover");
    const chart = lossChart();
    const previews = previewGrid();
    const answers = answerList();
    const log = logBox(done);
    const graphs = el(
        "div.lora-trainer-live-graphs",
        chart.element,
        previews.element,
        answers.element,
    );
    const element = el(
        "section.lora-trainer-card.lora-trainer-live",
        { "aria-label": t("Training"), hidden: true },
        el("div.lora-trainer-live-head", name, status),
        sentence,
        bar.element,
        facts.element,
        lost,
        spoken,
        notices,
        verdict.element,
        handed,
        graphs,
        log.element,
    );

    function set(/** @type {LiveView} */ now, /** @type {LiveView["points"]} */ points) {
        const before = shown;
        const run = now.run;
        shown = run;
        element.hidden = false;
        const words = runActions.statusText(run);
        put(name, run.name);
        put(status, words);
        status.dataset.status = run.status;
        put(sentence, run.failure ? "" : run.sentence);
        if (before?.id !== run.id || before.status !== run.status || before.phase !== run.phase)
            put(spoken, run.name + ": " + words);
        setBar(bar, run);
        facts.set(run);
        redraw(notices, noticesKey(run), () => noticesOf(run, done));
        verdict.set(now);
        put(handed, handOverText(now.handover, run));
        graphs.hidden = run.job !== "train";
        chart.set(points, now.validations, run.step_count, run.data);
        previews.element.hidden = run.data === "texts";
        answers.element.hidden = run.data !== "texts";
        previews.set(now.previews, noPreviews(run));
        answers.set(now.answers);
        if (log.element.open && now.log.length) log.set(now.log.join("\n"));
    }

    return {
        element,
        set,
        wantsLog: () => log.element.open,
        hide() {
            element.hidden = true;
            shown = null;
        },
        connection(/** @type {boolean} */ isLost) {
            put(lost, isLost ? t("Connection lost, trying again ...") : "");
        },
    };
}

function putLog(/** @type {HTMLElement} */ log, /** @type {string} */ text) {
    if (log.textContent === text) return;
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    log.textContent = text;
    if (atEnd) log.scrollTop = log.scrollHeight;
}

/** @param {ReturnType<typeof widgets.progress>} bar */
function setBar(bar, /** @type {RunView} */ run) {
    // a save or a preview does not reset the progress bar of the steps
    if (run.step_count && (run.step > 0 || !(runActions.isActive(run) || run.status === "queued")))
        bar.set(
            run.step,
            run.step_count,
            t("{share} %", { share: Math.floor((run.step / run.step_count) * 100) }),
        );
    else if (run.phase_total)
        bar.set(
            run.phase_step,
            run.phase_total,
            t("{phase}: {done} of {total}", {
                phase: run.phase,
                done: run.phase_step,
                total: run.phase_total,
            }),
        );
    else bar.set(0, runActions.isActive(run) ? 0 : 1, runActions.statusText(run));
}

/** A table of fixed cells, to avoid layout shifts. */
function factsTable() {
    const cell = (/** @type {string | HTMLElement} */ label) => {
        const value = el("dd", NONE);
        rows.push(el("div", label instanceof HTMLElement ? label : el("dt", label), value));
        return value;
    };
    const speedText = el("dt", t("Images per second"));
    /** @type {HTMLElement[]} */
    const rows = [];
    const step = cell(t("Step")),
        epoch = cell(t("Epoch")),
        loss = cell(t("Loss")),
        speed = cell(speedText),
        left = cell(t("Time left")),
        memory = cell(t("Peak memory"));
    const of = (/** @type {number} */ done, /** @type {number} */ all) =>
        all ? formatNumber(done) + " / " + formatNumber(all) : NONE;
    const or = (
        /** @type {number | null} */ value,
        /** @type {(value: number) => string} */ format,
    ) => (value === null ? NONE : format(value));
    return {
        element: el("dl.lora-trainer-facts", rows),
        set(/** @type {RunView} */ run) {
            put(speedText, run.data === "texts" ? t("Texts per second") : t("Images per second"));
            put(step, of(run.step, run.step_count));
            put(epoch, of(run.epoch, run.epoch_count));
            put(
                loss,
                or(run.smoothed_loss, (value) => formatNumber(value, 4)),
            );
            put(
                speed,
                or(run.images_per_second, (value) => formatNumber(value, 2)),
            );
            put(left, or(run.seconds_left, formatDuration));
            put(memory, or(run.memory, formatBytes));
        },
    };
}

export function runButtons(/** @type {Done} */ done) {
    /** @type {Later<RunProgress>} */
    const shown = new Later();
    const ask = (/** @type {Ask} */ what) => () => runActions.ask(shown.need(), what, done);
    const made = {
        pause: widgets.button({ label: t("Pause"), onclick: ask("pause") }),
        resume: widgets.button({ label: t("Resume"), kind: "primary", onclick: ask("resume") }),
        stop: widgets.button({
            label: t("Stop"),
            kind: "stop",
            onclick: () => runActions.stop(shown.need(), done),
        }),
        save: widgets.button({ label: t("Save now"), onclick: ask("save") }),
        preview: widgets.button({ label: t("Preview now"), onclick: ask("preview") }),
    };
    const all = Object.values(made);
    return {
        all,
        set(/** @type {RunProgress} */ run) {
            shown.now = run;
            const focused = all.some((button) => button === document.activeElement);
            made.resume.hidden = !run.can.resume;
            made.pause.hidden = run.can.resume;
            for (const what of ASKS) {
                const button = made[what];
                const reason = runActions.reason(run, what);
                if (button.disabled !== Boolean(reason)) button.disabled = Boolean(reason);
                if (button.title !== reason) button.title = reason;
            }
            made.save.hidden = made.preview.hidden = run.job !== "train";
            put(made.preview, run.data === "texts" ? t("Answer now") : t("Preview now"));
            // Pause was replaced by Resume: keep the focus
            if (focused && document.activeElement === document.body)
                (run.can.resume ? made.resume : made.pause).focus();
        },
    };
}
