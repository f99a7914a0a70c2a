"""metadata.csv and metadata.jsonl: a file of captions -> rows of (image name, caption).

Read as people write them: with a header (`file_name,text`, `image,caption` ...) or without one, separated by comma, semicolon or tab, quoted or not,
in the encodings of dataset.text. Which image a row means is for dataset.matching to find out; dataset.edits changes rows in place, and adds them.
Called by dataset.sources, dataset.edits and the tab's uploads.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.dataset.captions import tidy
from lora_trainer.dataset.findings import Finding, error
from lora_trainer.dataset.images import OTHER_PICTURE_SUFFIXES, READABLE_SUFFIXES
from lora_trainer.dataset.text import decode, guessed_encoding, read_text
from lora_trainer.errors import DatasetError

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
"""Suffixes of the files that may hold captions for many images."""

FILE_COLUMNS = (
    "file_name", "filename", "image", "file", "image_file", "image_name", "image_path", "file_path", "filepath", "path", "img", "url",
    "文件名", "图片", "图像",
)
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description", "additional_feature", "tags", "label", "描述", "提示词", "标注", "标签")
"""The columns' names, the surest first: a file with both `text` and `label` means `text`."""

_DELIMITERS = (",", ";", "\t")
_PICTURE_SUFFIXES = READABLE_SUFFIXES | OTHER_PICTURE_SUFFIXES
_ANY_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(_PICTURE_SUFFIXES))
_SWALLOWED_ROW = re.compile(rf'\n\s*"?[^\n,;\t"]+(?:{_ANY_SUFFIX})"?\s*[,;\t]', re.IGNORECASE)
_ROW_HINT = 'A row is: name of the image, comma, caption in quotation marks, as in img01.jpg,"a red fox, snow".'
_JSON_HINT = 'Each line is a JSON object with "file_name" and "text".'


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: the image's name as it is written, its caption as one line, and the line it starts in (from 1)."""

    file_name: str
    caption: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """A metadata file: its rows, and what was wrong with it."""

    path: Path
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]


