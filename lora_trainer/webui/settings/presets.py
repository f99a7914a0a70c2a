"""Presets: named sets of settings for an occasion, each a YAML file in presets/ that says why.

    listing(language)  all of them for the browser, in their order

A preset fills in fields and does nothing else. `values` hold for every checkpoint, `family_values`
are laid over them on a checkpoint of that family (its id) or on the embedded one
(practice). Called by the home route. A file that does not fit the settings is left out and told in
the log. The visitor's own presets (user_presets.py) are files of the same form.
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
    """Config key -> value, as `training.to_mapping` writes them."""
    family_values: Mapping[str, Mapping[str, Any]]
    notes: Mapping[str, str]
    """Config key -> why this value."""

    def texts(self) -> list[str]:
        """Everything in it that is shown."""
        return [self.title, self.why, *self.notes.values()]


class PresetView(TypedDict):
    """Config keys -> values; `family_values`: those for a family; `notes`: why a value."""

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
        """In their order. Those that cannot be used are left out."""
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
    """A preset for the browser, in the words of its file."""
    return {
        "id": preset.id,
        "title": preset.title,
        "why": preset.why,
        "notes": dict(preset.notes),
        "values": dict(preset.values),
        "family_values": {family: dict(values) for family, values in preset.family_values.items()},
    }


def read(path: Path) -> Preset:
    """One preset. Raises ConfigError for values that the settings refuse, keys that are no fields
    of the form, and what is no preset at all.
    """
    content = schema.read_mapping(path)
    parts = {part: content.get(part) or {} for part in ("values", "families", "notes")}
    if not _is_preset(**parts):
        hint = "A preset has a title, and under values the settings that it sets."
        raise ConfigError("{path} is a YAML file, but no preset", hint=hint, path=path.name)
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
    """What a preset may hold values for: the ids of the families, and the practice model's."""
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
    """The values as the settings hold them; of these, the keys in `only`. Raises ConfigError;
    `source`: where they come from, for its sentence.
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
