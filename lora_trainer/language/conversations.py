"""Reads what a language model is trained on: tables of question and answer pairs, conversations,
and plain texts.

    .csv, .tsv       a column for the question and one for the answer; without a header, the first
                     two
    .jsonl, .json    objects of one of these forms
                         {"question": ..., "answer": ...}
                         {"instruction": ..., "input": ..., "output": ...}
                         {"messages": [{"role": "user", "content": ...}, ...]}
                         {"conversations": [{"from": "human", "value": ...}, ...]}
                         {"text": ...}
    .txt, .md        a plain text

Without torch.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_trainer import files
from lora_trainer.dataset.findings import Finding, error, from_error, warning
from lora_trainer.dataset.text import LARGEST_TABLE, guessed_encoding, read_text
from lora_trainer.errors import DatasetError, Message
from lora_trainer.settings.training import DatasetSettings

ChatRole = Literal["system", "user", "assistant"]

QUESTIONS = ("question", "instruction", "prompt", "query", "问题", "指令", "提问")
CONTEXTS = ("input", "context", "上下文", "输入")
ANSWERS = ("answer", "output", "response", "completion", "回答", "答案", "输出")
"""Names of columns and keys, in order of precedence."""
ROLES: Mapping[str, ChatRole] = {
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
FORMS_HINT = (
    'Each is an object with "question" and "answer", "instruction" and "output", "messages", or'
    ' "conversations".'
)
TABLE_HINT = "A table has a column `question` and a column `answer`."


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation."""

    role: ChatRole
    content: str


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """A conversation, or a plain text."""

    path: Path
    name: str
    """Its name for the user: "pairs.jsonl, line 12"."""
    messages: tuple[ChatMessage, ...] = ()
    """Empty for a plain text. The answers are those of the assistant; the last message is one."""
    text: str = ""
    """A plain text."""

    @property
    def digest(self) -> str:
        """A hash of the content."""
        return _digest(*(f"{each.role}\0{each.content}" for each in self.messages), self.text)

    @property
    def folder(self) -> str:
        """Its file."""
        return str(self.path)

    @property
    def question(self) -> str:
        """Everything before the last answer."""
        return "\n".join(each.content for each in self.messages[:-1])


@dataclass(frozen=True, kw_only=True)
class TextDataset:
    """Usable examples in order of files and lines, and all findings."""

    examples: tuple[TextExample, ...]
    findings: tuple[Finding, ...]


class NoExample(Exception):
    """An entry that is no example, and why."""

    def __init__(self, template: str, **values: Any) -> None:
        super().__init__(template)
        self.reason = Message(template, values)


def read_texts(settings: DatasetSettings) -> TextDataset:
    """Read all texts of train_data_dir, or those of metadata_path alone. Raises DatasetError if
    there is no folder or file.
    """
    examples: list[TextExample] = []
    findings: list[Finding] = []
    root = settings.train_data_dir
    for path in _files(settings):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        found, problems = _read_file(path, name)
        examples += found
        findings += problems
    return TextDataset(
        examples=tuple(examples),
        findings=(*findings, *_repeated(examples), *_contradicting(examples)),
    )


def _files(settings: DatasetSettings) -> list[Path]:
    """The files to read, in order of their names."""
    table, folder = settings.metadata_path, settings.train_data_dir
    if table is not None:
        if not table.is_file():
            raise DatasetError(
                "there is no file {path}",
                hint="Correct metadata_path, or leave it out.",
                path=table,
            )
        return [table]
    if not folder.is_dir():
        raise DatasetError(
            "{folder} is not a folder", hint="Correct train_data_dir.", folder=folder
        )
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise DatasetError(
            "no texts in {folder}",
            hint=(
                "Put question and answer pairs (.jsonl, .csv, .json) or plain texts (.txt, .md)"
                " there."
            ),
            folder=folder,
        )
    return found


def _read_file(path: Path, name: str) -> tuple[list[TextExample], list[Finding]]:
    """The examples of one file. What cannot be read is a finding."""
    try:
        text = read_text(path, LARGEST_TABLE)
    except DatasetError as problem:
        return [], [from_error("unreadable-text", problem, path, name)]
    findings = guessed_encoding(text, path, name)
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        entries: Iterator[tuple[str, Any]] = iter([(name, {"text": text.content})])
    elif suffix in TABLE_SUFFIXES:
        entries = _table_rows(text.content, name)
    elif suffix in JSON_LINES_SUFFIXES:
        entries = _json_lines(text.content, name)
    else:
        entries = _json_list(text.content, name)
    examples: list[TextExample] = []
    for place, entry in entries:
        try:
            if isinstance(entry, NoExample):
                raise entry
            example = _example(entry, path, place)
        except NoExample as problem:
            hint = TABLE_HINT if suffix in TABLE_SUFFIXES else FORMS_HINT
            template = "{name} is not used: {reason}"
            findings.append(
                error(
                    "unreadable-text",
                    template,
                    hint=hint,
                    path=path,
                    name=place,
                    reason=problem.reason,
                )
            )
            continue
        if _is_empty(example):
            hint = "Fill in what is missing, or delete it."
            template = (
                "{name} has an empty question or answer"
                if example.messages
                else ("{name} is empty")
            )
            findings.append(error("empty-text", template, hint=hint, path=path, name=place))
        else:
            examples.append(example)
    return examples, findings


