/*
 * The loss curve: [step, loss, smoothed loss] points -> an inline SVG and a sentence that says the
 * same.
 *
 * The smoothed loss is the line; the raw losses are faint behind it, because from one step to the
 * next they are mostly noise. Called by the live view.
 */
import { el, fill, svg } from "../common/elements.js";
import { formatNumber, t } from "../common/language.js";

const HEIGHT = 220;

const MARGIN = { top: 10, right: 12, bottom: 34, left: 52 };

/** Round steps between two numbers, about `count` of them. */
function ticks(minimum, maximum, count) {
    const raw = (maximum - minimum) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const stride = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
    const found = [];
    for (let at = Math.ceil(minimum / stride); at * stride <= maximum + stride * 1e-9; at += 1)
        found.push(at * stride);
    return found;
}

/** Lowest and highest value to show. A few spikes of the raw loss must not press the line flat. */
function range(points) {
    const raw = points
        .map((point) => point[1])
        .filter(Number.isFinite)
        .sort((a, b) => a - b);
    const smoothed = points.map((point) => point[2]).filter(Number.isFinite);
    const low = Math.min(raw[Math.floor(raw.length * 0.02)], ...smoothed);
    const high = Math.max(raw[Math.ceil(raw.length * 0.98) - 1], ...smoothed);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [Math.max(0, low - room), high + room];
}

function summary(points) {
    const known = points
        .map(([step, loss, smoothed]) => [step, Number.isFinite(smoothed) ? smoothed : loss])
        .filter(([, value]) => Number.isFinite(value));
    if (!known.length) return t("No loss has been measured yet.");
    const [first, last] = [known[0], known[known.length - 1]];
    const lowest = known.reduce((best, point) => (point[1] < best[1] ? point : best));
    const say = (value) => formatNumber(value, 4);
    return t(
        "Smoothed loss: {first} at step {from}, {last} at step {to}; lowest {lowest} at step {at}.",
        {
            first: say(first[1]),
            from: first[0],
            last: say(last[1]),
            to: last[0],
            lowest: say(lowest[1]),
            at: lowest[0],
        },
    );
}

const label = (x, y, text, anchor) =>
    svg("text", { x, y, "text-anchor": anchor, class: "lora-trainer-chart-label" }, text);

const grid = (from, to, y, text) => [
    svg("line", { x1: from, x2: to, y1: y, y2: y, class: "lora-trainer-chart-grid" }),
    label(from - 6, y + 4, text, "end"),
];

/** The axes and their words. */
function frame(width) {
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

/** The lines of these points, with their grid. */
function curves(shown, width, stepCount) {
    const [low, high] = range(shown);
    const last = Math.max(stepCount || 0, shown[shown.length - 1][0], 1);
    const x = (step) => MARGIN.left + (step / last) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => {
        const share = (value - low) / (high - low || 1);
        return (
            MARGIN.top +
            (1 - Math.min(1, Math.max(0, share))) * (HEIGHT - MARGIN.top - MARGIN.bottom)
        );
    };
    const path = (at) =>
        shown
            .filter((point) => Number.isFinite(point[at]))
            .map((point) => x(point[0]).toFixed(1) + "," + y(point[at]).toFixed(1))
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
    const words = el("p", { class: "lora-trainer-help" });
    const element = el("figure", { class: "lora-trainer-chart-figure" }, drawing, words);
    let points = [],
        stepCount = 0,
        width = 0;

    function draw() {
        width = drawing.parentElement.clientWidth;
        if (!width) return;
        drawing.setAttribute("width", width);
        drawing.setAttribute("viewBox", "0 0 " + width + " " + HEIGHT);
        const text = summary(points);
        drawing.setAttribute("aria-label", text);
        words.textContent = text;
        const shown = points.filter((point) => Number.isFinite(point[1]));
        if (!shown.length) {
            fill(drawing, frame(width));
            return;
        }
        fill(drawing, curves(shown, width, stepCount));
    }

    new ResizeObserver(() => {
        if (element.clientWidth !== width) draw();
    }).observe(element);
    return {
        element,
        set(now, count) {
            const [a, b] = [now[now.length - 1], points[points.length - 1]];
            if (now.length === points.length && count === stepCount && String(a) === String(b))
                return;
            [points, stepCount] = [now.slice(), count];
            draw();
        },
    };
}
