"""The disk is full: at each file-system operation of a stage in turn, and on a real small disk.
Then there is room again, one goes on, and compares.

    python -m tests.hardening.full_disk --seed 1 --seconds 300

Unsaid: it ended otherwise than with a sentence that speaks of the disk. Lost, differ, left: as for
kills.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hardening import faults
from tests.hardening.harness import Outcome, Run, in_child, main
from tests.hardening.kills import compare, looked, prepared, undisturbed
from tests.hardening.stages import STAGES, Stage, names

KINDS = ("full disks", "unsaid", "lost", "differ", "left")
SAYS_SO = (
    "full",
    "no space",
    "free space",
    "space left",
    "room",
    "cannot be written",
    "could not be",
)
SAYS_NOT = ("please report", "traceback", "unexpected", 'file "')
REAL_EVERY = 4


def attack(run: Run, stages: Sequence[Stage] = STAGES, *, real: bool = True) -> None:
    """Every operation of every stage, in an order that the seed decides, until the time is over."""
    with tempfile.TemporaryDirectory(prefix="full-") as place:
        known = {stage.name: undisturbed(stage, Path(place)) for stage in stages}
        real = real and can_mount(Path(place))
        waiting: list[tuple[Stage, int]] = []
        while run.goes_on():
            if real and run.counts["full disks"] % REAL_EVERY == REAL_EVERY - 1:
                stage = run.random.choice([stage for stage in stages if not stage.first])
                _fill_a_real_disk(run, stage, known[stage.name][0], Path(place))
                continue
            if not waiting:
                waiting = [(stage, at) for stage in stages for at in known[stage.name][1]]
                run.random.shuffle(waiting)
            stage, at = waiting.pop()
            _fill(run, stage, at, known[stage.name][0], Path(place))


def _fill(run: Run, stage: Stage, at: int, expected: Any, place: Path) -> None:
    """The disk is full from operation `at` on."""
    with prepared(stage, place) as root:

        def act() -> Any:
            faults.watch(root, at, faults.full)
            return stage.act(root)

        outcome = in_child(act, seconds=stage.seconds)
        run.count("full disks")
        _judge(
            run,
            stage,
            root,
            outcome,
            expected,
            f"seed {run.seed}, {stage.name} with a disk that is full from operation {at} on",
        )


def _judge(run: Run, stage: Stage, root: Path, outcome: Outcome, expected: Any, where: str) -> None:
    text = outcome.text.lower()
    if outcome.how == "sentence" and (
        not any(words in text for words in SAYS_SO) or any(words in text for words in SAYS_NOT)
    ):
        run.fault("unsaid", f"{where}: {outcome.text}")
    elif outcome.how not in ("sentence", "value"):
        run.fault("unsaid", f"{where}: {outcome.how} {outcome.value or ''} {outcome.text}")
    elif outcome.how == "value" and stage.name != "installing":
        # it found a way round: what it says is done must be there
        for lost in looked(lambda: stage.lost(root)):
            run.fault("lost", f"{where}: {lost}")
    compare(run, stage, root, expected, where)


# --- a real one -----------------------------------------------------------------------------------


def can_mount(place: Path) -> bool:
    """Whether this process may mount a small disk."""
    try:
        with small_disk(place, 2**16):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes, in memory. Raises OSError where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="disk-", dir=place))
    _libc("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())
    try:
        yield folder
    finally:
        _libc("umount2", os.fsencode(folder), 2)
        folder.rmdir()


def grow(disk: Path, size: int) -> None:
    """There is room again."""
    remount = 32
    _libc("mount", b"tmpfs", os.fsencode(disk), b"tmpfs", remount, f"size={size}".encode())


def _libc(call: str, *arguments: Any) -> None:
    if sys.platform != "linux":
        raise OSError("only Linux has such disks")
    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), call)


def _fill_a_real_disk(run: Run, stage: Stage, expected: Any, place: Path) -> None:
    """A disk with room for a part of what the stage writes: libraries that write in native code
    meet it, too.
    """
    with prepared(stage, place) as whole, small_disk(place, 2**28) as disk:
        stage.prepare(disk)
        before = used(disk)
        in_child(lambda: stage.act(whole), seconds=stage.seconds)
        needed = max(used(whole) - before, 2**14)
        room = run.random.randrange(needed) // 4096 * 4096
        grow(disk, before + room)
        outcome = in_child(lambda: stage.act(disk), seconds=stage.seconds)
        run.count("full disks")
        grow(disk, 2**28)
        where = (
            f"seed {run.seed}, {stage.name} on a disk with {room} bytes free, of {needed} needed"
        )
        _judge(run, stage, disk, outcome, expected, where)


def used(folder: Path) -> int:
    """Bytes in whole pages, as such a disk counts them, with some for the folders."""
    sizes = [(folder / name).stat().st_size for name in names(folder)]
    return sum(-(-size // 4096) * 4096 for size in sizes) + 4096 * len(sizes)


if __name__ == "__main__":
    sys.exit(main("full_disk", attack, KINDS))
