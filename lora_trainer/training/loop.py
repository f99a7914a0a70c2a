"""The loop of every task, and the hooks around its steps.

    Loop(trainer, [Requests(...), Reporting(...), Saving(...)]).run()

A step is a trainer's optimizer step or a captioner's batch. Everything between steps (requests,
reports, saves, previews) is a Hook; hooks are called in the given order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from lora_trainer.errors import Message
from lora_trainer.training.processes import ALONE, Processes

Outcome = Literal["finished", "stopped"]


class StopRequested(Exception):
    """Raised between steps, or inside a stage, when a stop was requested."""


class EndedEarly(Exception):
    """Raised between steps to end the loop as if no step were left; `reason` is for the user."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason)
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
    """Runs the remaining steps of `work` with hooks. Of several processes that share the steps,
    the first one has the hooks; the others wait for them between steps, and end where it ends.
    """

    def __init__(
        self, work: Work, hooks: Sequence[Hook[Work]], processes: Processes = ALONE
    ) -> None:
        self.work = work
        self.hooks = tuple(hooks) if processes.is_first else ()
        self.processes = processes

    def run(self) -> None:
        """Run all remaining steps. Raises StopRequested or EndedEarly if a hook does."""
        self._between_steps(self._begin)
        while not self.work.is_over:
            result = self.work.advance()
            self._between_steps(functools.partial(self._go_on, result))

    def _begin(self) -> None:
        for hook in self.hooks:
            hook.before_first_step(self)
        self._before_step()

    def _go_on(self, result: Any) -> None:
        for hook in self.hooks:
            hook.after_step(self, result)
        self._before_step()

    def _before_step(self) -> None:
        if not self.work.is_over:
            for hook in self.hooks:
                hook.before_step(self)

    def _between_steps(self, call_hooks: Callable[[], None]) -> None:
        """Call the hooks. What ends the loop is raised in every process."""
        ending = self.processes.first(functools.partial(_ending_of, call_hooks))
        if ending is not None:
            raise ending

    def request(self, kind: str) -> None:
        """Call the hooks' on_request."""
        for hook in self.hooks:
            hook.on_request(self, kind)

    def saved(self, file: Path) -> None:
        """Call the hooks' after_save."""
        for hook in self.hooks:
            hook.after_save(self, file)


def _ending_of(call_hooks: Callable[[], None]) -> StopRequested | EndedEarly | None:
    try:
        call_hooks()
    except (StopRequested, EndedEarly) as ending:
        return ending
    return None
