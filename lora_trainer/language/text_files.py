"""Files of question and answer pairs, conversations and plain texts, entry by entry: read, and
changed without touching what else they hold.

    read(path) -> TextFile             its entries, each with its place in the text
    fields_of(value) -> Fields         the texts of an entry that can be edited, by role
    file.replaced(entry, texts)        the file's content with one entry's texts changed
    file.without(entry), .inserted(...), .with_pair(question, answer)
    write(file, content)               in the file's own encoding; never over a newer version

Keys, columns, entries and spacing that are not edited stay as they are, byte for byte. What the
entries mean is told in conversations.py. Without torch.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lora_trainer import files
from lora_trainer.dataset.text import LARGEST_TABLE, Text, decode, encode_like, read_bytes
from lora_trainer.dataset.text import write_bytes as write_text_bytes
from lora_trainer.errors import DatasetError, Message

QUESTIONS = ("question", "instruction", "prompt", "query", "问题", "指令", "提问")
CONTEXTS = ("input", "context", "上下文", "输入")
ANSWERS = ("answer", "output", "response", "completion", "回答", "答案", "输出")
"""Names of columns and keys, in order of precedence."""
LISTS = ("messages", "conversations")
ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
TABLE_SUFFIXES = (".csv", ".tsv")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TABLE_SUFFIXES, *JSON_LINES_SUFFIXES, ".json", *TEXT_SUFFIXES)

Role = Literal["system", "user", "context", "assistant", "text"]
"""context: what an instruction is about, a key of its own."""
Path_ = tuple[Any, ...]
_LONE_RETURN = re.compile(r"\r(?!\n)")


class NoExample(Exception):
    """An entry that is no example, and why."""

    def __init__(self, template: str, **values: Any) -> None:
        super().__init__(template)
        self.reason = Message(template, values)


@dataclass(frozen=True, kw_only=True)
class TextField:
    """A text of an entry: stripped, and where it stands in the entry's value."""

    role: Role
    text: str
    path: Path_


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a file. start, end: of its text in the file's content, without the line end or
    comma after it.
    """

    place: str
    """ "line 12", "entry 3"; empty for a file that is one entry."""
    start: int
    end: int
    value: Any
    """A mapping, as of JSON or of a table's columns; NoExample where it cannot be read."""
    to_text: Callable[[Any], str]
    """A changed value -> its text."""

    def fields(self) -> tuple[TextField, ...]:
        """The texts that can be edited. Raises NoExample."""
        if isinstance(self.value, NoExample):
            raise self.value
        return fields_of(self.value)


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file's content, decoded, with its own line ends."""

    path: Path
    before: bytes
    text: Text
    content: str
    entries: tuple[Entry, ...]

    @property
    def form(self) -> Literal["table", "lines", "list", "whole"]:
        """How its entries are put together; whole: the file is one entry."""
        suffix = self.path.suffix.lower()
        if suffix in TABLE_SUFFIXES:
            return "table"
        if suffix in JSON_LINES_SUFFIXES:
            return "lines"
        is_list = suffix == ".json" and self.content.lstrip("\ufeff \t\r\n").startswith("[")
        return "list" if is_list else "whole"

    @cached_property
    def raws(self) -> tuple[str, ...]:
        """The text of each entry."""
        return tuple(self.content[entry.start : entry.end] for entry in self.entries)

    @property
    def line_end(self) -> str:
        return "\r\n" if "\r\n" in self.content else "\n"

    # --- changed ----------------------------------------------------------------------------------

    def replaced(self, number: int, raw: str) -> str:
        """The content with another text for an entry."""
        entry = self.entries[number]
        return self.content[: entry.start] + raw + self.content[entry.end :]

    def edited(self, number: int, texts: Sequence[str]) -> str:
        """The text of an entry whose fields have these texts; those that are equal stay as they
        are written. Raises NoExample.
        """
        entry = self.entries[number]
        fields = entry.fields()
        value = copy.deepcopy(entry.value)
        changed = False
        for field, text in zip(fields, texts, strict=True):
            if text.strip() != field.text:
                _put(value, field.path, text)
                changed = True
        return entry.to_text(value) if changed else self.raws[number]

    def without(self, number: int) -> str:
        """The content without an entry."""
        entry, content = self.entries[number], self.content
        if self.form == "list":
            last = number == len(self.entries) - 1
            if len(self.entries) == 1:
                return content[: entry.start] + content[entry.end :]
            if last:
                return content[: self.entries[number - 1].end] + content[entry.end :]
            return content[: entry.start] + content[self.entries[number + 1].start :]
        end = entry.end
        for line_end in ("\r\n", "\n"):
            if content.startswith(line_end, end):
                end += len(line_end)
                break
        return content[: entry.start] + content[end:]

    def inserted(self, number: int, raw: str) -> str:
        """The content with another entry before an entry; after the last one from there on."""
        content = self.content
        if self.form == "list":
            between = self._between()
            if number < len(self.entries):
                start = self.entries[number].start
                return content[:start] + raw + between + content[start:]
            if self.entries:
                end = self.entries[-1].end
                return content[:end] + between + raw + content[end:]
            start = content.index("[") + 1
            return content[:start] + raw + content[start:]
        if number < len(self.entries):
            start = self.entries[number].start
            return content[:start] + raw + self.line_end + content[start:]
        ends = not content or content.endswith("\n")
        return content + ("" if ends else self.line_end) + raw + self.line_end

    def _between(self) -> str:
        """What stands between two entries of a list."""
        if len(self.entries) > 1:
            return self.content[self.entries[0].end : self.entries[1].start]
        return "," + self.line_end if "\n" in self.content else ", "

    def new_pair(self, question: str, answer: str) -> str | None:
        """The text of a new entry in the form of the others; None if the file takes none."""
        if self.form == "whole":
            return None
        if self.form == "table":
            return self._new_row(question, answer)
        for entry in reversed(self.entries):
            try:
                value = _pair_like(entry.value, entry.fields(), question, answer)
            except NoExample:
                continue
            if value is not None:
                return json.dumps(value, ensure_ascii=False)
        return pair_line(question, answer)

    def _new_row(self, question: str, answer: str) -> str | None:
        columns, delimiter, _ = _table_head(self.content)
        values = {
            next((name for name in names if name in columns), ""): text
            for names, text in ((QUESTIONS, question), (ANSWERS, answer))
        }
        if "" in values or len(values) < 2:
            return None
        return _row_text([values.get(name, "") for name in columns], delimiter)


