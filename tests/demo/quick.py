"""Runs of the demo's concepts, as quick as tests need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lora_trainer.demo import report
from lora_trainer.tasks.hooks.validating import Validating
from tests.made import worker_here


@contextmanager
def in_this_process(sampler_steps: int) -> Iterator[None]:
    """`report` trains in this process, draws with fewer steps, and the images of the base once.

    What is learned is the same in a worker of its own (tests/test_main.py starts one), which takes
    seconds to start. Checks change nothing in a training (tests/tasks/test_validating.py), and take
    a sixth of its time.
    """

    draw, sample = report.pictures, report.obedience.sample
    drawn: dict[tuple[str, ...], Any] = {}

    def sketch(*given: Any, step_count: int) -> Any:
        return sample(*given, step_count=sampler_steps)

    def pictures(parts: Any, prompts: Any, loras: Any) -> Any:
        if loras:
            return draw(parts, prompts, loras)
        if tuple(prompts) not in drawn:
            drawn[tuple(prompts)] = draw(parts, prompts, loras)
        return drawn[tuple(prompts)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "start_worker", worker_here)
        patched.setattr(Validating, "fits", classmethod(lambda cls, run: False))
        patched.setattr(report, "pictures", pictures)
        patched.setattr(report.obedience, "sample", sketch)
        yield
