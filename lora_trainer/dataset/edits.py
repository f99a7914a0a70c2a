"""Edits captions in place: a row of a metadata file, or a text file. Everything else in the file is
kept byte for byte.

    write_captions(listing, captions, {image: text})    each where it was read from; a new one where
    the dataset keeps its captions
    after_writing(captions, listing, changes, written)  what reading them again would give
    rows_of(captions, images) -> rows                   as they are in the file
    remove_rows(captions, images)                       for removed images
    restore_rows(rows)                                  for restored images

Encoding, byte-order mark, line ends, other columns and rows are kept. What is to be written is
parsed before a file is replaced: a change that would lose another row's caption is refused, as is
one of a file changed by another program meanwhile.

New captions go into one metadata.csv, which opens in a spreadsheet and is replaced atomically;
except if captions are in .txt files already, or in kohya's folders, which other trainers read.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_trainer.dataset.captions import caption_of, require_length
from lora_trainer.dataset.json_rows import JsonEntry, entries, with_caption
from lora_trainer.dataset.listing import CAPTION_SUFFIXES, Listing
from lora_trainer.dataset.metadata import (
    JSON_SUFFIX,
    CsvLayout,
    Metadata,
    Row,
    TableRow,
    cells_of_line,
    delimiter_of,
    parse_csv,
    read_metadata,
    row_of_line,
)
from lora_trainer.dataset.sources import Caption, Captions, caption_in_file, read_caption_file
from lora_trainer.dataset.text import decode, encode_like, write_bytes
from lora_trainer.errors import DatasetError
from lora_trainer.files import NotJson

WRITERS = 8
METADATA_NAME = "metadata.csv"
"""The file for new captions."""

_NEW_TABLE = "\ufefffile_name,text\n".encode()  # with a BOM, Excel reads it as UTF-8
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z")
_QUOTED = re.compile(r' *"(?:[^"]|"")*(?:"|\Z)')
_WORD = re.compile(r"\w+|\W")
_PLAIN_NAME = re.compile(r"\w[\w ./()+,-]*\w")
_MOST_ALONE = 50
"""Up to this many rows are changed individually; beyond, reading the whole table is as fast."""
_LONGEST_DIFFERENCE = 4000
"""In characters: word-by-word comparison takes more than linear time."""
_CODECS = {"utf-8": "utf-8-sig"}


@dataclass(frozen=True, kw_only=True)
class RemovedRow:
    """A row removed from a metadata file, as it was: `text` without its line end."""

    file: Path
    text: str


class ChangedMeanwhile(DatasetError):
    """The file differs from what was read; read again."""


def clean(caption: str) -> str:
    """A caption as it is stored. Raises DatasetError if it is too long."""
    kept = caption_of(caption)
    require_length(kept, "the caption")
    return kept


@dataclass(frozen=True, kw_only=True)
class WrittenFiles:
    """The written files' new content."""

    tables: Mapping[Path, Metadata] = field(default_factory=dict)
    texts: Mapping[Path, bytes] = field(default_factory=dict)


def write_captions(
    listing: Listing,
    captions: Captions,
    changes: Mapping[Path, str],
    tables_read: Mapping[Path, Metadata] | None = None,
) -> WrittenFiles:
    """{image of the listing: new caption} -> the dataset's files; an empty one removes the caption.

    `captions` is from read_captions, and `tables_read` what it read: an unchanged table is not read
    again. Each file is written once, atomically. Raises DatasetError, naming the file, if one
    cannot be written; others may have been.
    """
    tables: dict[Path, _Edits] = defaultdict(_Edits)
    texts: dict[Path, tuple[str, str]] = {}
    for image, changed in changes.items():
        caption = clean(changed)
        place = _place(image, listing, captions)
        if isinstance(place, tuple):
            file, row = place
            tables[file].replaced[row] = caption
        elif place.suffix.lower() in CAPTION_SUFFIXES or place in listing.texts.values():
            texts[place] = (_text_of(image, place, captions), caption)
        elif caption:
            tables[place].added.append((image.relative_to(place.parent).as_posix(), caption))
    known = tables_read or {}
    rewritten = {file: _change(file, edits, known.get(file)) for file, edits in tables.items()}
    return WrittenFiles(tables=rewritten, texts=_write_texts(texts))


