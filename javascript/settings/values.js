/*
 * What is set: the preset's values, what the visitor changed against them, what the server
 * suggests. It is the chosen dataset's draft (draft.js) that is shown and changed.
 *
 * Store keys written: checkpoint, name, preset, settings (what the server is sent).
 */
import { home, store } from "../common/store.js";
import * as datasets from "../images/datasets.js";
import { learnCheckpoint } from "./checkpoints.js";
import * as drafts from "./draft.js";
import { draft, same } from "./draft.js";
import { shownValue } from "./fields.js";
import { currentPlan, replan } from "./plan.js";
import { state } from "./state.js";

/** @import { FormField, HomeView, PresetView, RunDraft } from "../common/answers" */
/** @import { Settings } from "../common/types" */

/** What is right for one set of images only. */
const OF_IMAGES = ["trigger_word", "sample_prompts"];

/** What this WebUI does not know (any more) is not used of a draft. */
export function settle(/** @type {HomeView} */ home) {
    const known = fieldsOf(home);
    if (known.size)
        draft.changes = Object.fromEntries(
            Object.entries(draft.changes).filter(([key]) => known.has(key)),
        );
    const presets = presetsOf(home);
    const usual = home.preset;
    if (draft.preset !== "" && !presets.some((preset) => preset.id === draft.preset))
        draft.preset = presets.some((preset) => preset.id === usual)
            ? usual
            : (presets[0]?.id ?? "");
    if (
        draft.checkpoint !== "loaded" &&
        !home.checkpoints?.some((known) => known.id === draft.checkpoint)
    )
        draft.checkpoint = "loaded";
}

export const fieldsOf = (/** @type {HomeView} */ home) =>
    new Map(home.form?.groups.flatMap((group) => group.fields).map((field) => [field.key, field]));

/** Those that come with the extension, then the visitor's own, which have a `file`. */
export const presetsOf = (/** @type {HomeView} */ home) => [
    ...(home.presets ?? []).map((preset) => ({ ...preset, file: "" })),
    ...(home.own_presets?.presets ?? []),
];

export const presetOf = () => presetsOf(home()).find((preset) => preset.id === draft.preset);

/** What the preset sets differently, or besides, for the chosen checkpoint's family. */
export function familyValues(/** @type {PresetView} */ preset) {
    const family = state.facts?.practice ? "practice" : state.facts?.family;
    return (family && preset.family_values[family]) || {};
}

/** What the preset sets on the chosen checkpoint. */
export function presetValues() {
    const preset = presetOf();
    return preset ? { ...preset.values, ...familyValues(preset) } : {};
}

/**
 * What the server fills in from the images: a prompt for previews, since everybody wants to see
 * something come.
 */
export const suggested = () => currentPlan()?.suggested ?? {};

/** What a field is without the visitor's own change. */
export function baseValue(/** @type {FormField} */ field) {
    /** @type {Settings} */
    const values = { ...suggested(), ...presetValues() };
    return field.key in values ? values[field.key] : field.default;
}

export const valueOf = (/** @type {FormField} */ field) =>
    field.key in draft.changes ? draft.changes[field.key] : baseValue(field);

export function change(/** @type {FormField} */ field, /** @type {unknown} */ value) {
    if (same(value, baseValue(field))) delete draft.changes[field.key];
    else draft.changes[field.key] = value;
    edited();
}

/** The visitor has changed the draft. */
export function edited() {
    drafts.note();
    publish();
}

/** Tell the others, and ask what would happen now. */
export function publish() {
    state.stated = { ...presetValues(), ...draft.changes };
    const settings = { ...suggested(), ...state.stated };
    store.set("checkpoint", draft.checkpoint);
    store.set("init_lora", draft.init_lora);
    store.set("name", draft.name);
    store.set("preset", draft.preset);
    if (!same(settings, state.ours)) {
        state.ours = settings;
        store.set("settings", settings);
    }
    state.page?.update();
    replan();
}

/**
 * Another part of the tab has put settings in place (those of an earlier run): they become the
 * visitor's own changes.
 */
export function takeOver(/** @type {Settings} */ settings) {
    if (same(settings, state.ours) || !store.get("home")) return;
    const known = fieldsOf(home());
    draft.changes = {};
    for (const [key, value] of Object.entries(settings)) {
        const field = known.get(key);
        if (field && !same(value, baseValue(field))) draft.changes[key] = value;
    }
    state.ours = settings;
    state.page?.redraw();
    edited();
}

/** Another dataset was chosen, or another browser has changed this one's draft. */
function draftChanged() {
    if (!store.get("home")) return;
    const before = store.get("checkpoint");
    settle(home());
    if (draft.checkpoint !== before) state.facts = null;
    // of other images, also the box that somebody is typing in
    if (state.drawnFor !== drafts.dataset()) state.page?.redraw();
    publish();
    if (!state.facts) learnCheckpoint();
}

/**
 * Settings of an earlier run, as GET runs/ID/draft tells them, become the draft; what is not listed
 * here any more stays as it is chosen.
 *
 * @param {RunDraft} draft
 */
export function useDraft({ settings, name, dataset, checkpoint, init_lora }) {
    if (dataset) datasets.choose(dataset);
    // of a run on other images the chosen ones do not get the trigger word, the prompts and the
    // name
    const foreign = !dataset && store.get("dataset");
    const own = [...fieldsOf(home()).values()]
        .filter((field) => foreign && OF_IMAGES.includes(field.key))
        .map((field) => [field.key, valueOf(field)]);
    if (!foreign) draft.name = name;
    if (checkpoint)
        draft.checkpoint = home().checkpoints?.some(
            (known) => known.id === checkpoint && known.loaded,
        )
            ? "loaded"
            : checkpoint;
    draft.init_lora = init_lora ?? "";
    state.ours = null;
    takeOver({ ...settings, ...Object.fromEntries(own) });
    learnCheckpoint();
}

/**
 * The form's fields that differ from what they are by default -> [{label, value}] in words, for an
 * earlier run's settings.
 */
export const settingWords = (/** @type {Settings} */ settings) =>
    [...fieldsOf(home()).values()]
        .filter((field) => field.key in settings && !same(settings[field.key], field.default))
        .map((field) => ({
            label: field.label,
            value: shownValue(field, settings[field.key]) + (field.unit ? " " + field.unit : ""),
        }));

store.on("draft", draftChanged);
