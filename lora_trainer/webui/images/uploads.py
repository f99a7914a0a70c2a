"""Adds uploaded files to a dataset.

    incoming = await receive(pieces, store, size)    the request body -> a temporary file, with size
                                                     limits
    accept(store, incoming, name) -> Accepted        what was added, and what was skipped and why

An image is decoded before it is accepted, and gets a safe, unique name. Formats that only the
worker's packages decode (HEIC, AVIF) are converted to JPEG, or kept as they are until those
packages are installed.

A .txt or .caption belongs to the image of the same stem; a .csv or .jsonl has captions for existing
images. A zip may contain all of these. Its folders are flattened, except kohya's ("10_fox"), which
set the repeats. Captions are written where the dataset keeps them (dataset.edits): in an uploaded
dataset, in metadata.csv. Existing captions are kept unless replacing is requested.

No path of a zip is used: names are reduced to their last component and made safe. Writes are
atomic: files are received and unpacked in the dataset's hidden folder, then moved. Called by the
routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import uuid
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_trainer import files
from lora_trainer.dataset import caption_provenance, edits
from lora_trainer.dataset.captions import require_length
from lora_trainer.dataset.images import (
    CONVERTIBLE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    READABLE_SUFFIXES,
    digest,
    examine,
    foreign_form,
    readable_suffixes,
    suffix_of,
)
from lora_trainer.dataset.listing import CAPTION_SUFFIXES, folded, is_class_folder, kohya_folder
from lora_trainer.dataset.matching import NameIndex
from lora_trainer.dataset.metadata import JSON_SUFFIX, TABLE_SUFFIXES, read_metadata
from lora_trainer.dataset.sources import caption_in_file
from lora_trainer.dataset.text import (
    LARGEST_CAPTION_FILE,
    LARGEST_TABLE,
    decode,
    plausible_encodings,
)
from lora_trainer.dataset.unread_files import is_text_file
from lora_trainer.errors import DatasetError, LoraTrainerError, Message
from lora_trainer.webui.common.safe_names import free_name, natural_order, safe_name
from lora_trainer.webui.datasets.caption_store import CaptionStore, key_of
from lora_trainer.webui.datasets.image_conversion import Converter
from lora_trainer.webui.datasets.text_store import TextStore

Recording = Callable[[Collection[str]], AbstractContextManager[object]]
"""Names of the images that an upload has added -> a context in which its captions are written."""
INCOMING = "incoming"
"""In the dataset's .lora_trainer folder: uploads in progress."""
LARGEST_IMAGE = 512 * 2**20
LARGEST_ARCHIVE = 64 * 2**30
MOST_MEMBERS = 20_000
EXPANSION = 50
"""Maximum ratio of unpacked to packed size (captions compress tenfold) ..."""
SMALL_ENOUGH = 2 * 2**30
"""... and the size in bytes below which the ratio is not checked."""

_PIECE = 2**20
_CHECK_EVERY = 64 * 2**20
_STALE = 24 * 3600.0
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
_OTHER_ARCHIVES = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")
_OLD_ENCODINGS = ("gb18030", "cp932", "big5", "cp949", "cp437", "cp1252")
"""Encodings of names in a zip without the UTF-8 flag."""
_CAPTION_KINDS = (
    "Captions are read from .txt, .caption, .tags, .cap and .json beside the images, and from"
    " .csv, .tsv, .jsonl and .json tables."
)
_ADD_IMAGE = "Add the image first, or give both the same name."


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A skipped file, and why."""

    name: str
    message: Message
    hint: Message
    kept_caption: bool = False
    """Whether it is a caption for an image that already has another one."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """An added image."""

    path: Path
    name: str
    """Path relative to the dataset's folder, with forward slashes."""
    width: int
    height: int

    @property
    def key(self) -> str:
        return key_of(self.name)


