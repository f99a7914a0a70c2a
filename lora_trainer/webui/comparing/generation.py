"""Generates the images of comparisons with the host's pipeline, one after the other in a thread.

    jobs.submit(wanted) -> Comparison   see comparisons.py
    jobs.find(id), jobs.recent(), jobs.cancel(id), jobs.file(id, name)
    jobs.delete(id), jobs.restore(id)   to the trash and back

Saved steps are not in the host's LoRA folder. While one is used, a copy is placed below it under a
unique name, because hosts cache LoRAs by name. Copies left by a crash are removed at the next
start.

    <data folder>/tries/ID/    try.json, 00.png ... (with the host's parameters), sheet.png; the
                               newest 20 are kept

Created by app.py, called by comparing/routes.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, PngImagePlugin

from lora_trainer import files
from lora_trainer.errors import LoraFileError, LoraTrainerError, Message
from lora_trainer.families.base import Family
from lora_trainer.hosts.base import GeneratedImage, GenerationCancelled, Host, Txt2ImgRequest
from lora_trainer.jobs import trash
from lora_trainer.lora.file import copy_with_metadata, read_header
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.comparing.comparisons import (
    LARGEST_SEED,
    Comparison,
    ComparisonError,
    ComparisonImage,
    ComparisonRequest,
    Status,
    from_file,
    image_count,
    prompt_for,
    to_file,
    with_strengths,
)
from lora_trainer.webui.comparing.contact_sheet import sheet
from lora_trainer.webui.loras.library import TRIES, Lora, Loras

log = logging.getLogger(__name__)
KEPT = 20
TEMPORARY = re.compile(r"try-[0-9a-f]{8}-\d+\.safetensors(\..*part)?")
NOT_FOUND = ("not found", "couldn't find")
PARTLY = re.compile(r"ignoring \d+ keys")
"""ersatzForge's "apparent version mismatch FILE ignoring 12 keys": it uses the others."""
Progress = Callable[[int, int], object]


