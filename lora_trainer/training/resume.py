"""What an exact resume needs, on disk: state/step00000100.pt, written whole or not at all, the newest two kept.

worker writes a state after every save and when a run stops; `resume` reads the newest one that is whole.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from lora_trainer import files
from lora_trainer.errors import RunError

FORMAT = 1
KEPT = 2


def write_state(folder: Path, state: dict[str, Any]) -> Path:
    """Keep `state` (its "step" names the file) and let the oldest go."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step{state['step']:08d}.pt"
    files.replace_file(target, lambda partial: torch.save({"format": FORMAT, **state}, partial))
    for old in _newest_first(folder)[KEPT:]:
        with contextlib.suppress(OSError):
            old.unlink()
    return target


def has_state(folder: Path) -> bool:
    return bool(_newest_first(folder))


def read_state(folder: Path) -> dict[str, Any]:
    """The newest whole state. Raises RunError when there is none."""
    reasons = []
    for path in _newest_first(folder):
        try:
            # weights_only: a state holds tensors and numbers, and a file from elsewhere must not run code
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways
            reasons.append(f"{path.name}: {error}")
            continue
        if state.pop("format", None) == FORMAT:
            return dict(state)
        reasons.append(f"{path.name}: written by another version")
    if reasons:
        raise RunError(
            "no resume point in {folder} can be read ({reasons})",
            hint="Start again under a new output_dir.",
            folder=folder,
            reasons="; ".join(reasons),
        )
    raise RunError("{folder} holds no resume point", hint="The run ended before its first save. Start it again with `train`.", folder=folder)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step*.pt"), reverse=True) if folder.is_dir() else []
