"""The settings form as data: which of the config's fields the tab shows, under which human names, with which bounds.

Types, bounds, defaults and help come from `config` itself, so that no second list can differ; only the names, the units and the order are told here.
Paths and the LoRA's name are no fields: the dataset, the checkpoint and the name are chosen elsewhere. Called by the home route and by plan.py.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from lora_trainer import config
from lora_trainer.config import GROUPS
from lora_trainer.errors import Message
from lora_trainer.webui import texts

Type = Literal["text", "lines", "number", "integer", "auto_number", "auto_integer", "choice", "flag", "auto_flag", "list", "number_list"]
"""`auto_...`: may be empty, which means auto. `lines`: one text a line. `list` and `number_list`: separated by commas."""

CHOSEN_ELSEWHERE: Mapping[str, str | None] = {
    "train_data_dir": "dataset", "metadata_path": "dataset", "base_model": "checkpoint", "vae": "checkpoint", "name": "name",
    "output_dir": None, "lora_dir": None,
}  # fmt: skip
"""Config keys that are no fields of the form -> the place of the tab that decides them."""

LABELS: Mapping[str, Message] = {
    "trigger_word": Message("Trigger word"),
    "resolution": Message("Resolution"),
    "repeats": Message("Repeats"),
    "enable_bucket": Message("Keep aspect ratios"),
    "bucket_step": Message("Size step"),
    "min_bucket_side": Message("Shortest side"),
    "max_bucket_side": Message("Longest side"),
    "max_upscale": Message("Enlarge at most"),
    "caption_dropout": Message("Caption dropout"),
    "shuffle_caption": Message("Shuffle captions"),
    "keep_tokens": Message("Parts kept in place"),
    "flip_augmentation": Message("Mirror at random"),
    "background": Message("Background"),
    "on_bad_data": Message("Unusable images"),
    "prediction_type": Message("Prediction type"),
    "zero_terminal_snr": Message("Zero terminal SNR"),
    "clip_skip": Message("Clip skip"),
    "max_token_length": Message("Longest caption"),
    "mixed_precision": Message("Precision"),
    "lora_rank": Message("Rank"),
    "lora_alpha": Message("Alpha"),
    "lora_dropout": Message("LoRA dropout"),
    "target_modules": Message("Layers of the UNet"),
    "train_text_encoder": Message("Train the text encoder"),
    "text_encoder_targets": Message("Layers of the text encoder"),
    "batch_size": Message("Images per step"),
    "epochs": Message("Epochs"),
    "max_train_steps": Message("Steps"),
    "learning_rate": Message("Learning rate"),
    "text_encoder_lr": Message("Text encoder's learning rate"),
    "gradient_accumulation_steps": Message("Batches gathered per step"),
    "gradient_checkpointing": Message("Save memory (gradient checkpointing)"),
    "optimizer": Message("Optimizer"),
    "weight_decay": Message("Weight decay"),
    "max_grad_norm": Message("Gradient limit"),
    "lr_scheduler": Message("Learning rate over time"),
    "lr_warmup_steps": Message("Warm-up"),
    "min_snr_gamma": Message("Min-SNR gamma"),
    "noise_offset": Message("Noise offset"),
    "seed": Message("Seed"),
    "cache_latents": Message("Keep encoded images"),
    "device": Message("Device"),
    "sample_prompts": Message("Preview prompts"),
    "sample_negative_prompt": Message("Preview negative prompt"),
    "sample_every": Message("Preview every"),
    "sample_steps": Message("Preview sampling steps"),
    "sample_size": Message("Preview size"),
    "sample_strengths": Message("Preview strengths"),
    "sample_sampler": Message("Preview sampler"),
    "sample_guidance": Message("Preview CFG scale"),
    "sample_seed": Message("Preview seed"),
    "save_steps": Message("Save every"),
    "save_epochs": Message("Save every so many epochs"),
    "keep_last": Message("Keep last"),
    "preferred_weight": Message("Recommended strength"),
}
"""Key -> what an artist calls it."""

KEYS = frozenset(LABELS)
PLACES: Mapping[str, str | None] = {**{key: key for key in LABELS}, **CHOSEN_ELSEWHERE}
"""Config key -> where its problems are shown: a field's key, "dataset", "checkpoint", "name", or None."""

PLAIN = ("trigger_word", "max_train_steps", "epochs", "resolution", "lora_rank", "learning_rate", "sample_prompts", "preferred_weight")
"""What is shown at once, in this order; all else is folded away under Advanced."""

PLAIN_TITLE = Message("Settings")
TITLES: Mapping[str, Message] = {
    "dataset": Message("Images and captions"),
    "checkpoint": Message("Model"),
    "lora": Message("LoRA"),
    "training": Message("Training"),
    "samples": Message("Previews"),
    "output": Message("Saving"),
}

