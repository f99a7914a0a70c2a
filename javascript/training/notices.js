/*
 * What is said of a run besides its numbers: failure, warnings, the finished LoRA.
 */
import { el, fill } from "../common/elements.js";
import * as host from "../common/host.js";
import { formatBytes, plural, sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { copyText } from "../common/widgets.js";
import * as loraTags from "../prompt/lora_tags.js";
import * as runActions from "./runs.js";

/** @typedef {import("../common/answers").RunView} RunView */

export function handOverWords(handover, run) {
    if (!handover || !runActions.isActive(run)) return "";
    const words = [handover.sentence];
    if (handover.before && handover.after) {
        words.push(
            t("Free graphics memory: {before} before, {after} after the model left.", {
                before: formatBytes(handover.before.free),
                after: formatBytes(handover.after.free),
            }),
        );
    }
    return sentences(words);
}

// --- notices -----------------------------------------------------------------------------------

/** @param {RunView} run */
export function noticesOf(run, done) {
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

/** @param {RunView} run */
function goOnButton(run, done) {
    if (!run.can.continue && !run.can.further) return null;
    return widgets.button({
        label: run.can.further ? t("Train further") : t("Continue"),
        onclick: () => runActions.goOn(run, done),
    });
}

/** @param {RunView} run */
function warnings(run) {
    const shown = run.warnings.map((warning) =>
        widgets.notice("warning", warning.message, warning.hint),
    );
    if (shown.length < 3) return shown;
    return el(
        "details",
        {},
        el("summary", {}, plural(shown.length, "{count} warning", "{count} warnings")),
        shown,
    );
}

/** @param {RunView} run */
function endNotice(run, done) {
    const place = el("div", { class: "lora-trainer-live-end" });
    const saved = widgets.button({
        label: t("Saved steps"),
        onclick: () => runActions.showSaved(run, done),
    });
    if (!run.lora) {
        const none = () => {
            if (run.can.continue)
                fill(place, el("div", { class: "lora-trainer-row" }, goOnButton(run, done)));
        };
        if (!(run.step > 0)) none();
        else
            runActions
                .newestOf(run)
                .then(
                    (lora) =>
                        lora
                            ? fill(
                                  place,
                                  lora.delivered
                                      ? readyNotice(run, lora, done, saved)
                                      : keptNotice(run, lora, done, saved),
                              )
                            : none(),
                    none,
                );
        return place;
    }
    runActions.loraOf(run).then(
        (lora) => {
            if (lora) fill(place, readyNotice(run, lora, done, saved));
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

/**
 * A run that was stopped has a file of what it learned, and a picture of it where one was made:
 * what can be done with it, there and then.
 *
 * @param {RunView} run
 */
function keptNotice(run, lora, done, saved) {
    const notice = widgets.notice(
        "info",
        t("What was learned is kept."),
        t("Try it, put it into the LoRA folder, or go on training."),
        widgets.button({ label: t("Try it"), onclick: () => runActions.tryLora(lora) }),
        widgets.button({
            label: t("Put into the LoRA folder"),
            onclick: () => runActions.deliver(lora, done),
        }),
        goOnButton(run, done),
        saved,
    );
    return lora.picture
        ? el(
              "div",
              { class: "lora-trainer-live-kept" },
              el("img", {
                  src: lora.picture,
                  alt: t("Step {step}", { step: lora.step }),
                  class: "lora-trainer-run-picture",
              }),
              notice,
          )
        : notice;
}

/** @param {RunView} run */
function readyNotice(run, lora, done, saved) {
    const tag = el("code", { class: "lora-trainer-tag" }, lora.tag);
    const send = () =>
        host.send("txt2img", {
            prompt:
                host.prompts("txt2img").positive.value +
                loraTags.addition(host.prompts("txt2img").positive.value, lora.tag).text,
        });
    const notice = widgets.notice(
        "done",
        t("Your LoRA is ready: {name}", { name: lora.name }),
        t("It lies in the WebUI's LoRA folder as {file}. In a prompt:", { file: lora.file }),
        widgets.button({ label: t("Copy"), onclick: () => copyText(lora.tag) }),
        widgets.button({ label: t("Try it"), onclick: () => runActions.tryLora(lora) }),
        widgets.button({ label: t("Send to txt2img"), onclick: send }),
        goOnButton(run, done),
        saved,
    );
    notice.children[1].after(el("p", {}, tag));
    return notice;
}
