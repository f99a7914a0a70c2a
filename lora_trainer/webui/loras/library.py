"""The LoRA files of this trainer: delivered ones in the host's LoRA folder, and saved steps of
runs.

    loras.listing()                 delivered ones, then saved steps; newest first
    loras.find(id, ...)             by id, a hash of the path: the browser never sends paths
    loras.startable()               all files that init_lora accepts; loras.file(id): its path
    loras.preview(id)               the card's image, or the preview nearest to its strength
    loras.insertable()              delivered ones, and the preferred weight of every LoRA in the
                                    folder that has one
    loras.set_strength(id, 0.7)     writes the preferred weight into NAME.json
    loras.deliver(id)               copies a saved step into the LoRA folder under a new name
    loras.inspectable()             all files of the host's LoRA folders, whoever trained them
    loras.certificate(id)           what the host loads of one of them
    loras.kept(id)                  how much of it is kept if the host uses low precision
    loras.fix(id)                   writes a copy that the host loads, beside it

Files of this trainer are recognised by their metadata. Headers are cached by modification time and
size. Called by generation.py and the routes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from lora_trainer import families, files
from lora_trainer.checkpoint.header import read_header
from lora_trainer.errors import CheckpointError, LoraFileError
from lora_trainer.families.base import Family
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.history import History, HistoryEntry
from lora_trainer.lora.credits import KEYS, Credits
from lora_trainer.lora.deliver import deliver, version_of
from lora_trainer.lora.host_layers import version_word
from lora_trainer.settings.training import DEFAULT_STRENGTH
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.loras import sidecar
from lora_trainer.webui.loras.certificates import Certificates, Certified, KeptInBits

log = logging.getLogger("lora_trainer.webui")

OURS = "sd-webui-lora-trainer/"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MATRIX = (0.4, 0.7, 1.0)
NEXT_TO = 0.1
"""Strengths closer than this give nearly equal images."""
TRIES = "lora-trainer-tries"
"""Below the LoRA folder: temporary copies of saved steps for Try it."""
LONGEST_TEXT = 1000
PREVIEWS = (".png", ".preview.png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file of this trainer."""

    id: str
    name: str
    """The file's stem, as in <lora:name:0.7> once delivered."""
    path: Path
    run: str | None
    step: int | None
    trigger: str
    preferred_weight: float
    family: Family | None
    credits: Credits
    preview: Path | None
    delivered: bool
    changed: float

    @property
    def tag(self) -> str:
        return f"<lora:{self.name}:{self.preferred_weight:g}>"

    @property
    def grid(self) -> tuple[float, ...]:
        """The strengths of a strength grid."""
        return _around(self.preferred_weight, GRID)

    @property
    def matrix(self) -> tuple[float, ...]:
        """The strengths for comparing saved steps."""
        return _around(self.preferred_weight, MATRIX)


class LoraFileView(TypedDict):
    """A LoRA file that init_lora accepts."""

    id: str
    name: str
    """Its path in the LoRA folder without suffix; for a saved step, its name."""
    ours: bool


class InspectableView(TypedDict):
    """A LoRA file in the host's folders."""

    id: str
    name: str
    """Its path in the folder without suffix."""


@dataclass(frozen=True)
class _Header:
    """Metadata of a LoRA file."""

    ours: bool = False
    alias: str = ""
    family: Family | None = None
    trigger: str = ""
    credits: Credits = field(default_factory=Credits)
    weights: str = ""
    """Hash of the weights, equal for all copies of a file; empty if not stated."""


