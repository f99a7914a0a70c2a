"""A checkpoint on disk, opened: a path goes in, its components come out one by one, each in the
type and on the device asked for.

    checkpoint = open_checkpoint(path)            # reads headers only
    encoders = checkpoint.load_text_encoders(torch.bfloat16, device)
    vae = checkpoint.load_vae(torch.float32, device)
    ...                                           # encode everything, let them go
    unet = checkpoint.load_unet(torch.bfloat16, device)

Called by training, previews and export. Works offline: configurations are drawn from the file
itself, tokenizers from an installed package.

A single .safetensors file in the WebUI's format and a diffusers folder look the same from here on:
each component is a configuration, the files that hold its tensors, and a place for each tensor. EMA
copies (`model_ema.*`) are left alone, as A1111 leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer.checkpoint import architecture, names
from lora_trainer.checkpoint.detect import Detected, detect, read_sidecar, stated_family
from lora_trainer.checkpoint.folder import FolderComponent, read_component, read_folder
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import Family, NoiseSchedule, Part, Parts, PredictionType
from lora_trainer.checkpoint.tensors import TensorAt, build_empty, fill, require_usable, tensors_of
from lora_trainer.checkpoint.tokenizer import load_tokenizers
from lora_trainer.errors import CheckpointError, Message


@dataclass(frozen=True, kw_only=True)
class Component:
    """One model before it is loaded."""

    part: Part
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorAt]
    place: Callable[[str], Stored]
    """Where a tensor of the model lies among `tensors`."""


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

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """How the checkpoint was trained to remove noise. For an SD2 file that does not say so, its
        UNet is loaded for a moment and asked.
        """
        prediction_type = (
            self.asked_prediction_type or self.detected.prediction_type or self._ask_unet()
        )
        zero_terminal_snr = (
            self.detected.zero_terminal_snr
            if self.asked_zero_terminal_snr is None
            else self.asked_zero_terminal_snr
        )
        if zero_terminal_snr and prediction_type == "epsilon":
            self._note(
                Message(
                    "zero_terminal_snr is on, but the model predicts epsilon, which has no answer"
                    " where only noise is left"
                )
            )
        return NoiseSchedule(
            prediction_type=prediction_type,
            zero_terminal_snr=zero_terminal_snr,
            beta_start=self.detected.beta_start,
            beta_end=self.detected.beta_end,
        )

    def load_unet(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """diffusers.UNet2DConditionModel."""
        unet = _load(self.unet, _build_unet, dtype, device)
        self._note_unused(unet)
        return unet

    def load_vae(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """diffusers.AutoencoderKL. In float16, SDXL's own VAE overflows to NaN: ask for bfloat16 or
        float32.
        """
        return _load(self.require_vae(), _build_vae, dtype, device)

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
        for component, build, wanted in (
            *((component, _build_text_encoder, dtype) for component in self.text_encoders),
            (self.require_vae(), _build_vae, torch.float32),
            (self.unet, _build_unet, dtype),
        ):
            model = _empty(component, build)
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
        """CLIPTextModel; for SDXL, CLIPTextModel and CLIPTextModelWithProjection.

        Clip skip n means `hidden_states[-n]`, then `text_model.final_layer_norm` (SD1, SD2), and 1
        is the default of both. SD2's encoder comes without its last layer, which SD2 never used, so
        that 1 is what A1111 computes at any setting of its clip skip slider, and Forge at 1. SDXL
        uses `hidden_states[-2]` of both encoders without the norm, whatever the clip skip (A1111's
        default), and the second one's `text_embeds` of the first 75-token chunk as the pooled
        state.
        """
        return tuple(
            _load(component, _build_text_encoder, dtype, device) for component in self.text_encoders
        )

    def tokenizers(self) -> tuple[Any, ...]:
        """transformers.CLIPTokenizer, one for each text encoder."""
        return load_tokenizers(self.family)

    def outline(self) -> Parts:
        """UNet and text encoders without their weights (on the meta device): enough to say which
        layers there are.
        """
        return Parts(
            family=self.family,
            schedule=NoiseSchedule(),
            unet=_empty(self.unet, _build_unet),
            text_encoders=tuple(
                _empty(component, _build_text_encoder) for component in self.text_encoders
            ),
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
        prefix = names.UNET_PREFIX if self.path.is_file() else ""
        used = {self.unet.place(name).name for name in unet.state_dict()}
        unused = [
            name for name in self.unet.tensors if name.startswith(prefix) and name not in used
        ]
        if unused:
            values = {"count": len(unused), "examples": ", ".join(unused[:3])}
            one, several = (
                "a weight of the UNet is of an unknown kind and is not used ({examples})",
                "{count} weights of the UNet are of an unknown kind and are not used ({examples})",
            )
            self._note(Message(one if len(unused) == 1 else several, values))

    def _note(self, message: Message) -> None:
        if message not in self.notes:
            self.notes.append(message)

    def _ask_unet(self) -> PredictionType:
        """What an SD2 UNet predicts, by its answer; for a member of other width the answer says
        nothing, and it is taken to predict epsilon.
        """
        if (
            self.unet.config["block_out_channels"][0] != 320
            or self.unet.config["cross_attention_dim"] != 1024
        ):
            self._note(
                Message(
                    "the file does not say what the model predicts; epsilon is assumed. Set"
                    " prediction_type if it was trained on v"
                )
            )
            return "epsilon"
        found: PredictionType = (
            "v_prediction"
            if answers_like_v_prediction(self.load_unet(torch.bfloat16))
            else "epsilon"
        )
        self._note(
            Message(
                "judged by its answers, the model predicts {kind}; set prediction_type if you know"
                " better",
                {"kind": found},
            )
        )
        return found


def answers_like_v_prediction(unet: Any) -> bool:
    """Whether an SD2 UNet predicts v: at the last timestep it answers a bright input with a dark
    output. Measured on the published weights.

    From A1111 1.10.1, modules/sd_models_config.py: mean(unet(x) - x) < -1 for x = 0.5 and text 0.5.
    """
    sample = torch.full((1, 4, 8, 8), 0.5, dtype=unet.dtype)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=unet.dtype)
    with torch.no_grad():
        answer = unet(sample, 999, encoder_hidden_states=text).sample
    return bool((answer - sample).float().mean() < -1)


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
        checkpoint.vae = _open_vae(Path(vae), checkpoint.family)
    return checkpoint


def _open_file(path: Path) -> Checkpoint:
    header = read_header(path)
    detected = detect(header, read_sidecar(path))
    family, tensors = detected.family, tensors_of([header])
    text_encoders = tuple(
        _text_encoder_in(header, layout, family, tensors) for layout in detected.text_encoders
    )
    config = architecture.unet_config(
        header, family, pooled_width=text_encoders[-1].config["projection_dim"]
    )
    modules = names.unet_modules(config)
    return Checkpoint(
        path=path,
        detected=detected,
        unet=Component(
            part="UNet",
            config=config,
            tensors=tensors,
            place=lambda name: names.stored_in_unet(name, modules),
        ),
        text_encoders=text_encoders,
        vae=_vae_in(header, family, names.VAE_PREFIX) if detected.has_vae else None,
        asked_prediction_type=None,
        asked_zero_terminal_snr=None,
    )


def _text_encoder_in(
    header: Header, layout: names.TextEncoderLayout, family: Family, tensors: Mapping[str, TensorAt]
) -> Component:
    config = architecture.text_encoder_config(header, layout, last_layer_unused=family == "sd2")
    config["with_projection"] = family == "sdxl" and layout.style == "open_clip"
    return Component(
        part="text encoder",
        config=config,
        tensors=tensors,
        place=lambda name: names.stored_in_text_encoder(name, layout),
    )


def _vae_in(header: Header, family: Family, prefix: str) -> Component:
    """A VAE in a WebUI file, or in a file of its own: with either prefix or none, in LDM's or
    diffusers' names.
    """
    config = architecture.vae_config(header, family, prefix=prefix)
    modules = names.vae_modules(config)
    tensors = tensors_of([header])
    place = partial(names.stored_in_vae, modules=modules, prefix=prefix, tensor_names=tensors)
    return Component(part="VAE", config=config, tensors=tensors, place=place)


def _open_folder(path: Path) -> Checkpoint:
    folder = read_folder(path)
    text_encoders = [
        _folder_component("text encoder", component) for component in folder.text_encoders
    ]
    for number, component in enumerate(text_encoders):
        text_encoders[number] = replace(
            component, config={**component.config, "with_projection": number == 1}
        )
    return Checkpoint(
        path=path,
        detected=folder.detected,
        unet=_folder_component("UNet", folder.unet),
        text_encoders=tuple(text_encoders),
        vae=_diffusers_vae(folder.vae.config, folder.vae.headers) if folder.vae else None,
        asked_prediction_type=None,
        asked_zero_terminal_snr=None,
    )


def _folder_component(part: Part, component: FolderComponent) -> Component:
    return Component(
        part=part, config=component.config, tensors=tensors_of(component.headers), place=Stored
    )


def _open_vae(path: Path, family: Family) -> Component:
    """A VAE by itself: a diffusers folder, or a file, cut out of a WebUI checkpoint or with bare
    names; or the one in another checkpoint.

    Raises CheckpointError where it says itself that it belongs to another family: names and shapes
    are the same in all.
    """
    if path.is_dir():
        component = read_component(path / "vae" if (path / "vae").is_dir() else path)
        stated = component.config.get("scaling_factor")
        if isinstance(stated, (int, float)) and not math.isclose(
            stated, architecture.LATENT_SCALE[family]
        ):
            raise _foreign_vae(path, family)
        return _diffusers_vae(
            {**component.config, "scaling_factor": architecture.LATENT_SCALE[family]},
            component.headers,
        )
    header = read_header(path)
    if (
        architecture.LATENT_SCALE.get(stated_family(header) or family)
        != architecture.LATENT_SCALE[family]
    ):
        raise _foreign_vae(path, family)
    for prefix in (names.VAE_PREFIX, ""):
        if prefix + "decoder.conv_in.weight" in header.tensors:
            return _vae_in(header, family, prefix)
    raise CheckpointError(
        "{path} holds no VAE",
        hint="Set vae to a VAE file for this kind of checkpoint, or to auto for the one inside.",
        path=path,
    )


def _foreign_vae(path: Path, family: Family) -> CheckpointError:
    hint = "Set vae to auto for the one inside base_model, or to a VAE made for its kind."
    if family == "sdxl":
        return CheckpointError(
            "the VAE in {path} is one of SD1 or SD2, which does not fit an SDXL checkpoint",
            hint=hint,
            path=path,
        )
    return CheckpointError(
        "the VAE in {path} is one of SDXL, which does not fit a checkpoint of SD1 or SD2",
        hint=hint,
        path=path,
    )


def _diffusers_vae(config: Mapping[str, Any], headers: Iterable[Header]) -> Component:
    # the defaults are diffusers' own: an old config.json states only what differs
    tensors, modules = (
        tensors_of(headers),
        names.vae_modules({"block_out_channels": (64,), "layers_per_block": 1, **config}),
    )
    return Component(
        part="VAE",
        config=config,
        tensors=tensors,
        place=partial(names.stored_in_vae, modules=modules, prefix="", tensor_names=tensors),
    )


def _build_unet(config: Mapping[str, Any]) -> Any:
    return UNet2DConditionModel.from_config(dict(config))


def _build_vae(config: Mapping[str, Any]) -> Any:
    return AutoencoderKL.from_config(dict(config))


def _build_text_encoder(config: Mapping[str, Any]) -> Any:
    values = dict(config)
    model_class = CLIPTextModelWithProjection if values.pop("with_projection") else CLIPTextModel
    return model_class(CLIPTextConfig.from_dict(values))


def _empty(component: Component, build: Callable[[Mapping[str, Any]], Any]) -> Any:
    return build_empty(lambda: build(component.config))


def _places(component: Component, model: Any) -> dict[str, Stored]:
    return {name: component.place(name) for name in model.state_dict()}


def _load(
    component: Component,
    build: Callable[[Mapping[str, Any]], Any],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    model = _empty(component, build)
    places = _places(component, model)
    return fill(
        model,
        places,
        component.tensors,
        part=component.part,
        dtype=dtype,
        device=torch.device(device),
    )
