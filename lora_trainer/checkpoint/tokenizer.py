"""CLIP's tokenizers, offline.

The vocabulary is a data file of the package open_clip_torch, which A1111 and Forge install
(dataset.clip_bpe); the package is not imported, because it needs torchvision.

The reference for SD1 and SDXL's first text encoder is transformers' CLIPTokenizer with ftfy, as in
A1111 and Forge: ftfy fixes the text (full-width punctuation, curly quotes, mojibake, HTML
entities), whitespace is collapsed, letters are lower-cased. The fast tokenizer does not use ftfy
and gives other ids for most Chinese punctuation, so it is not used.

The reference for SD2 and SDXL's second text encoder is open_clip's tokenizer, as in A1111. It gives
the same ids, except for entities in a text with `<`, and for texts with CLIP's end token spelled
out. Forge differs: it treats `!` as padding (0) inside a text as well, where A1111 and the model's
training have an exclamation mark (256).
"""

from __future__ import annotations

import bisect
import importlib.util
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lora_trainer.dataset.clip_bpe import (
    END,
    data_file,
    positions,
    read_vocabulary,
    whitespace_joined,
)
from lora_trainer.dataset.tokens import Token
from lora_trainer.errors import SetupError

LENGTH = 77
"""Tokens per chunk of a text encoder: 75 of the text, plus start and end."""
PADDING = {"clip": END, "open_clip": "!"}
"""CLIP pads with the end token (49407), OpenCLIP with 0, which is an exclamation mark inside a
word.
"""


def load_tokenizers(kinds: Iterable[str]) -> tuple[Any, ...]:
    """One transformers.CLIPTokenizer per text encoder kind: clip, open_clip."""
    return tuple(_tokenizer(PADDING[kind]) for kind in kinds)


def count_tokens(text: str) -> int:
    """Number of CLIP tokens of a text, without start and end: 75 fill one chunk."""
    return len(_tokenizer(END).encode(text, add_special_tokens=False))


def tokenize(text: str) -> list[Token]:
    """A text's CLIP tokens, without start and end, with their positions in the original text.

    Where ftfy moved characters, positions are those of the nearest unchanged ones.
    """
    tokenizer = _tokenizer(END)
    read = whitespace_joined(tokenizer.fix_text(text)).lower()
    given = positions(read, text)
    tokens: list[Token] = []
    for match in tokenizer.pat.finditer(read):
        word, at = match.group(), match.start()
        letters = "".join(tokenizer.byte_encoder[byte] for byte in word.encode("utf-8"))
        # byte offset of each character's end: a token may end inside a character
        ends = [len(word[: index + 1].encode("utf-8")) for index in range(len(word))]
        done = 0
        for piece in tokenizer.bpe(letters).split(" "):
            first = at + bisect.bisect_right(ends, done)
            done += len(piece.removesuffix("</w>")) if piece != "</w>" else 0
            last = at + bisect.bisect_left(ends, done)
            tokens.append(
                Token(tokenizer.convert_tokens_to_ids(piece), given[first], given[last] + 1)
            )
    return tokens


@cache
def _tokenizer(padding: str) -> Any:
    """Cached, because creating it takes 0.2 s."""
    from transformers import CLIPTokenizer

    if importlib.util.find_spec("ftfy") is None:
        # without ftfy, CLIPTokenizer cleans text differently, with only a log message
        raise SetupError("the package ftfy is not installed", hint="Run install.py again.")
    vocabulary, merges = read_vocabulary(data_file())
    with tempfile.TemporaryDirectory(prefix="lora-trainer-") as folder:
        vocabulary_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary_file.write_text(json.dumps(vocabulary), encoding="utf-8")
        merges_file.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        tokenizer = CLIPTokenizer(str(vocabulary_file), str(merges_file), model_max_length=LENGTH)
    # set afterwards: a pad token given at construction is split off as a token of its own
    tokenizer.pad_token = padding
    # silence the warning: long texts are split into chunks later
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer
