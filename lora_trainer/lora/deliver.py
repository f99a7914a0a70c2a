"""Put a finished LoRA where the host finds it, under a name of its own, with what its card shows.

    deliver(file, lora_dir, name, ...) -> NAME.safetensors, NAME.json (trigger, strength) and NAME.png in lora_dir

The worker calls it at the end of a run, the tab on request. Standard library and Pillow. Nothing is ever overwritten: A1111 and Forge keep showing
the old weights of a file that was replaced under its name. The host lists *.safetensors at any moment, so the weights come last and in one step.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from lora_trainer.checkpoint.parts import Family
from lora_trainer.config import FORBIDDEN_IN_NAMES
from lora_trainer.errors import LoraFileError, LoraTrainerError, Message
from lora_trainer.files import is_disk_full, replace_file, sync_folder, write_text
from lora_trainer.lora.file import copy_with_metadata, read_header

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".ckpt")
SD_VERSIONS: dict[Family, str] = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
PREVIEW_SIDE = 768
"""Longest side of the card's picture in pixels: sharp on a card, and small to load a hundred times."""
LONGEST_STEM = 150
"""Bytes of UTF-8: leaves room for `-2.safetensors.part` within the 255 bytes of most file systems."""

# "none" is A1111's own word in <lora:none:...>; the others are devices on Windows, whatever follows the dot
RESERVED = {"none", "con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A LoRA in the host's folder."""

    path: Path
    name: str
    """What to write in a prompt: <lora:name:0.7>."""
    renamed: bool
    """True if the name asked for was taken or could not be used."""
    sidecar: Path
    preview: Path | None
    warnings: tuple[Message, ...] = ()
    """What could not be done, in sentences; the LoRA works all the same."""


def deliver(
    file: Path, lora_dir: Path, name: str, *, trigger: str, preferred_weight: float, family: Family, description: str = "",
    preview: Path | None = None, negative_text: str = "", notes: str = "",
) -> Delivered:  # fmt: skip
    """Copy a LoRA file into the host's folder as `name`, or name-2, name-3... if that is in use there, in any subfolder.

    ss_output_name and modelspec.title inside the copy become the new name: the host inserts the first when the card is clicked.
    Raises LoraFileError if the folder is missing, full or not writable; `file` itself is never touched.
    """
    read_header(file)
    _require_folder(lora_dir, file)
    wanted = clean_name(name)
    try:
        with claimed_name(lora_dir, wanted) as (stem, partial):
            sidecar, picture = lora_dir / f"{stem}.json", lora_dir / f"{stem}.png"
            try:
                warnings = _write_preview(preview, picture) if preview else ()
                write_text(sidecar, _sidecar(trigger, preferred_weight, family, description, negative_text, notes))
                _write_weights(file, partial, stem)
                target = lora_dir / f"{stem}.safetensors"
                os.replace(partial, target)
            except BaseException:
                _remove(sidecar, picture)
                raise
        sync_folder(lora_dir)
    except OSError as error:
        raise _could_not(error, lora_dir, file) from error
    return Delivered(path=target, name=stem, renamed=stem != name, sidecar=sidecar, preview=picture if picture.exists() else None, warnings=warnings)


def _write_weights(file: Path, partial: Path, stem: str) -> None:
    metadata = read_header(file).metadata
    copy_with_metadata(file, partial, {key: stem for key in ("ss_output_name", "modelspec.title") if key in metadata})
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sidecar(trigger: str, preferred_weight: float, family: Family, description: str, negative_text: str, notes: str) -> str:
    """The user metadata of A1111's card, in A1111's keys."""
    values = {
        "description": description, "sd version": SD_VERSIONS[family], "activation text": trigger, "preferred weight": preferred_weight,
        "negative text": negative_text, "notes": notes,
    }  # fmt: skip
    return json.dumps(values, ensure_ascii=False, indent=4) + "\n"


def _write_preview(source: Path, target: Path) -> tuple[Message, ...]:
    """The card's picture, made smaller, with the generation settings it carries. A picture that cannot be read is a warning."""
    try:
        with Image.open(source) as image:
            image.load()
            settings = image.info.get("parameters")
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return (Message("The preview {source} cannot be read and was left out: {error}", {"source": source, "error": error}),)
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    info = PngImagePlugin.PngInfo()
    if isinstance(settings, str):
        info.add_text("parameters", settings)
    replace_file(target, lambda partial: small.save(partial, format="PNG", pnginfo=info))
    return ()


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


# --- names -------------------------------------------------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """A name that <lora:NAME:0.7>, every file system and the hosts' lists can hold: "My: style v1.5" -> "My_style v1_5"."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "ignore").decode("utf-8")
    forbidden = set(FORBIDDEN_IN_NAMES) | {"."}
    text = "".join("_" if character in forbidden or unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") else character for character in text)
    text = re.sub(r"[_\s]*_[_\s]*", "_", text).strip("_ \t")
    while len(text.encode("utf-8")) > LONGEST_STEM:
        text = text[:-1].rstrip("_ ")
    return text or "lora"


def used_names(lora_dir: Path) -> set[str]:
    """Case-folded stems that the host knows, in this folder and in every folder it lists together with it."""
    used = set(RESERVED)
    for root in _listed_roots(lora_dir):
        seen: set[str] = set()
        for folder, subfolders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link that leads back up
                subfolders.clear()
                continue
            seen.add(real)
            used |= {Path(file).stem.casefold() for file in files if Path(file).suffix.lower() in WEIGHT_SUFFIXES}
    return used


def _listed_roots(lora_dir: Path) -> list[Path]:
    """The host lists models/Lora with all below it, and models/LyCORIS: names must differ across both, wherever in them lora_dir is."""
    folder = lora_dir.absolute()
    for candidate in (folder, *folder.parents):
        if candidate.name.casefold() == "lora":
            return [candidate, candidate.parent / "LyCORIS"]
    return [folder]


@contextlib.contextmanager
def claimed_name(lora_dir: Path, wanted: str) -> Iterator[tuple[str, Path]]:
    """Yield (stem, path of the partial file) for the first free name, which no other process is given until the block ends.

    The partial file is created exclusively, its name in lower case so that Foo and foo meet. It is gone after the block.
    """
    number = 1
    while True:
        stem = wanted if number == 1 else f"{wanted}-{number}"
        partial = lora_dir / f"{stem.casefold()}.safetensors.part"
        number += 1
        try:
            partial.open("xb").close()
        except FileExistsError:
            continue
        try:
            # looked up after the claim: another delivery may have finished under this name in between
            if stem.casefold() in used_names(lora_dir) or _has_companions(lora_dir, stem, partial.name):
                continue
            yield stem, partial
            return
        finally:
            _remove(partial)


def _has_companions(lora_dir: Path, stem: str, claim: str) -> bool:
    """Whether anything in the folder belongs to this name: the notes or picture of a LoRA that is gone would be overwritten or shown."""
    return any(entry.name.casefold().startswith(stem.casefold() + ".") and entry.name != claim for entry in lora_dir.iterdir())


# --- trouble -----------------------------------------------------------------------------------------------------------------------------


def _require_folder(lora_dir: Path, file: Path) -> None:
    if not lora_dir.exists():
        hint = "Correct lora_dir: it is models/Lora in the WebUI's folder. Or copy {file} there yourself."
        raise LoraFileError("there is no folder {lora_dir}", hint=hint, lora_dir=lora_dir, file=file)
    if not lora_dir.is_dir():
        hint = "Set lora_dir to the WebUI's models/Lora folder, or copy {file} there yourself."
        raise LoraFileError("{lora_dir} is not a folder", hint=hint, lora_dir=lora_dir, file=file)


def _could_not(error: OSError, lora_dir: Path, file: Path) -> LoraTrainerError:
    if is_disk_full(error):
        hint = "Make room there, then deliver again; the LoRA itself is safe in {file}."
        return LoraFileError("the disk of {lora_dir} is full", hint=hint, lora_dir=lora_dir, file=file)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Allow writing there, or set lora_dir to another folder; the LoRA itself is safe in {file}."
        return LoraFileError("{lora_dir} cannot be written to", hint=hint, lora_dir=lora_dir, file=file)
    reason = error.strerror or str(error)
    hint = "The LoRA itself is safe in {file}; it can be copied by hand."
    return LoraFileError("the LoRA could not be put into {lora_dir}: {reason}", hint=hint, lora_dir=lora_dir, file=file, reason=reason)
