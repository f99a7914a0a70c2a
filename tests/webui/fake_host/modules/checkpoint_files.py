"""The checkpoints in models/Stable-diffusion: what both hosts list in the same way."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modules import paths, shared

model_dir = "Stable-diffusion"
model_path = str(Path(paths.models_path, model_dir).absolute())
checkpoints_list: dict[str, CheckpointInfo] = {}
checkpoint_aliases: dict[str, CheckpointInfo] = {}


class CheckpointInfo:
    def __init__(self, filename: str):
        self.filename = filename
        self.is_safetensors = Path(filename).suffix.lower() == ".safetensors"
        path = Path(filename)
        inside = Path(shared.cmd_opts.ckpt_dir or model_path)
        self.name = str(path.relative_to(inside)) if inside in path.parents else path.name
        self.name_for_extra = path.stem
        self.model_name = Path(self.name.replace("/", "_").replace("\\", "_")).stem
        self.metadata: dict[str, str] = {}
        self.sha256 = hashlib.sha256(f"{path.name}{path.stat().st_size}".encode()).hexdigest()
        self.hash = self.sha256[:8]
        self.shorthash = self.sha256[:10]
        self.title = f"{self.name} [{self.shorthash}]"
        self.short_title = f"{self.name_for_extra} [{self.shorthash}]"
        self.ids = [
            self.hash,
            self.model_name,
            self.title,
            self.name,
            self.name_for_extra,
            self.shorthash,
            self.sha256,
        ]

    def register(self) -> None:
        checkpoints_list[self.title] = self
        for name in self.ids:
            checkpoint_aliases[name] = self


def checkpoint_tiles(use_short=False):
    return [info.short_title if use_short else info.title for info in checkpoints_list.values()]


def list_models():
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    if shared.cmd_opts.ckpt and Path(shared.cmd_opts.ckpt).is_file():
        info = CheckpointInfo(shared.cmd_opts.ckpt)
        info.register()
        shared.opts.data["sd_model_checkpoint"] = info.title
    folder = Path(shared.cmd_opts.ckpt_dir or model_path)
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.suffix.lower() in (".ckpt", ".safetensors"):
            CheckpointInfo(str(path)).register()
