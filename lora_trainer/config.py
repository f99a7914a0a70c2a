"""What a run is: every setting, its meaning, its bounds; and the YAML file that holds them.

A YAML file is flat: each key names one field of one of the dataclasses below, and `RunConfig` is
their sum. The text under a field is its only documentation: the commented YAML of `lora_trainer
init`, README's table and the tab's help are made from it.

    read(path)          -> RunConfig      YAML -> checked settings; raises one ConfigError that
                                          lists everything wrong
    from_mapping(dict)  -> RunConfig      the same for values that are already parsed
    to_mapping(config)  -> dict           the flat keys again; from_mapping(to_mapping(c)) == c
    commented_yaml()    -> str            every key with its meaning and its default

Optional settings accept `auto`, `none` or nothing at all for "choose for me". Needs PyYAML only;
used by both processes.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from lora_trainer.errors import ConfigError
from lora_trainer.files import MOST_DIGITS

UNET_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
)
"""The attention blocks of a UNet, in full: 192 modules in SD1.5, 3.39 M parameters at rank 8
(kohya's default set).
"""
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

Scheduler = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
Sampler = Literal["euler_a", "dpmpp_2m_karras", "ddim"]

FORBIDDEN_IN_NAMES = ":<>=,\"'/\\|?*\0"
FIXED_BY_THE_FIRST_STEP = (
    "lora_rank",
    "target_modules",
    "train_text_encoder",
    "text_encoder_targets",
)
"""Settings that the learned weights have taken their shape from: a run that is resumed cannot
change them.
"""
RESERVED_ON_WINDOWS = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10)),
}
MOST_IN_MEMORY = 2 * 2**30
"""Bytes of encoded images that are kept in memory when cache_latents is auto."""
LONGEST_NAME = 150
"""In bytes: the step, the suffix and the process of a file that is being written are added, and
file systems hold 255.
"""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    hint: str = "",
    advanced: bool = False,
) -> Any:
    """A dataclass field with its bounds, and what to say when they are broken."""
    metadata = {
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "hint": hint,
        "advanced": advanced,
    }
    return field(default=default, metadata=metadata)


def fields_of(group: Settings | type[Settings]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a group of settings: each group is a dataclass, their common base is none."""
    return dataclasses.fields(group)  # type: ignore[arg-type]


class Settings:
    """Base of the setting groups: types, choices and bounds are checked at construction, all at
    once.
    """

    def __post_init__(self) -> None:
        problems = [problem for item in fields_of(self) for problem in _field_problems(item, self)]
        if not problems:
            problems = list(self.contradictions())
        if problems:
            raise ConfigError.listing(problems, type(self).__name__)

    def contradictions(self) -> Iterator[ConfigError]:
        """What is wrong between fields, given that each is right by itself."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Settings):
    """Images and captions"""

    train_data_dir: Path = setting()
    """The folder with your images. Flat folders, kohya folders ("10_name") and subfolders are all
    understood.
    """
    metadata_path: Path | None = setting(None)
    """A table of captions: .csv, .tsv, .jsonl or .json. auto: metadata.csv or metadata.jsonl in
    train_data_dir, else the texts beside the images, else a table by another name.
    """
    trigger_word: str = setting("")
    """A rare word that calls the LoRA in a prompt. It is put in front of every caption that lacks
    it.
    """
    resolution: int | None = setting(
        None, at_least=64, at_most=4096, hint="Use 512 for SD1, 768 for SD2-v, 1024 for SDXL."
    )
    """Training size in pixels: the area is resolution x resolution. auto: 512 (SD1, SD2), 768
    (SD2-v), 1024 (SDXL).
    """
    repeats: int = setting(1, at_least=1, at_most=10000)
    """How often each image is seen in one epoch. A kohya folder name ("10_name") overrides it for
    that folder.
    """
    enable_bucket: bool = setting(True, advanced=True)
    """Train each image near its own aspect ratio. Off: every image is cropped to a square."""
    bucket_step: int = setting(64, at_least=8, at_most=256, advanced=True)
    """Bucket sides are multiples of this many pixels (a multiple of 8)."""
    min_bucket_side: int | None = setting(None, at_least=32, at_most=4096, advanced=True)
    """Shortest side of a bucket in pixels. auto: half the resolution."""
    max_bucket_side: int | None = setting(None, at_least=64, at_most=8192, advanced=True)
    """Longest side of a bucket in pixels. auto: twice the resolution."""
    max_upscale: float = setting(2.0, at_least=1.0, at_most=16.0, advanced=True)
    """A small image is enlarged at most this many times; beyond that it is trained in a smaller
    bucket.
    """
    caption_dropout: float = setting(
        0.0, at_least=0.0, at_most=1.0, hint="0.05 to 0.1 is usual.", advanced=True
    )
    """Share of the steps in which an image is trained without its caption."""
    shuffle_caption: bool = setting(False, advanced=True)
    """Put the comma-separated parts of each caption in a new order each time."""
    keep_tokens: int = setting(0, at_least=0, at_most=100, advanced=True)
    """With shuffle_caption: this many parts at the start stay where they are. The trigger word
    counts as one.
    """
    flip_augmentation: bool = setting(False, advanced=True)
    """Mirror each image at random. Not for faces, lettering or anything with a left and a right."""
    background: str = setting("white", advanced=True)
    """What shows through transparent pixels: white, black, grey or a colour such as #f0e8d0."""
    on_bad_data: Literal["stop", "skip"] = setting("stop")
    """stop: list every unusable image or caption and do not start. skip: list them and train
    without them.
    """

    def contradictions(self) -> Iterator[ConfigError]:
        if self.bucket_step % 8:
            yield ConfigError(
                "bucket_step is {value}",
                hint="Use a multiple of 8, usually 64.",
                value=self.bucket_step,
            )
        low, high = self.min_bucket_side, self.max_bucket_side
        if low and high and low > high:
            yield ConfigError(
                "min_bucket_side is {low}, above max_bucket_side {high}",
                hint="Leave both at auto.",
                low=low,
                high=high,
            )
        size = self.resolution
        if self.enable_bucket and size and low is not None and low > size:
            yield ConfigError(
                "min_bucket_side is {low}, above resolution {size}",
                hint="Leave it at auto: half the resolution.",
                low=low,
                size=size,
            )
        if self.enable_bucket and size and high is not None and high < size:
            hint = "Leave it at auto: twice the resolution."
            yield ConfigError(
                "max_bucket_side is {high}, below resolution {size}",
                hint=hint,
                high=high,
                size=size,
            )
        if self.resolution and self.resolution % 8:
            yield ConfigError(
                "resolution is {value}",
                hint="Use a multiple of 64, such as 512, 768 or 1024.",
                value=self.resolution,
            )
        if not _is_colour(self.background):
            yield ConfigError(
                "background is {value!r}",
                hint="Use white, black, grey or a colour such as #f0e8d0.",
                value=self.background,
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """Base model"""

    base_model: Path = setting()
    """The checkpoint to train on: a .safetensors file of SD1, SD2 or SDXL, or a diffusers folder.
    """
    vae: Path | None = setting(None)
    """A separate VAE file. auto: the one inside the checkpoint."""
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = setting("auto", advanced=True)
    """What the model was trained to predict. auto: read from the checkpoint."""
    zero_terminal_snr: bool | None = setting(None, advanced=True)
    """Rescale the noise schedule to end in pure noise. auto: as the checkpoint asks."""
    clip_skip: int = setting(
        1, at_least=1, at_most=12, hint="1 for most models, 2 for many anime models."
    )
    """The text encoder's layer to use, counted from the end: the same number as in the WebUI. SDXL
    always uses its own.
    """
    max_token_length: Literal[75, 150, 225] = setting(75)
    """Longest caption in tokens. Longer ones are encoded in pieces of 75, as the WebUI does."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting("auto", advanced=True)
    """Number format of the frozen model. auto: bf16 where the device is good at it, else fp16 on a
    GPU, else no (float32).
    """


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """LoRA"""

    name: str = setting("")
    """The LoRA's name, as in <lora:NAME:0.7>. Empty: the name of output_dir."""
    lora_rank: int = setting(8, at_least=1, at_most=1024, hint="Use 4 to 64; 8 suits most styles.")
    """Size of the low-rank matrices. 8 holds most styles and characters; 16 to 32 keeps more
    detail, in a larger file.
    """
    lora_alpha: float | None = setting(
        None,
        above=0.0,
        at_most=4096.0,
        hint="Leave it at auto, or use the rank or half of it.",
        advanced=True,
    )
    """Scale of the LoRA: its effect is alpha / rank. auto: equal to the rank."""
    lora_dropout: float = setting(
        0.0, at_least=0.0, at_most=0.9, hint="0 to 0.1 is usual.", advanced=True
    )
    """Share of the LoRA's inputs left out at random in each step, against overfitting."""
    target_modules: tuple[str, ...] = setting(UNET_TARGETS, advanced=True)
    """Which layers of the UNet learn, by the end of their names. The default set is the whole
    attention block (192 layers in SD1.5).
    """
    train_text_encoder: bool = setting(False, advanced=True)
    """Train the text encoder too. Helps with a new word for a character; overfits sooner."""
    text_encoder_targets: tuple[str, ...] = setting(TEXT_ENCODER_TARGETS, advanced=True)
    """Which layers of the text encoder learn, with train_text_encoder."""

    def contradictions(self) -> Iterator[ConfigError]:
        if not self.target_modules and not (self.train_text_encoder and self.text_encoder_targets):
            yield ConfigError(
                "target_modules is empty, so nothing would be trained",
                hint="Leave it out, or use [to_q, to_k, to_v, to_out.0].",
            )
        bad = sorted(
            character
            for character in set(self.name)
            if character in FORBIDDEN_IN_NAMES or not character.isprintable()
        )
        if bad:
            characters = " ".join(
                character if character.isprintable() else repr(character) for character in bad
            )
            yield ConfigError(
                "name {name!r} contains {characters}, which <lora:NAME:0.7> cannot hold",
                hint="Use letters, digits, - and _.",
                name=self.name,
                characters=characters,
            )
        if len(self.name.encode()) > LONGEST_NAME:
            yield ConfigError(
                "name is longer than a file's name can be",
                hint="Use a short one: letters, digits, - and _.",
            )
        if self.name.split(".")[0].upper() in RESERVED_ON_WINDOWS:
            yield ConfigError(
                "name {name!r} cannot be a file's name on Windows",
                hint="Use another word.",
                name=self.name,
            )
        if self.name != self.name.strip() or self.name.startswith(".") or self.name.endswith("."):
            yield ConfigError(
                "name {name!r} starts or ends with a space or a dot",
                hint="Use letters, digits, - and _.",
                name=self.name,
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Training"""

    batch_size: int = setting(1, at_least=1, at_most=256, hint="1 to 4 on a consumer card.")
    """Images per step. More is smoother and needs more memory."""
    epochs: int = setting(10, at_least=1, at_most=100000)
    """How often the whole dataset is gone through."""
    max_train_steps: int | None = setting(None, at_least=1, at_most=10_000_000)
    """End after this many steps, whatever epochs says. auto: epochs decides."""
    learning_rate: float = setting(
        1e-4, at_least=0.0, at_most=1.0, hint="Use 1e-4 to 3e-4 with AdamW."
    )
    """How large the steps of learning are. Too high: broken pictures; too low: nothing learned."""
    text_encoder_lr: float | None = setting(
        None, at_least=0.0, at_most=1.0, hint="Use 1e-5 to 5e-5.", advanced=True
    )
    """The text encoder's own rate, with train_text_encoder. auto: half of learning_rate."""
    gradient_accumulation_steps: int = setting(1, at_least=1, at_most=1024, advanced=True)
    """Batches gathered before each step: the effect of a larger batch_size in the memory of a small
    one.
    """
    gradient_checkpointing: bool = setting(False, advanced=True)
    """Compute parts twice to save memory: about a quarter slower, about half the memory."""
    optimizer: Literal["adamw", "adamw8bit"] = setting("adamw", advanced=True)
    """adamw8bit saves a little memory; it needs the bitsandbytes package and an NVIDIA card."""
    weight_decay: float = setting(0.01, at_least=0.0, at_most=1.0, advanced=True)
    """How strongly the LoRA's weights are pulled towards zero."""
    max_grad_norm: float = setting(1.0, at_least=0.0, at_most=1e6, advanced=True)
    """Gradients longer than this are shortened to it. 0: never."""
    lr_scheduler: Scheduler = setting(
        "constant",
        hint="Use constant, with lr_warmup_steps above 0: the warm-up works with every scheduler.",
        advanced=True,
    )
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = setting(0, at_least=0, at_most=1_000_000, advanced=True)
    """Steps in which the learning rate rises from zero. Works with every scheduler."""
    lr_scheduler_num_cycles: int = setting(3, at_least=2, at_most=1000, advanced=True)
    """With cosine_with_restarts: how often the learning rate falls to zero and starts again. Once
    would be cosine.
    """
    lr_scheduler_power: float = setting(2.0, above=0.0, at_most=10.0, advanced=True)
    """With polynomial: how the learning rate falls. 1 is linear; above, it falls sooner; below,
    later.
    """
    min_snr_gamma: float | None = setting(
        None, above=0.0, at_most=100.0, hint="5 is the paper's value.", advanced=True
    )
    """Weigh the noise levels evenly (Min-SNR, arXiv 2303.09556). auto: off; 5 learns faster and
    more evenly.
    """
    noise_offset: float = setting(
        0.0, at_least=0.0, at_most=1.0, hint="0.03 to 0.1 is usual.", advanced=True
    )
    """Lets the model learn very dark and very bright pictures."""
    seed: int = setting(0, at_least=0, at_most=2**32 - 1)
    """The same seed and settings give the same LoRA again."""
    cache_latents: Literal["auto", "memory", "disk"] = setting("auto", advanced=True)
    """Where encoded images are kept. auto: in memory, on disk for very large sets."""
    device: str = setting("auto", advanced=True)
    """auto, cuda, cuda:1, mps or cpu."""

    def contradictions(self) -> Iterator[ConfigError]:
        yield from device_problems(self.device)


@dataclass(frozen=True, kw_only=True)
class SampleSettings(Settings):
    """Preview pictures"""

    sample_prompts: tuple[str, ...] = setting(())
    """Prompts for preview pictures during training. Without any, the first caption is used for the
    LoRA's own picture.
    """
    sample_negative_prompt: str = setting("")
    """What the preview pictures should not show."""
    sample_every: int | None = setting(None, at_least=1, at_most=1_000_000)
    """Make previews every so many steps. auto: whenever the LoRA is saved, if there are
    sample_prompts.
    """
    sample_steps: int = setting(20, at_least=1, at_most=150, advanced=True)
    """Sampling steps of a preview."""
    sample_size: int | None = setting(None, at_least=64, at_most=2048, advanced=True)
    """Side of a preview in pixels. auto: the training resolution."""
    sample_strengths: tuple[float, ...] = setting((1.0,), at_least=0.0, at_most=2.0)
    """LoRA strengths to show, such as [0, 0.5, 1]."""
    sample_sampler: Sampler = setting("euler_a", advanced=True)
    """Euler a, DPM++ 2M Karras or DDIM, under the names euler_a, dpmpp_2m_karras, ddim."""
    sample_guidance: float = setting(7.0, at_least=0.0, at_most=30.0, advanced=True)
    """CFG scale of the previews."""
    sample_seed: int = setting(42, at_least=0, at_most=2**32 - 1, advanced=True)
    """Seed of the previews; the same for each, so that they can be compared."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """Output"""

    output_dir: Path = setting()
    """The run's own folder: log, checkpoints, previews and the finished LoRA."""
    save_steps: int | None = setting(None, at_least=1, at_most=10_000_000)
    """Save the LoRA and the resume point every so many steps. auto: every tenth of the run, at most
    every 500 steps.
    """
    save_epochs: int | None = setting(None, at_least=1, at_most=100_000)
    """Save the LoRA every so many epochs as well. auto: never."""
    keep_last: int | None = setting(None, at_least=1, at_most=100_000, advanced=True)
    """Keep only this many saved steps. auto: all."""
    lora_dir: Path | None = setting(None)
    """Also put the finished LoRA here: the WebUI's models/Lora folder. auto: nowhere but
    output_dir.
    """
    preferred_weight: float = setting(0.7, at_least=0.0, at_most=2.0)
    """The strength written beside the LoRA: a click on its card inserts <lora:NAME:0.7>."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.lora_dir is not None and self.lora_dir in (
            self.output_dir,
            *self.output_dir.parents,
        ):
            yield ConfigError(
                "output_dir {output_dir} lies in lora_dir, where the WebUI would list every saved"
                " step as a LoRA",
                hint="Choose another output_dir: the finished LoRA is copied into lora_dir.",
                output_dir=self.output_dir,
            )


GROUPS: tuple[tuple[str, type[Settings]], ...] = (
    ("dataset", DatasetSettings),
    ("checkpoint", CheckpointSettings),
    ("lora", LoraSettings),
    ("training", TrainingSettings),
    ("samples", SampleSettings),
    ("output", OutputSettings),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole."""

    dataset: DatasetSettings
    checkpoint: CheckpointSettings
    lora: LoraSettings
    training: TrainingSettings
    samples: SampleSettings
    output: OutputSettings

    def replace(self, **changes: Any) -> RunConfig:
        """The same run with some flat keys changed, checked again."""
        return from_mapping({**to_mapping(self), **changes})


# --- what auto comes to ---------------------------------------------------------------------------


def step_count_of(training: TrainingSettings, steps_per_epoch: int) -> int:
    """How many steps a run takes whose epochs have this many each."""
    return training.max_train_steps or training.epochs * steps_per_epoch


def require_warmup_fits(training: TrainingSettings, step_count: int) -> None:
    """Raises ConfigError when the run would end before its warm-up does."""
    if training.lr_warmup_steps >= step_count:
        one, several = (
            "lr_warmup_steps is {warmup}, but the run has only one step",
            "lr_warmup_steps is {warmup}, but the run has only {steps} steps",
        )
        raise ConfigError(
            one if step_count == 1 else several,
            hint="Use about a tenth of the steps, or 0.",
            warmup=training.lr_warmup_steps,
            steps=step_count,
        )


def encoded_bytes(pixel_count: int, caption_count: int, mirrored: bool) -> int:
    """What encoded images and captions take, at most: 8 numbers of 4 bytes for 64 pixels, and 77 x
    2048 of 4 bytes for each 75 tokens.
    """
    return pixel_count * (2 if mirrored else 1) // 2 + caption_count * 77 * 2048 * 4


def keeps_encoded_on_disk(cache_latents: str, byte_count: int) -> bool:
    """Where encoded images of this many bytes are kept: auto is in memory, as far as that goes."""
    return cache_latents == "disk" or (cache_latents == "auto" and byte_count > MOST_IN_MEMORY)


def settle(config: RunConfig, resolution: int, step_count: int) -> RunConfig:
    """The run with every `auto` settled that follows from its resolution (in pixels) and its number
    of steps.
    """
    training, samples = config.training, config.samples
    save_steps = config.output.save_steps or max(1, min(500, math.ceil(step_count / 10)))
    return config.replace(
        resolution=resolution,
        lora_alpha=(
            float(config.lora.lora_rank)
            if config.lora.lora_alpha is None
            else config.lora.lora_alpha
        ),
        text_encoder_lr=(
            training.learning_rate / 2
            if training.text_encoder_lr is None
            else training.text_encoder_lr
        ),
        max_train_steps=step_count,
        save_steps=save_steps,
        sample_every=samples.sample_every or min(save_steps, 1_000_000),
        # what nobody asked for must not break a bound; nor can a picture's side be anything but a
        # multiple of 8
        sample_size=(samples.sample_size or min(resolution, 2048)) // 8 * 8,
    )


# --- YAML <-> RunConfig ---------------------------------------------------------------------------


def read(path: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The run a YAML file describes, with `changes` (flat keys) over it.

    Relative paths are meant from the working directory. Raises ConfigError with every problem in
    it.
    """
    return from_mapping({**read_mapping(path), **(changes or {})}, source=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file as they stand. Raises ConfigError."""
    if path.suffix.lower() == ".toml":
        raise ConfigError(
            "{path} is a TOML file, as other trainers use",
            hint="`python -m lora_trainer init FILE` writes a YAML file to fill in.",
            path=path,
        )
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"), path)
    except FileNotFoundError:
        raise ConfigError(
            "there is no file {path}",
            hint="`python -m lora_trainer init {path}` writes one to start from.",
            path=path,
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "{path} is not a text file in UTF-8",
            hint="In the editor: Save as, with the encoding UTF-8.",
            path=path,
        ) from error
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror or error
        raise ConfigError(
            "{path} cannot be read: {reason}",
            hint="It must be a text file in UTF-8.",
            path=path,
            reason=reason,
        ) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            "{path} is not a list of `key: value` lines",
            hint="`python -m lora_trainer init FILE` writes an example.",
            path=path,
        )
    return {str(key): value for key, value in values.items()}


def parse_yaml(text: str, path: Path) -> Any:
    """The values of a YAML text that anybody may have written. Raises ConfigError, which names
    `path`, and nothing else.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
        require_usable(values)
        return values
    except yaml.YAMLError as error:
        raise _not_yaml(error, path) from error
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        # a date that is none, a number of more digits than Python reads
        reason = " ".join(str(error).split())
        raise ConfigError(
            "{path} holds a value that cannot be used: {reason}",
            hint=MEND_YAML,
            path=path,
            reason=reason,
        ) from error


MEND_YAML = "Mend the file, or let `python -m lora_trainer init FILE` write a new one to fill in."
DEEPEST_YAML = 20
"""Lists within lists: a setting is a list at most."""


def require_usable(value: Any) -> None:
    """Raises ValueError for what could be neither shown nor written again."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, int) and abs(value) > 10**MOST_DIGITS:
        raise ValueError("a number has too many digits")
    elif isinstance(value, (list, tuple, set, dict)):
        for part in value:
            require_usable(part)
        if isinstance(value, dict):
            require_usable(list(value.values()))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML silently takes the last; and what a few
    bytes make endless: nesting and aliases.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        place: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*) is not understood here", problem_mark=place
            )
        if self._depth > DEEPEST_YAML:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {DEEPEST_YAML} deep", problem_mark=place
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


QUOTE_PATHS = (
    r"In double quotes YAML takes \n for a line end and \t for a tab. Put the path in single"
    r" quotes, or write / for \."
)


def unquoted(text: str) -> str:
    """A path without the quotes that come with "Copy as path", and without spaces around it."""
    text = text.strip()
    while len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("'", "'"), ("\u201c", "\u201d")):
        text = text[1:-1].strip()
    return text


