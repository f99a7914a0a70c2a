"""The roundings of `lora/rounding.py` against the packages that define them, and pictures of the
demo's LoRA in low bits against the share that `lora/survival.py` tells.

    python -m tests.benchmark.low_bits oracles
    python -m tests.benchmark.low_bits pictures ink.safetensors
    python -m tests.benchmark.low_bits sizes
    python -m tests.benchmark.low_bits seconds

oracles: needs `gguf` and `bitsandbytes`, which nothing else here does: `pip install --target DIR
gguf bitsandbytes`, and DIR on PYTHONPATH.
pictures: a LoRA of the demo's ink (`python -m lora_trainer demo`) in the embedded checkpoint, whose
denoiser is kept in each precision and meets the LoRA as WebUIs do; presence as demo/report.py has
it. sizes: LoRAs of rank 16 by how much a weight changes, on normally distributed weights of 0.02.
seconds: what a LoRA for all attention and MLPs takes on SD1.5 of random weights, and one for
some layers of FLUX.1, of which the rest is extrapolated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from lora_trainer import environment

    environment.activate()

import safetensors.torch
import torch
from torch import Tensor

from lora_trainer.adapters.apply import effects
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.demo import EMBEDDED, obedience, world
from lora_trainer.demo.report import SEED, judged_scenes, measured_means, presence, survival
from lora_trainer.lora.host_layers import translations
from lora_trainer.lora.layouts import UNET
from lora_trainer.lora.low_bits import Merge
from lora_trainer.lora.names import webui_layers
from lora_trainer.lora.rounding import PRECISIONS
from lora_trainer.lora.survival import Piece
from lora_trainer.lora.survival import survival as lora_survival
from tests.lora.other_trainers import KOHYA, PEFT, attention_and_mlp, own_layers, write_lora

WAYS: tuple[tuple[str, Merge], ...] = (
    ("fp16", "rounded"),
    ("fp8_e4m3fn", "rounded"),
    ("fp8_e4m3fn", "whole"),
    ("fp8_e4m3fn", "random"),
    ("fp8_e4m3fn", "apart"),
    ("fp8_e5m2", "rounded"),
    ("fp8_e5m2", "random"),
    ("fp8_e5m2", "apart"),
    ("nf4", "rounded"),
    ("nf4", "apart"),
)
STRENGTHS = (1.0, 0.5, 0.25, 0.1)
SIZES = (1e-4, 3e-4, 1e-3, 3e-3)
FLUX_LAYERS = ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "single_blocks.0.linear2")


def oracles() -> None:
    import bitsandbytes.functional as bnb
    import gguf
    from gguf import quants

    weights = torch.randn(257, 320, generator=torch.Generator().manual_seed(0)) * 0.03
    weights[3, :64] = 0
    for name in ("q8_0", "q5_0", "q4_0"):
        kind = getattr(gguf.GGMLQuantizationType, name.upper())
        theirs = torch.from_numpy(quants.dequantize(quants.quantize(weights.numpy(), kind), kind))
        _compare(name, theirs, weights)
    packed, state = bnb.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    _compare("nf4", bnb.dequantize_4bit(packed, state), weights)


def _compare(name: str, theirs: Tensor, weights: Tensor) -> None:
    different = int((PRECISIONS[name].nearest(weights) != theirs).sum())
    print(f"{name}: {different} of {weights.numel()} numbers differ")


@contextmanager
def kept_in(
    parts: Parts, changes: Mapping[str, Tensor], strength: float, way: tuple[str, Merge]
) -> Iterator[None]:
    """The denoiser's layers in this precision, with the LoRA; as they were afterwards."""
    named = {
        id(one.layer): changes[name]
        for name, layers in webui_layers(parts).items()
        for one in layers
        if name in changes
    }
    before = []
    for seed, layer in enumerate(parts.unet.modules()):
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        weight = layer.weight.detach()
        before.append((layer, weight.clone()))
        change = named.get(id(layer), torch.zeros(()))
        piece = Piece(
            numbers=torch.arange(len(weight)),
            share=1.0,
            stored=weight.float().flatten(1),
            scale=None,
            fp8="",
            is_matrix=weight.dim() == 2,
            seed=seed,
        )
        delta = change.reshape(-1, piece.stored.shape[1]) if change.dim() else piece.stored * 0
        ((_, after, _),) = piece.merged(delta * strength, [way], "fp16")
        if not change.dim():
            # a merge does not touch a layer without LoRA
            after = _rounded(piece, way)
        layer.weight.data.copy_(after.reshape(weight.shape))
    try:
        yield
    finally:
        for layer, weight in before:
            layer.weight.data.copy_(weight)


