/*
 * The loss curve: [step, loss, smoothed loss] points -> an inline SVG and a sentence that says the
 * same.
 *
 * The smoothed loss is the line; the raw losses are faint behind it, because from one step to the
 * next they are mostly noise. Called by the live view.
 */
import { el, fill, svg } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";

/** @import { LiveView } from "../common/answers" */

const HEIGHT = 220;

/** To the right: half of the last step's number, such as 100,000, which stands around its place. */
const MARGIN = { top: 10, right: 26, bottom: 34, left: 52 };

/** @typedef {LiveView["points"][number]} Point step, loss, smoothed loss */

/** @returns {value is number} whether it can be drawn */
const isNumber = (/** @type {number | null | undefined} */ value) => Number.isFinite(value);

/**
 * Round steps between two numbers, about `count` of them.
 *
 * @param {number} minimum
 * @param {number} maximum
 * @param {number} count
 */
function ticks(minimum, maximum, count) {
    const raw = (maximum - minimum) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const stride =
        [1, 2, 5].map((factor) => factor * power).find((size) => size >= raw) ?? 10 * power;
    const found = [];
    for (let at = Math.ceil(minimum / stride); at * stride <= maximum + stride * 1e-9; at += 1)
        found.push(at * stride);
    return found;
}

/** What is a number at a place of the points. */
const numbers = (/** @type {Point[]} */ points, /** @type {number} */ at) =>
    points.map((point) => point[at]).filter((value) => isNumber(value));

/** Lowest and highest value to show. A few spikes of the raw loss must not press the line flat. */
function range(/** @type {Point[]} */ points) {
    const raw = numbers(points, 1).sort((a, b) => a - b);
    const smoothed = numbers(points, 2);
    const low = Math.min(raw[Math.floor(raw.length * 0.02)], ...smoothed);
    const high = Math.max(raw[Math.ceil(raw.length * 0.98) - 1], ...smoothed);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [Math.max(0, low - room), high + room];
}

function summary(/** @type {Point[]} */ points) {
    const known = points.flatMap(([step, loss, smoothed]) => {
        const value = isNumber(smoothed) ? smoothed : loss;
        return isNumber(step) && isNumber(value) ? [{ step, value }] : [];
    });
    if (!known.length) return t("No loss has been measured yet.");
    const [first, last] = [known[0], known[known.length - 1]];
    const lowest = known.reduce((best, point) => (point.value < best.value ? point : best));
    const say = (/** @type {{value: number}} */ { value }) => formatNumber(value, 4);
    return t(
        "Smoothed loss: {first} at step {from}, {last} at step {to}; lowest {lowest} at step {at}.",
        {
            first: say(first),
            from: first.step,
            last: say(last),
            to: last.step,
            lowest: say(lowest),
            at: lowest.step,
        },
    );
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} text
 * @param {"middle" | "end"} anchor
 */
const label = (x, y, text, anchor) =>
    svg("text", { x, y, "text-anchor": anchor, class: "lora-trainer-chart-label" }, text);

/**
 * @param {number} from
 * @param {number} to
 * @param {number} y
 * @param {string} text
 */
const grid = (from, to, y, text) => [
    svg("line", { x1: from, x2: to, y1: y, y2: y, class: "lora-trainer-chart-grid" }),
    label(from - 6, y + 4, text, "end"),
];

/** The axes and their words. */
function frame(/** @type {number} */ width) {
    return [
        svg("line", {
            x1: MARGIN.left,
            x2: width - MARGIN.right,
            y1: HEIGHT - MARGIN.bottom,
            y2: HEIGHT - MARGIN.bottom,
            class: "lora-trainer-chart-axis",
        }),
        label(width - MARGIN.right, HEIGHT - 4, t("Step"), "end"),
        svg(
            "text",
            {
                x: -MARGIN.top,
                y: 12,
                transform: "rotate(-90)",
                "text-anchor": "end",
                class: "lora-trainer-chart-label",
            },
            t("Loss"),
        ),
    ];
}

/**
 * The lines of these points, with their grid.
 *
 * @param {Point[]} shown
 * @param {number} width
 * @param {number} stepCount
 */
function curves(shown, width, stepCount) {
    const [low, high] = range(shown);
    const last = Math.max(stepCount, ...numbers(shown.slice(-1), 0), 1);
    const x = (/** @type {number} */ step) =>
        MARGIN.left + (step / last) * (width - MARGIN.left - MARGIN.right);
    const y = (/** @type {number} */ value) => {
        const share = (value - low) / (high - low || 1);
        return (
            MARGIN.top +
            (1 - Math.min(1, Math.max(0, share))) * (HEIGHT - MARGIN.top - MARGIN.bottom)
        );
    };
    const path = (/** @type {number} */ at) =>
        shown
            .map((point) => [point[0], point[at]].filter(isNumber))
            .filter((pair) => pair.length === 2)
            .map(([step, value]) => x(step).toFixed(1) + "," + y(value).toFixed(1))
            .join(" ");
    return [
        frame(width),
        ticks(low, high, 4).map((value) =>
            grid(
                MARGIN.left,
                width - MARGIN.right,
                y(value),
                formatNumber(value, high < 0.1 ? 3 : 2),
            ),
        ),
        ticks(0, last, Math.max(2, Math.min(8, Math.floor(width / 90)))).map((step) =>
            label(x(step), HEIGHT - MARGIN.bottom + 14, formatNumber(step), "middle"),
        ),
        svg("polyline", { class: "lora-trainer-chart-raw", points: path(1) }),
        svg("polyline", { class: "lora-trainer-chart-line", points: path(2) }),
    ];
}

/** {element, set(points, stepCount)}; it redraws when its width changes. */
export function lossChart() {
    const drawing = svg("svg", { class: "lora-trainer-chart", role: "img", height: HEIGHT });
    const words = widgets.help();
    const element = el("figure.lora-trainer-chart-figure", drawing, words);
    /** @type {Point[]} */
    let points = [];
    let stepCount = 0,
        width = 0;

    function draw() {
        width = element.clientWidth;
        if (!width) return;
        drawing.setAttribute("width", String(width));
        drawing.setAttribute("viewBox", "0 0 " + width + " " + HEIGHT);
        const text = summary(points);
        drawing.setAttribute("aria-label", text);
        words.textContent = text;
        const shown = points.filter((point) => isNumber(point[1]));
        fill(drawing, shown.length ? curves(shown, width, stepCount) : frame(width));
    }

    new ResizeObserver(() => {
        if (element.clientWidth !== width) draw();
    }).observe(element);
    return {
        element,
        set(/** @type {Point[]} */ now, /** @type {number} */ count) {
            const [a, b] = [now[now.length - 1], points[points.length - 1]];
            if (now.length === points.length && count === stepCount && String(a) === String(b))
                return;
            [points, stepCount] = [now.slice(), count];
            draw();
        },
    };
}
