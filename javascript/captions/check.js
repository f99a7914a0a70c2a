/*
 * The dataset check: measures images in the background, lists each kind of finding with a button to
 * fix all, shows findings beside images, and near-duplicates side by side. Used by the section
 * "captions" and each row.
 */
import { api, expected, routeAddress } from "../common/api.js";
import { el, fill, need } from "../common/elements.js";
import { dotted, formatDate, formatNumber, plural, sentences, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection } from "../common/sections.js";
import { kept, settings, store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { enlarge, sizeText, thumbnail } from "../images/images.js";
import { bench, listen, tokenLimit, triggerWord } from "./bench.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";
import * as filter from "./filter.js";

/**
 * @import {
 *    CheckView, Cluster, FindingView, FixView, ItemView, ItemsView, SumView
 * } from "../common/answers"
 */
/** @import { Poll } from "../common/types" */

/** @import { Query } from "../common/api.js" */

const SECONDS_RUNNING = 0.7,
    SECONDS_STALE = 3;

const FOLDED_KEY = "lora-trainer-check-folded";

const MOST_ITEMS = 500,
    MOST_CLUSTERS = 40,
    MOST_PICTURES = 24;

/** Kinds of findings whose images are shown. */
const unfolded = new Set();

/** @type {CheckView | null} */
let known = null;

/** @type {Poll | null} */
let poll = null;

/** The dataset of the check. */
let of = "",
    draw = () => {};

const isRunning = () => known?.state === "running" || known?.state === "waiting";

// --- polling -----------------------------------------------------------------------------------

async function look() {
    const id = store.get("dataset");
    if (!id || currentSection() !== "captions") return null;
    const was = isRunning();
    try {
        known = await api.get(datasets.path("check", id));
    } catch (caught) {
        if (expected(caught).status === 404) return null;
        throw caught;
    }
    if (id !== store.get("dataset")) return 0;
    of = id;
    draw();
    // findings are shown beside the images
    if (was && !isRunning()) await bench.page.pages.load({ quietly: true });
    return isRunning() ? SECONDS_RUNNING : known.stale ? SECONDS_STALE : null;
}

export async function start() {
    await bench.page.saveAll();
    known = await api.post(datasets.path("check"), {
        resolution: Number(settings().resolution) || resolutionOfCheckpoint(),
        trigger: triggerWord(),
        tokens: tokenLimit(),
    });
    of = store.get("dataset") ?? "";
    draw();
    pollNow();
}

/** The plan's resolution; 512 if unknown. */
const resolutionOfCheckpoint = () => Number(store.get("plan")?.resolved.resolution) || 512;

const stop = async () => {
    known = await api.post(datasets.path("check/stop"));
    draw();
};

async function fix(/** @type {{kind: string} | {ids: string[]}} */ body) {
    await bench.page.saveAll();
    const answer = await api.post(datasets.path("fix"), body);
    await changes.afterEdit(answer, {
        message: plural(answer.changed, "{count} image fixed", "{count} images fixed"),
    });
    await datasets.refresh();
    pollNow();
}

/** The title of a kind of finding. */
export const label = (/** @type {string} */ kind) =>
    known?.sums.find((one) => one.kind === kind)?.label ?? kind;

// --- the panel ---------------------------------------------------------------------------------

export function panel() {
    const element = el("section.lora-trainer-card.lora-trainer-bench-check", {
        hidden: true,
        "aria-label": t("Check"),
    });
    const progress = widgets.progress(t("Check"));
    const busy = el(
        "div.lora-trainer-bench-progress",
        progress.element,
        widgets.button({ label: t("Stop"), onclick: stop }),
    );
    let drawn = "";

    draw = () => {
        element.hidden = !known || of !== store.get("dataset") || known.state === "none";
        if (!known || element.hidden) return;
        if (isRunning()) {
            progress.set(
                known.done,
                known.total,
                known.total
                    ? t("Checking the images: {done} of {count}", {
                          done: formatNumber(known.done),
                          count: formatNumber(known.total),
                      })
                    : t("Checking the images"),
            );
            if (!busy.isConnected) fill(element, busy);
            drawn = "";
            return;
        }
        const mark = JSON.stringify([known, bench.page.pages.query.finding]);
        if (mark === drawn) return;
        drawn = mark;
        fill(
            element,
            known.error
                ? widgets.notice("error", known.error.message, known.error.hint)
                : summary(known),
        );
    };
    listen("answer", () => draw());
    // changed images may be checked again
    listen("revision", () => known && known.state !== "none" && pollNow());
    return element;
}

function summary(/** @type {CheckView} */ known) {
    const { sums } = known;
    const head =
        known.state === "stopped"
            ? t("Stopped after {done} of {count} images.", {
                  done: formatNumber(known.done),
                  count: formatNumber(known.total),
              })
            : sums.length
              ? plural(sums.length, "{count} kind of issue", "{count} kinds of issues")
              : t("All {count} images look fine.", { count: formatNumber(known.total) });
    const line = [
        el("b", head),
        widgets.small(
            dotted(
                known.checked ? formatDate(known.checked) : "",
                known.stale ? t("being checked again") : "",
            ),
        ),
    ];
    if (!sums.length) return widgets.apart(line);
    // once read, it collapses to its heading
    return el(
        "details.lora-trainer-bench-fold",
        {
            open: !kept.get(FOLDED_KEY),
            ontoggle: (event) => kept.set(FOLDED_KEY, !event.currentTarget.open),
        },
        el("summary", line),
        el(
            "ul.lora-trainer-bench-sums",
            sums.map((sum) => sumLine(sum, known.clusters)),
        ),
    );
}

/** A kind of finding: message, hint, a button to fix all; its images when expanded. */
function sumLine(/** @type {SumView} */ sum, /** @type {Cluster[]} */ clusters) {
    const on = bench.page.pages.query.finding === sum.kind;
    const show = async () => {
        unfolded.delete(sum.kind);
        await filter.ask({ finding: on ? "" : sum.kind });
        // the images are below all findings
        if (!on)
            need(bench.page.panel, ".lora-trainer-captions-list").scrollIntoView({
                block: "start",
            });
    };
    const similar = ["near-duplicate", "duplicate-image"].includes(sum.kind) && clusters.length;
    const buttons = [
        sum.fix
            ? widgets.button({
                  label:
                      sum.fix.count > 1
                          ? t("{fix} (all {count})", {
                                fix: sum.fix.label,
                                count: formatNumber(sum.fix.count),
                            })
                          : sum.fix.label,
                  onclick: () => fix({ kind: sum.kind }),
              })
            : null,
        similar
            ? widgets.button({ label: t("Compare"), onclick: () => showClusters(clusters) })
            : null,
        sum.images
            ? controls.link(on ? t("Show all images") : t("Show only these"), show, {
                  "aria-pressed": String(on),
              })
            : null,
    ];
    const hint = sum.hint ? widgets.help(sum.hint) : null;
    const words = sum.images ? unfolding(sum, hint) : el("div", el("b", sum.message), hint);
    return el(
        "li.lora-trainer-bench-sum",
        { dataset: { severity: sum.severity } },
        words,
        widgets.row(buttons),
    );
}

/** Images are loaded when expanded. */
function unfolding(/** @type {SumView} */ sum, /** @type {HTMLElement | null} */ hint) {
    const place = el("div.lora-trainer-bench-images");
    const details = el(
        "details",
        {
            open: unfolded.has(sum.kind),
            ontoggle: ({ currentTarget }) => {
                if (!currentTarget.open) {
                    unfolded.delete(sum.kind);
                    return;
                }
                unfolded.add(sum.kind);
                fetchImages(sum, place).catch((problem) => fill(place, widgets.problem(problem)));
            },
        },
        el("summary", el("b", sum.message)),
        place,
    );
    return el("div", details, hint);
}

async function fetchImages(/** @type {SumView} */ sum, /** @type {HTMLElement} */ place) {
    const { items, matching } = await itemsPage({ finding: sum.kind, limit: MOST_PICTURES });
    fill(
        place,
        items.map((item) => imageCard(sum, item, items)),
        matching > items.length
            ? widgets.help(t("and {count} more", { count: formatNumber(matching - items.length) }))
            : null,
    );
}

/**
 * @param {SumView} sum
 * @param {ItemView} item
 * @param {ItemView[]} items all that are shown
 */
function imageCard(sum, item, items) {
    const messages = item.findings
        .filter((finding) => finding.kind === sum.kind)
        .map((finding) => finding.message);
    return el(
        "figure.lora-trainer-bench-alike",
        el(
            "button.lora-trainer-caption-image",
            {
                type: "button",
                "aria-label": t("Enlarge {name}", { name: item.name }),
                onclick: () => enlarge(items, item),
            },
            thumbnail(item),
        ),
        el(
            "figcaption",
            el("span.lora-trainer-cell-name", { title: item.name }, item.name),
            messages.length
                ? el(
                      "span.lora-trainer-help.lora-trainer-bench-clip",
                      { title: messages.join("\n") },
                      sentences(messages),
                  )
                : null,
        ),
    );
}

// --- beside an image ---------------------------------------------------------------------------

/**
 * A finding with its fix. A crop is outlined in the image while its button is hovered or focused.
 */
export function line(/** @type {FindingView} */ finding, /** @type {ItemView} */ item) {
    const buttons = [
        finding.fix ? fixLink(finding.id, finding.fix, item) : null,
        finding.related.length
            ? controls.link(t("Compare"), () =>
                  showClusters([{ keys: [...new Set([item.key, ...finding.related])], best: "" }]),
              )
            : null,
    ].filter((button) => button !== null);
    return el(
        "li.lora-trainer-bench-finding",
        { dataset: { severity: finding.severity } },
        el("p", finding.message),
        finding.hint ? widgets.help(finding.hint) : null,
        buttons.length ? el("span.lora-trainer-row", buttons) : null,
    );
}

/**
 * @param {string} id of the finding
 * @param {FixView} fix
 * @param {ItemView} item
 */
function fixLink(id, { label, box }, item) {
    const button = controls.link(label, () => fix({ ids: [id] }));
    if (!box || !item.width) return button;
    const frame = el("span.lora-trainer-bench-outline", { style: outline(box, item) });
    const show = () => {
        const row = button.closest(".lora-trainer-caption-row");
        if (row) need(row, ".lora-trainer-thumb").append(frame);
    };
    const hide = () => frame.remove();
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, show);
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, hide);
    return button;
}

