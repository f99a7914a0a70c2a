"""Other trainers' LoRA files for one WebUI: what it loads of them, and copies of which it loads all,
with the same effect. The names are those that each trainer writes for the model's real layers; the
counts follow from host_layers. Of each series of blocks, which are alike, a file has the first two and
the last.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lora_trainer.__main__ import main, make_parser
from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.errors import CheckpointError, LoraFileError
from lora_trainer.lora.certificate import Certificate, certify
from lora_trainer.lora.changes import change_of
from lora_trainer.lora.convert import CONVERTED, convert
from lora_trainer.lora.file import encode_header, read_header
from lora_trainer.lora.host_layers import HOST_NAMES, names
from lora_trainer.lora.layouts import layers_in
from lora_trainer.lora.loading import place_of
from lora_trainer.lora.scales import scales_of
from lora_trainer.lora.tensors import read_number
from tests.lora.other_trainers import (
    KOHYA,
    PEFT,
    Shapes,
    attention_and_mlp,
    clip_layers,
    own_layers,
    write_lora,
)

ALPHA_16 = {"lora_adapter_metadata": '{"transformer.lora_alpha": 16, "transformer.r": 1}'}


@dataclass(frozen=True)
class Case:
    """A file of another trainer."""

    model: str
    host: str
    head: str
    loaded: int
    count: int
    copied: int
    """Layers of the copy: parts of fused ones are put together."""
    ends: tuple[str, str] = PEFT
    alpha: float | None = None
    own: bool = False
    """The model's own names instead of diffusers'."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    only: str = ""
    """Layers with this in their names."""
    verdict: str = ""


