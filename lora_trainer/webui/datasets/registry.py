"""The datasets, of images or of texts: folders of uploaded files in the data folder, and folders of
this machine opened by path.

    datasets.listing(language) -> [card]      for the page
    datasets.find(id) -> DatasetInfo          id -> name and path
    datasets.store(id) -> CaptionStore        its images and captions (caption_store.py)
    datasets.texts(id) -> TextStore           the same for a dataset of texts (text_store.py)
    datasets.draft(id), .set_draft(...)       its settings draft (settings_draft.py)

    <data folder>/datasets/<id>/     an uploaded dataset; its id is the folder's name and never
                                     changes, because runs refer to the folder
    <data folder>/datasets.json      display names, and folders opened by path: {"names": {id:
                                     name}, "folders": {id: path}}

Folders opened by path are for local users only: while the WebUI is reachable from other machines,
they are neither listed nor found. Called by the routes and preflight.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from lora_trainer import files
from lora_trainer.dataset.listing import folded
from lora_trainer.errors import DatasetError, LoraTrainerError
from lora_trainer.jobs import trash
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES
from lora_trainer.webui import texts
from lora_trainer.webui.common.data_folder import DataFolder, NotFound, name_problem
from lora_trainer.webui.common.safe_names import free_name, natural_order, safe_name
from lora_trainer.webui.common.typed_folder import typed_folder
from lora_trainer.webui.datasets import settings_draft, text_store
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.datasets.settings_draft import Draft, DraftView
from lora_trainer.webui.datasets.text_store import TextStore, holds_texts
from lora_trainer.webui.datasets.thumbnails import Thumbnails
from lora_trainer.webui.texts import Sentence

DataKind = Literal["images", "texts"]
MAX_NAME_BYTES = 100
log = logging.getLogger(__name__)
_EXTERNAL = re.compile(r"folder-[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    id: str
    name: str
    """The user's name for it."""
    path: Path
    external: bool
    """A folder opened by its path, outside the data folder."""

    @property
    def kind(self) -> DataKind:
        """What it holds."""
        return "texts" if holds_texts(self.path, external=self.external) else "images"


class Card(TypedDict):
    """A dataset. For texts, `count` is the number of entries, and `captioned` of those that can be
    trained on.
    """

    id: str
    name: str
    path: str
    external: bool
    kind: DataKind
    count: int
    captioned: int
    cover: str | None
    changed: float
    problem: Sentence | None
    gone: bool
    draft: DraftView


class TextCounts(TypedDict):
    """The fields of a card that differ for texts."""

    count: int
    captioned: int
    changed: float


