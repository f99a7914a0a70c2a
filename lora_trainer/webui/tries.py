"""Try it: pictures with and without a LoRA, made by the host's own pipeline, one after the other in a thread.

    jobs.submit(wanted) -> Try      pair: without and with;  grid: strengths in a row;  matrix: LoRAs x strengths, on one labelled sheet
    jobs.find(id), jobs.recent(), jobs.cancel(id)

A saved step is not in the host's LoRA folder: for as long as it is tried, a copy lies below it under a name never used before, since hosts keep what
they have read by name. What a crash leaves of these is removed at the next start.

    <data folder>/tries/ID/    try.json, 00.png ... (with the host's parameters inside), sheet.png; the newest 20 are kept

Called by studio and routes/tries.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import queue
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from PIL import Image, PngImagePlugin

from lora_trainer import files
from lora_trainer.checkpoint.parts import Family
from lora_trainer.errors import LoraFileError, LoraTrainerError, Message
from lora_trainer.lora.file import copy_with_metadata, read_header
from lora_trainer.webui.data_folder import DataFolder, NotFound
from lora_trainer.webui.host import Cancelled, Host, Made, Wish
from lora_trainer.webui.loras import TRIES, Lora, Loras
from lora_trainer.webui.sheets import sheet

log = logging.getLogger(__name__)
Kind = Literal["pair", "grid", "matrix"]
Status = Literal["waiting", "making", "done", "failed", "cancelled"]
KEPT = 20
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MATRIX = (0.4, 0.7, 1.0)
MOST_PICTURES = 64
MOST_STRENGTHS = 12
LONGEST_PROMPT = 10_000
STRONGEST = 2.0
LARGEST_SEED = 2**32 - 1
TEMPORARY = re.compile(r"try-[0-9a-f]{8}-\d+\.safetensors(\..*part)?")
NOT_FOUND = ("not found", "couldn't find")
FAMILY_NAMES: Mapping[Family, str] = {"sd1": "SD1.5", "sd2": "SD2", "sdxl": "SDXL"}
Progress = Callable[[int, int], object]


class TryError(LoraTrainerError):
    """The pictures cannot be made as asked."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be tried, checked. A seed of -1 is drawn."""

    kind: Kind
    prompt: str
    loras: tuple[str, ...]
    strengths: tuple[float, ...]
    negative: str = ""
    seed: int = -1
    steps: int = 20
    cfg: float = 7.0
    width: int = 512
    height: int = 512
    sampler: str = ""
    scheduler: str = ""

    def __post_init__(self) -> None:
        self._require("steps", self.steps, 1, 150)
        self._require("cfg", self.cfg, 0, 30)
        self._require("width", self.width, 64, 2048)
        self._require("height", self.height, 64, 2048)
        self._require("seed", self.seed, -1, LARGEST_SEED)
        for strength in self.strengths:
            self._require("strength", strength, 0, STRONGEST)
        if self.width % 8 or self.height % 8:
            raise TryError("{width} x {height} is not a size of pictures", hint="Use multiples of 8.", width=self.width, height=self.height)
        if not self.prompt.strip():
            raise TryError("the prompt is empty", hint="Describe the picture to make, as in txt2img.")
        if len(self.prompt) > LONGEST_PROMPT or len(self.negative) > LONGEST_PROMPT:
            raise TryError("the prompt is longer than {most} characters", most=LONGEST_PROMPT)
        if not self.loras:
            raise TryError("no LoRA is chosen", hint="Choose the LoRA, or the saved steps, to try.")
        if len(self.strengths) > MOST_STRENGTHS or len(self.loras) * max(1, len(self.strengths)) > MOST_PICTURES:
            raise TryError("that would be more than {most} pictures", hint="Choose fewer strengths or fewer saved steps.", most=MOST_PICTURES)

    def _require(self, name: str, value: float, least: float, most: float) -> None:
        # NaN is no number of any range either
        if not least <= value <= most:
            raise TryError("{name} is {value}", hint="Use {least} to {most}.", name=name, value=value, least=least, most=most)