CASES: dict[str, Case] = {
    "diffusers, Anima": Case(
        "anima",
        "neo",
        "transformer.",
        0,
        30,
        30,
        verdict="its names are diffusers' for Anima, which Forge Neo does not read",
    ),
    "SimpleTuner, Anima": Case("anima", "neo", "lycoris_", 0, 30, 30, KOHYA, 1),
    "kohya, Anima": Case(
        "anima",
        "neo",
        "lora_unet_",
        30,
        30,
        30,
        KOHYA,
        1,
        own=True,
        only=".self_attn.|.cross_attn.|.mlp.",
    ),
    "PEFT, Anima": Case("anima", "neo", "base_model.model.", 0, 30, 30),
    "kohya with diffusers' names, Z-Image": Case(
        "zimage",
        "neo",
        "lora_unet_",
        0,
        49,
        35,
        KOHYA,
        1,
        verdict="it does not know 84 of its 147 keys, and ignores the whole file",
    ),
    "ai-toolkit, Z-Image": Case("zimage", "neo", "diffusion_model.", 49, 49, 35),
    "diffusers, Z-Image, alpha in its metadata": Case(
        "zimage", "neo", "transformer.", 49, 49, 35, metadata=ALPHA_16
    ),
    "musubi, Z-Image": Case(
        "zimage",
        "neo",
        "lora_unet_",
        35,
        35,
        35,
        KOHYA,
        1,
        own=True,
        only="attention.|feed_forward",
    ),
    "diffusers, FLUX.1": Case("flux", "neo", "transformer.", 51, 51, 30),
    "diffusers, FLUX.1 on Forge": Case("flux", "forge", "transformer.", 51, 51, 30),
    "kohya with diffusers' names, FLUX.1 on Forge": Case(
        "flux", "forge", "lora_unet_", 0, 51, 30, KOHYA, 4
    ),
    "OneTrainer, FLUX.1": Case("flux", "forge", "transformer.", 51, 51, 30, KOHYA, 1),
    "OneTrainer (older), FLUX.1": Case("flux", "forge", "lora_transformer_", 51, 51, 30, KOHYA, 1),
    "PEFT, FLUX.1": Case("flux", "neo", "base_model.model.", 0, 51, 30),
    "kohya, FLUX.1": Case(
        "flux", "forge", "lora_unet_", 39, 39, 39, KOHYA, 1, own=True, only="_blocks."
    ),
    "diffusers, Chroma on Forge": Case(
        "chroma",
        "forge",
        "transformer.",
        0,
        51,
        30,
        metadata={"modelspec.architecture": "chroma/lora"},
    ),
    "diffusers, Chroma": Case("chroma", "neo", "transformer.", 51, 51, 30),
    "PEFT, klein 4B": Case("klein4b", "neo", "base_model.model.", 0, 42, 30),
    "ComfyUI, klein 4B": Case(
        "klein4b", "neo", "diffusion_model.", 30, 30, 30, own=True, only="_blocks."
    ),
    "diffusers, klein 9B": Case("klein9b", "neo", "transformer.", 42, 42, 30),
    "kohya with diffusers' names, klein 4B": Case(
        "klein4b", "neo", "lora_unet_", 0, 42, 30, KOHYA, 1
    ),
    "diffusers, SD3.5": Case(
        "sd35m",
        "forge",
        "transformer.",
        0,
        41,
        25,
        verdict="its names are diffusers' for SD3, which Forge does not read",
    ),
    "ComfyUI, SD3.5 large": Case(
        "sd35l", "forge", "diffusion_model.", 21, 21, 21, own=True, only="attn.|mlp.fc"
    ),
    "PEFT, Qwen-Image": Case("qwen", "neo", "base_model.model.", 0, 36, 36),
    "diffusers, Qwen-Image": Case("qwen", "neo", "transformer.", 36, 36, 36),
    "musubi, Qwen-Image": Case("qwen", "neo", "lora_unet_", 36, 36, 36, KOHYA, 1),
    "PEFT, Krea 2": Case("krea2", "neo", "base_model.model.", 0, 56, 56),
    "diffusers, Lumina 2": Case("lumina2", "neo", "transformer.", 0, 49, 35),
    "PEFT, SDXL on A1111": Case("sdxl", "a1111", "base_model.model.", 0, 280, 280),
    "diffusers, SDXL on Neo": Case("sdxl", "neo", "unet.", 0, 280, 280),
    "OneTrainer, SDXL on reForge": Case(
        "sdxl", "reforge", "unet.", 0, 280, 280, KOHYA, 1, own=True, only=".attn1.|.attn2.|.ff."
    ),
    "kohya, SDXL on A1111": Case(
        "sdxl",
        "a1111",
        "lora_unet_",
        280,
        280,
        280,
        KOHYA,
        1,
        own=True,
        only=".attn1.|.attn2.|.ff.",
    ),
    "LyCORIS, SDXL on Forge": Case("sdxl", "forge", "lycoris_", 280, 280, 280, KOHYA, 1),
    "LyCORIS, SDXL on A1111": Case("sdxl", "a1111", "lycoris_", 0, 280, 280, KOHYA, 1),
    "diffusers, SD1 on A1111": Case("sd1", "a1111", "unet.", 0, 160, 160),
    "kohya, SD1 on A1111": Case("sd1", "a1111", "lora_unet_", 160, 160, 160, KOHYA, 1),
    "PEFT, SD2 on Forge": Case("sd2", "forge", "base_model.model.", 0, 160, 160),
}


def layers_of(case: Case) -> Shapes:
    layers = own_layers(case.model) if case.own else attention_and_mlp(case.model)
    parts = case.only.split("|")
    return some_blocks(
        {name: shape for name, shape in layers.items() if any(part in name for part in parts)}
    )


BLOCK = re.compile(r".*(?:blocks|layers)\.(\d+)\.")


def some_blocks(layers: Shapes) -> Shapes:
    """The first two and the last of each series of blocks, which are alike, and what is in none."""
    found = {name: match for name in layers if (match := BLOCK.match(name))}
    series = {name: name[: match.start(1)] for name, match in found.items()}
    last: dict[str, int] = {}
    for name, match in found.items():
        last[series[name]] = max(int(match[1]), last.get(series[name], 0))
    return {
        name: shape
        for name, shape in layers.items()
        if name not in found or int(found[name][1]) in (0, 1, last[series[name]])
    }


def test_there_are_files_of_every_trainer_and_family() -> None:
    assert len(CASES) >= 20
    trainers = {name.split(",")[0].split()[0] for name in CASES}
    assert trainers >= set(
        "kohya diffusers PEFT ai-toolkit OneTrainer musubi SimpleTuner ComfyUI LyCORIS".split()
    )