def read(path: Path) -> TextFile:
    """A file with its entries. Raises DatasetError if it is no text."""
    before = read_bytes(path, LARGEST_TABLE)
    text = decode(before, path)
    content = text.content
    if "\r" in before.decode("latin-1"):
        encoding = "utf-8-sig" if text.encoding == "utf-8" else text.encoding
        own = before.decode(encoding)
        content = text.content if _LONE_RETURN.search(own) else own
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        entries = _table_rows(content)
    elif suffix in JSON_LINES_SUFFIXES:
        entries = _json_lines(content)
    elif suffix == ".json":
        entries = _json_list(content)
    else:
        entries = iter([_whole(content, {"text": content}, _PlainWriter(content))])
    return TextFile(path=path, before=before, text=text, content=content, entries=tuple(entries))


def write(file: TextFile, content: str) -> None:
    """Write the file's new content. Raises DatasetError, also if the file was changed since it was
    read.
    """
    if read_bytes(file.path, LARGEST_TABLE) != file.before:
        raise DatasetError(
            "{path} was changed by another program at this moment",
            hint="Try again.",
            path=file.path,
        )
    write_text_bytes(file.path, encode_like(content, file.before, file.path))


def pair_line(question: str, answer: str) -> str:
    """A pair as a line of JSON."""
    return json.dumps({"question": question, "answer": answer}, ensure_ascii=False)


