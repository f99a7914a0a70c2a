/*
 * The presets card: built-in and user presets.
 */
import { api, expected } from "../common/api.js";
import { el, fill, findAll, put } from "../common/elements.js";
import { plural, t } from "../common/language.js";
import { home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { draft, same } from "./draft.js";
import { presetOf, presetsOf, settingText, takeOver } from "./values.js";
import { state } from "./state.js";

/** @import { HomeView, OwnPresetList, PresetView } from "../common/answers" */
/** @import { Remark, Settings } from "../common/types" */

// --- presets -----------------------------------------------------------------------------------

const frame = (/** @type {HTMLElement[]} */ buttons, /** @type {HTMLElement[]} */ rest) =>
    el(
        "section.lora-trainer-card.lora-trainer-settings-presets",
        { "aria-label": t("Presets") },
        el(
            "div.lora-trainer-settings-head",
            el("h3", t("What do you want to train?")),
            widgets.row(buttons),
        ),
        rest,
    );

const names = (/** @type {PresetView[]} */ presets) =>
    presets.map(({ id, title }) => ({ id, title }));

/** @param {(id: string | null) => void} choose */
export function presetCard(choose) {
    const why = el("p.lora-trainer-help.lora-trainer-settings-why", { role: "status" });
    const row = el("div.lora-trainer-row", { role: "group", "aria-label": t("Presets") });
    const errors = el("div");
    const back = widgets.button({
        label: t("Undo my changes"),
        onclick: () => {
            draft.changes = {};
            choose(draft.preset);
        },
    });
    const save = widgets.button({ label: t("Save as a preset"), onclick: askPreset });
    const remove = widgets.button({ label: t("Delete this preset"), onclick: deletePreset });
    const element = frame([remove, save, back], [row, why, errors]);
    /** @type {{id: string, title: string}[] | null} */
    let drawn = null;
    /** @type {Remark[]} */
    let reported = [];

    function drawButtons(/** @type {PresetView[]} */ presets) {
        drawn = names(presets);
        fill(
            row,
            drawn.map(({ id, title }) => {
                const button = widgets.button({ label: title, onclick: () => choose(id) });
                button.dataset.preset = id;
                return button;
            }),
        );
    }

    function drawErrors() {
        const { own_presets, problems } = home();
        const found = own_presets?.problems ?? [problems.own_presets];
        if (same(found, reported)) return;
        reported = found;
        fill(
            errors,
            found.map((problem) => widgets.notice("warning", problem.message, problem.hint)),
        );
    }

    return {
        element,
        update() {
            const presets = presetsOf(home());
            if (!same(names(presets), drawn)) drawButtons(presets);
            drawErrors();
            for (const button of findAll(row, "button"))
                button.setAttribute("aria-pressed", String(button.dataset.preset === draft.preset));
            const preset = presetOf();
            put(why, preset ? preset.why || settingList(preset.values) : "");
            remove.hidden = !preset?.file;
            const count = Object.keys(draft.changes).length;
            back.disabled = !count;
            put(
                back,
                count
                    ? plural(count, "Undo my change ({count})", "Undo my changes ({count})")
                    : t("Undo my changes"),
            );
        },
    };
}

/** The settings of a preset without a description: "Rank 16 \u00b7 Steps 2000". */
const settingList = (/** @type {Settings} */ values) =>
    settingText(values)
        .map(({ label, value }) => label + " " + value)
        .join(" \u00b7 ");

/**
 * Save the current settings as a user preset; an existing one is replaced only after confirmation.
 */
function askPreset() {
    const now = presetOf();
    const own = now?.file ? now : { title: "", why: "" };
    const name = widgets.text({ value: own.title, maxlength: 60 });
    const purpose = widgets.text({ value: own.why, maxlength: 300 });
    const place = el("div");
    const save = async (/** @type {boolean} */ replace) => {
        const settings = state.stated;
        try {
            const { saved, ...listing } = await api.post("presets", {
                title: name.value,
                why: purpose.value,
                values: settings,
                replace,
            });
            draft.preset = saved;
            takeListing(listing, settings);
            return true;
        } catch (caught) {
            const problem = expected(caught);
            const anyway = widgets.button({
                label: t("Replace it"),
                onclick: async () => {
                    if (await save(true)) dialog.close();
                },
            });
            fill(place, widgets.problem(problem, problem.status === 409 && anyway));
            return false;
        }
    };
    const dialog = widgets.dialog({
        title: t("Save as a preset"),
        body: el(
            "div.lora-trainer-settings-ask",
            el(
                "p",
                t(
                    "All settings that differ from the defaults are saved, except those that belong to these images or to this checkpoint.",
                ),
            ),
            widgets.labelled(t("Name of the preset"), name),
            widgets.labelled(t("Description (optional)"), purpose),
            place,
        ),
        actions: [
            { label: t("Cancel") },
            { label: t("Save"), kind: "primary", onclick: () => save(false) },
        ],
    });
    name.focus();
}

async function deletePreset() {
    const preset = presetOf();
    if (!preset) return;
    const sure = await widgets.confirm({
        title: t("Delete {name}?", { name: preset.title }),
        label: t("Move to the trash"),
        message: t(
            "The preset is moved to the trash in LoRA Trainer's data folder. The current settings do not change.",
        ),
    });
    if (!sure) return;
    takeListing(await api.post(`presets/${encodeURIComponent(preset.file)}/delete`), state.stated);
}

/** Update the list; the settings are unchanged. */
function takeListing(/** @type {OwnPresetList} */ own_presets, /** @type {Settings} */ settings) {
    store.set("home", { ...home(), own_presets });
    state.ours = null;
    takeOver(settings);
}

/** If the selected preset was deleted, maybe in another window, the settings are unchanged. */
export function homeChanged(/** @type {HomeView} */ home) {
    if (home.presets && home.own_presets && draft.preset && !presetOf()) {
        draft.preset = "";
        state.ours = null;
        takeOver(state.stated);
    }
    state.page?.update();
}
