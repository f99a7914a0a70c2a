/*
 * The five steps and their sections, of which one is shown.
 *
 * A section is {id, title(), draw(container), shown(), hidden()}: drawn when it is first shown.
 */
import { el, fill } from "./elements.js";
import { root } from "./host.js";
import { t } from "./language.js";
import { lookAround } from "./polling.js";
import { kept, store } from "./store.js";
import * as widgets from "./widgets.js";

const STEP_KEY = "lora-trainer-step";

const sections = new Map();

let current = null;

/** Put sections into the tab, in the order of its steps. */
export function register(...wanted) {
    for (const section of wanted) sections.set(section.id, section);
}

/** @returns {NodeListOf<HTMLElement>} what the tab has of a selector */
const all = (selector) => root().querySelectorAll(selector);

/** A few words under a step's name: what is there already. */
export function summarizeStep(id, text, state) {
    const note =
        root() && root().querySelector("#lora_trainer_step_" + id + " .lora-trainer-step-note");
    if (!note) return;
    note.textContent = text || invitation(id);
    note.parentElement.dataset.state = state || "";
}

/** What a step is for, while there is nothing to tell of it. */
function invitation(id) {
    switch (id) {
        case "images":
            return t("Add your pictures");
        case "captions":
            return t("Say what they show");
        case "train":
            return t("Start and watch");
        case "try":
            return t("With it and without it");
        default:
            return "";
    }
}

export function openSection(id) {
    const section = sections.get(id);
    if (!section || id === current) return;
    const before = sections.get(current);
    if (before && before.hidden) before.hidden();
    current = id;
    kept.set(STEP_KEY, id, { session: true });
    for (const step of all("[role=tab]")) {
        const chosen = step.id === "lora_trainer_step_" + id;
        step.setAttribute("aria-selected", String(chosen));
        step.tabIndex = chosen ? 0 : -1;
    }
    for (const panel of all("[role=tabpanel]"))
        panel.hidden = panel.id !== "lora_trainer_section_" + id;
    drawn(section);
    if (section.shown) section.shown();
    store.set("section", id);
    lookAround();
}

export const currentSection = () => current;

/**
 * The tab is about to be drawn anew. Returns the section to be shown then: the one that is shown
 * now, or was last in this browser's window, or the first. /
 */
export function leaveSection() {
    const before = current || kept.get(STEP_KEY, { session: true });
    const old = sections.get(current);
    if (old && old.hidden) old.hidden();
    current = null;
    for (const section of sections.values()) section.container = null;
    return sections.has(before) ? before : [...sections.keys()][0];
}

/** The rooms of the sections, all hidden. */
export const panels = () =>
    [...sections.values()].map((section) =>
        el("section", {
            role: "tabpanel",
            class: "lora-trainer-section",
            id: "lora_trainer_section_" + section.id,
            "aria-labelledby": "lora_trainer_step_" + section.id,
            tabindex: "-1",
            hidden: true,
        }),
    );

function drawn(section) {
    if (section.container) return;
    section.container = root().querySelector("#lora_trainer_section_" + section.id);
    try {
        section.draw(section.container);
    } catch (problem) {
        console.error(problem);
        fill(
            section.container,
            widgets.notice("error", t("This part of the tab could not be drawn."), String(problem)),
        );
    }
}

/** The row of steps, each of which opens its section. */
export function stepper() {
    const steps = [...sections.values()];
    const move = (event) => {
        const way = { ArrowRight: 1, ArrowLeft: -1, Home: -steps.length, End: steps.length }[
            event.key
        ];
        if (!way) return;
        event.preventDefault();
        const at = steps.findIndex((section) => section.id === current);
        const next = steps[Math.min(steps.length - 1, Math.max(0, at + way))];
        openSection(next.id);
        all("#lora_trainer_step_" + next.id)[0].focus();
    };
    return el(
        "div",
        {
            class: "lora-trainer-steps",
            role: "tablist",
            "aria-label": t("From the images to the LoRA"),
            onkeydown: move,
        },
        steps.map((section, index) =>
            el(
                "button",
                {
                    type: "button",
                    role: "tab",
                    class: "lora-trainer-step",
                    id: "lora_trainer_step_" + section.id,
                    "aria-controls": "lora_trainer_section_" + section.id,
                    "aria-selected": "false",
                    tabindex: "-1",
                    onclick: () => openSection(section.id),
                },
                el(
                    "span",
                    { class: "lora-trainer-step-number", "aria-hidden": "true" },
                    String(index + 1),
                ),
                el("span", { class: "lora-trainer-step-title" }, section.title()),
                el("span", { class: "lora-trainer-step-note" }, invitation(section.id)),
            ),
        ),
    );
}
