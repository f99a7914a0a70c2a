"""Prepares a run to be resumed with changed settings. Used by the command line and the tab's
queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer import files
from lora_trainer.errors import ConfigError, RunError
from lora_trainer.runs.folder import RunFolder, refuse_if_alive
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig


def prepare(folder: RunFolder, changes: Mapping[str, Any]) -> None:
    """Make the run ready for a worker that resumes it, or starts it if there is no resume point.

    Raises RunError if it is running, or finished without more steps; ConfigError for a setting that
    cannot change any more. config.yaml is unchanged then.
    """
    refuse_if_alive(folder)
    state = folder.read_state()
    if state.status == "finished" and not changes:
        raise RunError(
            "this run is finished: all its {step} steps are done",
            hint="To train it further, give it more steps.",
            step=state.step,
        )
    if not changes:
        return
    requested = changed(folder, changes)
    wanted = requested.training.max_train_steps
    if state.status == "finished" and wanted is not None and wanted <= state.step:
        raise ConfigError(
            "max_train_steps is {wanted}, but this run already has {step} steps",
            hint="Choose a larger number.",
            wanted=wanted,
            step=state.step,
        )
    files.write_text(folder.config, training.to_yaml(requested))


def changed(folder: RunFolder, changes: Mapping[str, Any]) -> RunConfig:
    """The settings of a resumed run. Raises ConfigError for a setting that cannot change any
    more.
    """
    if "epochs" in changes and "max_train_steps" not in changes:
        # a run's config.yaml has the step count resolved from its epochs
        changes = {**changes, "max_train_steps": None}
    after = training.read(folder.config, changes)
    try:
        before = training.to_mapping(training.read(folder.config))
    except ConfigError:  # invalid before, and fixed by these changes
        return after
    fixed = [
        key
        for key in training.FIXED_BY_THE_FIRST_STEP
        if before[key] != training.to_mapping(after)[key]
    ]
    if fixed and folder.has_learned:
        raise ConfigError(
            (
                "{keys} cannot be changed after the start: the shape of the LoRA's weights depends "
                "on them"
            ),
            hint="Start a new run with `train`, under another output_dir.",
            keys=", ".join(fixed),
        )
    return after
