"""One of several processes that train or caption together, with torch.distributed.

It is started by torchrun, `accelerate launch` or worker/companions.py. Gradients are summed by NCCL
on NVIDIA cards, and by gloo elsewhere. Everything else goes over gloo: waiting there keeps no card
busy, and raises at once when another process has ended.
"""

from __future__ import annotations

import collections
import contextlib
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist

from lora_trainer.errors import LoraTrainerError, ProcessLost
from lora_trainer.runs.events import Failed, from_line, message_of, to_line
from lora_trainer.training.device import choose_device, describe_device, listed_devices
from lora_trainer.training.processes import Processes, Value

_C10D: Any = dist
"""torch.distributed with the names that it documents, but does not export for type checkers."""
LONGEST_WAIT = timedelta(days=30)
"""Timeout of the gloo group. The others wait while the first process pauses, saves and makes
previews; a process that ended is noticed by its closed connection, not by the timeout.
"""
LONGEST_SUM = timedelta(minutes=30)
"""Timeout of the NCCL group: all processes begin an all-reduce at about the same time."""
LONGEST_LEAVE = 10.0
"""Seconds to wait for destroy_process_group."""
LONGEST_START = timedelta(minutes=10)
"""Timeout for the others to import their packages and connect."""


class SharedStore(Protocol):
    """A torch.distributed.Store."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def set_timeout(self, timeout: timedelta) -> None: ...


def open_store(count: int) -> Any:
    """Open a TCPStore for `count` processes on this machine, at a free `port`. It listens on
    localhost only: torch.distributed trusts whoever connects.
    """
    if os.name == "nt":
        # PyTorch for Windows does not accept a socket, and has no libuv; before 2.3 there is no
        # such option
        options = {} if torch.__version__.startswith(("2.1.", "2.2.")) else {"use_libuv": False}
        return _C10D.TCPStore("127.0.0.1", 0, count, True, wait_for_workers=False, **options)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    listening = socket.create_server(("127.0.0.1", 0))
    return _C10D.TCPStore(
        *("127.0.0.1", listening.getsockname()[1], count, True),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


class Joined(Processes):
    """One of several processes.

    store: the key-value store that all of them share.
    """

    def __init__(self, store: SharedStore, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.busy_since: float | None = None
        """When the current all-reduce began (time.monotonic); None outside of one. NCCL does not
        end it when a connection is closed.
        """
        self._store = store
        self._sums: Any = None
        store.set_timeout(LONGEST_START)
        store.set(f"here/{rank}", "")
        with self._noticing_losses():
            dist.init_process_group(
                "gloo",
                store=_C10D.PrefixStore("processes", store),
                rank=rank,
                world_size=count,
                timeout=LONGEST_WAIT,
            )

    @classmethod
    def by_environment(cls) -> Joined:
        """Join with the environment variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
        store, rank, count = next(_C10D.rendezvous("env://", timeout=LONGEST_START))
        return cls(store, rank, count)

    def leave(self) -> None:
        """Destroy the process group, so that another one can be joined."""
        # NCCL may wait for processes that have ended
        leaving = threading.Thread(target=_destroy_group, daemon=True)
        leaving.start()
        leaving.join(LONGEST_LEAVE)

    def add_up(self, parameters: Sequence[torch.nn.Parameter], losses: torch.Tensor) -> None:
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        # a parameter without a gradient in any process keeps none
        there = losses.new_tensor([float(one.grad is not None) for one in parameters])
        parts = [*gradients, there, losses]
        flat = torch.cat([part.detach().flatten().float() for part in parts])
        found = torch.split(self._sum(flat), [part.numel() for part in parts])
        for part, total in zip(parts, found, strict=True):
            part.copy_(total.view_as(part))
        for parameter, gradient, holders in zip(parameters, gradients, there.tolist(), strict=True):
            parameter.grad = gradient if holders else None

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes, on the same device: one all-reduce."""
        on_cards = values.device.type == "cuda" and dist.is_nccl_available()
        if self._sums is None:
            with self._noticing_losses():
                self._sums = (
                    dist.new_group(backend="nccl", timeout=LONGEST_SUM)
                    if on_cards
                    else dist.group.WORLD
                )
        total = values if on_cards else values.cpu()
        self.busy_since = time.monotonic()
        try:
            with self._noticing_losses():
                dist.all_reduce(total, group=self._sums)
                if on_cards:
                    torch.cuda.synchronize(values.device)
        finally:
            self.busy_since = None
        return total.to(values.device)

    def first(self, make: Callable[[], Value]) -> Value:
        sent: list[Any] = [make() if self.is_first else None]
        with self._noticing_losses():
            dist.broadcast_object_list(sent, src=0)
        return cast("Value", sent[0])

    def gather(self, value: Value) -> list[Value]:
        found: list[Any] = [None] * self.count
        with self._noticing_losses():
            dist.all_gather_object(found, value)
        return found

    def device(self, device: str, devices: str) -> torch.device:
        names = listed_devices(device, devices)
        here = int(os.environ.get("LOCAL_RANK", self.rank))
        if len(names) > here:
            chosen = choose_device(names[here])
        else:
            kind = choose_device(names[0]).type
            chosen = choose_device(kind if kind in ("cpu", "mps") else f"{kind}:{here}")
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        return chosen

    def describe(self, device: torch.device) -> str:
        each = collections.Counter(self.gather(describe_device(device)))
        return " + ".join(name if many == 1 else f"{many} x {name}" for name, many in each.items())

    # --- ends -------------------------------------------------------------------------------------

    def tell_failure(self, error: LoraTrainerError) -> None:
        """Store why this process failed, for the first one to report."""
        with contextlib.suppress(RuntimeError):
            self._store.set(
                f"failed/{self.rank}", f"{platform.node()}\n{to_line(Failed.of(error))}"
            )

    def say_over(self) -> None:
        """Store that the first process has finished."""
        with contextlib.suppress(RuntimeError):
            self._store.set("over", "")

    @property
    def is_over(self) -> bool:
        """Whether the first process has finished."""
        with contextlib.suppress(RuntimeError):
            return bool(self._store.check(["over"]))
        return False

    def lost(self, how: Mapping[int, str] | None = None) -> ProcessLost:
        """The error for a process that failed or ended. how: rank -> exit status or signal."""
        return self.lost_of(self._store, self.count, how or {})

    @staticmethod
    def lost_of(store: SharedStore, count: int, how: Mapping[int, str]) -> ProcessLost:
        """`lost`, before the process group exists."""
        for rank in range(count):
            told = _told(store, rank)
            if told is not None:
                machine, failure = told
                reason = message_of(failure.template, failure.values)
                told_values = {
                    # the hint has placeholders too
                    **reason.values,
                    "process": rank + 1,
                    "processes": count,
                    "machine": machine,
                    "reason": reason,
                }
                return ProcessLost(
                    "process {process} of {processes} (on {machine}) failed: {reason}",
                    hint=failure.hint_template,
                    was_memory=failure.error == "OutOfMemory",
                    **told_values,
                )
        for rank, ended in how.items():
            if rank > 0:
                return ProcessLost(
                    "process {process} of {processes} was ended ({how})",
                    hint=_GO_ON,
                    process=rank + 1,
                    processes=count,
                    how=ended,
                )
        return ProcessLost(
            "one of the {processes} processes was ended, or its machine cannot be reached any more",
            hint=_GO_ON,
            processes=count,
        )

    @contextlib.contextmanager
    def _noticing_losses(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # a closed connection, or a timeout
            raise self.lost() from error


def _told(store: SharedStore, rank: int) -> tuple[str, Failed] | None:
    """The machine and the failure that a process has stored; None if it has not."""
    with contextlib.suppress(RuntimeError):
        if store.check([f"failed/{rank}"]):
            host, _, line = store.get(f"failed/{rank}").decode().partition("\n")
            failure = from_line(line)
            if isinstance(failure, Failed):
                return host, failure
    return None


def _destroy_group() -> None:
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


_GO_ON = (
    "Continue the run with `resume`. If the system ended the process for lack of memory, use fewer"
    " devices, or a smaller batch_size."
)


def launch(arguments: Sequence[str]) -> str:
    """Run torchrun with these arguments until all its processes have ended. Returns its report of
    those that failed, or "".
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if os.name == "nt":
        # as in `open_store`
        os.environ.setdefault("USE_LIBUV", "0")
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        return str(error)
    return ""
