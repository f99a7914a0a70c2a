"""What a LoRA file is: for `python -m lora_trainer inspect FILE`.

In: a .safetensors file of any origin and, if wanted, the layers of a base. Out: a Description, as text or JSON. Reads the header, and of the weights
what it takes to measure the effect; no GPU. Files that are not LoRA get a LoraFileError that says what they are.

Understood: kohya's and the WebUI's names (LoRA, LoCon, LoHa, LoKr, DoRA and their kin) and those of PEFT and diffusers, old and new.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from lora_trainer.checkpoint.header import Header, TensorInfo
from lora_trainer.checkpoint.parts import Family
from lora_trainer.errors import LoraFileError, Message
from lora_trainer.lora.file import read_header
from lora_trainer.lora.names import BaseModules, fits, sgm_name

FAMILY_NAMES: dict[Family, str] = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
PART_NAMES = {"unet": "UNet", "text_encoder": "text encoder", "text_encoder_2": "text encoder 2"}


@dataclass(frozen=True, kw_only=True)
class PartDescription:
    """The layers of one part of the model."""

    module_count: int
    effect: float | None
    """Root mean square of the change of a base weight at strength 1, alpha / rank * up @ down. None: not measured for this kind."""
    idle_modules: int
    """Layers that change nothing at all."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `inspect` shows."""

    path: Path
    byte_count: int
    kind: str
    """LoRA, LoCon, LoHa, LoKr, ..."""
    names: str
    """Whose key names: WebUI, diffusers, PEFT."""
    family: Family | None
    family_source: str
    parts: Mapping[str, PartDescription]
    parameter_count: int
    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    """Empty: the file has none, and the effect is up @ down."""
    scales: tuple[float, ...]
    """alpha / rank: what strength 1 multiplies up @ down by."""
    trigger: str | None
    step: int | None
    epoch: int | None
    base_model: str | None
    image_count: int | None
    resolutions: tuple[str, ...]
    title: str | None
    unmatched: tuple[str, ...] | None
    """Layers of the file that the base does not have. None: no base was given."""
    misshapen: tuple[str, ...] | None
    """Layers whose shapes do not fit the base's."""
    notes: tuple[Message, ...]
    """What its user should know, in sentences."""

    @property
    def module_count(self) -> int:
        return sum(part.module_count for part in self.parts.values())

    @property
    def does_nothing(self) -> bool:
        return self.module_count == sum(part.idle_modules for part in self.parts.values())

    def to_json(self) -> str:
        """All fields as JSON."""
        values = {**asdict(self), "path": str(self.path), "module_count": self.module_count, "does_nothing": self.does_nothing}
        values["notes"] = [str(note) for note in self.notes]
        return json.dumps(values, ensure_ascii=False, indent=2)

    def to_text(self) -> str:
        """A few aligned lines; what is not known is left out."""
        family = FAMILY_NAMES[self.family] if self.family else "unknown"
        lines = [
            ("file", f"{self.path} ({self.byte_count / 1e6:.2f} MB)"),
            ("title", self.title),
            ("kind", f"{self.kind}, {self.names} names"),
            ("family", f"{family} ({self.family_source})" if self.family_source else family),
            *((PART_NAMES.get(name, name), _part_line(part)) for name, part in self.parts.items()),
            ("parameters", f"{self.parameter_count:,} in {', '.join(self.dtypes)}"),
            ("rank", _numbers(self.ranks)),
            ("alpha", _numbers(self.alphas) or "none (same as the rank)"),
            ("scale", _numbers(self.scales) + " = alpha / rank" if self.scales else None),
            ("trigger", self.trigger),
            ("trained", _trained(self.step, self.epoch)),
            ("base model", self.base_model),
            ("images", self.image_count),
            ("resolution", ", ".join(self.resolutions)),
            ("unmatched", None if self.unmatched is None else _layers(self.unmatched, "none" if self.misshapen else FITS)),
            ("misshapen", _layers(self.misshapen, "none") if self.misshapen else None),
            *(("note", str(note)) for note in self.notes),
        ]
        return "\n".join(f"{label + ':':<16} {value}" for label, value in lines if value not in (None, ""))


