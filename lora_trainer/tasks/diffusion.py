"""Trains a LoRA for a diffusion model: check, encode, train, export, deliver.

    config.yaml -> prepare -> Prepared -> encode -> Encoded -> assemble -> Trainer -> the loop
                -> LoRA file

Text encoders, VAE and UNet are loaded one after the other, and unloaded when their outputs are
cached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lora_trainer.adapters.continued import Continuation, begin_from, match
from lora_trainer.adapters.injected import Adapters, add_adapters, target_layers
from lora_trainer.adapters.low_rank import leave_casts_to_autocast
from lora_trainer.adapters.training_adapter import TrainingAdapter
from lora_trainer.captioning import image_text, source
from lora_trainer.checkpoint.licence import HINT as LICENCE_HINT
from lora_trainer.checkpoint.load import Checkpoint, open_as_set
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.cpu.quicken import can_quicken, quicken
from lora_trainer.dataset import buckets as bucketing
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.findings import refuse
from lora_trainer.dataset.held_out import Divided, divide, of_folder
from lora_trainer.dataset.scan import Dataset, scan
from lora_trainer.dataset.syntax import prompt_syntax
from lora_trainer.errors import CaptionerError, LoraFileError, OutOfMemory
from lora_trainer.families.base import Family
from lora_trainer.families.refusals import remarks
from lora_trainer.frozen.layers import Precision
from lora_trainer.language.detect import is_language_model
from lora_trainer.lora.changes import open_changes
from lora_trainer.lora.training_adapter import (
    find_adapter,
    kind_for,
    missing,
    open_adapter,
)
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import DatasetSettings, RunConfig
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.fetching import Fetching
from lora_trainer.tasks.fixed_noise import make_validation
from lora_trainer.tasks.images import Encoded, LoadedParts, PreparedImages
from lora_trainer.tasks.lora_file_output import LoraFileOutput
from lora_trainer.tasks.lora_metadata import Hashes
from lora_trainer.tasks.preparation import PreparationStage, schedule_batches, trainer_of
from lora_trainer.tasks.preview_measures import PreviewMeasures
from lora_trainer.tasks.previews import Previews
from lora_trainer.tasks.provenance import Provenance, image_hashes
from lora_trainer.tasks.report import Report
from lora_trainer.tasks.resolve import (
    require_base_precision,
    require_fitting_settings,
    require_lora_dir,
    resolve,
)
from lora_trainer.tasks.training_run import Assembled, Start
from lora_trainer.tasks.training_task import TrainingTask
from lora_trainer.training import batches
from lora_trainer.training.denoising import DenoisingObjective
from lora_trainer.training.device import (
    free_memory,
    keep_freed_memory,
    processor_has_bfloat16,
    uses_autocast,
)
from lora_trainer.training.encoded_cache import EncodedCache
from lora_trainer.training.loop import StopRequested
from lora_trainer.training.optimizers import require_optimizer
from lora_trainer.training.randomness import derived_seed
from lora_trainer.training.train import Trainer

log = logging.getLogger(__name__)
CHECKS_PER_EVENT = 25


class DiffusionTask(TrainingTask):
    """Trains a LoRA for a checkpoint of a family."""

    plans_memory = True

    @classmethod
    def trains(cls, base_model: Path | None) -> bool:
        return not is_language_model(base_model)

    def assemble(self, start: Start) -> Assembled:
        prepared = Preparation(
            self.folder, self.report, self.control, start, self.processes
        ).prepare(self.requested)
        examples = image_hashes(prepared.dataset.examples)
        provenance = self.provenance(prepared, examples, start)
        encoded = encode(prepared, self.folder.cache, self.report, self.control, start)
        output = self._output(prepared, provenance)
        self.report.phase("loading")
        trainer = assemble(prepared, encoded)
        if prepared.continuation is not None:
            self._begin_from(prepared.continuation, trainer)
        return Assembled(
            prepared=prepared,
            output=output,
            samples=Previews(
                prepared=prepared,
                captions=encoded.captions,
                folder=self.folder,
                measures=PreviewMeasures(prepared),
            ),
            trainer=trainer,
            validation=make_validation(prepared, encoded, trainer),
        )

    def _begin_from(self, continuation: Continuation, trainer: Trainer) -> None:
        """Initialize the adapters from init_lora, and warn of what is lost."""
        beginning = begin_from(trainer.adapters, continuation)
        log.info("training goes on from %s", beginning)
        for note, hint in beginning.notes():
            self.report.warn(note, hint=hint or "")

    @classmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        return OutOfMemory(
            "out of memory at step {step}",
            hint=(
                "Set gradient_checkpointing to true and batch_size to 1; if that is not enough,"
                " lower resolution."
            ),
            step=folder.read_state().step,
        )

    def _output(self, prepared: PreparedImages, provenance: Provenance) -> LoraFileOutput:
        base = prepared.config.checkpoint
        return LoraFileOutput(
            folder=self.folder,
            report=self.report,
            config=prepared.config,
            checkpoint=prepared.checkpoint,
            parts=prepared.parts,
            examples=prepared.dataset.examples,
            buckets=prepared.buckets,
            hashes=Hashes(
                base.base_model,
                prepared.checkpoint.separate_paths[1],
                wanted=self.processes.is_first,
            ),
            training_adapter=prepared.training_adapter,
            provenance=provenance,
            started=self.started,
        )


# --- prepare --------------------------------------------------------------------------------------


class Preparation(PreparationStage):
    """Prepares a training on images."""

    def prepare(self, requested: RunConfig) -> PreparedImages:
        self.report.phase("checking")
        require_lora_dir(requested)
        self._warn_of_unread(requested)
        device = self.processes.device(requested.training.device, requested.training.devices)
        checkpoint = open_as_set(requested.checkpoint)
        checkpoint.require_parts()
        require_fitting_settings(requested, checkpoint)
        require_layers(checkpoint, requested)
        require_optimizer(requested.training, device)
        require_base_precision(requested, device)
        if requested.training.blocks_to_swap and device.type == "cpu":
            self.report.warn(
                "blocks_to_swap has no effect: training runs on the CPU, whose memory is where"
                " swapped blocks lie"
            )
            requested = requested.replace(blocks_to_swap=0)
        adapter = self._training_adapter(requested, checkpoint)
        requested = requested.replace(training_adapter=adapter.path if adapter else "off")
        continuation = self._continuation(requested, checkpoint)
        if continuation is not None:
            requested = requested.replace(**continuation.changes.rank_and_alpha(requested.lora))
        parts = Parts(
            family=checkpoint.family,
            schedule=checkpoint.schedule,
            tokenizers=checkpoint.tokenizers(),
        )
        self.control.occupy(LoadedParts(parts, device))
        divided = self._hold_out(requested, self._scan(requested, parts), parts)
        prepared = dataclasses.replace(
            self._plan_and_resolve(requested, checkpoint, parts, divided, device),
            continuation=continuation,
            training_adapter=adapter,
            encoder=self._encoder(requested),
        )
        for note in checkpoint.notes:
            self.report.warn(note)
        for remark, hint in remarks(checkpoint.family, requested):
            self.report.warn(remark, hint=hint)
        licence = checkpoint.detected.licence
        for note in licence.notes(checkpoint.title) if licence else ():
            self.report.warn(note, hint=LICENCE_HINT)
        self.report.write(
            events.Planned(
                name=prepared.name,
                family=checkpoint.family.id,
                family_name=checkpoint.family.name,
                step_count=prepared.plan.step_count,
                epoch_count=prepared.plan.epoch_count,
                image_count=len(prepared.dataset.examples),
                held_out_count=prepared.held_out.count,
                bucket_count=len(prepared.buckets),
                resolution=prepared.config.dataset.resolution or 0,
                device=self.processes.describe(device),
                precision=prepared.config.checkpoint.mixed_precision,
                training_adapter=adapter.path.name if adapter else "",
            )
        )
        return prepared

    def _warn_of_unread(self, config: RunConfig) -> None:
        keys = settings.unread(config, images=True)
        if keys:
            self.report.warn(
                "settings that are only for language models: {keys}",
                hint="Leave them out.",
                keys=", ".join(keys),
            )

    def _training_adapter(
        self, config: RunConfig, checkpoint: Checkpoint
    ) -> TrainingAdapter | None:
        """The adapter that is part of the base while it is trained. Raises LoraFileError for one
        that does not fit, or is not that of the steps so far.
        """
        adapter = self._open_training_adapter(config, checkpoint)
        require_unchanged(self.start.state, adapter)
        if adapter is None:
            return None
        log.info("trained with the training adapter %s", adapter.path)
        if not checkpoint.detected.is_distilled:
            checkpoint.detected = dataclasses.replace(checkpoint.detected, is_distilled=True)
            self.report.warn(
                "training_adapter is set, and nothing says that {path} is distilled to few steps",
                hint=(
                    "If it is not, set training_adapter to off: the LoRA would also learn what the"
                    " adapter does."
                ),
                path=checkpoint.path.name,
            )
        return adapter

    def _open_training_adapter(
        self, config: RunConfig, checkpoint: Checkpoint
    ) -> TrainingAdapter | None:
        """The one that is named, or found. Warns of one that is needed and missing."""
        asked, family = config.checkpoint.training_adapter, checkpoint.family
        kind = kind_for(family, is_distilled=checkpoint.detected.is_distilled)
        if isinstance(asked, Path):
            return TrainingAdapter.of(open_adapter(asked), checkpoint.outline())
        # a resumed run says which, unless it was begun before there were any
        if asked == "off" or kind is None or self.start.state:
            return None
        folder = config.output.lora_dir
        found = find_adapter(checkpoint.path, family, kind, [folder] if folder else [])
        if found is None:
            message, hint = missing(checkpoint.path, kind)
            self.report.warn(message, hint=hint)
            return None
        return TrainingAdapter.of(found, checkpoint.outline())

    def _continuation(self, config: RunConfig, checkpoint: Checkpoint) -> Continuation | None:
        """The LoRA that training begins with. A run that is resumed has left it behind: the file
        may be gone by then.
        """
        path = config.lora.init_lora
        if path is None or self.start.state:
            return None
        return match(open_changes(path), checkpoint.outline(), config.lora)

    def _encoder(self, config: RunConfig) -> Path | None:
        """The encoder that measures previews, if there will be any and it is on this machine or to
        be downloaded. Without it, previews are measured by their pixels.
        """
        wanted = config.validation.sample_encoder
        makes_samples = config.samples.sample_prompts or config.output.lora_dir
        if wanted == "no" or not makes_samples or not self.processes.is_first:
            return None
        try:
            return image_text.find(Fetching(self.report), download=wanted == "download")
        except source.DownloadStopped:
            raise StopRequested from None
        except CaptionerError as error:
            self.report.warn(error.message, hint=error.hint)
            return None

    def _scan(self, config: RunConfig, parts: Parts) -> Dataset:
        dataset = self._scan_folder(config.dataset, config, parts)
        found = [*dataset.findings, *prompt_syntax(config.samples.sample_prompts)]
        self.report.warn_of(found)
        return dataset

    def _scan_folder(self, folder: DatasetSettings, config: RunConfig, parts: Parts) -> Dataset:
        dataset = scan(
            folder,
            functools.partial(parts.family.count_tokens, parts.tokenizers),
            parts.family.longest_caption(config.checkpoint.max_token_length),
            progress=self.report_check,
        )
        refuse(dataset.findings, folder)
        return dataset

    def _hold_out(self, config: RunConfig, dataset: Dataset, parts: Parts) -> Divided:
        """The images to train on, and those to validate on."""
        validation, seed = config.validation, config.training.seed
        if validation.validation_dir is None:
            divided = divide(dataset, validation.validation_split, seed)
        else:
            folder = dataclasses.replace(
                config.dataset, train_data_dir=validation.validation_dir, metadata_path=None
            )
            found = self._scan_folder(folder, config, parts)
            self.report.warn_of(found.findings)
            divided = of_folder(dataset, found.examples, seed)
        if divided.note is not None:
            self.report.warn(divided.note, hint=divided.hint)
        held_out = divided.held_out
        if held_out.count:
            log.info(
                "%d images are trained on; %d are held out to validate on, of which are measured:"
                " %s",
                len(divided.trained.examples),
                held_out.count,
                ", ".join(example.name for example in held_out.examples),
            )
        elif validation.early_stopping:
            self.report.warn(
                "early_stopping has no effect: there are no images to validate on",
                hint="Use 20 images or more, a larger validation_split, or a validation_dir.",
            )
        return divided

    def report_check(self, done: int, total: int) -> None:
        """Report how many images are checked, and pause or stop if requested."""
        if done == 1:
            self.report.phase("checking", total)
        if done % CHECKS_PER_EVENT == 0 or done == total:
            self.report.part_done(done)
            self.control.check(self.start)

    def _plan_and_resolve(
        self,
        requested: RunConfig,
        checkpoint: Checkpoint,
        parts: Parts,
        divided: Divided,
        device: torch.device,
    ) -> PreparedImages:
        """Resolve every `auto`, and write the resolved config.yaml."""
        dtype = self.choose_precision(requested, device, checkpoint.unet_parameter_count)
        dataset, held_out = divided.trained, divided.held_out
        resolution = requested.dataset.resolution or checkpoint.native_resolution
        buckets = bucketing.assign(dataset.examples, requested.dataset, resolution)
        plan = schedule_batches(
            requested, buckets, [example.repeats for example in dataset.examples]
        )
        config = resolve(requested, checkpoint, resolution, dtype, plan.step_count)
        self.report.warn_of(
            bucketing.bucket_findings(dataset.examples, buckets, config.dataset, resolution)
        )
        self.write_resolved(config)
        return PreparedImages(
            config=config,
            checkpoint=checkpoint,
            parts=parts,
            dataset=dataset,
            buckets=buckets,
            held_out=held_out,
            held_out_buckets=bucketing.assign(held_out.examples, config.dataset, resolution),
            plan=plan,
            device=device,
            dtype=dtype,
            processes=self.processes,
        )


def require_unchanged(state: Mapping[str, Any] | None, adapter: TrainingAdapter | None) -> None:
    """Raise LoraFileError if the training adapter is not that of the resume point. state: None for
    a new run.
    """
    if state is None:
        return
    before = state.get("provenance", {}).get("files", {}).get("training_adapter", "")
    if before == (adapter.sha256 if adapter else ""):
        return
    hint = (
        "Set training_adapter to its file (--set training_adapter=FILE), or start a new run: the"
        " base would be another one."
    )
    if adapter is None:
        raise LoraFileError(
            "this run was begun with a training adapter, and none is used now", hint=hint
        )
    if not before:
        raise LoraFileError(
            "this run was begun without a training adapter, and {path} is used now",
            hint="Set training_adapter to off, or start a new run: the base would be another one.",
            path=adapter.path,
        )
    raise LoraFileError(
        "the training adapter ({path}) is not the one that this run was begun with",
        hint=hint,
        path=adapter.path,
    )


def require_layers(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raise ConfigError for layer names that the checkpoint does not have, without loading
    weights.
    """
    for _ in target_layers(checkpoint.outline(), config.lora):
        pass


