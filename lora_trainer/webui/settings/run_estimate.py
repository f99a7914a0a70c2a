"""Estimates a run before it starts: steps, time, disk space, size and name of its LoRA.

From valid settings, images and the checkpoint's header, with the worker's own functions
(dataset.buckets, settings.settle). preflight.py makes sentences of the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lora_trainer.adapters.size import parameter_count
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.dataset import buckets as bucketing
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.held_out import divide
from lora_trainer.dataset.scan import Dataset
from lora_trainer.errors import CheckpointError
from lora_trainer.families.base import Family, Shape
from lora_trainer.lora.deliver import clean_name, used_names
from lora_trainer.planner import formula, throughput
from lora_trainer.planner.plan import Plan, make_plan, of_share, process_count
from lora_trainer.planner.throughput import Throughput
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.webui.settings.checkpoints import CheckpointFacts

STATE_BYTES = 12
"""Bytes per LoRA weight in a resume point: float32 weights and AdamW's two moments. Two are kept.
"""
FILE_BYTES = 2
"""Bytes per weight in a LoRA file: float16."""
PREVIEW_BYTES = 1.5
"""Approximate bytes per pixel of a preview PNG."""
HELD_NAMES_SECONDS = 5.0
USUAL_RESOLUTION = 512
"""For checkpoints of unknown resolution."""


class RunEstimate:
    """A run's estimate. checkpoint: base model; facts: from its header."""

    def __init__(
        self, asked: RunConfig, dataset: Dataset, checkpoint: Path, facts: CheckpointFacts
    ) -> None:
        self._dataset, self._checkpoint, self._family = dataset, checkpoint, facts.family
        self._is_distilled = facts.is_distilled
        self.divided = divide(dataset, asked.validation.validation_split, asked.training.seed)
        """The images to train on, and those held out."""
        examples = self.divided.trained.examples
        # SD2 is 512 or 768, known only when it is loaded: the smaller numbers are shown, with a
        # note
        self.is_certain = asked.dataset.resolution is not None or facts.resolution is not None
        usual = USUAL_RESOLUTION if facts.family is None else facts.family.usual_resolution
        self.resolution = asked.dataset.resolution or facts.resolution or usual
        self.buckets = bucketing.assign(examples, asked.dataset, self.resolution)
        repeats = [example.repeats for example in examples]
        training = asked.training
        self._steps_per_epoch = bucketing.steps_per_epoch(
            self.buckets, repeats, training.batch_size, training.gradient_accumulation_steps
        )
        self.steps = settings.step_count_of(training, self._steps_per_epoch)
        self.images = self.steps / self._steps_per_epoch * sum(repeats)
        """Number of training samples."""
        self.settled = settings.settle(asked, self.resolution, self.steps)
        """The settings with every `auto` resolved that follows from resolution and steps."""

    def seconds(self, known: Throughput) -> float | None:
        """Approximate duration. None: unknown, without an earlier run of the same kind."""
        if not self.is_certain:
            return None
        samples = self.settled.samples
        rounds = (
            (self.steps - 1) // (samples.sample_every or self.steps)
            if samples.sample_prompts
            else 0
        )
        return known.seconds(
            throughput.kind_of(
                self.settled, self._family.id if self._family else "", self.resolution
            ),
            self.images,
            rounds,
        )

    @cached_property
    def weights(self) -> int | None:
        """Number of LoRA weights. None: the checkpoint's layers have unusual names (the worker
        reports it).
        """
        try:
            family, layers = _layers(self._checkpoint, self._checkpoint.stat().st_mtime_ns)
            return parameter_count(family, layers, self.settled.lora)
        except (CheckpointError, OSError):
            return None

    def memory(self, card_bytes: int, cards: int) -> Plan | None:
        """The memory of the run on a graphics card of this size, of `cards` in this machine. None:
        unknown for this architecture or type of LoRA.
        """
        if not self.is_certain or not self.weights:
            return None
        family, layers = _layers(self._checkpoint, self._checkpoint.stat().st_mtime_ns)
        precision: formula.Precision = (
            "full" if self.settled.checkpoint.mixed_precision == "no" else "half"
        )

        def step(config: RunConfig) -> formula.StepBytes | None:
            return formula.predict(family, layers, config, precision)

        blocks = formula.block_count(family, layers)
        share = of_share(step, process_count(self.settled.training.devices, cards))
        return make_plan(self.settled, share, "cuda", card_bytes, blocks)

    @property
    def file_bytes(self) -> int:
        """Size of a LoRA file."""
        return (self.weights or 0) * FILE_BYTES

    @property
    def disk_bytes(self) -> int:
        """Saved LoRA files, the two final ones and the delivered copy, two resume points, previews,
        and caches.
        """
        output, samples = self.settled.output, self.settled.samples
        saves = (self.steps - 1) // (output.save_steps or self.steps)
        if output.save_epochs:
            saves += self.steps // (self._steps_per_epoch * output.save_epochs)
        saves = min(saves, output.keep_last or saves)
        previews = (
            len(samples.sample_prompts)
            * len(samples.sample_strengths)
            * (1 + (self.steps - 1) // (samples.sample_every or self.steps))
        )
        preview_bytes = int(previews * (samples.sample_size or 512) ** 2 * PREVIEW_BYTES)
        return (
            self.file_bytes * (saves + 3)
            + 2 * (self.weights or 0) * STATE_BYTES
            + preview_bytes
            + self._cache_bytes()
        )

    def _cache_bytes(self) -> int:
        pixels = sum(
            bucket.width * bucket.height * len(indices) for bucket, indices in self.buckets.items()
        )
        captions = sum(
            len(variants(example.caption)) if "\n" in example.caption else 1
            for example in self._dataset.examples
        )
        mirrored = self.settled.dataset.flip_augmentation
        size = self._family.cache_bytes(pixels, captions, mirrored) if self._family else 0
        return size if settings.caches_on_disk(self.settled.training.cache_latents, size) else 0

    def target(self, name: str, pending: Iterable[str] = ()) -> str:
        """Path of the LoRA called `name`, relative to the folder that contains models. `pending`:
        names of runs queued before it.
        """
        lora_dir = self.settled.output.lora_dir
        assert lora_dir is not None
        wanted = clean_name(name)
        taken = set(_held_names(lora_dir, int(time.monotonic() / HELD_NAMES_SECONDS)))
        for before in pending:
            taken.add(_free(clean_name(before), taken).casefold())
        return f"{lora_dir.parent.name}/{lora_dir.name}/{_free(wanted, taken)}.safetensors"

    @property
    def resolved(self) -> dict[str, Any]:
        """Config key -> value for auto."""
        values = settings.to_mapping(self.settled)
        keys = ["resolution", "max_train_steps", *settings.SETTLED]
        if self._family is not None:
            samples = self._family.sampling(self.settled.samples, is_distilled=self._is_distilled)
            values |= samples
            keys += samples
        return {
            key: values[key]
            for key in keys
            if self.is_certain or key not in ("resolution", "sample_size")
        }


@lru_cache(maxsize=4)
def _layers(path: Path, _changed: int) -> tuple[Family, dict[str, list[tuple[str, Shape]]]]:
    detected = detect_any(path)
    return detected.family, detected.family.layer_shapes(path, detected)


def _free(wanted: str, taken: Collection[str]) -> str:
    """The name after delivery: `wanted`, or wanted-2 ... if it is in use."""
    free, number = wanted, 2
    while free.casefold() in taken:
        free, number = f"{wanted}-{number}", number + 1
    return free


@lru_cache(maxsize=2)
def _held_names(lora_dir: Path, _moment: int) -> frozenset[str]:
    """Names that a delivery avoids. Cached for HELD_NAMES_SECONDS: the folder may contain thousands
    of files.
    """
    return frozenset(used_names(lora_dir))
