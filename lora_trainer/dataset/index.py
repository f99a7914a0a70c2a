"""One dataset's folder, read once and kept while its files stay as they are.

    index.refresh() -> Reading              everything is compared with the folder: each folder is
                                            listed, each image, caption file and table asked for its
                                            size and time; what differs is read again
    index.refresh_files(files) -> Reading   only these files are compared, and whether anything came
                                            into the folders or left them
    index.apply_write(changes, written)     what this process has just written: nothing is read
                                            again

What is compared when: a page, a poll and a plan refresh, so that they show what any other program
has saved. Saving one caption refreshes its image and its file only; that file's content is compared
again when it is written (dataset.edits), whoever changed it and whatever its time says. The other
files are compared at the next refresh, which then returns another reading.

Times are coarse: two changes may have the same one. A file whose time was less than SETTLED before
it was read is therefore compared by its content at the next refresh, and a folder's time, which
shows `refresh_files` that nothing came or went, counts only when it is as old. In-place edits do
not change a folder's time: `refresh` does not rely on it. A network share's clock that is behind by
more than SETTLED hides an edit of the same size within its own granule; saving over it is refused
anyway.

Not thread-safe: its owner holds a lock (webui.contents).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from lora_trainer.dataset.edits import WrittenFiles, after_writing
from lora_trainer.dataset.images import OTHER_IMAGE_SUFFIXES, READABLE_SUFFIXES
from lora_trainer.dataset.listing import (
    CAPTION_SUFFIXES,
    IGNORED_FOLDERS,
    Entries,
    Listing,
    entries_of,
    file_suffix,
    list_folder,
    split_path,
    without_links,
)
from lora_trainer.dataset.metadata import TABLE_SUFFIXES, Metadata, read_metadata
from lora_trainer.dataset.sources import (
    CaptionFile,
    Captions,
    NamesOf,
    Reader,
    read_caption_file,
    read_captions,
)
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings

SETTLED = 2.0
"""Seconds: FAT keeps times in steps of two."""
_PICTURES = READABLE_SUFFIXES | OTHER_IMAGE_SUFFIXES
_STAMPED = frozenset(_PICTURES | TABLE_SUFFIXES | set(CAPTION_SUFFIXES))

Stamp = tuple[int, int]
"""(time of the last change in nanoseconds, size in bytes) of a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a look found. As long as nothing changes, each look gives the same one."""

    serial: int
    """Another number for each reading of a process."""
    listing: Listing
    """Without files, where there is a `problem`."""
    captions: Captions
    """As read_captions finds them; nothing is filled in."""
    stamps: Mapping[str, Mapping[str, Stamp]]
    """Folder, with the separator at its end -> {name: Stamp} of the images and caption files in
    it.
    """
    problem: DatasetError | None = None
    """Why nothing can be trained from it."""
    is_whole: bool = True
    """Whether no file was left out for being a link that leads elsewhere."""
    changes: Mapping[Path, str] | None = None
    """{image: caption}, where these captions alone differ from those of the reading `before`."""
    before: int = 0
    """The serial of the reading that `changes` follow."""

    def stamp(self, path: Path) -> Stamp | None:
        """None for a file that has gone since it was listed."""
        folder, name = split_path(path)
        return self.stamps.get(folder, {}).get(name)


@dataclass(eq=False)
class _Folder:
    """What lies in a folder; names that begin with a dot are left out."""

    stamps: dict[str, Stamp] = field(default_factory=dict)
    """Of the images and caption files."""
    others: dict[str, bool] = field(default_factory=dict)
    """Name -> whether it is a folder, or a file of no kind known here."""
    links: set[str] = field(default_factory=set)
    """Those of both that are links."""
    time: int = 0
    """The folder's own, in nanoseconds; 0 where it tells nothing."""

    @cached_property
    def entries(self) -> Entries:
        files = (name for name, is_folder in self.others.items() if not is_folder)
        return Entries(
            files=tuple(sorted((*self.stamps, *files))),
            folders=tuple(sorted(name for name, is_folder in self.others.items() if is_folder)),
            links=frozenset(self.links),
        )


