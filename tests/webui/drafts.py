"""An app without a WebUI, for what only reads facts: plain values where the host would be
asked.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_trainer.errors import DatasetError
from lora_trainer.hosts.base import HostCheckpoint, HostDevice, HostPaths, LoadedCheckpoint, Memory
from lora_trainer.jobs.history import History
from lora_trainer.planner.throughput import Throughput
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.loras.library import Loras
from lora_trainer.webui.settings.checkpoints import Checkpoints
from lora_trainer.webui.settings.image_cache import ImageCache
from lora_trainer.webui.settings.preflight import Preflight
from lora_trainer.webui.settings.presets import Presets
from lora_trainer.webui.settings.scan_cache import ScanCache
from lora_trainer.webui.settings.user_presets import UserPresets


class FakeHost:
    """The host's facts, settable."""

    kind, name, version = "a1111", "AUTOMATIC1111", "v1.10.1"

    def __init__(self, root: Path) -> None:
        self.listed: list[HostCheckpoint] = []
        self.now: LoadedCheckpoint | None = None
        self.device_kind = "cpu"
        self.card_count = 1
        self.card_bytes: int | None = None
        self.taken_bytes = 0
        """What other programs have of it."""
        self.options: dict[str, object] = {}
        self.models = root / "models"
        (self.models / "Lora").mkdir(parents=True)

    def list(self, *paths: Path) -> None:
        self.listed = [HostCheckpoint(title=path.name, path=path) for path in paths]

    def load(self, path: Path, vae: Path | None = None, clip_skip: int = 1) -> None:
        self.now = LoadedCheckpoint(title=path.name, path=path, vae=vae, clip_skip=clip_skip)

    def checkpoints(self):
        return self.listed

    def loaded(self):
        return self.now

    def clip_skip(self):
        return self.options.get("CLIP_stop_at_last_layers", 1)

    def part_files(self):
        return []

    def part_folders(self):
        return [self.models / "text_encoder", self.models / "VAE"]

    def tokenizer_folder(self):
        return None

    def lora_folders(self):
        return [self.models / "Lora"]

    def paths(self):
        return HostPaths(data=self.models.parent, models=self.models, lora_dir=self.models / "Lora")

    def device(self):
        return HostDevice(
            kind=self.device_kind, device_id=None, name=self.device_kind, count=self.card_count
        )

    def memory(self):
        if not self.card_bytes:
            return None
        others, model = self.taken_bytes, self.card_bytes // 4
        free = self.card_bytes - model - others
        return Memory(free=free, total=self.card_bytes, leaving=model)

    def is_remote(self):
        return False

    def language(self):
        return ""

    def api_credentials(self):
        return {}

    def option(self, key, default=None):
        return self.options.get(key, default)


class FakeDatasets:
    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self._store: dict[Path, CaptionStore] = {}

    def find(self, identity):
        if identity not in self.folders:
            raise DatasetError("there is no dataset {name}", name=identity)
        return SimpleNamespace(path=self.folders[identity], name=identity, kind="images")

    def store(self, identity):
        path = self.find(identity).path
        return self._store.setdefault(path, CaptionStore(path, follow_links=True))


def app(root: Path) -> SimpleNamespace:
    """An app with an empty data folder under `root`; no checkpoint, no images."""
    host, data = FakeHost(root), DataFolder(root / "data")
    images = ImageCache(data.root / "images.json")
    parts: dict[str, Any] = {
        "host": host,
        "data": data,
        "datasets": FakeDatasets(),
        "checkpoints": Checkpoints(host, data.root / "checkpoints.json"),
        "image_cache": images,
        "scans": ScanCache(images),
        "throughput": Throughput(data.folder("runs")),
        "loras": Loras(host, History(data.folder("runs"))),
    }
    return SimpleNamespace(
        **parts,
        preflight=Preflight(**parts),
        user_presets=UserPresets(data, Presets()),
        runs=SimpleNamespace(pending_names=list),
    )
