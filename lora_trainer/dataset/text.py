"""Text files as people have them: bytes -> text and the encoding it was in; text -> bytes as a file had them.

UTF-8 with or without a byte-order mark, UTF-16 with one (Excel's "Unicode text"), and GBK (Notepad and Excel on Chinese Windows).
Called by whatever reads or writes captions.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_trainer import files
from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.errors import DatasetError

Encoding = Literal["utf-8", "utf-16", "gbk"]

_SAVE_AS_UTF8 = "Open it in a text editor and save it as UTF-8."


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a file says, with `\\n` at the ends of lines, and how it was encoded."""

    content: str
    encoding: Encoding


def read_text(path: Path) -> Text:
    """Reads a text file. Raises DatasetError when it cannot be opened or is in no encoding known here."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "Check that it exists and may be read."
        raise DatasetError("{path} cannot be read: {reason}", hint=hint, path=path, reason=error.strerror) from error
    return decode(data, path)


def decode(data: bytes, path: Path) -> Text:
    """Bytes -> Text. `path` is for the sentence of the DatasetError only."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding: Encoding = "utf-16"
        try:
            content = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DatasetError("{path} is damaged UTF-16 text (byte {position})", hint=_SAVE_AS_UTF8, path=path, position=error.start) from error
    else:
        try:
            content, encoding = data.decode("utf-8-sig"), "utf-8"
        except UnicodeDecodeError as error:
            content, encoding = _decode_gbk(data, path, error), "gbk"
    if "\0" in content:
        raise DatasetError("{path} is not a text file", hint=_SAVE_AS_UTF8, path=path)
    return Text(content=content.replace("\r\n", "\n").replace("\r", "\n"), encoding=encoding)


def _decode_gbk(data: bytes, path: Path, not_utf8: UnicodeDecodeError) -> str:
    tolerant = data.decode("utf-8-sig", errors="replace")
    damaged = tolerant.count("\ufffd")
    intact = sum(character > "\x7f" for character in tolerant) - damaged
    # UTF-8 with one broken byte often passes as GBK, and would come out as other Chinese characters altogether. True GBK holds next to no
    # sequences that are UTF-8 by accident.
    if intact > 3 * damaged:
        line = data[: not_utf8.start].count(b"\n") + 1
        raise DatasetError("{path} is damaged UTF-8 text (line {line})", hint=_SAVE_AS_UTF8, path=path, line=line) from not_utf8
    try:
        return data.decode("gb18030")  # GBK, and the rarer characters Windows adds to it
    except UnicodeDecodeError:
        line = data[: not_utf8.start].count(b"\n") + 1
        raise DatasetError("{path} is neither UTF-8 nor GBK text (line {line})", hint=_SAVE_AS_UTF8, path=path, line=line) from not_utf8


def guessed_encoding(text: Text, path: Path, name: str) -> list[Finding]:
    """A warning when the encoding was guessed: GBK cannot be told from other old encodings for certain."""
    hint = "If captions come out garbled, save the file as UTF-8."
    return [warning("guessed-encoding", "{name} is not UTF-8; it was read as GBK", hint=hint, path=path, name=name)] if text.encoding == "gbk" else []


def encode_like(content: str, before: bytes, path: Path) -> bytes:
    """Text -> bytes, in the encoding, and with the byte-order mark, that `before` has: what a file held until now.

    Where that could not be read back as the same text, it is UTF-8 with a mark.
    """
    if before.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        mark = before[:2]
        data = mark + content.encode("utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be")
    elif before and decode(before, path).encoding == "gbk":
        data = content.encode("gb18030")
    else:
        data = content.encode("utf-8-sig" if before.startswith(codecs.BOM_UTF8) else "utf-8")
    plain = content.replace("\r\n", "\n").replace("\r", "\n")
    # a few GBK characters may happen to be valid UTF-8
    return data if decode(data, path).content == plain else content.encode("utf-8-sig")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes encoded text, whole or not at all. Raises DatasetError."""
    try:
        files.write_bytes(path, data)
    except OSError as error:
        hint = "Check the free space and the folder's permissions, and that no other program holds the file."
        raise DatasetError("{path} cannot be written: {reason}", hint=hint, path=path, reason=error.strerror) from error
