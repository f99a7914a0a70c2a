"""The settings of an earlier run as a draft for the form, to train again with the same or other
images.

    draft_of(entry, datasets, checkpoints, loras)
        -> {settings, name, dataset, checkpoint, init_lora, growth}

`settings` has the form's keys; resolved values that equal what `auto` resolves to are auto again,
so that they follow other changes. Called by the routes.
"""

from __future__ import annotations

from typing import Any, TypedDict

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.jobs.history import HistoryEntry
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig
from lora_trainer.webui.common import form
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.loras.library import Loras
from lora_trainer.webui.settings.checkpoints import CheckpointFacts, Checkpoints


class RunDraft(TypedDict):
    """A draft. Ids are None for things that are not listed any more."""

    settings: dict[str, Any]
    name: str
    dataset: str | None
    checkpoint: str | None
    init_lora: str | None
    growth: dict[str, Any]
    """The settings that change when its LoRA is trained further at a higher rank."""


def draft_of(
    entry: HistoryEntry,
    datasets: Datasets,
    checkpoints: Checkpoints,
    loras: Loras,
    *,
    on_processor: bool,
) -> RunDraft:
    """The draft of a run. Raises ConfigError, or RunError for a run that is not a training."""
    if entry.problem is not None:
        raise entry.problem
    if entry.job != "train":
        raise RunError("{name} has no training settings", name=entry.id)
    # output_dir may be given on the command line only
    done = training.from_mapping(
        {"output_dir": entry.folder.path, **entry.settings}, base=entry.folder.path
    )
    images = files.place(done.dataset.train_data_dir)
    model = files.place(done.checkpoint.base_model)
    dataset = next((found for found in datasets.all() if files.place(found.path) == images), None)
    checkpoint = next(
        (choice for choice in checkpoints.choices() if files.place(choice.path) == model), None
    )
    facts = checkpoints.facts(checkpoint.path) if checkpoint else None
    return {
        "settings": _with_autos(done, facts, on_processor=on_processor),
        "name": done.lora.name,
        "dataset": dataset.id if dataset else None,
        "checkpoint": checkpoint.id if checkpoint else None,
        "init_lora": loras.id_of(done.lora.init_lora) if done.lora.init_lora else None,
        "growth": training.growth(done),
    }


def _with_autos(
    done: RunConfig, facts: CheckpointFacts | None, *, on_processor: bool
) -> dict[str, Any]:
    values = {key: value for key, value in training.to_mapping(done).items() if key in form.KEYS}
    # auto again if auto gives these values here: other checkpoints and devices may need others
    if done.checkpoint.prediction_type == ((facts and facts.prediction_type) or "epsilon"):
        values["prediction_type"] = "auto"
        if done.checkpoint.zero_terminal_snr is False:
            values["zero_terminal_snr"] = None
    if done.checkpoint.mixed_precision == ("no" if on_processor else "bf16"):
        values["mixed_precision"] = "auto"
    resolution, steps = done.dataset.resolution, done.training.max_train_steps
    if resolution is None or steps is None:
        return values
    # the rank is not made auto: other settings depend on it
    settled = [key for key in training.SETTLED if key != "lora_rank"]
    by_itself = training.to_mapping(
        training.settle(done.replace(**dict.fromkeys(settled)), resolution, steps)
    )
    autos = [key for key in settled if by_itself[key] == values[key]]
    if facts is not None and resolution == facts.resolution:
        autos.append("resolution")
    return {**values, **dict.fromkeys(autos)}
