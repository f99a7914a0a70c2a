"""What families of transformers have in common: flow matching, text encoders and a VAE in files of
their own, and checkpoints whose layers may hold several layers of the loaded model.

A family of these says which layer of the checkpoint holds each of the loaded model's
(`native_layers`); loading, the names in LoRA files and the sizes before a run follow from it.
Imports without torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint.detect import Detected, require_full_precision, usual_type
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.part_files import is_quantised
from lora_trainer.checkpoint.parts import (
    Component,
    Components,
    FlowSchedule,
    Parts,
    PredictionType,
    Schedule,
)
from lora_trainer.errors import CheckpointError
from lora_trainer.families.base import Family, NativePaths, NoiseProcess, Rows, Shape

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.folder import Folder

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "net.", "")
"""Prefixes of a denoiser's tensors in files."""


@dataclass(frozen=True)
class NativeLayer:
    """The layer of a checkpoint that a layer of the loaded model is, or is rows of."""

    path: str
    rows: Rows | None = None
    weight: tuple[str, ...] = ("weight",)
    """What `weight` is called there; the first that a file has."""
    halves_swapped: bool = False
    """Whether the two halves of its rows have changed places."""


class Transformer(Family):
    """A family of transformers."""

    is_flow = True
    webui_sampler = "Euler"
    webui_scheduler = "Simple"
    trains_text_encoders = False
    diffusers_parts: Mapping[str, str] = {"unet": "transformer"}

    # --- what a family says -----------------------------------------------------------------------

    @abstractmethod
    def native_layers(self, config: Mapping[str, Any]) -> Mapping[str, NativeLayer]:
        """The path of each module with weights of the loaded denoiser -> the checkpoint's layer.
        config: the denoiser's.
        """

    @abstractmethod
    def denoiser_config(self, header: Header, prefix: str, *, native: bool) -> dict[str, Any]:
        """The denoiser's configuration, from names and shapes. native: whether the names are the
        checkpoint's own, not diffusers'.
        """

    @abstractmethod
    def build_denoiser(self, config: Mapping[str, Any]) -> Any:
        """The denoiser, with arbitrary weights."""

    side: int
    """Native resolution in pixels."""
    native_mark: str
    """A tensor of every checkpoint under its own names."""
    diffusers_mark: str
    """A tensor of every checkpoint under diffusers' names."""

    # --- what follows -----------------------------------------------------------------------------

    def layout(self, header: Header) -> tuple[str, bool] | None:
        """(prefix, whether the names are the checkpoint's own) of the denoiser in a file."""
        for mark, native in ((self.native_mark, True), (self.diffusers_mark, False)):
            for prefix in PREFIXES:
                if prefix + mark in header.tensors:
                    return prefix, native
        return None

    def components(self, header: Header, detected: Detected) -> Components:
        from lora_trainer.checkpoint.tensors import tensors_of

        layout = self.layout(header)
        assert layout is not None, "it was recognised before"
        prefix, native = layout
        config = self.denoiser_config(header, prefix, native=native)
        layers = self.native_layers(config)
        denoiser = Component(
            part="UNet",
            config=config,
            tensors={
                name: at
                for name, at in tensors_of([header]).items()
                if name.startswith(prefix) and self.is_denoisers(name.removeprefix(prefix))
            },
            place=lambda name: (
                stored(name, layers, prefix, header) if native else Stored(prefix + name)
            ),
            build=self.build_denoiser,
            prefix=prefix,
        )
        return Components(unet=denoiser, text_encoders=(), vae=None)

    def is_denoisers(self, name: str) -> bool:
        """Whether a tensor at the denoiser's prefix, named without it, is one of its weights, and
        not of another part of an all-in-one file.
        """
        return True

    def folder_denoiser(self, folder: Folder) -> Component:
        """The denoiser of a diffusers folder."""
        from lora_trainer.checkpoint.tensors import tensors_of

        return Component(
            part="UNet",
            config=folder.unet.config,
            tensors=tensors_of(folder.unet.headers),
            place=Stored,
            build=self.build_denoiser,
        )

    def layer_shapes(self, path: Path, detected: Detected) -> dict[str, list[tuple[str, Shape]]]:
        if path.is_dir():
            folder = self.recognise_folder(path)
            assert folder is not None, "it was recognised before"
            found = [
                (name.removesuffix(".weight"), info.shape)
                for header in folder.unet.headers
                for name, info in header.tensors.items()
                if name.endswith(".weight") and len(info.shape) > 1
            ]
            return {"unet": found, "text_encoder": []}
        header = read_header(path)
        layout = self.layout(header)
        assert layout is not None, "it was recognised before"
        prefix, native = layout
        layers = self.native_layers(self.denoiser_config(header, prefix, native=native))
        found = []
        for name, layer in layers.items():
            shape = header.shape(f"{prefix}{layer.path if native else name}.weight")
            if shape is not None and len(shape) > 1:
                rows = layer.rows.count if layer.rows and native else shape[0]
                found.append((name, (rows, *shape[1:])))
        return {"unet": found, "text_encoder": []}

    def layer_names(self, parts: Parts) -> Callable[[str, str], str]:
        layers = self._layers_of(parts)
        return lambda part, path: self.lora_prefixes[part] + self._native(layers, part, path)

    def native_paths(self, parts: Parts) -> NativePaths:
        layers = self._layers_of(parts)
        return NativePaths(
            of_layer=lambda part, path: self._native(layers, part, path),
            as_hosts_read=lambda part, path: path,
        )

    def fused_rows(self, parts: Parts) -> Callable[[str, str], Rows | None]:
        layers = self._layers_of(parts)

        def rows(part: str, path: str) -> Rows | None:
            layer = layers.get(path) if part == "unet" else None
            return layer.rows if layer is not None else None

        return rows

    def _layers_of(self, parts: Parts) -> Mapping[str, NativeLayer]:
        return {} if parts.unet is None else self.native_layers(parts.unet.config)

    def _native(self, layers: Mapping[str, NativeLayer], part: str, path: str) -> str:
        if part == "unet" and path in layers:
            path = layers[path].path
        return self.flat_path(part, path)

    def native_resolution(self, prediction_type: PredictionType | None) -> int | None:
        return self.side

    @property
    def usual_resolution(self) -> int:
        return self.side

    def noise_process(self, schedule: Schedule, device: torch.device | str = "cpu") -> NoiseProcess:
        from lora_trainer.families.components.noise import Flow

        assert isinstance(schedule, FlowSchedule), "the schedule of a flow-matching model"
        return Flow(schedule, sampling=self.sampling_schedule(schedule))

    def sampling_schedule(
        self, trained: FlowSchedule
    ) -> FlowSchedule | Callable[[Shape, int], float] | None:
        """With which samples are made, as `Flow.sampling`; None: that of the training."""
        return None


