/*
 * The section "train": Start and Queue, the live view of one run, the queue in its order, and every
 * run there is.
 *
 * The server holds the truth: one small question ("pulse") tells whether anything has changed, and
 * only then more is asked. It is asked every second while a run is at work or about to be, and not
 * at all when nothing goes on or the tab cannot be seen.
 */
import { Problem, api, randomToken } from "../common/api.js";
import { el, fill, put, redraw, uniqueId } from "../common/elements.js";
import { formatDate, formatNumber, plural, sentences, t, withColon } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection, openSection, summarizeStep } from "../common/sections.js";
import { onStart } from "../common/start.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as drafts from "../settings/draft.js";
import { currentPlan, placeLabel, placeOf, planWords, replan } from "../settings/plan.js";
import { liveView, runButtons } from "./live.js";
import * as runActions from "./runs.js";

/** @typedef {import("../common/answers").RunView} RunView */

const SECONDS_ACTIVE = 1,
    SECONDS_LOST = 3;

const MOST_POINTS = 1200;

/** What was learned from the server; it outlives a redrawing of the page. */
const known = {
    pulse: null,
    revision: null,
    runs: [],
    delivered: null,
    chosen: null,
    settled: "",
    offset: 0,
    points: [],
};

let poll = null,
    view = null,
    page = null;

const byId = (id) => known.runs.find((run) => run.id === id) || null;

/** @param {RunView} [run] */
const changed = (run) => {
    if (run && run.id && run.status) choose(run.id);
    known.revision = null;
    known.settled = "";
    if (poll) poll.wake();
};

// --- asking the server -------------------------------------------------------------------------

async function look() {
    try {
        known.pulse = await api.get("pulse");
        if (known.pulse.revision !== known.revision) await readRuns();
        takeActive();
        if (view && currentSection() === "train") await readLive();
        if (view) view.connection(null);
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (view) view.connection(problem);
        return SECONDS_LOST;
    }
    if (page) page.now();
    summarize();
    // the list was read while the last word of a worker was still on its way: it is read again
    if (!known.pulse.active.length && known.runs.some(runActions.isActive)) known.revision = null;
    // a run from a command line is in the list a moment before the server has taken it on
    return known.pulse.active.length || known.pulse.queued || known.runs.some(runActions.isActive)
        ? SECONDS_ACTIVE
        : null;
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
    // how quick this machine is may be known now, and which name is free
    if (replan) replan();
    if (page) {
        page.lists();
        await page.trash();
    }
}

/**
 * The list of runs is read when it is another one; how far those at work are comes with every
 * pulse.
 */
function takeActive() {
    for (const now of known.pulse.active) {
        const run = byId(now.id);
        if (run) Object.assign(run, now);
    }
    if (page && known.pulse.active.length) page.lists();
}

/** The run to show: the chosen one, else what is at work, else the newest. */
function shownRun() {
    const [active] = known.pulse ? known.pulse.active : [];
    return (
        byId(known.chosen) ||
        byId((active || {}).id) ||
        known.runs.find((run) => run.status !== "queued") ||
        known.runs[0] ||
        null
    );
}

function choose(id) {
    if (known.chosen === id) return;
    known.chosen = id;
    known.settled = "";
    store.set("run", id);
}

async function readLive() {
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
    if (known.shown !== run.id || !view) return;
    known.offset = live.offset;
    known.points = thinned(live.whole ? live.points : known.points.concat(live.points));
    view.set(live, known.points);
    // the lists say the same as the view, also where the run's turn has come since they were read
    const listed = byId(live.run.id);
    if (listed && listed.status !== live.run.status) {
        Object.assign(listed, live.run);
        page.lists();
    }
    // what has ended changes no more; asking again waits for a new revision
    known.settled = runActions.isActive(live.run) ? "" : mark;
}

/** Every second point, as often as needed; the newest stays. */
function thinned(points) {
    while (points.length > MOST_POINTS)
        points = points.filter((_, at) => (points.length - 1 - at) % 2 === 0);
    return points;
}

