"""CLIP (arXiv 2103.00020) as an image-text encoder: images and texts in one space.

    find(listener, download=...) -> Path | None     a folder from the hub, or OpenAI's file
    load(path, device=..., dtype=...) -> ImageTextEncoder

OpenAI's file, a TorchScript archive, is what a WebUI's interrogator has downloaded. Its names are
translated into transformers', sizes read from the tensors; what those do not determine (64 channels
per head, quick GELU) is from that repository's clip/model.py. Used by the captioner `clip`, and by
tasks.preview_measures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.captioning.captioner import TRANSFORMERS, inference
from lora_trainer.captioning.weights import explained

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lora_trainer.captioning.source import Listener

MODEL = "openai/clip-vit-large-patch14"
DOWNLOAD_BYTES = 1_710_000_000
LICENCE = "MIT"
OPENAI_FILE = Path("~/.cache/clip/ViT-L-14.pt")
"""Where the package `clip`, which the WebUI's interrogator uses, keeps the same model."""
TEXTS_AT_ONCE = 64
HEAD_WIDTH = 64

RENAMED = (
    (r"^visual\.", "vision_model."),
    (r"^(token_embedding|positional_embedding|transformer|ln_final)\b", r"text_model.\1"),
    (r"^vision_model\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^vision_model\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"\.token_embedding\.", ".embeddings.token_embedding."),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"\.ln_pre\.", ".pre_layrnorm."),
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""OpenAI's names -> those of transformers' CLIPModel, in this order."""
TRANSPOSED = {
    "vision_model.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
"""Matrices that OpenAI multiplies from the right."""


class ImageTextEncoder:
    """A loaded CLIP. Rows are float32 on its device, and of length 1."""

    name = "CLIP"

    def __init__(
        self, model: Any, processor: Any, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model = model.to(device=device, dtype=dtype).eval()
        self._processor = processor
        self._device, self._dtype = device, dtype

    @inference
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(images, width)."""
        pixels = self._processor(images=list(images), return_tensors="pt").pixel_values.to(
            self._device, self._dtype
        )
        return _unit(self.model.get_image_features(pixel_values=pixels))

    @inference
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(texts, width). A text is truncated to CLIP's 77 tokens."""
        import torch

        found = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = self._processor(
                text=list(texts[start : start + TEXTS_AT_ONCE]),
                return_tensors="pt",
                padding=True,
                truncation=True,
            ).to(self._device)
            inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
            found.append(_unit(self.model.get_text_features(**inputs)))
        return torch.cat(found)


def find(listener: Listener, *, download: bool) -> Path | None:
    """CLIP ViT-L/14 on this machine, downloaded if it is not and `download`. Raises CaptionerError;
    DownloadStopped.
    """
    # source imports the captioners' settings, and one of them this module
    from lora_trainer.captioning import source

    cached = source.cached_folder(MODEL, TRANSFORMERS)
    if cached is not None:
        return cached
    file = OPENAI_FILE.expanduser()
    if file.is_file():
        return file
    return source.fetch(MODEL, TRANSFORMERS, DOWNLOAD_BYTES, listener) if download else None


def load(path: Path, *, device: torch.device, dtype: torch.dtype) -> ImageTextEncoder:
    """Load a folder from the hub, or OpenAI's file. Raises CaptionerError."""
    from transformers import CLIPModel, CLIPProcessor

    with explained(path, "CLIP"):
        if path.is_file():
            model, processor = _load_archive(path)
        else:
            processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
            model = CLIPModel.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    return ImageTextEncoder(model, processor, device=device, dtype=dtype)


def _unit(features: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1)


# --- OpenAI's file --------------------------------------------------------------------------------


def _load_archive(path: Path) -> tuple[Any, Any]:
    """The model, float32 on the CPU, and its processor."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from lora_trainer.checkpoint.tokenizer import load_tokenizers

    archive = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    tensors = {name: tensor.float() for name, tensor in archive.state_dict().items()}
    sizes = _sizes(tensors)
    model = CLIPModel(CLIPConfig(**sizes))
    model.load_state_dict(renamed(tensors))
    side = sizes["vision_config"]["image_size"]
    images = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    # Stable Diffusion 1 has the tokenizer of this model
    return model, CLIPProcessor(images, load_tokenizers(["clip"])[0])


def _sizes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of CLIPConfig."""
    patches = tensors["visual.conv1.weight"]
    places = len(tensors["visual.positional_embedding"]) - 1
    vocabulary, text_width = tensors["token_embedding.weight"].shape
    projection = tensors["text_projection"].shape[1]
    patch = patches.shape[-1]
    return {
        "projection_dim": projection,
        "text_config": {
            **_tower(tensors, "transformer", text_width, projection),
            "vocab_size": vocabulary,
            "max_position_embeddings": len(tensors["positional_embedding"]),
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        "vision_config": {
            **_tower(tensors, "visual.transformer", patches.shape[0], projection),
            "patch_size": patch,
            "image_size": round(places**0.5) * patch,
        },
    }


def _tower(
    tensors: Mapping[str, torch.Tensor], prefix: str, width: int, projection: int
) -> dict[str, Any]:
    blocks = f"{prefix}.resblocks."
    layers = {
        name.removeprefix(blocks).split(".")[0] for name in tensors if name.startswith(blocks)
    }
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{prefix}.resblocks.0.mlp.c_fc.bias"]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "projection_dim": projection,
        "hidden_act": "quick_gelu",
    }


def renamed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's state dict -> CLIPModel's."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name in ("input_resolution", "context_length", "vocab_size"):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if name in TRANSPOSED:
            found[TRANSPOSED[name]] = tensor.T.contiguous()
        elif ".self_attn.in_proj_" in name:
            stem, kind = name.rsplit("in_proj_", 1)
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{stem}{part}_proj.{kind}"] = piece.contiguous()
        else:
            found[name] = tensor
    return found
