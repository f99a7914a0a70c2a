"""Turns the tab's draft into a run's settings, and computes the run's plan.

    preflight.run_config(request) -> RunConfig
        for POST /runs: complete except for its folder and the `auto`s that the worker resolves
    preflight.check(request, pending) -> PreflightReport
        for POST /plan: checkpoint, images, steps, time, disk space, file name, and all problems
        with their fields; does not raise for invalid input

The numbers are from run_estimate.py; images and captions are scanned as in the worker
(scan_cache.py). Fast enough for each keystroke: only headers of checkpoints are read, and images
are decoded in the background (image_cache.py).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, Literal, TypedDict

from lora_trainer.checkpoint.licence import HINT as LICENCE_HINT
from lora_trainer.checkpoint.part_files import FoundParts
from lora_trainer.checkpoint.parts import TrainingAdapterKind
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.findings import Kind, Severity, Sum, in_order, sums
from lora_trainer.dataset.scan import Dataset
from lora_trainer.dataset.syntax import prompt_syntax
from lora_trainer.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    LoraFileError,
    LoraTrainerError,
    Message,
    SetupError,
)
from lora_trainer.families.base import Family
from lora_trainer.families.refusals import refused, remarks
from lora_trainer.hosts.base import Host, Memory
from lora_trainer.hosts.gpu_lease import LeaseStatus
from lora_trainer.lora.changes import open_changes
from lora_trainer.lora.deliver import clean_name
from lora_trainer.lora.host_layers import HOST_NAMES, hosts_of, loads
from lora_trainer.lora.training_adapter import find_adapter, missing
from lora_trainer.planner.plan import Plan as MemoryPlan
from lora_trainer.planner.plan import process_count
from lora_trainer.planner.throughput import Throughput
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.optimizers import OPTIMIZERS
from lora_trainer.webui import texts
from lora_trainer.webui.common import form
from lora_trainer.webui.common.data_folder import DataFolder, NotFound, name_problem
from lora_trainer.webui.common.units import duration, size_of
from lora_trainer.webui.datasets import token_counts
from lora_trainer.webui.datasets.registry import DatasetInfo, Datasets
from lora_trainer.webui.loras.library import Loras
from lora_trainer.webui.settings import text_preflight
from lora_trainer.webui.settings.checkpoints import (
    LOADED,
    PRACTICE_TITLE,
    CheckpointChoice,
    CheckpointFacts,
    Checkpoints,
)
from lora_trainer.webui.settings.image_cache import ImageCache
from lora_trainer.webui.settings.rehearsals import Rehearsals
from lora_trainer.webui.settings.run_estimate import RunEstimate
from lora_trainer.webui.settings.scan_cache import CachedScan, ScanCache

NAMED_PER_KIND = 3
"""Findings per kind that are named; the others are counted."""
HELD_SECONDS = 5.0
NO_HINT = Message("")
FACTS: form.Texts = {
    "checkpoint": "Checkpoint",
    "vae": "VAE",
    "training_adapter": "Training adapter",
    "images": "Images",
    "validation": "Validation",
    "steps": "Steps",
    "resolution": "Resolution",
    "lora": "LoRA",
    "time": "Time",
    "memory": "Memory",
    "disk": "Disk",
    "goes_to": "Saved as",
    "model": "Model",
    "texts": "Texts",
    "length": "Length",
    "layers": "Layers",
}


class PlanBase(TypedDict):
    """Ids, the LoRA's name as typed, and config keys -> values."""

    dataset: str
    checkpoint: str
    name: str
    settings: dict[str, Any]


class PlanBody(PlanBase, total=False):
    """`init_lora`: the id of a LoRA file to start from."""

    init_lora: str


