/*
 * The five steps and their sections, of which one is visible.
 */
import { el, fill, find, findAll, need, put, wayOf } from "./elements.js";
import { findRoot, root } from "./host.js";
import { t } from "./language.js";
import { pollVisible } from "./polling.js";
import { kept, store } from "./store.js";
import * as widgets from "./widgets.js";

/** @import { Section } from "./types" */

const STEP_KEY = "lora-trainer-step";

/** @type {Map<string, Section>} */
const sections = new Map();

/** The ids of the sections. */
const drawn = new Set();

/** The id of the visible section. */
let current = "";

/**
 * Add sections in the order of the steps.
 *
 * @param {Section[]} wanted
 */
export function register(...wanted) {
    for (const section of wanted) sections.set(section.id, section);
}

const stepId = (/** @type {string} */ id) => "lora_trainer_step_" + id;

const panelId = (/** @type {string} */ id) => "lora_trainer_section_" + id;

/**
 * A summary under a step's name.
 *
 * @param {string} id
 * @param {string} text
 * @param {"" | "problem"} [state]
 */
export function summarizeStep(id, text, state = "") {
    const place = findRoot();
    const step = place && find(place, "#" + stepId(id));
    if (!step) return;
    need(step, ".lora-trainer-step-note").textContent = text || invitation(id);
    step.dataset.state = state;
}

/** The purpose of a step, while it has no summary. */
function invitation(/** @type {string} */ id) {
    switch (id) {
        case "images":
            return t("Add your images");
        case "captions":
            return t("Describe what they show");
        case "train":
            return t("Start and watch");
        case "try":
            return t("With and without the LoRA");
        default:
            return "";
    }
}

/** The steps' names may follow from the dataset. */
export function retitle() {
    const place = findRoot();
    for (const section of sections.values()) {
        const step = place && find(place, "#" + stepId(section.id));
        if (step) put(need(step, ".lora-trainer-step-title"), section.title());
    }
}

export function openSection(/** @type {string} */ id) {
    const section = sections.get(id);
    if (!section || id === current) return;
    sections.get(current)?.hidden?.();
    current = id;
    kept.set(STEP_KEY, id, { session: true });
    for (const step of findAll(root(), "[role=tab]")) {
        const chosen = step.id === stepId(id);
        step.setAttribute("aria-selected", String(chosen));
        step.tabIndex = chosen ? 0 : -1;
    }
    for (const panel of findAll(root(), "[role=tabpanel]")) panel.hidden = panel.id !== panelId(id);
    draw(section);
    section.shown?.();
    store.set("section", id);
    pollVisible();
}

export const currentSection = () => current;

/**
 * The tab is about to be redrawn. Returns the section to show: the current one, or the last one of
 * this window, or the first.
 *
 * @returns {string}
 */
export function leaveSection() {
    const before = current || kept.get(STEP_KEY, { session: true });
    sections.get(current)?.hidden?.();
    current = "";
    drawn.clear();
    return sections.has(before) ? before : [...sections.keys()][0];
}

/** The containers of the sections, all hidden. */
export const panels = () =>
    [...sections.values()].map((section) =>
        el("section.lora-trainer-section", {
            role: "tabpanel",
            id: panelId(section.id),
            "aria-labelledby": stepId(section.id),
            tabindex: "-1",
            hidden: true,
        }),
    );

function draw(/** @type {Section} */ section) {
    if (drawn.has(section.id)) return;
    drawn.add(section.id);
    const container = need(root(), "#" + panelId(section.id));
    try {
        section.draw(container);
    } catch (problem) {
        console.error(problem);
        fill(
            container,
            widgets.notice(
                "error",
                t("This part of the tab could not be displayed."),
                String(problem),
            ),
        );
    }
}

/** The row of steps, each of which opens its section. */
export function stepper() {
    const steps = [...sections.values()];
    const move = (/** @type {KeyboardEvent} */ event) => {
        const count = steps.length;
        const way = wayOf(event, { ArrowRight: 1, ArrowLeft: -1, Home: -count, End: count });
        if (!way) return;
        event.preventDefault();
        const at = steps.findIndex((section) => section.id === current);
        const { id } = steps[Math.min(count - 1, Math.max(0, at + way))];
        openSection(id);
        need(root(), "#" + stepId(id)).focus();
    };
    return el(
        "div.lora-trainer-steps",
        { role: "tablist", "aria-label": t("Steps from the images to the LoRA"), onkeydown: move },
        steps.map((section, index) =>
            el(
                "button.lora-trainer-step",
                {
                    type: "button",
                    role: "tab",
                    id: stepId(section.id),
                    "aria-controls": panelId(section.id),
                    "aria-selected": "false",
                    tabindex: "-1",
                    onclick: () => openSection(section.id),
                },
                el("span.lora-trainer-step-number", { "aria-hidden": "true" }, String(index + 1)),
                el("span.lora-trainer-step-title", section.title()),
                el("span.lora-trainer-step-note", invitation(section.id)),
            ),
        ),
    );
}