def _write_texts(texts: Mapping[Path, tuple[str, str]]) -> dict[Path, bytes]:
    """{file: (expected caption, new caption)} -> new content of each."""
    if len(texts) == 1:
        return {file: write_caption_file(file, *change) for file, change in texts.items()}
    # in parallel, because each waits for the disk
    with ThreadPoolExecutor(max(1, min(WRITERS, len(texts)))) as pool:
        waiting = {
            file: pool.submit(write_caption_file, file, was, caption)
            for file, (was, caption) in texts.items()
        }
        try:
            return {file: written.result() for file, written in waiting.items()}
        finally:
            for written in waiting.values():
                written.cancel()


def after_writing(
    captions: Captions,
    listing: Listing,
    changes: Mapping[Path, str],
    written: WrittenFiles,
    tables_read: Mapping[Path, Metadata],
) -> Captions | None:
    """The captions after writing `changes`, {image: caption}, as reading them again would give;
    None if only reading can tell, such as for removed captions, several lines, or several places.
    """
    reported = {finding.path for finding in captions.findings if finding.kind != "no-caption"}
    kinds = {finding.kind for finding in captions.findings}
    if not {"guessed-encoding", "unread-captions"}.isdisjoint(kinds):
        return None  # their messages quote captions
    if not all(_stayed(tables_read.get(file), table) for file, table in written.tables.items()):
        return None
    by_image, rows = dict(captions.by_image), dict(captions.rows)
    new = _NewRows(tables_read, written.tables)
    for image, text in changes.items():
        before = captions.by_image.get(image)
        if not text or "\n" in text or (before is not None and "\n" in before.text):
            return None
        if image in captions.spoiled or not reported.isdisjoint(
            {image, *listing.texts_beside(image)}
        ):
            return None
        if before is None and listing.tables:
            return None  # other tables are read for images without a caption
        if before is not None and before.source not in ("metadata", "text"):
            return None  # filled-in captions are reported with their count
        caption = _alone(image, listing, rows, written.texts, new)
        if caption is None or caption.text != text:
            return None
        by_image[image] = caption
    findings = tuple(
        finding
        for finding in captions.findings
        if finding.kind != "no-caption" or finding.path not in changes
    )
    return replace(captions, by_image=by_image, rows=rows, findings=findings)


def _stayed(before: Metadata | None, after: Metadata) -> bool:
    """Whether each row of a table is still on its line, and new ones are valid."""
    return (
        before is not None
        and len(before.findings) == len(after.findings)
        and len(before.rows) <= len(after.rows)
        and all(was.line == now.line for was, now in zip(before.rows, after.rows, strict=False))
    )


class _NewRows:
    """The rows of tables after they were written."""

    def __init__(self, before: Mapping[Path, Metadata], after: Mapping[Path, Metadata]) -> None:
        self._by_line = {(file, row.line): row for file in after for row in after[file].rows}
        self._added = {
            (file, row.file_name): row
            for file in after
            for row in after[file].rows[len(before[file].rows) :]
        }
        self._files = tuple(after)

    def of(self, image: Path, own: Sequence[tuple[Path, Row]]) -> tuple[Path, Row] | None:
        """The row of an image that has only its `own`, at most one, or a new one."""
        if own:
            file, was = own[0]
            row = self._by_line.get((file, was.line))
            return (file, row) if row is not None and row.file_name == was.file_name else None
        named = [(file, image.relative_to(file.parent).as_posix()) for file in self._files]
        found = [
            (file, self._added[file, name]) for file, name in named if (file, name) in self._added
        ]
        # names with URL escapes are left to the reader
        return (
            found[0] if len(found) == 1 and _PLAIN_NAME.fullmatch(found[0][1].file_name) else None
        )