function summarize() {
    const run = known.pulse.active[0] || known.runs.find(runActions.isActive);
    if (!run)
        summarizeStep(
            "train",
            known.pulse.queued
                ? plural(known.pulse.queued, "{count} run waits", "{count} runs wait")
                : "",
        );
    else
        summarizeStep(
            "train",
            run.step_count && run.step
                ? t("{phase}, {share} %", {
                      phase: runActions.statusWords(run),
                      share: Math.floor((run.step / run.step_count) * 100),
                  })
                : runActions.statusWords(run),
        );
}

// --- starting ----------------------------------------------------------------------------------

const draft = () => ({
    dataset: store.get("dataset") || "",
    checkpoint: store.get("checkpoint") || "loaded",
    name: store.get("name") || "",
    settings: store.get("settings") || {},
});

/** Why Start cannot be pressed, and where that is mended; null when it can. */
function obstacle() {
    const { setup } = store.get("home");
    const plan = currentPlan();
    if (setup && setup.state !== "ready")
        return { text: t("Training is not set up yet."), section: null };
    if (!store.get("dataset"))
        return {
            text: t("Choose the images first."),
            section: "images",
            label: t("Go to the images"),
        };
    const problem = plan && !plan.ok && plan.problems.find((found) => found.severity === "error");
    if (problem)
        return {
            text: problem.message,
            section: placeOf(problem.field),
            label: placeLabel(problem.field),
        };
    return null;
}

/**
 * What the next sensible thing is: {what: "start"}; {what: "watch", run} while one is at work or
 * about to be; {what: "use", run} when the last one has ended and nothing that it was made from has
 * been changed since.
 */
function stage() {
    const shown = shownRun();
    const active = known.runs.filter(runActions.isActive);
    const run =
        active.find((one) => shown && one.id === shown.id) ||
        active[0] ||
        known.runs.find((one) => one.status === "queued");
    if (run) return { what: "watch", run };
    return shown && isOfNow(shown) ? { what: "use", run: shown } : { what: "start" };
}

/** @param {RunView} run */
function isOfNow(run) {
    if (run.job !== "train" || !(run.step > 0)) return false;
    if (!store.get("dataset")) return true;
    const card = datasets.chosen();
    if (!card) return false;
    const folder = (card.path || card.id).split(/[\\/]/).pop();
    return run.dataset === folder && run.changed >= Math.max(drafts.changed(), card.changed);
}

/** Why a training cannot begin, with everything that is wrong where that is several things. */
function complain(place, problem) {
    const others = (problem.problems || []).map((one) =>
        el("li", {}, sentences(one.message, one.hint)),
    );
    const notice = widgets.problem(problem);
    if (others.length > 1) notice.append(el("ul", {}, others));
    fill(place, notice);
    place.scrollIntoView({ block: "center" });
}

/**
 * What can be done with what a run has learned: {draw(run)} puts it into the bar `next`. It is
 * known a moment later, when it is known where its file is: then `redraw()` is called. /
 */
function afterwards(next, redraw) {
    let used = null;
    const tryIt = widgets.button({
        label: t("Try it"),
        kind: "primary",
        onclick: () => runActions.tryLora(used.lora),
    });
    const deliver = widgets.button({
        label: t("Put into the LoRA folder"),
        onclick: () => runActions.deliver(used.lora, changed),
    });
    const go = widgets.button({
        label: t("Continue"),
        onclick: () => runActions.goOn(used.run, changed),
    });

    function learn(run, key) {
        const mine = (used = { key, run, lora: null, answered: false });
        runActions
            .newestOf(run)
            .catch(() => null)
            .then((lora) => {
                mine.lora = lora;
                mine.answered = true;
                if (used === mine) redraw();
            });
    }

    return {
        draw(run) {
            const key = JSON.stringify([
                run.id,
                run.status,
                run.lora,
                run.can,
                store.get("delivered"),
            ]);
            if (!used || used.key !== key) learn(run, key);
            const failed = ["failed", "lost"].includes(run.status);
            const goes = run.can.continue || run.can.further;
            put(go, run.can.further ? t("Train further") : t("Continue"));
            widgets.makePrimary(tryIt, !(failed && goes));
            widgets.makePrimary(go, goes && (failed || (used.answered && !used.lora)));
            next.say(withColon(run.name, run.sentence));
            next.fill(
                used.lora ? tryIt : null,
                used.lora && !used.lora.delivered ? deliver : null,
                goes ? go : null,
            );
        },
    };
}

