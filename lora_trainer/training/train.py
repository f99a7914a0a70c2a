"""The steps of a training: batches -> gradients -> adapters. training.loop takes them.

Nothing here knows which family it trains, where the images came from or who is listening.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_trainer.adapters.injected import Adapters
from lora_trainer.dataset.buckets import Bucket, epoch_batches, steps_per_epoch
from lora_trainer.errors import NotFinite, RunError
from lora_trainer.families.base import Family, NoiseProcess
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.batches import CaptionEncoder, TrainingData
from lora_trainer.training.losses import denoising_loss
from lora_trainer.training.randomness import seed_dropout

MOST_SKIPPED = 10
"""So many steps in a row without finite numbers end the run."""
MOST_RESCALED = 40
"""Loss scaling halves its scale at each such step, from 65536: so many halvings find any scale
there is.
"""
SMOOTHING = 0.98
"""Each loss changes the smoothed loss by 2 percent."""

_LEARNING_FAILED = (
    "Set learning_rate to half. If that does not help, set mixed_precision to bf16 or no, and look"
    " at these images."
)
_NOTHING_LEARNED = (
    "learning_rate is not the cause. Set mixed_precision to bf16 or no; if that does not help, the"
    " checkpoint is broken."
)


@dataclass(kw_only=True)
class BatchSchedule:
    """Which images are trained in which step: from the seed alone, so any step can be asked for."""

    buckets: dict[Bucket, list[int]]
    repeats: Sequence[int]
    batch_size: int
    accumulation: int
    seed: int
    step_count: int
    _epoch: int = -1
    """The epoch whose batches are laid out."""
    _batches: list[Sequence[int]] = field(default_factory=list)

    @property
    def batches_per_epoch(self) -> int:
        return steps_per_epoch(self.buckets, self.repeats, self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may gather fewer batches than the others; it is a step all the
        same.
        """
        return steps_per_epoch(self.buckets, self.repeats, self.batch_size, self.accumulation)

    @property
    def epoch_count(self) -> int:
        """Epochs begun by the end of the run."""
        return math.ceil(self.step_count / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def group(self, step: int) -> list[Sequence[int]]:
        """The batches, as indices of examples, whose gradients make up `step` (counted from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._batches = [
                batch.indices
                for batch in epoch_batches(
                    self.buckets, self.repeats, self.batch_size, self.seed, epoch
                )
            ]
            self._epoch = epoch
        start = position * self.accumulation
        return self._batches[start : start + self.accumulation]


@dataclass(kw_only=True)
class SmoothedLoss:
    """A running average that forgets slowly; corrected for its start as Adam's moments are (arXiv
    1412.6980, section 3).
    """

    average: float = 0.0
    weight: float = 0.0

    def add(self, loss: float) -> None:
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float | None:
        return self.average / self.weight if self.weight else None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did. losses: of each image, in the step's order; skipped: why nothing was
    learned, else empty.
    """

    losses: list[float]
    names: list[str]
    gradient_norm: float
    seconds: float
    skipped: str = ""

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)


