/*
 * A step that shows one section for datasets of images, and another for datasets of texts.
 */
import { el, fill } from "../common/elements.js";
import { currentSection, retitle } from "../common/sections.js";
import { store } from "../common/store.js";
import * as datasets from "../images/datasets.js";

/** @import { Section } from "../common/types" */

/**
 * @param {Section} ofImages
 * @param {Section} ofTexts
 * @param {() => boolean} [isOfTexts] whether ofTexts is to be shown
 * @returns {Section}
 */
export function either(ofImages, ofTexts, isOfTexts = datasets.isTexts) {
    const both = [ofImages, ofTexts];
    /** @type {HTMLElement[]} */
    let places = [];
    /** @type {Set<Section>} */
    const drawn = new Set();
    const wanted = () => (isOfTexts() ? ofTexts : ofImages);
    let shown = wanted();

    function show() {
        shown = wanted();
        both.forEach((section, at) => {
            places[at].hidden = section !== shown;
        });
        if (!drawn.has(shown)) {
            drawn.add(shown);
            shown.draw(places[both.indexOf(shown)]);
        }
    }

    const turn = () => {
        retitle();
        if (!places.length || currentSection() !== ofImages.id || shown === wanted()) return;
        shown.hidden?.();
        show();
        shown.shown?.();
    };
    store.on("dataset", turn);
    store.on("datasets", turn);
    store.on("ask", turn);

    return {
        id: ofImages.id,
        title: () => wanted().title(),
        draw(container) {
            drawn.clear();
            places = both.map(() => el("div.lora-trainer-section"));
            fill(container, places);
            show();
        },
        shown() {
            if (shown !== wanted()) show();
            shown.shown?.();
        },
        hidden: () => shown.hidden?.(),
    };
}
