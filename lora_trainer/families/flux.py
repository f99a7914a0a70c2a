"""FLUX.1: a transformer of double and single blocks on 2x2 patches of sixteen latent channels, told
by T5-XXL's states and CLIP-L's pooled state (https://github.com/black-forest-labs/flux).

    part             checkpoint file                             LoRA file
    unet             double_blocks., single_blocks. ...          lora_unet_ + the checkpoint's path
    text_encoder     CLIP-L, a file of its own                   never trained
    text_encoder_2   T5-XXL, a file of its own
    vae              a file of its own

The checkpoint has query, key and value in one layer, in single blocks with the first layer of the
MLP; the loaded model has them apart. dev has a layer for the strength of its distilled guidance;
schnell has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint.detect import (
    Detected,
    Sidecar,
    stated_side,
    usual_type,
)
from lora_trainer.checkpoint.folder import Folder, read_component, read_json
from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.part_files import is_quantised
from lora_trainer.checkpoint.parts import (
    Component,
    Components,
    Distilled,
    FlowSchedule,
    PartFile,
    PartKind,
    Parts,
    PredictionType,
    Schedule,
    TokenizerOpener,
    TokenShift,
    TrainingAdapterKind,
)
from lora_trainer.errors import CheckpointError
from lora_trainer.families.base import Rows, TextStates
from lora_trainer.families.tokenizer_kinds import T5
from lora_trainer.families.transformer import (
    NativeLayer,
    Transformer,
    count_blocks,
    quantised,
    refuse_quantised,
)

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.load import Checkpoint

TEXT_LENGTH = 512
"""T5 tokens of every text, padded."""
TRAINED_GUIDANCE = 1.0
"""The guidance that dev is told while it learns; with a higher one it would learn to undo it."""
DISTILLED_GUIDANCE = 3.5
"""That of samples, as WebUIs have it."""
LATENT_SCALE, LATENT_SHIFT = 0.3611, 0.1159
OF_IMAGE, OF_TEXT = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
IN_BOTH = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
"""Inside a double block: diffusers' layers -> the checkpoint's."""
IN_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
IMAGE_CHANNELS, FILL_CHANNELS = 64, 384
"""Sixteen latent channels in patches of four; with mask and image."""
TRAIN_ON_DEV = "Train on FLUX.1 dev: the LoRA works there, and mostly here too."


def _clip_width(header: Header, prefix: str) -> int | None:
    shape = header.shape(prefix + "text_model.encoder.layers.0.layer_norm1.bias")
    return shape[0] if shape else None


def _t5_width(header: Header, prefix: str) -> int | None:
    inside = prefix + "encoder.block.{}.layer.0.SelfAttention."
    # UMT5 has this bias in every block
    if inside.format(1) + "relative_attention_bias.weight" in header.tensors:
        return None
    shape = header.shape(inside.format(0) + "k.weight")
    return shape[1] if shape and len(shape) > 1 else None


def vae_width(header: Header, prefix: str) -> int | None:
    """Latent channels of a VAE under CompVis' or diffusers' names; None: it is none, or half."""
    shape = header.shape(prefix + "decoder.conv_in.weight")
    is_whole = prefix + "encoder.conv_in.weight" in header.tensors
    return shape[1] if shape and len(shape) > 1 and is_whole else None


CLIP_L = PartKind(
    id="clip_l",
    part="text encoder",
    name="CLIP-L",
    file="clip_l.safetensors",
    size="0.25 GB",
    source="comfyanonymous/flux_text_encoders on Hugging Face",
    width=_clip_width,
    inside=("text_encoders.clip_l.transformer.", "text_encoders.clip_l."),
)
T5_XXL = PartKind(
    id="t5xxl",
    part="text encoder",
    name="T5-XXL",
    file="t5xxl_fp16.safetensors",
    size="9.8 GB",
    source="comfyanonymous/flux_text_encoders on Hugging Face",
    width=_t5_width,
    inside=("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."),
)
VAE = PartKind(
    id="ae",
    part="VAE",
    name="VAE",
    file="ae.safetensors",
    size="0.34 GB",
    source="Comfy-Org/Lumina_Image_2.0_Repackaged on Hugging Face",
    width=vae_width,
    prefixes=("", "first_stage_model."),
    inside=("vae.", "first_stage_model."),
)


class _Flux(Transformer):
    id = "flux"
    name = "FLUX.1"
    sd_version = "Flux"
    latent_channels = 16
    latent_scale = LATENT_SCALE
    latent_shift = LATENT_SHIFT
    side = 1024
    side_multiple = 16
    text_tensors = ("hidden", "pooled")
    lora_prefixes: Mapping[str, str] = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_",
        "text_encoder_2": "lora_te3_",
    }
    caption_bytes = TEXT_LENGTH * 4096 * 4
    caption_tokens = TEXT_LENGTH
    unet_targets = (
        *(f"attn.{name}" for name in (*OF_IMAGE, "to_out.0", *OF_TEXT, "to_add_out")),
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "proj_mlp",
        "single_transformer_blocks.*.proj_out",
    )
    part_kinds = (CLIP_L, T5_XXL, VAE)
    # T5
    text_needs_range = True
    has_distilled_guidance = True
    usual_guidance = DISTILLED_GUIDANCE
    # schnell
    distilled = Distilled(
        step_count=4,
        adapter=TrainingAdapterKind(
            file="FLUX.1-schnell-training-adapter/pytorch_lora_weights.safetensors",
            size="0.45 GB",
            source="ostris/FLUX.1-schnell-training-adapter on Hugging Face",
            name=re.compile(r"schnell[-_ ]?training[-_ ]?adapter"),
            instead="FLUX.1 dev",
        ),
    )
    native_mark = "double_blocks.0.img_attn.qkv.weight"
    diffusers_mark = "single_transformer_blocks.0.attn.to_q.weight"
    spec_implementation = "https://github.com/black-forest-labs/flux"

    # --- detection --------------------------------------------------------------------------------

    def layout(self, header: Header) -> tuple[str, bool] | None:
        """FLUX.2, Chroma and others have blocks of these names, and no layer for CLIP's state;
        HunyuanVideo has one, and refines the text's states.
        """
        found = super().layout(header)
        if found is None:
            return None
        prefix, native = found
        needed = "vector_in.in_layer" if native else "time_text_embed.text_embedder.linear_1"
        if any(name.startswith(f"{prefix}txt_in.individual") for name in header.tensors):
            return None
        return found if f"{prefix}{needed}.weight" in header.tensors else None

    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        found = self.layout(header)
        if found is None:
            return None
        prefix, native = found
        refuse_quantised(header, prefix)
        config = self.denoiser_config(header, prefix, native=native)
        _refuse_kin(header.path, header.metadata, config)
        return replace(
            self._detected(config),
            has_vae=any(vae_width(header, one) for one in VAE.inside),
            resolution=stated_side(header.metadata, self.pixels_per_latent),
        )

    def _detected(self, config: Mapping[str, Any]) -> Detected:
        is_dev = bool(config["guidance_embeds"])
        return Detected(
            family=self,
            has_vae=True,
            variant="dev" if is_dev else "schnell",
            widths={
                CLIP_L.id: config["pooled_projection_dim"],
                T5_XXL.id: config["joint_attention_dim"],
                VAE.id: config["in_channels"] // 4,
            },
            is_distilled=not is_dev,
        )

    def recognise_folder(self, path: Path) -> Folder | None:
        if not (path / "transformer" / "config.json").is_file():
            return None
        config = read_json(path / "transformer" / "config.json")
        if config.get("_class_name") != "FluxTransformer2DModel":
            return None
        config = {**DEFAULTS, **config}
        _refuse_kin(path, read_json(path / "model_index.json"), config)
        denoiser = read_component(path / "transformer")
        weight_type = usual_type(
            info for header in denoiser.headers for info in header.tensors.values()
        )
        scaled = any(is_quantised(header.tensors) for header in denoiser.headers)
        if scaled or weight_type in ("U8", "I8"):
            raise quantised(path, weight_type)
        return Folder(
            detected=self._detected(config),
            unet=denoiser,
            text_encoders=tuple(
                read_component(path / name) for name in ("text_encoder", "text_encoder_2")
            ),
            vae=read_component(path / "vae"),
        )

    # --- opening and loading ----------------------------------------------------------------------

    def denoiser_config(self, header: Header, prefix: str, *, native: bool) -> dict[str, Any]:
        names = NATIVE_MARKS if native else DIFFUSERS_MARKS

        def shape(name: str) -> tuple[int, ...]:
            for one in names[name]:
                found = header.shape(prefix + one)
                if found is not None:
                    return found
            raise CheckpointError(
                "{path} is an incomplete FLUX.1 model: {name} is missing",
                hint="Download the file again, or choose another checkpoint.",
                path=header.path,
                name=prefix + names[name][0],
            )

        width, inputs = shape("image")
        (head_width,) = shape("head")
        guided = any(prefix + one in header.tensors for one in names["guidance"])
        time_share = head_width // 8 // 2 * 2
        return {
            "patch_size": 1,
            "in_channels": inputs,
            "out_channels": shape("out")[0],
            "num_layers": count_blocks(header, prefix + names["double"][0]),
            "num_single_layers": count_blocks(header, prefix + names["single"][0]),
            "attention_head_dim": head_width,
            "num_attention_heads": width // head_width,
            "joint_attention_dim": shape("text")[1],
            "pooled_projection_dim": shape("pooled")[1],
            "guidance_embeds": guided,
            # of 128: 16, 56, 56
            "axes_dims_rope": [time_share, *[(head_width - time_share) // 2] * 2],
        }

    def build_denoiser(self, config: Mapping[str, Any]) -> Any:
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel.from_config(dict(config))

    def native_layers(self, config: Mapping[str, Any]) -> Mapping[str, NativeLayer]:
        return dict(_native_layers({**DEFAULTS, **config}))

    def folder_components(self, folder: Folder) -> Components:
        from lora_trainer.families.components import text_encoders
        from lora_trainer.families.components.ldm import vae_of_folder

        clip, t5 = folder.text_encoders
        assert folder.vae is not None
        return Components(
            unet=self.folder_denoiser(folder),
            text_encoders=(text_encoders.clip_of_folder(clip), text_encoders.t5_of_folder(t5)),
            vae=vae_of_folder(folder.vae),
        )

    def part_component(self, found: PartFile) -> Component:
        from lora_trainer.families.components import text_encoders
        from lora_trainer.families.components.ldm import vae_of_headers

        if found.kind is CLIP_L:
            return text_encoders.clip_of_file(found)
        if found.kind is T5_XXL:
            return text_encoders.t5_of_file(found)
        return vae_of_headers(found.header, found.headers, self, found.prefix)

    def text_encoder_blocks(self, encoder: Any) -> list[tuple[Any, ...]]:
        # CLIP-L is small
        blocks = getattr(getattr(encoder, "encoder", None), "block", ())
        return [(block,) for block in blocks]

    def tokenizers_from(self, open_kind: TokenizerOpener) -> tuple[Any, ...]:
        from lora_trainer.checkpoint.tokenizer import load_tokenizers

        (clip,) = load_tokenizers(["clip"])
        return clip, open_kind(T5)

    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        if checkpoint.detected.variant == "schnell":
            return FlowSchedule()
        return FlowSchedule(by_tokens=TokenShift())

    # --- encoding ---------------------------------------------------------------------------------

    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        return len(tokenizers[1].encode(caption).ids)

    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        from lora_trainer.families.components.text_encoders import clip_pooled, t5_states

        clip, t5 = parts.text_encoders
        clip_tokenizer, t5_tokenizer = parts.tokenizers
        hidden = t5_states(t5, t5_tokenizer, captions, TEXT_LENGTH)
        return TextStates(hidden, clip_pooled(clip, clip_tokenizer, captions))

    # --- noise and prediction ---------------------------------------------------------------------

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        return self.predict_sample(model, noisy, times, text, sizes, TRAINED_GUIDANCE)

    def predict_sample(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        import torch

        from lora_trainer.families.components.patches import packed, positions, unpacked

        assert text.pooled is not None, "FLUX.1's text states have a pooled part"
        dtype, device = next(model.parameters()).dtype, noisy.device
        count, _, height, width = noisy.shape
        predicted = model(
            hidden_states=packed(noisy.to(dtype)),
            # the model multiplies by 1000; not in bfloat16, which has three digits
            timestep=times.expand(count).to(torch.float32),
            guidance=(
                torch.full((count,), guidance, device=device)
                if model.config.guidance_embeds
                else None
            ),
            pooled_projections=text.pooled.to(dtype),
            encoder_hidden_states=text.hidden.to(dtype),
            txt_ids=torch.zeros(text.hidden.shape[1], 3, device=device),
            img_ids=positions(height, width, device),
            return_dict=False,
        )[0]
        return unpacked(predicted, height, width)

    # --- the LoRA ---------------------------------------------------------------------------------

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "flux1"

    def is_named_by(self, version: str) -> bool:
        return version.startswith("flux1")

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return "flux-1-dev"


DEFAULTS: Mapping[str, Any] = {
    "in_channels": IMAGE_CHANNELS,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
}
"""diffusers' own, which a config.json may leave out."""
NATIVE_MARKS: Mapping[str, tuple[str, ...]] = {
    "image": ("img_in.weight",),
    "text": ("txt_in.weight",),
    "pooled": ("vector_in.in_layer.weight",),
    "out": ("final_layer.linear.weight",),
    "head": (
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "double_blocks.0.img_attn.norm.key_norm.weight",
    ),
    "guidance": ("guidance_in.in_layer.weight",),
    "double": ("double_blocks.{i}.img_attn.qkv.weight",),
    "single": ("single_blocks.{i}.linear1.weight",),
}
DIFFUSERS_MARKS: Mapping[str, tuple[str, ...]] = {
    "image": ("x_embedder.weight",),
    "text": ("context_embedder.weight",),
    "pooled": ("time_text_embed.text_embedder.linear_1.weight",),
    "out": ("proj_out.weight",),
    "head": ("transformer_blocks.0.attn.norm_k.weight",),
    "guidance": ("time_text_embed.guidance_embedder.linear_1.weight",),
    "double": ("transformer_blocks.{i}.attn.to_q.weight",),
    "single": ("single_transformer_blocks.{i}.attn.to_q.weight",),
}


