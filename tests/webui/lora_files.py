"""LoRA files and runs for the tab's tests: real files of a few bytes, made without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.lora.file import encode_header
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def write_lora(
    path: Path,
    *,
    family: str = "sd1",
    trigger: str = "",
    modules: int = 2,
    ours: bool = True,
    content: int = 1,
    hashed: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A LoRA file whose layers hold the byte `content`; `hashed`: it says their hash, as every file
    does that training writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"lora_unet_{number}.lora_{side}.weight": TensorInfo(
            "F16", (1, 1), 4 * number + 2 * (side == "up"), 4 * number + 2 * (side == "up") + 2
        )
        for number in range(modules)
        for side in ("down", "up")
    }
    values = {"ss_output_name": path.stem, "ss_base_model_version": VERSIONS[family]}
    if ours:
        values |= {
            "modelspec.implementation_version": "sd-webui-lora-trainer/0.1",
            "modelspec.title": path.stem,
        }
    if trigger:
        values["modelspec.trigger_phrase"] = trigger
    if hashed:
        values["sshs_model_hash"] = hashlib.sha256(bytes([content]) * (4 * modules)).hexdigest()
    values |= metadata or {}
    path.write_bytes(encode_header(tensors, values) + bytes([content]) * (4 * modules))
    return path


def write_run(
    runs: Path,
    name: str,
    steps: tuple[int, ...] = (100, 200),
    *,
    family: str = "sd1",
    trigger: str = "",
    delivered: str = "",
) -> RunFolder:
    """A run that has saved at these steps, the last of them as its final file."""
    folder = RunFolder(runs / name)
    folder.path.mkdir(parents=True)
    folder.config.write_text(
        f"train_data_dir: images\nname: {name}\ntrigger_word: {trigger!r}\npreferred_weight: 0.8\n",
        encoding="utf-8",
    )
    writer = events.EventWriter(folder.events)
    writer.write(events.Started())
    writer.write(events.Planned(name=name, family=family, step_count=steps[-1]))
    for step in steps:
        final = step == steps[-1]
        path = folder.path / f"{name}.safetensors" if final else folder.saved_file(name, step)
        write_lora(path, family=family, trigger=trigger, content=step % 251)
        writer.write(events.Saved(step=step, file=folder.relative(path)))
    writer.write(events.Finished(step=steps[-1], file=f"{name}.safetensors", delivered=delivered))
    writer.close()
    return folder
