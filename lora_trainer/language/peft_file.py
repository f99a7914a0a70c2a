"""LoRAs of language models in PEFT's format, which transformers, vLLM and text-generation-webui
load: a folder with adapter_config.json and adapter_model.safetensors.

    base_model.model.PATH.lora_A.weight (rank, in), .lora_B.weight (out, rank)
        delta = alpha / rank * B @ A
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from lora_trainer import files
from lora_trainer.adapters.injected import Adapters
from lora_trainer.errors import LoraFileError
from lora_trainer.language.detect import LanguageModelFolder
from lora_trainer.language.model import LanguageBase, load_model
from lora_trainer.lora.credits import Credits
from lora_trainer.lora.file import read_header
from lora_trainer.lora.metadata import STEP
from lora_trainer.lora.names import adaptable_layers
from lora_trainer.settings import schema

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
MERGED_SHARD = "4GB"


@dataclass(frozen=True)
class LayerFactors:
    """The two matrices of a layer, float32, and the scale of their product."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


def write(
    adapters: Adapters,
    folder: Path,
    *,
    base: Path,
    targets: tuple[str, ...],
    dropout: float,
    step: int,
    credits: Credits,
) -> bool:
    """Write the adapters with their model card, and read them back. Returns whether they have an
    effect. Raises LoraFileError.
    """
    size = adapters.layers[0].size
    tensors: dict[str, torch.Tensor] = {}
    for adapter in adapters.layers:
        for name, parameter in adapter.parameters():
            key = PREFIX + name.removeprefix(f"{adapter.part}.")
            tensors[key] = parameter.detach().to("cpu", torch.float32).contiguous()
    config = _config(base, targets, size.rank, size.alpha, dropout)
    metadata = {"format": "pt", STEP: str(step), **credits.to_metadata()}
    content = safetensors.torch.save(tensors, metadata)
    try:
        # the configuration first: without the weights, the folder is not taken for a LoRA
        files.write_text(folder / CONFIG, config)
        files.write_text(folder / CARD, _card(folder.name, base, credits))
        files.write_bytes(folder / WEIGHTS, content)
    except OSError as error:
        hint = "Free some space, then continue with `resume`: it starts from the last save."
        raise LoraFileError.cannot_write(folder, error, hint) from error
    found = read(folder)
    if {PREFIX + path + end for path in found for end in (A, B)} != tensors.keys():
        raise LoraFileError("{path} cannot be read back", hint="Check the disk.", path=folder)
    return any(bool(factors.b.count_nonzero()) for factors in found.values())