UNITS: Mapping[str, Message] = {
    **dict.fromkeys(("resolution", "bucket_step", "min_bucket_side", "max_bucket_side", "sample_size"), Message("pixels")),
    **dict.fromkeys(("max_train_steps", "save_steps", "sample_every", "lr_warmup_steps"), Message("steps")),
    "max_upscale": Message("times"),
    "max_token_length": Message("tokens"),
}
STEPS: Mapping[str, float] = {
    "resolution": 64, "bucket_step": 8, "sample_size": 64, "preferred_weight": 0.05, "caption_dropout": 0.05, "lora_dropout": 0.05,
    "noise_offset": 0.01, "sample_guidance": 0.5, "max_upscale": 0.5, "lora_alpha": 1, "weight_decay": 0.01, "max_grad_norm": 0.1, "min_snr_gamma": 1,
}  # fmt: skip
"""What one click on a field's arrows adds. Learning rates have none: any number will do."""

CHOICES: Mapping[str, Message | str] = {
    "auto": Message("auto"), "stop": Message("stop and list them"), "skip": Message("train without them"), "no": "float32",
    "epsilon": "epsilon", "v_prediction": "v-prediction", "fp16": "fp16", "bf16": "bf16", "75": "75", "150": "150", "225": "225",
    "adamw": "AdamW", "adamw8bit": "AdamW 8-bit", "memory": Message("in memory"), "disk": Message("on disk"),
    "constant": Message("constant"), "constant_with_warmup": Message("constant, with warm-up"), "linear": Message("linear, down to zero"),
    "cosine": Message("cosine, down to zero"), "cosine_with_restarts": Message("cosine with restarts"), "polynomial": Message("polynomial"),
    "euler_a": "Euler a", "dpmpp_2m_karras": "DPM++ 2M Karras", "ddim": "DDIM",
}  # fmt: skip
"""Value -> how it is shown. Names that are the same in every language are plain texts."""


def form(language: str) -> dict[str, Any]:
    """{groups: [{id, title, advanced, fields: [...]}]}: the plain fields as one group, then the advanced ones by their part of the config."""
    plain = {"id": "plain", "title": texts.say(PLAIN_TITLE, language), "advanced": False, "fields": [_field(key, language) for key in PLAIN]}
    return {"groups": [plain, *(_advanced_group(identity, group, language) for identity, group in GROUPS)]}


def _advanced_group(identity: str, group: type[config.Settings], language: str) -> dict[str, Any]:
    keys = [item.name for item in dataclasses.fields(group) if item.name in KEYS and item.name not in PLAIN]  # type: ignore[arg-type]
    return {"id": identity, "title": texts.say(TITLES[identity], language), "advanced": True, "fields": [_field(key, language) for key in keys]}


def _field(key: str, language: str) -> dict[str, Any]:
    item = fields()[key]
    kind, optional = _kind(key)
    return {
        "key": key,
        "label": texts.say(LABELS[key], language),
        "help": texts.translate(config.documentation()[key], language),
        "type": type_of(key),
        "choices": [{"value": choice, "label": _shown(choice, language)} for choice in typing.get_args(kind)] if _is_choice(kind) else [],
        "minimum": _bound(item, "at_least"),
        "maximum": _bound(item, "at_most"),
        "above": _bound(item, "above"),
        "step": STEPS.get(key, 1 if kind is int else None),
        "default": list(item.default) if isinstance(item.default, tuple) else item.default,
        "optional": optional,
        "advanced": key not in PLAIN,
        "unit": texts.say(UNITS[key], language) if key in UNITS else "",
    }


def fields() -> dict[str, dataclasses.Field[Any]]:
    """Key -> its field, for every key of the form."""
    return {item.name: item for _, group in GROUPS for item in dataclasses.fields(group) if item.name in KEYS}  # type: ignore[arg-type]


def type_of(key: str) -> Type:
    """How a key is entered."""
    kind, optional = _kind(key)
    if _is_choice(kind):
        return "choice"
    if typing.get_origin(kind) is tuple:
        if key == "sample_prompts":  # prompts contain commas
            return "lines"
        return "number_list" if typing.get_args(kind)[0] is float else "list"
    names: dict[Any, Type] = {int: "integer", float: "number", bool: "flag", str: "text"}
    optionals: dict[Any, Type] = {int: "auto_integer", float: "auto_number", bool: "auto_flag"}
    return optionals[kind] if optional else names[kind]


@cache
def _kinds() -> dict[str, Any]:
    return {key: kind for _, group in GROUPS for key, kind in typing.get_type_hints(group).items()}


def _kind(key: str) -> tuple[Any, bool]:
    """A key's type without None, and whether None, which is auto, is allowed."""
    kind = _kinds()[key]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(option for option in typing.get_args(kind) if option is not type(None)), True
    return kind, False


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _shown(choice: object, language: str) -> str:
    shown = CHOICES[str(choice)]
    return shown if isinstance(shown, str) else texts.say(shown, language)


def _bound(item: dataclasses.Field[Any], name: str) -> float | None:
    value: float | None = item.metadata[name]
    return value
