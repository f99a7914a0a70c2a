"""A Runs for tests: a host that computes on the processor, workers that only hold the lock, and a
clock to turn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from lora_trainer import files
from lora_trainer.hosts.base import HostDevice
from lora_trainer.hosts.gpu_lease import GpuLease
from lora_trainer.jobs.scheduler import SchedulerOptions
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.training.runs import Runs


class LockHolder:
    """A worker that is at work, and nothing else."""

    def __init__(self, folder: RunFolder, now: float = 0.0) -> None:
        self.folder = folder
        self.status: int | None = None
        self._holding = contextlib.ExitStack()
        self._holding.enter_context(files.lock(folder.lock))
        folder.worker.write_text(json.dumps({"pid": 1, "started": now}), encoding="utf-8")

    def poll(self) -> int | None:
        return self.status

    def end(self, status: int) -> None:
        self.status = status
        self._holding.close()


class Desk:
    """The runs of one data folder, and what a browser and a host would do to them."""

    def __init__(self, root: Path) -> None:
        self.data = DataFolder(root / "data")
        self.now = 5000.0
        self.refreshed = 0
        self.workers: dict[str, LockHolder] = {}
        self.options = SchedulerOptions()
        self.host = SimpleNamespace(
            device=lambda: HostDevice(kind="cpu", device_id=None, name="cpu")
        )
        self.runs = self.another()

    def another(self) -> Runs:
        """The same data folder in another process, or after a restart."""
        gpu_lease = GpuLease(self.host, self.data.root / "handover.json")  # type: ignore[arg-type]
        return Runs(
            data=self.data,
            gpu_lease=gpu_lease,
            delivered=self.refresh,
            options=lambda: self.options,
            start=self.start,
            clock=lambda: self.now,
        )

    def asked(self, name: str) -> training.RunConfig:
        """What a click asks for."""
        return training.from_mapping(
            {
                "train_data_dir": "/images",
                "base_model": "/base.safetensors",
                "output_dir": str(self.data.folder("runs") / name),
                "name": name,
            }
        )

    def start(self, folder: RunFolder, options: SchedulerOptions) -> LockHolder:
        self.workers[folder.path.name] = worker = LockHolder(folder, self.now)
        return worker

    def refresh(self) -> None:
        self.refreshed += 1

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.data.folder("runs") / run_id)

    def create(self, name: str, token: str = "", when: str = "queue") -> str:
        token = token or f"token-of-{name}"
        return str(self.runs.create(self.asked(name), token, when, "en")["id"])

    def tick(self, seconds: float = 5.0) -> None:
        self.now += seconds
        self.runs.scheduler.tick()

    def status(self, run_id: str) -> str:
        return str(self.runs.one(run_id, "en")["status"])


@contextlib.contextmanager
def desk(root: Path) -> Iterator[Desk]:
    made = Desk(root)
    yield made
    made.runs.scheduler.close()
    for worker in made.workers.values():
        worker.end(0)