# --- the forms of a file --------------------------------------------------------------------------


def _table_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV, as {column: value}. The delimiter is the most frequent one of the first
    line.
    """
    first = text.lstrip("\ufeff\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] | None = None
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = [cell.strip().casefold() for cell in row]
                if set(columns) & {*QUESTIONS, "messages", "text"}:
                    continue
                columns = ["question", "answer"]
            # zip: a row may have fewer cells, and more than are named are of no use
            yield f"{name}, line {rows.line_num}", dict(zip(columns, row, strict=False))
    except csv.Error as problem:
        yield f"{name}, line {rows.line_num}", NoExample("{reason}", reason=problem)


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    # not splitlines(), which also splits at U+2028 and U+0085
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}, line {number}", _parsed(line)


def _json_list(text: str, name: str) -> Iterator[tuple[str, Any]]:
    content = _parsed(text)
    if isinstance(content, list):
        for number, entry in enumerate(content, 1):
            yield f"{name}, entry {number}", entry
    else:
        yield name, content


def _parsed(text: str) -> Any:
    try:
        return files.parse_json(text)
    except files.NotJson as problem:
        return NoExample("it is not JSON ({reason})", reason=problem)


# --- the forms of an entry ------------------------------------------------------------------------


def _example(entry: Any, path: Path, name: str) -> TextExample:
    """An entry as an example, with what is empty as it is. Raises NoExample."""
    if not isinstance(entry, Mapping):
        raise NoExample("it is not an object")
    values = {str(key).strip().casefold(): value for key, value in entry.items()}
    if "messages" in values or "conversations" in values:
        listed = values.get("messages", values.get("conversations"))
        messages = tuple(_messages(listed))
        if not messages or messages[-1].role != "assistant":
            raise NoExample("its last message is not an answer")
        return TextExample(path=path, name=name, messages=messages)
    question, answer = _value(values, QUESTIONS), _value(values, ANSWERS)
    if question is not None and answer is not None:
        context = _value(values, CONTEXTS)
        asked = f"{question}\n\n{context}" if context else question
        pair = (ChatMessage("user", asked), ChatMessage("assistant", answer))
        system = _value(values, ("system",))
        first = (ChatMessage("system", system),) if system else ()
        return TextExample(path=path, name=name, messages=(*first, *pair))
    text = _value(values, ("text",))
    if text is not None:
        return TextExample(path=path, name=name, text=text)
    template = "it has no question" if question is None else "it has no answer"
    raise NoExample(template)


def _value(values: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The text under the first of the names; None if there is none."""
    for name in names:
        value = values.get(name)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value).strip()
    return None


def _messages(listed: Any) -> Iterator[ChatMessage]:
    """OpenAI's {"role", "content"} and ShareGPT's {"from", "value"}."""
    if not isinstance(listed, list):
        raise NoExample("its messages are not a list")
    for message in listed:
        if not isinstance(message, Mapping):
            raise NoExample("a message is not an object")
        said_by = str(message.get("role", message.get("from"))).casefold()
        if said_by not in ROLES:
            template = "a message is from {role}, not from user or assistant"
            raise NoExample(template, role=said_by)
        yield ChatMessage(ROLES[said_by], _content(message.get("content", message.get("value"))))


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


# --- findings about the content -------------------------------------------------------------------


def _is_empty(example: TextExample) -> bool:
    """Whether nothing is asked or answered."""
    if not example.messages:
        return not example.text.strip()
    roles = {each.role for each in example.messages}
    return not {"user", "assistant"} <= roles or any(
        not each.content for each in example.messages if each.role != "system"
    )


def _repeated(examples: Iterable[TextExample]) -> Iterator[Finding]:
    """A warning for each example that is equal to an earlier one."""
    hint = "Remove the copies, unless they are meant to count twice."
    return _alike(
        examples,
        lambda example: example.digest,
        lambda example, first: example.digest == first.digest,
        kind="duplicate-text",
        template="{name} is the same as {original}",
        hint=hint,
    )


def _contradicting(examples: Iterable[TextExample]) -> Iterator[Finding]:
    """A warning for each question that was asked before with another answer."""
    return _alike(
        (example for example in examples if example.messages),
        lambda example: example.question.casefold(),
        lambda example, first: example.digest != first.digest,
        kind="contradicting-text",
        template="{name} asks the same as {original}, and answers it otherwise",
        hint="Keep one of the answers: the model cannot learn both.",
    )


def _alike(
    examples: Iterable[TextExample],
    key: Callable[[TextExample], str],
    is_meant: Callable[[TextExample, TextExample], bool],
    *,
    kind: Literal["duplicate-text", "contradicting-text"],
    template: str,
    hint: str,
) -> Iterator[Finding]:
    first: dict[str, TextExample] = {}
    for example in examples:
        original = first.setdefault(key(example), example)
        if original is not example and is_meant(example, original):
            yield warning(
                kind,
                template,
                hint=hint,
                path=example.path,
                name=example.name,
                original=original.name,
            )


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\1".join(parts).encode(), digest_size=12).hexdigest()
