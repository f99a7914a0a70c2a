"""The parts of the report, and the page around them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from lora_trainer import __version__, files
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.scan import Example
from lora_trainer.report.curves import Line, chart
from lora_trainer.report.elements import Markup, joined, table, tag
from lora_trainer.report.images import data_uri
from lora_trainer.report.style import STYLE
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import schema, training
from lora_trainer.settings.training import RunConfig
from lora_trainer.verdict import Measurements, Verdict
from lora_trainer.verdict.measurements import Series

MOST_IMAGES = 200
MOST_SAVES = 12
THUMBNAIL, PREVIEW = 160, 256
"""Sides in pixels."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    folder: RunFolder,
    measurements: Measurements,
    verdict: Verdict | None,
    examples: Sequence[Example],
) -> str:
    """The whole document."""
    history = folder.read_events()
    config = measurements.config
    title = config.lora.name or folder.path.name
    body = tag(
        "main",
        tag("h1", title),
        tag("p", _summary(history, measurements), class_="summary"),
        _verdict(verdict),
        _curves(measurements, verdict),
        _previews(folder, verdict),
        _answers(folder),
        _measurements(verdict),
        _images(examples),
        _settings(config, measurements.data),
        _versions(folder, history),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", body), lang="en") + "\n"


def _section(title: str, *parts: object) -> Markup | None:
    """A section with a heading; None if it has no content."""
    content = joined(parts)
    return tag("section", tag("h2", title), content) if content else None


def _summary(history: Iterable[events.Event], measurements: Measurements) -> str:
    planned = next((one for one in history if isinstance(one, events.Planned)), events.Planned())
    config = measurements.config
    facts = [
        f"{measurements.step:,} of {measurements.step_count:,} steps",
        f"{measurements.image_count:,} {measurements.data}" if measurements.image_count else "",
        f"{planned.resolution} px" if planned.resolution else "",
        last_part(str(config.checkpoint.base_model)),
        f"rank {config.lora.lora_rank}" if config.lora.lora_rank else "",
    ]
    return " \u00b7 ".join(fact for fact in facts if fact)


# --- verdict --------------------------------------------------------------------------------------


def _verdict(verdict: Verdict | None) -> Markup | None:
    if verdict is None:
        return _section("Verdict", tag("p", "Nothing was saved, so there is nothing to evaluate."))
    first, *others = (str(sentence) for sentence in verdict.sentences)
    return _section(
        "Verdict",
        tag("p", first, class_="best"),
        tag("p", " ".join(others)) if others else None,
        [
            tag(
                "div",
                tag("p", str(one.sentence)),
                tag("p", str(one.advice), _changed(one.changes), class_="advice"),
                class_="finding",
            )
            for one in verdict.findings
        ],
    )


def _changed(changes: Mapping[str, Any]) -> Markup | None:
    """Settings for the next run, as in its YAML file."""
    if not changes:
        return None
    return joined([" ", tag("code", schema.dump(changes).strip().replace("\n", "; "))])


# --- curves ---------------------------------------------------------------------------------------


def _curves(measurements: Measurements, verdict: Verdict | None) -> Markup | None:
    best = verdict.best_step if verdict else None
    charts = [
        chart(
            _two_lines(
                (f"held-out {measurements.data}", measurements.held_out),
                (f"trained {measurements.data}", measurements.training),
            ),
            across="step",
            up="loss" if measurements.data == "texts" else "loss, same noise",
            mark=best,
        ),
        chart(_strength_lines(measurements, best), across="strength", up="loss"),
        chart(
            _two_lines(
                (
                    "similarity to the training images",
                    measurements.series(lambda one: one.likeness),
                ),
                ("prompt adherence", measurements.series(lambda one: one.obedience)),
            ),
            across="step",
            up="cosine",
            mark=best,
        ),
        chart(
            _two_lines(
                ("change with captions", measurements.series(lambda one: one.prompted_change)),
                (
                    "change without captions",
                    measurements.series(lambda one: one.unprompted_change),
                ),
            ),
            across="step",
            up="share of the prediction",
            mark=best,
        ),
        chart(_step_lines(measurements), across="step", up="loss of each step"),
    ]
    shown = [one for one in charts if one is not None]
    return _section("Curves", tag("div", shown, class_="charts")) if shown else None


def _two_lines(first: tuple[str, Series], second: tuple[str, Series]) -> list[Line]:
    return [
        Line(title=first[0], points=first[1], kind="first"),
        Line(title=second[0], points=second[1], kind="second"),
    ]


def _strength_lines(measurements: Measurements, best: int | None) -> list[Line]:
    """The loss by strength, at the best step and at the last."""
    compared = [one for one in measurements.steps if one.step and one.by_strength]
    if not compared:
        return []
    chosen = next((one for one in compared if one.step == best), compared[-1])
    lines = [(chosen, "first"), (compared[-1], "second")]
    if chosen is compared[-1]:
        lines = lines[:1]
    return [
        Line(title=f"step {one.step:,}", points=tuple(one.by_strength.items()), kind=kind)
        for one, kind in lines
    ]


SMOOTHING = 0.98
"""Of the running average, at most; short runs are averaged over a tenth of their steps."""


def _step_lines(measurements: Measurements) -> list[Line]:
    """The loss of each step, and its running average."""
    raw = [(float(step), loss) for step, loss in measurements.losses if loss is not None]
    smoothed: list[tuple[float, float]] = []
    average = weight = 0.0
    kept = max(0.0, min(SMOOTHING, 1 - 10 / max(1, len(raw))))
    for step, loss in raw:
        average = kept * average + (1 - kept) * loss
        weight = kept * weight + (1 - kept)
        smoothed.append((step, average / weight))
    return [
        Line(title="each step", points=raw, kind="faint", dots=False),
        Line(title="running average", points=smoothed, kind="first", dots=False),
    ]


# --- images -------------------------------------------------------------------------------------


def _previews(folder: RunFolder, verdict: Verdict | None) -> Markup | None:
    """A grid for each prompt: a row for each step, a column for each strength."""
    previews = [
        one for one in folder.read_state().previews if _is_inside(folder, folder.path / one.file)
    ]
    steps = _spread(
        sorted({one.step for one in previews}), keep=verdict.best_step if verdict else None
    )
    by_prompt: dict[str, dict[tuple[int, float], Path]] = {}
    for one in previews:
        place = by_prompt.setdefault(one.prompt, {})
        place[(one.step, one.strength)] = folder.path / one.file
    grids = [_grid(prompt, found, steps, verdict) for prompt, found in by_prompt.items()]
    return _section("Previews", grids)


def _answers(folder: RunFolder) -> Markup | None:
    """What a language model answered."""
    rows = [
        (f"{one.step:,}", f"{one.strength:g}", one.prompt, one.answer)
        for one in folder.read_state().answers
    ]
    if not rows:
        return None
    head = ("step", "strength", "prompt", "answer")
    return _section("Answers", tag("div", table(head, rows), class_="wide"))


def _spread(steps: list[int], keep: int | None) -> list[int]:
    """At most MOST_SAVES of the steps, evenly spaced, with the last one and `keep`."""
    if len(steps) <= MOST_SAVES:
        return steps
    stride = (len(steps) - 1) / (MOST_SAVES - 1)
    chosen = {steps[round(number * stride)] for number in range(MOST_SAVES)}
    return sorted(chosen | {step for step in steps if step == keep})


def _is_inside(folder: RunFolder, path: Path) -> bool:
    """Whether a preview that an event names is the run's own."""
    return path.resolve().parent == folder.previews.resolve()


def _grid(
    prompt: str,
    found: Mapping[tuple[int, float], Path],
    steps: Sequence[int],
    verdict: Verdict | None,
) -> Markup:
    strengths = sorted({strength for _, strength in found})
    rows = []
    for step in steps:
        is_best = verdict is not None and step == verdict.best_step
        cells = [
            tag("td", _image(found.get((step, strength)), PREVIEW, f"step {step}, {strength:g}"))
            for strength in strengths
        ]
        label = f"{step:,}" if step else "before"
        row = [tag("th", label, " best" if is_best else None), *cells]
        rows.append(tag("tr", row, class_="chosen" if is_best else None))
    head = tag("tr", tag("th", "step"), [tag("th", f"strength {value:g}") for value in strengths])
    return tag(
        "div",
        tag("h3", prompt),
        tag("table", tag("thead", head), tag("tbody", rows), class_="grid"),
        class_="wide",
    )


def _image(path: Path | None, side: int, alt: str) -> Markup | None:
    uri = data_uri(path, side) if path is not None else None
    return tag("img", src=uri, alt=alt) if uri else None


def _images(examples: Sequence[Example]) -> Markup | None:
    shown = [
        tag(
            "figure",
            _image(one.path, THUMBNAIL, one.name) or tag("p", "no longer there", class_="gone"),
            tag(
                "figcaption",
                tag("strong", one.name),
                [tag("p", caption) for caption in variants(one.caption)],
            ),
        )
        for one in examples[:MOST_IMAGES]
    ]
    rest = len(examples) - len(shown)
    return (
        _section(
            f"Images and captions ({len(examples):,})",
            tag("div", shown, class_="sheet"),
            tag("p", f"and {rest:,} more") if rest else None,
        )
        if examples
        else None
    )


# --- tables ---------------------------------------------------------------------------------------

COLUMNS = {
    "step": "step",
    "validation_loss": "held-out loss",
    "training_loss": "trained loss",
    "prompted_change": "change",
    "unprompted_change": "without captions",
    "likeness": "similarity",
    "obedience": "prompt adherence",
    "variety": "variety",
    "nearest": "nearest image",
    "strength": "best strength",
    "quality": "quality",
    "copied": "copied",
}


def _measurements(verdict: Verdict | None) -> Markup | None:
    rows = verdict.table if verdict else ()
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    if len(keys) < 2:
        return None
    cells = [[_measured(row.get(key)) for key in keys] for row in rows]
    return _section(
        "Measurements",
        tag("div", table([COLUMNS[key] for key in keys], cells, class_="numbers"), class_="wide"),
    )


def _measured(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _settings(config: RunConfig, data: str) -> Markup | None:
    """What differs from the defaults, then everything; without what means nothing for the data."""
    left_out = training.NOT_SHOWN_FOR_TEXTS if data == "texts" else ()
    changed: list[tuple[object, ...]] = []
    usual: list[tuple[object, ...]] = []
    for name, group in training.GROUPS:
        values = getattr(config, name)
        if data != "texts" and not group.for_images:
            continue
        for item in schema.fields_of(group):
            if item.name in left_out:
                continue
            value = getattr(values, item.name)
            row = (schema.label_of(item, data), tag("code", item.name), _shown(value))
            (usual if value == item.default else changed).append(row)
    head = ("setting", "key", "value")
    return _section(
        "Settings",
        tag("div", table(head, changed), class_="wide"),
        tag(
            "details",
            tag("summary", f"{len(usual)} at their default"),
            tag("div", table(head, usual), class_="wide"),
        ),
    )


def _shown(value: Any) -> str:
    """A setting's value; of a path only its own name, because reports are sent."""
    if isinstance(value, Path):
        return last_part(str(value))
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return "\n".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def last_part(path: str) -> str:
    """A path's last part; the path may be of another system."""
    return PureWindowsPath(path).name if "\\" in path else Path(path).name


def _versions(folder: RunFolder, history: Sequence[events.Event]) -> Markup | None:
    planned = next((one for one in history if isinstance(one, events.Planned)), None)
    versions: dict[str, Any] = files.read_json(
        folder.worker, lambda values: dict(values["versions"]), {}
    )
    started = next((one.time for one in history if isinstance(one, events.Started)), 0.0)
    ended = history[-1].time if history else 0.0
    rows: list[tuple[object, object]] = [("LoRA Trainer", __version__)]
    rows += [(str(name), str(version)) for name, version in versions.items()]
    if planned is not None:
        rows += [("device", planned.device), ("mixed precision", planned.precision)]
    if started:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
        rows += [("begun", day), ("minutes", f"{(ended - started) / 60:.1f}")]
    return _section("Versions", table(("", ""), rows, class_="plain"))