def describe(path: Path, modules: BaseModules | None = None) -> Description:
    """Read a LoRA file. modules: the base's layers from `names.module_names`, to list what would not match.

    Raises LoraFileError for a file that is not a LoRA, or cannot be read.
    """
    header = read_header(Path(path))
    layers = _layers_in(header)
    if not layers:
        raise _not_a_lora(header)
    kind = _kind(header, layers)
    peft = any(".lora_A." in name for name in header.tensors)
    names = "WebUI" if any(layer.webui for layer in layers.values()) else "PEFT" if peft else "diffusers"
    family, source = _family(header, layers)
    effects = _Measure(header).effects(layers)
    part_names = sorted({layer.part for layer in layers.values()}, key=lambda part: (part != "unet", part))
    parts = {part: _part([name for name, layer in layers.items() if layer.part == part], effects) for part in part_names}
    alphas = _alphas(header, layers)
    ranks = {name: layer.rank for name, layer in layers.items() if layer.rank}
    scales = {alphas.get(name, rank) / rank for name, rank in ranks.items()}
    unmatched, misshapen = _compare(layers, modules) if modules is not None else (None, None)
    values = header.metadata
    return Description(
        path=Path(path), byte_count=header.file_size, kind=kind, names=names, family=family, family_source=source, parts=parts,
        parameter_count=sum(prod(info.shape) for name, info in header.tensors.items() if not name.endswith(".alpha")),
        dtypes=tuple(sorted({info.dtype for name, info in header.tensors.items() if not name.endswith(".alpha")})),
        ranks=tuple(sorted(set(ranks.values()))), alphas=tuple(sorted(set(alphas.values()))), scales=tuple(sorted(scales)),
        trigger=values.get("modelspec.trigger_phrase") or None, step=_whole(values.get("ss_steps")), epoch=_whole(values.get("ss_epoch")),
        base_model=_known(values.get("ss_sd_model_name")), image_count=_image_count(values), resolutions=_resolutions(values),
        title=values.get("modelspec.title") or _known(values.get("ss_output_name")), unmatched=unmatched, misshapen=misshapen,
        notes=tuple(_notes(names, family, values, parts, unmatched, len(layers))),
    )  # fmt: skip


