"""The settings form as data: which of the config's fields the tab shows, under which human names, with which bounds.

Types, bounds, defaults and help come from `config` itself, so that no second list can differ; only the names, the units and the order are told here.
Paths and the LoRA's name are no fields: the dataset, the checkpoint and the name are chosen elsewhere. Called by the home route and by plan.py.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lora_trainer import config
from lora_trainer.config import GROUPS
from lora_trainer.webui import texts

Type = Literal["text", "lines", "number", "integer", "auto_number", "auto_integer", "choice", "flag", "auto_flag", "list", "number_list", "paragraph"]
"""`auto_...`: may be empty, which means auto. `lines`: one text a line; `paragraph`: one long text. `list` and `number_list`: separated by commas."""

CHOSEN_ELSEWHERE: Mapping[str, str | None] = {
    "train_data_dir": "dataset", "metadata_path": "dataset", "base_model": "checkpoint", "vae": "checkpoint", "name": "name",
    "output_dir": None, "lora_dir": None,
}  # fmt: skip
"""Config keys that are no fields of the form -> the place of the tab that decides them."""

Texts = Mapping[str, str]

LABELS: Texts = {
    "trigger_word": "Trigger word",
    "resolution": "Resolution",
    "repeats": "Repeats",
    "enable_bucket": "Keep aspect ratios",
    "bucket_step": "Size step",
    "min_bucket_side": "Shortest side",
    "max_bucket_side": "Longest side",
    "max_upscale": "Enlarge at most",
    "caption_dropout": "Caption dropout",
    "shuffle_caption": "Shuffle captions",
    "keep_tokens": "Parts kept in place",
    "flip_augmentation": "Mirror at random",
    "background": "Background",
    "on_bad_data": "Unusable images",
    "prediction_type": "Prediction type",
    "zero_terminal_snr": "Zero terminal SNR",
    "clip_skip": "Clip skip",
    "max_token_length": "Longest caption",
    "mixed_precision": "Precision",
    "lora_rank": "Rank",
    "lora_alpha": "Alpha",
    "lora_dropout": "LoRA dropout",
    "target_modules": "Layers of the UNet",
    "train_text_encoder": "Train the text encoder",
    "text_encoder_targets": "Layers of the text encoder",
    "batch_size": "Images per step",
    "epochs": "Epochs",
    "max_train_steps": "Steps",
    "learning_rate": "Learning rate",
    "text_encoder_lr": "Text encoder's learning rate",
    "gradient_accumulation_steps": "Batches gathered per step",
    "gradient_checkpointing": "Save memory (gradient checkpointing)",
    "optimizer": "Optimizer",
    "weight_decay": "Weight decay",
    "max_grad_norm": "Gradient limit",
    "lr_scheduler": "Learning rate over time",
    "lr_warmup_steps": "Warm-up",
    "min_snr_gamma": "Min-SNR gamma",
    "noise_offset": "Noise offset",
    "seed": "Seed",
    "cache_latents": "Keep encoded images",
    "device": "Device",
    "sample_prompts": "Preview prompts",
    "sample_negative_prompt": "Preview negative prompt",
    "sample_every": "Preview every",
    "sample_steps": "Preview sampling steps",
    "sample_size": "Preview size",
    "sample_strengths": "Preview strengths",
    "sample_sampler": "Preview sampler",
    "sample_guidance": "Preview CFG scale",
    "sample_seed": "Preview seed",
    "save_steps": "Save every",
    "save_epochs": "Save every so many epochs",
    "keep_last": "Keep last",
    "preferred_weight": "Recommended strength",
}
"""Key -> what an artist calls it."""

HELPS: Texts = {
    "max_train_steps": "How many steps are trained. auto: as many as the epochs come to.",
    "epochs": "How often all images are gone through.",
    "resolution": "A picture of any shape is trained with as many pixels as a square of this side. auto: what the checkpoint was made for.",
    "lora_rank": "How much the LoRA can hold. 8 holds most styles and characters; 16 to 32 keeps more detail, in a larger file.",
    "sample_prompts": "Each line is a prompt for preview pictures during the training. Empty: only one picture at the end, from the first caption.",
    "repeats": "How often each image is seen in one epoch. A number in front of a folder's name (10_name) counts instead for that folder.",
    "bucket_step": "Width and height of the trained pictures are multiples of this many pixels.",
    "min_bucket_side": "No side of a trained picture is shorter. auto: half the resolution.",
    "max_bucket_side": "No side of a trained picture is longer. auto: twice the resolution.",
    "max_upscale": "A small image is enlarged at most this many times; beyond that it is trained smaller.",
    "on_bad_data": "What happens with images and captions that cannot be used. They are listed in either case.",
    "mixed_precision": "Number format of the model. auto: bf16 where the device is good at it, else fp16 on a GPU, else float32.",
    "lora_alpha": "Divided by the rank, this is how strongly the LoRA takes effect. auto: equal to the rank.",
    "optimizer": "How the weights are changed. AdamW 8-bit saves a little memory; it needs the bitsandbytes package and an NVIDIA card.",
    "max_grad_norm": "Larger changes in a single step are cut down to this. 0: never.",
    "min_snr_gamma": "Weighs rough shapes and fine detail more evenly (Min-SNR). auto: off; 5 learns faster and more evenly.",
    "device": "What computes: auto, cuda (an NVIDIA card), cuda:1 (the second one), mps (a Mac) or cpu.",
    "sample_strengths": "LoRA strengths to show, separated by commas, such as 0, 0.5, 1.",
    "sample_sampler": "The sampler of the preview pictures.",
}
"""Key -> its help, where the config's own sentence speaks of files and keys that nobody sees in the tab."""

