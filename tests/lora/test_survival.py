"""How much of a LoRA is left in few bits: bases and LoRAs of one weight whose rounding is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.__main__ import main
from lora_trainer.errors import CheckpointError, LoraFileError
from lora_trainer.lora import survival as module
from lora_trainer.lora.low_bits import CASES, Merge
from lora_trainer.lora.survival import Kept, percent, survival
from tests.lora.other_trainers import KOHYA, PEFT, write_lora

FP8 = "fp8_e4m3fn"
QKV = "double_blocks.0.img_attn.qkv"
WIDTH = 64
DIFFUSERS = {f"transformer_blocks.0.attn.to_{name}": (3072, WIDTH) for name in "qkv"}


def write_flux(path: Path, rows: tuple[float, float, float], dtype: torch.dtype) -> Path:
    """FLUX.1's first layer of query, key and value, each of one number, and narrow."""
    weight = torch.cat([torch.full((3072, WIDTH), number) for number in rows])
    safetensors.torch.save_file({f"model.diffusion_model.{QKV}.weight": weight.to(dtype)}, path)
    return path


def write_constant(path: Path, layers: list[str], size: float, head: str = "transformer.") -> Path:
    """A LoRA of rank 1 that adds `size` to every weight of these layers."""
    tensors = {}
    for layer in layers:
        tensors[f"{head}{layer}.lora_A.weight"] = torch.ones(1, WIDTH)
        tensors[f"{head}{layer}.lora_B.weight"] = torch.full((3072, 1), size)
    meta = {"lora_adapter_metadata": '{"transformer.lora_alpha": 1, "transformer.r": 1}'}
    safetensors.torch.save_file(tensors, path, meta)
    return path


def kept_of(lora: Path, base: Path, precision: str, merge: Merge) -> Kept:
    return survival(lora, base, [1.0]).kept[1.0][precision, merge]


def test_less_than_half_a_step_is_lost_and_a_whole_step_is_kept(tmp_path: Path) -> None:
    # at 1 a step of e4m3 is 1/8
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.bfloat16)
    layers = list(DIFFUSERS)
    small = write_constant(tmp_path / "small.safetensors", layers, 0.0625 - 2**-10)
    assert kept_of(small, base, FP8, "rounded").survived == 0
    assert kept_of(small, base, FP8, "rounded").noise == 1
    large = write_constant(tmp_path / "large.safetensors", layers, 0.125)
    found = kept_of(large, base, FP8, "rounded")
    assert (found.survived, found.noise) == (1, 0)
    assert [one.survived for one in found.worst] == [1, 1, 1]
    # more than half a step becomes a whole one
    middle = write_constant(tmp_path / "middle.safetensors", layers, 0.1)
    assert kept_of(middle, base, FP8, "rounded").survived == pytest.approx(1.25, rel=1e-3)
    for lora in (small, middle, large):
        # added at each use in bf16, whose step at 1 is 1/128
        assert kept_of(lora, base, FP8, "apart").survived == pytest.approx(1, abs=0.05)
        assert kept_of(lora, base, "bf16", "rounded").survived == pytest.approx(1, abs=0.05)


def test_random_rounding_keeps_it_on_average_with_noise(tmp_path: Path) -> None:
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.bfloat16)
    lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.0125)
    found = kept_of(lora, base, FP8, "random")
    # a step of 1/8 with a chance of 1/10: its deviation is sqrt(0.1 * 0.9) / 8
    assert found.survived == pytest.approx(1, abs=0.03)
    assert found.noise == pytest.approx(0.09**0.5 / 8 / 0.0125, rel=0.02)


def test_added_before_rounding_it_is_kept_on_average(tmp_path: Path) -> None:
    weight = 1 + torch.rand(3 * 3072, WIDTH, generator=torch.Generator().manual_seed(0))
    base = tmp_path / "base.safetensors"
    safetensors.torch.save_file({f"{QKV}.weight": weight}, base)
    lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.0125)
    piece = module.CheckpointLayers.of(base)
    place = piece.by_flat_name()[module.flat(QKV)]
    layer = module.Piece.of(piece, place, 0)
    assert layer is not None
    delta = torch.full_like(layer.stored, 0.0125)
    ((_, after, before),) = layer.merged(delta, [(FP8, "whole")], "fp16")
    assert float(after.mean() - before.mean()) == pytest.approx(0.0125, rel=0.1)
    ((_, after, before),) = layer.merged(delta, [(FP8, "rounded")], "fp16")
    assert torch.equal(after, before)
    assert kept_of(lora, base, FP8, "rounded").survived == 0


def test_a_part_of_a_fused_layer_meets_its_own_rows(tmp_path: Path) -> None:
    # query's rows are 0, where steps are 2**-9; key's and value's are 1
    base = write_flux(tmp_path / "base.safetensors", (0, 1, 1), torch.bfloat16)
    query, key, value = DIFFUSERS
    lora = write_constant(tmp_path / "a.safetensors", [query], 2**-5)
    assert kept_of(lora, base, FP8, "rounded").survived == 1
    lora = write_constant(tmp_path / "b.safetensors", [key], 2**-5)
    assert kept_of(lora, base, FP8, "rounded").survived == 0
    lora = write_constant(tmp_path / "c.safetensors", [query, key, value], 2**-5)
    found = kept_of(lora, base, FP8, "rounded")
    assert found.survived == pytest.approx(1 / 3)
    assert [one.survived for one in found.worst] == [0, 0, 1]
    assert found.worst[-1].layer == f"transformer.{query}"


