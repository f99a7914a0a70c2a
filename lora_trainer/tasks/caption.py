"""Captions a folder of images.

    caption.yaml -> select -> Selection -> prepare_files -> CaptionerFiles -> load -> the loop
                 -> metadata.csv or .txt, and .lora_trainer/captions.json

Embeddings of the captioner's image encoder are kept for the dataset check (dataset.embeddings).
Captions are written every few seconds, so a stopped or killed task is resumed by starting it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from lora_trainer import environment
from lora_trainer.captioning import source
from lora_trainer.captioning.captioner import Captioner, CaptionerOutput
from lora_trainer.captioning.encoder import ImageEncoder, unrelated_spread
from lora_trainer.captioning.load import files_content, load
from lora_trainer.captioning.postprocess import postprocess
from lora_trainer.dataset import caption_provenance, embeddings
from lora_trainer.dataset.caption_provenance import CaptionRecord
from lora_trainer.dataset.caption_targets import CaptionTargets, CurrentCaption
from lora_trainer.dataset.images import digest, examine, read_image
from lora_trainer.dataset.listing import folded
from lora_trainer.errors import CaptionerError, DatasetError, LoraTrainerError, Message, OutOfMemory
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import captioning
from lora_trainer.settings.captioning import CaptionSettings, fingerprint
from lora_trainer.tasks.base import Task
from lora_trainer.tasks.control import Control, Requests
from lora_trainer.tasks.fetching import Fetching
from lora_trainer.tasks.installing import install
from lora_trainer.tasks.report import Report, Silence
from lora_trainer.training.device import (
    choose_precision,
    describe_device,
    free_memory,
    is_out_of_memory,
    peak_memory,
)
from lora_trainer.training.loop import Hook, Loop, Outcome, StopRequested

log = logging.getLogger(__name__)

WRITE_SECONDS = 3.0
"""Interval at which captions are written; a killed worker loses no more."""
CHECKS_PER_EVENT = 25
MOST_NAMED = 20
MAX_INPUT_SIDE = 1024
"""Largest input side of any captioner. Larger images are decoded at a reduced size of at least
this.
"""
FEW = 50
READERS = 4
GIVE_UP_AFTER = 3
"""Consecutive failures before any success after which the captioner is considered broken."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An image to caption, and the hash of its content."""

    image: Path
    digest: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to caption, determined before a model is loaded.

    by: identifies the captioner and its settings. current: the captions of each image before.
    contents: hashes of all images.
    """

    places: CaptionTargets
    by: str
    device: torch.device
    current: Mapping[Path, CurrentCaption]
    pending: Sequence[Pending]
    contents: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CaptionerFiles:
    """A captioner's weights on disk, and its dtype."""

    model: Path
    dtype: torch.dtype


