"""Texts for visitors from elsewhere: the folders of this machine in them lose what lies above, so
that a log or a run's settings tell no stranger whose computer this is.

    redact(content, {Path("C:/Users/Ann/webui/models/Lora"): "Lora"})
        "C:/Users/Ann/webui/models/Lora/fox.png" -> "Lora/fox.png"

Standard library only. Called by routing.py, for every answer to a visitor from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any


def redact(content: Any, folders: Mapping[PurePath, str]) -> Any:
    """JSON's values, or a text, in which every folder is written as it is to be shown. Of a folder
    inside another one, its own name counts.
    """
    shown = {
        spelling: name
        for folder, name in folders.items()
        if folder.name
        for spelling in _spellings(str(folder))
    }
    if not shown:
        return content
    # the longest first, for folders inside others
    spellings = sorted(shown, key=len, reverse=True)
    # upper and lower case are one on Windows, and no harm elsewhere; "/home/ann" is no part of
    # "/home/anna" or of "/srv/home/ann"
    pattern = re.compile(
        rf"(?<![\w.])(?:{'|'.join(f'({re.escape(spelling)})' for spelling in spellings)})(?![\w-])",
        re.IGNORECASE,
    )
    return _walk(
        content,
        lambda text: pattern.sub(lambda found: shown[spellings[(found.lastindex or 1) - 1]], text),
    )


def _spellings(folder: str) -> set[str]:
    """As the system writes it, with forward slashes, and as Python's repr and JSON write it."""
    return {folder, folder.replace("\\", "/"), folder.replace("\\", "\\\\")}


def _walk(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, dict):
        return {key: _walk(value, change) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_walk(value, change) for value in content]
    return content