def _not_yaml(error: yaml.YAMLError, path: Path) -> ConfigError:
    """The parser's complaint as a sentence with the line it is about."""
    detail = str(getattr(error, "problem", None) or error)
    # a line without a colon is noticed one line too late
    mark = getattr(error, "context_mark" if "expected ':'" in detail else "problem_mark", None)
    line = mark.line + 1 if mark else "?"
    hint = "Each line is `key: value`; put a path or text with special characters in single quotes."
    if "'\\t'" in detail:
        detail, hint = (
            "a tab",
            "YAML does not allow tabs at the start of a line; use spaces, or nothing.",
        )
    elif "unknown escape" in detail:
        hint = QUOTE_PATHS
    elif detail.endswith("is there twice"):
        hint = "Keep one of the two lines."
    return ConfigError(
        "{path}, line {line}: not valid YAML ({detail})",
        hint=hint,
        path=path,
        line=line,
        detail=detail,
    )


def from_mapping(
    values: Mapping[str, Any], source: str = "the settings", base: Path | None = None
) -> RunConfig:
    """Flat keys -> RunConfig. Relative paths are resolved against `base` (the working directory).
    Raises one ConfigError with all problems.
    """
    return RunConfig(**groups_from_mapping(GROUPS, values, source, base))  # type: ignore[arg-type]


