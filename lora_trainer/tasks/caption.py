"""Captions for a folder of images, as stages: look what is there, fetch and load the captioner,
caption, write.

    caption.yaml -> select -> Selection -> bring -> CaptionerFiles -> load -> the loop
                 -> metadata.csv or .txt, and .lora_trainer/captions.json

What the captioner's image encoder made of the images is kept beside that, for the check
(dataset.embeddings).

What was captioned is written every few seconds, so the dataset itself is the resume point: a task
that was stopped or killed is simply started again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import subprocess
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
from lora_trainer.dataset.caption_targets import CaptionPlaces, Standing
from lora_trainer.dataset.images import digest, examine, read_image
from lora_trainer.dataset.listing import folded
from lora_trainer.errors import CaptionerError, DatasetError, LoraTrainerError, Message, OutOfMemory
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import captioning
from lora_trainer.settings.captioning import CaptionSettings, fingerprint
from lora_trainer.tasks.base import Task
from lora_trainer.tasks.control import Control, Requests
from lora_trainer.tasks.report import Report
from lora_trainer.training.device import (
    choose_device,
    choose_precision,
    describe_device,
    free_memory,
    is_out_of_memory,
    peak_memory,
)
from lora_trainer.training.loop import Hook, Loop, Outcome, StopRequested

log = logging.getLogger(__name__)

WRITE_SECONDS = 3.0
"""Captions are written at least so often: a killed worker loses no more."""
INSTALL_POLL_SECONDS = 0.2
CHECKS_PER_EVENT = 25
MOST_NAMED = 20
LARGEST_SEEN = 1024
"""No captioner looks at more pixels a side; a large picture is read with three times as many at
least.
"""
FEW = 50
READERS = 4
GIVE_UP_AFTER = 3
"""Images in a row that fail one by one, before any succeeded: then it is not the images."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An image to be captioned."""

    image: Path
    digest: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What there is to do, found out before anything is fetched or loaded.

    by: who will have written the captions; standing: each image's captions before; contents: the
    hashes of all images that were looked at.
    """

    places: CaptionPlaces
    by: str
    device: torch.device
    standing: Mapping[Path, Standing]
    pending: Sequence[Pending]
    contents: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CaptionerFiles:
    """A captioner's weights on this disk, and what they are computed in."""

    model: Path
    dtype: torch.dtype


class CaptionTask(Task):
    """Carries one caption job from its settings to the captions in the dataset."""

    settings_file: ClassVar[str] = "caption.yaml"

    def __init__(self, folder: RunFolder, report: Report) -> None:
        super().__init__(folder, report)
        self.settings = captioning.read(folder.caption_config)
        self.control = Control(report)

    def run(self) -> Outcome:
        settings = self.settings
        self.report.say(events.Started(job="caption"))
        self.report.phase("checking")
        by = fingerprint(settings, files_content(settings))
        places = CaptionPlaces(settings.input, settings.output, as_texts=settings.format == "txt")
        target = str(places.target or settings.input)
        named = ImageWarnings(places, self.report, self.folder)
        try:
            selection = Selecting(settings, places, named, self.report, self.control).select(by)
        except StopRequested:
            return self._stopped(0, target)
        writer = CaptionWriter(settings, selection, named, self.report)
        try:
            if selection.pending:
                self._caption(selection, writer, named)
        except (StopRequested, source.StoppedWhileFetching):
            writer.write()
            return self._stopped(writer.count, target)
        except Exception:
            # what was captioned until now is kept; if it is the writing that fails, that is what is
            # told
            with contextlib.suppress(LoraTrainerError, OSError):
                writer.write()
            raise
        named.tell_rest()
        self.report.say(events.Finished(step=writer.count, file=target))
        return "finished"

    @classmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        return OutOfMemory(
            "memory ran out",
            hint=(
                "Close other programs, or unload the WebUI's checkpoint; or use a smaller"
                " captioner, or set device to cpu."
            ),
        )

    def _stopped(self, count: int, target: str) -> Outcome:
        self.report.say(events.Stopped(step=count, file=target))
        return "stopped"

    def _caption(self, selection: Selection, writer: CaptionWriter, named: ImageWarnings) -> None:
        """Bring the captioner, and caption what is pending."""
        try:
            files = self.bring(selection)
            with Captioning(self, selection, files, writer, named) as work:
                self.control.occupy(work)
                hooks = [
                    Requests(self.control),
                    CaptionSaving(writer),
                    CaptionReporting(self.report),
                ]
                Loop(work, hooks).run()
            writer.write()
        finally:
            # the memory goes back at once: the host waits for it
            free_memory(selection.device)

    # --- the captioner ----------------------------------------------------------------------------

    def bring(self, selection: Selection) -> CaptionerFiles:
        """The captioner's packages and weights, installed and fetched if need be."""
        self._bring_packages()
        model = source.find(self.settings, Fetching(self.report))
        self.control.raise_if_stopped()
        return CaptionerFiles(
            model=model, dtype=precision_for(self.settings, model, selection.device)
        )

    def load(self, selection: Selection, files: CaptionerFiles) -> Captioner:
        """The captioner on its device. Raises OutOfMemory when it does not fit."""
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

    def _bring_packages(self) -> None:
        """What only this captioner needs lies in an overlay of its own, which is installed when it
        is first asked for.
        """
        wanted = self.settings.info.needs
        if (
            not wanted
            or importlib.util.find_spec(environment.CAPTIONER_MODULES[wanted]) is not None
        ):
            return
        if environment.look_at_captioner(wanted).state == "missing":
            self._install(wanted)
        environment.activate(environment.look_at_captioner(wanted).require())

    def _install(self, captioner: str) -> None:
        """As by hand, in a process of its own, whose lines are in the log. Whether it worked is
        seen by looking.
        """
        self.report.phase("installing")
        command = environment.install_command("--captioner", captioner)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, creationflags=environment.NO_WINDOW
        ) as process:
            try:
                while process.poll() is None:
                    time.sleep(INSTALL_POLL_SECONDS)
                    self.control.raise_if_stopped()
            except StopRequested:
                # nothing half-done is ever used
                process.terminate()
                raise


