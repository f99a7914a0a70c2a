/*
 * The files of a dataset of texts, and the findings about them.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { dotted, plural, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { replan } from "../settings/plan.js";
import * as datasets from "./datasets.js";
import { remarksCard } from "./images.js";

/** @import { TextFileView } from "../common/answers" */

/** {element, load()} */
export function textFiles() {
    const element = el("div.lora-trainer-text-files");

    async function load() {
        const id = store.get("dataset") ?? "";
        const answer = await api.get(datasets.path("texts", id), { limit: 1 });
        if (!("files" in answer) || id !== store.get("dataset")) return;
        fill(
            element,
            remarksCard(answer.findings, null),
            answer.files.length
                ? el("ul.lora-trainer-runs", answer.files.map(line))
                : el("p.lora-trainer-help.lora-trainer-empty", t("No texts yet. Drop some above.")),
        );
    }

    const line = (/** @type {TextFileView} */ file) =>
        el(
            "li.lora-trainer-row.lora-trainer-between",
            el(
                "div.lora-trainer-run-words",
                el("strong", file.name),
                widgets.small(
                    dotted(
                        file.plain
                            ? t("Plain text")
                            : plural(file.count, "{count} entry", "{count} entries"),
                        file.usable < file.count
                            ? t("{count} cannot be used", { count: file.count - file.usable })
                            : "",
                    ),
                ),
            ),
            widgets.button({ label: t("Remove"), onclick: () => remove(file) }),
        );

    async function remove(/** @type {TextFileView} */ file) {
        const id = store.get("dataset");
        const { edit } = await api.post(datasets.path("remove-text-file", id), { name: file.name });
        await datasets.refresh();
        await load();
        replan();
        widgets.toast(t("Removed: {name}", { name: file.name }), {
            severity: "done",
            action: {
                label: t("Undo"),
                onclick: async () => {
                    await api.post(datasets.path("undo", id), { id: edit });
                    await datasets.refresh();
                    await load();
                    replan();
                },
            },
        });
    }

    return { element, load };
}
