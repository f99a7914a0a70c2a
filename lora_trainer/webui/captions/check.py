"""The dataset check in the tab: images are measured in a thread, one dataset at a time.

    checker.start(settings), .stop(), .status()       2,000 images take a minute; measurements are
                                                      cached by content
    checker.findings(view) -> Findings                of the images at the last check, and of the
                                                      captions as they are

A changed image has no findings until it is measured again, which `keep_up` starts. Captions are
checked at every change of the folder. Called by workbench.py and the routes.
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
"""In the dataset's .lora_trainer folder."""
REST_SECONDS = 3.0
"""Pause after a check, before changed images start another: several may be arriving."""
QUIET_SECONDS = 10.0
"""A captioner's image embeddings are used when none was added for this long: a running caption job
adds some every few seconds.
"""

log = logging.getLogger("lora_trainer.webui")
_turn = threading.Lock()
"""One dataset is measured at a time, to leave CPU time for the host."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """The settings that affect the findings."""

    resolution: int = 512
    trigger: str = ""
    tokens: int = 75


@dataclass(frozen=True)
class IdentifiedFinding:
    """A finding with an id that is stable while its content is the same."""

    finding: Finding

    @cached_property
    def id(self) -> str:
        found = self.finding
        content = repr((found.kind, str(found.path), str(found.message), found.fix))
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All findings of a dataset."""

    of_images: Mapping[Path, tuple[IdentifiedFinding, ...]]
    of_all: tuple[IdentifiedFinding, ...]
    """Findings about several images, or the dataset."""
    view: View

    @cached_property
    def summed(self) -> tuple[Sum, ...]:
        """All findings grouped, those of the check and those of the scan."""
        scanned = (finding for item in self.view.items for finding in item.findings)
        return tuple(sums([*(each.finding for each in self.everything), *scanned]))

    @cached_property
    def kinds(self) -> Mapping[Path, Sequence[str]]:
        """Image -> the kinds of its findings."""
        kinds = {
            path: [each.finding.kind for each in some] for path, some in self.of_images.items()
        }
        shared = ((path, each.finding.kind) for each in self.of_all for path in each.finding.about)
        for path, kind in dict.fromkeys(shared):
            kinds.setdefault(path, []).append(kind)
        return kinds

    @cached_property
    def by_id(self) -> dict[str, IdentifiedFinding]:
        return {each.id: each for each in self.everything}

    @property
    def everything(self) -> Iterable[IdentifiedFinding]:
        return (*self.of_all, *(each for some in self.of_images.values() for each in some))


@dataclass(frozen=True, kw_only=True)
class Status:
    state: State
    done: int
    total: int
    settings: CheckSettings
    error: LoraTrainerError | None
    checked: float | None
    """End of the last check, in seconds since 1970."""
    stale: bool
    """Whether images were added, removed or changed since."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """The images' findings of the last check."""

    findings: tuple[IdentifiedFinding, ...] = ()
    versions: Mapping[Path, str] = field(default_factory=dict)
    embedded: int = 0
    """files.stamp of the image embeddings."""

    @cached_property
    def by_path(self) -> dict[Path | None, tuple[IdentifiedFinding, ...]]:
        return _by_path(self.findings)


class _CheckStopped(Exception):
    """The check was stopped."""


