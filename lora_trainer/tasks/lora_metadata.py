"""Collects the facts for the LoRA file's metadata."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_trainer.adapters import types
from lora_trainer.adapters.training_adapter import TrainingAdapter
from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.scan import Example
from lora_trainer.lora.file import file_hashes
from lora_trainer.lora.metadata import FolderFacts, TrainingFacts
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.train import Trainer

log = logging.getLogger(__name__)


class Hashes:
    """SHA-256 and legacy hash of base and VAE, computed in a thread because a checkpoint takes
    seconds.
    """

    def __init__(self, base: Path, vae: Path | None, *, wanted: bool = True) -> None:
        """Without `wanted`, none are computed."""
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="hashes")
        self._base, self._vae = (
            self._pool.submit(file_hashes, path)
            if wanted and path is not None and path.is_file()
            else None
            for path in (base, vae)
        )
        self._pool.shutdown(wait=False)

    def base(self) -> tuple[str | None, str | None]:
        return _result(self._base)

    def vae(self) -> tuple[str | None, str | None]:
        return _result(self._vae)


def _result(
    future: concurrent.futures.Future[tuple[str, str]] | None,
) -> tuple[str | None, str | None]:
    try:
        return future.result() if future is not None else (None, None)
    except OSError as error:
        # the checkpoint was moved; the hash is optional
        log.warning("no hash of the base model: %s", error)
        return None, None


def training_facts(
    config: RunConfig,
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    buckets: Mapping[Bucket, Sequence[int]],
    trainer: Trainer,
    hashes: Hashes,
    adapter: TrainingAdapter | None,
    *,
    name: str,
    started_at: float,
    written_at: float,
) -> TrainingFacts:
    """The facts for `lora.metadata.build`. `name` is the file's stem; `config` is resolved."""
    base_sha256, base_legacy = hashes.base()
    vae_sha256, vae_legacy = hashes.vae()
    plan, lora_type = trainer.plan, types.get(config.lora.lora_type)
    assert config.dataset.resolution is not None
    return TrainingFacts(
        config=config,
        name=name,
        family=checkpoint.family,
        prediction_type=checkpoint.schedule.prediction_type,
        zero_terminal_snr=checkpoint.schedule.zero_terminal_snr,
        resolution=config.dataset.resolution,
        mixed_precision=config.checkpoint.mixed_precision,
        text_encoder_lr=config.training.text_encoder_lr if config.lora.train_text_encoder else None,
        step=trainer.step,
        step_count=plan.step_count,
        epoch=trainer.epoch,
        epoch_count=plan.epoch_count,
        batches_per_epoch=plan.batches_per_epoch,
        folders=folder_facts(examples),
        buckets=tuple(
            ((bucket.width, bucket.height), sum(examples[index].repeats for index in indices))
            for bucket, indices in buckets.items()
        ),
        started_at=started_at,
        written_at=written_at,
        base_sha256=base_sha256,
        base_legacy_hash=base_legacy,
        vae_sha256=vae_sha256,
        vae_legacy_hash=vae_legacy,
        few_steps=(
            checkpoint.family.webui_sampling(is_distilled=True)
            if checkpoint.detected.is_distilled
            else None
        ),
        training_adapter=(adapter.path.name, adapter.sha256) if adapter else None,
        network_module=lora_type.network_module,
        network_args=lora_type.network_args(config.lora),
    )


def folder_facts(examples: Sequence[Example]) -> tuple[FolderFacts, ...]:
    """One entry per folder and repeat count, in order of appearance."""
    groups: dict[tuple[str, int], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.folder, example.repeats), []).append(example)
    return tuple(
        FolderFacts(
            name=folder,
            image_count=len(members),
            repeats=repeats,
            captions=tuple(example.caption for example in members),
        )
        for (folder, repeats), members in groups.items()
    )
