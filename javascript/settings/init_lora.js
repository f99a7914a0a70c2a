/*
 * The card to choose init_lora.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { draft, same } from "./draft.js";
import { edited } from "./values.js";
import { state } from "./state.js";

/** @import { LoraFileView } from "../common/answers" */
/** @import { Option, Row } from "../common/types" */

/** @type {LoraFileView[]} */
let files = [];

/** Load the list of LoRA files. */
export async function loadLoraFiles() {
    files = await api.get("startable");
    state.page?.update();
}

/** @returns {Option[]} */
function options() {
    const known = files.map(({ id, name }) => ({ value: id, label: name }));
    const lost = draft.init_lora && !files.some(({ id }) => id === draft.init_lora);
    return [
        { value: "", label: t("none: a new LoRA") },
        ...(lost ? [{ value: draft.init_lora, label: t("a LoRA that no longer exists") }] : []),
        ...known,
    ];
}

/** @returns {Row} */
export function initLoraCard() {
    const select = widgets.select({
        value: draft.init_lora,
        options: options(),
        id: "lora_trainer_init_lora",
        onchange: (id) => {
            draft.init_lora = id;
            edited();
        },
    });
    const problem = el("div.lora-trainer-settings-problem");
    const element = widgets.labelled(t("Start from a LoRA"), select, {
        help: t(
            "Training starts from this LoRA's weights. A higher rank loses nothing, and has room for more detail.",
        ),
        problem,
    });
    /** @type {Option[]} */
    let drawn = options();

    function update() {
        const wanted = options();
        if (!same(wanted, drawn)) {
            drawn = wanted;
            fill(select, widgets.options(wanted));
        }
        select.value = draft.init_lora;
    }
    return { element, input: select, problem, update };
}
