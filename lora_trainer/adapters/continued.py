"""Fresh adapters -> adapters that begin with what a LoRA file does (`init_lora`).

    a LoRA file's LoraChanges -> match: Continuation -> begin_from: Beginning

The first compares names and needs no weights; the second says what was taken over. A rank as large
as the file's, or larger, keeps its effect exactly: its factors are copied, further rows of down
keep their random first values, and further columns of up are zero, so that they change nothing yet
and still learn. A smaller rank keeps the largest singular values.
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
"""So many layers are named in a warning."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What became of a file's layers."""

    file: str
    continued: int
    """Layers that go on from the file."""
    fresh: int
    """Layers that learn from nothing, because the file lacks them."""
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    kept: float
    """Share of the effect that is kept: of the sum of the squares of all changes of weights."""

    def notes(self) -> list[tuple[Message, Message | None]]:
        """What its user should know, with what to do about it."""
        found: list[tuple[Message, Message | None]] = []
        if self.kept < 0.999:
            found.append(
                (
                    Message(
                        "of {file}, {share} of the effect is kept: the rank is too small for all",
                        {"file": self.file, "share": f"{self.kept:.1%}"},
                    ),
                    Message("A higher lora_rank keeps more."),
                )
            )
        if self.left_out:
            message = Message(
                "layers of {file} that do not learn in this run, so that their effect is lost:"
                " {count}, such as {names}",
                self._values(self.left_out),
            )
            hint = Message("Set lora_type, target_modules or train_text_encoder as it was made.")
            found.append((message, hint))
        if self.unknown:
            message = Message(
                "layers of {file} that this base does not have: {count}, such as {names}",
                self._values(self.unknown),
            )
            found.append((message, None))
        return found

    def _values(self, names: Sequence[str]) -> dict[str, object]:
        return {"file": self.file, "count": len(names), "names": ", ".join(names[:NAMED])}


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A file's layers, and the layers of this run that go on from them."""

    changes: LoraChanges
    matched: Mapping[str, tuple[Part, str]]
    """Layer in the file -> part and path of a layer that learns."""
    left_out: tuple[str, ...]
    """Layers of the file that do not learn in this run: their effect is lost."""
    unknown: tuple[str, ...]
    """Layers of the file that the base does not have."""


def match(changes: LoraChanges, base: Parts, settings: LoraSettings) -> Continuation:
    """Compare a file's layers with those that the settings let learn. base: its models, which may
    be without weights. Raises LoraFileError when none goes on.
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
            "none of the layers of {path} learns in this run",
            hint=(
                "Set target_modules and train_text_encoder as it was made, or choose another LoRA."
            ),
            path=changes.header.path,
        )
    return Continuation(
        changes=changes, matched=matched, left_out=tuple(left_out), unknown=tuple(unknown)
    )


def begin_from(adapters: Adapters, continuation: Continuation) -> Beginning:
    """Put what the file changes into fresh adapters, in place. Raises LoraFileError for weights
    that do not fit their layer.
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
