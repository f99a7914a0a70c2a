"""Loads a language model, and finds the layers that a LoRA is trained for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer import environment
from lora_trainer.adapters.injected import matching_layers
from lora_trainer.errors import CheckpointError, ConfigError
from lora_trainer.language.detect import ANOTHER, INCOMPLETE, LanguageModelFolder
from lora_trainer.lora.names import Part, adaptable_layers, is_target
from lora_trainer.settings.training import UNET_TARGETS, LoraSettings
from lora_trainer.training.device import is_out_of_memory

TARGETS = ("q_proj", "v_proj")
"""Target layers if target_modules is at its default: query and value of the attention (arXiv
2106.09685, section 7.1).
"""
OUTPUT_LAYERS = ("lm_head", "embed_out", "score")
MODEL_PART: Part = "language_model"


@dataclass(frozen=True)
class LanguageBase:
    """The layers of a language model, as `lora.names.Learnable`."""

    def may_learn(self, path: str) -> bool:
        """Every layer but the one that gives the logits, as in PEFT."""
        return not is_target(path, OUTPUT_LAYERS)


class _NoSlidingWindow(logging.Filter):
    """Drops transformers' warning that sdpa has no sliding window: texts are shorter than that."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Sliding Window Attention is enabled" not in record.getMessage()


@contextlib.contextmanager
def _without_window_warning(folder: LanguageModelFolder) -> Iterator[None]:
    """For the block that makes a model: without a warning that means nothing for it, because its
    window is as long as what it was made for, or the model does not use one.
    """
    window = folder.config.get("sliding_window")
    unused = not folder.config.get("use_sliding_window", True)
    handlers = logging.getLogger("transformers").handlers
    quiet = _NoSlidingWindow()
    is_idle = unused or (isinstance(window, int) and window >= (folder.longest or window))
    try:
        for handler in handlers if is_idle else ():
            handler.addFilter(quiet)
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(quiet)


def outline(folder: LanguageModelFolder) -> Any:
    """The model without weights, on the meta device. Raises CheckpointError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"), _without_window_warning(folder):
            return AutoModelForCausalLM.from_config(config)
    except Exception as problem:  # an unknown or damaged configuration raises various exceptions
        raise CheckpointError(
            "{path} is a {kind}, which cannot be loaded: {reason}",
            hint=ANOTHER,
            path=folder.path,
            kind=folder.kind,
            reason=problem,
        ) from problem


def load_model(
    folder: LanguageModelFolder, dtype: torch.dtype, device: torch.device, *, four_bit: bool = False
) -> Any:
    """The frozen base on its device. Raises CheckpointError, ConfigError."""
    from transformers import AutoModelForCausalLM

    more: dict[str, Any] = {}
    if four_bit:
        require_four_bit(device)
        from transformers import BitsAndBytesConfig

        # QLoRA (arXiv 2305.14314): NormalFloat4, with quantized constants
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        more["device_map"] = {"": str(device)}
    try:
        with _without_window_warning(folder):
            model = AutoModelForCausalLM.from_pretrained(
                folder.path,
                torch_dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                low_cpu_mem_usage=True,
                **more,
            )
    except Exception as problem:  # a damaged folder raises various exceptions
        if is_out_of_memory(problem):
            raise
        raise CheckpointError(
            "{path} cannot be loaded: {reason}", hint=INCOMPLETE, path=folder.path, reason=problem
        ) from problem
    model.requires_grad_(False)
    return model if four_bit else model.to(device)


def require_four_bit(device: torch.device) -> None:
    """Raise ConfigError where a base cannot be loaded in 4 bits."""
    if device.type != "cuda" or torch.version.cuda is None:
        raise ConfigError(
            "load_in_4bit needs an NVIDIA card, but training runs on {device}",
            hint="Set load_in_4bit to false.",
            device=device,
        )
    # bitsandbytes 0.39 to 0.41 import it
    environment.show("scipy")
    try:
        import bitsandbytes  # noqa: F401
    except Exception as problem:  # it raises various exceptions on unsupported machines
        raise ConfigError(
            "load_in_4bit needs the bitsandbytes package, which cannot be used: {reason}",
            hint="Install it with `pip install bitsandbytes`, or set load_in_4bit to false.",
            reason=problem,
        ) from problem


def targets_of(model: Any, kind: str, settings: LoraSettings) -> tuple[str, ...]:
    """The target layers that the settings mean for a model of this kind: by default TARGETS, or
    what PEFT names for the architecture where the layers have other names.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    asked = tuple(settings.target_modules)
    if asked != UNET_TARGETS:
        return asked
    layers = adaptable_layers(model, LanguageBase())
    if any(is_target(path, TARGETS) for path in layers):
        return TARGETS
    usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, TARGETS)
    return tuple(usual)


def target_paths(model: Any, targets: tuple[str, ...]) -> list[str]:
    """Paths of the target layers, in the model's order. Raises ConfigError for targets that match
    no layer.
    """
    return matching_layers(model, LanguageBase(), MODEL_PART, targets, TARGETS)
