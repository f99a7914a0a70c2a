"""Maps tensor names of diffusers and transformers models to those of a single-file checkpoint, for
loading and writing.

A checkpoint (the LDM format of SD1 and SD2, the SGM format of SDXL) uses CompVis' and Stability's
names. For example:

    stored_in_unet("down_blocks.0.resnets.0.conv1.weight", unet_modules(config))
        -> Stored("model.diffusion_model.input_blocks.1.0.in_layers.2.weight")

Inside attention blocks the names are equal, so the maps are of module names, only as deep as the
two differ. `config` is a UNet's or VAE's configuration (architecture.py makes one; `model.config`
is one). Without torch.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
VAE_ATTENTION_ALIASES: tuple[Mapping[str, str], ...] = (
    VAE_ATTENTION,
    {"group_norm": "norm"},
    {},
    {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
)
"""diffusers' names inside a VAE's attention -> those of CompVis, of files that mix both, of
diffusers, and of diffusers before 0.17.
"""
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPEN_CLIP_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}

Form = Literal["same", "transposed", "1x1 convolution", "halves swapped"]


@dataclass(frozen=True)
class Stored:
    """A model's tensor in the file."""

    name: str
    third: int | None = None
    """OpenCLIP stores query, key and value in one tensor: which third of its rows."""
    form: Form = "same"
    """transposed: the file has the transpose. 1x1 convolution: the file has (out, in, 1, 1) for a
    Linear's (out, in). halves swapped: the file has the second half of the rows first.
    """
    rows: tuple[int, int] | None = None
    """First and number of the rows, where the file has several layers in one."""


@dataclass(frozen=True)
class TextEncoderLayout:
    """A text encoder's position and naming in a file."""

    prefix: str
    """clip: in place of `text_model.`. open_clip: before OpenCLIP's names."""
    style: Literal["clip", "open_clip"]


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """A UNet's module names: diffusers' -> the checkpoint's."""
    return dict(_unet_pairs(config))


def vae_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """A VAE's module names: diffusers' -> the checkpoint's."""
    return dict(_vae_pairs(config))


def rename(name: str, modules: Mapping[str, str], separator: str = ".") -> str:
    """A module's or tensor's name with its longest known prefix replaced. Raises KeyError if none
    is known.
    """
    parts = name.split(separator)
    for count in range(len(parts), 0, -1):
        renamed = modules.get(separator.join(parts[:count]))
        if renamed is not None:
            return separator.join([renamed, *parts[count:]])
    raise KeyError(name)


def flat(modules: Mapping[str, str]) -> dict[str, str]:
    """The same names with underscores for dots, as in LoRA files."""
    return {ours.replace(".", "_"): theirs.replace(".", "_") for ours, theirs in modules.items()}


def native_flat_path(path: str, flat_modules: Mapping[str, str]) -> str:
    """diffusers' flat path -> the checkpoint's; other paths are returned unchanged. `flat_modules`
    is from `flat`.
    """
    try:
        return rename(path, flat_modules, "_")
    except KeyError:
        return path


def stored_in_unet(name: str, modules: Mapping[str, str]) -> Stored:
    """The position of a `UNet2DConditionModel` tensor; `modules` is from `unet_modules`."""
    return Stored(UNET_PREFIX + rename(name, modules))


def stored_in_vae(
    name: str,
    modules: Mapping[str, str],
    *,
    prefix: str = VAE_PREFIX,
    tensor_names: Container[str] = (),
) -> Stored:
    """The position of an `AutoencoderKL` tensor; `modules` is from `vae_modules`.

    tensor_names: the file's, of which the first known alias is used: CompVis' or diffusers' layers,
    four variants inside attention; by default the WebUI's names.
    """
    linear = ".attentions." in name and name.endswith(".weight") and ".group_norm." not in name
    names = [prefix + other for other in _vae_names(name, modules)]
    # for a missing tensor, the name consistent with the file's other layers
    usual = (
        prefix + name
        if prefix + "encoder.down_blocks.0.resnets.0.conv1.weight" in tensor_names
        else names[0]
    )
    return Stored(
        next((other for other in names if other in tensor_names), usual),
        form="1x1 convolution" if linear else "same",
    )


