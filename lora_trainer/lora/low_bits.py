"""How each WebUI merges a LoRA into a model whose weights it keeps in low precision.

    cases("forge", "flux", "16 bits")    for a checkpoint of 16 or 32 bits
    cases("neo", "flux", "scaled")       for one in fp8 with a scale for each layer

A WebUI rounds the weights when it loads the model. Most then add the LoRA to the rounded weights
and round again, which loses every change smaller than half a rounding step (`rounded`). How much
that is depends on the LoRA; survival measures it.

Not in the table, but in their sources: Forge cannot write other GGUF types, and raises an error for
a LoRA on one without "(fp16 LoRA)"; Forge Neo and reForge add the LoRA in each forward pass to
layers that do not fit the card's memory; Forge Neo always does so for GGUF weights.

Sources: A1111 1.10.1 (modules/sd_models.py load_model_weights,
extensions-builtin/Lora/networks.py network_apply_weights), Forge dfdcbab6 (backend/patcher/lora.py
LoraLoader.refresh, backend/loader.py, backend/operations.py get_weight_and_bias,
modules_forge/main_entry.py, packages_3rdparty/gguf/quants.py quantize_blocks_pytorch), Forge Neo
2.26 (backend/patcher/base.py patch_weight_to_device, operations_mixed_precision.py set_weight,
modules_forge/main_entry.py), reForge 3b56b268 (ldm_patched/modules/model_patcher.py, ops.py
scaled_fp8_ops), Forge Classic 1f95d717 (ldm_patched/modules/model_patcher.py patch_model).
Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lora_trainer.lora import host_layers
from lora_trainer.lora.host_layers import A1111, CLASSIC, FORGE, NEO, REFORGE
from lora_trainer.lora.layouts import SD

Merge = Literal["rounded", "whole", "random", "apart", "unscaled", "refused"]
"""How a LoRA is merged into rounded weights:

rounded: added to them, and the sum is rounded to the nearest value
whole: added to the original weights, and the sum is rounded
random: added to the rounded weights, with stochastic rounding of the sum
apart: added in each forward pass, in 16 bits
unscaled: added to the stored numbers, before they are multiplied by the layer's scale
refused: not added, because the WebUI cannot write such weights
"""
Stored = Literal["16 bits", "fp8_e4m3fn", "fp8_e5m2", "scaled"]
"""The checkpoint file's precision; scaled: fp8 with a scale for each layer."""
SIXTEEN, SCALED = "16 bits", "scaled"
PLAIN = ("16 bits", "fp8_e4m3fn", "fp8_e5m2")
LOW_BITS = "Diffusion in Low Bits"


@dataclass(frozen=True, kw_only=True)
class StorageSetting:
    """A setting of a WebUI, and how it merges a LoRA."""

    precision: str
    """A key of rounding.PRECISIONS; SIXTEEN: fp16 or bf16, by the model; SCALED: the file's own."""
    merge: Merge
    files: tuple[str, ...] = (SIXTEEN,)
    """The `Stored` precisions of the checkpoints that this applies to."""
    setting: str = ""
    """The option and its choice, as the WebUI shows them; empty: the default."""
    remedy: str = ""
    """What to set instead, or besides, to keep more of the LoRA; empty: no setting does."""
    kept: Merge = "apart"
    """How it is merged with the remedy."""


def _low_bits(choice: str) -> str:
    return f"{LOW_BITS}: {choice}"


def _forge(choice: str, precision: str, merge: Merge, files: tuple[str, ...]) -> StorageSetting:
    return StorageSetting(
        precision=precision,
        merge=merge,
        files=files,
        setting=_low_bits(choice),
        remedy=_low_bits(f"{choice} (fp16 LoRA)"),
    )


def _as_stored(merge: Merge, remedy: str = "") -> tuple[StorageSetting, ...]:
    """For a checkpoint in fp8 without scales, loaded as it is stored."""
    return tuple(
        StorageSetting(precision=kind, merge=merge, files=(kind,), remedy=remedy)
        for kind in PLAIN[1:]
    )


def _gguf(merge: Merge, remedy: str = "") -> tuple[StorageSetting, ...]:
    return tuple(
        StorageSetting(precision=kind, merge=merge, setting=f"GGUF {kind.upper()}", remedy=remedy)
        for kind in ("q8_0", "q5_0", "q4_0")
    )


_WHOLE = StorageSetting(precision=SIXTEEN, merge="rounded")
_ONLINE = _low_bits("Automatic (fp16 LoRA)")
_FLAGS = (("--unet-in-fp8-e4m3fn", "fp8_e4m3fn"), ("--unet-in-fp8-e5m2", "fp8_e5m2"))

CASES: Mapping[str, tuple[StorageSetting, ...]] = {
    A1111: (
        # fp8 files are converted to 16 bits
        StorageSetting(precision=SIXTEEN, merge="rounded", files=PLAIN),
        StorageSetting(
            precision="fp8_e4m3fn",
            merge="rounded",
            files=PLAIN,
            setting="FP8 weight: Enable",
            remedy="Cache FP16 weight for LoRA",
            kept="whole",
        ),
    ),
    FORGE: (
        _WHOLE,
        *_as_stored("rounded", _ONLINE),
        StorageSetting(precision=SCALED, merge="unscaled", files=(SCALED,), remedy=_ONLINE),
        _forge("float8-e4m3fn", "fp8_e4m3fn", "rounded", (SIXTEEN,)),
        _forge("float8-e5m2", "fp8_e5m2", "rounded", (SIXTEEN,)),
        _forge("bnb-nf4", "nf4", "rounded", PLAIN),
        # it cannot write other GGUF types, and raises an error
        *_gguf("rounded", _ONLINE),
    ),
    NEO: (
        _WHOLE,
        *_as_stored("random", _ONLINE),
        StorageSetting(precision=SCALED, merge="random", files=(SCALED,), remedy=_ONLINE),
        _forge("float8-e4m3fn", "fp8_e4m3fn", "random", (SIXTEEN,)),
        _forge("float8-e5m2", "fp8_e5m2", "random", (SIXTEEN,)),
        _forge("bnb-nf4", "nf4", "refused", (SIXTEEN,)),
        *_gguf("apart"),
    ),
    REFORGE: (
        _WHOLE,
        # on cards that do not compute in fp8, files in fp8 are converted to 16 bits if these fit
        *_as_stored("random"),
        StorageSetting(precision=SCALED, merge="random", files=(SCALED,)),
        *(StorageSetting(precision=kind, merge="random", setting=flag) for flag, kind in _FLAGS),
    ),
    CLASSIC: (
        StorageSetting(precision=SIXTEEN, merge="rounded", files=PLAIN),
        StorageSetting(
            precision="fp8_e4m3fn",
            merge="rounded",
            files=PLAIN,
            setting="Store UNet Weights in fp8",
        ),
        StorageSetting(precision="fp8_e5m2", merge="rounded", files=PLAIN, setting=_FLAGS[1][0]),
    ),
}


def cases(host: str, model: str, stored: str) -> tuple[StorageSetting, ...]:
    """The settings of a WebUI that apply to a checkpoint; empty if it does not run the model."""
    if not host_layers.runs(host, model):
        return ()
    return tuple(case for case in CASES[host] if stored in case.files)


def sixteen(model: str) -> str:
    """The 16-bit precision that WebUIs use for a model: fp16 for Stable Diffusion, else bf16."""
    return "fp16" if host_layers.family_of(model) in SD else "bf16"
