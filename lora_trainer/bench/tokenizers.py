"""Tokenizers for models of random weights, for which the vocabulary does not matter."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lora_trainer.families.tokenizer_kinds import SPECIAL


def write_tokenizers(folder: Path, kinds: Iterable[str]) -> Path:
    """Write KIND/tokenizer.json for each kind (families.tokenizer_kinds). Returns the folder."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        MADE[kind]().save(str(folder / kind / "tokenizer.json"))
    return folder


def _qwen3() -> Tokenizer:
    """A byte-level BPE without merges: one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


def _t5() -> Tokenizer:
    """A Unigram model with one token per printable ASCII character."""
    letters = [(letter, -3.0) for letter in ("\u2581", *string.printable.strip())]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *letters]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


MADE: Mapping[str, Callable[[], Tokenizer]] = {"qwen3": _qwen3, "t5": _t5}
