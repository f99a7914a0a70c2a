"""BLIP (arXiv 2201.12086), base and large: one short sentence per image.

Also loads the WebUI's BLIP base, models/BLIP/model_base_caption_capfilt_large.pth: weights with
Salesforce's names and no configuration. The names are translated, sizes read from the tensors; what
those do not determine (64 channels per head, layer norm epsilon) is from that repository's
models/vit.py and configs/med_config.json. The tokenizer is BERT's, which a WebUI has in the hub's
cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.captioning.captioner import (
    TRANSFORMERS,
    CaptionerInfo,
    CaptionerOutput,
    SentenceSettings,
    inference,
)
from lora_trainer.captioning.weights import explained
from lora_trainer.errors import CaptionerError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lora_trainer.captioning.source import Listener
    from lora_trainer.dataset.embeddings import Row

BEAMS = 3
TOKENIZERS = (
    "Salesforce/blip-image-captioning-base",
    "bert-base-uncased",
    "google-bert/bert-base-uncased",
)
"""Tokenizers for the WebUI's file: BERT's vocabulary of 30,522, to which BLIP adds two tokens."""
ARTEFACT = re.compile(r"\bar?raff?(?:e[ds]?|y)?\b\s*", re.IGNORECASE)
"""A non-word with which BLIP large starts many captions ("araffe", "arafed")."""

RENAMED = (
    # Salesforce's ViT -> transformers' BlipVisionModel; the text decoder has the same names in both
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.",
        r"vision_model.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.",
        r"vision_model.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)
PARTS = ("visual_encoder.", "text_decoder.")
BUFFERS = re.compile(r"\.position_ids$")
HEAD_WIDTH = 64


class Blip:
    """A loaded BLIP: beam search, no sampling."""

    encoder = "BLIP"

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_tokens: int,
    ) -> None:
        self._model = model.to(device=device, dtype=dtype).eval()
        self._processor = processor
        self._device, self._dtype = device, dtype
        self._max_tokens = max_tokens
        self._pooled: torch.Tensor | None = None
        # generate() does not return the image embeddings
        self._model.vision_model.register_forward_hook(self._keep_embedding)

    @inference
    def caption(self, images: Sequence[Image.Image]) -> list[CaptionerOutput]:
        from lora_trainer.captioning.encoder import rows

        self._pooled = None
        tokens = self._model.generate(
            pixel_values=self._pixels(images),
            num_beams=BEAMS,
            max_new_tokens=self._max_tokens,
            no_repeat_ngram_size=3,
        )
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        embeddings: list[Row | None] = [None] * len(texts)
        if self._pooled is not None and len(self._pooled) == len(texts):
            embeddings = rows(self._pooled)
        pairs = zip(texts, embeddings, strict=True)
        return [CaptionerOutput(text=clean(text), embedding=row) for text, row in pairs]

    @inference
    def embed(self, images: Sequence[Image.Image]) -> list[Row | None]:
        from lora_trainer.captioning.encoder import rows

        return rows(self._model.vision_model(pixel_values=self._pixels(images)).pooler_output)

    def _pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels: torch.Tensor = self._processor(
            images=list(images), return_tensors="pt"
        ).pixel_values.to(self._device, self._dtype)
        return pixels

    def _keep_embedding(self, module: Any, inputs: Any, output: Any) -> None:
        """Keep the class token's state, (images, width)."""
        self._pooled = output.pooler_output


def load(
    path: Path,
    own: SentenceSettings,
    *,
    device: torch.device,
    dtype: torch.dtype,
    listener: Listener,
) -> Blip:
    """Load a folder from the hub, or Salesforce's .pth file. Raises CaptionerError."""
    model, processor = (
        _from_salesforce(path, listener) if path.is_file() else _from_folder(path, dtype)
    )
    return Blip(model, processor, device=device, dtype=dtype, max_tokens=own.max_tokens)


def clean(text: str) -> str:
    """The sentence without the artefact."""
    return " ".join(ARTEFACT.sub("", text).split())


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    with explained(folder, "BLIP"):
        processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
        return (
            BlipForConditionalGeneration.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True
            ),
            processor,
        )


# --- the WebUI's file -----------------------------------------------------------------------------


