"""Where a captioner's captions go, and what stands there now.

    places = CaptionPlaces(root, output, as_texts=False)
    places.look()   -> {image: Standing}          what each image's captions are now, wherever they
                                                  stand
    places.write({image: text}, seen) -> set      writes them, but for those whose captions someone
                                                  changed since they were `seen`: these come back

The target is a metadata file, or text files beside the images. Wherever else an image has a caption
already, in a row or in a text file, that is written too: rows are read first here, text files by
other trainers, and what was written is what is to be trained. Called by the caption job.
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
class Standing:
    """What the captions of one image are now."""

    row: tuple[Path, Row] | None = None
    """The metadata file that has a row for it, and the row."""
    text_files: tuple[tuple[Path, str], ...] = ()
    """The text files beside it, the first to be preferred, and what they say."""
    unreadable: str = ""
    """Why a caption of it cannot be read, if so: then it counts as a person's."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All its captions that are not empty, the one that is trained first."""
        row = [self.row[1].caption] if self.row else []
        return tuple(text for text in (*row, *(text for _, text in self.text_files)) if text)

    @property
    def caption(self) -> str:
        """The caption that is trained, or nothing."""
        return self.texts[0] if self.texts else ""


class CaptionPlaces:
    """The captions of one dataset folder, for one target."""

    def __init__(self, root: Path, output: Path | None, *, as_texts: bool = False) -> None:
        """Raises DatasetError when there is no such folder or no image in it.

        output: the metadata file to write; None: the dataset's own, or a new metadata.csv.
        as_texts: text files beside the images instead.
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
        """The target is a file that the dataset does not read by itself: only what stands in it
        counts.
        """
        self.listing = self._list()
        self.images = tuple(without_masks(self.listing, self._captions())[0])

    def look(self) -> dict[Path, Standing]:
        """What stands there now. Raises DatasetError for a metadata file that cannot be read:
        nothing may be written into it.
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
        return {image: self._standing(image, captions) for image in self.listing.images}

    def write(self, captions: Mapping[Path, str], seen: Mapping[Path, Standing]) -> set[Path]:
        """{image: caption} -> the target. Returns the images whose captions are no longer as they
        were `seen`: they keep what they have.

        Call it within `caption_provenance.changing_captions`. Each file is written whole or not at
        all. Raises DatasetError; files before it have been written.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._write(captions, seen)
            except ChangedMeanwhile:
                # another program saved a file in this very moment; what it saved is looked at now
                continue
        return self._write(captions, seen)

    def _write(self, captions: Mapping[Path, str], seen: Mapping[Path, Standing]) -> set[Path]:
        now = self.look()
        # an image that was removed meanwhile needs no caption
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
            standing = now[image]
            if standing.row is not None:
                replaced[standing.row[0]][standing.row[1]] = text
            elif self.target is not None and can_be_named(image):
                added[self.target][_row_name(image, self.target)] = text
        for file in {**replaced, **added}:
            if replaced[file] or added[file]:
                write_rows(file, replaced[file], added[file])
        owners = Counter(file for standing in now.values() for file, _ in standing.text_files)
        for image, text in unchanged.items():
            # a.txt beside a.png and a.jpg is no place for the caption of one of them
            own = {file: was for file, was in now[image].text_files if owners[file] == 1}
            needs_text = self.target is None or not can_be_named(image)
            if needs_text and not own:
                own = {_text_file(image, twins): ""}
            for file, was in own.items():
                if was or needs_text:
                    write_caption_file(file, was, text)
        return {image for image in captions if image in now and image not in unchanged}

    def _carry_over(
        self, now: dict[Path, Standing], rows: dict[str, str], target: Path
    ) -> dict[Path, Standing]:
        """A new metadata.csv is read in place of a metadata.jsonl beside it, whose captions must
        not be lost from sight: they get rows in it too.
        """
        after = dict(now)
        for image, standing in now.items():
            if standing.row is not None and standing.row[0].parent == target.parent:
                rows[_row_name(image, target)] = standing.row[1].caption
                after[image] = dataclasses.replace(standing, row=None)
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

    def _standing(self, image: Path, captions: Captions) -> Standing:
        rows = captions.rows.get(image, ())
        texts, unreadable = [], ""
        for file in self.listing.texts_beside(image):
            try:
                caption = caption_in_file(read_text(file).content, file)
                if caption is not None:
                    texts.append((file, caption))
            except DatasetError as problem:
                unreadable = str(problem)
        return Standing(
            row=rows[-1] if rows else None, text_files=tuple(texts), unreadable=unreadable
        )


def _text_file(image: Path, twins: Mapping[tuple[Path, str], int]) -> Path:
    """fox.txt for fox.png; fox.png.txt where there is a fox.jpg too, whose caption is another."""
    return (
        image.with_name(image.name + ".txt")
        if twins[image.parent, image.stem] > 1
        else image.with_suffix(".txt")
    )


def _row_name(image: Path, table: Path) -> str:
    """How a row names its image: the path from the metadata file's folder, with forward slashes."""
    try:
        return Path(os.path.relpath(image, table.parent)).as_posix()
    except ValueError:  # on another drive of Windows
        return image.as_posix()