def list_files(folder: Path) -> list[Path]:
    """The files with texts of a folder, in order of their names, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def key_of(name: str, raw: str, occurrence: int) -> str:
    """A key of an entry that stays while its text does, wherever it moves in its file."""
    told = f"{name}\0{raw}\0{occurrence}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(told, digest_size=9).hexdigest()


# --- the forms of a file --------------------------------------------------------------------------


def _whole(content: str, value: Any, to_text: Callable[[Any], str]) -> Entry:
    return Entry(place="", start=0, end=len(content), value=value, to_text=to_text)


@dataclass(frozen=True)
class _PlainWriter:
    """Writes a plain text with the space around it and the line ends that it had."""

    content: str

    def __call__(self, value: Mapping[str, Any]) -> str:
        before = self.content
        start = before[: len(before) - len(before.lstrip())]
        end = before[len(before.rstrip()) :] if before.strip() else "\n"
        text = str(value["text"]).strip().replace("\r\n", "\n")
        return start + (text.replace("\n", "\r\n") if "\r\n" in before else text) + end


def _lines(content: str) -> list[str]:
    # not splitlines(), which also splits at U+2028 and U+0085
    lines = content.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _table_head(content: str) -> tuple[list[str], str, bool]:
    """Columns, delimiter, and whether the first row names the columns. The delimiter is the most
    frequent one of the first line.
    """
    first = content.lstrip("\ufeff\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(
        _lines(content.lstrip("\ufeff")), delimiter=delimiter, skipinitialspace=True
    )
    try:
        row = next((row for row in reader if any(cell.strip() for cell in row)), [])
    except csv.Error:
        row = []
    columns = [cell.strip().casefold() for cell in row]
    if set(columns) & {*QUESTIONS, "messages", "text"}:
        return columns, delimiter, True
    return ["question", "answer"], delimiter, False


def _table_rows(content: str) -> Iterator[Entry]:
    """The rows of a CSV, as {column: value}; without a header, the first two columns."""
    columns, delimiter, has_header = _table_head(content)
    lines = _lines(content)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    before = 0
    try:
        for row in rows:
            start, end = offsets[before], offsets[rows.line_num]
            before = rows.line_num
            if not any(cell.strip() for cell in row):
                continue
            if has_header:
                has_header = False
                continue
            cells = [cell.replace("\r\n", "\n") for cell in row]
            yield Entry(
                place=f"line {rows.line_num}",
                start=start,
                end=start + len(content[start:end].rstrip("\r\n")),
                # zip: a row may have fewer cells, and more than are named are of no use
                value=dict(zip(columns, cells, strict=False)),
                to_text=_RowWriter(columns, row, delimiter),
            )
    except csv.Error as problem:
        yield Entry(
            place=f"line {rows.line_num}",
            start=offsets[before],
            end=offsets[before] + len(lines[before].rstrip("\r\n")) if before < len(lines) else 0,
            value=NoExample("{reason}", reason=problem),
            to_text=str,
        )


@dataclass(frozen=True)
class _RowWriter:
    """Writes a row with some columns changed."""

    columns: Sequence[str]
    row: Sequence[str]
    delimiter: str

    def __call__(self, value: Mapping[str, Any]) -> str:
        cells = list(self.row) + [""] * max(0, len(self.columns) - len(self.row))
        # of columns with the same name, the last one is read
        for number, name in enumerate(self.columns):
            is_read = name not in self.columns[number + 1 :]
            if (
                is_read
                and name in value
                and str(value[name]) != cells[number].replace("\r\n", "\n")
            ):
                cells[number] = str(value[name])
        return _row_text(cells, self.delimiter)


def _row_text(cells: Iterable[str], delimiter: str) -> str:
    stream = io.StringIO()
    # a cell with a line end is quoted because of the row's own
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return stream.getvalue().removesuffix("\n")


def _json_lines(content: str) -> Iterator[Entry]:
    start = 0
    for number, line in enumerate(_lines(content), 1):
        if line.strip("\ufeff \t\r\n"):
            yield Entry(
                place=f"line {number}",
                start=start,
                end=start + len(line.rstrip("\r\n")),
                value=_parsed(line),
                to_text=lambda value: json.dumps(value, ensure_ascii=False),
            )
        start += len(line)


def _json_list(content: str) -> Iterator[Entry]:
    values = _parsed(content)
    if not isinstance(values, list):
        indent = 2 if "\n" in content.strip() else None
        yield _whole(
            content, values, lambda value: json.dumps(value, ensure_ascii=False, indent=indent)
        )
        return
    for number, (value, (start, end)) in enumerate(
        zip(values, files.json_spans(content), strict=True), 1
    ):
        yield Entry(
            place=f"entry {number}",
            start=start,
            end=end,
            value=value,
            to_text=_JsonWriter(content, start, end),
        )


@dataclass(frozen=True)
class _JsonWriter:
    """Writes an object as it stood: in one line, or indented."""

    content: str
    start: int
    end: int

    def __call__(self, value: Any) -> str:
        raw = self.content[self.start : self.end]
        if "\n" not in raw:
            return json.dumps(value, ensure_ascii=False)
        line = self.content.rfind("\n", 0, self.start) + 1
        outer = self.content[line : self.start]
        outer = outer if not outer.strip() else ""
        inner = re.match(r"[ \t]*", raw.split("\n")[1])
        assert inner is not None
        indent = inner[0].removeprefix(outer) or "  "
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        end = "\r\n" if "\r\n" in self.content else "\n"
        return text.replace("\n", end + outer)


def _parsed(text: str) -> Any:
    try:
        return files.parse_json(text.lstrip("\ufeff"))
    except files.NotJson as problem:
        return NoExample("it is not JSON ({reason})", reason=problem)


# --- the forms of an entry ------------------------------------------------------------------------


def fields_of(entry: Any) -> tuple[TextField, ...]:
    """The texts of an entry in the order of a conversation, with what is empty as it is. Raises
    NoExample.
    """
    if not isinstance(entry, Mapping):
        raise NoExample("it is not an object")
    keys = {str(key).strip().casefold(): key for key in entry}
    for name in LISTS:
        if name in keys:
            messages = tuple(_messages(entry[keys[name]], keys[name]))
            if not messages or messages[-1].role != "assistant":
                raise NoExample("its last message is not an answer")
            return messages
    question, answer = (_named(entry, keys, "user", QUESTIONS), None)
    answer = _named(entry, keys, "assistant", ANSWERS)
    if question is not None and answer is not None:
        context = _named(entry, keys, "context", CONTEXTS)
        system = _named(entry, keys, "system", ("system",))
        found = (system if system and system.text else None, question, context, answer)
        return tuple(field for field in found if field is not None)
    text = _named(entry, keys, "text", ("text",))
    if text is not None:
        return (text,)
    raise NoExample("it has no question" if question is None else "it has no answer")


def _named(
    entry: Mapping[Any, Any], keys: Mapping[str, Any], role: Role, names: Iterable[str]
) -> TextField | None:
    """The text under the first of the names; None if there is none."""
    for name in names:
        value = entry[keys[name]] if name in keys else None
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return TextField(role=role, text=str(value).strip(), path=(keys[name],))
    return None


def _messages(listed: Any, key: Any) -> Iterator[TextField]:
    """OpenAI's {"role", "content"} and ShareGPT's {"from", "value"}."""
    if not isinstance(listed, list):
        raise NoExample("its messages are not a list")
    for number, message in enumerate(listed):
        if not isinstance(message, Mapping):
            raise NoExample("a message is not an object")
        said_by = str(message.get("role", message.get("from"))).casefold()
        if said_by not in ROLES:
            template = "a message is from {role}, not from user or assistant"
            raise NoExample(template, role=said_by)
        name = "content" if "content" in message else "value"
        text = _content(message.get(name))
        yield TextField(role=ROLES[said_by], text=text, path=(key, number, name))


def _content(content: Any) -> str:
    """A message's text; OpenAI's form with parts of type text is joined."""
    if isinstance(content, list):
        parts = [
            part["text"]
            for part in content
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        ]
        if len(parts) != len(content):
            raise NoExample("a message holds more than text")
        content = "\n".join(parts)
    if not isinstance(content, str):
        raise NoExample("a message has no text")
    return content.strip()


def _put(value: Any, path: Path_, text: str) -> None:
    """Set a text in an entry's value."""
    *outer, last = path
    for key in outer:
        value = value[key]
    # OpenAI's form with parts keeps its first part, with all of the text
    if isinstance(value[last], list):
        value[last] = [{**value[last][0], "text": text}] if value[last] else text
    else:
        value[last] = text


def _pair_like(
    value: Any, fields: Sequence[TextField], question: str, answer: str
) -> dict[Any, Any] | None:
    """A pair under the keys of another entry; None for a plain text."""
    by_role = {field.role: field for field in fields}
    asked, answered = by_role.get("user"), by_role.get("assistant")
    if asked is None or answered is None:
        return None
    if len(asked.path) == 1:
        return {asked.path[0]: question, answered.path[0]: answer}
    made = []
    for field, text in ((asked, question), (answered, answer)):
        key, number, name = field.path
        message = value[key][number]
        by = "role" if "role" in message else "from"
        made.append({by: message[by], name: text})
    return {asked.path[0]: made}
