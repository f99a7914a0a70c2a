"""Finds the caption of each image.

    read_captions  a row of metadata.csv or the like, else the text beside the image, else a row of
                   another table
    fill_in        else a kohya folder's name; else, if no image has a caption, the trigger word;
                   else an error

The first non-empty one is used; differing ones are reported. Folder names and trigger word are not
used if there are files that look like captions.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lora_trainer.dataset.captions import caption_of, is_list, require_length, tidy
from lora_trainer.dataset.findings import Finding, Kind, error, from_error, warning
from lora_trainer.dataset.json_rows import caption_in, parse
from lora_trainer.dataset.listing import Listing, file_suffix, missing
from lora_trainer.dataset.matching import Match, MatchQuality, NameIndex
from lora_trainer.dataset.metadata import JSON_SUFFIX, Metadata, Row, read_metadata
from lora_trainer.dataset.text import Text, decode, guessed_encoding, read_bytes
from lora_trainer.dataset.unread_files import unread_captions
from lora_trainer.errors import DatasetError
from lora_trainer.files import NotJson
from lora_trainer.settings.training import DatasetSettings

CaptionSource = Literal["metadata", "text", "folder_name", "trigger_word"]

MOST_NAMED = 10
"""Images named in a message."""
_CHOOSE_ONE = "Keep the one you mean."


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as written, and its file, if any."""

    text: str
    source: CaptionSource
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions found so far, and findings about them."""

    by_image: Mapping[Path, Caption]
    """Without images that have none, or an empty one."""
    spoiled: frozenset[Path]
    """Images whose only caption is unreadable; the findings have an error for each."""
    findings: tuple[Finding, ...]
    rows: Mapping[Path, tuple[tuple[Path, Row], ...]] = dataclasses.field(default_factory=dict)
    """Image -> the rows for it, each with its metadata file; the last one is used."""


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """A text file beside an image, as read."""

    data: bytes | None
    """Its content; None if unreadable."""
    caption: Caption | None = None
    """None for a .json without a caption."""
    problem: DatasetError | None = None
    guess: Text | None = None
    """The text, if its encoding was guessed."""


class Reader:
    """Reads caption files. dataset.index has a caching one."""

    def text(self, path: Path) -> CaptionFile:
        return read_caption_file(path)

    def table(self, path: Path) -> Metadata:
        return read_metadata(path)

    def names(self, listing: Listing) -> NamesOf:
        return NamesOf(listing)


def read_captions(
    listing: Listing, settings: DatasetSettings, reader: Reader | None = None
) -> Captions:
    """Read the metadata files and text files of a dataset. Raises DatasetError if
    settings.metadata_path does not exist.
    """
    reader = reader or Reader()
    index = reader.names(listing)
    rows, all_rows, findings = _rows(
        [reader.table(file) for file in _metadata_files(listing, settings)], index, listing
    )
    by_image: dict[Path, Caption] = {}
    spoiled: set[Path] = set()
    for image in listing.images:
        beside = listing.texts_beside(image)
        if len(beside) == 1 and image not in rows:
            # fast path for most images
            read = reader.text(beside[0])
            if read.caption is not None and read.guess is None:
                if read.caption.text:
                    by_image[image] = read.caption
                continue
        texts, text_findings = _texts(image, listing, reader)
        written = [caption for caption in (rows.get(image), *texts) if caption and caption.text]
        if written:
            by_image[image] = written[0]
            findings += _disagreement(image, written, listing)
            # unused files may be unreadable
            text_findings = [
                dataclasses.replace(finding, severity="warning") for finding in text_findings
            ]
        elif any(finding.severity == "error" for finding in text_findings):
            spoiled.add(image)
        findings += text_findings
    lacking = {image for image in listing.images if image not in by_image and image not in spoiled}
    if lacking and settings.metadata_path is None:
        rows, more_rows, more_findings = _other_rows(index, lacking, listing, reader)
        by_image |= {
            image: caption for image, caption in rows.items() if caption.text and image in lacking
        }
        all_rows = {**more_rows, **all_rows}
        findings += more_findings
    findings += [*_shared(by_image, listing), *_structures(by_image, listing)]
    return Captions(
        by_image=by_image, spoiled=frozenset(spoiled), findings=tuple(findings), rows=all_rows
    )


def fill_in(
    captions: Captions, images: Sequence[Path], listing: Listing, settings: DatasetSettings
) -> Captions:
    """Give `images` without a caption the one from a kohya folder's name or the trigger word;
    report an error for the others.
    """
    lacking = [
        image
        for image in images
        if image not in captions.by_image and image not in captions.spoiled
    ]
    read = {file for rows in captions.rows.values() for file, _ in rows}
    unread = unread_captions(listing, lacking, read)
    if unread:
        findings = [*unread, *(_no_caption(image, listing) for image in lacking)]
        return dataclasses.replace(captions, findings=(*captions.findings, *findings))
    filled, findings = _from_folder_names(lacking, listing)
    lacking = [image for image in lacking if image not in filled]
    if (
        lacking
        and settings.trigger_word.strip()
        and not (captions.by_image or captions.spoiled or filled)
    ):
        filled, findings = _from_trigger_word(lacking, settings.trigger_word.strip())
    else:
        findings += [_no_caption(image, listing) for image in lacking]
    return dataclasses.replace(
        captions, by_image={**captions.by_image, **filled}, findings=(*captions.findings, *findings)
    )


def _from_folder_names(
    images: Sequence[Path], listing: Listing
) -> tuple[dict[Path, Caption], list[Finding]]:
    """The class name is the caption, as in kohya's trainer."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        kohya = listing.kohya_folder_of(image.parent)
        if kohya and kohya.class_name:
            folders[image.parent].append(image)
    filled: dict[Path, Caption] = {}
    findings = []
    template = (
        "{folder}: images without a caption of their own ({count}) get the one in the folder's"
        ' name, "{caption}"'
    )
    for folder, members in folders.items():
        kohya = listing.kohya_folder_of(folder)
        assert kohya
        filled.update(
            {image: Caption(text=tidy(kohya.class_name), source="folder_name") for image in members}
        )
        finding = warning(
            "folder-name-caption",
            template,
            path=folder,
            folder=listing.folder_name(folder),
            count=len(members),
            caption=tidy(kohya.class_name),
        )
        findings.append(finding)
    return filled, findings


