"""Z-Image (arXiv 2511.22699): a transformer in whose blocks the tokens of text and image are one
sequence, by flow matching, told by Qwen3-4B.

    part            checkpoint file                                LoRA file
    unet            layers., noise_refiner. and others             lora_unet_ + its path there
    text_encoder    Qwen3-4B, a file of its own                    never trained
    vae             FLUX.1's, a file of its own

The checkpoint has query, key and value in one layer; the loaded model has them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint.detect import (
    Detected,
    Sidecar,
    stated_side,
)
from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.parts import (
    Component,
    Distilled,
    FlowSchedule,
    PartFile,
    PartKind,
    Parts,
    PredictionType,
    Schedule,
    TrainingAdapterKind,
)
from lora_trainer.families import qwen3
from lora_trainer.families.base import Rows, TextStates
from lora_trainer.families.flux import LATENT_SCALE, LATENT_SHIFT, VAE
from lora_trainer.families.transformer import (
    NativeLayer,
    count_blocks,
    refuse_quantised,
    shape_of,
)

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.load import Checkpoint

PATCH = 4
"""Latent pixels of a token: 2 x 2."""
LONGEST = 512
"""Tokens of a caption in its template."""
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IN_TEMPLATE = 10
"""More tokens than the template has."""
HOST_SHIFT = 3.0
"""The shift with which hosts sample (ComfyUI, Forge Neo)."""
TRAINING_SHIFT = 2.0
ONLY_HERE = "x_pad_token"
"""A tensor that Lumina 2, which has blocks of the same names, lacks."""

OUTSIDE = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    "cap_embedder.0": "cap_embedder.0",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
}
"""diffusers' names of modules -> the checkpoint's."""
IN_BLOCK = {
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    **{
        name: name
        for name in (
            "attention_norm1 attention_norm2 ffn_norm1 ffn_norm2 feed_forward.w1 feed_forward.w2"
            " feed_forward.w3"
        ).split()
    },
}
FUSED = ("to_q", "to_k", "to_v")
QWEN3_4B = PartKind(
    id="qwen3_4b",
    part="text encoder",
    name="Qwen3-4B",
    file="qwen_3_4b.safetensors",
    size="8.0 GB",
    source="Comfy-Org/z_image_turbo on Hugging Face",
    width=qwen3.width,
    prefixes=qwen3.PREFIXES,
    inside=("text_encoders.qwen3_4b.transformer.model.",),
)


class _ZImage(qwen3.ToldByQwen3):
    id = "zimage"
    name = "Z-Image"
    # Forge Neo's word
    sd_version = "zit"
    packages = "newer"
    latent_channels = 16
    latent_scale = LATENT_SCALE
    latent_shift = LATENT_SHIFT
    side = 1024
    side_multiple = 16
    text_needs_range = True
    usual_guidance = 4.0
    # Turbo
    distilled = Distilled(
        step_count=8,
        adapter=TrainingAdapterKind(
            file="zimage_turbo_training_adapter_v2.safetensors",
            size="0.34 GB",
            source="ostris/zimage_turbo_training_adapter on Hugging Face",
            name=re.compile(r"z[-_ ]?image[-_ ]?turbo[-_ ]?training[-_ ]?adapter"),
            instead=name,
        ),
    )
    caption_bytes = LONGEST * 2560 * 4
    caption_tokens = LONGEST - IN_TEMPLATE
    unet_targets = (
        *(f"attention.{name}" for name in (*FUSED, "to_out.0")),
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    )
    part_kinds = (QWEN3_4B, VAE)
    native_mark = "noise_refiner.0.attention.qkv.weight"
    diffusers_mark = "noise_refiner.0.attention.to_q.weight"
    spec_implementation = "https://github.com/Tongyi-MAI/Z-Image"

    # --- detection --------------------------------------------------------------------------------

    def layout(self, header: Header) -> tuple[str, bool] | None:
        found = super().layout(header)
        return found if found and found[0] + ONLY_HERE in header.tensors else None

    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        found = self.layout(header)
        if found is None:
            return None
        prefix, native = found
        refuse_quantised(header, prefix)
        config = self.denoiser_config(header, prefix, native=native)
        title = f"{header.path.stem} {header.metadata.get('modelspec.title', '')}".lower()
        is_turbo = "turbo" in title and "distill" not in title
        return Detected(
            family=self,
            has_vae=True,
            resolution=stated_side(header.metadata, self.side_multiple),
            widths={QWEN3_4B.id: config["cap_feat_dim"], VAE.id: self.latent_channels},
            is_distilled=is_turbo,
        )

    # --- opening and loading ----------------------------------------------------------------------

    def denoiser_config(self, header: Header, prefix: str, *, native: bool) -> dict[str, Any]:
        norm, first, embedder = "norm_q", "to_q", "all_x_embedder.2-1"
        if native:
            norm, first, embedder = "q_norm", "qkv", "x_embedder"
        width, patch = shape_of(header, f"{prefix}{embedder}.weight")
        (head,) = shape_of(header, f"{prefix}noise_refiner.0.attention.{norm}.weight")
        time_share = head // 4
        return {
            "in_channels": patch // PATCH,
            "dim": width,
            "n_layers": count_blocks(header, prefix + "layers.{i}.attention." + f"{first}.weight"),
            "n_refiner_layers": count_blocks(
                header, prefix + "noise_refiner.{i}.attention." + f"{first}.weight"
            ),
            "n_heads": width // head,
            "n_kv_heads": width // head,
            "cap_feat_dim": shape_of(header, f"{prefix}cap_embedder.1.weight")[1],
            # of 128: 32, 48, 48
            "axes_dims": [time_share, *[(head - time_share) // 2] * 2],
            "axes_lens": [1536, 512, 512],
        }

    def build_denoiser(self, config: Mapping[str, Any]) -> Any:
        from lora_trainer.families.components.z_image import build_transformer

        return build_transformer(dict(config))

    def native_layers(self, config: Mapping[str, Any]) -> Mapping[str, NativeLayer]:
        return dict(_native_layers(config))

    def part_component(self, found: PartFile) -> Component:
        from lora_trainer.families.components.ldm import vae_of_headers

        if found.kind is QWEN3_4B:
            return qwen3.component(found)
        return vae_of_headers(found.header, found.headers, self, found.prefix)

    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        return FlowSchedule(shift=TRAINING_SHIFT)

    # --- encoding ---------------------------------------------------------------------------------

    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        """One caption at a time, so that none is padded."""
        from lora_trainer.families.components.z_image import join_captions, penultimate_state

        (encoder,), (tokenizer,) = parts.text_encoders, parts.tokenizers
        rows = []
        for caption in captions:
            ids = tokenizer.encode(TEMPLATE.format(caption), add_special_tokens=False).ids
            rows.append(TextStates(penultimate_state(encoder, ids[:LONGEST])))
        return join_captions(rows)

    def join(self, rows: Sequence[TextStates], empty: TextStates) -> TextStates:
        from lora_trainer.families.components.z_image import join_captions

        return join_captions(rows)

    # --- noise and prediction ---------------------------------------------------------------------

    def sampling_schedule(self, trained: FlowSchedule) -> FlowSchedule:
        return FlowSchedule(shift=HOST_SHIFT)

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        from lora_trainer.families.components.z_image import predicted_flow

        return predicted_flow(model, noisy, times, text)

    # --- the LoRA ---------------------------------------------------------------------------------

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "zimage"

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return "z-image"


FAMILIES = (_ZImage(),)


def _native_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, NativeLayer]]:
    width, refiners = config["dim"], config["n_refiner_layers"]
    for ours, theirs in OUTSIDE.items():
        yield ours, NativeLayer(theirs)
    for blocks, count, is_modulated in (
        ("noise_refiner", refiners, True),
        ("context_refiner", refiners, False),
        ("layers", config["n_layers"], True),
    ):
        for number in range(count):
            block = f"{blocks}.{number}."
            for ours, theirs in IN_BLOCK.items():
                yield block + ours, NativeLayer(block + theirs)
            if is_modulated:
                yield block + "adaLN_modulation.0", NativeLayer(block + "adaLN_modulation.0")
            for place, name in enumerate(FUSED):
                rows = Rows(place * width, width, 3 * width)
                yield f"{block}attention.{name}", NativeLayer(block + "attention.qkv", rows)
