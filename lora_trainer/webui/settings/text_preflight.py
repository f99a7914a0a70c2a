"""The plan of a training on texts: the texts and the findings about them, steps, size of the LoRA,
disk space.

    text_plan(asked, store, facts, rehearsals) -> TextPlan
    sentence(plan, ...), facts_of(plan, ...), number_problems(plan), suggested(plan)

Called by preflight.py, which makes the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_trainer.dataset import buckets as bucketing
from lora_trainer.dataset.findings import Finding, sums
from lora_trainer.errors import ConfigError, DatasetError, Message
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.webui.common import form
from lora_trainer.webui.common.units import size_of
from lora_trainer.webui.datasets.text_store import TextStore, TextView
from lora_trainer.webui.settings.checkpoints import CheckpointFacts
from lora_trainer.webui.settings.rehearsals import Rehearsals, Rehearsed

FILE_BYTES = 4
"""Bytes per weight in PEFT's file: float32."""
STATE_BYTES = 12
"""Bytes per weight in a resume point, as in run_estimate.py."""


def chosen_values(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The form's settings that apply to texts."""
    return {key: value for key, value in chosen.items() if key not in form.ONLY_FOR_IMAGES}


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """The plan of a training on texts. steps: None while the dry run is being computed, or if it
    found errors.
    """

    view: TextView
    settled: RunConfig
    rehearsal: Rehearsed | None
    steps: int | None
    steps_per_epoch: int

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings about the texts."""
        too_long = self.rehearsal.findings if self.rehearsal else ()
        return (*self.view.findings, *too_long)

    @property
    def weights(self) -> int:
        """Number of LoRA weights; 0: unknown."""
        width = self.rehearsal.width if self.rehearsal else 0
        return width * (self.settled.lora.lora_rank or settings.DEFAULT_RANK)

    def disk_bytes(self, facts: CheckpointFacts) -> int:
        """Saved LoRAs, two resume points, and the merged model."""
        steps, output = self.steps or 1, self.settled.output
        saves = (steps - 1) // (output.save_steps or steps)
        saves = min(saves, output.keep_last or saves)
        merged = facts.language.byte_count if facts.language else 0
        return (
            self.weights * FILE_BYTES * (saves + 2)
            + 2 * self.weights * STATE_BYTES
            + (merged if self.settled.language.merge_lora else 0)
        )

    @property
    def resolved(self) -> dict[str, Any]:
        """Config key -> value for auto."""
        values = settings.to_mapping(self.settled)
        keys = ("max_train_steps", "lora_rank", "lora_alpha", "learning_rate", "weight_decay")
        found = {key: values[key] for key in (*keys, "save_steps", "sample_every")}
        if self.rehearsal is not None and self.rehearsal.max_length:
            found["max_length"] = self.rehearsal.max_length
        return found


def text_plan(
    asked: RunConfig, store: TextStore, facts: CheckpointFacts, rehearsals: Rehearsals
) -> TextPlan:
    """Make the plan. Raises DatasetError for a dataset without texts."""
    view = store.view()
    if not view.items:
        raise DatasetError(
            "there are no texts yet",
            hint="Add files with question and answer pairs, or plain texts.",
        )
    errors = [one for one in view.findings if one.severity == "error"]
    skips = asked.dataset.on_bad_data == "skip"
    rehearsal = None
    if facts.problem is None and (skips or not errors):
        language = facts.language
        mark = f"{view.revision} {language}"
        rehearsal = rehearsals.of(asked, mark)
    per_epoch = 0
    steps: int | None = None
    if rehearsal is not None and rehearsal.row_count:
        training = asked.training
        per_epoch = bucketing.steps_per_epoch(
            {0: range(rehearsal.row_count)},
            [1] * rehearsal.row_count,
            training.batch_size,
            training.gradient_accumulation_steps,
        )
        steps = settings.step_count_of(training, per_epoch)
    return TextPlan(
        view=view,
        settled=settings.settle(asked, None, steps or 1),
        rehearsal=rehearsal,
        steps=steps,
        steps_per_epoch=per_epoch,
    )


def number_problems(plan: TextPlan) -> Iterator[ConfigError]:
    """Settings that conflict with the number of steps."""
    if plan.steps is not None:
        try:
            settings.require_warmup_fits(plan.settled.training, plan.steps)
        except ConfigError as error:
            yield error


def sentence(plan: TextPlan, name: str, model: str, disk: int) -> Iterator[Message]:
    rehearsal = plan.rehearsal
    if rehearsal is None or plan.steps is None:
        return
    count = rehearsal.text_count
    yield Message(
        "Trains {steps} steps on one text, with {model}."
        if count == 1
        else "Trains {steps} steps on {count} texts, with {model}.",
        {"steps": plan.steps, "count": count, "model": model},
    )
    yield Message(
        "How long it takes is known after the first steps; it needs about {disk} of disk space.",
        {"disk": size_of(disk)},
    )
    yield Message(
        "The LoRA will be the folder {name} in the run's folder, in PEFT's format.", {"name": name}
    )


def facts_of(plan: TextPlan, disk: int) -> Iterator[tuple[str, Message | str]]:
    """(key of preflight.FACTS, value) for each fact."""
    rehearsal = plan.rehearsal
    if rehearsal is None or plan.steps is None:
        return
    yield (
        "texts",
        Message(
            "{count}, {tokens} tokens learned",
            {
                "count": f"{rehearsal.text_count:,}",
                "tokens": f"{rehearsal.learned:,}",
            },
        ),
    )
    if rehearsal.held_out_count:
        one, several = "1 text, not trained on", "{count} texts, not trained on"
        yield (
            "validation",
            Message(
                one if rehearsal.held_out_count == 1 else several,
                {"count": rehearsal.held_out_count},
            ),
        )
    times = plan.steps / plan.steps_per_epoch
    shown = f"{times:.0f}" if times >= 10 else f"{times:.2g}"
    yield (
        "steps",
        Message("{steps}: each text is seen {times} times", {"steps": plan.steps, "times": shown}),
    )
    yield "length", Message("at most {count} tokens", {"count": rehearsal.max_length})
    yield "layers", ", ".join(rehearsal.targets)
    yield "lora", lora_words(plan.weights, plan.weights * FILE_BYTES)
    yield "disk", Message("about {disk}", {"disk": size_of(disk)})


def lora_words(weight_count: int, file_bytes: int) -> Message:
    """A LoRA's weights and the size of its file."""
    size = size_of(file_bytes)
    if weight_count < 1e6:
        return Message(
            "{count} weights, a file of {size}", {"count": f"{weight_count:,}", "size": size}
        )
    return Message(
        "{count} million weights, a file of {size}",
        {"count": f"{weight_count / 1e6:.3g}", "size": size},
    )


def suggested(plan: TextPlan) -> dict[str, Any]:
    """A sample question: the first one that is trained on."""
    for example in plan.view.examples:
        for message in example.messages:
            if message.role == "user":
                return {"sample_prompts": [" ".join(message.content.split())]}
    return {"sample_prompts": []}


def summed(plan: TextPlan) -> list[Any]:
    """The findings, by kind."""
    return sums(plan.findings)