/**
 * Where a box (left, top, right, bottom in pixels) is in the square thumbnail.
 *
 * @param {number[]} box
 * @param {{width: number, height: number}} size
 */
export function outline([left, top, right, bottom], { width, height }) {
    const side = Math.max(width, height);
    const share = (/** @type {number} */ length) => (100 * length) / side + "%";
    return {
        left: share((side - width) / 2 + left),
        top: share((side - height) / 2 + top),
        width: share(right - left),
        height: share(bottom - top),
    };
}

// --- similar images ----------------------------------------------------------------------------

/** @returns {Promise<ItemsView>} a page of images; without `known`, it is never "unchanged" */
async function itemsPage(/** @type {Query} */ query) {
    const answer = await api.get(datasets.path("items"), query);
    if ("unchanged" in answer) throw new Error("The request had no `known`.");
    return answer;
}

async function itemsOf(/** @type {string[]} */ keys) {
    const { items } = bench.page.pages.known();
    const found = new Map(items.map((item) => [item.key, item]));
    // the others are on other pages, which are loaded one after the other
    for (let offset = 0; keys.some((key) => !found.has(key)); offset += MOST_ITEMS) {
        const answer = await itemsPage({ offset, limit: MOST_ITEMS });
        for (const item of answer.items) found.set(item.key, item);
        if (offset + MOST_ITEMS >= answer.total) break;
    }
    return found;
}

