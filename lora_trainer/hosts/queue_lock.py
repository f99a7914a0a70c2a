"""Whose turn it is on the host's device: the host's own queue lock, watched.

    turns = QueueLock(queue_lock)
    turns.watch(before, after)     before() runs when a guest has the lock, in its thread; after()
                                   just before it gives it back
    with turns.ours(): ...         our own turn, in the same queue; before and after are not called

Every picture, upscale or change of checkpoint goes through this one lock in A1111, Forge, reForge
and classic: buttons (`wrap_gradio_gpu_call`), the API (`with self.queue_lock`) and settings
(`wrap_queued_call`) alike. A script's `before_process` would be simpler, but a host loads models
before it calls one, swallows what it raises, and calls nothing when a generation fails. So the lock
itself is given a subclass of its class: it stays the object that others have imported, and
`unwatch` gives it its class back. Called by host.py. Standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)
PLAIN = "_lora_trainer_plain"
"""On a watched lock's class: the class it had before."""


class QueueLock:
    """The queue lock of a host, whoever holds it. `lock` has acquire(blocking), release and is a
    context manager of a plain Python class.
    """

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self._before: Callable[[], object] | None = None
        self._after: Callable[[], object] | None = None
        self._guest: int | None = None
        self._owner: int | None = None
        self._ours = threading.local()

    @property
    def guest_inside(self) -> bool:
        """Whether the host is at work: a picture, an upscale, a change of checkpoint. Known only
        while watched.
        """
        return self._guest is not None

    @property
    def watched(self) -> bool:
        return hasattr(type(self.lock), PLAIN)

    def watch(self, before: Callable[[], object], after: Callable[[], object]) -> bool:
        """Call `before` and `after` around every guest's turn from now on. What `before` raises is
        raised to the guest, which then has no turn.

        False if this lock cannot be watched: it is of a class that Python does not let us extend.
        """
        self._before, self._after = before, after
        plain = _plain_class(self.lock)
        try:
            self.lock.__class__ = _watched_class(plain, self)
        except TypeError:
            return False
        return True

    def unwatch(self) -> None:
        """Leave the lock as it was found."""
        self.lock.__class__ = _plain_class(self.lock)
        self._before = self._after = self._guest = None

    @contextlib.contextmanager
    def ours(self, *, wait: bool = True) -> Iterator[bool]:
        """Our own turn: True once nobody else has the device. With wait=False, False at once when
        somebody has it.

        A thread that already has a turn, its own or a guest's, goes straight on.
        """
        me = threading.get_ident()
        if me in (self._guest, self._owner):
            yield True
            return
        self._ours.asking = True
        try:
            got = self.lock.acquire(wait) is not False
        finally:
            self._ours.asking = False
        if not got:
            yield False
            return
        self._owner = me
        try:
            yield True
        finally:
            self._owner = None
            self.lock.release()

    def _guest_enters(self) -> None:
        self._guest = threading.get_ident()
        try:
            if self._before is not None:
                self._before()
        except BaseException:
            self._guest = None
            raise

    def _guest_leaves(self) -> None:
        try:
            if self._after is not None:
                self._after()
        except Exception:
            # the host's lock must be given back, whatever becomes of us
            log.exception("after a turn of the host")
        finally:
            self._guest = None

    def _is_ours(self) -> bool:
        return getattr(self._ours, "asking", False)


def _plain_class(lock: Any) -> Any:
    return getattr(type(lock), PLAIN, type(lock))


def _watched_class(plain: Any, turns: QueueLock) -> Any:
    class Watched(plain):  # type: ignore[misc]
        def acquire(self, blocking: bool = True) -> Any:
            got = plain.acquire(self, blocking)
            if got is not False and not turns._is_ours():
                try:
                    turns._guest_enters()
                except BaseException:
                    plain.release(self)
                    raise
            return got

        def release(self) -> None:
            if turns._guest is not None:
                turns._guest_leaves()
            plain.release(self)

        def __enter__(self) -> Any:
            return self.acquire()

        def __exit__(self, *details: object) -> None:
            self.release()

    setattr(Watched, PLAIN, plain)
    return Watched
