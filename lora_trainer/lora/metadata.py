"""The metadata of a LoRA file, for A1111, Forge, other tools, and people.

TrainingFacts -> a flat dict of strings (some are JSON), with kohya's keys (ss_*) and those of
ModelSpec 1.0.1 (modelspec.*, https://github.com/Stability-AI/ModelSpec). `export` adds the hashes.
Without torch. A1111 decides from ss_base_model_version and ss_v2 whether to show the LoRA, Forge
from modelspec.architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from lora_trainer import __version__
from lora_trainer.checkpoint.parts import PredictionType
from lora_trainer.dataset.captions import parts
from lora_trainer.families.base import Family
from lora_trainer.lora.credits import Credits
from lora_trainer.settings import schema
from lora_trainer.settings.training import DEFAULT_RANK, RunConfig, TrainingSettings
from lora_trainer.training.optimizers import OPTIMIZERS, settled

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v", None: ""}
"""ModelSpec's values; it has none for flow matching."""


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """A folder of training images."""

    name: str
    """Without the path, because LoRA files are published."""
    image_count: int
    repeats: int
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """The content of the metadata. Values that are auto in `config` are given as used."""

    config: RunConfig
    name: str
    """The LoRA file's stem."""
    family: Family
    prediction_type: PredictionType | None
    """None: not a diffusion model."""
    zero_terminal_snr: bool
    resolution: int
    mixed_precision: str
    """no, fp16 or bf16"""
    text_encoder_lr: float | None
    """None if the text encoder was not trained."""
    step: int
    """Steps trained."""
    step_count: int
    """Steps of the complete run."""
    epoch: int
    """Epochs begun."""
    epoch_count: int
    batches_per_epoch: int
    folders: tuple[FolderFacts, ...]
    buckets: tuple[tuple[tuple[int, int], int], ...]
    """((width, height), images including repeats) per bucket."""
    started_at: float
    """Seconds since 1970."""
    written_at: float
    """Seconds since 1970."""
    base_sha256: str | None = None
    """Hashes from `file.file_hashes`; None if unknown."""
    base_legacy_hash: str | None = None
    vae_sha256: str | None = None
    vae_legacy_hash: str | None = None
    few_steps: tuple[int, float] | None = None
    """Steps and CFG scale of images of a base that was distilled; None: it was not."""
    training_adapter: tuple[str, str] | None = None
    """Name and SHA-256 of the file that was part of the base while it was trained."""
    network_module: str = "networks.lora"
    network_args: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the LoRA type besides the targets."""


def build(facts: TrainingFacts) -> dict[str, str]:
    """All metadata except the hashes of the weights."""
    values = {**_model(facts), **_network(facts), **_training(facts), **_dataset(facts)}
    credits = Credits(**schema.group_to_mapping(facts.config.credits))
    return {
        **{key: str(value) for key, value in values.items()},
        **_modelspec(facts),
        **credits.to_metadata(),
    }


def _model(facts: TrainingFacts) -> dict[str, Any]:
    """The base model."""
    checkpoint = facts.config.checkpoint
    values: dict[str, Any] = {
        "ss_base_model_version": facts.family.base_model_version(facts.prediction_type),
        "ss_v2": facts.family.is_v2,
        "ss_sd_model_name": checkpoint.base_model.name,
        "ss_clip_skip": checkpoint.clip_skip if facts.family.has_clip_skip else None,
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
        "ss_max_token_length": checkpoint.max_token_length,
        "ss_mixed_precision": facts.mixed_precision,
    }
    hashes = {"ss_sd_model_hash": facts.base_legacy_hash, "ss_new_sd_model_hash": facts.base_sha256}
    if checkpoint.vae:
        values["ss_vae_name"] = checkpoint.vae.name
        hashes |= {"ss_vae_hash": facts.vae_legacy_hash, "ss_new_vae_hash": facts.vae_sha256}
    if facts.few_steps is not None:
        steps, cfg = facts.few_steps
        values[SAMPLING] = f"{steps} steps, CFG scale {cfg:g}"
    if facts.training_adapter is not None:
        values[TRAINING_ADAPTER], hashes[f"{TRAINING_ADAPTER}_hash"] = facts.training_adapter
    return {**values, **{key: value for key, value in hashes.items() if value}}


def _network(facts: TrainingFacts) -> dict[str, Any]:
    lora = facts.config.lora
    rank = lora.lora_rank or DEFAULT_RANK
    begun = {"ss_network_weights": lora.init_lora.name} if lora.init_lora else {}
    targets: dict[str, Any] = {**facts.network_args, "target_modules": list(lora.target_modules)}
    if lora.train_text_encoder:
        targets["text_encoder_targets"] = list(lora.text_encoder_targets)
    return {
        "ss_output_name": facts.name,
        "ss_network_module": facts.network_module,
        "ss_network_dim": rank,
        "ss_network_alpha": _number(rank if lora.lora_alpha is None else lora.lora_alpha),
        "ss_network_dropout": lora.lora_dropout or None,
        "ss_network_args": json.dumps(targets),
        **begun,
    }


def _training(facts: TrainingFacts) -> dict[str, Any]:
    training = facts.config.training
    rates = settled(training)
    return {
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.written_at,
        "ss_steps": facts.step,
        "ss_max_train_steps": facts.step_count,
        "ss_epoch": facts.epoch,
        "ss_num_epochs": facts.epoch_count,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_batch_size_per_device": training.batch_size,
        "ss_total_batch_size": training.batch_size * training.gradient_accumulation_steps,
        "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
        "ss_gradient_checkpointing": training.gradient_checkpointing,
        "ss_learning_rate": rates["learning_rate"],
        "ss_unet_lr": rates["learning_rate"] if facts.config.lora.target_modules else None,
        "ss_text_encoder_lr": facts.text_encoder_lr,
        "ss_optimizer": OPTIMIZERS[training.optimizer].described(rates["weight_decay"]),
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_lr_scheduler": training.lr_scheduler,
        "ss_lr_warmup_steps": training.lr_warmup_steps,
        "ss_min_snr_gamma": training.min_snr_gamma,
        **_loss_keys(training),
        "ss_noise_offset": training.noise_offset or None,
        "ss_seed": training.seed,
        "ss_cache_latents": True,
    }


def _loss_keys(training: TrainingSettings) -> dict[str, Any]:
    """Keys of a non-default loss; those of loss_type are kohya's."""
    keys: dict[str, Any] = {}
    if training.loss_weighting != "min_snr":
        keys["ss_loss_weighting"] = training.loss_weighting
    if training.loss_type != "l2":
        keys |= {
            "ss_loss_type": training.loss_type,
            "ss_huber_c": training.huber_c,
            "ss_huber_schedule": training.huber_schedule,
        }
    return keys


