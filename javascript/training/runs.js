/*
 * What can be done with a run besides watching it: words for its status, and the dialogs of its
 * buttons.
 *
 * A run comes as the routes show it (webui/training/run_view.py). What was done is told through `done()`, so
 * that the section reads the runs again.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import * as host from "../common/host.js";
import { formatBytes, plural, sentences, t } from "../common/language.js";
import { openSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { copyText } from "../common/widgets.js";
import { settingWords, useDraft } from "../settings/values.js";

/** @typedef {import("../common/answers").LoraView} LoraView */
/** @typedef {import("../common/answers").RunView} RunView */

const ACTIVE = ["starting", "running", "pausing", "paused", "stopping"];

/** @param {RunView} run */
export const route = (run, what) => "runs/" + encodeURIComponent(run.id) + (what ? "/" + what : "");

/** @param {RunView} run */
export const isActive = (run) => ACTIVE.includes(run.status);

/** @param {RunView} run */
export function statusWords(run) {
    switch (run.status) {
        case "queued":
            return t("Waiting");
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

/**
 * Why a button cannot be pressed now; empty when it can.
 *
 * @param {RunView} run
 */
export function reason(run, what) {
    if (run.can[what]) return "";
    if (!isActive(run)) return t("This run is not at work now.");
    if (run.status === "starting") return t("It is still starting.");
    if (run.status === "stopping") return t("It is stopping already.");
    if (run.status === "paused" || run.status === "pausing") return t("Press Resume first.");
    return t("Wait for the first steps.");
}

export const isLocal = () => !store.get("home").host.remote;

// --- asking ------------------------------------------------------------------------------------

/** @param {RunView} run */
export const ask = (run, what, done) => api.post(route(run, "ask"), { what }).then(done);

/** @param {RunView} run */
export async function stop(run, done) {
    const sure = await widgets.confirm({
        title: t("Stop {name}?", { name: run.name }),
        kind: "stop",
        label: t("Stop and keep"),
        message: t(
            "What was learned so far is kept as a LoRA file, and you can continue the training later.",
        ),
    });
    if (sure) await ask(run, "stop", done);
}

/**
 * A failed or stopped run goes on from where it was; a finished one needs a new number of steps.
 *
 * @param {RunView} run
 */
export async function goOn(run, done) {
    if (!run.can.further) {
        await api.post(route(run, "continue"), { changes: {} }).then(done);
        return;
    }
    const steps = el("input", {
        type: "number",
        class: "lora-trainer-input",
        min: run.step_count + 1,
        step: 1,
        value: String(Math.round(run.step_count * 1.5)),
    });
    steps.addEventListener("keydown", (event) => event.stopPropagation());
    const place = el("div");
    widgets.dialog({
        title: t("Train {name} further", { name: run.name }),
        body: [
            widgets.labelled(t("Train to step"), steps, {
                help: t(
                    "It has {count} steps now. The training goes on from there, and a new LoRA file is made.",
                    { count: run.step_count },
                ),
            }),
            place,
        ],
        actions: [
            { label: t("Cancel") },
            {
                label: t("Continue training"),
                kind: "primary",
                onclick: async () => {
                    try {
                        done(
                            await api.post(route(run, "continue"), {
                                changes: { max_train_steps: Number(steps.value) },
                            }),
                        );
                    } catch (problem) {
                        fill(place, widgets.problem(problem));
                        return false;
                    }
                    return true;
                },
            },
        ],
    });
}

/** @param {RunView} run */
export async function remove(run, done) {
    const sure = await widgets.confirm({
        title: t("Delete {name}?", { name: run.name }),
        kind: "stop",
        label: t("Move to the trash"),
        message: t(
            "The run's folder goes to the trash of LoRA Trainer's data folder. A LoRA that was delivered stays in the LoRA folder.",
        ),
    });
    if (!sure) return;
    const { trash } = await api.post(route(run, "delete"), {});
    done();
    widgets.toast(t("{name} is in the trash.", { name: run.name }), {
        seconds: 15,
        action: {
            label: t("Undo"),
            onclick: () =>
                api.post("trash/" + encodeURIComponent(trash) + "/restore", {}).then(done),
        },
    });
}

/**
 * What was deleted can be deleted for good, by whoever sits at this machine. Hidden while nothing
 * is there.
 */
export function trashRow(done) {
    const words = el("span", { class: "lora-trainer-help" });
    const button = widgets.button({ label: t("Empty the trash"), onclick: () => emptyTrash(done) });
    const element = el(
        "div",
        { class: "lora-trainer-row lora-trainer-trash", hidden: true },
        words,
        button,
    );
    return {
        element,
        async update() {
            if (!isLocal()) return;
            const { count, size } = await api.get("trash");
            element.hidden = !count;
            words.textContent = trashWords(count, size);
        },
    };
}

const trashWords = (count, size) =>
    t("In the trash: {what}, {size}", {
        what: plural(count, "{count} deleted item", "{count} deleted items"),
        size: formatBytes(size),
    });

async function emptyTrash(done) {
    const { count, size } = await api.get("trash");
    const sure = await widgets.confirm({
        title: t("Empty the trash?"),
        kind: "stop",
        label: t("Delete for good"),
        message: sentences(
            trashWords(count, size),
            t("They cannot be taken back afterwards. LoRAs in the LoRA folder stay."),
        ),
    });
    if (!sure) return;
    const left = await api.post("trash/empty", {});
    done();
    if (left.count)
        widgets.toast(t("Some files are in use by another program and stay in the trash."), {
            severity: "warning",
        });
    else widgets.toast(t("The trash is empty."), { severity: "done" });
}

// --- looking -----------------------------------------------------------------------------------

/**
 * What a run was trained with, in the form's words, and as the file that the command line takes.
 *
 * @param {RunView} run
 */
export async function showSettings(run) {
    const text = await api.get(route(run, "config"));
    const draft = run.job === "train" ? await api.get(route(run, "draft")).catch(() => null) : null;
    const file = [
        el("pre", { class: "lora-trainer-pre", tabindex: "0" }, text),
        widgets.button({ label: t("Copy"), onclick: () => copyText(text) }),
    ];
    const fact = (label, value) =>
        value ? el("div", {}, el("dt", {}, label), el("dd", {}, value)) : null;
    const use = () => {
        useDraft(draft);
        openSection("settings");
        widgets.toast(
            t("These are the settings of {name}. Change what you like, then start.", {
                name: run.name,
            }),
            { severity: "done" },
        );
    };
    widgets.dialog({
        title: t("Settings of {name}", { name: run.name }),
        wide: !draft,
        body: draft
            ? [
                  el(
                      "dl",
                      { class: "lora-trainer-run-settings" },
                      fact(t("Checkpoint"), run.checkpoint),
                      fact(t("Images"), run.dataset),
                      settingWords(draft.settings).map(({ label, value }) => fact(label, value)),
                  ),
                  el(
                      "details",
                      { class: "lora-trainer-log-box" },
                      el("summary", {}, t("All of them, as a file for the command line")),
                      file,
                  ),
              ]
            : file,
        actions: [
            ...(draft ? [{ label: t("Use these settings"), onclick: use }] : []),
            { label: t("Close"), kind: "primary" },
        ],
    });
}

/** @param {RunView} run */
export async function copyReport(run) {
    const { version, host } = store.get("home");
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
    await copyText(lines.join("\n"));
}

/**
 * Try a LoRA: the section "try" takes it from the store.
 *
 * @param {LoraView} lora
 */
export function tryLora(lora) {
    store.set("try", lora.id);
    openSection("try");
}

/**
 * The delivered LoRA of a run; null when there is none (any more).
 *
 * @param {RunView} run
 */
export async function loraOf(run) {
    const loras = await api.get("loras");
    return (
        loras.find((lora) => lora.delivered && lora.name === run.lora) ||
        loras.find((lora) => lora.delivered && lora.run === run.id) ||
        null
    );
}

/**
 * What a run has learned most: the LoRA it has delivered, else the last step that was saved; null
 * when there is nothing.
 *
 * @param {RunView} run
 */
export async function newestOf(run) {
    const loras = (await api.get("loras")).filter((lora) => lora.run === run.id);
    return (
        loras.find((lora) => lora.delivered && lora.name === run.lora) ||
        loras.sort((a, b) => b.step - a.step)[0] ||
        null
    );
}

/**
 * Put a saved step into the LoRA folder.
 *
 * @param {LoraView} lora
 */
export async function deliver(lora, done = null) {
    const delivered = await api.post("loras/" + lora.id + "/deliver", {});
    announceDelivery();
    widgets.toast(t("It is in the LoRA folder as {name}.", { name: delivered.name }), {
        severity: "done",
    });
    if (done) done();
    return delivered;
}

/**
 * What a run has saved: each can be tried, or put into the LoRA folder.
 *
 * @param {RunView} run
 */
export async function showSaved(run, done) {
    const place = el("div");
    let dialog = null;
    const draw = async () => {
        const found = (await api.get("loras")).filter((lora) => lora.run === run.id);
        fill(
            place,
            found.length
                ? el("ul", { class: "lora-trainer-saved" }, found.map(line))
                : el("p", {}, t("This run has saved no LoRA file yet.")),
        );
    };
    const line = (lora) =>
        el(
            "li",
            { class: "lora-trainer-row" },
            picture(lora.picture),
            el(
                "div",
                { class: "lora-trainer-run-words lora-trainer-saved-name" },
                el("strong", {}, lora.step ? t("Step {step}", { step: lora.step }) : lora.name),
                el(
                    "span",
                    { class: "lora-trainer-help" },
                    [lora.step ? lora.name : "", lora.delivered ? t("in the LoRA folder") : ""]
                        .filter(Boolean)
                        .join(" \u00b7 "),
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
    dialog = widgets.dialog({
        title: t("Saved steps of {name}", { name: run.name }),
        body: place,
        fit: true,
        actions: [{ label: t("Close"), kind: "primary" }],
    });
}

/** A small picture, or its empty place. */
export const picture = (address) =>
    address
        ? el("img", {
              src: address,
              alt: "",
              loading: "lazy",
              width: 64,
              height: 64,
              class: "lora-trainer-run-picture",
          })
        : el("span", { class: "lora-trainer-run-picture" });

/** Whoever shows LoRAs reads them again. */
export function announceDelivery() {
    store.set("delivered", (store.get("delivered") || 0) + 1);
    host.redrawCards();
}

/** @param {RunView} run */
export const openFolder = (run) => api.post(route(run, "folder"), {});
