/*
 * The tab: every section in the order of its steps, and the panel under the WebUI's prompts.
 *
 * lora_trainer.js, which the WebUI loads, imports this file and calls start() when the page is
 * ready. To add a section, add a folder, and a line here.
 */
import * as filter from "../captions/filter.js";
import * as captions from "../captions/section.js";
import { triggerWord } from "../captions/bench.js";
import { api } from "../common/api.js";
import * as host from "../common/host.js";
import { watchVisibility } from "../common/polling.js";
import { register } from "../common/sections.js";
import * as tab from "../common/start.js";
import { store } from "../common/store.js";
import * as comparing from "../comparing/section.js";
import * as datasets from "../images/datasets.js";
import * as images from "../images/section.js";
import "../prompt/strength_panel.js";
import * as drafts from "../settings/draft.js";
import { replan } from "../settings/plan.js";
import * as settings from "../settings/section.js";
import * as asking from "../asking/section.js";
import * as pairs from "../pairs/section.js";
import * as training from "../training/section.js";
import { either } from "./either.js";

register(
    images.section,
    either(captions.section, pairs.section),
    settings.section,
    training.section,
    either(comparing.section, asking.section, asking.isWanted),
);

/** For the browser's console, in bug reports and tests: the tab's state and modules. */
window.loraTrainer = { store, api, host, datasets, drafts, filter, replan, triggerWord, tab };

/** Draw the tab into its place on the page. */
export function start() {
    watchVisibility();
    return tab.start();
}
