"""Put a finished LoRA where the host finds it, under a name of its own, with what its card shows.

    deliver(file, lora_dir, name, ...) -> NAME.safetensors, NAME.json (trigger, strength) and
    NAME.png in lora_dir

The worker calls it at the end of a run, the tab on request. Standard library and Pillow. Nothing is
ever overwritten: A1111 and Forge keep showing the old weights of a file that was replaced under its
name. The host lists *.safetensors at any moment, so the weights come last and in one step.

A kill at any moment is made good by the next call for the same file. Before a name is claimed it is
noted beside the file (FILE.delivery.json), so the next call goes on with that name, and finds the
LoRA there if it had arrived already. A claim is a small file in the folder, NAME.safetensors.part,
which names its note: one whose process is dead and whose note is gone is cleared by the next
delivery of whatever LoRA.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from lora_trainer import files
from lora_trainer.errors import LoraFileError, LoraTrainerError, Message
from lora_trainer.families.base import Family
from lora_trainer.lora.file import copy_with_metadata, read_header, same_weights
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES

CLAIM_END = ".safetensors.part"
NOTE_END = ".delivery.json"
PATIENCE = 60.0
"""Seconds for which another delivery of the same file is waited for: it copies one file."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".ckpt")
PREVIEW_SIDE = 768
"""Longest side of the card's picture in pixels: sharp on a card, and small to load a hundred times.
"""
LONGEST_STEM = 150
"""Bytes of UTF-8: leaves room for `-2.safetensors.part` within the 255 bytes of most file systems.
"""

# "none" is A1111's own word in <lora:none:...>; the others are devices on Windows, whatever follows
# the dot
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
    """What to write in a prompt: <lora:name:0.7>."""
    renamed: bool
    """True if the name asked for was taken or could not be used."""
    sidecar: Path
    preview: Path | None
    warnings: tuple[Message, ...] = ()
    """What could not be done, in sentences; the LoRA works all the same."""


def deliver(
    file: Path,
    lora_dir: Path,
    name: str,
    *,
    trigger: str,
    preferred_weight: float,
    family: Family,
    description: str = "",
    preview: Path | None = None,
    negative_text: str = "",
    notes: str = "",
) -> Delivered:
    """Copy a LoRA file into the host's folder as `name`, or name-2, name-3... if that is in use
    there, in any subfolder.

    ss_output_name and modelspec.title inside the copy become the new name: the host inserts the
    first when the card is clicked. A file that was delivered there already and still is, is not
    delivered twice: the earlier delivery is returned. Raises LoraFileError if the folder is
    missing, full or not writable; `file` itself is never touched.
    """
    read_header(file)
    _require_folder(lora_dir, file)
    texts = _sidecar(trigger, preferred_weight, family, description, negative_text, notes)
    try:
        with _alone_with(file):
            note = _Note(file, lora_dir)
            files.clear_left(lora_dir)
            clear_abandoned(lora_dir)
            stem, is_there = note.taken_up()
            stem = stem or note.claim(clean_name(name))
            warnings = () if is_there else _put(file, lora_dir, stem, texts, preview, note)
    except files.Locked:
        hint = "It will be done in a moment. If it is not, deliver again."
        raise LoraFileError(
            "{file} is being delivered at this moment", hint=hint, file=file
        ) from None
    except OSError as error:
        raise _could_not(error, lora_dir, file) from error
    target, picture = lora_dir / f"{stem}.safetensors", lora_dir / f"{stem}.png"
    return Delivered(
        path=target,
        name=stem,
        renamed=stem != name,
        sidecar=target.with_suffix(".json"),
        preview=picture if picture.exists() else None,
        warnings=warnings,
    )


def _put(
    file: Path, lora_dir: Path, stem: str, texts: str, preview: Path | None, note: _Note
) -> tuple[Message, ...]:
    """Everything under the claimed name, the weights last."""
    target, sidecar, picture = (
        lora_dir / f"{stem}{end}" for end in (".safetensors", ".json", ".png")
    )
    try:
        warnings = _write_preview(preview, picture) if preview else ()
        files.write_text(sidecar, texts)
        changes = {
            key: stem
            for key in ("ss_output_name", "modelspec.title")
            if key in read_header(file).metadata
        }
        files.replace_file(target, lambda partial: copy_with_metadata(file, partial, changes))
    except BaseException:
        if not target.exists():
            _remove(sidecar, picture)
            note.give_up()
        raise
    note.release()
    return warnings


def _sidecar(
    trigger: str,
    preferred_weight: float,
    family: Family,
    description: str,
    negative_text: str,
    notes: str,
) -> str:
    """The user metadata of A1111's card, in A1111's keys."""
    values = {
        "description": description,
        "sd version": family.sd_version,
        "activation text": trigger,
        "preferred weight": preferred_weight,
        "negative text": negative_text,
        "notes": notes,
    }
    return json.dumps(values, ensure_ascii=False, indent=4) + "\n"


