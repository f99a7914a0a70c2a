"""The optimizers. The choices of `optimizer`, the values for `auto` and the LoRA's metadata are
generated from the entries' names, defaults, requirements and help texts.

Imports without torch: the tab reads the entries too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_trainer import environment
from lora_trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from lora_trainer.adapters.injected import Adapters
    from lora_trainer.settings.training import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry:
    """One optimizer."""

    name: str
    """The value of the setting `optimizer`."""
    title: str
    """Its display name."""
    sentence: str = ""
    """Help text."""
    path: str
    """Its class, as module.Class."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments besides learning rate and weight decay."""
    learning_rate: float = 1e-4
    """The value of `learning_rate: auto`."""
    weight_decay: float = 0.01
    """The value of `weight_decay: auto`."""
    estimates_rate: bool = False
    """Whether it estimates the step size, one for all parameters; learning_rate is then a
    multiplier.
    """
    averages: bool = False
    """Whether it averages weights instead of following a schedule, with `train()` and `eval()` as
    in https://github.com/facebookresearch/schedule_free.
    """
    state_bytes: float = 8.0
    """Bytes of its state for each weight; 8 are two float32 moments."""
    device: str = ""
    """The only device type that it supports; empty for any."""

    @property
    def package(self) -> str:
        return self.path.partition(".")[0]

    def problems(self, settings: TrainingSettings) -> Iterator[ConfigError]:
        """Settings that conflict with this optimizer."""
        rate = settings.learning_rate
        if self.estimates_rate and rate is not None and 0 < rate < LOWEST_MULTIPLIER:
            yield ConfigError(
                "learning_rate is {rate}, but {optimizer} estimates the learning rate itself and"
                " multiplies it by this number: it would learn next to nothing",
                hint="Set learning_rate to auto, which is {usual} here.",
                rate=rate,
                optimizer=self.name,
                usual=self.learning_rate,
            )
        if self.estimates_rate and settings.text_encoder_lr not in (None, rate):
            yield ConfigError(
                "text_encoder_lr is {rate}, but {optimizer} has one learning rate for everything",
                hint="Set text_encoder_lr to auto.",
                rate=settings.text_encoder_lr,
                optimizer=self.name,
            )
        if self.averages and settings.lr_scheduler != "constant":
            yield ConfigError(
                "lr_scheduler is {scheduler}, but {optimizer} averages the weights instead of"
                " lowering the learning rate",
                hint="Set lr_scheduler to constant. A warm-up (lr_warmup_steps) is useful with it.",
                scheduler=settings.lr_scheduler,
                optimizer=self.name,
            )
        if self.averages and settings.ema_decay != 0:
            yield ConfigError(
                "ema_decay is {decay}, but {optimizer} averages the weights itself",
                hint="Set ema_decay to 0.",
                decay="auto" if settings.ema_decay is None else settings.ema_decay,
                optimizer=self.name,
            )

    def described(self, weight_decay: float) -> str:
        """Class and arguments, for the LoRA's metadata."""
        made_with = {"weight_decay": weight_decay, **self.options}
        return f"{self.path}({','.join(f'{key}={value}' for key, value in made_with.items())})"

    def load(self, device: torch.device) -> type[torch.optim.Optimizer]:
        """Its class. Raises ConfigError if it is not available."""
        module, _, name = self.path.rpartition(".")
        if self.package == "bitsandbytes":
            # bitsandbytes 0.39 to 0.41 import it
            environment.show("scipy")
        try:
            found: type[torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
        except Exception as error:  # bitsandbytes raises various exceptions on unsupported machines
            raise ConfigError(
                "optimizer is {optimizer}, but the {package} package cannot be used: {reason}",
                hint="Use adamw: it is always available, and a LoRA's optimizer state is small.",
                optimizer=self.name,
                package=self.package,
                reason=error,
            ) from error
        if self.device and device.type != self.device:
            raise ConfigError(
                "optimizer is {optimizer}, but training runs on {device}",
                hint="Use adamw: it runs on every device.",
                optimizer=self.name,
                device=device,
            )
        return found


LOWEST_MULTIPLIER = 0.01
"""A multiplier of an estimated step size below this is probably meant as a learning rate."""

OPTIMIZERS: dict[str, OptimizerEntry] = {
    entry.name: entry
    for entry in (
        OptimizerEntry(name="adamw", title="AdamW", path="torch.optim.adamw.AdamW"),
        OptimizerEntry(
            name="adamw8bit",
            title="AdamW 8-bit",
            sentence="Saves a little memory; needs the bitsandbytes package and an NVIDIA card.",
            path="bitsandbytes.optim.adamw.AdamW8bit",
            state_bytes=2.1,  # two bytes, and a float32 scale of each for every 256 weights
            device="cuda",
        ),
        # arXiv 2302.06675, section 5: learning rate 3 to 10 times lower than AdamW's, and weight
        # decay higher by the same factor
        OptimizerEntry(
            name="lion",
            title="Lion",
            sentence=(
                "Half the memory of AdamW. Its steps are larger, so its learning rate is about a"
                " third of AdamW's."
            ),
            path="pytorch_optimizer.optimizer.lion.Lion",
            learning_rate=3e-5,
            weight_decay=0.03,
            state_bytes=4.0,
        ),
        # arXiv 2306.06101; the arguments are those recommended for diffusion models
        OptimizerEntry(
            name="prodigy",
            title="Prodigy",
            sentence=(
                "Estimates the learning rate while training: leave that at auto. Needs twice the"
                " memory of AdamW."
            ),
            path="pytorch_optimizer.optimizer.prodigy.Prodigy",
            options={"bias_correction": True, "safeguard_warmup": True},
            learning_rate=1.0,
            estimates_rate=True,
            state_bytes=16.0,
        ),
        # arXiv 2405.15682
        OptimizerEntry(
            name="adamw_schedule_free",
            title="Schedule-free AdamW",
            sentence=(
                "Averages the weights instead of lowering the learning rate: good results at every"
                " step, however long the run is."
            ),
            path="pytorch_optimizer.optimizer.schedulefree.ScheduleFreeAdamW",
            learning_rate=3e-4,
            averages=True,
        ),
    )
}


def require_optimizer(settings: TrainingSettings, device: torch.device) -> None:
    """Raises ConfigError if the chosen optimizer is not available."""
    OPTIMIZERS[settings.optimizer].load(device)


def settled(settings: TrainingSettings) -> dict[str, float]:
    """Learning rates and weight decay by key, with `auto` resolved."""
    entry = OPTIMIZERS[settings.optimizer]
    rate = entry.learning_rate if settings.learning_rate is None else settings.learning_rate
    usual = rate if entry.estimates_rate else rate / 2
    decay = entry.weight_decay if settings.weight_decay is None else settings.weight_decay
    return {
        "learning_rate": rate,
        "text_encoder_lr": usual if settings.text_encoder_lr is None else settings.text_encoder_lr,
        "weight_decay": decay,
    }


def state_bytes(settings: TrainingSettings) -> float:
    """Bytes that are kept for each trained weight: the optimizer's state, and the average of
    ema_decay in float32.
    """
    return OPTIMIZERS[settings.optimizer].state_bytes + (0.0 if settings.ema_decay == 0 else 4.0)


def make_optimizer(
    adapters: Adapters, settings: TrainingSettings, device: torch.device
) -> torch.optim.Optimizer:
    """Make the chosen optimizer, with one parameter group for each of the adapters' groups: the
    main model's first, then the text encoders'. Raises ConfigError if it is not available.
    """
    entry, values = OPTIMIZERS[settings.optimizer], settled(settings)
    rates = {"text_encoder": values["text_encoder_lr"]}
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for _, parameter in parameters],
            "lr": rates.get(name, values["learning_rate"]),
            "name": name,
        }
        for name, parameters in adapters.groups().items()
    ]
    make: Any = entry.load(device)
    optimizer: torch.optim.Optimizer = make(
        groups, lr=values["learning_rate"], weight_decay=values["weight_decay"], **entry.options
    )
    return optimizer


def rates_in_use(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Name of each parameter group -> its learning rate, times the estimated step size (Prodigy's
    `d`).
    """
    return {group["name"]: group["lr"] * group.get("d", 1.0) for group in optimizer.param_groups}
