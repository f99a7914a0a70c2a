"""Hides the folders of this machine from remote users: removes their parent folders from paths in
logs and settings.

    redact(content, {Path("C:/Users/Ann/webui/models/Lora"): "Lora"})
        "C:/Users/Ann/webui/models/Lora/fox.png" -> "Lora/fox.png"

Standard library only. Called by routing.py for every answer to a remote user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any


def redact(content: Any, folders: Mapping[PurePath, str]) -> Any:
    """JSON values, or a text, with each folder replaced. The innermost matching folder counts."""
    shown = {
        spelling: name
        for folder, name in folders.items()
        if folder.name
        for spelling in _spellings(str(folder))
    }
    if not shown:
        return content
    # longest first, for nested folders
    spellings = sorted(shown, key=len, reverse=True)
    # case-insensitive for Windows; "/home/ann" must not match in "/home/anna" or "/srv/home/ann"
    pattern = re.compile(
        rf"(?<![\w.])(?:{'|'.join(f'({re.escape(spelling)})' for spelling in spellings)})(?![\w-])",
        re.IGNORECASE,
    )
    return _walk(
        content,
        lambda text: pattern.sub(lambda found: shown[spellings[(found.lastindex or 1) - 1]], text),
    )


def _spellings(folder: str) -> set[str]:
    """The folder as the system writes it, with forward slashes, and as escaped by repr and JSON."""
    return {folder, folder.replace("\\", "/"), folder.replace("\\", "\\\\")}


def _walk(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, dict):
        return {key: _walk(value, change) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_walk(value, change) for value in content]
    return content