def _vae_names(name: str, modules: Mapping[str, str]) -> Iterator[str]:
    block, attention, inside = name.partition(".attentions.0.")
    if not attention:
        yield from (rename(name, modules), name)
        return
    layer, _, kind = inside.rpartition(".")
    for outside in (block.replace("mid_block", "mid") + ".attn_1.", block + attention):
        yield from (
            f"{outside}{aliases.get(layer, layer)}.{kind}" for aliases in VAE_ATTENTION_ALIASES
        )


def stored_in_text_encoder(name: str, layout: TextEncoderLayout) -> Stored:
    """The position of a `CLIPTextModel` or `CLIPTextModelWithProjection` tensor (transformers
    4).
    """
    if layout.style == "clip":
        return Stored(layout.prefix + name.removeprefix("text_model."))
    if name == "text_projection.weight":
        return Stored(layout.prefix + "text_projection", form="transposed")
    if name in OPEN_CLIP_OUTSIDE:
        return Stored(layout.prefix + OPEN_CLIP_OUTSIDE[name])
    layer, _, inside = name.removeprefix("text_model.encoder.layers.").partition(".")
    block = f"{layout.prefix}transformer.resblocks.{layer}."
    for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
        if inside.startswith(f"self_attn.{projection}."):
            return Stored(f"{block}attn.in_proj_{inside.rpartition('.')[2]}", third=third)
    return Stored(block + rename(inside, OPEN_CLIP_LAYER))


def _inside(ours: str, theirs: str, table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in table.items())


def _unet_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """LDM numbers input and output blocks consecutively; diffusers groups them by level."""
    yield from {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items()
    layer_count, last = int(config["layers_per_block"]), len(config["block_out_channels"]) - 1
    block = 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layer_count):
            yield from _inside(
                f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0", RESNET
            )
            if "CrossAttn" in kind:
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{block}.1"
            block += 1
        if level < last:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
            block += 1
    yield from _inside("mid_block.resnets.0", "middle_block.0", RESNET)
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _inside("mid_block.resnets.1", "middle_block.2", RESNET)
    block = 0
    for level, kind in enumerate(config["up_block_types"]):
        for layer in range(layer_count + 1):
            yield from _inside(
                f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0", RESNET
            )
            if "CrossAttn" in kind:
                yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{block}.1"
            if level < last and layer == layer_count:
                yield (
                    f"up_blocks.{level}.upsamplers.0.conv",
                    f"output_blocks.{block}.{2 if 'CrossAttn' in kind else 1}.conv",
                )
            block += 1


def _vae_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """LDM numbers the decoder's levels from the finest, diffusers from the coarsest."""
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    last, layer_count = len(config["block_out_channels"]) - 1, int(config["layers_per_block"])
    for half in ("encoder", "decoder"):
        yield from ((f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        yield from _inside(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", VAE_RESNET)
        yield from _inside(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        yield from _inside(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", VAE_RESNET)
    for level in range(last + 1):
        for layer in range(layer_count):
            yield from _inside(
                f"encoder.down_blocks.{level}.resnets.{layer}",
                f"encoder.down.{level}.block.{layer}",
                VAE_RESNET,
            )
        for layer in range(layer_count + 1):
            yield from _inside(
                f"decoder.up_blocks.{level}.resnets.{layer}",
                f"decoder.up.{last - level}.block.{layer}",
                VAE_RESNET,
            )
        yield (
            f"encoder.down_blocks.{level}.downsamplers.0.conv",
            f"encoder.down.{level}.downsample.conv",
        )
        yield (
            f"decoder.up_blocks.{level}.upsamplers.0.conv",
            f"decoder.up.{last - level}.upsample.conv",
        )
