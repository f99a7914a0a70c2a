"""Training steps: batches -> gradients -> adapter weights. Run by training.loop.

Independent of what is trained: the objective holds the model and the examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from lora_trainer.adapters.injected import Adapters
from lora_trainer.dataset.buckets import epoch_batches, steps_per_epoch
from lora_trainer.errors import NotFinite, RunError
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.averaging import WeightAverage, averaged_by, make_average
from lora_trainer.training.device import move_optimizer, uses_autocast
from lora_trainer.training.prefetch import BatchRequest, Prefetcher
from lora_trainer.training.processes import ALONE, Processes
from lora_trainer.training.randomness import seed_dropout

MOST_SKIPPED = 10
"""Consecutive non-finite steps after which the run ends."""
MOST_RESCALED = 40
"""The same with loss scaling, which halves its scale at each such step: enough to get from 65536 to
any usable scale.
"""
SMOOTHING = 0.98
"""Decay of the exponential moving average of the loss."""

_LEARNING_FAILED = (
    "Set learning_rate to half. If that does not help, set mixed_precision to bf16 or no, and look"
    " at these examples."
)
_NOTHING_LEARNED = (
    "learning_rate is not the cause. Set mixed_precision to bf16 or no; if that does not help, the"
    " checkpoint is broken."
)


@dataclass(kw_only=True)
class BatchSchedule:
    """The batches of each step. They depend on the seed only, so that any step can be computed on
    its own. A batch has examples of one bucket; the buckets' keys must be sortable.
    """

    buckets: Mapping[Any, Sequence[int]]
    repeats: Sequence[int]
    batch_size: int
    accumulation: int
    seed: int
    step_count: int
    _epoch: int = -1
    """The epoch that `_batches` belongs to."""
    _batches: list[Sequence[int]] = field(default_factory=list)

    @property
    def batches_per_epoch(self) -> int:
        return steps_per_epoch(self.buckets, self.repeats, self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch. The last one may accumulate fewer batches than the others."""
        return steps_per_epoch(self.buckets, self.repeats, self.batch_size, self.accumulation)

    @property
    def epoch_count(self) -> int:
        """Epochs started by the end of the run."""
        return math.ceil(self.step_count / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def group(self, step: int) -> list[Sequence[int]]:
        """The batches whose gradients are accumulated in `step` (from 0), as indices of
        examples.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._batches = epoch_batches(
                self.buckets, self.repeats, self.batch_size, self.seed, epoch
            )
            self._epoch = epoch
        start = position * self.accumulation
        return self._batches[start : start + self.accumulation]


@dataclass(kw_only=True)
class SmoothedLoss:
    """Exponential moving average with the bias correction of Adam's moments (arXiv 1412.6980,
    section 3).
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
    """The result of a step. losses: one per example, in order; skipped: why the weights were not
    updated, else empty.
    """

    losses: list[float]
    names: list[str]
    gradient_norm: float
    seconds: float
    skipped: str = ""

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)


class Objective(Protocol):
    """What training minimizes: the model's loss on the examples."""

    def batch(self, indices: Sequence[int], step: int, part: int, rows: Sequence[int]) -> Any:
        """The `rows` of a batch of examples, in main memory, with a method pin_memory. `part`: the
        number of the batch within the step. Random draws follow from the seed, `step` and `part`,
        and are those of the whole batch, whatever rows are asked for. May be called in another
        thread, during earlier steps.
        """

    def losses(self, batch: Any) -> torch.Tensor:
        """The loss of each row of a batch, float32."""

    def names(self, indices: Sequence[int]) -> Sequence[str]:
        """The names of these examples."""


