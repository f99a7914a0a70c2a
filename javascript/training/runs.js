/*
 * Actions on runs: status texts, and the dialogs of the buttons.
 *
 * Runs are as in webui/training/run_view.py. `done()` is called after a change, so that the section
 * reloads the runs.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import * as host from "../common/host.js";
import { dotted, formatBytes, plural, sentences, t } from "../common/language.js";
import { openSection } from "../common/sections.js";
import { home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { settingText, useDraft } from "../settings/values.js";

/** @import { LoraView, RunDraft, RunProgress, RunView, TrashLoad } from "../common/answers" */

/** @import { Ask } from "./live.js" */

/** @typedef {(run?: RunView) => unknown} Done called after a change, with the changed run */

/** @typedef {RunView | RunProgress} Run */

const ACTIVE = ["starting", "running", "pausing", "paused", "stopping"];

/**
 * The route of a run.
 *
 * @template {string} T
 * @param {Run} run
 * @param {T} tail
 * @returns {`runs/${string}/${T}`}
 */
export const route = (run, tail) => `runs/${encodeURIComponent(run.id)}/${tail}`;

export const isActive = (/** @type {Run} */ run) => ACTIVE.includes(run.status);

export function statusText(/** @type {Run} */ run) {
    switch (run.status) {
        case "queued":
            return t("Queued");
        case "starting":
            return t("Starting");
        case "running":
            return run.phase || t("Running");
        case "pausing":
            return t("Pausing");
        case "paused":
            return t("Paused");
        case "stopping":
            return t("Stopping");
        case "finished":
            return t("Finished");
        case "stopped":
            return t("Stopped");
        case "failed":
            return t("Failed");
        default:
            return t("Ended unexpectedly");
    }
}

/** Why a button is disabled; empty if it is not. */
export function reason(/** @type {Run} */ run, /** @type {Ask} */ what) {
    if (run.can[what]) return "";
    if (!isActive(run)) return t("This run is not active.");
    if (run.status === "starting") return t("It is still starting.");
    if (run.status === "stopping") return t("It is already stopping.");
    if (run.status === "paused" || run.status === "pausing") return t("Press Resume first.");
    return t("Wait for the first steps.");
}

export const isLocal = () => !home().host.remote;

/** The label of the button that continues a run. */
export const goOnText = (/** @type {Run} */ run) =>
    run.can.further ? t("Train further") : t("Continue");

// --- requests ----------------------------------------------------------------------------------

/**
 * @param {Run} run
 * @param {Ask} what
 * @param {Done} done
 */
export const ask = (run, what, done) => api.post(route(run, "ask"), { what }).then(done);

export async function stop(/** @type {Run} */ run, /** @type {Done} */ done) {
    const sure = await widgets.confirm({
        title: t("Stop {name}?", { name: run.name }),
        label: t("Stop and keep"),
        message: t("The training so far is saved as a LoRA file, and you can continue it later."),
    });
    if (sure) await ask(run, "stop", done);
}

/**
 * A failed or stopped run continues from its resume point; a finished one needs a new number of
 * steps.
 */
export async function goOn(/** @type {Run} */ run, /** @type {Done} */ done) {
    if (!run.can.further) {
        await api.post(route(run, "continue"), { changes: {} }).then(done);
        return;
    }
    const steps = widgets.number({
        minimum: run.step_count + 1,
        value: Math.round(run.step_count * 1.5),
    });
    widgets.dialog({
        title: t("Train {name} further", { name: run.name }),
        body: widgets.labelled(t("Train to step"), steps, {
            help: t(
                "It has {count} steps now. Training continues from there, and a new LoRA file is written.",
                { count: run.step_count },
            ),
        }),
        actions: [
            { label: t("Cancel") },
            {
                label: t("Continue training"),
                kind: "primary",
                onclick: async () => {
                    const changes = { max_train_steps: Number(steps.value) };
                    done(await api.post(route(run, "continue"), { changes }));
                },
            },
        ],
    });
}

export async function remove(/** @type {Run} */ run, /** @type {Done} */ done) {
    const sure = await widgets.confirm({
        title: t("Delete {name}?", { name: run.name }),
        label: t("Move to the trash"),
        message: t(
            "The run's folder is moved to the trash in LoRA Trainer's data folder. A delivered LoRA stays in the LoRA folder.",
        ),
    });
    if (!sure) return;
    const { trash } = await api.post(route(run, "delete"));
    done();
    widgets.toast(t("{name} is in the trash.", { name: run.name }), {
        seconds: 15,
        action: {
            label: t("Undo"),
            onclick: () => api.post(`trash/${encodeURIComponent(trash)}/restore`).then(done),
        },
    });
}

