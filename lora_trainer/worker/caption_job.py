"""One caption job as a straight line: look what is there, fetch and load the captioner, caption,
write.

    caption.yaml -> images without a caption of a person's -> model -> batches -> metadata.csv or
    .txt, and .lora_trainer/captions.json

What the captioner's image encoder made of the images is kept beside that, for the check
(dataset.embeddings).

What was captioned is written every few seconds, so the dataset itself is the resume point: a job
that was stopped or killed is simply started again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from lora_trainer import environment
from lora_trainer.captioning import source
from lora_trainer.captioning.captioner import Caption, Captioner
from lora_trainer.captioning.encoder import ImageEncoder, unrelated_spread
from lora_trainer.captioning.finish import finish
from lora_trainer.captioning.load import load, vocabulary_text
from lora_trainer.dataset import authors, embeddings
from lora_trainer.dataset.authors import Written
from lora_trainer.dataset.images import digest, examine, read_image
from lora_trainer.dataset.listing import folded
from lora_trainer.dataset.placing import CaptionPlaces
from lora_trainer.errors import CaptionerError, DatasetError, LoraTrainerError, Message, OutOfMemory
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import RequestKind
from lora_trainer.settings.captioning import CaptionSettings, fingerprint
from lora_trainer.training.device import (
    choose_device,
    choose_precision,
    describe_device,
    free_memory,
    is_out_of_memory,
    peak_memory,
)
from lora_trainer.worker.report import Report

log = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped"]
WRITE_SECONDS = 3.0
"""Captions are written at least so often: a killed worker loses no more."""
PAUSE_POLL_SECONDS = 0.2
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


class Stopped(Exception):
    """`stop` was asked for."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An image to be captioned."""

    image: Path
    digest: str


