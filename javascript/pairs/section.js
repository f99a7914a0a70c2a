/*
 * The section "captions" for texts: pairs, conversations and plain texts, each saved on blur.
 * Changes by others are shown, and never overwritten: the server detects conflicts. Undo and the
 * list of changes are shared with captions.
 */
import { api, expected } from "../common/api.js";
import { el, fill, put, redraw } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection, openSection } from "../common/sections.js";
import { Later, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import { begin, listen } from "../captions/bench.js";
import * as changes from "../captions/changes.js";
import * as datasets from "../images/datasets.js";
import { remarksCard } from "../images/images.js";
import { replan } from "../settings/plan.js";
import { askForPairs, watchJob } from "./documents.js";
import { PairRow } from "./row.js";

/** @import { TextsView } from "../common/answers" */

const PAGE = 50,
    SECONDS = 4;

/** The section's elements and state. */
class Parts {
    panel = el("div.lora-trainer-captions");
    counts = el("p.lora-trainer-help", { role: "status" });
    findings = el("div");
    job = el("div");
    list = el("div.lora-trainer-pairs");
    pager = widgets.row();
    next = widgets.actions();
    undo = widgets.button({ label: t("Undo"), onclick: changes.undo });
    query = { offset: 0, text: "", filter: "" };
    /** @type {TextsView | null} */
    answer = null;
    /** @type {Map<string, PairRow>} */
    rows = new Map();
    onward = widgets.button({
        label: t("Continue to the settings"),
        kind: "primary",
        local: true,
        onclick: () => openSection("settings"),
    });

    constructor() {
        this.next.fill(this.onward);
    }
}

/** @type {Later<Parts>} */
const drawn = new Later();

export const section = {
    id: "captions",
    title: () => t("Pairs"),
    draw(/** @type {HTMLElement} */ container) {
        drawn.now = new Parts();
        fill(container, drawn.now.panel);
        drawPanel();
        startPolling(async () => {
            await look();
            return SECONDS;
        });
    },
    shown() {
        load({ quietly: true }).catch(widgets.toastProblem);
    },
    hidden() {
        saveAll();
    },
};

store.on("dataset", () => {
    if (drawn.now && datasets.isTexts()) drawPanel();
});

const saveAll = () => Promise.all([...(drawn.now?.rows.values() ?? [])].map((row) => row.save()));

async function look() {
    if (!drawn.now || !datasets.isTexts() || currentSection() !== "captions") return;
    await load({ quietly: true });
    await watchJob(drawn.now.job);
}

/** Load the page; quietly: only if it has changed. */
async function load({ quietly = false } = {}) {
    const parts = drawn.need();
    const id = store.get("dataset") ?? "";
    const known = quietly ? parts.answer?.revision : null;
    const answer = await api.get(datasets.path("texts", id), {
        ...parts.query,
        limit: PAGE,
        known,
    });
    if ("unchanged" in answer || id !== store.get("dataset")) return;
    parts.answer = answer;
    show(answer);
    // a job, or someone else, may have changed the texts
    const { total: count, usable: captioned } = answer;
    const card = datasets.chosen();
    if (card && (card.count !== count || card.captioned !== captioned)) {
        datasets.update(id, { count, captioned });
        replan();
    }
}

function show(/** @type {TextsView} */ answer) {
    const parts = drawn.need();
    /** @type {Map<string, PairRow>} */
    const rows = new Map();
    for (const item of answer.items) {
        const row = parts.rows.get(item.key) ?? new PairRow(item, { saved, remove: removeOne });
        row.take(item);
        rows.set(item.key, row);
    }
    // a row with unsaved text stays, even if its entry is gone
    for (const [key, row] of parts.rows)
        if (!rows.has(key) && row.isChanged() && !row.saving) {
            row.gone();
            rows.set(key, row);
        }
    parts.rows = rows;
    put(
        parts.counts,
        plural(answer.total, "{count} text", "{count} texts") +
            (answer.usable < answer.total
                ? ", " + t("{count} cannot be used", { count: answer.total - answer.usable })
                : ""),
    );
    parts.next.setText(parts.counts.textContent ?? "");
    parts.onward.disabled = !answer.usable;
    redraw(parts.findings, JSON.stringify(answer.findings), () =>
        remarksCard(answer.findings, null),
    );
    const wanted = [...rows.values()].map((row) => row.element);
    if (wanted.length) widgets.refill(parts.list, wanted);
    else
        fill(
            parts.list,
            el(
                "p.lora-trainer-help.lora-trainer-empty",
                answer.total
                    ? t("No texts match.")
                    : t("No pairs yet. Add one here, or files under Texts."),
            ),
        );
    drawPager(answer);
    setUndo(answer.edits.undo?.title ?? "");
}

function setUndo(/** @type {string} */ title) {
    const { undo } = drawn.need();
    undo.disabled = !title;
    undo.title = title;
}

function drawPager(/** @type {TextsView} */ answer) {
    const { pager, query } = drawn.need();
    const turn = (/** @type {number} */ offset) => async () => {
        await saveAll();
        query.offset = Math.max(0, offset);
        await load();
    };
    pager.hidden = answer.matching <= PAGE;
    fill(
        pager,
        widgets.button({
            label: t("Previous"),
            disabled: query.offset === 0,
            onclick: turn(query.offset - PAGE),
        }),
        widgets.small(
            t("{from} to {to} of {count}", {
                from: formatNumber(query.offset + 1),
                to: formatNumber(Math.min(answer.matching, query.offset + PAGE)),
                count: formatNumber(answer.matching),
            }),
        ),
        widgets.button({
            label: t("Next"),
            disabled: query.offset + PAGE >= answer.matching,
            onclick: turn(query.offset + PAGE),
        }),
    );
}

/** A row was saved, which has changed its key. */
function saved(/** @type {PairRow} */ row, /** @type {string} */ before) {
    const parts = drawn.need();
    parts.rows.delete(before);
    parts.rows.set(row.item.key, row);
    changes.afterEdit({}, {}).catch(widgets.toastProblem);
}

async function removeOne(/** @type {PairRow} */ row) {
    const answer = await api.post(datasets.path("remove-texts"), { keys: [row.item.key] });
    drawn.need().rows.delete(row.item.key);
    await changes.afterEdit(answer, { message: answer.title });
    await datasets.refresh();
}

function addPair() {
    const question = widgets.lines(2, {});
    const answer = widgets.lines(4, {});
    widgets.dialog({
        title: t("Add a pair"),
        body: [widgets.labelled(t("Question"), question), widgets.labelled(t("Answer"), answer)],
        actions: [
            { label: t("Cancel") },
            {
                label: t("Add"),
                kind: "primary",
                onclick: async () => {
                    const { edits, edit } = await api.post(datasets.path("add-text"), {
                        question: question.value,
                        answer: answer.value,
                    });
                    await changes.afterEdit({ edits, edit }, { message: t("Added") });
                    await datasets.refresh();
                },
            },
        ],
    });
    question.focus();
}

function drawPanel() {
    const parts = drawn.need();
    saveAll();
    parts.rows.clear();
    parts.answer = null;
    Object.assign(parts.query, { offset: 0, text: "", filter: "" });
    const card = datasets.chosen();
    if (!card) return;
    begin({
        pages: { load: (options) => load(options) },
        panel: parts.panel,
        rows: () => new Map(),
        saveAll,
        showCounts: () => {},
        next: async () => {},
    });
    listen("edits", (edits) => setUndo(edits.undo?.title ?? ""));
    const search = widgets.text({
        label: t("Search"),
        placeholder: t("Search"),
        onchange: find,
        oninput: find,
    });
    search.type = "search";
    const only = widgets.select({
        label: t("Which ones"),
        options: [
            { value: "", label: t("All") },
            { value: "findings", label: t("With an issue") },
        ],
        onchange: async (filter) => {
            Object.assign(parts.query, { filter, offset: 0 });
            await load();
        },
    });
    let timer = 0;
    function find(/** @type {string} */ text) {
        clearTimeout(timer);
        timer = setTimeout(() => {
            Object.assign(parts.query, { text, offset: 0 });
            load().catch((caught) => widgets.toastProblem(expected(caught)));
        }, 250);
    }
    for (const one of [parts.job, parts.findings, parts.list]) {
        fill(one);
        delete one.dataset.drawn;
    }
    fill(
        parts.panel,
        el(
            "div.lora-trainer-card",
            el("h3", card.name),
            parts.counts,
            widgets.help(
                t(
                    "The model learns these texts as they are: read and correct them. A text is saved to its file when you leave its textbox.",
                ),
            ),
        ),
        el(
            "div.lora-trainer-row.lora-trainer-pairs-tools",
            search,
            only,
            widgets.button({ label: t("Add a pair"), onclick: addPair }),
            widgets.button({
                label: t("Make pairs from documents"),
                onclick: () => askForPairs(parts.answer),
            }),
            parts.undo,
            widgets.button({ label: t("Changes"), onclick: changes.showHistory }),
        ),
        parts.job,
        parts.findings,
        parts.list,
        parts.pager,
        parts.next.element,
    );
    load().catch(widgets.toastProblem);
    replan();
}