def read_metadata(path: Path, data: bytes | None = None) -> Metadata:
    """Reads a metadata file, or `data` as if it were that file's. Never raises for its content: a file or row that cannot be read is a finding."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".xlsx", ".xls", ".ods"):
            raise DatasetError("{path} is a workbook, not a CSV file", hint='Save it as "CSV UTF-8" from Excel.', path=path)
        text = read_text(path) if data is None else decode(data, path)
        rows, findings = (_read_jsonl if suffix in (".jsonl", ".ndjson", ".json") else _read_csv)(text.content, path)
    except DatasetError as problem:
        unreadable = Finding(kind="unreadable-metadata", severity="error", message=problem.message, hint=problem.hint, path=path)
        return Metadata(path=path, rows=(), findings=(unreadable,))
    return Metadata(path=path, rows=tuple(rows), findings=(*guessed_encoding(text, path, path.name), *findings))


def names_a_picture(name: str) -> bool:
    """Whether a cell looks like the name of an image file."""
    return "\n" not in name and name.strip().lower().endswith(tuple(_PICTURE_SUFFIXES))


# --- CSV ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where in a row the image's name and the caption stand, from 0."""

    file: int
    caption: int
    count: int
    """How many columns there are."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The cells of one row, and the lines of the file it takes up (from 1, both included)."""

    line: int
    last_line: int
    cells: list[str]

    def whole(self, columns: Columns, delimiter: str) -> list[str]:
        """The cells with the caption in one piece, where its own commas, without quotation marks around it, cut it up."""
        cells = self.cells
        while len(cells) > columns.count and not cells[-1].strip():
            cells = cells[:-1]  # Excel fills short rows up
        excess = max(0, len(cells) - columns.count)
        end = columns.caption + 1 + excess
        return [*cells[: columns.caption], _joined(cells[columns.caption : end], delimiter), *cells[end:]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV taken apart: its rows without the header."""

    delimiter: str
    columns: Columns
    records: tuple[Record, ...]


def take_apart(content: str, path: Path) -> Table:
    """The text of a CSV, with `\\n` at the ends of lines -> Table. `path` is for the sentences of the DatasetError only."""
    declared = re.match(r"sep=(.)\n", content, re.IGNORECASE)  # Excel's own first line
    # of equally plausible delimiters, the first
    delimiter = declared[1] if declared else max(_DELIMITERS, key=lambda candidate: _plausibility(content, candidate))
    records = _records(content, delimiter, path)[1 if declared else 0 :]
    header = _header(records, path) if records else None
    columns = header or Columns(file=0, caption=1, count=2)
    return Table(delimiter=delimiter, columns=columns, records=tuple(records[1:] if header else records))


def _read_csv(content: str, path: Path) -> tuple[list[Row], list[Finding]]:
    table = take_apart(content, path)
    return _sorted_out(_row(record, table, path) for record in table.records)


def _sorted_out(results: Iterable[Row | Finding]) -> tuple[list[Row], list[Finding]]:
    rows, findings = [], []
    for result in results:
        if isinstance(result, Row):
            rows.append(result)
        else:
            findings.append(result)
    return rows, findings


def _records(content: str, delimiter: str, path: Path) -> list[Record]:
    """The rows of a CSV that are not blank."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True)
    records: list[Record] = []
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append(Record(line=start, last_line=reader.line_num, cells=cells))
            start = reader.line_num + 1
    except csv.Error as problem:
        hint = "A quotation mark is probably not closed."
        raise DatasetError("{path}, line {line}: not valid CSV ({reason})", hint=hint, path=path, line=start, reason=problem) from problem
    return records


def _plausibility(content: str, delimiter: str) -> int:
    """How much sense a delimiter makes of the first lines."""
    try:
        records = [cells for cells in csv.reader(content.split("\n", 50)[:50], delimiter=delimiter, skipinitialspace=True) if cells]
    except csv.Error:
        return 0
    named = bool(records) and _named_columns(records[0]) is not None
    return 100 * named + sum(len(cells) > 1 and (named or names_a_picture(cells[0])) for cells in records)


def _header(records: list[Record], path: Path) -> Columns | None:
    """The columns a first row names, or None when the first row is an image already. Raises DatasetError for a header that names too little."""
    first = records[0].cells
    named = _named_columns(first)
    if named or names_a_picture(first[0]):
        return named
    file = _column(first, FILE_COLUMNS)
    rest_are_pictures = len(records) > 1 and all(names_a_picture(record.cells[0]) for record in records[1:])
    if file is None and not rest_are_pictures:
        return None
    # a header in words of its own
    file = file or 0
    if len(first) == 2:
        return Columns(file=file, caption=1 - file, count=2)
    template = "{path} has the columns {columns}: none of them is known to hold captions"
    raise DatasetError(template, hint="Name the columns file_name and text.", path=path, columns=", ".join(first))


def _named_columns(cells: list[str]) -> Columns | None:
    file, caption = _column(cells, FILE_COLUMNS), _column(cells, CAPTION_COLUMNS)
    if file is None or caption is None:
        return None
    return Columns(file=file, caption=caption, count=len(cells))


def _column(cells: list[str], known: tuple[str, ...]) -> int | None:
    names = [re.sub(r"[\s-]+", "_", cell.strip().casefold()) for cell in cells]
    return next((names.index(name) for name in known if name in names), None)


def _row(record: Record, table: Table, path: Path) -> Row | Finding:
    columns, line = table.columns, record.line
    if any(_SWALLOWED_ROW.search(cell) for cell in record.cells):
        return _bad_row("{name}, line {line}: a quotation mark is not closed, so the rows below it are lost", line, path)
    cells = record.whole(columns, table.delimiter)
    file_name = cells[columns.file].strip() if columns.file < len(cells) else ""
    if not file_name:
        return _bad_row("{name}, line {line}: no image is named", line, path)
    caption = cells[columns.caption] if columns.caption < len(cells) else ""
    return Row(file_name=file_name, caption=tidy(caption), line=line)


def _joined(cells: list[str], delimiter: str) -> str:
    return (f"{delimiter} " if delimiter.strip() else " ").join(cell.strip() for cell in cells if cell.strip())


def _bad_row(template: str, line: int, path: Path, hint: str = _ROW_HINT, **values: Any) -> Finding:
    return error("unreadable-row", template, hint=hint, path=path, name=path.name, line=line, **values)


# --- JSON lines --------------------------------------------------------------------------------------------------------------------------


def _read_jsonl(content: str, path: Path) -> tuple[list[Row], list[Finding]]:
    rows, findings = _sorted_out(_json_row(text, line, path) for line, text in enumerate(content.split("\n"), 1) if text.strip())
    if not rows and len(findings) > 1:
        raise DatasetError("{path} is not a file of JSON lines", hint=_JSON_HINT, path=path)
    return rows, findings


def _json_row(text: str, line: int, path: Path) -> Row | Finding:
    try:
        values = json.loads(text)
    except ValueError as problem:
        return _bad_row("{name}, line {line}: not valid JSON ({reason})", line, path, _JSON_HINT, reason=problem)
    if not isinstance(values, dict):
        return _bad_row("{name}, line {line}: not a JSON object", line, path, _JSON_HINT)
    values = {str(key).casefold(): value for key, value in values.items()}
    file_name = next((values[key] for key in FILE_COLUMNS if key in values), None)
    caption = next((values[key] for key in CAPTION_COLUMNS if key in values), None)
    if not isinstance(file_name, str) or not file_name.strip():
        return _bad_row("{name}, line {line}: no image is named", line, path, _JSON_HINT)
    if isinstance(caption, list):
        caption = ", ".join(str(part) for part in caption)
    if not isinstance(caption, str | None):
        return _bad_row("{name}, line {line}: the caption is {caption!r}, not a text", line, path, _JSON_HINT, caption=caption)
    return Row(file_name=file_name.strip(), caption=tidy(caption or ""), line=line)
