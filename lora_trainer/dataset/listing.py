"""The files of a dataset folder, sorted by kind, without opening them.

Flat folders, kohya folders ("10_name") and nested ones. Used by dataset.scan, and by dataset.index,
which knows the folders' content already.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from lora_trainer.dataset.findings import Finding, error, warning
from lora_trainer.dataset.images import OTHER_IMAGE_SUFFIXES, readable_suffixes
from lora_trainer.dataset.metadata import JSON_SUFFIX, TABLE_SUFFIXES
from lora_trainer.errors import DatasetError

CAPTION_SUFFIXES = (".txt", ".caption", ".tags", ".cap")
"""Text files beside an image, in order of precedence; a .json of the image's name comes last."""

_METADATA_NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
"""Used by default, in order of precedence per folder."""

IGNORED_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
)
_KOHYA_FOLDER = re.compile(r"(\d{1,3})_(.*)")
_REGULAR_WORDS = frozenset(
    "reg regs regul regimg regimgs regimage regimages regdata regset regdir".split()
)
_CLASS_IMAGES = re.compile(
    r"\b(?:class|prior) ?(?:image|img|data|preservation)|regulari[sz]ation|正则|正則|정규화"
)
"""Other folder names for class images (regularization images)."""
_CLASS_FOLDERS_BESIDE = frozenset({"class", "classes", "prior"})
"""Class images if beside a folder of instance images."""
_INSTANCES = frozenset(
    "instance instances instanceimages instancedata instancedatadir subject train img".split()
)
_MOST_NAMED = 5
_NAMED_LIKE_CLASS_IMAGES = "If they are images of the subject, give the folder another name."


@dataclass(frozen=True, kw_only=True)
class KohyaFolder:
    """What kohya's trainer reads from a folder name such as "10_fox animal"."""

    name: str
    repeats: int
    class_name: str


@dataclass(frozen=True, kw_only=True)
class Entries:
    """A folder's entries sorted by name, without those that start with a dot."""

    files: tuple[str, ...]
    folders: tuple[str, ...]
    links: frozenset[str] = frozenset()
    """Those that are symlinks."""


ReadFolder = Callable[[Path], Entries]
"""A folder's entries. Raises OSError."""


@dataclass(kw_only=True)
class Listing:
    """A dataset folder's files, in a stable order. Not modified after creation, because derived
    values are cached.
    """

    root: Path
    """train_data_dir."""
    images: list[Path] = field(default_factory=list)
    """In a readable format."""
    others: list[Path] = field(default_factory=list)
    """Images in a format that is not read."""
    texts: dict[tuple[Path, str], Path] = field(default_factory=dict)
    """(folder, `folded` file name) -> a caption file of an image, text or JSON."""
    metadata: list[Path] = field(default_factory=list)
    """metadata.csv and the like, at most one per folder."""
    tables: list[Path] = field(default_factory=list)
    """Possible metadata files with other names."""
    rest: list[Path] = field(default_factory=list)
    """Other files; a caption or an image may be among them."""
    class_folders: list[Path] = field(default_factory=list)
    """Folders of class images, which are left out."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Count of each suffix among all files."""
    findings: list[Finding] = field(default_factory=list)
    links: set[Path] = field(default_factory=set)
    """Files that are symlinks."""

    def name(self, path: Path) -> str:
        """A file's path relative to the root, with forward slashes."""
        text = os.fspath(path)
        if text.startswith(self._front):
            return text[len(self._front) :].replace(os.sep, "/")
        return path.relative_to(self.root).as_posix()

    @cached_property
    def _front(self) -> str:
        return os.path.join(self.root, "")  # noqa: PTH118  # with a trailing separator

    def folder_name(self, folder: Path) -> str:
        """A folder's path relative to the root, or the root's name."""
        if folder != self.root:
            return self.name(folder)
        return Path(os.path.normpath(self.root.absolute())).name

    def kohya_folder_of(self, folder: Path) -> KohyaFolder | None:
        """The nearest kohya folder around a folder, including itself and the root."""
        for candidate in (folder, *folder.parents):
            kohya = kohya_folder(candidate)
            if kohya or candidate == self.root:
                return kohya
        return None

    def texts_beside(self, image: Path) -> Sequence[Path]:
        """An image's caption files in order of precedence: a.txt, a.png.txt, a.caption,
        a.png.caption.
        """
        known = self._beside.get(image)
        if known is None:
            folder, name = split_path(image)
            owned = [
                self._texts_of_owner.get((folder, folded(owner)), {})
                for owner in (file_stem(name), name)
            ]
            known = self._beside[image] = tuple(
                texts[suffix]
                for suffix in (*CAPTION_SUFFIXES, JSON_SUFFIX)
                for texts in owned
                if suffix in texts
            )
        return known

    @cached_property
    def shared_texts(self) -> frozenset[Path]:
        """Caption files of more than one image."""
        owners = Counter(text for image in self.images for text in self.texts_beside(image))
        return frozenset(text for text, count in owners.items() if count > 1)

    @cached_property
    def _beside(self) -> dict[Path, tuple[Path, ...]]:
        return {}

    @cached_property
    def _texts_of_owner(self) -> dict[tuple[str, str], dict[str, Path]]:
        """(folder, folded name without caption suffix) -> {suffix: file}."""
        owned: dict[tuple[str, str], dict[str, Path]] = {}
        for (_, name), path in self.texts.items():
            suffix = file_suffix(name)
            owner = (split_path(path)[0], name[: -len(suffix)])
            owned.setdefault(owner, {})[suffix] = path
        return owned