def _from_salesforce(path: Path, listener: Listener) -> tuple[Any, Any]:
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    weights = read_salesforce(path)
    values = config_of(weights, path)
    tokenizer = _bert_tokenizer(listener)
    # sentences end with BERT's [SEP]
    values["text_config"] |= {
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with explained(path, "BLIP"):
        model = BlipForConditionalGeneration(BlipConfig(**values))
        missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise _not_blip(path, next(iter([*missing, *unexpected])))
    size = values["vision_config"]["image_size"]
    return model, BlipProcessor(BlipImageProcessor(size={"height": size, "width": size}), tokenizer)


def read_salesforce(path: Path) -> dict[str, torch.Tensor]:
    """A .pth file's tensors by transformers' names. Raises CaptionerError."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise CaptionerError(
            "{path} cannot be read: {reason}",
            path=path,
            reason=(str(error).splitlines() or [type(error).__name__])[0][:200],
            hint=(
                "It is damaged, or not a file of weights. Delete it: the model is then "
                "downloaded again."
            ),
        ) from error
    tensors = content.get("model", content) if isinstance(content, Mapping) else {}
    used = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(PARTS) and not BUFFERS.search(name)
    }
    return {
        _renamed(name): tensor.float()
        for name, tensor in used.items()
        if isinstance(tensor, torch.Tensor)
    }


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    return name


def config_of(weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """A BLIP's configuration from its tensors. Raises CaptionerError for other tensors."""
    try:
        patches = weights["vision_model.embeddings.patch_embedding.weight"]
        positions = weights["vision_model.embeddings.position_embedding"]
        words = weights["text_decoder.bert.embeddings.word_embeddings.weight"]
        vision_layer = "vision_model.encoder.layers."
        text_layer = "text_decoder.bert.encoder.layer."
        width, patch, hidden = patches.shape[0], patches.shape[2], words.shape[1]
        return {
            "vision_config": {
                "hidden_size": width,
                "intermediate_size": weights[f"{vision_layer}0.mlp.fc1.weight"].shape[0],
                "num_hidden_layers": _layer_count(weights, vision_layer),
                "num_attention_heads": max(1, width // HEAD_WIDTH),
                "patch_size": patch,
                "image_size": round((positions.shape[1] - 1) ** 0.5) * patch,
                "layer_norm_eps": 1e-6,
            },
            "text_config": {
                "vocab_size": words.shape[0],
                "hidden_size": hidden,
                "encoder_hidden_size": (
                    weights[f"{text_layer}0.crossattention.self.key.weight"].shape[1]
                ),
                "intermediate_size": weights[f"{text_layer}0.intermediate.dense.weight"].shape[0],
                "num_hidden_layers": _layer_count(weights, text_layer),
                "num_attention_heads": max(1, hidden // HEAD_WIDTH),
                "max_position_embeddings": (
                    weights["text_decoder.bert.embeddings.position_embeddings.weight"].shape[0]
                ),
                "layer_norm_eps": 1e-12,
                "bos_token_id": words.shape[0] - 2,
            },
        }
    except (KeyError, IndexError) as error:
        raise _not_blip(path, error.args[0]) from error


def _layer_count(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(
        int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix)
    )


def _not_blip(path: Path, name: object) -> CaptionerError:
    hint = (
        "Name the file model_base_caption_capfilt_large.pth of the WebUI, or a model's folder"
        " or id."
    )
    return CaptionerError(
        "{path} is not BLIP's captioning model: it differs at {name}",
        path=path,
        name=name,
        hint=hint,
    )


def _bert_tokenizer(listener: Listener) -> Any:
    """BERT's tokenizer from the hub's cache, else downloaded (0.2 MB)."""
    from transformers import BertTokenizer

    from lora_trainer.captioning import source

    for name in TOKENIZERS:
        vocabulary = source.cached_file(name, "vocab.txt")
        if vocabulary is not None:
            return BertTokenizer(str(vocabulary))
    folder = source.fetch(TOKENIZERS[-1], TRANSFORMERS, 231_508, listener, only=("vocab.txt",))
    return BertTokenizer(str(folder / "vocab.txt"))


CAPTIONERS = (
    CaptionerInfo(
        name="blip-large",
        title="BLIP large",
        sentence="Writes one short, dry sentence: what is there and where.",
        model="Salesforce/blip-image-captioning-large",
        download_bytes=1_880_000_000,
        memory_bytes=2_000_000_000,
        licence="BSD-3-Clause",
        batch_size=8,
        load=load,
        settings=SentenceSettings,
        takes_file=True,
    ),
    CaptionerInfo(
        name="blip",
        title="BLIP base",
        sentence=(
            "The same in a few words, quick on a CPU too; the WebUI's own interrogator uses it."
        ),
        model="Salesforce/blip-image-captioning-base",
        download_bytes=990_000_000,
        memory_bytes=1_500_000_000,
        licence="BSD-3-Clause",
        batch_size=8,
        load=load,
        settings=SentenceSettings,
        takes_file=True,
        # in Salesforce's format, as downloaded by the interrogator
        host_file="BLIP/model_base_caption_capfilt_large.pth",
    ),
)
