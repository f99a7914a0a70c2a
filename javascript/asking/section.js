/*
 * The section "try" for texts: ask a trained language model, with the LoRA at any strength, and copy
 * the LoRA's folder. As with the command `ask`, a queued job loads the model, answers, and waits
 * some time for the next question.
 *
 * Which model: the store's "ask", set by the buttons "Ask it"; else the newest.
 */
import { api, expected, randomToken } from "../common/api.js";
import { el, fill, put, redraw } from "../common/elements.js";
import { t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { openSection, summarizeStep } from "../common/sections.js";
import { Later, home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as loraTags from "../prompt/lora_tags.js";
import * as runActions from "../training/runs.js";

/** @import { AskView, TrainedModel } from "../common/answers" */
/** @import { Poll } from "../common/types" */

/** @import { Problem } from "../common/api.js" */

const SECONDS = 1;

/** The user's input; it is kept when the page is redrawn. */
const wish = {
    /** A run's id, or "" if there is none. */
    model: "",
    question: "",
    strength: 1,
    /** A saved step; 0: the newest. */
    step: 0,
};

/** @type {TrainedModel[]} */
let models = [];

/** @type {AskView | null} */
let shown = null;

/** The question without an answer yet, and the number of answers when it was asked. */
let asked = { question: "", before: 0 };

/** @type {Poll | null} */
let poll = null;

/** @typedef {ReturnType<typeof draw>} Page */

/** @type {Later<Page>} */
const drawn = new Later();

/** Whether the step "try" is about language models. */
export function isWanted() {
    const wanted = store.get("ask");
    return wanted ? true : wanted === "" ? false : datasets.isTexts();
}

store.on("dataset", () => store.set("ask", null));

const chosen = () => models.find((model) => model.id === wish.model);

/**
 * The route of the chosen model.
 *
 * @template {string} T
 * @param {T} tail
 * @returns {`asks/${string}/${T}`}
 */
const address = (tail) => `asks/${encodeURIComponent(wish.model)}/${tail}`;

/** Whether the job is answering a question. */
const isBusy = () =>
    Boolean(shown?.job) &&
    ["queued", "starting", "running", "pausing", "paused"].includes(shown?.job?.status ?? "") &&
    Boolean(asked.question);

async function read() {
    models = await api.get("asks");
    const wanted = store.get("ask");
    if (wanted && models.some((model) => model.id === wanted)) wish.model = wanted;
    if (!chosen()) wish.model = models.at(0)?.id ?? "";
    summarizeStep("try", chosen()?.name ?? "");
    drawn.need().form();
    await look();
}

async function look() {
    const page = drawn.now;
    if (!page || !wish.model) return null;
    const { model } = wish;
    try {
        const answer = await api.get(address("answers"));
        if (model !== wish.model) return 0;
        shown = answer;
    } catch (caught) {
        expected(caught);
        return 3;
    }
    if (asked.question && (shown?.count ?? 0) > asked.before) asked.question = "";
    page.answers();
    const active = shown?.job && (runActions.isActive(shown.job) || shown.job.status === "queued");
    return active ? SECONDS : null;
}

async function ask() {
    const page = drawn.need();
    const question = wish.question.trim();
    if (!question || !wish.model) return;
    asked = { question, before: shown?.count ?? 0 };
    page.answers();
    try {
        const { strength, step } = wish;
        const body = { question, strength, step: step || null, token: randomToken() };
        shown = await api.post(address("ask"), body);
        page.trouble(null);
        poll?.wake();
    } catch (caught) {
        asked.question = "";
        page.trouble(expected(caught));
    }
    page.answers();
}

/** A dialog for a folder of this machine, to which the LoRA is copied. */
function copyOut(/** @type {TrainedModel} */ model) {
    const input = widgets.text({ placeholder: "D:\\LLM\\loras" });
    widgets.dialog({
        title: t("Copy the LoRA of {name}", { name: model.name }),
        body: widgets.labelled(t("Folder"), input, {
            help: t(
                "The folder {name} is copied into it, for transformers, vLLM or text-generation-webui.",
                { name: model.name },
            ),
        }),
        actions: [
            { label: t("Cancel") },
            {
                label: t("Copy"),
                kind: "primary",
                onclick: async () => {
                    const body = { step: wish.step || null, folder: input.value };
                    const { path } = await api.post(address("copy"), body);
                    widgets.toast(t("Copied to {path}.", { path }), { severity: "done" });
                },
            },
        ],
    });
    input.focus();
}

/** The path of the LoRA, and buttons to copy or open its folder. */
function folderLine(/** @type {TrainedModel} */ model) {
    return el(
        "div.lora-trainer-field",
        el("span.lora-trainer-label", t("The LoRA")),
        widgets.help(
            model.folder ||
                t("A folder in PEFT's format, in the folder of the run {name}.", {
                    name: model.id,
                }),
        ),
        home().host.remote
            ? null
            : widgets.row(
                  widgets.button({ label: t("Copy to a folder"), onclick: () => copyOut(model) }),
                  widgets.button({
                      label: t("Open folder"),
                      onclick: () =>
                          api.post(
                              /** @type {const} */ (`runs/${encodeURIComponent(model.id)}/folder`),
                          ),
                  }),
              ),
    );
}

function drawNone(/** @type {HTMLElement} */ place) {
    fill(
        place,
        widgets.notice(
            "info",
            t("There is no language model to ask yet."),
            t("Train one first; saved steps can be asked when it has ended."),
        ),
    );
}

function modelField(/** @type {TrainedModel} */ model, /** @type {() => void} */ redraw) {
    const select = widgets.select({
        value: model.id,
        options: models.map(({ id, name }) => ({ value: id, label: name })),
        onchange: (id) => {
            Object.assign(wish, { model: id, step: -1 });
            shown = null;
            asked.question = "";
            redraw();
            poll?.wake();
        },
    });
    return widgets.labelled(t("Language model"), select, {
        help: t("Base model: {base}.", { base: model.base }),
    });
}

function stepField(/** @type {TrainedModel} */ { steps, best_step }) {
    const label = (/** @type {number} */ step) =>
        step === best_step ? t("Step {step}, the best", { step }) : t("Step {step}", { step });
    const select = widgets.select({
        value: String(wish.step),
        options: [
            { value: "0", label: t("The newest") },
            ...steps.map((step) => ({ value: String(step), label: label(step) })),
        ],
        onchange: (step) => {
            wish.step = Number(step);
        },
    });
    return widgets.labelled(t("Saved step"), select);
}

function strengthField() {
    const slider = widgets.slider({
        label: t("Strength"),
        value: wish.strength,
        minimum: 0,
        maximum: 2,
        step: 0.05,
        onchange: (value) => {
            wish.strength = Math.min(2, Math.max(0, value));
        },
    });
    return el(
        "div.lora-trainer-field",
        el("span.lora-trainer-label", { "aria-hidden": "true" }, t("Strength")),
        slider.element,
        widgets.help(t("0 is the base model, 1 the LoRA as it was trained.")),
    );
}

function questionField(/** @type {() => unknown} */ send) {
    const question = widgets.lines(4, {
        value: wish.question,
        maxlength: 20000,
        id: "lora_trainer_question",
        oninput: (text) => {
            wish.question = text;
        },
    });
    question.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    });
    return widgets.labelled(t("Question"), question, {
        help: t("Each question is independent: the model does not see earlier ones."),
    });
}

