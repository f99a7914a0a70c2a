"""The images of one dataset with their captions, always read from disk.

    store.view() -> View                       every image with its training caption and where it
                                               comes from, as the folder is now
    store.latest() -> View                     the last view, updated with what was written here:
                                               for use within a request
    store.write_captions([CaptionChange])      compare and swap: captions that someone else has
                                               changed meanwhile are not written, but returned
    store.remove(keys), .restore(keys)         to the dataset's trash with their captions, and back

Views are built from dataset.index, which compares names, sizes and modification times at each call,
so that changes by a text editor or a spreadsheet are seen. No image is opened. Writing does not
rely on this: dataset.edits compares contents. Only one thread of one process writes at a time
(dataset.caption_provenance has the lock, which caption jobs use too).

Keys identify images in URLs. They are hashes of names and are only resolved through a view: no key
becomes a path. Called by the routes, uploads.py and registry.py. Does not need Pillow.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_trainer import files
from lora_trainer.dataset import caption_provenance, edits
from lora_trainer.dataset.edits import ChangedMeanwhile
from lora_trainer.dataset.findings import Finding
from lora_trainer.dataset.images import CONVERTIBLE_SUFFIXES, digest
from lora_trainer.dataset.index import Index, Reading
from lora_trainer.dataset.listing import Listing
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.scan import unsupported, without_masks
from lora_trainer.dataset.sources import Caption, Captions, CaptionSource, fill_in
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.common.safe_names import natural_order
from lora_trainer.webui.datasets.image_trash import Removal, Removed, Trash

SCRATCH = "making"
"""In the dataset's .lora_trainer folder."""
_ATTEMPTS = 3
_STALE = 24 * 3600.0
_natural = functools.lru_cache(maxsize=50_000)(natural_order)


@dataclass(frozen=True, kw_only=True)
class Item:
    """An image with its training caption."""

    key: str
    name: str
    """Path relative to the dataset's folder, with forward slashes."""
    path: Path
    caption: str
    """As written, without the trigger word that training prepends; empty: none."""
    source: CaptionSource | None
    caption_file: str
    """Name of the file with the caption, or ""."""
    changed: float
    """Modification time of the image, in seconds since 1970."""
    version: str
    """Changes with the image file."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """A snapshot of a dataset's folder."""

    revision: str
    """Changes with any of its files."""
    items: tuple[Item, ...]
    """In natural order of names."""
    findings: tuple[Finding, ...]
    """Those that are not about one of the items."""
    listing: Listing
    captions: Captions
    left_out: tuple[Finding, ...]
    """Those of the listing."""
    serial: int
    """Number of the reading it was built from."""

    @cached_property
    def by_key(self) -> dict[str, Item]:
        return {item.key: item for item in self.items}

    @cached_property
    def by_path(self) -> dict[Path, Item]:
        return {item.path: item for item in self.items}

    @cached_property
    def versions(self) -> dict[Path, str]:
        return {item.path: item.version for item in self.items}

    def item(self, key: str) -> Item:
        """The image of a key. Raises NotFound."""
        if key not in self.by_key:
            raise NotFound(
                "this image no longer exists",
                hint="It may have been removed in another window.",
            )
        return self.by_key[key]


@dataclass(frozen=True, kw_only=True)
class CaptionChange:
    """A new caption, and the one it is meant to replace."""

    key: str
    caption: str
    was: str
    by: str = caption_provenance.PERSON
    """Who will be recorded as its author: undo restores captions of a captioner as such."""


