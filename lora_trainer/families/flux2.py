"""FLUX.2 klein (https://github.com/black-forest-labs/flux2): a transformer of double and single
blocks on patches of 2 x 2 x 32 latent channels, by flow matching, told by three layers of Qwen3.

    part            checkpoint file                          LoRA file
    unet            double_blocks., single_blocks. ...       lora_unet_ + the checkpoint's path
    text_encoder    Qwen3, 4B or 8B, a file of its own       never trained
    vae             FLUX.2's, a file of its own

The checkpoint has a double block's query, key and value in one layer; the loaded model has them
apart. A single block's, with the first layer of the MLP, are one layer in both. Unlike FLUX.1, all
blocks share the layers of their modulation. klein has no layer for guidance; FLUX.2 dev has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint import architecture, names
from lora_trainer.checkpoint.detect import (
    Detected,
    Sidecar,
    stated_side,
)
from lora_trainer.checkpoint.folder import Folder, read_component, read_json
from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.part_files import joined
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
    TokenShift,
)
from lora_trainer.errors import CheckpointError, Message
from lora_trainer.families import qwen3, tokenizer_kinds
from lora_trainer.families.base import Shape, TextStates
from lora_trainer.families.flux import (
    NORM_OUT,
    OF_IMAGE,
    OF_TEXT,
    double_block,
    single_block,
    vae_width,
)
from lora_trainer.families.tokenizer_kinds import QWEN3_PADDING
from lora_trainer.families.transformer import (
    NativeLayer,
    count_blocks,
    refuse_quantised,
    shape_of,
)

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.load import Checkpoint

TEXT_LENGTH = 512
"""Tokens of every text in its template, padded."""
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
IN_TEMPLATE = 14
"""More tokens than the template has."""
STATES = (9, 18, 27)
"""Layers of Qwen3 whose inputs are the text states."""
ENCODER_LAYERS = STATES[-1] + 1
"""Of 36; the others are not loaded. One more than needed: the last one's states are normalized."""
LARGEST_SMALL, LARGEST = 3072, 4096
"""Widths of klein 4B and 9B; FLUX.2 dev has 6144."""
VAE_CHANNELS = 32

OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
"""diffusers' names of modules -> the checkpoint's."""
IN_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
"""The same inside a double block."""
IN_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}


def _qwen3_width(header: Header, prefix: str) -> int | None:
    last = f"{prefix}layers.{ENCODER_LAYERS - 1}.self_attn.q_norm.weight"
    return qwen3.width(header, prefix) if last in header.tensors else None


def _vae_width(header: Header, prefix: str) -> int | None:
    return vae_width(header, prefix) if prefix + "bn.running_mean" in header.tensors else None


QWEN3_4B = PartKind(
    id="qwen3_4b",
    part="text encoder",
    name="Qwen3-4B",
    file="qwen_3_4b.safetensors",
    size="8.0 GB",
    source="Comfy-Org/flux2-klein-4B on Hugging Face",
    width=_qwen3_width,
    prefixes=qwen3.PREFIXES,
    inside=("text_encoders.qwen3_4b.transformer.model.",),
)
QWEN3_8B = PartKind(
    id="qwen3_8b",
    part="text encoder",
    name="Qwen3-8B",
    file="qwen_3_8b.safetensors",
    size="16.4 GB",
    source="Comfy-Org/flux2-klein-9B on Hugging Face",
    width=_qwen3_width,
    prefixes=qwen3.PREFIXES,
    inside=("text_encoders.qwen3_8b.transformer.model.",),
)
VAE = PartKind(
    id="flux2_vae",
    part="VAE",
    name="FLUX.2's VAE",
    file="flux2-vae.safetensors",
    size="0.34 GB",
    source="Comfy-Org/flux2-dev on Hugging Face",
    width=_vae_width,
    prefixes=("", "first_stage_model."),
    inside=("vae.", "first_stage_model."),
)


@dataclass(frozen=True)
class _VaeSpace:
    """What `vae_config` asks of a family: the VAE's latents, before they are patches."""

    latent_channels: int = VAE_CHANNELS
    latent_scale: float = 1.0
    side: int = 1024