def stored(path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors; it may be written again."""
    return safetensors.torch.load(path.read_bytes())


def written(path: Path, case: Case) -> Path:
    return write_lora(
        path,
        layers_of(case),
        head=case.head,
        ends=case.ends,
        alpha=case.alpha,
        metadata=case.metadata,
        rank=1,
    )


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_and_a_copy_of_which_all_is_loaded(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path, copy = written(tmp_path / "a.safetensors", case), tmp_path / "copy.safetensors"
    found = certify(path, case.host, measure=False)
    assert (found.loaded, found.layer_count) == (case.loaded, case.count)
    assert case.verdict in str(found.verdict)
    if case.loaded == case.count:
        told = f"{HOST_NAMES[case.host]} loads all {case.count} of {case.count} layers."
        assert str(found.verdict) == told
        assert found.dropped == ()
    else:
        assert "loads nothing of this file" in str(found.verdict)
        assert found.can_fix
        assert {one.reason for one in found.dropped} == {"names"}
    done = convert(path, copy, case.host)
    assert done.layer_count == case.copied
    assert done.left_out == ()
    again = certify(copy, case.host, measure=False)
    assert (again.loaded, again.layer_count) == (case.copied, case.copied)
    assert not again.can_fix
    assert_same_deltas(path, copy, case)


def assert_same_deltas(path: Path, copy: Path, case: Case) -> None:
    """Each layer's delta, computed from the files' numbers alone, in the rows where the WebUI puts
    it: by its product with random vectors, and for some layers number by number.
    """
    theirs, ours = stored(path), stored(copy)
    scale = 16.0 if case.metadata == ALPHA_16 else case.alpha or 1.0
    known = names(case.host, case.model)
    by_layer = {known[name].layer: name for name in layers_in(read_header(copy))}
    count = 0
    for name, layer in layers_in(read_header(path)).items():
        place = place_of(layer, case.model)
        assert place is not None
        new = by_layer[place.layer]
        down, up = (theirs[f"{name}.{end}"].float().flatten(1) for end in case.ends)
        new_down, new_up = (ours[f"{new}.{end}"].float().flatten(1) for end in KOHYA)
        alpha = ours.get(f"{new}.alpha")
        new_scale = 1.0 if alpha is None else float(alpha) / new_down.shape[0]
        rows = slice(place.first, place.first + place.shape[0])
        probe = torch.randn(down.shape[1], 4, generator=torch.Generator().manual_seed(1))
        wanted = scale * (up @ (down @ probe))
        given = new_scale * (new_up[rows] @ (new_down @ probe))
        assert torch.allclose(given, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        if count < 2 and prod(place.shape) < 5e6:
            whole = new_scale * (new_up[rows] @ new_down)
            assert torch.allclose(whole, scale * (up @ down), rtol=0, atol=1e-5)
        count += 1
    assert count == case.count


# --- other causes, and kinds ----------------------------------------------------------------------

TWO = {
    name: shape
    for name, shape in attention_and_mlp("anima").items()
    if name.startswith("transformer_blocks.0.attn1.")
}


def causes(found: Certificate) -> list[str]:
    return [str(cause.message) for cause in found.causes]


def test_a_lora_that_learned_nothing_and_one_of_alpha_0(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", TWO, head="lora_unet_", ends=KOHYA, alpha=0)
    assert causes(certify(path, "neo")) == ["Alpha is 0 in 4 of 4 layers, which do nothing."]
    tensors = stored(path)
    zeros = {
        key: torch.zeros_like(tensor) if "up" in key else torch.ones_like(tensor)
        for key, tensor in tensors.items()
    }
    safetensors.torch.save_file(zeros, path)
    assert causes(certify(path, "neo")) == ["All its weights are zero: it learned nothing."]
    key = next(key for key in zeros if "up" in key)
    zeros[key][0, 0] = 1
    safetensors.torch.save_file(zeros, path)
    assert causes(certify(path, "neo")) == ["3 of 4 layers have no effect: their weights are zero."]
    zeros[key][0, 0] = torch.nan
    safetensors.torch.save_file(zeros, path)
    assert "1 of 4 layers have weights that are NaN or infinite" in causes(certify(path, "neo"))[0]
    small = {
        key: tensor * 1e-5 if "up" in key else tensor.float() for key, tensor in tensors.items()
    }
    small = {key: torch.ones(()) if "alpha" in key else small[key] for key in small}
    safetensors.torch.save_file({key: value.float() for key, value in small.items()}, path)
    assert causes(certify(path, "neo"))[0].startswith("Its effect is tiny: a weight changes by ")


@pytest.mark.parametrize(
    ("stated", "scale"),
    [
        ('{"r": 2, "lora_alpha": 8}', "4"),
        ('{"r": 2, "lora_alpha": 8, "use_rslora": true}', "5.65685"),
    ],
)
def test_alpha_that_the_webui_does_not_read(stated: str, scale: str, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "adapter_model.safetensors", TWO, head="base_model.model.")
    assert causes(certify(tmp_path, "neo", measure=False)) == [
        "Alpha is stated neither in the file nor in an adapter_config.json beside it; the WebUIs"
        " take it to be the rank."
    ]
    (tmp_path / "adapter_config.json").write_text(stated)
    found = certify(tmp_path, "neo", measure=False)
    assert f"there a strength of {scale} has the effect of 1." in causes(found)[0]
    convert(path, tmp_path / "copy" / "copy.safetensors", "neo")
    copy = tmp_path / "copy" / "copy.safetensors"
    assert causes(certify(copy, "neo", measure=False)) == []
    header = read_header(copy)
    scales = scales_of(header, layers_in(header), lambda info: read_number(header, info))
    assert scales.known == pytest.approx([float(scale)], rel=1e-5)


def test_a_missing_factor_stops_the_webui(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", TWO, head="diffusion_model.", alpha=1)
    path = write_lora(path, own_part("anima", "blocks.0.self_attn."), head="diffusion_model.")
    tensors = stored(path)
    first = next(iter(sorted(tensors)))
    without = {key: tensor for key, tensor in tensors.items() if key != first}
    assert first.endswith("lora_A.weight")
    safetensors.torch.save_file(without, path)
    found = certify(path, "neo", measure=False)
    assert "it stops with an error at" in str(found.verdict)
    assert (found.loaded, [one.reason for one in found.dropped]) == (0, ["half"])
    assert not found.can_fix
    # a first factor alone is an unknown key
    last = first.replace("lora_A", "lora_B")
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != last}, path)
    found = certify(path, "neo", measure=False)
    assert str(found.verdict) == "Forge Neo loads 3 of 4 layers."


def own_part(model: str, start: str) -> Shapes:
    return {name: shape for name, shape in own_layers(model).items() if name.startswith(start)}


def test_layers_that_do_not_fit_belong_to_others_or_are_nobodys(tmp_path: Path) -> None:
    layers = own_part("anima", "blocks.0.")
    name = "blocks.0.mlp.layer1"
    layers[name] = (8192, 1024)
    layers["double_blocks.0.img_mlp.0"] = (12288, 3072)
    layers["blocks.0.mlp.layer3"] = (8, 8)
    path = write_lora(tmp_path / "x.safetensors", layers, head="lora_unet_", ends=KOHYA)
    found = certify(path, "neo", measure=False)
    assert {one.reason: (one.count, one.examples) for one in found.dropped} == {
        "shape": (1, ("lora_unet_blocks_0_mlp_layer1.lora_down.weight",)),
        "family": (1, ("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight",)),
        "unknown": (1, ("lora_unet_blocks_0_mlp_layer3.lora_down.weight",)),
    }
    assert str(found.verdict) == f"Forge Neo loads {len(layers) - 3} of {len(layers)} layers."


def test_text_encoders_and_norms(tmp_path: Path) -> None:
    text = write_lora(
        tmp_path / "text.safetensors", clip_layers(), head="lora_te_", ends=KOHYA, alpha=1
    )
    for host in ("a1111", "forge", "neo"):
        assert certify(text, host, measure=False).loaded == 72
    layers = attention_and_mlp("flux")
    norms = {f"transformer_blocks.{n}.attn.norm_q": (128, 1) for n in range(19)}
    path = write_lora(tmp_path / "x.safetensors", layers | norms, head="transformer.")
    found = certify(path, "neo", measure=False)
    assert (found.loaded, found.layer_count) == (418, 437)
    assert [(one.reason, one.count) for one in found.dropped] == [("absent", 19)]


def test_a1111_applies_an_open_clips_attention_only_as_a_whole(tmp_path: Path) -> None:
    layers = clip_layers(32, 1280)
    path = tmp_path / "x.safetensors"
    write_lora(path, layers, head="lora_te2_", ends=KOHYA, alpha=1, rank=1)
    assert certify(path, "a1111", measure=False).loaded == 192
    some = {name: shape for name, shape in layers.items() if "k_proj" not in name}
    write_lora(path, some, head="lora_te2_", ends=KOHYA, alpha=1, rank=1)
    found = certify(path, "a1111", measure=False)
    assert [(one.reason, one.count) for one in found.dropped] == [("attention", 96)]
    assert str(found.verdict) == "A1111 loads 64 of 160 layers."
    assert certify(path, "forge", measure=False).loaded == 160


def test_forge_neo_takes_none_of_a_part_of_which_more_than_a_quarter_leads_nowhere(
    tmp_path: Path,
) -> None:
    names = attention_and_mlp("flux")
    some = dict(list(names.items())[:37])
    norms = {f"transformer_blocks.{n}.attn.norm_q": (128, 1) for n in range(13)}
    path = write_lora(tmp_path / "x.safetensors", some | norms, head="transformer.")
    found = certify(path, "neo", measure=False)
    assert found.loaded == 0
    fewer = dict(list(norms.items())[:12])
    write_lora(path, some | fewer, head="transformer.")
    assert certify(path, "neo", measure=False).loaded == 37


KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "LoHa": {
        "hada_w1_a": (3072, 2),
        "hada_w1_b": (2, 3072),
        "hada_w2_a": (3072, 2),
        "hada_w2_b": (2, 3072),
    },
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (768, 2), "lokr_w2_b": (2, 768)},
    "LoKr of two products": {
        "lokr_w1_a": (4, 2),
        "lokr_w1_b": (2, 4),
        "lokr_w2_a": (768, 2),
        "lokr_w2_b": (2, 768),
    },
    "whole LoKr": {"lokr_w1": (4, 4), "lokr_w2": (768, 768)},
    "DoRA": {"lora_down.weight": (2, 3072), "lora_up.weight": (3072, 2), "dora_scale": (3072, 1)},
}


SD3 = {"modelspec.architecture": "stable-diffusion-v3/lora"}
FLUX = {"modelspec.architecture": "flux-1-dev/lora"}
"""A few attention layers alone may be Qwen-Image's."""


def split_file(
    path: Path,
    kind: str,
    head: str,
    parts: tuple[str, ...],
    smaller: int = 1,
    metadata: Mapping[str, str] = FLUX,
) -> Path:
    """A LyCORIS file; `smaller` divides the width of FLUX.1."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{head}transformer_blocks.0.attn.{part}".replace(".", "_" if head[-1] == "_" else ".")
        + f".{end}": torch.randn(
            [side // smaller if side > 4 else side for side in shape], generator=generator
        )
        for part in parts
        for end, shape in KINDS[kind].items()
    }
    alphas = {
        f"{key.rpartition('.hada_w1_a')[0] or key.rpartition('.lokr_w2_a')[0]}.alpha": torch.tensor(
            1.0
        )
        for key in tensors
        if key.endswith(("hada_w1_a", "lokr_w2_a"))
    }
    safetensors.torch.save_file(tensors | alphas, path, dict(metadata))
    return path


def deltas(path: Path) -> dict[str, torch.Tensor]:
    header = read_header(path)
    layers = layers_in(header)
    scales = scales_of(header, layers, lambda info: read_number(header, info)).by_layer
    width = 3072
    some = torch.eye(width)[:, :: width // 64]
    return {
        name: change_of(header, layer, scales.get(name) or 1.0).of(some)
        for name, layer in layers.items()
    }


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [("LoHa", {"LoHa"}), ("LoKr", {"LoRA"}), ("LoKr of two products", {"LoRA"})],
)
def test_other_kinds_on_parts_of_a_fused_layer_are_put_together_exactly(
    kind: str, becomes: set[str], tmp_path: Path
) -> None:
    # without the values, whose rows stay as they are
    path = split_file(tmp_path / "x.safetensors", kind, "lora_unet_", ("to_q", "to_k"))
    copy = tmp_path / "copy.safetensors"
    done = convert(path, copy, "forge")
    assert done.layer_count == 1
    layer = layers_in(read_header(copy))["lora_unet_double_blocks_0_img_attn_qkv"]
    assert layer.kinds - {""} == becomes
    before, after = deltas(path), deltas(copy)["lora_unet_double_blocks_0_img_attn_qkv"]
    head = "lora_unet_transformer_blocks_0_attn_"
    wanted = torch.cat([before[f"{head}to_q"], before[f"{head}to_k"], torch.zeros(3072, 64)])
    assert torch.allclose(after, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["whole LoKr", "DoRA"])
def test_what_cannot_be_put_together_keeps_names_of_parts_where_they_are_read(
    kind: str, tmp_path: Path
) -> None:
    path = split_file(tmp_path / "x.safetensors", kind, "lora_unet_", ("to_q", "to_k", "to_v"))
    copy = tmp_path / "copy.safetensors"
    assert certify(path, "neo", measure=False).loaded == 0
    convert(path, copy, "neo")
    found = certify(copy, "neo", measure=False)
    assert (found.loaded, found.layer_count) == (3, 3)
    assert set(layers_in(read_header(copy))) == {
        f"transformer.transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")
    }
    # Forge reads no such names of SD3.5, and the three cannot be one
    other = split_file(tmp_path / "y.safetensors", kind, "lora_unet_", ("to_q", "to_k"), 2, SD3)
    assert not certify(other, "forge", measure=False).can_fix
    told = r"2 of its 2 layers \(.*\), such as lora_unet_transformer_blocks_0_attn_to_[qk], have no form"
    with pytest.raises(LoraFileError, match=told):
        convert(other, tmp_path / "other.safetensors", "forge")
    assert not (tmp_path / "other.safetensors").exists()


def test_parts_with_one_first_factor_and_parts_of_other_scales(tmp_path: Path) -> None:
    shared = torch.randn(2, 3072)
    tensors: dict[str, torch.Tensor] = {}
    for number, part in enumerate(("to_q", "to_k", "to_v")):
        name = f"lora_unet_transformer_blocks_0_attn_{part}"
        tensors[f"{name}.lora_down.weight"] = shared.clone()
        tensors[f"{name}.lora_up.weight"] = torch.randn(3072, 2)
        tensors[f"{name}.alpha"] = torch.tensor(float(number + 1))
    path, copy = tmp_path / "x.safetensors", tmp_path / "copy.safetensors"
    safetensors.torch.save_file(tensors, path, FLUX)
    convert(path, copy, "neo")
    made = stored(copy)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    assert made[f"{name}.lora_down.weight"].shape == (2, 3072)
    after, before = deltas(copy)[name], torch.cat(list(deltas(path).values()))
    parts = deltas(path)
    head = "lora_unet_transformer_blocks_0_attn_"
    before = torch.cat([parts[f"{head}{part}"] for part in ("to_q", "to_k", "to_v")])
    assert torch.allclose(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_the_last_layers_scale_and_shift_are_exchanged(tmp_path: Path) -> None:
    layers = {"norm_out.linear": (6144, 3072), "transformer_blocks.0.norm1.linear": (18432, 3072)}
    path = write_lora(tmp_path / "x.safetensors", layers, head="lora_unet_", ends=KOHYA, alpha=2)
    copy = tmp_path / "copy.safetensors"
    convert(path, copy, "forge")
    before, after = deltas(path), deltas(copy)
    shift, scale = after["lora_unet_final_layer_adaLN_modulation_1"].chunk(2)
    assert torch.allclose(before["lora_unet_norm_out_linear"], torch.cat([scale, shift]))


def test_the_copy_keeps_the_metadata_and_says_what_it_is(tmp_path: Path) -> None:
    path = write_lora(
        tmp_path / "x.safetensors", TWO, head="transformer.", metadata={"ss_output_name": "mine"}
    )
    copy = tmp_path / "copy.safetensors"
    convert(path, copy, "neo")
    metadata = read_header(copy).metadata
    assert metadata["ss_output_name"] == "mine"
    assert metadata[CONVERTED] == "from diffusers names for Forge Neo"
    with pytest.raises(LoraFileError, match="exists already"):
        convert(path, copy, "neo")
    with pytest.raises(LoraFileError, match="A1111 does not run Anima models"):
        convert(path, tmp_path / "y.safetensors", "a1111")
    assert {one.name for one in tmp_path.iterdir()} == {"x.safetensors", "copy.safetensors"}


def test_the_webuis_list_and_files_of_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "Lora"
    (folder / "old").mkdir(parents=True)
    path = write_lora(folder / "x.safetensors", TWO, head="transformer.", alpha=2)
    (folder / "x.json").write_text(json.dumps({"sd version": "xl"}))
    assert causes(certify(path, "neo", measure=False)) == [
        "x.json says xl: Forge Neo hides it from its list while Anima is loaded."
    ]
    (folder / "x.json").write_text(json.dumps({"sd version": "anima"}))
    assert causes(certify(path, "neo", measure=False)) == []
    write_lora(folder / "old" / "x.safetensors", TWO, head="transformer.")
    (found,) = causes(certify(path, "neo", measure=False))
    assert found.startswith("Another file has this name: old/x.safetensors.".replace("/", os.sep))
    # outside of a LoRA folder only what lies beside it
    alone = write_lora(tmp_path / "x.safetensors", TWO, head="lora_unet_", ends=KOHYA, alpha=2)
    assert causes(certify(alone, "neo", measure=False)) == []
    (tmp_path / "x.ckpt").write_bytes(b"")
    (beside,) = causes(certify(alone, "neo", measure=False))
    assert beside.startswith("Another file has this name: x.ckpt.")


def checkpoint(path: Path, head: str, shapes: Shapes) -> Path:
    """A checkpoint of 8-bit weights: a header, and zeros that take no room on the disk."""
    infos, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape)
        infos[f"{head}{name}.weight"] = TensorInfo("F8_E4M3", shape, start, end)
    start = encode_header(infos, {})
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + end)
    return path


def test_another_family_than_stated_and_a_checkpoint_of_another(tmp_path: Path) -> None:
    path = write_lora(
        tmp_path / "x.safetensors",
        TWO,
        head="diffusion_model.",
        metadata={"ss_base_model_version": "sdxl_base_v1-0"},
        alpha=2,
    )
    assert causes(certify(path, "neo", measure=False)) == [
        "Its metadata says SDXL, but its layers are those of Anima."
    ]
    base = checkpoint(tmp_path / "base.safetensors", "net.", own_part("sd35m", "joint_blocks."))
    assert any(
        cause == "base.safetensors is for SD3, and this LoRA for Anima."
        for cause in causes(certify(path, "neo", base=base, measure=False))
    )
    with pytest.raises(CheckpointError, match="has no layers of a known model"):
        certify(path, "neo", base=path, measure=False)


def test_shapes_of_a_checkpoint_count_instead_of_the_published_models(tmp_path: Path) -> None:
    layers = {
        "joint_blocks.0.x_block.mlp.fc1": (96, 1536),
        "joint_blocks.1.x_block.mlp.fc2": (1536, 6144),
    }
    path = write_lora(tmp_path / "x.safetensors", layers, head="lora_unet_", ends=KOHYA, alpha=2)
    assert certify(path, "forge", measure=False).loaded == 1
    shapes = own_part("sd35m", "joint_blocks.") | {"joint_blocks.0.x_block.mlp.fc1": (96, 1536)}
    base = checkpoint(tmp_path / "base.safetensors", "model.diffusion_model.", shapes)
    assert certify(path, "forge", base=base, measure=False).loaded == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lora(tmp_path / "x.safetensors", TWO, head="transformer.")
    copy = tmp_path / "copy.safetensors"
    assert main(["inspect", str(path), "--for", "neo", "--fix", str(copy)]) == 0
    out, err = capsys.readouterr()
    assert (
        "verdict:         Forge Neo loads nothing of this file: its names are diffusers' for Anima,"
        " which Forge Neo does not read. --fix writes a copy that it loads."
    ) in out
    assert f"Wrote {copy}." in err
    assert main(["inspect", str(copy), "--for", "neo", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["loaded"], told["layer_count"], told["can_fix"]) == (4, 4, False)
    assert told["verdict"] == "Forge Neo loads all 4 of 4 layers."
    assert main(["inspect", str(path), "--for", "neo", "--fix", str(copy)]) == 1
    small = write_lora(
        tmp_path / "small.safetensors",
        {"blocks.0.cross_attn.q_proj": (96, 96)},
        head="lora_unet_",
        ends=KOHYA,
        alpha=2,
    )
    second = tmp_path / "second.safetensors"
    assert main(["inspect", str(small), "--for", "neo", "--fix", str(second)]) == 0
    assert (
        "The copy does not help: Forge Neo loads nothing of this file." in capsys.readouterr().err
    )
    help_text = make_parser().format_help()
    assert "inspect" in help_text
    for host in HOST_NAMES:
        assert main(["inspect", str(path), "--for", host]) == 0