class RunBody(PlanBody):
    token: str
    when: Literal["now", "queue"]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The browser's draft."""

    dataset: str = ""
    """A dataset's id."""
    checkpoint: str = LOADED
    """A checkpoint's id, or "loaded"."""
    init_lora: str = ""
    """The id of a LoRA file to start from, or ""."""
    name: str = ""
    """The LoRA's name as typed; empty: the dataset's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config keys -> values of form fields."""

    @classmethod
    def of(cls, body: Any) -> PlanRequest:
        """From a request's JSON; values of a wrong type are ignored."""
        values = body if isinstance(body, dict) else {}
        texts_given = {
            key: values[key]
            for key in ("dataset", "checkpoint", "init_lora", "name")
            if isinstance(values.get(key), str)
        }
        chosen = values.get("settings")
        return cls(**texts_given, settings=dict(chosen) if isinstance(chosen, dict) else {})

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that are fields of the form."""
        return {key: value for key, value in self.settings.items() if key in form.KEYS}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An error, warning or hint, with its place: a form field's key, "dataset", "checkpoint",
    "init_lora" or "name"; None: none of these.
    """

    field: str | None
    severity: Severity
    message: Message
    hint: Message = NO_HINT
    change: Mapping[str, Any] | None = None
    """Settings that solve it, offered as a button: config keys -> values."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    label: str
    """English; the key of a translation."""
    value: Message | str


class FactView(TypedDict):
    label: str
    value: str


class PlanProblem(TypedDict):
    """`field`: its place: a setting's key, "dataset", "checkpoint", "name", or null. `change`:
    settings that solve it, config keys -> values; empty if there are none.
    """

    field: str | None
    severity: Severity
    message: str
    hint: str
    change: dict[str, Any]


class PlanView(TypedDict):
    """The plan of a run. `resolved`: config key -> value for auto; `suggested`: config key -> value
    that is filled in until the user changes it.
    """

    ok: bool
    sentence: str
    facts: list[FactView]
    problems: list[PlanProblem]
    target: str
    steps: int | None
    seconds: float | None
    disk: int | None
    resolved: dict[str, Any]
    suggested: dict[str, Any]
    unchecked: int


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """The plan of a run."""

    sentence: tuple[Message, ...] = ()
    facts: tuple[Fact, ...] = ()
    problems: tuple[Problem, ...] = ()
    target: str = ""
    """Path of the LoRA, relative to the folder that contains models."""
    steps: int | None = None
    seconds: float | None = None
    """None: unknown, without an earlier run of the same kind."""
    disk: int | None = None
    """Approximate number of bytes."""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """Config key -> value for auto."""
    suggested: Mapping[str, Any] = field(default_factory=dict)
    """Config key -> value that the tab fills in until the user changes it: a preview prompt."""
    unchecked: int = 0
    """Images that have not been decoded yet; ask again."""

    @property
    def ok(self) -> bool:
        return self.steps is not None and not any(
            problem.severity == "error" for problem in self.problems
        )

    def to_json(self, language: str) -> PlanView:
        return {
            "ok": self.ok,
            "sentence": texts.render_all(self.sentence, language),
            "facts": [
                {
                    "label": texts.translate(fact.label, language),
                    "value": _said(fact.value, language),
                }
                for fact in self.facts
            ],
            "problems": [
                {
                    "field": problem.field,
                    "severity": problem.severity,
                    "message": texts.render(problem.message, language),
                    "hint": texts.render(problem.hint, language),
                    "change": dict(problem.change or {}),
                }
                for problem in self.problems
            ],
            "target": self.target,
            "steps": self.steps,
            "seconds": self.seconds,
            "disk": self.disk,
            "resolved": dict(self.resolved),
            "suggested": dict(self.suggested),
            "unchecked": self.unchecked,
        }


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """A request with its dataset and checkpoint."""

    request: PlanRequest
    dataset: DatasetInfo
    choice: CheckpointChoice
    facts: CheckpointFacts

    @property
    def is_of_texts(self) -> bool:
        """Whether it is a training on texts."""
        return self.dataset.kind == "texts"

    @property
    def has_separate_parts(self) -> bool:
        """Whether parts of the checkpoint may be in separate files."""
        family = self.facts.family
        return family is not None and bool(family.part_kinds) and self.choice.path.is_file()

    @property
    def name(self) -> str:
        """The name as typed, which may be invalid; else derived from the dataset's name."""
        return self.request.name.strip() or clean_name(self.dataset.name)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Evaluates requests with this WebUI's device, folders, datasets, checkpoints, throughput."""

    host: Host
    data: DataFolder
    datasets: Datasets
    checkpoints: Checkpoints
    image_cache: ImageCache
    scans: ScanCache
    throughput: Throughput
    loras: Loras
    rehearsals: Rehearsals = field(default_factory=Rehearsals)
    lease: Callable[[], LeaseStatus] | None = None
    """Returns the status of the GPU lease."""

    def run_config(self, request: PlanRequest) -> RunConfig:
        """The run's settings; its folder, named after the LoRA, may exist. Raises ConfigError,
        DatasetError, CheckpointError.
        """
        draft = self._select(request)
        draft.facts.require()
        if mismatch := _mismatch(draft.dataset, draft.facts):
            raise CheckpointError(mismatch.message.template, hint=mismatch.hint.template)
        return settings.from_mapping(self._values(draft), source="the settings")

    def check(self, request: PlanRequest, pending: Iterable[str] = ()) -> PreflightReport:
        """The plan for this request, with all problems. `pending`: LoRA names of the runs queued
        before it.
        """
        problems: list[Problem] = []
        try:
            draft = self._select(request)
        except LoraTrainerError:
            return PreflightReport(problems=tuple(self._without_a_choice(request)))
        if draft.facts.problem is not None:
            problems.append(_checkpoint_problem(draft.facts))
        elif mismatch := _mismatch(draft.dataset, draft.facts):
            return PreflightReport(problems=(mismatch,))
        if draft.is_of_texts:
            return self._check_texts(draft, problems)
        try:
            values = self._values(draft)
        except NotFound as error:
            problems.append(_problem_of("init_lora", error))
            values = self._values(replace(draft, request=replace(request, init_lora="")))
        asked = _with_init_lora(_settings(values, problems), draft.facts, problems)
        problems += _host_problems(self.host, draft, asked)
        problems += _loading_problems(self.host, draft)
        problems += self._part_problems(draft)
        problems += _family_problems(draft, asked)
        problems += _licence_problems(draft)
        problems += self._distillation_problems(draft)
        problems += _package_problems(draft.facts)
        found = self._scan(request.dataset, asked, problems, draft.facts.family)
        if found is None or draft.facts.problem is not None:
            return PreflightReport(
                problems=tuple(problems), facts=tuple(_checkpoint_facts(draft, asked))
            )
        estimate = RunEstimate(asked, found.dataset, draft.choice.path, draft.facts)
        return self._plan(draft, found, estimate, pending, problems)

    def _select(self, request: PlanRequest) -> _Selection:
        """Raises DatasetError, CheckpointError."""
        dataset = self._dataset(request.dataset)
        choice = self.checkpoints.find(request.checkpoint)
        facts = self.checkpoints.facts(choice.path)
        return _Selection(request=request, dataset=dataset, choice=choice, facts=facts)

    def _dataset(self, identity: str) -> DatasetInfo:
        """Raises DatasetError if none is chosen, or it is missing."""
        if not identity:
            raise DatasetError("no dataset is chosen", hint="Add images or texts first.")
        dataset = self.datasets.find(identity)
        if not dataset.path.is_dir():
            hint = "It may have been moved, or be on a disk that is not connected."
            raise DatasetError("the folder {path} no longer exists", hint=hint, path=dataset.path)
        return dataset

    def _values(self, draft: _Selection) -> dict[str, Any]:
        """Flat config keys. Only form fields are taken from the browser: other keys are paths."""
        chosen = draft.request.chosen
        # an invalid folder name is reported by the settings' validation
        folder = "run" if name_problem(draft.name) else draft.name
        common = {
            "train_data_dir": draft.dataset.path,
            "base_model": draft.choice.path,
            "name": draft.name,
            "output_dir": self.data.folder("runs") / folder,
        }
        if draft.is_of_texts:
            return {**text_preflight.chosen_values(chosen), **common}
        family = draft.facts.family
        applies = family is None or family.has_clip_skip
        if "clip_skip" not in chosen and draft.choice.clip_skip and applies:
            chosen["clip_skip"] = draft.choice.clip_skip
        return {
            **{key: value for key, value in chosen.items() if key not in form.ONLY_FOR_TEXTS},
            **common,
            **self._part_values(draft),
            "training_adapter": self._training_adapter(draft),
            "init_lora": self.loras.file(lora) if (lora := draft.request.init_lora) else None,
            "lora_dir": self.host.paths().lora_dir,
            "webui": self.host.kind if self.host.kind in HOST_NAMES else None,
        }

    def _part_values(self, draft: _Selection) -> dict[str, Any]:
        """text_encoders, vae and tokenizers: those that the host uses, or that it has."""
        if not draft.has_separate_parts:
            return {"vae": _usable_vae(draft.choice)}
        found = self._parts(draft)
        if isinstance(found, CheckpointError):
            return {}
        apart = [one for one in found.files.values() if one.path != draft.choice.path]
        return {
            "text_encoders": [one.path for one in apart if one.kind.part == "text encoder"] or None,
            "vae": next((one.path for one in apart if one.kind.part == "VAE"), None),
            "tokenizers": self.host.tokenizer_folder(),
        }

    def _parts(self, draft: _Selection) -> FoundParts | CheckpointError:
        try:
            found = self.checkpoints.parts(draft.choice)
        except CheckpointError as error:
            return error
        return found or FoundParts(path=draft.choice.path)

    def _part_problems(self, draft: _Selection) -> Iterator[Problem]:
        """Parts in files of their own that are missing."""
        if not draft.has_separate_parts:
            return
        found = self._parts(draft)
        try:
            if isinstance(found, CheckpointError):
                raise found
            found.require()
        except CheckpointError as error:
            yield _problem_of("checkpoint", error)

    def _training_adapter(self, draft: _Selection) -> Path | None:
        """The training adapter that this checkpoint needs, if it is found; _distillation_problems
        reports errors.
        """
        try:
            return self._find_training_adapter(draft)
        except LoraFileError:
            return None

    def _find_training_adapter(self, draft: _Selection) -> Path | None:
        """Raises LoraFileError for one that cannot be used."""
        kind, family = draft.facts.training_adapter, draft.facts.family
        if kind is None or family is None:
            return None
        moment = int(time.monotonic() / HELD_SECONDS)
        folders = tuple(self.host.lora_folders())
        return _held_training_adapter(draft.choice.path, family, kind, folders, moment)

    def _distillation_problems(self, draft: _Selection) -> Iterator[Problem]:
        """Warnings about a checkpoint that was distilled to few steps."""
        for note in draft.facts.notes:
            yield Problem(field="checkpoint", severity="warning", message=note)
        kind = draft.facts.training_adapter
        if kind is None:
            return
        try:
            if self._find_training_adapter(draft) is None:
                message, hint = missing(draft.choice.path, kind)
                yield Problem(field="checkpoint", severity="warning", message=message, hint=hint)
        except LoraFileError as error:
            yield _problem_of("checkpoint", error)

    def _without_a_choice(self, request: PlanRequest) -> list[Problem]:
        """The problems if images or checkpoint are not chosen: that, and those of everything
        else.
        """
        problems: list[Problem] = []
        folder, of_texts = None, False
        try:
            dataset = self._dataset(request.dataset)
            folder, of_texts = dataset.path, dataset.kind == "texts"
        except LoraTrainerError as error:
            problems.append(_problem_of("dataset", error))
        try:
            facts = self.checkpoints.facts(self.checkpoints.find(request.checkpoint).path)
            if facts.problem is not None:
                problems.append(_checkpoint_problem(facts))
        except LoraTrainerError as error:
            problems.append(NO_MODEL if of_texts else _problem_of("checkpoint", error))
        asked = _settings(
            {
                **request.chosen,
                "name": request.name.strip(),
                "train_data_dir": folder or ".",
                "base_model": ".",
                "output_dir": "run",
            },
            problems,
        )
        if folder is not None and not of_texts:
            self._scan(request.dataset, asked, problems)
        return problems

    def _scan(
        self,
        identity: str,
        asked: RunConfig,
        problems: list[Problem],
        family: Family | None = None,
    ) -> CachedScan | None:
        """The examples as the worker would find them; findings are added to the problems. None:
        nothing to train.
        """
        try:
            # tokens are counted with the same vocabulary as in training; without one, only the
            # worker checks caption lengths
            count = token_counts.count if token_counts.available() else None
            found = self.scans.scan(
                self.datasets.store(identity),
                asked.dataset,
                count,
                family.longest_caption(asked.checkpoint.max_token_length)
                if family is not None
                else asked.checkpoint.max_token_length,
            )
        except DatasetError as error:
            findings = error.message.values.get("findings")
            if findings:
                problems += _sum_problems(sums(findings), asked, family)
            if not findings or not any(problem.severity == "error" for problem in problems):
                problems.append(_problem_of("dataset", error))
            return None
        of_prompts = sums(prompt_syntax(asked.samples.sample_prompts))
        problems += _sum_problems(in_order([*found.sums, *of_prompts]), asked, family)
        return found

    def _plan(
        self,
        draft: _Selection,
        found: CachedScan,
        estimate: RunEstimate,
        pending: Iterable[str],
        problems: list[Problem],
    ) -> PreflightReport:
        """The plan for a valid checkpoint and images."""
        dataset, settled = found.dataset, estimate.settled
        of_buckets = found.bucket_sums(
            estimate.divided.trained.examples,
            estimate.buckets,
            settled.dataset,
            estimate.resolution,
        )
        problems += _sum_problems(of_buckets, settled)
        problems += _number_problems(draft, estimate)
        seconds = estimate.seconds(self.throughput)
        disk = estimate.disk_bytes
        target = estimate.target(draft.name, pending)
        problems += _disk_problems(self.data.folder("runs"), disk)
        memory = self._memory(estimate)
        if memory is not None:
            problems += _memory_problems(memory)
        return PreflightReport(
            sentence=tuple(_sentence(draft, estimate, seconds, disk, target)),
            facts=(
                *_checkpoint_facts(draft, settled),
                *_facts(estimate, seconds, memory, disk, target),
            ),
            problems=tuple(problems),
            target=target,
            steps=estimate.steps,
            seconds=seconds,
            disk=disk,
            resolved=estimate.resolved,
            suggested={
                "sample_prompts": [variants(example.caption)[0] for example in dataset.examples[:1]]
            },
            unchecked=self.image_cache.unchecked(example.path for example in dataset.examples),
        )

    def _check_texts(self, draft: _Selection, problems: list[Problem]) -> PreflightReport:
        """The plan of a training on texts."""
        asked = _settings(self._values(draft), problems)
        problems += _device_problems(self.host, asked)
        try:
            plan = text_preflight.text_plan(
                asked, self.datasets.texts(draft.dataset.id), draft.facts, self.rehearsals
            )
        except DatasetError as error:
            return PreflightReport(problems=(*problems, _problem_of("dataset", error)))
        problems += _sum_problems(text_preflight.summed(plan), asked)
        problems += map(_setting_problem, text_preflight.number_problems(plan))
        rehearsal = plan.rehearsal
        if rehearsal is not None and rehearsal.error is not None:
            problems.append(_rehearsal_problem(rehearsal.error))
        has_errors = any(problem.severity == "error" for problem in problems)
        disk = plan.disk_bytes(draft.facts)
        model = draft.choice.path.name
        facts = (
            [Fact(label=FACTS["model"], value=draft.facts.language.words())]
            if (draft.facts.language)
            else []
        )
        facts += [
            Fact(label=FACTS[key], value=value)
            for key, value in text_preflight.facts_of(plan, disk)
        ]
        if plan.steps is not None:
            problems += _disk_problems(self.data.folder("runs"), disk)
        return PreflightReport(
            sentence=tuple(text_preflight.sentence(plan, draft.name, model, disk)),
            facts=tuple(facts),
            problems=tuple(problems),
            steps=plan.steps,
            disk=disk,
            resolved=plan.resolved,
            suggested=text_preflight.suggested(plan),
            unchecked=len(plan.view.items) if rehearsal is None and not has_errors else 0,
        )

    def _memory(self, estimate: RunEstimate) -> MemoryPlan | None:
        """The memory of the run on the WebUI's graphics card; None if one of them is unknown."""
        card = self.host.memory()
        if card is None or not estimate.settled.training.device.startswith(("auto", "cuda")):
            return None
        cards = self.host.device().count
        return estimate.memory(self._free_for_training(card), cards)

    def _free_for_training(self, card: Memory) -> int:
        """Free bytes of the card after the host has unloaded its model: the last measured value
        while it is unloading or a training runs.
        """
        lease = self.lease() if self.lease else None
        if lease is not None and lease.state != "idle":
            return lease.after.free if lease.after else card.total
        return min(card.total, card.free + card.leaving)


