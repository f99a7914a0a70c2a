from __future__ import annotations

import pytest

from lora_trainer.errors import Message
from lora_trainer.runs import events
from lora_trainer.tasks.report import in_words


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (events.Phase(phase="encoding", total=24), "phase: phase encoding, total 24"),
        (
            events.Saved(step=100, file="checkpoints/ink.safetensors", time=5.0),
            "saved: step 100, file checkpoints/ink.safetensors",
        ),
        (events.Paused(), "paused"),
        (
            events.Warned.of(
                Message("{name} is small", {"name": "a.png"}), Message("Use a larger one.")
            ),
            "warned: a.png is small Use a larger one.",
        ),
    ],
)
def test_the_log_speaks_of_events_in_words(event, line):
    assert in_words(event) == line