def split_path(path: Path) -> tuple[str, str]:
    """(a file's folder with the separator at its end, its name): asked for each file, and pathlib
    and os.path take five times as long.
    """
    text = os.fspath(path)
    at = text.rfind(os.sep) + 1
    return text[:at], text[at:]


def file_suffix(name: str) -> str:
    """A file name's suffix in lower case, as in pathlib, five times as fast."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def file_stem(name: str) -> str:
    """A file name without its suffix."""
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def folded(name: str) -> str:
    """A name for comparison: case-folded, in Unicode NFC (macOS uses NFD)."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def kohya_folder(folder: Path) -> KohyaFolder | None:
    """The repeats and class name in a folder's name. Numbers above 999 are years."""
    match = _KOHYA_FOLDER.fullmatch(folder.name)
    if match:
        return KohyaFolder(name=folder.name, repeats=int(match[1]), class_name=match[2].strip())
    return None


def is_class_folder(name: str, beside: Iterable[str] = ()) -> bool:
    """Whether a folder's name, with or without kohya's number, means class images (kohya's reg).
    `beside`: the folders beside it.

    "1_dog" beside "20_sks dog" does: class images are trained once per epoch beside the instance
    images.
    """
    kohya = kohya_folder(Path(name))
    words = _words(kohya.class_name if kohya else name)
    if not _REGULAR_WORDS.isdisjoint(words) or _CLASS_IMAGES.search(" ".join(words)):
        return True
    if kohya and kohya.repeats == 1 and words:
        others = [
            other for other in map(kohya_folder, map(Path, beside)) if other and other.repeats > 1
        ]
        return any(_words(other.class_name)[1:] == words for other in others)
    return "".join(words) in _CLASS_FOLDERS_BESIDE and any(
        "".join(_words(other)) in _INSTANCES for other in beside
    )


def _words(name: str) -> list[str]:
    """The words of a name, case-folded; regImages has two."""
    return re.findall(r"[^\W_]+", folded(re.sub("(?<=[a-z])(?=[A-Z])", " ", name)))


def list_folder(root: Path, read_folder: ReadFolder | None = None) -> Listing:
    """List the folder, using `read_folder` for known ones. Raises DatasetError if there is no such
    folder or no image in it.
    """
    _require_folder(root)
    return _Walk(root, read_folder or entries_of).listing()


def entries_of(folder: Path) -> Entries:
    """A folder's entries. Raises OSError."""
    files: list[str] = []
    folders: list[str] = []
    links: set[str] = set()
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
    return Entries(
        files=tuple(sorted(files)), folders=tuple(sorted(folders)), links=frozenset(links)
    )