class CaptionTask(Task):
    """Runs a caption job."""

    settings_file: ClassVar[str] = "caption.yaml"

    def __init__(self, folder: RunFolder, report: Report) -> None:
        super().__init__(folder, report)
        self.settings = captioning.read(folder.caption_config)
        self.control = Control(report)

    def run(self) -> Outcome:
        settings = self.settings
        self.report.write(events.Started(job="caption"))
        self.report.phase("checking")
        by = fingerprint(settings, files_content(settings))
        places = CaptionTargets(settings.input, settings.output, as_texts=settings.format == "txt")
        target = str(places.target or settings.input)
        named = ImageWarnings(places, self.report, self.folder)
        device = self.processes.device(settings.device, settings.devices)
        selecting = Selecting(
            settings, places, named, self.report, self.control, self.processes.describe(device)
        )
        try:
            selection = self.processes.first(lambda: selecting.select(by, device))
        except StopRequested:
            return self._stopped(0, target)
        selection = dataclasses.replace(selection, device=device)
        kind = CaptionWriter if self.processes.is_first else CaptionSender
        writer = kind(settings, selection, named, self.report)
        try:
            if selection.pending:
                self._caption(selection, writer, named)
        except (StopRequested, source.DownloadStopped):
            writer.write()
            return self._stopped(writer.count, target)
        except Exception:
            # keep the captions so far; if writing is what failed, raise that
            with contextlib.suppress(LoraTrainerError, OSError):
                writer.write()
            raise
        named.report_rest()
        self.report.write(events.Finished(step=writer.count, file=target))
        return "finished"

    @classmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        return OutOfMemory(
            "out of memory",
            hint=(
                "Close other programs, or unload the WebUI's checkpoint; or use a smaller"
                " captioner, or set device to cpu."
            ),
        )

    def _stopped(self, count: int, target: str) -> Outcome:
        self.report.write(events.Stopped(step=count, file=target))
        return "stopped"

    def _caption(self, selection: Selection, writer: CaptionWriter, named: ImageWarnings) -> None:
        """Load the captioner, and caption the pending images."""
        try:
            files = self.processes.first(lambda: self.prepare_files(selection))
            if not self.processes.is_first:
                # they are there now
                files = self.prepare_files(selection)
            with Captioning(self, selection, files, writer, named) as work:
                self.control.occupy(work)
                hooks = [
                    Requests(self.control),
                    CaptionSaving(writer),
                    CaptionReporting(self.report),
                ]
                Loop(work, hooks, self.processes).run()
            writer.write()
        finally:
            # the host waits for the memory
            free_memory(selection.device)

    # --- the captioner ----------------------------------------------------------------------------

    def prepare_files(self, selection: Selection) -> CaptionerFiles:
        """Install the captioner's packages and download its weights if needed."""
        self._prepare_packages()
        model = source.find(self.settings, Fetching(self.report))
        self.control.raise_if_stopped()
        return CaptionerFiles(
            model=model, dtype=precision_for(self.settings, model, selection.device)
        )

    def load(self, selection: Selection, files: CaptionerFiles) -> Captioner:
        """The captioner on its device. Raises OutOfMemory if it does not fit."""
        self.report.phase("loading")
        log.info(
            "%s from %s on %s in %s",
            self.settings.captioner,
            files.model,
            selection.device,
            files.dtype,
        )
        try:
            captioner = load(
                self.settings,
                files.model,
                device=selection.device,
                dtype=files.dtype,
                listener=Fetching(self.report),
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                "{captioner} does not fit into the memory of {device}",
                captioner=self.settings.info.title,
                device=describe_device(selection.device),
                hint=(
                    "Close other programs, or unload the WebUI's checkpoint; or use a smaller"
                    " captioner (blip), or set device to cpu."
                ),
            ) from error
        self.report.phase("captioning", len(selection.pending))
        return captioner

    def _prepare_packages(self) -> None:
        """Install and activate the captioner's own overlay, if it has one."""
        wanted = self.settings.info.needs
        if (
            not wanted
            or importlib.util.find_spec(environment.CAPTIONER_MODULES[wanted]) is not None
        ):
            return
        if environment.find_captioner_overlay(wanted).state == "missing":
            install(self.report, self.control, "--captioner", wanted)
        environment.activate(environment.find_captioner_overlay(wanted).require())


def precision_for(settings: CaptionSettings, model: Path, device: torch.device) -> torch.dtype:
    """The captioner's dtype."""
    parameters = source.weight_bytes(model) // 4
    dtype = choose_precision(settings.mixed_precision, device, parameters)
    if (
        dtype is torch.float16
        and settings.mixed_precision == "auto"
        and not settings.info.fp16_is_safe
    ):
        # slower on older GPUs, but fp16 overflows in this model
        return torch.bfloat16 if device.type in ("cuda", "xpu") else torch.float32
    return dtype


