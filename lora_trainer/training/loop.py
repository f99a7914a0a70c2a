"""The one loop of every task, and the hooks around its steps.

    Loop(trainer, [Requests(...), Reporting(...), Saving(...)]).run()

Nothing here knows what a step does or who is listening: a trainer takes an optimizer step, a
captioner captions a batch. Everything in between (requests, reports, saves, previews, measurements)
is a Hook, and hooks are called in the order in which they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

Outcome = Literal["finished", "stopped"]


class StopRequested(Exception):
    """`stop` was asked for. Raised between two steps, or between two pieces of a stage."""


class Steps(Protocol):
    """What a loop drives."""

    @property
    def step(self) -> int:
        """What is done, as events tell it."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        ...

    def advance(self) -> Any:
        """Take one step. Returns what hooks are told of it."""
        ...


Work = TypeVar("Work", bound=Steps)


class Hook(Generic[Work]):
    """What is done around the steps of a loop. A subclass overrides what it needs; any of its
    methods may raise StopRequested.
    """

    def before_step(self, loop: Loop[Work]) -> None:
        """Called before each step."""

    def after_step(self, loop: Loop[Work], result: Any) -> None:
        """Called after each step, with what `advance` returned."""

    def on_request(self, loop: Loop[Work], kind: str) -> None:
        """Called before a step when somebody asked for `save` or `preview`."""

    def after_save(self, loop: Loop[Work], file: Path) -> None:
        """Called when what was learned up to this step has been written to `file`: the place to
        measure it.
        """


class Loop(Generic[Work]):
    """The work and its hooks, from where the work stands to its end."""

    def __init__(self, work: Work, hooks: Sequence[Hook[Work]]) -> None:
        self.work = work
        self.hooks = tuple(hooks)

    def run(self) -> None:
        """Take every step that is left. Raises StopRequested when a hook ends the loop."""
        while not self.work.is_over:
            for hook in self.hooks:
                hook.before_step(self)
            result = self.work.advance()
            for hook in self.hooks:
                hook.after_step(self, result)

    def request(self, kind: str) -> None:
        """Pass on what was asked for."""
        for hook in self.hooks:
            hook.on_request(self, kind)

    def saved(self, file: Path) -> None:
        """Tell the hooks of a save."""
        for hook in self.hooks:
            hook.after_save(self, file)