def _from_trigger_word(
    images: Sequence[Path], word: str
) -> tuple[dict[Path, Caption], list[Finding]]:
    template = (
        'no image has a caption ({count} in all); the trigger word "{word}" is the caption of each'
    )
    hint = "Captions that say what differs from image to image make a more flexible LoRA."
    finding = warning("trigger-word-caption", template, hint=hint, count=len(images), word=word)
    return {image: Caption(text=word, source="trigger_word") for image in images}, [finding]


def _no_caption(image: Path, listing: Listing) -> Finding:
    hint = "Write a .txt file of the same name beside each, or a row in metadata.csv."
    values = {"name": listing.name(image)}
    if listing.tables and not listing.metadata:
        hint += " If {table} holds the captions, set metadata_path to it."
        values["table"] = listing.tables[0].name
    texts = listing.texts_beside(image)
    if texts and texts[0].suffix.lower() != JSON_SUFFIX:
        return error(
            "no-caption",
            "{name} has no caption: {file} is empty",
            hint=hint,
            path=image,
            file=texts[0].name,
            **values,
        )
    return error("no-caption", "{name} has no caption", hint=hint, path=image, **values)


# --- text files beside the images -----------------------------------------------------------------


def _texts(image: Path, listing: Listing, reader: Reader) -> tuple[list[Caption], list[Finding]]:
    captions: list[Caption] = []
    findings: list[Finding] = []
    for path in listing.texts_beside(image):
        read = reader.text(path)
        if read.problem is not None:
            findings.append(
                from_error("unreadable-caption", read.problem, path, listing.name(path))
            )
        elif read.caption is not None:
            captions.append(read.caption)
            if read.guess is not None:
                findings += guessed_encoding(read.guess, path, listing.name(path))
    return captions, findings


def read_caption_file(path: Path, data: bytes | None = None) -> CaptionFile:
    """Read a text file beside an image, or `data` as its content. Never raises for the content."""
    try:
        if data is None:
            data = read_bytes(path)
        text = decode(data, path)
        caption = caption_in_file(text.content, path)
        if caption is None:
            return CaptionFile(data=data)
        require_length(caption, path)
    except DatasetError as problem:
        return CaptionFile(data=data, problem=problem)
    return CaptionFile(
        data=data,
        caption=Caption(text=caption, source="text", path=path),
        guess=text if text.is_guess else None,
    )


