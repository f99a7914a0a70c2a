"""NAME.json beside a LoRA: the user metadata of A1111's card. Only single keys are changed.

Called by library.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import LoraFileError

TRIGGER, WEIGHT, VERSION = "activation text", "preferred weight", "sd version"
STRONGEST = 2.0


def path_of(lora: Path) -> Path:
    return lora.with_suffix(".json")


def read(lora: Path) -> dict[str, Any]:
    """The sidecar's values; empty if it is missing or unreadable."""
    try:
        return _parse(path_of(lora))
    except (OSError, ValueError):
        return {}


def trigger(values: dict[str, Any]) -> str:
    found = values.get(TRIGGER)
    return found.strip() if isinstance(found, str) else ""


def weight(values: dict[str, Any]) -> float | None:
    """The preferred weight, or None. A1111's own editor writes 0 for none."""
    return number(values.get(WEIGHT))


def number(found: Any) -> float | None:
    """A finite number other than 0 from arbitrary JSON, or None."""
    return files.finite_number(found) or None


def write_weight(lora: Path, value: float, *, otherwise: dict[str, Any]) -> None:
    """Set the preferred weight and keep all other keys. `otherwise`: the values of a new sidecar.

    Raises LoraFileError for an invalid weight, or for an unreadable sidecar, which is not
    overwritten.
    """
    if isinstance(value, bool) or not 0 < value <= STRONGEST:
        # A1111 uses 0 for none
        raise LoraFileError(
            "{value} cannot be the preferred strength",
            hint="Choose a number above 0, up to {most}.",
            value=value,
            most=STRONGEST,
        )
    path = path_of(lora)
    try:
        values = _parse(path) if path.exists() else dict(otherwise)
        values[WEIGHT] = round(value, 4)
        files.write_text(path, json.dumps(values, ensure_ascii=False, indent=4) + "\n")
    except ValueError as error:
        raise LoraFileError(
            "{file} is not valid JSON, so the strength was not written",
            hint="Fix or delete it: {reason}.",
            file=path.name,
            reason=error,
        ) from error
    except OSError as error:
        raise LoraFileError(
            "{file} could not be written: {reason}",
            hint="Check that the LoRA folder is not write-protected.",
            file=path.name,
            reason=error.strerror or error,
        ) from error


def copy(lora: Path, other: Path, *, version: str | None) -> None:
    """Copy a LoRA's sidecar, if there is one, for its copy `other`. version: the copy's `sd
    version`, if known. Raises LoraFileError.
    """
    values, target = read(lora), path_of(other)
    if not values or target.exists():
        return
    try:
        values |= {VERSION: version} if version else {}
        files.write_text(target, json.dumps(values, ensure_ascii=False, indent=4) + "\n")
    except OSError as error:
        raise LoraFileError(
            "{file} could not be written: {reason}",
            hint="Check that the LoRA folder is not write-protected.",
            file=target.name,
            reason=error.strerror or error,
        ) from error


def _parse(path: Path) -> dict[str, Any]:
    values = files.load_json(path, infinite=True)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values
