"""Presets: YAML files in presets/ with settings for a purpose and their reasons.

    listing(language)  all of them as JSON, in order

A preset only sets form fields. `values` apply to all checkpoints; `family_values` override them for
a family (by id) or the embedded checkpoint (practice). Invalid files are logged and left out. User
presets (user_presets.py) have the same format. Called by the home route.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from lora_trainer import families
from lora_trainer.errors import ConfigError
from lora_trainer.settings import schema, training
from lora_trainer.webui import texts
from lora_trainer.webui.common import form
from lora_trainer.webui.settings.checkpoints import PRACTICE

FOLDER = Path(__file__).with_name("presets")
ANY_PATHS = {"train_data_dir": "images", "base_model": "checkpoint", "output_dir": "run"}

log = logging.getLogger("lora_trainer.webui")


@dataclass(frozen=True, kw_only=True)
class Preset:
    id: str
    order: int
    title: str
    why: str
    values: Mapping[str, Any]
    """Config key -> value, as of `training.to_mapping`."""
    family_values: Mapping[str, Mapping[str, Any]]
    notes: Mapping[str, str]
    """Config key -> reason."""


class PresetView(TypedDict):
    """Config keys -> values; `family_values`: overrides by family; `notes`: reasons."""

    id: str
    title: str
    why: str
    values: dict[str, Any]
    family_values: dict[str, dict[str, Any]]
    notes: dict[str, str]


class Presets:
    """The presets of a folder, read once."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    @cached_property
    def all(self) -> tuple[Preset, ...]:
        """In order, without invalid ones."""
        found = []
        for path in sorted(self._folder.glob("*.yaml")):
            try:
                found.append(read(path))
            except ConfigError as error:
                log.warning("the preset %s is left out: %s", path.name, error.report())
        return tuple(sorted(found, key=lambda preset: (preset.order, preset.id)))

    def listing(self, language: str) -> list[PresetView]:
        """[{id, title, why, values, family_values, notes}]"""
        return [
            {
                **to_json(preset),
                "title": texts.translate(preset.title, language),
                "why": texts.translate(preset.why, language),
                "notes": {
                    key: texts.translate(note, language) for key, note in preset.notes.items()
                },
            }
            for preset in self.all
        ]


def to_json(preset: Preset) -> PresetView:
    """A preset as JSON, untranslated."""
    return {
        "id": preset.id,
        "title": preset.title,
        "why": preset.why,
        "notes": dict(preset.notes),
        "values": dict(preset.values),
        "family_values": {family: dict(values) for family, values in preset.family_values.items()},
    }


def read(path: Path) -> Preset:
    """Read a preset. Raises ConfigError for invalid values, keys that are not form fields, and
    other files.
    """
    content = schema.read_mapping(path)
    parts = {part: content.get(part) or {} for part in ("values", "families", "notes")}
    if not _is_preset(**parts):
        hint = "A preset has a title, and under values the settings that it sets."
        raise ConfigError("{path} is a YAML file, but not a preset", hint=hint, path=path.name)
    values, of_families = settled(parts["values"], path.name), parts["families"]
    known = known_families()
    unknown = sorted(set(of_families) - set(known))
    if unknown:
        raise ConfigError(
            "{path}: there is no family {family}",
            hint="Use one of: {known}.",
            known=", ".join(known),
            path=path.name,
            family=unknown[0],
        )
    return Preset(
        id=path.stem,
        order=int(content.get("order") or 99),
        title=str(content.get("title") or path.stem),
        why=" ".join(str(content.get("why") or "").split()),
        values=values,
        family_values={
            family: settled({**values, **its}, path.name, only=its)
            for family, its in of_families.items()
        },
        notes={str(key): " ".join(str(note).split()) for key, note in parts["notes"].items()},
    )


def known_families() -> list[str]:
    """Keys of family_values: ids of families, and the embedded checkpoint's."""
    return [*(family.id for family in families.every()), PRACTICE]


def _is_preset(values: Any, families: Any, notes: Any) -> bool:
    whole = all(isinstance(part, dict) for part in (values, families, notes))
    return (
        whole
        and bool(values or families)
        and all(isinstance(its, dict) for its in families.values())
    )


def settled(
    values: Mapping[str, Any], source: str, only: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The validated values; only the keys in `only`, if given. Raises ConfigError that names
    `source`.
    """
    values = form.current(values)
    foreign = sorted(str(key) for key in values if key not in form.KEYS)
    if foreign:
        raise ConfigError(
            "{path}: {key} cannot be set by a preset",
            hint="Presets set fields of the form.",
            path=source,
            key=foreign[0],
        )
    every = training.to_mapping(training.from_mapping({**ANY_PATHS, **values}, source=source))
    return {key: every[key] for key in (values if only is None else only)}
