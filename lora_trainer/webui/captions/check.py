"""The check of a dataset in the tab: pictures are measured in a thread, one dataset at a time; what
was found stands beside each image.

    checker.start(settings), .stop(), .status()       measuring two thousand pictures takes a
                                                      minute; what was measured once is remembered
                                                      by content
    checker.findings(view) -> Findings                of the pictures as of the last check, of the
                                                      captions as they are now

A picture that was changed since has no findings until it was measured again, which `keep_up` sees
to. Captions are judged at each new state of the folder, so that a finding goes when its caption is
mended. Called by workbench.py and the routes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

from lora_trainer import files
from lora_trainer.dataset import caption_provenance, check
from lora_trainer.dataset.check import CheckedImage
from lora_trainer.dataset.check.caption_findings import findings_of_all, findings_of_one
from lora_trainer.dataset.embeddings import FOLDER as EMBEDDINGS
from lora_trainer.dataset.embeddings import read_all
from lora_trainer.dataset.findings import Finding, Sum, sums
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.template import VOCABULARY_FILE, Vocabulary, vocabulary_findings
from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui.datasets import token_counts
from lora_trainer.webui.datasets.caption_store import CaptionStore, Item, View

State = Literal["none", "waiting", "running", "done", "stopped", "failed"]
CACHE, SETTINGS = "check-measures.json", "check.json"
"""In the dataset's folder .lora_trainer."""
REST_SECONDS = 3.0
"""Between one check and the next that follows a change: many images may be on their way."""
QUIET_SECONDS = 10.0
"""What a captioner's image encoder saw is looked at again when nothing was added to it for so long:
a caption job adds to it every few seconds.
"""

log = logging.getLogger("lora_trainer.webui")
_turn = threading.Lock()
"""One dataset is measured at a time: the host makes pictures meanwhile."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What the pictures and captions are compared with."""

    resolution: int = 512
    trigger: str = ""
    tokens: int = 75


@dataclass(frozen=True)
class IdentifiedFinding:
    """A finding with an id that stays while it says the same."""

    finding: Finding

    @cached_property
    def id(self) -> str:
        found = self.finding
        told = repr((found.kind, str(found.path), str(found.message), found.mend))
        return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All findings of a dataset at one moment."""

    of_images: Mapping[Path, tuple[IdentifiedFinding, ...]]
    of_all: tuple[IdentifiedFinding, ...]
    """What is about many images at once, or about the dataset as a whole."""
    view: View

    @cached_property
    def summed(self) -> tuple[Sum, ...]:
        """All that is known of the dataset, what is one thing together: what the check found and
        what the folder itself tells.
        """
        told = (finding for item in self.view.items for finding in item.findings)
        return tuple(sums([*(each.finding for each in self.everything), *told]))

    @cached_property
    def kinds(self) -> Mapping[Path, Sequence[str]]:
        """Of each image the kinds of what is said of it, alone or with others."""
        kinds = {
            path: [told.finding.kind for told in some] for path, some in self.of_images.items()
        }
        shared = ((path, told.finding.kind) for told in self.of_all for path in told.finding.about)
        for path, kind in dict.fromkeys(shared):
            kinds.setdefault(path, []).append(kind)
        return kinds

    @cached_property
    def by_id(self) -> dict[str, IdentifiedFinding]:
        return {told.id: told for told in self.everything}

    @property
    def everything(self) -> Iterable[IdentifiedFinding]:
        return (*self.of_all, *(told for some in self.of_images.values() for told in some))


@dataclass(frozen=True, kw_only=True)
class Status:
    state: State
    done: int
    total: int
    settings: CheckSettings
    error: LoraTrainerError | None
    checked: float | None
    """When the last one ended, in seconds since 1970."""
    stale: bool
    """Pictures came, went or changed since."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What the last check found of the pictures, and of which state of them."""

    told: tuple[IdentifiedFinding, ...] = ()
    versions: Mapping[Path, str] = field(default_factory=dict)
    embedded: int = 0
    """files.stamp of what image encoders saw of them."""

    @cached_property
    def by_path(self) -> dict[Path | None, tuple[IdentifiedFinding, ...]]:
        return _by_path(self.told)


class _CheckStopped(Exception):
    """The check was stopped."""