class ImageWarnings:
    """Warnings about single images; beyond the first few only a count."""

    def __init__(self, places: CaptionTargets, report: Report, folder: RunFolder) -> None:
        self._places = places
        self._report = report
        self._folder = folder
        self._count = 0

    def shown(self, image: Path) -> str:
        """The image's path as in events."""
        return self._places.listing.name(image)

    def warn(self, template: str, *, hint: Message | str = "", **values: Any) -> None:
        """Warn about an image; a Path among the values is shown as in events."""
        shown = {
            key: self.shown(value) if key in ("name", "path") and isinstance(value, Path) else value
            for key, value in values.items()
        }
        self._count += 1
        if self._count <= MOST_NAMED:
            self._report.warn(template, hint=hint, **shown)
        else:
            log.warning("%s", Message(template, shown))

    def warn_of_bad(self, image: Path, problem: DatasetError) -> None:
        """Warn that an image cannot be read."""
        values = {**problem.message.values, "path": image}
        self.warn(problem.message.template, hint=problem.hint, **values)

    def report_rest(self) -> None:
        """Warn of the number of images that were not named."""
        if self._count > MOST_NAMED:
            self._report.warn(
                "and {count} more images; {log} names them",
                count=self._count - MOST_NAMED,
                log=self._folder.log.name,
            )


# --- select ---------------------------------------------------------------------------------------


