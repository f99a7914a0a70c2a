"""A checkpoint on disk, opened: a path goes in, its components come out one by one, each in the
type and on the device asked for.

    checkpoint = open_checkpoint(path)            # reads headers only
    encoders = checkpoint.load_text_encoders(torch.bfloat16, device)
    vae = checkpoint.load_vae(torch.float32, device)
    ...                                           # encode everything, let them go
    unet = checkpoint.load_unet(torch.bfloat16, device)

Called by training, previews and export. Works offline: configurations are drawn from the file
itself, tokenizers from an installed package.

A single .safetensors file in the WebUI's format and a diffusers folder look the same from here on,
and so do the families: each component is a configuration, the files that hold its tensors, a place
for each tensor, and what builds the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lora_trainer.checkpoint.detect import Detected, detect, read_sidecar
from lora_trainer.checkpoint.folder import read_folder
from lora_trainer.checkpoint.header import read_header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import (
    Component,
    Components,
    NoiseSchedule,
    Parts,
    PredictionType,
    Schedule,
)
from lora_trainer.checkpoint.tensors import build_empty, fill, require_usable
from lora_trainer.errors import CheckpointError, Message
from lora_trainer.families.base import Family


@dataclass(kw_only=True)
class Checkpoint:
    """An opened checkpoint. No weights are held: each `load_*` reads them anew and hands them over,
    in eval mode and frozen.
    """

    path: Path
    detected: Detected
    unet: Component
    text_encoders: tuple[Component, ...]
    vae: Component | None
    asked_prediction_type: PredictionType | None
    asked_zero_terminal_snr: bool | None
    notes: list[Message] = field(default_factory=list)
    """What the user should know about this checkpoint, in sentences; `schedule` may add to them."""

    @property
    def family(self) -> Family:
        return self.detected.family

    @property
    def title(self) -> str:
        """The file's name without its ending, as a WebUI lists it."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def resolution(self) -> int | None:
        """Side in pixels of the pictures it was made for, if the file says so."""
        return self.detected.resolution

    @property
    def native_resolution(self) -> int:
        """The same if the file does not say so, too."""
        return (
            self.resolution
            or self.family.native_resolution(self.schedule.prediction_type)
            or self.family.usual_resolution
        )

    @property
    def unet_parameter_count(self) -> int:
        """Weights of the UNet, from the header."""
        return sum(math.prod(at.info.shape) for at in self.unet.own_tensors.values())

    @cached_property
    def schedule(self) -> Schedule:
        """How the checkpoint was trained to remove noise. For an SD2 file that does not say so, its
        UNet is loaded for a moment and asked.
        """
        return self.family.schedule(self)

    def load_unet(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """The model that predicts."""
        unet = _load(self.unet, dtype, device)
        self._note_unused(unet)
        return unet

    def load_vae(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """The VAE. In float16, SDXL's own overflows to NaN: ask for bfloat16 or float32."""
        return _load(self.require_vae(), dtype, device)

    def require_vae(self) -> Component:
        """The VAE before it is loaded. Raises CheckpointError where there is none."""
        if self.vae is None:
            raise CheckpointError(
                "{path} has no VAE",
                hint="Set vae to a VAE file for this kind of checkpoint.",
                path=self.path,
            )
        return self.vae

    def require_usable(self, dtype: torch.dtype) -> None:
        """Reads every weight once. Raises CheckpointError for the first that is missing, does not
        fit, is not finite, or would not be in the type the UNet is loaded in: known before pictures
        are encoded, rather than by the first steps.
        """
        for component, wanted in (
            *((component, dtype) for component in self.text_encoders),
            (self.require_vae(), torch.float32),
            (self.unet, dtype),
        ):
            model = _empty(component)
            require_usable(
                model,
                _places(component, model),
                component.tensors,
                part=component.part,
                dtype=wanted,
            )

    def load_text_encoders(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[Any, ...]:
        """In the family's order: of SDXL, CLIPTextModel and CLIPTextModelWithProjection.

        Clip skip n means `hidden_states[-n]`, then `text_model.final_layer_norm` (SD1, SD2), and 1
        is the default of both. SD2's encoder comes without its last layer, which SD2 never used, so
        that 1 is what A1111 computes at any setting of its clip skip slider, and Forge at 1. SDXL
        uses `hidden_states[-2]` of both encoders without the norm, whatever the clip skip (A1111's
        default), and the second one's `text_embeds` of the first 75-token chunk as the pooled
        state.
        """
        return tuple(_load(component, dtype, device) for component in self.text_encoders)

    def tokenizers(self) -> tuple[Any, ...]:
        """One for each text encoder."""
        return self.family.tokenizers()

    def outline(self) -> Parts:
        """UNet and text encoders without their weights (on the meta device): enough to say which
        layers there are.
        """
        return Parts(
            family=self.family,
            schedule=NoiseSchedule(),
            unet=_empty(self.unet),
            text_encoders=tuple(_empty(component) for component in self.text_encoders),
        )

    def load(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Parts:
        """Everything at once."""
        return Parts(
            family=self.family,
            schedule=self.schedule,
            unet=self.load_unet(dtype, device),
            vae=self.load_vae(dtype, device),
            text_encoders=self.load_text_encoders(dtype, device),
            tokenizers=self.tokenizers(),
        )

    def _note_unused(self, unet: Any) -> None:
        """Weights the UNet has no place for: WebUIs leave them out without a word, and what they
        were for is lost.
        """
        used = {self.unet.place(name).name for name in unet.state_dict()}
        unused = [name for name in self.unet.own_tensors if name not in used]
        if unused:
            values = {"count": len(unused), "examples": ", ".join(unused[:3])}
            one = "a weight of the UNet is of an unknown kind and is not used ({examples})"
            several = (
                "{count} weights of the UNet are of an unknown kind and are not used ({examples})"
            )
            self.note(Message(one if len(unused) == 1 else several, values))

    def note(self, message: Message) -> None:
        """Something the user should know, said once."""
        if message not in self.notes:
            self.notes.append(message)


def open_checkpoint(
    path: Path,
    *,
    vae: Path | None = None,
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto",
    zero_terminal_snr: bool | None = None,
) -> Checkpoint:
    """Open a .safetensors file in the WebUI's format, or a diffusers folder. Reads headers only.

    vae: a VAE file (or diffusers folder) to use instead of the one inside. prediction_type and
    zero_terminal_snr: what to take the checkpoint for, instead of what it says. CheckpointError if
    it is of a kind that cannot be trained on.
    """
    path = Path(path)
    checkpoint = _open_folder(path) if path.is_dir() else _open_file(path)
    if prediction_type != "auto":
        checkpoint.asked_prediction_type = prediction_type
    checkpoint.asked_zero_terminal_snr = zero_terminal_snr
    if vae is not None:
        checkpoint.vae = checkpoint.family.vae_component(Path(vae))
    return checkpoint


def _open_file(path: Path) -> Checkpoint:
    header = read_header(path)
    detected = detect(header, read_sidecar(path))
    return _opened(path, detected, detected.family.components(header, detected))


def _open_folder(path: Path) -> Checkpoint:
    folder = read_folder(path)
    return _opened(path, folder.detected, folder.detected.family.folder_components(folder))


def _opened(path: Path, detected: Detected, components: Components) -> Checkpoint:
    return Checkpoint(
        path=path,
        detected=detected,
        unet=components.unet,
        text_encoders=components.text_encoders,
        vae=components.vae,
        asked_prediction_type=None,
        asked_zero_terminal_snr=None,
    )


def _empty(component: Component) -> Any:
    return build_empty(lambda: component.build(component.config))


def _places(component: Component, model: Any) -> dict[str, Stored]:
    return {name: component.place(name) for name in model.state_dict()}


def _load(component: Component, dtype: torch.dtype, device: torch.device | str) -> Any:
    model = _empty(component)
    places = _places(component, model)
    return fill(
        model,
        places,
        component.tensors,
        part=component.part,
        dtype=dtype,
        device=torch.device(device),
    )
