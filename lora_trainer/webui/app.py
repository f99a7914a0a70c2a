"""The services of the tab, one instance per process: host, data folder, and everything built on
them.

Created when the tab is first drawn, and kept across "Reload UI" (the host reruns scripts/, but this
module stays imported). Each service is created on first use, so that a failing one does not affect
the others.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Generic, TypeVar

from lora_trainer import environment
from lora_trainer.errors import LoraTrainerError
from lora_trainer.hosts import find
from lora_trainer.hosts.base import Host
from lora_trainer.hosts.gpu_lease import GpuLease
from lora_trainer.jobs.scheduler import SchedulerOptions
from lora_trainer.planner.throughput import Throughput
from lora_trainer.webui import texts
from lora_trainer.webui.asking.asks import Asking
from lora_trainer.webui.captions import caption_runs
from lora_trainer.webui.captions.cropped_copies import Copies
from lora_trainer.webui.captions.workbench import Workbenches
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.comparing.generation import ComparisonJobs
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.loras.library import Loras
from lora_trainer.webui.options import Options
from lora_trainer.webui.pairs.workbench import TextBenches
from lora_trainer.webui.settings.checkpoints import Checkpoints
from lora_trainer.webui.settings.image_cache import ImageCache
from lora_trainer.webui.settings.preflight import Preflight
from lora_trainer.webui.settings.presets import Presets
from lora_trainer.webui.settings.rehearsals import Rehearsals
from lora_trainer.webui.settings.scan_cache import ScanCache
from lora_trainer.webui.settings.setup import Setup
from lora_trainer.webui.settings.user_presets import UserPresets
from lora_trainer.webui.training.runs import Runs

T = TypeVar("T")


class _Service(Generic[T]):
    """A property that is created on first use, and once: two threads must not get two instances,
    each with a lock of its own. functools.cached_property does not lock since Python 3.12.
    """

    def __init__(self, create: Callable[[App], T]) -> None:
        self._create = create

    def __get__(self, app: App, owner: type[App]) -> T:
        name, there = self._create.__name__, vars(app)
        with app.creating:
            if name not in there:
                # found before this descriptor from now on
                there[name] = self._create(app)
            created: T = there[name]
        return created


class App:
    def __init__(self, host: Host, data: DataFolder) -> None:
        self.host = host
        self.data = data
        self.creating = threading.RLock()
        """Held while a service is created, which may create others."""
        self._begun = False

    def begin(self) -> None:
        """Watch the host's queue, adopt running trainings, and start the scheduler. Called when the
        host's server has started.
        """
        self.gpu_lease.watch()
        self.runs.scheduler.begin()
        self._begun = True

    def begin_late(self) -> None:
        """`begin`, if it failed at the host's start because the data folder was full or
        unavailable. Raises LoraTrainerError while that lasts.
        """
        if not self._begun:
            self.begin()

    def end(self) -> None:
        """Restore the host's queue. Called when the host unloads its extensions ("Reload UI" or
        shutdown); on reload, `begin` follows.
        """
        self.host.off_generation()

    def redactions(self) -> Mapping[PurePath, str]:
        """Folder of this machine -> replacement shown to remote users."""
        paths = self.host.paths()
        checkpoints = {checkpoint.path.parent for checkpoint in self.host.checkpoints()}
        fixed = (
            self.data.root,
            paths.data,
            paths.models,
            paths.lora_dir,
            environment.ROOT,
            Path(sys.prefix),
        )
        named = (
            *fixed,
            *checkpoints,
            *self.datasets.opened(),
            *self.checkpoints.language_models.opened(),
        )
        names: dict[PurePath, str] = {Path.home(): "~"}
        for folder in named:
            names |= dict.fromkeys((folder.absolute(), folder.resolve()), folder.name)
        return names

    @property
    def options(self) -> Options:
        """The user's choices on the host's Settings page, read now."""
        return Options.of(self.host)

    @_Service
    def setup(self) -> Setup:
        return Setup(self.host, self.data)

    @_Service
    def presets(self) -> Presets:
        return Presets()

    @_Service
    def user_presets(self) -> UserPresets:
        return UserPresets(self.data, self.presets)

    @_Service
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.host, self.data.root / "checkpoints.json")

    @_Service
    def datasets(self) -> Datasets:
        return Datasets(self.data, self.host.is_remote)

    @_Service
    def workbenches(self) -> Workbenches:
        return Workbenches(self.datasets, of_texts=self.text_benches.of)

    @_Service
    def text_benches(self) -> TextBenches:
        return TextBenches(self.datasets)

    @_Service
    def copies(self) -> Copies:
        return Copies(self.datasets)

    @_Service
    def image_cache(self) -> ImageCache:
        return ImageCache(self.data.root / "images.json")

    @_Service
    def scans(self) -> ScanCache:
        return ScanCache(self.image_cache)

    @_Service
    def throughput(self) -> Throughput:
        return Throughput(self.data.folder("runs"))

    @_Service
    def gpu_lease(self) -> GpuLease:
        return GpuLease(
            self.host,
            self.data.root / "handover.json",
            pauses=lambda: self.options.pause_for_pictures,
            describe=self._error_text,
        )

    def _error_text(self, error: LoraTrainerError) -> str:
        """The message shown to the host's user instead of an image."""
        return texts.render_in_one_line(error, texts.choose(self.host.language()))

    @_Service
    def runs(self) -> Runs:
        return Runs(
            data=self.data,
            gpu_lease=self.gpu_lease,
            delivered=self.host.refresh_loras,
            captions_again=partial(caption_runs.expect_more, self.workbenches),
            options=self._scheduler_options,
        )

    @_Service
    def preflight(self) -> Preflight:
        return Preflight(
            host=self.host,
            data=self.data,
            datasets=self.datasets,
            checkpoints=self.checkpoints,
            image_cache=self.image_cache,
            scans=self.scans,
            throughput=self.throughput,
            loras=self.loras,
            rehearsals=self.rehearsals,
            lease=self.gpu_lease.status,
        )

    @_Service
    def asking(self) -> Asking:
        return Asking(self.runs)

    @_Service
    def rehearsals(self) -> Rehearsals:
        return Rehearsals()

    @_Service
    def loras(self) -> Loras:
        return Loras(self.host, self.runs.history)

    @_Service
    def comparisons(self) -> ComparisonJobs:
        return ComparisonJobs(self.host, self.data, self.loras, self.checkpoints.family_of)

    def _scheduler_options(self) -> SchedulerOptions:
        chosen = self.options
        return SchedulerOptions(
            keep_training=chosen.keep_training,
            runs_to_keep=chosen.runs_to_keep,
            device_id=self.host.device().device_id,
            environ=chosen.environ,
        )


_only: list[App] = []
_making = threading.Lock()


def get_app() -> App:
    """The app of this process. Raises any exception of its construction."""
    with _making:
        if not _only:
            host = find()
            _only.append(App(host, DataFolder(host.data_folder())))
        return _only[0]
