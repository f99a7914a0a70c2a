"""A worker that the test plays: it holds the run's lock, writes events and takes requests."""

from __future__ import annotations

import json
import shutil
import time

from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import take_requests
from tests.browser.pictures import picture
from tests.webui.made_runs import LockHolder


class Played:
    """A run at work. `file`: its settings file, which says what kind of job it is."""

    def __init__(self, folder: RunFolder, file: str, settings: str) -> None:
        self.folder = folder
        folder.path.mkdir(parents=True)
        (folder.path / file).write_text(settings, encoding="utf-8")
        folder.log.write_text("the first line\nthe last line\n", encoding="utf-8")
        self._process = LockHolder(folder, time.time())
        self.write = events.EventWriter(folder.events).write

    def taken(self, seconds: float = 120.0) -> str:
        """The request that comes next."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for request in take_requests(self.folder.requests):
                return request.kind
            time.sleep(0.1)
        return "nothing was asked"

    def end(self, event: events.Event, exiting: float = 0.0) -> None:
        """With its process alive for some seconds more."""
        self.write(event)
        time.sleep(exiting)
        self._process.end(0)

    def go(self) -> None:
        self._process.end(0)
        shutil.rmtree(self.folder.path, ignore_errors=True)


class PlayedCaptioner(Played):
    def __init__(self, folder: RunFolder, images: str, count: int) -> None:
        super().__init__(folder, "caption.yaml", f"input: {json.dumps(images)}\ncaptioner: blip\n")
        self.write(events.Started(job="caption"))
        self.write(events.Planned(name="BLIP base", step_count=count, image_count=count))
        self.write(events.Phase(phase="captioning", total=count))


class PlayedWorker(Played):
    """A training."""

    def __init__(self, folder: RunFolder, settings: str = "", steps: int = 100) -> None:
        super().__init__(
            folder,
            "config.yaml",
            "train_data_dir: images\nbase_model: base.safetensors\nname:"
            f" {folder.path.name}\nmax_train_steps: {steps}\n{settings}",
        )
        self.write(events.Started())
        self.write(
            events.Planned(
                name=folder.path.name, family="sd1", step_count=steps, epoch_count=5, image_count=20
            )
        )
        self.write(events.Phase(phase="training", total=steps))

    def step(self, step: int, loss: float = 0.12) -> None:
        self.write(
            events.Progress(
                step=step,
                epoch=1,
                loss=loss,
                smoothed_loss=loss,
                images_per_second=1.5,
                seconds_left=60.0,
                memory=2 * 10**9,
            )
        )

    def preview(self, step: int, strength: float = 1.0) -> None:
        path = self.folder.previews / f"step{step}-{strength:g}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(step))
        self.write(
            events.Previewed(
                step=step, file=self.folder.relative(path), prompt="a fox", strength=strength
            )
        )
