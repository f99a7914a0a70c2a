"""One training job as a straight line: check, encode, train, export, deliver.

    config -> checkpoint -> dataset -> latents and text states -> adapters -> LoRA file

Big parts are loaded one after the other, and let go as soon as what they make is kept: text
encoders, then VAE, then UNet.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lora_trainer import files
from lora_trainer.checkpoint.detect import native_resolution
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset import buckets as bucketing
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.findings import Finding, refuse, sums
from lora_trainer.dataset.scan import Dataset, scan
from lora_trainer.dataset.syntax import prompt_syntax
from lora_trainer.errors import LoraFileError, Message, TrainingError
from lora_trainer.lora.adapters import add_adapters, matching_layers
from lora_trainer.lora.deliver import Delivered, deliver, note_of
from lora_trainer.lora.export import DIFFUSERS_FILE_NAME, export, export_diffusers
from lora_trainer.lora.file import copy_with_metadata, read_header
from lora_trainer.lora.metadata import build as metadata_of
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import RequestKind
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.training import batches, preview, resume, schedule
from lora_trainer.training.device import (
    choose_device,
    choose_precision,
    describe_device,
    free_memory,
    is_out_of_memory,
    move_optimizer,
    peak_memory,
)
from lora_trainer.training.encode import TextStates
from lora_trainer.training.optimizer import make_optimizer, make_rate_schedule, require_optimizer
from lora_trainer.training.randomness import derived_seed
from lora_trainer.training.scalars import Scalars
from lora_trainer.training.train import Outcome, Plan, StepResult, Trainer, make_scaler
from lora_trainer.worker.facts import Hashes, training_facts
from lora_trainer.worker.provenance import Provenance, differences
from lora_trainer.worker.report import Report
from lora_trainer.worker.resolve import require_lora_dir, resolve, unet_parameter_count

log = logging.getLogger(__name__)
Thing = TypeVar("Thing")
PAUSE_POLL_SECONDS = 0.2
CHECKS_PER_EVENT = 25
NAMED_PER_KIND = 3


class StoppedEarly(Exception):
    """`stop` was asked before the first step: there is nothing to save."""


class TrainingJob:
    """Carries one run from its settings to its LoRA file. The trainer's conductor: requests,
    reports, saves and previews are dealt with here.
    """

    def __init__(self, folder: RunFolder, requested: RunConfig, report: Report) -> None:
        self.folder = folder
        self.report = report
        self.config = requested
        self.started = time.time()

    def run(self) -> Outcome:
        state, notes = (
            resume.read_state(self.folder.state)
            if resume.has_state(self.folder.state)
            else (None, ())
        )
        self.first_step = int(state["step"]) if state else 0
        self.report.say(events.Started(resumed_from=self.first_step if state else None))
        for note in notes:
            self.report.warn(
                note,
                Message(
                    "Nothing is lost but the time of those steps. If it happens again, check the"
                    " disk."
                ),
            )
        try:
            self._prepare()
            self._warn_of_changes(state)
            self._encode()
        except StoppedEarly:
            return self._stop_without_saving()
        self._keep_earlier_result()
        trainer = self._assemble()
        if state:
            trainer.load_state_dict(state)
        self.scalars = Scalars(self.folder.logs, trainer.step)
        self.pace = Pace()
        self.report.phase("training", self.plan.step_count)
        outcome = trainer.run(self)
        self.scalars.close()
        if outcome == "finished":
            return self._finish(trainer)
        return (
            self._stop(trainer) if trainer.step > self.first_step else self._stop_without_saving()
        )

    def _until_stopped(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """The same things, one after the other, until a stop is asked for; a pause is obeyed
        between them.
        """
        for thing in things:
            self._give_way()
            yield thing

    def _give_way(self) -> None:
        """Between two pieces of the preparation: obey a stop or a pause. What else is asked waits
        for the first step.
        """
        self._wait_while_paused(self.first_step)
        if self.report.stop_asked():
            raise StoppedEarly

    def _warn_of_changes(self, state: dict[str, Any] | None) -> None:
        """Remember what the run learns from; say what is no longer as it was when the state was
        written.
        """
        self.provenance = Provenance.of(self.config, self.dataset.examples, self.device)
        for note in differences(state.get("provenance") if state else None, self.provenance):
            self.report.warn(
                note,
                Message(
                    "Training goes on, but the LoRA will not be what an uninterrupted run gives."
                ),
            )

    def _keep_earlier_result(self) -> None:
        """A run that was finished goes on to more steps: the LoRA that it ended with becomes one of
        its saved steps.
        """
        finished = self.folder.path / f"{self.name}.safetensors"
        try:
            metadata = read_header(finished).metadata
            step = int(metadata.get("ss_steps", ""))
        except (LoraFileError, ValueError):
            return
        kept = self.folder.saved_file(self.name, step)
        if step < self.plan.step_count and not kept.exists():
            changes = {
                key: kept.stem for key in ("ss_output_name", "modelspec.title") if key in metadata
            }
            files.replace_file(kept, lambda partial: copy_with_metadata(finished, partial, changes))
            self.report.say(events.Saved(step=step, file=self.folder.relative(kept)))

    # --- before -----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Everything that can be found wrong without loading a model is found here."""
        self.report.phase("checking")
        require_lora_dir(self.config)
        base = self.config.checkpoint
        self.device = choose_device(self.config.training.device)
        self.checkpoint = open_checkpoint(
            base.base_model,
            vae=base.vae,
            prediction_type=base.prediction_type,
            zero_terminal_snr=base.zero_terminal_snr,
        )
        self.checkpoint.require_vae()
        self._require_layers()
        require_optimizer(self.config.training, self.device)
        self.tokenizers = self.checkpoint.tokenizers()
        self.parts = Parts(
            family=self.checkpoint.family,
            schedule=self.checkpoint.schedule,
            tokenizers=self.tokenizers,
        )
        self.dataset = self._scan()
        self._plan_and_resolve()
        self.checkpoint.require_usable(self.dtype)
        for note in self.checkpoint.notes:
            self.report.warn(note)
        self.report.say(
            events.Planned(
                name=self.name,
                family=self.checkpoint.family,
                step_count=self.plan.step_count,
                epoch_count=self.plan.epoch_count,
                image_count=len(self.dataset.examples),
                bucket_count=len(self.buckets),
                resolution=self.config.dataset.resolution or 0,
                device=describe_device(self.device),
                precision=self.config.checkpoint.mixed_precision,
            )
        )

    def _require_layers(self) -> None:
        """Raises ConfigError for names of layers that the checkpoint does not have, before any of
        its weights are read.
        """
        outline, lora = self.checkpoint.outline(), self.config.lora
        if lora.target_modules:
            matching_layers(outline.unet, "target_modules", lora.target_modules)
        if lora.train_text_encoder and lora.text_encoder_targets:
            for encoder in outline.text_encoders:
                matching_layers(encoder, "text_encoder_targets", lora.text_encoder_targets)

    def _scan(self) -> Dataset:
        tokenizer = self.tokenizers[0]

        def count_tokens(caption: str) -> int:
            return len(
                tokenizer(
                    caption, add_special_tokens=False, truncation=False, verbose=False
                ).input_ids
            )

        dataset = scan(
            self.config.dataset,
            count_tokens,
            self.config.checkpoint.max_token_length,
            progress=self._report_check,
        )
        refuse(dataset.findings, self.config.dataset)
        self._warn_of([*dataset.findings, *prompt_syntax(self.config.samples.sample_prompts)])
        return dataset

    def _report_check(self, done: int, total: int) -> None:
        if done == 1:
            self.report.phase("checking", total)
        if done % CHECKS_PER_EVENT == 0 or done == total:
            self.report.part_done(done)
            self._give_way()

    def _warn_of(self, findings: Sequence[Finding]) -> None:
        """One warning for each thing that was found, naming the first few: two thousand copies are
        one sentence's worth.
        """
        for one in sums(findings):
            self.report.warn(one.named(NAMED_PER_KIND), one.hint)

    def _plan_and_resolve(self) -> None:
        """Settle every `auto`, and write config.yaml: complete and resolved."""
        self.dtype = choose_precision(
            self.config.checkpoint.mixed_precision,
            self.device,
            unet_parameter_count(self.checkpoint),
        )
        resolution = self.config.dataset.resolution or native_resolution(
            self.checkpoint.family,
            self.checkpoint.schedule.prediction_type,
            self.checkpoint.resolution,
        )
        self.buckets = bucketing.assign(self.dataset.examples, self.config.dataset, resolution)
        training = self.config.training
        self.plan = Plan(
            buckets=self.buckets,
            repeats=[example.repeats for example in self.dataset.examples],
            batch_size=training.batch_size,
            accumulation=training.gradient_accumulation_steps,
            seed=training.seed,
            step_count=0,
        )
        self.plan.step_count = settings.step_count_of(training, self.plan.steps_per_epoch)
        settings.require_warmup_fits(training, self.plan.step_count)
        self.config = resolve(
            self.config, self.checkpoint, resolution, self.dtype, self.plan.step_count
        )
        self.name = self.config.lora.name
        self._warn_of(
            bucketing.bucket_findings(
                self.dataset.examples, self.buckets, self.config.dataset, resolution
            )
        )
        files.write_text(self.folder.config, settings.to_yaml(self.config))

    # --- encoding ---------------------------------------------------------------------------------

    def _encode(self) -> None:
        """Text states and latents are made; what made them is let go, unless it is needed in every
        step.
        """
        data, lora = self.config.dataset, self.config.lora
        self.report.phase("encoding", len(self.dataset.examples))
        self._give_way()
        self.parts.text_encoders = self.checkpoint.load_text_encoders(self._text_dtype, self.device)
        image_store, caption_store = batches.stores_for(
            self.config.training.cache_latents,
            sum(
                bucket.width * bucket.height * len(indices)
                for bucket, indices in self.buckets.items()
            ),
            sum(len(variants(example.caption)) for example in self.dataset.examples),
            data.flip_augmentation,
            self.folder.cache,
        )
        live = lora.train_text_encoder or data.shuffle_caption
        base = self.config.checkpoint
        self.captions = batches.Captions(
            self.parts, base, caption_store, batches.file_key(base.base_model), live=live
        )
        if not self.captions.live:
            for example in self._until_stopped(self.dataset.examples):
                self.captions.keep([example.caption], self._kept_dtype)
        self.captions.keep(
            [*self.sample_prompts, self.config.samples.sample_negative_prompt], self._kept_dtype
        )
        if not self.captions.live:
            self.parts.text_encoders = ()
            free_memory(self.device)
        self._give_way()
        self._encode_images(image_store)
        self._give_way()

    @property
    def _text_dtype(self) -> torch.dtype:
        """A CPU is in no hurry here, and float32 is exact; a card's memory is dear, and the WebUI
        itself encodes in half precision.
        """
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def _kept_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def _encode_images(self, store: batches.TensorStore) -> None:
        self.images = batches.EncodedImages(store)
        base = self.config.checkpoint
        with self._vae():
            counts = self.images.encode(
                self.parts.vae,
                self.dataset.examples,
                self.buckets,
                self.config.dataset,
                base.vae or base.base_model,
            )
            for done in self._until_stopped(counts):
                self.report.part_done(done)

    @contextlib.contextmanager
    def _vae(self) -> Iterator[None]:
        """parts.vae is there for as long as it is needed. In float32: SDXL's overflows in fp16."""
        self.parts.vae = self.checkpoint.load_vae(torch.float32, self.device)
        try:
            yield
        finally:
            self.parts.vae = None
            free_memory(self.device)

    # --- training ---------------------------------------------------------------------------------

    def _assemble(self) -> Trainer:
        """Load the UNet, put the adapters in, and gather what the loop needs."""
        self.report.phase("loading")
        self.hashes = Hashes(self.config.checkpoint.base_model, self.config.checkpoint.vae)
        training = self.config.training
        self.parts.unet = self.checkpoint.load_unet(self.dtype, self.device)
        if training.gradient_checkpointing:
            self.parts.unet.enable_gradient_checkpointing()
        adapters = add_adapters(
            self.parts, self.config.lora, derived_seed(training.seed, "adapters")
        )
        self.parts.unet.train()
        if training.gradient_checkpointing and self.config.lora.train_text_encoder:
            for encoder in self.parts.text_encoders:
                # not reentrant: the embeddings are frozen, and reentrant checkpoints pass no
                # gradient on from them
                encoder.gradient_checkpointing_enable(
                    gradient_checkpointing_kwargs={"use_reentrant": False}
                )
                encoder.train()
        log.info("%d adapters with %d parameters", adapters.module_count, adapters.parameter_count)
        optimizer = make_optimizer(adapters, training, self.device)
        levels = schedule.NoiseLevels.of(self.parts.schedule, self.device)
        return Trainer(
            unet=self.parts.unet,
            adapters=adapters,
            optimizer=optimizer,
            rates=make_rate_schedule(optimizer, training, self.plan.step_count),
            levels=levels,
            data=batches.TrainingData(
                examples=self.dataset.examples,
                images=self.images,
                settings=self.config.dataset,
                seed=training.seed,
                noise_offset=training.noise_offset,
                timestep_count=levels.step_count,
            ),
            captions=self.captions,
            plan=self.plan,
            settings=training,
            device=self.device,
            dtype=self.dtype,
            size_conditioned=self.parts.family == "sdxl",
            scaler=make_scaler(self.device, self.dtype),
        )

    def before_step(self, trainer: Trainer) -> bool:
        """Obey what was asked since the last step. False: stop."""
        asked = [request.kind for request in self.report.requests()]
        while asked:
            if "stop" in asked:
                return False
            kind = asked.pop(0)
            if kind == "save":
                self._save(trainer)
            elif kind == "preview":
                self._preview(trainer)
            elif kind == "pause":
                asked = self._pause(trainer, asked)
        return True

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.skipped:
            self.report.warn(
                Message(
                    "step {step} was left out: not a finite number in its {what}",
                    {"step": trainer.step, "what": result.skipped},
                ),
                (
                    Message(
                        "If this goes on, training stops by itself. A lower learning_rate or"
                        " mixed_precision no prevents it."
                    )
                    if trainer.has_learned
                    else Message(
                        "If this goes on, training stops by itself. Nothing was learned yet, so"
                        " learning_rate is not the cause."
                    )
                ),
            )
        self._report_progress(trainer, result)
        output, samples = self.config.output, self.config.samples
        epoch_over = trainer.step % self.plan.steps_per_epoch == 0
        by_epoch = (
            output.save_epochs is not None
            and epoch_over
            and (trainer.step // self.plan.steps_per_epoch) % output.save_epochs == 0
        )
        assert output.save_steps is not None
        if trainer.step < self.plan.step_count and (
            trainer.step % output.save_steps == 0 or by_epoch
        ):
            self._save_if_possible(trainer)
        if (
            samples.sample_prompts
            and samples.sample_every
            and trainer.step % samples.sample_every == 0
            and trainer.step < self.plan.step_count
        ):
            self._preview(trainer)

    def _report_progress(self, trainer: Trainer, result: StepResult) -> None:
        self.pace.add(result)
        rates = {
            f"learning_rate/{group['name']}": group["lr"]
            for group in trainer.optimizer.param_groups
        }
        memory = peak_memory(self.device)
        self.report.say(
            events.Progress(
                step=trainer.step,
                epoch=trainer.epoch,
                loss=result.loss,
                smoothed_loss=trainer.smoothed_loss.value,
                learning_rate=next(iter(rates.values())),
                images_per_second=self.pace.images_per_second,
                seconds_left=self.pace.seconds_per_step * (self.plan.step_count - trainer.step),
                memory=memory,
            )
        )
        curves = {
            "loss": result.loss,
            "loss/smoothed": trainer.smoothed_loss.value,
            "gradient_norm": result.gradient_norm,
        }
        self.scalars.write(
            trainer.step,
            {
                **curves,
                **rates,
                "images_per_second": self.pace.images_per_second,
                "memory_gb": memory / 1e9,
            },
        )

    def _wait_while_paused(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Leave the device to others while a pause is asked for. It ends with `resume`, or with
        `stop`, which is left to whoever called.
        """
        if self.report.stop_asked() or not self.report.pause_asked():
            return
        self._move(torch.device("cpu"), optimizer)
        self.report.say(events.Paused(step=step))
        while self.report.pause_asked():
            if self.report.stop_asked():
                return
            time.sleep(PAUSE_POLL_SECONDS)
        self._move(self.device, optimizer)
        self.report.say(events.Resumed(step=step))

    def _pause(self, trainer: Trainer, asked: list[RequestKind]) -> list[RequestKind]:
        """Leave the device to others until `resume` or `stop`, which may have come with the `pause`
        itself. Returns what is to be done then.
        """
        if not {"resume", "stop"} & set(asked):
            self._move(torch.device("cpu"), trainer.optimizer)
            self.report.say(events.Paused(step=trainer.step))
            while not {"resume", "stop"} & set(asked):
                time.sleep(PAUSE_POLL_SECONDS)
                asked = [*asked, *(request.kind for request in self.report.requests())]
            if "stop" not in asked:
                self._move(self.device, trainer.optimizer)
                self.report.say(events.Resumed(step=trainer.step))
        return asked

    def _move(self, device: torch.device, optimizer: torch.optim.Optimizer | None) -> None:
        """Whatever is loaded now goes to `device`."""
        if self.device.type == "cpu":
            return
        for model in (*self.parts.text_encoders, self.parts.vae, self.parts.unet):
            if model is not None:
                model.to(device)
        if optimizer is not None:
            move_optimizer(optimizer, device)
        free_memory(self.device)

    # --- saving -----------------------------------------------------------------------------------

    def _save_if_possible(self, trainer: Trainer) -> None:
        """Save between two steps. A full disk is told, and training goes on: what is learned
        meanwhile may find room at the next save.
        """
        try:
            self._save(trainer)
        except (OSError, LoraFileError) as error:
            if not files.is_disk_full(error):
                raise
            self.report.warn(
                Message("step {step} could not be saved: the disk is full", {"step": trainer.step}),
                Message("Training goes on. Free some space before the next save."),
            )
            self.report.phase("training", self.plan.step_count)

    def _save(self, trainer: Trainer) -> Path:
        """A LoRA file that is ready to use, and the resume point that belongs to it."""
        self.report.phase("saving")
        target = self.folder.saved_file(self.name, trainer.step)
        self._export(trainer, target)
        self._write_state(trainer)
        self.report.say(events.Saved(step=trainer.step, file=self.folder.relative(target)))
        self._let_old_saves_go()
        self.report.phase("training", self.plan.step_count)
        return target

    def _write_state(self, trainer: Trainer) -> None:
        resume.write_state(
            self.folder.state, {**trainer.state_dict(), "provenance": self.provenance.to_mapping()}
        )

    def _export(self, trainer: Trainer, target: Path, *, finished: bool = False) -> dict[str, str]:
        """Write the LoRA file, read back and verified. Returns its metadata. Raises TrainingError
        if it changes nothing at the end of the run.
        """
        facts = training_facts(
            self.config,
            self.checkpoint,
            self.dataset.examples,
            self.buckets,
            trainer,
            self.hashes,
            name=target.stem,
            started_at=self.started,
            written_at=time.time(),
        )
        metadata = metadata_of(facts)
        done = export(trainer.adapters, self.parts, target, metadata)
        if done.does_nothing and finished:
            target.unlink()
            hint = (
                "Check that learning_rate is above 0, and that lr_warmup_steps is not nearly the"
                " whole run."
            )
            one, several = (
                "after its only step the LoRA changes nothing",
                "after {count} steps the LoRA changes nothing: it has learned nothing",
            )
            raise TrainingError(
                one if trainer.step == 1 else several, hint=hint, count=trainer.step
            )
        if done.does_nothing and trainer.step:
            self.report.warn(
                Message(
                    "the LoRA at step {step} changes nothing yet: it has learned nothing",
                    {"step": trainer.step},
                ),
                Message("Check that learning_rate is above 0."),
            )
        return metadata

    def _let_old_saves_go(self) -> None:
        keep = self.config.output.keep_last
        if keep is not None:
            for old in sorted(self.folder.checkpoints.glob("*-step*.safetensors"))[:-keep]:
                for file in (old, note_of(old)):
                    with contextlib.suppress(OSError):
                        file.unlink(missing_ok=True)

    def _stop(self, trainer: Trainer) -> Outcome:
        saved = self._save(trainer)
        self.report.say(events.Stopped(step=trainer.step, file=self.folder.relative(saved)))
        return "stopped"

    def _stop_without_saving(self) -> Outcome:
        """Nothing was learned since the resume point, or at all."""
        saved = [event for event in self.folder.read_state().saved if event.step == self.first_step]
        self.report.say(events.Stopped(step=self.first_step, file=saved[-1].file if saved else ""))
        return "stopped"

    def _finish(self, trainer: Trainer) -> Outcome:
        # the file before the pictures: whatever becomes of them, it is safe
        self.report.phase("exporting")
        target = self.folder.path / f"{self.name}.safetensors"
        metadata = self._export(trainer, target, finished=True)
        export_diffusers(
            trainer.adapters, self.parts, self.folder.path / DIFFUSERS_FILE_NAME, metadata
        )
        self._write_state(trainer)
        self.report.say(events.Saved(step=trainer.step, file=self.folder.relative(target)))
        delivered = self._deliver(target, self._final_preview(trainer))
        # a finished run is not encoded again; its cache may be larger than all the rest
        shutil.rmtree(self.folder.cache, ignore_errors=True)
        self.report.say(
            events.Finished(
                step=trainer.step,
                file=self.folder.relative(target),
                delivered=str(delivered.path) if delivered else "",
            )
        )
        return "finished"

    def _deliver(self, target: Path, card: Path | None) -> Delivered | None:
        output = self.config.output
        if output.lora_dir is None:
            return None
        self.report.phase("delivering")
        try:
            delivered = deliver(
                target,
                output.lora_dir,
                self.name,
                trigger=self.config.dataset.trigger_word,
                preferred_weight=output.preferred_weight,
                family=self.parts.family,
                preview=card,
                negative_text=self.config.samples.sample_negative_prompt,
            )
        except LoraFileError as error:
            # the training is done and its file is safe; only the copy failed
            self.report.warn(error.message, error.hint)
            return None
        for warning in delivered.warnings:
            self.report.warn(warning)
        if delivered.renamed:
            self.report.warn(
                Message(
                    "{lora_dir} had a LoRA called {old}, so this one is called {new}",
                    {"lora_dir": output.lora_dir, "old": self.name, "new": delivered.name},
                )
            )
        return delivered

    # --- previews ---------------------------------------------------------------------------------

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """What previews show; without any prompts, the first caption serves for the LoRA's own
        picture.
        """
        return self.config.samples.sample_prompts or (
            variants(self.dataset.examples[0].caption)[0],
        )

    def _preview(
        self, trainer: Trainer, strengths: tuple[float, ...] | None = None
    ) -> list[events.Previewed]:
        samples = (
            self.config.samples if strengths is None else _with_strengths(self.config, strengths)
        )
        self.report.phase("previewing", len(self.sample_prompts) * len(samples.sample_strengths))
        made: list[events.Previewed] = []
        side = samples.sample_size or 512
        try:
            with self._vae(), trainer.precision():
                pictures = preview.make_pictures(
                    self.parts,
                    trainer.adapters,
                    self.sample_prompts,
                    self._states,
                    samples,
                    size=(side, side),
                    name=self.name,
                    model_name=self.checkpoint.title,
                    stop_asked=self.report.stop_asked,
                )
                for number, picture in enumerate(pictures):
                    target = (
                        self.folder.previews
                        / f"step{trainer.step:08d}-{number:02d}-strength{picture.strength:.2f}.png"
                    )
                    preview.write_picture(picture, target)
                    event = events.Previewed(
                        step=trainer.step,
                        file=self.folder.relative(target),
                        prompt=picture.prompt,
                        strength=picture.strength,
                    )
                    self.report.say(event)
                    self.report.part_done(number + 1)
                    made.append(event)
                    self._wait_while_paused(trainer.step, trainer.optimizer)
        except preview.Abandoned:
            log.info("previews abandoned: a stop was asked for")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.report.warn(
                Message(
                    "there was no memory for the previews of step {step}; the training itself"
                    " goes on",
                    {"step": trainer.step},
                ),
                Message("A smaller sample_size needs less."),
            )
            free_memory(self.device)
        self.report.phase("training", self.plan.step_count)
        return made

    def _states(self, text: str) -> TextStates:
        with torch.no_grad():
            return self.captions.states([text]).detach()

    def _final_preview(self, trainer: Trainer) -> Path | None:
        """The previews of the last step; the one nearest to the recommended strength goes on the
        LoRA's card.
        """
        output, samples = self.config.output, self.config.samples
        if not samples.sample_prompts and output.lora_dir is None:
            return None
        made = self._preview(
            trainer, None if samples.sample_prompts else (output.preferred_weight,)
        )
        best = min(
            (event for event in made if event.strength),
            key=lambda event: abs(event.strength - output.preferred_weight),
            default=None,
        )
        return self.folder.path / best.file if best else None


def _with_strengths(config: RunConfig, strengths: tuple[float, ...]) -> settings.SampleSettings:
    return config.replace(sample_strengths=strengths).samples


@dataclass
class Pace:
    """How fast steps go: a running average over about ten of them; saves, previews and pauses are
    not in it.
    """

    seconds_per_step: float = 0.0
    images_per_second: float = 0.0

    def add(self, result: StepResult) -> None:
        weight = 0.1 if self.seconds_per_step else 1.0
        self.seconds_per_step += weight * (result.seconds - self.seconds_per_step)
        self.images_per_second += weight * (
            len(result.losses) / result.seconds - self.images_per_second
        )
