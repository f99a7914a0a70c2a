"""CLIP's tokenizer in plain Python, for the WebUI's process, which must not import our
transformers.

    clip = ClipBpe.load(folders)      reads CLIP's vocabulary from open_clip or clip, without
    importing them
    clip.tokenize(text)               -> [Token], with positions in the original text

Gives the same ids as transformers' CLIPTokenizer with ftfy, without start and end (a test compares
them). Without ftfy texts are not fixed, which matters for mojibake, entities and full-width
punctuation. Byte pair encoding as in
https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py.
"""

from __future__ import annotations

import bisect
import difflib
import gzip
import importlib
import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from lora_trainer.dataset.tokens import Token
from lora_trainer.errors import SetupError

DATA_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGE_COUNT = 49152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS_KEPT = 50_000

_END_OF_WORD = "</w>"
_CONTRACTIONS = ("re", "ve", "ll", "s", "t", "m", "d")
_ASCII_WORDS = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
)


class ClipBpe:
    """Thread-safe."""

    def __init__(
        self, vocabulary: dict[str, int], merges: Sequence[str], fix: Callable[[str], str]
    ) -> None:
        self._ids = vocabulary
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self._fix = fix
        self._letters = dict(enumerate(byte_letters_in_order()))
        self._pieces = lru_cache(maxsize=WORDS_KEPT)(self._pieces_of)

    @classmethod
    def load(cls, folders: Iterable[Path] = ()) -> ClipBpe:
        """`folders`: additional folders with packages. Raises SetupError if no vocabulary is
        found.
        """
        vocabulary, merges = read_vocabulary(data_file(folders))
        return cls(vocabulary, merges, _load_fixer())

    def tokenize(self, text: str) -> list[Token]:
        """A text's CLIP tokens, without start and end. Where ftfy moved characters, positions are
        those of the nearest unchanged ones.
        """
        read = self._read(text)
        given = positions(read, text)
        tokens: list[Token] = []
        for at, word in _words(read):
            # byte offset of each character's end: a token may end inside a character
            ends = [len(word[: index + 1].encode("utf-8")) for index in range(len(word))]
            done = 0
            for number, length in self._pieces(word):
                first = at + bisect.bisect_right(ends, done)
                done += length
                last = at + bisect.bisect_left(ends, done)
                tokens.append(Token(number, given[first], given[last] + 1))
        return tokens

    def count(self, text: str) -> int:
        """Number of tokens of a text, without start and end."""
        read = self._read(text)
        words = _ASCII_WORDS.findall(read) if read.isascii() else [word for _, word in _words(read)]
        return sum(map(len, map(self._pieces, words)))

    def _read(self, text: str) -> str:
        """The text before splitting into words."""
        # ftfy only changes entities in printable ASCII
        is_plain = text.isascii() and text.isprintable() and "&" not in text
        return whitespace_joined(text if is_plain else self._fix(text)).lower()

    def _pieces_of(self, word: str) -> tuple[tuple[int, int], ...]:
        """A word -> (token id, number of bytes) of each of its tokens."""
        if word in (START, END):
            return ((self._ids[word], len(word)),)
        parts = [self._letters[byte] for byte in word.encode("utf-8")]
        parts[-1] += _END_OF_WORD
        while len(parts) > 1:
            ranked = [
                (self._ranks.get((left, right), MERGE_COUNT), index)
                for index, (left, right) in enumerate(pairwise(parts))
            ]
            rank, index = min(ranked)
            if rank == MERGE_COUNT:
                break
            pair, joined, at = (parts[index], parts[index + 1]), [], 0
            while at < len(parts):
                both = at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair
                joined.append(pair[0] + pair[1] if both else parts[at])
                at += 2 if both else 1
            parts = joined
        return tuple((self._ids[part], len(part.removesuffix(_END_OF_WORD))) for part in parts)


def whitespace_joined(text: str) -> str:
    """The text with whitespace collapsed to single spaces."""
    return re.sub(r"\s+", " ", text).strip()


