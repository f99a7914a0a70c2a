"""Anima: a Cosmos-Predict2 transformer (arXiv 2501.03575) for images, by flow matching.

    part            file                                    what it gives
    denoiser        the checkpoint, `net.`                  the flow, in 16 latent channels
    text encoder    Qwen3-0.6B, a file of its own           the last hidden states
    text adapter    the checkpoint, `net.llm_adapter.`      (B, up to 512, 1024): T5's token ids
                                                            attend to those states
    VAE             Qwen-Image's (Wan 2.1's)                latents, normalised per channel

As published, tensors begin with `net.`; WebUIs also read `model.diffusion_model.` and no prefix.
LoRA files use the checkpoint's names: hosts know no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint.detect import (
    Detected,
    Sidecar,
    stated_side,
)
from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import (
    Component,
    FlowSchedule,
    PartFile,
    PartKind,
    Parts,
    PredictionType,
    Schedule,
    TokenizerOpener,
)
from lora_trainer.errors import CheckpointError
from lora_trainer.families import qwen3
from lora_trainer.families.base import Shape, TextStates
from lora_trainer.families.tokenizer_kinds import QWEN3, T5, T5_END
from lora_trainer.families.transformer import (
    NativeLayer,
    Transformer,
    count_blocks,
    refuse_quantised,
    shape_of,
)

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.load import Checkpoint

PREFIXES = ("net.", "model.diffusion_model.", "")
ADAPTER = "llm_adapter."
LATENT_CHANNELS = 16
PATCH = 4
"""Latent pixels of a token: 2 x 2."""
BLOCKS = "blocks.{i}.cross_attn.q_proj.weight"
"""A tensor of each block, of the transformer and of the text adapter."""
LONGEST = 512
"""T5's token ids of a caption, with the one that ends it."""
HOST_SHIFT = 3.0
"""The shift with which hosts sample (ComfyUI, Forge Neo); training uses 1."""

OUTSIDE = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
"""diffusers' names of modules -> the checkpoint's."""
ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    **{
        f"norm{number}.linear_{layer}": f"adaln_modulation_{name}.{layer}"
        for number, name in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp"))
        for layer in (1, 2)
    },
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
"""The same inside `transformer_blocks.N.`, the checkpoint's `blocks.N.`."""
MARKS = ("blocks.0.mlp.layer1.weight", ADAPTER + "blocks.0.cross_attn.q_proj.weight")
"""Tensors that every file has."""

VAE_OUTSIDE = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    **{
        f"{side}.{ours}": f"{side}.{theirs}"
        for side in ("encoder", "decoder")
        for ours, theirs in (
            ("conv_in", "conv1"),
            ("norm_out", "head.0"),
            ("conv_out", "head.2"),
            ("mid_block.resnets.0", "middle.0"),
            ("mid_block.attentions.0", "middle.1"),
            ("mid_block.resnets.1", "middle.2"),
        )
    },
}
VAE_RESNET = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
VAE_UP = 4
"""Modules of a level of the decoder: three residual blocks and the upsampler."""


