"""metadata.csv, metadata.jsonl and the like: a file of captions -> rows of (image name, caption).

CSV with a header (`file_name,text`, `image,caption` ...) or without one, separated by comma,
semicolon or tab, quoted or not, in the encodings of dataset.text; JSON lines; one JSON of kohya's
({path: {caption, tags}}) or of a list of objects. dataset.matching finds the images, dataset.edits
changes and adds rows. Every step takes linear time, and the file size is limited.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.dataset.captions import MAX_CAPTION_LENGTH, caption_of, require_length
from lora_trainer.dataset.findings import Finding, error
from lora_trainer.dataset.images import OTHER_IMAGE_SUFFIXES, READABLE_SUFFIXES
from lora_trainer.dataset.json_rows import CAPTION_COLUMNS, caption_in, entries, parse
from lora_trainer.dataset.text import LARGEST_TABLE, decode, guessed_encoding, read_bytes
from lora_trainer.errors import DatasetError
from lora_trainer.files import NotJson

JSON_SUFFIX = ".json"
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", JSON_SUFFIX})
"""Suffixes of files that may have captions of many images; a .json named like an image is that
image's.
"""

FILE_COLUMNS = tuple(
    (
        "file_name filename image file image_file image_name image_path file_path filepath path"
        " img url 文件名 图片 图像"
    ).split()
)
_DELIMITERS = (",", ";", "\t")
_DECLARED = re.compile(r"sep=(.)\n", re.IGNORECASE)
"""Excel's first line with the delimiter."""
_NEXT = "next"
_IMAGE_SUFFIXES = READABLE_SUFFIXES | OTHER_IMAGE_SUFFIXES
_ROW_BEGINS = re.compile(r"[^,;\t]*[,;\t]")
_ROW_HINT = (
    'A row is: name of the image, comma, caption in quotation marks, as in img01.jpg,"a red fox,'
    ' snow".'
)
_JSON_HINT = 'Each line is a JSON object with "file_name" and "text".'
_DOCUMENT_HINT = (
    'Captions are a list of objects with "file_name" and "text", or kohya\'s object of paths, each'
    ' with "caption" and "tags".'
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: the image's name as written, its caption with its lines, and the row's first line
    (from 1).
    """

    file_name: str
    caption: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Positions of image name and caption in a row, from 0."""

    file: int
    caption: int
    count: int
    """Number of columns."""


@dataclass(frozen=True, kw_only=True)
class CsvLayout:
    """The structure of a CSV."""

    delimiter: str
    columns: Columns
    first: int
    """Line of its header or first row, from 1."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """A metadata file's rows and problems."""

    path: Path
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    data: bytes | None = dataclasses.field(default=None, repr=False, compare=False)
    """The content that was read; None if unreadable."""
    layout: CsvLayout | None = dataclasses.field(default=None, repr=False, compare=False)
    """A CSV's structure; None for JSON."""


def read_metadata(path: Path, data: bytes | None = None) -> Metadata:
    """Read a metadata file, or `data` as its content. Never raises for the content: problems are
    findings.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".xlsx", ".xls", ".ods"):
            raise DatasetError(
                "{path} is a workbook, not a CSV file",
                hint='Save it as "CSV UTF-8" from Excel.',
                path=path,
            )
        if data is None:
            data = read_bytes(path, LARGEST_TABLE)
        text = decode(data, path)
        layout = None
        if suffix in (".jsonl", ".ndjson"):
            rows, findings = _read_jsonl(text.content, path)
        elif suffix == JSON_SUFFIX:
            rows, findings = _read_json(text.content, path)
        else:
            rows, findings, layout = _read_csv(text.content, path)
    except DatasetError as problem:
        unreadable = Finding(
            kind="unreadable-metadata",
            severity="error",
            message=problem.message,
            hint=problem.hint,
            path=path,
        )
        return Metadata(path=path, rows=(), findings=(unreadable,), data=data)
    return Metadata(
        path=path,
        rows=tuple(rows),
        findings=(*guessed_encoding(text, path, path.name), *findings),
        data=data,
        layout=layout,
    )


def names_an_image(name: str) -> bool:
    """Whether a cell looks like an image file name."""
    return "\n" not in name and name.strip().lower().endswith(tuple(_IMAGE_SUFFIXES))


# --- CSV ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """The cells of a row, and its lines in the file (from 1, inclusive)."""

    line: int
    last_line: int
    cells: list[str]

    def whole(self, columns: Columns, delimiter: str) -> list[str]:
        """The cells with an unquoted caption that its own commas split joined again."""
        last = len(self.cells)
        while last > columns.count and not self.cells[last - 1].strip():
            last -= 1  # Excel pads short rows
        cells = self.cells[:last]
        excess = max(0, len(cells) - columns.count)
        end = columns.caption + 1 + excess
        return [
            *cells[: columns.caption],
            _joined(cells[columns.caption : end], delimiter),
            *cells[end:],
        ]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A parsed CSV without its header."""

    layout: CsvLayout
    records: tuple[TableRow, ...]


def parse_csv(content: str, path: Path) -> Table:
    r"""Parse the text of a CSV, with `\
    ` as line ends. `path` is for the messages of DatasetError.
    """
    delimiter = delimiter_of(content)
    records = _records(content, delimiter, path)[1 if _DECLARED.match(content) else 0 :]
    header = _header(records, path) if records else None
    columns = header or Columns(file=0, caption=1, count=2)
    first = records[0].line if records else 1
    return Table(
        layout=CsvLayout(delimiter=delimiter, columns=columns, first=first),
        records=tuple(records[1:] if header else records),
    )


def delimiter_of(content: str) -> str:
    """The delimiter of a CSV: the declared or most plausible one."""
    declared = _DECLARED.match(content)
    if declared:
        return declared[1]
    return max(_DELIMITERS, key=lambda candidate: _plausibility(content, candidate))


def cells_of_line(text: str, delimiter: str) -> list[str] | None:
    """The cells of a single-line row; None if it ends inside a cell."""
    try:
        read = list(csv.reader([text, _NEXT], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return None
    return read[0] if len(read) == 2 and read[1] == [_NEXT] else None


def row_of_line(text: str, line: int, metadata: Metadata) -> Row | None:
    """A line parsed as a complete row, as when reading the file; else None."""
    layout = metadata.layout
    if layout is None:
        found = _json_line(text, line, metadata.path)
    else:
        cells = cells_of_line(text, layout.delimiter)
        if cells is None or not any(cell.strip() for cell in cells):
            return None
        found = _row(TableRow(line=line, last_line=line, cells=cells), layout, metadata.path)
    return found if isinstance(found, Row) else None


def _read_csv(content: str, path: Path) -> tuple[list[Row], list[Finding], CsvLayout]:
    table = parse_csv(content, path)
    return *_split_results(
        _row(record, table.layout, path) for record in table.records
    ), table.layout


def _split_results(results: Iterable[Row | Finding]) -> tuple[list[Row], list[Finding]]:
    rows, findings = [], []
    for result in results:
        if isinstance(result, Row):
            rows.append(result)
        else:
            findings.append(result)
    return rows, findings


def _records(content: str, delimiter: str, path: Path) -> list[TableRow]:
    """The rows of a CSV that are not blank."""
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True
    )
    records: list[TableRow] = []
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append(TableRow(line=start, last_line=reader.line_num, cells=cells))
            start = reader.line_num + 1
    except csv.Error as problem:
        hint = "A quotation mark is probably not closed."
        if "field larger than" in str(problem):
            template = "{path}, line {line}: a cell has more than {limit} characters"
            limit = csv.field_size_limit()
            raise DatasetError(template, hint=hint, path=path, line=start, limit=limit) from problem
        raise DatasetError(
            "{path}, line {line}: not valid CSV ({reason})",
            hint=hint,
            path=path,
            line=start,
            reason=problem,
        ) from problem
    return records


def _plausibility(content: str, delimiter: str) -> int:
    """A score of a delimiter for the first lines."""
    try:
        records = [
            cells
            for cells in csv.reader(
                content.split("\n", 50)[:50], delimiter=delimiter, skipinitialspace=True
            )
            if cells
        ]
    except csv.Error:
        return 0
    named = bool(records) and _named_columns(records[0]) is not None
    return 100 * named + sum(
        len(cells) > 1 and (named or names_an_image(cells[0])) for cells in records
    )


def _header(records: list[TableRow], path: Path) -> Columns | None:
    """The columns named in the first row, or None if it names an image. Raises DatasetError for a
    header without known columns.
    """
    first = records[0].cells
    named = _named_columns(first)
    if named or names_an_image(first[0]):
        return named
    file = _column(first, FILE_COLUMNS)
    rest_are_images = len(records) > 1 and all(
        names_an_image(record.cells[0]) for record in records[1:]
    )
    if file is None and not rest_are_images:
        return None
    # an unknown header
    file = file or 0
    if len(first) == 2:
        return Columns(file=file, caption=1 - file, count=2)
    template = "{path} has the columns {columns}: none of them is a known name for captions"
    raise DatasetError(
        template, hint="Name the columns file_name and text.", path=path, columns=", ".join(first)
    )


def _named_columns(cells: list[str]) -> Columns | None:
    file, caption = _column(cells, FILE_COLUMNS), _column(cells, CAPTION_COLUMNS)
    if file is None or caption is None:
        return None
    return Columns(file=file, caption=caption, count=len(cells))


def _column(cells: list[str], known: tuple[str, ...]) -> int | None:
    names = [re.sub(r"[\s-]+", "_", cell.strip().casefold()) for cell in cells]
    return next((names.index(name) for name in known if name in names), None)


def _row(record: TableRow, layout: CsvLayout, path: Path) -> Row | Finding:
    columns, line = layout.columns, record.line
    if any(map(_swallows_a_row, record.cells)):
        return _bad_row(
            "{name}, line {line}: a quotation mark is not closed, so the rows below it are lost",
            line,
            path,
        )
    cells = record.whole(columns, layout.delimiter)
    file_name = cells[columns.file].strip() if columns.file < len(cells) else ""
    if not file_name:
        return _bad_row("{name}, line {line}: no image is named", line, path)
    caption = cells[columns.caption] if columns.caption < len(cells) else ""
    return _checked(Row(file_name=file_name, caption=caption_of(caption), line=line), path)


def _checked(row: Row, path: Path) -> Row | Finding:
    try:
        require_length(row.caption, path.name)
    except DatasetError:
        template = "{name}, line {line}: the caption has {count} characters, more than {limit}"
        hint = "A text encoder reads some 1,000 at most."
        return error(
            "unreadable-row",
            template,
            hint=hint,
            path=path,
            name=path.name,
            line=row.line,
            count=len(row.caption),
            limit=MAX_CAPTION_LENGTH,
        )
    return row


def _swallows_a_row(cell: str) -> bool:
    """Whether a line inside a cell starts like a row: with an image name and a delimiter."""
    if "\n" not in cell:
        return False
    begins = (_ROW_BEGINS.match(line) for line in cell.split("\n")[1:])
    return any(match and names_an_image(match[0][:-1].strip().strip('"')) for match in begins)


def _joined(cells: list[str], delimiter: str) -> str:
    return (f"{delimiter} " if delimiter.strip() else " ").join(
        cell.strip() for cell in cells if cell.strip()
    )


def _bad_row(template: str, line: int, path: Path, hint: str = _ROW_HINT, **values: Any) -> Finding:
    return error(
        "unreadable-row", template, hint=hint, path=path, name=path.name, line=line, **values
    )


# --- JSON -----------------------------------------------------------------------------------------


def _read_jsonl(content: str, path: Path) -> tuple[list[Row], list[Finding]]:
    rows, findings = _split_results(
        _json_line(text, line, path)
        for line, text in enumerate(content.split("\n"), 1)
        if text.strip()
    )
    if not rows and len(findings) > 1:
        raise DatasetError("{path} is not a JSON Lines file", hint=_JSON_HINT, path=path)
    return rows, findings


def _json_line(text: str, line: int, path: Path) -> Row | Finding:
    try:
        values = parse(text)
    except NotJson as problem:
        return _bad_row(
            "{name}, line {line}: not valid JSON ({reason})", line, path, _JSON_HINT, reason=problem
        )
    return _json_row(None, values, line, path, _JSON_HINT)


def _read_json(content: str, path: Path) -> tuple[list[Row], list[Finding]]:
    """One JSON of many images. Raises DatasetError for anything else."""
    if not content.strip():
        return [], []
    line, before = 1, 0
    results = []
    try:
        for entry in entries(content):
            line += content.count("\n", before, entry.start)
            before = entry.start
            results.append(_json_row(entry.key, entry.value, line, path, _DOCUMENT_HINT))
    except NotJson as problem:
        if (
            content.lstrip()[:1] == "{"
            and "\n" in content.strip()
            and content.split("\n", 1)[0].strip().endswith("}")
        ):
            return _read_jsonl(content, path)  # JSON lines with another suffix
        raise DatasetError(
            "{path} is not valid JSON ({reason})", hint=_DOCUMENT_HINT, path=path, reason=problem
        ) from problem
    rows, findings = _split_results(results)
    if not rows:
        raise DatasetError(
            "{path} has no captions with the names of their images",
            hint=_DOCUMENT_HINT,
            path=path,
        )
    return rows, findings


def _json_row(key: str | None, values: object, line: int, path: Path, hint: str) -> Row | Finding:
    if key is None and not isinstance(values, Mapping):
        return _bad_row("{name}, line {line}: not a JSON object", line, path, hint)
    file_name = key
    if isinstance(values, Mapping):
        folded = {str(name).casefold(): value for name, value in values.items()}
        file_name = key
        if key is None:
            file_name = next((folded[name] for name in FILE_COLUMNS if name in folded), key)
    if not isinstance(file_name, str) or not file_name.strip():
        return _bad_row("{name}, line {line}: no image is named", line, path, hint)
    caption = caption_in(values)
    if caption is None and isinstance(values, Mapping):
        given = next(
            (folded[name] for name in CAPTION_COLUMNS if folded.get(name) is not None), None
        )
        if given is not None:
            return _bad_row(
                "{name}, line {line}: the caption is {caption}, not a text",
                line,
                path,
                hint,
                caption=repr(given)[:60],
            )
    elif caption is None:
        return _bad_row(
            "{name}, line {line}: the caption is {caption}, not a text",
            line,
            path,
            hint,
            caption=repr(values)[:60],
        )
    name = file_name.strip().encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return _checked(Row(file_name=name, caption=caption or "", line=line), path)