/** Questions with their answers; last the question that has none yet. */
function talkOf(/** @type {AskView["answers"]} */ all) {
    if (!all.length && !asked.question)
        return [
            widgets.help(
                t(
                    "The answers appear here. The first one takes as long as the model needs to load.",
                ),
            ),
        ];
    return [
        ...all.flatMap((answer) => [
            el("p.lora-trainer-talk-question", answer.prompt),
            el(
                "p.lora-trainer-talk-answer",
                answer.answer || t("(no answer)"),
                el(
                    "small",
                    t("Step {step}, strength {strength}", {
                        step: answer.step,
                        strength: loraTags.format(answer.strength ?? 1),
                    }),
                ),
            ),
        ]),
        asked.question ? el("p.lora-trainer-talk-question", asked.question) : null,
    ];
}

function draw(/** @type {HTMLElement} */ container) {
    const place = el("div.lora-trainer-card.lora-trainer-try-form");
    const trouble = el("div");
    const talk = el("div.lora-trainer-talk", { role: "log", "aria-label": t("Answers") });
    const state = el("p.lora-trainer-help", { role: "status" });
    const next = widgets.actions();
    const send = widgets.button({ label: t("Ask"), kind: "primary", onclick: ask });
    const train = widgets.button({
        label: t("Go to the training"),
        kind: "primary",
        local: true,
        onclick: () => openSection("train"),
    });
    const result = el(
        "section.lora-trainer-card.lora-trainer-try-result",
        { "aria-label": t("Answers") },
        el("h3", t("Answers")),
        talk,
        state,
    );
    const side = el("div.lora-trainer-try-side", place, trouble);
    fill(container, el("div.lora-trainer-try", side, result), next.element);

    /** The data that the form was drawn from. */
    let before = "";

    function form() {
        const model = chosen();
        const now = JSON.stringify([models, wish.model]);
        if (now === before) return;
        before = now;
        next.setText(model?.name ?? "");
        next.fill(model ? send : train);
        if (!model) {
            drawNone(place);
            return;
        }
        if (!model.steps.includes(wish.step)) {
            wish.step = model.best_step ?? 0;
            wish.strength = model.strength;
        }
        fill(
            place,
            modelField(model, form),
            stepField(model),
            strengthField(),
            questionField(() => send.click()),
            folderLine(model),
        );
    }

    function answers() {
        const all = shown?.answers ?? [];
        const job = shown?.job;
        redraw(talk, JSON.stringify([all, asked.question]), () => talkOf(all));
        talk.scrollTop = talk.scrollHeight;
        put(state, job && (asked.question || runActions.isActive(job)) ? job.sentence : "");
        if (job && asked.question && !isBusy() && !runActions.isActive(job)) {
            const { message, hint } = job.failure ?? {
                message: t("The model stopped before it answered."),
                hint: t("Ask again."),
            };
            fill(trouble, widgets.notice("error", message, hint));
            asked.question = "";
        }
        send.disabled = isBusy();
    }

    return {
        form,
        answers,
        trouble: (/** @type {Problem | null} */ problem) =>
            fill(trouble, problem ? widgets.problem(problem) : null),
    };
}

export const section = {
    id: "try",
    title: () => t("Ask it"),
    draw(/** @type {HTMLElement} */ container) {
        drawn.now = draw(container);
        poll = startPolling(look);
    },
    shown() {
        read().catch(widgets.toastProblem);
    },
};

store.on("ask", (run) => {
    if (run && drawn.now) read().catch(widgets.toastProblem);
});