class Checker:
    """The check of one dataset. Thread-safe. `vocabulary`: reads the dataset's vocabulary, or
    returns None.
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
        """Incremented whenever findings may have changed."""

    # --- measuring --------------------------------------------------------------------------------

    def start(self, settings: CheckSettings) -> None:
        """Start a check, or restart the running one with these settings."""
        with self._lock:
            self._settings = settings
            self._stop = False
            self.serial += 1
            if self._thread is not None and self._thread.is_alive():
                self._again = True
                return
            self._begin()

    def stop(self) -> None:
        """Stop the running check. Its measurements are kept."""
        with self._lock:
            self._stop, self._again = True, False

    def wait(self) -> None:
        """Wait for the running check. For tests."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def keep_up(self, view: View) -> None:
        """Check again if images have changed since the last check, or after a restart of the
        WebUI.
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
        return self._result.versions != view.versions or self._has_new_embeddings()

    def _has_new_embeddings(self) -> bool:
        """Whether a caption job has added image embeddings since the last check, and has ended."""
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
                        # under the lock, so that a check started from now on begins a new thread
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
                "the check failed: {reason}",
                hint=("See the WebUI's console for details."),
                reason=problem,
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
            _images(view),
            resolution=settings.resolution,
            embedded=read_all(self._store.path),
            cache=self._folder / CACHE,
            progress=heard,
        )
        return _Result(
            findings=tuple(map(IdentifiedFinding, report.findings)),
            versions=view.versions,
            embedded=embedded,
        )

    def _remembered(self) -> tuple[CheckSettings, float | None]:
        def parsed(kept: Any) -> tuple[CheckSettings, float | None]:
            values = kept["settings"]
            settings = CheckSettings(
                resolution=int(values["resolution"]),
                trigger=str(values["trigger"]),
                tokens=int(values["tokens"]),
            )
            if not 64 <= settings.resolution <= 4096 or (
                settings.tokens != token_counts.limit_of(settings.tokens)
            ):
                raise ValueError(values)
            return settings, float(kept["checked"])

        unchecked: tuple[CheckSettings, float | None] = (CheckSettings(), None)
        return files.read_json(self._folder / SETTINGS, parsed, unchecked)

    def _remember(self) -> None:
        try:
            files.write_text(
                self._folder / SETTINGS,
                json.dumps({"settings": asdict(self._settings), "checked": self._checked}),
            )
        except OSError as problem:
            log.warning("%s cannot be written: %s", self._folder / SETTINGS, problem)

    # --- findings ---------------------------------------------------------------------------------

    def findings(self, view: View) -> Findings:
        """The current findings; empty before the first check."""
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
            by_path = dict(result.by_path)
        else:
            unchanged = {path for path, _ in result.versions.items() & view.versions.items()}
            by_path = _by_path(
                each
                for each in result.findings
                if each.finding.path is None
                or unchanged.issuperset({each.finding.path, *each.finding.related})
            )
        items = [item for item in view.items if item.source in ("metadata", "text", None)]
        of_captions = [some for _, some in self._caption_findings(items, settings).values()]
        of_captions.append(tuple(map(IdentifiedFinding, findings_of_all(items))))
        for path, some in _by_path(chain.from_iterable(of_captions)).items():
            by_path[path] = (*by_path.get(path, ()), *some)
        of_all = by_path.pop(None, ())
        return Findings(of_images=cast(Mapping[Path, Any], by_path), of_all=of_all, view=view)

    def _caption_findings(
        self, items: Iterable[Item], settings: CheckSettings
    ) -> Mapping[Path, tuple[Item, tuple[IdentifiedFinding, ...]]]:
        """The findings of each caption; unchanged items keep theirs."""
        vocabulary = self._vocabulary()
        counter = token_counts.count if token_counts.available() else None
        asked = (settings.trigger, settings.tokens, counter, vocabulary)
        known = self._of_captions[1] if self._of_captions[0] == asked else {}
        kept: dict[Path, tuple[Item, tuple[IdentifiedFinding, ...]]] = {}
        for item in items:
            before = known.get(item.path)
            if before is None or before[0] is not item:
                found = findings_of_one(item, settings.trigger, counter, settings.tokens)
                # missing captions are found by the scan
                said = {finding.kind for finding in item.findings} & {"no-caption"}
                found = [finding for finding in found if finding.kind not in said]
                if vocabulary is not None and item.caption:
                    captions = {item.path: (item.name, item.caption)}
                    found += vocabulary_findings(captions, vocabulary, settings.trigger)
                before = (item, tuple(map(IdentifiedFinding, found)))
            kept[item.path] = before
        self._of_captions = (asked, kept)
        return kept


def _by_path(
    findings: Iterable[IdentifiedFinding],
) -> dict[Path | None, tuple[IdentifiedFinding, ...]]:
    """None: findings about several images or the dataset."""
    found: dict[Path | None, list[IdentifiedFinding]] = {}
    for each in findings:
        found.setdefault(each.finding.path, []).append(each)
    return {path: tuple(some) for path, some in found.items()}


def _images(view: View) -> list[CheckedImage]:
    """The view's images for the check, whatever their captions."""
    masks = {
        image: mask
        for mask, image in find_masks(view.listing.images, view.captions.by_image).items()
    }
    return [
        CheckedImage(path=item.path, name=item.name, mask=masks.get(item.path))
        for item in view.items
    ]


def clusters(findings: Findings, view: View) -> list[tuple[tuple[Path, ...], Path]]:
    """Groups of near-duplicates, each with the image to keep: one without a finding."""
    found: dict[frozenset[Path], set[Path]] = {}
    for path, some in findings.of_images.items():
        for each in some:
            if each.finding.kind in ("near-duplicate", "duplicate-image") and each.finding.related:
                members = frozenset({path, *each.finding.related})
                found.setdefault(members, set()).add(path)
    if not found:
        return []
    order = {item.path: place for place, item in enumerate(view.items)}
    groups = []
    for members, named in found.items():
        kept = sorted(members - named or members, key=lambda path: order.get(path, 0))
        others = sorted(members - {kept[0]}, key=lambda path: order.get(path, 0))
        groups.append(((kept[0], *others), kept[0]))
    return sorted(groups, key=lambda group: order.get(group[1], 0))