class _Klein(qwen3.ToldByQwen3):
    # Forge Neo's word
    sd_version = "klein"
    packages = "newer"
    latent_channels = 4 * VAE_CHANNELS
    caption_tokens = TEXT_LENGTH - IN_TEMPLATE
    pixels_per_latent = 16
    side = 1024
    side_multiple = 16
    text_needs_range = True
    usual_guidance = 4.0
    distilled = Distilled(step_count=4)
    unet_targets = (
        *(f"attn.{name}" for name in (*OF_IMAGE, "to_out.0", *OF_TEXT, "to_add_out")),
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "ff_context.linear_out",
        "attn.to_qkv_mlp_proj",
        "single_transformer_blocks.*.attn.to_out",
    )
    native_mark = "double_stream_modulation_img.lin.weight"
    diffusers_mark = "double_stream_modulation_img.linear.weight"
    spec_implementation = "https://github.com/black-forest-labs/flux2"

    def __init__(self, size: str, encoder: PartKind, encoder_width: int) -> None:
        self.id = f"klein{size.lower()}"
        self.name = f"FLUX.2 klein {size}"
        self.size = size
        self.encoder = encoder
        if encoder is QWEN3_8B:
            self.tokenizer_kind = tokenizer_kinds.QWEN3_8B
        self.part_kinds = (encoder, VAE)
        self.caption_bytes = TEXT_LENGTH * len(STATES) * encoder_width * 4

    # --- detection --------------------------------------------------------------------------------

    def layout(self, header: Header) -> tuple[str, bool] | None:
        """None for a part of a model, too."""
        found = super().layout(header)
        if found is None:
            return None
        marks = NATIVE_MARKS if found[1] else DIFFUSERS_MARKS
        return found if found[0] + marks["image"][0] in header.tensors else None

    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        found = self.layout(header)
        if found is None:
            return None
        title = f"{header.path.stem} {header.metadata.get('modelspec.title', '')}".lower()
        return self._detected(header, *found, is_distilled="klein" in title and "base" not in title)

    def recognise_folder(self, path: Path) -> Folder | None:
        if not (path / "transformer" / "config.json").is_file():
            return None
        config = read_json(path / "transformer" / "config.json")
        if config.get("_class_name") != "Flux2Transformer2DModel":
            return None
        denoiser = read_component(path / "transformer")
        header = joined(path, denoiser.headers)
        is_distilled = bool(read_json(path / "model_index.json").get("is_distilled"))
        detected = self._detected(header, "", native=False, is_distilled=is_distilled)
        if detected is None:
            return None
        return Folder(
            detected=detected,
            unet=replace(denoiser, config=self.denoiser_config(header, "", native=False)),
            text_encoders=(read_component(path / "text_encoder"),),
            vae=read_component(path / "vae"),
        )

    def _detected(
        self, header: Header, prefix: str, native: bool, is_distilled: bool
    ) -> Detected | None:
        """None: the other size. Raises CheckpointError for FLUX.2 dev and quantised weights."""
        config = self.denoiser_config(header, prefix, native=native)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        if config["guidance_embeds"] or width > LARGEST:
            raise CheckpointError(
                "{path} is FLUX.2 dev, which cannot be trained here",
                hint="Train on FLUX.2 klein base, 4B or 9B.",
                path=header.path,
            )
        if (width > LARGEST_SMALL) != (self.encoder is QWEN3_8B):
            return None
        refuse_quantised(header, prefix)
        distilled = Message(
            "{path} is distilled to four steps: train on FLUX.2 klein base, whose LoRA works on the"
            " distilled model too",
            {"path": header.path.name},
        )
        return Detected(
            family=self,
            has_vae=True,
            resolution=stated_side(header.metadata, self.side_multiple),
            variant="distilled" if is_distilled else "base",
            widths={
                self.encoder.id: config["joint_attention_dim"] // len(STATES),
                VAE.id: VAE_CHANNELS,
            },
            is_distilled=is_distilled,
            notes=(distilled,) if is_distilled else (),
        )

    # --- opening and loading ----------------------------------------------------------------------

    def denoiser_config(self, header: Header, prefix: str, *, native: bool) -> dict[str, Any]:
        marks = NATIVE_MARKS if native else DIFFUSERS_MARKS

        def shape(name: str) -> tuple[int, ...]:
            known = [prefix + one for one in marks[name]]
            return shape_of(header, next((one for one in known if one in header.tensors), known[0]))

        width, channels = shape("image")
        (head,) = shape("head")
        return {
            "in_channels": channels,
            "num_layers": count_blocks(header, prefix + marks["double"][0]),
            "num_single_layers": count_blocks(header, prefix + marks["single"][0]),
            "attention_head_dim": head,
            "num_attention_heads": width // head,
            "joint_attention_dim": shape("text")[1],
            "timestep_guidance_channels": shape("time")[1],
            "mlp_ratio": shape("mlp")[1] / width,
            "axes_dims_rope": [head // 4] * 4,
            "guidance_embeds": prefix + marks["guidance"][0] in header.tensors,
        }

    def build_denoiser(self, config: Mapping[str, Any]) -> Any:
        from lora_trainer.families.components.flux2 import build_transformer

        return build_transformer(dict(config))

    def native_layers(self, config: Mapping[str, Any]) -> Mapping[str, NativeLayer]:
        return dict(_native_layers(config))

    def is_denoisers(self, name: str) -> bool:
        return not name.startswith(("text_encoders.", "vae.", "first_stage_model."))

    def folder_components(self, folder: Folder) -> Components:
        (encoder,), vae = folder.text_encoders, folder.vae
        assert vae is not None
        parts = []
        for kind, component in ((self.encoder, encoder), (VAE, vae)):
            file = component.headers[0].path
            header = joined(file, component.headers)
            if kind is not VAE and _qwen3_width(header, "model.") is None:
                raise CheckpointError(
                    "the text encoder in {path} is not {kind}",
                    hint="Download the folder again.",
                    path=file.parent,
                    kind=kind.name,
                )
            found = PartFile(
                kind=kind,
                path=file,
                header=header,
                headers=component.headers,
                prefix="" if kind is VAE else "model.",
            )
            parts.append(self.part_component(found))
        return Components(
            unet=self.folder_denoiser(folder), text_encoders=(parts[0],), vae=parts[1]
        )

    def part_component(self, found: PartFile) -> Component:
        if found.kind is VAE:
            return _vae_component(found)
        whole = qwen3.component(found)
        return replace(whole, config={**whole.config, "num_hidden_layers": ENCODER_LAYERS})

    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        return FlowSchedule(by_tokens=TokenShift(side=1))

    # --- encoding ---------------------------------------------------------------------------------

    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        from lora_trainer.families.components.flux2 import stacked_states

        (encoder,), (tokenizer,) = parts.text_encoders, parts.tokenizers
        texts = [
            tokenizer.encode(TEMPLATE.format(caption), add_special_tokens=False).ids
            for caption in captions
        ]
        padding = tokenizer.token_to_id(QWEN3_PADDING)
        return TextStates(stacked_states(encoder, texts, TEXT_LENGTH, padding, STATES))

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        from lora_trainer.families.components.flux2 import encode_image

        return encode_image(vae, pixels)

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        from lora_trainer.families.components.flux2 import decode_latents

        return decode_latents(vae, latents)

    def tile(self, vae: Any) -> None:
        from lora_trainer.families.components.flux2 import tile

        tile(vae)

    # --- noise and prediction ---------------------------------------------------------------------

    def sampling_schedule(self, trained: FlowSchedule) -> Callable[[Shape, int], float]:
        from lora_trainer.families.components.flux2 import sampling_shift

        return sampling_shift

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        from lora_trainer.families.components.flux2 import predicted_flow

        return predicted_flow(model, noisy, times, text.hidden)

    # --- the LoRA ---------------------------------------------------------------------------------

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return f"flux2_klein_{self.size.lower()}"

    def is_named_by(self, version: str) -> bool:
        kind = rf"flux.?2.*klein.*{self.size}"
        return re.match(kind, version, re.IGNORECASE) is not None

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return f"flux-2-klein-{self.size.lower()}"


NATIVE_MARKS: Mapping[str, tuple[str, ...]] = {
    "image": ("img_in.weight",),
    "text": ("txt_in.weight",),
    "time": ("time_in.in_layer.weight",),
    "head": (
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "double_blocks.0.img_attn.norm.key_norm.weight",
    ),
    "mlp": ("double_blocks.0.img_mlp.2.weight",),
    "guidance": ("guidance_in.in_layer.weight",),
    "double": ("double_blocks.{i}.img_attn.qkv.weight",),
    "single": ("single_blocks.{i}.linear1.weight",),
}
DIFFUSERS_MARKS: Mapping[str, tuple[str, ...]] = {
    "image": ("x_embedder.weight",),
    "text": ("context_embedder.weight",),
    "time": ("time_guidance_embed.timestep_embedder.linear_1.weight",),
    "head": ("transformer_blocks.0.attn.norm_k.weight",),
    "mlp": ("transformer_blocks.0.ff.linear_out.weight",),
    "guidance": ("time_guidance_embed.guidance_embedder.linear_1.weight",),
    "double": ("transformer_blocks.{i}.attn.to_q.weight",),
    "single": ("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj.weight",),
}
FAMILIES = (_Klein("4B", QWEN3_4B, 2560), _Klein("9B", QWEN3_8B, 4096))


def _native_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, NativeLayer]]:
    width = config["attention_head_dim"] * config["num_attention_heads"]
    for ours, theirs in OUTSIDE.items():
        yield ours, NativeLayer(theirs)
    yield NORM_OUT
    for block in range(config["num_layers"]):
        yield from double_block(block, IN_DOUBLE, width)
    for block in range(config["num_single_layers"]):
        yield from single_block(block, IN_SINGLE)


