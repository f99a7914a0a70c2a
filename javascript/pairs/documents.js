/*
 * Pairs from documents: the dialog that starts the job, and its progress, shown in the dataset that
 * it writes.
 */
import { api, randomToken } from "../common/api.js";
import { el, fill, redraw } from "../common/elements.js";
import { t } from "../common/language.js";
import { openSection } from "../common/sections.js";
import { home, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as runActions from "../training/runs.js";

/** @import { TextsView } from "../common/answers" */

/** A dialog to choose the model that writes pairs about the dataset's documents. */
export async function askForPairs(/** @type {TextsView | null} */ answer) {
    if (!answer?.files.some((file) => file.plain)) {
        widgets.toast(t("This dataset has no documents."), {
            severity: "warning",
            hint: t("Add .txt or .md files under Texts; the pairs are written into a new dataset."),
        });
        return;
    }
    const { checkpoints } = await api.get("checkpoints");
    store.set("home", { ...home(), checkpoints });
    const models = checkpoints.filter((known) => known.data === "texts" && !known.problem);
    const model = widgets.select({
        options: models.map(({ id, title }) => ({ value: id, label: title })),
        value: models.at(0)?.id ?? "",
    });
    const url = widgets.text({ placeholder: "http://localhost:8080/v1" });
    const served = widgets.text({});
    const count = widgets.number({ value: 3, minimum: 1, maximum: 20 });
    widgets.dialog({
        title: t("Make pairs from documents"),
        body: [
            el(
                "p",
                t(
                    "A language model reads each passage of about half a page, and writes questions and answers about it into a new dataset. Read and correct them before you train on them.",
                ),
            ),
            models.length
                ? widgets.labelled(t("Language model"), model)
                : widgets.notice(
                      "info",
                      t("No language model was found."),
                      t("Put one into models/LLM, or choose its folder under Settings."),
                  ),
            home().host.remote
                ? null
                : [
                      widgets.labelled(t("Or a server on this machine"), url, {
                          help: t(
                              "An OpenAI-compatible one: llama.cpp, vLLM, Ollama, text-generation-webui.",
                          ),
                      }),
                      widgets.labelled(t("Name of its model"), served),
                  ],
            widgets.labelled(t("Pairs per passage"), count),
        ],
        actions: [
            { label: t("Cancel") },
            {
                label: t("Make pairs"),
                kind: "primary",
                onclick: async () => {
                    const { card } = await api.post(datasets.path("pair-run"), {
                        model: model.value,
                        url: url.value,
                        served: served.value,
                        count: Number(count.value),
                        token: randomToken(),
                    });
                    datasets.add(card);
                },
            },
        ],
    });
}

/** Show the job that writes the pairs of the chosen dataset, if there is one. */
export async function watchJob(/** @type {HTMLElement} */ place) {
    const id = store.get("dataset") ?? "";
    const run = await api.get(datasets.path("pair-run", id));
    if (id !== store.get("dataset")) return;
    if (!("id" in run)) {
        fill(place);
        return;
    }
    const active = runActions.isActive(run) || run.status === "queued";
    redraw(place, JSON.stringify([run.id, run.status, run.sentence, run.warnings]), () => [
        widgets.notice(
            run.failure ? "error" : active ? "info" : "done",
            run.failure?.message ?? run.sentence,
            run.failure?.hint ?? "",
            active && run.can.stop
                ? widgets.button({
                      label: t("Stop"),
                      onclick: () => runActions.ask(run, "stop", () => {}),
                  })
                : null,
            run.status === "queued"
                ? widgets.button({ label: t("Show"), onclick: () => openSection("train") })
                : null,
        ),
        run.warnings.map((warning) => widgets.notice("warning", warning.message, warning.hint)),
    ]);
}
