"""Resume points on disk: state/step00000100.pt, written atomically, the newest two kept.

The worker writes one after every save and when a run stops; `resume` reads the newest intact one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from lora_trainer.errors import Message, RunError
from lora_trainer.training import checksummed
from lora_trainer.training.checksummed import Damaged

FORMAT = 1
KEPT = 2
NEEDED: dict[str, Any] = {
    "step": int,
    "adapters": dict,
    "optimizer": dict,
    "rates": dict,
    "smoothed_loss": dict,
    "skipped": int,
    "scaler": (dict, type(None)),
}


class Found(NamedTuple):
    """A state, and messages about newer damaged ones."""

    state: dict[str, Any]
    notes: tuple[Message, ...]


def write_state(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` (its "step" names the file) and delete older ones."""
    target = folder / f"step{state['step']:08d}.pt"
    checksummed.write_state(target, {"format": FORMAT, **state})
    for old in _newest_first(folder)[KEPT:]:
        with contextlib.suppress(OSError):
            old.unlink()
    return target


def has_state(folder: Path) -> bool:
    return bool(_newest_first(folder))


def read_state(folder: Path) -> Found:
    """The newest intact state; damaged ones are renamed. Raises RunError if there is none."""
    reasons: dict[Path, str] = {}
    for path in _newest_first(folder):
        try:
            state = _checked(checksummed.read_state(path))
        except Damaged as damage:
            reasons[path] = str(damage)
            continue
        return Found(
            state,
            tuple(
                _rename_damaged(newer, reason, state["step"]) for newer, reason in reasons.items()
            ),
        )
    if reasons:
        raise RunError(
            "no resume point in {folder} can be read ({reasons})",
            hint="Start again under a new output_dir.",
            folder=folder,
            reasons="; ".join(f"{path.name}: {reason}" for path, reason in reasons.items()),
        )
    raise RunError(
        "{folder} holds no resume point",
        hint="The run ended before its first save. Start it again with `train`.",
        folder=folder,
    )


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The state, if a run can resume from it. Raises Damaged."""
    if state.pop("format", None) != FORMAT:
        raise Damaged("written by another version")
    lacking = [key for key, kinds in NEEDED.items() if not isinstance(state.get(key, ...), kinds)]
    if lacking:
        raise Damaged(f"it lacks {', '.join(lacking)}")
    if not checksummed.is_finite([state["adapters"], state["optimizer"], state.get("average")]):
        raise Damaged("it holds NaN or infinite numbers")
    return state


def _rename_damaged(path: Path, reason: str, step: int) -> Message:
    # rename it, so that it does not count as one of the newest two
    with contextlib.suppress(OSError):
        path.rename(path.with_name(f"{path.name}.damaged"))
    values = {"name": path.name, "reason": reason, "step": step}
    return Message(
        "the resume point {name} is damaged ({reason}); the run continues from step {step}", values
    )


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step*.pt"), reverse=True) if folder.is_dir() else []
