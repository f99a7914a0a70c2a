"""The checkpoints that the host lists, the folders of language models on its disk, and which of
them can be trained on.

    listing(language)   all of them at once: those not read yet without a family, while a thread
                        reads them
    find(id)            CheckpointChoice: the file, with the VAE and clip skip that the host uses
    facts(path)         CheckpointFacts: family and other facts from the header, or the problem

Only headers are read, and cached on disk by path, size and modification time, because there may be
hundreds of checkpoints on a slow disk. An id is a hash of the path: the browser never sends paths.
Called by preflight.py and the routes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from lora_trainer import environment, families, files
from lora_trainer.checkpoint.detect import Detected, detect_file
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.licence import RESTRICTIONS, Licence, companions
from lora_trainer.checkpoint.part_files import FoundParts, find_parts
from lora_trainer.checkpoint.parts import PredictionType, TrainingAdapterKind
from lora_trainer.demo import EMBEDDED
from lora_trainer.environment import Overlay
from lora_trainer.errors import CheckpointError, Message
from lora_trainer.families.base import Family
from lora_trainer.hosts.base import Host, LoadedCheckpoint
from lora_trainer.language.detect import TOKENIZER_FILES, is_language_model, read_folder
from lora_trainer.lora.training_adapter import kind_for
from lora_trainer.webui import texts
from lora_trainer.webui.common.fact_cache import FactCache
from lora_trainer.webui.common.units import size_of
from lora_trainer.webui.settings.language_models import LanguageModels

LOADED = "loaded"
"""The id of the checkpoint that the host has loaded."""
PRACTICE = "practice"
"""The id of the embedded checkpoint, also used by presets for its values."""
PRACTICE_TITLE = Message("Tiny practice model")

log = logging.getLogger("lora_trainer.webui")


class CheckpointSummary(TypedDict):
    """Facts about a checkpoint, or why it cannot be trained on."""

    family: str | None
    family_name: str | None
    resolution: int | None
    steps: int | None
    """Recommended sampling steps in the WebUI; null: unknown."""
    cfg: float | None
    """Recommended CFG scale in the WebUI; null: unknown."""
    caption_tokens: int | None
    """Number of tokens to which captions are truncated; null: max_token_length."""
    data: Literal["images", "texts"]
    """The kind of dataset that it is trained on."""
    language_model: str | None
    """Description of a language model: architecture, number of parameters, size."""
    problem: str | None
    hint: str | None


class ListedCheckpoint(CheckpointSummary):
    """`seen`: whether its header has been read."""

    id: str
    title: str
    loaded: bool
    practice: bool
    seen: bool


class LoadedView(CheckpointSummary):
    """The checkpoint, VAE and clip skip that the host uses."""

    id: str
    title: str
    in_memory: bool
    vae: str | None
    clip_skip: int | None


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """A checkpoint to train on, with the VAE and clip skip that the host uses."""

    id: str
    title: str
    path: Path
    vae: Path | None = None
    clip_skip: int | None = None
    """None: unknown."""
    is_loaded: bool = False
    """Whether the host uses it for the next image."""
    in_memory: bool = False
    """Whether the host has it in memory."""

    @property
    def is_practice(self) -> bool:
        return self.id == PRACTICE


@dataclass(frozen=True, kw_only=True)
class LanguageFacts:
    """Facts about a language model. longest: its context length in tokens, if stated."""

    kind: str
    parameters: int
    byte_count: int
    longest: int | None

    def words(self) -> Message:
        """A description in one line."""
        return Message(
            "Language model, {kind}, {parameters} parameters, {size}",
            {
                "kind": self.kind,
                "parameters": _count_words(self.parameters),
                "size": size_of(self.byte_count),
            },
        )


def _count_words(count: int) -> Message:
    for limit, template in ((1e9, "{count} billion"), (1e6, "{count} million")):
        if count >= limit:
            return Message(template, {"count": f"{count / limit:.3g}"})
    return Message("{count}", {"count": f"{count:,}"})


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Facts from a checkpoint's header; with a `problem`, the others are meaningless."""

    family: Family | None = None
    prediction_type: PredictionType | None = None
    stated_resolution: int | None = None
    has_vae: bool = True
    is_distilled: bool = False
    licence: Licence | None = None
    language: LanguageFacts | None = None
    """Of a language model; it has no family."""
    notes: tuple[Message, ...] = ()
    """Warnings about it."""
    problem: Message | None = None
    hint: Message = field(default_factory=lambda: Message(""))

    @classmethod
    def refused(cls, error: CheckpointError) -> CheckpointFacts:
        """For an unusable file. Paths are reduced to file names, because remote users may see the
        list.
        """
        values = _named({**error.hint.values, **error.message.values})
        return cls(
            problem=Message(error.message.template, values),
            hint=Message(error.hint.template, values),
        )

    @property
    def training_adapter(self) -> TrainingAdapterKind | None:
        """The training adapter that it needs; None if it needs none."""
        return kind_for(self.family, is_distilled=self.is_distilled) if self.family else None

    @property
    def resolution(self) -> int | None:
        """Native resolution in pixels. None: unknown until the UNet is loaded (SD2)."""
        if self.family is None:
            return None
        return self.stated_resolution or self.family.native_resolution(self.prediction_type)

    def family_overlay(self) -> Overlay | None:
        """The packages that its family needs besides the worker's own; None if it needs none."""
        name = self.family.packages if self.family else ""
        return environment.find_family_overlay(name) if name else None

    def require(self) -> CheckpointFacts:
        """Returns self; raises CheckpointError if it cannot be trained on."""
        if self.problem is not None:
            raise CheckpointError(
                self.problem.template,
                hint=self.hint.template,
                **{**self.hint.values, **self.problem.values},
            )
        return self