class _Walk:
    """A traversal of a dataset's folder."""

    def __init__(self, root: Path, read_folder: ReadFolder) -> None:
        self._listing = Listing(root=root)
        self._read_folder = cache(read_folder)
        self._seen: set[str] = set()
        self._readable = readable_suffixes()

    def listing(self) -> Listing:
        """Raises DatasetError if there is no image."""
        listing = self._listing
        for folder, entries in self._walk(self._start()):
            self._sort_in(folder, entries)
        if not listing.images and not listing.others:
            raise _no_images(listing)
        return listing

    def _walk(self, folder: Path) -> list[tuple[Path, Entries]]:
        """(folder, its entries), depth first, by name; symlinked folders are visited once."""
        listing = self._listing
        real = os.path.realpath(folder)
        if real in self._seen:
            return []
        self._seen.add(real)
        try:
            entries = self._read_folder(folder)
        except OSError as problem:
            hint = "Check the folder's permissions."
            listing.findings.append(
                error(
                    "unreadable-folder",
                    "{name} cannot be opened: {reason}",
                    hint=hint,
                    path=folder,
                    name=folder.name,
                    reason=problem.strerror,
                )
            )
            return []
        is_run = "events.jsonl" in entries.files
        if is_run and folder != listing.root:
            return []  # a run folder, with previews
        walked = [(folder, entries)]
        # images may be in the run folder itself: skip its previews
        ignored = IGNORED_FOLDERS | {"previews"} if is_run else IGNORED_FOLDERS
        folders = [name for name in entries.folders if name.casefold() not in ignored]
        for name in folders:
            if is_class_folder(name, folders):
                listing.findings += self._left_out_class_images(folder / name)
            else:
                walked += self._walk(folder / name)
        return walked

    def _left_out_class_images(self, folder: Path) -> list[Finding]:
        count = sum(
            file_suffix(name) in self._readable for _, _, names in os.walk(folder) for name in names
        )
        if not count:
            return []
        self._listing.class_folders.append(folder)
        template = (
            "{folder} holds class images (regularisation images, {count} of them): they are left"
            " out, and not trained as the subject"
        )
        return [
            warning(
                "left-out",
                template,
                hint=_NAMED_LIKE_CLASS_IMAGES,
                path=folder,
                folder=self._listing.name(folder),
                count=count,
            )
        ]

    def _start(self) -> Path:
        """The root; or img/ in it for a kohya_ss project, whose reg/ and model/ have other
        images.
        """
        listing = self._listing
        images = listing.root / "img"
        beside = self._folders_in(listing.root)
        if not images.is_dir() or any(kohya_folder(Path(name)) for name in beside):
            return listing.root
        if not any(kohya_folder(Path(name)) for name in self._folders_in(images)):
            return listing.root
        template = "{folder} is laid out as a kohya project: only its folder img is trained"
        for name in beside:
            if is_class_folder(name):
                listing.findings += self._left_out_class_images(listing.root / name)
        listing.findings.append(
            warning("left-out", template, folder=listing.root.name, path=listing.root)
        )
        return images

    def _folders_in(self, folder: Path) -> tuple[str, ...]:
        try:
            return self._read_folder(folder).folders
        except OSError:
            return ()  # reported by the walk

    def _sort_in(self, folder: Path, entries: Entries) -> None:
        listing, names = self._listing, entries.files
        by_name = {folded(name): name for name in names}
        metadata = [by_name[name] for name in _METADATA_NAMES if name in by_name]
        listing.metadata += [folder / name for name in metadata[:1]]
        listing.findings += [
            warning(
                "left-out",
                "{name} is not used: {chosen} in the same folder is used instead",
                path=folder / name,
                name=listing.name(folder / name),
                chosen=metadata[0],
            )
            for name in metadata[1:]
        ]
        suffixes = {name: file_suffix(name) for name in names}
        listing.suffixes.update(suffixes.values())
        images = [name for name in names if suffixes[name] in self._readable]
        stems = {file_stem(name) for name in images}
        owners = {folded(name) for name in (*stems, *images)}
        for name, suffix in suffixes.items():
            path = folder / name
            if name in entries.links:
                listing.links.add(path)
            if suffix in self._readable:
                listing.images.append(path)
            # beside a readable image of the same name, it is that image's source
            elif suffix in OTHER_IMAGE_SUFFIXES and file_stem(name) not in stems:
                listing.others.append(path)
            elif suffix in CAPTION_SUFFIXES or (
                suffix == JSON_SUFFIX and folded(file_stem(name)) in owners
            ):
                listing.texts[folder, folded(name)] = path
            elif suffix in TABLE_SUFFIXES and name not in metadata:
                listing.tables.append(path)
            elif name not in metadata and suffix not in OTHER_IMAGE_SUFFIXES:
                listing.rest.append(path)