class ComparisonJobs:
    """The jobs, their thread and folder. family_of: the family of a checkpoint file, or None if
    unknown.
    """

    def __init__(
        self,
        host: Host,
        data: DataFolder,
        loras: Loras,
        family_of: Callable[[Path], Family | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._data = data
        self._loras = loras
        self._family_of = family_of
        self._clock = clock
        self._jobs: dict[str, Comparison] = {}
        self._waiting: queue.Queue[Comparison] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._read_past()
        self._remove_leftovers()

    # --- for the routes ---------------------------------------------------------------------------

    def submit(self, wanted: ComparisonRequest) -> Comparison:
        """Queue a job. Raises LoraTrainerError for problems that are known at once."""
        loras = self._loras.find(*wanted.loras)
        if wanted.sampler and wanted.sampler not in self._host.samplers():
            raise ComparisonError(
                "this WebUI has no sampler {name}",
                hint="Choose one from its list.",
                name=wanted.sampler,
            )
        wanted = with_strengths(wanted, loras[0])
        self._require_family(loras)
        with self._lock:
            job = Comparison(
                id=self._new_id(), wanted=wanted, total=image_count(wanted), started=self._clock()
            )
            self._data.new("tries", job.id).mkdir()
            self._jobs[job.id] = job
            self._delete_old()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._work, name="lora-trainer-tries", daemon=True
                )
                self._thread.start()
        self._write(job)
        self._waiting.put(job)
        return job

    def find(self, comparison_id: str) -> Comparison:
        """Raises NotFound."""
        with self._lock:
            return self._known(comparison_id)

    def _known(self, comparison_id: str) -> Comparison:
        if comparison_id not in self._jobs:
            raise NotFound(
                "these images no longer exist",
                hint="Only the newest {kept} tries are kept.",
                kept=KEPT,
            )
        return self._jobs[comparison_id]

    def recent(self) -> list[Comparison]:
        """Newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (job.started, job.id), reverse=True)

    def cancel(self, comparison_id: str) -> Comparison:
        """Cancel the remaining images; the current one is interrupted."""
        job = self.find(comparison_id)
        job.stop.set()
        with self._lock:
            if job.status == "waiting":
                job.status = "cancelled"
                self._write(job)
        return job

    def delete(self, comparison_id: str) -> None:
        """Move its images to the trash. Raises NotFound, ComparisonError for an unfinished one,
        RunError if it cannot be moved.
        """
        with self._lock:
            job = self._known(comparison_id)
            if not job.over:
                raise ComparisonError(
                    "these images are still being generated", hint="Cancel them first."
                )
            folder = self._data.folder("tries") / job.id
            # a folder that was removed by hand is not an error
            if folder.is_dir():
                trash.discard(folder, self._data.folder("trash"), kind="try", now=self._clock())
            del self._jobs[comparison_id]

    def restore(self, comparison_id: str) -> Comparison:
        """Restore it from the trash. Raises NotFound, or RunError if it cannot be moved."""
        with self._lock:
            found = next(
                (
                    found
                    for found in trash.contents(self._data.folder("trash"), "try")
                    if found.name == comparison_id
                ),
                None,
            )
            if found is None or comparison_id in self._jobs:
                raise NotFound(
                    "these images no longer exist",
                    hint="They may have been restored already. Reload the page.",
                )
            job = _read(trash.restore(found, self._data.folder("tries")))
            if job is None:
                raise NotFound("these images no longer exist", hint="Reload the page.")
            self._jobs[job.id] = job
            return job

    def file(self, comparison_id: str, name: str) -> Path:
        """One of its images. Raises NotFound for other names."""
        job = self.find(comparison_id)
        if name not in {job.sheet, *(picture.file for picture in job.images)} - {""}:
            raise NotFound("there is no image {name}", name=name[:40])
        return self._data.child("tries", job.id) / name

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            with self._lock:
                if job.over:
                    continue
                job.status = "making"
            status: Status = "failed"
            try:
                self._make(job)
                status = "done"
            except GenerationCancelled:
                status = "cancelled"
            except LoraTrainerError as error:
                job.error = error
            except Exception as error:
                log.exception("trying a LoRA")
                job.error = _unexpected(error)
            job.step = job.step_count = 0
            self._write(job, status)
            job.status = status

    def _make(self, job: Comparison) -> None:
        if job.stop.is_set():
            raise GenerationCancelled("the images were cancelled")
        job.seed = job.wanted.seed if job.wanted.seed >= 0 else secrets.randbelow(LARGEST_SEED)
        loras = self._loras.find(*job.wanted.loras)
        with contextlib.ExitStack() as visible:
            names = [
                visible.enter_context(self._visible(lora, number))
                for number, lora in enumerate(loras)
            ]
            rows = [self._row(job, lora, name) for lora, name in zip(loras, names, strict=True)]
        if job.wanted.kind != "pair":
            self._write_sheet(job, loras, rows)

    def _row(self, job: Comparison, lora: Lora, name: str) -> list[Image.Image]:
        """One LoRA at every strength. The image without the LoRA is the same in every row, and made
        once.
        """
        row: list[Image.Image] = []
        for strength in job.wanted.strengths:
            if strength == 0:
                made = next(
                    (
                        picture
                        for picture in job.images
                        if not picture.lora and picture.step is None
                    ),
                    None,
                )
                row.append(self._open(job, made) if made else self._image(job, lora, name, 0.0))
            else:
                row.append(self._image(job, lora, name, strength))
        if 0.0 in job.wanted.strengths:
            self._note_sameness(job, lora, row)
        return row

    def _image(self, job: Comparison, lora: Lora, name: str, strength: float) -> Image.Image:
        prompt, notes = prompt_for(job.wanted.prompt, lora, name, strength)
        for note in notes:
            job.note(note)
        request = Txt2ImgRequest(
            prompt=prompt,
            negative=job.wanted.negative,
            seed=job.seed,
            steps=job.wanted.steps,
            cfg=job.wanted.cfg,
            width=job.wanted.width,
            height=job.wanted.height,
            sampler=job.wanted.sampler,
            scheduler=job.wanted.scheduler,
        )
        job.step = job.step_count = 0
        made = self._host.generate(
            request, progress=_progress_callback(job), stop_asked=job.stop.is_set
        )
        if strength:
            self._check_messages(job, lora, name, made)
        job.infotext = made.infotext.replace(name, lora.name)
        file = f"{len(job.images):02d}.png"
        picture = ComparisonImage(
            file=file,
            strength=strength,
            step=lora.step if strength else None,
            lora=lora.name if strength else "",
        )
        _save(made.image, self._data.child("tries", job.id) / picture.file, job.infotext)
        job.images.append(picture)
        self._write(job)
        return made.image

    def _check_messages(self, job: Comparison, lora: Lora, name: str, made: GeneratedImage) -> None:
        """The host's messages about the LoRA. Raises ComparisonError if the image was made without
        it.
        """
        for comment in made.comments:
            if any(words in comment.lower() for words in NOT_FOUND) and name in comment:
                raise ComparisonError(
                    "the WebUI did not find the LoRA {name}",
                    hint="Check that {file} is readable.",
                    name=lora.name,
                    file=lora.path.name,
                )
            if "mismatch" in comment.lower() and name in comment and not PARTLY.search(comment):
                raise _does_not_fit(lora)
            job.note(
                Message(
                    "Message from the WebUI: {comment}",
                    {"comment": comment.replace(name, lora.name)},
                )
            )
        matched = (made.matched_modules or {}).get(name)
        if matched == 0:
            raise _does_not_fit(lora)
        count = _module_count(lora.path)
        if matched is not None and 0 < matched < count:
            values = {"matched": matched, "count": count, "name": lora.name}
            job.note(
                Message("The WebUI could use {matched} of the {count} layers of {name}.", values)
            )

    def _note_sameness(self, job: Comparison, lora: Lora, row: list[Image.Image]) -> None:
        base = row[job.wanted.strengths.index(0.0)]
        others = [
            image for strength, image in zip(job.wanted.strengths, row, strict=True) if strength
        ]
        if others and all(image.tobytes() == base.tobytes() for image in others):
            job.note(
                Message(
                    "{name} has no effect: the images with and without it are identical.",
                    {"name": lora.name},
                )
            )

    def _write_sheet(
        self, job: Comparison, loras: list[Lora], rows: list[list[Image.Image]]
    ) -> None:
        columns = [f"{strength:g}" for strength in job.wanted.strengths]
        names = _row_names(loras) if len(loras) > 1 else [""]
        whole = sheet(rows, columns, names, self._host.font())
        _save(whole, self._data.child("tries", job.id) / "sheet.png", job.infotext)
        job.sheet = "sheet.png"

    # --- making saved steps visible ---------------------------------------------------------------

    @contextlib.contextmanager
    def _visible(self, lora: Lora, number: int) -> Iterator[str]:
        """For the block, make the LoRA available to the host. Yields its name."""
        if lora.delivered:
            yield lora.name
            return
        folder = self._host.paths().lora_dir / TRIES
        name = f"try-{secrets.token_hex(4)}-{number}"
        copy = folder / f"{name}.safetensors"
        # another LoRA of the user may have the same alias, and hosts keep only one
        changes = {
            key: name
            for key in ("ss_output_name", "modelspec.title")
            if key in read_header(lora.path).metadata
        }
        try:
            files.replace_file(
                copy, lambda partial: copy_with_metadata(lora.path, partial, changes)
            )
        except OSError as error:
            reason = error.strerror or error
            raise ComparisonError(
                "{name} could not be made available to the WebUI: {reason}",
                hint="Free some space.",
                name=lora.name,
                reason=reason,
            ) from error
        try:
            yield name
        finally:
            _remove(copy)
            with contextlib.suppress(OSError):
                folder.rmdir()
            self._host.refresh_loras()

    def _remove_leftovers(self) -> None:
        """Remove temporary copies that a crash has left."""
        try:
            folder = self._host.paths().lora_dir / TRIES
            for path in list(folder.iterdir()):
                if TEMPORARY.fullmatch(path.name):
                    _remove(path)
            folder.rmdir()
        except (OSError, LoraTrainerError):
            pass

    def _require_family(self, loras: list[Lora]) -> None:
        """Raises ComparisonError for a LoRA of another family than the loaded checkpoint: hosts
        then silently generate without it.
        """
        loaded = self._host.loaded()
        family = self._family_of(loaded.path) if loaded else None
        for lora in loras:
            if loaded and family and lora.family and lora.family != family:
                raise ComparisonError(
                    "{name} was trained for {wanted}, and the WebUI's checkpoint {title} is"
                    " {found}",
                    hint="Choose a {wanted} checkpoint at the top of the WebUI.",
                    name=lora.name,
                    wanted=lora.family.name,
                    title=loaded.title,
                    found=family.name,
                )

    # --- on disk ----------------------------------------------------------------------------------

    def _new_id(self) -> str:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock()))
        return f"{stamp}-{secrets.token_hex(3)}"

    def _write(self, job: Comparison, status: Status | None = None) -> None:
        folder = self._data.folder("tries") / job.id
        with contextlib.suppress(OSError):
            if folder.is_dir():
                files.write_text(
                    folder / "try.json",
                    json.dumps(to_file(job, status or job.status), ensure_ascii=True, default=str),
                )

    def _read_past(self) -> None:
        """Earlier comparisons. Unfinished ones are marked as ended."""
        for folder in self._data.folder("tries").iterdir():
            # an empty folder is being created
            job = _read(folder) if os.path.lexists(folder / "try.json") else None
            if job is not None:
                self._jobs[job.id] = job
        self._delete_old()

    def _delete_old(self) -> None:
        over = sorted(
            (job for job in self._jobs.values() if job.over),
            key=lambda job: (job.started, job.id),
            reverse=True,
        )
        for job in over[max(0, KEPT - (len(self._jobs) - len(over))) :]:
            del self._jobs[job.id]
            shutil.rmtree(self._data.folder("tries") / job.id, ignore_errors=True)

    def _open(self, job: Comparison, picture: ComparisonImage) -> Image.Image:
        with Image.open(self._data.child("tries", job.id) / picture.file) as image:
            whole: Image.Image = image.convert("RGB")
        return whole


def _read(folder: Path) -> Comparison | None:
    """The comparison in a folder; None for other folders. An unfinished one is marked as ended; an
    unreadable one has an error.
    """
    path = folder / "try.json"
    try:
        job = from_file(files.load_json(path, names=True))
        # to_mapping checks the types
        json.dumps(job.to_mapping(str, str), allow_nan=False)
    except (*files.UNREADABLE, LoraTrainerError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return _broken(folder, error)
    if job.id != folder.name:
        return None
    if not job.over:
        job.status = "failed"
        job.error = ComparisonError(
            "the WebUI was closed before the images were generated", hint="Start them again."
        )
    return job


def _broken(folder: Path, error: Exception) -> Comparison:
    reason = f"{type(error).__name__}: {error}"[:300]
    problem = ComparisonError(
        "this comparison cannot be read: {reason}",
        hint="Delete it. Its images go to the trash.",
        reason=reason,
    )
    job = Comparison(
        id=folder.name,
        wanted=ComparisonRequest(kind="pair", prompt="-", loras=("-",), strengths=()),
        total=0,
        started=files.changed(folder),
        status="failed",
    )
    job.error = problem
    return job


def _progress_callback(job: Comparison) -> Progress:
    def tell(step: int, step_count: int) -> None:
        job.step, job.step_count = step, step_count

    return tell


def _row_names(loras: list[Lora]) -> list[str]:
    """Names of the rows: steps of one run, or LoRA names. The available fonts have only Latin
    letters; other names become numbers.
    """
    if len({lora.run for lora in loras}) == 1 and all(lora.step is not None for lora in loras):
        return [str(lora.step) for lora in loras]
    return [
        lora.name if lora.name.isascii() else f"LoRA {number}"
        for number, lora in enumerate(loras, 1)
    ]


def _save(image: Image.Image, target: Path, infotext: str) -> None:
    """A PNG with generation parameters, for the host's PNG Info."""
    info = PngImagePlugin.PngInfo()
    if infotext:
        info.add_text("parameters", infotext)
    files.replace_file(target, lambda partial: image.save(partial, format="PNG", pnginfo=info))


def _module_count(path: Path) -> int:
    """Number of layers in a LoRA file; 0 if unreadable."""
    try:
        return sum(1 for name in read_header(path).tensors if name.endswith(".lora_down.weight"))
    except LoraFileError:
        return 0


def _does_not_fit(lora: Lora) -> ComparisonError:
    return ComparisonError(
        "the WebUI could use none of the layers of {name} with the checkpoint that is loaded",
        hint="Load a checkpoint of the family that it was trained for: {family}.",
        name=lora.name,
        family=lora.family.name if lora.family else "?",
    )


def _unexpected(error: Exception) -> ComparisonError:
    reason = f"{type(error).__name__}: {error}"
    return ComparisonError(
        "the images could not be generated: {reason}",
        hint="See the WebUI's console for details.",
        reason=reason,
    )


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