def _alone(
    image: Path,
    listing: Listing,
    rows: dict[Path, tuple[tuple[Path, Row], ...]],
    texts: Mapping[Path, bytes],
    new: _NewRows,
) -> Caption | None:
    """The written caption of an image with exactly one file or row; updates `rows`. None for
    several.
    """
    beside, own = listing.texts_beside(image), rows.get(image, ())
    if len(beside) == 1 and not own:
        if beside[0] not in texts or beside[0] in listing.shared_texts:
            return None
        read = read_caption_file(beside[0], texts[beside[0]])
        return read.caption if read.guess is None else None
    if beside or len(own) > 1:
        return None
    place = new.of(image, own)
    if place is None:
        return None
    rows[image] = (place,)
    return Caption(text=place[1].caption, source="metadata", path=place[0])


def rows_of(captions: Captions, images: Collection[Path]) -> dict[Path, tuple[RemovedRow, ...]]:
    """Image -> its rows in the metadata files, in order, for restore_rows. Raises DatasetError."""
    places = {image: captions.rows[image] for image in images if image in captions.rows}
    tables = {}
    for file in {file for rows in places.values() for file, _ in rows}:
        data = file.read_bytes()
        if not {row for rows in places.values() for other, row in rows if other == file} <= set(
            read_metadata(file, data).rows
        ):
            raise _changed(file)
        tables[file] = _lines(file, data)
    return {
        image: tuple(RemovedRow(file=file, text=tables[file].text_of(row)) for file, row in rows)
        for image, rows in places.items()
    }


def remove_rows(captions: Captions, images: Collection[Path]) -> None:
    """Remove the images' rows from the metadata files. Raises DatasetError."""
    tables: dict[Path, _Edits] = defaultdict(_Edits)
    for image in images:
        for file, row in captions.rows.get(image, ()):
            tables[file].removed.add(row)
    for file, edits in tables.items():
        _change(file, edits)


def restore_rows(rows: Sequence[RemovedRow]) -> None:
    """Append removed rows to their files. Raises DatasetError."""
    tables: dict[Path, _Edits] = defaultdict(_Edits)
    for row in rows:
        tables[row.file].texts.append(row.text)
    for file, edits in tables.items():
        _change(file, edits)


def write_rows(file: Path, replaced: Mapping[Row, str], added: Mapping[str, str]) -> None:
    """Write {row as read: caption} and {image name: caption of a new row} into one metadata file,
    created if missing. Raises DatasetError.
    """
    new_rows = [(name, clean(caption)) for name, caption in added.items()]
    _change(
        file,
        _Edits(replaced={row: clean(caption) for row, caption in replaced.items()}, added=new_rows),
    )


def _place(image: Path, listing: Listing, captions: Captions) -> Path | tuple[Path, Row]:
    """Where the image's caption belongs: an existing row, or a file."""
    caption = captions.by_image.get(image)
    if caption and caption.source == "text" and caption.path:
        return caption.path
    if image in captions.rows:
        return captions.rows[image][-1]
    beside = listing.texts_beside(image)
    if beside:
        return beside[0]
    if not can_be_named(image):
        return image.with_suffix(".txt")
    tables = {file.parent: file for file in listing.metadata}
    around = next((tables[folder] for folder in image.parents if folder in tables), None)
    if around:
        return around
    if any(
        caption.source == "text" for caption in captions.by_image.values()
    ) or listing.kohya_folder_of(image.parent):
        return image.with_suffix(".txt")
    return listing.root / METADATA_NAME


def can_be_named(image: Path) -> bool:
    """Whether a table can name this file: on Linux, names may not be valid UTF-8. A text file can
    have the same name.
    """
    try:
        str(image).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- text files -----------------------------------------------------------------------------------


def _text_of(image: Path, file: Path, captions: Captions) -> str:
    caption = captions.by_image.get(image)
    return caption.text if caption and caption.path == file else ""


def write_caption_file(file: Path, was: str, caption: str) -> bytes:
    """Write a caption to a text file, created if missing. Returns its content. Raises
    ChangedMeanwhile if it does not contain `was`, or DatasetError.
    """
    before = file.read_bytes() if file.exists() else b""
    content = decode(before, file).content
    if (caption_in_file(content, file) or "") != was:
        raise _changed(file)
    if caption == was:
        return before
    end = _line_end(before, file)
    if file.suffix.lower() == JSON_SUFFIX:
        content = (
            with_caption(content, caption)
            if content.strip()
            else json.dumps({"caption": caption}, ensure_ascii=False) + "\n"
        )
        content = content.replace("\n", end)
    else:
        content = (
            _spliced(_raw(before, file), was, caption, end)
            if was
            else f"{caption}\n".replace("\n", end)
        )
    after = encode_like(content, before, file)
    write_bytes(file, after)
    return after