@pytest.mark.parametrize(
    ("head", "ends", "alpha"),
    [("lora_unet_", KOHYA, 2.0), ("unet.", PEFT, None), ("base_model.model.", PEFT, None)],
)
def test_every_form_of_names_gives_the_same(
    head: str, ends: tuple[str, str], alpha: float | None, tmp_path: Path
) -> None:
    # SD1, diffusers' names of input_blocks.1.1
    own = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    theirs = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = torch.randn(320, 320, generator=torch.Generator().manual_seed(1)) * 0.05
    base = tmp_path / "base.safetensors"
    safetensors.torch.save_file({f"model.diffusion_model.{own}.weight": weight.half()}, base)
    lora = write_lora(
        tmp_path / "a.safetensors",
        {theirs: (320, 320)},
        head=head,
        ends=ends,
        alpha=alpha,
        metadata={"modelspec.architecture": "stable-diffusion-v1/lora"},
    )
    found = survival(lora, base)
    assert (found.model, found.layer_count, found.left_out) == ("sd1", 1, 0)
    ways = found.kept[1.0]
    ours = write_lora(
        tmp_path / "b.safetensors", {own: (320, 320)}, head="diffusion_model.", rank=2
    )
    same = survival(ours, base).kept[1.0]
    assert ways["nf4", "rounded"].survived == same["nf4", "rounded"].survived
    assert ways[FP8, "rounded"].noise == same[FP8, "rounded"].noise
    assert ways["fp16", "rounded"].survived == pytest.approx(1, abs=1e-3)
    # Forge Neo writes no nf4
    assert ways["nf4", "refused"] == Kept(
        survived=0, noise=1, worst=(module.LayerShare(ways["nf4", "refused"].worst[0].layer, 0),)
    )


def test_convolutions_are_kept_in_16_bits_beside_nf4_and_gguf(tmp_path: Path) -> None:
    own = "input_blocks.1.0.in_layers.2"
    theirs = "down_blocks.0.resnets.0.conv1"
    base = tmp_path / "base.safetensors"
    weight = torch.randn(320, 320, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.05
    safetensors.torch.save_file({f"model.diffusion_model.{own}.weight": weight.half()}, base)
    lora = write_lora(
        tmp_path / "a.safetensors",
        {theirs: (320, 320, 3, 3)},
        head="lora_unet_",
        ends=KOHYA,
        alpha=2,
        metadata={"modelspec.architecture": "stable-diffusion-v1/lora"},
    )
    ways = survival(lora, base).kept[1.0]
    for precision in ("nf4", "q8_0", "q4_0"):
        assert ways[precision, "rounded"] == ways["fp16", "rounded"]
    assert ways["nf4", "refused"] == ways["fp16", "rounded"]
    assert ways[FP8, "rounded"] != ways["fp16", "rounded"]


def test_a_checkpoint_in_scaled_fp8_is_measured_in_its_own_precision(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    # 128 * 2**-7: weights of 1 in steps of 1/8
    stored = torch.full((3 * 3072, WIDTH), 128.0).to(torch.float8_e4m3fn)
    for end in ("scale_weight", "weight_scale"):
        safetensors.torch.save_file(
            {f"{QKV}.weight": stored, f"{QKV}.{end}": torch.tensor(2.0**-7)}, base
        )
        lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.125)
        found = survival(lora, base, [1.0])
        assert found.stored == "scaled"
        ways = found.kept[1.0]
        # Forge adds 1/8 to 128
        assert ways["scaled", "unscaled"].survived == 0
        assert ways["scaled", "random"].survived == 1
        assert ways["scaled", "apart"].survived == 1
        told = [str(one.message) for one in found.outcomes(["forge"])]
        assert told == [
            "Forge adds the LoRA to the stored numbers of weights in scaled fp8, without the scale: 0%"
            " of it is kept."
        ]


def test_a_checkpoint_in_plain_fp8(tmp_path: Path) -> None:
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.float8_e4m3fn)
    lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.05)
    found = survival(lora, base)
    assert found.stored == FP8
    forge, nf4 = found.outcomes(["forge"])
    assert (forge.kept.survived, forge.case.merge, forge.case.setting) == (0, "rounded", "")
    # in bf16 steps of 1/128
    told = 'With "Diffusion in Low Bits: Automatic (fp16 LoRA)", 94% of it is kept.'
    assert str(forge.hint) == told
    assert nf4.case.setting == "Diffusion in Low Bits: bnb-nf4"
    assert [one.case.merge for one in found.outcomes(["neo"])] == ["random"]
    # these do not run FLUX.1
    assert found.outcomes(["a1111", "classic", "reforge"]) == []


