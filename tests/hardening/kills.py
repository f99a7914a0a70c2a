"""The process is killed: at each file-system operation of a stage in turn, and at random moments of
real workers. Then one goes on, and compares.

    python -m tests.hardening.kills --seed 1 --seconds 300

Lost: something is gone that was there before. Differ: what stands after going on is not what stands
undisturbed. Left: what a dead process wrote half is still there.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.jobs.start import note_death, start_worker
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from tests.hardening import faults
from tests.hardening.harness import Run, in_child, main, rehearse
from tests.hardening.stages import STAGES, TRAINING, Stage, training_settings

KINDS = ("kills", "lost", "differ", "left")
REAL_EVERY = 12
"""Every so many kills, one is of a real worker: it takes ten seconds."""


def attack(run: Run, stages: Sequence[Stage] = STAGES, *, real: bool = True) -> None:
    """Every operation of every stage, in an order that the seed decides, until the time is over."""
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        known = {stage.name: undisturbed(stage, Path(place)) for stage in stages}
        waiting: list[tuple[Stage, int]] = []
        while run.goes_on():
            if not waiting:
                waiting = [(stage, at) for stage in stages for at in known[stage.name][1]]
                run.random.shuffle(waiting)
            if real and run.counts["kills"] % REAL_EVERY == REAL_EVERY - 1:
                _kill_a_real_worker(run, Path(place), known[TRAINING.name][0])
                continue
            stage, at = waiting.pop()
            _kill(run, stage, at, known[stage.name][0], Path(place))


def undisturbed(stage: Stage, place: Path) -> tuple[Any, list[int]]:
    """What stands at the end of a stage that nobody disturbs, and the numbers of its operations."""
    with prepared(stage, place) as root:

        def act() -> list[str]:
            watching = faults.watch(root)
            stage.act(root)
            return watching.noted

        noted: list[str] = rehearse(act, stage.name, 3 * stage.seconds)
        first = next(
            (number for number, operation in enumerate(noted, 1) if stage.first in operation), 1
        )
        result = in_child(lambda: stage.result(root)).value
        assert result["rubbish"] == [], f"{stage.name} leaves {result['rubbish']}"
        return result, list(range(first, len(noted) + 1))


@contextlib.contextmanager
def prepared(stage: Stage, place: Path) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix=f"{stage.name}-", dir=place))
    try:
        stage.prepare(root)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _kill(run: Run, stage: Stage, at: int, expected: Any, place: Path) -> None:
    with prepared(stage, place) as root:
        operations: list[str] = []

        def note_and_die(operation: str) -> None:
            with open(f"{root}.killed", "w", encoding="utf-8") as stream:  # noqa: PTH123
                stream.write(operation)
            faults.die(operation)

        def act() -> None:
            operations.append("")
            faults.watch(root, at, note_and_die)
            stage.act(root)

        in_child(act, seconds=stage.seconds)
        run.count("kills")
        with contextlib.suppress(OSError):
            operations.append(Path(f"{root}.killed").read_text(encoding="utf-8"))
        where = f"seed {run.seed}, {stage.name} killed at operation {at} ({''.join(operations)})"
        compare(run, stage, root, expected, where)


def compare(run: Run, stage: Stage, root: Path, expected: Any, where: str) -> None:
    """After a disturbance: nothing is lost; going on works, and comes to what stands
    undisturbed.
    """
    for lost in looked(lambda: stage.lost(root)):
        run.fault("lost", f"{where}: {lost}")
    outcome = in_child(lambda: stage.go_on(root), seconds=stage.seconds)
    if outcome.how != "value":
        run.fault(
            "differ",
            f"{where}: going on ends with {outcome.how} {outcome.value or ''} {outcome.text}",
        )
        return
    for lost in looked(lambda: stage.lost(root)):
        run.fault("lost", f"{where}, after going on: {lost}")
    found = in_child(lambda: stage.result(root))
    if found.how != "value":
        run.fault("differ", f"{where}: the result cannot be read: {found.text}")
        return
    for key, wanted in expected.items():
        if found.value[key] != wanted:
            run.fault(
                "left" if key == "rubbish" else "differ",
                f"{where}: {key} is {found.value[key]!r}, for {wanted!r}",
            )


def looked(look: Any) -> list[str]:
    outcome = in_child(look)
    return (
        list(outcome.value)
        if outcome.how == "value"
        else [f"it cannot even be looked at: {outcome.text or outcome.how}"]
    )


def _kill_a_real_worker(run: Run, place: Path, expected: Any) -> None:
    """A worker as the tab starts it, ended by SIGKILL at a random moment, twice; the third may
    finish.
    """
    with prepared(TRAINING, place) as root:
        folder = folders.begin(root / "runs" / "ink", training.to_yaml(training_settings(root)))
        moments = []
        for _ in range(2):
            if folder.read_state().status == "finished":
                break
            moment = _random_moment(run.random)
            moments.append(f"{moment:.2f}")
            worker = start_worker(folder, apart=True)
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            status = worker.wait()
            note_death(folder, status)
            run.count("kills")
        compare(
            run,
            TRAINING,
            root,
            expected,
            f"seed {run.seed}, a real worker killed after {', '.join(moments)} seconds",
        )


def _random_moment(source: random.Random) -> float:
    return source.uniform(0.1, 12.0)


if __name__ == "__main__":
    sys.exit(main("kills", attack, KINDS))