NORM_OUT = (
    "norm_out.linear",
    NativeLayer("final_layer.adaLN_modulation.1", halves_swapped=True),
)


def double_block(
    number: int, plain: Mapping[str, str], width: int
) -> Iterator[tuple[str, NativeLayer]]:
    """The layers of a double block, of FLUX.2 too. plain: those that are layers of their own."""
    ours, theirs = f"transformer_blocks.{number}.", f"double_blocks.{number}."
    yield from ((ours + a, NativeLayer(theirs + b)) for a, b in plain.items())
    for a, b in NORMS.items():
        yield ours + a, NativeLayer(theirs + b, weight=("scale", "weight"))
    for layers, fused in ((OF_IMAGE, "img_attn.qkv"), (OF_TEXT, "txt_attn.qkv")):
        for place, name in enumerate(layers):
            rows = Rows(place * width, width, 3 * width)
            yield f"{ours}attn.{name}", NativeLayer(theirs + fused, rows)


def single_block(number: int, plain: Mapping[str, str]) -> Iterator[tuple[str, NativeLayer]]:
    """The same of a single block, but for fused layers."""
    ours, theirs = f"single_transformer_blocks.{number}.", f"single_blocks.{number}."
    yield from ((ours + a, NativeLayer(theirs + b)) for a, b in plain.items())
    for name in ("query", "key"):
        path = f"{theirs}norm.{name}_norm"
        yield f"{ours}attn.norm_{name[0]}", NativeLayer(path, weight=("scale", "weight"))