class Checkpoints:
    """Thread-safe. `file`: the cache on disk."""

    def __init__(self, host: Host, file: Path) -> None:
        self._host = host
        self.language_models = LanguageModels(host, file.with_name("language_models.json"))
        self._cache = FactCache(file, _is_sound)
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def choices(self) -> list[CheckpointChoice]:
        """In the host's order, then the embedded checkpoint, then language models."""
        loaded = self._host.loaded()
        now = loaded.path if loaded is not None else None
        clip_skip = self._host.clip_skip()
        found = [
            CheckpointChoice(
                id=_id(entry.path),
                title=entry.title,
                path=entry.path,
                clip_skip=clip_skip,
                is_loaded=entry.path == now,
            )
            for entry in self._host.checkpoints()
        ]
        return [
            *found,
            *(
                [
                    CheckpointChoice(
                        id=PRACTICE, title=str(PRACTICE_TITLE), path=EMBEDDED, clip_skip=1
                    )
                ]
                if EMBEDDED.exists()
                else []
            ),
            *(
                CheckpointChoice(id=_id(model.path), title=model.title, path=model.path)
                for model in self.language_models.folders()
            ),
        ]

    def open(self, folder: str) -> str:
        """Add a typed folder of a language model, or of several. Returns the id of the first.
        Raises CheckpointError if it has none that can be trained on.
        """
        return _id(self.language_models.open(folder)[0].path)

    def find(self, wanted: str) -> CheckpointChoice:
        """The checkpoint of an id. Raises CheckpointError if the host does not list it, or has none
        loaded.
        """
        loaded = self._host.loaded()
        if wanted == LOADED:
            if loaded is None:
                raise CheckpointError(
                    "the WebUI has no checkpoint loaded",
                    hint="Choose one here, or load one at the top of the WebUI.",
                )
            return self._as_loaded(_id(loaded.path), loaded)
        choice = next((choice for choice in self.choices() if choice.id == wanted), None)
        if choice is None:
            raise CheckpointError(
                "the WebUI no longer lists this checkpoint",
                hint="Reload the list, and choose another.",
            )
        return (
            self._as_loaded(choice.id, loaded)
            if choice.is_loaded and loaded is not None
            else choice
        )

    def family_of(self, path: Path) -> Family | None:
        """The family of a checkpoint; None if it cannot be trained on."""
        return self.facts(path).family

    def facts(self, path: Path) -> CheckpointFacts:
        """The cached facts, else from its header."""
        try:
            mark = _mark(path)
        except OSError as error:
            return CheckpointFacts(
                problem=Message(
                    "{path} cannot be read: {reason}",
                    {"path": path.name, "reason": error.strerror or str(error)},
                ),
                hint=Message("Check the permissions and the disk."),
            )
        known = self._known(path, mark)
        return known if known is not None else self._look(path, mark)

    def parts(self, choice: CheckpointChoice) -> FoundParts | None:
        """The text encoders and VAE of a checkpoint that may be in files of their own: those that
        the host uses, or that are in its folders. None for a family whose files are complete.
        Raises CheckpointError.
        """
        family = self.family_of(choice.path)
        if family is None or not family.part_kinds or choice.path.is_dir():
            return None
        return find_parts(
            choice.path,
            detect_file(choice.path),
            in_use=self._host.part_files(),
            folders=self._host.part_folders(),
        )

    def listing(self, language: str) -> list[ListedCheckpoint]:
        """All choices as JSON. Those not read yet have no family."""
        choices = self.choices()
        answer: list[ListedCheckpoint] = []
        unseen: list[Path] = []
        for choice in choices:
            facts = self._known_or_none(choice.path)
            if facts is None:
                unseen.append(choice.path)
            title = texts.render(PRACTICE_TITLE, language) if choice.is_practice else choice.title
            answer.append(
                {
                    "id": choice.id,
                    "title": title,
                    "loaded": choice.is_loaded,
                    "practice": choice.is_practice,
                    "seen": facts is not None,
                    **summarize(facts or CheckpointFacts(), language),
                }
            )
        if unseen:
            self._read_in_thread(unseen)
        return answer

    def loaded(self, language: str) -> LoadedView | None:
        """What the host uses, as JSON, or None."""
        try:
            choice = self.find(LOADED)
        except CheckpointError:
            return None
        return {
            "id": choice.id,
            "title": choice.title,
            "in_memory": choice.in_memory,
            "vae": choice.vae.name if choice.vae else None,
            "clip_skip": choice.clip_skip,
            **summarize(self.facts(choice.path), language),
        }

    def wait(self) -> None:
        """Wait for the thread. For tests."""
        thread = self._reader
        if thread is not None:
            thread.join()

    def _as_loaded(self, identity: str, loaded: LoadedCheckpoint) -> CheckpointChoice:
        return CheckpointChoice(
            id=identity,
            title=loaded.title,
            path=loaded.path,
            vae=loaded.vae,
            clip_skip=loaded.clip_skip,
            is_loaded=True,
            in_memory=loaded.in_memory,
        )

    def _known_or_none(self, path: Path) -> CheckpointFacts | None:
        try:
            return self._known(path, _mark(path))
        except OSError:
            return self.facts(path)

    def _known(self, path: Path, mark: list[int]) -> CheckpointFacts | None:
        entry = self._cache.get(path, mark)
        return _from_entry(entry) if entry is not None else None

    def _look(self, path: Path, mark: list[int], *, write: bool = True) -> CheckpointFacts:
        facts = read_facts(path)
        self._cache.put(path, mark, _to_entry(facts))
        if write:
            self._cache.write()
        return facts

    def _read_in_thread(self, paths: list[Path]) -> None:
        with self._lock:
            if self._reader is not None and self._reader.is_alive():
                return
            self._reader = threading.Thread(
                target=self._read_all,
                args=(paths,),
                name="lora-trainer-checkpoints",
                daemon=True,
            )
            self._reader.start()

    def _read_all(self, paths: list[Path]) -> None:
        for path in paths:
            try:
                self._look(path, _mark(path), write=False)
            except Exception:
                log.exception("looking at %s", path)
        self._cache.write()