@lru_cache(maxsize=4)
def _held_training_adapter(
    checkpoint: Path,
    family: Family,
    kind: TrainingAdapterKind,
    folders: tuple[Path, ...],
    _moment: int,
) -> Path | None:
    """The path of the training adapter, cached for HELD_SECONDS: LoRA folders may hold thousands of
    files.
    """
    found = find_adapter(checkpoint, family, kind, folders)
    return found.header.path if found else None


def _usable_vae(choice: CheckpointChoice) -> Path | None:
    return (
        choice.vae
        if choice.vae is not None and choice.vae.suffix.lower() == ".safetensors"
        else None
    )


def _settings(values: Mapping[str, Any], problems: list[Problem]) -> RunConfig:
    """The settings, with defaults for invalid ones, so that everything else can still be
    checked.
    """
    try:
        return settings.from_mapping(values)
    except ConfigError as error:
        problems += [_setting_problem(problem) for problem in error.problems]
    wrong = {problem.field for problem in problems}
    kept = {key: value for key, value in values.items() if key not in wrong}
    try:
        return settings.from_mapping({**kept, "name": "" if "name" in wrong else values["name"]})
    except ConfigError:
        return settings.from_mapping(
            {
                key: value
                for key, value in values.items()
                if key in form.CHOSEN_ELSEWHERE and key != "name"
            }
        )