def without_links(listing: Listing) -> Listing:
    """The listing without files outside the folder; unchanged if there are none."""
    root = listing.root.resolve()
    files = [
        *(*listing.images, *listing.others, *listing.texts.values()),
        *(*listing.metadata, *listing.tables, *listing.rest),
    ]
    folders = {split_path(path)[0] for path in files}
    elsewhere = {folder for folder in folders if not Path(folder).resolve().is_relative_to(root)}
    links = listing.links.intersection(files) if listing.links else ()
    leaving = {path for path in links if not path.resolve().is_relative_to(root)}
    if not elsewhere and not leaving:
        return listing

    def is_here(path: Path) -> bool:
        return path not in leaving and split_path(path)[0] not in elsewhere

    kept = Listing(
        root=listing.root,
        images=list(filter(is_here, listing.images)),
        others=list(filter(is_here, listing.others)),
        texts={place: path for place, path in listing.texts.items() if is_here(path)},
        metadata=list(filter(is_here, listing.metadata)),
        tables=list(filter(is_here, listing.tables)),
        rest=list(filter(is_here, listing.rest)),
        suffixes=listing.suffixes,
        findings=list(listing.findings),
    )
    template = "{name} is a link to a file elsewhere, and is left out"
    staying = set(kept.images)
    kept.findings += [
        warning("left-out", template, path=path, name=listing.name(path))
        for path in listing.images
        if path not in staying
    ]
    return kept


# --- folders that cannot be a dataset -------------------------------------------------------------


def _require_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.suffix.lower() in (".zip", ".7z", ".rar", ".tar", ".gz") and folder.exists():
        raise DatasetError(
            "train_data_dir {folder} is an archive",
            hint="Unpack it and give the folder.",
            folder=folder,
        )
    if folder.exists():
        raise DatasetError(
            "train_data_dir {folder} is a file",
            hint="Give the folder: {parent}",
            folder=folder,
            parent=folder.parent,
        )
    raise missing(folder, "train_data_dir {path} does not exist")


def missing(path: Path, template: str) -> DatasetError:
    """The error for a path that does not exist, suggesting the closest one. The template has
    {path}.
    """
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None:
        return DatasetError(template, hint="No part of this path exists.", path=path)
    wanted = path.relative_to(parent).parts[0]
    try:
        names = {folded(entry.name): entry.name for entry in parent.iterdir()}
    except OSError:
        names = {}
    close = difflib.get_close_matches(folded(wanted), names, 1)
    if close:
        return DatasetError(
            template, hint="Did you mean {close}?", path=path, close=parent / names[close[0]]
        )
    return DatasetError(
        template,
        hint="{parent} exists, but there is no {wanted} in it.",
        path=path,
        parent=parent,
        wanted=wanted,
    )


def _no_images(listing: Listing) -> DatasetError:
    if listing.class_folders:
        template = (
            "no images in {folder} but class images (regularisation images), in {name}: they are"
            " not trained as the subject"
        )
        left_out = listing.name(listing.class_folders[0])
        return DatasetError(
            template, hint=_NAMED_LIKE_CLASS_IMAGES, folder=listing.root, name=left_out
        )
    hint = "Put .png, .jpg or .webp files in it."
    if not listing.suffixes:
        return DatasetError("{folder} holds no files", hint=hint, folder=listing.root)
    most = ", ".join(
        f"{count} {suffix or 'without a suffix'}"
        for suffix, count in listing.suffixes.most_common(_MOST_NAMED)
    )
    return DatasetError(
        "no images in {folder} or the folders in it, only other files: {most}",
        hint=hint,
        folder=listing.root,
        most=most,
    )