def caption_in_file(content: str, path: Path) -> str | None:
    """The caption in a text file's content; None for a .json without one. Raises DatasetError for
    invalid JSON.
    """
    if file_suffix(path.name) != JSON_SUFFIX:
        return caption_of(content)
    try:
        return caption_in(parse(content)) if content.strip() else ""
    except NotJson as problem:
        hint = 'It is an object with "caption", or with "tags".'
        raise DatasetError(
            "{path} is not valid JSON ({reason})", hint=hint, path=path, reason=problem
        ) from problem


def _structures(by_image: Mapping[Path, Caption], listing: Listing) -> list[Finding]:
    """Hints about captions of several lines, and about those whose lines are one caption."""
    lined = {image: caption.text for image, caption in by_image.items() if "\n" in caption.text}
    several = [image for image, text in lined.items() if not is_list(text)]
    # unambiguous if each line ends in a comma
    lists = [
        image
        for image, text in lined.items()
        if is_list(text) and text.split("\n")[0][-1] not in ",，"
    ]
    findings = []
    if several:
        template = (
            "images with several captions, one per line ({count}, such as {name}): one is chosen"
            " at random each time"
        )
        hint = "If the lines are one caption, put them into one line."
        findings.append(_hint("several-captions", template, hint, several, listing))
    if lists:
        template = (
            "captions with one tag a line ({count}, such as that of {name}): the lines of each are"
            " read as one list of tags"
        )
        hint = "If the lines are captions of their own, end each with a full stop."
        findings.append(_hint("several-captions", template, hint, lists, listing))
    return findings


def _hint(
    kind: Kind, template: str, hint: str, images: Sequence[Path], listing: Listing
) -> Finding:
    found = warning(kind, template, hint=hint, count=len(images), name=listing.name(images[0]))
    return dataclasses.replace(found, severity="info", related=tuple(images))


def _disagreement(image: Path, written: Sequence[Caption], listing: Listing) -> list[Finding]:
    used = written[0]
    others = [
        caption.path.name for caption in written[1:] if caption.text != used.text and caption.path
    ]
    if not others or not used.path:
        return []
    template = "{name}: {used} and {others} have different captions; that in {used} is used"
    values: dict[str, Any] = {
        "name": listing.name(image),
        "used": used.path.name,
        "others": " and ".join(others),
    }
    return [warning("captions-differ", template, hint=_CHOOSE_ONE, path=image, **values)]


def _shared(by_image: Mapping[Path, Caption], listing: Listing) -> list[Finding]:
    """A warning for each text file of two images (a.png and a.jpg)."""
    users: dict[Path, list[Path]] = defaultdict(list)
    for image, caption in by_image.items():
        if caption.source == "text" and caption.path:
            users[caption.path].append(image)
    template = "{images} share the caption in {file}"
    hint = "If they are one image, remove one; if not, rename one and write its own caption."
    return [
        warning(
            "shared-caption",
            template,
            hint=hint,
            path=path,
            images=" and ".join(listing.name(image) for image in images),
            file=path.name,
        )
        for path, images in users.items()
        if len(images) > 1
    ]


# --- rows of metadata files -----------------------------------------------------------------------


