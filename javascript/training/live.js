/*
 * The live view of one run: what the route "live" tells, drawn; numbers change in place and nothing
 * jumps.
 *
 *     const view = liveView(done)   view.element;  view.set(live, points);  view.connection(problem
 *                                   or null)
 *     runButtons(done)              what can be asked of a run at work: {all: [buttons], set(run)},
 *                                   for the bar at the window's edge
 *
 * done(run?) is called when a button has changed something. Called by the section "train", which
 * asks the server. /
 */
import { el, put, redraw } from "../common/elements.js";
import { formatBytes, formatDuration, formatNumber, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { lossChart } from "./chart.js";
import { handOverWords, noticesOf } from "./notices.js";
import { noPreviews, previewGrid } from "./previews.js";
import * as runActions from "./runs.js";

/** @typedef {import("../common/answers").RunView} RunView */

function logBox(done) {
    const log = el("pre", {
        class: "lora-trainer-pre lora-trainer-log",
        tabindex: "0",
        "aria-label": t("Log"),
    });
    const element = el(
        "details",
        { class: "lora-trainer-log-box", ontoggle: () => done() },
        el("summary", {}, t("Log")),
        log,
    );
    return { element, set: (text) => putLog(log, text) };
}

/**
 * What the notices of a run are drawn from.
 *
 * @param {RunView} run
 */
const noticesKey = (run) =>
    JSON.stringify([
        run.id,
        run.failure,
        run.warnings,
        run.status,
        run.lora,
        run.can,
        store.get("delivered"),
    ]);

export function liveView(done) {
    let run = null;
    const name = el("h3");
    const status = el("span", { class: "lora-trainer-badge" });
    const sentence = el("p", { class: "lora-trainer-live-sentence" });
    const spoken = el("p", { class: "lora-trainer-spoken", role: "status", "aria-live": "polite" });
    const lost = el("p", {
        class: "lora-trainer-live-connection lora-trainer-hint",
        role: "status",
    });
    const bar = widgets.progress(t("Progress of the training"));
    const facts = factsTable();
    const notices = el("div", { class: "lora-trainer-live-notices" });
    const handed = el("p", { class: "lora-trainer-help lora-trainer-live-handover" });
    const chart = lossChart();
    const previews = previewGrid();
    const log = logBox(done);
    const graphs = el(
        "div",
        { class: "lora-trainer-live-graphs" },
        chart.element,
        previews.element,
    );
    const element = el(
        "section",
        { class: "lora-trainer-card lora-trainer-live", "aria-label": t("Training"), hidden: true },
        el("div", { class: "lora-trainer-live-head" }, name, status),
        sentence,
        bar.element,
        facts.element,
        lost,
        spoken,
        notices,
        handed,
        graphs,
        log.element,
    );

    function set(now, points) {
        const before = run;
        run = now.run;
        element.hidden = false;
        const words = runActions.statusWords(run);
        put(name, run.name);
        put(status, words);
        status.dataset.status = run.status;
        put(sentence, run.failure ? "" : run.sentence);
        if (
            !before ||
            before.id !== run.id ||
            before.status !== run.status ||
            before.phase !== run.phase
        )
            put(spoken, run.name + ": " + words);
        setBar(bar, run);
        facts.set(run);
        redraw(notices, noticesKey(run), () => noticesOf(run, done));
        put(handed, handOverWords(now.handover, run));
        graphs.hidden = run.job !== "train";
        chart.set(points, run.step_count);
        previews.set(now.previews, noPreviews(run));
        if (log.element.open && now.log.length) log.set(now.log.join("\n"));
    }

    return {
        element,
        set,
        wantsLog: () => log.element.open,
        hide() {
            element.hidden = true;
            run = null;
        },
        connection(problem) {
            put(lost, problem ? t("Connection lost, trying again ...") : "");
        },
    };
}

function putLog(log, text) {
    if (log.textContent === text) return;
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    log.textContent = text;
    if (atEnd) log.scrollTop = log.scrollHeight;
}

function setBar(bar, run) {
    // a save or a preview in between does not move the bar away from the steps
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
    else bar.set(0, runActions.isActive(run) ? 0 : 1, runActions.statusWords(run));
}

/** A table of fixed cells, so that a number that comes or goes moves nothing. */
function factsTable() {
    const cells = {};
    const cell = (key, label) =>
        el("div", {}, el("dt", {}, label), (cells[key] = el("dd", {}, "\u2013")));
    const element = el(
        "dl",
        { class: "lora-trainer-facts" },
        cell("step", t("Step")),
        cell("epoch", t("Epoch")),
        cell("loss", t("Loss")),
        cell("speed", t("Images per second")),
        cell("left", t("Time left")),
        cell("memory", t("Peak memory")),
    );
    const or = (value, say) => (value === null || value === undefined ? "\u2013" : say(value));
    return {
        element,
        set(run) {
            put(
                cells.step,
                run.step_count
                    ? formatNumber(run.step) + " / " + formatNumber(run.step_count)
                    : "\u2013",
            );
            put(
                cells.epoch,
                run.epoch_count
                    ? formatNumber(run.epoch) + " / " + formatNumber(run.epoch_count)
                    : "\u2013",
            );
            put(
                cells.loss,
                or(run.smoothed_loss, (loss) => formatNumber(loss, 4)),
            );
            put(
                cells.speed,
                or(run.images_per_second, (speed) => formatNumber(speed, 2)),
            );
            put(cells.left, or(run.seconds_left, formatDuration));
            put(cells.memory, or(run.memory, formatBytes));
        },
    };
}

export function runButtons(done) {
    let shown = null;
    const ask = (what) => () => runActions.ask(shown, what, done);
    const made = {
        pause: widgets.button({ label: t("Pause"), onclick: ask("pause") }),
        resume: widgets.button({ label: t("Resume"), kind: "primary", onclick: ask("resume") }),
        stop: widgets.button({
            label: t("Stop"),
            kind: "stop",
            onclick: () => runActions.stop(shown, done),
        }),
        save: widgets.button({ label: t("Save now"), onclick: ask("save") }),
        preview: widgets.button({ label: t("Preview now"), onclick: ask("preview") }),
    };
    const all = Object.values(made);
    return {
        all,
        set(run) {
            shown = run;
            const focused = all.includes(document.activeElement);
            made.resume.hidden = !run.can.resume;
            made.pause.hidden = run.can.resume;
            for (const [what, button] of Object.entries(made)) {
                const reason = runActions.reason(run, what);
                if (button.disabled !== Boolean(reason)) button.disabled = Boolean(reason);
                if (button.title !== reason) button.title = reason;
            }
            made.save.hidden = made.preview.hidden = run.job !== "train";
            // Pause became Resume under the finger: the focus goes along
            if (focused && document.activeElement === document.body)
                (run.can.resume ? made.resume : made.pause).focus();
        },
    };
}
