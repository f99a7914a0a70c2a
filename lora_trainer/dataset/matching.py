"""Finds the image that a row of a metadata file names.

In order of precedence: the same path; ignoring case; the end of a path from another machine or of a
URL; the name without suffix.
"""

from __future__ import annotations

import enum
import os
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.listing import folded

MOST_NAMES_KEPT = 4096


class MatchQuality(enum.IntEnum):
    """How a name was matched, best first."""

    SAME_PATH = 0
    SAME_BUT_CASE = 1
    END_OF_PATH = 2
    STEM = 3
    OTHER_SUFFIX = 4


@dataclass(frozen=True, kw_only=True)
class Match:
    """The images that a name may mean equally well; empty: none."""

    images: tuple[Path, ...]
    quality: MatchQuality


class _Namesakes:
    """Images with the same name in different folders."""

    def __init__(self) -> None:
        self._images: list[Path] = []
        # avoids comparing each row with each image
        self._by_end: dict[tuple[str, ...], tuple[Path, ...]] = {}
        self._depth = 0

    def add(self, image: Path) -> None:
        self._images.append(image)
        self._by_end.clear()

    def nearest(self, wanted: Sequence[str]) -> tuple[Path, ...]:
        """Those whose folders share most trailing parts with `wanted`."""
        if len(self._images) == 1:
            return (self._images[0],)
        if not self._by_end:
            self._by_end = self._ends()
        ends = (
            tuple(wanted[start:])
            for start in range(max(0, len(wanted) - self._depth), len(wanted) + 1)
        )
        return next(self._by_end[end] for end in ends if end in self._by_end)

    def _ends(self) -> dict[tuple[str, ...], tuple[Path, ...]]:
        """Each trailing part of their folders' paths -> the images in such folders; the empty one
        has all.
        """
        ends: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        for image in self._images:
            parts = tuple(map(folded, image.parent.parts))
            self._depth = max(self._depth, len(parts))
            for start in range(len(parts) + 1):
                ends[parts[start:]].append(image)
        return {end: tuple(images) for end, images in ends.items()}


class NameIndex:
    """Finds a dataset's images by name."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._exact: dict[str, Path] = {}
        self._folded: dict[str, list[Path]] = defaultdict(list)
        self._base: dict[str, _Namesakes] = defaultdict(_Namesakes)
        self._stem: dict[str, _Namesakes] = defaultdict(_Namesakes)
        for image in images:
            path = _normal(image)
            self._exact[path] = image
            self._folded[folded(path)].append(image)
            self._base[folded(image.name)].add(image)
            self._stem[folded(image.stem)].add(image)
        # a damaged table may repeat a name
        self._find = lru_cache(maxsize=MOST_NAMES_KEPT)(self._find_plain)

    def find(self, name: str, folders: Sequence[Path]) -> Match:
        """The images `name` may mean, relative to each of `folders` in turn, or absolute."""
        return self._find(_plain(name), tuple(map(str, folders)))

    def _find_plain(self, name: str, folders: tuple[str, ...]) -> Match:
        paths = [_normal(os.path.join(folder, name)) for folder in folders]  # noqa: PTH118  # tables have a hundred thousand rows
        exact = [self._exact[path] for path in paths if path in self._exact]
        if exact:
            return Match(images=(exact[0],), quality=MatchQuality.SAME_PATH)
        for path in map(folded, paths):
            if path in self._folded:
                return Match(images=tuple(self._folded[path]), quality=MatchQuality.SAME_BUT_CASE)
        wanted = [part for part in folded(name).split("/") if part not in ("", ".", "..")]
        if not wanted:
            return Match(images=(), quality=MatchQuality.OTHER_SUFFIX)
        same_name = self._base.get(wanted[-1])
        if same_name:
            return Match(images=same_name.nearest(wanted[:-1]), quality=MatchQuality.END_OF_PATH)
        # the whole name first: "fox v1.5" has no suffix
        same_stem = self._stem.get(wanted[-1])
        if same_stem:
            return Match(images=same_stem.nearest(wanted[:-1]), quality=MatchQuality.STEM)
        converted = self._stem.get(PurePosixPath(wanted[-1]).stem)
        return Match(
            images=converted.nearest(wanted[:-1]) if converted else (),
            quality=MatchQuality.OTHER_SUFFIX,
        )


def _normal(path: Path | str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _plain(name: str) -> str:
    """A name as a path with forward slashes, without quotation marks and a URL's scheme, host,
    query and escapes.
    """
    name = name.strip().strip("\"'").strip()
    if name.lower().startswith(("http://", "https://", "file://")):
        name = urllib.parse.unquote(urllib.parse.urlsplit(name).path)
        if name[2:3] == ":":
            name = name[1:]  # file:///C:/...
    return name.replace("\\", "/")
