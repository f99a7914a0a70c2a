"""The settings form as data: which of the config's fields the tab shows, under which human names,
with which bounds.

Types, bounds, defaults and help come from `config` itself, so that no second list can differ; only
the names, the units and the order are told here. Paths and the LoRA's name are no fields: the
dataset, the checkpoint and the name are chosen elsewhere. Called by the home route and by plan.py.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lora_trainer.settings import schema, training
from lora_trainer.settings.training import GROUPS
from lora_trainer.webui import texts

Type = Literal[
    "text",
    "lines",
    "number",
    "integer",
    "auto_number",
    "auto_integer",
    "choice",
    "flag",
    "auto_flag",
    "list",
    "number_list",
    "paragraph",
]
"""`auto_...`: may be empty, which means auto. `lines`: one text a line; `paragraph`: one long text.
`list` and `number_list`: separated by commas.
"""

CHOSEN_ELSEWHERE: Mapping[str, str | None] = {
    "train_data_dir": "dataset",
    "metadata_path": "dataset",
    "base_model": "checkpoint",
    "vae": "checkpoint",
    "name": "name",
    "output_dir": None,
    "lora_dir": None,
}
"""Config keys that are no fields of the form -> the place of the tab that decides them."""

Texts = Mapping[str, str]

LABELS: Texts = {
    "trigger_word": "Trigger word",
    "resolution": "Resolution",
    "repeats": "Repeats",
    "enable_bucket": "Aspect ratio buckets",
    "bucket_step": "Bucket step",
    "min_bucket_side": "Min bucket side",
    "max_bucket_side": "Max bucket side",
    "max_upscale": "Max upscale",
    "caption_dropout": "Caption dropout",
    "shuffle_caption": "Shuffle caption",
    "keep_tokens": "Keep tokens",
    "flip_augmentation": "Flip augmentation",
    "background": "Background",
    "on_bad_data": "Unusable images",
    "prediction_type": "Prediction type",
    "zero_terminal_snr": "Zero terminal SNR",
    "clip_skip": "Clip skip",
    "max_token_length": "Max token length",
    "mixed_precision": "Mixed precision",
    "lora_rank": "Rank",
    "lora_alpha": "Alpha",
    "lora_dropout": "LoRA dropout",
    "target_modules": "Target modules (UNet)",
    "train_text_encoder": "Train the text encoder",
    "text_encoder_targets": "Target modules (text encoder)",
    "batch_size": "Batch size",
    "epochs": "Epochs",
    "max_train_steps": "Steps",
    "learning_rate": "Learning rate",
    "text_encoder_lr": "Text encoder learning rate",
    "gradient_accumulation_steps": "Gradient accumulation",
    "gradient_checkpointing": "Gradient checkpointing",
    "optimizer": "Optimizer",
    "weight_decay": "Weight decay",
    "max_grad_norm": "Max grad norm",
    "lr_scheduler": "LR scheduler",
    "lr_warmup_steps": "LR warmup",
    "lr_scheduler_num_cycles": "LR restarts",
    "lr_scheduler_power": "LR power",
    "min_snr_gamma": "Min-SNR gamma",
    "noise_offset": "Noise offset",
    "seed": "Seed",
    "cache_latents": "Cache latents",
    "device": "Device",
    "sample_prompts": "Preview prompts",
    "sample_negative_prompt": "Preview negative prompt",
    "sample_every": "Preview every N steps",
    "sample_steps": "Preview sampling steps",
    "sample_size": "Preview size",
    "sample_strengths": "Preview strengths",
    "sample_sampler": "Preview sampler",
    "sample_guidance": "Preview CFG scale",
    "sample_seed": "Preview seed",
    "save_steps": "Save every N steps",
    "save_epochs": "Save every N epochs",
    "keep_last": "Keep last",
    "preferred_weight": "Recommended strength",
}
"""Key -> what an artist calls it."""

HELPS: Texts = {
    "max_train_steps": "How many steps are trained.",
    "epochs": "How often all images are gone through.",
    "resolution": (
        "A picture of any shape is trained with as many pixels as a square of this side. auto: what"
        " the checkpoint was made for."
    ),
    "lora_rank": (
        "How much the LoRA can hold. 8 holds most styles and characters; 16 to 32 keeps more"
        " detail, in a larger file."
    ),
    "sample_prompts": (
        "Each line is a prompt for preview pictures during the training. Empty: only one picture at"
        " the end, from the first caption."
    ),
    "repeats": (
        "How often each image is seen in one epoch. A number in front of a folder's name (10_name)"
        " counts instead for that folder."
    ),
    "bucket_step": "Width and height of the trained pictures are multiples of this many pixels.",
    "min_bucket_side": "No side of a trained picture is shorter. auto: half the resolution.",
    "max_bucket_side": "No side of a trained picture is longer. auto: twice the resolution.",
    "max_upscale": (
        "A small image is enlarged at most this many times; beyond that it is trained smaller."
    ),
    "on_bad_data": (
        "What happens with images and captions that cannot be used. They are listed in either case."
    ),
    "mixed_precision": (
        "Number format of the model. auto: bf16 where the device is good at it, else fp16 on a GPU,"
        " else float32."
    ),
    "lora_alpha": (
        "Divided by the rank, this is how strongly the LoRA takes effect. auto: equal to the rank."
    ),
    "optimizer": (
        "How the weights are changed. AdamW 8-bit saves a little memory; it needs the bitsandbytes"
        " package and an NVIDIA card."
    ),
    "max_grad_norm": "Larger changes in a single step are cut down to this. 0: never.",
    "min_snr_gamma": (
        "Weighs rough shapes and fine detail more evenly (Min-SNR). auto: off; 5 learns faster and"
        " more evenly."
    ),
    "batch_size": (
        "How many images are trained in one step. More is smoother and needs more memory."
    ),
    "gradient_accumulation_steps": (
        "So many batches make one step: the effect of a larger batch_size in the memory of a small"
        " one."
    ),
    "gradient_checkpointing": (
        "Saves memory by computing parts twice: about a quarter slower, about half the memory."
    ),
    "cache_latents": (
        "Images are encoded once, and what comes out is kept. auto: in memory, on disk for very"
        " large sets."
    ),
    "keep_tokens": (
        "With shuffle_caption: this many tags at the start stay where they are. The trigger word"
        " counts as one."
    ),
    "shuffle_caption": (
        "Puts the tags of each caption, which commas separate, in a new order each time."
    ),
    "max_token_length": (
        "How much of a caption training reads, in tokens. Longer ones than 75 are encoded in"
        " pieces, as the WebUI does."
    ),
    "enable_bucket": (
        "Images are trained near their own aspect ratio. Off: each is cropped to a square."
    ),
    "lr_warmup_steps": (
        "The learning rate rises from zero during so many steps. Works with every scheduler."
    ),
    "device": (
        "What computes: auto, cuda (an NVIDIA card), cuda:1 (the second one), mps (a Mac) or cpu."
    ),
    "sample_strengths": "LoRA strengths to show, separated by commas, such as 0, 0.5, 1.",
    "sample_sampler": "The sampler of the preview pictures.",
}
"""Key -> its help, where the config's own sentence speaks of files and keys that nobody sees in the
tab.
"""

TERMS: Mapping[str, str] = {
    "trigger_word": "activation token instance prompt keyword class token",
    "resolution": "size width height train_resolution",
    "repeats": "num_repeats dataset repeats",
    "enable_bucket": "bucketing arb aspect ratio square crop",
    "bucket_step": "bucket_reso_steps size step",
    "min_bucket_side": "min_bucket_reso shortest side",
    "max_bucket_side": "max_bucket_reso longest side",
    "max_upscale": "bucket_no_upscale enlarge",
    "caption_dropout": "caption_dropout_rate unconditional",
    "shuffle_caption": "shuffle_tags random order",
    "keep_tokens": "keep_tokens fixed tags",
    "flip_augmentation": "flip_aug mirror augmentation",
    "background": "alpha transparent transparency",
    "on_bad_data": "skip errors",
    "prediction_type": "v_parameterization v-pred vpred eps",
    "zero_terminal_snr": "ztsnr zero snr",
    "max_token_length": "caption length 75 150 225 tokens",
    "mixed_precision": "fp16 bf16 float16 bfloat16 float32 dtype half",
    "lora_rank": "network_dim dimension dim rank",
    "lora_alpha": "network_alpha scale",
    "lora_dropout": "network_dropout",
    "target_modules": "network_module layers unet attention",
    "train_text_encoder": "te clip network_train_unet_only",
    "text_encoder_targets": "te layers clip",
    "batch_size": "train_batch_size bs images per step",
    "epochs": "max_train_epochs num_epochs",
    "max_train_steps": "steps iterations",
    "learning_rate": "lr unet_lr",
    "text_encoder_lr": "te_lr lr",
    "gradient_accumulation_steps": "grad accumulation accumulate",
    "gradient_checkpointing": "save memory vram",
    "optimizer": "optimizer_type adam adamw 8bit",
    "weight_decay": "regularization l2",
    "max_grad_norm": "gradient clipping clip_grad",
    "lr_scheduler": "scheduler cosine constant linear polynomial learning rate over time",
    "lr_warmup_steps": "warm-up warmup_steps",
    "lr_scheduler_num_cycles": "cosine restarts cycles",
    "lr_scheduler_power": "polynomial decay",
    "min_snr_gamma": "snr minsnr",
    "noise_offset": "dark bright offset noise",
    "cache_latents": "cache_latents_to_disk keep encoded images",
    "device": "gpu cuda cpu",
    "sample_prompts": "sample previews",
    "sample_every": "sample_every_n_steps",
    "sample_guidance": "cfg scale guidance",
    "save_steps": "save_every_n_steps checkpoint",
    "save_epochs": "save_every_n_epochs checkpoint",
    "keep_last": "save_last_n_steps",
    "preferred_weight": "preferred weight lora strength multiplier",
}
"""Key -> what else people may look for it by: the names that other trainers, and those who write of
training, give it. In no language.
"""

KEYS = frozenset(LABELS)
_GROUP_OF = {item.name: group for _, group in GROUPS for item in schema.fields_of(group)}
# keys without an underscore are words of the language too
_KEYS_IN_A_SENTENCE = re.compile(
    r"(?<!\w)(?:{})(?!\w)".format("|".join(key for key in LABELS if "_" in key))
)
PLACES: Mapping[str, str | None] = {**{key: key for key in LABELS}, **CHOSEN_ELSEWHERE}
"""Config key -> where its problems are shown: a field's key, "dataset", "checkpoint", "name", or
None.
"""

PLAIN = (
    "trigger_word",
    "max_train_steps",
    "epochs",
    "resolution",
    "lora_rank",
    "learning_rate",
    "sample_prompts",
    "preferred_weight",
)
"""What is shown at once, in this order; all else is folded away under Advanced."""

TITLES: Texts = {
    "plain": "Settings",
    "dataset": "Images and captions",
    "checkpoint": "Model",
    "lora": "LoRA",
    "training": "Training parameters",
    "samples": "Previews",
    "output": "Saving the LoRA",
}

UNITS: Texts = {
    "resolution": "pixels",
    "bucket_step": "pixels",
    "min_bucket_side": "pixels",
    "max_bucket_side": "pixels",
    "sample_size": "pixels",
    "lr_warmup_steps": "steps",
    "max_upscale": "times",
    "max_token_length": "tokens",
}
STEPS: Mapping[str, float] = {
    "resolution": 64,
    "bucket_step": 8,
    "sample_size": 64,
    "preferred_weight": 0.05,
    "caption_dropout": 0.05,
    "lora_dropout": 0.05,
    "noise_offset": 0.01,
    "sample_guidance": 0.5,
    "max_upscale": 0.5,
    "lora_alpha": 1,
    "weight_decay": 0.01,
    "max_grad_norm": 0.1,
    "min_snr_gamma": 1,
    "threshold": 0.05,
    "character_threshold": 0.05,
}
"""What one click on a field's arrows adds. Learning rates have none: any number will do."""

