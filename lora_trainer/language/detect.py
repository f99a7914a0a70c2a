"""Recognizes the folder of a language model in Hugging Face form: config.json, tokenizer,
safetensors. Standard library only; also used by the tab.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.checkpoint.header import read_header
from lora_trainer.errors import CheckpointError

ANOTHER = "Name the folder of a language model in Hugging Face form, such as Qwen2.5-1.5B-Instruct."
INCOMPLETE = "The folder is incomplete: download it again."
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of classes that continue a text."""
SEARCH_DEPTH = 3
"""Such as models/LLM/PUBLISHER/MODEL."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Weight:
    """What a model's files hold."""

    parameters: int
    byte_count: int


@dataclass(frozen=True, kw_only=True)
class LanguageModelFolder:
    """The folder of a causal language model."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """Its architecture, as transformers calls it: llama, qwen2."""
        return str(self.config["model_type"])

    @property
    def longest(self) -> int | None:
        """The number of tokens that it was made for, if stated."""
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            stated = self.config.get(key)
            if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
                return stated
        return None

    def weigh(self) -> Weight:
        """Parameters and bytes, from the headers of the weights; quantized ones are counted as they
        are stored. Raises CheckpointError.
        """
        headers = [read_header(file) for file in self.weights]
        return Weight(
            sum(prod(info.shape) for header in headers for info in header.tensors.values()),
            sum(header.file_size for header in headers),
        )


def is_language_model(path: Path | None) -> bool:
    """Whether the path is the folder of a transformers model, not of a diffusers pipeline or of one
    of its parts. `read_folder` says whether it can be trained.
    """
    if path is None or not path.is_dir() or (path / "model_index.json").exists():
        return False
    config = _config(path)
    return isinstance(config.get("model_type"), str) and "_class_name" not in config


def read_folder(path: Path) -> LanguageModelFolder:
    """The language model in a folder. Raises CheckpointError if it cannot be trained on."""
    config = _config(path)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            "{path} is not the folder of a language model: no config.json in it names a model_type",
            hint=ANOTHER,
            path=path,
        )
    # without `architectures`, transformers decides by model_type when it is loaded
    classes = _classes(config)
    if classes and not any(name.endswith(CAUSAL) for name in classes):
        raise CheckpointError(
            "{path} is a {kind}, which is not a language model that continues a text",
            hint=ANOTHER,
            path=path,
            kind=", ".join(classes),
        )
    weights = tuple(sorted(path.glob("*.safetensors")))
    if not weights:
        hint = INCOMPLETE
        template = "{path} has no .safetensors weights"
        if any(path.glob("*.bin")):
            template = (
                "{path} has its weights as pickles (.bin), which can run any program when opened"
            )
            hint = "Use a version with .safetensors files."
        raise CheckpointError(template, hint=hint, path=path)
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError("{path} has no tokenizer", hint=INCOMPLETE, path=path)
    return LanguageModelFolder(path=path, config=config, weights=weights)


def find_folders(place: Path, depth: int = SEARCH_DEPTH) -> Iterator[Path]:
    """The folders of language models in a folder, `depth` levels down, in order of names. Folders
    that cannot be read are left out.
    """
    try:
        with os.scandir(place) as found:
            inside = sorted(
                Path(each.path) for each in found if not each.name.startswith(".") and each.is_dir()
            )
    except OSError:
        return
    for folder in inside:
        if is_language_model(folder):
            classes = _classes(_config(folder))
            if not classes or any(name.endswith(CAUSAL) for name in classes):
                yield folder
        elif depth > 1 and not (folder / "model_index.json").exists():
            yield from find_folders(folder, depth - 1)


def _classes(config: dict[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _config(path: Path) -> dict[str, Any]:
    """The folder's config.json; empty if there is none that can be read."""
    return files.read_json(path / "config.json", dict, {}, names=True)
