/*
 * Imports captions from files, and exports them as a table or text files.
 */
import { api, routeAddress } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { plural, sentences, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";

export function showExport() {
    /** @type {(as: string, label: string, help: string) => HTMLElement} */
    const link = (as, label, help) =>
        el(
            "li.lora-trainer-bench-line",
            el("div", el("b", label), widgets.help(help)),
            el(
                "a.lora-trainer-button",
                { href: routeAddress(datasets.path("export"), { as }), download: "" },
                t("Download"),
            ),
        );
    widgets.dialog({
        title: t("Export captions"),
        body: el(
            "ul.lora-trainer-bench-list",
            link(
                "csv",
                t("Table (CSV)"),
                t("For Excel and other spreadsheets; it can be imported again."),
            ),
            link(
                "txt",
                t("Text files (ZIP)"),
                t("One .txt for each image, as other trainers read them."),
            ),
            link("jsonl", t("JSON lines"), t("metadata.jsonl, as in Hugging Face datasets.")),
        ),
        actions: [widgets.closing()],
    });
}

export function showImport() {
    const files = el("input.lora-trainer-input", {
        type: "file",
        accept: ".csv,.tsv,.jsonl,.ndjson,.json,.txt,.caption,.tags,.cap,.zip",
        multiple: true,
    });
    const replace = widgets.checkbox(true);
    const place = el("div", { role: "status" });
    const bring = async () => {
        let captions = 0;
        const skipped = [];
        for (const file of files.files ?? []) {
            const answer = await api.upload(
                datasets.path("upload"),
                file,
                () => {},
                replace.checked ? { captions: "replace" } : {},
            );
            captions += answer.captions;
            skipped.push(...answer.skipped);
        }
        fill(
            place,
            widgets.notice(
                skipped.length ? "warning" : "done",
                plural(captions, "{count} caption written", "{count} captions written"),
                "",
            ),
            controls.notes(skipped.map((one) => sentences(one.message, one.hint))),
        );
        await changes.afterEdit();
        return false;
    };
    widgets.dialog({
        title: t("Import captions"),
        body: el(
            "div.lora-trainer-bench-form",
            widgets.labelled(t("Files"), files, {
                help: t(
                    "A table (.csv, .jsonl) with the images' names, .txt files named like the images, or a .zip of them.",
                ),
            }),
            controls.flag(replace, t("Replace existing captions")),
            place,
        ),
        actions: [{ label: t("Close") }, { label: t("Import"), kind: "primary", onclick: bring }],
    });
}