def test_the_recommended_strength_is_measured_too(tmp_path: Path) -> None:
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.bfloat16)
    lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.125)
    assert list(survival(lora, base).kept) == [1.0]
    tensors = safetensors.torch.load_file(lora)
    safetensors.torch.save_file(tensors, lora, {"lora_trainer.strength": "0.4"})
    found = survival(lora, base)
    assert found.strength == 0.4
    assert found.kept[1.0][FP8, "rounded"].survived == 1
    assert found.kept[0.4][FP8, "rounded"].survived == 0


def test_some_rows_of_a_large_layer_stand_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_flux(tmp_path / "base.safetensors", (0, 1, 1), torch.bfloat16)
    lora = write_lora(tmp_path / "a.safetensors", {QKV: (9216, WIDTH)}, head="diffusion_model.")
    monkeypatch.setattr(module, "ELEMENTS", 9216 * WIDTH)
    whole = survival(lora, base).kept[1.0]
    monkeypatch.setattr(module, "ELEMENTS", 1000 * WIDTH)
    part = survival(lora, base).kept[1.0]
    assert part == survival(lora, base).kept[1.0]
    for way, kept in whole.items():
        assert part[way].survived == pytest.approx(kept.survived, abs=0.06)


def test_what_cannot_be_measured_is_told(tmp_path: Path) -> None:
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.bfloat16)
    other = write_lora(
        tmp_path / "x.safetensors",
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)},
        head="lora_unet_",
        ends=KOHYA,
    )
    with pytest.raises(LoraFileError, match=r"no layer of .*x.safetensors can be measured on base"):
        survival(other, base)
    lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.05)
    with pytest.raises(CheckpointError, match="is a folder"):
        survival(lora, tmp_path)
    # broken weights are told by the certificate, and counted nowhere here
    tensors = safetensors.torch.load_file(lora)
    key = next(iter(tensors))
    tensors[key][:] = torch.nan
    safetensors.torch.save_file(tensors, lora)
    assert kept_of(lora, base, FP8, "rounded").survived == 0
    for value in (torch.nan, 0.0):
        for tensor in tensors.values():
            tensor[:] = value
        safetensors.torch.save_file(tensors, lora)
        with pytest.raises(LoraFileError, match="have no effect, or are NaN or infinite"):
            survival(lora, base)
    names = {key.rsplit(".lora_", 1)[0] for key in tensors}
    scales = {f"{name}.dora_scale": torch.ones(1) for name in names}
    safetensors.torch.save_file({**tensors, **scales}, lora)
    with pytest.raises(LoraFileError, match=r"depend on the base's weights \(DoRA\)"):
        survival(lora, base)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.bfloat16)
    lora = write_constant(tmp_path / "lora.safetensors", list(DIFFUSERS), 0.05)
    assert main(["inspect", str(lora), "--base", str(base), "--for", "forge"]) == 0
    told = capsys.readouterr().out
    assert "kept:            at strength 1 in base.safetensors, 3 layers of the denoiser:" in told
    assert (
        "Forge (Diffusion in Low Bits: float8-e4m3fn) adds the LoRA to weights in fp8 (e4m3) and rounds"
        " the sum: 0% of it is kept (least in transformer.transformer_blocks.0.attn.to_k: 0%). With"
        ' "Diffusion in Low Bits: float8-e4m3fn (fp16 LoRA)", 94% of it is kept.'
    ) in told
    asked = ["inspect", str(lora), "--base", str(base), "--for", "neo", "--json", "--strength", "2"]
    assert main(asked) == 0
    kept = json.loads(capsys.readouterr().out)["kept"]
    assert (kept["stored"], kept["strength"], kept["layer_count"]) == ("16 bits", 2, 3)
    assert {one["host"] for one in kept["hosts"]} == {"neo"}
    found = {(one["precision"], one["merge"]): one["survived"] for one in kept["measured"]}
    assert found["nf4", "refused"] == 0
    # one that is not a model's
    assert main(["inspect", str(lora), "--base", str(lora), "--for", "neo"]) == 1
    assert "has no layers of a known model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", str(lora), "--base", str(base), "--strength", "0"])
    assert "0 is not a number above or below 0" in capsys.readouterr().err


def test_shares_are_written_with_two_digits() -> None:
    assert [percent(share) for share in (1.0, 0.996, 0.1, 0.031, 0.0004, 0.0, -0.01)] == [
        "100%",
        "100%",
        "10%",
        "3.1%",
        "0.04%",
        "0%",
        "0%",
    ]


def test_every_webui_has_cases_and_no_two_are_the_same() -> None:
    for cases in CASES.values():
        keys = [(case.setting, kind) for case in cases for kind in case.files]
        assert len(keys) == len(set(keys))


def test_where_nothing_can_be_measured_inspect_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_flux(tmp_path / "base.safetensors", (1, 1, 1), torch.bfloat16)
    other = {"double_blocks.7.img_attn.proj": (3072, WIDTH)}
    lora = write_lora(tmp_path / "lora.safetensors", other, head="diffusion_model.")
    assert main(["inspect", str(lora), "--base", str(base), "--for", "neo"]) == 0
    told = capsys.readouterr().out
    assert f"kept:            not measured: no layer of {lora} can be measured on base" in told
