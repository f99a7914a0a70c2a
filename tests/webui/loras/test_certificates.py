"""Why a LoRA does nothing, for any file of the host's LoRA folders, and the copy that loads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lora_trainer import environment
from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.errors import LoraFileError, SetupError
from lora_trainer.hosts.base import HostPaths, LoadedCheckpoint, LowBits
from lora_trainer.jobs.history import History
from lora_trainer.lora.file import encode_header, read_header
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.loras import certificates
from lora_trainer.webui.loras.certificates import Certificates, KeptView
from lora_trainer.webui.loras.library import Loras
from lora_trainer.worker import certify

LAYER = "transformer_blocks.0.attn2.to_k"


def write_anima(path: Path, head: str = "transformer.") -> Path:
    """An Anima LoRA of one layer in diffusers' names, made without torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {"lora_A.weight": (2, 1024), "lora_B.weight": (2048, 2)}
    infos, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        infos[f"{head}{LAYER}.{name}"] = TensorInfo("F16", shape, start, end)
    path.write_bytes(encode_header(infos, {}) + b"\x00\x3c" * (end // 2))
    return path


class Host:
    kind = "neo"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refreshed = 0

    def paths(self) -> HostPaths:
        return HostPaths(data=self.root, models=self.root, lora_dir=self.root / "Lora")

    def lora_folders(self) -> list[Path]:
        return [self.root / "Lora", self.root / "more", self.root / "Lora"]

    def refresh_loras(self) -> None:
        self.refreshed += 1


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def library(host: Any, run: Any = certify.certified, *, ready: bool = True) -> Loras:
    asked = Certificates(run=run, is_ready=lambda: ready)
    return Loras(host, History(host.root / "runs"), asked)


def test_every_file_of_the_hosts_folders_is_there_once(host: Host) -> None:
    write_anima(host.root / "Lora" / "styles" / "Ink.safetensors")
    write_anima(host.root / "more" / "fox.safetensors")
    (host.root / "Lora" / "notes.txt").write_text("x")
    assert [one["name"] for one in library(host).inspectable()] == ["fox", "styles/Ink"]


def test_the_certificate_and_a_copy_beside_it_under_a_free_name(host: Host) -> None:
    path = write_anima(host.root / "Lora" / "ink.safetensors")
    path.with_suffix(".json").write_text('{"activation text": "inky", "sd version": "xl"}')
    write_anima(host.root / "Lora" / "ink-fixed.safetensors")
    loras = library(host)
    ids = {one["name"]: one["id"] for one in loras.inspectable()}
    shown = loras.certificate(ids["ink"]).to_mapping(str)
    assert shown["verdict"] == (
        "Forge Neo loads nothing of this file: its names are diffusers' for Anima, which Forge Neo"
        " does not read."
    )
    assert (shown["loaded"], shown["layer_count"], shown["can_fix"]) == (0, 1, True)
    assert shown["dropped"] == [
        {
            "count": 1,
            "message": "names that Forge Neo does not read",
            "examples": [f"transformer.{LAYER}.lora_A.weight"],
        }
    ]
    assert any("hides it from its list" in cause["message"] for cause in shown["causes"])
    done = loras.fix(ids["ink"]).to_mapping(str)
    copy = path.with_name("ink-fixed-2.safetensors")
    assert (done["name"], done["loaded"], done["layer_count"]) == ("ink-fixed-2", 1, 1)
    assert "lora_unet_blocks_0_cross_attn_k_proj.lora_up.weight" in read_header(copy).tensors
    assert json.loads(copy.with_suffix(".json").read_text()) == {
        "activation text": "inky",
        "sd version": "anima",
    }
    assert host.refreshed == 1


def test_without_the_workers_packages_names_are_judged_and_nothing_is_written(host: Host) -> None:
    write_anima(host.root / "Lora" / "ink.safetensors")
    loras = library(host, ready=False)
    (one,) = loras.inspectable()
    shown = loras.certificate(one["id"]).to_mapping(str)
    assert (shown["loaded"], shown["measured"], shown["can_fix"]) == (0, False, False)
    with pytest.raises(SetupError, match="packages are not installed yet"):
        loras.fix(one["id"])
    with pytest.raises(NotFound):
        loras.certificate("0" * 16)


def test_what_goes_wrong_is_a_sentence(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host.root / "Lora" / "broken.safetensors"
    write_anima(path).write_bytes(b"not a LoRA, but long enough to have a header of sorts")
    loras = library(host)
    (one,) = loras.inspectable()
    with pytest.raises(LoraFileError, match=r"broken\.safetensors"):
        loras.certificate(one["id"])
    command = [sys.executable, "-c", "import sys; sys.exit('no room')"]
    monkeypatch.setattr(certificates.environment, "certificate_command", lambda: command)
    with pytest.raises(LoraFileError, match="could not be checked: no room"):
        library(host, run=None).certificate(one["id"])


def test_the_process_answers_as_it_is_started(host: Host) -> None:
    path = write_anima(host.root / "Lora" / "fox and Füchse.safetensors")
    assert environment.certificate_command()[1].endswith("certify.py")
    found = Certificates(is_ready=lambda: True).of(path, "neo", host.lora_folders())
    assert found.to_mapping(str)["loaded"] == 0
    assert found.measured


# --- what is kept in few bits ---------------------------------------------------------------------


class LoadedHost(Host):
    """Forge with Anima in fp8, set to LoRAs that are rounded with the model."""

    def __init__(self, root: Path, low_bits: LowBits) -> None:
        super().__init__(root)
        self.chosen = low_bits
        self.base = root / "anima.safetensors"
        weight = torch.ones(2048, 1024).to(torch.float8_e4m3fn)
        key = "net.blocks.0.cross_attn.k_proj.weight"
        safetensors.torch.save_file({key: weight}, self.base)

    def loaded(self) -> LoadedCheckpoint | None:
        if not self.base.exists():
            return None
        return LoadedCheckpoint(title="anima", path=self.base, vae=None, clip_skip=1)

    def low_bits(self) -> LowBits:
        return self.chosen


def shown_as_kept(host: LoadedHost) -> KeptView:
    path = host.root / "Lora" / "ink.safetensors"
    # of rank 2 and ones: 2 at strength 1, and 0.01 at this one; bf16 has steps of 1/128 there
    write_anima(path, "transformer.")
    path.with_suffix(".json").write_text('{"preferred weight": 0.005}')
    loras = library(host)
    (one,) = loras.inspectable()
    return loras.kept(one["id"]).to_mapping(str)


def test_what_is_kept_in_the_chosen_checkpoint_as_the_webui_is_set(tmp_path: Path) -> None:
    shown = shown_as_kept(LoadedHost(tmp_path, LowBits()))
    assert (shown["checkpoint"], shown["strength"], shown["layer_count"]) == (
        "anima.safetensors",
        0.005,
        1,
    )
    (now,) = shown["settings"]
    assert now["chosen"] and now["lossy"]
    assert now["message"].startswith(
        "Forge Neo adds the LoRA to weights in fp8 (e4m3) with stochastic rounding:"
    )
    assert now["hint"] == (
        'With "Diffusion in Low Bits: Automatic (fp16 LoRA)", 78% of it is kept.'
    )


def test_the_setting_that_keeps_it_is_told_where_it_is_chosen(tmp_path: Path) -> None:
    (now,) = shown_as_kept(LoadedHost(tmp_path, LowBits(keeps_loras=True)))["settings"]
    assert now == {
        "message": 'With "Diffusion in Low Bits: Automatic (fp16 LoRA)", 78% of it is kept.',
        "hint": "",
        "lossy": False,
        "chosen": True,
    }
    (other,) = shown_as_kept(LoadedHost(tmp_path, LowBits(setting="bnb-nf4")))["settings"]
    assert not other["chosen"]


def test_without_a_checkpoint_or_with_a_gguf_file_nothing_is_measured(tmp_path: Path) -> None:
    host = LoadedHost(tmp_path, LowBits())
    host.base.unlink()
    with pytest.raises(LoraFileError, match="no checkpoint is chosen in the WebUI"):
        shown_as_kept(host)
    host.base = tmp_path / "anima-Q8_0.gguf"
    host.base.write_bytes(b"GGUF")
    with pytest.raises(LoraFileError, match="is a GGUF file"):
        shown_as_kept(host)
