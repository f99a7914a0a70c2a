"""Finds the parts of a model that are in separate files, each recognised by its header.

    find_parts(path, detected, ...) -> FoundParts

Where a part is looked for, first to last: the files that were asked for; the checkpoint itself; the
files that a WebUI uses; the folders given; the folders beside the checkpoint's and above it, by the
names that WebUIs and ComfyUI give them; the checkpoint's own folder. Without torch; also used by
the tab.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lora_trainer.checkpoint.detect import FULL_PRECISIONS, Detected
from lora_trainer.checkpoint.folder import read_component
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.parts import PartFile, PartKind
from lora_trainer.errors import CheckpointError, Message

FOLDERS = frozenset(("text_encoder", "text_encoders", "clip", "vae"))
"""Names, in lower case, of folders with parts."""
LEVELS = 4
"""Folders above the checkpoint, its own included, beside which those are looked for."""
DEPTH = 2
"""Folders below each of those that are looked into."""
MOST_FILES = 500
"""Files that are read in one place."""
QUANTISED_ENDS = (
    ".scale_weight",
    ".weight_scale",
    ".scaled_fp8",
    ".absmax",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
    ".comfy_quant",
)
"""Ends of the names of tensors that only quantised weights have."""


@dataclass(frozen=True, kw_only=True)
class FoundParts:
    """The parts of one checkpoint."""

    files: dict[str, PartFile] = field(default_factory=dict)
    """By the kind's id."""
    missing: tuple[PartKind, ...] = ()
    quantised: tuple[Path, ...] = ()
    """Files of missing parts that cannot be trained with."""
    unreadable: tuple[Path, ...] = ()
    """Files, where missing parts were looked for, whose header cannot be read."""
    notes: tuple[Message, ...] = ()
    path: Path

    def require(self) -> None:
        """Raise CheckpointError if a part is missing."""
        if not self.missing:
            return
        parts = "; ".join(
            f"{kind.name} ({kind.file}, {kind.size}, {kind.source})" for kind in self.missing
        )
        if self.quantised:
            raise CheckpointError(
                "{path} lacks {parts}: what is there ({found}) is quantised",
                hint="Download these into the same folder: training needs fp16, bf16 or plain fp8.",
                path=self.path,
                parts=parts,
                found=", ".join(sorted(path.name for path in self.quantised)),
            )
        if self.unreadable:
            raise CheckpointError(
                "{path} lacks {parts}, and {found} cannot be read",
                hint=(
                    "If one of these is the missing part, its download was cut off, or it has"
                    " another format: download the .safetensors file again."
                ),
                path=self.path,
                parts=parts,
                found=", ".join(sorted(path.name for path in self.unreadable)),
            )
        raise CheckpointError(
            "{path} lacks parts that are in separate files: {parts}",
            hint=(
                "Download them into the WebUI's folders models/text_encoder and models/VAE, or"
                " name them with text_encoders and vae."
            ),
            path=self.path,
            parts=parts,
        )


def find_parts(
    path: Path,
    detected: Detected,
    *,
    asked: Sequence[Path] = (),
    vae: Path | None = None,
    in_use: Sequence[Path] = (),
    folders: Sequence[Path] = (),
    whole: bool = False,
) -> FoundParts:
    """The parts of the checkpoint at `path`.

    asked, vae: files that have to be used. in_use: those that a WebUI uses, if they fit. folders:
    where to look besides. whole: the checkpoint has all parts, so that none is looked for. Raises
    CheckpointError for files asked for that do not fit.
    """
    kinds = detected.family.part_kinds
    chosen: dict[str, PartFile] = {}
    for file in (*asked, *([vae] if vae is not None else [])):
        part = _asked(file, kinds, detected)
        if file is vae and part.kind.part != "VAE":
            raise CheckpointError(
                "vae is {path}, which is {kind}",
                hint="Name it in text_encoders.",
                path=file,
                kind=part.kind.name,
            )
        if part.kind.id in chosen:
            raise CheckpointError(
                "{first} and {second} are both {kind}",
                hint="Name one file for each part.",
                first=chosen[part.kind.id].path,
                second=file,
                kind=part.kind.name,
            )
        chosen[part.kind.id] = part
    if whole:
        return FoundParts(files=chosen, path=path)
    inside = _read(path) if path.is_file() else None
    for kind in kinds:
        if kind.id in chosen or inside is None:
            continue
        part_inside = _part_in(inside, path, kind, detected, kind.inside)
        if part_inside is not None and precision_rank(part_inside) is not None:
            chosen[kind.id] = part_inside
    return _look_around(path, detected, chosen, in_use, folders)


