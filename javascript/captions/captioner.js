/*
 * "Write captions": choose a captioner, images and options; then progress with Pause and Stop,
 * while new captions appear. A caption run is a run like a training, and continues when the browser
 * is closed.
 */
import { api, expected, randomToken } from "../common/api.js";
import { el, fill, find, findAll, uniqueId } from "../common/elements.js";
import { dotted, formatDuration, formatNumber, sentences, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection } from "../common/sections.js";
import { home, kept, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { EVERY } from "../images/pages.js";
import * as drafts from "../settings/draft.js";
import { draft } from "../settings/draft.js";
import { settingEntry } from "../settings/fields.js";
import { replan } from "../settings/plan.js";
import * as runActions from "../training/runs.js";
import { bench, reload, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";
import * as filter from "./filter.js";
import * as selection from "./selection.js";

/** @import { CaptionRunBody, CaptionerView, RunView, SettingView } from "../common/answers" */
/** @import { ButtonOptions, Poll, Settings } from "../common/types" */

/** @import { Problem } from "../common/api.js" */
/** @import { Ask } from "../training/live.js" */

const CHOICE_KEY = "lora-trainer-captioner";

const AROUND = ["prefix", "suffix"];

const SECONDS_ACTIVE = 1,
    SECONDS_WAITING = 4,
    SECONDS_NEWS = 600;

/** @type {RunView | null} the newest caption run of a dataset */
let run = null;

/** @type {Poll | null} */
let poll = null;

/** The dataset of the run. */
let of = "",
    draw = () => {},
    dismissed = "",
    witnessed = "";

const isActive = (/** @type {RunView | null} */ one) =>
    one !== null && (runActions.isActive(one) || one.status === "queued");

// --- polling -----------------------------------------------------------------------------------

async function look() {
    const id = store.get("dataset");
    if (!id || currentSection() !== "captions") return null;
    const before = run,
        was = isActive(before);
    let found;
    try {
        found = await api.get(datasets.path("caption-run", id));
    } catch (caught) {
        if (expected(caught).status === 404) return null;
        throw caught;
    }
    if (id !== store.get("dataset")) return 0;
    const now = "id" in found ? found : null;
    run = now;
    of = id;
    draw();
    // new captions appear as they are written
    if (now && was && before?.id === now.id && (before.step !== now.step || !isActive(now)))
        await reload(() => t("New"), { quietly: true });
    // an ended run can be undone as a whole
    if (was && !isActive(run)) {
        await changes.readEdits();
        await datasets.refresh();
        replan();
    }
    if (!run || !isActive(run)) return null;
    return run.status === "queued" ? SECONDS_WAITING : SECONDS_ACTIVE;
}

export const pollNow = () => poll?.wake();

// --- the panel ---------------------------------------------------------------------------------

export function panel() {
    const element = el("section.lora-trainer-card.lora-trainer-bench-form", {
        hidden: true,
        "aria-label": t("Writing captions"),
    });
    const progress = widgets.progress(t("Writing captions"));
    const asking = (/** @type {Ask} */ what) => () => run && runActions.ask(run, what, pollNow);
    const pause = widgets.button({ label: t("Pause"), onclick: asking("pause") });
    const resume = widgets.button({ label: t("Resume"), onclick: asking("resume") });
    const stop = widgets.button({ label: t("Stop"), onclick: asking("stop") });
    const withdraw = widgets.button({
        label: t("Remove from the queue"),
        onclick: async () => {
            if (run) await api.post(runActions.route(run, "unqueue"));
            run = null;
            draw();
        },
    });
    const busy = el(
        "div.lora-trainer-bench-progress",
        progress.element,
        widgets.row(pause, resume, stop, withdraw),
    );
    const warnings = el("div.lora-trainer-bench-form");
    let drawn = "";

    draw = () => {
        element.hidden = !run || of !== store.get("dataset") || isPast(run);
        if (!run || element.hidden) return;
        const over = !isActive(run);
        if (!over) witnessed = run.id;
        const mark = JSON.stringify([run.id, over, run.warnings, run.failure, run.status]);
        if (!over) {
            const { can } = run;
            pause.hidden = !can.pause;
            resume.hidden = run.status !== "paused" && run.status !== "pausing";
            resume.disabled = !can.resume;
            withdraw.hidden = run.status !== "queued";
            stop.hidden = run.status === "queued";
            stop.disabled = !can.stop;
            progress.set(...share(run));
        }
        if (mark === drawn) return;
        drawn = mark;
        fill(
            warnings,
            run.warnings
                .slice(-5)
                .map((warning) => widgets.notice("warning", warning.message, warning.hint)),
        );
        fill(element, over ? ended(run) : busy, warnings);
    };
    return element;
}

/** Whether it has ended and was dismissed here, or ended long ago. */
function isPast(/** @type {RunView} */ run) {
    if (isActive(run)) return false;
    const isOld = Date.now() / 1000 - (run.changed ?? 0) > SECONDS_NEWS;
    const closed = kept.get(CHOICE_KEY + "-closed", { session: true });
    return dismissed === run.id || closed === run.id || (witnessed !== run.id && isOld);
}

/**
 * [done, total, text] for the progress bar: of the images, or of a download before the first one.
 *
 * @returns {[number, number, string]}
 */
function share(/** @type {RunView} */ run) {
    const status = run.status === "running" && run.phase ? run.phase : runActions.statusText(run);
    if (run.step_count && run.step) {
        const left = run.seconds_left
            ? t("about {time} left", { time: formatDuration(run.seconds_left) })
            : "";
        return [
            run.step,
            run.step_count,
            dotted(
                run.status === "running" ? "" : status,
                t("{done} of {count} images", {
                    done: formatNumber(run.step),
                    count: formatNumber(run.step_count),
                }),
                left,
            ),
        ];
    }
    return [run.phase_step, run.phase_total, run.sentence || status];
}

function ended(/** @type {RunView} */ run) {
    const close = widgets.button({
        label: t("Close"),
        onclick: () => {
            dismissed = run.id;
            kept.set(CHOICE_KEY + "-closed", dismissed, { session: true });
            draw();
        },
    });
    if (run.failure)
        return widgets.notice(
            "error",
            run.failure.message,
            run.failure.hint,
            widgets.button({ label: t("Try again"), onclick: ask }),
            close,
        );
    const words =
        run.status === "finished"
            ? t("The captions are written. Check them: mistakes in a caption are learned too.")
            : t("The captioner has stopped. The captions that it wrote are kept.");
    return widgets.notice(
        run.status === "finished" ? "done" : "info",
        words,
        run.sentence,
        run.status === "finished"
            ? widgets.button({
                  label: t("Show those not reviewed yet"),
                  onclick: () => filter.ask({ ...EVERY, filter: "unreviewed" }),
              })
            : widgets.button({ label: t("Continue"), onclick: ask }),
        close,
    );
}

/** @typedef {(captioner: CaptionerView) => void} Choose */

/** @typedef {{which: "missing" | "machine" | "all"}} Scope which of the images get a caption */

/** @typedef {ReturnType<typeof selection.targets>} Targets */

// --- the dialog --------------------------------------------------------------------------------

/**
 * @param {CaptionerView} captioner
 * @param {boolean} isChosen
 * @param {Choose} choose
 */
function captionerChoice(captioner, isChosen, choose) {
    const id = uniqueId("captioner");
    const radio = el("input", {
        type: "radio",
        name: "lora_trainer_captioner",
        id,
        checked: isChosen,
        onchange: () => choose(captioner),
    });
    return el(
        "div.lora-trainer-bench-captioner",
        radio,
        el(
            "label",
            { for: id },
            el("b", captioner.title),
            el("span", captioner.sentence),
            widgets.small(
                dotted(
                    captioner.on_disk
                        ? t("already downloaded")
                        : t("{size} to download", { size: captioner.download_text }),
                    t("needs {memory} of memory", { memory: captioner.memory_text }),
                    captioner.licence,
                    captioner.needs?.sentence,
                ),
            ),
        ),
    );
}

/**
 * @param {Scope} scope
 * @param {Scope["which"]} value
 * @param {string} label
 */
function whichOption(scope, value, label) {
    const id = uniqueId("which");
    return el(
        "div.lora-trainer-bench-flag",
        el("input", {
            type: "radio",
            name: "lora_trainer_which",
            id,
            checked: scope.which === value,
            onchange: () => {
                scope.which = value;
            },
        }),
        el("label", { for: id }, label),
    );
}

/**
 * Which of the target images get a caption.
 *
 * @param {Scope} scope
 * @param {Targets} targets
 * @param {number} missing how many of all have none
 */
function whichOptions(scope, targets, missing) {
    const whole = targets.element.value === "all";
    return [
        whichOption(
            scope,
            "missing",
            whole
                ? t("Only images without a caption ({count})", { count: formatNumber(missing) })
                : t("Only images without a caption"),
        ),
        whichOption(
            scope,
            "machine",
            t("Also captions by a captioner; those by a person are kept"),
        ),
        whichOption(
            scope,
            "all",
            t("All {count}, including captions by a person", {
                count: formatNumber(targets.count()),
            }),
        ),
    ];
}

/**
 * The options of a captioner.
 *
 * @param {CaptionerView} chosen
 * @param {Settings} values receives changes
 */
function captionerFields(chosen, values) {
    const row = (/** @type {SettingView} */ field) => {
        const made = settingEntry(
            field,
            (value) => {
                values[field.key] = value;
            },
            "lora_trainer_captioner_" + field.key,
        );
        made.show(field.key in values ? values[field.key] : field.default);
        return widgets.labelled(field.label, made.input, { help: field.help });
    };
    // common options are shown; thresholds and the like are under Advanced
    const usual = chosen.fields.filter((field) => AROUND.includes(field.key)),
        rare = chosen.fields.filter((field) => !AROUND.includes(field.key));
    const word = triggerWord();
    return [
        el("div.lora-trainer-bench-fields", usual.map(row)),
        word
            ? widgets.help(t("Each caption begins with the trigger word: {word}", { word }))
            : null,
        rare.length
            ? el(
                  "details",
                  el("summary", t("More settings")),
                  el("div.lora-trainer-bench-fields", rare.map(row)),
              )
            : null,
    ];
}

function showProblem(/** @type {HTMLElement} */ place, /** @type {Problem} */ problem) {
    fill(
        place,
        widgets.problem(problem),
        problem.problems.length > 1
            ? controls.notes(problem.problems.map((one) => sentences(one.message, one.hint)))
            : null,
    );
    place.scrollIntoView({ block: "nearest" });
}

/**
 * @param {CaptionerView[]} captioners
 * @param {CaptionerView} chosen
 * @param {Choose} choose
 */
const captionerList = (captioners, chosen, choose) =>
    el(
        "div.lora-trainer-bench-captioners",
        { role: "radiogroup", "aria-label": t("Captioner") },
        captioners.map((captioner) => captionerChoice(captioner, captioner === chosen, choose)),
    );

/** Start or queue a caption run. Returns the problem if it is refused. */
async function startRun(/** @type {CaptionRunBody} */ wanted) {
    try {
        run = await api.post(datasets.path("caption-run"), wanted);
    } catch (caught) {
        return expected(caught);
    }
    of = store.get("dataset") ?? "";
    draw();
    pollNow();
    return null;
}

/** Why a run cannot start; null if it can. */
function notSetUp() {
    const { setup } = home();
    return setup && setup.state !== "ready"
        ? widgets.notice("info", t("The captioners are not set up yet."), setup.message)
        : null;
}

/**
 * The captioner last used for these images, else the last one in this browser, else one that is
 * installed.
 */
function usualCaptioner(/** @type {CaptionerView[]} */ captioners) {
    const before = draft.captioner.captioner || kept.get(CHOICE_KEY)?.captioner;
    return (
        captioners.find((one) => one.name === before) ??
        captioners.find((one) => one.on_disk) ??
        captioners[0]
    );
}

function markChosen(/** @type {HTMLElement} */ list) {
    for (const choice of findAll(list, ".lora-trainer-bench-captioner")) {
        const isChosen = Boolean(find(choice, "input:checked"));
        choice.classList.toggle("lora-trainer-bench-chosen", isChosen);
    }
}

const downloadText = (/** @type {CaptionerView} */ captioner) =>
    captioner.on_disk
        ? ""
        : t("The first time, {size} are downloaded from {model}.", {
              size: captioner.download_text,
              model: captioner.model,
          });

/** @type {(disabled: boolean, begin: (when: "now" | "queue") => unknown) => ButtonOptions[]} */
const beginActions = (disabled, begin) => [
    { label: t("Cancel") },
    { label: t("Add to the queue"), disabled, onclick: () => begin("queue") },
    { label: t("Write captions"), kind: "primary", disabled, onclick: () => begin("now") },
];

/** The captioner's options that have a value. */
const given = (/** @type {Settings} */ options) =>
    Object.fromEntries(
        Object.entries(options).filter(([, value]) => value !== null && value !== ""),
    );

export async function ask() {
    await bench.page.saveAll();
    const captioners = await api.get("captioners");
    const { total, captioned } = bench.page.pages.known();
    let chosen = usualCaptioner(captioners);
    // options are kept for these images: {captioner: {key: value}}
    const options = { ...draft.captioner.options };
    /** @type {Scope} */
    const scope = { which: captioned < total ? "missing" : "machine" };
    let token = "";

    const [fields, errorPlace] = [el("div.lora-trainer-bench-form"), el("div")];
    const note = el("p.lora-trainer-help", { role: "status" });
    const list = captionerList(captioners, chosen, (one) => {
        chosen = one;
        drawFields();
    });
    const targets = selection.targets(() => drawWhich());
    const drawWhich = () => fill(which, whichOptions(scope, targets, total - captioned));
    const which = el("div.lora-trainer-bench-form", {
        role: "radiogroup",
        "aria-label": t("Which captions"),
    });
    drawWhich();

    function drawFields() {
        fill(fields, captionerFields(chosen, optionsOf(chosen)));
        note.textContent = downloadText(chosen);
        markChosen(list);
    }

    const optionsOf = (/** @type {CaptionerView} */ { name }) => (options[name] ??= {});

    async function begin(/** @type {"now" | "queue"} */ when) {
        token ||= randomToken();
        kept.set(CHOICE_KEY, { captioner: chosen.name });
        draft.captioner = { captioner: chosen.name, options };
        drafts.note();
        const problem = await startRun({
            captioner: chosen.name,
            options: given(optionsOf(chosen)),
            only_missing: scope.which === "missing",
            overwrite: scope.which === "all",
            select: targets.select(),
            trigger: triggerWord(),
            token,
            when,
        });
        if (!problem) return true;
        if (problem.status) token = "";
        showProblem(errorPlace, problem);
        return false;
    }

    const obstacle = notSetUp();
    widgets.dialog({
        title: t("Write captions"),
        wide: true,
        body: el(
            "div.lora-trainer-bench-two",
            el("div.lora-trainer-bench-form", obstacle, list, note),
            el(
                "div.lora-trainer-bench-form",
                el("h4", t("Which captions")),
                widgets.labelled(t("Apply to"), targets.element),
                which,
                fields,
                errorPlace,
            ),
        ),
        actions: beginActions(Boolean(obstacle), begin),
    });
    drawFields();
}

export const watch = () => {
    poll = startPolling(look);
};