def precision_for(settings: CaptionSettings, model: Path, device: torch.device) -> torch.dtype:
    """What the captioner computes in."""
    parameters = source.weight_bytes(model) // 4
    dtype = choose_precision(settings.mixed_precision, device, parameters)
    if (
        dtype is torch.float16
        and settings.mixed_precision == "auto"
        and not settings.info.fp16_is_safe
    ):
        # an older card computes in bfloat16 too, only slower; what overflows in fp16 would be
        # no words at all
        return torch.bfloat16 if device.type in ("cuda", "xpu") else torch.float32
    return dtype


class ImageWarnings:
    """Warnings about single images; of two thousand alike only the first are told one by one."""

    def __init__(self, places: CaptionPlaces, report: Report, folder: RunFolder) -> None:
        self._places = places
        self._report = report
        self._folder = folder
        self._count = 0

    def shown(self, image: Path) -> str:
        """The image's path as events name it."""
        return self._places.listing.name(image)

    def warn(self, message: Message, hint: Message | None = None) -> None:
        self._count += 1
        if self._count <= MOST_NAMED:
            self._report.warn(message, hint)
        else:
            log.warning("%s", message)

    def warn_of_bad(self, image: Path, problem: DatasetError) -> None:
        """Why an image cannot be read."""
        values = {**problem.message.values, "path": self.shown(image)}
        self.warn(Message(problem.message.template, values), problem.hint)

    def tell_rest(self) -> None:
        """How many were not told one by one."""
        if self._count > MOST_NAMED:
            self._report.warn(
                Message(
                    "and {count} more images; {log} names them",
                    {"count": self._count - MOST_NAMED, "log": self._folder.log.name},
                )
            )


# --- select ---------------------------------------------------------------------------------------