class Datasets:
    """Thread-safe. is_remote: whether the host is reachable from other machines."""

    def __init__(self, data: DataFolder, is_remote: Callable[[], bool]) -> None:
        self._data = data
        self._is_remote = is_remote
        self._registry = data.root / "datasets.json"
        self._lock = threading.RLock()
        self._stores: dict[str, CaptionStore] = {}
        self._texts: dict[str, TextStore] = {}
        self.thumbnails = Thumbnails(data.folder("thumbnails"))

    # --- finding ----------------------------------------------------------------------------------

    def all(self) -> list[DatasetInfo]:
        """All datasets that the user may see, sorted by name."""
        registry = self._read()
        folders = [
            entry.name
            for entry in self._data.folder("datasets").iterdir()
            if entry.is_dir() and not name_problem(entry.name)
        ]
        found = [self._own(identity, registry) for identity in folders]
        if not self._is_remote():
            found += [self._external(identity, registry) for identity in registry["folders"]]
        return sorted(
            (dataset for dataset in found if dataset),
            key=lambda dataset: natural_order(dataset.name),
        )

    def find(self, identity: str) -> DatasetInfo:
        """The dataset of an id. Raises NotFound."""
        registry = self._read()
        if identity in registry["folders"]:
            dataset = None if self._is_remote() else self._external(identity, registry)
        else:
            dataset = self._own(identity, registry)
        if dataset is None:
            raise NotFound("this dataset no longer exists", hint="Reload the page.")
        return dataset

    def opened(self) -> list[Path]:
        """The folders opened by path."""
        return [Path(folder) for folder in self._read()["folders"].values()]

    def store(self, identity: str) -> CaptionStore:
        """The images and captions of a dataset. Raises NotFound."""
        dataset = self.find(identity)
        with self._lock:
            known = self._stores.get(identity)
            if known is None or known.path != dataset.path:
                known = self._stores[identity] = CaptionStore(
                    dataset.path, follow_links=dataset.external
                )
            return known

    def texts(self, identity: str) -> TextStore:
        """The texts of a dataset. Raises NotFound, also for one of images."""
        dataset = self.find(identity)
        if dataset.kind != "texts":
            raise NotFound("{name} is a dataset of images", name=dataset.name)
        with self._lock:
            known = self._texts.get(identity)
            if known is None or known.path != dataset.path:
                known = self._texts[identity] = TextStore(dataset.path)
            return known

    def draft(self, identity: str) -> Draft:
        """A dataset's settings draft. Raises NotFound."""
        return settings_draft.read(self.find(identity).path)

    def set_draft(self, identity: str, values: Mapping[str, Any], was: str) -> Draft:
        """Raises NotFound, Conflict if someone else has changed it, or DatasetError if it cannot be
        written.
        """
        store = self.store(identity)
        with store.lock:
            return settings_draft.write(store.path, values, was)

    def listing(self, language: str) -> list[Card]:
        """All datasets as JSON."""
        return [self.card(dataset, language) for dataset in self.all()]

    def card(self, dataset: DatasetInfo, language: str) -> Card:
        """A dataset as JSON. An unreadable folder has an error; the others are still listed."""
        card: Card = {
            "id": dataset.id,
            "name": dataset.name,
            "path": "" if self._is_remote() else str(dataset.path),
            "external": dataset.external,
            "kind": dataset.kind,
            "count": 0,
            "captioned": 0,
            "cover": None,
            "changed": 0.0,
            "problem": None,
            "gone": False,
            "draft": settings_draft.read(dataset.path).to_json(),
        }
        try:
            if card["kind"] == "texts":
                return {**card, **self._text_counts(dataset)}
            view = self.store(dataset.id).view()
        except LoraTrainerError as error:
            return {
                **card,
                "problem": texts.render_error(error, language),
                "gone": not dataset.path.is_dir(),
            }
        except Exception as error:
            # any content is possible; the other datasets must still be listed
            log.warning("%s cannot be read", dataset.path, exc_info=True)
            hint, reason = "Look into the folder.", f"{type(error).__name__}: {error}"[:300]
            problem = DatasetError(
                "these images cannot be listed: {reason}", hint=hint, reason=reason
            )
            return {**card, "problem": texts.render_error(problem, language)}
        card["count"] = len(view.items)
        card["captioned"] = sum(bool(item.caption) for item in view.items)
        card["changed"] = max((item.changed for item in view.items), default=0.0)
        if view.items:
            card["cover"] = thumbnail_address(dataset.id, view.items[0].key, view.items[0].version)
        return card

    def _text_counts(self, dataset: DatasetInfo) -> TextCounts:
        view = self.texts(dataset.id).view()
        times = [files.changed(texts.file.path) for texts in view.files if texts.file]
        return {
            "count": len(view.items),
            "captioned": len(view.examples),
            "changed": max(times, default=0.0),
        }

    # --- changing ---------------------------------------------------------------------------------

    def create(self, name: str, kind: DataKind = "images") -> DatasetInfo:
        """Create an empty dataset in a folder with a valid form of its name. Raises DatasetError
        for an empty name.
        """
        name = _tidy_name(name)
        with self._lock:
            parent = self._data.folder("datasets")
            taken = {folded(entry.name) for entry in parent.iterdir()}
            wanted = safe_name(name, forbidden=FORBIDDEN_IN_NAMES)
            identity = free_name(
                wanted,
                lambda candidate: (
                    folded(candidate) in taken or _EXTERNAL.fullmatch(candidate) is not None
                ),
            )
            (parent / identity).mkdir()
            if kind == "texts":
                text_store.mark(parent / identity)
            if name != identity:
                used = {dataset.name for dataset in self.all()}
                self._change(
                    lambda registry: registry["names"].update(
                        {identity: free_name(name, used.__contains__)}
                    )
                )
        return self.find(identity)

    def open(self, folder: str) -> DatasetInfo:
        """Open a folder of this machine as a dataset in place. Raises DatasetError if it is
        missing. For local users only.
        """
        path = typed_folder(folder, DatasetError)
        own = self._data.folder("datasets").resolve()
        if path.resolve().parent == own:
            return self.find(path.resolve().name)
        identity = (
            "folder-"
            + hashlib.blake2b(
                os.path.normcase(path.resolve()).encode("utf-8", "surrogatepass"), digest_size=8
            ).hexdigest()
        )
        self._change(lambda registry: registry["folders"].update({identity: str(path)}))
        return self.find(identity)

    def rename(self, identity: str, name: str) -> DatasetInfo:
        """Change the display name; the folder keeps its name, to which runs refer. Raises NotFound,
        or DatasetError for an empty name.
        """
        self.find(identity)
        name = _tidy_name(name)
        self._change(lambda registry: registry["names"].update({identity: name}))
        return self.find(identity)

    def delete(self, identity: str) -> str:
        """Move an uploaded dataset to the trash, and return its id there; a folder opened by path
        is only forgotten.

        Raises NotFound, or RunError if it cannot be moved.
        """
        dataset, trashed = self.find(identity), ""
        with self._lock:
            if not dataset.external:
                with self.store(identity).lock:
                    title = dataset.name if dataset.name != identity else ""
                    trashed = trash.discard(
                        dataset.path,
                        self._data.folder("trash"),
                        kind="dataset",
                        now=time.time(),
                        title=title,
                    ).id
            self._stores.pop(identity, None)
            self._texts.pop(identity, None)
            try:
                self._change(
                    lambda registry: [registry[part].pop(identity, None) for part in registry]
                )
            except OSError:
                # the disk is full: a leftover name does no harm
                if dataset.external:
                    raise
        return trashed

    def deleted(self) -> list[trash.Discarded]:
        """Deleted datasets in the trash, newest first."""
        return trash.contents(self._data.folder("trash"), "dataset")

    def restore(self, trashed: str) -> DatasetInfo:
        """Restore a deleted dataset with its name. Raises NotFound, or RunError if it cannot be
        moved.
        """
        with self._lock:
            found = next((found for found in self.deleted() if found.id == trashed), None)
            if found is None:
                raise NotFound(
                    "there is no {name} here",
                    hint="It may have been restored already. Reload the page.",
                    name=trashed[:80],
                )
            path = trash.restore(found, self._data.folder("datasets"))
            if found.title:
                self._change(lambda registry: registry["names"].update({path.name: found.title}))
            return self.find(path.name)

    # --- the registry -----------------------------------------------------------------------------

    def _own(self, identity: str, registry: dict[str, dict[str, str]]) -> DatasetInfo | None:
        try:
            path = self._data.child("datasets", identity)
        except NotFound:
            return None
        return (
            DatasetInfo(
                id=path.name,
                name=registry["names"].get(path.name, path.name),
                path=path,
                external=False,
            )
            if path.is_dir()
            else None
        )

    @staticmethod
    def _external(identity: str, registry: dict[str, dict[str, str]]) -> DatasetInfo:
        path = Path(registry["folders"][identity])
        return DatasetInfo(
            id=identity,
            name=registry["names"].get(identity) or path.name or str(path),
            path=path,
            external=True,
        )

    def _read(self) -> dict[str, dict[str, str]]:
        def parsed(values: Any) -> dict[str, dict[str, str]]:
            return {
                part: {str(key): str(value) for key, value in values.get(part, {}).items()}
                for part in ("names", "folders")
            }

        return files.read_json(self._registry, parsed, {"names": {}, "folders": {}}, names=True)

    def _change(self, change: Callable[[dict[str, dict[str, str]]], object]) -> None:
        with self._lock:
            registry = self._read()
            change(registry)
            files.write_text(
                self._registry, json.dumps(registry, ensure_ascii=True, indent=1) + "\n"
            )


def thumbnail_address(identity: str, key: str, version: str) -> str:
    """The URL of a thumbnail, relative to the page. The version changes with the file, so that
    browsers can cache it.
    """
    return f"lora-trainer/datasets/{quote(identity, safe='')}/thumbnail/{key}.webp?v={version}"


def _tidy_name(name: str) -> str:
    tidy = " ".join(
        "".join(
            character if character.isprintable() else " "
            for character in unicodedata.normalize("NFC", name)
        ).split()
    )
    if not tidy:
        raise DatasetError("a dataset needs a name", hint="Describe what is in it.")
    return tidy[:MAX_NAME_BYTES].strip()
