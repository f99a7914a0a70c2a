/*
 * The controls above the captions: filter and order, with counts from each page.
 */
import { el, fill } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import { bench, listen, imagesAreLarge, setImageSize, triggerWord } from "./bench.js";
import * as check from "./check.js";
import { link } from "./controls.js";
import { EVERY } from "../images/pages.js";
import * as filter from "./filter.js";

/** @import { PageAnswer, PageQuery } from "../common/types" */

const WAIT = 250;

const choices = () => [
    ["all", t("All images")],
    ["missing", t("Without a caption")],
    ["captioned", t("With a caption")],
    ["short", t("Short captions")],
    ["long", t("Too long (cut off in training)")],
    ["no-trigger", t("Without the trigger word")],
    ["unreviewed", t("Not reviewed yet")],
    ["reviewed", t("Reviewed")],
    ["person", t("Written by a person")],
    ["machine", t("Written by a captioner")],
    ["findings", t("With an issue")],
];

const orders = () => [
    { value: "name", label: t("By name") },
    { value: "changed", label: t("Newest first") },
    { value: "edited", label: t("Last edited first") },
    { value: "caption", label: t("By caption") },
    { value: "tokens-down", label: t("Longest first") },
    { value: "tokens", label: t("Shortest first") },
    { value: "findings", label: t("Most issues first") },
];

/** Conditions besides the controls, each with a button to remove it. */
function chipsOf(/** @type {PageQuery} */ query, /** @type {PageAnswer} */ answer) {
    const wanted = filter.tags("tag");
    return [
        wanted.map((tag) => chip(t("Tag: {tag}", { tag }), () => filter.toggleTag("tag", tag))),
        wanted.length > 1
            ? widgets.select({
                  label: t("Match"),
                  value: query.match,
                  onchange: (match) => filter.ask({ match }),
                  options: [
                      { value: "all", label: t("all of them") },
                      { value: "any", label: t("any of them") },
                  ],
              })
            : null,
        filter
            .tags("without")
            .map((tag) => chip(t("Not: {tag}", { tag }), () => filter.toggleTag("without", tag))),
        query.finding
            ? chip(t("Issue: {kind}", { kind: check.label(query.finding) }), () =>
                  filter.ask({ finding: "" }),
              )
            : null,
        filter.isFiltered()
            ? widgets.small(
                  t("{matching} of {count} images", {
                      matching: formatNumber(answer.matching),
                      count: formatNumber(answer.total),
                  }),
              )
            : null,
        filter.isFiltered() ? link(t("Show all"), () => filter.ask(EVERY)) : null,
    ];
}

const orderChoice = (/** @type {PageQuery} */ query) =>
    widgets.select({
        label: t("Order"),
        value: query.order,
        onchange: (chosen) => filter.turn({ order: chosen }),
        options: orders(),
    });

const sizeChoice = () =>
    widgets.select({
        label: t("Images"),
        value: imagesAreLarge() ? "large" : "small",
        onchange: setImageSize,
        options: [
            { value: "small", label: t("Small images") },
            { value: "large", label: t("Large images") },
        ],
    });

export function filterBar() {
    const { pages } = bench.page;
    const { query } = pages;
    let timer = 0;
    const soon = (/** @type {Partial<PageQuery>} */ changes) => {
        clearTimeout(timer);
        timer = setTimeout(() => filter.ask(changes), WAIT);
    };
    fill(bench.chips);
    const which = widgets.select({
        label: t("Which images"),
        value: query.filter,
        onchange: (chosen) => filter.ask({ filter: chosen }),
        options: choices().map(([value, label]) => ({ value, label })),
    });
    const text = widgets.text({
        value: query.text,
        label: t("Caption or name contains"),
        placeholder: t("Caption or name contains"),
        oninput: (value) => soon({ text: value }),
    });
    const lacks = widgets.text({
        value: query.lacks,
        label: t("Caption does not contain"),
        placeholder: t("Caption does not contain"),
        oninput: (value) => soon({ lacks: value }),
    });
    function draw(/** @type {PageAnswer} */ answer) {
        const { counts } = answer;
        choices().forEach(([value, label], at) => {
            which.options[at].textContent =
                value in counts
                    ? t("{label} ({count})", { label, count: formatNumber(counts[value]) })
                    : label;
            // disabled without a trigger word
            which.options[at].disabled = value === "no-trigger" && !triggerWord();
        });
        which.value = query.filter;
        if (document.activeElement !== text) text.value = query.text;
        if (document.activeElement !== lacks) lacks.value = query.lacks;
        fill(bench.chips, chipsOf(query, answer));
    }

    listen("answer", draw);
    return el("div.lora-trainer-filters", which, text, lacks, orderChoice(query), sizeChoice());
}

const chip = (/** @type {string} */ label, /** @type {() => Promise<unknown>} */ end) =>
    el(
        "span.lora-trainer-badge.lora-trainer-bench-chip",
        label,
        widgets.closeButton(
            () => end().catch(widgets.toastProblem),
            t("Remove the filter {filter}", { filter: label }),
        ),
    );