# --- layers ------------------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Layer:
    """One adapted layer: its name up to the first weight's, and its weights by what comes after."""

    part: str
    webui: bool
    weights: dict[str, TensorInfo]

    @property
    def down(self) -> TensorInfo | None:
        return next((info for end, info in self.weights.items() if end in DOWN_ENDS), None)

    @property
    def up(self) -> TensorInfo | None:
        return next((info for end, info in self.weights.items() if end in UP_ENDS), None)

    @property
    def rank(self) -> int | None:
        if self.down:
            return self.down.shape[0]
        # LoHa and LoKr: the inner side of the first factor that is decomposed
        inner = next((info for end, info in self.weights.items() if end in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b")), None)
        return inner.shape[0] if inner else None


DOWN_ENDS = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight", "lora_linear_layer.down.weight", "_lora.down.weight")
UP_ENDS = ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora.up.weight", "lora_linear_layer.up.weight", "_lora.up.weight")
WEBUI_NAME = re.compile(r"(lora_(?:unet|te|te1|te2|te3|transformer)_[^.]+|(?:lycoris|oft_unet|oft_te\d?)_[^.]+)\.(.+)")
DIFFUSERS_NAME = re.compile(
    r"(.+?)(?:\.(lora_[AB](?:\.default)?\.weight|lora_magnitude_vector.*|lora\.(?:down|up)\.weight|lora_linear_layer\.(?:down|up)\.weight|alpha)"
    r"|(_lora\.(?:down|up)\.weight))"
)
LYCORIS_KINDS = {
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "a1.weight": "GLoRA", "diff": "full difference", "on_input": "IA3", "w_norm": "norms",
}  # fmt: skip


def _layers_in(header: Header) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    for key, info in header.tensors.items():
        match = WEBUI_NAME.fullmatch(key)
        if match:
            name, end, webui = match[1], match[2], True
        else:
            match = DIFFUSERS_NAME.fullmatch(key)
            if not match:
                continue
            name, end, webui = match[1], match[2] or match[3], False
        layers.setdefault(name, _Layer(part=_part_of(name), webui=webui, weights={})).weights[end] = info
    return {name: layer for name, layer in layers.items() if set(layer.weights) != {"alpha"}}


def _part_of(name: str) -> str:
    if name.startswith(("lora_te2_", "text_encoder_2.")):
        return "text_encoder_2"
    if name.startswith(("lora_te_", "lora_te1_", "oft_te", "text_encoder.")):
        return "text_encoder"
    if name.startswith(("lora_te3_", "text_encoder_3.")):
        return "text encoder 3"
    if name.startswith(("transformer.", "lora_transformer_")):
        return "transformer"
    if name.startswith("base_model.model.") or ".layers." in name:
        return "text_encoder" if "text_model" in name else "language model" if ".layers." in name else "unet"
    return "unet"


def _kind(header: Header, layers: Mapping[str, _Layer]) -> str:
    ends = {end for layer in layers.values() for end in layer.weights}
    kinds = list(dict.fromkeys(kind for start, kind in LYCORIS_KINDS.items() if any(end.startswith(start) for end in ends)))
    if any(layer.down for layer in layers.values()):
        convolution = any(layer.down and layer.down.shape[2:] not in ((), (1, 1)) for layer in layers.values())
        kinds.insert(0, "LoCon (LoRA with 3x3 convolutions)" if convolution else "LoRA")
    if any("dora_scale" in end or "lora_magnitude_vector" in end for end in ends):
        kinds.append("DoRA")
    if any(key.startswith("bundle_emb.") for key in header.tensors):
        kinds.append("bundled embedding")
    return " + ".join(kinds) or "unknown"


def _family(header: Header, layers: Mapping[str, _Layer]) -> tuple[Family | None, str]:
    """The family and what says so: the metadata, else the width of the text states that cross attention reads."""
    version, architecture = header.metadata.get("ss_base_model_version", ""), header.metadata.get("modelspec.architecture", "")
    if version.startswith("sdxl_") or architecture.startswith("stable-diffusion-xl"):
        return "sdxl", "metadata"
    if header.metadata.get("ss_v2") == "True" or architecture.startswith("stable-diffusion-v2"):
        return "sd2", "metadata"
    if version.startswith("sd_v1") or architecture.startswith("stable-diffusion-v1"):
        return "sd1", "metadata"
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in layers):
        return "sdxl", "two text encoders"
    widths = {layer.down.shape[1] for name, layer in layers.items() if layer.down and re.search(r"attn2[._](?:processor[._])?to_[kv]$", name)}
    families: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
    known = {families[width] for width in widths if width in families}
    if len(known) == 1 and len(widths) == 1:
        return known.pop(), f"text states of {widths.pop()} numbers"
    return None, ""


def _alphas(header: Header, layers: Mapping[str, _Layer]) -> dict[str, float]:
    measure = _Measure(header)
    return {name: measure.number(layer.weights["alpha"]) for name, layer in layers.items() if "alpha" in layer.weights}


# --- weights -----------------------------------------------------------------------------------------------------------------------------


class _Measure:
    """Reads single tensors out of a file."""

    def __init__(self, header: Header) -> None:
        self.header = header

    def tensor(self, info: TensorInfo) -> Any:
        """The tensor as float32."""
        import torch

        types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
        if info.dtype not in types:
            raise LoraFileError("{path} holds numbers of type {dtype}", hint="Convert it to fp16 first.", path=self.header.path, dtype=info.dtype)
        with self.header.path.open("rb") as stream:
            stream.seek(self.header.data_start + info.start)
            content = bytearray(stream.read(info.end - info.start))
        if not content:
            return torch.zeros(info.shape)
        return torch.frombuffer(content, dtype=types[info.dtype]).reshape(info.shape).float()

    def number(self, info: TensorInfo) -> float:
        # 2.7 in float32 is 2.7000000476...: seven digits are what it holds
        return float(f"{float(self.tensor(info).reshape(-1)[0]):.7g}")

    def effects(self, layers: Mapping[str, _Layer]) -> dict[str, float | None]:
        """Root mean square of alpha / rank * up @ down for each layer; None where the layer is of another kind."""
        return {name: self._effect(layer) for name, layer in layers.items()}

    def _effect(self, layer: _Layer) -> float | None:
        if layer.down is None or layer.up is None or any(end.startswith("lora_mid") for end in layer.weights):
            return None
        down, up = self.tensor(layer.down).flatten(1), self.tensor(layer.up).flatten(1)
        if up.shape[1] != down.shape[0]:
            return None
        scale = self.number(layer.weights["alpha"]) / down.shape[0] if "alpha" in layer.weights else 1.0
        # |up @ down|^2 = trace((up^T up)(down down^T)): small matrices instead of one of the base's size
        squares = float(((up.T @ up) * (down @ down.T)).sum())
        return abs(scale) * math.sqrt(max(squares, 0.0) / (up.shape[0] * down.shape[1])) if squares == squares else math.nan


def _part(names: list[str], effects: Mapping[str, float | None]) -> PartDescription:
    measured = [effect for name in names if (effect := effects[name]) is not None]
    mean = math.sqrt(sum(effect * effect for effect in measured) / len(measured)) if measured else None
    return PartDescription(module_count=len(names), effect=mean, idle_modules=sum(effects[name] == 0 for name in names))


# --- the base ----------------------------------------------------------------------------------------------------------------------------


def _compare(layers: Mapping[str, _Layer], modules: BaseModules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers that the base lacks, and those whose shape differs. SDXL's UNet goes by two sets of names; the hosts know both."""
    known = {_canonical(name): shape for name, shape in modules.items()}
    unmatched = tuple(name for name in layers if _canonical(name) not in known)
    misshapen = tuple(
        name for name, layer in layers.items()
        if layer.down and layer.up and (shape := known.get(_canonical(name))) is not None and not fits(shape, layer.down.shape, layer.up.shape)
    )  # fmt: skip
    return unmatched, misshapen


def _canonical(name: str) -> str:
    prefix = "lora_unet_"
    return prefix + sgm_name(name[len(prefix) :]) if name.startswith(prefix) else name


# --- metadata ----------------------------------------------------------------------------------------------------------------------------


def _object(values: Mapping[str, str], key: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(values.get(key, ""))
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _image_count(values: Mapping[str, str]) -> int | None:
    folders = [folder for folder in _object(values, "ss_dataset_dirs").values() if isinstance(folder, dict)]
    return sum(_whole(folder.get("img_count")) or 0 for folder in folders) if folders else _whole(values.get("ss_num_train_images"))


def _resolutions(values: Mapping[str, str]) -> tuple[str, ...]:
    """Bucket sizes, the most used first; else the resolution asked for."""
    buckets = _object(values, "ss_bucket_info").get("buckets")
    counts: dict[str, int] = {}
    for bucket in buckets.values() if isinstance(buckets, dict) else ():
        size = bucket.get("resolution") if isinstance(bucket, dict) else None
        if isinstance(size, list) and len(size) == 2:
            text = f"{size[0]}x{size[1]}"
            counts[text] = counts.get(text, 0) + (_whole(bucket.get("count")) or 0)
    if counts:
        return tuple(sorted(counts, key=lambda text: -counts[text]))
    asked = values.get("modelspec.resolution")
    return (asked,) if asked else ()


def _whole(value: Any) -> int | None:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _known(value: str | None) -> str | None:
    return None if value in (None, "", "None") else value


# --- sentences ---------------------------------------------------------------------------------------------------------------------------


def _notes(
    names: str, family: Family | None, values: Mapping[str, str], parts: Mapping[str, PartDescription], unmatched: tuple[str, ...] | None, total: int
) -> Iterator[Message]:
    if "language model" in parts:
        yield Message("This LoRA belongs to a language model; the WebUI cannot use it.")
    elif names != "WebUI":
        yield Message("The key names are those of diffusers: A1111 loads zero layers of such a file, and does not say so.")
    elif not values:
        yield Message("There is no metadata: A1111 cannot tell its family.")
    elif family == "sdxl" and not values.get("ss_base_model_version", "").startswith("sdxl_"):
        yield Message("The metadata does not say SDXL: A1111 takes it for SD1 and hides it while an SDXL model is loaded.")
    if sum(part.idle_modules for part in parts.values()) == total:
        yield Message("All its weights are zero: it changes nothing.")
    if any(part.effect is not None and not math.isfinite(part.effect) for part in parts.values()):
        yield Message("Some weights are not finite: pictures will be black or noise.")
    if unmatched:
        template = "{count} of {total} layers match nothing in this base model; the hosts pass over them."
        yield Message(template, {"count": len(unmatched), "total": total})


OTHER_FILES: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.")), "a checkpoint"),
    (lambda key: key.startswith("control_model."), "a ControlNet"),
    (lambda key: key.startswith(("first_stage_model.", "decoder.up", "encoder.down")), "a VAE"),
    (lambda key: key in ("emb_params", "clip_g", "clip_l") or key.startswith("string_to_param"), "an embedding"),
    (lambda key: key.startswith("text_model."), "a text encoder"),
    (lambda key: key.startswith(("down_blocks.", "conv_in.")), "a diffusers UNet"),
    (lambda key: key.startswith(("double_blocks.", "joint_blocks.", "transformer_blocks.")), "a FLUX or SD3 model"),
)


def _not_a_lora(header: Header) -> LoraFileError:
    for matches, what in OTHER_FILES:
        if any(matches(key) for key in header.tensors):
            return LoraFileError("{path} is {what}, not a LoRA", hint="`inspect` describes LoRA files.", path=header.path, what=what)
    example = next(iter(header.tensors))
    return LoraFileError("{path} holds no LoRA: it has weights such as {example}", hint="Choose a LoRA file.", path=header.path, example=example)


def _part_line(part: PartDescription) -> str:
    text = f"{part.module_count} layers"
    if part.effect is not None:
        text += f", typical change of a weight {part.effect:.2e}"
    return text + (f", {part.idle_modules} of them without effect" if part.idle_modules else "")


def _trained(step: int | None, epoch: int | None) -> str | None:
    pieces = [f"{number} {noun}{'' if number == 1 else 's'}" if number is not None else "" for number, noun in ((step, "step"), (epoch, "epoch"))]
    return ", ".join(piece for piece in pieces if piece) or None


def _numbers(values: Iterable[float]) -> str:
    listed = [f"{value:g}" for value in values]
    return ", ".join(listed) if len(listed) <= 8 else f"{len(listed)} different, {listed[0]} to {listed[-1]}"


FITS = "none: every layer fits the base model"


def _layers(names: tuple[str, ...], none: str) -> str:
    if not names:
        return none
    return f"{len(names)} {'layer' if len(names) == 1 else 'layers'}: " + ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