def read_facts(path: Path) -> CheckpointFacts:
    """Read the facts from a file's header."""
    try:
        if is_language_model(path):
            model = read_folder(path)
            weight = model.weigh()
            return CheckpointFacts(
                language=LanguageFacts(
                    kind=model.kind,
                    parameters=weight.parameters,
                    byte_count=weight.byte_count,
                    longest=model.longest,
                )
            )
        found: Detected = detect_any(path)
    except CheckpointError as error:
        return CheckpointFacts.refused(error)
    return CheckpointFacts(
        family=found.family,
        prediction_type=found.prediction_type,
        stated_resolution=found.resolution,
        has_vae=found.has_vae,
        is_distilled=found.is_distilled,
        licence=found.licence,
        notes=tuple(Message(note.template, _named(note.values)) for note in found.notes),
    )


def summarize(facts: CheckpointFacts, language: str) -> CheckpointSummary:
    """The facts as JSON."""
    steps, cfg = (
        facts.family.webui_sampling(is_distilled=facts.is_distilled)
        if facts.family
        else (None, None)
    )
    return {
        "family": facts.family.id if facts.family else None,
        "family_name": facts.family.name if facts.family else None,
        "resolution": facts.resolution,
        "steps": steps,
        "cfg": cfg,
        "caption_tokens": facts.family.caption_tokens if facts.family else None,
        "data": "texts" if facts.language else "images",
        "language_model": texts.render(facts.language.words(), language)
        if facts.language
        else None,
        "problem": texts.render(facts.problem, language) if facts.problem else None,
        "hint": texts.render(facts.hint, language) if facts.problem else None,
    }


