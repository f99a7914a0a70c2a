/*
 * The verdict of a run: the sentence, findings, and buttons that apply their advice. Used by the
 * live view.
 */
import { el, redraw } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import { openSection } from "../common/sections.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as runActions from "./runs.js";

/** @import { LiveView, RunView, VerdictView } from "../common/answers" */

/** @import { Done } from "./runs.js" */

/** @typedef {VerdictView["findings"][number]} Finding */

/** {element, set(live)}; empty without a verdict and a report. */
export function verdictBox(/** @type {Done} */ done) {
    const element = el("div.lora-trainer-live-verdict");
    return {
        element,
        set(/** @type {LiveView} */ live) {
            const { run, verdict, report } = live;
            const key = JSON.stringify([run.id, verdict, report, store.get("delivered")]);
            redraw(element, key, () => [
                verdict ? judgement(run, verdict, report, done) : null,
                !verdict && report ? widgets.row(reportLink(report)) : null,
            ]);
        },
    };
}

/**
 * @param {RunView} run
 * @param {VerdictView} verdict
 * @param {string | null} report
 * @param {Done} done
 */
function judgement(run, verdict, report, done) {
    const place = el("span");
    putBest(run, verdict, place, done);
    return el(
        "section.lora-trainer-verdict",
        { "aria-label": t("Verdict") },
        el("h4", t("Verdict")),
        el("p.lora-trainer-verdict-sentence", verdict.sentence),
        verdict.details ? widgets.help(verdict.details) : null,
        widgets.row(place, report ? reportLink(report) : null),
        verdict.findings.map((finding) => findingBox(run, finding)),
    );
}

/**
 * A button that delivers the best step, shown when its file exists and is not delivered yet.
 *
 * @param {RunView} run
 * @param {VerdictView} verdict
 * @param {HTMLElement} place
 * @param {Done} done
 */
async function putBest(run, verdict, place, done) {
    const lora = await runActions.savedStep(run, verdict.best_step).catch(() => null);
    if (!lora || lora.delivered) return;
    place.append(
        widgets.button({
            label: t("Put step {step} into the LoRA folder", {
                step: formatNumber(verdict.best_step),
            }),
            onclick: () => runActions.deliver(lora, done),
        }),
    );
}

const reportLink = (/** @type {string} */ address) =>
    el(
        "a.lora-trainer-report-link",
        { href: address, target: "_blank", rel: "noopener noreferrer" },
        t("Open the report"),
    );

function findingBox(/** @type {RunView} */ run, /** @type {Finding} */ finding) {
    const { sentence, advice, changes, section } = finding;
    const apply =
        run.data === "images" && Object.keys(changes).length
            ? widgets.button({
                  label: t("Apply to the next run"),
                  onclick: () => runActions.applyToNext(run, changes),
              })
            : null;
    const go = section
        ? widgets.button({
              label: section === "captions" ? t("Go to the captions") : t("Go to the images"),
              onclick: () => openSection(section),
          })
        : null;
    return widgets.notice("warning", sentence, advice, apply, go);
}