class Selecting:
    """Chooses the images to caption."""

    def __init__(
        self,
        settings: CaptionSettings,
        places: CaptionPlaces,
        named: ImageWarnings,
        report: Report,
        control: Control,
    ) -> None:
        self.settings = settings
        self.places = places
        self.named = named
        self.report = report
        self.control = control

    def select(self, by: str) -> Selection:
        """Those images that have no caption of a person's, and none that `by` has written
        already.
        """
        device = choose_device(self.settings.device)
        standing = self.places.look()
        contents = list(self._digests(self._wanted()))
        pending = self._sound(self._choose(contents, standing, by))
        self.report.say(
            events.Planned(
                name=self.settings.info.title,
                step_count=len(pending),
                image_count=len(self.places.images),
                device=describe_device(device),
            )
        )
        return Selection(
            places=self.places,
            by=by,
            device=device,
            standing=standing,
            pending=pending,
            contents=frozenset(content for _, content in contents),
        )

    def _choose(
        self, contents: Sequence[tuple[Path, str]], standing: Mapping[Path, Standing], by: str
    ) -> list[Pending]:
        known = caption_provenance.read_authors(self.settings.input)
        pending, kept = [], 0
        for image, content in contents:
            before = standing[image]
            is_done = known.is_done(content, before.caption, by)
            if before.unreadable and not self.settings.overwrite:
                self.named.warn(
                    Message(
                        "{name} is left alone: {reason}",
                        {"name": self.named.shown(image), "reason": before.unreadable},
                    )
                )
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
                Message(
                    "captions that a person wrote or changed stay as they are ({count})",
                    {"count": kept},
                ),
                Message("To have them replaced too, set overwrite."),
            )
        return pending

    def _wanted(self) -> Sequence[Path]:
        """The images that were asked for; what is asked for and not there is named."""
        if not self.settings.only:
            return self.places.images
        by_name = {folded(self.named.shown(image)): image for image in self.places.images}
        names = {folded(Path(name).as_posix()): name for name in self.settings.only}
        for name in [names[key] for key in names if key not in by_name]:
            values = {"name": name, "folder": self.settings.input}
            hint = Message(
                "Name pictures as they lie in the folder, as in fox.png or portraits/fox.png."
            )
            self.named.warn(Message("there is no picture {name} in {folder}", values), hint)
        return [image for key, image in by_name.items() if key in names]

    def _sound(self, pending: list[Pending]) -> list[Pending]:
        """Where only a few are left, those that cannot be read are named now: no model is loaded
        for their sake, each time anew.
        """
        if len(pending) > FEW:
            return pending
        sound = []
        for item in pending:
            try:
                examine(item.image)
                sound.append(item)
            except DatasetError as problem:
                self.named.warn_of_bad(item.image, problem)
        return sound

    def _digests(self, images: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """(image, hash of its content), in order; images that cannot be read are named and left
        out.
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
    """Keeps captions, and what the image encoder saw, until they are written into the dataset."""

    def __init__(
        self, settings: CaptionSettings, selection: Selection, named: ImageWarnings, report: Report
    ) -> None:
        self.settings = settings
        self.selection = selection
        self.named = named
        self.report = report
        self.count = 0
        """Images captioned, but for those whose captions were changed meanwhile."""
        self._captions: dict[Pending, str] = {}
        self._seen: dict[str, embeddings.Row] = {}
        self._encoder, self._unrelated = "", 0.0
        self._written_at = time.monotonic()

    def keep(self, item: Pending, text: str) -> None:
        self.count += 1
        self._captions[item] = text

    def look(
        self, captioner: Captioner, part: Sequence[Pending], captions: Sequence[CaptionerOutput]
    ) -> None:
        """Keep what the captioner's image encoder saw on the way. No caption is lost for its
        sake.
        """
        if isinstance(captioner, ImageEncoder) and not self._encoder:
            self._encoder = captioner.encoder
            try:
                self._unrelated = unrelated_spread(captioner)
            except Exception as error:
                log.warning(
                    "the scale of %s's image encoder cannot be told", self._encoder, exc_info=error
                )
        if self._unrelated:
            self._seen.update(
                (item.digest, caption.embedding)
                for item, caption in zip(part, captions, strict=True)
                if caption.embedding is not None
            )

    def write_if_due(self) -> None:
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """The captions since the last time, into the dataset. Who wrote them is recorded first."""
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
                {image: text for image, (_, text) in items.items()}, self.selection.standing
            )
            if not places.is_apart:
                # the dataset's own captions are still what a captioner wrote before
                caption_provenance.settle(folder, [item.digest for item, _ in items.values()])
        self._captions.clear()
        for image, (_, text) in items.items():
            if image in changed:
                self.count -= 1
                self.named.warn(
                    Message(
                        "the caption of {name} was changed meanwhile; it stays as it is",
                        {"name": self.named.shown(image)},
                    )
                )
            else:
                self.report.say(events.Captioned(image=self.named.shown(image), caption=text))

    def _write_seen(self) -> None:
        """What the encoder saw since the last time. Of images that are gone, or were other ones,
        nothing is kept.
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


# --- caption --------------------------------------------------------------------------------------


class Captioning:
    """The loop's work: a step captions a batch, while the next one is read. It leaves the device
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
        """Images that were captioned, or could not be."""
        self.captioner: Captioner | None = task.load(selection, files)
        self.batch_size = self.settings.batch_size or self.settings.info.batch_size
        self._failed = 0
        self._waiting = list(selection.pending)
        self._pool = ThreadPoolExecutor(READERS)
        self._reading = self._start_reading()

    def __enter__(self) -> Captioning:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.captioner = None

    @property
    def step(self) -> int:
        """Captions made."""
        return self.writer.count

    @property
    def is_over(self) -> bool:
        return not self._reading

    def advance(self) -> None:
        """Caption the batch that was read, and have the next one read meanwhile."""
        batch, self._reading = self._reading, self._start_reading()
        self._caption_batch(
            [
                (item, image)
                for item, future in batch
                if (image := self._read(item, future)) is not None
            ]
        )
        self.tried += len(batch)

    def leave_device(self) -> None:
        """Write what there is, and let the captioner go."""
        self.writer.write()
        self.captioner = None
        free_memory(self.selection.device)

    def return_to_device(self) -> None:
        self.captioner = self.task.load(self.selection, self.files)
        self.pace.restart()

    def _start_reading(self) -> list[tuple[Pending, Future[Image.Image]]]:
        taken = [self._waiting.pop(0) for _ in range(min(self.batch_size, len(self._waiting)))]
        covering = (LARGEST_SEEN, LARGEST_SEEN)
        return [
            (item, self._pool.submit(read_image, item.image, covering=covering)) for item in taken
        ]

    def _read(self, item: Pending, future: Future[Image.Image]) -> Image.Image | None:
        try:
            return future.result()
        except DatasetError as problem:
            self.named.warn_of_bad(item.image, problem)
        except MemoryError:
            self.named.warn(
                Message(
                    "{name} is too large for this computer's memory",
                    {"name": self.named.shown(item.image)},
                ),
                Message("Make it smaller."),
            )
        return None

    def _caption_batch(self, batch: Sequence[tuple[Pending, Image.Image]]) -> None:
        """Captions what fits into memory at once; halves the batch, for good, when it does not."""
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
            # outside of `except`: the error holds on to what filled the memory
            free_memory(self.selection.device)
            waiting = [*part, *waiting]

    def _keep(self, part: Sequence[tuple[Pending, Image.Image]]) -> None:
        assert self.captioner is not None
        captions = self.captioner.caption([image for _, image in part])
        self.writer.look(self.captioner, [item for item, _ in part], captions)
        for (item, _), caption in zip(part, captions, strict=True):
            text = postprocess(caption, self.settings)
            if text:
                self.writer.keep(item, text)
                continue
            self.named.warn(
                Message(
                    "nothing was found to say of {name}", {"name": self.named.shown(item.image)}
                ),
                Message("A lower threshold, or other words in the vocabulary, may find something."),
            )
        self.pace.add(len(part))
        self._failed = 0
        self.writer.write_if_due()

    def _keep_alone(self, one: tuple[Pending, Image.Image]) -> None:
        """One image that spoils a batch ends nothing but its own caption; if none works, it is the
        captioner.
        """
        try:
            self._keep([one])
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, (DatasetError, OSError)):
                raise
            self._failed += 1
            if not self.step and self._failed >= min(GIVE_UP_AFTER, len(self.selection.pending)):
                raise CaptionerError(
                    "{captioner} fails at every image: {reason}",
                    captioner=self.settings.info.title,
                    reason=f"{type(error).__name__}: {error}"[:300],
                    hint=(
                        "Choose another captioner, or set mixed_precision to no. The end of {log}"
                        " tells more."
                    ),
                    log=self.task.folder.log,
                ) from error
            log.warning("%s cannot be captioned", one[0].image, exc_info=error)
            name = self.named.shown(one[0].image)
            reason = f"{type(error).__name__}: {error}"[:200]
            self.named.warn(
                Message("{name} could not be captioned: {reason}", {"name": name, "reason": reason})
            )

    def _no_memory(self, item: Pending) -> OutOfMemory:
        return OutOfMemory(
            "memory ran out at {name}, one image at a time",
            name=self.named.shown(item.image),
            hint=(
                "What was captioned is kept. Close other programs, or unload the WebUI's"
                " checkpoint; or use a smaller captioner, or the cpu."
            ),
        )


class CaptionSaving(Hook[Captioning]):
    """Writes the captions when that is asked for."""

    def __init__(self, writer: CaptionWriter) -> None:
        self.writer = writer

    def on_request(self, loop: Loop[Captioning], kind: str) -> None:
        if kind == "save":
            self.writer.write()


class CaptionReporting(Hook[Captioning]):
    """Tells how many images were tried, and how fast it goes."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def after_step(self, loop: Loop[Captioning], result: Any) -> None:
        work = loop.work
        per_second = work.pace.images_per_second
        left = len(work.selection.pending) - work.tried
        self.report.say(
            events.Progress(
                step=work.tried,
                images_per_second=per_second,
                seconds_left=left / per_second if per_second else None,
                memory=peak_memory(work.selection.device),
            )
        )


class Fetching:
    """Tells of a model on its way, in megabytes."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def fetching(self, model: str, total: int) -> None:
        log.info("fetching %s", model)
        self._report.phase("downloading", max(1, round(total / 1e6)) if total else 0)

    def fetched(self, done: int) -> None:
        self._report.part_done(round(done / 1e6))

    def stop_asked(self) -> bool:
        return self._report.stop_asked()


class CaptionPace:
    """Images a second, without the pauses."""

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
