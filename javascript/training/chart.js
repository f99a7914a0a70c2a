/*
 * The loss curve: [step, loss, smoothed loss] points, and losses under fixed noise -> an inline SVG
 * with a legend and a text alternative.
 *
 * The smoothed loss is a line; raw losses are faint behind it, because they are mostly noise. Used
 * by the live view.
 */
import { el, fill, svg } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";
import * as widgets from "../common/widgets.js";

/** @import { LiveView } from "../common/answers" */

const HEIGHT = 220;

/** Right margin: half the width of the last step's label, such as 100,000, which is centred. */
const MARGIN = { top: 10, right: 26, bottom: 34, left: 52 };

/** @typedef {LiveView["points"][number]} Point step, loss, smoothed loss */

/** @typedef {LiveView["validations"][number]} Validation */

/** Curves under fixed noise, by their key in Validation. */
const FIXED = /** @type {const} */ (["validation", "training"]);

/** @returns {value is number} whether it can be drawn */
const isNumber = (/** @type {number | null | undefined} */ value) => Number.isFinite(value);

/**
 * About `count` round tick values between two numbers.
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

/** The finite values at an index of the points. */
const numbers = (/** @type {Point[]} */ points, /** @type {number} */ at) =>
    points.map((point) => point[at]).filter((value) => isNumber(value));

/**
 * The values of a curve under fixed noise, with their steps.
 *
 * @param {Validation[]} validations
 * @param {typeof FIXED[number]} key
 */
const fixed = (validations, key) =>
    validations.flatMap(({ step, [key]: value }) => (isNumber(value) ? [{ step, value }] : []));

/**
 * The range of values to show. A few spikes of the raw loss must not compress the line.
 *
 * @param {Point[]} points
 * @param {Validation[]} validations
 */
function range(points, validations) {
    const raw = numbers(points, 1).sort((a, b) => a - b);
    const lines = [
        ...numbers(points, 2),
        ...FIXED.flatMap((key) => fixed(validations, key).map(({ value }) => value)),
    ];
    const usual = raw.length
        ? [raw[Math.floor(raw.length * 0.02)], raw[Math.ceil(raw.length * 0.98) - 1]]
        : [];
    const low = Math.min(...usual, ...lines);
    const high = Math.max(...usual, ...lines);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [Math.max(0, low - room), high + room];
}

/** @typedef {LiveView["run"]["data"]} Data what is trained on */

/** A curve's name. */
const names = (/** @type {Data} */ data) => ({
    smoothed: t("Smoothed loss"),
    validation: data === "texts" ? t("Held-out texts") : t("Held-out images, fixed noise"),
    training: data === "texts" ? t("Training texts") : t("Training images, fixed noise"),
});

/**
 * A curve as text.
 *
 * @param {string} name
 * @param {{step: number, value: number}[]} known
 */
function inText(name, known) {
    const [first, last] = [known[0], known[known.length - 1]];
    const lowest = known.reduce((best, point) => (point.value < best.value ? point : best));
    const format = (/** @type {{value: number}} */ { value }) => formatNumber(value, 4);
    return t(
        "{curve}: {first} at step {from}, {last} at step {to}; lowest {lowest} at step {at}.",
        {
            curve: name,
            first: format(first),
            from: first.step,
            last: format(last),
            to: last.step,
            lowest: format(lowest),
            at: lowest.step,
        },
    );
}

/**
 * @param {Point[]} points
 * @param {Validation[]} validations
 * @param {Data} data
 */
function summary(points, validations, data) {
    const known = points.flatMap(([step, loss, smoothed]) => {
        const value = isNumber(smoothed) ? smoothed : loss;
        return isNumber(step) && isNumber(value) ? [{ step, value }] : [];
    });
    if (!known.length) return t("No loss has been measured yet.");
    const held = fixed(validations, "validation");
    return [
        inText(names(data).smoothed, known),
        ...(held.length ? [inText(names(data).validation, held)] : []),
    ].join(" ");
}

/** The legend; empty without fixed noise. */
function legend(/** @type {Validation[]} */ validations, /** @type {Data} */ data) {
    const curves = FIXED.filter((key) => fixed(validations, key).length);
    const shown = curves.length ? /** @type {const} */ (["smoothed", ...curves]) : [];
    return shown.map((key) => {
        const piece = svg("line", { x1: 0, x2: 22, y1: 5, y2: 5, class: lineClass(key) });
        const sample = svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, piece);
        return el("li", sample, names(data)[key]);
    });
}

const lineClass = (/** @type {keyof ReturnType<typeof names>} */ key) =>
    key === "smoothed" ? "lora-trainer-chart-line" : "lora-trainer-chart-" + key;

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

/** The axes and their labels. */
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
 * The lines of these points, with grid lines.
 *
 * @param {Point[]} shown
 * @param {Validation[]} validations
 * @param {number} width
 * @param {number} stepCount
 */
function curves(shown, validations, width, stepCount) {
    const [low, high] = range(shown, validations);
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
        FIXED.map((key) => {
            const places = fixed(validations, key).map(({ step, value }) => [x(step), y(value)]);
            return [
                svg("polyline", {
                    class: lineClass(key),
                    points: places
                        .map((place) => place.map((at) => at.toFixed(1)).join())
                        .join(" "),
                }),
                places.map(([cx, cy]) => svg("circle", { cx, cy, r: 2.5, class: lineClass(key) })),
            ];
        }),
    ];
}

/** {element, set(points, validations, stepCount, data)}; redrawn when its width changes. */
export function lossChart() {
    const drawing = svg("svg", { class: "lora-trainer-chart", role: "img", height: HEIGHT });
    const words = widgets.help();
    const curveNames = el("ul.lora-trainer-chart-legend");
    const element = el("figure.lora-trainer-chart-figure", drawing, curveNames, words);
    /** @type {Point[]} */
    let points = [];
    /** @type {Validation[]} */
    let validations = [];
    /** @type {Data} */
    let data = "images";
    let stepCount = 0,
        width = 0;

    function draw() {
        width = element.clientWidth;
        if (!width) return;
        drawing.setAttribute("width", String(width));
        drawing.setAttribute("viewBox", "0 0 " + width + " " + HEIGHT);
        const text = summary(points, validations, data);
        drawing.setAttribute("aria-label", text);
        words.textContent = text;
        const shown = points.filter((point) => isNumber(point[1]));
        fill(curveNames, legend(validations, data));
        const isEmpty = !shown.length && !FIXED.some((one) => fixed(validations, one).length);
        fill(drawing, isEmpty ? frame(width) : curves(shown, validations, width, stepCount));
    }

    new ResizeObserver(() => {
        if (element.clientWidth !== width) draw();
    }).observe(element);
    return {
        element,
        /**
         * @param {Point[]} now
         * @param {Validation[]} checks
         * @param {number} count
         * @param {Data} of
         */
        set(now, checks, count, of) {
            const mark = (/** @type {Point[]} */ found, /** @type {Validation[]} */ known) =>
                JSON.stringify([found.length, found[found.length - 1], known]);
            const isSame = count === stepCount && of === data;
            if (isSame && mark(now, checks) === mark(points, validations)) return;
            [points, validations, stepCount, data] = [now.slice(), checks, count, of];
            draw();
        },
    };
}
