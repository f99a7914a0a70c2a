"""The images of one dataset with their captions, as they lie on disk: nothing else is true.

    store.view() -> View                       every image with the caption that will be trained,
                                                  and where it comes from, as the folder is now
    store.latest() -> View                     the same as of the last look, what was written
                                                  here since included: within one request
    store.write_captions([CaptionChange])      compare and swap: what someone else changed
                                                  meanwhile is left alone and comes back
    store.remove(keys), .restore(keys)         to the dataset's own trash, with their captions,
                                                  and back

A view is made from what dataset.index knows of the folder, which compares names, sizes and times at
each look, so that a caption saved in a text editor or a spreadsheet is seen at the next one. No
picture is opened. Writing does not rely on this: dataset.edits compares the content. One process
writes at a time (dataset.caption_provenance holds the lock that the caption job takes too), and one
thread.

Keys stand for images in addresses. They are made from the image's name, and mean nothing but
through the view: no key becomes a path. Called by the routes, uploads.py and registry.py. Pillow is
not needed.
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
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
from lora_trainer.webui.datasets.image_trash import Leaving, Removed, Trash

SCRATCH = "making"
"""In the dataset's folder .lora_trainer."""
_ATTEMPTS = 3
_STALE = 24 * 3600.0
_natural = functools.lru_cache(maxsize=50_000)(natural_order)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image with the caption that will be trained."""

    key: str
    name: str
    """Its path from the dataset's folder, with forward slashes."""
    path: Path
    caption: str
    """As it is written, without the trigger word that training may put in front; empty: it has
    none.
    """
    source: CaptionSource | None
    caption_file: str
    """The name of the file the caption stands in, or nothing."""
    changed: float
    """When the image was, in seconds since 1970."""
    version: str
    """Changes with the image file."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """One reading of a dataset's folder."""

    revision: str
    """Changes with any of its files."""
    items: tuple[Item, ...]
    """In the natural order of their names."""
    findings: tuple[Finding, ...]
    """What is not about one of the items."""
    listing: Listing
    captions: Captions
    left_out: tuple[Finding, ...]
    """What the listing itself tells, which is found once for each."""
    serial: int
    """Of the reading it was made from."""

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
                "this image is not there any more",
                hint="It may have been removed in another window.",
            )
        return self.by_key[key]


@dataclass(frozen=True, kw_only=True)
class CaptionChange:
    """A caption someone wants, and the one that was there when they began."""

    key: str
    caption: str
    was: str
    by: str = caption_provenance.PERSON
    """Who is to be remembered as its writer: undoing gives a captioner's words back to the
    captioner.
    """