@dataclass(frozen=True, kw_only=True)
class Picture:
    file: str
    strength: float
    step: int | None
    lora: str
    """Empty: without any."""


@dataclass
class Try:
    """One job and what became of it. Changed by the jobs' thread alone; `stop` is set by others."""

    id: str
    wanted: Wanted
    total: int
    started: float
    status: Status = "waiting"
    pictures: list[Picture] = field(default_factory=list)
    sheet: str = ""
    infotext: str = ""
    seed: int = -1
    step: int = 0
    step_count: int = 0
    notes: list[Message] = field(default_factory=list)
    error: LoraTrainerError | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.status in ("done", "failed", "cancelled")

    def sentence(self) -> Message:
        if self.status == "waiting":
            return Message("Waiting for its turn.")
        if self.status == "making" and not self.step_count:
            return Message("Waiting for the WebUI: another picture is being made, or the training has to pause first.")
        if self.status == "making":
            values = {"number": len(self.pictures) + 1, "total": self.total, "step": self.step, "steps": self.step_count}
            return Message("Picture {number} of {total}: step {step} of {steps}.", values)
        if self.status == "cancelled":
            return Message("Cancelled.")
        return Message("")

    def to_mapping(self, say: Callable[[Message], str], address: Callable[[str], str]) -> dict[str, Any]:
        """As JSON. `say` puts a sentence into the visitor's language, `address` says where a file of the try is served."""
        error = {"message": say(self.error.message), "hint": say(self.error.hint)} if self.error else None
        pictures = [
            {
                "url": address(picture.file), "label": say(_label(picture, self.wanted.kind)), "strength": picture.strength, "step": picture.step,
                "lora": picture.lora or None,
            }
            for picture in self.pictures
        ]  # fmt: skip
        return {
            "id": self.id, "kind": self.wanted.kind, "status": self.status, "done": len(self.pictures), "total": self.total, "step": self.step,
            "step_count": self.step_count, "pictures": pictures, "sheet": address(self.sheet) if self.sheet else None, "infotext": self.infotext,
            "prompt": self.wanted.prompt, "seed": self.seed, "loras": list(self.wanted.loras), "strengths": list(self.wanted.strengths),
            "notes": [say(note) for note in self.notes], "sentence": say(self.sentence()), "error": error, "started": self.started,
        }  # fmt: skip