def _problem(
    place: str | None, severity: Severity, template: str, *, hint: str, **values: Any
) -> Problem:
    return Problem(
        field=place, severity=severity, message=Message(template, values), hint=Message(hint)
    )


NO_MODEL = _problem(
    "checkpoint",
    "error",
    "no language model is chosen; a dataset of texts needs one",
    hint="Choose one, or open the folder of one.",
)


def _checkpoint_problem(facts: CheckpointFacts) -> Problem:
    assert facts.problem is not None
    return Problem(field="checkpoint", severity="error", message=facts.problem, hint=facts.hint)


def _setting_problem(error: ConfigError) -> Problem:
    """With the field that a ConfigError names in its values or text, and its label instead of the
    key.
    """
    words = [
        str(error.message.values.get("key", "")),
        *error.message.template.replace(":", " ").split(),
    ]
    key = next((word for word in words if word in form.PLACES), "")
    values = dict(error.message.values)
    if "key" in values and key in form.LABELS:
        values["key"] = Message(form.LABELS[key])
    return Problem(
        field=form.PLACES.get(key),
        severity="error",
        message=Message(error.message.template, values),
        hint=error.hint,
    )


def _with_init_lora(asked: RunConfig, facts: CheckpointFacts, problems: list[Problem]) -> RunConfig:
    """The settings with rank and alpha of init_lora, if they are auto."""
    if asked.lora.init_lora is None:
        return asked
    try:
        changes = open_changes(asked.lora.init_lora)
        if facts.family is not None:
            changes.require_family(facts.family)
    except LoraFileError as error:
        problems.append(_problem_of("init_lora", error))
        return asked
    usual, rank = changes.usual(convolutions=False), asked.lora.lora_rank
    if usual is not None and rank is not None and rank < usual.rank:
        problems.append(
            Problem(
                field="lora_rank",
                severity="warning",
                message=Message(
                    "{file} has rank {theirs}; rank {ours} cannot hold all of it",
                    {"file": changes.name, "theirs": usual.rank, "ours": rank},
                ),
                hint=Message("Set the rank to auto, or higher."),
            )
        )
    return asked.replace(**changes.rank_and_alpha(asked.lora))


