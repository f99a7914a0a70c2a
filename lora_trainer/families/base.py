"""What the rest needs to know of a model family, and asks it for: `Family`.

Nothing outside this folder decides by a family's name. Methods that need torch import it when they
are called: this module, and each family's own, imports without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_trainer.settings.training import TEXT_ENCODER_TARGETS, UNET_TARGETS, LoraSettings

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.detect import Detected, Sidecar
    from lora_trainer.checkpoint.folder import Folder
    from lora_trainer.checkpoint.header import Header
    from lora_trainer.checkpoint.load import Checkpoint
    from lora_trainer.checkpoint.parts import Component, Components, Parts, PredictionType, Schedule

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TextStates:
    """What a model is told: hidden (B, length, C); where its family has them, pooled (B, P) and
    mask (B, length), which is 0 where a shorter text was filled up.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that are there, by their names."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device | str) -> TextStates:
        return self._each(lambda tensor: tensor.to(device))

    def detach(self) -> TextStates:
        return self._each(lambda tensor: tensor.detach())

    def row(self, index: int) -> TextStates:
        return self._each(lambda tensor: tensor[index : index + 1])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TextStates:
        return TextStates(**{name: change(tensor) for name, tensor in self.tensors().items()})


class Sampler(Protocol):
    """One way from noise to latents, in a given number of steps."""

    @property
    def times(self) -> Sequence[torch.Tensor]:
        """The noise levels to predict at, one a step, as `Family.predict` takes them."""

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """Normal noise -> the latents to begin with."""

    def scaled(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """What the model is shown of the latents at `time`."""

    def step(
        self,
        prediction: torch.Tensor,
        time: torch.Tensor,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The latents of the next step."""


class NoiseProcess(Protocol):
    """How a model was trained to remove noise: components/noise.py has the usual two. Times are
    what says how much noise there is, one number an image.
    """

    def draw(self, shape: Shape, generator: torch.Generator) -> torch.Tensor:
        """Times for latents of `shape`, (B,), on the CPU."""

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Latents at the noise level of their time, all (B, C, h, w)."""

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """What the model should predict."""

    @property
    def prediction_type(self) -> PredictionType | None:
        """What a diffusion model predicts; None for flow matching."""

    def snr(self, times: torch.Tensor) -> torch.Tensor:
        """Signal to noise, as powers: (B,) -> (B,), float32."""

    def progress(self, times: torch.Tensor) -> torch.Tensor:
        """How far on the way to pure noise: (B,) -> (B,), float32, 0 to 1."""

    def sampler(self, name: str, step_count: int, device: torch.device) -> Sampler:
        """The sampler of that setting; a process that has but one gives that."""

    def sampler_label(self, name: str) -> str:
        """What a WebUI calls the sampler that `sampler` gives."""


class Family(ABC):
    """One kind of model. A family is a value: nothing in it changes."""

    id: str
    """In events, kept facts and presets: sd1, sdxl."""
    name: str
    """What people call it: SDXL."""
    sd_version: str
    """The hosts' word for it in a LoRA's sidecar, `sd version`: SD1, SDXL. A host offers a LoRA
    only where it fits the loaded checkpoint.
    """
    latent_channels: int
    pixels_per_latent: int = 8
    """Side in pixels of what one latent stands for."""
    text_tensors: tuple[str, ...] = ("hidden",)
    """Which tensors of TextStates there are."""
    unet_targets: tuple[str, ...] = UNET_TARGETS
    """Layers that learn where target_modules is left at its default."""
    convolution_targets: tuple[str, ...] = ()
    """Layers that hold its convolutions and what belongs to them, for types of LoRA that learn
    those as well.
    """
    text_encoder_targets: tuple[str, ...] = TEXT_ENCODER_TARGETS
    """The same for text_encoder_targets."""
    has_clip_skip: bool = False
    """Whether clip_skip is told: in a LoRA's metadata, and in the tab."""
    caption_bytes: int = 77 * 2048 * 4
    """Of one caption's text states, at most."""
    has_empty_negative: bool = False
    """Whether an empty negative prompt is all zeros instead of the empty text's states."""

    def __repr__(self) -> str:
        return self.id

    # --- telling a checkpoint ---------------------------------------------------------------------

    @abstractmethod
    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        """What a single file is; None if it is of another family. CheckpointError for one of this
        family that cannot be trained on.
        """

    def recognise_folder(self, path: Path) -> Folder | None:
        """The same for a diffusers folder."""
        return None

    def is_named_by(self, version: str) -> bool:
        """Whether this `ss_base_model_version` of a LoRA is one of this family's."""
        return version == self.base_model_version(None)

    @abstractmethod
    def native_resolution(self, prediction_type: PredictionType | None) -> int | None:
        """Side in pixels of the square pictures it was made for. None: it depends on a prediction
        type that is not known.
        """

    @property
    @abstractmethod
    def usual_resolution(self) -> int:
        """The same where nothing else is known."""

    @property
    def largest_resolution(self) -> int:
        """The largest of the sizes that its checkpoints are made for."""
        return self.usual_resolution

    # --- opening and loading ----------------------------------------------------------------------

    @abstractmethod
    def components(self, header: Header, detected: Detected) -> Components:
        """Where the models of a file that `recognise` has told lie in it."""

    def folder_components(self, folder: Folder) -> Components:
        """The same for a folder that `recognise_folder` has told."""
        raise NotImplementedError

    @abstractmethod
    def vae_component(self, path: Path) -> Component:
        """A VAE in a file or folder of its own. CheckpointError if it does not fit."""

    @abstractmethod
    def tokenizers(self) -> tuple[Any, ...]:
        """One tokenizer for each text encoder."""

    @abstractmethod
    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        """How the checkpoint was trained to remove noise: what was asked for, else what it says."""

    @abstractmethod
    def layer_shapes(self, path: Path, detected: Detected) -> dict[str, list[tuple[str, Shape]]]:
        """The layers of a checkpoint from its header, as "unet" and "text_encoder": name and shape
        of each weight of two or more sides. Raises CheckpointError.
        """

    # --- encoding ---------------------------------------------------------------------------------

    @abstractmethod
    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        """How many tokens of max_token_length a caption takes."""

    @abstractmethod
    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        """Captions -> text states, one row each. Gradients flow if the text encoders' parameters
        ask for them.
        """

    def join(self, rows: Sequence[TextStates], empty: TextStates) -> TextStates:
        """Rows -> one batch. `empty`: the states of an empty caption, which may fill up shorter
        ones.
        """
        from lora_trainer.families.components.text import join_rows

        return join_rows(rows)

    def encode_pictures(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> moments (B, 2 x channels, h, w) float32 on the CPU:
        mean and standard deviation of the latent as the model is shown it.
        """
        from lora_trainer.families.components.vae import encode_image

        return encode_image(vae, pixels)

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, channels, h, w) -> pixels (B, 3, H, W) in [0, 1], float32 on the CPU."""
        from lora_trainer.families.components.vae import decode_latents

        return decode_latents(vae, latents)

    def kept_bytes(self, pixel_count: int, caption_count: int, mirrored: bool) -> int:
        """What encoded pictures and captions take, at most: float32, two numbers a channel, and
        `caption_bytes` for each 75 tokens.
        """
        pictures = pixel_count * (2 if mirrored else 1) * 2 * self.latent_channels * 4
        return pictures // self.pixels_per_latent**2 + caption_count * self.caption_bytes

    # --- noise and prediction ---------------------------------------------------------------------

    @abstractmethod
    def noise_process(self, schedule: Schedule, device: torch.device | str = "cpu") -> NoiseProcess:
        """The noise process of a checkpoint with this schedule."""

    @abstractmethod
    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        """The model's answer to noisy latents, (B, C, h, w), in the type the model computes in.

        sizes: (B, 6), original height and width, crop top and left, target height and width in
        pixels.
        """

    # --- the LoRA ---------------------------------------------------------------------------------

    def learning(self, settings: LoraSettings) -> LoraSettings:
        """The settings with this family's own layers where nobody asked for others."""
        asked, of_text = tuple(settings.target_modules), tuple(settings.text_encoder_targets)
        return replace(
            settings,
            target_modules=self.unet_targets if asked == UNET_TARGETS else asked,
            text_encoder_targets=(
                self.text_encoder_targets if of_text == TEXT_ENCODER_TARGETS else of_text
            ),
        )

    def may_learn(self, path: str) -> bool:
        """Whether a host finds a LoRA of the Linear or Conv2d layer at this path."""
        return True

    lora_prefixes: Mapping[str, str] = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    """What the names of a part's layers begin with in a LoRA file for a WebUI."""

    def host_path(self, path: str) -> str:
        """The flat path of a layer of the UNet as a LoRA file has it, from diffusers' or the
        checkpoint's.
        """
        return path

    def layer_names(self, parts: Parts) -> Callable[[str, str], str]:
        """A function from part and path to the layer's name in a LoRA file for a WebUI, without
        `.lora_down.weight` and the like: the one form that every host reads of every model is the
        path in the checkpoint file.
        """
        return lambda part, path: self.lora_prefixes[part] + self.flat_path(part, path)

    def flat_path(self, part: str, path: str) -> str:
        """A layer's path with underscores for dots, as LoRA files write it."""
        return path.replace(".", "_")

    def native_paths(self, parts: Parts) -> NativePaths:
        """The same layers' paths in the checkpoint file, for judging LoRA files of others: those of
        a family whose models are loaded under the file's own names.
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
class NativePaths:
    """Flat paths (underscores for dots) as LoRA files name layers -> the checkpoint's own."""

    of_layer: Callable[[str, str], str]
    """Part and path of a loaded model's layer."""
    as_hosts_read: Callable[[str, str], str]
    """Part and flat path in a WebUI's LoRA file, as hosts translate it; one that needs no
    translation is itself.
    """