/** The row to empty the trash, for local users. Hidden while the trash is empty. */
export function trashRow(/** @type {Done} */ done) {
    const words = widgets.small();
    const button = widgets.button({ label: t("Empty the trash"), onclick: () => emptyTrash(done) });
    const element = el("div.lora-trainer-row.lora-trainer-trash", { hidden: true }, words, button);
    return {
        element,
        async update() {
            if (!isLocal()) return;
            const load = await api.get("trash");
            element.hidden = !load.count;
            words.textContent = trashText(load);
        },
    };
}

const trashText = (/** @type {TrashLoad} */ { count, size }) =>
    t("In the trash: {what}, {size}", {
        what: plural(count, "{count} deleted item", "{count} deleted items"),
        size: formatBytes(size),
    });

async function emptyTrash(/** @type {Done} */ done) {
    const load = await api.get("trash");
    const sure = await widgets.confirm({
        title: t("Empty the trash?"),
        label: t("Delete permanently"),
        message: sentences(
            trashText(load),
            t("This cannot be undone. LoRAs in the LoRA folder are kept."),
        ),
    });
    if (!sure) return;
    const left = await api.post("trash/empty");
    done();
    if (left.count)
        widgets.toast(t("Some files are in use by another program and stay in the trash."), {
            severity: "warning",
        });
    else widgets.toast(t("The trash is empty."), { severity: "done" });
}

// --- views -------------------------------------------------------------------------------------

/** The settings of a run, with the form's labels, and as a YAML file for the command line. */
export async function showSettings(/** @type {RunView} */ run) {
    const text = await api.get(route(run, "config"));
    const hasForm = run.job === "train";
    const draft = hasForm ? await api.get(route(run, "draft")).catch(() => null) : null;
    const file = [
        el("pre.lora-trainer-pre", { tabindex: "0" }, text),
        widgets.button({ label: t("Copy"), onclick: () => widgets.copyText(text) }),
    ];
    const fact = (/** @type {string} */ label, /** @type {string} */ value) =>
        value ? el("div", el("dt", label), el("dd", value)) : null;
    widgets.dialog({
        title: t("Settings of {name}", { name: run.name }),
        wide: !draft,
        body: draft
            ? [
                  el(
                      "dl.lora-trainer-run-settings",
                      fact(
                          run.data === "texts" ? t("Language model") : t("Checkpoint"),
                          run.checkpoint,
                      ),
                      fact(run.data === "texts" ? t("Texts") : t("Images"), run.dataset),
                      settingText(draft.settings).map(({ label, value }) => fact(label, value)),
                  ),
                  el(
                      "details.lora-trainer-log-box",
                      el("summary", t("All settings, as a file for the command line")),
                      file,
                  ),
              ]
            : file,
        actions: [
            ...(draft
                ? [{ label: t("Use these settings"), onclick: () => use(draft, settingsOf(run)) }]
                : []),
            widgets.closing(),
        ],
    });
}

/** Use settings as the draft of the next run, and show a message about them. */
function use(/** @type {RunDraft} */ draft, /** @type {string} */ message) {
    useDraft(draft);
    openSection("settings");
    widgets.toast(message, { severity: "done" });
}

const settingsOf = (/** @type {RunView} */ run) =>
    t("These are the settings of {name}. Change what you like, then start.", { name: run.name });

/** Use the settings that train a LoRA further at twice its rank as the draft. */
export async function grow(/** @type {LoraView} */ lora) {
    const draft = await api.get(
        /** @type {const} */ (`runs/${encodeURIComponent(lora.run ?? "")}/draft`),
    );
    const settings = { ...draft.settings, ...draft.growth };
    use(
        { ...draft, settings, init_lora: lora.id },
        t(
            "The next training continues from {name} at twice its rank. Change what you like, then start.",
            { name: lora.name },
        ),
    );
}

/** Use the settings of a run, with the changes recommended by its verdict, as the draft. */
export async function applyToNext(
    /** @type {RunView} */ run,
    /** @type {Record<string, unknown>} */ changes,
) {
    const draft = await api.get(route(run, "draft"));
    use({ ...draft, settings: { ...draft.settings, ...changes } }, settingsOf(run));
}