def groups_from_mapping(
    groups: Sequence[tuple[str, type[Settings]]],
    values: Mapping[str, Any],
    source: str,
    base: Path | None = None,
) -> dict[str, Settings]:
    """Flat keys -> the groups of settings they belong to. Raises one ConfigError with all
    problems.
    """
    known = {item.name: (item, group) for _, group in groups for item in fields_of(group)}
    problems: list[ConfigError] = []
    converted: dict[str, Any] = {}
    broken: set[str] = set()
    for key, value in values.items():
        if key not in known:
            problems.append(_unknown_key(key, known))
            continue
        try:
            converted[key] = _convert(*known[key], value, base or Path.cwd())
        except ConfigError as problem:
            problems.append(problem)
            broken.add(key)
    made: dict[str, Settings] = {}
    for group_name, group in groups:
        fields_here = fields_of(group)
        missing = [
            item.name
            for item in fields_here
            if item.default is dataclasses.MISSING
            and item.name not in converted
            and item.name not in broken
        ]
        problems += [
            ConfigError(
                "{key} is missing", hint=_first_sentence(documentation_of(group)[key]), key=key
            )
            for key in missing
        ]
        here = {item.name: converted[item.name] for item in fields_here if item.name in converted}
        # a required field that is missing or broken has been reported; a stand-in lets the others
        # be checked too
        for item in fields_here:
            if item.default is dataclasses.MISSING and item.name not in here:
                here[item.name] = Path()
        try:
            made[group_name] = group(**here)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError.listing(problems, source)
    return made


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """RunConfig -> flat keys with plain YAML values."""
    return {
        key: value
        for group_name, _ in GROUPS
        for key, value in group_to_mapping(getattr(config, group_name)).items()
    }


