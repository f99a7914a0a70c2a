/*
 * The dataset cards, and which one is selected. The state is the server's.
 *
 * Imported as `datasets`.
 */
import { api } from "../common/api.js";
import { formatNumber, plural, t, withColon } from "../common/language.js";
import { summarizeStep } from "../common/sections.js";
import { onStart } from "../common/start.js";
import { kept, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as drafts from "../settings/draft.js";

/** @import { KnownCard } from "../common/types" */

const CHOSEN_KEY = "lora-trainer-dataset";

/** The cards of all datasets; [] before they are loaded. */
export const cards = () => store.get("datasets") ?? [];

const cardOf = (/** @type {string} */ id) => cards().find((card) => card.id === id);

export const chosen = () => cardOf(store.get("dataset") ?? "");

/** Whether the selected dataset holds texts. */
export const isTexts = () => chosen()?.kind === "texts";

/** The selected card. Throws without one. */
export function needChosen() {
    const card = chosen();
    if (!card) throw new Error("No dataset is chosen.");
    return card;
}

export function choose(/** @type {string} */ id) {
    // the draft belongs to the dataset: it must be in place before listeners hear of the selection
    drafts.enter(id, cardOf(id)?.draft);
    store.set("dataset", id);
    kept.set(CHOSEN_KEY, id);
    summarize();
}

/**
 * The route of a dataset, by default the selected one.
 *
 * @template {string} T
 * @param {T} tail
 * @returns {`datasets/${string}/${T}`}
 */
export const path = (tail, id = store.get("dataset") ?? "") =>
    `datasets/${encodeURIComponent(id)}/${tail}`;

/** Reload the cards. */
export async function refresh() {
    take(await api.get("datasets"));
}

/** Insert a new card, and select it. */
export function add(/** @type {KnownCard} */ card) {
    if (cardOf(card.id)) update(card.id, card);
    else store.set("datasets", [...cards(), card]);
    choose(card.id);
}

/** Update a card. */
export function update(/** @type {string} */ id, /** @type {Partial<KnownCard>} */ changes) {
    store.set(
        "datasets",
        cards().map((card) => (card.id === id ? { ...card, ...changes } : card)),
    );
    summarize();
}

function take(/** @type {KnownCard[]} */ answered) {
    const cards = withLost(answered);
    store.set("datasets", cards);
    const chosen = store.get("dataset") || kept.get(CHOSEN_KEY);
    const known = cards.some((card) => card.id === chosen);
    choose(known ? chosen : cards.length === 1 ? cards[0].id : "");
}

/**
 * If the selected dataset disappears it stays selected and shows an error: no other is selected
 * automatically.
 */
function withLost(/** @type {KnownCard[]} */ cards) {
    const before = chosen();
    if (!before || cards.some((card) => card.id === before.id)) return cards;
    const problem = {
        message: t("This dataset no longer exists."),
        hint: t("It may have been deleted in another window."),
    };
    return [
        ...cards,
        { ...before, cover: null, count: 0, captioned: 0, gone: true, lost: true, problem },
    ];
}

/** Reload the cards if the plan and the card disagree on problems with the images. */
let refreshedFor = "";

store.on("plan", (plan) => {
    const card = chosen();
    const problem = plan.problems.find(
        (one) => one.severity === "error" && one.field === "dataset",
    );
    const now = card ? JSON.stringify([card.id, problem?.message ?? ""]) : "";
    if (!card || now === refreshedFor || Boolean(problem) === Boolean(card.problem)) return;
    refreshedFor = now;
    refresh().catch(() => {});
});

function summarize() {
    const card = chosen();
    if (card?.problem) {
        summarizeStep(
            "images",
            card.gone ? t("The folder is gone") : t("needs attention"),
            "problem",
        );
        summarizeStep("captions", "");
        return;
    }
    summarizeStep("images", card ? withColon(card.name, countOf(card)) : "");
    summarizeStep(
        "captions",
        card?.count
            ? t("{done} of {count}", {
                  done: formatNumber(card.captioned),
                  count: formatNumber(card.count),
              })
            : "",
    );
}

export const count = (/** @type {number} */ count) =>
    plural(count, "{count} image", "{count} images");

const countTexts = (/** @type {number} */ count) => plural(count, "{count} text", "{count} texts");

/** What a dataset holds. */
export const countOf = (/** @type {KnownCard} */ card) =>
    card.kind === "texts" ? countTexts(card.count) : count(card.count);

/** So many images or texts, whichever the chosen dataset holds. */
export const countInChosen = (/** @type {number} */ some) =>
    isTexts() ? countTexts(some) : count(some);

onStart((home) => {
    if (home.datasets) take(home.datasets);
    else refresh().catch(widgets.toastProblem);
});