class Index(Reader):
    """The index of one dataset."""

    _serials = itertools.count(1)

    def __init__(self, root: Path, *, follow_links: bool) -> None:
        """`follow_links`: whether a link may lead out of the folder."""
        self._root = root
        self._follow_links = follow_links
        self._folders: dict[str, _Folder] = {}
        self._reading: Reading | None = None
        self._texts: dict[Path, CaptionFile] = {}
        self._tables: dict[Path, Metadata] = {}
        self._names: NamesOf | None = None
        self._unsettled: set[str] = set()

    def refresh(self) -> Reading:
        """Everything as it is now."""
        before, unsettled = self._folders, self._unsettled
        self._folders, self._unsettled = self._scanned()
        if self._reading is None:
            return self._read_anew()
        names_stay, changed = before.keys() == self._folders.keys(), set()
        for place, folder in self._folders.items():
            was = before.get(place) or _Folder()
            if folder is not was:
                names_stay = names_stay and folder.entries == was.entries
                changed |= {
                    os.path.join(place, name)  # noqa: PTH118  # many, and compared as texts
                    for name in was.stamps.keys() | folder.stamps.keys()
                    if was.stamps.get(name) != folder.stamps.get(name)
                }
        changed |= {path for path in unsettled - changed if self._reads_otherwise(Path(path))}
        if names_stay and not changed:
            return self._reading
        for path in map(Path, changed):
            self._texts.pop(path, None)
            self._tables.pop(path, None)
        return self._read_anew(self._reading if names_stay else None)

    def refresh_files(self, files: Iterable[Path]) -> Reading:
        """The last reading, if nothing came or went and these files are as they were; else a
        look.
        """
        if self._reading is None or not all(map(self._is_as_it_was, files)):
            return self.refresh()
        for place, folder in self._folders.items():
            begin = time.time_ns()
            now = _time_of(place)
            if folder.time and now == folder.time:
                continue
            try:
                if not now or entries_of(Path(place)) != folder.entries:
                    return self.refresh()
            except OSError:
                return self.refresh()
            folder.time = now if now < begin - SETTLED * 1e9 else 0
        return self._reading

    def apply_write(self, changes: Mapping[Path, str], written: WrittenFiles) -> Reading:
        """This process wrote these captions, {image: caption}, into these files."""
        reading = self._reading
        if reading is None:
            return self.refresh()
        tables_read, came = dict(self._tables), False
        for path in (*written.texts, *written.tables):
            came |= not self._take_in(path)
        self._texts |= {path: read_caption_file(path, data) for path, data in written.texts.items()}
        self._tables |= written.tables
        if came:
            return self._read_anew()
        after = after_writing(reading.captions, reading.listing, changes, written, tables_read)
        if after is None:
            return self._read_anew(reading)
        self._reading = replace(
            reading,
            serial=next(self._serials),
            captions=after,
            changes=dict(changes),
            before=reading.serial,
        )
        return self._reading

    @property
    def tables(self) -> Mapping[Path, Metadata]:
        """The tables as they were read, or written."""
        return self._tables

    def forget(self) -> None:
        """The next look reads everything, whatever the files' times say."""
        self._reading = None
        self._texts.clear()
        self._tables.clear()

    # --- Reader -----------------------------------------------------------------------------------

    def text(self, path: Path) -> CaptionFile:
        if path not in self._texts:
            self._texts[path] = read_caption_file(path)
        return self._texts[path]

    def table(self, path: Path) -> Metadata:
        if path not in self._tables:
            self._tables[path] = read_metadata(path)
        return self._tables[path]

    def names(self, listing: Listing) -> NamesOf:
        if self._names is None or self._names.listing is not listing:
            self._names = NamesOf(listing)
        return self._names

    # --- the folder -------------------------------------------------------------------------------

    def _scanned(self) -> tuple[dict[str, _Folder], set[str]]:
        """(what lies in each folder, caption files that were changed a moment ago)."""
        folders: dict[str, _Folder] = {}
        recent: set[str] = set()
        waiting, seen = [os.fspath(self._root)], set()
        while waiting:
            place = waiting.pop()
            real = os.path.realpath(place)
            if real in seen:
                continue
            seen.add(real)
            try:
                folders[place], new = self._scanned_folder(place)
            except OSError:
                continue  # the listing tells of it
            recent |= new
            waiting += [
                os.path.join(place, name)  # noqa: PTH118
                for name, is_folder in folders[place].others.items()
                if is_folder and name.casefold() not in IGNORED_FOLDERS
            ]
        return folders, recent

    def _scanned_folder(self, place: str) -> tuple[_Folder, set[str]]:
        """(what lies in a folder: the same object as long as that stays the same; its caption files
        that were changed a moment ago). Raises OSError.
        """
        horizon, folder_time = time.time_ns() - int(SETTLED * 1e9), _time_of(place)
        known = self._folders.get(place) or _Folder()
        same: list[str] = []
        new, others, links, recent = dict[str, Stamp](), dict[str, bool](), set[str](), set[str]()
        with _listed(place) as found:
            # each file is asked for its size and time: nearly all that a look costs
            for entry in found:
                name = entry.name
                was = known.stamps.get(name)
                if name.startswith("."):
                    continue
                if entry.is_symlink():
                    links.add(name)
                if entry.is_dir() or (was is None and file_suffix(name) not in _STAMPED):
                    others[name] = entry.is_dir()
                    continue
                try:
                    details = entry.stat()
                except OSError:
                    others[name] = False  # it went
                    continue
                if was is not None and was == (details.st_mtime_ns, details.st_size):
                    same.append(name)
                else:
                    new[name] = (details.st_mtime_ns, details.st_size)
                if details.st_mtime_ns > horizon and file_suffix(name) not in _PICTURES:
                    recent.add(os.path.join(place, name))  # noqa: PTH118  # many
        is_same = len(same) == len(known.stamps) and not new
        if not (is_same and others == known.others and links == known.links):
            stamps = {name: known.stamps[name] for name in same} | new
            known = _Folder(stamps=stamps, others=others, links=links)
        known.time = folder_time if folder_time < horizon else 0
        return known, recent

    def _read_folder(self, folder: Path) -> Entries:
        known = self._folders.get(os.fspath(folder))
        return entries_of(folder) if known is None else known.entries

    def _is_as_it_was(self, path: Path) -> bool:
        folder, name = os.path.split(path)
        known = self._folders.get(folder)
        return known is not None and _stamp_of(path) == known.stamps.get(name)

    def _take_in(self, path: Path) -> bool:
        """Notes a file as it was just written; returns whether it was there before."""
        place, name = os.path.split(path)
        folder = self._folders.get(place)
        if folder is None:
            return False
        folder.time = 0
        # another program may write it in the same moment
        self._unsettled.add(os.fspath(path))
        was_there = name in folder.stamps
        folder.stamps[name] = _stamp_of(path) or (0, 0)
        if not was_there:
            folder.others.pop(name, None)
            folder.__dict__.pop("entries", None)
        return was_there

    # --- reading ----------------------------------------------------------------------------------

    def _reads_otherwise(self, path: Path) -> bool:
        """Whether a file, whose size and time are the same, holds something else by now."""
        known = self._texts.get(path) or self._tables.get(path)
        if known is None:
            return False  # nobody asked
        try:
            return known.data is None or path.read_bytes() != known.data
        except OSError:
            return True

    def _read_anew(self, known: Reading | None = None) -> Reading:
        """`known`: a reading of the same names."""
        if known is not None:
            listing, problem, is_whole = known.listing, known.problem, known.is_whole
        else:
            listing, problem, is_whole = self._listed()
            staying = {path: self._texts.get(path) for path in listing.texts.values()}
            self._texts = {path: read for path, read in staying.items() if read is not None}
        self._reading = Reading(
            serial=next(self._serials),
            listing=listing,
            captions=read_captions(listing, DatasetSettings(train_data_dir=self._root), self),
            stamps={
                os.path.join(place, ""): folder.stamps  # noqa: PTH118  # pathlib takes it away
                for place, folder in self._folders.items()
            },
            problem=problem,
            is_whole=is_whole,
        )
        return self._reading

    def _listed(self) -> tuple[Listing, DatasetError | None, bool]:
        try:
            whole = list_folder(self._root, self._read_folder)
        except DatasetError as error:
            return Listing(root=self._root), error, True
        listing = whole if self._follow_links else without_links(whole)
        return listing, None, listing is whole


@contextlib.contextmanager
def _listed(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """os.scandir, whose entries find their files from the open folder where the system can do that:
    a fifth quicker. Raises OSError.
    """
    if os.scandir not in os.supports_fd:
        with os.scandir(folder) as found:
            yield found
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with os.scandir(opened) as found:
            yield found
    finally:
        os.close(opened)


def _time_of(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _stamp_of(path: Path) -> Stamp | None:
    try:
        details = path.stat()
    except OSError:
        return None
    return details.st_mtime_ns, details.st_size
