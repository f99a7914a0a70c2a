"""The settings of a job that answers questions with a trained language model, in `ask.yaml`.

Used by both processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lora_trainer.settings import schema
from lora_trainer.settings.schema import Groups, Settings, setting


@dataclass(frozen=True, kw_only=True)
class AskSettings(Settings):
    """Questions"""

    run: Path = setting(label="Run")
    """The run folder of the trained language model."""
    question: str = setting("", label="Question")
    """The first question; others arrive as requests."""
    strength: float = setting(1.0, label="Strength", bounds=(0.0, 2.0), hint="1 is as trained.")
    """The strength of the LoRA for the first question; 0: the base's answer."""
    step: int | None = setting(None, label="Step", bounds=(1, 1_000_000_000))
    """The saved step to ask first. auto: the newest."""
    patience: float = setting(120.0, label="Patience", unit="seconds", bounds=(0.0, 86_400.0))
    """How long to wait for another question before the model is let go."""


GROUPS: Groups = (("ask", AskSettings),)


def read(path: Path) -> AskSettings:
    """The settings in an ask.yaml. Raises ConfigError with every problem."""
    made = schema.groups_from_mapping(GROUPS, schema.read_mapping(path), str(path), None)
    return cast("AskSettings", made["ask"])


def to_yaml(settings: AskSettings) -> str:
    return schema.dump(schema.group_to_mapping(settings))