class CaptionStore:
    """One dataset's images and captions. Thread-safe.

    `follow_links`: whether a link may lead out of the folder. In uploaded datasets none may:
    visitors from elsewhere see those.
    """

    def __init__(self, path: Path, *, follow_links: bool) -> None:
        self.path = path
        self._follow_links = follow_links
        self.lock = threading.RLock()
        """Held by whoever changes the folder."""
        self._digests = DigestCache()
        self.digest = self._digests.digest
        """Path -> the hash of the file's content; read again when the file's size or time is
        another. Raises DatasetError.
        """
        self._index = Index(path, follow_links=follow_links)
        self._name = uuid.uuid4().hex[:12]
        self._view: View | None = None
        self._trash = Trash(path, follow_links=follow_links)
        self._settled = False

    def digest_of(self, item: Item) -> str:
        """The digest of an image as it was when it was looked at. Raises DatasetError."""
        return self._digests.of_version(item.path, item.version)

    # --- reading ----------------------------------------------------------------------------------

    def view(self) -> View:
        """What is there now. Raises DatasetError when the folder is not."""
        with self.lock:
            return self._shown(self._looked())

    def latest(self) -> View:
        """What was there at the last look, with what was written here since. Raises DatasetError
        where there was none and the folder is not there.
        """
        with self.lock:
            return self._view or self.view()

    def glance(self, key: str) -> View:
        """What is there now as far as it concerns one image: other captions may have been changed
        by other programs. Raises DatasetError when the folder is not there.
        """
        with self.lock:
            item = self.latest().by_key.get(key)
            if item is None or not self.path.is_dir():
                return self.view()
            view = self.latest()
            rows = (file for file, _ in view.captions.rows.get(item.path, ()))
            beside = view.listing.texts_beside(item.path)
            files = {item.path, *beside, *rows, *view.listing.metadata}
            return self._shown(self._index.glance(files))

    def reading(self) -> Reading:
        """The folder's files and captions now, as training would read them, for who makes no view
        of them. Raises DatasetError when the folder is not there.
        """
        with self.lock:
            return self._looked()

    def _looked(self) -> Reading:
        if not self.path.is_dir():
            hint = "It may have been moved, or lie on a disk that is not connected."
            raise DatasetError("the folder {path} is not there any more", hint=hint, path=self.path)
        self._settle()
        return self._index.look()

    def _shown(self, reading: Reading) -> View:
        if self._view is None or self._view.serial != reading.serial:
            self._view = (
                _changed(self._view, reading, self._name)
                if self._view is not None and reading.before == self._view.serial
                else _read(reading, self._name, self._view)
            )
        return self._view

    def image(self, key: str) -> tuple[Path, str]:
        """The image of a key and its version, without looking at all the others: for the many
        pictures of one page. Raises NotFound.
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
        """The pictures that are not read as they are, but can be converted. Raises DatasetError
        when the folder is not there.
        """
        return [
            path
            for path in self.view().listing.others
            if path.suffix.lower() in CONVERTIBLE_SUFFIXES
        ]

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the dataset's own disk for what is being made; what a crash left there a day
        ago goes. Raises DatasetError.
        """
        folder = self.path / caption_provenance.FOLDER / SCRATCH
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                if old.stat().st_mtime < time.time() - _STALE:
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
        """Writes captions; returns {key: the caption now} for those that are no longer what they
        were, which are left alone. `seen`: what is there now, where the caller has looked.

        Raises NotFound for an unknown key, DatasetError when a file cannot be written.
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
                self._shown(self._index.wrote(captions, written))
                return conflicts
        raise AssertionError("the loop returns or raises")

    def remember_author(
        self, captions: Mapping[Path, str], by: Mapping[Path, str] | None = None
    ) -> None:
        """{image: caption} is about to be written, for a person unless `by` says who. Raises
        DatasetError. Call it within changing_captions.
        """
        # a caption nobody recorded counts as a person's already: only where a captioner has been at
        # work must it be said
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
        """Moves images with their captions to the dataset's trash. Raises NotFound, or DatasetError
        when a file cannot be moved.
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
            # a mask that stays behind would be a picture to train
            masks: dict[Path, list[Path]] = {}
            for mask, image in find_masks(view.listing.images, view.captions.by_image).items():
                masks.setdefault(image, []).append(mask)
            leaving = [
                Leaving(
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
                self._trash.take_out(
                    leaving, lambda: edits.remove_rows(view.captions, images), self._has_rows
                )
            finally:
                self._settled = self._trash.is_settled()

    def removed(self) -> list[Removed]:
        """What is in the trash, the newest first."""
        return self._trash.listing()

    def restore(self, keys: Sequence[str]) -> None:
        """Brings removed images back to where they were. Raises NotFound, or DatasetError when
        another image has taken the place.
        """
        with self.lock, caption_provenance.changing_captions(self.path):
            newest: dict[str, Removed] = {}
            for entry in self.removed():
                newest.setdefault(entry.key, entry)
            for key in dict.fromkeys(keys):
                if key not in newest:
                    raise NotFound(
                        "this image is not in the trash any more",
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
                self._trash.bring_back(newest[key], self._has_rows)

    def _has_rows(self, image: Path) -> bool:
        return bool(self.view().captions.rows.get(image))

    def _settle(self) -> None:
        """What an earlier process, or a full disk, left in the middle of a removal is taken back,
        unless another process is at it.
        """
        if not self._settled:
            self._settled = True  # settling looks, too
            if not self._trash.is_settled():
                # at once or not now: the lock may be this thread's own
                with (
                    contextlib.suppress(DatasetError),
                    caption_provenance.changing_captions(self.path, patience=0.0),
                ):
                    self._trash.settle(self._has_rows)
                self._settled = self._trash.is_settled()


class DigestCache:
    """Remembers the digests of files by path, size and time. Thread-safe."""

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
        """The same where the file's size and time are known already. Raises DatasetError."""
        known = self._known.get(path)
        if known is None or known[0] != version:
            known = self._known[path] = (version, digest(path))
        return known[1]


def key_of(name: str) -> str:
    """The key of an image: what stands for it in addresses."""
    return base64.urlsafe_b64encode(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    ).decode("ascii")


def version_of(time: int, size: int) -> str:
    """What changes when a file does: its time in nanoseconds and its size."""
    return f"{time:x}-{size:x}"


def _read(reading: Reading, name: str, before: View | None) -> View:
    """`before`: another view of the same store, of which is taken what is the same still."""
    listing, captions = reading.listing, reading.captions
    settings = DatasetSettings(train_data_dir=listing.root)
    unmasked, mask_findings = without_masks(listing, captions)
    # without those that have gone since they were listed
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
    """A view after captions of some of its images were written, which is all that changed."""
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
    """Findings of an image or its text file, by image; and the others."""
    told_of = {finding.path for finding in findings}
    users: dict[Path, list[Path]] = {image: [image] for image in images if image in told_of}
    for image, caption in captions.by_image.items():
        if caption.source == "text" and caption.path is not None and caption.path in told_of:
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
