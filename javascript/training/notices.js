/*
 * Notices about a run: failure, warnings, the finished LoRA.
 */
import { el, fill } from "../common/elements.js";
import * as host from "../common/host.js";
import { formatBytes, plural, sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "../prompt/lora_tags.js";
import * as runActions from "./runs.js";

/** @import { LeaseView, LoraView, RunView } from "../common/answers" */
/** @import { Child } from "../common/types" */

/** @import { Done } from "./runs.js" */

export function handOverText(/** @type {LeaseView} */ handover, /** @type {RunView} */ run) {
    if (!runActions.isActive(run)) return "";
    const words = [handover.sentence];
    if (handover.before && handover.after) {
        words.push(
            t("Free GPU memory: {before} before, {after} after the model was unloaded.", {
                before: formatBytes(handover.before.free),
                after: formatBytes(handover.after.free),
            }),
        );
    }
    return sentences(words);
}

// --- notices -----------------------------------------------------------------------------------

export function noticesOf(/** @type {RunView} */ run, /** @type {Done} */ done) {
    return [
        run.failure
            ? widgets.notice(
                  "error",
                  run.failure.message,
                  run.failure.hint,
                  goOnButton(run, done),
                  widgets.button({
                      label: t("Copy report"),
                      onclick: () => runActions.copyReport(run),
                  }),
              )
            : null,
        run.job === "train" && ["finished", "stopped"].includes(run.status)
            ? endNotice(run, done)
            : null,
        warnings(run),
    ];
}

function goOnButton(/** @type {RunView} */ run, /** @type {Done} */ done) {
    if (!run.can.continue && !run.can.further) return null;
    return widgets.button({
        label: runActions.goOnText(run),
        onclick: () => runActions.goOn(run, done),
    });
}

function warnings(/** @type {RunView} */ run) {
    const shown = run.warnings.map((warning) =>
        widgets.notice("warning", warning.message, warning.hint),
    );
    if (shown.length < 3) return shown;
    return el(
        "details",
        el("summary", plural(shown.length, "{count} warning", "{count} warnings")),
        shown,
    );
}

function endNotice(/** @type {RunView} */ run, /** @type {Done} */ done) {
    const place = el("div.lora-trainer-live-end");
    if (run.data === "texts") {
        fill(place, textsNotice(run, done));
        return place;
    }
    const saved = widgets.button({
        label: t("Saved steps"),
        onclick: () => runActions.showSaved(run, done),
    });
    const more = [goOnButton(run, done), saved];
    if (!run.lora) {
        const none = () => {
            if (run.can.continue) fill(place, widgets.row(goOnButton(run, done)));
        };
        const show = (/** @type {LoraView | null} */ lora) => {
            if (!lora) none();
            else
                fill(
                    place,
                    lora.delivered ? readyNotice(lora, more) : keptNotice(lora, done, more),
                );
        };
        if (run.step > 0) runActions.newestOf(run).then(show, none);
        else none();
        return place;
    }
    runActions.loraOf(run).then(
        (lora) => {
            if (lora) fill(place, readyNotice(lora, more));
            else
                fill(
                    place,
                    widgets.notice(
                        "info",
                        t("The LoRA {name} is no longer in the LoRA folder.", { name: run.lora }),
                        "",
                        saved,
                        goOnButton(run, done),
                    ),
                );
        },
        () =>
            fill(
                place,
                widgets.notice(
                    "done",
                    t("Your LoRA is ready: {name}", { name: run.lora }),
                    "",
                    saved,
                ),
            ),
    );
    return place;
}

/** The notice about a language model's LoRA, which is for programs other than this WebUI. */
function textsNotice(/** @type {RunView} */ run, /** @type {Done} */ done) {
    if (!run.file) return widgets.row(goOnButton(run, done));
    return widgets.notice(
        "done",
        t("The language model's LoRA is ready."),
        t(
            "It is {file} in the run's folder, in PEFT's format: for transformers, vLLM and text-generation-webui.",
            { file: run.file },
        ),
        goOnButton(run, done),
    );
}

/**
 * The notice of a stopped run with a saved LoRA: its preview, and what can be done with it.
 *
 * @param {LoraView} lora
 * @param {Done} done
 * @param {Child[]} more further buttons
 */
function keptNotice(lora, done, more) {
    const notice = widgets.notice(
        "info",
        t("The training so far is saved."),
        t("Try it, put it into the LoRA folder, or continue training."),
        widgets.button({ label: t("Try it"), onclick: () => runActions.tryLora(lora) }),
        widgets.button({
            label: t("Put into the LoRA folder"),
            onclick: () => runActions.deliver(lora, done),
        }),
        ...more,
    );
    return lora.preview
        ? el(
              "div.lora-trainer-live-kept",
              el("img", {
                  src: lora.preview,
                  alt: t("Step {step}", { step: lora.step }),
                  class: "lora-trainer-run-preview",
              }),
              notice,
          )
        : notice;
}

function readyNotice(/** @type {LoraView} */ lora, /** @type {Child[]} */ more) {
    const words = lora.tag ?? "";
    const tag = el("code.lora-trainer-tag", words);
    const send = () => {
        const prompt = host.prompts("txt2img").positive?.value ?? "";
        host.send("txt2img", { prompt: prompt + loraTags.addition(prompt, words).text });
    };
    const notice = widgets.notice(
        "done",
        t("Your LoRA is ready: {name}", { name: lora.name }),
        t("It is in the WebUI's LoRA folder as {file}. In a prompt:", { file: lora.file }),
        widgets.button({ label: t("Copy"), onclick: () => widgets.copyText(words) }),
        widgets.button({ label: t("Try it"), onclick: () => runActions.tryLora(lora) }),
        widgets.button({ label: t("Send to txt2img"), onclick: send }),
        widgets.button({ label: t("More detail ..."), onclick: () => runActions.grow(lora) }),
        ...more,
    );
    notice.children[1].after(el("p", tag));
    return notice;
}