def _write_preview(source: Path, target: Path) -> tuple[Message, ...]:
    """The card's picture, made smaller, with the generation settings it carries. A picture that
    cannot be read is a warning.
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
def _alone_with(file: Path) -> Iterator[None]:
    """Be the only one who delivers this file; where beside it nothing can be written, trust that
    nobody else does.
    """
    place = file.with_name("delivery.lock")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.lock(place, patience=PATIENCE))
        except files.Locked:
            raise
        except OSError:
            pass
        yield


def note_of(file: Path) -> Path:
    """Where it is remembered how `file` was delivered."""
    return file.with_name(file.name + NOTE_END)


class _Note:
    """What is remembered beside `file` of its delivery into `lora_dir`: the name that it claims, or
    has arrived under.
    """

    def __init__(self, file: Path, lora_dir: Path) -> None:
        self._file = file
        self._lora_dir = lora_dir
        self._path = note_of(file)
        self._stem = ""
        self._token = ""

    def taken_up(self) -> tuple[str, bool]:
        """The name under which an earlier call's delivery goes on, or "", and whether it has
        arrived there already.
        """
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
            # what arrived before the run went on to learn more stays as it is
            self.release()
            return (self._stem, True) if same_weights(self._file, arrived) else ("", False)
        if self._holds_claim() and not kept.get("was_free"):
            self.release()
        return (self._stem if self._holds_claim() else ""), False

    def claim(self, wanted: str) -> str:
        """Claim `wanted`, or wanted-2 ...: the first free name, which nobody else is given until it
        is released.

        The claim is created exclusively, its name in lower case so that Foo and foo meet. It is
        noted before it is made: none is without an owner.
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
                            "writer": files.this_writer(),
                            "note": str(self._path.absolute()),
                        },
                        stream,
                    )
            except FileExistsError:
                continue
            # looked up after the claim: another delivery may have finished under this name in
            # between
            if stem.casefold() not in used_names(self._lora_dir) and not _has_companions(
                self._lora_dir, stem, claim.name
            ):
                # what is found beside the claim from now on was written under it
                self._write(stem, self._token, was_free=True)
                return stem
            self.release()

    def release(self) -> None:
        """The name is in use, or not wanted: the claim goes."""
        if self._holds_claim():
            _remove(_claim_of(self._lora_dir, self._stem))

    def give_up(self) -> None:
        """Nothing was delivered, and nothing is claimed."""
        self.release()
        _remove(self._path)

    def _holds_claim(self) -> bool:
        claim = _claim_of(self._lora_dir, self._stem)
        # an empty one was made in the instant before the kill
        return claim.is_file() and (claim.stat().st_size == 0 or _token(claim) == self._token)

    def _write(self, stem: str, token: str, *, was_free: bool) -> None:
        self._stem, self._token = stem, token
        values = {
            "name": stem,
            "token": token,
            "folder": str(self._lora_dir.absolute()),
            "was_free": was_free,
        }
        # a run's folder may be full or read-only: the process named in the claim must do
        with contextlib.suppress(OSError):
            files.write_bytes(self._path, json.dumps(values).encode("ascii"))


def _claim_of(lora_dir: Path, stem: str) -> Path:
    return lora_dir / f"{stem.casefold()}{CLAIM_END}"


def clear_abandoned(lora_dir: Path) -> None:
    """Delete the claims in the folder that nobody goes on with, and the notes and pictures of the
    LoRAs that did not arrive.
    """
    for claim in lora_dir.glob(f"*{CLAIM_END}"):
        kept: dict[str, Any] = files.read_json(claim, dict, {}, names=True)
        token, writer, note = (str(kept.get(key, "")) for key in ("token", "writer", "note"))
        if files.is_left(writer, files.age(claim)) and (not token or _token(Path(note)) != token):
            _clear_claim(claim, token)


def _clear_claim(claim: Path, token: str) -> None:
    """Delete a claim, if it carries `token`, with what was written under it before the weights:
    nothing of the name was there when it was made.
    """
    if not claim.is_file() or _token(claim) != token:
        return
    stem = claim.name.removesuffix(CLAIM_END)
    named = {entry.name.casefold(): entry for entry in claim.parent.iterdir()}
    if f"{stem}.safetensors" not in named:
        _remove(*(named[stem + end] for end in (".json", ".png") if stem + end in named))
    _remove(claim)


def _token(path: Path) -> str:
    """What makes a note and a claim belong together; "" where there is none, or none that can be
    read.
    """
    return files.read_json(path, lambda values: str(values.get("token", "")), "", names=True)


# --- names ----------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """A name that <lora:NAME:0.7>, every file system and the hosts' lists can hold: "My: style
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
    while len(text.encode("utf-8")) > LONGEST_STEM:
        text = text[:-1].rstrip("_ ")
    return text or "lora"


def used_names(lora_dir: Path) -> set[str]:
    """Case-folded stems that the host knows, in this folder and in every folder it lists together
    with it.
    """
    used = set(RESERVED)
    for root in _listed_roots(lora_dir):
        seen: set[str] = set()
        for folder, subfolders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link that leads back up
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
    """The host lists models/Lora with all below it, and models/LyCORIS: names must differ across
    both, wherever in them lora_dir is.
    """
    folder = lora_dir.absolute()
    for candidate in (folder, *folder.parents):
        if candidate.name.casefold() == "lora":
            return [candidate, candidate.parent / "LyCORIS"]
    return [folder]


def _has_companions(lora_dir: Path, stem: str, claim: str) -> bool:
    """Whether anything in the folder belongs to this name: the notes or picture of a LoRA that is
    gone would be overwritten or shown.
    """
    return any(
        entry.name.casefold().startswith(stem.casefold() + ".") and entry.name != claim
        for entry in lora_dir.iterdir()
    )


# --- trouble --------------------------------------------------------------------------------------


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


def _could_not(error: OSError, lora_dir: Path, file: Path) -> LoraTrainerError:
    if files.is_disk_full(error):
        hint = "Make room there, then deliver again; the LoRA itself is safe in {file}."
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
