"""Texts -> tokens, and which of them are learned: of a conversation the answers alone, of a plain
text everything.

The tokenizer's chat template is used, or a plain one where it has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.dataset.findings import Finding, error
from lora_trainer.errors import CheckpointError, DatasetError
from lora_trainer.language.conversations import ChatMessage, TextExample
from lora_trainer.language.detect import INCOMPLETE

IGNORED = -100
"""The label of a token that is not learned, as in torch's cross_entropy."""
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{% if message.role == 'system' %}{{ message.content + '\n' }}"
    "{% elif message.role == 'user' %}Question: {{ message.content }}"
    "{% else %}Answer: {{ message.content }}{{ eos_token or '' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAnswer:' }}{% endif %}"
)
"""A question stands after "Question: ", and its answer on the next line."""


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """Tokens that are read together. labels: the tokens themselves, or IGNORED. lengths: of the
    examples in the row, which do not attend to each other.
    """

    name: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, name: str, ids: Sequence[int], labels: Sequence[int]) -> TokenRow:
        """A row of one example."""
        return cls(name=name, ids=tuple(ids), labels=tuple(labels), lengths=(len(ids),))

    @property
    def learned(self) -> int:
        """Number of tokens that are learned; the first token is never predicted."""
        starts = {sum(self.lengths[:number]) for number in range(len(self.lengths))}
        return sum(
            label != IGNORED and index not in starts for index, label in enumerate(self.labels)
        )


class ChatTokenizer:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, system_prompt: str = "") -> None:
        """system_prompt: for conversations without one."""
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError(
                "{path} has no tokenizer.json",
                hint="Use a version of the model that has one.",
                path=tokenizer.name_or_path,
            )
        self.tokenizer = tokenizer
        self.has_own_template = bool(tokenizer.chat_template)
        self._template = None if self.has_own_template else PLAIN_TEMPLATE
        self._system_prompt = system_prompt
        self.stop_ids = self._stop_ids()
        self.pad_id: int = next(
            (one for one in (tokenizer.pad_token_id, *self.stop_ids) if one is not None), 0
        )

    # --- texts ------------------------------------------------------------------------------------

    def render(self, messages: Sequence[ChatMessage], *, asks: bool = False) -> str:
        """A conversation as the model reads it. asks: up to where its next answer begins."""
        if self._system_prompt and messages[0].role != "system":
            messages = [ChatMessage("system", self._system_prompt), *messages]
        values = [{"role": each.role, "content": each.content} for each in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                values,
                chat_template=self._template,
                add_generation_prompt=asks,
                tokenize=False,
            )
        except Exception as problem:  # a template may raise anything, as for a system prompt
            raise DatasetError(
                "the model's chat template refuses a conversation: {reason}",
                hint="Some models have no system prompt, or want questions and answers in turn.",
                reason=problem,
            ) from problem
        return text

    def prompt_ids(self, question: str) -> list[int]:
        """The tokens after which the answer begins."""
        return self._ids(self.render([ChatMessage("user", question)], asks=True))

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's tokens as text."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def save(self, folder: Path) -> None:
        """Write the tokenizer, with the template that was trained with."""
        self.tokenizer.chat_template = self.tokenizer.chat_template or self._template
        self.tokenizer.save_pretrained(folder)

    def save_template(self, folder: Path) -> None:
        """Write the tokenizer where the base has none with this template."""
        if not self.has_own_template:
            self.save(folder)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's, and the special one that follows an
        answer in the template.
        """
        pair = [ChatMessage("user", "a"), ChatMessage("assistant", "b")]
        prompt, whole = self._ids(self.render(pair[:1], asks=True)), self._ids(self.render(pair))
        added = self.tokenizer.added_tokens_decoder
        after = [one for one in whole[len(prompt) :] if one in added and added[one].special][:1]
        ends = (self.tokenizer.eos_token_id, *after)
        return tuple(dict.fromkeys(one for one in ends if one is not None))

    # --- training ---------------------------------------------------------------------------------

    def rows(self, example: TextExample, max_length: int) -> list[TokenRow]:
        """The rows of an example: one of a conversation, whatever its length; a plain text is
        divided into rows of at most max_length.
        """
        if example.messages:
            return [self._conversation(example)]
        ids: list[int] = self.tokenizer(example.text).input_ids
        if self.stop_ids and ids[-1:] != [self.stop_ids[0]]:
            ids = [*ids, self.stop_ids[0]]
        count = math.ceil(len(ids) / max_length)
        # of equal length: of a last one with a single token nothing could be learned
        size = math.ceil(len(ids) / max(1, count))
        return [
            TokenRow.of(
                f"{example.name} ({number + 1})" if count > 1 else example.name,
                ids[number * size : (number + 1) * size],
                ids[number * size : (number + 1) * size],
            )
            for number in range(count)
        ]

    def _conversation(self, example: TextExample) -> TokenRow:
        text = self.render(example.messages)
        answers = self._answers(example.messages, text)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded.input_ids
        labels = [
            token if any(start <= begin < end for start, end in answers) else IGNORED
            for token, (begin, _) in zip(ids, encoded.offset_mapping, strict=True)
        ]
        return TokenRow.of(example.name, ids, labels)

    def _answers(self, messages: Sequence[ChatMessage], text: str) -> list[tuple[int, int]]:
        """Start and end of the answers, with the token that ends each, in the rendered text."""
        found: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message.role == "assistant":
                before = self.render(messages[:number], asks=True)
                through = self.render(messages[: number + 1])
                if text.startswith(before) and text.startswith(through):
                    found.append((len(before), len(through)))
        if not found:
            # a template that shows an answer otherwise once it is given
            start = text.rfind(messages[-1].content)
            found = [(start, len(text))] if start >= 0 else []
        return found


def load_tokenizer(path: Path, system_prompt: str = "") -> ChatTokenizer:
    """The tokenizer of a language model's folder. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as problem:  # a damaged file raises various exceptions
        raise CheckpointError(
            "the tokenizer in {path} cannot be read: {reason}",
            hint=INCOMPLETE,
            path=path,
            reason=problem,
        ) from problem
    return ChatTokenizer(tokenizer, system_prompt)


def too_long(example: TextExample, rows: Sequence[TokenRow], max_length: int) -> Finding | None:
    """An error for a conversation of more than max_length tokens."""
    longest = max((len(row.ids) for row in rows), default=0)
    if longest <= max_length:
        return None
    return error(
        "long-text",
        "{name} has {count} tokens, {excess} more than max_length {limit}",
        hint="Shorten it, or raise max_length.",
        path=example.path,
        name=example.name,
        count=longest,
        excess=longest - max_length,
        limit=max_length,
    )
