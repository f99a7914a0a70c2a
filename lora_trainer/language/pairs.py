"""Documents -> question and answer pairs, by asking a model for each passage. The pairs are to be
read and corrected by a person. Without torch.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lora_trainer import files
from lora_trainer.dataset.text import LARGEST_TABLE, read_text
from lora_trainer.errors import ConfigError, DatasetError, LoraTrainerError
from lora_trainer.language.text_files import ANSWERS, QUESTIONS, TEXT_SUFFIXES

Ask = Callable[[str], str]
"""A prompt -> the model's reply."""

PASSAGE_LENGTH = 1500
"""Characters of a passage, about half a page: asked about more, a model leaves much out."""
INSTRUCTION = (
    "Write {count} questions about the text below, each with its answer. Use the language of the"
    " text. Every answer must be complete by itself and stand in the text. Write one JSON object a"
    ' line, {{"question": "...", "answer": "..."}}, and nothing else.\n\n{passage}'
)
TOKENS = 120
"""Tokens of a reply for each pair that is asked for."""
LOCAL = ("localhost", "127.0.0.1", "::1")
TIMEOUT = 600.0
"""Seconds to wait for a server's answer."""
LARGEST_ANSWER = 1 << 20
_SPOKEN = re.compile(
    r"^\W*(?:q|question|问题?)\W*\d*\W*[:：]\s*(?P<question>.+?)\s*"
    r"^\W*(?:a|answer|答案?|回答)\W*\d*\W*[:：]\s*(?P<answer>.+?)\s*(?=^\W*(?:q|question|问题?)\W*\d*\W*[:：]|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Passage:
    """A part of a document."""

    source: str
    """The document's name."""
    text: str


@dataclass(frozen=True)
class QuestionAnswer:
    """A question with its answer, and the document that it is from."""

    question: str
    answer: str
    source: str

    def to_line(self) -> str:
        """A line of JSON, as conversations.py reads it."""
        return json.dumps(vars(self), ensure_ascii=False)


def read_passages(path: Path) -> list[Passage]:
    """The passages of a document, or of all .txt and .md files of a folder. Raises DatasetError."""
    if not path.exists():
        raise DatasetError("there is no file or folder {path}", path=path)
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    documents = [each for each in found if each.suffix.lower() in TEXT_SUFFIXES and each.is_file()]
    passages = [
        Passage(each.name if each == path else each.relative_to(path).as_posix(), text)
        for each in documents
        for text in divided(read_text(each, LARGEST_TABLE).content)
    ]
    if not passages:
        raise DatasetError(
            "no texts in {folder}", hint="Put documents (.txt, .md) there.", folder=path
        )
    return passages


def divided(text: str, length: int = PASSAGE_LENGTH) -> list[str]:
    """A text in passages of whole paragraphs, of about `length` characters; a Markdown heading
    begins a new one.
    """
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        begins = paragraph.startswith("#") or not passages
        if begins or len(passages[-1]) + len(paragraph) > length:
            passages.append(paragraph)
        else:
            passages[-1] += "\n\n" + paragraph
    # a heading alone belongs to what follows
    joined: list[str] = []
    for passage in passages:
        if joined and joined[-1].startswith("#") and "\n" not in joined[-1]:
            joined[-1] += "\n\n" + passage
        elif passage.strip():
            joined.append(passage)
    return joined


def make_pairs(passage: Passage, ask: Ask, count: int) -> Iterator[QuestionAnswer]:
    """The pairs that a model writes about a passage."""
    for question, answer in parsed(ask(INSTRUCTION.format(count=count, passage=passage.text))):
        yield QuestionAnswer(question, answer, passage.source)


def parsed(reply: str) -> list[tuple[str, str]]:
    """The pairs in a model's reply: JSON objects, in lines or in a list, with other words around
    them or not; else lines that begin with "Q:" and "A:".
    """
    found = [pair for value in _json_values(reply) if (pair := _pair(value)) is not None]
    if found:
        return found
    return [
        (match["question"].strip(), match["answer"].strip()) for match in _SPOKEN.finditer(reply)
    ]


def _json_values(text: str) -> Iterator[Any]:
    """The objects without others inside them."""
    for match in re.finditer(r"\{[^{}]*\}", text):
        try:
            yield files.parse_json(match[0])
        except files.NotJson:
            continue


def _pair(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    folded = {str(key).casefold(): each for key, each in value.items()}
    texts = [
        next((str(folded[name]).strip() for name in names if folded.get(name)), "")
        for names in (("q", *QUESTIONS), ("a", *ANSWERS))
    ]
    return (texts[0], texts[1]) if all(texts) else None


# --- a server -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """A server with OpenAI's interface, such as that of llama.cpp, vLLM, Ollama or
    text-generation-webui.
    """

    url: str
    model: str

    def ask(self, prompt: str) -> str:
        """The reply. Raises ConfigError if the server cannot be reached or answers otherwise."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with _opener().open(request, timeout=TIMEOUT) as response:
                content = response.read(LARGEST_ANSWER)
            return str(files.parse_json(content)["choices"][0]["message"]["content"])
        except (urllib.error.URLError, *files.UNREADABLE) as problem:
            raise ConfigError(
                "{url} does not answer as expected: {reason}",
                hint="It is the address of an OpenAI-compatible server, up to /v1.",
                url=self.url,
                reason=problem,
            ) from problem


def open_server(url: str, model: str, *, remote: bool = False) -> ChatServer:
    """The server at an address. Raises ConfigError for one outside this machine, unless
    `remote`: documents are sent to it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "{url} is not an address", hint="Such as http://localhost:8080/v1.", url=url
        )
    if parts.hostname not in LOCAL and not remote:
        raise ConfigError(
            "{url} is not on this machine, and your documents would be sent there",
            hint="Use a server on localhost, or add --remote.",
            url=url,
        )
    return ChatServer(url=url, model=model)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: documents are sent to the server that was named only."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def write_pairs(
    passages: list[Passage],
    ask: Ask,
    count: int,
    output: Path,
    progress: Callable[[int, int], None],
) -> tuple[int, list[str]]:
    """Write the pairs of all passages into a new file, as they come. Returns their number, and the
    documents that have a passage without any. Raises ConfigError if the file exists.
    """
    seen: set[str] = set()
    without: list[str] = []
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        stream = output.open("x", encoding="utf-8", newline="\n")
    except FileExistsError:
        raise ConfigError(
            "{file} exists already", hint="Choose another name, or move it away.", file=output
        ) from None
    except OSError as error:
        raise LoraTrainerError.cannot_write(output, error, "Choose another folder.") from error
    with stream:
        for number, passage in enumerate(passages, 1):
            pairs = list(make_pairs(passage, ask, count))
            for pair in pairs:
                if pair.question.casefold() not in seen:
                    seen.add(pair.question.casefold())
                    stream.write(pair.to_line() + "\n")
            stream.flush()
            if not pairs:
                without.append(passage.source)
            progress(number, len(passages))
    return len(seen), list(dict.fromkeys(without))