# --- encode ---------------------------------------------------------------------------------------


def encode(
    prepared: PreparedImages, cache: Path, report: Report, control: Control, start: Start
) -> Encoded:
    """Encode captions and images that no earlier run has encoded. The models are unloaded, unless
    needed in every step. If there are any, all weights are checked before, the UNet's too. Raises
    CheckpointError for weights that cannot be used.
    """
    report.phase("encoding", len(prepared.examples))
    control.check(start)

    @functools.cache
    def check_weights() -> None:
        report.phase("loading")
        prepared.require_usable()
        report.phase("encoding", len(prepared.examples))

    if prepared.device.type == "cpu":
        keep_freed_memory()
    shared = _shared_cache(prepared)
    image_store, caption_store = _stores(prepared, cache, shared)
    captions = _encode_captions(prepared, caption_store, check_weights, control, start)
    control.check(start)
    encoded = Encoded(
        captions=captions,
        images=batches.EncodedImages(image_store),
        held_out=batches.EncodedImages(image_store),
    )
    _encode_images(prepared, encoded, check_weights, report, control, start)
    control.check(start)
    if shared is not None and prepared.processes.is_first:
        shared.trim()
    return encoded


def _shared_cache(prepared: PreparedImages) -> EncodedCache | None:
    """What earlier trainings on these images have encoded."""
    config, device = prepared.config, prepared.device
    if not config.training.keep_encoded:
        return None
    made_by = (
        torch.__version__,
        prepared.parts.family.id,
        device.type,
        text_encoder_dtype(device, prepared.dtype, prepared.parts.family),
        config.training.vae_tiling,
    )
    return EncodedCache(config.dataset.train_data_dir, " ".join(map(str, made_by)))