/**
 * The form in words, with its buttons: {element, trouble, draw({what}) -> the obstacle,
 * buttons(found)}. `begin(when)` is called by them.
 */
function startForm(begin) {
    const words = el("p");
    const reason = el("p", { class: "lora-trainer-help" });
    const trouble = el("div");
    const start = widgets.button({
        label: t("Start"),
        kind: "primary",
        onclick: () => begin("now"),
    });
    const queue = widgets.button({ label: t("Add to the queue"), onclick: () => begin("queue") });
    const mend = widgets.button({ label: "", onclick: () => openSection(obstacle().section) });
    const own = el("div", { class: "lora-trainer-row" });
    const summary = el("summary");
    const element = el(
        "details",
        { class: "lora-trainer-card lora-trainer-start", "aria-label": t("Start the training") },
        summary,
        words,
        reason,
        own,
        trouble,
    );
    let folded = null;

    /** The buttons of the form, in the bar or in the form. */
    function buttons(found) {
        put(mend, found && found.section ? found.label : "");
        return [found && found.section ? mend : null, start, queue];
    }

    /** Before a training the form comes first, during one it is out of the way. */
    function fold(away) {
        if (folded === away) return;
        folded = away;
        element.open = !away;
        if (away) view.element.after(element);
        else view.element.parentElement.prepend(element);
    }

    function draw({ what }) {
        const found = obstacle();
        const idle = what === "start";
        put(words, startWords());
        put(summary, what === "watch" ? t("Queue another training") : t("Start another training"));
        put(start, what === "watch" ? t("Train it next") : t("Start"));
        put(reason, found && !idle ? found.text : "");
        for (const button of [start, queue]) {
            button.disabled = Boolean(found);
            button.title = found ? found.text : "";
        }
        widgets.makePrimary(start, idle && !(found && found.section));
        widgets.makePrimary(mend, idle);
        fold(!idle);
        summary.hidden = idle;
        if (!idle) refill(own, buttons(found).filter(Boolean));
        return found;
    }

    return { element, trouble, draw, buttons };
}

const startWords = () => {
    const plan = currentPlan();
    return plan && plan.sentence
        ? plan.sentence
        : t("Trains a LoRA from your images with the settings you chose.");
};

/** Put other buttons in place of those that are there, if they are others. */
function refill(place, wanted) {
    if (
        place.children.length !== wanted.length ||
        wanted.some((button, at) => place.children[at] !== button)
    )
        fill(place, wanted);
}

/**
 * The form: open before a training, one line below the run while one is at work and when one has
 * ended; and the bar with the next thing to do.
 */
function startCard() {
    const next = widgets.actions();
    const asked = runButtons(changed);
    const form = startForm(begin);
    const after = afterwards(next, () => draw());
    let token = null;

    async function begin(when) {
        // a click that got no answer may have arrived: the same token cannot begin a second run
        token = token || randomToken();
        try {
            const run = await api.post("runs", { ...draft(), token, when });
            token = null;
            fill(form.trouble);
            begun(run);
        } catch (problem) {
            if (!(problem instanceof Problem)) throw problem;
            if (problem.status) token = null;
            complain(form.trouble, problem);
        }
    }

    function begun(run) {
        // what is at work stays in view; the list below shows the one that waits
        if (known.pulse && known.pulse.active.length) {
            changed();
            widgets.toast(t("{name} waits in the queue.", { name: run.name }), {
                severity: "done",
            });
            return;
        }
        // at once, so that a second click cannot begin it again
        if (!byId(run.id)) known.runs = [run, ...known.runs];
        changed(run);
        draw();
    }

    function draw() {
        if (!view || !view.element.parentElement) return;
        const now = stage();
        const found = form.draw(now);
        if (now.what === "start") {
            next.say(found ? found.text : planWords());
            next.fill(form.buttons(found));
        } else if (now.what === "watch") {
            next.say(withColon(now.run.name, now.run.failure ? "" : now.run.sentence));
            asked.set(now.run);
            next.fill(runActions.isActive(now.run) ? asked.all : []);
        } else after.draw(now.run);
    }

    return { element: form.element, next, draw };
}

