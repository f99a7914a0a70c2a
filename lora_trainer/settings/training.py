"""The settings of a training run: fields, texts, bounds, and the YAML file.

`RunConfig` has all groups. The commented YAML of `lora_trainer init`, README's table and the tab's
help are generated from the docstring under each field.

    read(path)          -> RunConfig      validated; raises one ConfigError with every problem
    from_mapping(dict)  -> RunConfig      the same for parsed values
    to_mapping(config)  -> dict           the flat keys; from_mapping(to_mapping(c)) == c
    commented_yaml()    -> str            every key with its meaning and default
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lora_trainer.errors import ConfigError, Message
from lora_trainer.settings import schema
from lora_trainer.settings.schema import NamedChoice, ProperName, Settings, device_problems, setting
from lora_trainer.training.losses import LOSSES, WEIGHTINGS, LossEntry, WeightingEntry
from lora_trainer.training.optimizers import OPTIMIZERS, OptimizerEntry
from lora_trainer.training.optimizers import settled as settled_rates

UNET_TARGETS = tuple("to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2".split())
"""All Linear and 1x1 convolution layers of the attention blocks: 192 modules in SD1.5, 3.39 M
parameters at rank 8 (kohya's default).
"""
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

Scheduler = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
Sampler = Literal["euler_a", "dpmpp_2m_karras", "ddim"]
WebUI = Literal["a1111", "forge", "reforge", "classic", "neo"]
"""As lora.host_layers.HOST_NAMES."""

FORBIDDEN_IN_NAMES = ":<>=,\"'/\\|?*\0"
RESERVED_ON_WINDOWS = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10)),
}
DEFAULT_RANK = 8
"""The rank for `lora_rank: auto` without init_lora."""
USUAL_STEPS = 20
"""The steps of a preview for `sample_steps: auto`, of a model that was not distilled to fewer."""
DEFAULT_STRENGTH = 0.7
"""The recommended strength for `preferred_weight: auto` where none was measured."""
MAX_CACHE_IN_MEMORY = 2 * 2**30
"""Largest cache in bytes that cache_latents: auto keeps in memory."""
MAX_NAME_BYTES = 150
"""Leaves room for step, suffix and temporary file name within the 255 bytes of most file
systems.
"""


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Settings):
    """Images and captions"""

    train_data_dir: Path = setting(
        label="Image folder",
        text_label="Text folder",
        example="./data/my_style",
        audience="elsewhere",
        place="dataset",
        other_names=("image_dir", "data_dir"),
        affects_result=False,
    )
    """The folder with your images: a flat folder, kohya folders ("10_name") or subfolders. For a
    language model: the folder of its texts.
    """
    metadata_path: Path | None = setting(
        None,
        label="Caption table",
        text_label="File of texts",
        audience="elsewhere",
        place="dataset",
        affects_result=False,
    )
    """A table of captions: .csv, .tsv, .jsonl or .json. auto: metadata.csv or metadata.jsonl in
    train_data_dir, else the texts beside the images, else a table by another name. For a language
    model: one file of texts, instead of all in train_data_dir.
    """
    trigger_word: str = setting(
        "",
        label="Trigger word",
        audience="everyone",
        order=1,
        other_names=("trigger",),
        terms="activation token instance prompt keyword class token",
        affects_result=False,
        in_presets=False,
    )
    """A rare word that activates the LoRA in a prompt. It is added in front of every caption that
    does not contain it.
    """
    resolution: int | None = setting(
        None,
        label="Resolution",
        unit="pixels",
        bounds=(64, 4096),
        hint="Use 512 for SD1, 768 for SD2-v, 1024 for SDXL.",
        step=64,
        audience="everyone",
        order=4,
        terms="size width height train_resolution",
    )
    """Images are trained with the pixel count of a square with this side, in any shape. auto: the
    checkpoint's native resolution, such as 512 or 1024.
    """
    repeats: int = setting(
        1,
        label="Repeats",
        bounds=(1, 10000),
        other_names=("num_repeats",),
        terms="dataset repeats",
        affects_result=False,
    )
    """How often each image is trained per epoch. A number in front of a folder's name (10_name)
    takes precedence for that folder.
    """
    enable_bucket: bool = setting(
        True, label="Aspect ratio buckets", terms="bucketing arb aspect ratio square crop"
    )
    """Images are trained near their own aspect ratio. Off: each is cropped to a square."""
    bucket_step: int = setting(
        64, label="Bucket step", unit="pixels", bounds=(8, 256), step=8, terms="bucket_reso_steps"
    )
    """Width and height of the buckets are multiples of this."""
    min_bucket_side: int | None = setting(
        None,
        label="Min bucket resolution",
        unit="pixels",
        bounds=(32, 4096),
        terms="min_bucket_reso shortest side",
    )
    """Shortest side of a bucket. auto: half the resolution."""
    max_bucket_side: int | None = setting(
        None,
        label="Max bucket resolution",
        unit="pixels",
        bounds=(64, 8192),
        terms="max_bucket_reso longest side",
    )
    """Longest side of a bucket. auto: twice the resolution."""
    max_upscale: float = setting(
        2.0,
        label="Max upscale",
        unit="times",
        bounds=(1.0, 16.0),
        step=0.5,
        terms="bucket_no_upscale enlarge",
    )
    """Small images are enlarged at most this many times; beyond that they are trained at a lower
    resolution.
    """
    caption_dropout: float = setting(
        0.0,
        label="Caption dropout",
        bounds=(0.0, 1.0),
        hint="0.05 to 0.1 is usual.",
        step=0.05,
        other_names=("caption_dropout_rate",),
        terms="unconditional",
    )
    """Share of the steps in which an image is trained without its caption."""
    shuffle_caption: bool = setting(
        False, label="Shuffle caption", terms="shuffle_tags random order"
    )
    """Shuffle the comma-separated tags of each caption in every step."""
    keep_tokens: int = setting(
        0, label="Keep tokens", bounds=(0, 100), terms="keep_tokens fixed tags"
    )
    """With shuffle_caption: this many tags at the start keep their place. The trigger word counts
    as one.
    """
    flip_augmentation: bool = setting(
        False, label="Flip augmentation", other_names=("flip_aug",), terms="mirror augmentation"
    )
    """Mirror each image at random. Not for faces, lettering or anything with a left and a right."""
    background: str = setting("white", label="Background", terms="alpha transparent transparency")
    """The colour behind transparent pixels: white, black, grey or a colour such as #f0e8d0."""
    on_bad_data: Literal["stop", "skip"] = setting(
        "stop",
        label="Unusable images",
        text_label="Unusable texts",
        choices={"stop": "stop and list them", "skip": "train without them"},
        terms="skip errors",
        affects_result=False,
    )
    """What happens with images and captions that cannot be used. They are listed in either case."""

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
    """Model"""

    base_model: Path = setting(
        label="Checkpoint",
        text_label="Language model",
        example="./models/Stable-diffusion/v1-5-pruned.safetensors",
        audience="elsewhere",
        place="checkpoint",
        other_names=("pretrained_model_name_or_path", "model"),
        affects_result=False,
    )
    """The checkpoint to train on: a .safetensors file of SD1, SD2, SDXL, FLUX.1, FLUX.2 klein,
    Z-Image or Anima, or a diffusers folder. Or the folder of a language model (config.json,
    tokenizer, .safetensors).
    """
    vae: Path | None = setting(
        None, label="VAE", audience="elsewhere", place="checkpoint", affects_result=False
    )
    """A separate VAE file. auto: the one inside the checkpoint, else one in the WebUI's folders."""
    text_encoders: tuple[Path, ...] | None = setting(
        None,
        label="Text encoders",
        audience="elsewhere",
        place="checkpoint",
        affects_result=False,
    )
    """Text encoders in files of their own, in any order, for models that come without them. auto:
    those inside the checkpoint, else found in the WebUI's folders.
    """
    tokenizers: Path | None = setting(
        None,
        label="Tokenizers",
        audience="elsewhere",
        place="checkpoint",
        other_names=("tokenizer_cache_dir",),
        affects_result=False,
    )
    """A folder with the tokenizers of text encoders in files of their own (tokenizer.json). auto:
    found beside the text encoder, in the WebUI or in Hugging Face's cache, else downloaded (2 MB).
    """
    training_adapter: Path | Literal["off"] | None = setting(
        None,
        label="Training adapter",
        audience="elsewhere",
        place="checkpoint",
        other_names=("assistant_lora_path", "merge_adapters", "base_weights"),
        terms="assistant lora distilled turbo schnell de-distill",
        affects_result=False,
    )
    """A LoRA that is part of the model while it is trained, and is left out afterwards: with it a
    model that was distilled to few steps, such as Z-Image Turbo, can be trained, and the LoRA works
    at few steps. auto: for such a model, found by its name beside the checkpoint or in a LoRA
    folder. off: none.
    """
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = setting(
        "auto",
        label="Prediction type",
        choices={"v_prediction": ProperName("v-prediction")},
        other_names=("v_parameterization",),
        terms="v-pred vpred eps",
        in_presets=False,
    )
    """What the model was trained to predict. auto: read from the checkpoint."""
    zero_terminal_snr: bool | None = setting(
        None,
        label="Zero terminal SNR",
        other_names=("zero_terminal_snr_rescale",),
        terms="ztsnr zero snr",
        in_presets=False,
    )
    """Rescale the noise schedule to zero terminal SNR. auto: as the checkpoint states."""
    timestep_distribution: Literal["auto", "uniform", "logit_normal"] = setting(
        "auto",
        label="Timestep distribution",
        choices={"uniform": "uniform", "logit_normal": ProperName("logit-normal")},
        terms="timestep sampling sigmoid weighting scheme flow matching",
        in_presets=False,
    )
    """How often a flow-matching model is trained at each noise level. logit-normal: mostly at those
    in the middle. auto: as the model's own training.
    """
    timestep_shift: float | None = setting(
        None,
        label="Timestep shift",
        above=0.0,
        at_most=100.0,
        hint="1 is no shift; 3 is usual for large models.",
        step=0.5,
        other_names=("discrete_flow_shift", "flow_shift"),
        terms="flow shift discrete timestep noise level",
        in_presets=False,
    )
    """Above 1, a flow-matching model is trained more often at high noise levels, which decide on
    shapes; previews use the same shift. auto: the model's own, which may grow with the resolution.
    """
    clip_skip: int = setting(
        1,
        label="Clip skip",
        bounds=(1, 12),
        hint="1 for most models, 2 for many anime models.",
        in_presets=False,
    )
    """The text encoder's layer to use, counted from the end: the same number as in the WebUI. SDXL
    always uses its own.
    """
    max_token_length: Literal[75, 150, 225] = setting(
        75, label="Max token length", unit="tokens", terms="caption length 75 150 225 tokens"
    )
    """Captions are truncated to this many tokens. Beyond 75 they are encoded in chunks, as in the
    WebUI.
    """
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto",
        label="Mixed precision",
        choices={"no": ProperName("float32")},
        terms="fp16 bf16 float16 bfloat16 float32 dtype half",
    )
    """Number format of the model. auto: bf16 where the device supports it well, else fp16 on a GPU,
    else float32.
    """
    base_precision: Literal["auto", "same", "int8", "fp8"] = setting(
        "auto",
        label="Base precision",
        choices={
            "same": "as mixed precision",
            "int8": ProperName("int8"),
            "fp8": ProperName("fp8 (e4m3)"),
        },
        hint="int8 is the more accurate of the two that need half the memory.",
        other_names=("fp8_base", "quantize", "qtype", "base_model_precision", "weight_dtype"),
        terms="fp8_base quantize int8 float8 8-bit quantized base weight dtype save memory vram",
    )
    """Number format in which the weights of the model's blocks are kept while the LoRA learns; they
    are converted for each use. int8 and fp8 halve the model's memory; the LoRA keeps its own
    precision. auto: as mixed precision.
    """


