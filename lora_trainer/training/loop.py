"""The loop of every task, and the hooks around its steps.

    Loop(trainer, [Requests(...), Reporting(...), Saving(...)]).run()

A step is a trainer's optimizer step or a captioner's batch. Everything between steps (requests,
reports, saves, previews) is a Hook; hooks are called in the given order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from lora_trainer.errors import Message

Outcome = Literal["finished", "stopped"]


class StopRequested(Exception):
    """Raised between steps, or inside a stage, when a stop was requested."""


class EndedEarly(Exception):
    """Raised between steps to end the loop as if no step were left; `reason` is for the user."""

    def __init__(self, reason: Message) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Abandoned(Exception):
    """Raised while a sample is made, when a stop was requested."""


class Steps(Protocol):
    """The work of a loop."""

    @property
    def step(self) -> int:
        """Progress, as in events."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        ...

    def advance(self) -> Any:
        """Do one step. Its result is passed to the hooks."""
        ...


Work = TypeVar("Work", bound=Steps)


class Hook(Generic[Work]):
    """What happens around the steps of a loop. Any method may raise StopRequested, and those
    before a step EndedEarly.
    """

    def before_first_step(self, loop: Loop[Work]) -> None:
        """Called once before any step, also in a run that is resumed."""

    def before_step(self, loop: Loop[Work]) -> None:
        """Called before each step."""

    def after_step(self, loop: Loop[Work], result: Any) -> None:
        """Called after each step, with what `advance` returned."""

    def on_request(self, loop: Loop[Work], kind: str) -> None:
        """Called before a step for a `save` or `preview` request."""

    def after_save(self, loop: Loop[Work], file: Path) -> None:
        """Called after the adapters were saved to `file`, for example to evaluate them."""


class Loop(Generic[Work]):
    """Runs the remaining steps of `work` with hooks."""

    def __init__(self, work: Work, hooks: Sequence[Hook[Work]]) -> None:
        self.work = work
        self.hooks = tuple(hooks)

    def run(self) -> None:
        """Run all remaining steps. Raises StopRequested or EndedEarly if a hook does."""
        for hook in self.hooks:
            hook.before_first_step(self)
        while not self.work.is_over:
            for hook in self.hooks:
                hook.before_step(self)
            result = self.work.advance()
            for hook in self.hooks:
                hook.after_step(self, result)

    def request(self, kind: str) -> None:
        """Call the hooks' on_request."""
        for hook in self.hooks:
            hook.on_request(self, kind)

    def saved(self, file: Path) -> None:
        """Call the hooks' after_save."""
        for hook in self.hooks:
            hook.after_save(self, file)
