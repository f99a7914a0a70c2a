from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from lora_trainer.adapters import export as export_module
from lora_trainer.adapters.export import export, export_diffusers, verify
from lora_trainer.adapters.injected import Adapters, add_adapters
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.names import (
    adaptable_layers,
    diffusers_names,
    module_names,
    part_models,
)
from lora_trainer.settings.training import TEXT_ENCODER_TARGETS, UNET_TARGETS, LoraSettings
from tests.adapters.test_injected import fill, predictions
from tests.tiny import small_parts, tiny_parts

STRENGTHS = (0.0, 0.5, 1.0)
FEW = {
    "lora_rank": 4,
    "lora_alpha": 2.7,
    "target_modules": ("to_q", "proj_in"),
    "train_text_encoder": True,
    "text_encoder_targets": ("q_proj", "fc1"),
}
METADATA = {"ss_output_name": "x", "ss_base_model_version": "sd_v1"}
CONVOLUTIONS = ("to_q", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv")


def trained(
    family: str, base: Callable[[], Parts] | None = None, **settings: Any
) -> tuple[Parts, Adapters]:
    """A tiny base of the family, or this one, with adapters that have learned something."""
    parts = base() if base else tiny_parts(family)
    adapters = add_adapters(parts, LoraSettings(**{**FEW, **settings}), seed=0)
    fill(adapters)
    return parts, adapters


def live(parts: Parts, adapters: Adapters, strength: float) -> list[torch.Tensor]:
    with adapters.strength(strength):
        return predictions(parts)


def merge(parts: Parts, file: Path, strength: float) -> None:
    """Merge the file into the base by kohya's formula, W + strength * alpha / r * up @ down."""
    tensors = safetensors.torch.load_file(file)
    used = set()
    layer_name = parts.family.layer_names(parts)
    for part, model in part_models(parts):
        for path, layer in adaptable_layers(model, parts.family).items():
            name = layer_name(part, path)
            if f"{name}.alpha" not in tensors:
                continue
            down, up, alpha = (
                tensors[f"{name}.{end}"].float()
                for end in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            change = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
            layer.weight.data += strength * alpha.item() / down.shape[0] * change
            used |= {f"{name}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert used == set(tensors)


def pipeline(parts: Parts) -> Any:
    common = {
        "vae": parts.vae,
        "unet": parts.unet,
        "text_encoder": parts.text_encoders[0],
        "tokenizer": None,
        "scheduler": DDIMScheduler(),
    }
    if parts.family.id == "sdxl":
        return StableDiffusionXLPipeline(
            **common, text_encoder_2=parts.text_encoders[1], tokenizer_2=None
        )
    return StableDiffusionPipeline(
        **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def close(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "targets"),
    [("sd1", UNET_TARGETS), ("sd2", UNET_TARGETS), ("sdxl", UNET_TARGETS), ("sd1", CONVOLUTIONS)],
)
def test_training_the_webui_and_diffusers_see_the_same_lora_at_every_strength(
    family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    # what convolutions there are, the smallest has, too
    base_of = small_parts if targets == CONVOLUTIONS else lambda: tiny_parts(family)
    parts, adapters = trained(
        family, base_of, target_modules=targets, text_encoder_targets=TEXT_ENCODER_TARGETS
    )
    export(adapters, parts, tmp_path / "webui.safetensors", METADATA, torch.float32)
    export_diffusers(adapters, parts, tmp_path / "diffusers.safetensors", METADATA, torch.float32)
    loaded = base_of()
    pipe = pipeline(loaded)
    # diffusers knows the WebUI's names for attention only
    forms = ("diffusers", "webui") if targets == UNET_TARGETS else ("diffusers",)
    for form in forms:
        pipe.load_lora_weights(str(tmp_path), weight_name=f"{form}.safetensors", adapter_name=form)
    base, merged, before = live(parts, adapters, 0.0), base_of(), 0.0
    for strength in STRENGTHS:
        expected = live(parts, adapters, strength)
        assert strength == 0 or all(
            float((a - b).abs().max()) > 0.05 for a, b in zip(expected, base, strict=True)
        )
        # 0.5 and 0.5 more
        merge(merged, tmp_path / "webui.safetensors", strength - before)
        before = strength
        close(predictions(merged), expected)
        for form in forms:
            pipe.set_adapters(form, strength)
            close(predictions(loaded), expected)


def test_the_file_holds_three_tensors_a_layer_under_kohyas_names(tmp_path: Path) -> None:
    targets = (
        "mid_block.attentions.0.proj_in",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    )
    parts, adapters = trained("sd1", target_modules=targets, train_text_encoder=False)
    report = export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (
            "torch.float16",
            (4, 128, 1, 1),
        ),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (
            "torch.float16",
            (128, 4, 1, 1),
        ),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": ("torch.float32", ()),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (
            "torch.float16",
            (4, 32),
        ),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (
            "torch.float16",
            (128, 4),
        ),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.alpha": (
            "torch.float32",
            (),
        ),
    }
    assert tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"].item() == pytest.approx(
        2.7, abs=1e-7
    )
    assert (report.module_count, report.dtype, report.idle_modules) == (2, "F16", 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]


@pytest.mark.parametrize(
    ("dtype", "written"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float32, "F32")]
)
def test_the_weights_are_the_adapters_in_the_type_asked_for(
    dtype: torch.dtype, written: str, tmp_path: Path
) -> None:
    parts, adapters = trained("sd1")
    assert export(adapters, parts, tmp_path / "x.safetensors", METADATA, dtype).dtype == written
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    layer_name = parts.family.layer_names(parts)
    for adapter in adapters.layers:
        name = layer_name(adapter.part, adapter.path)
        assert torch.equal(tensors[f"{name}.lora_up.weight"], adapter.up.detach().to(dtype))
        assert torch.equal(tensors[f"{name}.lora_down.weight"], adapter.down.detach().to(dtype))