class Loras:
    def __init__(
        self, host: Host, history: History, certificates: Certificates | None = None
    ) -> None:
        self._host = host
        self._history = history
        self._certificates = certificates or Certificates()
        self._headers: dict[Path, tuple[tuple[int, int], _Header]] = {}
        self._reading = threading.Lock()
        self._previews: dict[str, Path] = {}

    def listing(self) -> list[Lora]:
        """Delivered ones, then saved steps; each newest first."""
        entries = self._trainings()
        delivered = self._delivered(entries, self._files())
        there = {self._header(lora.path).weights for lora in delivered}
        found = [*delivered, *(lora for entry in entries for lora in self._saved_of(entry, there))]
        self._previews = {lora.id: lora.preview for lora in found if lora.preview}
        return found

    def find(self, *lora_ids: str) -> list[Lora]:
        """LoRAs by id, in the order given, with one scan of the folders. Raises NotFound."""
        known = {lora.id: lora for lora in self.listing()}
        if not known.keys() >= set(lora_ids):
            raise NotFound(
                "this LoRA no longer exists",
                hint="It may have been deleted or moved. Reload the page.",
            )
        return [known[lora_id] for lora_id in lora_ids]

    def startable(self) -> list[LoraFileView]:
        """All files that init_lora accepts: those of this trainer with saved steps, then the others
        in the LoRA folder.
        """
        ours = self.listing()
        known = {lora.id for lora in ours}
        others = sorted(
            (path.relative_to(self._folder()).with_suffix("").as_posix(), _id(path))
            for path in self._files()
        )
        return [
            *(LoraFileView(id=lora.id, name=lora.name, ours=True) for lora in ours),
            *(
                LoraFileView(id=identity, name=name, ours=False)
                for name, identity in others
                if identity not in known
            ),
        ]

    def file(self, file_id: str) -> Path:
        """The path of one of `startable`. Raises NotFound."""
        found = next((path for path in self._files() if _id(path) == file_id), None)
        return self.find(file_id)[0].path if found is None else found

    def id_of(self, path: Path) -> str | None:
        """The id of a file among `startable`, or None."""
        identity = _id(path)
        return identity if any(one["id"] == identity for one in self.startable()) else None

    def preview(self, lora_id: str) -> Path:
        """The image of a LoRA, without scanning the folders for each image of a page. Raises
        NotFound.
        """
        image = self._previews.get(lora_id)
        if image is None or not image.is_file():
            image = self.find(lora_id)[0].preview
        if image is None:
            raise NotFound("this LoRA has no image")
        return image

    def insertable(self) -> tuple[list[Lora], dict[str, float]]:
        """(delivered LoRAs, name or alias -> preferred weight of every LoRA whose sidecar has
        one)
        """
        weights: dict[str, float] = {}
        paths = list(self._files())
        for path in paths:
            weight = sidecar.weight(sidecar.read(path))
            if weight is not None:
                header = self._header(path)
                weights |= {name: weight for name in (path.stem, header.alias) if name}
        return self._delivered(self._trainings(), paths), weights

    def set_strength(self, lora_id: str, strength: float) -> Lora:
        """Set the preferred weight. Raises LoraFileError for a saved step, which has no card."""
        (lora,) = self.find(lora_id)
        if not lora.delivered:
            raise LoraFileError(
                "{name} is not in the WebUI's LoRA folder yet",
                hint="Deliver it first.",
                name=lora.name,
            )
        self._require_inside(sidecar.path_of(lora.path))
        values = {
            sidecar.TRIGGER: lora.trigger,
            sidecar.VERSION: (
                version_of(lora.family, self._host.kind) if lora.family else "Unknown"
            ),
        }
        sidecar.write_weight(lora.path, strength, otherwise=values)
        self._host.refresh_loras()
        return self.find(lora_id)[0]

    def deliver(self, lora_id: str) -> Lora:
        """Copy a saved step into the host's LoRA folder under a new name. Raises LoraFileError."""
        (lora,) = self.find(lora_id)
        if lora.delivered:
            return lora
        if lora.family is None:
            raise LoraFileError(
                "it is not known for which family of checkpoints {name} was trained", name=lora.name
            )
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        done = deliver(
            lora.path,
            folder,
            lora.name,
            trigger=lora.trigger,
            preferred_weight=lora.preferred_weight,
            family=lora.family,
            preview=lora.preview,
            webui=self._host.kind,
        )
        self._host.refresh_loras()
        return self.find(_id(done.path))[0]

    # --- files of any trainer ---------------------------------------------------------------------

    def inspectable(self) -> list[InspectableView]:
        """Every LoRA file of the host's folders, by name."""
        found = [
            InspectableView(id=_id(path), name=path.relative_to(folder).with_suffix("").as_posix())
            for folder, path in self._files_of_folders()
        ]
        return sorted(found, key=lambda one: one["name"].casefold())

    def certificate(self, file_id: str) -> Certified:
        """What the host loads of a file, and other causes for it to have no effect. Raises NotFound
        and LoraFileError.
        """
        return self._certificates.of(
            self._inspected(file_id), self._host.kind, self._host.lora_folders()
        )

    def kept(self, file_id: str) -> KeptInBits:
        """How much of a file at its preferred strength is kept if the host stores its current
        checkpoint in low precision. Raises NotFound, LoraFileError and SetupError.
        """
        path, loaded = self._inspected(file_id), self._host.loaded()
        if loaded is None:
            raise LoraFileError(
                "no checkpoint is chosen in the WebUI",
                hint="Choose the one that the LoRA is used with in its menu, then try again.",
            )
        strength = sidecar.weight(sidecar.read(path)) or 1.0
        return self._certificates.kept(
            path, loaded.path, strength, self._host.kind, self._host.low_bits()
        )

    def fix(self, file_id: str) -> Certified:
        """Write a copy that the host loads beside the file, under a free name, with its sidecar.
        Raises NotFound, LoraFileError and SetupError.
        """
        path = self._inspected(file_id)
        copy = _free_name(path)
        done = self._certificates.fix(path, copy, self._host.kind, self._host.lora_folders())
        sidecar.copy(path, copy, version=_version_word(self._host.kind, done.told["families"]))
        self._host.refresh_loras()
        return done

    def _inspected(self, file_id: str) -> Path:
        found = (path for _, path in self._files_of_folders() if _id(path) == file_id)
        path = next(found, None)
        if path is None:
            raise NotFound(
                "this LoRA no longer exists",
                hint="It may have been deleted or moved. Reload the page.",
            )
        return path

    def _files_of_folders(self) -> Iterator[tuple[Path, Path]]:
        """(folder, file)"""
        seen: set[str] = set()
        for folder in self._host.lora_folders():
            yield from ((folder, path) for path in self._files(folder, seen))

    def _trainings(self) -> list[HistoryEntry]:
        return [
            entry
            for entry in self._history.listing()
            # language models' LoRAs are folders, not files
            if entry.job == "train" and entry.problem is None and entry.state.data == "images"
        ]

    # --- delivered ones ---------------------------------------------------------------------------

    def _folder(self) -> Path:
        return self._host.paths().lora_dir

    def _files(self, within: Path | None = None, seen: set[str] | None = None) -> Iterator[Path]:
        """Every .safetensors file that the host lists in a folder, by default its own, except
        temporary copies. seen: folders to skip; those that are listed are added.
        """
        seen = set() if seen is None else seen
        for folder, subfolders, names in os.walk(within or self._folder(), followlinks=True):
            real = os.path.realpath(folder)
            if real in seen or Path(folder).name == TRIES:
                subfolders.clear()
                continue
            seen.add(real)
            yield from (
                Path(folder, name)
                for name in sorted(names)
                if name.lower().endswith(".safetensors")
            )

    def _delivered(self, entries: Iterable[HistoryEntry], paths: Iterable[Path]) -> list[Lora]:
        """LoRAs of this trainer in the LoRA folder, newest first."""
        entries = list(entries)
        runs = {
            files.place(Path(entry.state.delivered)): (entry, entry.state.step)
            for entry in entries
            if entry.state.delivered
        }
        copies = self._saved_weights(entries)
        found = []
        for path in paths:
            with _logging_errors(path):
                header = self._header(path)
                origin = runs.get(files.place(path)) or copies.get(header.weights)
                if header.ours or origin:
                    found.append(self._of_file(path, header, origin))
        return sorted(found, key=lambda lora: lora.changed, reverse=True)

    def _saved_weights(
        self, entries: Iterable[HistoryEntry]
    ) -> dict[str, tuple[HistoryEntry, int]]:
        """Hash of the weights -> run and step, to recognise saved steps that were copied by
        hand.
        """
        found: dict[str, tuple[HistoryEntry, int]] = {}
        for entry in entries:
            with _logging_errors(entry.folder.path):
                paths = ((_file_of(entry, one.file), one.step) for one in entry.state.saved)
                found |= {
                    weights: (entry, step)
                    for path, step in paths
                    if path is not None and (weights := self._header(path).weights)
                }
        return found

    def _of_file(
        self, path: Path, header: _Header, origin: tuple[HistoryEntry, int] | None
    ) -> Lora:
        values = sidecar.read(path)
        return Lora(
            id=_id(path),
            name=path.stem,
            path=path,
            run=origin[0].id if origin else None,
            step=origin[1] if origin else None,
            trigger=sidecar.trigger(values) or header.trigger,
            preferred_weight=sidecar.weight(values) or DEFAULT_STRENGTH,
            family=header.family,
            credits=header.credits,
            preview=next(
                (
                    found
                    for ending in PREVIEWS
                    if (found := path.with_name(path.stem + ending)).is_file()
                ),
                None,
            ),
            delivered=True,
            changed=files.changed(path),
        )

    def _header(self, path: Path) -> _Header:
        try:
            details = path.stat()
        except OSError:
            return _Header()
        mark = (details.st_mtime_ns, details.st_size)
        with self._reading:
            known = self._headers.get(path)
            if known is None or known[0] != mark:
                known = self._headers[path] = (mark, _read(path))
            return known[1]

    def _require_inside(self, path: Path) -> None:
        """Raises LoraFileError for a symlink or a file outside the LoRA folder."""
        if self._folder().absolute() not in path.absolute().parents or path.is_symlink():
            raise LoraFileError(
                "{file} is not inside the WebUI's LoRA folder, so it is left alone", file=path.name
            )

    # --- saved steps ------------------------------------------------------------------------------

    def _saved_of(self, entry: HistoryEntry, there: Container[str]) -> list[Lora]:
        with _logging_errors(entry.folder.path):
            return list(self._saved(entry, there))
        return []

    def _saved(self, entry: HistoryEntry, there: Container[str]) -> Iterator[Lora]:
        """The saved steps of a run, newest first, without those in the LoRA folder, whose weights
        are `there`.
        """
        state = entry.state
        was_delivered = bool(state.delivered) and Path(state.delivered).is_file()
        for saved in reversed(state.saved):
            path = _file_of(entry, saved.file)
            if path is None or (was_delivered and saved.file == state.file):
                continue
            header = self._header(path)
            if header.weights and header.weights in there:
                continue
            weight = _weight_of(entry, saved.step)
            previews = [
                preview
                for preview in state.previews
                if preview.step == saved.step and preview.strength
            ]
            nearest = min(
                previews, key=lambda preview: abs(preview.strength - weight), default=None
            )
            yield Lora(
                id=_id(path),
                name=path.stem,
                path=path,
                run=entry.id,
                step=saved.step,
                trigger=str(entry.settings.get("trigger_word") or "").strip(),
                preferred_weight=weight,
                family=families.find(state.family),
                credits=header.credits,
                preview=_file_of(entry, nearest.file) if nearest else None,
                delivered=False,
                changed=files.changed(path),
            )


