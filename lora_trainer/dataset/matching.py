"""Which image a row of a metadata file means: the name as someone wrote it -> the file on this disk.

The surest reading wins: the same path; the same but for capitals; the end of a path from another machine or of a URL; the name without its suffix.
Called by dataset.scan.
"""

from __future__ import annotations

import enum
import os
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.listing import folded


class Sureness(enum.IntEnum):
    """How a name was matched, the surest first."""

    SAME_PATH = 0
    SAME_BUT_CASE = 1
    END_OF_PATH = 2
    STEM = 3
    OTHER_SUFFIX = 4


@dataclass(frozen=True, kw_only=True)
class Match:
    """The images a name may mean, equally well. None: there is no such file. Several: the name is ambiguous."""

    images: tuple[Path, ...]
    sureness: Sureness


class NameIndex:
    """The images of a dataset, to be found by name."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._exact: dict[str, Path] = {}
        self._folded: dict[str, list[Path]] = defaultdict(list)
        self._base: dict[str, list[Path]] = defaultdict(list)
        self._stem: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            path = _normal(image)
            self._exact[path] = image
            self._folded[folded(path)].append(image)
            self._base[folded(image.name)].append(image)
            self._stem[folded(image.stem)].append(image)

    def find(self, name: str, folders: Sequence[Path]) -> Match:
        """The images `name` may mean, taken as a path from each of `folders` in turn (or as an absolute one)."""
        name = _plain(name)
        paths = [_normal(folder / name) for folder in folders]
        exact = [self._exact[path] for path in paths if path in self._exact]
        if exact:
            return Match(images=(exact[0],), sureness=Sureness.SAME_PATH)
        for path in paths:
            if folded(path) in self._folded:
                return Match(images=tuple(self._folded[folded(path)]), sureness=Sureness.SAME_BUT_CASE)
        wanted = [part for part in folded(name).split("/") if part not in ("", ".", "..")]
        if not wanted:
            return Match(images=(), sureness=Sureness.OTHER_SUFFIX)
        same_name = self._base.get(wanted[-1])
        if same_name:
            return Match(images=_nearest_folder(wanted[:-1], same_name), sureness=Sureness.END_OF_PATH)
        # whole first: "fox v1.5" has no suffix, though it looks like one
        same_stem = self._stem.get(wanted[-1])
        if same_stem:
            return Match(images=_nearest_folder(wanted[:-1], same_stem), sureness=Sureness.STEM)
        converted = self._stem.get(PurePosixPath(wanted[-1]).stem, [])
        return Match(images=_nearest_folder(wanted[:-1], converted), sureness=Sureness.OTHER_SUFFIX)


def _normal(path: Path) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _plain(name: str) -> str:
    """A name as a path with forward slashes: without quotation marks, scheme, host, query or percent signs of a URL."""
    name = name.strip().strip("\"'").strip()
    if name.lower().startswith(("http://", "https://", "file://")):
        name = urllib.parse.unquote(urllib.parse.urlsplit(name).path)
        if name[2:3] == ":":
            name = name[1:]  # file:///C:/...
    return name.replace("\\", "/")


def _nearest_folder(wanted: list[str], images: list[Path]) -> tuple[Path, ...]:
    """Those images whose folders share the most trailing parts with the wanted ones."""

    def shared(image: Path) -> int:
        parts = [folded(part) for part in image.parent.parts]
        equal = [one == other for one, other in zip(reversed(wanted), reversed(parts), strict=False)]
        return equal.index(False) if False in equal else len(equal)

    longest = max((shared(image) for image in images), default=0)
    return tuple(image for image in images if shared(image) == longest)
