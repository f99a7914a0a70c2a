"""Copies a finished LoRA into the host's folder under a new name, with its card's metadata.

    deliver(file, lora_dir, name, ...) -> NAME.safetensors, NAME.json (trigger, strength, credits),
    NAME.png

Called by the worker at the end of a run, and by the tab. Standard library and Pillow. Nothing is
overwritten: A1111 and Forge keep showing the old weights of a replaced file. The host may list
*.safetensors at any moment, so the weights are written last, and atomically.

A delivery interrupted by a kill is completed by the next call for the same file: the name is
recorded beside the file (FILE.delivery.json) before it is claimed. A claim is a small file in the
folder, NAME.safetensors.part, that refers to this note; claims whose process is dead and whose note
is gone are removed by the next delivery.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from lora_trainer import files
from lora_trainer.errors import LoraFileError, LoraTrainerError, Message
from lora_trainer.families.base import Family
from lora_trainer.lora.credits import Credits
from lora_trainer.lora.file import copy_with_metadata, read_header, same_weights
from lora_trainer.lora.host_layers import version_word
from lora_trainer.lora.metadata import SAMPLING
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES

CLAIM_END = ".safetensors.part"
NOTE_END = ".delivery.json"
LOCK_TIMEOUT = 60.0
"""Seconds to wait for another delivery of the same file."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".ckpt")
PREVIEW_SIDE = 768
"""Longest side of the card's image in pixels."""
MAX_STEM_BYTES = 150
"""In UTF-8; leaves room for `-2.safetensors.part` within the 255 bytes of most file systems."""

# "none" has a meaning for A1111 in <lora:none:...>; the others are devices on Windows, with any
# suffix
RESERVED = {
    "none",
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)),
}


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A LoRA in the host's folder."""

    path: Path
    name: str
    """For the prompt: <lora:name:0.7>."""
    renamed: bool
    """Whether the requested name was in use or not usable."""
    warnings: tuple[Message, ...] = ()
    """What failed without affecting the LoRA."""


def deliver(
    file: Path,
    lora_dir: Path,
    name: str,
    *,
    trigger: str,
    preferred_weight: float,
    family: Family,
    preview: Path | None = None,
    negative_text: str = "",
    webui: str | None = None,
) -> Delivered:
    """Copy a LoRA file into the host's folder as `name`, or name-2, name-3 ... if in use in any
    subfolder.

    ss_output_name and modelspec.title in the copy are set to the new name, which the host inserts
    when the card is clicked. webui: as host_layers.HOST_NAMES; the sidecar has its word for the
    family, or without one A1111's. If the file was delivered there before, that delivery is
    returned. Raises LoraFileError if the folder is missing, full or not writable; `file` is not
    modified.
    """
    metadata = read_header(file).metadata
    _require_folder(lora_dir, file)
    version = version_of(family, webui)
    texts = _sidecar(trigger, preferred_weight, version, negative_text, metadata)
    try:
        with _locked(file):
            note = _Note(file, lora_dir)
            files.remove_abandoned(lora_dir)
            clear_abandoned(lora_dir)
            stem, is_there = note.resume()
            stem = stem or note.claim(clean_name(name))
            warnings = () if is_there else _put(file, lora_dir, stem, texts, preview, note)
    except files.Locked:
        hint = "It will be done in a moment. If it is not, deliver again."
        raise LoraFileError(
            "{file} is being delivered at this moment", hint=hint, file=file
        ) from None
    except OSError as error:
        raise _delivery_error(error, lora_dir, file) from error
    target = lora_dir / f"{stem}.safetensors"
    return Delivered(path=target, name=stem, renamed=stem != name, warnings=warnings)


def _put(
    file: Path, lora_dir: Path, stem: str, texts: str, preview: Path | None, note: _Note
) -> tuple[Message, ...]:
    """Write everything under the claimed name, the weights last."""
    target, sidecar, image = (
        lora_dir / f"{stem}{end}" for end in (".safetensors", ".json", ".png")
    )
    try:
        warnings = _write_preview(preview, image) if preview else ()
        files.write_text(sidecar, texts)
        changes = {
            key: stem
            for key in ("ss_output_name", "modelspec.title")
            if key in read_header(file).metadata
        }
        files.replace_file(target, lambda partial: copy_with_metadata(file, partial, changes))
    except BaseException:
        if not target.exists():
            _remove(sidecar, image)
            note.cancel()
        raise
    note.release()
    return warnings


def version_of(family: Family, webui: str | None) -> str:
    """`sd version` in a sidecar: the WebUI's word for a family; A1111's if it has none."""
    return (version_word(webui, family.id) if webui else None) or family.sd_version