class TryJobs:
    """The jobs, their thread and their folder. `family_of`: the family of a checkpoint file, or None if it cannot be told."""

    def __init__(
        self, host: Host, data: DataFolder, loras: Loras, family_of: Callable[[Path], Family | None], clock: Callable[[], float] = time.time
    ) -> None:
        self._host, self._data, self._loras, self._family_of, self._clock = host, data, loras, family_of, clock
        self._tries: dict[str, Try] = {}
        self._waiting: queue.Queue[Try] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._read_past()
        self._remove_leftovers()

    # --- for the routes -------------------------------------------------------------------------------------------------------------------

    def submit(self, wanted: Wanted) -> Try:
        """Queue a job. Raises LoraTrainerError at once for what can be seen to be wrong."""
        loras = [self._loras.find(lora_id) for lora_id in wanted.loras]
        if wanted.sampler and wanted.sampler not in self._host.samplers():
            raise TryError("this WebUI has no sampler {name}", hint="Choose one of its own list.", name=wanted.sampler)
        wanted = _with_strengths(wanted, loras[0])
        self._require_family(loras)
        with self._lock:
            job = Try(id=self._new_id(), wanted=wanted, total=_count(wanted), started=self._clock())
            self._data.new("tries", job.id).mkdir()
            self._tries[job.id] = job
            self._forget_old()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="lora-trainer-tries", daemon=True)
                self._thread.start()
        self._write(job)
        self._waiting.put(job)
        return job

    def find(self, try_id: str) -> Try:
        """Raises NotFound."""
        with self._lock:
            if try_id not in self._tries:
                raise NotFound("these pictures are no longer there", hint="Only the newest {kept} tries are kept.", kept=KEPT)
            return self._tries[try_id]

    def recent(self) -> list[Try]:
        """Newest first."""
        with self._lock:
            return sorted(self._tries.values(), key=lambda job: (job.started, job.id), reverse=True)

    def cancel(self, try_id: str) -> Try:
        """Give up what is not made yet; the picture in the making is interrupted."""
        job = self.find(try_id)
        job.stop.set()
        return job

    def file(self, try_id: str, name: str) -> Path:
        """One of a try's pictures. Raises NotFound for any other name."""
        job = self.find(try_id)
        if name not in {job.sheet, *(picture.file for picture in job.pictures)} - {""}:
            raise NotFound("there is no picture {name}", name=name[:40])
        return self._data.child("tries", job.id) / name

    # --- the thread -----------------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            status: Status = "failed"
            try:
                self._make(job)
                status = "done"
            except Cancelled:
                status = "cancelled"
            except LoraTrainerError as error:
                job.error = error
            except Exception as error:
                log.exception("trying a LoRA")
                job.error = _unexpected(error)
            job.step = job.step_count = 0
            self._write(job, status)
            job.status = status

    def _make(self, job: Try) -> None:
        if job.stop.is_set():
            raise Cancelled("the pictures were cancelled")
        job.status = "making"
        job.seed = job.wanted.seed if job.wanted.seed >= 0 else secrets.randbelow(LARGEST_SEED)
        loras = [self._loras.find(lora_id) for lora_id in job.wanted.loras]
        with contextlib.ExitStack() as visible:
            names = [visible.enter_context(self._visible(lora, number)) for number, lora in enumerate(loras)]
            rows = [self._row(job, lora, name) for lora, name in zip(loras, names, strict=True)]
        if job.wanted.kind != "pair":
            self._write_sheet(job, loras, rows)

    def _row(self, job: Try, lora: Lora, name: str) -> list[Image.Image]:
        """One LoRA at every strength. Without the LoRA it is the same picture in every row: made once."""
        row: list[Image.Image] = []
        for strength in job.wanted.strengths:
            if strength == 0:
                made = next((picture for picture in job.pictures if not picture.lora and picture.step is None), None)
                row.append(self._open(job, made) if made else self._picture(job, lora, name, 0.0))
            else:
                row.append(self._picture(job, lora, name, strength))
        if 0.0 in job.wanted.strengths:
            self._note_sameness(job, lora, row)
        return row

    def _picture(self, job: Try, lora: Lora, name: str, strength: float) -> Image.Image:
        prompt, notes = prompt_for(job.wanted.prompt, lora, name, strength)
        job.notes += [note for note in notes if note not in job.notes]
        wish = Wish(
            prompt=prompt, negative=job.wanted.negative, seed=job.seed, steps=job.wanted.steps, cfg=job.wanted.cfg, width=job.wanted.width,
            height=job.wanted.height, sampler=job.wanted.sampler, scheduler=job.wanted.scheduler,
        )  # fmt: skip
        job.step = job.step_count = 0
        made = self._host.generate(wish, progress=_telling(job), stop_asked=job.stop.is_set)
        if strength:
            self._judge(job, lora, name, made)
        job.infotext = made.infotext.replace(name, lora.name)
        file = f"{len(job.pictures):02d}.png"
        picture = Picture(file=file, strength=strength, step=lora.step if strength else None, lora=lora.name if strength else "")
        _save(made.image, self._data.child("tries", job.id) / picture.file, job.infotext)
        job.pictures.append(picture)
        self._write(job)
        return made.image

    def _judge(self, job: Try, lora: Lora, name: str, made: Made) -> None:
        """What the host said of the LoRA. Raises TryError when the picture was made without it."""
        for comment in made.comments:
            if any(words in comment.lower() for words in NOT_FOUND) and name in comment:
                raise TryError("the WebUI did not find the LoRA {name}", hint="Check that {file} is readable.", name=lora.name, file=lora.path.name)
            if "mismatch" in comment.lower() and name in comment:
                raise _does_not_fit(lora)
            note = Message("The WebUI remarked: {comment}", {"comment": comment.replace(name, lora.name)})
            if note not in job.notes:
                job.notes.append(note)
        matched = (made.matched_modules or {}).get(name)
        if matched == 0:
            raise _does_not_fit(lora)
        count = _module_count(lora.path)
        if matched is not None and 0 < matched < count:
            values = {"matched": matched, "count": count, "name": lora.name}
            note = Message("The WebUI could use {matched} of the {count} layers of {name}.", values)
            if note not in job.notes:
                job.notes.append(note)

    def _note_sameness(self, job: Try, lora: Lora, row: list[Image.Image]) -> None:
        base = row[job.wanted.strengths.index(0.0)]
        others = [image for strength, image in zip(job.wanted.strengths, row, strict=True) if strength]
        if others and all(image.tobytes() == base.tobytes() for image in others):
            job.notes.append(Message("{name} changed nothing: the pictures with it are the same as without it.", {"name": lora.name}))

    def _write_sheet(self, job: Try, loras: list[Lora], rows: list[list[Image.Image]]) -> None:
        columns = [f"{strength:g}" for strength in job.wanted.strengths]
        names = _row_names(loras) if len(loras) > 1 else [""]
        whole = sheet(rows, columns, names, self._host.font())
        _save(whole, self._data.child("tries", job.id) / "sheet.png", job.infotext)
        job.sheet = "sheet.png"

    # --- making saved steps visible -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _visible(self, lora: Lora, number: int) -> Iterator[str]:
        """The name under which the host finds the LoRA, for as long as the block lasts."""
        if lora.delivered:
            yield lora.name
            return
        folder = self._host.paths().lora_dir / TRIES
        name = f"try-{secrets.token_hex(4)}-{number}"
        copy = folder / f"{name}.safetensors"
        # the alias in the file's metadata would make the host forget a LoRA of the user's that has the same one
        changes = {key: name for key in ("ss_output_name", "modelspec.title") if key in read_header(lora.path).metadata}
        try:
            files.replace_file(copy, lambda partial: copy_with_metadata(lora.path, partial, changes))
        except OSError as error:
            reason = error.strerror or error
            raise TryError("{name} could not be shown to the WebUI: {reason}", hint="Free some space.", name=lora.name, reason=reason) from error
        try:
            yield name
        finally:
            _remove(copy)
            with contextlib.suppress(OSError):
                folder.rmdir()
            self._host.refresh_loras()

    def _remove_leftovers(self) -> None:
        """What a crash has left below the LoRA folder."""
        try:
            folder = self._host.paths().lora_dir / TRIES
            for path in list(folder.iterdir()):
                if TEMPORARY.fullmatch(path.name):
                    _remove(path)
            folder.rmdir()
        except (OSError, LoraTrainerError):
            pass

    def _require_family(self, loras: list[Lora]) -> None:
        """Raises TryError for a LoRA of another family than the checkpoint in use: hosts make a picture without it, and say so nowhere."""
        loaded = self._host.loaded()
        family = self._family_of(loaded.path) if loaded else None
        for lora in loras:
            if loaded and family and lora.family and lora.family != family:
                raise TryError(
                    "{name} was trained for {wanted}, and the WebUI's checkpoint {title} is {found}",
                    hint="Choose a {wanted} checkpoint at the top of the WebUI.",
                    name=lora.name, wanted=FAMILY_NAMES[lora.family], title=loaded.title, found=FAMILY_NAMES[family],
                )  # fmt: skip

    # --- on disk --------------------------------------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock()))
        return f"{stamp}-{secrets.token_hex(3)}"

    def _write(self, job: Try, status: Status | None = None) -> None:
        values = {
            "id": job.id, "wanted": dataclasses.asdict(job.wanted), "total": job.total, "started": job.started, "status": status or job.status,
            "pictures": [dataclasses.asdict(picture) for picture in job.pictures], "sheet": job.sheet, "infotext": job.infotext, "seed": job.seed,
            "notes": [_written(note) for note in job.notes],
            "error": {"message": _written(job.error.message), "hint": job.error.hint.template} if job.error else None,
        }  # fmt: skip
        folder = self._data.folder("tries") / job.id
        with contextlib.suppress(OSError):
            if folder.is_dir():
                files.write_text(folder / "try.json", json.dumps(values, ensure_ascii=True, default=str))

    def _read_past(self) -> None:
        """The tries of earlier times. One that was not over when the host ended is over now."""
        for path in self._data.folder("tries").glob("*/try.json"):
            try:
                job = _from_mapping(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError, LoraTrainerError):
                log.warning("%s cannot be read", path)
                continue
            if job.id != path.parent.name:
                continue
            if not job.over:
                job.status, job.error = "failed", TryError("the WebUI was closed before the pictures were made", hint="Start them again.")
            self._tries[job.id] = job
        self._forget_old()

    def _forget_old(self) -> None:
        over = sorted((job for job in self._tries.values() if job.over), key=lambda job: (job.started, job.id), reverse=True)
        for job in over[max(0, KEPT - (len(self._tries) - len(over))) :]:
            del self._tries[job.id]
            shutil.rmtree(self._data.folder("tries") / job.id, ignore_errors=True)

    def _open(self, job: Try, picture: Picture) -> Image.Image:
        with Image.open(self._data.child("tries", job.id) / picture.file) as image:
            whole: Image.Image = image.convert("RGB")
        return whole