class Selecting:
    """Selects the images to caption."""

    def __init__(
        self,
        settings: CaptionSettings,
        places: CaptionTargets,
        named: ImageWarnings,
        report: Report,
        control: Control,
        devices: str,
    ) -> None:
        """devices: for people."""
        self.settings = settings
        self.places = places
        self.named = named
        self.report = report
        self.control = control
        self.devices = devices

    def select(self, by: str, device: torch.device) -> Selection:
        """Images without a caption by a person, or one that `by` has already written."""
        current = self.places.read()
        contents = list(self._digests(self._wanted()))
        pending = self._readable(self._choose(contents, current, by))
        self.report.write(
            events.Planned(
                name=self.settings.info.title,
                step_count=len(pending),
                image_count=len(self.places.images),
                device=self.devices,
            )
        )
        return Selection(
            places=self.places,
            by=by,
            device=device,
            current=current,
            pending=pending,
            contents=frozenset(content for _, content in contents),
        )

    def _choose(
        self, contents: Sequence[tuple[Path, str]], current: Mapping[Path, CurrentCaption], by: str
    ) -> list[Pending]:
        known = caption_provenance.read_authors(self.settings.input)
        pending, kept = [], 0
        for image, content in contents:
            before = current[image]
            is_done = known.is_done(content, before.caption, by)
            if before.unreadable and not self.settings.overwrite:
                reason = before.unreadable
                self.named.warn("{name} is not changed: {reason}", name=image, reason=reason)
            elif self.settings.only_missing and before.texts:
                continue
            elif not self.settings.overwrite and any(
                known.author(content, text) == "person" for text in before.texts
            ):
                kept += 1
            elif not is_done:
                pending.append(Pending(image=image, digest=content))
        if kept:
            self.report.warn(
                "captions written or edited by a person are kept ({count})",
                hint="To replace them too, set overwrite.",
                count=kept,
            )
        return pending

    def _wanted(self) -> Sequence[Path]:
        """The images to consider; warns of names in `only` that do not exist."""
        if not self.settings.only:
            return self.places.images
        by_name = {folded(self.named.shown(image)): image for image in self.places.images}
        names = {folded(Path(name).as_posix()): name for name in self.settings.only}
        for name in [names[key] for key in names if key not in by_name]:
            self.named.warn(
                "there is no image {name} in {folder}",
                hint=(
                    "Give image paths relative to the folder, such as fox.png or portraits/fox.png."
                ),
                name=name,
                folder=self.settings.input,
            )
        return [image for key, image in by_name.items() if key in names]

    def _readable(self, pending: list[Pending]) -> list[Pending]:
        """If only a few images are left, skip unreadable ones now, so that no model is loaded for
        them.
        """
        if len(pending) > FEW:
            return pending
        readable = []
        for item in pending:
            try:
                examine(item.image)
                readable.append(item)
            except DatasetError as problem:
                self.named.warn_of_bad(item.image, problem)
        return readable

    def _digests(self, images: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """(image, hash of its content), in order, without unreadable images, which are warned
        of.
        """
        self.report.phase("checking", len(images))
        with ThreadPoolExecutor(READERS) as pool:
            futures = [pool.submit(digest, image) for image in images]
            try:
                for number, (image, future) in enumerate(zip(images, futures, strict=True), 1):
                    try:
                        yield image, future.result()
                    except DatasetError as problem:
                        self.named.warn_of_bad(image, problem)
                    if number % CHECKS_PER_EVENT == 0 or number == len(images):
                        self.report.part_done(number)
                        self.control.raise_if_stopped()
            finally:
                for future in futures:
                    future.cancel()


# --- write ----------------------------------------------------------------------------------------


class CaptionWriter:
    """Collects captions and embeddings, and writes them into the dataset."""

    def __init__(
        self, settings: CaptionSettings, selection: Selection, named: ImageWarnings, report: Report
    ) -> None:
        self.settings = settings
        self.selection = selection
        self.named = named
        self.report = report
        self.count = 0
        """Images captioned, without those whose captions were edited meanwhile."""
        self._captions: dict[Pending, str] = {}
        self._seen: dict[str, embeddings.Row] = {}
        self._encoder, self._unrelated = "", 0.0
        self._written_at = time.monotonic()

    def keep(self, item: Pending, text: str) -> None:
        self.count += 1
        self._captions[item] = text

    def collect_embeddings(
        self, captioner: Captioner, part: Sequence[Pending], captions: Sequence[CaptionerOutput]
    ) -> None:
        """Collect the image encoder's embeddings. Errors are logged."""
        if isinstance(captioner, ImageEncoder) and not self._encoder:
            self._encoder = captioner.encoder
            try:
                self._unrelated = unrelated_spread(captioner)
            except Exception as error:
                log.warning(
                    "the scale of %s's image encoder cannot be measured",
                    self._encoder,
                    exc_info=error,
                )
        if self._unrelated:
            self._seen.update(
                (item.digest, caption.embedding)
                for item, caption in zip(part, captions, strict=True)
                if caption.embedding is not None
            )

    def receive(self, turn: Turn) -> None:
        """Take in what another process has captioned."""
        for item, text in turn.captions.items():
            self.keep(item, text)
        if self._unrelated:
            self._seen.update(turn.embeddings)
        for warning in turn.warnings:
            self.report.write(warning)
        self.write_if_due()

    def write_if_due(self) -> None:
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the captions collected since the last time, after recording their authorship."""
        self._written_at = time.monotonic()
        if not self._captions and not self._seen:
            return
        folder, places = self.settings.input, self.selection.places
        items = {item.image: (item, text) for item, text in self._captions.items()}
        with caption_provenance.changing_captions(folder):
            self._write_seen()
            caption_provenance.record(
                folder,
                {
                    item.digest: CaptionRecord(text=text, by=self.selection.by)
                    for item, text in items.values()
                },
            )
            changed = places.write(
                {image: text for image, (_, text) in items.items()}, self.selection.current
            )
            if not places.is_apart:
                # captions in another folder do not change the dataset's authorship
                caption_provenance.settle(folder, [item.digest for item, _ in items.values()])
        self._captions.clear()
        for image, (_, text) in items.items():
            if image in changed:
                self.count -= 1
                template = "the caption of {name} was changed in the meantime; it is not replaced"
                self.named.warn(template, name=image)
            else:
                self.report.write(events.Captioned(image=self.named.shown(image), caption=text))

    def _write_seen(self) -> None:
        """Write the embeddings collected since the last time, and drop those of images that are
        gone or changed.
        """
        if not self._seen:
            return
        which = f"{self._encoder} {self.settings.model_name}"
        seen = embeddings.Embedded(
            encoder=which,
            title=self._encoder,
            unrelated=self._unrelated,
            by_digest=dict(self._seen),
        )
        contents = None if self.settings.only else set(self.selection.contents)
        try:
            embeddings.add(self.settings.input, seen, keep=contents)
        except OSError as error:
            log.warning("what the image encoder saw cannot be kept: %s", error)
        self._seen.clear()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a process has captioned since the one before. is_last: it has no more images."""

    captions: Mapping[Pending, str]
    embeddings: Mapping[str, embeddings.Row]
    warnings: Sequence[events.Warned]
    tried: int
    is_last: bool


class CaptionSender(CaptionWriter):
    """Collects what a process that is not the first captions; the first one writes it."""

    def write(self) -> None:
        pass

    def receive(self, turn: Turn) -> None:
        pass

    def taken(self) -> tuple[Mapping[Pending, str], Mapping[str, embeddings.Row]]:
        """What was collected since the last time."""
        taken = dict(self._captions), dict(self._seen)
        self._captions.clear()
        self._seen.clear()
        return taken


# --- caption --------------------------------------------------------------------------------------


class Captioning:
    """The loop's work: each step captions a batch, while the next one is read. Leaves the device
    during a pause.
    """

    def __init__(
        self,
        task: CaptionTask,
        selection: Selection,
        files: CaptionerFiles,
        writer: CaptionWriter,
        named: ImageWarnings,
    ) -> None:
        self.task = task
        self.settings = task.settings
        self.selection = selection
        self.files = files
        self.writer = writer
        self.named = named
        self.pace = CaptionPace()
        self.tried = 0
        """Images captioned or failed."""
        self.captioner: Captioner | None = task.load(selection, files)
        self.batch_size = self.settings.batch_size or self.settings.info.batch_size
        self._failed = 0
        self._has_succeeded = False
        self._is_over = False
        processes = task.processes
        self._waiting = list(selection.pending)[processes.rank :: processes.count]
        self._pool = ThreadPoolExecutor(READERS)
        self._reading = self._start_reading()

    def __enter__(self) -> Captioning:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.captioner = None

    @property
    def step(self) -> int:
        """Captions written."""
        return self.writer.count

    @property
    def is_over(self) -> bool:
        return self._is_over

    def advance(self) -> None:
        """Caption the batch that was read, and start reading the next one; then the first process
        receives what the others have captioned.
        """
        batch, self._reading = self._reading, self._start_reading()
        self._caption_batch(
            [
                (item, image)
                for item, future in batch
                if (image := self._read(item, future)) is not None
            ]
        )
        self.tried += len(batch)
        every = self.task.processes.gather(self._turn(len(batch)))
        self._is_over = all(turn.is_last for turn in every)
        for turn in every[1:]:
            self.tried += turn.tried
            self.pace.add(len(turn.captions))
            self.writer.receive(turn)

    def _turn(self, tried: int) -> Turn:
        """What the first process does not know yet."""
        taken = self.writer.taken() if isinstance(self.writer, CaptionSender) else ({}, {})
        report = self.task.report
        warnings = report.taken() if isinstance(report, Silence) else ()
        return Turn(
            captions=taken[0],
            embeddings=taken[1],
            warnings=warnings,
            tried=tried,
            is_last=not self._reading,
        )

    def leave_device(self) -> None:
        """Write the captions so far, and unload the captioner."""
        self.writer.write()
        self.captioner = None
        free_memory(self.selection.device)

    def return_to_device(self) -> None:
        self.captioner = self.task.load(self.selection, self.files)
        self.pace.restart()

    def _start_reading(self) -> list[tuple[Pending, Future[Image.Image]]]:
        taken = [self._waiting.pop(0) for _ in range(min(self.batch_size, len(self._waiting)))]
        covering = (MAX_INPUT_SIDE, MAX_INPUT_SIDE)
        return [
            (item, self._pool.submit(read_image, item.image, covering=covering)) for item in taken
        ]

    def _read(self, item: Pending, future: Future[Image.Image]) -> Image.Image | None:
        try:
            return future.result()
        except DatasetError as problem:
            self.named.warn_of_bad(item.image, problem)
        except MemoryError:
            template = "{name} is too large for this computer's memory"
            self.named.warn(template, hint="Make it smaller.", name=item.image)
        return None

    def _caption_batch(self, batch: Sequence[tuple[Pending, Image.Image]]) -> None:
        """Caption the images; on out of memory the batch size is halved for the rest of the job."""
        waiting = list(batch)
        while waiting:
            part, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            try:
                self._keep(part)
            except Exception as error:
                if is_out_of_memory(error) or _onnx_is_out_of_memory(error):
                    if len(part) == 1:
                        raise self._no_memory(part[0][0]) from error
                    self.batch_size = len(part) // 2
                    log.warning(
                        "out of memory with %d images; going on with %d", len(part), self.batch_size
                    )
                elif len(part) > 1:
                    log.warning("a batch failed; trying its images one by one", exc_info=error)
                    for one in part:
                        self._keep_alone(one)
                    continue
                else:
                    self._keep_alone(part[0])
                    continue
            else:
                continue
            # outside of `except`: the exception's traceback references the tensors
            free_memory(self.selection.device)
            waiting = [*part, *waiting]

    def _keep(self, part: Sequence[tuple[Pending, Image.Image]]) -> None:
        assert self.captioner is not None
        captions = self.captioner.caption([image for _, image in part])
        self.writer.collect_embeddings(self.captioner, [item for item, _ in part], captions)
        for (item, _), caption in zip(part, captions, strict=True):
            text = postprocess(caption, self.settings)
            if text:
                self.writer.keep(item, text)
                continue
            hint = "A lower threshold, or other words in the vocabulary, may help."
            self.named.warn("no caption was generated for {name}", hint=hint, name=item.image)
        self.pace.add(len(part))
        self._failed = 0
        self._has_succeeded = True
        self.writer.write_if_due()

    def _keep_alone(self, one: tuple[Pending, Image.Image]) -> None:
        """Caption one image. A failure is a warning, or CaptionerError if no image has
        succeeded.
        """
        try:
            self._keep([one])
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, (DatasetError, OSError)):
                raise
            self._failed += 1
            if not self._has_succeeded and self._failed >= min(
                GIVE_UP_AFTER, len(self.selection.pending)
            ):
                raise CaptionerError(
                    "{captioner} fails at every image: {reason}",
                    captioner=self.settings.info.title,
                    reason=f"{type(error).__name__}: {error}"[:300],
                    hint=(
                        "Choose another captioner, or set mixed_precision to no. The end of "
                        "{log} has the details."
                    ),
                    log=self.task.folder.log,
                ) from error
            log.warning("%s cannot be captioned", one[0].image, exc_info=error)
            reason = f"{type(error).__name__}: {error}"[:200]
            template = "{name} could not be captioned: {reason}"
            self.named.warn(template, name=one[0].image, reason=reason)

    def _no_memory(self, item: Pending) -> OutOfMemory:
        return OutOfMemory(
            "out of memory at {name}, with one image at a time",
            name=self.named.shown(item.image),
            hint=(
                "Captions written so far are kept. Close other programs, or unload the WebUI's"
                " checkpoint; or use a smaller captioner, or the cpu."
            ),
        )