def _lora_types() -> dict[str, NamedChoice]:
    from lora_trainer.adapters import types

    return {one.id: NamedChoice(title=one.label, sentence=one.sentence) for one in types.every()}


def _other_types_settings(chosen: str) -> dict[str, str]:
    """Settings that this LoRA type does not read -> a type that does."""
    from lora_trainer.adapters import types

    own = types.get(chosen).own_settings
    every = {key: one.id for one in types.every() for key in one.own_settings}
    return {key: needed for key, needed in every.items() if key not in own}


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """LoRA"""

    name: str = setting(
        "",
        label="Name",
        audience="elsewhere",
        place="name",
        other_names=("output_name",),
        affects_result=False,
    )
    """The LoRA's name, as in <lora:NAME:0.7>. Empty: the name of output_dir."""
    lora_type: str = setting(
        "lora",
        label="LoRA type",
        among=_lora_types,
        fixed_by_the_first_step=True,
        other_names=("network_module", "algo"),
        terms="locon lycoris",
    )
    """Which layers are trained."""
    init_lora: Path | None = setting(
        None,
        label="Start from a LoRA",
        audience="elsewhere",
        place="init_lora",
        fixed_by_the_first_step=True,
        other_names=("network_weights", "lora_model_name"),
        terms="continue train further resume network_weights grow rank pretrained",
    )
    """A LoRA file for the same kind of base, from any trainer, whose weights training starts from.
    lora_rank may be higher than the file's, without loss. auto: none.
    """
    lora_rank: int | None = setting(
        None,
        label="Rank",
        text_help=(
            "The capacity of the LoRA. 8 is enough for facts and "
            "a manner of speaking; 16 to 64 keeps more, in a larger file. auto: 8."
        ),
        bounds=(1, 1024),
        hint="Use 4 to 64; 8 suits most styles.",
        audience="everyone",
        order=5,
        fixed_by_the_first_step=True,
        other_names=("network_dim", "rank"),
        terms="dimension dim",
    )
    """The capacity of the LoRA. 8 is enough for most styles and characters; 16 to 32 keeps more
    detail, in a larger file. auto: 8, or the rank of init_lora.
    """
    lora_alpha: float | None = setting(
        None,
        label="Alpha",
        above=0.0,
        at_most=4096.0,
        hint="Leave it at auto, or use the rank or half of it.",
        step=1,
        other_names=("network_alpha", "alpha"),
        terms="scale",
    )
    """The LoRA is scaled by alpha / rank. auto: equal to the rank, or in the same proportion to it
    as in init_lora.
    """
    conv_rank: int | None = setting(
        None,
        label="Convolution rank",
        bounds=(1, 1024),
        hint="Leave it at auto, or use half of the rank.",
        fixed_by_the_first_step=True,
        other_names=("conv_dim",),
        terms="locon conv dim",
    )
    """Rank of the 3 x 3 convolutions of a LoCon. auto: equal to the rank."""
    conv_alpha: float | None = setting(
        None,
        label="Convolution alpha",
        above=0.0,
        at_most=4096.0,
        hint="Leave it at auto, or use the convolution rank or half of it.",
        step=1,
        terms="locon conv",
    )
    """A LoCon's convolutions are scaled by alpha / rank. auto: equal to the convolution rank."""
    lora_dropout: float = setting(
        0.0,
        label="LoRA dropout",
        bounds=(0.0, 0.9),
        hint="0 to 0.1 is usual.",
        step=0.05,
        other_names=("network_dropout", "dropout"),
    )
    """Share of the LoRA's inputs dropped at random in each step, against overfitting."""
    target_modules: tuple[str, ...] = setting(
        UNET_TARGETS,
        label="Target modules (UNet)",
        text_label="Target modules",
        text_help=(
            "Which layers are trained, by the end of their names. "
            "The default is the query and the value of the attention, q_proj and v_proj."
        ),
        fixed_by_the_first_step=True,
        terms="network_module layers unet attention",
    )
    """Which layers of the UNet are trained, by the end of their names. The default is the whole
    attention block (192 layers in SD1.5); in a language model, q_proj and v_proj.
    """
    train_text_encoder: bool = setting(
        False,
        label="Train the text encoder",
        fixed_by_the_first_step=True,
        terms="te clip network_train_unet_only",
    )
    """Train the text encoder too. Helps with a new word for a character; overfits sooner."""
    text_encoder_targets: tuple[str, ...] = setting(
        TEXT_ENCODER_TARGETS,
        label="Target modules (text encoder)",
        fixed_by_the_first_step=True,
        terms="te layers clip",
    )
    """Which layers of the text encoder are trained, with train_text_encoder."""

    def contradictions(self) -> Iterator[ConfigError]:
        if not self.target_modules and not (self.train_text_encoder and self.text_encoder_targets):
            yield ConfigError(
                "target_modules is empty, so nothing would be trained",
                hint="Leave it out, or use [to_q, to_k, to_v, to_out.0].",
            )
        for key, needed in _other_types_settings(self.lora_type).items():
            if getattr(self, key) is not None:
                yield ConfigError(
                    "{key} is set, but lora_type is {lora_type}, which does not use it",
                    hint="Set lora_type to {needed}, or {key} to auto.",
                    key=key,
                    lora_type=self.lora_type,
                    needed=needed,
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
        if len(self.name.encode()) > MAX_NAME_BYTES:
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


MEMORY_MODES = ("auto", "no", "fast", "small")
FEWEST_GB, MOST_GB = 0.5, 4096.0
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", re.IGNORECASE)


def memory_bytes(text: str) -> int | None:
    """ "8GB" -> bytes, with 2**30 bytes in one as cards are sold. None: it is no such size."""
    found = _SIZE.fullmatch(text.strip())
    size = float(found[1]) if found else 0.0
    return int(size * 2**30) if FEWEST_GB <= size <= MOST_GB else None


def _choices(
    entries: Mapping[str, OptimizerEntry] | Mapping[str, LossEntry] | Mapping[str, WeightingEntry],
) -> dict[str, NamedChoice]:
    return {
        name: NamedChoice(title=entry.title, sentence=entry.sentence)
        for name, entry in entries.items()
    }


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Training parameters"""

    batch_size: int = setting(
        1,
        label="Batch size",
        text_help="Texts per step. More need more memory.",
        bounds=(1, 256),
        hint="1 to 4 on a consumer card.",
        other_names=("train_batch_size",),
        terms="bs images per step",
    )
    """Images per step. Larger batches are smoother and need more memory."""
    epochs: int = setting(
        10,
        label="Epochs",
        text_help="Number of passes over all texts.",
        bounds=(1, 100000),
        audience="everyone",
        order=3,
        other_names=("max_train_epochs", "num_epochs", "num_train_epochs"),
        affects_result=False,
    )
    """Number of passes over all images."""
    max_train_steps: int | None = setting(
        None,
        label="Steps",
        bounds=(1, 10_000_000),
        audience="everyone",
        order=2,
        other_names=("steps",),
        terms="iterations",
        affects_result=False,
    )
    """Number of training steps, regardless of epochs. auto: as many as the epochs take."""
    learning_rate: float | None = setting(
        None,
        label="Learning rate",
        text_help=(
            "The step size of the optimizer. Too high: the answers fall apart; too low: nothing is "
            "learned. auto: the optimizer's default, 1e-4 for AdamW."
        ),
        bounds=(0.0, 1.0),
        hint="Use 1e-4 to 3e-4 with AdamW.",
        audience="everyone",
        order=6,
        other_names=("lr", "unet_lr"),
    )
    """The step size of the optimizer. Too high: broken images; too low: nothing learned. auto:
    the optimizer's default, 1e-4 for AdamW.
    """
    text_encoder_lr: float | None = setting(
        None,
        label="Text encoder learning rate",
        bounds=(0.0, 1.0),
        hint="Use 1e-5 to 5e-5.",
        terms="te_lr lr",
    )
    """The text encoder's own rate, with train_text_encoder. auto: half of learning_rate; all of it
    with Prodigy.
    """
    gradient_accumulation_steps: int = setting(
        1, label="Gradient accumulation", bounds=(1, 1024), terms="grad accumulation accumulate"
    )
    """Number of batches per optimizer step: the effect of a larger batch_size with the memory of a
    small one.
    """
    gradient_checkpointing: bool = setting(
        False, label="Gradient checkpointing", terms="save memory vram", affects_result=False
    )
    """Saves memory by computing parts twice: about 40 % slower. The peak is an eighth lower with
    SD1.5 at 256 pixels, a third lower at 512, and less than half with SDXL at 1024.
    """
    memory: str = setting(
        "auto",
        label="Memory",
        hint="Use auto, no, fast, small, or a size such as 6GB.",
        terms="vram out of memory oom budget limit low vram medvram lowvram",
        affects_result=False,
    )
    """Changes settings that need memory (from gradient_checkpointing to optimizer) before a run,
    and again when memory runs out. auto: the cheapest changes with which it fits the graphics card.
    A size, such as 6GB: with which it fits that. fast: the fastest settings that fit. small: those
    that need least. no: never.
    """
    blocks_to_swap: int | None = setting(
        None,
        label="Blocks to swap",
        unit="blocks",
        bounds=(0, 1000),
        hint="SD1.5 has 44 blocks, SDXL 91, FLUX.1 57.",
        other_names=("block_swap", "num_blocks_to_swap"),
        terms="block swap offload cpu ram save memory vram",
        affects_result=False,
    )
    """This many of the model's blocks stay in main memory, and are copied to the graphics card for
    each use. The LoRA is the same, each step takes longer. auto: none.
    """
    vae_tiling: bool = setting(
        False,
        label="VAE tiling",
        other_names=("enable_vae_tiling",),
        terms="tiled vae encode decode save memory vram",
    )
    """Images and previews of more than 512 pixels are encoded and decoded in tiles of that size:
    much less memory before the first step and in previews. Tones may differ from tile to tile.
    """
    optimizer: str = setting(
        "adamw",
        label="Optimizer",
        among=lambda: _choices(OPTIMIZERS),
        other_names=("optimizer_type",),
        terms="adam adamw 8bit schedulefree schedule_free dadapt automatic learning rate",
    )
    """The optimization algorithm."""
    weight_decay: float | None = setting(
        None, label="Weight decay", bounds=(0.0, 1.0), step=0.01, terms="regularization l2"
    )
    """How strongly the LoRA's weights are pulled towards zero. auto: the optimizer's default, 0.01
    for AdamW.
    """
    max_grad_norm: float = setting(
        1.0, label="Max grad norm", bounds=(0.0, 1e6), step=0.1, terms="gradient clipping clip_grad"
    )
    """Gradients are clipped to this norm. 0: never."""
    lr_scheduler: Scheduler = setting(
        "constant",
        label="LR scheduler",
        choices={
            "constant": "constant",
            "linear": "linear, down to zero",
            "cosine": "cosine, down to zero",
            "cosine_with_restarts": "cosine with restarts",
            "polynomial": "polynomial",
        },
        hint="Use constant, with lr_warmup_steps above 0: the warm-up works with every scheduler.",
        removed=("constant_with_warmup",),
        terms="scheduler cosine constant linear polynomial learning rate over time",
    )
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = setting(
        0, label="LR warmup", unit="steps", bounds=(0, 1_000_000), terms="warm-up warmup_steps"
    )
    """The learning rate rises from zero over this many steps. Works with every scheduler."""
    lr_scheduler_num_cycles: int = setting(
        3, label="LR cycles", bounds=(2, 1000), terms="cosine restarts cycles"
    )
    """With cosine_with_restarts: how often the learning rate falls to zero and starts again. Once
    would be cosine.
    """
    lr_scheduler_power: float = setting(
        2.0, label="LR power", above=0.0, at_most=10.0, terms="polynomial decay"
    )
    """With polynomial: how the learning rate falls. 1 is linear; above, it falls sooner; below,
    later.
    """
    ema_decay: float | None = setting(
        0.0,
        label="EMA decay",
        bounds=(0.0, 0.9999),
        hint="auto suits runs of any length; 0.99 averages over about the last hundred steps.",
        step=0.01,
        other_names=("use_ema", "ema", "ema_rate", "ema_power"),
        terms="ema exponential moving average averaged weights smooth",
    )
    """The LoRA that is saved, shown and validated is an average over the last steps: smoother from
    save to save, while training goes on as without it. auto: over about the last tenth of the
    steps; 0: off.
    """
    min_snr_gamma: float | None = setting(
        None,
        label="Min-SNR gamma",
        above=0.0,
        at_most=100.0,
        hint="5 is the paper's value.",
        step=1,
        terms="snr minsnr",
    )
    """Balances the loss between coarse shapes and fine detail (Min-SNR). auto: off; 5 converges
    faster and more evenly.
    """
    loss_weighting: str = setting(
        "min_snr",
        label="Loss weighting",
        among=lambda: _choices(WEIGHTINGS),
        terms="snr debiased estimation",
    )
    """The weight of each noise level in the loss."""
    loss_type: str = setting(
        "l2", label="Loss type", among=lambda: _choices(LOSSES), terms="mse huber smooth l1"
    )
    """The loss function."""
    huber_c: float = setting(
        0.1,
        label="Huber threshold",
        above=0.0,
        at_most=1.0,
        hint="0.1 is usual.",
        terms="huber c delta",
    )
    """With the loss types Huber and Smooth L1: errors above this count less than their square. 1 is
    nearly L2.
    """
    huber_schedule: Literal["snr", "exponential", "constant"] = setting(
        "snr",
        label="Huber schedule",
        choices={"snr": ProperName("SNR"), "exponential": "exponential", "constant": "constant"},
        terms="huber",
    )
    """How the threshold of Huber and Smooth L1 falls from 1 without noise to huber_c in pure noise.
    constant: it is huber_c everywhere.
    """
    noise_offset: float = setting(
        0.0,
        label="Noise offset",
        bounds=(0.0, 1.0),
        hint="0.03 to 0.1 is usual.",
        step=0.01,
        terms="dark bright offset noise",
    )
    """Allows very dark and very bright images."""
    seed: int = setting(0, label="Seed", bounds=(0, 2**32 - 1))
    """The same seed and settings give the same LoRA again."""
    cache_latents: Literal["auto", "memory", "disk"] = setting(
        "auto",
        label="Cache latents",
        choices={"memory": "in memory", "disk": "on disk"},
        terms="cache_latents_to_disk",
        affects_result=False,
    )
    """Images are encoded once, and the latents are cached. auto: in memory, or on disk for very
    large datasets.
    """
    keep_encoded: bool = setting(True, label="Keep encoded images", affects_result=False)
    """The next training on these images begins sooner: encoded images and captions are kept in the
    folder .lora_trainer of the images, up to 2 GB.
    """
    device: str = setting("auto", label="Device", terms="gpu cuda cpu", affects_result=False)
    """Device to train on: auto, cuda (NVIDIA), cuda:1 (the second one), mps (a Mac) or cpu."""
    devices: str = setting(
        "auto",
        label="Graphics cards",
        choices={"auto": "one card", "all": "all of this machine"},
        hint="Use auto, all, or numbers of cards such as 0,1.",
        other_names=("gpu_ids",),
        terms="multi gpu several cards distributed data parallel ddp accelerate torchrun processes",
        affects_result=False,
    )
    """Trains on several graphics cards of this machine at once: all, or those with these numbers,
    as in 0,1. Each has its share of the images of every step, which are the same as on one card, so
    batch_size is best a multiple of the number of cards. auto: one.
    """

    def contradictions(self) -> Iterator[ConfigError]:
        yield from device_problems(self.device, self.devices)
        yield from OPTIMIZERS[self.optimizer].problems(self)
        if self.memory not in MEMORY_MODES and memory_bytes(self.memory) is None:
            yield ConfigError(
                "memory is {value!r}",
                hint="Use auto, no, fast, small, or a size such as 6GB.",
                value=self.memory,
            )


@dataclass(frozen=True, kw_only=True)
class ValidationSettings(Settings):
    """Validation"""

    validation_split: float | None = setting(
        None,
        label="Validation split",
        bounds=(0.0, 0.5),
        hint="0.1 is usual: one image in ten.",
        step=0.05,
        other_names=("val_split",),
        terms="validation held out test images overfitting val loss",
    )
    """Share of the images that are used for validation instead of training. auto: one in ten (2 to
    8 images) of 20 images or more, and no texts; 0: none.
    """
    validation_dir: Path | None = setting(
        None,
        label="Validation images",
        text_label="Validation texts",
        audience="elsewhere",
        terms="validation_data_dir held out",
        affects_result=False,
    )
    """A folder of images with captions to validate on, instead of a share of the images. auto:
    none.
    """
    early_stopping: int = setting(
        0,
        label="Early stopping",
        unit="saves",
        bounds=(0, 1000),
        hint="2 to 4 is usual.",
        terms="patience stop early overfitting",
        affects_result=False,
    )
    """Training ends after this many saves in a row without a lower validation loss. 0: never."""
    sample_encoder: Literal["auto", "no", "download"] = setting(
        "auto",
        label="Image encoder of previews",
        choices={
            "auto": "CLIP, if it is on this machine",
            "no": "none",
            "download": "CLIP, downloaded if necessary",
        },
        terms="clip score similarity likeness aesthetic",
        affects_result=False,
    )
    """Measures how much previews resemble the images, and how well they follow their prompts. CLIP
    ViT-L/14 is a download of 1.7 GB (MIT licence).
    """

    def contradictions(self) -> Iterator[ConfigError]:
        if self.validation_dir is not None and self.validation_split:
            yield ConfigError(
                "validation_split and validation_dir are both set",
                hint="Leave validation_split at auto: the images in validation_dir are used.",
            )
        if self.early_stopping and self.validation_split == 0 and self.validation_dir is None:
            yield ConfigError(
                "early_stopping is {value}, but validation_split is 0: there is no validation loss",
                hint="Set validation_split to auto, or early_stopping to 0.",
                value=self.early_stopping,
            )


@dataclass(frozen=True, kw_only=True)
class SampleSettings(Settings):
    """Previews"""

    sample_prompts: tuple[str, ...] = setting(
        (),
        label="Preview prompts",
        text_label="Sample questions",
        text_help=(
            "Questions that the model answers during the training, one per line. Empty: none."
        ),
        audience="everyone",
        order=7,
        entry="lines",
        other_names=("prompts",),
        terms="sample previews",
        in_presets=False,
    )
    """Prompts for preview images during training, one per line. Empty: only one image at the
    end, from the first caption. For a language model: questions that it answers.
    """
    sample_negative_prompt: str = setting("", label="Preview negative prompt")
    """Negative prompt of the previews."""
    sample_every: int | None = setting(
        None,
        label="Preview every N steps",
        text_label="Sample answers every N steps",
        text_help=(
            "Ask the sample questions at this interval of steps. auto: whenever the LoRA is saved."
        ),
        bounds=(1, 1_000_000),
        terms="sample_every_n_steps",
    )
    """Generate previews at this interval of steps. auto: whenever the LoRA is saved, if there are
    sample_prompts.
    """
    sample_steps: int | None = setting(None, label="Preview sampling steps", bounds=(1, 150))
    """Sampling steps of a preview. auto: 20, or as few as a model was distilled to."""
    sample_size: int | None = setting(
        None, label="Preview size", unit="pixels", bounds=(64, 2048), step=64
    )
    """Side of a preview in pixels. auto: the training resolution."""
    sample_strengths: tuple[float, ...] = setting(
        (1.0,),
        label="Preview strengths",
        text_label="Strengths of sample answers",
        text_help=("LoRA strengths to answer with, such as 0, 1. 0 is the base model."),
        bounds=(0.0, 2.0),
    )
    """LoRA strengths to show, such as 0, 0.5, 1."""
    sample_sampler: Sampler = setting(
        "euler_a",
        label="Preview sampler",
        choices={
            "euler_a": ProperName("Euler a"),
            "dpmpp_2m_karras": ProperName("DPM++ 2M Karras"),
            "ddim": ProperName("DDIM"),
        },
    )
    """The sampler of the preview images."""
    sample_guidance: float | None = setting(
        None,
        label="Preview CFG scale",
        bounds=(0.0, 30.0),
        step=0.5,
        terms="cfg scale guidance distilled",
    )
    """CFG scale of the previews; of models with distilled guidance, that one. At 1 the negative
    prompt has no effect. auto: 7, or what is usual for the model.
    """
    sample_seed: int = setting(42, label="Preview seed", bounds=(0, 2**32 - 1))
    """Seed of the previews; the same for each, so that they can be compared."""


@dataclass(frozen=True, kw_only=True)
class LanguageSettings(Settings):
    """Language models"""

    for_images = False

    max_length: int | None = setting(
        None,
        label="Max length",
        unit="tokens",
        bounds=(16, 1_000_000),
        hint="512 to 2048 is usual.",
        other_names=("cutoff_len", "max_seq_length", "max_seq_len", "model_max_length"),
        terms="sequence length context",
    )
    """Longest conversation. Plain texts are divided into parts of this length. auto: 1024, or what
    the model was made for if that is less.
    """
    packing: bool = setting(
        False, label="Packing", other_names=("sample_packing",), terms="pack short examples"
    )
    """Put several short conversations or texts into one row of max_length tokens, without seeing
    each other: fewer, fuller steps.
    """
    system_prompt: str = setting(
        "", label="System prompt", entry="paragraph", terms="instruction role persona"
    )
    """Put in front of each conversation that has none of its own, in training and in answers."""
    load_in_4bit: bool = setting(
        False,
        label="Load in 4-bit",
        other_names=("quantization_bit", "use_4bit"),
        terms="qlora bitsandbytes nf4 quantize memory vram",
    )
    """Keep the base model in 4 bits (QLoRA): a third of the memory. Needs an NVIDIA card and the
    bitsandbytes package.
    """
    answer_length: int = setting(
        256,
        label="Answer length",
        unit="tokens",
        bounds=(1, 32_768),
        other_names=("max_new_tokens",),
        affects_result=False,
    )
    """Longest answer to a preview prompt, and of the command `ask`."""
    merge_lora: bool = setting(
        False, label="Merged model", terms="merge export", affects_result=False
    )
    """At the end also write the base model with the LoRA merged into it, for programs that load no
    LoRA.
    """


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """Saving the LoRA"""

    output_dir: Path = setting(
        label="Output folder", example="./output/my_style_lora", audience="elsewhere"
    )
    """The run's own folder: log, checkpoints, previews and the finished LoRA."""
    save_steps: int | None = setting(
        None,
        label="Save every N steps",
        bounds=(1, 10_000_000),
        other_names=("save_every_n_steps",),
        terms="checkpoint",
    )
    """Save the LoRA and a resume point at this interval of steps. auto: a tenth of the run, at most
    500 steps.
    """
    save_epochs: int | None = setting(
        None,
        label="Save every N epochs",
        bounds=(1, 100_000),
        other_names=("save_every_n_epochs",),
        terms="checkpoint",
    )
    """Also save the LoRA at this interval of epochs. auto: never."""
    keep_last: int | None = setting(
        None, label="Keep last N saves", bounds=(1, 100_000), terms="save_last_n_steps"
    )
    """Keep only this many saved steps. auto: all."""
    lora_dir: Path | None = setting(None, label="LoRA folder", audience="elsewhere")
    """Also put the finished LoRA here: the WebUI's models/Lora folder. auto: only in output_dir."""
    webui: WebUI | None = setting(
        None,
        label="WebUI",
        choices={
            "a1111": ProperName("A1111"),
            "forge": ProperName("Forge"),
            "reforge": ProperName("reForge"),
            "classic": ProperName("Forge Classic"),
            "neo": ProperName("Forge Neo"),
        },
        audience="elsewhere",
    )
    """The WebUI of lora_dir: the file beside the LoRA names the kind of model in its words, by
    which it lists the LoRA with that model. auto: A1111's words.
    """
    preferred_weight: float | None = setting(
        None,
        label="Recommended strength",
        bounds=(0.0, 2.0),
        step=0.05,
        audience="everyone",
        order=8,
        terms="preferred weight lora strength multiplier",
    )
    """The strength written beside the LoRA: a click on its card inserts <lora:NAME:0.7>. auto: the
    strength that was measured to be best, else 0.7.
    """

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


@dataclass(frozen=True, kw_only=True)
class CreditSettings(Settings):
    """Author and licence"""

    author: str = setting(
        "",
        label="Author",
        text_help=(
            "Who made the LoRA. Author, licence, description and "
            "credits are written into its model card."
        ),
        other_names=("metadata_author",),
        terms="creator artist credit metadata",
        affects_result=False,
    )
    """Who made the LoRA. Author, licence, description and image credits are written into its file,
    and shown on its card.
    """
    license: str = setting(
        "",
        label="Licence",
        other_names=("metadata_license", "licence"),
        terms="license rights copyright share permission metadata",
        affects_result=False,
    )
    """What others may do with the LoRA, such as CC-BY-4.0, CC-BY-NC-4.0 or: not to be shared."""
    description: str = setting(
        "",
        label="Description",
        text_help="What the LoRA knows, and how to use it.",
        entry="paragraph",
        other_names=("metadata_description",),
        terms="notes metadata card",
        affects_result=False,
        in_presets=False,
    )
    """What the LoRA shows, and how to use it."""
    training_comment: str = setting(
        "",
        label="Image credits",
        text_label="Credits of the texts",
        text_help="Who wrote the texts, and who agreed that they are used.",
        entry="paragraph",
        terms="rights consent artist copyright source note metadata",
        affects_result=False,
        in_presets=False,
    )
    """Who made the training images, and who agreed that they are used."""


GROUPS: tuple[tuple[str, type[Settings]], ...] = (
    ("dataset", DatasetSettings),
    ("checkpoint", CheckpointSettings),
    ("lora", LoraSettings),
    ("training", TrainingSettings),
    ("validation", ValidationSettings),
    ("samples", SampleSettings),
    ("language", LanguageSettings),
    ("output", OutputSettings),
    ("credits", CreditSettings),
)
ONLY_FOR_IMAGES = tuple(
    (
        "trigger_word resolution repeats enable_bucket bucket_step min_bucket_side max_bucket_side"
        " max_upscale caption_dropout shuffle_caption keep_tokens flip_augmentation background vae"
        " text_encoders tokenizers training_adapter prediction_type zero_terminal_snr"
        " timestep_distribution timestep_shift clip_skip max_token_length"
        " base_precision memory blocks_to_swap vae_tiling conv_rank conv_alpha"
        " train_text_encoder text_encoder_targets min_snr_gamma noise_offset sample_negative_prompt"
        " sample_steps sample_size sample_guidance webui"
    ).split()
)
"""Settings that a training on texts does not read, besides those that say what others do."""
NOT_SHOWN_FOR_TEXTS = (
    *ONLY_FOR_IMAGES,
    *"lora_type text_encoder_lr loss_weighting loss_type huber_c huber_schedule".split(),
    *"cache_latents keep_encoded sample_encoder sample_sampler sample_seed".split(),
    "preferred_weight",
)
"""Those that mean nothing to a person who trains on texts: also what has one value there, or is
resolved for images.
"""


FIXED_BY_THE_FIRST_STEP = tuple(
    item.name
    for _, group in GROUPS
    for item in schema.fields_of(group)
    if schema.about(item).fixed_by_the_first_step
)
"""Settings that determine the shape of the weights and cannot change on resume."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run."""

    dataset: DatasetSettings
    checkpoint: CheckpointSettings
    lora: LoraSettings
    training: TrainingSettings
    validation: ValidationSettings
    samples: SampleSettings
    language: LanguageSettings
    output: OutputSettings
    credits: CreditSettings

    def replace(self, **changes: Any) -> RunConfig:
        """The run with changed flat keys, validated."""
        return from_mapping({**to_mapping(self), **changes})


# --- resolving auto -------------------------------------------------------------------------------


def step_count_of(training: TrainingSettings, steps_per_epoch: int) -> int:
    """The number of steps of a run."""
    return training.max_train_steps or training.epochs * steps_per_epoch


def require_warmup_fits(training: TrainingSettings, step_count: int) -> None:
    """Raise ConfigError if the warm-up is as long as the run."""
    if training.lr_warmup_steps >= step_count:
        one = "lr_warmup_steps is {warmup}, but the run has only one step"
        several = "lr_warmup_steps is {warmup}, but the run has only {steps} steps"
        raise ConfigError(
            one if step_count == 1 else several,
            hint="Use about a tenth of the steps, or 0.",
            warmup=training.lr_warmup_steps,
            steps=step_count,
        )


def caches_on_disk(cache_latents: str, byte_count: int) -> bool:
    """Whether a cache of this size is kept on disk."""
    return cache_latents == "disk" or (cache_latents == "auto" and byte_count > MAX_CACHE_IN_MEMORY)


SETTLED = tuple(
    (
        "lora_rank lora_alpha learning_rate text_encoder_lr weight_decay save_steps sample_every"
        " sample_size"
    ).split()
)
"""The keys whose `auto` follows from other settings, the resolution and the number of steps."""


UNEVEN_HINT = "Set batch_size to a multiple of {processes}: it is that of all cards together."


def uneven(training: TrainingSettings, processes: int) -> Message | None:
    """A note on a step that leaves some of these processes with less to do than others."""
    count = training.batch_size * training.gradient_accumulation_steps
    if count % processes == 0:
        return None
    return Message(
        "a step has {count} examples, which {processes} cards cannot share evenly",
        {"count": count, "processes": processes},
    )


def unread(config: RunConfig, *, images: bool) -> list[str]:
    """The keys of settings that were changed, but mean nothing in a training on images, or else on
    texts.
    """
    keys = (
        [
            item.name
            for _, group in GROUPS
            if not group.for_images
            for item in schema.fields_of(group)
        ]
        if images
        else ONLY_FOR_IMAGES
    )
    changed = dict(to_mapping(config))
    usual = {
        item.name: schema.plain(item.default)
        for _, group in GROUPS
        for item in schema.fields_of(group)
    }
    return [key for key in keys if changed[key] != usual[key]]


def settle(config: RunConfig, resolution: int | None, step_count: int) -> RunConfig:
    """The run with every `auto` resolved that depends on resolution (in pixels; None: a training on
    texts) or number of steps.
    """
    training, samples = config.training, config.samples
    rank = config.lora.lora_rank or DEFAULT_RANK
    save_steps = config.output.save_steps or max(1, min(500, math.ceil(step_count / 10)))
    # computed values must be within the bounds; an image's side must be a multiple of 8
    size = resolution and (samples.sample_size or min(resolution, 2048)) // 8 * 8
    return config.replace(
        resolution=resolution,
        lora_rank=rank,
        lora_alpha=float(rank if config.lora.lora_alpha is None else config.lora.lora_alpha),
        **settled_rates(training),
        max_train_steps=step_count,
        save_steps=save_steps,
        sample_every=samples.sample_every or min(save_steps, 1_000_000),
        sample_size=size,
    )


def growth(config: RunConfig) -> dict[str, Any]:
    """The flat keys that change when a run's LoRA is trained further at twice the rank with half
    the steps. init_lora is the caller's.
    """
    steps = config.training.max_train_steps
    return {
        "lora_rank": 2 * (config.lora.lora_rank or DEFAULT_RANK),
        "lora_alpha": None,
        "max_train_steps": steps and math.ceil(steps / 2),
    }


# --- YAML <-> RunConfig ---------------------------------------------------------------------------


def read(path: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The run in a YAML file, with `changes` (flat keys) applied. Relative paths are relative to
    the working directory. Raises ConfigError with every problem.
    """
    values = schema.current_keys(GROUPS, schema.read_mapping(path))
    return from_mapping({**values, **schema.current_keys(GROUPS, changes or {})}, source=str(path))


def from_mapping(
    values: Mapping[str, Any], source: str = "the settings", base: Path | None = None
) -> RunConfig:
    """Flat keys -> RunConfig. Relative paths are resolved against `base` (default: the working
    directory). Raises ConfigError with every problem.
    """
    return RunConfig(**schema.groups_from_mapping(GROUPS, values, source, base))  # type: ignore[arg-type]


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """RunConfig -> flat keys with plain YAML values."""
    return {
        key: value
        for group_name, _ in GROUPS
        for key, value in schema.group_to_mapping(getattr(config, group_name)).items()
    }


def to_yaml(config: RunConfig) -> str:
    """RunConfig -> the text of config.yaml."""
    return schema.dump(to_mapping(config))


def commented_yaml(values: Mapping[str, Any] | None = None) -> str:
    """A YAML file with every key and its meaning; defaults other than `values` are commented
    out.
    """
    return schema.commented_yaml(GROUPS, values or {})


def readme_table() -> str:
    """The settings as Markdown tables, one a group, for README."""
    return schema.readme_table(GROUPS)


@cache
def documentation() -> dict[str, str]:
    """Key -> docstring under its field."""
    return {
        key: text for _, group in GROUPS for key, text in schema.documentation_of(group).items()
    }


def _is_colour(text: str) -> bool:
    if text in ("white", "black", "grey", "gray"):
        return True
    return (
        len(text) == 7
        and text[0] == "#"
        and all(character in "0123456789abcdefABCDEF" for character in text[1:])
    )
