"""User presets: YAML files in the data folder's presets/, in the format of the built-in ones.

    own = UserPresets(data, presets)
    own.listing(language)                        -> {presets, problems}, read each time: files may
                                                 be edited by hand
    own.save(title, why, values, replace=False)  -> id       saves settings that differ from the
                                                             defaults
    own.delete(file)                                         moves the file to the trash

Settings that depend on images or checkpoint (schema.About.in_presets) are left out. An invalid file
is reported and does not affect the others. Created by app.py, called by the routes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from lora_trainer import files
from lora_trainer.dataset.listing import folded
from lora_trainer.errors import ConfigError
from lora_trainer.settings import schema
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES
from lora_trainer.webui import texts
from lora_trainer.webui.common import form
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.common.safe_names import free_name, natural_order, safe_name
from lora_trainer.webui.http.routing import Conflict
from lora_trainer.webui.settings.presets import Preset, Presets, PresetView, read, settled, to_json
from lora_trainer.webui.texts import Sentence

LONGEST_TITLE, LONGEST_WHY = 60, 300
SUFFIX = ".yaml"
OWN = "own:"
"""Prefix of the ids; no built-in preset has it."""

log = logging.getLogger("lora_trainer.webui")


class OwnPreset(PresetView):
    file: str


class OwnPresetList(TypedDict):
    presets: list[OwnPreset]
    problems: list[Sentence]


class SavedPreset(OwnPresetList):
    """`saved`: its id."""

    saved: str


class PresetBody(TypedDict):
    title: str
    why: str
    values: dict[str, Any]
    replace: bool


class UserPresets:
    """`presets`: the built-in ones, whose names are reserved."""

    def __init__(self, data: DataFolder, presets: Presets) -> None:
        self._data = data
        self._presets = presets

    def listing(self, language: str) -> OwnPresetList:
        """{presets: as Presets.listing, with `file`, sorted by title; problems: [{message,
        hint}]}
        """
        presets, problems = self._read()
        return {
            "presets": [
                {**to_json(preset), "file": preset.id.removeprefix(OWN)} for preset in presets
            ],
            "problems": [texts.render_error(problem, language) for problem in problems],
        }

    def save(
        self, title: str, why: str, values: Mapping[str, Any], *, replace: bool = False
    ) -> str:
        """Write a preset and return its id. Unknown keys and default values are left out.

        Raises ConfigError for an empty or reserved name and invalid values; Conflict if it exists
        and `replace` is not set.
        """
        title = _tidy(title, LONGEST_TITLE)
        if not title:
            raise ConfigError("a preset needs a name", hint="Describe what it is for.")
        if folded(title) in {folded(name) for name in self._names_taken()}:
            raise ConfigError(
                "a built-in preset is already called {name}",
                hint="Choose another name.",
                name=title,
            )
        kept = _kept(values)
        content = {
            "title": title,
            **({"why": _tidy(why, LONGEST_WHY)} if _tidy(why, LONGEST_WHY) else {}),
            "values": kept,
        }
        path = self._place(title, replace)
        files.write_text(path, schema.dump(content))
        return OWN + path.name

    def delete(self, file: str) -> None:
        """Raises NotFound for an unknown file, ConfigError if it cannot be moved."""
        path = self._data.child("presets", file)
        if path.suffix != SUFFIX or not path.is_file():
            raise NotFound(
                "there is no {name} here",
                hint="It may have been deleted. Reload the page.",
                name=file[:80],
            )
        trash = self._data.folder("trash")
        target = trash / free_name(
            f"preset-{path.name}", lambda candidate: (trash / candidate).exists()
        )
        try:
            shutil.move(path, target)
        except OSError as error:
            hint = "Close the programs that show its files, then try again."
            reason = error.strerror or error
            raise ConfigError(
                "{name} cannot be moved to the trash: {reason}",
                hint=hint,
                name=path.name,
                reason=reason,
            ) from error

    def _read(self) -> tuple[list[Preset], list[ConfigError]]:
        presets, problems = [], []
        for path in self._data.folder("presets").glob("*" + SUFFIX):
            try:
                presets.append(dataclasses.replace(read(path), id=OWN + path.name))
            except ConfigError as error:
                # unless another window has just deleted it
                if os.path.lexists(path):
                    problems.append(error)
            except Exception:
                # any content is possible: an invalid date, a thousand brackets
                log.warning("%s cannot be read", path, exc_info=True)
                hint = "A preset has a title, and under values the settings that it sets."
                problems.append(
                    ConfigError(
                        ("{path} is a YAML file, but not a preset"), hint=hint, path=path.name
                    )
                )
        return (
            sorted(presets, key=lambda preset: (natural_order(preset.title), preset.id)),
            problems,
        )

    def _names_taken(self) -> set[str]:
        """Titles of the built-in presets, in every language."""
        return {
            texts.translate(preset.title, language)
            for preset in self._presets.all
            for language in texts.languages()
        }

    def _place(self, title: str, replace: bool) -> Path:
        """The file of the preset with this title, or a free name."""
        folder = self._data.folder("presets")
        same = [preset for preset in self._read()[0] if folded(preset.title) == folded(title)]
        if same and not replace:
            raise Conflict(
                "you already have a preset called {name}",
                hint="Choose another name, or replace it.",
                name=title,
            )
        if same:
            return folder / same[0].id.removeprefix(OWN)
        taken = {folded(path.name) for path in folder.iterdir()}
        return folder / free_name(
            safe_name(title, SUFFIX, FORBIDDEN_IN_NAMES),
            lambda candidate: folded(candidate) in taken,
        )


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the defaults. Raises ConfigError if there are none."""
    wanted = {key: values[key] for key in form.FOR_PRESETS if key in values}
    usual = settled({}, "", only=wanted)
    kept = {
        key: value for key, value in settled(wanted, "the settings").items() if value != usual[key]
    }
    if not kept:
        raise ConfigError(
            "there is nothing to save: every setting has its default value",
            hint="Change some, or choose a preset to start from.",
        )
    return kept


def _tidy(text: str, longest: int) -> str:
    plain = "".join(
        character if character.isprintable() else " "
        for character in unicodedata.normalize("NFC", text)
    )
    return " ".join(plain.split())[:longest].strip()