def _stores(
    prepared: PreparedImages, cache: Path, shared: EncodedCache | None
) -> tuple[batches.TensorStore, batches.TensorStore]:
    pixel_count = sum(
        bucket.width * bucket.height * len(indices)
        for buckets in (prepared.buckets, prepared.held_out_buckets)
        for bucket, indices in buckets.items()
    )
    byte_count = prepared.parts.family.cache_bytes(
        pixel_count,
        sum(len(variants(example.caption)) for example in prepared.examples),
        prepared.config.dataset.flip_augmentation,
    )
    return batches.stores_for(prepared.config.training.cache_latents, byte_count, cache, shared)


def _encode_captions(
    prepared: PreparedImages,
    store: batches.TensorStore,
    check_weights: Callable[[], None],
    control: Control,
    start: Start,
) -> batches.CaptionEncoder:
    config, parts, device = prepared.config, prepared.parts, prepared.device
    dtype = text_encoder_dtype(device, prepared.dtype, parts.family)
    kept = text_encoder_precision(config)

    def load() -> None:
        if not parts.text_encoders:
            parts.text_encoders = prepared.checkpoint.load_text_encoders(dtype, device, kept=kept)

    captions = batches.CaptionEncoder(
        parts,
        config.checkpoint,
        store,
        "\n".join([*map(batches.file_key, prepared.checkpoint.caption_paths), kept]),
        live=config.lora.train_text_encoder or config.dataset.shuffle_caption,
    )
    texts = [*prepared.sample_prompts, config.samples.sample_negative_prompt]
    if captions.live:
        load()
    else:
        texts += [example.caption for example in prepared.examples]
    for _ in control.until_stopped(
        captions.keep(texts, dtype, load, prepared.processes, check_weights), start
    ):
        pass
    if not captions.live:
        parts.text_encoders = ()
        free_memory(device)
    return captions