def _native_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, NativeLayer]]:
    width = config["attention_head_dim"] * config["num_attention_heads"]
    for ours, theirs in OUTSIDE.items():
        if config["guidance_embeds"] or "guidance" not in ours:
            yield ours, NativeLayer(theirs)
    yield NORM_OUT
    for block in range(config["num_layers"]):
        yield from double_block(block, IN_BOTH, width)
    for block in range(config["num_single_layers"]):
        yield from single_block(block, IN_SINGLE)
        ours, theirs = f"single_transformer_blocks.{block}.", f"single_blocks.{block}."
        for number, name in enumerate(OF_IMAGE):
            rows = Rows(number * width, width, 7 * width)
            yield f"{ours}attn.{name}", NativeLayer(theirs + "linear1", rows)
        rows = Rows(3 * width, 4 * width, 7 * width)
        yield ours + "proj_mlp", NativeLayer(theirs + "linear1", rows)


def _refuse_kin(path: Path, stated: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for models of the same blocks that take other inputs."""
    words = [path.name, *(str(value) for key, value in stated.items() if key in STATING)]

    def is_called(pattern: str) -> bool:
        return any(re.search(pattern, word, re.IGNORECASE) for word in words)

    if config["in_channels"] == FILL_CHANNELS or is_called(r"flux.{0,12}fill"):
        raise CheckpointError(
            "{path} is FLUX.1 Fill, which takes a mask and an image besides the latents",
            hint=TRAIN_ON_DEV,
            path=path,
        )
    if config["in_channels"] != IMAGE_CHANNELS:
        raise CheckpointError(
            "{path} is a FLUX.1 of another input (Canny, Depth): {count} channels instead of 64",
            hint=TRAIN_ON_DEV,
            path=path,
            count=config["in_channels"],
        )
    if is_called("kontext"):
        raise CheckpointError(
            "{path} is FLUX.1 Kontext, which edits images and learns from pairs of them",
            hint=TRAIN_ON_DEV,
            path=path,
        )


STATING = ("modelspec.title", "modelspec.architecture", "general.architecture", "_class_name")
"""Metadata that names the model."""
FAMILIES = (_Flux(),)
