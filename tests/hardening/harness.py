"""What every harness has: a seed, a budget, faults that are told as they are found, and one line at
the end. And acts in a child process of their own.

def attack(run: Run) -> None:
    while run.goes_on():
        run.count("kills")
        if it_is_wrong:
            run.fault("lost", "what is wrong, and by which trial it can be seen again")

if __name__ == "__main__":
    sys.exit(main("kills", attack, ("kills", "lost", "differ")))
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import pickle
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lora_trainer.errors import LoraTrainerError

TOLD = 40
"""Faults that are told one by one; beyond them only their number."""


@dataclass
class Run:
    """One run of a harness."""

    seed: int
    seconds: float
    most: int | None = None
    """At most so many trials; for the small run among the tests."""
    told: Callable[[str], object] = print
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._end: float | None = None
        self._trials = 0

    def goes_on(self) -> bool:
        """Whether there is time for one more trial. The time begins with the first."""
        self._end = self._end or time.monotonic() + self.seconds
        if time.monotonic() >= self._end or (self.most is not None and self._trials >= self.most):
            return False
        self._trials += 1
        return True

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def fault(self, kind: str, what: str) -> None:
        """Something was lost, let in, or not told as it should be."""
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {what}")
        if len(self.faults) <= TOLD:
            self.told(f"{kind}: {what}")

    def summary(self, name: str, kinds: Sequence[str]) -> str:
        """ "kills: 120 kills, 0 lost, 0 differ"."""
        return f"{name}: " + ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds)


def main(
    name: str, attack: Callable[[Run], None], kinds: Sequence[str], seconds: float = 60.0
) -> int:
    """A harness run by hand. Returns the exit status: 1 if anything was found."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.hardening.{name}")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed tries the same, in the same order"
    )
    parser.add_argument("--seconds", type=float, default=seconds, help="how long to go on")
    arguments = parser.parse_args()
    run = Run(
        seed=arguments.seed, seconds=arguments.seconds, told=lambda line: print(line, flush=True)
    )
    attack(run)
    print(run.summary(name, kinds), flush=True)
    return 1 if run.faults else 0


# --- a child of one's own -------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of an act in a child process."""

    how: str
    """value, sentence (a LoraTrainerError), unexpected (another exception), killed (it ended
    without a word), late (it was ended after its time).
    """
    value: Any = None
    """The value; or the class of what was raised."""
    text: str = ""
    """The sentence with its hint; or the traceback's end."""
    status: int = 0
    seconds: float = 0.0
    memory: int = 0
    """Bytes by which it grew."""


def in_child(
    act: Callable[[], Any], *, seconds: float = 60.0, memory: int | None = None
) -> Outcome:
    """Carry `act` out in a forked child: it may be killed, run wild or eat memory, and nothing
    stays of it here.

    seconds: after these it is ended. memory: bytes that it may take beyond what this process has.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    began, before = time.monotonic(), _resident()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(act, writing, memory)
    os.close(writing)
    answer, late = _listen(reading, began + seconds)
    os.close(reading)
    if late:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    facts = {
        "status": status,
        "seconds": time.monotonic() - began,
        "memory": max(0, usage.ru_maxrss * 1024 - before),
    }
    if late:
        return Outcome(how="late", **facts)
    if not answer:
        return Outcome(how="killed", **facts)
    how, value, text = pickle.loads(answer)
    return Outcome(how=how, value=value, text=text, **facts)


def rehearse(act: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    """The value of an act that works; what it imports is imported here, too, once for all the
    children to come.
    """
    outcome = in_child(lambda: (act(), list(sys.modules)), seconds=seconds)
    assert outcome.how == "value", (
        f"{what} does not work: {outcome.how} {outcome.value or ''} {outcome.text}"
    )
    value, modules = outcome.value
    for module in modules:
        if module in sys.modules:
            continue
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    return value


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _listen(reading: int, until: float) -> tuple[bytes, bool]:
    """What the child says, and whether its time was over before it ended."""
    pieces = []
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return b"", True
        piece = os.read(reading, 2**16)
        if not piece:
            return b"".join(pieces), False
        pieces.append(piece)


def _be_the_child(act: Callable[[], Any], writing: int, memory: int | None) -> NoReturn:
    """Never returns: neither pytest's nor anyone's last words are said twice."""
    try:
        gc.freeze()
        if memory is not None:
            resource.setrlimit(
                resource.RLIMIT_AS, (_address_space() + memory, resource.RLIM_INFINITY)
            )
        try:
            answer = ("value", act(), "")
        except LoraTrainerError as error:
            answer = ("sentence", type(error).__name__, error.report())
        except BaseException as error:
            answer = ("unexpected", type(error).__name__, _in_short(error))
        content = pickle.dumps(answer)
        while content:
            content = content[os.write(writing, content) :]
    finally:
        os._exit(0)


def _in_short(error: BaseException) -> str:
    """The error, and where in the product it came from."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "lora_trainer" in frame.filename or "hardening" not in frame.filename
    ]
    places = [
        f"{frame.filename.rpartition('/lora_trainer/')[2]}:{frame.lineno} {frame.name}"
        for frame in frames[-8:]
    ]
    return f"{error!r:.300} at {' < '.join(reversed(places))}"


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123  # read in a child that may have patched pathlib
        return int(stream.read().split()[0]) * resource.getpagesize()