@dataclass(kw_only=True)
class Accepted:
    """The result of an upload."""

    added: list[Added] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    """Format ("HEIC") -> number of converted images."""
    waiting: Counter[str] = field(default_factory=Counter)
    """The same for images that are kept to be converted later."""
    captions: int = 0
    """Number of captions written."""
    texts: int = 0
    """Number of pairs, conversations and plain texts, in a dataset of texts."""
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, name: str, problem: LoraTrainerError) -> None:
        # without the temporary path, which means nothing to the user
        values = {
            key: name if key == "path" else value for key, value in problem.message.values.items()
        }
        hint = {key: name if key == "path" else value for key, value in problem.hint.values.items()}
        self.skipped.append(
            Skipped(
                name=name,
                message=Message(problem.message.template, values),
                hint=Message(problem.hint.template, hint),
            )
        )


# --- receiving ------------------------------------------------------------------------------------


async def receive(
    pieces: AsyncIterator[bytes],
    store: CaptionStore | TextStore,
    name: str,
    size: int | None,
    free: Callable[[Path], int] | None = None,
) -> Path:
    """The request body -> a file in the dataset's hidden folder, which the caller removes.

    size: announced number of bytes; free: free bytes on a folder's disk. Raises DatasetError if it
    is too large for its kind or the disk, or incomplete. Nothing remains then, nor if the client
    disconnects.
    """
    free = free or (lambda path: shutil.disk_usage(path).free)
    limit = _limit(name)
    folder = _incoming(store)
    _require_room(name, size or 0, limit, free(folder))
    target = folder / uuid.uuid4().hex
    received, checked = 0, 0
    try:
        with target.open("xb") as file:
            async for piece in pieces:
                file.write(piece)
                received += len(piece)
                if received > limit or received - checked > _CHECK_EVERY:
                    _require_room(name, received, limit, free(folder) + received)
                    checked = received
            file.flush()
            # in a thread: gigabytes take seconds, which would block the host's event loop
            await asyncio.to_thread(os.fsync, file.fileno())
        if size is not None and received != size:
            raise DatasetError(
                "only {received} of {size} bytes of {name} arrived",
                hint="Upload it again.",
                received=received,
                size=size,
                name=name,
            )
    except OSError as error:
        _forget(target)
        hint = "Check the free space on the disk."
        raise DatasetError(
            "{name} cannot be written: {reason}",
            hint=hint,
            name=name,
            reason=error.strerror or error,
        ) from error
    except BaseException:  # CancelledError if the client disconnects
        _forget(target)
        raise
    return target


def _limit(name: str) -> int:
    suffix = _suffix(name)
    if suffix == ".zip":
        return LARGEST_ARCHIVE
    if suffix in CAPTION_SUFFIXES:
        return LARGEST_CAPTION_FILE
    return LARGEST_TABLE if suffix in TABLE_SUFFIXES else LARGEST_IMAGE


def _require_room(name: str, size: int, limit: int, free: int) -> None:
    if size > limit:
        raise DatasetError(
            "{name} is larger than {limit} MB",
            hint="Make it smaller, or upload it in parts.",
            name=name,
            limit=limit // 2**20,
        )
    if size + files.RESERVED_DISK_SPACE > free:
        raise DatasetError(
            "there is not enough disk space for {name}: {free} MB are free, of which {kept} MB"
            " are reserved",
            hint="Free some space, or move the data folder.",
            name=name,
            free=free // 2**20,
            kept=files.RESERVED_DISK_SPACE // 2**20,
        )


def _incoming(store: CaptionStore | TextStore) -> Path:
    """The folder for uploads; files older than a day are deleted."""
    folder = store.path / caption_provenance.FOLDER / INCOMING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            # 0 for one that another upload has just moved
            if files.age(old) > _STALE:
                _forget(old)
    except OSError as error:
        hint = "Check the folder's permissions, and that the disk is connected."
        raise DatasetError.cannot_write(folder, error, hint) from error
    return folder


