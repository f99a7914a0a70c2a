/*
 * The settings' values: the preset's, the user's changes, and the server's suggestions. Shows and
 * changes the selected dataset's draft (draft.js). Writes the store's checkpoint, name, preset and
 * settings (which are sent to the server).
 */
import { home, store } from "../common/store.js";
import * as datasets from "../images/datasets.js";
import { loadCheckpoint } from "./checkpoints.js";
import * as drafts from "./draft.js";
import { draft, same } from "./draft.js";
import { shownValue } from "./fields.js";
import { currentPlan, replan } from "./plan.js";
import { state } from "./state.js";

/** @import { FormField, HomeView, PresetView, RunDraft } from "../common/answers" */
/** @import { Settings } from "../common/types" */

/** Settings that depend on the images. */
const OF_IMAGES = ["trigger_word", "sample_prompts"];

/** Unknown keys and choices of a draft are ignored. */
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

/** The fields that apply to the kind of dataset, with their labels and helps for it. */
export function shownFields(/** @type {FormField[]} */ fields) {
    const texts = datasets.isTexts();
    return fields
        .filter(({ data }) => data === "both" || (data === "texts") === texts)
        .map((field) =>
            texts ? { ...field, label: field.text_label, help: field.text_help } : field,
        );
}

/** The built-in presets, then user presets, which have a `file`. */
export const presetsOf = (/** @type {HomeView} */ home) => [
    ...(home.presets ?? []).map((preset) => ({ ...preset, file: "" })),
    ...(home.own_presets?.presets ?? []),
];

/** None for texts: presets are for images. */
export const presetOf = () =>
    datasets.isTexts() ? undefined : presetsOf(home()).find((preset) => preset.id === draft.preset);

/** The preset's overrides for the selected checkpoint's family. */
export function familyValues(/** @type {PresetView} */ preset) {
    const family = state.facts?.practice ? "practice" : state.facts?.family;
    return (family && preset.family_values[family]) || {};
}

/** The preset's values for the selected checkpoint. */
export function presetValues() {
    const preset = presetOf();
    return preset ? { ...preset.values, ...familyValues(preset) } : {};
}

/** Values suggested by the server from the images: a preview prompt. */
export const suggested = () => currentPlan()?.suggested ?? {};

/** A field's value without the user's change. */
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

/** The user has changed the draft. */
export function edited() {
    drafts.note();
    publish();
}

/** Publish the settings, and update the plan. */
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
 * Settings written to the store by another part of the tab (those of an earlier run) become the
 * user's changes.
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

/** Another dataset was selected, or another browser has changed this draft. */
function draftChanged() {
    if (!store.get("home")) return;
    const before = store.get("checkpoint");
    settle(home());
    if (draft.checkpoint !== before) state.facts = null;
    // also in a focused textbox
    if (state.drawnFor !== drafts.dataset()) state.page?.redraw();
    publish();
    if (!state.facts) loadCheckpoint();
}

/**
 * Use the settings of an earlier run (GET runs/ID/draft) as the draft; what is not listed any more
 * is left unchanged.
 *
 * @param {RunDraft} draft
 */
export function useDraft({ settings, name, dataset, checkpoint, init_lora }) {
    if (dataset) datasets.choose(dataset);
    // with other images, trigger word, prompts and name are not taken
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
    loadCheckpoint();
}

/**
 * The fields that differ from their defaults -> [{label, value}], for an earlier run's settings.
 */
export const settingText = (/** @type {Settings} */ settings) =>
    [...fieldsOf(home()).values()]
        .filter((field) => field.key in settings && !same(settings[field.key], field.default))
        .map((field) => ({
            label: field.label,
            value: shownValue(field, settings[field.key]) + (field.unit ? " " + field.unit : ""),
        }));

store.on("draft", draftChanged);