CHOICES: Texts = {
    "auto": "auto",
    "stop": "stop and list them",
    "skip": "train without them",
    "memory": "in memory",
    "disk": "on disk",
    "constant": "constant",
    "linear": "linear, down to zero",
    "cosine": "cosine, down to zero",
    "cosine_with_restarts": "cosine with restarts",
    "polynomial": "polynomial",
}
"""Value -> how it is shown."""
PROPER_NAMES: Mapping[str, str] = {
    "no": "float32",
    "fp16": "fp16",
    "bf16": "bf16",
    "epsilon": "epsilon",
    "v_prediction": "v-prediction",
    "75": "75",
    "150": "150",
    "225": "225",
    "adamw": "AdamW",
    "adamw8bit": "AdamW 8-bit",
    "euler_a": "Euler a",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "ddim": "DDIM",
}
"""Value -> how it is shown in every language."""


def form(language: str) -> dict[str, Any]:
    """{groups: [{id, title, advanced, fields: [...]}]}: the plain fields as one group, then the
    advanced ones by their part of the config.
    """
    title = texts.translate(TITLES["plain"], language)
    plain = {
        "id": "plain",
        "title": title,
        "advanced": False,
        "fields": [_field(key, language) for key in PLAIN],
    }
    return {
        "groups": [
            plain,
            *(_advanced_group(identity, group, language) for identity, group in GROUPS),
        ]
    }