def wanted_from(body: Mapping[str, Any]) -> Wanted:
    """A request's JSON, checked. Raises TryError for what is missing or of another kind."""
    kind = body.get("kind", "pair")
    if kind not in get_args(Kind):
        raise TryError("{kind!r} is not a way to try a LoRA", hint="Use one of: {known}.", kind=kind, known=", ".join(get_args(Kind)))
    several = body.get("loras") or []
    loras = several if kind == "matrix" and several else [body.get("lora")]
    defaults = {item.name: item.default for item in dataclasses.fields(Wanted)}
    numbers = {
        key: _number(key, body.get(key, defaults[key]), whole=key != "cfg") for key in ("seed", "steps", "cfg", "width", "height")
    }  # fmt: skip
    return Wanted(
        kind=cast(Kind, kind),
        prompt=_text("prompt", body.get("prompt", "")),
        negative=_text("negative", body.get("negative") or ""),
        sampler=_text("sampler", body.get("sampler") or ""),
        scheduler=_text("scheduler", body.get("scheduler") or ""),
        loras=tuple(_text("lora", lora) for lora in _listed("loras", loras) if lora),
        strengths=tuple(float(_number("strength", strength, whole=False)) for strength in _listed("strengths", body.get("strengths") or [])),
        seed=int(numbers["seed"]),
        steps=int(numbers["steps"]),
        cfg=float(numbers["cfg"]),
        width=int(numbers["width"]),
        height=int(numbers["height"]),
    )


