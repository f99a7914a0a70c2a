"""Configurations for diffusers and transformers, from the names and shapes in a single-file
checkpoint's header.

Levels, channels, layers, attention and text widths are counted rather than taken from the family,
so that reduced or pruned models load too. Without torch. The rest follows from the family, as in
the WebUI's configurations:

- attention heads of the UNet: 8 for SD1; channels / 64 for SD2 and SDXL, at least 1
- attention heads of a text encoder: width / 64, at least 1
- activation of a text encoder: quick_gelu for CLIP (SD1, SDXL's first), gelu for OpenCLIP (SD2,
SDXL's second)
- normalization groups: 32, or the largest power of two that divides all channel counts
- SD2 uses the penultimate layer of its text encoder, so the last one is not built
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, Any, Protocol

from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.names import UNET_PREFIX, VAE_PREFIX, TextEncoderLayout
from lora_trainer.errors import CheckpointError

if TYPE_CHECKING:
    from lora_trainer.families.stable_diffusion import StableDiffusion

VOCABULARY = 49408
"""Size of CLIP's vocabulary."""
SIZE_NUMBERS = 6
"""SDXL's size condition: height and width of original, crop offset and target."""


def unet_config(
    header: Header, family: StableDiffusion, *, pooled_width: int = 0
) -> dict[str, Any]:
    """Configuration of `UNet2DConditionModel`. pooled_width: projection width of SDXL's second text
    encoder.
    """
    levels = _down_levels(header)
    channels = [level.channels for level in levels]
    ups = _up_levels(header, len(levels), len(levels[0].depths) + 1)
    if any(len(level.depths) != len(levels[0].depths) for level in levels):
        raise _unknown_shape(header, "its levels have different numbers of layers")
    mid_depth = _depth(header, UNET_PREFIX + "middle_block.1.")
    if mid_depth and levels[-1].depths[0] not in (0, mid_depth):
        raise _unknown_shape(header, "the depths of its middle block and last level differ")
    first_depth = next((depth for level in levels for depth in level.depths if depth), None)
    if first_depth is None:
        raise _unknown_shape(header, "its UNet has no attention")
    config: dict[str, Any] = {
        "in_channels": _shape(header, UNET_PREFIX + "input_blocks.0.0.weight")[1],
        "out_channels": _shape(header, UNET_PREFIX + "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0].depths),
        "down_block_types": [level.block_type("Down") for level in levels],
        "up_block_types": [level.block_type("Up") for level in ups],
        "attention_head_dim": [family.head_count(width) for width in channels],
        "cross_attention_dim": _context_width(header),
        "use_linear_projection": (
            len(_shape(header, _first(header, UNET_PREFIX, ".1.proj_in.weight"))) == 2
        ),
        "norm_num_groups": normalisation_groups(channels),
        "upcast_attention": family.upcast_attention,
        "sample_size": family.side // family.pixels_per_latent,
    }
    config |= _transformer_depths(levels, ups, mid_depth)
    if family.size_conditioned:
        size_width, remainder = divmod(
            _shape(header, UNET_PREFIX + "label_emb.0.0.weight")[1] - pooled_width, SIZE_NUMBERS
        )
        if remainder or size_width < 1:
            raise _unknown_shape(header, "its size conditioning does not fit its text encoder")
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size_width,
            "projection_class_embeddings_input_dim": pooled_width + SIZE_NUMBERS * size_width,
        }
    return config