@dataclass(kw_only=True)
class Trainer:
    """Everything that changes while training, and the steps that change it."""

    family: Family
    unet: Any
    adapters: Adapters
    optimizer: torch.optim.Optimizer
    rates: Any
    noise_process: NoiseProcess
    data: TrainingData
    captions: CaptionEncoder
    plan: BatchSchedule
    settings: TrainingSettings
    device: torch.device
    dtype: torch.dtype
    scaler: Any = None
    """Loss scaling, for fp16 only."""
    step: int = 0
    """Steps done."""
    smoothed_loss: SmoothedLoss = field(default_factory=SmoothedLoss)
    _skipped: int = 0
    _parameters: list[torch.nn.Parameter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parameters = [parameter for _, parameter in self.adapters.parameters()]

    @property
    def epoch(self) -> int:
        """Epochs begun, from 1."""
        return self.plan.epoch_of(max(0, self.step - 1)) + 1

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.plan.step_count

    def advance(self) -> StepResult:
        """Train the next step."""
        result = self.train_step(self.plan.group(self.step))
        self.step += 1
        return result

    def require_learned(self) -> None:
        """Raises NotFinite when none of the steps was finite."""
        if not self.has_learned:
            one, several = (
                "the only step gave no finite numbers",
                "none of the {count} steps gave finite numbers, so nothing was learned",
            )
            raise NotFinite(
                one if self.step == 1 else several, hint=_NOTHING_LEARNED, count=self.step
            )

    @property
    def has_learned(self) -> bool:
        """Whether any step was finite."""
        return self.smoothed_loss.value is not None

    def train_step(self, group: list[Sequence[int]]) -> StepResult:
        """One optimizer step over the images of `group`; each image counts the same, whatever its
        batch's size.
        """
        start = time.perf_counter()
        seed_dropout(self.settings.seed, self.step)
        image_count = sum(len(indices) for indices in group)
        losses: list[torch.Tensor] = []
        names: list[str] = []
        for part, indices in enumerate(group):
            image_losses, image_names = self._losses(indices, part)
            self._backward(image_losses.sum() / image_count)
            losses.append(image_losses.detach())
            names += image_names
        values = torch.cat(losses).tolist()
        norm = self._apply_gradients()
        skipped = self._why_skipped(values, norm, names)
        self.rates.step()
        return StepResult(
            losses=values,
            names=names,
            gradient_norm=norm,
            seconds=time.perf_counter() - start,
            skipped=skipped,
        )

    def _losses(self, indices: Sequence[int], part: int) -> tuple[torch.Tensor, tuple[str, ...]]:
        batch = self.data.batch(indices, self.step, part)
        latents, noise, timesteps = (
            tensor.to(self.device) for tensor in (batch.latents, batch.noise, batch.timesteps)
        )
        sizes = batch.size_conditions.to(self.device)
        with self.precision():
            text = self.captions.states(batch.captions).to(self.device)
            losses = denoising_loss(
                functools.partial(self.family.predict, self.unet),
                self.noise_process,
                latents,
                text,
                noise,
                timesteps,
                sizes,
                self.settings,
            )
        return losses, batch.names

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The frozen model's number format around a forward pass; adapters and loss stay
        float32.
        """
        if self.dtype == torch.float32 or self.device.type == "mps":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _apply_gradients(self) -> float:
        """Clip, and step if the gradients are finite. Returns their norm before clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self._parameters, self.settings.max_grad_norm or math.inf
            )
        )
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _why_skipped(self, losses: list[float], norm: float, names: list[str]) -> str:
        """Account for a step without finite numbers. Raises NotFinite after MOST_SKIPPED in a
        row.
        """
        if math.isfinite(norm):
            self._skipped = 0
            self.smoothed_loss.add(math.fsum(losses) / len(losses))
            return ""
        self._skipped += 1
        broken = sorted(
            {name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)}
        )
        what = "loss" if broken else "gradient"
        if self._skipped >= (MOST_SKIPPED if self.scaler is None or broken else MOST_RESCALED):
            raise NotFinite(
                "the {what} was not a finite number in {count} steps running; the images of the"
                " last were {names}",
                hint=_LEARNING_FAILED if self.has_learned else _NOTHING_LEARNED,
                what=what,
                count=self._skipped,
                names=", ".join((broken or sorted(set(names)))[:8]),
            )
        # loss scaling finds its scale by trying: without a broken loss that is no news
        return (
            ""
            if self.scaler is not None and not broken
            else f"{what}: {', '.join(broken or sorted(set(names)))}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, on the CPU. Order, noise and captions follow from the seed
        and the step.
        """
        return {
            "step": self.step,
            "smoothed_loss": dataclasses.asdict(self.smoothed_loss),
            "skipped": self._skipped,
            "adapters": self.adapters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises LoraFileError or RunError if it belongs to another model or
        other settings.
        """
        self.adapters.load_state_dict(state["adapters"])
        try:
            self._load_progress(state)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            hint = (
                "Continue with the settings the run was started with, or start again under a new"
                " output_dir."
            )
            raise RunError(
                "the resume point of step {step} does not fit this run: {reason}",
                hint=hint,
                step=state["step"],
                reason=error,
            ) from error

    def _load_progress(self, state: dict[str, Any]) -> None:
        asked = [
            (group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        # both would bring back the rates of the start; those asked for now hold, at the schedule's
        # place
        self.rates.base_lrs = [rate for rate, _ in asked]
        for group, (rate, decay), factor in zip(
            self.optimizer.param_groups, asked, self.rates.lr_lambdas, strict=True
        ):
            group.update(
                initial_lr=rate, lr=rate * factor(self.rates.last_epoch), weight_decay=decay
            )
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.smoothed_loss, self._skipped = (
            state["step"],
            SmoothedLoss(**state["smoothed_loss"]),
            state["skipped"],
        )


def make_scaler(device: torch.device, dtype: torch.dtype) -> Any:
    """Loss scaling where fp16 gradients would vanish; None elsewhere."""
    if dtype != torch.float16 or device.type != "cuda":
        return None
    return torch.cuda.amp.GradScaler()