@pytest.mark.parametrize("alpha", [0.05, 40.0])
def test_a_small_scale_is_not_lost_to_float16_in_diffusers_form_nor_one_above_1(
    tmp_path: Path, alpha: float
) -> None:
    parts, adapters = trained("sd1", lora_rank=16, lora_alpha=alpha)
    fill(adapters, size=1e-3)
    export_diffusers(adapters, parts, tmp_path / "x.safetensors", METADATA)
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    adapter = adapters.layers[0]
    product = tensors[f"{adapter.name}.lora_B.weight"].float().flatten(1) @ tensors[
        f"{adapter.name}.lora_A.weight"
    ].float().flatten(1)
    expected = alpha / 16 * adapter.up.detach().flatten(1) @ adapter.down.detach().flatten(1)
    assert float((product - expected).norm() / expected.norm()) < 0.02


def test_the_metadata_and_hashes_are_in_the_file(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    export(adapters, parts, tmp_path / "x.safetensors", {**METADATA, "note": "雪 \udcff"})
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stored:
        metadata = stored.metadata()
    assert metadata["ss_output_name"] == "x"
    assert metadata["note"] == "雪 ?"
    assert set(metadata) == {
        "ss_output_name",
        "ss_base_model_version",
        "note",
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
    }


def test_the_same_adapters_give_the_same_bytes(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    export(adapters, parts, tmp_path / "a.safetensors", METADATA)
    export(adapters, parts, tmp_path / "b.safetensors", dict(reversed(METADATA.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_tensors_lie_as_the_safetensors_library_lays_them(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    ours = (tmp_path / "x.safetensors").read_bytes()
    theirs = safetensors.torch.save(safetensors.torch.load(ours))
    assert (
        ours[8 + int.from_bytes(ours[:8], "little") :]
        == theirs[8 + int.from_bytes(theirs[:8], "little") :]
    )


def test_a_lora_that_has_learned_nothing_is_reported(tmp_path: Path) -> None:
    parts = tiny_parts("sd1")
    adapters = add_adapters(parts, LoraSettings(target_modules=("to_q",)), seed=0)
    report = export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    assert report.does_nothing
    assert report.idle_modules == 32
    with torch.no_grad():
        adapters.layers[0].up.fill_(0.1)
    report = export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    assert (report.does_nothing, report.idle_modules) == (False, 31)


def test_values_beyond_float16_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    with torch.no_grad():
        adapters.layers[3].up.fill_(1e6)
    with pytest.raises(LoraFileError, match=r"1 of 54 layers .* NaN or infinite") as caught:
        export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    assert "float32 or bf16" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
    assert (
        export(adapters, parts, tmp_path / "x.safetensors", METADATA, torch.bfloat16).module_count
        == 54
    )


def test_a_refused_export_leaves_the_earlier_file(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    before = (tmp_path / "x.safetensors").read_bytes()
    with torch.no_grad():
        adapters.layers[0].down.fill_(float("nan"))
    with pytest.raises(LoraFileError, match="NaN or infinite"):
        export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_a_folder_in_the_place_of_the_file_gets_a_sentence(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    (tmp_path / "x.safetensors" / "y").mkdir(parents=True)
    with pytest.raises(LoraFileError, match=r"could not be written"):
        export(adapters, parts, tmp_path / "x.safetensors", METADATA)


def test_a_full_disk_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: Path, write: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    parts, adapters = trained("sd1")
    monkeypatch.setattr(export_module, "replace_file", full)
    with pytest.raises(
        LoraFileError, match=r"the disk is full: .*x.safetensors could not be written"
    ) as raised:
        export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    assert str(raised.value.hint).startswith("Free some space, then continue with `resume`")


def test_verify_names_what_does_not_fit(tmp_path: Path) -> None:
    parts, adapters = trained("sdxl")
    export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    assert verify(tmp_path / "x.safetensors", module_names(parts)).module_count == 79
    first_text_encoder = {
        name: shape for name, shape in module_names(parts).items() if name.startswith("lora_te1")
    }
    with pytest.raises(
        LoraFileError, match=r"73 of 79 layers in .* match no layer of the base, such as lora_"
    ):
        verify(tmp_path / "x.safetensors", first_text_encoder)
    narrower = {name: (shape[0] + 1, *shape[1:]) for name, shape in module_names(parts).items()}
    with pytest.raises(LoraFileError, match=r"79 of 79 layers .* shapes that do not fit"):
        verify(tmp_path / "x.safetensors", narrower)
    with pytest.raises(LoraFileError, match="is not a complete LoRA"):
        verify(tmp_path / "x.safetensors", diffusers_names(parts), form="diffusers")


@pytest.mark.parametrize("missing", [".lora_up.weight", ".lora_down.weight"])
def test_half_a_layer_is_refused(missing: str, tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    name = next(key for key in tensors if key.endswith(missing))
    safetensors.torch.save_file(
        {key: tensor for key, tensor in tensors.items() if key != name},
        tmp_path / "half.safetensors",
    )
    with pytest.raises(LoraFileError, match="is not a complete LoRA"):
        verify(tmp_path / "half.safetensors", module_names(parts))


def test_the_header_begins_as_a1111_expects(tmp_path: Path) -> None:
    parts, adapters = trained("sd1")
    export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    content = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert content[8:10] == b'{"'
    assert json.loads(content[8 : 8 + length])["__metadata__"]["ss_output_name"] == "x"