export async function copyReport(/** @type {RunView} */ run) {
    const { version, host } = home();
    const log = await api.get(route(run, "log"));
    const lines = [
        "LoRA Trainer " + version + ", " + host.name + " " + host.version + ", " + host.device,
        run.name +
            ": " +
            run.status +
            ", step " +
            run.step +
            " / " +
            run.step_count +
            ", " +
            (run.family || "?"),
        ...(run.failure ? [run.failure.message, run.failure.hint] : []),
        "",
        ...log.trimEnd().split("\n").slice(-80),
    ];
    await widgets.copyText(lines.join("\n"));
}

/** Try a LoRA: the section "try" reads it from the store. */
export function tryLora(/** @type {LoraView} */ lora) {
    store.set("ask", "");
    store.set("try", lora.id);
    openSection("try");
}

/** Ask a trained language model: the section "try" reads it from the store. */
export function askModel(/** @type {Run} */ run) {
    store.set("ask", run.id);
    openSection("try");
}

/** The delivered LoRA of a run, or null. */
export async function loraOf(/** @type {RunView} */ run) {
    const loras = await api.get("loras");
    return (
        loras.find((lora) => lora.delivered && lora.name === run.lora) ||
        loras.find((lora) => lora.delivered && lora.run === run.id) ||
        null
    );
}

/** The latest LoRA of a run: the delivered one, else the last saved step; null without any. */
export async function newestOf(/** @type {RunView} */ run) {
    const loras = (await api.get("loras")).filter((lora) => lora.run === run.id);
    return (
        loras.find((lora) => lora.delivered && lora.name === run.lora) ||
        loras.sort((a, b) => (b.step ?? 0) - (a.step ?? 0))[0] ||
        null
    );
}

/** The LoRA of a step of a run, delivered or not; null if its file is missing. */
export async function savedStep(/** @type {RunView} */ run, /** @type {number} */ step) {
    const loras = (await api.get("loras")).filter(
        (lora) => lora.run === run.id && lora.step === step,
    );
    return loras.find((lora) => lora.delivered) ?? loras.at(0) ?? null;
}

/**
 * Copy a saved step into the LoRA folder.
 *
 * @param {LoraView} lora
 * @param {() => unknown} [done]
 */
export async function deliver(lora, done) {
    const delivered = await api.post(`loras/${lora.id}/deliver`);
    announceDelivery();
    widgets.toast(t("It is in the LoRA folder as {name}.", { name: delivered.name }), {
        severity: "done",
    });
    done?.();
    return delivered;
}

/** A dialog of a run's saved steps, to try or deliver them. */
export async function showSaved(/** @type {Run} */ run, /** @type {Done} */ done) {
    const place = el("div");
    const draw = async () => {
        const found = (await api.get("loras")).filter((lora) => lora.run === run.id);
        fill(
            place,
            found.length
                ? el("ul.lora-trainer-saved", found.map(line))
                : el("p", t("This run has saved no LoRA file yet.")),
        );
    };
    const line = (/** @type {LoraView} */ lora) =>
        el(
            "li.lora-trainer-row",
            previewImage(lora.preview),
            el(
                "div.lora-trainer-run-text.lora-trainer-saved-name",
                el("strong", lora.step ? t("Step {step}", { step: lora.step }) : lora.name),
                widgets.small(
                    dotted(
                        lora.step ? lora.name : "",
                        lora.delivered ? t("in the LoRA folder") : "",
                    ),
                ),
            ),
            widgets.button({
                label: t("Try it"),
                onclick: () => {
                    dialog.close();
                    tryLora(lora);
                },
            }),
            lora.delivered
                ? null
                : widgets.button({
                      label: t("Put into the LoRA folder"),
                      onclick: async () => {
                          await deliver(lora, done);
                          await draw();
                      },
                  }),
        );
    await draw();
    const dialog = widgets.dialog({
        title: t("Saved steps of {name}", { name: run.name }),
        body: place,
        fit: true,
        actions: [widgets.closing()],
    });
}

/** A thumbnail, or a placeholder. */
export const previewImage = (/** @type {string | null} */ address) =>
    address
        ? el("img.lora-trainer-run-preview", {
              src: address,
              alt: "",
              loading: "lazy",
              width: 64,
              height: 64,
          })
        : el("span.lora-trainer-run-preview");

/** Notify the sections that show LoRAs. */
export function announceDelivery() {
    store.set("delivered", (store.get("delivered") ?? 0) + 1);
    host.redrawCards();
}

export const openFolder = (/** @type {RunView} */ run) => api.post(route(run, "folder"));
