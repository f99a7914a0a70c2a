/*
 * "Why does this LoRA do nothing?": what the WebUI loads of any LoRA file in its folders, a button
 * that writes a copy that it can load, and one that measures how much of the LoRA is kept if the
 * WebUI stores the chosen checkpoint in low precision.
 */
import { api, expected } from "../common/api.js";
import { el, fill, put } from "../common/elements.js";
import { plural, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";

/** @import { CertificateView, DroppedView, InspectableView, KeptSettingView, KeptView } from "../common/answers" */

/** @type {InspectableView[]} */
let files = [];

/** The chosen file's id, or "". */
let chosen = "";

const isFine = (/** @type {CertificateView} */ found) =>
    found.loaded === found.layer_count && !found.causes.length;

function droppedRow(/** @type {DroppedView} */ dropped) {
    return el(
        "tr",
        el("td", plural(dropped.count, "{count} layer", "{count} layers")),
        el("td", dropped.message),
        el("td", ...dropped.examples.map((key) => el("code.lora-trainer-key", key))),
    );
}

function droppedTable(/** @type {DroppedView[]} */ dropped) {
    return el(
        "table.lora-trainer-certificate-dropped",
        el("caption", t("What is not loaded")),
        el("thead", el("tr", el("th", t("Layers")), el("th", t("Why")), el("th", t("Keys")))),
        el("tbody", ...dropped.map(droppedRow)),
    );
}

/**
 * @param {CertificateView} found
 * @param {() => Promise<void>} fix
 */
function certificate(found, fix) {
    const severity = isFine(found) ? "done" : found.loaded ? "warning" : "error";
    const button = widgets.button({ label: t("Write a copy that loads"), onclick: fix });
    return [
        widgets.notice(
            severity,
            found.verdict,
            found.family ? t("It is for {family}.", { family: found.family }) : "",
            ...(found.can_fix ? [button] : []),
        ),
        found.dropped.length ? droppedTable(found.dropped) : null,
        ...found.causes.map((cause) => widgets.notice("warning", cause.message, cause.hint)),
        isFine(found) && found.measured
            ? widgets.help(t("Nothing is wrong with this file. Is its tag in the prompt?"))
            : null,
        found.measured
            ? null
            : widgets.help(
                  t("Only names and shapes were checked: the worker's packages are not installed."),
              ),
    ];
}

function keptHelp() {
    return widgets.help(
        t(
            "Kept: a WebUI that stores a model in 8 or 4 bits may lose part of a LoRA when it adds it. Measured on the checkpoint that is chosen in the WebUI; it takes up to a minute.",
        ),
    );
}

function keptNotice(/** @type {KeptSettingView} */ setting) {
    return widgets.notice(setting.lossy ? "warning" : "done", setting.message, setting.hint);
}

/** How much of the LoRA is kept with the WebUI's current setting, and with its others. */
function kept(/** @type {KeptView} */ found) {
    const chosen = found.settings.filter((setting) => setting.chosen);
    const others = found.settings.filter((setting) => !setting.chosen);
    return [
        widgets.help(
            t("At strength {strength} in {checkpoint}. Layers of the denoiser measured: {count}", {
                strength: found.strength,
                checkpoint: found.checkpoint,
                count: found.layer_count,
            }),
        ),
        found.settings.length
            ? null
            : widgets.help(t("It is not known how this WebUI stores such a checkpoint.")),
        ...chosen.map(keptNotice),
        others.length
            ? el(
                  "details",
                  { open: !chosen.length },
                  el("summary", t("With other settings of the WebUI")),
                  el("div.lora-trainer-certificate", ...others.map(keptNotice)),
              )
            : null,
    ];
}

/** The list of files; `onchange` after another was chosen. */
function fileChoice(/** @type {() => void} */ onchange) {
    if (!files.length) return widgets.help(t("There is no LoRA file in the WebUI's folders."));
    const list = widgets.select({
        value: chosen,
        options: files.map((file) => ({ value: file.id, label: file.name })),
        onchange: (value) => {
            chosen = value;
            onchange();
        },
    });
    return widgets.labelled(t("LoRA file"), list);
}

/**
 * The response; null after an error, which is shown in `place`.
 *
 * @template Answer
 * @param {HTMLElement} place
 * @param {HTMLElement} busy
 * @param {() => Promise<Answer>} request
 * @returns {Promise<Answer | null>}
 */
async function asking(place, busy, request) {
    put(busy, t("Reading the file ..."));
    try {
        return await request();
    } catch (caught) {
        fill(place, widgets.problem(expected(caught)));
        return null;
    } finally {
        put(busy, "");
    }
}

/** The card. `update()` reads the list of files. */
export function certificateCard() {
    const choice = el("div");
    const place = el("div.lora-trainer-certificate", { "aria-live": "polite" });
    const busy = el("p.lora-trainer-hint", { role: "status" });
    const check = widgets.button({ label: t("Check this file"), onclick: show });
    const measure = widgets.button({ label: t("How much of it is kept?"), onclick: showKept });
    const element = el(
        "details.lora-trainer-card.lora-trainer-certificate-card",
        {
            ontoggle: () => {
                if (element.open) update();
            },
        },
        el("summary", t("Why does this LoRA do nothing?")),
        widgets.help(
            t("Shows what the WebUI loads of a LoRA in its folders, whichever trainer made it."),
        ),
        choice,
        widgets.row(check, measure),
        keptHelp(),
        busy,
        place,
    );

    async function show() {
        const id = chosen;
        if (!id) return;
        const found = await asking(place, busy, () =>
            api.get(`inspectable/${encodeURIComponent(id)}/certificate`),
        );
        if (found && id === chosen) fill(place, ...certificate(found, () => fix(id)));
    }

    async function showKept() {
        const id = chosen;
        if (!id) return;
        const found = await asking(place, busy, () =>
            api.get(`inspectable/${encodeURIComponent(id)}/kept`),
        );
        if (found && id === chosen) fill(place, ...kept(found));
    }

    async function fix(/** @type {string} */ id) {
        const copy = await asking(place, busy, () =>
            api.post(`inspectable/${encodeURIComponent(id)}/fix`),
        );
        if (!copy) return;
        await update();
        chosen = files.find((file) => file.name.split("/").at(-1) === copy.name)?.id ?? chosen;
        drawChoice();
        fill(
            place,
            widgets.notice("done", t("{name} was written.", { name: copy.name })),
            ...certificate(copy, () => fix(chosen)),
        );
    }

    function drawChoice() {
        fill(
            choice,
            fileChoice(() => fill(place)),
        );
        check.disabled = measure.disabled = !files.length;
    }

    async function update() {
        if (!element.open) return;
        try {
            files = await api.get("inspectable");
        } catch (caught) {
            fill(choice, widgets.problem(expected(caught)));
            return;
        }
        if (!files.some((file) => file.id === chosen)) chosen = files.at(0)?.id ?? "";
        drawChoice();
    }

    return { element, update };
}