KEYS = frozenset(LABELS)
_GROUP_OF = {item.name: group for _, group in GROUPS for item in dataclasses.fields(group)}  # type: ignore[arg-type]
# keys without an underscore are words of the language too
_KEYS_IN_A_SENTENCE = re.compile(r"(?<!\w)(?:{})(?!\w)".format("|".join(key for key in LABELS if "_" in key)))
PLACES: Mapping[str, str | None] = {**{key: key for key in LABELS}, **CHOSEN_ELSEWHERE}
"""Config key -> where its problems are shown: a field's key, "dataset", "checkpoint", "name", or None."""

PLAIN = ("trigger_word", "max_train_steps", "epochs", "resolution", "lora_rank", "learning_rate", "sample_prompts", "preferred_weight")
"""What is shown at once, in this order; all else is folded away under Advanced."""

TITLES: Texts = {
    "plain": "Settings",
    "dataset": "Images and captions",
    "checkpoint": "Model",
    "lora": "LoRA",
    "training": "Training",
    "samples": "Previews",
    "output": "Saving",
}

UNITS: Texts = {
    "resolution": "pixels", "bucket_step": "pixels", "min_bucket_side": "pixels", "max_bucket_side": "pixels", "sample_size": "pixels",
    "save_steps": "steps", "sample_every": "steps", "lr_warmup_steps": "steps",
    "max_upscale": "times", "max_token_length": "tokens",
}  # fmt: skip
STEPS: Mapping[str, float] = {
    "resolution": 64, "bucket_step": 8, "sample_size": 64, "preferred_weight": 0.05, "caption_dropout": 0.05, "lora_dropout": 0.05,
    "noise_offset": 0.01, "sample_guidance": 0.5, "max_upscale": 0.5, "lora_alpha": 1, "weight_decay": 0.01, "max_grad_norm": 0.1, "min_snr_gamma": 1,
    "threshold": 0.05, "character_threshold": 0.05,
}  # fmt: skip
"""What one click on a field's arrows adds. Learning rates have none: any number will do."""

CHOICES: Texts = {
    "auto": "auto", "stop": "stop and list them", "skip": "train without them", "memory": "in memory", "disk": "on disk",
    "constant": "constant", "constant_with_warmup": "constant, with warm-up", "linear": "linear, down to zero", "cosine": "cosine, down to zero",
    "cosine_with_restarts": "cosine with restarts", "polynomial": "polynomial",
}  # fmt: skip
"""Value -> how it is shown."""
PROPER_NAMES: Mapping[str, str] = {
    "no": "float32", "fp16": "fp16", "bf16": "bf16", "epsilon": "epsilon", "v_prediction": "v-prediction", "75": "75", "150": "150", "225": "225",
    "adamw": "AdamW", "adamw8bit": "AdamW 8-bit", "euler_a": "Euler a", "dpmpp_2m_karras": "DPM++ 2M Karras", "ddim": "DDIM",
}  # fmt: skip
"""Value -> how it is shown in every language."""