class CaptionStore:
    """The images and captions of a dataset. Thread-safe.

    follow_links: whether symlinks out of the folder are followed. Not in uploaded datasets, which
    remote users see.
    """

    def __init__(self, path: Path, *, follow_links: bool) -> None:
        self.path = path
        self._follow_links = follow_links
        self.lock = threading.RLock()
        """Held while the folder is modified."""
        self._digests = DigestCache()
        self.digest = self._digests.digest
        """Path -> hash of the file's content, cached by size and modification time. Raises
        DatasetError.
        """
        self._index = Index(path, follow_links=follow_links)
        self._name = uuid.uuid4().hex[:12]
        self._view: View | None = None
        self._trash = Trash(path, follow_links=follow_links)
        self._settled = False

    def digest_of(self, item: Item) -> str:
        """The digest of an image as of the view. Raises DatasetError."""
        return self._digests.of_version(item.path, item.version)

    # --- reading ----------------------------------------------------------------------------------

    def view(self) -> View:
        """The current state. Raises DatasetError if the folder is missing."""
        with self.lock:
            return self._shown(self._read_index())

    def latest(self) -> View:
        """The last view, updated with what was written here. Raises DatasetError if there was none
        and the folder is missing.
        """
        with self.lock:
            return self._view or self.view()

    def view_of(self, key: str) -> View:
        """The current state of one image; captions changed by other programs may be missed for
        others. Raises DatasetError if the folder is missing.
        """
        with self.lock:
            item = self.latest().by_key.get(key)
            if item is None or not self.path.is_dir():
                return self.view()
            view = self.latest()
            rows = (file for file, _ in view.captions.rows.get(item.path, ()))
            beside = view.listing.texts_beside(item.path)
            its_files = {item.path, *beside, *rows, *view.listing.metadata}
            return self._shown(self._index.refresh_files(its_files))

    def reading(self) -> Reading:
        """The folder's files and captions as training would read them, without building a view.
        Raises DatasetError if the folder is missing.
        """
        with self.lock:
            return self._read_index()

    def _read_index(self) -> Reading:
        if not self.path.is_dir():
            hint = "It may have been moved, or be on a disk that is not connected."
            raise DatasetError("the folder {path} no longer exists", hint=hint, path=self.path)
        self._settle()
        return self._index.refresh()

    def _shown(self, reading: Reading) -> View:
        if self._view is None or self._view.serial != reading.serial:
            self._view = (
                _changed(self._view, reading, self._name)
                if self._view is not None and reading.before == self._view.serial
                else _read(reading, self._name, self._view)
            )
        return self._view

    def image(self, key: str) -> tuple[Path, str]:
        """The image of a key and its version, without reading all others: for the thumbnails of a
        page. Raises NotFound.
        """
        view = self._view
        item = view.by_key.get(key) if view else None
        if item is not None and (
            self._follow_links or item.path.resolve().is_relative_to(self.path.resolve())
        ):
            with contextlib.suppress(OSError):
                details = item.path.stat()
                return item.path, version_of(details.st_mtime_ns, details.st_size)
        item = self.view().item(key)
        return item.path, item.version

    def waiting(self) -> list[Path]:
        """Images that cannot be decoded but converted. Raises DatasetError if the folder is
        missing.
        """
        return [
            path
            for path in self.view().listing.others
            if path.suffix.lower() in CONVERTIBLE_SUFFIXES
        ]

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for temporary files on the dataset's disk; files older than a day are deleted.
        Raises DatasetError.
        """
        folder = self.path / caption_provenance.FOLDER / SCRATCH
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                # 0 for one that another thread has just removed
                if files.age(old) > _STALE:
                    shutil.rmtree(old, ignore_errors=True)
            made = Path(tempfile.mkdtemp(dir=folder))
        except OSError as problem:
            hint = "Check the folder's permissions, and that the disk is connected."
            name = folder.relative_to(self.path).as_posix()
            raise DatasetError.cannot_write(name, problem, hint) from problem
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    # --- captions ---------------------------------------------------------------------------------

    def write_captions(
        self, changes: Sequence[CaptionChange], seen: View | None = None
    ) -> dict[str, str]:
        """Write captions. Returns {key: current caption} for those that someone else has changed,
        which are not written. `seen`: the current view, if the caller has one.

        Raises NotFound for an unknown key, DatasetError if a file cannot be written.
        """
        with self.lock, caption_provenance.changing_captions(self.path):
            for attempt in range(_ATTEMPTS):
                view = self.view() if seen is None or attempt else seen
                wanted = {change.key: edits.clean(change.caption) for change in changes}
                conflicts = {
                    change.key: view.item(change.key).caption
                    for change in changes
                    if view.item(change.key).caption
                    not in (edits.clean(change.was), wanted[change.key])
                }
                writing = [
                    item
                    for item in map(view.item, wanted)
                    if item.key not in conflicts and item.caption != wanted[item.key]
                ]
                by = {change.key: change.by for change in changes}
                self.remember_author(
                    {item.path: wanted[item.key] for item in writing},
                    {item.path: by[item.key] for item in writing},
                )
                captions = {item.path: wanted[item.key] for item in writing}
                try:
                    written = edits.write_captions(
                        view.listing, view.captions, captions, self._index.tables
                    )
                except ChangedMeanwhile:
                    self._index.forget()
                    if attempt == _ATTEMPTS - 1:
                        raise
                    continue
                self._shown(self._index.apply_write(captions, written))
                return conflicts
        raise AssertionError("the loop returns or raises")

    def remember_author(
        self, captions: Mapping[Path, str], by: Mapping[Path, str] | None = None
    ) -> None:
        """Record the author of captions about to be written, a person unless `by` is given. Raises
        DatasetError. Call it within changing_captions.
        """
        # captions without a record count as a person's: it is only needed where a captioner has
        # written
        if captions and caption_provenance.read_authors(self.path).by_digest:
            writers = by or {}
            news = {
                image: caption_provenance.CaptionRecord(
                    text=text, by=writers.get(image, caption_provenance.PERSON)
                )
                for image, text in captions.items()
            }
            caption_provenance.record(
                self.path, {self.digest(image): written for image, written in news.items()}
            )

    # --- removing and restoring -------------------------------------------------------------------

    def remove(self, keys: Sequence[str]) -> None:
        """Move images with their captions to the dataset's trash. Raises NotFound, or DatasetError
        if a file cannot be moved.
        """
        with self.lock, caption_provenance.changing_captions(self.path):
            view = self.view()
            items = [view.item(key) for key in dict.fromkeys(keys)]
            images = [item.path for item in items]
            rows = edits.rows_of(view.captions, images)
            staying_texts = {
                text
                for image in view.listing.images
                if image not in set(images)
                for text in view.listing.texts_beside(image)
            }
            # a mask left behind would be trained as an image
            masks: dict[Path, list[Path]] = {}
            for mask, image in find_masks(view.listing.images, view.captions.by_image).items():
                masks.setdefault(image, []).append(mask)
            removals = [
                Removal(
                    key=item.key,
                    name=item.name,
                    path=item.path,
                    caption=item.caption,
                    rows=rows.get(item.path, ()),
                    masks=tuple(masks.get(item.path, ())),
                    texts=tuple(
                        text
                        for text in view.listing.texts_beside(item.path)
                        if text not in staying_texts
                    ),
                )
                for item in items
            ]
            try:
                self._trash.remove(
                    removals, lambda: edits.remove_rows(view.captions, images), self._has_rows
                )
            finally:
                self._settled = self._trash.is_settled()

    def removed(self) -> list[Removed]:
        """The contents of the trash, newest first."""
        return self._trash.listing()

    def restore(self, keys: Sequence[str]) -> None:
        """Restore removed images. Raises NotFound, or DatasetError if another image has taken the
        place.
        """
        with self.lock, caption_provenance.changing_captions(self.path):
            newest: dict[str, Removed] = {}
            for entry in self.removed():
                newest.setdefault(entry.key, entry)
            for key in dict.fromkeys(keys):
                if key not in newest:
                    raise NotFound(
                        "this image is no longer in the trash",
                        hint="It may have been restored in another window.",
                    )
                if (self.path / newest[key].name).exists():
                    hint = "Rename or remove that one first."
                    raise DatasetError(
                        "there is another {name} in the folder now",
                        hint=hint,
                        name=newest[key].name,
                    )
            for key in dict.fromkeys(keys):
                self._trash.restore(newest[key], self._has_rows)

    def _has_rows(self, image: Path) -> bool:
        return bool(self.view().captions.rows.get(image))

    def _settle(self) -> None:
        """Roll back a removal interrupted by a crash or a full disk, unless another process is
        working on it.
        """
        if not self._settled:
            self._settled = True  # settling reads the folder, too
            if not self._trash.is_settled():
                # without waiting: this thread may hold the lock
                with (
                    contextlib.suppress(DatasetError),
                    caption_provenance.changing_captions(self.path, patience=0.0),
                ):
                    self._trash.settle(self._has_rows)
                self._settled = self._trash.is_settled()


class DigestCache:
    """Caches digests by path, size and modification time. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, str]] = {}

    def digest(self, path: Path) -> str:
        """Raises DatasetError."""
        try:
            details = path.stat()
        except OSError:
            return digest(path)  # which says why
        return self.of_version(path, version_of(details.st_mtime_ns, details.st_size))

    def of_version(self, path: Path, version: str) -> str:
        """The same, with known size and modification time. Raises DatasetError."""
        known = self._known.get(path)
        if known is None or known[0] != version:
            known = self._known[path] = (version, digest(path))
        return known[1]