def _free_name(path: Path) -> Path:
    """An unused path for a copy beside a file."""
    taken = {one.stem for one in path.parent.iterdir()}
    endings = itertools.chain(("-fixed",), (f"-fixed-{number}" for number in itertools.count(2)))
    name = next(name for ending in endings if (name := path.stem + ending) not in taken)
    return path.with_name(f"{name}.safetensors")


def _version_word(host: str, families: Sequence[str]) -> str | None:
    """`sd version` for a file of these families."""
    return version_word(host, families[0]) if len(families) == 1 else None


def _around(weight: float, strengths: tuple[float, ...]) -> tuple[float, ...]:
    """The strengths with the recommended one, which replaces its neighbour."""
    others = [
        strength
        for strength in strengths
        if strength in (0.0, 1.0) or abs(strength - weight) >= NEXT_TO
    ]
    return tuple(sorted({*others, weight}))


@contextlib.contextmanager
def _logging_errors(path: Path) -> Iterator[None]:
    """Log any exception: one broken file must not break the list."""
    try:
        yield
    except Exception:
        log.warning("%s cannot be listed", path, exc_info=True)


class LoraView(TypedDict):
    """A LoRA to try: delivered, or a saved step."""

    id: str
    name: str
    file: str
    run: str | None
    step: int | None
    trigger: str
    preferred_weight: float
    grid: tuple[float, ...]
    matrix: tuple[float, ...]
    family: str | None
    resolution: int | None
    """Native resolution of its family in pixels."""
    steps: int | None
    """Recommended sampling steps of its family in the WebUI; null: unknown."""
    cfg: float | None
    """Recommended CFG scale; null: unknown."""
    sampler: str
    """Recommended sampler; empty: the WebUI's default."""
    scheduler: str
    author: str
    license: str
    description: str
    training_comment: str
    preview: str | None
    delivered: bool
    tag: str | None


