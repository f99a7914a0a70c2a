"""The optimizers, one entry each: name, default values, what it needs, and what is to be known of
it. The setting's choices and their help follow from the entries, and so does what a LoRA file's
metadata says: another optimizer is another entry here, and nothing else.

Imports without torch: the tab reads the entries too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    """How it is shown."""
    sentence: str = ""
    """What is to be known of it before it is chosen."""
    path: str
    """Its class, with all its modules."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What it is made with, besides the learning rate and the weight decay of the settings."""
    device: str = ""
    """The only type of device that it runs on; empty for any."""

    @property
    def package(self) -> str:
        return self.path.partition(".")[0]

    def described(self, weight_decay: float) -> str:
        """As a LoRA file's metadata states it: the class and what it was made with."""
        made_with = {"weight_decay": weight_decay, **self.options}
        return f"{self.path}({','.join(f'{key}={value}' for key, value in made_with.items())})"

    def load(self, device: torch.device) -> type[torch.optim.Optimizer]:
        """Its class. Raises ConfigError when it cannot be used here."""
        module, _, name = self.path.rpartition(".")
        try:
            found: type[torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
        except Exception as error:  # bitsandbytes fails in many ways on a machine it does not fit
            raise ConfigError(
                "optimizer is {optimizer}, but the {package} package cannot be used: {reason}",
                hint="Use adamw: it is always there, and a LoRA's optimizer is small.",
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


OPTIMIZERS: dict[str, OptimizerEntry] = {
    entry.name: entry
    for entry in (
        OptimizerEntry(name="adamw", title="AdamW", path="torch.optim.adamw.AdamW"),
        OptimizerEntry(
            name="adamw8bit",
            title="AdamW 8-bit",
            sentence="Saves a little memory; needs the bitsandbytes package and an NVIDIA card.",
            path="bitsandbytes.optim.adamw.AdamW8bit",
            device="cuda",
        ),
    )
}


def require_optimizer(settings: TrainingSettings, device: torch.device) -> None:
    """Raises ConfigError when the optimizer asked for cannot be had here."""
    OPTIMIZERS[settings.optimizer].load(device)


def make_optimizer(
    adapters: Adapters, settings: TrainingSettings, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer asked for, over two groups: the UNet's adapters first, then the text encoders'.
    Raises ConfigError when it cannot be had here.
    """
    entry = OPTIMIZERS[settings.optimizer]
    text_rate = (
        settings.learning_rate / 2 if settings.text_encoder_lr is None else settings.text_encoder_lr
    )
    groups: list[dict[str, Any]] = []
    for name, parameters, rate in (
        ("unet", adapters.parameters_unet(), settings.learning_rate),
        ("text_encoder", adapters.parameters_text_encoder(), text_rate),
    ):
        if parameters:
            groups.append(
                {"params": [parameter for _, parameter in parameters], "lr": rate, "name": name}
            )
    make: Any = entry.load(device)
    optimizer: torch.optim.Optimizer = make(
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, **entry.options
    )
    return optimizer