def _look_around(
    path: Path,
    detected: Detected,
    chosen: dict[str, PartFile],
    in_use: Sequence[Path],
    folders: Sequence[Path],
) -> FoundParts:
    """The same, with what is still missing taken from other files."""
    notes: list[Message] = []
    quantised: list[Path] = []
    unreadable: list[Path] = []
    own_folder = path.parent

    def places() -> Iterator[list[Path]]:
        yield [one for one in in_use if one.suffix == ".safetensors" and one.is_file()]
        yield [file for folder in folders for file in _files_in(folder, DEPTH)]
        yield [file for folder in folders_beside(path) for file in _files_in(folder, DEPTH)]
        yield [file for file in _files_in(own_folder, 0) if file != path]

    searched = places()
    while kinds := [kind for kind in detected.family.part_kinds if kind.id not in chosen]:
        files = next(searched, None)
        if files is None:
            break
        looked_at = {file: _read(file) for file in dict.fromkeys(files)}
        headers = [(file, header) for file, header in looked_at.items() if header is not None]
        unreadable += [file for file, header in looked_at.items() if header is None]
        for kind in kinds:
            fitting = [
                part
                for file, header in headers
                if (part := _part_in(header, file, kind, detected, kind.prefixes)) is not None
            ]
            usable = [part for part in fitting if precision_rank(part) is not None]
            quantised += [part.path for part in fitting if precision_rank(part) is None]
            if not usable:
                continue
            best = min(usable, key=_preference)
            chosen[kind.id] = best
            if len(usable) > 1:
                values = {"kind": kind.name, "count": len(usable), "file": best.path.name}
                notes.append(Message("{kind}: of {count} files that fit, {file} is used", values))
    missing = tuple(kind for kind in detected.family.part_kinds if kind.id not in chosen)
    return FoundParts(
        files=chosen,
        missing=missing,
        quantised=tuple(dict.fromkeys(quantised)) if missing else (),
        unreadable=tuple(dict.fromkeys(unreadable)) if missing else (),
        notes=tuple(notes),
        path=path,
    )


def _preference(part: PartFile) -> tuple[int, bool, str]:
    rank = precision_rank(part)
    assert rank is not None
    return rank, part.path.name != part.kind.file, part.path.name.casefold()


def precision_rank(part: PartFile) -> int | None:
    """0: full precision; 1: plain fp8; None: quantised, or with scales beside the weights."""
    names = [name for name in part.header.tensors if name.startswith(part.prefix)]
    if is_quantised(names):
        return None
    used = {part.header.tensors[name].dtype for name in names}
    matrices = {
        part.header.tensors[name].dtype
        for name in names
        if len(part.header.tensors[name].shape) > 1
    }
    if not matrices <= {*FULL_PRECISIONS} or used & {"U8", "I8"}:
        return None
    return 1 if any(kind.startswith("F8_") for kind in matrices) else 0


def is_quantised(names: Iterable[str]) -> bool:
    """Whether these tensors' names are those of quantised weights."""
    return any(name.endswith(QUANTISED_ENDS) or name == "scaled_fp8" for name in names)


def _asked(file: Path, kinds: Sequence[PartKind], detected: Detected) -> PartFile:
    """A file, or a folder of one diffusers model, that was asked for. Raises CheckpointError."""
    if file.is_dir() and not (file / "config.json").is_file():
        raise CheckpointError(
            "{path} is a folder without config.json, not one part of a model",
            hint="Name the files in it, or a folder of the diffusers form.",
            path=file,
        )
    if file.is_dir():
        headers = read_component(file).headers
        header = joined(file, headers)
    else:
        header = read_header(file)
        headers = (header,)
    for kind in kinds:
        part = _part_in(header, file, kind, detected, (*kind.prefixes, *kind.inside), headers)
        if part is None:
            continue
        if precision_rank(part) is None:
            raise CheckpointError(
                "{path} ({kind}) is quantised",
                hint="Training needs it in fp16, bf16 or plain fp8: {file}, {size}, {source}.",
                path=file,
                kind=kind.name,
                file=kind.file,
                size=kind.size,
                source=kind.source,
            )
        return part
    raise CheckpointError(
        "{path} is none of the parts of {family}: {parts}",
        hint="Choose files made for this model, or set text_encoders and vae to auto.",
        path=file,
        family=detected.family.name,
        parts=", ".join(kind.name for kind in kinds),
    )


def joined(folder: Path, headers: Sequence[Header]) -> Header:
    """The headers of a sharded model's files as one, to look at names and shapes."""
    return Header(
        path=folder,
        tensors={name: info for one in headers for name, info in one.tensors.items()},
        metadata=headers[0].metadata,
        data_start=headers[0].data_start,
        file_size=sum(one.file_size for one in headers),
    )


def _part_in(
    header: Header,
    path: Path,
    kind: PartKind,
    detected: Detected,
    prefixes: Sequence[str],
    headers: tuple[Header, ...] = (),
) -> PartFile | None:
    """This kind of part in a file, if it has the width that the model takes."""
    for prefix in prefixes:
        width = kind.width(header, prefix)
        if width is not None and detected.widths.get(kind.id, width) == width:
            return PartFile(
                kind=kind, path=path, header=header, headers=headers or (header,), prefix=prefix
            )
    return None


def folders_beside(path: Path, called: Collection[str] = FOLDERS) -> list[Path]:
    """Folders of these names, in lower case, beside the checkpoint's folder and above it, nearest
    first.
    """
    found: list[Path] = []
    for parent in list(Path(path).absolute().parents)[:LEVELS]:
        try:
            entries = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
        except OSError:
            continue
        found += [parent / name for name in entries if name.lower() in called]
    return found


def _files_in(folder: Path, depth: int) -> list[Path]:
    """The .safetensors files in a folder and up to `depth` levels below."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        files = [
            Path(entry.path)
            for entry in entries
            if entry.name.endswith(".safetensors") and entry.is_file()
        ]
        inner = [Path(entry.path) for entry in entries if depth and entry.is_dir()]
    except OSError:
        return []
    return [*files, *(file for one in inner for file in _files_in(one, depth - 1))][:MOST_FILES]


def _read(path: Path) -> Header | None:
    """The header of a file; None if it has none that can be read."""
    try:
        details = path.stat()
        return _header(path, details.st_size, details.st_mtime_ns)
    except (OSError, CheckpointError):
        return None


@lru_cache(maxsize=64)
def _header(path: Path, size: int, changed: int) -> Header:
    return read_header(path)
