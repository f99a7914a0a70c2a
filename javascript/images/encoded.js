/*
 * The row that says how large the encoded images of a dataset are, and deletes them.
 */
import { api } from "../common/api.js";
import { el } from "../common/elements.js";
import { formatBytes, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";

/** {element, update()}. Hidden while nothing is kept. */
export function encodedRow() {
    const words = widgets.small();
    const button = widgets.button({ label: t("Delete encoded images"), onclick: remove });
    const element = el("div.lora-trainer-row.lora-trainer-trash", { hidden: true }, words, button);

    async function update() {
        const id = store.get("dataset");
        element.hidden = true;
        if (!id || datasets.isTexts() || datasets.chosen()?.gone) return;
        const { size } = await api.get(datasets.path("encoded", id));
        if (id === store.get("dataset")) show(size);
    }

    function show(/** @type {number} */ size) {
        element.hidden = !size;
        words.textContent = t(
            "Encoded images and captions, kept so that the next training starts sooner: {size}",
            { size: formatBytes(size) },
        );
    }

    async function remove() {
        const { size } = await api.post(datasets.path("delete-encoded"));
        show(size);
        if (size)
            widgets.toast(t("Some files are in use by another program."), { severity: "warning" });
        else widgets.toast(t("The next training encodes them again."), { severity: "done" });
    }

    return { element, update };
}