def _rounded(piece: Piece, way: tuple[str, Merge]) -> Tensor:
    ((_, _, alone),) = piece.merged(torch.zeros_like(piece.stored), [(way[0], "rounded")], "fp16")
    return alone


def pictures(lora: Path) -> None:
    parts = open_checkpoint(EMBEDDED).load(torch.float32)
    changes = effects(lora)
    scenes = judged_scenes("ink")
    prompts = [prompt for _, prompt in scenes]
    drawn = [drawing.image for drawing in world.draw_concept("ink", 24, SEED)]
    told = lora_survival(lora, EMBEDDED, STRENGTHS).kept
    base = obedience.sample(parts, prompts, SEED, step_count=20)
    at_zero, at_one = measured_means("ink", base), measured_means("ink", drawn)
    print("| precision | LoRA | strength | kept | noise | presence | prompt kept |")
    for way in WAYS:
        for strength in STRENGTHS:
            with kept_in(parts, changes, strength, way):
                made = obedience.sample(parts, prompts, SEED, step_count=20)
            shown = presence(measured_means("ink", made), at_zero, at_one)
            obeyed = survival("ink", made, [scene for scene, _ in scenes])
            kept = told[strength][way]
            print(
                f"| {way[0]} | {way[1]} | {strength:g} | {kept.survived:.3f} | {kept.noise:.2f}"
                f" | {shown:.2f} | {obeyed:.2f} |",
                flush=True,
            )


def sizes() -> None:
    side, generator = 1280, torch.Generator().manual_seed(0)
    weights = (torch.randn(side, side, generator=generator) * 0.02).half()
    up = torch.randn(side, 16, generator=generator)
    down = torch.randn(16, side, generator=generator)
    change = up @ down
    change /= change.square().mean().sqrt()
    with TemporaryDirectory() as folder:
        base, lora = Path(folder, "base.safetensors"), Path(folder, "lora.safetensors")
        name = "input_blocks.7.1.transformer_blocks.0.attn1.to_q"
        safetensors.torch.save_file({f"model.diffusion_model.{name}.weight": weights}, base)
        key = f"lora_unet_{name.replace('.', '_')}"
        safetensors.torch.save_file({f"{key}.diff": change}, lora)
        for size in SIZES:
            ways = lora_survival(lora, base, [size]).kept[size]
            for (precision, merge), kept in ways.items():
                print(f"{size:.0e} {precision} {merge}: {kept.survived:.3f}, {kept.noise:.2f}")


def seconds() -> None:
    with TemporaryDirectory() as folder:
        place = Path(folder)
        base = place / "sd15.safetensors"
        weights = torch.randn(2**24, generator=torch.Generator().manual_seed(0)) * 0.02
        for model, own in (("sd1", None), ("flux", FLUX_LAYERS)):
            shapes = attention_and_mlp(model) if own is None else own_layers(model)
            layers = {name: shape for name, shape in shapes.items() if own is None or name in own}
            stored = {
                found.layer: found.whole
                for name in layers
                if (found := translations(model).get((UNET, name.replace(".", "_")))) is not None
            }
            safetensors.torch.save_file(
                {
                    f"model.diffusion_model.{name}.weight": weights.bfloat16()
                    .repeat(-(-prod(shape) // len(weights)))[: prod(shape)]
                    .reshape(shape)
                    for name, shape in stored.items()
                },
                base,
            )
            head = "lora_unet_" if own is None else "diffusion_model."
            ends = KOHYA if own is None else PEFT
            lora = write_lora(
                place / "lora.safetensors",
                layers,
                head=head,
                ends=ends,
                rank=16,
                metadata={"modelspec.architecture": "stable-diffusion-v1/lora"}
                if own is None
                else {},
            )
            started = time.perf_counter()
            found = lora_survival(lora, base, [1.0])
            took = time.perf_counter() - started
            ways = len(found.kept[1.0])
            print(
                f"{model}: {found.layer_count} layers, {ways} ways: {took:.2f} s,"
                f" {1000 * took / found.layer_count:.0f} ms a layer"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["oracles", "pictures", "sizes", "seconds"])
    parser.add_argument("lora", nargs="?", type=Path)
    asked = parser.parse_args()
    if asked.what == "pictures":
        pictures(asked.lora)
    else:
        {"oracles": oracles, "sizes": sizes, "seconds": seconds}[asked.what]()


if __name__ == "__main__":
    main()