def prompt_for(prompt: str, lora: Lora, name: str, strength: float) -> tuple[str, list[Message]]:
    """(the prompt with the LoRA's tag and trigger, what was changed beyond the tag). Strength 0: the same prompt without the tag."""
    notes: list[Message] = []
    bare = re.sub(rf"\s*<(?:lora|lyco):{re.escape(lora.name)}(?::[^>]*)?>", "", prompt, flags=re.IGNORECASE)
    if bare != prompt:
        notes.append(Message("The tag of {name} in the prompt was replaced by the strengths tried here.", {"name": lora.name}))
    text = bare.strip()
    if lora.trigger and lora.trigger.casefold() not in text.casefold():
        text = f"{lora.trigger}, {text}" if text else lora.trigger
        notes.append(Message("The trigger {trigger} was added to the prompt.", {"trigger": lora.trigger}))
    return (f"{text} <lora:{name}:{strength:g}>" if strength else text), notes


def _with_strengths(wanted: Wanted, lora: Lora) -> Wanted:
    """The strengths that a kind of try is about, where none were named; a pair is always without and with."""
    if wanted.kind == "pair":
        chosen = next((strength for strength in wanted.strengths if strength), lora.preferred_weight)
        return dataclasses.replace(wanted, strengths=(0.0, chosen))
    usual = GRID if wanted.kind == "grid" else MATRIX
    return dataclasses.replace(wanted, strengths=tuple(dict.fromkeys(wanted.strengths)) or usual)