def form(language: str) -> dict[str, Any]:
    """{groups: [{id, title, advanced, fields: [...]}]}: the plain fields as one group, then the advanced ones by their part of the config."""
    title = texts.translate(TITLES["plain"], language)
    plain = {"id": "plain", "title": title, "advanced": False, "fields": [_field(key, language) for key in PLAIN]}
    return {"groups": [plain, *(_advanced_group(identity, group, language) for identity, group in GROUPS)]}


def _advanced_group(identity: str, group: type[config.Settings], language: str) -> dict[str, Any]:
    keys = [item.name for item in dataclasses.fields(group) if item.name in KEYS and item.name not in PLAIN]  # type: ignore[arg-type]
    return {"id": identity, "title": texts.translate(TITLES[identity], language), "advanced": True, "fields": [_field(key, language) for key in keys]}


def _field(key: str, language: str) -> dict[str, Any]:
    return {
        **field_of(_GROUP_OF[key], key, language),
        "label": texts.translate(LABELS[key], language),
        "help": _help(key, language),
        "advanced": key not in PLAIN,
        "unit": texts.translate(UNITS[key], language) if key in UNITS else "",
    }


def field_of(group: type[config.Settings], key: str, language: str) -> dict[str, Any]:
    """What the browser has to know of one setting of a group to draw it, but for its name and its help: kind, choices, bounds, default."""
    item = next(item for item in dataclasses.fields(group) if item.name == key)  # type: ignore[arg-type]
    kind, optional = _kind(group, key)
    return {
        "key": key,
        "type": type_of(group, key),
        "choices": [{"value": choice, "label": _shown(choice, language)} for choice in typing.get_args(kind)] if _is_choice(kind) else [],
        "minimum": item.metadata["at_least"],
        "maximum": item.metadata["at_most"],
        "above": item.metadata["above"],
        "step": STEPS.get(key, 1 if kind is int else None),
        "default": list(item.default) if isinstance(item.default, tuple) else item.default,
        "optional": optional,
        "unit": "",
    }


def _help(key: str, language: str) -> str:
    """The config's own sentence, unless HELPS has one; where it speaks of another setting by its key, by the name that the form shows."""
    sentence = texts.translate(HELPS.get(key) or config.documentation()[key], language)
    return _KEYS_IN_A_SENTENCE.sub(lambda found: f"\u201c{texts.translate(LABELS[found.group()], language)}\u201d", sentence)


def type_of(group: type[config.Settings], key: str) -> Type:
    """How a setting is entered."""
    kind, optional = _kind(group, key)
    if _is_choice(kind):
        return "choice"
    if typing.get_origin(kind) is tuple:
        if key == "sample_prompts":  # prompts contain commas
            return "lines"
        return "number_list" if typing.get_args(kind)[0] is float else "list"
    if kind in (str, Path):
        return "paragraph" if key == "instruction" else "text"
    names: dict[Any, Type] = {int: "integer", float: "number", bool: "flag"}
    optionals: dict[Any, Type] = {int: "auto_integer", float: "auto_number", bool: "auto_flag"}
    return optionals[kind] if optional else names[kind]


@cache
def _kinds(group: type[config.Settings]) -> dict[str, Any]:
    return typing.get_type_hints(group)


def _kind(group: type[config.Settings], key: str) -> tuple[Any, bool]:
    """A setting's type without None, and whether None, which is auto, is allowed."""
    kind = _kinds(group)[key]  # type: ignore[arg-type]  # mypy takes a dataclass for unhashable
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(option for option in typing.get_args(kind) if option is not type(None)), True
    return kind, False


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _shown(choice: object, language: str) -> str:
    name = str(choice)
    return PROPER_NAMES[name] if name in PROPER_NAMES else texts.translate(CHOICES[name], language)