def text_encoder_dtype(device: torch.device, dtype: torch.dtype, family: Family) -> torch.dtype:
    """The text encoders' dtype. On a GPU the model's, as in the WebUI, to save memory, or bfloat16
    where fp16 does not do. bfloat16 changes the hidden states of SD1.5 by 1 % of their norm
    (BENCHMARKS).
    """
    if device.type == "cpu":
        return _encoding_dtype_on_processor(dtype)
    return torch.bfloat16 if dtype == torch.float16 and family.text_needs_range else dtype


def image_encoding_dtype(device: torch.device, dtype: torch.dtype, family: Family) -> torch.dtype:
    """The VAE's dtype while it encodes. bfloat16 changes the latents of SD1.5 by 1.6 % of their
    norm (BENCHMARKS).
    """
    if device.type == "cpu" and not family.vae_needs_precision:
        return _encoding_dtype_on_processor(dtype)
    return torch.float32


def _encoding_dtype_on_processor(dtype: torch.dtype) -> torch.dtype:
    """bfloat16, which takes half as long, if the model is trained in it and the processor has it;
    else float32.
    """
    has = dtype == torch.bfloat16 and processor_has_bfloat16()
    return torch.bfloat16 if has else torch.float32


def text_encoder_precision(config: RunConfig) -> Precision:
    """How the weights of large text encoders are kept: in 8 bits, as int8 where the model's are,
    because T5 looks at the dtype of its weights.
    """
    small = config.checkpoint.base_precision in ("int8", "fp8")
    return "int8" if small and not config.lora.train_text_encoder else "same"