def _host_problems(host: Host, draft: _Selection, asked: RunConfig) -> Iterator[Problem]:
    """Conflicts with this WebUI: device, LoRA folder, VAE."""
    if asked.output.lora_dir is not None and not asked.output.lora_dir.is_dir():
        yield _problem(
            None,
            "error",
            "the WebUI's LoRA folder {folder} is missing",
            hint="Create this folder, or correct --lora-dir, and restart the WebUI.",
            folder=asked.output.lora_dir.name,
        )
    yield from _device_problems(host, asked)
    choice = draft.choice
    if draft.has_separate_parts:
        return
    if choice.vae is not None and _usable_vae(choice) is None:
        yield _problem(
            "checkpoint",
            "warning",
            "the WebUI's VAE {name} is a pickle; the one inside the checkpoint is used instead",
            hint="A pickle can run any program when opened. Use the VAE's .safetensors version.",
            name=choice.vae.name,
        )
    if draft.facts.problem is None and not draft.facts.has_vae and _usable_vae(choice) is None:
        yield _problem(
            "checkpoint",
            "error",
            "{name} contains no VAE",
            hint="Choose a VAE in the WebUI's settings, then this checkpoint as the loaded one.",
            name=choice.path.name,
        )


def _loading_problems(host: Host, draft: _Selection) -> Iterator[Problem]:
    """A checkpoint that this WebUI lists, but cannot load."""
    family = draft.facts.family
    if family is None or loads(host.kind, family.id) is not False:
        return
    others = ", ".join(HOST_NAMES[other] for other in hosts_of(family.id))
    yield Problem(
        field="checkpoint",
        severity="warning",
        message=Message(
            "{host} does not load {family} checkpoints: the LoRA can be trained here, but not used"
            " here",
            {"host": HOST_NAMES[host.kind], "family": family.name},
        ),
        hint=Message("WebUIs that load them: {others}.", {"others": others}),
    )


