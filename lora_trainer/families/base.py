"""The interface of a model family, `Family`. Nothing outside this folder depends on a family's
name.

Imports without torch, as the families' modules do; methods import it when called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_trainer.settings.training import (
    TEXT_ENCODER_TARGETS,
    UNET_TARGETS,
    USUAL_STEPS,
    LoraSettings,
    SampleSettings,
)

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.detect import Detected, Sidecar
    from lora_trainer.checkpoint.folder import Folder
    from lora_trainer.checkpoint.header import Header
    from lora_trainer.checkpoint.load import Checkpoint
    from lora_trainer.checkpoint.parts import (
        Component,
        Components,
        Distilled,
        PartFile,
        PartKind,
        Parts,
        PredictionType,
        Schedule,
        TokenizerOpener,
    )

Shape = tuple[int, ...]
TILE = 512
"""Side in pixels of a tile with vae_tiling; a quarter of it overlaps the next one."""


@dataclass(frozen=True)
class TextStates:
    """Text conditioning: hidden (B, length, C); depending on the family, pooled (B, P) and mask (B,
    length), 0 for padding.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device | str) -> TextStates:
        """On the device. From page-locked memory they are copied without waiting for that."""
        asynchronous = str(device).startswith("cuda")
        return self._each(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def pin_memory(self) -> TextStates:
        """The same in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def detach(self) -> TextStates:
        return self._each(lambda tensor: tensor.detach())

    def row(self, index: int) -> TextStates:
        return self._each(lambda tensor: tensor[index : index + 1])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TextStates:
        return TextStates(**{name: change(tensor) for name, tensor in self.tensors().items()})


class Sampler(Protocol):
    """A sampler with a fixed number of steps."""

    @property
    def times(self) -> Sequence[torch.Tensor]:
        """The time of each step, as `Family.predict` takes it."""

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """Gaussian noise -> the initial latents."""

    def scaled(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The model's input for the latents at `time`."""

    def step(
        self,
        prediction: torch.Tensor,
        time: torch.Tensor,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The latents after the step."""


class NoiseProcess(Protocol):
    """How noise is added, and what the model predicts; components/noise.py has diffusion and flow
    matching. `times` are the noise levels, one number per image.
    """

    def draw(self, shape: Shape, generator: torch.Generator) -> torch.Tensor:
        """Random times for latents of `shape`, (B,), on the CPU."""

    def quantiles(self, shares: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The times below which these shares, in (0, 1), of the times drawn for latents of `shape`
        lie: (B,) -> (B,).
        """

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents, all (B, C, h, w)."""

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """The prediction target."""

    @property
    def prediction_type(self) -> PredictionType | None:
        """The prediction type of a diffusion model; None for flow matching."""

    def snr(self, times: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio in power: (B,) -> (B,), float32."""

    def progress(self, times: torch.Tensor) -> torch.Tensor:
        """Noise level from 0 (none) to 1 (pure noise): (B,) -> (B,), float32."""

    def sampler(self, name: str, step_count: int, device: torch.device, shape: Shape) -> Sampler:
        """The sampler of that name, for latents of `shape`; the name is ignored by a process that
        has only one.
        """

    def sampler_label(self, name: str) -> str:
        """The WebUI's name for that sampler."""


class Family(ABC):
    """A kind of model. Immutable."""

    id: str
    """In events, metadata and presets: sd1, sdxl."""
    name: str
    """Its usual name: SDXL."""
    sd_version: str
    """`sd version` in a LoRA's sidecar: SD1, SDXL. Hosts show only LoRAs that fit the loaded
    checkpoint.
    """
    packages: str = ""
    """The training libraries that it needs: a name in packages.FAMILY_PACKAGES; "": the worker's
    own set.
    """
    latent_channels: int
    pixels_per_latent: int = 8
    """Downscaling factor of the VAE."""
    side_multiple: int = 8
    """Sides of images in pixels are multiples of this."""
    text_tensors: tuple[str, ...] = ("hidden",)
    """The fields of TextStates that it uses."""
    unet_targets: tuple[str, ...] = UNET_TARGETS
    """Target layers if target_modules is at its default."""
    convolution_targets: tuple[str, ...] = ()
    """Convolutions and layers beside them, for LoRA types that train those too."""
    text_encoder_targets: tuple[str, ...] = TEXT_ENCODER_TARGETS
    """Target layers if text_encoder_targets is at its default."""
    has_clip_skip: bool = False
    """Whether clip_skip applies."""
    is_flow: bool = False
    """Whether it is a flow-matching model."""
    trains_text_encoders: bool = True
    """Whether its text encoders can learn."""
    text_needs_range: bool = False
    """Whether its text encoders overflow in fp16."""
    vae_needs_precision: bool = False
    """Whether its VAE encodes in float32 only."""
    caption_bytes: int = 77 * 2048 * 4
    """Largest size of one caption's text states."""
    has_empty_negative: bool = False
    """Whether an empty negative prompt is all zeros instead of the encoded empty string."""

    def __repr__(self) -> str:
        return self.id

    # --- detection --------------------------------------------------------------------------------

    @abstractmethod
    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        """What a single-file checkpoint is; None if of another family. Raises CheckpointError if of
        this family but not trainable.
        """

    def recognise_folder(self, path: Path) -> Folder | None:
        """The same for a diffusers folder."""
        return None

    def is_named_by(self, version: str) -> bool:
        """Whether a LoRA's `ss_base_model_version` means this family."""
        return version == self.base_model_version(None)

    @abstractmethod
    def native_resolution(self, prediction_type: PredictionType | None) -> int | None:
        """Side in pixels of its training images; None if that depends on an unknown prediction
        type.
        """

    @property
    @abstractmethod
    def usual_resolution(self) -> int:
        """The native resolution if nothing else is known."""

    @property
    def largest_resolution(self) -> int:
        """The largest native resolution of its checkpoints."""
        return self.usual_resolution

    # --- opening and loading ----------------------------------------------------------------------

    @abstractmethod
    def components(self, header: Header, detected: Detected) -> Components:
        """The models in a file accepted by `recognise`."""

    def folder_components(self, folder: Folder) -> Components:
        """The models in a folder accepted by `recognise_folder`."""
        raise NotImplementedError

    part_kinds: tuple[PartKind, ...] = ()
    """Parts that may be in separate files: text encoders in the family's order, then the VAE.
    Empty: single files of this family are complete, but for the setting `vae`.
    """

    def part_component(self, found: PartFile) -> Component:
        """A part in a file of its own, or in an all-in-one checkpoint."""
        raise NotImplementedError

    def vae_component(self, path: Path) -> Component:
        """A VAE in its own file or folder, for a family without `part_kinds`. Raises
        CheckpointError if it does not fit.
        """
        raise NotImplementedError

    def tokenizers(self) -> tuple[Any, ...]:
        """One tokenizer per text encoder, for a family whose tokenizers are installed."""
        raise NotImplementedError

    def tokenizers_from(self, open_kind: TokenizerOpener) -> tuple[Any, ...]:
        """One tokenizer per text encoder. open_kind: opens one that is not installed; raises
        CheckpointError.
        """
        return self.tokenizers()

    @abstractmethod
    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        """The checkpoint's noise schedule: from the settings, else detected."""

    @abstractmethod
    def layer_shapes(self, path: Path, detected: Detected) -> dict[str, list[tuple[str, Shape]]]:
        """Name and shape of each weight with two or more dimensions, for "unet" and "text_encoder",
        from the checkpoint's header. Raises CheckpointError.
        """

    # --- encoding ---------------------------------------------------------------------------------

    @abstractmethod
    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        """Number of tokens of a caption, as max_token_length counts them."""

    @abstractmethod
    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        """Captions -> text states, one row each. Differentiable with respect to trainable text
        encoders.
        """

    def longest_caption(self, max_token_length: int) -> int:
        """The number of tokens at which captions are cut."""
        return max_token_length if self.caption_tokens is None else self.caption_tokens

    def join(self, rows: Sequence[TextStates], empty: TextStates) -> TextStates:
        """Rows -> one batch. `empty`: the states of an empty caption, for padding."""
        from lora_trainer.families.components.text import join_rows

        return join_rows(rows)

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> moments (B, 2 x channels, h, w) float32 on the CPU:
        mean and standard deviation of the scaled latents.
        """
        from lora_trainer.families.components.vae import encode_image

        return encode_image(vae, pixels)

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, channels, h, w) -> pixels (B, 3, H, W) in [0, 1], float32 on the CPU."""
        from lora_trainer.families.components.vae import decode_latents

        return decode_latents(vae, latents)

    def tile(self, vae: Any) -> None:
        """Have the VAE take pictures of more than TILE pixels in tiles of that size."""
        from lora_trainer.families.components.vae import tile

        tile(vae, self.pixels_per_latent)

    def cache_bytes(self, pixel_count: int, caption_count: int, mirrored: bool) -> int:
        """Upper bound for the size of cached latents and captions: float32, two numbers per
        channel, `caption_bytes` per 75 tokens.
        """
        images = pixel_count * (2 if mirrored else 1) * 2 * self.latent_channels * 4
        return images // self.pixels_per_latent**2 + caption_count * self.caption_bytes

    # --- noise and prediction ---------------------------------------------------------------------

    @abstractmethod
    def noise_process(self, schedule: Schedule, device: torch.device | str = "cpu") -> NoiseProcess:
        """The noise process for this schedule."""

    @abstractmethod
    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        """The model's prediction for noisy latents, (B, C, h, w), in the model's dtype.

        sizes: (B, 6), original height and width, crop top and left, target height and width in
        pixels.
        """

    has_distilled_guidance: bool = False
    """Whether samples take one prediction, told how strong its guidance is, instead of two."""
    caption_tokens: int | None = None
    """The number of tokens at which captions are cut; None: as max_token_length says."""
    usual_guidance: float = 7.0
    """Guidance of samples for sample_guidance: auto."""
    distilled: Distilled | None = None
    """How those of its models make images that were distilled to few steps; None: it has none."""
    webui_sampler: str = ""
    """The name of the sampler that suits it in WebUIs; "": their default."""
    webui_scheduler: str = ""
    """The same of the noise schedule."""

    def usual_sampling(self, *, is_distilled: bool) -> tuple[int, float]:
        """Steps and guidance that suit a model."""
        if is_distilled and self.distilled is not None:
            return self.distilled.step_count, self.distilled.guidance
        return USUAL_STEPS, self.usual_guidance

    def webui_sampling(self, *, is_distilled: bool) -> tuple[int, float]:
        """Steps and CFG scale that suit a model in WebUIs, which have distilled guidance apart."""
        steps, guidance = self.usual_sampling(is_distilled=is_distilled)
        return steps, 1.0 if self.has_distilled_guidance else guidance

    def sampling(self, asked: SampleSettings, *, is_distilled: bool) -> dict[str, int | float]:
        """sample_steps and sample_guidance, for auto what suits the model."""
        usual = self.usual_sampling(is_distilled=is_distilled)
        keys = ("sample_steps", "sample_guidance")
        stated = (asked.sample_steps, asked.sample_guidance)
        return {
            key: own if value is None else value
            for key, value, own in zip(keys, stated, usual, strict=True)
        }

    def predict_sample(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        """`predict` for a sample. guidance: for a family with distilled guidance."""
        return self.predict(model, noisy, times, text, sizes)

    def text_encoder_blocks(self, encoder: Any) -> list[tuple[Any, ...]]:
        """The blocks of a text encoder whose layers may be kept in 8 bits, as `blocks`. Empty: it
        is small, or trained.
        """
        return []

    def blocks(self, model: Any) -> list[tuple[Any, ...]]:
        """The model's blocks in the order in which they run, each as the modules that hold its
        layers. Their linear and convolution layers may be kept in 8 bits, or in main memory. By
        default the members of the model's lists of modules.
        """
        from torch.nn import ModuleList

        return [
            (block,)
            for child in model.children()
            if isinstance(child, ModuleList)
            for block in child
        ]

    # --- the LoRA ---------------------------------------------------------------------------------

    def learning(self, settings: LoraSettings) -> LoraSettings:
        """The settings with this family's target layers in place of the default ones."""
        targets, text_targets = tuple(settings.target_modules), tuple(settings.text_encoder_targets)
        return replace(
            settings,
            target_modules=self.unet_targets if targets == UNET_TARGETS else targets,
            text_encoder_targets=(
                self.text_encoder_targets if text_targets == TEXT_ENCODER_TARGETS else text_targets
            ),
        )

    def may_learn(self, path: str) -> bool:
        """Whether hosts can apply a LoRA to the layer at this path."""
        return True

    lora_prefixes: Mapping[str, str] = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    """Prefixes of layer names in a LoRA file for a WebUI."""

    def host_path(self, path: str) -> str:
        """The flat path of a UNet layer in a LoRA file, from diffusers' or the checkpoint's."""
        return path

    def layer_names(self, parts: Parts) -> Callable[[str, str], str]:
        """A function (part, path) -> layer name in a LoRA file for a WebUI, without
        `.lora_down.weight` and the like. By default the path in the checkpoint, which hosts can
        read for every model.
        """
        return lambda part, path: self.lora_prefixes[part] + self.flat_path(part, path)

    def fused_rows(self, parts: Parts) -> Callable[[str, str], Rows | None]:
        """A function (part, path) -> the rows that a loaded layer has in the checkpoint's, where
        that has several layers in one; None: it is a layer of its own. `layer_names` then gives the
        same name for all of them, and the LoRA file has one adapter for all.
        """
        return lambda part, path: None

    diffusers_parts: Mapping[str, str] = {}
    """Part -> its name in a LoRA file in diffusers' form, where that is another: transformer."""

    def flat_path(self, part: str, path: str) -> str:
        """A layer's path with underscores for dots."""
        return path.replace(".", "_")

    def native_paths(self, parts: Parts) -> NativePaths:
        """The layers' paths in the checkpoint file, for evaluating other trainers' LoRA files. By
        default the same as in the loaded models.
        """
        return NativePaths(of_layer=self.flat_path, as_hosts_read=lambda part, path: path)

    @abstractmethod
    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        """ss_base_model_version."""

    @abstractmethod
    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        """modelspec.architecture, of https://github.com/Stability-AI/ModelSpec."""

    spec_implementation: str = "diffusers"
    """modelspec.implementation."""
    is_v2: bool = False
    """ss_v2."""


@dataclass(frozen=True)
class Rows:
    """Rows of the weight of a layer that holds several."""

    first: int
    count: int
    of: int
    """All rows of that layer."""


@dataclass(frozen=True)
class NativePaths:
    """Flat paths (underscores for dots) in LoRA files -> those of the checkpoint."""

    of_layer: Callable[[str, str], str]
    """For the part and path of a loaded model's layer."""
    as_hosts_read: Callable[[str, str], str]
    """For the part and flat path in a WebUI's LoRA file, as hosts translate it."""
