"""What each WebUI does with a LoRA where it keeps the model's weights in few bits.

    cases("forge", "flux", "16 bits")    for a checkpoint of 16 or 32 bits
    cases("neo", "flux", "scaled")       for one in fp8 with a scale for each layer

A WebUI rounds the weights when it loads the model, and mostly adds the LoRA to what is left and
rounds again: of a change below half a step nothing is left then (`rounded`). How much that is
depends on the file; survival measures it.

Not here, but read: Forge writes no other GGUF kinds, and stops with an error where a LoRA meets one
without "(fp16 LoRA)"; Forge Neo and reForge add it at each use in layers that do not fit the card's
memory; Forge Neo adds it to GGUF weights at each use whatever is chosen.

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
"""How a LoRA meets rounded weights:

rounded: added to them, and the sum is rounded to the nearest
whole: added to the weights as they were before they were rounded, and the sum is rounded
random: added to the rounded weights, and the sum is rounded up or down at random, so that it is
right on average
apart: added at each use, in 16 bits
unscaled: added to the stored numbers, before they are multiplied by the layer's scale
refused: not added, as the WebUI cannot write such weights
"""
Stored = Literal["16 bits", "fp8_e4m3fn", "fp8_e5m2", "scaled"]
"""How the checkpoint's file has its weights; scaled: fp8 with a scale for each layer."""
SIXTEEN, SCALED = "16 bits", "scaled"
PLAIN = ("16 bits", "fp8_e4m3fn", "fp8_e5m2")
LOW_BITS = "Diffusion in Low Bits"


@dataclass(frozen=True, kw_only=True)
class StorageSetting:
    """A setting of a WebUI, and what it does to a LoRA."""

    precision: str
    """In rounding.PRECISIONS; SIXTEEN: fp16 or bf16, by the model; SCALED: the file's own."""
    merge: Merge
    files: tuple[str, ...] = (SIXTEEN,)
    """Of checkpoints stored so."""
    setting: str = ""
    """The option and its choice, as the WebUI shows them; empty: the default."""
    remedy: str = ""
    """What to set instead, or besides, so that more of the LoRA is kept; empty: nothing does."""
    kept: Merge = "apart"
    """What it does then."""


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
    """A checkpoint in plain fp8, as it is."""
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
        # it loads fp8 files in 16 bits
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
        # of other GGUF kinds it can write none, and stops with an error
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
        # fp8 files in 16 bits, where the card does not compute in fp8 and has the memory
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
    """Those of a WebUI for a checkpoint; none if it does not run the model."""
    if not host_layers.runs(host, model):
        return ()
    return tuple(case for case in CASES[host] if stored in case.files)


def sixteen(model: str) -> str:
    """The precision in which WebUIs compute with a model: fp16, or bf16 where the card can."""
    return "fp16" if host_layers.family_of(model) in SD else "bf16"