def _encode_images(
    prepared: PreparedImages,
    encoded: Encoded,
    check_weights: Callable[[], None],
    report: Report,
    control: Control,
    start: Start,
) -> None:
    before = 0
    dtype = image_encoding_dtype(prepared.device, prepared.dtype, prepared.parts.family)
    with contextlib.ExitStack() as loaded:

        def load_vae() -> None:
            if prepared.parts.vae is None:
                loaded.enter_context(prepared.vae(dtype))

        for images, examples, buckets in (
            (encoded.images, prepared.dataset.examples, prepared.buckets),
            (encoded.held_out, prepared.held_out.examples, prepared.held_out_buckets),
        ):
            counts = images.encode(
                prepared.parts,
                examples,
                buckets,
                prepared.config.dataset,
                prepared.checkpoint.vae_path,
                load_vae,
                prepared.processes,
                dtype,
                check_weights,
            )
            for done in control.until_stopped(counts, start):
                report.part_done(before + done)
            before += len(examples)


# --- assemble -------------------------------------------------------------------------------------


def assemble(prepared: PreparedImages, encoded: Encoded) -> Trainer:
    """Load the UNet, add the adapters, and create the Trainer."""
    quick = can_quicken(prepared.device, prepared.dtype)
    adapters = load_with_adapters(prepared, prepacked=quick)
    if quick:
        quicken(prepared.parts.unet)
    return make_trainer(prepared, encoded, adapters)