def _config(base: Path, targets: tuple[str, ...], rank: int, alpha: float, dropout: float) -> str:
    """adapter_config.json, as PEFT writes it."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        inference_mode=True,
    )
    values = {**config.to_dict(), "target_modules": list(targets)}
    return json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"


def _card(name: str, base: Path, credits: Credits) -> str:
    """README.md: the model card with the front matter that the Hugging Face hub reads,
    https://huggingface.co/docs/hub/model-cards
    """
    front: dict[str, Any] = {
        "library_name": "peft",
        "base_model": base.name,
        "pipeline_tag": "text-generation",
        "tags": ["lora"],
    }
    if credits.license:
        # the hub knows identifiers only; other terms have a name
        is_known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", credits.license.lower())
        front["license"] = credits.license.lower() if is_known else "other"
        if not is_known:
            front["license_name"] = " ".join(credits.license.split())
    lines = {
        "Author": credits.author,
        "Licence": credits.license,
        "Credits of the texts": credits.training_comment,
    }
    told = [f"- {label}: {' '.join(text.split())}" for label, text in lines.items() if text]
    parts = (f"# {name}", credits.description, "\n".join(told))
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{schema.dump(front)}---\n\n{body}\n"


def read(path: Path) -> dict[str, LayerFactors]:
    """The layers of a LoRA, by their paths in the model. path: its folder, or the weights in it.
    Raises LoraFileError, also for what PEFT has besides plain LoRA.
    """
    folder = path.parent if path.is_file() else path
    settings: dict[str, Any] = files.read_json(folder / CONFIG, dict, {}, names=True)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise LoraFileError(
            "{path} is not a LoRA of a language model",
            hint="It is a folder with adapter_config.json and adapter_model.safetensors.",
            path=folder,
        )
    try:
        tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except (SafetensorError, OSError) as error:
        raise LoraFileError(
            "{path} cannot be read back: {error}",
            hint="Check the disk, then export again.",
            path=folder / WEIGHTS,
            error=error,
        ) from error
    paths = [name.removesuffix(A).removeprefix(PREFIX) for name in tensors if name.endswith(A)]
    wanted = {PREFIX + path + end for path in paths for end in (A, B)}
    strange = sorted(wanted ^ tensors.keys())
    strange += [key for key in ("rank_pattern", "alpha_pattern", "use_dora") if settings.get(key)]
    if strange:
        raise LoraFileError(
            "{path} is not a plain LoRA: {name} is unexpected or missing",
            hint="Only LoRAs with one rank, and without DoRA or trained embeddings, are read.",
            path=folder,
            name=strange[0],
        )
    # arXiv 2312.03732
    scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    return {
        path: LayerFactors(
            tensors[PREFIX + path + A].float(), tensors[PREFIX + path + B].float(), scale
        )
        for path in paths
    }


def step_of(folder: Path) -> int | None:
    """The number of steps of a LoRA that was written here; None if there is none."""
    try:
        return int(read_header(folder / WEIGHTS).metadata[STEP])
    except (LoraFileError, KeyError, ValueError):
        return None


def remove(folder: Path) -> None:
    """Delete a LoRA's folder, as far as possible."""
    with contextlib.suppress(OSError):
        (folder / WEIGHTS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def applied(model: Any, factors: Mapping[str, LayerFactors], strength: float) -> Iterator[None]:
    """For the block, the outputs of the model's layers with the LoRA at this strength. Raises
    LoraFileError if it has a layer that the model lacks. Works with quantized layers.
    """
    layers = adaptable_layers(model, LanguageBase())
    _require_layers(factors, layers)
    handles = [
        layers[path].register_forward_hook(_added(one, strength))
        for path, one in factors.items()
        if strength
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(factors: LayerFactors, strength: float) -> Any:
    placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        (states,) = inputs
        if states.device not in placed:
            placed[states.device] = (factors.a.to(states.device), factors.b.to(states.device))
        a, b = placed[states.device]
        change = (states.float() @ a.T) @ b.T
        return output + (strength * factors.scale * change).to(output.dtype)

    return hook


def _require_layers(factors: Mapping[str, LayerFactors], layers: Mapping[str, Any]) -> None:
    for path, one in factors.items():
        if path not in layers:
            raise LoraFileError(
                "the LoRA has a layer {name}, which is missing from this base model",
                hint="Use the base model that it was trained on.",
                name=path,
            )
        shape = (layers[path].out_features, layers[path].in_features)
        if (one.b.shape[0], one.a.shape[1]) != shape:
            raise LoraFileError(
                "the layer {name} of the LoRA does not fit this base model",
                hint="Use the base model that it was trained on.",
                name=path,
            )


def merge(base: LanguageModelFolder, lora: Path, target: Path) -> None:
    """Write the base with the LoRA merged into its weights, in the base's own dtype, as a folder in
    Hugging Face form. Raises CheckpointError, LoraFileError.
    """
    factors = read(lora)
    dtype = getattr(torch, str(base.config.get("torch_dtype")), torch.float32)
    model = load_model(base, dtype, torch.device("cpu"))
    layers = adaptable_layers(model, LanguageBase())
    _require_layers(factors, layers)
    for path, one in factors.items():
        weight = layers[path].weight
        weight += (one.scale * (one.b @ one.a)).to(weight.dtype)
    try:
        model.save_pretrained(target, safe_serialization=True, max_shard_size=MERGED_SHARD)
    except OSError as error:
        raise LoraFileError.cannot_write(target, error, "Free some space.") from error
