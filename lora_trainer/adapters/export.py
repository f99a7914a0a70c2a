"""Writes adapters as LoRA files, in the WebUI's or diffusers' form.

The file is read back and each key compared with the base's layers before it is renamed to its final
path, because the hosts silently ignore unknown keys.

    WebUI      lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha
        delta = alpha / rank * up @ down
    diffusers  unet.down_blocks.0...to_q.lora_A.weight, .lora_B.weight
        delta = B @ A

In diffusers' form the scale is multiplied into the weights: diffusers 0.35 reads alpha from a
metadata key, older versions and other programs assume alpha = rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from lora_trainer.adapters import types
from lora_trainer.adapters.base import ALPHA_END, Adapter, Form, LoraType
from lora_trainer.adapters.injected import Adapters
from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import LoraFileError
from lora_trainer.families.base import Rows
from lora_trainer.files import is_disk_full, replace_file
from lora_trainer.lora.file import encode_header, read_header, with_hashes
from lora_trainer.lora.names import (
    BaseModules,
    Shape,
    diffusers_name,
    diffusers_names,
    module_names,
)

DIFFUSERS_FILE_NAME = "pytorch_lora_weights.safetensors"
"""The default weight name of diffusers' `load_lora_weights`."""

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The contents of a LoRA file that was written and read back."""

    path: Path
    module_count: int
    dtype: str
    """F16, BF16 or F32"""
    idle_modules: int
    """Layers whose delta is zero."""

    @property
    def does_nothing(self) -> bool:
        """Whether no layer has an effect, as before the first step."""
        return self.idle_modules == self.module_count


def export(
    adapters: Adapters,
    parts: Parts,
    path: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
) -> ExportReport:
    """Write the adapters in the WebUI's form, with `metadata` and hashes. Raises LoraFileError if
    the file cannot be written or, read back, does not fit the base; `path` is then unchanged.
    """
    tensors: dict[str, torch.Tensor] = {}
    layer_name, rows_of = parts.family.layer_names(parts), parts.family.fused_rows(parts)
    fused: dict[str, list[tuple[Rows, Adapter]]] = {}
    for adapter in adapters.layers:
        name, rows = layer_name(adapter.part, adapter.path), rows_of(adapter.part, adapter.path)
        if rows is None:
            own = {end: tensor.to("cpu", dtype) for end, tensor in adapter.webui_tensors().items()}
            tensors |= _named(name, own, adapter.size.alpha)
        else:
            fused.setdefault(name, []).append((rows, adapter))
    for name, found in fused.items():
        pieces = sorted(found, key=lambda piece: piece[0].first)
        joined, alpha = adapters.type.joined(
            [(rows, adapter.size, adapter.webui_tensors()) for rows, adapter in pieces]
        )
        own = {end: tensor.to("cpu", dtype) for end, tensor in joined.items()}
        tensors |= _named(name, own, alpha)
    return _write_and_verify(path, tensors, metadata, module_names(parts), adapters.type, "webui")


def _named(name: str, tensors: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """One layer's tensors by their keys, with alpha."""
    # always float32: float16 would round an alpha of 2.7
    alpha_tensor = torch.tensor(alpha, dtype=torch.float32)
    return {**{name + end: one for end, one in tensors.items()}, name + ALPHA_END: alpha_tensor}


def export_diffusers(
    adapters: Adapters,
    parts: Parts,
    path: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
) -> ExportReport:
    """Write the adapters in diffusers' form, for `pipeline.load_lora_weights(path)`. Raises
    LoraFileError.
    """
    tensors: dict[str, torch.Tensor] = {}
    for adapter in adapters.layers:
        for end, tensor in adapter.diffusers_tensors().items():
            name = diffusers_name(parts.family, adapter.part, adapter.path)
            tensors[name + end] = tensor.to("cpu", dtype)
    metadata = {**metadata, "format": "pt"}
    names = diffusers_names(parts)
    return _write_and_verify(path, tensors, metadata, names, adapters.type, "diffusers")