def load_with_adapters(prepared: PreparedImages, *, prepacked: bool = False) -> Adapters:
    """Load the UNet into `prepared.parts`, and add adapters to it and to the text encoders.
    prepacked: as for Checkpoint.load_unet.
    """
    config, parts = prepared.config, prepared.parts
    training = config.training
    precision = config.checkpoint.base_precision
    parts.unet = prepared.checkpoint.load_unet(
        prepared.dtype,
        prepared.device,
        kept="same" if precision == "auto" else precision,
        swapped=training.blocks_to_swap or 0,
        prepacked=prepacked,
        added=prepared.training_adapter.delta if prepared.training_adapter else None,
    )
    if training.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    adapters = add_adapters(parts, config.lora, derived_seed(training.seed, "adapters"))
    if uses_autocast(prepared.device, prepared.dtype):
        leave_casts_to_autocast(adapters.layers)
    parts.unet.train()
    if training.gradient_checkpointing and config.lora.train_text_encoder:
        for encoder in parts.text_encoders:
            # non-reentrant: reentrant checkpointing gives no gradients if the inputs (frozen
            # embeddings) need none
            encoder.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
            encoder.train()
    log.info("%d adapters with %d parameters", adapters.module_count, adapters.parameter_count)
    return adapters


def make_trainer(prepared: PreparedImages, encoded: Encoded, adapters: Adapters) -> Trainer:
    """Create the Trainer of loaded models with adapters."""
    config, parts, device = prepared.config, prepared.parts, prepared.device
    training = config.training
    noise_process = parts.family.noise_process(parts.schedule, device)
    objective = DenoisingObjective(
        family=parts.family,
        unet=parts.unet,
        noise_process=noise_process,
        data=batches.TrainingData(
            examples=prepared.dataset.examples,
            images=encoded.images,
            settings=config.dataset,
            seed=training.seed,
            noise_offset=training.noise_offset,
            noise_process=noise_process,
        ),
        captions=encoded.captions,
        settings=training,
        device=device,
    )
    return trainer_of(prepared, adapters, objective)