class _Anima(Transformer):
    id = "anima"
    name = "Anima"
    sd_version = "anima"
    packages = "newer"
    latent_channels = LATENT_CHANNELS
    side = 1024
    side_multiple = 16
    usual_guidance = 4.5
    unet_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    caption_bytes = LONGEST * 1024 * 4
    caption_tokens = LONGEST - 1
    lora_prefixes: Mapping[str, str] = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te_",
        "text_encoder_2": "lora_unet_llm_adapter_",
    }
    spec_implementation = "https://huggingface.co/circlestone-labs/Anima"

    # --- detection --------------------------------------------------------------------------------

    def layout(self, header: Header) -> tuple[str, bool] | None:
        """A Cosmos transformer without a text adapter is another model."""
        for prefix in PREFIXES:
            if all(prefix + mark in header.tensors for mark in MARKS):
                return prefix, True
        return None

    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        found = self.layout(header)
        if found is None:
            return None
        prefix, _ = found
        refuse_quantised(header, prefix)
        config = transformer_config(header, prefix)
        if config["in_channels"] != LATENT_CHANNELS + 1:
            raise CheckpointError(
                "the transformer in {path} has {count} input channels instead of {wanted}",
                hint="It is made for other inputs than text. Choose the text-to-image model.",
                path=header.path,
                count=config["in_channels"],
                wanted=LATENT_CHANNELS + 1,
            )
        source = header.tensors[prefix + ADAPTER + "blocks.0.cross_attn.k_proj.weight"].shape[1]
        return Detected(
            family=self,
            has_vae=False,
            resolution=stated_side(header.metadata, 2 * self.pixels_per_latent),
            widths={"qwen3": source, "vae": LATENT_CHANNELS},
        )

    # --- opening and loading ----------------------------------------------------------------------

    def denoiser_config(self, header: Header, prefix: str, *, native: bool) -> dict[str, Any]:
        return transformer_config(header, prefix)

    def build_denoiser(self, config: Mapping[str, Any]) -> Any:
        from lora_trainer.families.components.anima import build_transformer

        return build_transformer(dict(config))

    def native_layers(self, config: Mapping[str, Any]) -> Mapping[str, NativeLayer]:
        layers = {ours: NativeLayer(theirs) for ours, theirs in OUTSIDE.items()}
        for block in range(config["num_layers"]):
            for ours, theirs in BLOCK.items():
                layers[f"transformer_blocks.{block}.{ours}"] = NativeLayer(
                    f"blocks.{block}.{theirs}"
                )
        return layers

    def is_denoisers(self, name: str) -> bool:
        """Not the text adapter, nor constants and counters of the training."""
        beside = (ADAPTER, "text_encoders.", "vae.", "first_stage_model.", "pos_embedder.")
        return not name.startswith((*beside, "accum_")) and not name.endswith("._extra_state")

    part_kinds = (
        PartKind(
            id="qwen3",
            part="text encoder",
            name="Qwen3-0.6B",
            file="qwen_3_06b_base.safetensors",
            size="1.2 GB",
            source="circlestone-labs/Anima",
            width=qwen3.width,
            prefixes=qwen3.PREFIXES,
            inside=("text_encoders.qwen3_06b.transformer.model.",),
        ),
        PartKind(
            id="llm_adapter",
            part="text encoder",
            name="llm_adapter",
            file="anima-base-v1.0.safetensors",
            size="4.2 GB",
            source="circlestone-labs/Anima",
            width=lambda header, prefix: _adapter_width(header, prefix),
            prefixes=(),
            inside=tuple(prefix + ADAPTER for prefix in PREFIXES),
        ),
        PartKind(
            id="vae",
            part="VAE",
            name="Qwen-Image VAE",
            file="qwen_image_vae.safetensors",
            size="0.25 GB",
            source="circlestone-labs/Anima",
            width=lambda header, prefix: _vae_width(header, prefix),
            inside=("vae.", "first_stage_model."),
        ),
    )

    def part_component(self, found: PartFile) -> Component:
        from lora_trainer.checkpoint.tensors import tensors_of
        from lora_trainer.families.components import anima, qwen_image

        if found.kind.id == "qwen3":
            return qwen3.component(found)
        header, prefix = found.header, found.prefix
        tensors = tensors_of(found.headers)
        if found.kind.id == "vae":
            is_native = prefix + "conv2.weight" in header.tensors
            return Component(
                part="VAE",
                config=_vae_config(header, prefix),
                tensors=tensors,
                place=lambda name: Stored(prefix + (vae_name(name) if is_native else name)),
                build=lambda config: qwen_image.build_vae(dict(config)),
                prefix=prefix,
            )
        return Component(
            part="text encoder",
            config=_adapter_config(header, prefix),
            tensors=tensors,
            place=lambda name: Stored(prefix + name),
            build=lambda config: anima.build_conditioner(dict(config)),
            buffers=anima.conditioner_buffers,
            prefix=prefix,
        )

    def tokenizers_from(self, open_kind: TokenizerOpener) -> tuple[Any, ...]:
        return open_kind(QWEN3), open_kind(T5)

    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        return FlowSchedule()

    # --- encoding ---------------------------------------------------------------------------------

    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        _, t5 = tokenizers
        return len(t5.encode(caption, add_special_tokens=False).ids)

    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        """One caption at a time, so that none is padded: hidden (B, longest, 1024)."""
        from lora_trainer.families.components.anima import conditioned
        from lora_trainer.families.components.qwen3 import last_hidden_state

        (encoder, conditioner), (qwen3, t5) = parts.text_encoders, parts.tokenizers
        end = t5.token_to_id(T5_END)
        rows = []
        for caption in captions:
            words = qwen3.encode(caption, add_special_tokens=False).ids[:LONGEST]
            ids = t5.encode(caption, add_special_tokens=False).ids[: LONGEST - 1]
            states = conditioned(conditioner, last_hidden_state(encoder, words), [*ids, end])
            rows.append(TextStates(states))
        return self.join(rows, rows[0])

    def join(self, rows: Sequence[TextStates], empty: TextStates) -> TextStates:
        """Shorter rows end in zeros, as the model sees them."""
        import torch
        from torch.nn.functional import pad

        longest = max(row.hidden.shape[1] for row in rows)
        padded = [pad(row.hidden, (0, 0, 0, longest - row.hidden.shape[1])) for row in rows]
        return TextStates(torch.cat(padded))

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        from lora_trainer.families.components.qwen_image import encode_image

        return encode_image(vae, pixels)

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        from lora_trainer.families.components.qwen_image import decode_latents

        return decode_latents(vae, latents)

    def tile(self, vae: Any) -> None:
        from lora_trainer.families.components.qwen_image import tile

        tile(vae)

    # --- noise and prediction ---------------------------------------------------------------------

    def sampling_schedule(self, trained: FlowSchedule) -> FlowSchedule:
        return replace(trained, shift=HOST_SHIFT)

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        from lora_trainer.families.components.anima import predicted_flow

        return predicted_flow(model, noisy, times, text.hidden)

    # --- the LoRA ---------------------------------------------------------------------------------

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "anima"

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return "anima"