def group_to_mapping(group: Settings) -> dict[str, Any]:
    """One group of settings -> flat keys with plain YAML values."""
    return {item.name: _plain(getattr(group, item.name)) for item in fields_of(group)}


def to_yaml(config: RunConfig) -> str:
    """RunConfig -> the text of config.yaml."""
    return dump(to_mapping(config))


def commented_yaml(values: Mapping[str, Any] | None = None) -> str:
    """A YAML file to start from: every key with its meaning; `values` fill in, the rest are
    defaults (commented out).
    """
    values = values or {}
    lines = ["# One run of lora_trainer. Lines that start with # show the defaults.", ""]
    for _, group in GROUPS:
        lines += [f"# ---- {inspect.cleandoc(group.__doc__ or '')} ----", ""]
        for item in fields_of(group):
            lines += textwrap.wrap(
                documentation()[item.name], 120, initial_indent="# ", subsequent_indent="# "
            )
            required = item.default is dataclasses.MISSING
            if item.name in values:
                lines.append(dump({item.name: _plain(values[item.name])}).rstrip())
            elif required:
                lines.append(f"{item.name}: {EXAMPLE_PATHS[item.name]}")
            else:
                lines.append(
                    "#" + dump({item.name: _plain(item.default)}).rstrip().replace("\n", "\n#")
                )
            lines.append("")
    return "\n".join(lines)