def _sidecar(
    trigger: str,
    preferred_weight: float,
    version: str,
    negative_text: str,
    metadata: Mapping[str, str],
) -> str:
    """The user metadata of A1111's card. metadata: the LoRA file's."""
    credits = Credits.of(metadata)
    values = {
        "description": credits.description,
        "sd version": version,
        "activation text": trigger,
        "preferred weight": preferred_weight,
        "negative text": negative_text,
        "notes": "\n".join(filter(None, [metadata.get(SAMPLING, ""), credits.notes()])),
    }
    return json.dumps(values, ensure_ascii=False, indent=4) + "\n"


def _write_preview(source: Path, target: Path) -> tuple[Message, ...]:
    """The card's image, downscaled, with its generation parameters. An unreadable one is a
    warning.
    """
    try:
        with Image.open(source) as image:
            image.load()
            settings = image.info.get("parameters")
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return (
            Message(
                "The preview {source} cannot be read and was left out: {error}",
                {"source": source, "error": error},
            ),
        )
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    info = PngImagePlugin.PngInfo()
    if isinstance(settings, str):
        info.add_text("parameters", settings)
    files.replace_file(target, lambda partial: small.save(partial, format="PNG", pnginfo=info))
    return ()


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


# --- claims ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the file's delivery lock, if its folder is writable."""
    place = file.with_name("delivery.lock")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.lock(place, patience=LOCK_TIMEOUT))
        except files.Locked:
            raise
        except OSError:
            pass
        yield


def note_of(file: Path) -> Path:
    """The path of a file's delivery note."""
    return file.with_name(file.name + NOTE_END)


class _Note:
    """The note beside `file` about its delivery into `lora_dir`: the claimed name."""

    def __init__(self, file: Path, lora_dir: Path) -> None:
        self._file = file
        self._lora_dir = lora_dir
        self._path = note_of(file)
        self._stem = ""
        self._token = ""

    def resume(self) -> tuple[str, bool]:
        """The name of an earlier, interrupted delivery or "", and whether its file is complete."""
        kept: dict[str, Any] = files.read_json(self._path, dict, {}, names=True)
        self._stem, self._token = str(kept.get("name", "")), str(kept.get("token", ""))
        folder = Path(str(kept.get("folder", "")))
        if not self._stem:
            return "", False
        if files.place(folder) != files.place(self._lora_dir):
            _clear_claim(_claim_of(folder, self._stem), self._token)
            return "", False
        arrived = self._lora_dir / f"{self._stem}.safetensors"
        if arrived.exists():
            # an earlier state of a continued run keeps its name
            self.release()
            return (self._stem, True) if same_weights(self._file, arrived) else ("", False)
        if self._holds_claim() and not kept.get("was_free"):
            self.release()
        return (self._stem if self._holds_claim() else ""), False

    def claim(self, wanted: str) -> str:
        """Claim `wanted`, or wanted-2 ...: the first free name.

        The claim file is created exclusively, with a lower-case name so that Foo and foo conflict.
        The note is written first, so that every claim has one.
        """
        number, used = 0, used_names(self._lora_dir)
        while True:
            number += 1
            stem = wanted if number == 1 else f"{wanted}-{number}"
            claim = _claim_of(self._lora_dir, stem)
            if stem.casefold() in used or claim.exists():
                continue
            self._write(stem, uuid.uuid4().hex, was_free=False)
            try:
                with claim.open("x", encoding="ascii") as stream:
                    json.dump(
                        {
                            "token": self._token,
                            "writer": files.writer_id(),
                            "note": str(self._path.absolute()),
                        },
                        stream,
                    )
            except FileExistsError:
                continue
            # checked again: another delivery may have completed under this name before the claim
            if stem.casefold() not in used_names(self._lora_dir) and not _has_companions(
                self._lora_dir, stem, claim.name
            ):
                # files of this name that appear later belong to this delivery
                self._write(stem, self._token, was_free=True)
                return stem
            self.release()

    def release(self) -> None:
        """Remove the claim."""
        if self._holds_claim():
            _remove(_claim_of(self._lora_dir, self._stem))

    def cancel(self) -> None:
        """Remove the claim and the note."""
        self.release()
        _remove(self._path)

    def _holds_claim(self) -> bool:
        claim = _claim_of(self._lora_dir, self._stem)
        # empty if the process was killed while creating it
        return claim.is_file() and (claim.stat().st_size == 0 or _token(claim) == self._token)

    def _write(self, stem: str, token: str, *, was_free: bool) -> None:
        self._stem, self._token = stem, token
        values = {
            "name": stem,
            "token": token,
            "folder": str(self._lora_dir.absolute()),
            "was_free": was_free,
        }
        # the run's folder may be full or read-only; then only the claim's process protects it
        with contextlib.suppress(OSError):
            files.write_bytes(self._path, json.dumps(values).encode("ascii"))


