"""Trains a LoRA for a language model: check, tokenize, load, train, export.

config.yaml -> prepare -> PreparedTexts -> assemble -> Trainer -> the loop -> LoRA
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.adapters.injected import Adapters, inject
from lora_trainer.dataset.findings import Finding, refuse
from lora_trainer.dataset.held_out import choose, held_out_count
from lora_trainer.errors import ConfigError, DatasetError, LoraFileError, OutOfMemory
from lora_trainer.language import peft_file
from lora_trainer.language.conversations import TextExample, read_texts
from lora_trainer.language.detect import LanguageModelFolder, is_language_model, read_folder
from lora_trainer.language.model import (
    MODEL_PART,
    LanguageBase,
    load_model,
    outline,
    require_four_bit,
    target_paths,
    targets_of,
)
from lora_trainer.language.objective import CompletionObjective
from lora_trainer.language.packing import pack, unpacked
from lora_trainer.language.peft_file import LayerFactors
from lora_trainer.language.tokens import ChatTokenizer, TokenRow, load_tokenizer, too_long
from lora_trainer.language.validation import make_validation
from lora_trainer.lora.changes import WeightChange
from lora_trainer.lora.deliver import clean_name
from lora_trainer.lora.names import adaptable_layers
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import DatasetSettings, RunConfig
from lora_trainer.tasks.answers import AnswerSamples
from lora_trainer.tasks.peft_output import PeftOutput
from lora_trainer.tasks.preparation import PreparationStage, schedule_batches, trainer_of
from lora_trainer.tasks.provenance import content_hash
from lora_trainer.tasks.resolve import require_lora_dir
from lora_trainer.tasks.training_run import Assembled, LoadedModel, Prepared, Start
from lora_trainer.tasks.training_task import TrainingTask
from lora_trainer.training.device import (
    keep_freed_memory,
    precision_name,
)
from lora_trainer.training.optimizers import require_optimizer
from lora_trainer.training.randomness import derived_seed
from lora_trainer.training.train import Trainer
from lora_trainer.training.validation import evaluating

log = logging.getLogger(__name__)
USUAL_LENGTH = 1024
CHECKS_PER_EVENT = 100
PACKING_TOLERANCE = 0.1
"""Largest relative difference of the logits of examples alone and packed: what bfloat16 rounds off
stays below it, other examples do not.
"""

TokenizedText = tuple[TextExample, Sequence[TokenRow]]
"""An example and its rows."""


@dataclass(frozen=True, kw_only=True)
class PreparedTexts(Prepared):
    """What to train, and on what. paths: of the target layers."""

    base: LanguageModelFolder
    tokenizer: ChatTokenizer
    paths: tuple[str, ...]
    examples: tuple[TextExample, ...]
    rows: tuple[TokenRow, ...]
    held_out: tuple[TokenRow, ...]
    """Rows of texts to validate on."""
    beginning: dict[str, LayerFactors] | None
    """The LoRA that the adapters begin with."""


class LanguageTask(TrainingTask):
    """Trains a LoRA for a language model."""

    @classmethod
    def trains(cls, base_model: Path | None) -> bool:
        return is_language_model(base_model)

    @classmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        return OutOfMemory(
            "out of memory at step {step}",
            hint=(
                "Set gradient_checkpointing to true and batch_size to 1; if that is not enough,"
                " lower max_length, or set load_in_4bit to true."
            ),
            step=folder.read_state().step,
        )

    def assemble(self, start: Start) -> Assembled:
        preparation = TextPreparation(self.folder, self.report, self.control, start, self.processes)
        prepared = preparation.prepare(self.requested)
        examples = {example.name: content_hash(example.digest) for example in prepared.examples}
        output = PeftOutput(
            folder=self.folder,
            report=self.report,
            config=prepared.config,
            provenance=self.provenance(prepared, examples, start),
            base=prepared.base,
            tokenizer=prepared.tokenizer,
        )
        self.control.check(start)
        self.report.phase("loading")
        if prepared.device.type == "cpu":
            keep_freed_memory()
        model = load_model(
            prepared.base,
            prepared.dtype,
            prepared.device,
            four_bit=prepared.config.language.load_in_4bit,
        )
        if not prepared.config.language.load_in_4bit:
            # a quantized model cannot be moved with every version of bitsandbytes
            self.control.occupy(LoadedModel(model, prepared.device))
        trainer, objective = assemble(prepared, model)
        if prepared.config.language.packing:
            require_exact_packing(objective, trainer)
        samples = AnswerSamples(
            model=model,
            tokenizer=prepared.tokenizer,
            asked=prepared.config.samples.sample_prompts,
            usual=first_question(prepared.examples),
            max_tokens=prepared.config.language.answer_length,
        )
        return Assembled(
            prepared=prepared,
            output=output,
            samples=samples,
            trainer=trainer,
            validation=make_validation(trainer, objective, prepared.held_out),
        )


def first_question(examples: Sequence[TextExample]) -> str:
    """A question of the dataset; of plain texts, the beginning of one."""
    for example in examples:
        for message in example.messages:
            if message.role == "user":
                return message.content
    return " ".join(examples[0].text.split()[:8])


# --- prepare --------------------------------------------------------------------------------------


class TextPreparation(PreparationStage):
    """Prepares a training on texts."""

    def prepare(self, requested: RunConfig) -> PreparedTexts:
        self.report.phase("checking")
        require_lora_dir(requested)
        require_plain_lora(requested)
        device = self.processes.device(requested.training.device, requested.training.devices)
        require_optimizer(requested.training, device)
        if requested.language.load_in_4bit:
            require_four_bit(device)
        base = read_folder(requested.checkpoint.base_model)
        model = outline(base)
        targets = targets_of(model, base.kind, requested.lora)
        paths = target_paths(model, targets)
        dtype = self.choose_precision(requested, device, model.num_parameters())
        self._warn_of_unread(requested)
        beginning = self._beginning(requested)
        if beginning:
            requested = _with_size_of(beginning, requested)
        tokenizer = load_tokenizer(base.path, requested.language.system_prompt)
        limit = max_length(requested, base)
        texts = self._read(requested.dataset, tokenizer, limit)
        trained, held_out = self._hold_out(requested, texts, tokenizer, limit)
        examples = [example for example, _ in trained]
        rows = [row for _, made in trained for row in made]
        if requested.language.packing:
            rows = pack(rows, limit)
        plan = schedule_batches(requested, {0: list(range(len(rows)))}, [1] * len(rows))
        config = settings.settle(requested, None, plan.step_count).replace(
            name=requested.lora.name or clean_name(requested.output.output_dir.name),
            target_modules=targets,
            mixed_precision=precision_name(dtype),
            max_length=limit,
        )
        self.write_resolved(config)
        prepared = PreparedTexts(
            config=config,
            plan=plan,
            device=device,
            dtype=dtype,
            processes=self.processes,
            base=base,
            tokenizer=tokenizer,
            paths=tuple(paths),
            examples=tuple(examples),
            rows=tuple(rows),
            held_out=tuple(row for _, made in held_out for row in made),
            beginning=beginning,
        )
        self.report.write(
            events.Planned(
                name=prepared.name,
                family=base.kind,
                data="texts",
                step_count=plan.step_count,
                epoch_count=plan.epoch_count,
                image_count=len(examples),
                held_out_count=len(held_out),
                token_count=sum(row.learned for row in rows),
                device=self.processes.describe(device),
                precision=config.checkpoint.mixed_precision,
            )
        )
        return prepared

    def _warn_of_unread(self, config: RunConfig) -> None:
        keys = settings.unread(config, images=False)
        if keys:
            self.report.warn(
                "settings that have no effect on a language model: {keys}",
                hint="Leave them out.",
                keys=", ".join(keys),
            )
        # a run that goes on has what auto came to: as often as it is saved
        every, prompts = config.samples.sample_every, config.samples.sample_prompts
        if every not in (None, config.output.save_steps) and not prompts:
            self.report.warn(
                "sample_every has no effect: there are no questions to ask",
                hint="Write some into sample_prompts.",
            )

    def _beginning(self, config: RunConfig) -> dict[str, LayerFactors] | None:
        """The LoRA that training begins with. A run that is resumed has left it behind."""
        path = config.lora.init_lora
        if path is None or self.start.state:
            return None
        return peft_file.read(path)

    def _hold_out(
        self, config: RunConfig, texts: list[TokenizedText], tokenizer: ChatTokenizer, limit: int
    ) -> tuple[list[TokenizedText], list[TokenizedText]]:
        """The texts to train on, and those to validate on: by default none, because a fact that is
        held out is not learned.
        """
        validation, seed = config.validation, config.training.seed
        if validation.validation_dir is not None:
            folder = dataclasses.replace(
                config.dataset, train_data_dir=validation.validation_dir, metadata_path=None
            )
            return texts, self._read(folder, tokenizer, limit)
        examples = [example for example, _ in texts]
        count = held_out_count(len(examples), validation.validation_split or 0.0)
        chosen = choose(examples, count, seed) if count else []
        if validation.early_stopping and not chosen:
            self.report.warn(
                "early_stopping has no effect: there are no texts to validate on",
                hint="Set validation_split to 0.1, or validation_dir to a folder of other texts.",
            )
        trained = [text for index, text in enumerate(texts) if index not in chosen]
        return trained, [texts[index] for index in chosen]

    def _read(
        self, settings: DatasetSettings, tokenizer: ChatTokenizer, limit: int
    ) -> list[TokenizedText]:
        """The usable texts of a folder, and their rows. Raises DatasetError."""
        dataset = read_texts(settings)
        findings: list[Finding] = list(dataset.findings)
        texts: list[TokenizedText] = []
        self.report.phase("checking", len(dataset.examples))
        for number, example in enumerate(dataset.examples, 1):
            made = tokenizer.rows(example, limit)
            finding = too_long(example, made, limit)
            if finding is not None:
                findings.append(finding)
            elif any(row.learned for row in made):
                texts.append((example, made))
            if number % CHECKS_PER_EVENT == 0 or number == len(dataset.examples):
                self.report.part_done(number)
                self.control.check(self.start)
        refuse(
            findings,
            settings,
            template="the texts in {folder} need attention ({count} found):\n{report}",
            hint="Fix them, or set on_bad_data to skip: they are then left out.",
        )
        if not texts:
            raise DatasetError(
                "no text in {folder} can be used",
                hint="Put question and answer pairs or plain texts there.",
                folder=settings.metadata_path or settings.train_data_dir,
            )
        self.report.warn_of(findings)
        return texts


def require_plain_lora(config: RunConfig) -> None:
    """Raise ConfigError for a LoRA type that is for convolutions."""
    if config.lora.lora_type != "lora":
        raise ConfigError(
            "lora_type is {lora_type}, which a language model has no layers for",
            hint="Set lora_type to lora.",
            lora_type=config.lora.lora_type,
        )


def max_length(config: RunConfig, base: LanguageModelFolder) -> int:
    """The setting; auto: 1024, or what the model was made for. Raises ConfigError beyond that."""
    asked, longest = config.language.max_length, base.longest
    if asked is None:
        return min(USUAL_LENGTH, longest or USUAL_LENGTH)
    if longest is not None and asked > longest:
        raise ConfigError(
            "max_length is {asked}, but the model was made for {longest} tokens",
            hint="Set max_length to at most that.",
            asked=asked,
            longest=longest,
        )
    return asked


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a training on texts comes to, found without its weights. row_count: what is trained on,
    after packing; learned: their tokens that are learned; width: LoRA weights for each rank.
    """

    text_count: int
    row_count: int
    held_out_count: int
    learned: int
    max_length: int
    targets: tuple[str, ...]
    width: int
    findings: tuple[Finding, ...]
    """Texts that are too long."""


