/*
 * The settings draft of the selected dataset: trigger word, preset, changed settings, checkpoint,
 * name, and captioner options.
 *
 * The server keeps it with the images, so that each dataset has its own and all browsers show the
 * same.
 *
 *     draft                  the selected dataset's: {preset, changes, checkpoint, name, captioner}
 *     drafts.enter(id, view) another dataset was selected; `view`: {values, revision, changed} of
 *     its card
 *     drafts.note()          the user has changed it: it is sent shortly after
 *     drafts.look()          check for changes by another browser
 *     drafts.changed()       time of the last change, in seconds
 *     drafts.dataset()       its dataset; null before the first
 *
 * The store's "draft" announces changes. Without a dataset, a draft is kept in this browser for the
 * first dataset that has none.
 */
import { api, expected } from "../common/api.js";
import { onFirstStart } from "../common/start.js";
import { kept, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";

/** @import { DraftValues, DraftView } from "../common/answers" */
/** @import { Draft, Settings } from "../common/types" */

/** @import { Problem } from "../common/api.js" */

const BEFORE_KEY = "lora-trainer-draft",
    NEXT_KEY = "lora-trainer-draft-next",
    UNSENT_KEY = "lora-trainer-draft-unsent",
    CHECKPOINT_KEY = "lora-trainer-checkpoint";

const CHOSEN_KEY = "lora-trainer-dataset",
    CAPTIONER_KEY = "lora-trainer-captioner";

/**
 * The state of one dataset's draft. `base`: the last known draft of the server, `revision` and
 * `saved`: which that is, and when it was saved; `sent`: what it is sent now, or null; `error`: why
 * it could not be saved.
 *
 * @typedef {{id: string, values: Draft, base: Draft, revision: string, saved: number,
 *     changed: number, dirty: boolean, sent: Draft | null, timer: number, error: string}} Entry
 */

const DELAY = 500,
    RETRY = 3000;

const CONFLICT = 409,
    GONE = 404;

/**
 * An empty draft, with the last checkpoint, which does not depend on images.
 *
 * @returns {Draft}
 */
const blank = () => ({
    preset: null,
    checkpoint: kept.get(CHECKPOINT_KEY) || "loaded",
    init_lora: "",
    name: "",
    captioner: {},
    changes: {},
});

export const draft = blank();

/** @type {Map<string, Entry>} */
const entries = new Map();

/** @type {Entry | null} */
let current = null;

let serial = 0;

export const same = (/** @type {unknown} */ one, /** @type {unknown} */ other) =>
    JSON.stringify(one) === JSON.stringify(other);

/** A draft with these values, and defaults for the others. */
function whole(/** @type {DraftValues | Draft | null} */ values) {
    const made = blank();
    const given = Object.entries(values ?? {}).filter(
        ([part, value]) => part in made && value !== undefined && value !== null,
    );
    return Object.assign(made, structuredClone(Object.fromEntries(given)));
}

/**
 * A three-way merge: my changes since `base` win, the rest is theirs.
 *
 * @param {Draft} base
 * @param {Draft} mine
 * @param {Draft} theirs
 * @returns {Draft}
 */
export function merged(base, mine, theirs) {
    /** @type {Settings} */
    const changes = {};
    for (const key of new Set([...Object.keys(theirs.changes), ...Object.keys(mine.changes)])) {
        const from = same(mine.changes[key], base.changes[key]) ? theirs : mine;
        if (key in from.changes) changes[key] = from.changes[key];
    }
    const by = (/** @type {keyof Draft} */ part) => (same(mine[part], base[part]) ? theirs : mine);
    return {
        preset: by("preset").preset,
        checkpoint: by("checkpoint").checkpoint,
        init_lora: by("init_lora").init_lora,
        name: by("name").name,
        captioner: by("captioner").captioner,
        changes,
    };
}

// --- entering ----------------------------------------------------------------------------------

function entryOf(/** @type {string} */ id, /** @type {DraftView | undefined} */ view) {
    const known = entries.get(id);
    // a card may be older than what was sent since
    if (known && (!view || known.dirty || known.sent || view.changed <= known.changed))
        return known;
    const values = whole(id ? (view?.values ?? null) : kept.get(NEXT_KEY));
    const entry = {
        id,
        values,
        base: structuredClone(values),
        revision: view?.revision ?? "",
        saved: view?.changed ?? 0,
        changed: view?.changed ?? 0,
        dirty: false,
        sent: null,
        timer: 0,
        error: "",
    };
    entries.set(id, entry);
    if (id && !entry.revision) adopt(entry);
    takeUnsent(entry);
    if (id) kept.set(NEXT_KEY, null);
    return entry;
}

/**
 * A dataset without a draft takes the one made without a dataset, or one stored in this browser by
 * an earlier version.
 */
function adopt(/** @type {Entry} */ entry) {
    const before = kept.get(BEFORE_KEY);
    const next = kept.get(NEXT_KEY);
    if (before && kept.get(CHOSEN_KEY) === entry.id)
        use(entry, whole({ ...before, captioner: kept.get(CAPTIONER_KEY) }));
    else if (next) use(entry, whole(next));
}

/**
 * What this tab's last page could not send. It is dropped if the server's draft is another than the
 * one that it was made from, or that was being sent: another browser has changed it since.
 */
function takeUnsent(/** @type {Entry} */ entry) {
    const { [entry.id]: unsent, ...others } = kept.get(UNSENT_KEY, { session: true }) ?? {};
    if (!unsent) return;
    kept.set(UNSENT_KEY, others, { session: true });
    // a revision is of the content, which may have been changed and changed back
    const isBase = unsent.revision === entry.revision && unsent.saved === entry.saved;
    const isSent = unsent.sent && same(whole(unsent.sent), entry.values);
    if (isBase || isSent) use(entry, whole(unsent.values));
}

function use(/** @type {Entry} */ entry, /** @type {Draft} */ values) {
    if (same(values, entry.base)) return;
    entry.values = values;
    entry.dirty = true;
    later(entry, DELAY);
}

/**
 * @param {string} id
 * @param {DraftView} [view]
 */
export function enter(id, view) {
    const before = kept.get(BEFORE_KEY);
    if (before?.checkpoint) kept.set(CHECKPOINT_KEY, before.checkpoint);
    const entry = entryOf(id, view);
    if (before) {
        kept.set(BEFORE_KEY, null);
        kept.set(CAPTIONER_KEY, { captioner: kept.get(CAPTIONER_KEY)?.captioner });
    }
    if (entry === current) return;
    if (current?.dirty) later(current, 0);
    // it is used once
    if (current && !current.id) entries.delete("");
    current = entry;
    show(entry);
}

function show(/** @type {Entry} */ entry) {
    Object.assign(draft, structuredClone(entry.values));
    store.set("draft", (serial += 1));
}

// --- keeping -----------------------------------------------------------------------------------

export function note() {
    if (!current) return;
    const values = whole(draft);
    if (same(values, current.values)) return;
    if (values.checkpoint !== current.values.checkpoint)
        kept.set(CHECKPOINT_KEY, values.checkpoint);
    Object.assign(current, { values, changed: Date.now() / 1000 });
    current.dirty = !same(values, current.base);
    if (!current.id) kept.set(NEXT_KEY, values);
    else if (current.dirty) later(current, DELAY);
}

function later(/** @type {Entry} */ entry, /** @type {number} */ milliseconds) {
    clearTimeout(entry.timer);
    if (entry.id) entry.timer = setTimeout(() => save(entry), milliseconds);
}

const address = (/** @type {Entry} */ entry) => datasets.path("draft", entry.id);

async function save(/** @type {Entry} */ entry, { keepalive = false } = {}) {
    if (!entry.dirty || entry.sent) return;
    const sent = structuredClone(entry.values);
    entry.sent = sent;
    /** @type {number | null} */
    let again = null;
    try {
        const body = { values: sent, revision: entry.revision };
        storeAnswer(entry, await api.post(address(entry), body, { keepalive }), sent);
        again = DELAY;
    } catch (caught) {
        const problem = expected(caught);
        if (problem.status === CONFLICT && problem.current) {
            again = 0;
            mix(entry, problem.current);
        } else if (problem.status === GONE) entry.dirty = false;
        else if (!problem.status) again = RETRY;
        else showProblem(entry, problem);
    } finally {
        entry.sent = null;
    }
    if (entry.dirty && again !== null) later(entry, again);
}

/**
 * @param {Entry} entry
 * @param {DraftView} answer
 * @param {Draft} values the server's current draft
 */
function storeAnswer(entry, answer, values) {
    const { revision, changed } = answer;
    Object.assign(entry, { base: values, revision, saved: changed, changed, error: "" });
    entry.dirty = !same(entry.values, values);
    const card = datasets.cards().find((one) => one.id === entry.id);
    if (card) card.draft = answer;
}

/** Another browser has saved a draft in the meantime: merge it with ours. */
function mix(/** @type {Entry} */ entry, /** @type {DraftView} */ answer) {
    const theirs = whole(answer.values);
    const values = merged(entry.base, entry.values, theirs);
    const other = !same(values, entry.values);
    entry.values = values;
    storeAnswer(entry, answer, theirs);
    if (other && entry === current) show(entry);
}

/** Reported once per reason; the page keeps working with the unsaved draft. */
function showProblem(/** @type {Entry} */ entry, /** @type {Problem} */ problem) {
    if (entry.error === problem.message) return;
    entry.error = problem.message;
    widgets.toastProblem(problem);
}

export async function look() {
    const entry = current;
    if (!entry || !entry.id || entry.dirty || entry.sent) return;
    const answer = await api.get(address(entry)).catch((caught) => void expected(caught));
    if (!answer || entry.dirty || entry.sent) return;
    // a revision is of the content
    entry.saved = answer.changed;
    if (answer.revision === entry.revision) return;
    entry.values = whole(answer.values);
    storeAnswer(entry, answer, structuredClone(entry.values));
    if (entry === current) show(entry);
}

/**
 * When the page is closed, unsent changes are sent with keepalive, and kept for this tab's next page:
 * the server may be gone, or answer that page first.
 */
function flush() {
    const unsent = [...entries.values()].filter(({ id, dirty }) => id && dirty);
    const earlier = Object.entries(kept.get(UNSENT_KEY, { session: true }) ?? {});
    for (const entry of unsent) save(entry, { keepalive: true });
    const left = [
        ...earlier.filter(([id]) => !entries.has(id)),
        ...unsent.map(({ id, ...entry }) => {
            const { values, revision, saved, sent } = entry;
            return [id, { values, revision, saved, sent }];
        }),
    ];
    kept.set(UNSENT_KEY, Object.fromEntries(left), { session: true });
}

export const changed = () => current?.changed ?? 0;

export const dataset = () => current?.id ?? null;

onFirstStart(() => {
    store.on("section", look);
    window.addEventListener("focus", look);
    window.addEventListener("pagehide", flush);
});