class NamesOf:
    """The images of a listing by name, indexed on first use."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def find(self, name: str, folders: Sequence[Path]) -> Match:
        return self._index.find(name, folders)

    @cached_property
    def _index(self) -> NameIndex:
        return NameIndex([*self.listing.images, *self.listing.others])


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """A row that matches one image."""

    row: Row
    file: Path
    quality: MatchQuality


def _rows(
    tables: Sequence[Metadata], index: NamesOf, listing: Listing
) -> tuple[dict[Path, Caption], dict[Path, tuple[tuple[Path, Row], ...]], list[Finding]]:
    """Image -> the caption in its row; image -> all its rows."""
    claims: dict[Path, list[_Claim]] = defaultdict(list)
    findings: list[Finding] = []
    for metadata in tables:
        file = metadata.path
        folders = (file.parent, listing.root)
        findings += metadata.findings
        for row in metadata.rows:
            match = index.find(row.file_name, folders)
            if len(match.images) == 1:
                claims[match.images[0]].append(_Claim(row=row, file=file, quality=match.quality))
            else:
                findings.append(_unmatched(row, file, match, listing))
    captions, by_image = {}, {}
    for image, claimed in claims.items():
        rivals, claim_findings = _resolve_claims(image, claimed, listing)
        captions[image] = Caption(
            text=rivals[-1].row.caption, source="metadata", path=rivals[-1].file
        )
        by_image[image] = tuple((claim.file, claim.row) for claim in rivals)
        findings += claim_findings
    return captions, by_image, findings


def _other_rows(
    index: NamesOf, lacking: Collection[Path], listing: Listing, reader: Reader
) -> tuple[dict[Path, Caption], dict[Path, tuple[tuple[Path, Row], ...]], list[Finding]]:
    """The same for other tables that have rows for images `lacking` a caption; a finding for each
    table.
    """
    tables, findings = [], []
    for file in listing.tables:
        metadata, folders = reader.table(file), (file.parent, listing.root)
        meant = [index.find(row.file_name, folders).images for row in metadata.rows if row.caption]
        if not any(len(images) == 1 and images[0] in lacking for images in meant):
            continue
        tables.append(metadata)
        template = "{name} is read as the table of captions"
        hint = "If it is something else, move it out of the folder."
        findings.append(
            dataclasses.replace(
                warning("other-table", template, hint=hint, path=file, name=listing.name(file)),
                severity="info",
            )
        )
    rows, all_rows, row_findings = _rows(tables, index, listing)
    return rows, all_rows, [*findings, *row_findings]


def _metadata_files(listing: Listing, settings: DatasetSettings) -> Sequence[Path]:
    path = settings.metadata_path
    if path is None:
        return listing.metadata
    if path.is_dir():
        raise DatasetError(
            "metadata_path {path} is a folder",
            hint="Give the file, as in {path}/metadata.csv.",
            path=path,
        )
    if not path.exists():
        raise missing(path, "metadata_path {path} does not exist")
    return [path]


def _resolve_claims(
    image: Path, claims: Sequence[_Claim], listing: Listing
) -> tuple[list[_Claim], list[Finding]]:
    """Of several rows for an image those with the best match, of which the last is used. Worse
    matches are reported as missing files.
    """
    best = min(claim.quality for claim in claims)
    rivals = [claim for claim in claims if claim.quality == best]
    chosen, row = rivals[-1], rivals[-1].row
    nothing = Match(images=(), quality=best)
    findings = [
        _unmatched(claim.row, claim.file, nothing, listing)
        for claim in claims
        if claim.quality > best
    ]
    values: dict[str, Any] = {"name": listing.name(image), "file": chosen.file.name}
    if any(claim.row.caption != row.caption for claim in rivals):
        template = (
            "{name} has several rows with different captions (lines {lines} of {file}); the last is"
            " used"
        )
        lines = ", ".join(str(claim.row.line) for claim in rivals)
        findings.append(
            warning(
                "duplicate-row", template, hint=_CHOOSE_ONE, path=chosen.file, lines=lines, **values
            )
        )
    if best == MatchQuality.OTHER_SUFFIX:
        template = "{file}, line {line}: there is no {image}; {name} is used instead"
        findings.append(
            warning(
                "other-suffix",
                template,
                path=chosen.file,
                line=row.line,
                image=row.file_name,
                **values,
            )
        )
    return rivals, findings


def _unmatched(row: Row, file: Path, match: Match, listing: Listing) -> Finding:
    values = {"file": file.name, "line": row.line, "image": row.file_name}
    if match.images:
        # limited: many rows may match many images
        images = ", ".join(listing.name(image) for image in match.images[:MOST_NAMED]) + (
            " ..." if len(match.images) > MOST_NAMED else ""
        )
        hint = "Write the path from train_data_dir, as in folder/img01.jpg."
        return error(
            "ambiguous-row",
            "{file}, line {line}: {image} matches several images: {images}",
            hint=hint,
            path=file,
            images=images,
            **values,
        )
    hint = "Put the images into train_data_dir, or remove the rows."
    return error(
        "row-without-file",
        "{file}, line {line}: there is no image {image}",
        hint=hint,
        path=file,
        **values,
    )
