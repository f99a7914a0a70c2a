"""Watches the host's queue lock, which serializes the use of its device.

    queue = QueueLock(queue_lock)
    queue.watch(before, after)     hooks called in the host's thread, after it acquires the lock and
    before it releases it
    with queue.ours(): ...         hold the lock ourselves; the hooks are not called

Every generation, upscale and change of checkpoint in A1111, Forge, reForge and classic holds this
lock: buttons (`wrap_gradio_gpu_call`), the API (`with self.queue_lock`) and settings
(`wrap_queued_call`). A script's `before_process` would not do: hosts load models before calling it,
swallow its exceptions, and call nothing when a generation fails. So the lock's class is replaced
with a subclass: the lock stays the object that others imported, and `unwatch` restores its class.
Standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)
PLAIN = "_lora_trainer_plain"
"""The attribute of a watched lock's class with its original class."""


class QueueLock:
    """A host's queue lock. `lock` has acquire(blocking), release, and is a context manager written
    in Python.
    """

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self._before: Callable[[], object] | None = None
        self._after: Callable[[], object] | None = None
        self._host_thread: int | None = None
        self._owner: int | None = None
        self._ours = threading.local()

    @property
    def in_use_by_host(self) -> bool:
        """Whether the host holds the lock; known only while watched."""
        return self._host_thread is not None

    @property
    def watched(self) -> bool:
        return hasattr(type(self.lock), PLAIN)

    def watch(self, before: Callable[[], object], after: Callable[[], object]) -> bool:
        """Call `before` and `after` around every use by the host. An exception from `before`
        releases the lock and is raised to the host.

        Returns False if the lock's class cannot be subclassed.
        """
        self._before, self._after = before, after
        plain = _plain_class(self.lock)
        try:
            self.lock.__class__ = _watched_class(plain, self)
        except TypeError:
            return False
        return True

    def unwatch(self) -> None:
        """Restore the lock."""
        self.lock.__class__ = _plain_class(self.lock)
        self._before = self._after = self._host_thread = None

    @contextlib.contextmanager
    def ours(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock ourselves. Yields True; with wait=False, False if another thread holds it.
        Reentrant, also inside the host's use on this thread.
        """
        me = threading.get_ident()
        if me in (self._host_thread, self._owner):
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

    def _host_acquired(self) -> None:
        self._host_thread = threading.get_ident()
        try:
            if self._before is not None:
                self._before()
        except BaseException:
            self._host_thread = None
            raise

    def _host_releases(self) -> None:
        try:
            if self._after is not None:
                self._after()
        except Exception:
            # the host's lock must be released in any case
            log.exception("after a turn of the host")
        finally:
            self._host_thread = None

    def _is_ours(self) -> bool:
        return getattr(self._ours, "asking", False)


def _plain_class(lock: Any) -> Any:
    return getattr(type(lock), PLAIN, type(lock))


def _watched_class(plain: Any, queue: QueueLock) -> Any:
    class Watched(plain):  # type: ignore[misc]
        def acquire(self, blocking: bool = True) -> Any:
            got = plain.acquire(self, blocking)
            if got is not False and not queue._is_ours():
                try:
                    queue._host_acquired()
                except BaseException:
                    plain.release(self)
                    raise
            return got

        def release(self) -> None:
            if queue._host_thread is not None:
                queue._host_releases()
            plain.release(self)

        def __enter__(self) -> Any:
            return self.acquire()

        def __exit__(self, *details: object) -> None:
            self.release()

    setattr(Watched, PLAIN, plain)
    return Watched