def _family_problems(draft: _Selection, asked: RunConfig) -> Iterator[Problem]:
    """Settings that do not fit the checkpoint's family."""
    family = draft.facts.family
    if family is None:
        return
    for error in refused(family, asked):
        yield _setting_problem(error)
    for remark, hint in remarks(family, asked):
        word = remark.template.split()[0]
        yield Problem(field=form.PLACES.get(word), severity="warning", message=remark, hint=hint)


def _device_problems(host: Host, asked: RunConfig) -> Iterator[Problem]:
    """Settings that do not work on the device."""
    on_cpu = asked.training.device == "cpu" or (
        asked.training.device == "auto" and host.device().kind == "cpu"
    )
    optimizer = OPTIMIZERS[asked.training.optimizer]
    if on_cpu and optimizer.device == "cuda":
        yield _problem(
            "optimizer",
            "error",
            "{optimizer} needs an NVIDIA card, and training runs on the CPU",
            hint="Use AdamW: a LoRA's optimizer state is small.",
            optimizer=optimizer.title,
        )
    processes = process_count(asked.training.devices, host.device().count)
    note = settings.uneven(asked.training, processes)
    if note is not None:
        rounds = -(-asked.training.batch_size // processes)
        yield Problem(
            field="batch_size",
            severity="warning",
            message=note,
            hint=Message(settings.UNEVEN_HINT, note.values),
            change={"batch_size": rounds * processes},
        )
    if on_cpu and asked.checkpoint.mixed_precision == "fp16":
        yield _problem(
            "mixed_precision",
            "error",
            "fp16 does not work on the CPU",
            hint="Use auto, bf16 or no.",
        )


def _mismatch(dataset: DatasetInfo, facts: CheckpointFacts) -> Problem | None:
    """A checkpoint that cannot be trained on this kind of dataset."""
    if dataset.kind == "texts" and facts.language is None:
        return NO_MODEL
    if dataset.kind == "images" and facts.language is not None:
        return _problem(
            "checkpoint",
            "error",
            "a language model is trained on texts, and these are images",
            hint="Choose a checkpoint, or a dataset of texts.",
        )
    return None


def _rehearsal_problem(error: LoraTrainerError) -> Problem:
    """An error of the dry run, at the setting that it names, if any."""
    values = {**error.hint.values, **error.message.values}
    problem = ConfigError(error.message.template, hint=error.hint.template, **values)
    found = _setting_problem(problem)
    place = found.field or form.PLACES.get(str(values.get("setting")))
    if place is None:
        return _problem_of("checkpoint", error)
    return replace(found, field=place, message=_without_folders(found.message))


def _package_problems(facts: CheckpointFacts) -> Iterator[Problem]:
    """Missing packages that the checkpoint's family needs besides the worker's own."""
    overlay = facts.family_overlay()
    if overlay is None or overlay.state == "ready":
        return
    try:
        overlay.require_torch()
    except SetupError as error:
        yield _problem_of("checkpoint", error)
        return
    yield _problem(
        "checkpoint",
        "info",
        "this kind of checkpoint needs newer libraries ({megabytes} MB), which are downloaded"
        " once, when training starts",
        hint="The WebUI's own packages are not changed.",
        megabytes=overlay.megabytes,
    )


def _licence_problems(draft: _Selection) -> Iterator[Problem]:
    """The restrictions of the checkpoint's licence."""
    licence = draft.facts.licence
    for note in licence.notes(draft.choice.path.stem) if licence else ():
        yield Problem(field="checkpoint", severity="warning", message=note, hint=LICENCE_HINT)


# --- images ---------------------------------------------------------------------------------------


def _sum_problems(
    summed: Iterable[Sum], asked: RunConfig, family: Family | None = None
) -> list[Problem]:
    """One problem per kind of finding, errors first."""
    skipped = asked.dataset.on_bad_data == "skip"
    has_word = bool(asked.dataset.trigger_word.strip())
    return [
        _summed_problem(
            one, "warning" if skipped else one.severity, has_word, _place_of(one.kind, family)
        )
        for one in summed
    ]


def _place_of(kind: Kind, family: Family | None) -> str:
    if kind == "long-caption" and family is not None and family.caption_tokens is not None:
        return "captions"  # max_token_length has no effect
    return FINDING_PLACES.get(kind, "dataset")


def _summed_problem(one: Sum, severity: Severity, has_word: bool, place: str) -> Problem:
    hint = one.hint
    if one.kind == "no-caption":
        # with a trigger word, images without captions are trained only if none has one
        hint = (
            Message("Write them under Captions, or let a captioner write a first draft.")
            if has_word
            else Message(
                "Write them under Captions. If no image has a caption, a trigger word is enough:"
                " it is used as the caption of each."
            )
        )
    return Problem(
        field=place,
        severity=severity,
        message=_without_folders(one.named(NAMED_PER_KIND)),
        hint=_without_folders(hint),
    )


FINDING_PLACES = {
    "no-caption": "captions",
    "trigger-word-caption": "trigger_word",
    "small-image": "resolution",
    "long-caption": "max_token_length",
    "prompt-syntax": "sample_prompts",
    "long-text": "max_length",
}
"""Kind of finding -> the field or section to fix it; others: the dataset."""


# --- numbers and sentences ------------------------------------------------------------------------


def _number_problems(draft: _Selection, estimate: RunEstimate) -> Iterator[Problem]:
    if estimate.divided.note is not None:
        yield Problem(
            field="validation_split",
            severity="warning",
            message=estimate.divided.note,
            hint=estimate.divided.hint,
        )
    try:
        settings.require_warmup_fits(estimate.settled.training, estimate.steps)
    except ConfigError as error:
        yield _setting_problem(error)
    native, resolution = draft.facts.resolution, estimate.resolution
    if native is not None and resolution < native * 3 // 4:
        yield _problem(
            "resolution",
            "warning",
            "this checkpoint was made for {native} pixels; at {resolution} it learns less detail",
            hint="Leave it at auto, unless memory is short.",
            native=native,
            resolution=resolution,
        )
    if estimate.weights == 0:
        yield _problem(
            "target_modules",
            "error",
            "no layer of the checkpoint has one of these names, so nothing would be trained",
            hint="Use the default, or: to_q, to_k, to_v, to_out.0",
        )


def _disk_problems(runs: Path, disk: int) -> Iterator[Problem]:
    try:
        free = shutil.disk_usage(runs).free
    except OSError:
        return
    if disk > free:
        yield _problem(
            None,
            "error",
            "the run needs about {needed} of disk space, and {free} are free",
            hint="Free some space, or keep fewer saved steps (Keep last N saves).",
            needed=size_of(disk),
            free=size_of(free),
        )


def _memory_problems(memory: MemoryPlan) -> Iterator[Problem]:
    values = {"needed": size_of(memory.peak), "card": size_of(memory.free or 0)}
    if memory.fits:
        if not memory.previews_fit:
            yield _problem(
                "sample_size",
                "warning",
                "a preview needs about {needed} of memory, and {card} are free on the graphics"
                " card; training continues without previews",
                hint="A smaller preview size needs less.",
                needed=size_of(memory.step.preview + memory.overhead),
                card=values["card"],
            )
        return
    message = Message(
        "the training needs about {needed} of memory, and {card} are free on the graphics card",
        values,
    )
    if memory.change is None:
        hint = Message("No setting makes it fit: choose a smaller checkpoint, or a lower rank.")
        yield Problem(field="checkpoint", severity="warning", message=message, hint=hint)
        return
    changed = memory.change.settings
    hint = Message(
        "It fits with these settings, and needs about {less}: {changes}.",
        {"less": size_of(memory.change.peak), "changes": _setting_words(changed)},
    )
    yield Problem(
        field=next(iter(changed)),
        severity="warning",
        message=message,
        hint=hint,
        change=changed,
    )


def _setting_words(changed: Mapping[str, Any]) -> Message:
    """Labels and values in one line."""
    return reduce(
        lambda first, second: Message("{first}, {second}", {"first": first, "second": second}),
        (_setting_word(Message(form.LABELS[key]), value) for key, value in changed.items()),
    )


def _setting_word(label: Message, value: Any) -> Message:
    if value is True:
        return Message("{label} on", {"label": label})
    shown = OPTIMIZERS[value].title if value in OPTIMIZERS else value
    return Message("{label} {value}", {"label": label, "value": shown})


def _sentence(
    draft: _Selection,
    estimate: RunEstimate,
    seconds: float | None,
    disk: int,
    target: str,
) -> Iterator[Message]:
    image_count = len(estimate.divided.trained.examples)
    values = {
        "count": image_count,
        "sizes": len(estimate.buckets),
        "steps": estimate.steps,
        "checkpoint": _checkpoint_name(draft),
    }
    if len(estimate.buckets) > 1:
        yield Message(
            "Trains {steps} steps on {count} images in {sizes} sizes, with {checkpoint}.", values
        )
    else:
        several = "Trains {steps} steps on {count} images of one size, with {checkpoint}."
        yield Message(
            (
                "Trains {steps} steps on one image, with {checkpoint}."
                if image_count == 1
                else several
            ),
            values,
        )
    if seconds is not None:
        yield Message(
            "It takes about {time} and needs about {disk} of disk space.",
            {"time": duration(seconds), "disk": size_of(disk)},
        )
    else:
        yield Message(
            "How long it takes is known after the first steps; it needs about {disk} of disk"
            " space.",
            {"disk": size_of(disk)},
        )
    yield Message("The LoRA will be {target}.", {"target": target})


def _facts(
    estimate: RunEstimate,
    seconds: float | None,
    memory: MemoryPlan | None,
    disk: int,
    target: str,
) -> Iterator[Fact]:
    trained = estimate.divided.trained
    yield Fact(label=FACTS["images"], value=_image_words(trained, estimate.buckets))
    if held_out := estimate.divided.held_out.count:
        one, several = "1 image, not trained on", "{count} images, not trained on"
        yield Fact(
            label=FACTS["validation"],
            value=Message(one if held_out == 1 else several, {"count": held_out}),
        )
    times = estimate.images / len(trained.examples)
    values = {"steps": estimate.steps, "times": f"{times:.0f}" if times >= 10 else f"{times:.2g}"}
    yield Fact(
        label=FACTS["steps"], value=Message("{steps}: each image is seen {times} times", values)
    )
    if not estimate.is_certain:
        yield Fact(
            label=FACTS["resolution"],
            value=Message("512 or 768: determined when the checkpoint is loaded"),
        )
    else:
        yield Fact(
            label=FACTS["resolution"], value=Message("{side} pixels", {"side": estimate.resolution})
        )
    if estimate.weights:
        yield Fact(
            label=FACTS["lora"],
            value=text_preflight.lora_words(estimate.weights, estimate.file_bytes),
        )
    time_words = (
        Message("known after the first steps")
        if seconds is None
        else Message("about {time}", {"time": duration(seconds)})
    )
    yield Fact(label=FACTS["time"], value=time_words)
    if memory is not None:
        sizes = {"needed": size_of(memory.peak), "card": size_of(memory.free or 0)}
        yield Fact(
            label=FACTS["memory"],
            value=Message("about {needed} of {card} that are free", sizes),
        )
    yield Fact(label=FACTS["disk"], value=Message("about {disk}", {"disk": size_of(disk)}))
    yield Fact(label=FACTS["goes_to"], value=target)


def _checkpoint_facts(draft: _Selection, asked: RunConfig) -> Iterator[Fact]:
    if draft.facts.family is None:
        return
    name = _checkpoint_name(draft)
    if draft.request.checkpoint == LOADED:
        template = (
            "{checkpoint}, currently loaded"
            if draft.choice.in_memory
            else "{checkpoint}, chosen in the WebUI"
        )
        yield Fact(label=FACTS["checkpoint"], value=Message(template, {"checkpoint": name}))
    else:
        yield Fact(label=FACTS["checkpoint"], value=name)
    vae = None if draft.has_separate_parts else _usable_vae(draft.choice)
    if vae is not None:
        yield Fact(label=FACTS["vae"], value=vae.name)
    if isinstance(adapter := asked.checkpoint.training_adapter, Path):
        yield Fact(label=FACTS["training_adapter"], value=adapter.name)


def _checkpoint_name(draft: _Selection) -> Message | str:
    family = draft.facts.family
    title = PRACTICE_TITLE if draft.choice.is_practice else draft.choice.path.stem
    return (
        Message("{title} ({family})", {"title": title, "family": family.name}) if family else title
    )


def _image_words(dataset: Dataset, buckets: Mapping[Bucket, Sequence[int]]) -> Message:
    most = sorted(buckets.items(), key=lambda item: -len(item[1]))
    named = ", ".join(f"{bucket} ({len(indices)})" for bucket, indices in most[:4]) + (
        " ..." if len(most) > 4 else ""
    )
    return Message("{count}, in sizes {named}", {"count": len(dataset.examples), "named": named})


def _said(text: Message | str, language: str) -> str:
    return text if isinstance(text, str) else texts.render(text, language)


def _problem_of(place: str, error: LoraTrainerError) -> Problem:
    return Problem(
        field=place,
        severity="error",
        message=_without_folders(error.message),
        hint=_without_folders(error.hint),
    )


def _without_folders(message: Message) -> Message:
    """Paths reduced to file names: remote users may see the page."""
    return Message(
        message.template,
        {
            key: value.name if isinstance(value, Path) else value
            for key, value in message.values.items()
        },
    )