def rehearse(config: RunConfig) -> Rehearsal:
    """The checks of a training that need its tokenizer or its layers. What `read_texts` finds is
    not repeated. Raises ConfigError, CheckpointError, DatasetError.
    """
    require_plain_lora(config)
    base = read_folder(config.checkpoint.base_model)
    model = outline(base)
    targets = targets_of(model, base.kind, config.lora)
    layers = adaptable_layers(model, LanguageBase())
    shapes = [layers[path].weight.shape for path in target_paths(model, targets)]
    tokenizer = load_tokenizer(base.path, config.language.system_prompt)
    limit = max_length(config, base)
    texts: list[TokenizedText] = []
    findings: list[Finding] = []
    for example in read_texts(config.dataset).examples:
        made = tokenizer.rows(example, limit)
        if (finding := too_long(example, made, limit)) is not None:
            findings.append(finding)
        elif any(row.learned for row in made):
            texts.append((example, made))
    count = held_out_count(len(texts), config.validation.validation_split or 0.0)
    held_out = set(choose([one for one, _ in texts], count, config.training.seed) if count else ())
    rows = [row for at, (_, made) in enumerate(texts) if at not in held_out for row in made]
    return Rehearsal(
        text_count=len(texts) - len(held_out),
        row_count=len(pack(rows, limit) if config.language.packing else rows),
        held_out_count=len(held_out),
        learned=sum(row.learned for row in rows),
        max_length=limit,
        targets=targets,
        width=sum(map(sum, shapes)),
        findings=tuple(findings),
    )


