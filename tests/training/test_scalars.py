from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from lora_trainer.training import scalars as scalars_module
from lora_trainer.training.scalars import Scalars
from tests.hardening import faults
from tests.hardening.harness import in_child


def events(folder: Path) -> list[Event]:
    """All events in the order in which TensorBoard reads them. A record is its length, a checksum,
    the event, a checksum.
    """
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    return [
        (event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.tag == name
    ]


def test_each_curve_gets_its_points_and_unknown_values_are_left_out(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path)
    scalars.write(1, {"loss": 0.5, "gradient_norm": None})
    scalars.write(2, {"loss": 0.25, "gradient_norm": 2.0})
    scalars.close()
    assert points(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]
    assert points(tmp_path, "gradient_norm") == [(2, 2.0)]


def test_a_resumed_run_adds_a_file_that_replaces_what_came_after_its_resume_point(
    tmp_path: Path,
) -> None:
    for first_step, loss in ((0, 1.0), (3, 0.5)):
        scalars = Scalars(tmp_path, first_step)
        scalars.write(first_step + 1, {"loss": loss})
        scalars.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(points(tmp_path, "loss")) == [(1, 1.0), (4, 0.5)]
    restarts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert restarts == [3]


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
@pytest.mark.parametrize("at", range(1, 9))
def test_a_disk_that_is_full_ends_the_curves_and_nothing_else(tmp_path: Path, at: int) -> None:
    def act() -> str:
        scalars_module.FLUSH_SECONDS = 0.0
        faults.watch(tmp_path, at, faults.full)
        scalars = Scalars(tmp_path / "logs", 3)
        for step in range(3, 40):
            scalars.write(step, {"loss": 0.5})
        scalars.close()
        return "went on"

    outcome = in_child(act, seconds=20)
    assert (outcome.how, outcome.value) == ("value", "went on"), outcome.text