// --- lists -------------------------------------------------------------------------------------

/**
 * A button that keeps the focus when its list is drawn again, and says for whom it is: many are
 * called "Show".
 */
function mark(button, key, name) {
    button.dataset.key = key;
    button.setAttribute("aria-describedby", name);
    return button;
}

/** @param {RunView} run */
function queueRow(run, at, count) {
    const move = (to) => () =>
        api.post(runActions.route(run, "move"), { position: to }).then(() => changed());
    const name = uniqueId("queued");
    const key = (button, what) => mark(button, run.id + what, name);
    return el(
        "li",
        { class: "lora-trainer-run" },
        el("span", { class: "lora-trainer-run-number" }, String(at + 1)),
        el(
            "div",
            { class: "lora-trainer-run-words" },
            el("strong", { id: name }, run.name),
            el("span", { class: "lora-trainer-help" }, run.sentence),
        ),
        el(
            "div",
            { class: "lora-trainer-row" },
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
                    label: t("Take out"),
                    title: t("Out of the queue; it stays in the list of runs."),
                    onclick: () =>
                        api.post(runActions.route(run, "unqueue"), {}).then(() => changed()),
                }),
                "out",
            ),
        ),
    );
}

/** @param {RunView} run */
function facts(run) {
    const steps = run.step_count
        ? t("{step} of {total} steps", {
              step: formatNumber(run.step),
              total: formatNumber(run.step_count),
          })
        : "";
    const kind = run.job === "caption" ? t("Captions") : "";
    return [
        kind,
        runActions.statusWords(run),
        run.changed ? formatDate(run.changed) : "",
        steps,
        run.family ? run.family.toUpperCase() : "",
    ]
        .filter(Boolean)
        .join(" \u00b7 ");
}

/** @param {RunView} run */
function runRow(run) {
    const name = uniqueId("run");
    const key = (button, what) => mark(button, run.id + what, name);
    const tryIt = async () => {
        const lora = await runActions.loraOf(run);
        if (lora) runActions.tryLora(lora);
        else await runActions.showSaved(run, changed);
    };
    const more = el(
        "div",
        { class: "lora-trainer-row lora-trainer-run-more" },
        widgets.button({ label: t("Settings"), onclick: () => runActions.showSettings(run) }),
        run.job === "train"
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
        "li",
        { class: "lora-trainer-run" },
        runActions.picture(run.picture),
        el(
            "div",
            { class: "lora-trainer-run-words" },
            el("strong", { id: name }, run.name),
            el("span", { class: "lora-trainer-help" }, facts(run)),
        ),
        el(
            "div",
            { class: "lora-trainer-row" },
            key(
                widgets.button({
                    label: t("Show"),
                    onclick: () => {
                        choose(run.id);
                        poll.wake();
                        view.element.scrollIntoView({ block: "nearest" });
                    },
                }),
                "show",
            ),
            run.job === "train" && run.step > 0
                ? key(widgets.button({ label: t("Try it"), onclick: tryIt }), "try")
                : null,
            run.can.continue || run.can.further
                ? key(
                      widgets.button({
                          label: run.can.further ? t("Train further") : t("Continue"),
                          onclick: () => runActions.goOn(run, changed),
                      }),
                      "go",
                  )
                : null,
            el(
                "details",
                { class: "lora-trainer-run-details", dataset: { key: run.id + "more" } },
                el("summary", { "aria-describedby": name }, t("More")),
                more,
            ),
        ),
    );
}

/**
 * What a row is drawn from, but for its words: of a run at work those change every second.
 *
 * @param {RunView} run
 */
function shape(run) {
    const { delete: remove, continue: goOn, further } = run.can;
    return runActions.isActive(run)
        ? [
              run.id,
              run.name,
              run.job,
              run.status,
              run.step > 0,
              run.picture,
              run.family,
              remove,
              goOn,
              further,
          ]
        : run;
}

