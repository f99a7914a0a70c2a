/*
 * The few places where the host's page is read or changed.
 */
import { t } from "./language.js";
import { store } from "./store.js";
import * as widgets from "./widgets.js";

export const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

/** @returns {HTMLElement | null} the tab's own place on the page */
export function root() {
    return page().querySelector("#lora_trainer_root");
}

/**
 * The prompt boxes of "txt2img" or "img2img".
 *
 * @returns {{positive: HTMLTextAreaElement | null, negative: HTMLTextAreaElement | null}}
 */
export const prompts = (tab) => ({
    positive: page().querySelector("#" + tab + "_prompt textarea"),
    negative: page().querySelector("#" + tab + "_neg_prompt textarea"),
});

/** Write into one of the host's text boxes so that gradio takes it up. */
export function write(box, text) {
    box.value = text;
    if (typeof updateInput === "function") updateInput(box);
    else box.dispatchEvent(new Event("input", { bubbles: true }));
}

/**
 * Put a prompt (and, where given, a negative one and a seed) into "txt2img" or "img2img" and show
 * that tab.
 */
export function send(tab, { prompt, negative = undefined, seed = undefined }) {
    if (store.get("connection") === "stale") {
        widgets.toast(t("Reload this page first: the WebUI was started again."), {
            severity: "warning",
        });
        return;
    }
    const boxes = prompts(tab);
    write(boxes.positive, prompt);
    if (negative !== undefined && boxes.negative) write(boxes.negative, negative);
    const seedBox = page().querySelector("#" + tab + "_seed input");
    if (seed !== undefined && seedBox) write(seedBox, String(seed));
    const show = window["switch_to_" + tab];
    if (typeof show === "function") show();
}

/**
 * Pages of LoRA cards that are open keep their cards until their own button is pressed; others are
 * drawn when they are opened.
 */
export function redrawCards() {
    for (const tab of ["txt2img", "img2img"]) {
        const button = page().querySelector("#" + tab + "_lora_extra_refresh_internal");
        if (button && page().querySelector("#" + tab + "_lora_cards"))
            button.dispatchEvent(new Event("click"));
    }
}