ANIMA = _Anima()
FAMILIES = (ANIMA,)


# --- names ---------------------------------------------------------------------------------------


def vae_name(name: str) -> str:
    """diffusers' name of a tensor of the VAE -> that of the published file."""
    found = next((one for one in VAE_OUTSIDE if name.startswith(one + ".")), None)
    if found is not None:
        name = VAE_OUTSIDE[found] + name.removeprefix(found)
    name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
    level = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", name)
    if level is not None:
        inside = VAE_UP - 1 if level[2] == "upsamplers" else int(level[3])
        index = int(level[1]) * VAE_UP + inside
        name = f"decoder.upsamples.{index}.{name.removeprefix(level[0])}"
    residual = re.search(r"(?<=\d\.)(norm1|conv1|norm2|conv2|conv_shortcut)(?=\.)", name)
    if residual is not None:
        name = name[: residual.start()] + VAE_RESNET[residual[1]] + name[residual.end() :]
    return name


# --- files ----------------------------------------------------------------------------------------


def transformer_config(header: Header, prefix: str) -> dict[str, Any]:
    """The configuration of diffusers' CosmosTransformer3DModel. Its own channel for the mask of
    padding is off, because it needs torchvision, and there is one input channel more instead.
    """

    def shape(name: str) -> Shape:
        return shape_of(header, prefix + name)

    block = "blocks.0."
    width, patch = shape("x_embedder.proj.1.weight")
    (head,) = shape(block + "self_attn.q_norm.weight")
    return {
        "in_channels": patch // PATCH,
        "out_channels": shape("final_layer.linear.weight")[0] // PATCH,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": count_blocks(header, prefix + BLOCKS),
        "mlp_ratio": shape(block + "mlp.layer1.weight")[0] / width,
        "text_embed_dim": shape(block + "cross_attn.k_proj.weight")[1],
        "adaln_lora_dim": shape(block + "adaln_modulation_self_attn.1.weight")[0],
        # of Cosmos-Predict2's text-to-image models, which no tensor tells
        "rope_scale": (1.0, 4.0, 4.0),
        "concat_padding_mask": False,
        "extra_pos_embed_type": None,
    }


def _adapter_width(header: Header, prefix: str) -> int | None:
    found = header.shape(prefix + "out_proj.weight")
    return None if found is None or prefix + "embed.weight" not in header.tensors else found[0]


def _adapter_config(header: Header, prefix: str) -> dict[str, Any]:
    vocabulary, target = shape_of(header, prefix + "embed.weight")
    width = shape_of(header, prefix + "blocks.0.self_attn.q_proj.weight")[0]
    (head,) = shape_of(header, prefix + "blocks.0.self_attn.q_norm.weight")
    return {
        "source_dim": shape_of(header, prefix + "blocks.0.cross_attn.k_proj.weight")[1],
        "target_dim": target,
        "model_dim": width,
        "num_layers": count_blocks(header, prefix + BLOCKS),
        "num_attention_heads": width // head,
        "mlp_ratio": shape_of(header, prefix + "blocks.0.mlp.0.weight")[0] / width,
        "target_vocab_size": vocabulary,
        # the zeros that follow are added where the model is called
        "min_sequence_length": 1,
    }


def _vae_width(header: Header, prefix: str) -> int | None:
    """Latent channels, of the published names or diffusers'."""
    for mark, name in (
        ("decoder.middle.0.residual.0.gamma", "conv2.weight"),
        ("decoder.mid_block.resnets.0.norm1.gamma", "post_quant_conv.weight"),
    ):
        found = header.shape(prefix + name)
        if prefix + mark in header.tensors and found:
            return found[0]
    return None


def _vae_config(header: Header, prefix: str) -> dict[str, Any]:
    first = "encoder.conv1.weight"
    if prefix + first not in header.tensors:
        first = "encoder.conv_in.weight"
    return {"base_dim": shape_of(header, prefix + first)[0]}