def key_of(name: str) -> str:
    """The key of an image, for URLs."""
    return base64.urlsafe_b64encode(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    ).decode("ascii")


def version_of(time: int, size: int) -> str:
    """Changes with the file: modification time in nanoseconds, and size."""
    return f"{time:x}-{size:x}"


def _read(reading: Reading, name: str, before: View | None) -> View:
    """`before`: an earlier view of the store, whose unchanged items are reused."""
    listing, captions = reading.listing, reading.captions
    settings = DatasetSettings(train_data_dir=listing.root)
    unmasked, mask_findings = without_masks(listing, captions)
    # without files that were deleted since the listing
    images = [image for image in unmasked if reading.stamp(image) is not None]
    captions = fill_in(captions, images, listing, settings)
    left_out = (
        before.left_out
        if before is not None and before.listing is listing
        else tuple(unsupported(listing))
    )
    about, rest = _by_image(
        [*listing.findings, *captions.findings, *mask_findings, *left_out], images, captions
    )
    items = [
        _item(image, reading, captions, tuple(about.get(image, ())), before) for image in images
    ]
    items.sort(key=lambda item: _natural(item.name))
    return View(
        revision=f"{name}-{reading.serial}",
        serial=reading.serial,
        items=tuple(items),
        findings=tuple(rest),
        listing=listing,
        captions=captions,
        left_out=left_out,
    )