def _claim_of(lora_dir: Path, stem: str) -> Path:
    return lora_dir / f"{stem.casefold()}{CLAIM_END}"


def clear_abandoned(lora_dir: Path) -> None:
    """Delete claims that no process or note refers to, with the sidecars and images of their
    incomplete deliveries.
    """
    for claim in lora_dir.glob(f"*{CLAIM_END}"):
        kept: dict[str, Any] = files.read_json(claim, dict, {}, names=True)
        token, writer, note = (str(kept.get(key, "")) for key in ("token", "writer", "note"))
        if files.is_abandoned(writer, files.age(claim)) and (
            not token or _token(Path(note)) != token
        ):
            _clear_claim(claim, token)


def _clear_claim(claim: Path, token: str) -> None:
    """Delete a claim with this `token`, and the files written under it before the weights."""
    if not claim.is_file() or _token(claim) != token:
        return
    stem = claim.name.removesuffix(CLAIM_END)
    named = {entry.name.casefold(): entry for entry in claim.parent.iterdir()}
    if f"{stem}.safetensors" not in named:
        _remove(*(named[stem + end] for end in (".json", ".png") if stem + end in named))
    _remove(claim)


def _token(path: Path) -> str:
    """The token that links note and claim; "" if unreadable."""
    return files.read_json(path, lambda values: str(values.get("token", "")), "", names=True)


# --- names ----------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """A name usable in <lora:NAME:0.7>, on every file system and in the hosts' lists: "My: style
    v1.5" -> "My_style v1_5".
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "ignore").decode("utf-8")
    forbidden = set(FORBIDDEN_IN_NAMES) | {"."}
    text = "".join(
        (
            "_"
            if character in forbidden or unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")
            else character
        )
        for character in text
    )
    text = re.sub(r"[_\s]*_[_\s]*", "_", text).strip("_ \t")
    while len(text.encode("utf-8")) > MAX_STEM_BYTES:
        text = text[:-1].rstrip("_ ")
    return text or "lora"


def used_names(lora_dir: Path) -> set[str]:
    """Case-folded stems in this folder and in all folders that the host lists with it."""
    used = set(RESERVED)
    for root in _listed_roots(lora_dir):
        seen: set[str] = set()
        for folder, subfolders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a symlink loop
                subfolders.clear()
                continue
            seen.add(real)
            used |= {
                Path(file).stem.casefold()
                for file in names
                if Path(file).suffix.lower() in WEIGHT_SUFFIXES
            }
    return used


def _listed_roots(lora_dir: Path) -> list[Path]:
    """The host lists models/Lora, recursively, and models/LyCORIS: names must be unique in both."""
    folder = lora_dir.absolute()
    for candidate in (folder, *folder.parents):
        if candidate.name.casefold() == "lora":
            return [candidate, candidate.parent / "LyCORIS"]
    return [folder]


def _has_companions(lora_dir: Path, stem: str, claim: str) -> bool:
    """Whether the folder has other files of this name, such as the sidecar of a deleted LoRA."""
    return any(
        entry.name.casefold().startswith(stem.casefold() + ".") and entry.name != claim
        for entry in lora_dir.iterdir()
    )


# --- errors ---------------------------------------------------------------------------------------


def _require_folder(lora_dir: Path, file: Path) -> None:
    if not lora_dir.exists():
        hint = (
            "Correct lora_dir: it is models/Lora in the WebUI's folder. Or copy {file} there"
            " yourself."
        )
        raise LoraFileError(
            "there is no folder {lora_dir}", hint=hint, lora_dir=lora_dir, file=file
        )
    if not lora_dir.is_dir():
        hint = "Set lora_dir to the WebUI's models/Lora folder, or copy {file} there yourself."
        raise LoraFileError("{lora_dir} is not a folder", hint=hint, lora_dir=lora_dir, file=file)


def _delivery_error(error: OSError, lora_dir: Path, file: Path) -> LoraTrainerError:
    if files.is_disk_full(error):
        hint = "Free some space there, then deliver again; the LoRA itself is safe in {file}."
        return LoraFileError(
            "the disk of {lora_dir} is full", hint=hint, lora_dir=lora_dir, file=file
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = (
            "Allow writing there, or set lora_dir to another folder; the LoRA itself is safe in"
            " {file}."
        )
        return LoraFileError(
            "{lora_dir} cannot be written to", hint=hint, lora_dir=lora_dir, file=file
        )
    reason = error.strerror or str(error)
    hint = "The LoRA itself is safe in {file}; it can be copied by hand."
    return LoraFileError(
        "the LoRA could not be put into {lora_dir}: {reason}",
        hint=hint,
        lora_dir=lora_dir,
        file=file,
        reason=reason,
    )
