"""A vision-language model that is prompted with an instruction: a sentence or two per image.

Why Qwen2-VL-2B-Instruct, of the models in transformers 4.49.0 that need no remote code (Florence-2
does):

    Qwen2-VL 2B         Apache-2.0, 4.4 GB, about 6.5 GB of VRAM in bf16. Names materials, light and
    style, reads lettering, follows instructions
    Qwen2.5-VL 3B       research licence, so not the default. 7 GB. Works by its id, as does the 7B
    (Apache)
    SmolVLM 2.2B, 500M  Apache-2.0; an image is split into up to 17 tiles of 81 tokens, captions are
    shorter and vaguer. Works by its id
    PaliGemma           Gemma's licence, gated; made for fine-tuning, captions of one line
    LLaVA 1.5, 1.6 7B   14 GB, Llama's licence for some; LLaVA-OneVision 0.5B is small and vague.
    Work by their ids
    BLIP-2, GIT, Kosmos-2, InstructBLIP    of 2022 and 2023; no better than BLIP large for their
    size

Any model of these classes with a chat template is loaded by the same code (`--model`). Greedy
decoding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.captioning.captioner import (
    CaptionerInfo,
    CaptionerOutput,
    SentenceSettings,
    inference,
)
from lora_trainer.captioning.weights import explained
from lora_trainer.errors import CaptionerError
from lora_trainer.settings.schema import setting

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lora_trainer.captioning.source import Listener

DEFAULT_INSTRUCTION = (
    "Describe this picture in one or two plain English sentences of at most 50 words: the subject,"
    " what it does, its clothing or features, the scene, the style, the light and the colours. Say"
    ' only what is to be seen. Do not begin with words such as "The image shows".'
)

MAX_PIXELS = 768 * 768
"""Larger images are downscaled: Qwen2-VL uses a token per 28 x 28 pixels."""
MIN_SIDE = 56
"""In pixels: Qwen2-VL refuses images smaller than its patch."""
PREAMBLE = re.compile(
    r"^(?:sure[,!.]?\s+)?(?:here is (?:a|the) (?:short )?(?:description|caption)[^:]*:\s*)?"
    r"(?:(?:in )?th(?:e|is) (?:image|picture|photo|photograph|illustration)"
    r" (?:shows|depicts|features|captures|displays|presents|is of|is)\s+)?",
    re.IGNORECASE,
)
"""Common first words of such models' answers, which would be in every caption."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings(SentenceSettings):
    """For captioners prompted with an instruction."""

    instruction: str = setting("", label="Instruction", entry="paragraph")
    """What the model is asked. Empty: a sentence or two on subject, action, clothing, scene, style,
    light and colour.
    """


class Chat:
    """A loaded vision-language model and its prompt."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        instruction: str,
        max_tokens: int,
    ) -> None:
        self._model = model.to(device=device, dtype=dtype).eval()
        self._processor = processor
        # left padding, so that a batch's answers start at the same position
        self._processor.tokenizer.padding_side = "left"
        self._device, self._dtype = device, dtype
        self._max_tokens = max_tokens
        question = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
        ]
        self._prompt = processor.apply_chat_template(question, add_generation_prompt=True)

    @inference
    def caption(self, images: Sequence[Image.Image]) -> list[CaptionerOutput]:
        import torch

        pictures = [fitted(image) for image in images]
        inputs = self._processor(
            text=[self._prompt] * len(pictures), images=pictures, return_tensors="pt", padding=True
        ).to(self._device)
        inputs.pop("token_type_ids", None)  # not an input of these models
        for name, tensor in inputs.items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                inputs[name] = tensor.to(self._dtype)
        tokens = self._model.generate(
            **inputs,
            max_new_tokens=self._max_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        complete = [self._ends(answer) for answer in answers]
        texts = self._processor.batch_decode(answers, skip_special_tokens=True)
        return [
            CaptionerOutput(text=clean(text, complete=whole))
            for text, whole in zip(texts, complete, strict=True)
        ]

    def _ends(self, answer: torch.Tensor) -> bool:
        """Whether the answer ended with an end token."""
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return len(answer) < self._max_tokens or int(answer[-1]) in (
            *ends,
            self._processor.tokenizer.pad_token_id,
        )


def load(
    folder: Path, own: ChatSettings, *, device: torch.device, dtype: torch.dtype, listener: Listener
) -> Chat:
    """Load a folder from the hub. Raises CaptionerError, also for a model without a chat
    template.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with explained(folder, "a model that looks and talks"):
        processor = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if not getattr(processor, "chat_template", None) or not hasattr(processor, "tokenizer"):
            raise CaptionerError(
                "{folder} has no chat template, so it cannot be asked to describe an image",
                folder=folder,
                hint=(
                    "Use one that was made to follow instructions, such as"
                    " Qwen/Qwen2-VL-2B-Instruct."
                ),
            )
        model = AutoModelForImageTextToText.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    return Chat(
        model,
        processor,
        device=device,
        dtype=dtype,
        instruction=own.instruction.strip() or DEFAULT_INSTRUCTION,
        max_tokens=own.max_tokens,
    )


def fitted(image: Image.Image) -> Image.Image:
    """The image resized within MAX_PIXELS and MIN_SIDE, keeping proportions."""
    from PIL import Image

    scale = min(1.0, (MAX_PIXELS / (image.width * image.height)) ** 0.5)
    width = max(MIN_SIDE, round(image.width * scale))
    height = max(MIN_SIDE, round(image.height * scale))
    same = (width, height) == image.size
    return image if same else image.resize((width, height), Image.Resampling.LANCZOS)


def clean(text: str, *, complete: bool = True) -> str:
    """The answer as a caption: one line, without preamble, and without an incomplete last sentence
    if truncated.
    """
    text = " ".join(text.replace("*", "").split()).strip('"“” ')
    if not complete:
        whole = re.match(r".*[.!?](?=\s|$)", text)
        text = whole[0] if whole else re.sub(r"[,;]?\s*\S*$", "", text) or text
    text = PREAMBLE.sub("", text, count=1)
    return text[:1].upper() + text[1:] if text[:1].islower() and text.endswith(".") else text


CAPTIONERS = (
    CaptionerInfo(
        name="qwen",
        title="Qwen2-VL 2B",
        sentence=(
            "Writes a full sentence on subject, action, clothing, scene, style, light and colour."
        ),
        model="Qwen/Qwen2-VL-2B-Instruct",
        download_bytes=4_430_000_000,
        memory_bytes=6_500_000_000,
        licence="Apache-2.0",
        batch_size=4,
        load=load,
        settings=ChatSettings,
        fp16_is_safe=False,
    ),
)