def _spliced(content: str, was: str, caption: str, end: str) -> str:
    """Change only the words that differ between `was` and `caption` in the text containing `was`,
    keeping other whitespace and line ends. New lines end in `end`. If `was` is not found literally,
    as in a damaged cell, everything is replaced.
    """
    whole = f"{caption}\n".replace("\n", end)
    places, at = [], 0
    for letter in was:
        if letter in " \n":
            places.append(at)
        else:
            at = content.find(letter, at)
            if at < 0:
                return whole
            places.append(at)
            at += 1
    places.append(at)
    spliced = content
    for front, back, new in reversed(_differences(was, caption)):
        spliced = spliced[: places[front]] + new.replace("\n", end) + spliced[places[back] :]
    return spliced if caption_of(spliced) == caption else whole


def _differences(was: str, caption: str) -> list[tuple[int, int, str]]:
    """(start, end, new text) in `was` for each differing word, or one long range if too much
    differs.
    """
    front = _equal(was, caption)
    back = _equal(was[front:][::-1], caption[front:][::-1])
    before, after = was[front : len(was) - back], caption[front : len(caption) - back]
    if max(len(before), len(after)) > _LONGEST_DIFFERENCE:
        return [(front, len(was) - back, after)]
    old, new = _WORD.findall(before), _WORD.findall(after)
    starts = [front, *itertools.accumulate(map(len, old), initial=front)][1:]
    changes = difflib.SequenceMatcher(None, old, new).get_opcodes()
    return [
        (starts[i], starts[j], "".join(new[k:m])) for kind, i, j, k, m in changes if kind != "equal"
    ]


def _equal(one: str, other: str) -> int:
    """Length of the common prefix."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _line_end(data: bytes, file: Path) -> str:
    """The most frequent line end of a file; "
    " if there is none.
    """
    if not data:
        return "\n"
    text = _raw(data, file)
    return (
        "\r\n"
        if 2 * text.count("\r\n") > text.count("\n")
        else "\r"
        if "\r" in text and "\n" not in text
        else "\n"
    )


def _raw(data: bytes, file: Path) -> str:
    """A file's text with its line ends unchanged."""
    encoding = decode(data, file).encoding
    return data.decode(_CODECS.get(encoding, encoding))


def _changed(file: Path) -> ChangedMeanwhile:
    return ChangedMeanwhile("{file} was changed by another program", hint="Try again.", file=file)


# --- metadata files -------------------------------------------------------------------------------


@dataclass
class _Edits:
    """Changes to one metadata file."""

    replaced: dict[Row, str] = field(default_factory=dict)
    """Row as read -> its new caption."""
    removed: set[Row] = field(default_factory=set)
    added: list[tuple[str, str]] = field(default_factory=list)
    """(image name, caption) of new rows."""
    texts: list[str] = field(default_factory=list)
    """New rows as text."""


def _change(file: Path, edits: _Edits, known: Metadata | None = None) -> Metadata:
    """Edit and replace a metadata file, created if missing. Returns its new content. `known`: its
    content when last read. Raises DatasetError.
    """
    before = file.read_bytes() if file.exists() else b"" if _is_json(file) else _NEW_TABLE
    table = known if known is not None and known.data == before else read_metadata(file, before)
    meant = {*edits.replaced, *edits.removed}
    places = {row.line for row in meant}
    if not meant <= {row for row in table.rows if row.line in places}:
        raise _changed(file)
    changed = _line_by_line(table, before, edits)
    if changed is None:
        after = encode_like(_lines(file, before).edited(edits), before, file)
        changed = read_metadata(file, after)
        _require_nothing_lost(table.rows, edits, changed)
    if file.exists() and file.read_bytes() != before:
        raise _changed(file)
    assert changed.data is not None
    write_bytes(file, changed.data)
    return changed