def _dataset(facts: TrainingFacts) -> dict[str, Any]:
    """A1111's card shows tags, image count and resolutions; it parses values that start with a
    brace as JSON.
    """
    dataset = facts.config.dataset
    folders = distinct(facts.folders)
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(facts.buckets)
    }
    return {
        "ss_resolution": (facts.resolution, facts.resolution),
        "ss_num_train_images": sum(folder.image_count * folder.repeats for folder in facts.folders),
        "ss_num_reg_images": 0,
        "ss_dataset_dirs": _json(
            {
                name: {"n_repeats": folder.repeats, "img_count": folder.image_count}
                for name, folder in folders.items()
            }
        ),
        "ss_reg_dataset_dirs": "{}",
        "ss_tag_frequency": _json(
            {name: tag_frequency(folder.captions) for name, folder in folders.items()}
        ),
        "ss_enable_bucket": dataset.enable_bucket,
        "ss_bucket_info": _json({"buckets": buckets}),
        "ss_min_bucket_reso": dataset.min_bucket_side or facts.resolution // 2,
        "ss_max_bucket_reso": dataset.max_bucket_side or facts.resolution * 2,
        "ss_bucket_no_upscale": False,
        "ss_caption_dropout_rate": dataset.caption_dropout,
        "ss_shuffle_caption": dataset.shuffle_caption,
        "ss_keep_tokens": dataset.keep_tokens,
        "ss_flip_aug": dataset.flip_augmentation,
        "ss_color_aug": False,
        "ss_random_crop": False,
    }


def _modelspec(facts: TrainingFacts) -> dict[str, str]:
    family, clip_skip = facts.family, facts.config.checkpoint.clip_skip
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{family.spec_architecture(facts.prediction_type)}/lora",
        "implementation": family.spec_implementation,
        "implementation_version": f"sd-webui-lora-trainer/{__version__}",
        "title": facts.name,
        "resolution": f"{facts.resolution}x{facts.resolution}",
        "date": datetime.fromtimestamp(int(facts.written_at), timezone.utc).isoformat(),
        "prediction_type": PREDICTION_TYPES[facts.prediction_type],
        "encoder_layer": str(clip_skip) if family.has_clip_skip else "",
        "trigger_phrase": facts.config.dataset.trigger_word,
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value}


VERDICT, STRENGTH = "lora_trainer.verdict", "lora_trainer.strength"
"""What was judged at the end of the run, and the strength to use."""
SAMPLING = "lora_trainer.sampling"
"""Steps and CFG scale, of a LoRA whose base was distilled to few steps."""
TRAINING_ADAPTER = "ss_training_adapter"
"""The file that was part of the base while it was trained, and is no part of the LoRA."""
STEP = "lora_trainer_step"
"""Of a language model's LoRA: the number of steps."""


def verdict_keys(sentence: str, strength: float) -> dict[str, str]:
    """Metadata of a judged LoRA. `modelspec.usage_hint` is what other programs show of it."""
    return {
        VERDICT: sentence,
        STRENGTH: f"{strength:g}",
        "modelspec.usage_hint": f"Strength {strength:g}",
    }


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """Count of each comma-separated tag, in lower case, as in kohya's trainer."""
    counts: dict[str, int] = {}
    for caption in captions:
        for part in parts(caption):
            counts[part.lower()] = counts.get(part.lower(), 0) + 1
    return counts


def distinct(folders: Iterable[FolderFacts]) -> dict[str, FolderFacts]:
    """Folders by name; a second "images" becomes "images (2)"."""
    named: dict[str, FolderFacts] = {}
    for folder in folders:
        name, count = folder.name, 2
        while name in named:
            name, count = f"{folder.name} ({count})", count + 1
        named[name] = folder
    return named


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
