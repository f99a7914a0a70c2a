"""Arbitrary names -> valid and unique file or folder names. Standard library only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath

from lora_trainer.settings.training import MAX_NAME_BYTES, RESERVED_ON_WINDOWS

_WINDOWS_FORBIDS = frozenset('<>:"/\\|?*')


def safe_name(name: str, suffix: str = "", forbidden: str = "") -> str:
    """A file or folder name from `name`: NFC, limited in length, without characters that Windows or
    `forbidden` does not allow.

    `suffix`, with its dot, is appended. "a<b>.": "a_b_"; "CON": "_CON"; "": "unnamed".
    """
    kept = "".join(
        (
            "_"
            if character in forbidden
            or character in _WINDOWS_FORBIDS
            or not character.isprintable()
            else character
        )
        for character in unicodedata.normalize("NFC", name)
    )
    kept = " ".join(kept.split()).strip(" .")
    if kept.split(".")[0].upper() in RESERVED_ON_WINDOWS:
        kept = f"_{kept}"
    # leaves room for "-123" and for suffixes of files written beside it
    room = MAX_NAME_BYTES - 20 - len(suffix.encode())
    kept = kept.encode("utf-8", "replace")[:room].decode("utf-8", "ignore").strip(" .")
    return (kept or "unnamed") + suffix


def free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """The name, or the first unused of name-2, name-3 ...; a suffix (".png") stays at the end."""
    path = PurePosixPath(name)
    suffix = path.suffix if len(path.suffix) <= 6 and not path.suffix[1:].isdigit() else ""
    stem, candidate, number = name[: len(name) - len(suffix)], name, 1
    while is_taken(candidate):
        number += 1
        candidate = f"{stem}-{number}{suffix}"
    return candidate


def is_path_below(name: str) -> bool:
    """Whether a relative path from a dataset's file, which is untrusted, stays inside that file's
    folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and ":" not in path.parts[0]
        and "\0" not in name
    )


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts img2 before img10, case-insensitive."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name).casefold())
    return [_number(part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def _number(digits: str) -> tuple[int, int, str]:
    """Orders numbers without int(), which Python refuses for thousands of digits."""
    plain = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return 0, len(plain), plain