/**
 * A list that is drawn again only when it is another one, and keeps the focus and what is unfolded.
 * `words(run)`: what its row says.
 */
function list(title, empty, words) {
    const rows = el("ul", { class: "lora-trainer-runs" });
    const element = el(
        "section",
        { class: "lora-trainer-card", "aria-label": title },
        el("h3", {}, title),
        rows,
    );
    let drawn = null;
    return {
        element,
        set(runs, make) {
            const now = JSON.stringify(runs.map(shape));
            if (now === drawn) {
                runs.forEach((run, at) =>
                    put(
                        rows.children[at].querySelector(
                            ".lora-trainer-run-words .lora-trainer-help",
                        ),
                        words(run),
                    ),
                );
                return;
            }
            drawn = now;
            const active = document.activeElement;
            const focused =
                active instanceof HTMLElement && rows.contains(active) ? active.dataset.key : null;
            const unfolded = new Set(
                [...rows.querySelectorAll("details[open]")].map((details) => details.dataset.key),
            );
            fill(
                rows,
                runs.length ? runs.map(make) : el("li", { class: "lora-trainer-help" }, empty),
            );
            for (const details of rows.querySelectorAll("details"))
                details.open = unfolded.has(details.dataset.key);
            const again =
                focused &&
                [...rows.querySelectorAll("[data-key]")].find(
                    (button) => button.dataset.key === focused,
                );
            if (again && !again.disabled) again.focus();
            else if (again) again.parentElement.querySelector("button:not(:disabled)").focus();
        },
    };
}

// --- the section -------------------------------------------------------------------------------

function draw(container) {
    const start = startCard();
    view = liveView(changed);
    const other = el("div");
    const queue = list(t("Queue"), "", (run) => run.sentence);
    const runs = list(t("Runs"), t("Runs appear here once you have started one."), facts);
    const trash = runActions.trashRow(changed);
    runs.element.append(trash.element);
    Object.assign(known, { shown: null, settled: "", revision: null });
    page = {
        start: start.draw,
        /** What is shown follows from what is so now, whichever question told it. */
        now() {
            start.draw();
            showOther();
        },
        trash: trash.update,
        lists() {
            const waiting = known.runs
                .filter((run) => run.status === "queued")
                .sort((a, b) => a.position - b.position);
            queue.element.hidden = !waiting.length;
            queue.set(waiting, (run, at) => queueRow(run, at, waiting.length));
            runs.set(
                known.runs.filter((run) => run.status !== "queued"),
                runRow,
            );
            start.draw();
        },
    };
    /** Another run is at work than the one that is shown: say so, for as long as it is. */
    function showOther() {
        const shown = shownRun();
        const active = known.runs.find(
            (run) => runActions.isActive(run) && (!shown || run.id !== shown.id),
        );
        const worth = active && shown && !runActions.isActive(shown) ? active : null;
        redraw(other, worth ? worth.id : "", () =>
            worth
                ? widgets.notice(
                      "info",
                      t("{name} is being worked on now.", { name: worth.name }),
                      "",
                      widgets.button({
                          label: t("Show"),
                          onclick: () => {
                              choose(worth.id);
                              poll.wake();
                          },
                      }),
                  )
                : [],
        );
    }
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
    start.draw();
    if (poll) poll.wake();
}

const start = () => {
    if (page) page.start();
};

export const section = {
    id: "train",
    title: () => t("Train"),
    draw,
    shown() {
        start();
        if (poll) poll.wake();
    },
};

let subscribed = false;

onStart(() => {
    page = view = null;
    poll = startPolling(look);
    if (subscribed) return;
    subscribed = true;
    for (const key of ["plan", "dataset", "home", "checkpoint", "draft", "datasets", "delivered"])
        store.on(key, start);
    store.on("run", (id) => {
        if (id && id !== known.chosen) {
            choose(id);
            if (poll) poll.wake();
        }
    });
    // another browser or a command line may have started something meanwhile
    const again = () => {
        if (poll) poll.wake();
    };
    window.addEventListener("focus", again);
    document.addEventListener("visibilitychange", again);
    if (typeof onUiTabChange === "function") onUiTabChange(again);
});
