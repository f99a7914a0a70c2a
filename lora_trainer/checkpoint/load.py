"""Opens a checkpoint and loads its components one by one, in a given dtype and on a given device.

    checkpoint = open_checkpoint(path)            # reads headers only
    encoders = checkpoint.load_text_encoders(torch.bfloat16, device)
    vae = checkpoint.load_vae(torch.float32, device)
    ...                                           # encode everything, delete them
    unet = checkpoint.load_unet(torch.bfloat16, device)

Works offline: configurations come from the file, tokenizers from an installed package. Single-file
checkpoints and diffusers folders of all families are the same from here on: each component is a
configuration, its files' tensors, a mapping of names, and a function that builds the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lora_trainer.checkpoint.detect import Detected, Sidecar, detect, read_sidecar
from lora_trainer.checkpoint.folder import read_folder
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.part_files import FoundParts, find_parts
from lora_trainer.checkpoint.parts import (
    Component,
    Components,
    FlowSchedule,
    NoiseSchedule,
    PartFile,
    Parts,
    PredictionType,
    Schedule,
    TokenizerKind,
)
from lora_trainer.checkpoint.tensors import build_empty, fill, require_usable
from lora_trainer.checkpoint.tokenizer_files import (
    add_special_tokens,
    find_tokenizer,
    open_tokenizer,
    require_fitting,
)
from lora_trainer.cpu.convolutions import prepack_convolutions
from lora_trainer.errors import CheckpointError, Message
from lora_trainer.families.base import Family
from lora_trainer.frozen.layers import Precision
from lora_trainer.frozen.swap import keep
from lora_trainer.settings.training import CheckpointSettings


@dataclass(kw_only=True)
class Checkpoint:
    """An opened checkpoint. Holds no weights: each `load_*` reads them, and returns a frozen model
    in eval mode.
    """

    path: Path
    detected: Detected
    unet: Component
    text_encoders: tuple[Component, ...]
    vae: Component | None
    asked_prediction_type: PredictionType | None
    asked_zero_terminal_snr: bool | None
    asked_timestep_distribution: Literal["auto", "uniform", "logit_normal"] = "auto"
    asked_timestep_shift: float | None = None
    asked_tokenizers: Path | None = None
    """The folder with tokenizers, if one was asked for."""
    found: FoundParts | None = None
    """The parts in files of their own; None for a family without."""
    asked_vae: Path | None = None
    notes: list[Message] = field(default_factory=list)
    """Warnings about this checkpoint; `schedule` may add some."""
    fill: Callable[..., Any] = fill
    """Gives an empty model its weights: `tensors.fill`, or `tensors.empty_in` for none."""
    _tokenizer_paths: dict[str, Path] = field(default_factory=dict)
    _opened: dict[Path, Any] = field(default_factory=dict)
    """The tokenizers of these files."""
    _usable_in: set[torch.dtype] = field(default_factory=set)
    _outlines: list[tuple[Component, Any]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    """Components with their models on the meta device, until these are given their weights."""

    @property
    def family(self) -> Family:
        return self.detected.family

    @property
    def title(self) -> str:
        """The file's name without suffix, as in a WebUI's list."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def resolution(self) -> int | None:
        """Side in pixels of its training images, if stated."""
        return self.detected.resolution

    @property
    def native_resolution(self) -> int:
        """The same, else its family's."""
        return (
            self.resolution
            or self.family.native_resolution(self.schedule.prediction_type)
            or self.family.usual_resolution
        )

    @property
    def unet_parameter_count(self) -> int:
        """Number of weights of the UNet, from the header."""
        return sum(math.prod(at.info.shape) for at in self.unet.own_tensors.values())

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule. An SD2 UNet is loaded to determine its prediction type if the file
        does not state it.
        """
        found = self.family.schedule(self)
        if isinstance(found, FlowSchedule):
            return self._as_asked(found)
        return found

    def _as_asked(self, flow: FlowSchedule) -> FlowSchedule:
        if self.asked_timestep_distribution != "auto":
            flow = replace(flow, distribution=self.asked_timestep_distribution)
        if self.asked_timestep_shift is not None:
            flow = replace(flow, shift=self.asked_timestep_shift, by_tokens=None)
        return flow

    def load_unet(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        kept: Precision = "same",
        swapped: int = 0,
        prepacked: bool = False,
        added: Callable[[str], torch.Tensor | None] | None = None,
    ) -> Any:
        """kept: how the weights of its blocks are kept; swapped: the number of blocks whose weights
        stay in main memory; prepacked: whether the convolutions outside of 8-bit or swapped blocks
        are prepacked (cpu.convolutions); added: what is added to the weight of the layer at a path,
        or None.
        """
        unet = self._empty(self.unet)
        keep(self.family.blocks(unet), kept, swapped, torch.device(device))
        if prepacked:
            prepack_convolutions(unet)
        self._fill(self.unet, unet, dtype, device, added)
        self._note_unused(unet)
        return unet

    def load_vae(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """The VAE, in bfloat16 or float32: SDXL's overflows in float16."""
        return self._load(self.require_vae(), dtype, device)

    def require_vae(self) -> Component:
        """The VAE before loading. Raises CheckpointError if there is none."""
        if self.vae is None:
            raise CheckpointError(
                "{path} has no VAE",
                hint="Set vae to a VAE file for this kind of checkpoint.",
                path=self.path,
            )
        return self.vae

    def require_parts(self) -> None:
        """Raise CheckpointError if a part is missing: before anything is loaded."""
        if self.found is not None:
            self.found.require()
        self.require_vae()

    @property
    def vae_path(self) -> Path:
        """The file or folder that the VAE is read from."""
        return self._path_of("VAE") or self.asked_vae or self.path

    @property
    def text_encoder_paths(self) -> tuple[Path, ...]:
        """The files or folders that the text encoders are read from."""
        found = [one.path for one in self._parts_found("text encoder")]
        own = [self.path] if not found or len(found) < len(self.text_encoders) else []
        return tuple(dict.fromkeys([*found, *own]))

    @property
    def caption_paths(self) -> tuple[Path, ...]:
        """The same, and the tokenizers that `tokenizers` found: what captions are encoded with."""
        return *self.text_encoder_paths, *self._tokenizer_paths.values()

    @property
    def separate_paths(self) -> tuple[tuple[Path, ...], Path | None]:
        """What text_encoders and vae have to be for the same files: those apart from the
        checkpoint.
        """
        encoders = [found.path for found in self._parts_found("text encoder")]
        vae = self._path_of("VAE") or self.asked_vae
        apart = tuple(path for path in dict.fromkeys(encoders) if path != self.path)
        return apart, None if vae == self.path else vae

    def _parts_found(self, part: str) -> list[PartFile]:
        found = self.found.files.values() if self.found is not None else ()
        return [one for one in found if one.kind.part == part]

    def _path_of(self, part: str) -> Path | None:
        return next((one.path for one in self._parts_found(part)), None)

    def require_usable(self, dtype: torch.dtype) -> None:
        """Read every weight, once however often this is called. Raises CheckpointError for the
        first that is missing, of the wrong shape, or not finite in its dtype: found before encoding
        rather than in the first steps.
        """
        if dtype in self._usable_in:
            return
        for component, wanted in (
            *((component, dtype) for component in self.text_encoders),
            (self.require_vae(), torch.float32),
            (self.unet, dtype),
        ):
            model = self._outline(component)
            require_usable(
                model,
                _places(component, model),
                component.tensors,
                part=component.part,
                dtype=wanted,
            )
        self._usable_in.add(dtype)

    def load_text_encoders(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        kept: Precision = "same",
    ) -> tuple[Any, ...]:
        """In the family's order: for SDXL, CLIPTextModel and CLIPTextModelWithProjection.

        Clip skip n means `hidden_states[-n]`, then `text_model.final_layer_norm` (SD1, SD2); the
        default is 1. SD2's encoder is loaded without its unused last layer, so that 1 gives what
        A1111 computes at any clip skip, and Forge at 1. SDXL uses `hidden_states[-2]` of both
        encoders without the norm (A1111's default), and the second one's `text_embeds` of the first
        75-token chunk as the pooled state.
        """
        models = [self._empty(component) for component in self.text_encoders]
        for model in models:
            keep(self.family.text_encoder_blocks(model), kept, 0, torch.device(device))
        return tuple(
            self._fill(component, model, dtype, device)
            for component, model in zip(self.text_encoders, models, strict=True)
        )

    def tokenizers(self) -> tuple[Any, ...]:
        """One per text encoder. Raises CheckpointError if the file of one is missing, or does not
        belong to its text encoder.
        """
        found = self.family.tokenizers_from(self._open_tokenizer)
        paths = [*self._tokenizer_paths.values()]
        for tokenizer, encoder in zip(found, self.text_encoders, strict=False):
            size = encoder.config.get("vocab_size", encoder.config.get("target_vocab_size"))
            path = next((path for path in paths if tokenizer is self._opened.get(path)), None)
            if path is not None and size is not None:
                require_fitting(tokenizer, path, size, next(iter(encoder.tensors.values())).path)
        return found

    def _open_tokenizer(self, kind: TokenizerKind) -> Any:
        path = find_tokenizer(
            kind, self.path, asked=self.asked_tokenizers, beside=self.text_encoder_paths
        )
        self._tokenizer_paths[kind.id] = path
        tokenizer = open_tokenizer(path, kind)
        if add_special_tokens(tokenizer, path, kind):
            self.note(
                Message(
                    "{path} has no special tokens of {kind}, such as {token}: they were added",
                    {"path": path, "kind": kind.name, "token": kind.special[0]},
                )
            )
        self._opened[path] = tokenizer
        return tokenizer

    def outline(self) -> Parts:
        """UNet and text encoders on the meta device, to list their layers. Do not change them: the
        next `load_*` gives these very models their weights.
        """
        return Parts(
            family=self.family,
            schedule=NoiseSchedule(),
            unet=self._outline(self.unet),
            text_encoders=tuple(map(self._outline, self.text_encoders)),
        )

    def _outline(self, component: Component) -> Any:
        known = next((model for one, model in self._outlines if one is component), None)
        if known is None:
            known = build_empty(lambda: component.build(component.config))
            self._outlines.append((component, known))
        return known

    def _empty(self, component: Component) -> Any:
        """A model to be given its weights, the outline's if there is one: building one takes up to
        half a second.
        """
        model = self._outline(component)
        self._outlines = [pair for pair in self._outlines if pair[0] is not component]
        return model

    def load(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Parts:
        """Load all components."""
        return Parts(
            family=self.family,
            schedule=self.schedule,
            unet=self.load_unet(dtype, device),
            vae=self.load_vae(dtype, device),
            text_encoders=self.load_text_encoders(dtype, device),
            tokenizers=self.tokenizers(),
        )

    def _load(self, component: Component, dtype: torch.dtype, device: torch.device | str) -> Any:
        return self._fill(component, self._empty(component), dtype, device)

    def _fill(
        self,
        component: Component,
        model: Any,
        dtype: torch.dtype,
        device: torch.device | str,
        added: Callable[[str], torch.Tensor | None] | None = None,
    ) -> Any:
        return self.fill(
            model,
            _places(component, model),
            component.tensors,
            part=component.part,
            dtype=dtype,
            device=torch.device(device),
            buffers=component.buffers,
            added=added,
        )

    def _note_unused(self, unet: Any) -> None:
        """Warn of weights that the UNet does not have, which WebUIs ignore silently."""
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
        """Add a warning, once."""
        if message not in self.notes:
            self.notes.append(message)


def open_checkpoint(
    path: Path,
    *,
    vae: Path | None = None,
    text_encoders: Sequence[Path] = (),
    tokenizers: Path | None = None,
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto",
    zero_terminal_snr: bool | None = None,
    timestep_distribution: Literal["auto", "uniform", "logit_normal"] = "auto",
    timestep_shift: float | None = None,
) -> Checkpoint:
    """Open a .safetensors file in the WebUI's format, or a diffusers folder. Reads headers only.

    vae, text_encoders: files or diffusers folders to use instead. tokenizers: a folder of them.
    prediction_type, zero_terminal_snr, timestep_distribution, timestep_shift: override what was
    detected, or is the family's. Raises CheckpointError if it cannot be trained on; a part that is
    missing is an error only of `require_parts`.
    """
    path = Path(path)
    checkpoint = _open_folder(path) if path.is_dir() else _open_file(path)
    if prediction_type != "auto":
        checkpoint.asked_prediction_type = prediction_type
    checkpoint.asked_zero_terminal_snr = zero_terminal_snr
    checkpoint.asked_timestep_distribution = timestep_distribution
    checkpoint.asked_timestep_shift = timestep_shift
    checkpoint.asked_tokenizers = tokenizers
    if checkpoint.family.part_kinds:
        _add_parts(checkpoint, text_encoders, vae)
        return checkpoint
    for key, asked in (("text_encoders", text_encoders), ("tokenizers", tokenizers)):
        if asked:
            raise CheckpointError(
                "{key} is set, but checkpoints of {family} need none",
                hint="Set {key} to auto.",
                key=key,
                family=checkpoint.family.name,
            )
    if vae is not None:
        checkpoint.vae = checkpoint.family.vae_component(Path(vae))
        checkpoint.asked_vae = Path(vae)
    return checkpoint


def open_as_set(settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint of these settings. Raises CheckpointError."""
    return open_checkpoint(
        settings.base_model,
        vae=settings.vae,
        text_encoders=settings.text_encoders or (),
        tokenizers=settings.tokenizers,
        prediction_type=settings.prediction_type,
        zero_terminal_snr=settings.zero_terminal_snr,
        timestep_distribution=settings.timestep_distribution,
        timestep_shift=settings.timestep_shift,
    )


def _add_parts(checkpoint: Checkpoint, text_encoders: Sequence[Path], vae: Path | None) -> None:
    """Add the parts in files of their own. A diffusers folder has all; others may be asked for."""
    family, is_whole = checkpoint.family, bool(checkpoint.text_encoders)
    found = find_parts(
        checkpoint.path, checkpoint.detected, asked=text_encoders, vae=vae, whole=is_whole
    )
    components = {
        kind.id: family.part_component(found.files[kind.id])
        for kind in family.part_kinds
        if kind.id in found.files
    }
    kinds = [kind.id for kind in family.part_kinds if kind.part == "text encoder"]
    if is_whole:
        encoders = zip(kinds, checkpoint.text_encoders, strict=True)
        checkpoint.text_encoders = tuple(components.get(kind, own) for kind, own in encoders)
    elif all(kind in components for kind in kinds):
        checkpoint.text_encoders = tuple(components[kind] for kind in kinds)
    for kind in family.part_kinds:
        if kind.part == "VAE":
            checkpoint.vae = components.get(kind.id, checkpoint.vae)
    checkpoint.found = found
    for note in found.notes:
        checkpoint.note(note)


def _open_file(path: Path) -> Checkpoint:
    return open_header(read_header(path), read_sidecar(path))


def open_header(header: Header, sidecar: Sidecar | None = None) -> Checkpoint:
    """The checkpoint with this header. Raises CheckpointError."""
    detected = detect(header, sidecar)
    return _opened(header.path, detected, detected.family.components(header, detected))


def _open_folder(path: Path) -> Checkpoint:
    folder = read_folder(path)
    return _opened(path, folder.detected, folder.detected.family.folder_components(folder))


def _opened(path: Path, detected: Detected, components: Components) -> Checkpoint:
    checkpoint = Checkpoint(
        path=path,
        detected=detected,
        unet=components.unet,
        text_encoders=components.text_encoders,
        vae=components.vae,
        asked_prediction_type=None,
        asked_zero_terminal_snr=None,
    )
    for note in detected.notes:
        checkpoint.note(note)
    return checkpoint


def _places(component: Component, model: Any) -> dict[str, Stored]:
    return {name: component.place(name) for name in model.state_dict()}