# --- assemble -------------------------------------------------------------------------------------


def assemble(prepared: PreparedTexts, model: Any) -> tuple[Trainer, CompletionObjective]:
    """Add the adapters, and create the Trainer."""
    config, device = prepared.config, prepared.device
    training = config.training
    if training.gradient_checkpointing:
        # non-reentrant: reentrant checkpointing gives no gradients if the inputs (frozen
        # embeddings) need none
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seed = derived_seed(training.seed, "adapters")
    adapters = inject([(MODEL_PART, model, prepared.paths)], config.lora, seed)
    if prepared.beginning is not None:
        begin_from(adapters, prepared.beginning)
    model.train()
    log.info("%d adapters with %d parameters", adapters.module_count, adapters.parameter_count)
    objective = CompletionObjective(
        model=model,
        rows=prepared.rows,
        pad_id=prepared.tokenizer.pad_id,
        device=device,
        dtype=prepared.dtype,
    )
    return trainer_of(prepared, adapters, objective), objective


def require_exact_packing(objective: CompletionObjective, trainer: Trainer) -> None:
    """Raise ConfigError for a model whose packed examples see each other, because its attention
    takes no mask of its own.
    """
    packed = next((row for row in objective.rows if len(row.lengths) > 1), None)
    if packed is None:
        return
    with torch.inference_mode(), evaluating([objective.model]), trainer.precision():
        together = objective.logits([packed])[0].float()
        alone = torch.cat([objective.logits([row])[0].float() for row in unpacked(packed)])
    if float((together - alone).norm()) > PACKING_TOLERANCE * float(alone.norm()):
        raise ConfigError(
            "packing is true, but this model's attention mixes the examples of a row",
            hint="Set packing to false.",
        )


def begin_from(adapters: Adapters, beginning: dict[str, LayerFactors]) -> None:
    """Initialize the adapters from a LoRA. Raises LoraFileError if it has other layers."""
    layers = {adapter.path: adapter for adapter in adapters.layers}
    others = sorted(beginning.keys() - layers.keys())
    if others:
        raise LoraFileError(
            "init_lora has layers that are not trained in this run: {count}, such as {name}",
            hint="Set base_model and target_modules as when it was trained.",
            count=len(others),
            name=others[0],
        )
    for path, factors in beginning.items():
        layers[path].begin_from(WeightChange(factors.scale, factors.a, factors.b))


def _with_size_of(beginning: dict[str, LayerFactors], config: RunConfig) -> RunConfig:
    """lora_rank and lora_alpha of the LoRA, in place of auto."""
    lora, first = config.lora, next(iter(beginning.values()))
    rank = lora.lora_rank or first.a.shape[0]
    alpha = rank * first.scale if lora.lora_alpha is None else lora.lora_alpha
    return config.replace(lora_rank=rank, lora_alpha=alpha)