class Checker:
    """The check of one dataset. Thread-safe. `vocabulary` reads the dataset's vocabulary, or gives
    None.
    """

    def __init__(
        self,
        store: CaptionStore,
        vocabulary: Callable[[], Vocabulary | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._vocabulary = vocabulary
        self._clock = clock
        self._folder = store.path / caption_provenance.FOLDER
        self._lock = threading.Lock()
        self._state: State = "none"
        self._progress = (0, 0)
        self._error: LoraTrainerError | None = None
        self._stop = False
        self._again = False
        self._result = _Result()
        self._judged: tuple[Any, Findings] | None = None
        self._of_captions: tuple[Any, dict[Path, tuple[Item, tuple[IdentifiedFinding, ...]]]] = (
            None,
            {},
        )
        self._thread: threading.Thread | None = None
        self._ended = 0.0
        self._settings, self._checked = self._remembered()
        self.serial = 0
        """Grows whenever the findings may be others."""

    # --- the measuring ----------------------------------------------------------------------------

    def start(self, settings: CheckSettings) -> None:
        """Begins a check, or lets the one that runs begin again with these settings."""
        with self._lock:
            self._settings = settings
            self._stop = False
            self.serial += 1
            if self._thread is not None and self._thread.is_alive():
                self._again = True
                return
            self._begin()

    def stop(self) -> None:
        """Ends the check that runs. What was measured until now is not lost for the next one."""
        with self._lock:
            self._stop, self._again = True, False

    def wait(self) -> None:
        """Until the check that runs has ended. For tests."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def keep_up(self, view: View) -> None:
        """Check again if pictures have changed since the last check, or if the WebUI was started
        anew.
        """
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            rests = self._clock() - self._ended < REST_SECONDS
            if (
                self._checked is None
                or busy
                or rests
                or self._state in ("stopped", "failed")
                or not self._is_stale(view)
            ):
                return
            self._begin()

    def status(self, view: View) -> Status:
        with self._lock:
            done, total = self._progress
            return Status(
                state=self._state,
                done=done,
                total=total,
                settings=self._settings,
                error=self._error,
                checked=self._checked,
                stale=self._checked is not None and self._is_stale(view),
            )

    def _begin(self) -> None:
        self._state = "waiting"
        self._progress = (0, 0)
        self._error = None
        self._stop = False
        self._again = False
        self._thread = threading.Thread(target=self._run, name="lora-trainer-check", daemon=True)
        self._thread.start()

    def _is_stale(self, view: View) -> bool:
        return self._result.versions != view.versions or self._is_seen_anew()

    def _is_seen_anew(self) -> bool:
        """Whether a captioner's image encoder has seen more of the pictures since the last check,
        and is done with it.
        """
        folder = self._folder / EMBEDDINGS
        try:
            rests = self._clock() - folder.stat().st_mtime > QUIET_SECONDS
        except OSError:
            return False
        return rests and files.stamp(folder) != self._result.embedded

    def _run(self) -> None:
        with _turn:
            while True:
                self._run_once()
                with self._lock:
                    if not self._again:
                        # under the lock: who starts a check from now on finds no thread at work
                        self._thread = None
                        return
                    self._again = False
                    self._state, self._progress = "running", (0, 0)

    def _run_once(self) -> None:
        result, state, error = None, "done", None
        try:
            result = self._measured()
        except _CheckStopped:
            state = "stopped"
        except LoraTrainerError as problem:
            state, error = "failed", problem
        except Exception as problem:
            log.exception("while checking %s", self._store.path)
            state = "failed"
            error = LoraTrainerError(
                "the check failed: {reason}", hint="The WebUI's console says more.", reason=problem
            )
        with self._lock:
            self._state, self._error, self._ended = state, error, self._clock()  # type: ignore[assignment]
            self.serial += 1
            if result is not None:
                self._result, self._checked = result, self._ended
                self._remember()

    def _measured(self) -> _Result:
        with self._lock:
            self._state, settings = "running", self._settings
        view, embedded = self._store.view(), files.stamp(self._folder / EMBEDDINGS)

        def heard(done: int, total: int) -> None:
            self._progress = (done, total)
            if self._stop or self._again:
                raise _CheckStopped

        report = check.check(
            _pictures(view),
            resolution=settings.resolution,
            embedded=read_all(self._store.path),
            cache=self._folder / CACHE,
            progress=heard,
        )
        return _Result(
            told=tuple(map(IdentifiedFinding, report.findings)),
            versions=view.versions,
            embedded=embedded,
        )

    def _remembered(self) -> tuple[CheckSettings, float | None]:
        def told(kept: Any) -> tuple[CheckSettings, float | None]:
            values = kept["settings"]
            settings = CheckSettings(
                resolution=int(values["resolution"]),
                trigger=str(values["trigger"]),
                tokens=int(values["tokens"]),
            )
            if not 64 <= settings.resolution <= 4096 or settings.tokens not in token_counts.LIMITS:
                raise ValueError(values)
            return settings, float(kept["checked"])

        unchecked: tuple[CheckSettings, float | None] = (CheckSettings(), None)
        return files.read_json(self._folder / SETTINGS, told, unchecked)

    def _remember(self) -> None:
        try:
            files.write_text(
                self._folder / SETTINGS,
                json.dumps({"settings": asdict(self._settings), "checked": self._checked}),
            )
        except OSError as problem:
            log.warning("%s cannot be written: %s", self._folder / SETTINGS, problem)

    # --- what was found ---------------------------------------------------------------------------

    def findings(self, view: View) -> Findings:
        """What is known now. Nothing, as long as no check was asked for."""
        with self._lock:
            key = (
                view.revision,
                self.serial,
                self._settings,
                files.stamp(self._store.path / VOCABULARY_FILE),
            )
            result = self._result
            settings = self._settings
            asked = self._checked is not None or self._state != "none"
            if self._judged is not None and self._judged[0] == key:
                return self._judged[1]
        found = (
            self._found(view, result, settings)
            if asked
            else Findings(of_images={}, of_all=(), view=view)
        )
        with self._lock:
            self._judged = (key, found)
        return found

    def _found(self, view: View, result: _Result, settings: CheckSettings) -> Findings:
        if result.versions == view.versions:
            told = dict(result.by_path)
        else:
            unchanged = {path for path, _ in result.versions.items() & view.versions.items()}
            told = _by_path(
                each
                for each in result.told
                if each.finding.path is None
                or unchanged.issuperset({each.finding.path, *each.finding.related})
            )
        items = [item for item in view.items if item.source in ("metadata", "text", None)]
        of_captions = [some for _, some in self._told_of_captions(items, settings).values()]
        of_captions.append(tuple(map(IdentifiedFinding, findings_of_all(items))))
        for path, some in _by_path(chain.from_iterable(of_captions)).items():
            told[path] = (*told.get(path, ()), *some)
        of_all = told.pop(None, ())
        return Findings(of_images=cast(Mapping[Path, Any], told), of_all=of_all, view=view)

    def _told_of_captions(
        self, items: Iterable[Item], settings: CheckSettings
    ) -> Mapping[Path, tuple[Item, tuple[IdentifiedFinding, ...]]]:
        """What is said of each caption; of an item that is as it was, what was said before."""
        vocabulary = self._vocabulary()
        counter = token_counts.count if token_counts.available() else None
        asked = (settings.trigger, settings.tokens, counter, vocabulary)
        known = self._of_captions[1] if self._of_captions[0] == asked else {}
        kept: dict[Path, tuple[Item, tuple[IdentifiedFinding, ...]]] = {}
        for item in items:
            before = known.get(item.path)
            if before is None or before[0] is not item:
                found = findings_of_one(item, settings.trigger, counter, settings.tokens)
                # the folder tells of a missing caption itself
                said = {finding.kind for finding in item.findings} & {"no-caption"}
                found = [finding for finding in found if finding.kind not in said]
                if vocabulary is not None and item.caption:
                    captions = {item.path: (item.name, item.caption)}
                    found += vocabulary_findings(captions, vocabulary, settings.trigger)
                before = (item, tuple(map(IdentifiedFinding, found)))
            kept[item.path] = before
        self._of_captions = (asked, kept)
        return kept


def _by_path(told: Iterable[IdentifiedFinding]) -> dict[Path | None, tuple[IdentifiedFinding, ...]]:
    """Under None what is about many images at once, or about the dataset as a whole."""
    found: dict[Path | None, list[IdentifiedFinding]] = {}
    for each in told:
        found.setdefault(each.finding.path, []).append(each)
    return {path: tuple(some) for path, some in found.items()}


def _pictures(view: View) -> list[CheckedImage]:
    """The images of a view as the check takes them, whatever their captions say."""
    masks = {
        image: mask
        for mask, image in find_masks(view.listing.images, view.captions.by_image).items()
    }
    return [
        CheckedImage(path=item.path, name=item.name, mask=masks.get(item.path))
        for item in view.items
    ]


def clusters(findings: Findings, view: View) -> list[tuple[tuple[Path, ...], Path]]:
    """Groups of near-duplicates, each with the one to keep: the one that no finding is about."""
    found: dict[frozenset[Path], set[Path]] = {}
    for path, some in findings.of_images.items():
        for told in some:
            if told.finding.kind in ("near-duplicate", "duplicate-image") and told.finding.related:
                members = frozenset({path, *told.finding.related})
                found.setdefault(members, set()).add(path)
    if not found:
        return []
    order = {item.path: place for place, item in enumerate(view.items)}
    groups = []
    for members, told_of in found.items():
        kept = sorted(members - told_of or members, key=lambda path: order.get(path, 0))
        others = sorted(members - {kept[0]}, key=lambda path: order.get(path, 0))
        groups.append(((kept[0], *others), kept[0]))
    return sorted(groups, key=lambda group: order.get(group[1], 0))
