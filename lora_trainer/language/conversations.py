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

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_trainer.dataset.findings import Finding, error, from_error, warning
from lora_trainer.dataset.text import guessed_encoding
from lora_trainer.errors import DatasetError
from lora_trainer.language import text_files
from lora_trainer.language.text_files import NoExample, TextField, TextFile
from lora_trainer.settings.training import DatasetSettings

ChatRole = Literal["system", "user", "assistant"]

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


def read_texts(settings: DatasetSettings) -> TextDataset:
    """Read all texts of train_data_dir, or those of metadata_path alone. Raises DatasetError if
    there is no folder or file.
    """
    examples: list[TextExample] = []
    findings: list[Finding] = []
    root = settings.train_data_dir
    for path in _files(settings):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        found = read_file(path, name)
        examples += [example for example in found.examples if example is not None]
        findings += found.findings
    return TextDataset(examples=tuple(examples), findings=(*findings, *across(examples)))


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
    found = text_files.list_files(folder)
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


@dataclass(frozen=True, kw_only=True)
class FileTexts:
    """The entries of a file, and what they mean."""

    name: str
    file: TextFile | None
    """None if it cannot be read."""
    examples: tuple[TextExample | None, ...]
    """For each entry; None: not used."""
    findings: tuple[Finding, ...]


def read_file(path: Path, name: str) -> FileTexts:
    """One file. What cannot be read is a finding."""
    try:
        file = text_files.read(path)
    except DatasetError as problem:
        finding = from_error("unreadable-text", problem, path, name)
        return FileTexts(name=name, file=None, examples=(), findings=(finding,))
    findings = guessed_encoding(file.text, path, name)
    examples: list[TextExample | None] = []
    for entry in file.entries:
        example = None
        place = f"{name}, {entry.place}" if entry.place else name
        try:
            example = _example(entry.fields(), path, place)
        except NoExample as problem:
            findings.append(
                error(
                    "unreadable-text",
                    "{name} is not used: {reason}",
                    hint=TABLE_HINT if file.form == "table" else FORMS_HINT,
                    path=path,
                    name=place,
                    reason=problem.reason,
                )
            )
        if example is not None and _is_empty(example):
            hint = "Fill in what is missing, or delete it."
            template = (
                "{name} has an empty question or answer" if example.messages else "{name} is empty"
            )
            findings.append(error("empty-text", template, hint=hint, path=path, name=place))
            example = None
        examples.append(example)
    return FileTexts(name=name, file=file, examples=tuple(examples), findings=tuple(findings))


def across(examples: Sequence[TextExample]) -> tuple[Finding, ...]:
    """What is found by comparing the examples of a dataset."""
    return (*_repeated(examples), *_contradicting(examples))


def _example(fields: Sequence[TextField], path: Path, name: str) -> TextExample:
    """An entry as an example, with what is empty as it is."""
    messages: list[ChatMessage] = []
    for field in fields:
        match field.role:
            case "text":
                return TextExample(path=path, name=name, text=field.text)
            case "context":
                if field.text:
                    question = messages.pop().content
                    messages.append(ChatMessage("user", f"{question}\n\n{field.text}"))
            case role:
                messages.append(ChatMessage(role, field.text))
    return TextExample(path=path, name=name, messages=tuple(messages))


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
        template="{name} asks the same as {original}, but has another answer",
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