def _write_and_verify(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    modules: BaseModules,
    lora_type: LoraType,
    form: Form,
) -> ExportReport:
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = _layout(order, tensors)
    content = b"".join(_bytes(tensors[name]) for name in order)
    complete = with_hashes(
        metadata, layout, [content], lambda start, length: content[start : start + length]
    )
    reports: list[ExportReport] = []

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:
            stream.write(encode_header(layout, complete))
            stream.write(content)
        reports.append(verify(partial, modules, lora_type, form=form))

    try:
        replace_file(path, write)
    except OSError as error:
        if is_disk_full(error):
            hint = "Free some space, then continue with `resume`: it starts from the last save."
            raise LoraFileError(
                "the disk is full: {path} could not be written", hint=hint, path=path
            ) from error
        reason = error.strerror or str(error)
        hint = (
            "Check the folder's permissions, then continue with `resume`: it starts from the "
            "last save."
        )
        raise LoraFileError(
            "the LoRA file {path} could not be written: {reason}",
            hint=hint,
            path=path,
            reason=reason,
        ) from error
    return ExportReport(**{**vars(reports[0]), "path": path})


def _layout(order: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    layout: dict[str, TensorInfo] = {}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        layout[name] = TensorInfo(
            dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), start=start, end=end
        )
        start = end
    return layout


def _bytes(tensor: torch.Tensor) -> bytes:
    # as uint8, because numpy has no bfloat16
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# --- reading back ---------------------------------------------------------------------------------


def verify(
    path: Path, modules: BaseModules, lora_type: LoraType | None = None, *, form: Form = "webui"
) -> ExportReport:
    """Read a LoRA file back and check it against the base's layers: every key must match one, with
    all tensors, fitting shapes and finite values.

    modules: `names.module_names(parts)` for the WebUI's form, `names.diffusers_names(parts)` for
    diffusers'. lora_type: plain LoRA by default. Raises LoraFileError.
    """
    lora_type = lora_type or types.get("lora")
    header = read_header(path)
    try:
        # not memory-mapped: Windows cannot rename a mapped file
        tensors = safetensors.torch.load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise LoraFileError(
            "{path} cannot be read back: {error}",
            hint="Check the disk, then export again.",
            path=path,
            error=error,
        ) from error
    found = _modules_in(path, tensors, lora_type.ends(form))
    known = {name: module for name, module in found.items() if name in modules}
    unfit = [name for name in known if not lora_type.fits(modules[name], _shapes(known[name]))]
    checks = (
        (NO_LAYER, [name for name in found if name not in modules]),
        (WRONG_SHAPE, unfit),
        (NOT_FINITE, [name for name, module in found.items() if not _is_finite(module)]),
    )
    for (template, hint), names in checks:
        if names:
            raise LoraFileError(
                template, hint=hint, path=path, count=len(names), total=len(found), example=names[0]
            )
    return ExportReport(
        path=path,
        module_count=len(found),
        dtype=_dtype(header.tensors),
        idle_modules=sum(lora_type.is_idle(module) for module in found.values()),
    )


NO_LAYER = (
    "{count} of {total} layers in {path} match no layer of the base, such as {example}",
    "WebUIs would ignore them. Compare the base model with the one the LoRA was trained on.",
)
WRONG_SHAPE = (
    "{count} of {total} layers in {path} have shapes that do not fit the base, such as {example}",
    "The LoRA belongs to another base model, or to another family.",
)
NOT_FINITE = (
    (
        "{count} of {total} layers in {path} have NaN or infinite values in this number format,"
        " such as {example}"
    ),
    "Export as float32 or bf16, or go back to an earlier saved step.",
)


def _modules_in(
    path: Path, tensors: Mapping[str, torch.Tensor], ends: Sequence[str]
) -> dict[str, dict[str, torch.Tensor]]:
    """{layer: {key suffix: tensor}}."""
    names = [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    explained = {name + end for name in names for end in (*ends, ALPHA_END)}
    strange = [name for name in tensors if name not in explained] + [
        name + end for name in names for end in ends if name + end not in tensors
    ]
    if strange or not names:
        hint = "Export again; if it happens twice, please report it."
        raise LoraFileError(
            "{path} is not a complete LoRA: {name} is unexpected or missing",
            hint=hint,
            path=path,
            name=(strange or ends)[0],
        )
    return {
        name: {end: tensors[name + end] for end in (*ends, ALPHA_END) if name + end in tensors}
        for name in names
    }


def _shapes(module: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {end: tuple(tensor.shape) for end, tensor in module.items() if end != ALPHA_END}


def _is_finite(module: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.values())


def _dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The weights' dtype; alphas are always float32."""
    return next(info.dtype for key, info in tensors.items() if not key.endswith(ALPHA_END))
