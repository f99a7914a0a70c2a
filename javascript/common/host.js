/*
 * Access to the host's page.
 */
import { find, need } from "./elements.js";
import { t } from "./language.js";
import { store } from "./store.js";
import * as widgets from "./widgets.js";

/** @import { TextBox } from "./types" */

export const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

const ROOT = "#lora_trainer_root";

/** The tab's root element; null before the host has drawn it. */
export const findRoot = () => find(page(), ROOT);

export const root = () => need(page(), ROOT);

/** @typedef {"txt2img" | "img2img"} Tab */

const textBox = (/** @type {string} */ selector) => {
    const found = find(page(), selector);
    return found instanceof HTMLTextAreaElement ? found : null;
};

/** The prompt textboxes of txt2img or img2img. */
export const prompts = (/** @type {Tab} */ tab) => ({
    positive: textBox("#" + tab + "_prompt textarea"),
    negative: textBox("#" + tab + "_neg_prompt textarea"),
});

/** Set the value of a gradio textbox, with the event that gradio listens to. */
export function write(/** @type {TextBox} */ box, /** @type {string} */ text) {
    box.value = text;
    if (typeof updateInput === "function") updateInput(box);
    else box.dispatchEvent(new Event("input", { bubbles: true }));
}

/**
 * Put a prompt (and optionally a negative prompt and a seed) into txt2img or img2img, and show that
 * tab.
 *
 * @param {Tab} tab
 * @param {{prompt: string, negative?: string, seed?: number}} values
 */
export function send(tab, { prompt, negative, seed }) {
    if (store.get("connection") === "stale") {
        widgets.toast(t("Reload this page first: the WebUI was restarted."), {
            severity: "warning",
        });
        return;
    }
    const boxes = prompts(tab);
    if (boxes.positive) write(boxes.positive, prompt);
    if (negative !== undefined && boxes.negative) write(boxes.negative, negative);
    const seedBox = find(page(), "#" + tab + "_seed input");
    if (seed !== undefined && seedBox instanceof HTMLInputElement) write(seedBox, String(seed));
    window[`switch_to_${tab}`]?.();
}

/** Refresh open pages of LoRA cards; others are loaded when opened. */
export function redrawCards() {
    for (const tab of ["txt2img", "img2img"]) {
        const button = page().querySelector("#" + tab + "_lora_extra_refresh_internal");
        if (button && page().querySelector("#" + tab + "_lora_cards"))
            button.dispatchEvent(new Event("click"));
    }
}
