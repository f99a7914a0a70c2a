"""CLIP's tokenizers, offline: nothing goes in, transformers' tokenizers come out.

Called by `load`, and by dataset's check to count tokens. The vocabulary is a data file of the
package open_clip_torch, which A1111 and Forge have installed (dataset.clip_bpe); the package itself
is not imported (it wants torchvision).

The reference for SD1 and SDXL's first text encoder is transformers' CLIPTokenizer with ftfy
installed, as A1111 and Forge use it: ftfy repairs the text (full-width punctuation becomes ASCII,
curly quotes straight, mojibake and HTML entities are undone), white space is joined, letters become
small. The fast tokenizer does none of the repairs, and gives other ids for most Chinese
punctuation: it is not used.

The reference for SD2 and SDXL's second text encoder is open_clip's tokenizer, as A1111 uses it. It
gives the same ids, but for entities in a text with a `<` in it, and for texts that spell out CLIP's
own end marker. Forge differs there: it takes `!` for padding (0) even inside a text, where A1111
and the model's own training have an exclamation mark (256).
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

from lora_trainer.dataset.clip_bpe import END, data_file, places, read_vocabulary, whitespace_joined
from lora_trainer.dataset.tokens import Token
from lora_trainer.errors import SetupError

LENGTH = 77
"""Tokens a text encoder takes at once: 75 of the text, one at the start, one at the end."""
PADDING = {"clip": END, "open_clip": "!"}
"""What fills a short text up: CLIP repeats the end token (49407), OpenCLIP writes zeros, and 0 is
an exclamation mark inside a word.
"""


def load_tokenizers(kinds: Iterable[str]) -> tuple[Any, ...]:
    """One transformers.CLIPTokenizer for each text encoder of these kinds: clip, open_clip."""
    return tuple(_tokenizer(PADDING[kind]) for kind in kinds)


def count_tokens(text: str) -> int:
    """How many tokens a text has for CLIP, without start and end: 75 fill one chunk."""
    return len(_tokenizer(END).encode(text, add_special_tokens=False))


def tokenize(text: str) -> list[Token]:
    """A text as CLIP's tokens, without start and end, each with its place in the text as it was
    given.

    The tokenizer repairs a text first (see above); where that moved characters, places follow the
    nearest that stayed.
    """
    tokenizer = _tokenizer(END)
    read = whitespace_joined(tokenizer.fix_text(text)).lower()
    given = places(read, text)
    tokens: list[Token] = []
    for match in tokenizer.pat.finditer(read):
        word, at = match.group(), match.start()
        letters = "".join(tokenizer.byte_encoder[byte] for byte in word.encode("utf-8"))
        # the number of bytes up to each character's end: a token may end inside a character
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
    """Made once a process, and changed by nobody: it takes 0.2 s."""
    from transformers import CLIPTokenizer

    if importlib.util.find_spec("ftfy") is None:
        # without it CLIPTokenizer cleans text in another way, and says so only in a log
        raise SetupError("the package ftfy is not installed", hint="Run install.py again.")
    vocabulary, merges = read_vocabulary(data_file())
    with tempfile.TemporaryDirectory(prefix="lora-trainer-") as folder:
        vocabulary_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary_file.write_text(json.dumps(vocabulary), encoding="utf-8")
        merges_file.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        tokenizer = CLIPTokenizer(str(vocabulary_file), str(merges_file), model_max_length=LENGTH)
    # set afterwards: a padding token given at construction is cut out of every text as a token of
    # its own
    tokenizer.pad_token = padding
    # training and the WebUIs cut long texts into chunks themselves
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer
