"""The settings of a job that makes question and answer pairs from documents, in `pairs.yaml`.

Used by both processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lora_trainer.errors import ConfigError
from lora_trainer.settings import schema
from lora_trainer.settings.schema import Groups, Settings, setting


@dataclass(frozen=True, kw_only=True)
class PairSettings(Settings):
    """Pairs from documents"""

    input: Path = setting(label="Documents")
    """A document, or a folder of .txt and .md files."""
    output: Path = setting(label="Pairs")
    """The new .jsonl file."""
    base_model: Path | None = setting(None, label="Language model")
    """The folder of the model to ask."""
    url: str = setting("", label="Server")
    """Instead: the address of an OpenAI-compatible server on this machine, up to /v1."""
    model: str = setting("", label="Model of the server")
    """The name of a model that the server has."""
    count: int = setting(3, label="Pairs per passage", bounds=(1, 20), hint="3 is usual.")
    """Pairs for each passage of about half a page."""

    def contradictions(self) -> Iterator[ConfigError]:
        if (self.base_model is None) == (not self.url):
            yield ConfigError(
                "either a language model or a server is asked", hint="Choose one of them."
            )


GROUPS: Groups = (("pairs", PairSettings),)


def read(path: Path) -> PairSettings:
    """The settings in a pairs.yaml. Raises ConfigError with every problem."""
    return from_mapping(schema.read_mapping(path), str(path))


def from_mapping(values: dict[str, object], source: str = "the settings") -> PairSettings:
    """Raises ConfigError with every problem."""
    made = schema.groups_from_mapping(GROUPS, values, source, None)
    return cast("PairSettings", made["pairs"])


def to_yaml(settings: PairSettings) -> str:
    return schema.dump(schema.group_to_mapping(settings))
