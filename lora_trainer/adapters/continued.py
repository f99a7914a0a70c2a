"""Initializes adapters from a LoRA file (`init_lora`).

    LoraChanges -> match: Continuation -> begin_from: Beginning

`match` compares names, without weights; `begin_from` copies the weights. With the file's rank or a
higher one its delta is kept exactly: its factors are copied, additional rows of down keep their
random initialization, and additional columns of up are 0, so that they contribute nothing yet but
are trained. A lower rank keeps the largest singular values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_trainer.adapters.injected import Adapters, target_layers
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import LoraFileError, Message
from lora_trainer.lora.changes import LoraChanges
from lora_trainer.lora.names import Part, base_layers
from lora_trainer.settings.training import LoraSettings

NAMED = 3
"""Number of layers named in a warning."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The result of initializing from a file."""

    file: str
    continued: int
    """Number of layers initialized from the file."""
    fresh: int
    """Number of layers initialized as without a file, which does not have them."""
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    kept: float
    """Kept share of the sum of squares of all deltas."""

    def notes(self) -> list[tuple[Message, Message | None]]:
        """Warnings with hints."""
        found: list[tuple[Message, Message | None]] = []
        if self.kept < 0.999:
            message = Message(
                (
                    "only {share} of the effect of {file} is kept: lora_rank is too small for all "
                    "of it"
                ),
                {"file": self.file, "share": f"{self.kept:.1%}"},
            )
            found.append((message, Message("A higher lora_rank keeps more.")))
        if self.left_out:
            message = Message(
                "layers of {file} that are not trained in this run, so their effect is lost: "
                "{count}, such as {names}",
                self._values(self.left_out),
            )
            hint = Message(
                "Set lora_type, target_modules or train_text_encoder as when it was trained."
            )
            found.append((message, hint))
        if self.unknown:
            message = Message(
                "layers of {file} that this base model does not have: {count}, such as {names}",
                self._values(self.unknown),
            )
            found.append((message, None))
        return found

    def _values(self, names: Sequence[str]) -> dict[str, object]:
        return {"file": self.file, "count": len(names), "names": ", ".join(names[:NAMED])}


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A file's layers, matched with the trained layers of this run."""

    changes: LoraChanges
    matched: Mapping[str, tuple[Part, str]]
    """Layer in the file -> (part, path) of a trained layer."""
    left_out: tuple[str, ...]
    """Layers of the file that this run does not train; their delta is lost."""
    unknown: tuple[str, ...]
    """Layers of the file that the base does not have."""


def match(changes: LoraChanges, base: Parts, settings: LoraSettings) -> Continuation:
    """Match a file's layers with the trained layers. base: its models, which may be on the meta
    device. Raises LoraFileError if none match.
    """
    changes.require_family(base.family)
    layers = base_layers(base)
    learning = {(part, path) for part, _, paths in target_layers(base, settings) for path in paths}
    matched: dict[str, tuple[Part, str]] = {}
    left_out, unknown = [], []
    for name, layer in changes.layers.items():
        found = layers.find(layer.part, layer.path, flat=layer.layout.flat)
        if found is None:
            unknown.append(name)
        elif (found.part, found.path) in learning:
            matched[name] = found.part, found.path
        else:
            left_out.append(name)
    if not matched:
        raise LoraFileError(
            "none of the layers of {path} is trained in this run",
            hint=(
                "Set target_modules and train_text_encoder as when it was trained, or choose "
                "another LoRA."
            ),
            path=changes.header.path,
        )
    return Continuation(
        changes=changes, matched=matched, left_out=tuple(left_out), unknown=tuple(unknown)
    )


def begin_from(adapters: Adapters, continuation: Continuation) -> Beginning:
    """Initialize the adapters from the file, in place. Raises LoraFileError for weights that do not
    fit their layer.
    """
    by_place = {(adapter.part, adapter.path): adapter for adapter in adapters.layers}
    changes, kept, whole = continuation.changes, 0.0, 0.0
    for name, place in continuation.matched.items():
        share, energy = by_place[place].begin_from(changes.read(name))
        kept += share * energy
        whole += energy
    return Beginning(
        file=changes.name,
        continued=len(continuation.matched),
        fresh=len(adapters.layers) - len(continuation.matched),
        left_out=continuation.left_out,
        unknown=continuation.unknown,
        kept=kept / whole if whole else 1.0,
    )
