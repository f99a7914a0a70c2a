/*
 * "Write captions": which captioner, for which images, with what around each caption; then its
 * progress, with Pause and Stop, while new captions appear in the page. A caption run is a run like
 * a training: it goes on when the browser is closed.
 */
import { Problem, api, randomToken } from "../common/api.js";
import { el, fill, uniqueId } from "../common/elements.js";
import { formatDuration, formatNumber, sentences, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection } from "../common/sections.js";
import { kept, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as drafts from "../settings/draft.js";
import { draft } from "../settings/draft.js";
import { settingEntry } from "../settings/fields.js";
import { replan } from "../settings/plan.js";
import * as runActions from "../training/runs.js";
import { bench, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";
import * as filter from "./filter.js";
import * as selection from "./selection.js";

const CHOICE_KEY = "lora-trainer-captioner";

const AROUND = ["prefix", "suffix"];

const SECONDS_ACTIVE = 1,
    SECONDS_WAITING = 4,
    SECONDS_NEWS = 600;

let run = null,
    of = "",
    poll = null,
    draw = () => {},
    dismissed = "",
    witnessed = "";

const isActive = () => Boolean(run) && (runActions.isActive(run) || run.status === "queued");

// --- asking ------------------------------------------------------------------------------------

async function look() {
    const id = store.get("dataset");
    if (!id || currentSection() !== "captions") return null;
    const before = run,
        was = isActive();
    let found;
    try {
        found = await api.get(datasets.path("caption-run", id));
    } catch (problem) {
        if (problem.status === 404) return null;
        throw problem;
    }
    if (id !== store.get("dataset")) return 0;
    run = found && found.id ? found : null;
    of = id;
    draw();
    // new captions appear as they come
    if (run && was && before.id === run.id && (before.step !== run.step || !isActive())) {
        bench.mark = () => t("New");
        try {
            await bench.page.pages.load({ quietly: true });
        } finally {
            bench.mark = () => t("Changed elsewhere");
        }
    }
    // a run that has ended can be undone as a whole
    if (was && !isActive()) {
        await changes.readEdits();
        await datasets.refresh();
        if (replan) replan();
    }
    return isActive() ? (run.status === "queued" ? SECONDS_WAITING : SECONDS_ACTIVE) : null;
}

export const lookAgain = () => {
    if (poll) poll.wake();
};

// --- the panel ---------------------------------------------------------------------------------

export function panel() {
    const element = el("section", {
        class: "lora-trainer-card lora-trainer-bench-form",
        hidden: true,
        "aria-label": t("Writing captions"),
    });
    const progress = widgets.progress(t("Writing captions"));
    const pause = widgets.button({
        label: t("Pause"),
        onclick: () => runActions.ask(run, "pause", lookAgain),
    });
    const resume = widgets.button({
        label: t("Resume"),
        onclick: () => runActions.ask(run, "resume", lookAgain),
    });
    const stop = widgets.button({
        label: t("Stop"),
        onclick: () => runActions.ask(run, "stop", lookAgain),
    });
    const withdraw = widgets.button({
        label: t("Withdraw"),
        onclick: async () => {
            await api.post(runActions.route(run, "unqueue"), {});
            run = null;
            draw();
        },
    });
    const busy = el(
        "div",
        { class: "lora-trainer-bench-progress" },
        progress.element,
        el("div", { class: "lora-trainer-row" }, pause, resume, stop, withdraw),
    );
    const warnings = el("div", { class: "lora-trainer-bench-form" });
    let drawn = "";

    draw = () => {
        const over = run && !isActive();
        if (isActive()) witnessed = run.id;
        element.hidden =
            !run ||
            of !== store.get("dataset") ||
            (over && (dismissed === run.id || seenBefore(run) || isOld()));
        if (element.hidden) return;
        const mark = JSON.stringify([run.id, over, run.warnings, run.failure, run.status]);
        if (!over) {
            const can = run.can || {};
            pause.hidden = !can.pause;
            resume.hidden = run.status !== "paused" && run.status !== "pausing";
            resume.disabled = !can.resume;
            withdraw.hidden = run.status !== "queued";
            stop.hidden = run.status === "queued";
            stop.disabled = !can.stop;
            progress.set(...share());
        }
        if (mark === drawn) return;
        drawn = mark;
        fill(
            warnings,
            (run.warnings || [])
                .slice(-5)
                .map((warning) => widgets.notice("warning", warning.message, warning.hint)),
        );
        fill(element, over ? ended() : busy, warnings);
    };
    return element;
}

/** Whether it ended so long ago that nobody waits for it. */
const isOld = () => witnessed !== run.id && Date.now() / 1000 - (run.changed || 0) > SECONDS_NEWS;

/** done, total, words: of the images, or of what is being fetched before the first one. */
function share() {
    const status = run.status === "running" && run.phase ? run.phase : runActions.statusWords(run);
    if (run.step_count && run.step) {
        const left = run.seconds_left
            ? t("about {time} left", { time: formatDuration(run.seconds_left) })
            : "";
        return [
            run.step,
            run.step_count,
            [
                run.status === "running" ? "" : status,
                t("{done} of {count} images", {
                    done: formatNumber(run.step),
                    count: formatNumber(run.step_count),
                }),
                left,
            ]
                .filter(Boolean)
                .join(" \u00b7 "),
        ];
    }
    return [run.phase_step || 0, run.phase_total || 0, run.sentence || status];
}

function ended() {
    const close = widgets.button({
        label: t("Close"),
        onclick: () => {
            dismissed = run.id;
            remember();
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
            ? t(
                  "The captions are written. Read them: what is wrong in a caption is learned as well.",
              )
            : t("The captioner has stopped. What it wrote stays.");
    return widgets.notice(
        run.status === "finished" ? "done" : "info",
        words,
        run.sentence || "",
        run.status === "finished"
            ? widgets.button({
                  label: t("Show those not reviewed yet"),
                  onclick: () => filter.ask({ ...filter.none(), filter: "unreviewed" }),
              })
            : widgets.button({ label: t("Go on"), onclick: ask }),
        close,
    );
}

const remember = () => kept.set(CHOICE_KEY + "-closed", dismissed, { session: true });

const seenBefore = (one) => kept.get(CHOICE_KEY + "-closed", { session: true }) === one.id;

// --- the dialog --------------------------------------------------------------------------------

function captionerChoice(captioner, isChosen, choose) {
    const id = uniqueId("captioner");
    const radio = el("input", {
        type: "radio",
        name: "lora_trainer_captioner",
        id,
        checked: isChosen,
        onchange: () => choose(captioner),
    });
    const facts = [
        captioner.on_disk
            ? t("on this computer")
            : t("{size} to download", { size: captioner.download_text }),
        t("needs {memory} of memory", { memory: captioner.memory_text }),
        captioner.licence,
    ].filter(Boolean);
    return el(
        "div",
        { class: "lora-trainer-bench-captioner" },
        radio,
        el(
            "label",
            { for: id },
            el("b", {}, captioner.title),
            el("span", {}, captioner.sentence),
            el(
                "span",
                { class: "lora-trainer-help" },
                facts.join(" \u00b7 "),
                captioner.needs ? " \u00b7 " + captioner.needs.sentence : "",
            ),
        ),
    );
}

function whichOption(wish, value, label) {
    const id = uniqueId("which");
    return el(
        "div",
        { class: "lora-trainer-bench-flag" },
        el("input", {
            type: "radio",
            name: "lora_trainer_which",
            id,
            checked: wish.which === value,
            onchange: () => {
                wish.which = value;
            },
        }),
        el("label", { for: id }, label),
    );
}

/** Which of the images that are meant get a caption. */
function whichOptions(wish, targets, total, captioned) {
    const whole = targets.element.value === "all";
    return [
        whichOption(
            wish,
            "missing",
            whole
                ? t("Only images without a caption ({count})", {
                      count: formatNumber(total - captioned),
                  })
                : t("Only images without a caption"),
        ),
        whichOption(
            wish,
            "machine",
            t("Those a captioner wrote as well; what a person wrote stays"),
        ),
        whichOption(
            wish,
            "all",
            t("All {count}, also what a person wrote", {
                count: formatNumber(targets.count()),
            }),
        ),
    ];
}

/** What can be set for a captioner; `options` are told. */
function captionerFields(chosen, options) {
    const values = (options[chosen.name] = options[chosen.name] || {});
    const row = (field) => {
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
    // what goes around each caption is asked of everybody; thresholds and the like of those who
    // look for them
    const usual = chosen.fields.filter((field) => AROUND.includes(field.key)),
        rare = chosen.fields.filter((field) => !AROUND.includes(field.key));
    const word = triggerWord();
    return [
        el("div", { class: "lora-trainer-bench-fields" }, usual.map(row)),
        word
            ? el(
                  "p",
                  { class: "lora-trainer-help" },
                  t("Each caption begins with the trigger word: {word}", { word }),
              )
            : null,
        rare.length
            ? el(
                  "details",
                  {},
                  el("summary", {}, t("More settings")),
                  el("div", { class: "lora-trainer-bench-fields" }, rare.map(row)),
              )
            : null,
    ];
}

function complain(place, problem) {
    fill(
        place,
        widgets.problem(problem),
        (problem.problems || []).length > 1
            ? controls.notes(problem.problems.map((one) => sentences(one.message, one.hint)))
            : null,
    );
    place.scrollIntoView({ block: "nearest" });
}

const captionerList = (captioners, chosen, choose) =>
    el(
        "div",
        {
            class: "lora-trainer-bench-captioners",
            role: "radiogroup",
            "aria-label": t("Captioner"),
        },
        captioners.map((captioner) => captionerChoice(captioner, captioner === chosen, choose)),
    );

/** Start a caption run, or put it into the queue. Returns the problem where that is refused. */
async function startRun(wanted) {
    try {
        run = await api.post(datasets.path("caption-run"), wanted);
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        return problem;
    }
    of = store.get("dataset");
    draw();
    lookAgain();
    return null;
}

/** Why there can be no run yet; null if there can. */
function notSetUp() {
    const { setup } = store.get("home");
    return setup && setup.state !== "ready"
        ? widgets.notice("info", t("The captioners are not set up yet."), setup.message)
        : null;
}

/** The one that these images had before, or this browser chose last, or that is here already. */
function usualCaptioner(captioners) {
    const before = kept.get(CHOICE_KEY) || {};
    return (
        captioners.find((one) => one.name === (draft.captioner.captioner || before.captioner)) ||
        captioners.find((one) => one.on_disk) ||
        captioners[0]
    );
}

const downloadWords = (captioner) =>
    captioner.on_disk
        ? ""
        : t("The first time, {size} are downloaded from {model}.", {
              size: captioner.download_text,
              model: captioner.model,
          });

const beginActions = (disabled, begin) => [
    { label: t("Cancel") },
    { label: t("Add to the queue"), disabled, onclick: () => begin("queue") },
    { label: t("Write captions"), kind: "primary", disabled, onclick: () => begin("now") },
];

/** Of a captioner's options those that have a value. */
const given = (options) =>
    Object.fromEntries(
        Object.entries(options).filter(([, value]) => value !== null && value !== ""),
    );

export async function ask() {
    await bench.page.saveAll();
    const captioners = await api.get("captioners");
    const { total, captioned } = bench.page.pages.answer;
    let chosen = usualCaptioner(captioners);
    // what was set once for these images is offered again: {captioner: {key: value}}
    const options = { ...draft.captioner.options };
    const wish = { which: captioned < total ? "missing" : "machine" };
    let token = null;

    const [fields, trouble] = [el("div", { class: "lora-trainer-bench-form" }), el("div")];
    const note = el("p", { class: "lora-trainer-help", role: "status" });
    const list = captionerList(captioners, chosen, (one) => {
        chosen = one;
        drawFields();
    });
    const targets = selection.targets(() => drawWhich());
    const drawWhich = () => fill(which, whichOptions(wish, targets, total, captioned));
    const which = el("div", {
        class: "lora-trainer-bench-form",
        role: "radiogroup",
        "aria-label": t("Which captions"),
    });
    drawWhich();

    function drawFields() {
        fill(fields, captionerFields(chosen, options));
        note.textContent = downloadWords(chosen);
        for (const input of list.querySelectorAll("input"))
            input.parentElement.classList.toggle("lora-trainer-bench-chosen", input.checked);
    }

    async function begin(when) {
        token = token || randomToken();
        kept.set(CHOICE_KEY, { captioner: chosen.name });
        draft.captioner = { captioner: chosen.name, options };
        drafts.note();
        const problem = await startRun({
            captioner: chosen.name,
            options: given(options[chosen.name]),
            only_missing: wish.which === "missing",
            overwrite: wish.which === "all",
            select: targets.select(),
            trigger: triggerWord(),
            token,
            when,
        });
        if (!problem) return true;
        if (problem.status) token = null;
        complain(trouble, problem);
        return false;
    }

    const obstacle = notSetUp();
    widgets.dialog({
        title: t("Write captions"),
        wide: true,
        body: el(
            "div",
            { class: "lora-trainer-bench-two" },
            el("div", { class: "lora-trainer-bench-form" }, obstacle, list, note),
            el(
                "div",
                { class: "lora-trainer-bench-form" },
                el("h4", {}, t("Which captions")),
                widgets.labelled(t("In"), targets.element),
                which,
                fields,
                trouble,
            ),
        ),
        actions: beginActions(Boolean(obstacle), begin),
    });
    drawFields();
}

export const watch = () => {
    poll = startPolling(look);
};