/**
 * @param {Cluster} cluster
 * @param {string} key
 * @param {Map<string, ItemView>} items
 * @param {(others: string[]) => unknown} keep
 */
function clusterFigure(cluster, key, items, keep) {
    const item = items.get(key) ?? {
        name: "",
        thumbnail: routeAddress(datasets.path("thumbnail/" + key + ".webp")),
        caption: "",
        width: 0,
        height: 0,
    };
    const others = cluster.keys.filter((other) => other !== key);
    return el(
        "figure.lora-trainer-bench-alike",
        thumbnail(item),
        el(
            "figcaption",
            el("b.lora-trainer-cell-name", { title: item.name }, item.name),
            widgets.small(dotted(sizeText(item), key === cluster.best ? t("recommended") : "")),
            el("span.lora-trainer-help.lora-trainer-bench-clip", item.caption || t("no caption")),
        ),
        widgets.button({
            label: t("Keep this one"),
            kind: key === cluster.best ? "primary" : "secondary",
            onclick: () => keep(others),
        }),
    );
}

async function showClusters(/** @type {Cluster[]} */ clusters) {
    const items = await itemsOf(clusters.flatMap(({ keys }) => keys));
    const place = el("div.lora-trainer-bench-form");
    const shown = clusters.slice(0, MOST_CLUSTERS);

    async function keep(/** @type {Cluster} */ cluster, /** @type {string[]} */ others) {
        await bench.page.saveAll();
        const answer = await api.post(datasets.path("remove"), { keys: others });
        shown.splice(shown.indexOf(cluster), 1);
        show();
        await changes.afterEdit(answer, {
            message: plural(others.length, "{count} image removed", "{count} images removed"),
        });
        await datasets.refresh();
        pollNow();
    }

    function show() {
        if (!shown.length) {
            dialog.close();
            return;
        }
        fill(
            place,
            shown.map((cluster) =>
                el(
                    "section.lora-trainer-card",
                    el(
                        "div.lora-trainer-bench-cluster",
                        cluster.keys.map((key) =>
                            clusterFigure(cluster, key, items, (others) => keep(cluster, others)),
                        ),
                    ),
                    widgets.button({
                        label: t("Keep all of them"),
                        onclick: () => {
                            shown.splice(shown.indexOf(cluster), 1);
                            show();
                        },
                    }),
                ),
            ),
        );
    }

    const dialog = widgets.dialog({
        title: t("Similar images"),
        wide: true,
        body: [
            widgets.help(
                t(
                    "A duplicate image counts twice in training. The others are moved to this dataset's trash, and can be restored.",
                ),
            ),
            place,
        ],
        actions: [{ label: t("Close") }],
    });
    show();
}

export const pollNow = () => poll?.wake();

export const watch = () => {
    poll = startPolling(look);
};
