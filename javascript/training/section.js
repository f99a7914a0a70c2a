/*
 * The section "train": Start and Queue, the live view of a run, the queue, and the list of all
 * runs.
 *
 * The state is the server's: a small request ("pulse") tells whether anything has changed, and only
 * then more is loaded. It is polled every second while a run is active or queued, and not at all
 * when the tab is hidden or nothing is active.
 */
import { api, expected, randomToken } from "../common/api.js";
import { el, fill, find, findAll, put, redraw, uniqueId } from "../common/elements.js";
import {
    dotted,
    formatDate,
    formatNumber,
    plural,
    sentences,
    t,
    withColon,
} from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection, openSection, summarizeStep } from "../common/sections.js";
import { onFirstStart, onStart } from "../common/start.js";
import { Later, home, settings, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as drafts from "../settings/draft.js";
import { currentPlan, placeLabel, placeOf, planText, replan } from "../settings/plan.js";
import { liveView, runButtons } from "./live.js";
import * as runActions from "./runs.js";

/** @import { LiveView, LoraView, Pulse, RunProgress, RunView } from "../common/answers" */
/** @import { Poll } from "../common/types" */

/** @import { Problem } from "../common/api.js" */

const SECONDS_ACTIVE = 1,
    SECONDS_LOST = 3;

/** Store keys that the form depends on. */
const FOLLOWED = /** @type {const} */ ([
    "plan",
    "dataset",
    "home",
    "checkpoint",
    "draft",
    "datasets",
    "delivered",
]);

const MOST_POINTS = 1200;

/**
 * The last known state of the server; it is kept when the page is redrawn.
 *
 * @typedef {object} Known
 * @property {Pulse} pulse
 * @property {string | null} revision of the list of runs; null: reload it
 * @property {RunView[]} runs
 * @property {string | null} delivered key of the list of delivered LoRAs
 * @property {string} chosen a run's id
 * @property {string} shown
 * @property {string} settled key of the shown run, if it has ended and need not be reloaded
 * @property {number} offset
 * @property {LiveView["points"]} points
 */

/** @type {Known} */
const known = {
    pulse: {
        active: [],
        queued: 0,
        revision: "",
        handover: { state: "idle", sentence: "", before: null, after: null },
    },
    revision: null,
    runs: [],
    delivered: null,
    chosen: "",
    shown: "",
    settled: "",
    offset: 0,
    points: [],
};

/** @type {Poll | null} */
let poll = null;

/** @typedef {ReturnType<typeof draw>} Page */

/** @type {Later<Page>} */
const drawn = new Later();

const wake = () => poll?.wake();

const byId = (/** @type {string} */ id) => known.runs.find((run) => run.id === id);

const isBusy = () => known.runs.some(runActions.isActive);

const isUnsettled = () => isBusy() || known.runs.some((run) => run.exiting);

/** @param {RunView} [run] */
const changed = (run) => {
    if (run?.id && run.status) choose(run.id);
    known.revision = null;
    known.settled = "";
    wake();
};

// --- polling -----------------------------------------------------------------------------------

async function look() {
    try {
        known.pulse = await api.get("pulse");
        if (known.pulse.revision !== known.revision) await readRuns();
        takeActive();
        if (drawn.now && currentSection() === "train") await readLive(drawn.now);
        drawn.now?.view.connection(false);
    } catch (caught) {
        expected(caught);
        drawn.now?.view.connection(true);
        return SECONDS_LOST;
    }
    drawn.now?.update();
    summarize();
    const { active, queued } = known.pulse;
    // the list was read before a worker's last event, or before its process ended: read it again
    if (!active.length && isUnsettled()) known.revision = null;
    // a run started on the command line is listed a moment before the server adopts it
    return active.length || queued || isUnsettled() ? SECONDS_ACTIVE : null;
}

async function readRuns() {
    const revision = known.pulse.revision;
    known.runs = (await api.get("runs")).runs;
    known.revision = revision;
    known.settled = "";
    const delivered = JSON.stringify(
        known.runs
            .map((run) => run.delivered)
            .filter(Boolean)
            .sort(),
    );
    if (known.delivered !== null && delivered !== known.delivered) runActions.announceDelivery();
    known.delivered = delivered;
    // the measured speed and free names may have changed
    replan();
    drawn.now?.lists();
    await drawn.now?.trash();
}

/** The list is only reloaded after a change; progress of active runs is part of every pulse. */
function takeActive() {
    for (const now of known.pulse.active) {
        const run = byId(now.id);
        if (run) Object.assign(run, now);
    }
    if (known.pulse.active.length) drawn.now?.lists();
}

/** The run to show: the selected one, else an active one, else the newest. */
const shownRun = () =>
    byId(known.chosen) ??
    byId(known.pulse.active[0]?.id ?? "") ??
    known.runs.find((run) => run.status !== "queued") ??
    known.runs.at(0);

function choose(/** @type {string} */ id) {
    if (known.chosen === id) return;
    known.chosen = id;
    known.settled = "";
    store.set("run", id);
}

async function readLive(/** @type {Page} */ page) {
    const { view } = page;
    const run = shownRun();
    if (!run) {
        view.hide();
        return;
    }
    if (known.shown !== run.id)
        Object.assign(known, { shown: run.id, offset: 0, points: [], settled: "" });
    const wantsLog = view.wantsLog();
    const mark = run.id + wantsLog;
    if (known.settled === mark) return;
    const live = await api.get(runActions.route(run, "live"), {
        offset: known.offset,
        log: wantsLog ? 1 : null,
    });
    if (known.shown !== run.id || drawn.now !== page) return;
    known.offset = live.offset;
    known.points = thinned(live.whole ? live.points : known.points.concat(live.points));
    view.set(live, known.points);
    // keep the lists consistent with the live view
    const listed = byId(live.run.id);
    if (listed && listed.status !== live.run.status) {
        Object.assign(listed, live.run);
        page.lists();
    }
    // an ended run does not change until the next revision
    known.settled = runActions.isActive(live.run) ? "" : mark;
}

/** Drops every second point until few enough remain; the newest is kept. */
function thinned(/** @type {LiveView["points"]} */ points) {
    while (points.length > MOST_POINTS)
        points = points.filter((_, at) => (points.length - 1 - at) % 2 === 0);
    return points;
}

function summarize() {
    const run = known.pulse.active[0] ?? known.runs.find(runActions.isActive);
    summarizeStep("train", run ? progressText(run) : waitingText(known.pulse.queued));
}

const waitingText = (/** @type {number} */ queued) =>
    queued ? plural(queued, "{count} run queued", "{count} runs queued") : "";

const progressText = (/** @type {RunProgress} */ run) =>
    run.step_count && run.step
        ? t("{phase}, {share} %", {
              phase: runActions.statusText(run),
              share: Math.floor((run.step / run.step_count) * 100),
          })
        : runActions.statusText(run);

// --- starting ----------------------------------------------------------------------------------

const draft = () => ({
    dataset: store.get("dataset") ?? "",
    checkpoint: store.get("checkpoint") ?? "loaded",
    init_lora: store.get("init_lora") ?? "",
    name: store.get("name") ?? "",
    settings: settings(),
});

/** Why Start is disabled, and the section that fixes it (or ""); null if it is enabled. */
function obstacle() {
    const { setup } = home();
    const plan = currentPlan();
    if (setup && setup.state !== "ready")
        return { text: t("Training is not set up yet."), section: "", label: "" };
    if (!store.get("dataset"))
        return {
            text: t("Choose the images or texts first."),
            section: "images",
            label: t("Go to the images"),
        };
    const problem = plan?.ok ? null : plan?.problems.find(({ severity }) => severity === "error");
    if (!problem) return null;
    const { field, message } = problem;
    return { text: message, section: placeOf(field), label: placeLabel(field) };
}

/**
 * The next step: "watch" while a run is active or queued; "use" if the last one has ended and its
 * inputs have not changed since; else "start".
 *
 * @returns {{what: "watch" | "use", run: RunView} | {what: "start"}}
 */
function stage() {
    const shown = shownRun();
    const active = known.runs.filter(runActions.isActive);
    const run =
        active.find((one) => one.id === shown?.id) ??
        active.at(0) ??
        known.runs.find((one) => one.status === "queued");
    if (run) return { what: "watch", run };
    return shown && isOfNow(shown) ? { what: "use", run: shown } : { what: "start" };
}

function isOfNow(/** @type {RunView} */ run) {
    if (run.job !== "train" || !(run.step > 0)) return false;
    if (!store.get("dataset")) return true;
    const card = datasets.chosen();
    if (!card) return false;
    const folder = (card.path || card.id).split(/[\\/]/).pop();
    return run.dataset === folder && (run.changed ?? 0) >= Math.max(drafts.changed(), card.changed);
}

/** Why a training cannot start, as a list if there are several problems. */
function showProblem(/** @type {HTMLElement} */ place, /** @type {Problem} */ problem) {
    const others = problem.problems.map((one) => el("li", sentences(one.message, one.hint)));
    const notice = widgets.problem(problem);
    if (others.length > 1) notice.append(el("ul", others));
    fill(place, notice);
    place.scrollIntoView({ block: "center" });
}

/**
 * The buttons for an ended run: {draw(run)} puts them into the bar `next`. Its LoRA is loaded
 * asynchronously; then `redraw()` is called.
 *
 * @param {ReturnType<typeof widgets.actions>} next
 * @param {() => void} redraw
 */
function afterwards(next, redraw) {
    /** @type {{key: string, run: RunView | null, lora: LoraView | null, answered: boolean}} */
    let used = { key: "", run: null, lora: null, answered: false };
    const tryIt = widgets.button({
        label: t("Try it"),
        kind: "primary",
        onclick: () => used.lora && runActions.tryLora(used.lora),
    });
    const ask = widgets.button({
        label: t("Ask it"),
        kind: "primary",
        onclick: () => used.run && runActions.askModel(used.run),
    });
    const deliver = widgets.button({
        label: t("Put into the LoRA folder"),
        onclick: () => used.lora && runActions.deliver(used.lora, changed),
    });
    const go = widgets.button({
        label: t("Continue"),
        onclick: () => used.run && runActions.goOn(used.run, changed),
    });

    async function learn(/** @type {RunView} */ run, /** @type {string} */ key) {
        /** @type {typeof used} */
        const mine = { key, run, lora: null, answered: false };
        used = mine;
        mine.lora = await runActions.newestOf(run).catch(() => null);
        mine.answered = true;
        if (used === mine) redraw();
    }

    return {
        draw(/** @type {RunView} */ run) {
            const key = JSON.stringify([
                run.id,
                run.status,
                run.lora,
                run.can,
                store.get("delivered"),
            ]);
            if (used.key !== key) learn(run, key);
            const failed = ["failed", "lost"].includes(run.status);
            const goes = run.can.continue || run.can.further;
            put(go, runActions.goOnText(run));
            const usable = run.data === "texts" || used.lora;
            for (const button of [tryIt, ask]) widgets.makePrimary(button, !(failed && goes));
            widgets.makePrimary(go, goes && (failed || (used.answered && !usable)));
            next.setText(withColon(run.name, run.sentence));
            next.fill(
                run.data === "texts" ? ask : used.lora ? tryIt : null,
                used.lora?.delivered === false ? deliver : null,
                goes ? go : null,
            );
        },
    };
}

/**
 * A summary of the draft, with its buttons: {element, errorPlace, draw({what}) -> the obstacle,
 * buttons(found)}. `begin(when)` is called by the buttons.
 */
function startForm(/** @type {(when: "now" | "queue") => unknown} */ begin) {
    const words = el("p");
    const reason = widgets.help();
    const errorPlace = el("div");
    const start = widgets.button({
        label: t("Start"),
        kind: "primary",
        onclick: () => begin("now"),
    });
    const queue = widgets.button({ label: t("Add to the queue"), onclick: () => begin("queue") });
    const fix = widgets.button({
        label: "",
        onclick: () => openSection(obstacle()?.section ?? ""),
    });
    const own = widgets.row();
    const summary = el("summary");
    const element = el(
        "details.lora-trainer-card.lora-trainer-start",
        { "aria-label": t("Start the training") },
        summary,
        words,
        reason,
        own,
        errorPlace,
    );
    /** @type {boolean | null} */
    let folded = null;

    /** The form's buttons, for the bar or the form. */
    function buttons(/** @type {ReturnType<typeof obstacle>} */ found) {
        put(fix, found?.label ?? "");
        return [found?.section ? fix : null, start, queue];
    }

    /** The form is first before a training, and below the live view during one. */
    function fold(/** @type {boolean} */ away) {
        if (folded === away) return;
        folded = away;
        element.open = !away;
        const { view } = drawn.need();
        if (away) view.element.after(element);
        else view.element.parentElement?.prepend(element);
    }

    function draw(/** @type {ReturnType<typeof stage>["what"]} */ what) {
        const found = obstacle();
        const idle = what === "start";
        put(words, startText());
        put(summary, what === "watch" ? t("Queue another training") : t("Start another training"));
        put(start, what === "watch" ? t("Train it next") : t("Start"));
        put(reason, found && !idle ? found.text : "");
        for (const button of [start, queue]) {
            button.disabled = Boolean(found);
            button.title = found?.text ?? "";
        }
        widgets.makePrimary(start, idle && !found?.section);
        widgets.makePrimary(fix, idle);
        fold(!idle);
        summary.hidden = idle;
        if (!idle) widgets.refill(own, buttons(found));
        return found;
    }

    return { element, errorPlace, draw, buttons };
}

const startText = () => currentPlan()?.sentence || t("Trains a LoRA with the settings you chose.");

/**
 * The form: open before a training, collapsed while a run is active or has ended; and the bar with
 * the next step.
 */
function startCard() {
    const next = widgets.actions();
    const asked = runButtons(changed);
    const form = startForm(begin);
    const after = afterwards(next, () => draw());
    let token = "";

    async function begin(/** @type {"now" | "queue"} */ when) {
        // the request may have arrived without an answer: the same token does not create a second
        // run
        token ||= randomToken();
        try {
            const run = await api.post("runs", { ...draft(), token, when });
            token = "";
            fill(form.errorPlace);
            begun(run);
        } catch (caught) {
            const problem = expected(caught);
            if (problem.status) token = "";
            showProblem(form.errorPlace, problem);
        }
    }

    function begun(/** @type {RunView} */ run) {
        // an active run stays in view, also one that the server has not adopted yet; the list below
        // shows the queued one
        if (isBusy()) {
            changed();
            widgets.toast(t("{name} was added to the queue.", { name: run.name }), {
                severity: "done",
            });
            return;
        }
        // immediately, so that a second click does not start another run
        if (!byId(run.id)) known.runs = [run, ...known.runs];
        changed(run);
        draw();
    }

    function draw() {
        if (!drawn.now?.view.element.parentElement) return;
        const now = stage();
        const found = form.draw(now.what);
        if (now.what === "start") {
            next.setText(found?.text ?? planText());
            next.fill(...form.buttons(found));
        } else if (now.what === "watch") {
            next.setText(withColon(now.run.name, now.run.failure ? "" : now.run.sentence));
            asked.set(now.run);
            next.fill(...(runActions.isActive(now.run) ? asked.all : []));
        } else after.draw(now.run);
    }

    return { element: form.element, next, draw };
}

// --- lists -------------------------------------------------------------------------------------

/**
 * A button that keeps the focus when its list is redrawn, and is labelled with the run's name:
 * there are several "Show".
 *
 * @param {HTMLElement} button
 * @param {string} key
 * @param {string} name id of the element with the run's name
 */
function mark(button, key, name) {
    button.dataset.key = key;
    button.setAttribute("aria-describedby", name);
    return button;
}

function queueRow(
    /** @type {RunView} */ run,
    /** @type {number} */ at,
    /** @type {number} */ count,
) {
    const move = (/** @type {number} */ position) => () =>
        api.post(runActions.route(run, "move"), { position }).then(() => changed());
    const name = uniqueId("queued");
    const key = (/** @type {HTMLElement} */ button, /** @type {string} */ what) =>
        mark(button, run.id + what, name);
    return el(
        "li.lora-trainer-run",
        el("span.lora-trainer-run-number", String(at + 1)),
        el(
            "div.lora-trainer-run-text",
            el("strong", { id: name }, run.name),
            widgets.small(run.sentence),
        ),
        widgets.row(
            key(
                widgets.button({ label: t("Move up"), disabled: at === 0, onclick: move(at - 1) }),
                "up",
            ),
            key(
                widgets.button({
                    label: t("Move down"),
                    disabled: at === count - 1,
                    onclick: move(at + 1),
                }),
                "down",
            ),
            key(
                widgets.button({
                    label: t("Remove"),
                    title: t("Removes it from the queue; it stays in the list of runs."),
                    onclick: () =>
                        api.post(runActions.route(run, "unqueue"), {}).then(() => changed()),
                }),
                "out",
            ),
        ),
    );
}

function jobWords(/** @type {RunView["job"]} */ job) {
    switch (job) {
        case "caption":
            return t("Captions");
        case "ask":
            return t("Questions");
        case "pairs":
            return t("Pairs from documents");
        default:
            return "";
    }
}

function facts(/** @type {RunView} */ run) {
    const steps = run.step_count
        ? t("{step} of {total} steps", {
              step: formatNumber(run.step),
              total: formatNumber(run.step_count),
          })
        : "";
    const ofTexts = run.data === "texts" ? t("Language model") : "";
    const kind = jobWords(run.job) || ofTexts;
    return dotted(
        kind,
        runActions.statusText(run),
        run.changed ? formatDate(run.changed) : "",
        steps,
        run.family ? run.family.toUpperCase() : "",
    );
}

function runRow(/** @type {RunView} */ run) {
    const name = uniqueId("run");
    const key = (/** @type {HTMLElement} */ button, /** @type {string} */ what) =>
        mark(button, run.id + what, name);
    const tryIt = async () => {
        if (run.data === "texts") {
            runActions.askModel(run);
            return;
        }
        const lora = await runActions.loraOf(run);
        if (lora) runActions.tryLora(lora);
        else await runActions.showSaved(run, changed);
    };
    const more = el(
        "div.lora-trainer-row.lora-trainer-run-more",
        widgets.button({ label: t("Settings"), onclick: () => runActions.showSettings(run) }),
        run.job === "train" && run.data === "images"
            ? widgets.button({
                  label: t("Saved steps"),
                  onclick: () => runActions.showSaved(run, changed),
              })
            : null,
        runActions.isLocal()
            ? widgets.button({ label: t("Open folder"), onclick: () => runActions.openFolder(run) })
            : null,
        run.can.delete
            ? widgets.button({
                  label: t("Delete"),
                  kind: "stop",
                  onclick: () => runActions.remove(run, changed),
              })
            : null,
    );
    return el(
        "li.lora-trainer-run",
        runActions.previewImage(run.preview),
        el(
            "div.lora-trainer-run-text",
            el("strong", { id: name }, run.name),
            widgets.small(facts(run)),
        ),
        widgets.row(
            key(
                widgets.button({
                    label: t("Show"),
                    onclick: () => {
                        choose(run.id);
                        wake();
                        drawn.need().view.element.scrollIntoView({ block: "nearest" });
                    },
                }),
                "show",
            ),
            run.job === "train" && run.step > 0
                ? key(
                      widgets.button({
                          label: run.data === "texts" ? t("Ask it") : t("Try it"),
                          onclick: tryIt,
                      }),
                      "try",
                  )
                : null,
            run.can.continue || run.can.further
                ? key(
                      widgets.button({
                          label: runActions.goOnText(run),
                          onclick: () => runActions.goOn(run, changed),
                      }),
                      "go",
                  )
                : null,
            el(
                "details.lora-trainer-run-details",
                { dataset: { key: run.id + "more" } },
                el("summary", { "aria-describedby": name }, t("More")),
                more,
            ),
        ),
    );
}

/** The data that a row is drawn from, except texts, which change every second in an active run. */
function shape(/** @type {RunView} */ run) {
    const { delete: remove, continue: goOn, further } = run.can;
    return runActions.isActive(run)
        ? [
              run.id,
              run.name,
              run.job,
              run.status,
              run.step > 0,
              run.preview,
              run.family,
              remove,
              goOn,
              further,
          ]
        : run;
}

/**
 * A list that is redrawn only after a change, preserving focus and expanded rows. `words(run)`: the
 * text of a row.
 *
 * @param {string} title
 * @param {string} empty text of an empty list
 * @param {(run: RunView) => string} words
 */
function list(title, empty, words) {
    const rows = el("ul.lora-trainer-runs");
    const element = el("section.lora-trainer-card", { "aria-label": title }, el("h3", title), rows);
    let before = "";
    return {
        element,
        /** @param {(run: RunView, at: number) => HTMLElement} make a row */
        set(/** @type {RunView[]} */ runs, make) {
            const now = JSON.stringify(runs.map(shape));
            if (now === before) {
                const lines = findAll(rows, ".lora-trainer-run-text .lora-trainer-help");
                runs.forEach((run, at) => put(lines[at], words(run)));
                return;
            }
            before = now;
            const focused = find(rows, ":focus")?.dataset.key;
            const unfolded = new Set(
                findAll(rows, "details[open]").map((details) => details.dataset.key),
            );
            fill(rows, runs.length ? runs.map(make) : el("li.lora-trainer-help", empty));
            for (const details of rows.querySelectorAll("details"))
                details.open = unfolded.has(details.dataset.key);
            const again = findAll(rows, "[data-key]").find((one) => one.dataset.key === focused);
            if (!focused || !again) return;
            // a disabled button passes the focus to its neighbour
            const row = again.parentElement ?? rows;
            (again.matches(":disabled") ? find(row, "button:not(:disabled)") : again)?.focus();
        },
    };
}

// --- the section -------------------------------------------------------------------------------

/** A notice while another run than the shown one is active. */
function showOther(/** @type {HTMLElement} */ place) {
    const shown = shownRun();
    const active = known.runs.find((run) => runActions.isActive(run) && run.id !== shown?.id);
    const worth = active && shown && !runActions.isActive(shown) ? active : null;
    redraw(place, worth?.id ?? "", () =>
        worth
            ? widgets.notice(
                  "info",
                  t("{name} is running now.", { name: worth.name }),
                  "",
                  widgets.button({
                      label: t("Show"),
                      onclick: () => {
                          choose(worth.id);
                          wake();
                      },
                  }),
              )
            : [],
    );
}

function draw(/** @type {HTMLElement} */ container) {
    const start = startCard();
    const view = liveView(changed);
    const other = el("div");
    const queue = list(t("Queue"), "", (run) => run.sentence);
    const runs = list(t("Runs"), t("Runs appear here once you have started one."), facts);
    const trash = runActions.trashRow(changed);
    runs.element.append(trash.element);
    Object.assign(known, { shown: "", settled: "", revision: null });
    queue.element.hidden = true;
    fill(
        container,
        start.element,
        other,
        view.element,
        queue.element,
        runs.element,
        start.next.element,
    );
    return {
        view,
        start: start.draw,
        /** Update everything from the current state. */
        update() {
            start.draw();
            showOther(other);
        },
        trash: trash.update,
        lists() {
            const waiting = known.runs
                .filter((run) => run.status === "queued")
                .sort((a, b) => (a.position ?? 0) - (b.position ?? 0));
            queue.element.hidden = !waiting.length;
            queue.set(waiting, (run, at) => queueRow(run, at, waiting.length));
            runs.set(
                known.runs.filter((run) => run.status !== "queued"),
                runRow,
            );
            start.draw();
        },
    };
}

const start = () => drawn.now?.start();

export const section = {
    id: "train",
    title: () => t("Train"),
    draw(/** @type {HTMLElement} */ container) {
        drawn.now = draw(container);
        start();
        wake();
    },
    shown() {
        start();
        wake();
    },
};

onStart(() => {
    drawn.now = null;
    poll = startPolling(look);
});

onFirstStart(() => {
    for (const key of FOLLOWED) store.on(key, start);
    store.on("run", (id) => {
        if (!id || id === known.chosen) return;
        choose(id);
        wake();
    });
    // another browser or the command line may have started something
    window.addEventListener("focus", wake);
    document.addEventListener("visibilitychange", wake);
    if (typeof onUiTabChange === "function") onUiTabChange(wake);
});
