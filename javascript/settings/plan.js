/*
 * The plan of the run and its problems, from POST plan. Writes the store's "plan".
 */
import { api, expected } from "../common/api.js";
import { el, fill, put } from "../common/elements.js";
import { dotted, plural, sentences, t, withColon } from "../common/language.js";
import { isVisible } from "../common/polling.js";
import { currentSection, openSection, summarizeStep } from "../common/sections.js";
import { kept, settings, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as drafts from "./draft.js";
import { draft, same } from "./draft.js";
import { presetOf, publish, suggested, takeOver } from "./values.js";
import { state } from "./state.js";

/** @import { PlanProblem, PlanView } from "../common/answers" */

/** @import { Problem } from "../common/api.js" */

const PLAN_DELAY = 400;

const SEEN_KEY = "lora-trainer-settings-seen";

/** The plan, if it is for the selected dataset. */
export function currentPlan() {
    const plan = store.get("plan");
    return plan?.dataset === drafts.dataset() ? plan : null;
}

// --- requesting the plan -----------------------------------------------------------------------

let planTimer = 0,
    planNumber = 0;

/** @type {Problem | null} why there is no plan */
let planError = null;

export function replan(delay = PLAN_DELAY) {
    clearTimeout(planTimer);
    planTimer = setTimeout(askPlan, delay);
    state.page?.waiting(true);
}

async function askPlan() {
    const number = (planNumber += 1);
    const dataset = store.get("dataset") ?? "";
    try {
        const plan = await api.post("plan", {
            dataset,
            checkpoint: draft.checkpoint,
            init_lora: draft.init_lora,
            name: draft.name,
            settings: settings(),
        });
        if (number !== planNumber) return;
        planError = null;
        const before = suggested();
        store.set("plan", { ...plan, dataset });
        if (!same(suggested(), before)) publish();
        // images are decoded in the background, and may change the plan
        if (plan.unchecked > 0 && isVisible()) replan(1500);
    } catch (caught) {
        if (number !== planNumber) return;
        planError = expected(caught);
    }
    state.page?.waiting(false);
    state.page?.showPlan();
    summarize();
}

/** The datasets whose settings were opened in this window. */
const seen = () => kept.get(SEEN_KEY, { session: true }) ?? [];

function see() {
    const id = store.get("dataset");
    if (id && currentSection() === "settings" && !seen().includes(id))
        kept.set(SEEN_KEY, [...seen(), id], { session: true });
}

export function summarize() {
    see();
    const plan = currentPlan();
    // no errors are shown before there are images and the settings were opened
    const wrong =
        seen().includes(store.get("dataset")) &&
        plan?.problems.some(
            (problem) => problem.severity === "error" && problem.field !== "dataset",
        );
    summarizeStep(
        "settings",
        wrong ? t("needs attention") : dotted(presetOf()?.title, stepText()),
        wrong ? "problem" : "",
    );
}

function stepText() {
    const steps = currentPlan()?.steps;
    return steps ? plural(steps, "{count} step", "{count} steps") : "";
}

// --- showing the plan --------------------------------------------------------------------------

/** @param {(field: string) => void} goTo show where a problem is fixed */
export function planCard(goTo) {
    const sentence = el("p.lora-trainer-settings-sentence", { "aria-live": "polite" });
    const table = el("dl.lora-trainer-settings-facts");
    const problems = el("ul.lora-trainer-settings-problems", {
        "aria-label": t("What needs attention"),
    });
    const next = widgets.actions();
    const onward = widgets.button({
        label: t("Continue to training"),
        kind: "primary",
        local: true,
        onclick: () => openSection("train"),
    });
    let obstacle = "";
    const fix = widgets.button({ label: "", local: true, onclick: () => goTo(obstacle) });
    const element = el(
        "section.lora-trainer-card.lora-trainer-settings-plan",
        { "aria-label": t("What will happen") },
        el("h3", t("What will happen")),
        sentence,
        table,
        problems,
    );
    /** @type {PlanView | null} */
    let drawn = null;

    function show() {
        const plan = currentPlan();
        if (planError) {
            put(sentence, sentences(planError.message, planError.hint));
            next.setText(planError.message);
            return;
        }
        if (!plan || same(plan, drawn)) return;
        drawn = plan;
        const first = plan.problems.find((problem) => problem.severity === "error");
        put(sentence, plan.sentence || (first ? t("Training cannot start yet.") : ""));
        next.setText(first ? first.message : planText());
        fill(
            table,
            plan.facts.map((fact) => el("div", el("dt", fact.label), el("dd", fact.value))),
        );
        fill(
            problems,
            plan.problems.map((problem) => problemItem(problem, goTo)),
        );
        if (plan.unchecked > 0)
            problems.append(
                el(
                    "li.lora-trainer-help",
                    datasets.isTexts()
                        ? plural(
                              plan.unchecked,
                              "{count} text is still being checked ...",
                              "{count} texts are still being checked ...",
                          )
                        : plural(
                              plan.unchecked,
                              "{count} image is still being checked ...",
                              "{count} images are still being checked ...",
                          ),
                ),
            );
        problems.hidden = !problems.children.length;
        onward.disabled = !plan.ok;
        // errors must be fixed first
        obstacle = first?.field ?? "";
        if (obstacle) put(fix, placeLabel(obstacle));
        widgets.makePrimary(fix, Boolean(obstacle));
        widgets.makePrimary(onward, !obstacle);
        next.fill(obstacle ? fix : null, onward);
    }
    return {
        element,
        next,
        show,
        waiting: (/** @type {boolean} */ is) => element.setAttribute("aria-busy", String(is)),
    };
}

/** A short summary for the bar. */
export function planText() {
    const card = datasets.chosen();
    return dotted(card && withColon(card.name, datasets.countOf(card)), stepText());
}

/** Places of a problem that are not fields of this section, with their section. */
/** @type {Record<string, string>} */
export const SECTION_OF = { dataset: "images", captions: "captions" };

/** The section where a problem is fixed, and the label of the button that leads there. */
export const placeOf = (/** @type {string | null} */ field) =>
    SECTION_OF[field ?? ""] ?? "settings";

export function placeLabel(/** @type {string | null} */ field) {
    switch (placeOf(field)) {
        case "images":
            return datasets.isTexts() ? t("Go to the texts") : t("Go to the images");
        case "captions":
            return t("Go to the captions");
        default:
            return t("Show where");
    }
}

function problemItem(
    /** @type {PlanProblem} */ { severity, message, hint, field, change },
    /** @type {(field: string) => void} */ goTo,
) {
    return el(
        "li",
        { class: "lora-trainer-notice lora-trainer-notice-" + severity },
        el("p", el("strong", severity === "error" ? t("To fix: ") : t("Note: ")), message),
        hint ? el("p.lora-trainer-hint", hint) : null,
        field
            ? el(
                  "button.lora-trainer-settings-show",
                  { type: "button", onclick: () => goTo(field) },
                  placeLabel(field),
              )
            : null,
        Object.keys(change).length
            ? el(
                  "button.lora-trainer-settings-show",
                  { type: "button", onclick: () => takeOver({ ...settings(), ...change }) },
                  t("Use these settings"),
              )
            : null,
    );
}
