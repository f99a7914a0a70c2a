"""Line charts as SVG: series of (x, y) -> Markup. Colours are classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.report.elements import Markup, tag

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 12, 40
MOST_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series of a chart. `kind`: its class; `dots`: whether its points are marked."""

    title: str
    points: Sequence[tuple[float, float]]
    kind: str
    dots: bool = True


def chart(
    lines: Sequence[Line], *, across: str, up: str, mark: float | None = None
) -> Markup | None:
    """The lines over common axes; `mark`: an x to point out. None without two points."""
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    axes = _Axes.around([point for line in lines for point in line.points])
    return tag(
        "figure",
        tag(
            "svg",
            axes.grid(),
            axes.words(across, up),
            axes.mark(mark),
            [_drawn(line, axes) for line in lines],
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=", ".join(_in_words(line) for line in lines),
        ),
        tag(
            "figcaption",
            [tag("span", line.title, class_=f"key {line.kind}") for line in lines],
        ),
        class_="chart",
    )


@dataclass(frozen=True)
class _Axes:
    """Data -> pixels."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> _Axes:
        x = [point[0] for point in points]
        y = sorted(point[1] for point in points)
        # a few spikes must not press the lines flat
        low, high = y[0], y[min(len(y) - 1, math.ceil(len(y) * 0.99))]
        room = (high - low or abs(high) or 1.0) * 0.08
        return cls(
            min(x), max(x) if max(x) > min(x) else min(x) + 1, max(0.0, low - room), high + room
        )

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low or 1.0)))
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[Markup]:
        bottom = HEIGHT - BOTTOM
        across = [
            tag("text", _number(value), x=f"{self.x(value):.1f}", y=bottom + 16, class_="middle")
            for value in ticks(self.left, self.right, 7)
        ]
        up = [
            part
            for value in ticks(self.low, self.high, 4)
            for part in (
                tag(
                    "line",
                    x1=LEFT,
                    x2=WIDTH - RIGHT,
                    y1=f"{self.y(value):.1f}",
                    y2=f"{self.y(value):.1f}",
                    class_="grid",
                ),
                tag("text", _number(value), x=LEFT - 8, y=f"{self.y(value) + 4:.1f}", class_="end"),
            )
        ]
        axis = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis")
        return [*up, *across, axis]

    def words(self, across: str, up: str) -> list[Markup]:
        return [
            tag("text", across, x=WIDTH - RIGHT, y=HEIGHT - 6, class_="end"),
            tag("text", up, x=-TOP, y=14, transform="rotate(-90)", class_="end"),
        ]

    def mark(self, value: float | None) -> Markup | None:
        if value is None or not self.left <= value <= self.right:
            return None
        at = f"{self.x(value):.1f}"
        return tag("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")


def _drawn(line: Line, axes: _Axes) -> list[Markup]:
    points = [(axes.x(x), axes.y(y)) for x, y in thinned(line.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3) for x, y in points]
    return [
        tag("polyline", points=path, class_=f"line {line.kind}"),
        *([tag("g", dots, class_=f"dots {line.kind}")] if line.dots else []),
    ]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS, evenly spaced, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stride = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(number * stride)] for number in range(MOST_POINTS)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between two numbers, about `count` of them."""
    raw = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    stride = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * 0.999)
    first = math.ceil(low / stride - 1e-9)
    last = math.floor(high / stride + 1e-9)
    return [number * stride for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _in_words(line: Line) -> str:
    first, last = line.points[0], line.points[-1]
    return (
        f"{line.title}: {first[1]:.4g} at {_number(first[0])}, {last[1]:.4g} at {_number(last[0])}"
    )
