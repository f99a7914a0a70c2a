"""Tokenizers that several families use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_trainer.checkpoint.parts import TokenizerKind

SPECIAL = (
    *(
        f"<|{name}|>"
        for name in "endoftext im_start im_end object_ref_start object_ref_end".split()
    ),
    *(f"<|{name}|>" for name in "box_start box_end quad_start quad_end vision_start".split()),
    *(f"<|{name}|>" for name in "vision_end vision_pad image_pad video_pad".split()),
    *("<tool_call>", "</tool_call>"),
    *(f"<|{name}|>" for name in "fim_prefix fim_middle fim_suffix fim_pad repo_name".split()),
    *("<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
"""Qwen3's special tokens, after those of its vocabulary, in order: 151643 to 151668."""


def _read_qwen3(path: Path) -> Any:
    from lora_trainer.families.components.qwen3 import read_vocabulary

    return read_vocabulary(path)


QWEN3 = TokenizerKind(
    id="qwen3",
    name="Qwen3",
    model="BPE",
    repository="Qwen/Qwen3-0.6B",
    diffusers_folder="tokenizer",
    host_folders=(
        "circlestone-labs/Anima/tokenizer",
        "Tongyi-MAI/Z-Image-Turbo/tokenizer",
        "black-forest-labs/FLUX.2-klein-4B/tokenizer",
    ),
    vocabulary=("vocab.json", "merges.txt"),
    read=_read_qwen3,
    special=SPECIAL,
)
QWEN3_4B, QWEN3_8B = (
    replace(QWEN3, repository=f"Qwen/Qwen3-{size}", alike=("Qwen/Qwen3-0.6B",))
    for size in ("4B", "8B")
)
"""The same tokenizer, in the repositories of the larger models."""
QWEN3_PADDING = "<|endoftext|>"
"""Qwen3's token that fills texts up."""
T5 = TokenizerKind(
    id="t5",
    name="T5",
    model="Unigram",
    repository="google-t5/t5-base",
    other_repositories=("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"),
    diffusers_folder="tokenizer_2",
    host_folders=("circlestone-labs/Anima/tokenizer_2", "black-forest-labs/FLUX.1-dev/tokenizer_2"),
)
T5_END = "</s>"
"""T5's token that ends a text."""