class LatentSpace(Protocol):
    """What a family says of its VAE."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def latent_scale(self) -> float: ...

    @property
    def side(self) -> int: ...


def vae_config(header: Header, family: LatentSpace, *, prefix: str = VAE_PREFIX) -> dict[str, Any]:
    """Configuration of `AutoencoderKL`, from LDM's or diffusers' names after `prefix`."""
    diffusers_names = f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight" in header.tensors
    block = "encoder.down.{level}.block.{layer}."
    if diffusers_names:
        block = "encoder.down_blocks.{level}.resnets.{layer}."
    level_count = _count(
        lambda level: f"{prefix}{block.format(level=level, layer=0)}conv2.weight" in header.tensors
    )
    layer_count = _count(
        lambda layer: f"{prefix}{block.format(level=0, layer=layer)}conv2.weight" in header.tensors
    )
    if not level_count:
        raise CheckpointError(
            "the VAE in {path} is of an unknown kind",
            hint="Choose a VAE made for the checkpoint.",
            path=header.path,
        )
    channels = [
        _shape(header, f"{prefix}{block.format(level=level, layer=0)}conv2.weight")[0]
        for level in range(level_count)
    ]
    latents = _shape(header, f"{prefix}decoder.conv_in.weight")[1]
    if latents != family.latent_channels:
        raise CheckpointError(
            "the VAE in {path} has {count} latent channels instead of {wanted}",
            hint=(
                "4 channels belong to SD1, SD2 and SDXL, 16 to FLUX.1 and SD3. Choose a VAE made"
                " for the checkpoint."
            ),
            path=header.path,
            count=latents,
            wanted=family.latent_channels,
        )
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latents,
        "block_out_channels": channels,
        "layers_per_block": layer_count,
        "down_block_types": ["DownEncoderBlock2D"] * level_count,
        "up_block_types": ["UpDecoderBlock2D"] * level_count,
        "norm_num_groups": normalisation_groups(channels),
        "scaling_factor": family.latent_scale,
        "sample_size": family.side,
    }


def text_encoder_config(
    header: Header, layout: TextEncoderLayout, *, last_layer_unused: bool
) -> dict[str, Any]:
    """Configuration of `CLIPTextModel` (clip) or `CLIPTextModelWithProjection` (open_clip with
    `text_projection`).
    """
    clip, prefix = layout.style == "clip", layout.prefix
    layers = prefix + ("encoder.layers." if clip else "transformer.resblocks.")
    vocabulary, width = _shape(
        header, prefix + ("embeddings.token_embedding.weight" if clip else "token_embedding.weight")
    )[:2]
    if vocabulary < VOCABULARY:
        hint = "Choose a checkpoint with the usual CLIP text encoder."
        raise CheckpointError(
            "the text encoder in {path} knows {count} tokens instead of 49408",
            hint=hint,
            path=header.path,
            count=vocabulary,
        )
    layer_count = _count(
        lambda layer: (
            f"{layers}{layer}.{'layer_norm1' if clip else 'ln_1'}.weight" in header.tensors
        )
    )
    projected = not clip and prefix + "text_projection" in header.tensors
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(
            header, f"{layers}0.{'mlp.fc1' if clip else 'mlp.c_fc'}.weight"
        )[0],
        "num_hidden_layers": layer_count - 1 if last_layer_unused else layer_count,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": _shape(
            header,
            prefix + ("embeddings.position_embedding.weight" if clip else "positional_embedding"),
        )[0],
        "hidden_act": "quick_gelu" if clip else "gelu",
        "projection_dim": _shape(header, prefix + "text_projection")[1] if projected else width,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407 if clip else 0,
    }


def normalisation_groups(channels: Sequence[int]) -> int:
    """32, or the largest smaller power of two that divides all channel counts."""
    return gcd(32, *channels)


class _Level:
    """A resolution of the UNet: its channels, and per layer the number of transformer blocks (0: no
    attention).
    """

    def __init__(self, channels: int, depths: list[int]) -> None:
        self.channels = channels
        self.depths = depths

    def block_type(self, direction: str) -> str:
        return f"CrossAttn{direction}Block2D" if any(self.depths) else f"{direction}Block2D"


def _down_levels(header: Header) -> list[_Level]:
    """The levels of the input blocks; a downsampler ends a level."""
    levels, channels, depths = [], 0, list[int]()
    block_count = _count(
        lambda block: any(
            f"{UNET_PREFIX}input_blocks.{block}.0.{end}" in header.tensors
            for end in ("weight", "in_layers.2.weight", "op.weight")
        )
    )
    for block in range(1, block_count):
        prefix = f"{UNET_PREFIX}input_blocks.{block}."
        if prefix + "0.op.weight" in header.tensors:
            levels.append(_Level(channels, depths))
            depths = []
        else:
            channels = _shape(header, prefix + "0.out_layers.3.weight")[0]
            depths.append(_depth(header, prefix + "1."))
    levels.append(_Level(channels, depths))
    if any(not level.depths for level in levels):
        raise _unknown_shape(header, "a level of its UNet has no layers")
    return levels


def _up_levels(header: Header, level_count: int, layer_count: int) -> list[_Level]:
    levels = []
    for level in range(level_count):
        prefixes = [
            f"{UNET_PREFIX}output_blocks.{level * layer_count + layer}."
            for layer in range(layer_count)
        ]
        levels.append(
            _Level(
                _shape(header, prefixes[0] + "0.out_layers.3.weight")[0],
                [_depth(header, prefix + "1.") for prefix in prefixes],
            )
        )
    return levels


def _transformer_depths(levels: list[_Level], ups: list[_Level], mid_depth: int) -> dict[str, Any]:
    """Depths as one number per level, or per layer for a distilled UNet (SSD-1B)."""
    down = [_alike(level.depths) for level in levels]
    up = [_alike(level.depths) for level in ups]
    config: dict[str, Any] = {"transformer_layers_per_block": down}
    if up != down[::-1] or any(isinstance(depth, list) for depth in down):
        config["reverse_transformer_layers_per_block"] = up
    if not mid_depth:
        config["mid_block_type"] = "UNetMidBlock2D"
    elif not any(levels[-1].depths):
        # without attention in the last level, its number is the middle block's
        down[-1] = mid_depth
    return config


def _alike(depths: list[int]) -> int | list[int]:
    return (depths[0] or 1) if len(set(depths)) == 1 else depths


def _depth(header: Header, prefix: str) -> int:
    """Number of transformer blocks at `prefix`."""
    return _count(
        lambda index: f"{prefix}transformer_blocks.{index}.norm1.weight" in header.tensors
    )


def _context_width(header: Header) -> int:
    return _shape(header, _first(header, UNET_PREFIX, ".transformer_blocks.0.attn2.to_k.weight"))[1]


def _count(exists: Any) -> int:
    number = 0
    while exists(number):
        number += 1
    return number


def _first(header: Header, start: str, end: str) -> str:
    found = next(
        (name for name in header.tensors if name.startswith(start) and name.endswith(end)), None
    )
    if found is None:
        raise _missing(header, f"{start}*{end}")
    return found


def _shape(header: Header, name: str) -> tuple[int, ...]:
    """The shape of a required weight, with at least two dimensions, none of them 0."""
    shape = header.shape(name)
    if shape is None:
        raise _missing(header, name)
    if len(shape) < 2 or 0 in shape:
        raise _unknown_shape(header, f"the shape of {name} is {list(shape)}")
    return shape


def _missing(header: Header, name: str) -> CheckpointError:
    return CheckpointError(
        "{path} has no weight {name}",
        hint=(
            "The file is incomplete, or of a kind that cannot be trained. Choose another"
            " checkpoint."
        ),
        path=header.path,
        name=name,
    )


def _unknown_shape(header: Header, reason: str) -> CheckpointError:
    return CheckpointError(
        "{path} is built in a way that is not supported: {reason}",
        hint="Choose another checkpoint.",
        path=header.path,
        reason=reason,
    )
