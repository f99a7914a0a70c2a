"""Formats durations and sizes. Called by preflight.py, run_view.py and caption_runs.py."""

from __future__ import annotations

from lora_trainer.errors import Message


def duration(seconds: float) -> Message:
    """A duration in seconds, from 90 seconds on in minutes, from 90 minutes on in hours."""
    if seconds < 90:
        count = max(1, round(seconds))
        return Message("1 second" if count == 1 else "{count} seconds", {"count": count})
    if seconds < 5400:
        return Message("{count} minutes", {"count": round(seconds / 60)})
    return Message("{count} hours", {"count": f"{seconds / 3600:.1f}"})


def size_of(count: int) -> str:
    """Bytes in decimal units, as the browser shows them: 340 MB, 1.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
