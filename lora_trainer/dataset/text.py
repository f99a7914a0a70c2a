"""Text files in various encodings: bytes -> text and encoding; text -> bytes in a file's encoding.

UTF-8 with or without BOM, UTF-16 with BOM (Excel's "Unicode text"), and legacy encodings of
Windows: GBK, Shift JIS, Big5, the Western code page and others, which charset-normalizer detects.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.errors import DatasetError

LARGEST_CAPTION_FILE = 2**20
LARGEST_TABLE = 16 * 2**20
"""In bytes. 20,000 rows of 200 words would be 24 MB."""

_GUESSED = {
    "gb18030": "GBK",
    "cp932": "Shift JIS",
    "big5": "Big5",
    "cp949": "EUC-KR",
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp437": "DOS 437",
}
"""Python's names -> usual names, in order of precedence for equal plausibility; GBK with Windows'
additional characters.
"""
_OF_FILES = tuple(name for name in _GUESSED if name != "cp437")
_PLAUSIBLE = 0.05
"""How much charset-normalizer's chaos value may exceed the lowest one."""
_SAMPLE = 16 * 2**10
_LONGEST_QUOTE = 60
_SAVE_AS_UTF8 = "Open it in a text editor and save it as UTF-8."


@dataclass(frozen=True, kw_only=True)
class Text:
    r"""A file's content, with `\
    ` as line ends, and its encoding, as named in Python.
    """

    content: str
    encoding: str

    @property
    def is_guess(self) -> bool:
        return self.encoding in _GUESSED


def read_text(path: Path, limit: int = LARGEST_CAPTION_FILE) -> Text:
    """Read a text file. Raises DatasetError if it cannot be opened, is larger than `limit`, or has
    an unknown encoding.
    """
    return decode(read_bytes(path, limit), path)