def refuse_quantised(header: Header, prefix: str) -> None:
    """Raise CheckpointError for quantised weights at `prefix`; plain fp8 is accepted."""
    names = [name for name in header.tensors if name.startswith(prefix)]
    if is_quantised(names) or "scaled_fp8" in header.tensors:
        raise quantised(header.path, usual_type(header.tensors[name] for name in names))
    require_full_precision(header, prefix)


def quantised(path: Path, kind: str) -> CheckpointError:
    """The error for weights of this dtype with scales beside them."""
    return CheckpointError(
        "the weights in {path} are quantised, or have scales beside them ({kind})",
        hint=(
            "Use the model's bf16 or plain fp8 file; with base_precision int8 or fp8 it takes"
            " little memory in training."
        ),
        path=path,
        kind=kind,
    )


def stored(name: str, layers: Mapping[str, NativeLayer], prefix: str, header: Header) -> Stored:
    """The position of a denoiser's tensor under the checkpoint's own names."""
    module, _, kind = name.rpartition(".")
    if not module:
        return Stored(prefix + name)
    layer = layers[module]
    names = [
        f"{prefix}{layer.path}.{one}" for one in (layer.weight if kind == "weight" else (kind,))
    ]
    return Stored(
        next((one for one in names if one in header.tensors), names[0]),
        rows=None if layer.rows is None else (layer.rows.first, layer.rows.count),
        form="halves swapped" if layer.halves_swapped else "same",
    )


def count_blocks(header: Header, template: str) -> int:
    """The number of blocks: template has {i} for a block's number, and names a tensor of each."""
    count = 0
    while template.format(i=count) in header.tensors:
        count += 1
    return count


def shape_of(header: Header, name: str) -> Shape:
    """The shape of a tensor that every such file has. Raises CheckpointError."""
    found = header.shape(name)
    if not found:
        raise CheckpointError(
            "weights are missing from {path}: {examples}",
            hint="The file is incomplete. Choose another version of the checkpoint.",
            path=header.path,
            examples=name,
        )
    return found
