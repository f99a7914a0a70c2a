"""What a resume point was trained from, so that a resumed run can report what has changed.

Provenance.of(config, hashes, device)     at the start of every worker; saved in the state
differences(kept, now)                    messages; none if the resume is exact
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.dataset.scan import Example
from lora_trainer.errors import DatasetError, Message
from lora_trainer.lora.file import file_hashes
from lora_trainer.settings import schema
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig

WITHOUT_EFFECT = frozenset(
    item.name
    for _, group in settings.GROUPS
    for item in schema.fields_of(group)
    if group in (settings.SampleSettings, settings.OutputSettings)
    or not schema.about(item).affects_result
)
"""Settings that do not change the LoRA: paths, names, speed, previews. (Training data, base
and VAE are compared by content.)
"""
SAMPLE = 1 << 20
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """settings: those that affect the result, as strings; files: fingerprints of base and VAE;
    examples: name -> hash of what is trained of it.
    """

    settings: Mapping[str, str]
    files: Mapping[str, str]
    examples: Mapping[str, str]

    @classmethod
    def of(cls, config: RunConfig, examples: Mapping[str, str], device: torch.device) -> Provenance:
        """`config` is resolved. examples: name -> hash."""
        values = settings.to_mapping(config)
        kept = {key: str(value) for key, value in values.items() if key not in WITHOUT_EFFECT}
        if config.training.lr_scheduler != "constant":
            # these schedules depend on the run's length
            kept["max_train_steps"] = str(config.training.max_train_steps)
        return cls(
            settings={**kept, "device": device.type},
            files={
                "base_model": _content(config.checkpoint.base_model),
                "vae": _content(config.checkpoint.vae),
                "training_adapter": _whole(config.checkpoint.training_adapter),
            },
            examples=examples,
        )

    def to_mapping(self) -> dict[str, dict[str, str]]:
        return {
            "settings": dict(self.settings),
            "files": dict(self.files),
            "examples": dict(self.examples),
        }


def differences(kept: Mapping[str, Any] | None, now: Provenance) -> Iterator[Message]:
    """Messages about changes since the resume point. `kept`: the state's to_mapping(), None for a
    new run.
    """
    if kept is None:
        return
    earlier = schema.current_keys(settings.GROUPS, kept["settings"])
    for key, value in now.settings.items():
        before = earlier.get(key, value)
        if before != value:
            yield Message(
                "{key} was {before} until the resume point and is {value} from there",
                {"key": key, "before": before, "value": value},
            )
    for key, value in now.files.items():
        if kept["files"].get(key, value) != value:
            yield Message("{key} is not the same file as at the resume point", {"key": key})
    before, after = kept["examples"], now.examples
    changed = {
        "new": sorted(after.keys() - before.keys()),
        "gone": sorted(before.keys() - after.keys()),
        "changed": sorted(
            name for name in before.keys() & after.keys() if before[name] != after[name]
        ),
    }
    for what, names in changed.items():
        if names:
            shown = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
            yield Message(
                "training data {what} since the resume point ({count}): {names}",
                {"what": what, "count": len(names), "names": shown},
            )


def require_same(own: Provenance, first: Provenance) -> None:
    """Raise DatasetError if this process does not train on what the first one does, whose images
    and checkpoint may be other files under the same paths.
    """
    pairs = ((own.settings, first.settings), (own.files, first.files))
    names = [key for ours, theirs in pairs for key in theirs if ours.get(key) != theirs[key]]
    every = own.examples.keys() | first.examples.keys()
    names += sorted(name for name in every if own.examples.get(name) != first.examples.get(name))
    if names:
        raise DatasetError(
            "this is not the same as in the first process ({count}): {names}",
            hint=(
                "Every machine needs the same images, captions and checkpoint, in the places that"
                " the settings name."
            ),
            count=len(names),
            names=", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else ""),
        )


def image_hashes(examples: Sequence[Example]) -> dict[str, str]:
    """Name -> hash of image, caption and repeats."""
    return {
        example.name: content_hash(example.digest, example.caption, example.repeats)
        for example in examples
    }


def _content(path: Path | None) -> str:
    """A fingerprint of a file, or of the weights in a folder: size, first and last MiB, because a
    checkpoint is too large to hash here.
    """
    if path is None:
        return ""
    if not path.is_file():
        weights = sorted(path.glob("*.safetensors"))
        return content_hash(*map(_content, weights)) if weights else str(path)
    with path.open("rb") as stream:
        beginning = stream.read(SAMPLE)
        stream.seek(max(0, path.stat().st_size - SAMPLE))
        return content_hash(path.stat().st_size, beginning, stream.read(SAMPLE))


def _whole(path: Path | str | None) -> str:
    """The SHA-256 of a file; of anything else an empty string."""
    return file_hashes(path)[0] if isinstance(path, Path) else ""


def content_hash(*parts: object) -> str:
    """A hash of these values."""
    return hashlib.blake2b(
        repr(parts).encode("utf-8", errors="backslashreplace"), digest_size=12
    ).hexdigest()