class CaptionSaving(Hook[Captioning]):
    """Writes the captions on request."""

    def __init__(self, writer: CaptionWriter) -> None:
        self.writer = writer

    def on_request(self, loop: Loop[Captioning], kind: str) -> None:
        if kind == "save":
            self.writer.write()


class CaptionReporting(Hook[Captioning]):
    """Reports the number of images done, and the speed."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def after_step(self, loop: Loop[Captioning], result: Any) -> None:
        work = loop.work
        per_second = work.pace.images_per_second
        left = len(work.selection.pending) - work.tried
        self.report.write(
            events.Progress(
                step=work.tried,
                images_per_second=per_second,
                seconds_left=left / per_second if per_second else None,
                memory=peak_memory(work.selection.device),
            )
        )


class CaptionPace:
    """Images per second, without pauses."""

    def __init__(self) -> None:
        self.count = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    def add(self, count: int) -> None:
        now = time.monotonic()
        self.count += count
        self._seconds, self._since = self._seconds + now - self._since, now

    def restart(self) -> None:
        self._since = time.monotonic()

    @property
    def images_per_second(self) -> float:
        return self.count / self._seconds if self._seconds else 0.0


def _onnx_is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return type(error).__module__.startswith("onnxruntime") and (
        "failed to allocate" in text or "out of memory" in text or "bad allocation" in text
    )
