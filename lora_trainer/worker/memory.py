"""Chooses the options that save memory, before a run and after running out of memory.

    options = MemoryOptions.of(folder)    None: the settings are wrong, or ask for no changes
    options.choose()                      -> sentences about what was written into config.yaml
    options.go_on_with_less()             -> the same after out of memory; None: nothing is left

A run that resumes keeps the options of its resume point. On a card, `memory: auto` looks at the
predicted peak where the closed formula knows the architecture.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_trainer import environment, files
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.planner import limits
from lora_trainer.planner.command import GIB, Situation, situation
from lora_trainer.planner.plan import (
    LESS,
    cheaper,
    fastest_settings,
    fitting,
    peak_with,
    smallest_settings,
)
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig, memory_bytes
from lora_trainer.training import resume

log = logging.getLogger(__name__)


@dataclass
class MemoryOptions:
    """The options of one run. `config` is what is asked for so far, `auto` not resolved."""

    folder: RunFolder
    config: RunConfig

    @classmethod
    def of(cls, folder: RunFolder) -> MemoryOptions | None:
        """Invalid settings are left to the task, which says what is wrong."""
        try:
            config = training.read(folder.config)
        except LoraTrainerError:
            return None
        return None if config.training.memory == "no" else cls(folder, config)

    @cached_property
    def _situation(self) -> Situation | None:
        """The device and the model; None if the task will say what is wrong with them."""
        try:
            return situation(self.config, processes=environment.launched_count())
        except LoraTrainerError:
            log.debug("no plan of the memory", exc_info=True)
            return None

    def choose(self) -> list[Message]:
        """Choose as `memory` says, and write it. Returns what to tell."""
        mode = self.config.training.memory
        if resume.has_state(self.folder.state) or (mode == "auto" and not _has_card(self.config)):
            return []
        here = self._situation
        if here is None or (mode == "auto" and here.counted):
            return []
        if mode == "small":
            settings = smallest_settings(here.config, here.kind, here.block_count)
            if not here.may(settings):
                del settings["optimizer"]
            settings["vae_tiling"] = True
            return self._take(
                _changed(here.config, settings),
                "memory is {memory}: the training runs with {changes}",
                memory=mode,
            )
        free = here.free or 0
        budget = memory_bytes(mode)
        if budget is not None:
            free = min(free, budget)
        fast = fastest_settings(here.config) if mode == "fast" else {}
        settings, peak = fitting(
            here.config, fast, here.estimate, here.kind, free, here.block_count, here.may
        )
        needed = peak_with(here.config, {}, here.estimate, here.kind)
        template = (
            "the training would need about {needed} of memory, and {free} may be used: it runs"
            " with {changes}, and needs about {less}"
        )
        if mode == "fast" and settings == fast:
            template = "memory is {memory}: the training runs with {changes}"
        elif peak is not None and peak > free:
            template = (
                "the training may not fit: it runs with {changes} and needs about {less} of memory,"
                " and {free} may be used"
            )
        return self._take(
            settings,
            template,
            memory=mode,
            needed=_gib(needed),
            free=_gib(free),
            less=_gib(peak),
        )

    def go_on_with_less(self) -> list[Message] | None:
        """After memory ran out: the next cheaper options, written and remembered for this card.
        None if there are none.
        """
        here = self._situation
        if here is None:
            return None
        state = self.folder.read_state()
        self._remember(here)
        if state.phase == "encoding" and not self.config.training.vae_tiling:
            settings: dict[str, Any] = {"vae_tiling": True}
        else:
            config = here.with_settings(self.config)
            now = None if here.counted else peak_with(config, {}, here.estimate, here.kind)
            settings = next(
                (
                    found
                    for found in cheaper(config, here.kind, here.block_count)
                    if here.may(found)
                    and (
                        now is None
                        or (peak_with(config, found, here.estimate, here.kind) or 0) < LESS * now
                    )
                ),
                {},
            )
        if not settings:
            return None
        resumes = resume.has_state(self.folder.state)
        template = "out of memory at step {step}; the training restarts with {changes}"
        if resumes:
            template = (
                "out of memory at step {step}; the training continues from its last save with"
                " {changes}"
            )
        return self._take(settings, template, step=state.step)

    def _remember(self, here: Situation) -> None:
        """Record for this card that the plan needed too much of its free memory."""
        if here.kind == "cpu" or here.counted or not here.free:
            return
        predicted = peak_with(here.with_settings(self.config), {}, here.estimate, here.kind)
        if predicted is not None and predicted <= here.free:
            limits.remember(self.folder.path.parent, here.name, predicted, here.free)

    def _take(self, settings: dict[str, Any], template: str, **values: Any) -> list[Message]:
        """Write these settings into config.yaml. Returns the sentence about them."""
        if not settings:
            return []
        self.config = self.config.replace(**settings)
        # the file may have been resolved by a task since, which everything else is kept of
        written = training.read(self.folder.config).replace(**settings)
        files.write_text(self.folder.config, training.to_yaml(written))
        changes = ", ".join(f"{key}: {_plain(value)}" for key, value in settings.items())
        return [Message(template, {**values, "changes": changes})]


def _has_card(config: RunConfig) -> bool:
    """Whether training runs on a graphics card, whose memory cannot be more than it is."""
    from lora_trainer.training.device import choose_device, listed_devices

    training = config.training
    try:
        return choose_device(listed_devices(training.device, training.devices)[0]).type == "cuda"
    except LoraTrainerError:
        return False


def _changed(config: RunConfig, settings: dict[str, Any]) -> dict[str, Any]:
    asked = training.to_mapping(config)
    return {key: value for key, value in settings.items() if asked[key] != value}


def _gib(count: int | None) -> str:
    return "?" if count is None else f"{count / GIB:.2f} GiB"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