def _changed(view: View, reading: Reading, name: str) -> View:
    """The view after captions of some images were written, with nothing else changed."""
    changes = reading.changes or {}
    by_image = {
        **view.captions.by_image,
        **{image: reading.captions.by_image[image] for image in changes},
    }
    captions = dataclasses.replace(
        view.captions,
        by_image=by_image,
        rows=reading.captions.rows,
        findings=tuple(
            finding
            for finding in view.captions.findings
            if not (finding.kind == "no-caption" and finding.path in changes)
        ),
    )
    items = tuple(
        item
        if item.path not in changes
        else dataclasses.replace(
            item,
            caption=by_image[item.path].text,
            source=by_image[item.path].source,
            caption_file=_file_of(by_image[item.path], view.listing),
            findings=tuple(finding for finding in item.findings if finding.kind != "no-caption"),
        )
        for item in view.items
    )
    return dataclasses.replace(
        view,
        revision=f"{name}-{reading.serial}",
        serial=reading.serial,
        items=items,
        captions=captions,
    )


def _item(
    image: Path,
    reading: Reading,
    captions: Captions,
    findings: tuple[Finding, ...],
    before: View | None,
) -> Item:
    caption = captions.by_image.get(image)
    time, size = reading.stamp(image) or (0, 0)
    version = version_of(time, size)
    known = before.by_path.get(image) if before is not None else None
    if (
        before is not None
        and known is not None
        and (known.version, known.findings) == (version, findings)
        and before.captions.by_image.get(image) == caption
    ):
        return known
    name = reading.listing.name(image)
    return Item(
        key=key_of(name),
        name=name,
        path=image,
        caption=caption.text if caption else "",
        source=caption.source if caption else None,
        caption_file=_file_of(caption, reading.listing),
        changed=time / 1e9,
        version=version,
        findings=findings,
    )


def _file_of(caption: Caption | None, listing: Listing) -> str:
    return listing.name(caption.path) if caption and caption.path else ""


def _by_image(
    findings: Sequence[Finding], images: Sequence[Path], captions: Captions
) -> tuple[dict[Path, list[Finding]], list[Finding]]:
    """Findings by image (for its image or text file), and the others."""
    changed_files = {finding.path for finding in findings}
    users: dict[Path, list[Path]] = {image: [image] for image in images if image in changed_files}
    for image, caption in captions.by_image.items():
        if caption.source == "text" and caption.path is not None and caption.path in changed_files:
            users.setdefault(caption.path, []).append(image)
    about: dict[Path, list[Finding]] = {}
    rest = []
    for finding in findings:
        owners = users.get(finding.path, []) if finding.path else []
        for image in owners:
            about.setdefault(image, []).append(finding)
        if not owners:
            rest.append(finding)
    return about, rest