def _advanced_group(identity: str, group: type[schema.Settings], language: str) -> dict[str, Any]:
    keys = [
        item.name
        for item in schema.fields_of(group)
        if item.name in KEYS and item.name not in PLAIN
    ]
    return {
        "id": identity,
        "title": texts.translate(TITLES[identity], language),
        "advanced": True,
        "fields": [_field(key, language) for key in keys],
    }


def _field(key: str, language: str) -> dict[str, Any]:
    return {
        **field_of(_GROUP_OF[key], key, language),
        "label": texts.translate(LABELS[key], language),
        "help": _help(key, language),
        "advanced": key not in PLAIN,
        "unit": texts.translate(UNITS[key], language) if key in UNITS else "",
        "terms": " ".join(
            dict.fromkeys([LABELS[key], key, key.replace("_", " "), TERMS.get(key, "")])
        ),
    }


def field_of(group: type[schema.Settings], key: str, language: str) -> dict[str, Any]:
    """What the browser has to know of one setting of a group to draw it, but for its name and its
    help: kind, choices, bounds, default.
    """
    item = next(item for item in schema.fields_of(group) if item.name == key)
    kind, optional = _kind(group, key)
    return {
        "key": key,
        "type": type_of(group, key),
        "choices": (
            [
                {"value": choice, "label": _shown(choice, language)}
                for choice in typing.get_args(kind)
            ]
            if _is_choice(kind)
            else []
        ),
        "minimum": item.metadata["at_least"],
        "maximum": item.metadata["at_most"],
        "above": item.metadata["above"],
        "step": STEPS.get(key, 1 if kind is int else None),
        "default": list(item.default) if isinstance(item.default, tuple) else item.default,
        "optional": optional,
        "unit": "",
    }


def _help(key: str, language: str) -> str:
    """The config's own sentence, unless HELPS has one; where it speaks of another setting by its
    key, by the name that the form shows.
    """
    sentence = texts.translate(HELPS.get(key) or training.documentation()[key], language)
    return _KEYS_IN_A_SENTENCE.sub(
        lambda found: f"\u201c{texts.translate(LABELS[found.group()], language)}\u201d", sentence
    )


def type_of(group: type[schema.Settings], key: str) -> Type:
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
def _kinds(group: type[schema.Settings]) -> dict[str, Any]:
    return typing.get_type_hints(group)


def _kind(group: type[schema.Settings], key: str) -> tuple[Any, bool]:
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
