"""The visitor's own presets: YAML files in the data folder's presets/, of the same form as those
that come with the extension.

    own = UserPresets(data, presets)
    own.listing(language)                        -> {presets, problems}, read anew each time: the
                                                 files may be changed by hand
    own.save(title, why, values, replace=False)  -> id       the settings that differ from their
                                                             defaults, under a name
    own.delete(file)                                         its file goes to the trash

What belongs to one set of images or to one checkpoint (schema.About.in_presets) stays out of a
preset. A file that cannot be used is told of with a sentence, and hides no other. Made by app,
called by the routes.
"""

from __future__ import annotations

import dataclasses
import logging
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
"""In front of the file's name in an id: no id of the extension's own presets begins like this."""

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
    """`presets`: those that come with the extension, whose names are taken."""

    def __init__(self, data: DataFolder, presets: Presets) -> None:
        self._data = data
        self._presets = presets

    def listing(self, language: str) -> OwnPresetList:
        """{presets: as Presets.listing gives them, with the name of their `file`, in the order of
        their titles; problems: [{message, hint}]}
        """
        presets, problems = self._read()
        return {
            "presets": [
                {**to_json(preset), "file": preset.id.removeprefix(OWN)} for preset in presets
            ],
            "problems": [texts.say_error(problem, language) for problem in problems],
        }

    def save(
        self, title: str, why: str, values: Mapping[str, Any], *, replace: bool = False
    ) -> str:
        """Write a preset; the id it has. Values of no field, and those equal to the defaults, are
        left out.

        Raises ConfigError for a name that says nothing or is taken by one of the extension's, and
        for values that the settings refuse; Conflict where there is one of this name and `replace`
        is not set.
        """
        title = _tidy(title, LONGEST_TITLE)
        if not title:
            raise ConfigError("a preset needs a name", hint="Say what it is for.")
        if folded(title) in {folded(name) for name in self._names_taken()}:
            raise ConfigError(
                "a preset that comes with the extension is called {name} already",
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
        """Raises NotFound for what is no preset of the visitor's, ConfigError when it cannot be
        moved.
        """
        path = self._data.child("presets", file)
        if path.suffix != SUFFIX or not path.is_file():
            raise NotFound(
                "there is nothing called {name} here",
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
                problems.append(error)
            except Exception:
                # a file from anywhere may hold anything: a date that is none, a thousand brackets
                log.warning("%s cannot be read", path, exc_info=True)
                hint = "A preset has a title, and under values the settings that it sets."
                problems.append(
                    ConfigError("{path} is a YAML file, but no preset", hint=hint, path=path.name)
                )
        return (
            sorted(presets, key=lambda preset: (natural_order(preset.title), preset.id)),
            problems,
        )

    def _names_taken(self) -> set[str]:
        """What the extension's own presets are called, in every language."""
        return {
            texts.translate(preset.title, language)
            for preset in self._presets.all
            for language in texts.languages()
        }

    def _place(self, title: str, replace: bool) -> Path:
        """The file of the preset that is called so, or a free name."""
        folder = self._data.folder("presets")
        same = [preset for preset in self._read()[0] if folded(preset.title) == folded(title)]
        if same and not replace:
            raise Conflict(
                "you have a preset called {name} already",
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
    """Those of the values that differ from what is set without a preset. Raises ConfigError where
    none does.
    """
    wanted = {key: values[key] for key in form.FOR_PRESETS if key in values}
    usual = settled({}, "", only=wanted)
    kept = {
        key: value for key, value in settled(wanted, "the settings").items() if value != usual[key]
    }
    if not kept:
        raise ConfigError(
            "there is nothing to save: every setting is as it is by default",
            hint="Change some, or choose a preset to start from.",
        )
    return kept


def _tidy(text: str, longest: int) -> str:
    plain = "".join(
        character if character.isprintable() else " "
        for character in unicodedata.normalize("NFC", text)
    )
    return " ".join(plain.split())[:longest].strip()
