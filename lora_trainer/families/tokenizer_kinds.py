"""Tokenizers that several families use."""

from __future__ import annotations

from lora_trainer.checkpoint.parts import TokenizerKind

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
)
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