class CaptionJob:
    """Carries one caption job from its settings to the captions in the dataset."""

    def __init__(self, folder: RunFolder, settings: CaptionSettings, report: Report) -> None:
        self.folder = folder
        self.settings = settings
        self.report = report
        self.captioner: Captioner | None = None
        self.batch_size = settings.batch_size or settings.info.batch_size
        self.done = 0
        self._tried = 0
        self._named = 0
        self._failed = 0
        self._unwritten: dict[Pending, str] = {}
        self._seen: dict[str, embeddings.Row] = {}
        self._encoder, self._unrelated = "", 0.0
        self._contents: set[str] = set()
        self._written_at = time.monotonic()

    def run(self) -> Outcome:
        self.report.say(events.Started(job="caption"))
        try:
            self._prepare()
            if self.pending:
                self._load()
                self._caption_all()
        except (Stopped, source.StoppedWhileFetching):
            self._write()
            self.report.say(events.Stopped(step=self.done, file=self._target_name))
            return "stopped"
        except Exception:
            # what was captioned until now is kept; if it is the writing that fails, that is what is
            # told
            with contextlib.suppress(LoraTrainerError, OSError):
                self._write()
            raise
        finally:
            self._let_go()
        self._tell_rest()
        self.report.say(events.Finished(step=self.done, file=self._target_name))
        return "finished"

    # --- before -----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What there is to do, found out before anything is fetched or loaded."""
        settings = self.settings
        self.report.phase("checking")
        self._target_name = ""
        self.by = fingerprint(settings, vocabulary_text(settings))
        self.places = CaptionPlaces(
            settings.input, settings.output, as_texts=settings.format == "txt"
        )
        self._target_name = str(self.places.target or settings.input)
        self.device = choose_device(settings.device)
        self.seen = self.places.look()
        self.pending = self._sound(self._choose())
        self.report.say(
            events.Planned(
                name=settings.info.title,
                step_count=len(self.pending),
                image_count=len(self.places.images),
                device=describe_device(self.device),
            )
        )

    def _choose(self) -> list[Pending]:
        """The images to caption: not those with a person's caption, nor those that this captioner
        has done already.
        """
        known = authors.read_authors(self.settings.input)
        pending, kept = [], 0
        for image, content in self._digests(self._wanted()):
            self._contents.add(content)
            standing = self.seen[image]
            is_done = known.is_done(content, standing.caption, self.by)
            if standing.unreadable and not self.settings.overwrite:
                self._name(
                    Message(
                        "{name} is left alone: {reason}",
                        {"name": self._shown(image), "reason": standing.unreadable},
                    )
                )
            elif self.settings.only_missing and standing.texts:
                continue
            elif not self.settings.overwrite and any(
                known.author(content, text) == "person" for text in standing.texts
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
        by_name = {folded(self._shown(image)): image for image in self.places.images}
        names = {folded(Path(name).as_posix()): name for name in self.settings.only}
        for name in [names[key] for key in names if key not in by_name]:
            values = {"name": name, "folder": self.settings.input}
            hint = Message(
                "Name pictures as they lie in the folder, as in fox.png or portraits/fox.png."
            )
            self._name(Message("there is no picture {name} in {folder}", values), hint)
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
                self._name_bad(item.image, problem)
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
                        self._name_bad(image, problem)
                    if number % CHECKS_PER_EVENT == 0 or number == len(images):
                        self.report.part_done(number)
                        self._require_not_stopped()
            finally:
                for future in futures:
                    future.cancel()

    # --- the captioner ----------------------------------------------------------------------------

    def _load(self) -> None:
        self._bring_packages()
        self.model = source.find(self.settings, Fetching(self.report))
        self._require_not_stopped()
        self.dtype = self._precision()
        self._load_captioner()

    def _load_captioner(self) -> None:
        self.report.phase("loading")
        log.info(
            "%s from %s on %s in %s", self.settings.captioner, self.model, self.device, self.dtype
        )
        try:
            self.captioner = load(
                self.settings,
                self.model,
                device=self.device,
                dtype=self.dtype,
                listener=Fetching(self.report),
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                "{captioner} does not fit into the memory of {device}",
                captioner=self.settings.info.title,
                device=describe_device(self.device),
                hint=(
                    "Close other programs, or unload the WebUI's checkpoint; or use a smaller"
                    " captioner (blip), or set device to cpu."
                ),
            ) from error
        self.report.phase("captioning", len(self.pending))

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
            while process.poll() is None:
                time.sleep(PAUSE_POLL_SECONDS)
                if self.report.stop_asked():
                    # nothing half-done is ever used
                    process.terminate()
                    raise Stopped

    def _precision(self) -> torch.dtype:
        parameters = source.weight_bytes(self.model) // 4
        dtype = choose_precision(self.settings.mixed_precision, self.device, parameters)
        if (
            dtype is torch.float16
            and self.settings.mixed_precision == "auto"
            and not self.settings.info.fp16_is_safe
        ):
            # an older card computes in bfloat16 too, only slower; what overflows in fp16 would be
            # no words at all
            return torch.bfloat16 if self.device.type in ("cuda", "xpu") else torch.float32
        return dtype

    def _let_go(self) -> None:
        """The memory goes back at once: the host waits for it."""
        self.captioner = None
        if hasattr(self, "device"):
            free_memory(self.device)

    # --- captioning -------------------------------------------------------------------------------

    def _caption_all(self) -> None:
        """Batch after batch; the next one is read while this one is captioned."""
        self.pace = Pace()
        with ThreadPoolExecutor(READERS) as pool:
            waiting = list(self.pending)
            reading = self._start_reading(pool, waiting)
            while reading:
                batch = reading
                reading = self._start_reading(pool, waiting)
                try:
                    self._obey()
                except Stopped:
                    for _, future in [*batch, *reading]:
                        future.cancel()
                    raise
                self._caption_batch(
                    [
                        (item, image)
                        for item, future in batch
                        if (image := self._read(item, future)) is not None
                    ]
                )
                self._tried += len(batch)
                self._report_progress()
        self._write()

    def _start_reading(
        self, pool: ThreadPoolExecutor, waiting: list[Pending]
    ) -> list[tuple[Pending, Future[Image.Image]]]:
        taken = [waiting.pop(0) for _ in range(min(self.batch_size, len(waiting)))]
        return [
            (item, pool.submit(read_image, item.image, covering=(LARGEST_SEEN, LARGEST_SEEN)))
            for item in taken
        ]

    def _read(self, item: Pending, future: Future[Image.Image]) -> Image.Image | None:
        try:
            return future.result()
        except DatasetError as problem:
            self._name_bad(item.image, problem)
        except MemoryError:
            self._name(
                Message(
                    "{name} is too large for this computer's memory",
                    {"name": self._shown(item.image)},
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
            free_memory(self.device)
            waiting = [*part, *waiting]

    def _keep(self, part: Sequence[tuple[Pending, Image.Image]]) -> None:
        assert self.captioner is not None
        captions = self.captioner.caption([image for _, image in part])
        self._look([item for item, _ in part], captions)
        for (item, _), caption in zip(part, captions, strict=True):
            text = finish(caption, self.settings)
            if not text:
                self._name(
                    Message(
                        "nothing was found to say of {name}", {"name": self._shown(item.image)}
                    ),
                    Message(
                        "A lower threshold, or other words in the vocabulary, may find something."
                    ),
                )
                continue
            self.done += 1
            self._unwritten[item] = text
        self.pace.add(len(part))
        self._failed = 0
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self._write()

    def _look(self, part: Sequence[Pending], captions: Sequence[Caption]) -> None:
        """What the captioner's image encoder saw on the way. No caption is lost for its sake."""
        if isinstance(self.captioner, ImageEncoder) and not self._encoder:
            self._encoder = self.captioner.encoder
            try:
                self._unrelated = unrelated_spread(self.captioner)
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
            if not self.done and self._failed >= min(GIVE_UP_AFTER, len(self.pending)):
                raise CaptionerError(
                    "{captioner} fails at every image: {reason}",
                    captioner=self.settings.info.title,
                    reason=f"{type(error).__name__}: {error}"[:300],
                    hint=(
                        "Choose another captioner, or set mixed_precision to no. The end of {log}"
                        " tells more."
                    ),
                    log=self.folder.log,
                ) from error
            log.warning("%s cannot be captioned", one[0].image, exc_info=error)
            name, reason = self._shown(one[0].image), f"{type(error).__name__}: {error}"[:200]
            self._name(
                Message("{name} could not be captioned: {reason}", {"name": name, "reason": reason})
            )

    def _no_memory(self, item: Pending) -> OutOfMemory:
        return OutOfMemory(
            "memory ran out at {name}, one image at a time",
            name=self._shown(item.image),
            hint=(
                "What was captioned is kept. Close other programs, or unload the WebUI's"
                " checkpoint; or use a smaller captioner, or the cpu."
            ),
        )

    # --- writing ----------------------------------------------------------------------------------

    def _write(self) -> None:
        """The captions since the last time, into the dataset. Who wrote them is recorded first."""
        self._written_at = time.monotonic()
        if not self._unwritten and not self._seen:
            return
        items = {item.image: (item, text) for item, text in self._unwritten.items()}
        with authors.changing_captions(self.settings.input):
            self._write_seen()
            authors.record(
                self.settings.input,
                {item.digest: Written(text=text, by=self.by) for item, text in items.values()},
            )
            changed = self.places.write(
                {image: text for image, (_, text) in items.items()}, self.seen
            )
            if not self.places.is_apart:
                # the dataset's own captions are still what a captioner wrote before
                authors.settle(self.settings.input, [item.digest for item, _ in items.values()])
        self._unwritten.clear()
        for image, (_, text) in items.items():
            if image in changed:
                self.done -= 1
                self._name(
                    Message(
                        "the caption of {name} was changed meanwhile; it stays as it is",
                        {"name": self._shown(image)},
                    )
                )
            else:
                self.report.say(events.Captioned(image=self._shown(image), caption=text))

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
        try:
            embeddings.add(
                self.settings.input, seen, keep=None if self.settings.only else self._contents
            )
        except OSError as error:
            log.warning("what the image encoder saw cannot be kept: %s", error)
        self._seen.clear()

    # --- requests and progress --------------------------------------------------------------------

    def _obey(self) -> None:
        """Do what was asked since the last batch. Raises Stopped."""
        asked = [request.kind for request in self.report.requests()]
        if "stop" in asked:
            raise Stopped
        if "save" in asked:
            self._write()
        if "pause" in asked:
            self._pause(asked[asked.index("pause") + 1 :])

    def _pause(self, asked: list[RequestKind]) -> None:
        """Leave the device to others until `resume` or `stop`, which may have come with the `pause`
        itself.
        """
        if "resume" in asked:
            return
        self._write()
        self._let_go()
        self.report.say(events.Paused(step=self.done))
        while not {"resume", "stop"} & set(asked):
            time.sleep(PAUSE_POLL_SECONDS)
            asked = [request.kind for request in self.report.requests()]
        if "stop" in asked:
            raise Stopped
        self.report.say(events.Resumed(step=self.done))
        self._load_captioner()
        self.pace.restart()

    def _require_not_stopped(self) -> None:
        if self.report.stop_asked():
            raise Stopped

    def _report_progress(self) -> None:
        per_second = self.pace.images_per_second
        left = len(self.pending) - self._tried
        self.report.say(
            events.Progress(
                step=self._tried,
                images_per_second=per_second,
                seconds_left=left / per_second if per_second else None,
                memory=peak_memory(self.device),
            )
        )

    def _name_bad(self, image: Path, problem: DatasetError) -> None:
        self._name(
            Message(
                problem.message.template, {**problem.message.values, "path": self._shown(image)}
            ),
            problem.hint,
        )

    def _name(self, message: Message, hint: Message | None = None) -> None:
        """A warning about one image; of two thousand like it only the first are told one by one."""
        self._named += 1
        if self._named <= MOST_NAMED:
            self.report.warn(message, hint)
        else:
            log.warning("%s", message)

    def _tell_rest(self) -> None:
        if self._named > MOST_NAMED:
            self.report.warn(
                Message(
                    "and {count} more images; {log} names them",
                    {"count": self._named - MOST_NAMED, "log": self.folder.log.name},
                )
            )

    def _shown(self, image: Path) -> str:
        return self.places.listing.name(image)


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


class Pace:
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
