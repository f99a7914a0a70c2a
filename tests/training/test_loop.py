"""The loop and its hooks, with numbers for steps."""

from pathlib import Path

import pytest

from lora_trainer.training.loop import Hook, Loop, StopRequested


class Counting:
    """Work of three steps."""

    def __init__(self):
        self.step = 0

    @property
    def is_over(self):
        return self.step == 3

    def advance(self):
        self.step += 1
        return f"result {self.step}"


class Noting(Hook):
    def __init__(self, notes, name=""):
        self.notes, self.name = notes, name

    def before_step(self, loop):
        self.notes.append((self.name, "before", loop.work.step))

    def after_step(self, loop, result):
        self.notes.append((self.name, result, loop.work.step))

    def on_request(self, loop, kind):
        self.notes.append((self.name, kind, loop.work.step))

    def after_save(self, loop, file):
        self.notes.append((self.name, file, loop.work.step))


def test_hooks_are_called_around_each_step_in_their_order():
    notes = []
    Loop(Counting(), [Noting(notes, "a"), Noting(notes, "b")]).run()
    assert notes == [
        (name, what, step)
        for number in range(3)
        for what, step in (("before", number), (f"result {number + 1}", number + 1))
        for name in "ab"
    ]


def test_hooks_hear_of_requests_and_saves():
    notes = []
    loop = Loop(Counting(), [Noting(notes, "a"), Noting(notes, "b")])
    loop.request("preview")
    loop.saved(Path("ink.safetensors"))
    assert notes == [
        (name, what, 0) for what in ("preview", Path("ink.safetensors")) for name in "ab"
    ]


def test_a_hook_ends_the_loop_before_a_step():
    class Stopping(Hook):
        def before_step(self, loop):
            if loop.work.step == 2:
                raise StopRequested

    notes, work = [], Counting()
    with pytest.raises(StopRequested):
        Loop(work, [Stopping(), Noting(notes)]).run()
    assert work.step == 2 and len(notes) == 4