def _id(path: Path) -> str:
    return hashlib.blake2b(
        str(path).encode("utf-8", errors="surrogatepass"), digest_size=9
    ).hexdigest()


def _mark(path: Path) -> list[int]:
    """Modification times and sizes of the file (model_index.json of a diffusers folder), and of
    the files beside it that are read with it. Raises OSError.
    """
    if is_language_model(path):
        of_model = (path / "config.json", *sorted(path.glob("*.safetensors")))
        tokenizers = sum((path / name).is_file() for name in TOKENIZER_FILES)
        stamps = [file.stat() for file in of_model]
        return [tokenizers, *(n for one in stamps for n in (one.st_mtime_ns, one.st_size))]
    main = path / "model_index.json" if path.is_dir() else path
    mark = []
    for file in (main, path.with_suffix(".yaml"), *companions(path)):
        try:
            details = file.stat()
            mark += [details.st_mtime_ns, details.st_size]
        except FileNotFoundError:
            if file == path:
                raise
    return mark


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-compatible values, with paths reduced to file names."""
    plain = {key: value.name if isinstance(value, Path) else value for key, value in values.items()}
    return {
        key: value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
        for key, value in plain.items()
    }


def _to_entry(facts: CheckpointFacts) -> dict[str, Any]:
    if facts.problem is not None:
        return {
            "problem": facts.problem.template,
            "values": facts.problem.values,
            "hint": facts.hint.template,
            "hint_values": facts.hint.values,
        }
    return {
        "family": facts.family.id if facts.family else None,
        "prediction_type": facts.prediction_type,
        "stated_resolution": facts.stated_resolution,
        "has_vae": facts.has_vae,
        "is_distilled": facts.is_distilled,
        "notes": [[note.template, note.values] for note in facts.notes],
        "licence": asdict(facts.licence) if facts.licence else None,
        "language": asdict(facts.language) if facts.language else None,
    }


def _from_entry(entry: Mapping[str, Any]) -> CheckpointFacts:
    if "problem" in entry:
        return CheckpointFacts(
            problem=Message(entry["problem"], entry["values"]),
            hint=Message(entry["hint"], entry["hint_values"]),
        )
    licence = entry["licence"]
    if language := entry.get("language"):
        return CheckpointFacts(language=LanguageFacts(**language))
    return CheckpointFacts(
        family=families.find(entry["family"]),
        prediction_type=entry["prediction_type"],
        stated_resolution=entry["stated_resolution"],
        has_vae=entry["has_vae"],
        is_distilled=entry["is_distilled"],
        notes=tuple(Message(template, values) for template, values in entry["notes"]),
        licence=licence and Licence(name=licence["name"], restrictions=_known(licence)),
    )


def _known(licence: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key in RESTRICTIONS if key in licence["restrictions"])


def _is_sound(entry: Any) -> bool:
    """Whether the entry is valid: the cache file may be damaged."""
    try:
        facts = _from_entry(entry)
        written = f"{facts.problem}{facts.hint}{facts.resolution}"
        written += "".join(map(str, facts.notes))
        kinds = isinstance(facts.stated_resolution, int | None) and facts.prediction_type in (
            None,
            *get_args(PredictionType),
        )
        if facts.language is not None:
            written += str(facts.language.words())
        found = (
            (facts.family is not None or facts.language is not None)
            and kinds
            and isinstance(facts.has_vae, bool)
            and isinstance(facts.is_distilled, bool)
        )
        return bool(written) and "mark" in entry and (found or facts.problem is not None)
    except files.UNREADABLE:
        return False