def _vae_component(found: PartFile) -> Component:
    """The VAE under CompVis' names, with the quantisation layers inside or beside the encoder and
    decoder, or under diffusers' names.
    """
    from lora_trainer.checkpoint.tensors import tensors_of
    from lora_trainer.families.components.flux2 import EPSILON, build_vae

    header, prefix = found.header, found.prefix
    tensors = tensors_of(found.headers)
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}

    def beside(name: str) -> str:
        """The name, with its prefix, of a layer beside encoder and decoder."""
        layer, _, kind = name.partition(".")
        moved = f"{prefix}{inside.get(layer, layer)}.{kind}"
        return moved if moved in header.tensors else prefix + name

    config = architecture.vae_config(header, _VaeSpace(), prefix=prefix)
    del config["scaling_factor"]
    levels = range(len(config["block_out_channels"]))
    blocks = [f"decoder.up.{level}.block.0.conv2.weight" for level in levels]
    if prefix + blocks[0] not in header.tensors:
        blocks = [f"decoder.up_blocks.{level}.resnets.0.conv2.weight" for level in levels][::-1]
    decoder = [shape_of(header, prefix + one)[0] for one in blocks]
    config |= {
        "decoder_block_out_channels": decoder,
        "norm_num_groups": architecture.normalisation_groups(
            [*config["block_out_channels"], *decoder]
        ),
        "use_quant_conv": beside("quant_conv.weight") in header.tensors,
        "use_post_quant_conv": beside("post_quant_conv.weight") in header.tensors,
        "batch_norm_eps": EPSILON,
    }
    modules = names.vae_modules(config)

    def place(name: str) -> Stored:
        if name.startswith((*inside, "bn.")):
            return Stored(beside(name))
        return names.stored_in_vae(name, modules, prefix=prefix, tensor_names=tensors)

    return Component(
        part="VAE",
        config=config,
        tensors=tensors,
        place=place,
        build=lambda values: build_vae(dict(values)),
        prefix=prefix,
    )
