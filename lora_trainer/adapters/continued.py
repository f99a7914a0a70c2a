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
from lora_trainer.families.base import Rows
from lora_trainer.lora.changes import LoraChanges, WeightChange
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


@dataclass(frozen=True)
class TrainedLayer:
    """A trained layer, and its rows in a file's layer that holds several."""

    part: Part
    path: str
    rows: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A file's layers, matched with the trained layers of this run."""

    changes: LoraChanges
    matched: Mapping[str, tuple[TrainedLayer, ...]]
    """Layer in the file -> the trained layers that it changes: one, but where the checkpoint has
    several in one.
    """
    unlearned: Mapping[str, tuple[Rows, ...]]
    """Layer in the file, if matched -> rows of it that this run does not train."""
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
    matched: dict[str, tuple[TrainedLayer, ...]] = {}
    unlearned: dict[str, tuple[Rows, ...]] = {}
    left_out, unknown = [], []
    for name, layer in changes.layers.items():
        found = layers.find(layer.part, layer.path, flat=layer.layout.flat)
        if found is None:
            unknown.append(name)
            continue
        pieces = found.pieces or ((found.path, None),)
        places = [TrainedLayer(found.part, path, rows) for path, rows in pieces]
        learned = [place for place in places if (place.part, place.path) in learning]
        if learned:
            matched[name] = tuple(learned)
            unlearned[name] = tuple(
                place.rows for place in places if place not in learned and place.rows is not None
            )
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
        changes=changes,
        matched=matched,
        unlearned=unlearned,
        left_out=tuple(left_out),
        unknown=tuple(unknown),
    )


def begin_from(adapters: Adapters, continuation: Continuation) -> Beginning:
    """Initialize the adapters from the file, in place. Raises LoraFileError for weights that do not
    fit their layer.
    """
    by_place = {(adapter.part, adapter.path): adapter for adapter in adapters.layers}
    changes, kept, whole, continued = continuation.changes, 0.0, 0.0, 0
    left_out = list(continuation.left_out)
    for name, places in continuation.matched.items():
        change = changes.read(name)
        for place in places:
            rows = place.rows
            own = change if rows is None else _rows_of(change, rows)
            share, energy = by_place[place.part, place.path].begin_from(own)
            kept += share * energy
            whole += energy
            continued += 1
        if any(_rows_of(change, rows).energy() for rows in continuation.unlearned[name]):
            left_out.append(name)
    return Beginning(
        file=changes.name,
        continued=continued,
        left_out=tuple(left_out),
        unknown=continuation.unknown,
        kept=kept / whole if whole else 1.0,
    )


def _rows_of(change: WeightChange, rows: Rows) -> WeightChange:
    """The change of rows of a layer that holds several. Raises LoraFileError."""
    tensor = change.whole if change.up is None else change.up
    assert tensor is not None
    if tensor.shape[0] != rows.of:
        raise LoraFileError(
            "a layer of {theirs} does not fit the base model's of {ours}",
            hint="Choose a LoRA that was trained on a base of the same family.",
            theirs=str(tensor.shape[0]),
            ours=str(rows.of),
        )
    return change.rows(rows.first, rows.count)