def _line_by_line(table: Metadata, before: bytes, edits: _Edits) -> Metadata | None:
    """The table with replaced and appended rows, without parsing all of it: possible if each is one
    line that starts where the previous ends, and the others are unchanged; else None.
    """
    file, is_lines = table.path, table.path.suffix.lower() in (".jsonl", ".ndjson")
    if table.findings or not table.rows or edits.removed or edits.texts:
        return None
    if not is_lines and table.layout is None:
        return None
    rows = [*edits.replaced, table.rows[-1]] if edits.added else [*edits.replaced]
    if len(rows) > _MOST_ALONE or (
        table.layout and any(row.line == table.layout.first for row in rows)
    ):
        return None
    lines = _JsonLines(file, before) if is_lines else _Csv(file, before, table.layout)
    if edits.added and lines.count != table.rows[-1].line:
        return None
    if any(row_of_line(lines.line(row.line), row.line, table) != row for row in rows):
        return None
    if isinstance(lines, _Csv):
        lines.take(rows)
    after = encode_like(lines.edited(edits), before, file)
    content = decode(after, file).content
    if table.layout is not None and delimiter_of(content) != table.layout.delimiter:
        return None
    expected = [replace(row, caption=caption) for row, caption in edits.replaced.items()]
    expected += [
        Row(file_name=name, caption=caption, line=lines.count + number)
        for number, (name, caption) in enumerate(edits.added, 1)
    ]
    now = content.split("\n")
    if len(now) - (now[-1] == "") != lines.count + len(edits.added):
        return None
    if any(row_of_line(now[row.line - 1], row.line, table) != row for row in expected):
        return None
    by_line = {row.line: row for row in expected}
    kept = [by_line.pop(row.line, row) for row in table.rows]
    return replace(table, rows=(*kept, *by_line.values()), data=after)


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in (".jsonl", ".ndjson", JSON_SUFFIX)


def _lines(file: Path, data: bytes) -> _Lines:
    if file.suffix.lower() == JSON_SUFFIX and decode(data, file).content.lstrip()[:1] in (
        "[",
        "{",
        "",
    ):
        try:
            return _JsonDocument(file, data)
        except NotJson:
            return _JsonLines(file, data)
    return _JsonLines(file, data) if _is_json(file) else _Csv(file, data)


def _require_nothing_lost(rows: Sequence[Row], edits: _Edits, after: Metadata) -> None:
    """Raise DatasetError if parsing the new content gives other rows than expected: an unclosed
    quotation mark anywhere swallows what follows.
    """
    kept = [
        (row.file_name, edits.replaced.get(row, row.caption))
        for row in rows
        if row not in edits.removed
    ]
    found = [(row.file_name, row.caption) for row in after.rows]
    complete = len(found) == len(kept) + len(edits.added) + len(edits.texts)
    if (
        not complete
        or found[: len(kept)] != kept
        or found[len(kept) :][: len(edits.added)] != edits.added
    ):
        raise DatasetError(
            "{file} cannot be changed row by row without losing others",
            hint=(
                "Open it in a spreadsheet or text editor, close every quotation mark, and name the"
                " columns file_name and text."
            ),
            file=after.path,
        )