def _count(wanted: Wanted) -> int:
    strong = sum(1 for strength in wanted.strengths if strength)
    return len(wanted.loras) * strong + (1 if 0.0 in wanted.strengths else 0)


def _telling(job: Try) -> Progress:
    def tell(step: int, step_count: int) -> None:
        job.step, job.step_count = step, step_count

    return tell


def _label(picture: Picture, kind: Kind) -> Message:
    if not picture.strength:
        return Message("Without the LoRA")
    values = {"strength": f"{picture.strength:g}", "step": picture.step, "name": picture.lora}
    if kind == "matrix" and picture.step is not None:
        return Message("Step {step}, strength {strength}", values)
    return Message("{name}, strength {strength}", values) if kind == "matrix" else Message("Strength {strength}", values)


def _row_names(loras: list[Lora]) -> list[str]:
    """The steps of one run, or names; fonts at hand know Latin letters only, so that other names become numbers."""
    if len({lora.run for lora in loras}) == 1 and all(lora.step is not None for lora in loras):
        return [str(lora.step) for lora in loras]
    return [lora.name if lora.name.isascii() else f"LoRA {number}" for number, lora in enumerate(loras, 1)]


def _save(image: Image.Image, target: Path, infotext: str) -> None:
    """A PNG with the parameters where the host's PNG Info looks for them."""
    info = PngImagePlugin.PngInfo()
    if infotext:
        info.add_text("parameters", infotext)
    files.replace_file(target, lambda partial: image.save(partial, format="PNG", pnginfo=info))


def _module_count(path: Path) -> int:
    """How many layers a LoRA file changes; 0 if it cannot be told."""
    try:
        return sum(1 for name in read_header(path).tensors if name.endswith(".lora_down.weight"))
    except LoraFileError:
        return 0


def _does_not_fit(lora: Lora) -> TryError:
    return TryError(
        "the WebUI could use none of the layers of {name} with the checkpoint that is loaded",
        hint="Load a checkpoint of the family that it was trained for: {family}.",
        name=lora.name, family=FAMILY_NAMES[lora.family] if lora.family else "?",
    )  # fmt: skip


def _unexpected(error: Exception) -> TryError:
    reason = f"{type(error).__name__}: {error}"
    return TryError("the pictures could not be made: {reason}", hint="The WebUI's console may say more.", reason=reason)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _written(message: Message) -> dict[str, Any]:
    return {"template": message.template, "values": dict(message.values)}


def _from_mapping(values: Mapping[str, Any]) -> Try:
    wanted = dict(values["wanted"])
    wanted |= {"loras": tuple(wanted["loras"]), "strengths": tuple(wanted["strengths"])}
    status = values["status"]
    if status not in get_args(Status):
        raise ValueError(status)
    error = values.get("error")
    return Try(
        id=str(values["id"]),
        wanted=Wanted(**wanted),
        total=int(values["total"]),
        started=float(values["started"]),
        status=status,
        pictures=[Picture(**picture) for picture in values["pictures"]],
        sheet=str(values["sheet"]),
        infotext=str(values["infotext"]),
        seed=int(values["seed"]),
        notes=[Message(note["template"], note["values"]) for note in values["notes"]],
        error=_read_error(error) if error else None,
    )


def _read_error(values: Mapping[str, Any]) -> TryError:
    error = TryError("")
    error.message = Message(values["message"]["template"], values["message"]["values"])
    error.hint = Message(values["hint"], values["message"]["values"] if values["hint"] else {})
    return error


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TryError("{name} is not a text", hint="Reload the page: it may be older than the extension.", name=name)
    return value


def _number(name: str, value: Any, *, whole: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and value != value // 1) or _is_beyond_floats(value):
        raise TryError("{name} is not a number", hint="Write a number.", name=name)
    return value


def _is_beyond_floats(value: float) -> bool:
    # JSON can spell such whole numbers
    return isinstance(value, int) and value.bit_length() > 1000


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TryError("{name} is not a list", hint="Reload the page: it may be older than the extension.", name=name)
    return value