EXAMPLE_PATHS = {
    "train_data_dir": "./data/my_style",
    "base_model": "./models/Stable-diffusion/v1-5-pruned.safetensors",
    "output_dir": "./output/my_style_lora",
}


def readme_table() -> str:
    """The settings as Markdown tables, one a group, for README."""
    parts = []
    for _, group in GROUPS:
        parts += [
            f"**{inspect.cleandoc(group.__doc__ or '')}**",
            "",
            "| key | default | meaning |",
            "| --- | --- | --- |",
        ]
        for item in fields_of(group):
            default = (
                "required" if item.default is dataclasses.MISSING else f"`{_shown(item.default)}`"
            )
            parts.append(
                f"| `{item.name}` | {default} |"
                f" {documentation()[item.name].replace('|', chr(92) + '|')} |"
            )
        parts.append("")
    return "\n".join(parts)


@cache
def documentation() -> dict[str, str]:
    """Key -> the text under its field, read from this module's source."""
    return {key: text for _, group in GROUPS for key, text in documentation_of(group).items()}


def documentation_of(group: type[Settings]) -> dict[str, str]:
    """The same for one group of settings (a class)."""
    found: dict[str, str] = {}
    definition = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(definition, ast.ClassDef)
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
        ):
            found[statement.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return found


# --- one value ------------------------------------------------------------------------------------


@cache
def _annotations(group: Any) -> dict[str, Any]:
    return typing.get_type_hints(group)


def _kind(item: dataclasses.Field[Any], group: Any) -> tuple[Any, bool]:
    """A field's type without None, and whether None is allowed."""
    annotation = _annotations(group)[item.name]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return (
            next(option for option in typing.get_args(annotation) if option is not type(None)),
            True,
        )
    return annotation, False


def _convert(item: dataclasses.Field[Any], group: type[Settings], value: Any, base: Path) -> Any:
    """A YAML value -> the field's type. Raises ConfigError for the wrong type."""
    kind, optional = _kind(item, group)
    if optional and (
        value is None
        or (isinstance(value, str) and value.strip().lower() in ("auto", "none", "null", ""))
    ):
        return None
    wrong = ConfigError(
        "{key} is {value!r}, but must be {expected}",
        hint=item.metadata.get("hint", ""),
        key=item.name,
        value=value,
        expected=_expected(kind),
    )
    origin = typing.get_origin(kind)
    if origin is Literal:
        # YAML reads a bare `no` as False
        if value is False and "no" in typing.get_args(kind):
            return "no"
        # "75" means 75
        return next(
            (
                choice
                for choice in typing.get_args(kind)
                if str(choice) == str(value).strip().lower()
            ),
            value,
        )
    if origin is tuple:
        element = typing.get_args(kind)[0]
        if isinstance(value, str):
            # prompts contain commas; names of layers do not
            value = (
                [value]
                if item.name == "sample_prompts"
                else [part.strip() for part in value.split(",") if part.strip()]
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise wrong
        try:
            return tuple(_scalar(element, part) for part in value)
        except (ValueError, OverflowError):
            raise wrong from None
    try:
        if kind is Path:
            # YAML reads a folder called 2024 as a number
            value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            text = unquoted(str(value)) if isinstance(value, (str, Path)) else ""
            if not text or "\0" in text:
                raise ValueError
            if any(character < " " for character in text):
                raise ConfigError(
                    "{key} is {value!r}, which holds a line end or a tab",
                    hint=QUOTE_PATHS,
                    key=item.name,
                    value=str(value),
                )
            return (base / Path(text).expanduser()).absolute()
        return _scalar(kind, value)
    except (ValueError, OverflowError, RuntimeError):
        # OverflowError: .inf for a whole number; RuntimeError: ~somebody, who has no home here
        raise wrong from None


def _scalar(kind: Any, value: Any) -> Any:
    """One int, float, bool or str. Raises ValueError."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError
    if kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise ValueError
    if isinstance(value, bool):
        raise ValueError
    if kind is int:
        if isinstance(value, str):
            value = float(value) if set(value.lower()) & {".", "e"} else int(value)
        if isinstance(value, float) and value != int(value):
            raise ValueError
        if not isinstance(value, (int, float)):
            raise ValueError
        return int(value)
    if kind is float:
        # YAML 1.1 reads 2e-4, without a dot, as text
        number = float(value) if isinstance(value, (int, float, str)) else None
        if number is None:
            raise ValueError
        return number
    raise TypeError(kind)


def _field_problems(item: dataclasses.Field[Any], settings: Settings) -> Iterator[ConfigError]:
    value = getattr(settings, item.name)
    kind, optional = _kind(item, type(settings))
    if value is None and optional:
        return
    hint, bounds = item.metadata["hint"], _bounds_in_words(item)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices or isinstance(value, bool):
            named = ", ".join(str(choice) for choice in choices)
            close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
            suggestion = (
                f"Did you mean {close[0]}?" if close and (item.name, value) not in REMOVED else hint
            )
            yield ConfigError(
                "{key} is {value!r}, but must be one of: {named}",
                hint=suggestion,
                key=item.name,
                value=value,
                named=named,
            )
        return
    is_tuple = typing.get_origin(kind) is tuple
    element = typing.get_args(kind)[0] if is_tuple else kind
    values = value if is_tuple and isinstance(value, tuple) else (value,)
    for one in values:
        if not _is_a(element, one):
            yield ConfigError(
                "{key} is {value!r}, but must be {expected}",
                hint=hint,
                key=item.name,
                value=one,
                expected=_expected(element),
            )
        elif element in (int, float) and not _within(item, one):
            yield ConfigError(
                "{key} is {value}, but must be {bounds}",
                hint=hint,
                key=item.name,
                value=one,
                bounds=bounds,
            )


def _is_a(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _within(item: dataclasses.Field[Any], value: float) -> bool:
    low, high, above = item.metadata["at_least"], item.metadata["at_most"], item.metadata["above"]
    # not isfinite: it fails for whole numbers beyond all floats
    if value != value or value in (math.inf, -math.inf):
        return False
    return not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )


def _bounds_in_words(item: dataclasses.Field[Any]) -> str:
    low, high, above = item.metadata["at_least"], item.metadata["at_most"], item.metadata["above"]
    if above is not None:
        return f"above {above:g} and at most {high:g}"
    return f"between {_number(low)} and {_number(high)}"


def _number(value: float | None) -> str:
    if value is None:
        return "any"
    return str(int(value)) if value == int(value) else f"{value:g}"


def _expected(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return (
            "a list, such as [0, 0.5, 1]"
            if typing.get_args(kind)[0] is float
            else "a list of texts, such as [to_q, to_v]"
        )
    return {
        int: "a whole number",
        float: "a number, such as 1e-4",
        bool: "true or false",
        str: "a text",
        Path: "a path",
    }.get(kind, str(kind))


def _unknown_key(key: str, known: Mapping[str, Any]) -> ConfigError:
    close = difflib.get_close_matches(key, [*known, *ALIASES], 1, cutoff=0.6)
    meant = ALIASES.get(key) or (ALIASES.get(close[0], close[0]) if close else "")
    hint = (
        f"Did you mean {meant}?"
        if meant
        else "`python -m lora_trainer init FILE` lists every setting."
    )
    return ConfigError("{key} is not a setting", hint=hint, key=key)


REMOVED = {("lr_scheduler", "constant_with_warmup")}
"""Choices of an earlier version: the setting's hint says what does the same."""

ALIASES = {
    # what other trainers call it -> what it is called here; named in the hint, never guessed at
    # silently
    "network_dim": "lora_rank",
    "rank": "lora_rank",
    "network_alpha": "lora_alpha",
    "alpha": "lora_alpha",
    "lr": "learning_rate",
    "unet_lr": "learning_rate",
    "train_batch_size": "batch_size",
    "max_train_epochs": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "steps": "max_train_steps",
    "pretrained_model_name_or_path": "base_model",
    "model": "base_model",
    "output_name": "name",
    "save_every_n_steps": "save_steps",
    "save_every_n_epochs": "save_epochs",
    "caption_dropout_rate": "caption_dropout",
    "flip_aug": "flip_augmentation",
    "optimizer_type": "optimizer",
    "network_dropout": "lora_dropout",
    "dropout": "lora_dropout",
    "trigger": "trigger_word",
    "prompts": "sample_prompts",
    "num_repeats": "repeats",
    "v_parameterization": "prediction_type",
    "zero_terminal_snr_rescale": "zero_terminal_snr",
    "image_dir": "train_data_dir",
    "data_dir": "train_data_dir",
}


def device_problems(device: str) -> Iterator[ConfigError]:
    """What is wrong with the name of a device, whether it is there or not."""
    if not re.fullmatch(r"auto|mps|cpu|(cuda|xpu)(:\d{1,3})?", device, re.ASCII):
        yield ConfigError(
            "device is {value!r}", hint="Use auto, cuda, cuda:1, mps or cpu.", value=device
        )


def _is_colour(text: str) -> bool:
    if text in ("white", "black", "grey", "gray"):
        return True
    return (
        len(text) == 7
        and text[0] == "#"
        and all(character in "0123456789abcdefABCDEF" for character in text[1:])
    )


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".") + "."


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(part) for part in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


class _Dumper(yaml.SafeDumper):
    pass


# 0.0002 as 2.0e-4 would be text to other YAML readers; `auto` reads better than null
_Dumper.add_representer(
    type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:str", "auto")
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=True
    ),
)


def dump(values: Mapping[str, Any]) -> str:
    """Plain values -> YAML."""
    return str(
        yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    )