class _Lines:
    """The lines of a metadata file, with their ends. Rows are addressed by their line when read."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.content = decode(data, path).content
        self._lines: list[str] = _LINE.findall(_raw(data, path))
        self._ending = "\r\n" if self._lines and self._lines[0].endswith("\r\n") else "\n"

    @property
    def count(self) -> int:
        """Number of lines."""
        return len(self._lines)

    def line(self, number: int) -> str:
        """A line, from 1, without its end."""
        return self._lines[number - 1].rstrip("\r\n")

    def last_line(self, row: Row) -> int:
        """The last line of a row."""
        return row.line

    def row_text(self, row: Row, caption: str) -> str:
        """An existing row with another caption."""
        raise NotImplementedError

    def new_text(self, name: str, caption: str) -> str:
        """A row for an image without one."""
        raise NotImplementedError

    def text_of(self, row: Row) -> str:
        """A row as in the file, without its line end."""
        return "".join(self._lines[row.line - 1 : self.last_line(row)]).rstrip("\r\n")

    def edited(self, edits: _Edits) -> str:
        lines: list[str] = list(self._lines)
        for row, caption in edits.replaced.items():
            last = self.last_line(row)
            end = lines[last - 1][len(lines[last - 1].rstrip("\r\n")) :]
            lines[row.line - 1 : last] = [
                self.row_text(row, caption) + end,
                *[""] * (last - row.line),
            ]
        for row in edits.removed:
            last = self.last_line(row)
            lines[row.line - 1 : last] = [""] * (last - row.line + 1)
        content = "".join(lines)
        new = [self.new_text(name, caption) for name, caption in edits.added] + edits.texts
        if new and content and not content.endswith(("\r", "\n")):
            content += self._ending
        return content + "".join(text + self._ending for text in new)


class _JsonLines(_Lines):
    def row_text(self, row: Row, caption: str) -> str:
        return with_caption(self.text_of(row), caption)

    def new_text(self, name: str, caption: str) -> str:
        return json.dumps({"file_name": name, "text": caption}, ensure_ascii=False)


class _JsonDocument(_Lines):
    """One JSON list of objects, or kohya's {path: {caption, tags}}: its members are the rows."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(path, data)
        self._raw = "".join(self._lines)
        self._is_object = self._raw.lstrip()[:1] == "{"
        self._by_row: dict[tuple[int, str], JsonEntry] = {}
        line, before = 1, 0
        names: dict[int, set[str]] = defaultdict(set)
        for row in read_metadata(path, data).rows:
            names[row.line].add(row.file_name)
        for entry in entries(self._raw):
            line += self._raw.count("\n", before, entry.start)
            before = entry.start
            for name in names[line]:
                if _is_named(entry, name):
                    self._by_row[line, name] = entry

    def text_of(self, row: Row) -> str:
        entry = self._by_row[row.line, row.file_name]
        return self._raw[entry.member_start : entry.end]

    def edited(self, edits: _Edits) -> str:
        raw = self._raw
        changes = [
            (self._by_row[row.line, row.file_name], caption)
            for row, caption in edits.replaced.items()
        ]
        slices = [
            (entry.start, entry.end, with_caption(raw[entry.start : entry.end], caption))
            for entry, caption in changes
        ]
        gone = {self._by_row[row.line, row.file_name].member_start for row in edits.removed}
        members = list(entries(raw)) if raw.strip() else []
        staying = [entry for entry in members if entry.member_start not in gone]
        for index, entry in enumerate(members):
            if entry.member_start in gone:
                # with the comma after it, or before it for the last one
                slices.append(
                    (
                        entry.member_start,
                        members[index + 1].member_start if index + 1 < len(members) else entry.end,
                        "",
                    )
                )
        if staying and staying[-1] is not members[-1]:
            # remove what follows the last remaining member, and its comma
            comma = raw.index(",", staying[-1].end)
            slices.append((comma, members[members.index(staying[-1]) + 1].member_start, ""))
        new = [self.new_text(name, caption) for name, caption in edits.added] + edits.texts
        if new and not raw.strip():
            return "[" + ", ".join(new) + "]\n"
        if new:
            at = staying[-1].end if staying else len(raw.rstrip()) - 1
            slices.append((at, at, (", " if staying else "") + ", ".join(new)))
        for start, end, text in sorted(
            slices, key=lambda change: (change[0], change[1]), reverse=True
        ):
            raw = raw[:start] + text + raw[end:]
        return raw

    def new_text(self, name: str, caption: str) -> str:
        if self._is_object:
            return (
                f"{json.dumps(name, ensure_ascii=False)}:"
                f" {json.dumps({'caption': caption}, ensure_ascii=False)}"
            )
        return json.dumps({"file_name": name, "text": caption}, ensure_ascii=False)


def _is_named(entry: JsonEntry, name: str) -> bool:
    """Whether a row of this name is from this member; for several on one line."""
    if entry.key is not None:
        return (entry.key or "").strip() == name
    return name in {str(value).strip() for value in entry.value.values()}