def read_bytes(path: Path, limit: int = LARGEST_CAPTION_FILE) -> bytes:
    """A file's bytes. Raises DatasetError if it cannot be opened, or is larger than `limit`."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        hint = "Check that it exists and may be read."
        raise DatasetError(
            "{path} cannot be read: {reason}", hint=hint, path=path, reason=error.strerror or error
        ) from error
    if len(data) > limit:
        hint = "Split it, or remove what is not a caption."
        raise DatasetError(
            "{path} is larger than {limit} MB", hint=hint, path=path, limit=limit // 2**20
        )
    return data


def decode(data: bytes, path: Path) -> Text:
    """Bytes -> Text. `path` is for the message of DatasetError."""
    encoding = "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
        try:
            content = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DatasetError(
                "{path} is damaged UTF-16 text (byte {position})",
                hint=_SAVE_AS_UTF8,
                path=path,
                position=error.start,
            ) from error
    else:
        try:
            content = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            content, encoding = _decode_guessed(data, path, error)
    if "\0" in content:
        raise DatasetError("{path} is not a text file", hint=_SAVE_AS_UTF8, path=path)
    return Text(content=content.replace("\r\n", "\n").replace("\r", "\n"), encoding=encoding)


def _decode_guessed(data: bytes, path: Path, not_utf8: UnicodeDecodeError) -> tuple[str, str]:
    tolerant = data.decode("utf-8-sig", errors="replace")
    damaged = tolerant.count("\ufffd")
    intact = sum(character > "\x7f" for character in tolerant) - damaged
    line = data[: not_utf8.start].count(b"\n") + 1
    # UTF-8 with one damaged byte is often valid GBK with other Chinese characters. Real GBK has
    # hardly any sequences that are valid UTF-8.
    if intact > 3 * damaged:
        raise DatasetError(
            "{path} is damaged UTF-8 text (line {line})", hint=_SAVE_AS_UTF8, path=path, line=line
        ) from not_utf8
    for encoding in plausible_encodings(data):
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise DatasetError(
        "{path} is in an unknown encoding (line {line})",
        hint=_SAVE_AS_UTF8,
        path=path,
        line=line,
    ) from not_utf8


def plausible_encodings(data: bytes, among: tuple[str, ...] = _OF_FILES) -> list[str]:
    """Encodings of text that is not UTF-8, most plausible first; empty if none makes sense. Only
    lines with non-ASCII characters are used.
    """
    # imported here because it is slow and seldom needed; hosts have it as a dependency of requests
    from charset_normalizer import from_bytes

    lines = [line for line in re.split(rb"[\r\n]+", data) if not line.isascii()]
    sample = b"\n".join(lines)
    if len(sample) > _SAMPLE:
        # at a line end, to not cut a character
        sample = sample[:_SAMPLE].rpartition(b"\n")[0] or sample
    found: dict[str, float] = {}
    # high threshold, because short captions have high chaos values; sorted below
    for match in from_bytes(sample, cp_isolation=list(among), threshold=0.5, explain=False):
        for name in {match.encoding, *match.could_be_from_charset} & set(among):
            found[name] = min(match.chaos, found.get(name, 1.0))
    if not _is_simplified_chinese(sample) or ("cp949" in found and _is_korean(sample)):
        found.pop("gb18030", None)
    elif "gb18030" in found:
        # file names mixed with a few Chinese words have high chaos values
        found["gb18030"] -= _PLAUSIBLE
    # accented letters are below 0xA6 in the DOS code page, above 0xBF in Windows'
    found.pop(
        "cp1252" if "cp437" in found and re.search(rb"[\x80-\xa5]", sample) else "cp437", None
    )
    least = min(found.values(), default=0.0)
    sure = [name for name in among if name in found and found[name] <= least + _PLAUSIBLE]
    return [*sure, *sorted((name for name in found if name not in sure), key=found.__getitem__)]


def _is_simplified_chinese(data: bytes) -> bool:
    """Whether a text, read as GBK, has mostly characters of GB 2312. Texts in other encodings do
    not.
    """
    signs = [sign for sign in data.decode("gb18030", errors="replace") if sign > "\x7f"]
    rare = sum(not _is_in(sign, "gb2312") for sign in signs)
    return rare * 5 <= len(signs)


def _is_korean(data: bytes) -> bool:
    """Whether a text, read as EUC-KR, is all Hangul. Chinese in GBK hardly ever is, for six or more
    characters.
    """
    signs = [sign for sign in data.decode("cp949", errors="replace") if sign > "\x7f"]
    return len(signs) >= 6 and all("\uac00" <= sign <= "\ud7a3" for sign in signs)


def _is_in(sign: str, encoding: str) -> bool:
    try:
        sign.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def guessed_encoding(text: Text, path: Path, name: str) -> list[Finding]:
    """A warning that the encoding was guessed, quoting the result: legacy encodings cannot be
    distinguished with certainty.
    """
    if not text.is_guess:
        return []
    hint = "If this is garbled, save the file as UTF-8."
    first = next((line for line in text.content.split("\n") if not line.isascii()), "").strip()
    line = first if len(first) <= _LONGEST_QUOTE else first[: _LONGEST_QUOTE - 1] + "…"
    template = '{name} is not UTF-8; it was read as {encoding}: "{line}"'
    return [
        warning(
            "guessed-encoding",
            template,
            hint=hint,
            path=path,
            name=name,
            encoding=_GUESSED[text.encoding],
            line=line,
        )
    ]


def encode_like(content: str, before: bytes, path: Path) -> bytes:
    """Text -> bytes in the encoding, and with the BOM, of `before`, the file's previous content.
    UTF-8 with BOM if that would not be read back as the same text.
    """
    if before.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        mark = before[:2]
        data = mark + content.encode("utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be")
    else:
        guessed = decode(before, path) if before else None
        encoding = (
            guessed.encoding
            if guessed and guessed.is_guess
            else "utf-8-sig"
            if before.startswith(codecs.BOM_UTF8)
            else "utf-8"
        )
        try:
            data = content.encode(encoding)
        except UnicodeEncodeError:
            return content.encode("utf-8-sig")
    plain = content.replace("\r\n", "\n").replace("\r", "\n")
    try:
        # short texts in legacy encodings may be valid UTF-8, or detected as another encoding
        return data if decode(data, path).content == plain else content.encode("utf-8-sig")
    except DatasetError:
        return content.encode("utf-8-sig")


def write_bytes(path: Path, data: bytes) -> None:
    """Write encoded text atomically. Raises DatasetError."""
    try:
        files.write_bytes(path, data)
    except OSError as error:
        hint = (
            "Check the free space and the folder's permissions, and that no other program holds the"
            " file."
        )
        raise DatasetError.cannot_write(path, error, hint) from error
