"""Writes a captioner's captions where the dataset keeps them.

    places = CaptionTargets(root, output, as_texts=False)
    places.read()   -> {image: CurrentCaption}          each image's current captions in all places
    places.write({image: text}, seen) -> set      writes them, except those that changed since
    `seen`, which are returned

The target is a metadata file, or text files beside the images. Other places where an image already
has a caption, a row or a text file, are written too, so that all agree: rows take precedence here,
text files in other trainers.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.dataset.edits import (
    METADATA_NAME,
    ChangedMeanwhile,
    can_be_named,
    write_caption_file,
    write_rows,
)
from lora_trainer.dataset.listing import Listing, list_folder
from lora_trainer.dataset.metadata import Row
from lora_trainer.dataset.scan import without_masks
from lora_trainer.dataset.sources import Captions, caption_in_file, read_captions
from lora_trainer.dataset.text import read_text
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings

_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class CurrentCaption:
    """The current captions of an image."""

    row: tuple[Path, Row] | None = None
    """The metadata file with its row, and the row."""
    text_files: tuple[tuple[Path, str], ...] = ()
    """The text files beside it in order of precedence, and their captions."""
    unreadable: str = ""
    """Why a caption cannot be read; it then counts as a person's."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All its non-empty captions; the first is trained."""
        row = [self.row[1].caption] if self.row else []
        return tuple(text for text in (*row, *(text for _, text in self.text_files)) if text)

    @property
    def caption(self) -> str:
        """The caption that is trained, or ""."""
        return self.texts[0] if self.texts else ""


class CaptionTargets:
    """The captions of a dataset folder, for one target."""

    def __init__(self, root: Path, output: Path | None, *, as_texts: bool = False) -> None:
        """output: the metadata file to write; None: the dataset's, or a new metadata.csv. as_texts:
        text files beside the images instead. Raises DatasetError if there is no such folder or no
        image in it.
        """
        self.root = root
        listing = list_folder(root)
        own = next((file for file in listing.metadata if file.parent == root), root / METADATA_NAME)
        self.target = None if as_texts else output or own
        self.is_apart = (
            output is not None
            and output not in listing.metadata
            and not (output.parent == root and output.stem.lower() == "metadata")
        )
        """Whether the target is a file that the dataset does not read by default: then only its
        captions count.
        """
        self.listing = self._list()
        self.images = tuple(without_masks(self.listing, self._captions())[0])

    def read(self) -> dict[Path, CurrentCaption]:
        """The current captions. Raises DatasetError for an unreadable metadata file, which must not
        be modified.
        """
        self.listing = self._list()
        captions = self._captions()
        for finding in captions.findings:
            if finding.kind == "unreadable-metadata":
                raise DatasetError(
                    finding.message.template,
                    hint=finding.hint.template,
                    **{**finding.hint.values, **finding.message.values},
                )
        return {image: self._current(image, captions) for image in self.listing.images}

    def write(self, captions: Mapping[Path, str], seen: Mapping[Path, CurrentCaption]) -> set[Path]:
        """Write {image: caption} to the target. Returns the images whose captions changed since
        `seen`, which are not written.

        Call it within `caption_provenance.changing_captions`. Each file is written atomically.
        Raises DatasetError; earlier files have been written.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._write(captions, seen)
            except ChangedMeanwhile:
                # another program saved a file at this moment: read it again
                continue
        return self._write(captions, seen)

    def _write(
        self, captions: Mapping[Path, str], seen: Mapping[Path, CurrentCaption]
    ) -> set[Path]:
        now = self.read()
        # images may have been removed meanwhile
        unchanged = {
            image: text
            for image, text in captions.items()
            if image in now and now[image].texts in (seen[image].texts, (text,))
        }
        replaced: dict[Path, dict[Row, str]] = defaultdict(dict)
        added: dict[Path, dict[str, str]] = defaultdict(dict)
        twins = Counter((image.parent, image.stem) for image in self.listing.images)
        if self.target is not None and not self.target.exists():
            now = self._carry_over(now, added[self.target], self.target)
        for image, text in unchanged.items():
            current = now[image]
            if current.row is not None:
                replaced[current.row[0]][current.row[1]] = text
            elif self.target is not None and can_be_named(image):
                added[self.target][_row_name(image, self.target)] = text
        for file in {**replaced, **added}:
            if replaced[file] or added[file]:
                write_rows(file, replaced[file], added[file])
        owners = Counter(file for current in now.values() for file, _ in current.text_files)
        for image, text in unchanged.items():
            # a.txt beside a.png and a.jpg cannot have the caption of one of them
            own = {file: was for file, was in now[image].text_files if owners[file] == 1}
            needs_text = self.target is None or not can_be_named(image)
            if needs_text and not own:
                own = {_text_file(image, twins): ""}
            for file, was in own.items():
                if was or needs_text:
                    write_caption_file(file, was, text)
        return {image for image in captions if image in now and image not in unchanged}

    def _carry_over(
        self, now: dict[Path, CurrentCaption], rows: dict[str, str], target: Path
    ) -> dict[Path, CurrentCaption]:
        """A new metadata.csv takes precedence over a metadata.jsonl beside it, so it gets those
        captions too.
        """
        after = dict(now)
        for image, current in now.items():
            if current.row is not None and current.row[0].parent == target.parent:
                rows[_row_name(image, target)] = current.row[1].caption
                after[image] = dataclasses.replace(current, row=None)
        return after

    def _list(self) -> Listing:
        listing = list_folder(self.root)
        if not self.is_apart:
            return listing
        assert self.target is not None
        return dataclasses.replace(
            listing, texts={}, tables=[], metadata=[self.target] if self.target.exists() else []
        )

    def _captions(self) -> Captions:
        return read_captions(self.listing, DatasetSettings(train_data_dir=self.root))

    def _current(self, image: Path, captions: Captions) -> CurrentCaption:
        rows = captions.rows.get(image, ())
        texts, unreadable = [], ""
        for file in self.listing.texts_beside(image):
            try:
                caption = caption_in_file(read_text(file).content, file)
                if caption is not None:
                    texts.append((file, caption))
            except DatasetError as problem:
                unreadable = str(problem)
        return CurrentCaption(
            row=rows[-1] if rows else None, text_files=tuple(texts), unreadable=unreadable
        )


def _text_file(image: Path, twins: Mapping[tuple[Path, str], int]) -> Path:
    """fox.txt for fox.png, or fox.png.txt if there is a fox.jpg too."""
    if twins[image.parent, image.stem] > 1:
        return image.with_name(image.name + ".txt")
    return image.with_suffix(".txt")


def _row_name(image: Path, table: Path) -> str:
    """The image's path relative to the metadata file's folder, with forward slashes."""
    try:
        return Path(os.path.relpath(image, table.parent)).as_posix()
    except ValueError:  # on another drive of Windows
        return image.as_posix()