class _Csv(_Lines):
    """`layout`: known delimiter and columns; rows must then be passed to `take`."""

    def __init__(self, path: Path, data: bytes, layout: CsvLayout | None = None) -> None:
        super().__init__(path, data)
        if layout is not None:
            self._layout, self._records = layout, dict[int, TableRow]()
            return
        table = parse_csv(self.content, path)
        self._layout = table.layout
        self._records = {record.line: record for record in table.records}

    def take(self, rows: Sequence[Row]) -> None:
        """Parse these rows, each of which is one line."""
        for row in rows:
            cells = cells_of_line(self.line(row.line), self._layout.delimiter) or []
            self._records[row.line] = TableRow(line=row.line, last_line=row.line, cells=cells)

    def last_line(self, row: Row) -> int:
        return self._records[row.line].last_line

    def row_text(self, row: Row, caption: str) -> str:
        columns = self._layout.columns
        cells = self._records[row.line].whole(columns, self._layout.delimiter)
        spliced = self._spliced_row(row, caption, cells)
        if spliced is not None:
            return spliced
        cells += [""] * (columns.caption + 1 - len(cells))
        cells[columns.caption] = caption
        return self._written(cells)

    def _spliced_row(self, row: Row, caption: str, cells: list[str]) -> str | None:
        """The row with only the caption's cell changed; None if it has none, or is split by
        unquoted commas.
        """
        text = self.text_of(row)
        place = self._layout.columns.caption
        delimiter = self._layout.delimiter
        spans, before = _cell_spans(text, delimiter), self._records[row.line].cells
        if place >= len(cells) or caption_of(before[place]) != row.caption:
            return None
        start, end = spans[place]
        line_end = "\r\n" if "\r\n" in text else "\n"
        spliced = (
            text[:start]
            + _cell(text[start:end], row.caption, caption, line_end, delimiter)
            + text[end:]
        )
        found: list[str] = next(
            csv.reader(
                io.StringIO(spliced, newline=""), delimiter=delimiter, skipinitialspace=True
            ),
            [],
        )
        expected = [*before[:place], caption, *before[place + 1 :]]
        if (
            len(found) == len(before)
            and [*found[:place], caption_of(found[place]), *found[place + 1 :]] == expected
        ):
            return spliced
        return None

    def new_text(self, name: str, caption: str) -> str:
        columns = self._layout.columns
        cells = [""] * columns.count
        cells[columns.file], cells[columns.caption] = name, caption
        return self._written(cells)

    def _written(self, cells: list[str]) -> str:
        buffer = io.StringIO()
        # set explicitly, so that cells with line ends are quoted
        csv.writer(buffer, delimiter=self._layout.delimiter, lineterminator="\n").writerow(cells)
        return buffer.getvalue().removesuffix("\n")


def _cell_spans(text: str, delimiter: str) -> list[tuple[int, int]]:
    """(start, end) of a row's cells, with quotation marks and surrounding spaces."""
    spans: list[tuple[int, int]] = []
    at = 0
    while True:
        start = at
        quoted = _QUOTED.match(text, at)
        at = text.find(delimiter, quoted.end() if quoted else at)
        if at < 0:
            return [*spans, (start, len(text))]
        spans.append((start, at))
        at += 1


def _cell(raw: str, was: str, caption: str, end: str, delimiter: str) -> str:
    """A cell as in the file with another caption instead of `was`."""
    quoted = _QUOTED.match(raw)
    front, back = (
        (raw[: raw.index('"')], raw[quoted.end() :])
        if quoted
        else (raw[: len(raw) - len(raw.lstrip(" "))], "")
    )
    content = raw[len(front) : len(raw) - len(back)]
    if quoted:
        content = content[1:].removesuffix('"').replace('""', '"')
    written = _spliced(content, was, caption, end) if was else caption.replace("\n", end)
    if not content.endswith("\n"):
        written = written.removesuffix(end)
    if quoted or any(sign in written for sign in (delimiter, '"', "\r", "\n")):
        written = '"' + written.replace('"', '""') + '"'
    return front + written + back