def to_mapping(lora: Lora, address: str) -> LoraView:
    """As JSON. `address`: URL of its image."""
    steps, cfg = lora.family.webui_sampling(is_distilled=False) if lora.family else (None, None)
    return {
        "id": lora.id,
        "name": lora.name,
        "file": lora.path.name,
        "run": lora.run,
        "step": lora.step,
        "trigger": lora.trigger,
        "preferred_weight": lora.preferred_weight,
        "grid": lora.grid,
        "matrix": lora.matrix,
        "family": lora.family.id if lora.family else None,
        "resolution": lora.family.largest_resolution if lora.family else None,
        "steps": steps,
        "cfg": cfg,
        "sampler": lora.family.webui_sampler if lora.family else "",
        "scheduler": lora.family.webui_scheduler if lora.family else "",
        "author": lora.credits.author,
        "license": lora.credits.license,
        "description": lora.credits.description,
        "training_comment": lora.credits.training_comment,
        "preview": address if lora.preview else None,
        "delivered": lora.delivered,
        "tag": f"{lora.tag} {lora.trigger}".strip() if lora.delivered else None,
    }


def _read(path: Path) -> _Header:
    try:
        metadata = read_header(path).metadata
    except (CheckpointError, OSError):
        return _Header()
    return _Header(
        ours=metadata.get("modelspec.implementation_version", "").startswith(OURS),
        # truncated: kept in memory and sent to the browser
        alias=metadata.get("ss_output_name", "")[:LONGEST_TEXT],
        family=families.of_metadata(metadata.get("ss_base_model_version", "")),
        trigger=metadata.get("modelspec.trigger_phrase", "")[:LONGEST_TEXT],
        credits=Credits.of({key: metadata.get(key, "")[:LONGEST_TEXT] for key in KEYS.values()}),
        weights=metadata.get("sshs_model_hash", "")[:LONGEST_TEXT],
    )


def _weight_of(entry: HistoryEntry, step: int) -> float:
    """The preferred weight in a run's settings, else the one measured at the step."""
    stated = sidecar.number(entry.settings.get("preferred_weight"))
    return stated or entry.state.measured_strength(step) or DEFAULT_STRENGTH


def _file_of(entry: HistoryEntry, name: str) -> Path | None:
    """A file named by a run, if it exists inside the run's folder; other paths are refused."""
    path = entry.folder.path / name
    return (
        path
        if path.is_relative_to(entry.folder.path) and ".." not in path.parts and path.is_file()
        else None
    )


def _id(path: Path) -> str:
    return hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