def positions(read: str, text: str) -> list[int]:
    """For each character of the normalized text, the index of its original in the given text."""
    given = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    if read == given:
        return list(range(len(read)))
    found = [0] * len(read)
    for _, start, end, given_start, given_end in difflib.SequenceMatcher(
        None, read, given, autojunk=False
    ).get_opcodes():
        for index in range(start, end):
            # one-to-many and many-to-one replacements are spread evenly
            found[index] = min(
                len(text) - 1,
                given_start + (index - start) * max(1, given_end - given_start) // (end - start),
            )
    return found


def _words(read: str) -> Iterator[tuple[int, str]]:
    """(position, word): runs of letters, single digits, runs of other characters, and English
    contractions.
    """
    if read.isascii():
        # equivalent and five times as fast
        for match in _ASCII_WORDS.finditer(read):
            yield match.start(), match.group()
        return
    at = 0
    while at < len(read):
        kind = _kind(read[at])
        length = _spelled_out(read, at)
        if kind == " ":
            at += 1
            continue
        if not length:
            length = 1
            while kind != "N" and at + length < len(read) and _kind(read[at + length]) == kind:
                length += 1
        yield at, read[at : at + length]
        at += length


def _spelled_out(read: str, at: int) -> int:
    """The length of a contraction ('s, 't, 're ...) or special token at a position, or 0. The long
    s counts as s.
    """
    if read[at] != "'":
        return next((len(mark) for mark in (START, END) if read.startswith(mark, at)), 0)
    following = read[at + 1 : at + 3].replace("\u017f", "s")
    return next((1 + len(ending) for ending in _CONTRACTIONS if following.startswith(ending)), 0)


@lru_cache(maxsize=8192)
def _kind(character: str) -> str:
    """L: letter, N: digit, " ": whitespace, O: other."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"


# --- the vocabulary -------------------------------------------------------------------------------


def read_vocabulary(file: Path) -> tuple[dict[str, int], list[str]]:
    """Token -> id, and the merges, most frequent first."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        merges = stream.read().split("\n")[1 : MERGE_COUNT + 1]
    letters = _byte_letters()
    tokens = [
        *letters,
        *(letter + _END_OF_WORD for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        START,
        END,
    ]
    return {token: number for number, token in enumerate(tokens)}, merges


def data_file(folders: Iterable[Path] = ()) -> Path:
    """The path of CLIP's vocabulary in an installed open_clip or clip, or in open_clip in one of
    the folders. Raises SetupError.
    """
    found = [Path(place) for name in ("open_clip", "clip") for place in _package_places(name)]
    for folder in (*found, *(folder / "open_clip" for folder in folders)):
        if (folder / DATA_FILE).is_file():
            return folder / DATA_FILE
    raise SetupError(
        "the package open_clip_torch is not installed: it holds CLIP's vocabulary",
        hint="Run install.py again.",
    )


def _package_places(name: str) -> Sequence[str]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a fake module of this name
        return ()
    return list(spec.submodule_search_locations or ()) if spec else ()


def byte_letters_in_order() -> list[str]:
    """The visible character for each byte, from 0 to 255."""
    printable = _printable_bytes()
    hidden = iter(range(256))
    return [chr(byte) if byte in printable else chr(256 + next(hidden)) for byte in range(256)]


def _byte_letters() -> list[str]:
    """The same in the vocabulary's order: printable ones, which represent themselves, then the
    others, from U+0100.
    """
    letters = byte_letters_in_order()
    printable = _printable_bytes()
    return [letters[byte] for byte in printable] + [
        letters[byte] for byte in range(256) if byte not in printable
    ]


def _printable_bytes() -> list[int]:
    return [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]


def _load_fixer() -> Callable[[str], str]:
    """ftfy.fix_text, as in CLIPTokenizer, or str if ftfy is missing."""
    if importlib.util.find_spec("ftfy") is None:
        return str
    import ftfy

    fix: Callable[[str], str] = ftfy.fix_text
    return fix
