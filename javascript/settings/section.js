/*
 * The section "settings": checkpoint, name, presets, fields, and the plan. Form, help and presets
 * are from the server (home.form, home.presets).
 */
import { el, fill, need, redraw } from "../common/elements.js";
import { root } from "../common/host.js";
import { sentences, t } from "../common/language.js";
import { isVisible, startPolling } from "../common/polling.js";
import { currentSection, openSection } from "../common/sections.js";
import { onFirstStart, onStart } from "../common/start.js";
import { home, kept, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { checkpointCard, loadCheckpoint, loadCheckpoints, nameCard } from "./checkpoints.js";
import * as drafts from "./draft.js";
import { draft } from "./draft.js";
import { initLoraCard, loadLoraFiles } from "./init_lora.js";
import { LENGTH, fieldRow, lengthRow } from "./fields.js";
import { SECTION_OF, currentPlan, planCard, replan, summarize } from "./plan.js";
import { homeChanged, presetCard } from "./presets.js";
import { pollSetUp, setUpCard } from "./setup.js";
import { edited, publish, settle, shownFields, takeOver } from "./values.js";
import { state } from "./state.js";

/** @import { FormField, FormGroup } from "../common/answers" */
/** @import { Poll, Row } from "../common/types" */

/** @import { Page } from "./state.js" */

/** @typedef {Map<string, Row>} Rows by the key of a setting, or the name of a place */

const ADVANCED_KEY = "lora-trainer-advanced";

// --- the page ----------------------------------------------------------------------------------

/** A row per setting, by key; steps and epochs share one. */
function makeRows(/** @type {Map<string, FormField>} */ fields) {
    const [steps, epochs] = LENGTH.map((key) => fields.get(key));
    const length = steps && epochs && lengthRow(steps, epochs);
    /** @type {Rows} */
    const rows = new Map();
    for (const [key, field] of fields)
        rows.set(key, length && LENGTH.includes(key) ? length : fieldRow(field));
    return rows;
}

const elementsOf = (/** @type {FormGroup} */ group, /** @type {Rows} */ rows) =>
    new Set(group.fields.map((field) => rows.get(field.key)?.element));

const grid = (/** @type {FormGroup} */ group, /** @type {Rows} */ rows) =>
    el("div.lora-trainer-settings-grid", [...elementsOf(group, rows)]);

function advancedSettings(/** @type {FormGroup[]} */ groups, /** @type {Rows} */ rows) {
    return el(
        "details.lora-trainer-card.lora-trainer-settings-advanced",
        {
            open: kept.get(ADVANCED_KEY),
            ontoggle: (event) => kept.set(ADVANCED_KEY, event.currentTarget.open),
        },
        el("summary", t("Advanced settings")),
        groups
            .filter((group) => group.advanced)
            .map((group) => el("fieldset", el("legend", group.title), grid(group, rows))),
    );
}

/**
 * A search box: {input, none: the message without matches, clear()}. Shows only settings whose
 * label, help, key or other names contain all words.
 *
 * @param {Map<string, FormField>} fields
 * @param {Rows} rows
 * @param {HTMLDetailsElement} advanced
 */
function finder(fields, rows, advanced) {
    const none = el("p.lora-trainer-help", { role: "status" });
    const input = widgets.text({
        label: t("Find a setting"),
        placeholder: t("Find a setting"),
        oninput: find,
    });
    input.type = "search";
    let opened = false;

    function find(/** @type {string} */ text) {
        const words = text
            .toLowerCase()
            .split(/[\s_]+/)
            .filter(Boolean);
        const fits = (/** @type {FormField} */ field) => {
            const all = [field.label, field.help, field.terms].join(" ").toLowerCase();
            return words.every((word) => all.includes(word));
        };
        const found = [...fields.values()].filter(fits);
        const shown = new Set(found.map((field) => rows.get(field.key)));
        for (const row of rows.values()) row.element.hidden = !shown.has(row);
        for (const group of advanced.querySelectorAll("fieldset"))
            group.hidden = !group.querySelector(".lora-trainer-settings-field:not([hidden])");
        advanced.hidden = words.length > 0 && !advanced.querySelector("fieldset:not([hidden])");
        openAdvanced(words.length > 0);
        none.textContent = found.length ? "" : t("No settings match.");
    }

    /** Open Advanced while it has matches; afterwards restore its state. */
    function openAdvanced(/** @type {boolean} */ looking) {
        if (looking && !advanced.hidden && !advanced.open) {
            advanced.open = true;
            opened = true;
        }
        if (!looking && opened) {
            advanced.open = false;
            opened = false;
        }
    }

    return {
        input,
        none,
        clear() {
            input.value = "";
            find("");
        },
    };
}

/** Show problems beside their settings. */
function showProblems(/** @type {Rows} */ places) {
    const found = currentPlan()?.problems ?? [];
    for (const row of new Set(places.values())) {
        const { problem, input } = row;
        const here = found.filter((one) => places.get(one.field ?? "") === row);
        redraw(problem, JSON.stringify(here), () => {
            input.toggleAttribute(
                "aria-invalid",
                here.some((one) => one.severity === "error"),
            );
            return here.map((one) =>
                el(
                    "p",
                    { class: "lora-trainer-settings-" + one.severity },
                    sentences(one.message, one.hint),
                ),
            );
        });
    }
}

/**
 * The left column: checkpoint and name, presets, the groups of settings.
 *
 * @param {FormGroup[]} groups
 * @param {Rows} rows
 * @param {object} parts
 * @param {Row} parts.checkpoint
 * @param {Row} parts.name
 * @param {Row} parts.initLora
 * @param {{element: HTMLElement}} parts.presets
 * @param {ReturnType<typeof finder>} parts.search
 * @param {HTMLElement} parts.advanced
 */
function formColumn(groups, rows, { checkpoint, name, initLora, presets, search, advanced }) {
    const { form, problems } = home();
    const usual = (/** @type {FormGroup} */ group) =>
        el(
            "section.lora-trainer-card",
            { "aria-label": group.title },
            el("div.lora-trainer-settings-head", el("h3", group.title), search.input),
            search.none,
            grid(group, rows),
        );
    return el(
        "div.lora-trainer-settings-form",
        form
            ? null
            : widgets.notice("error", t("The settings could not be read."), problems.form?.message),
        el(
            "section.lora-trainer-card.lora-trainer-settings-grid",
            { "aria-label": t("Checkpoint and name") },
            checkpoint.element,
            name.element,
            datasets.isTexts() ? null : initLora.element,
        ),
        datasets.isTexts() ? null : presets.element,
        ...groups.filter((group) => !group.advanced).map(usual),
        advanced,
    );
}

/** @returns {Page} */
function makePage(/** @type {HTMLElement} */ container) {
    state.drawnFor = drafts.dataset();
    const groups = (home().form?.groups ?? [])
        .map((group) => ({ ...group, fields: shownFields(group.fields) }))
        .filter((group) => group.fields.length);
    const fields = new Map(
        groups.flatMap((group) => group.fields).map((field) => [field.key, field]),
    );
    const checkpoint = checkpointCard(),
        name = nameCard(),
        initLora = initLoraCard(),
        presets = presetCard((id) => {
            draft.preset = id;
            edited();
        });
    const rows = makeRows(fields);
    const advanced = advancedSettings(groups, rows);
    const search = finder(fields, rows, advanced);
    const places = new Map([
        ["checkpoint", checkpoint],
        ["name", name],
        ["init_lora", initLora],
        ...rows,
    ]);

    function goTo(/** @type {string} */ place) {
        if (SECTION_OF[place]) {
            openSection(SECTION_OF[place]);
            return;
        }
        const found = places.get(place);
        if (!found) return;
        if (found.element.hidden) search.clear();
        if (advanced.contains(found.element)) advanced.open = true;
        found.element.scrollIntoView({ block: "center" });
        found.input.focus({ preventScroll: true });
    }

    const plan = planCard(goTo);
    fill(
        container,
        el(
            "div.lora-trainer-settings",
            formColumn(groups, rows, { checkpoint, name, initLora, presets, search, advanced }),
            plan.element,
        ),
        plan.next.element,
    );
    const update = () => {
        for (const part of new Set([checkpoint, name, initLora, presets, ...rows.values()]))
            part.update();
    };
    return {
        update,
        redraw: () => {
            state.page = makePage(container);
        },
        waiting: plan.waiting,
        showPlan() {
            plan.show();
            showProblems(places);
            update();
        },
    };
}

/** @type {Poll | null} */
let looking = null;

export const section = {
    id: "settings",
    title: () => t("Settings"),
    draw(/** @type {HTMLElement} */ container) {
        state.page = makePage(container);
        state.page.showPlan();
    },
    shown() {
        // checkpoints are read in the background; poll until all are known
        looking?.stop();
        looking = startPolling(async () => ((await loadCheckpoints()) ? 1.5 : null));
        loadCheckpoint();
        loadLoraFiles();
        summarize();
    },
    hidden() {
        looking?.stop();
        looking = null;
    },
};

// --- start -------------------------------------------------------------------------------------

onStart((home) => {
    state.page = null;
    state.ours = null;
    if (drafts.dataset() === null) drafts.enter("");
    settle(home);
    const steps = need(root(), ".lora-trainer-steps");
    if (home.setup) steps.before(setUpCard(home.setup));
    // captions and images may have been changed in another step
    steps.addEventListener("click", () => replan());
    loadCheckpoint();
    publish();
});

onFirstStart(() => {
    store.on("dataset", () => replan());
    store.on("language", () => replan());
    window.addEventListener("focus", pollSetUp);
    store.on("settings", takeOver);
    store.on("home", homeChanged);
    if (typeof onOptionsChanged === "function")
        onOptionsChanged(() => {
            if (state.page && isVisible() && currentSection() === "settings") {
                loadCheckpoints();
                if (draft.checkpoint === "loaded") loadCheckpoint();
            }
        });
});