def _forget(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


# --- one file -------------------------------------------------------------------------------------


def accept(
    store: CaptionStore,
    incoming: Path,
    name: str,
    *,
    replace_captions: bool = False,
    free: Callable[[Path], int] | None = None,
    converter: Converter | None = None,
    recording: Recording = contextlib.nullcontext,
) -> Accepted:
    """Add a received file to the dataset. Problems with its content are in `skipped`, never raised.
    The file is moved or removed.

    `name` may be a relative path, as of a dropped folder, of which only kohya's folder is kept.
    Without `converter`, images that cannot be decoded here are skipped.
    """
    accepted = Accepted()
    kohya, is_class = _kohya_folder(name), _in_class_folder(name)
    name = PurePosixPath(name.replace("\\", "/")).name or "unnamed"
    suffix = _suffix(name)
    captions: Mapping[Path, str] = {}
    try:
        if is_class:
            hint = "If it is an image of the subject, upload it from a folder with another name."
            raise DatasetError(
                "{path} is left out: it is among class images (regularisation images)",
                hint=hint,
                path=name,
            )
        if suffix == ".zip":
            captions = _accept_archive(
                store,
                incoming,
                accepted,
                free or (lambda path: shutil.disk_usage(path).free),
                converter,
            )
        elif suffix in CAPTION_SUFFIXES or (
            suffix == JSON_SUFFIX and _images_of(store, name, kohya)
        ):
            captions = _of_text_file(store, name, incoming.read_bytes(), kohya)
        elif suffix in TABLE_SUFFIXES:
            captions = _of_rows(store, name, incoming.read_bytes(), accepted)
        else:
            _require_image_name(name)
            if suffix not in readable_suffixes() | OTHER_IMAGE_SUFFIXES and is_text_file(incoming):
                raise DatasetError(
                    "{path} is a text file in an unsupported format",
                    hint=_CAPTION_KINDS,
                    path=name,
                )
            form = foreign_form(incoming) if converter else ""
            if converter and form:
                _place_foreign(
                    store,
                    [_Foreign(file=incoming, name=name, folder=kohya, form=form)],
                    accepted,
                    converter,
                )
            else:
                accepted.added.append(_place(store, incoming, name, kohya))
        if captions:
            _write_captions(store, captions, accepted, replace_captions, recording)
    except DatasetError as problem:
        accepted.skip(name, problem)
    finally:
        _forget(incoming)
    return accepted


def is_one_caption(name: str) -> bool:
    """Whether a file of this name is the caption of one image."""
    return _suffix(name) in CAPTION_SUFFIXES


def _suffix(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).suffix.lower()


def _require_image_name(name: str) -> None:
    suffix = _suffix(name)
    if suffix in _OTHER_ARCHIVES:
        raise DatasetError(
            "{path} is an unsupported kind of archive",
            hint="Pack the images as a .zip, or upload them unpacked.",
            path=name,
        )
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DatasetError(
            "{path} is a workbook, not a CSV file",
            hint='Save it as "CSV UTF-8" from Excel.',
            path=name,
        )


def _place(store: CaptionStore, incoming: Path, name: str, folder_name: str = "") -> Added:
    """Move a received image into the dataset after decoding it. Raises DatasetError for a broken
    image or a duplicate.
    """
    examined = examine(incoming)
    suffix = _suffix(name)
    if suffix not in READABLE_SUFFIXES:
        suffix = suffix_of(incoming)
    target = _put(store, incoming, name, suffix, folder_name, examined.digest)
    return Added(
        path=target,
        name=target.relative_to(store.path).as_posix(),
        width=examined.width,
        height=examined.height,
    )


def _put(
    store: CaptionStore, incoming: Path, name: str, suffix: str, folder_name: str, content: str
) -> Path:
    """Add an image of this digest under a safe, unique name. Raises DatasetError for a
    duplicate.
    """
    stem = _stem(name)
    with store.lock:
        folder = store.path / folder_name
        folder.mkdir(parents=True, exist_ok=True)
        there = {folded(entry.name): entry for entry in folder.iterdir()}
        twin = there.get(folded(safe_name(stem, suffix)))
        if (
            twin is not None
            and twin.stat().st_size == incoming.stat().st_size
            and digest(twin) == content
        ):
            raise DatasetError("{path} is already in this dataset", path=name)
        # by stem: fox.png and fox.jpg would share fox.txt
        images = readable_suffixes() | OTHER_IMAGE_SUFFIXES
        stems = {folded(entry.stem) for entry in there.values() if entry.suffix.lower() in images}
        target = folder / (
            free_name(
                safe_name(stem),
                lambda stem: folded(stem) in stems or folded(stem + suffix) in there,
            )
            + suffix
        )
        _move(incoming, target, name)
    return target


def _stem(name: str) -> str:
    return (
        PurePosixPath(name).stem
        if _suffix(name) in readable_suffixes() | OTHER_IMAGE_SUFFIXES
        else name
    )


@dataclass(frozen=True, kw_only=True)
class _Foreign:
    """A received image that cannot be decoded in this process."""

    file: Path
    name: str
    folder: str
    """The kohya folder it belongs to, or ""."""
    form: str


def _place_foreign(
    store: CaptionStore, foreign: Sequence[_Foreign], accepted: Accepted, converter: Converter
) -> list[Path | None]:
    """Convert and add images, or keep them if they cannot be converted yet. Returns where each
    is.
    """
    if not foreign:
        return []
    if not converter.is_ready:
        return [_attempt(one, accepted, lambda one: _keep(store, one, accepted)) for one in foreign]
    with store.scratch() as folder:
        made = dict(
            zip(
                foreign,
                converter.convert(
                    [(one.file, folder / str(number)) for number, one in enumerate(foreign)]
                ),
                strict=True,
            )
        )
        return [
            _attempt(one, accepted, lambda one: _place_copy(store, one, made[one], accepted))
            for one in foreign
        ]


def _attempt(one: _Foreign, accepted: Accepted, place: Callable[[_Foreign], Path]) -> Path | None:
    try:
        return place(one)
    except DatasetError as problem:
        accepted.skip(one.name, problem)
        return None


def _keep(store: CaptionStore, one: _Foreign, accepted: Accepted) -> Path:
    suffix = _suffix(one.name)
    suffix = suffix if suffix in CONVERTIBLE_SUFFIXES else f".{one.form.lower()}"
    target = _put(store, one.file, one.name, suffix, one.folder, digest(one.file))
    accepted.waiting[one.form] += 1
    return target


def _place_copy(
    store: CaptionStore, one: _Foreign, copy: Path | DatasetError, accepted: Accepted
) -> Path:
    if isinstance(copy, DatasetError):
        raise copy
    added = _place(store, copy, _stem(one.name) + copy.suffix, one.folder)
    accepted.added.append(added)
    accepted.converted[one.form] += 1
    return added.path


def _move(incoming: Path, target: Path, name: str) -> None:
    try:
        incoming.replace(target)
    except OSError as error:
        hint = "Check the free space and the folder's permissions."
        raise DatasetError.cannot_write(name, error, hint) from error
    files.sync_folder(target.parent)


# --- captions -------------------------------------------------------------------------------------


def _kohya_folder(name: str) -> str:
    """A safe name of the innermost kohya folder in a path, or ""."""
    folders = PurePosixPath(name.replace("\\", "/")).parts[:-1]
    return next((safe_name(part) for part in reversed(folders) if kohya_folder(Path(part))), "")


def _in_class_folder(name: str, beside: Collection[str] = ()) -> bool:
    """Whether a folder of the path is for class images."""
    return any(
        is_class_folder(part, beside) for part in PurePosixPath(name.replace("\\", "/")).parts[:-1]
    )


def _of_text_file(store: CaptionStore, name: str, data: bytes, folder: str = "") -> dict[Path, str]:
    """A .txt -> {image: caption} for the images of its stem, in any folder unless one is given.
    Raises DatasetError.
    """
    text = _caption(data, name)
    images = _images_of(store, name, folder)
    if not images:
        raise DatasetError("{path} matches no image of this dataset", hint=_ADD_IMAGE, path=name)
    return dict.fromkeys(images, text)


def _images_of(store: CaptionStore, name: str, folder: str = "") -> list[Path]:
    stem = folded(PurePosixPath(name).stem)
    # IMG_1.heic.txt, for an image that was converted to IMG_1.jpg
    stems = {stem, PurePosixPath(stem).stem} if _suffix(stem) in CONVERTIBLE_SUFFIXES else {stem}
    images = [path for path in _images(store) if stems & {folded(path.stem), folded(path.name)}]
    return [image for image in images if not folder or image.parent.name == folder]


def _images(store: CaptionStore) -> list[Path]:
    """Images that a caption may belong to, including those to be converted."""
    return [*(item.path for item in store.view().items), *store.waiting()]


def _caption(data: bytes, name: str) -> str:
    """The caption in a file. Raises DatasetError."""
    caption = caption_in_file(decode(data, Path(name)).content, Path(name))
    if caption is None:
        raise DatasetError(
            "{path} contains no caption",
            hint='Its JSON has no "caption", "text" or "tags".',
            path=name,
        )
    require_length(caption, name)
    return caption


def _of_rows(store: CaptionStore, name: str, data: bytes, accepted: Accepted) -> dict[Path, str]:
    """A metadata file -> {image: caption} for images of the dataset."""
    index = NameIndex(_images(store))
    return _of_table(
        Path(name), data, lambda row_name: index.find(row_name, (store.path,)).images, accepted
    )


def _of_table(
    path: Path, data: bytes, find: Callable[[str], Sequence[Path]], accepted: Accepted
) -> dict[Path, str]:
    """A metadata file -> {image: caption}; invalid rows are skipped with a reason."""
    metadata = read_metadata(path, data)
    for finding in metadata.findings:
        if finding.severity == "error":
            accepted.skipped.append(
                Skipped(name=path.name, message=finding.message, hint=finding.hint)
            )
    captions = {}
    for row in metadata.rows:
        images = find(row.file_name)
        if len(images) == 1:
            captions[images[0]] = row.caption
            continue
        values = {"file": path.name, "line": row.line, "image": row.file_name}
        if images:
            hint = "Write its path, such as folder/img01.jpg."
            problem = DatasetError(
                "{file}, line {line}: {image} matches several images", hint=hint, **values
            )
        else:
            problem = DatasetError(
                "{file}, line {line}: there is no image {image}", hint=_ADD_IMAGE, **values
            )
        accepted.skip(path.name, problem)
    return captions


def _write_captions(
    store: CaptionStore,
    captions: Mapping[Path, str],
    accepted: Accepted,
    replace: bool,
    recording: Recording,
) -> None:
    """Write new captions; existing different ones only with `replace`."""
    added = {image.name for image in accepted.added}
    with store.lock, caption_provenance.changing_captions(store.path), recording(added):
        view, waiting = store.view(), set(store.waiting())
        writing = {}
        for image, caption in captions.items():
            if image in waiting:
                _write_beside(
                    image,
                    edits.clean(caption),
                    image.relative_to(store.path).as_posix(),
                    accepted,
                    replace,
                )
                continue
            item, new = view.by_path.get(image), edits.clean(caption)
            if item is None or not new:
                continue
            own = item.caption if item.source in ("metadata", "text") else ""
            if own == new:
                continue
            if own and not replace:
                accepted.skipped.append(_kept_caption(item.name))
                continue
            writing[image] = new
        store.remember_author(writing)
        edits.write_captions(view.listing, view.captions, writing)
        accepted.captions += len(writing)


def _write_beside(image: Path, caption: str, name: str, accepted: Accepted, replace: bool) -> None:
    """The caption of an image to be converted, in a file of the same stem, which will belong to the
    copy too. Raises DatasetError.
    """
    target = image.with_suffix(CAPTION_SUFFIXES[0])
    there = edits.clean(decode(target.read_bytes(), target).content) if target.is_file() else ""
    if not caption or there == caption:
        return
    if there and not replace:
        accepted.skipped.append(_kept_caption(name))
        return
    try:
        files.write_text(target, caption + "\n")
    except OSError as problem:
        hint = "Check the free space and the folder's permissions."
        raise DatasetError.cannot_write(target.name, problem, hint) from problem
    accepted.captions += 1


def _kept_caption(name: str) -> Skipped:
    message = Message("{name} has another caption already, which was kept", {"name": name})
    return Skipped(name=name, message=message, hint=Message(""), kept_caption=True)


# --- zip ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A file in an archive, by its path relative to the root."""

    info: zipfile.ZipInfo
    name: str
    """Path in the archive, with forward slashes."""


def _accept_archive(
    store: CaptionStore,
    incoming: Path,
    accepted: Accepted,
    free: Callable[[Path], int],
    converter: Converter | None,
) -> dict[Path, str]:
    """Add the images of a zip, and return {image: caption}. Raises DatasetError for an invalid zip,
    or one that would unpack to too much.
    """
    try:
        archive = zipfile.ZipFile(incoming)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DatasetError(
            "{path} is damaged, or not a zip file", hint="Pack it again.", path=incoming
        ) from error
    with archive:
        if len(archive.infolist()) > MOST_MEMBERS:
            raise DatasetError(
                "{path} contains more than {limit} files",
                hint="Upload it in parts.",
                path=incoming,
                limit=MOST_MEMBERS,
            )
        members = _members(archive, accepted)
        _require_sane(incoming, [member.info for member in members], free(incoming.parent))
        placed = _place_images(store, archive, members, accepted, converter)
        return _captions_in(store, archive, members, placed, accepted)


def _members(archive: zipfile.ZipFile, accepted: Accepted) -> list[_Member]:
    """Files that may be images or captions, in natural order; the others are skipped with a
    reason.
    """
    members, system_files, class_images = [], 0, 0
    names = _member_names(archive)
    folders = {part for name in names.values() for part in PurePosixPath(name).parts[:-1]}
    for info in archive.infolist():
        name = names[info.orig_filename]
        parts = PurePosixPath(name).parts
        if info.is_dir() or name.endswith("/"):
            continue
        if (
            any(part.startswith(".") and part not in ("..", ".") for part in parts)
            or parts[0] == "__MACOSX"
            or parts[-1].lower() in _SYSTEM_FILES
        ):
            system_files += 1
            continue
        if _in_class_folder(name, folders):
            class_images += 1
            continue
        try:
            _require_plain(info, name)
        except DatasetError as problem:
            accepted.skip(name, problem)
        else:
            members.append(_Member(info=info, name=name))
    if system_files:
        template = "hidden and system files are left out ({count} of them)"
        accepted.skipped.append(
            Skipped(name="", message=Message(template, {"count": system_files}), hint=Message(""))
        )
    if class_images:
        one = "a class image (regularisation image) is left out"
        several = "class images (regularisation images) are left out ({count} files)"
        hint = "If they show the subject, give their folder another name."
        message = Message(one if class_images == 1 else several, {"count": class_images})
        accepted.skipped.append(Skipped(name="", message=message, hint=Message(hint)))
    return sorted(members, key=lambda member: natural_order(member.name))


def _member_names(archive: zipfile.ZipFile) -> dict[str, str]:
    """{name as decoded by zipfile: correct name, with forward slashes}.

    Without the UTF-8 flag, names are in the packer's encoding, such as GBK on Chinese Windows;
    zipfile decodes them as cp437. The encoding is guessed from all such names together.
    """
    plain = {info.orig_filename: info.orig_filename.split("\0")[0] for info in archive.infolist()}
    unmarked = {info.orig_filename for info in archive.infolist() if not info.flag_bits & 0x800}
    raw = {}
    for name in unmarked:
        with contextlib.suppress(UnicodeEncodeError):
            raw[name] = plain[name].encode("cp437")
    encodings = ["utf-8"]
    if any(not _is_utf8(data) for data in raw.values()):
        encodings += plausible_encodings(b"\n".join(raw.values()), _OLD_ENCODINGS)
    for name, data in raw.items():
        for encoding in encodings:
            with contextlib.suppress(UnicodeDecodeError):
                plain[name] = data.decode(encoding)
                break
    return {name: meant.replace("\\", "/") for name, meant in plain.items()}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _require_plain(info: zipfile.ZipInfo, name: str) -> None:
    """Raises DatasetError for a member that is not a regular file of a supported kind."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts or name[1:2] == ":":
        raise DatasetError(
            "{path} points outside the archive",
            hint="Pack it again, without absolute paths.",
            path=name,
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DatasetError("{path} is a link, not a file", hint="Pack the file itself.", path=name)
    if info.flag_bits & 0x1:
        raise DatasetError(
            "{path} is protected with a password", hint="Pack it again without one.", path=name
        )
    suffix = _suffix(name)
    if suffix == ".zip":
        raise DatasetError(
            "{path} is an archive in an archive",
            hint="Unpack it, and upload it by itself.",
            path=name,
        )
    _require_image_name(name)
    if suffix not in readable_suffixes() | OTHER_IMAGE_SUFFIXES | TABLE_SUFFIXES | set(
        CAPTION_SUFFIXES
    ):
        raise DatasetError("{path} is neither an image nor a caption", path=name)


def _require_sane(archive: Path, infos: Sequence[zipfile.ZipInfo], free: int) -> None:
    total = sum(info.file_size for info in infos)
    if total > max(SMALL_ENOUGH, EXPANSION * archive.stat().st_size):
        hint = "Pack it again; if it came from the web, do not trust it."
        raise DatasetError(
            "{path} would unpack to {size} MB, far more than images do",
            hint=hint,
            path=archive,
            size=total // 2**20,
        )
    if total + files.RESERVED_DISK_SPACE > free:
        raise DatasetError(
            "{path} unpacks to {size} MB; {free} MB are free, of which {kept} MB are reserved",
            path=archive,
            size=total // 2**20,
            hint="Free some space, or move the data folder.",
            free=free // 2**20,
            kept=files.RESERVED_DISK_SPACE // 2**20,
        )


def _place_images(
    store: CaptionStore,
    archive: zipfile.ZipFile,
    members: Sequence[_Member],
    accepted: Accepted,
    converter: Converter | None,
) -> dict[Path, Path]:
    """Unpack the images. Returns {path in the archive, relative to the dataset's folder: current
    path}.
    """
    placed, foreign = {}, {}
    with store.scratch() as scratch:
        for member in members:
            if _suffix(member.name) not in readable_suffixes() | OTHER_IMAGE_SUFFIXES:
                continue
            name, folder = PurePosixPath(member.name).name, _kohya_folder(member.name)
            try:
                with _unpacked(store, archive, member, LARGEST_IMAGE) as file:
                    form = foreign_form(file) if converter else ""
                    if form:
                        # converted in one batch
                        kept = file.replace(scratch / file.name)
                        foreign[store.path / member.name] = _Foreign(
                            file=kept, name=name, folder=folder, form=form
                        )
                        continue
                    added = _place(store, file, name, folder)
            except DatasetError as problem:
                accepted.skip(member.name, problem)
            else:
                accepted.added.append(added)
                placed[store.path / member.name] = added.path
        if converter:
            now = _place_foreign(store, list(foreign.values()), accepted, converter)
            placed |= {
                path: place for path, place in zip(foreign, now, strict=True) if place is not None
            }
    return placed


@contextlib.contextmanager
def _unpacked(
    store: CaptionStore, archive: zipfile.ZipFile, member: _Member, limit: int
) -> Iterator[Path]:
    """A member as a temporary file. Raises DatasetError."""
    if member.info.file_size > limit:
        raise DatasetError(
            "{name} is larger than {limit} MB",
            hint="Make it smaller.",
            name=member.name,
            limit=limit // 2**20,
        )
    target = store.path / caption_provenance.FOLDER / INCOMING / uuid.uuid4().hex
    try:
        try:
            with archive.open(member.info) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, _PIECE)
                file.flush()
                os.fsync(file.fileno())
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
            RuntimeError,
            ValueError,
        ) as error:
            raise DatasetError(
                "{path} is damaged in the archive", hint="Pack it again.", path=member.name
            ) from error
        except Exception as error:  # zlib.error, lzma.LZMAError and others have no common base
            if isinstance(error, OSError):
                hint = "Check the free space on the disk."
                raise DatasetError.cannot_write(member.name, error, hint) from error
            raise DatasetError(
                "{path} is damaged in the archive", hint="Pack it again.", path=member.name
            ) from error
        yield target
    finally:
        _forget(target)


def _captions_in(
    store: CaptionStore,
    archive: zipfile.ZipFile,
    members: Sequence[_Member],
    placed: Mapping[Path, Path],
    accepted: Accepted,
) -> dict[Path, str]:
    """{image: caption} of the archive, with the precedence of a folder: metadata rows, then .txt,
    then .caption.
    """
    root = store.path
    in_archive = NameIndex(placed)
    here = NameIndex(_images(store))
    captions: dict[Path, str] = {}
    beside = {(path.parent, folded(name)) for path in placed for name in (path.stem, path.name)}
    of_one = {member.name for member in members if _suffix(member.name) in CAPTION_SUFFIXES}
    of_one |= {
        member.name
        for member in members
        if _suffix(member.name) == JSON_SUFFIX and _is_beside(root / member.name, beside)
    }
    order = (JSON_SUFFIX, *reversed(CAPTION_SUFFIXES))
    texts = sorted(
        (member for member in members if member.name in of_one),
        key=lambda member: order.index(_suffix(member.name)),
    )
    tables = [
        member
        for member in members
        if _suffix(member.name) in TABLE_SUFFIXES and member.name not in of_one
    ]
    # later sources take precedence
    for member in [*texts, *tables]:
        place = root / member.name
        try:
            with _unpacked(store, archive, member, _limit(member.name)) as file:
                data = file.read_bytes()
            if member.name in of_one:
                captions.update(_of_member(store, member, data, place, placed))
                continue
        except DatasetError as problem:
            accepted.skip(member.name, problem)
            continue

        def find(row_name: str, folder: Path = place.parent) -> Sequence[Path]:
            packed = [placed[path] for path in in_archive.find(row_name, (folder, root)).images]
            return packed or here.find(row_name, (root,)).images

        captions.update(
            {
                image: text
                for image, text in _of_table(Path(member.name), data, find, accepted).items()
                if text
            }
        )
    return captions


def _is_beside(place: Path, beside: Collection[tuple[Path, str]]) -> bool:
    return (place.parent, folded(place.stem)) in beside


def _of_member(
    store: CaptionStore, member: _Member, data: bytes, place: Path, placed: Mapping[Path, Path]
) -> dict[Path, str]:
    """A text file in an archive -> {image: caption}, for images beside it, else of the same stem in
    the dataset.
    """
    stem = folded(place.stem)
    beside = [
        now
        for path, now in placed.items()
        if path.parent == place.parent and stem in (folded(path.stem), folded(path.name))
    ]
    if not beside:
        return _of_text_file(store, PurePosixPath(member.name).name, data)
    return dict.fromkeys(beside, _caption(data, member.name))