@dataclass(kw_only=True)
class Trainer:
    """The state that training changes, and the steps that change it."""

    adapters: Adapters
    objective: Objective
    optimizer: torch.optim.Optimizer
    rates: Any
    plan: BatchSchedule
    settings: TrainingSettings
    device: torch.device
    dtype: torch.dtype
    scaler: Any = None
    """The GradScaler, for fp16 only."""
    processes: Processes = ALONE
    """The processes that share each step's examples. All hold the same weights and state."""
    prefetches: bool | None = None
    """Whether the next batch is made while the device computes; None: unless that is a CPU."""
    step: int = 0
    """Completed steps."""
    smoothed_loss: SmoothedLoss = field(default_factory=SmoothedLoss)
    _skipped: int = 0
    _names: list[str] = field(default_factory=list)
    _parameters: list[torch.nn.Parameter] = field(default_factory=list)
    _average: WeightAverage | None = None
    _prefetcher: Prefetcher = field(init=False)

    def __post_init__(self) -> None:
        ahead = self.device.type != "cpu" if self.prefetches is None else self.prefetches
        self._prefetcher = Prefetcher(self._make_batch, self.device, ahead=ahead)
        named = self.adapters.parameters()
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._average = make_average(self._parameters, self.settings)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All trainable parameters."""
        return self._parameters

    @property
    def averages(self) -> Sequence[torch.Tensor]:
        """The averages of all trainable parameters; empty without ema_decay."""
        return () if self._average is None else self._average.averages

    @property
    def epoch(self) -> int:
        """Epochs started, from 1."""
        return self.plan.epoch_of(max(0, self.step - 1)) + 1

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.plan.step_count

    def advance(self) -> StepResult:
        """Train the next step."""
        result = self.train_step(self.plan.group(self.step))
        self.step += 1
        if self._average is not None:
            self._average.add(self.step)
        return result

    def weights_to_use(self) -> contextlib.AbstractContextManager[None]:
        """A context manager in which the adapters hold the weights to export, preview and validate:
        averaged ones if the optimizer or ema_decay averages. On exit the trained weights are
        restored, bit for bit.
        """
        if self._average is not None:
            return self._average.in_use()
        return averaged_by(self.optimizer)

    def move_state(self, device: torch.device) -> None:
        """Move the optimizer's state and the averages to `device`."""
        move_optimizer(self.optimizer, device)
        if self._average is not None:
            self._average.move(device)

    def require_learned(self) -> None:
        """Raises NotFinite if no step was finite."""
        if not self.has_learned:
            one, several = (
                "the only step gave NaN or infinite numbers",
                "all {count} steps gave NaN or infinite numbers, so nothing was learned",
            )
            raise NotFinite(
                one if self.step == 1 else several, hint=_NOTHING_LEARNED, count=self.step
            )

    @property
    def has_learned(self) -> bool:
        """Whether any step was finite."""
        return self.smoothed_loss.value is not None

    def train_step(self, group: list[Sequence[int]]) -> StepResult:
        """Run one optimizer step over the batches of `group`. Every example has the same weight,
        whatever the size of its batch and whichever process has it.
        """
        start = time.perf_counter()
        seed_dropout(self.settings.seed, self.step, self.processes.rank)
        names = [name for indices in group for name in self.objective.names(indices)]
        losses = torch.zeros(len(names), device=self.device)
        requests = self._requests(self.step, group)
        done = 0
        for request, following in zip(
            requests, [*requests[1:], self._after_this_step()], strict=True
        ):
            rows, of_batch = request.rows, losses[done : done + len(request.indices)]
            if rows:
                batch = self._prefetcher.get(request)
                self._prefetcher.prepare(following)
                with self.precision():
                    batch_losses = self.objective.losses(batch)
                self._backward(batch_losses.sum() / len(names))
                of_batch[rows.start : rows.stop : rows.step] = batch_losses.detach()
            elif self.scaler is not None:
                # unscale_() fails if nothing was scaled in this step
                self.scaler.scale(losses)
            done += len(request.indices)
        self.processes.add_up(self._parameters, losses)
        values, norm = self._apply_gradients(losses)
        skipped = self._why_skipped(values, norm, names)
        self.rates.step()
        return StepResult(
            losses=values,
            names=names,
            gradient_norm=norm,
            seconds=time.perf_counter() - start,
            skipped=skipped,
        )

    def _make_batch(self, wanted: BatchRequest) -> Any:
        return self.objective.batch(wanted.indices, wanted.step, wanted.part, wanted.rows)

    def _requests(self, step: int, group: list[Sequence[int]]) -> list[BatchRequest]:
        """The batches of a step, with the rows of each that are this process's."""
        found, count = [], 0
        for part, indices in enumerate(group):
            rows = self.processes.share(count, len(indices))
            found.append(BatchRequest(indices=tuple(indices), step=step, part=part, rows=rows))
            count += len(indices)
        return found

    def _after_this_step(self) -> BatchRequest | None:
        """The first batch of the next step."""
        step = self.step + 1
        if step >= self.plan.step_count:
            return None
        return self._requests(step, self.plan.group(step))[0]

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to the frozen model's dtype for a forward pass; adapters and loss stay
        float32.
        """
        if not uses_autocast(self.device, self.dtype):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _apply_gradients(self, losses: torch.Tensor) -> tuple[list[float], float]:
        """Clip the gradients, and update the weights if they are finite. Returns the losses, and
        the norm before clipping: read together, because each time the device is waited for.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        total = torch.nn.utils.clip_grad_norm_(
            self._parameters, self.settings.max_grad_norm or math.inf
        )
        *values, norm = torch.cat([losses, total.to(losses)[None]]).tolist()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return values, norm

    def _why_skipped(self, losses: list[float], norm: float, names: list[str]) -> str:
        """Record whether the step was finite. Returns what was not, or "" if the step is not worth
        reporting. Raises NotFinite after MOST_SKIPPED in a row.
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
                "the {what} was NaN or infinite in {count} steps in a row; the examples of the "
                "last were {names}",
                hint=_LEARNING_FAILED if self.has_learned else _NOTHING_LEARNED,
                what=what,
                count=self._skipped,
                names=", ".join((broken or sorted(set(names)))[:8]),
            )
        # while loss scaling looks for its scale, gradients overflow although the loss is finite
        return (
            ""
            if self.scaler is not None and not broken
            else f"{what}: {', '.join(broken or sorted(set(names)))}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state for an exact resume. The order of images, noise and captions is not in it: it
        follows from seed and step.
        """
        return {
            "step": self.step,
            "smoothed_loss": dataclasses.asdict(self.smoothed_loss),
            "skipped": self._skipped,
            "adapters": self.adapters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(self._names),
            "rates": self.rates.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`. Raises LoraFileError or RunError if it belongs to another model or other
        settings.
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
        # both states contain the learning rates that the run was started with; use the configured
        # ones instead, at the scheduler's current position
        self.rates.base_lrs = [rate for rate, _ in asked]
        for group, (rate, decay), factor in zip(
            self.optimizer.param_groups, asked, self.rates.lr_lambdas, strict=True
        ):
            group.update(
                initial_lr=rate, lr=rate * factor(self.rates.last_epoch), weight_decay=decay
            )
        if self._average is not None:
            self._average.load_state_dict(self._names, state.get("average"))
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.smoothed_loss, self._skipped = (
            state["step"],
            SmoothedLoss(**state["smoothed_loss"]),
            state["skipped"],
        )


def make_scaler(device: torch.device, dtype: torch.dtype) -> Any:
    """Loss scaling for fp16 on CUDA, whose gradients would underflow; None elsewhere."""
    if dtype != torch.float16 or device.type != "cuda":
        return None
    return torch.cuda.amp.GradScaler()
