"""A small run of each harness, with the other tests: by hand they go on for as long as one likes
(tests/hardening/__init__.py says how).
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.hardening import faults, full_disk, kills, mutations
from tests.hardening.harness import Run, in_child
from tests.hardening.readers import READERS, named
from tests.hardening.stages import CAPTIONING, EDITING, KEEPING, UPLOADING

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forked processes, and what Linux tells of them"
)

QUICK = (CAPTIONING, UPLOADING, EDITING, KEEPING)
"""Training, delivering and installing take seconds a kill: tests/worker, tests/lora and
tests/test_install.py have their own.
"""
SEED = 1


def test_after_kills_going_on_comes_to_the_same_and_nothing_is_lost():
    run = Run(seed=SEED, seconds=60, most=6)
    kills.attack(run, QUICK, real=False)
    assert run.faults == [] and run.counts["kills"] == 6


def test_on_a_full_disk_everything_is_told_and_nothing_is_lost():
    run = Run(seed=SEED, seconds=60, most=6)
    full_disk.attack(run, QUICK[1:], real=False)
    assert run.faults == [] and run.counts["full disks"] == 6


def test_whatever_a_file_holds_it_is_a_value_or_a_sentence():
    readers = named(["config.yaml", "metadata.csv", "LoRA", "removed.json", "image PNG"])
    run = Run(seed=SEED, seconds=60, most=len(readers))
    mutations.attack(run, readers, batch=10)
    assert run.faults == [] and run.counts["mutations"] == 10 * len(readers)


# --- the harnesses themselves ---------------------------------------------------------------------


def test_a_harness_finds_what_it_is_there_to_find(tmp_path):
    """A stage that writes in place loses what was there, when it is killed or the disk is full."""
    from tests.hardening.stages import Stage

    def write(root):
        (root / "precious").write_text("new and longer", encoding="utf-8")

    def lost(root):
        text = (root / "precious").read_text(encoding="utf-8")
        return [] if text in ("old", "new and longer") else [f"it says {text!r}"]

    careless = Stage(
        name="careless",
        prepare=lambda root: (root / "precious").write_text("old", encoding="utf-8"),
        act=write,
        go_on=write,
        result=lambda root: {
            "text": (root / "precious").read_text(encoding="utf-8"),
            "rubbish": [],
        },
        lost=lost,
    )
    killed, filled = (
        Run(seed=0, seconds=60, most=2, told=str),
        Run(seed=0, seconds=60, most=2, told=str),
    )
    kills.attack(killed, [careless], real=False)
    full_disk.attack(filled, [careless], real=False)
    assert [fault.partition(":")[0] for fault in killed.faults] == ["lost"]
    assert "unsaid" in filled.counts and any("it says" in fault for fault in filled.faults)
    assert killed.summary("kills", kills.KINDS) == "kills: 2 kills, 1 lost, 0 differ, 0 left"


def test_every_operation_is_noted_and_the_chosen_one_does_not_happen(tmp_path):
    def act(at=None, then=faults.die):
        watching = faults.watch(tmp_path, at, then)
        (tmp_path / "a").mkdir()
        with (tmp_path / "a" / "file").open("wb") as stream:
            stream.write(b"12345678")
        os.replace(tmp_path / "a" / "file", tmp_path / "file")
        (tmp_path / "file").unlink()
        return watching.noted

    assert in_child(lambda: act(3)).how == "killed"
    assert (tmp_path / "a" / "file").read_bytes() == b""
    (tmp_path / "a" / "file").unlink()
    (tmp_path / "a").rmdir()
    outcome = in_child(lambda: act(3, faults.full))
    assert (outcome.value, (tmp_path / "a" / "file").read_bytes()) == ("OSError", b"1234")
    (tmp_path / "a" / "file").unlink()
    (tmp_path / "a").rmdir()
    assert in_child(act).value == [
        "mkdir a",
        "create a/file",
        "write a/file",
        "rename file",
        "remove file",
    ]


def test_what_runs_wild_in_a_child_is_ended_and_told():
    assert in_child(lambda: [0] * 10**9, memory=2**28).value == "MemoryError"
    late = in_child(lambda: [None for _ in iter(int, 1)], seconds=0.3)
    assert late.how == "late" and late.seconds < 10
    assert in_child(lambda: os._exit(3)).how == "killed"


def test_the_same_seed_damages_in_the_same_way():
    damaged = [
        mutations.mutate(random.Random("7-3"), b'{"a": [1, 2], "b": "text"}', "json")
        for _ in range(2)
    ]
    assert damaged[0] == damaged[1] and len({reader.name for reader in READERS}) == len(READERS)
