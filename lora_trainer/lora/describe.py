"""Describes a LoRA file, for `python -m lora_trainer inspect FILE`.

Reads the header of a .safetensors file of any trainer, or PEFT's folder, and weights as needed to
measure the effect; optionally compares with a base's layers. Other files get a LoraFileError that
says what they are. Key names and what WebUIs load: layouts.py. Alpha: scales.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.checkpoint.detect import stated_resolution
from lora_trainer.checkpoint.header import Header, TensorInfo
from lora_trainer.errors import LoraFileError, Message
from lora_trainer.lora import host_layers, loading
from lora_trainer.lora.convert import can_convert
from lora_trainer.lora.credits import Credits
from lora_trainer.lora.file import find_in_folder, read_header
from lora_trainer.lora.layouts import (
    FAMILIES,
    SD,
    TEXT,
    TEXT_2,
    TEXT_3,
    UNET,
    Layer,
    families_of,
    form_of,
    layers_in,
)
from lora_trainer.lora.metadata import SAMPLING, STEP, STRENGTH, TRAINING_ADAPTER, VERDICT
from lora_trainer.lora.names import BaseLayers, fits
from lora_trainer.lora.scales import Scales, scales_of
from lora_trainer.lora.tensors import read_number, read_tensor

PART_NAMES = {
    UNET: "denoiser",
    TEXT: "text encoder",
    TEXT_2: "text encoder 2",
    TEXT_3: "text encoder 3",
}


@dataclass(frozen=True, kw_only=True)
class PartDescription:
    """The layers of one part of the model."""

    module_count: int
    effect: float | None
    """Root mean square of the weight delta at strength 1; None if not measured for this kind."""
    idle_modules: int
    """Layers whose delta is zero."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The result of `inspect`."""

    path: Path
    byte_count: int
    kind: str
    """LoRA, LoCon, LoHa, LoKr, ..."""
    names: str
    """The naming scheme: kohya, ComfyUI, diffusers, OneTrainer ..."""
    named_layers: str
    """"diffusers' layers" or "the model's own layers"; empty if unknown, or both."""
    families: tuple[str, ...]
    """Possible families: sd1, sdxl, flux ..."""
    family_source: str
    parts: Mapping[str, PartDescription]
    parameter_count: int
    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    """Empty if not stated."""
    alpha_source: str
    """Where alpha is stated, if not in the weights."""
    scales: tuple[float, ...] | None
    """alpha / rank. Empty: there is no rank. None: unknown."""
    square_root: bool
    """Whether the scale is alpha / sqrt(rank)."""
    trigger: str | None
    step: int | None
    epoch: int | None
    base_model: str | None
    image_count: int | None
    resolutions: tuple[str, ...]
    title: str | None
    credits: Credits
    verdict: str | None
    """What its trainer judged: which step is best."""
    strength: str | None
    """The strength to use it at, if stated."""
    sampling: str | None
    """Steps and CFG scale of images with it, if its base was distilled."""
    unmatched: tuple[str, ...] | None
    """Layers that the base does not have. None: no base was given."""
    misshapen: tuple[str, ...] | None
    """Layers whose shapes do not fit the base's."""
    hosts: tuple[Message, ...]
    """What each WebUI loads of it."""
    notes: tuple[Message, ...]
    """Warnings for its user."""

    @property
    def family(self) -> str | None:
        """The family, if unique."""
        return self.families[0] if len(self.families) == 1 else None

    @property
    def module_count(self) -> int:
        return sum(part.module_count for part in self.parts.values())

    @property
    def does_nothing(self) -> bool:
        return self.module_count == sum(part.idle_modules for part in self.parts.values())

    def to_mapping(self) -> dict[str, Any]:
        """All fields, as JSON."""
        values = {
            **asdict(self),
            "path": str(self.path),
            "family": self.family,
            "module_count": self.module_count,
            "does_nothing": self.does_nothing,
        }
        values |= {
            "hosts": [str(host) for host in self.hosts],
            "notes": [str(note) for note in self.notes],
        }
        mapping: dict[str, Any] = _json_able(values)
        return mapping

    def to_json(self) -> str:
        return json.dumps(self.to_mapping(), ensure_ascii=False, indent=2, allow_nan=False)

    def to_text(self) -> str:
        """A few aligned lines, without unknown values."""
        family = " or ".join(FAMILIES[family].name for family in self.families) or "unknown"
        ratio = "alpha / sqrt(rank)" if self.square_root else "alpha / rank"
        lines = [
            ("file", f"{self.path} ({self.byte_count / 1e6:.2f} MB)"),
            ("title", self.title),
            ("description", " ".join(self.credits.description.split())),
            ("author", self.credits.author),
            ("licence", self.credits.license),
            ("image credits", " ".join(self.credits.training_comment.split())),
            (
                "kind",
                f"{self.kind}, {self.names} names"
                + (f" of {self.named_layers}" if self.named_layers else ""),
            ),
            ("family", f"{family} ({self.family_source})" if self.family_source else family),
            *((self._part_name(name), _part_line(part)) for name, part in self.parts.items()),
            ("parameters", f"{self.parameter_count:,} in {', '.join(self.dtypes)}"),
            ("rank", _numbers(self.ranks)),
            ("alpha", self._alpha_line()),
            (
                "scale",
                (
                    "unknown"
                    if self.scales is None
                    else f"{_numbers(self.scales)} = {ratio}"
                    if self.scales
                    else None
                ),
            ),
            ("trigger", self.trigger),
            ("trained", _trained(self.step, self.epoch)),
            ("verdict", self.verdict),
            ("strength", self.strength),
            ("sampling", self.sampling),
            ("base model", self.base_model),
            ("images", self.image_count),
            ("resolution", ", ".join(self.resolutions)),
            (
                "unmatched",
                (
                    None
                    if self.unmatched is None
                    else _layers(self.unmatched, "none" if self.misshapen else FITS)
                ),
            ),
            ("misshapen", _layers(self.misshapen, "none") if self.misshapen else None),
            *(("WebUIs", host) for host in self._host_lines()),
            *(("note", str(note)) for note in self.notes),
        ]
        return "\n".join(
            f"{label + ':':<16} {value}" for label, value in lines if value not in (None, "")
        )

    def _alpha_line(self) -> str | None:
        if self.alphas:
            return _numbers(self.alphas) + (f" ({self.alpha_source})" if self.alpha_source else "")
        if self.scales is None:
            return "not known"
        return "none (same as the rank)" if self.ranks else None

    def _host_lines(self) -> list[str]:
        """What each WebUI loads, as one line if the same for all."""
        found = [{**host.values, "host": "", "template": host.template} for host in self.hosts]
        if len(found) < 2 or found.count(found[0]) < len(found):
            return [str(host) for host in self.hosts]
        *names, last = (host.values["host"] for host in self.hosts)
        return [
            TOGETHER[self.hosts[0].template].format(
                **{**self.hosts[0].values, "hosts": f"{', '.join(names)} and {last}"}
            )
        ]

    def _part_name(self, part: str) -> str:
        return "UNet" if part == UNET and set(self.families) <= SD else PART_NAMES.get(part, part)


def _base_model(values: Mapping[str, str]) -> str | None:
    name, adapter = _known(values.get("ss_sd_model_name")), _known(values.get(TRAINING_ADAPTER))
    return f"{name or 'unknown'}, with the training adapter {adapter}" if adapter else name


def _json_able(value: Any) -> Any:
    """`value` with non-finite floats as strings: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _json_able(inner) for key, inner in value.items()}
    return [_json_able(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def describe(path: Path, base: BaseLayers | None = None) -> Description:
    """Describe a LoRA file, or the one in a folder. base: from `names.base_layers`, to list what
    does not match.

    Raises LoraFileError only.
    """
    path = find_in_folder(Path(path))
    header = read_header(path)
    layers = layers_in(header)
    if not layers:
        raise _not_a_lora(header)
    measure = _Measure(header)
    families, source = families_of(layers, header.metadata)
    scales = scales_of(header, layers, measure.number)
    sizes = {name: measure.size(layer) for name, layer in layers.items()}
    part_names = sorted(
        {layer.part for layer in layers.values()}, key=lambda part: (part != UNET, part)
    )
    parts = {
        part: _part([name for name, layer in layers.items() if layer.part == part], sizes, scales)
        for part in part_names
    }
    unmatched, misshapen = _compare(layers, base) if base is not None else (None, None)
    numbers = [info for name, info in header.tensors.items() if not name.endswith(".alpha")]
    layouts = [
        layout
        for layout, _ in Counter(layer.layout.name for layer in layers.values()).most_common()
    ]
    known, values = None not in scales.by_layer.values(), header.metadata
    description = Description(
        path=path,
        byte_count=header.file_size,
        kind=_kind(header, layers),
        names=" and ".join(layouts),
        named_layers=_named_layers(layers, families),
        families=families,
        family_source=source,
        parts=parts,
        parameter_count=sum(prod(info.shape) for info in numbers),
        dtypes=tuple(sorted({info.dtype for info in numbers})),
        ranks=tuple(sorted({layer.rank for layer in layers.values() if layer.rank})),
        alphas=scales.alphas,
        alpha_source=scales.source,
        scales=scales.known if known else None,
        square_root=scales.square_root,
        trigger=values.get("modelspec.trigger_phrase") or None,
        step=_whole(values.get("ss_steps", values.get(STEP))),
        epoch=_whole(values.get("ss_epoch")),
        base_model=_base_model(values),
        image_count=_image_count(values),
        resolutions=_resolutions(values),
        title=values.get("modelspec.title") or _known(values.get("ss_output_name")),
        credits=Credits.of(values),
        verdict=values.get(VERDICT) or None,
        strength=values.get(STRENGTH) or None,
        sampling=_known(values.get(SAMPLING)),
        unmatched=unmatched,
        misshapen=misshapen,
        hosts=(),
        notes=(),
    )
    hosts = tuple(_hosts(header, layers, families, {*(unmatched or ()), *(misshapen or ())}))
    return replace(
        description, hosts=hosts, notes=tuple(_notes(description, layers, values, measure))
    )


# --- layers ---------------------------------------------------------------------------------------


def _kind(header: Header, layers: Mapping[str, Layer]) -> str:
    found = {kind for layer in layers.values() for kind in layer.kinds if kind}
    kinds = [kind for kind in KINDS if kind in found]
    if "LoRA" in kinds and any(
        "LoRA" in layer.kinds and layer.kernel not in ((), (1, 1)) for layer in layers.values()
    ):
        kinds[0] = "LoCon (LoRA with 3x3 convolutions)"
    if "OFT" in kinds and any(
        len(info.shape) == 4
        for layer in layers.values()
        for role, info in layer.roles.items()
        if role == "blocks"
    ):
        kinds[kinds.index("OFT")] = "BOFT"
    if any(key.startswith("bundle_emb.") for key in header.tensors):
        kinds.append("bundled embedding")
    return " + ".join(kinds)


KINDS = (
    "LoRA",
    "LoHa",
    "LoKr",
    "OFT",
    "BOFT",
    "GLoRA",
    "full difference",
    "IA3",
    "norms",
    "VeRA",
    "DoRA",
)
"""In order of output."""
FORM_NAMES = {
    "native": "the model's own layers",
    "diffusers": "diffusers' layers",
    "processor": "diffusers' layers",
}


def _named_layers(layers: Mapping[str, Layer], families: tuple[str, ...]) -> str:
    forms = (
        {FORM_NAMES[form_of(layer, families[0])] for layer in layers.values() if layer.part == UNET}
        if families
        else set()
    )
    return forms.pop() if len(forms) == 1 else ""


# --- weights --------------------------------------------------------------------------------------


class _Measure:
    """Reads single tensors of a file."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.unread = set[str]()
        """Dtypes that this torch does not support."""

    def tensor(self, info: TensorInfo) -> Any:
        """The tensor as float32; None for an unsupported dtype."""
        values = read_tensor(self.header, info)
        if values is None:
            self.unread.add(info.dtype)
        return values

    def number(self, info: TensorInfo) -> float | None:
        return read_number(self.header, info)

    def size(self, layer: Layer) -> float | None:
        """Root mean square of up @ down, or None for another kind of layer."""
        down, up = layer.roles.get("down"), layer.roles.get("up")
        if down is None or up is None or "mid" in layer.roles or "magnitude" in layer.roles:
            return None
        if (
            len(down.shape) < 2
            or len(up.shape) < 2
            or prod(up.shape[1:]) != down.shape[0]
            or 0 in (*up.shape, *down.shape)
        ):
            return None
        read = self.tensor(down), self.tensor(up)
        if any(tensor is None for tensor in read):
            return None
        a, b = (tensor.flatten(1) for tensor in read)
        # |up @ down|^2 = trace((up^T up)(down down^T)): use the smaller matrices
        small = a.shape[0] <= min(a.shape[1], b.shape[0])
        squares = float(((b.T @ b) * (a @ a.T)).sum() if small else (b @ a).pow(2).sum())
        if squares == squares:
            return math.sqrt(max(squares, 0.0) / (b.shape[0] * a.shape[1]))
        return math.nan


def _part(names: list[str], sizes: Mapping[str, float | None], scales: Scales) -> PartDescription:
    effects = [
        abs(scale) * size
        for name in names
        if (size := sizes[name]) is not None and (scale := scales.by_layer.get(name)) is not None
    ]
    mean = math.sqrt(sum(effect * effect for effect in effects) / len(effects)) if effects else None
    idle = sum(sizes[name] == 0 or scales.by_layer.get(name) == 0 for name in names)
    return PartDescription(module_count=len(names), effect=mean, idle_modules=idle)


# --- the base -------------------------------------------------------------------------------------


def _compare(
    layers: Mapping[str, Layer], base: BaseLayers
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers that the base does not have, and those whose shapes differ."""
    found = {
        name: base.find(layer.part, layer.path, flat=layer.layout.flat)
        for name, layer in layers.items()
    }
    unmatched = tuple(name for name, its in found.items() if its is None)
    misshapen = tuple(
        name
        for name, its in found.items()
        if its is not None and not _fits(layers[name], its.shape)
    )
    return unmatched, misshapen


def _fits(layer: Layer, shape: tuple[int, ...]) -> bool:
    down, up, mid = (layer.roles.get(role) for role in ("down", "up", "mid"))
    if down and up:
        return fits(shape, (*down.shape[:2], *mid.shape[2:]) if mid else down.shape, up.shape)
    return layer.width in (None, shape[1], prod(shape[1:])) and layer.height in (None, shape[0])


# --- metadata -------------------------------------------------------------------------------------


def _object(values: Mapping[str, str], key: str) -> Mapping[str, Any]:
    try:
        parsed = files.parse_json(values.get(key, ""))
    except files.NotJson:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _image_count(values: Mapping[str, str]) -> int | None:
    folders = [
        folder for folder in _object(values, "ss_dataset_dirs").values() if isinstance(folder, dict)
    ]
    if folders:
        return sum(_whole(folder.get("img_count")) or 0 for folder in folders)
    return _whole(values.get("ss_num_train_images"))


def _resolutions(values: Mapping[str, str]) -> tuple[str, ...]:
    """Bucket sizes, most used first; else the stated resolution."""
    buckets = _object(values, "ss_bucket_info").get("buckets")
    counts: dict[str, int] = {}
    for bucket in buckets.values() if isinstance(buckets, dict) else ():
        size = bucket.get("resolution") if isinstance(bucket, dict) else None
        if (
            isinstance(size, list)
            and len(size) == 2
            and all(isinstance(side, int) and 0 < side < 100_000 for side in size)
        ):
            text = f"{size[0]}x{size[1]}"
            counts[text] = counts.get(text, 0) + (_whole(bucket.get("count")) or 0)
    if counts:
        return tuple(sorted(counts, key=lambda text: -counts[text]))
    stated = stated_resolution(values)
    return (f"{stated[0]}x{stated[1]}",) if stated else ()


def _whole(value: Any) -> int | None:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _known(value: str | None) -> str | None:
    return None if value in (None, "", "None") else value


# --- sentences ------------------------------------------------------------------------------------


def _hosts(
    header: Header, layers: Mapping[str, Layer], families: tuple[str, ...], lost: set[str]
) -> Iterator[Message]:
    """A sentence per WebUI; for an ambiguous family only if it is the same for all candidates.
    lost: layers that the base does not have.
    """
    for host, name in SHOWN.items():
        messages = [
            _host_message(host, name, header, layers, family, lost)
            for family in families or tuple(FAMILIES)
        ]
        known = [message for message in messages if message is not None]
        if known and all(message == known[0] for message in known):
            yield known[0]


SHOWN = {
    host: host_layers.HOST_NAMES[host]
    for host in (host_layers.A1111, host_layers.FORGE, host_layers.NEO)
}
"""The WebUIs of a description; the others read the same names as one of them."""


def _host_message(
    host: str,
    name: str,
    header: Header,
    layers: Mapping[str, Layer],
    family: str,
    lost: set[str],
) -> Message | None:
    """None if it is not known which layers the family has."""
    models = host_layers.models_of(family)
    if not models and host == host_layers.NEO:
        return None
    if not any(host_layers.runs(host, model) for model in models):
        return Message(
            "{host} does not run {family} models.", {"host": name, "family": FAMILIES[family].name}
        )
    # shapes are compared with the base, or by the certificate
    found = max(
        (loading.load(header, layers, host, model, compare=False) for model in models),
        key=lambda one: one.matched,
    )
    loaded = [layer for layer in found.loaded if layer not in lost]
    values = {
        "host": name,
        "loaded": len(loaded),
        "count": len(layers),
        "unmatched": found.unmatched,
        "keys": found.keys,
    }
    if found.rejected and found.matched:
        return Message(
            "{host} does not know {unmatched} of its {keys} keys, and ignores the whole file.",
            values,
        )
    if not loaded:
        return Message(
            (
                "{host} does not load its only layer."
                if len(layers) == 1
                else "{host} loads none of its {count} layers."
            ),
            values,
        )
    if len(loaded) < len(layers):
        return Message("{host} loads {loaded} of its {count} layers.", values)
    return Message("{host} loads all its layers.", {"host": name})


TOGETHER = {
    "{host} does not run {family} models.": "{hosts} do not run {family} models.",
    "{host} does not load its only layer.": "{hosts} do not load its only layer.",
    "{host} loads none of its {count} layers.": "{hosts} load none of its {count} layers.",
    "{host} does not know {unmatched} of its {keys} keys, and ignores the whole file.": (
        "{hosts} do not know {unmatched} of its {keys} keys, and ignore the whole file."
    ),
    "{host} loads {loaded} of its {count} layers.": "{hosts} load {loaded} of its {count} layers.",
    "{host} loads all its layers.": "{hosts} load all its layers.",
}
"""The same for several WebUIs."""


def _notes(
    description: Description,
    layers: Mapping[str, Layer],
    values: Mapping[str, str],
    measure: _Measure,
) -> Iterator[Message]:
    family, total = description.family, len(layers)
    if "language model" in description.parts:
        yield Message("This LoRA belongs to a language model; the WebUI cannot use it.")
        return
    models = loading.models_in(layers, values)
    renamable = can_convert(layers, models, families=description.families)
    if renamable:
        yield Message(
            "A copy that every WebUI loads: python -m lora_trainer inspect FILE --fix"
            " COPY.safetensors"
        )
    elif not values and description.families and set(description.families) <= SD:
        yield Message("There is no metadata: A1111 cannot tell its family.")
    elif family and not values.get("ss_base_model_version", "").startswith(
        FAMILIES[family].version
    ):
        yield Message(
            "The metadata does not say SDXL: A1111 takes it for SD1 and hides it while an SDXL"
            " model is loaded."
        )
    if not renamable or description.scales is None:
        # the converted copy has alpha in the weights
        yield from _scale_notes(description)
    if sum(part.idle_modules for part in description.parts.values()) == total:
        yield Message("All its weights are zero: it changes nothing.")
    effects = (part.effect for part in description.parts.values())
    if any(effect is not None and not math.isfinite(effect) for effect in effects):
        yield Message("Some weights are NaN or infinite: images will be black or noise.")
    if measure.unread:
        yield Message(
            "Weights of type {types} were not measured.",
            {"types": ", ".join(sorted(measure.unread))},
        )
    if description.unmatched:
        template = "{count} of {total} layers match nothing in this base model; WebUIs ignore them."
        yield Message(template, {"count": len(description.unmatched), "total": total})


def _scale_notes(description: Description) -> Iterator[Message]:
    if description.scales is None:
        yield Message(
            "Alpha is stated neither in the file nor in an adapter_config.json beside it; the"
            " WebUIs take it to be the rank."
        )
    elif description.alpha_source and description.scales not in ((), (1.0,)):
        values = {"source": description.alpha_source, "strength": _numbers(description.scales)}
        yield Message(
            "The WebUIs do not read alpha from {source}: there a strength of {strength} has the"
            " effect of 1.",
            values,
        )


OTHER_FILES: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key.startswith("lllite_"), "a ControlNet-LLLite"),
    (
        lambda key: key in ("lora_controlnet", "controlnet_cond_embedding.conv_in.weight"),
        "a ControlNet",
    ),
    (
        lambda key: key.startswith(
            ("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.")
        ),
        "a checkpoint",
    ),
    (lambda key: key.startswith("control_model."), "a ControlNet"),
    (lambda key: key.startswith(("first_stage_model.", "decoder.up", "encoder.down")), "a VAE"),
    (
        lambda key: key in ("emb_params", "clip_g", "clip_l") or key.startswith("string_to_param"),
        "an embedding",
    ),
    (
        lambda key: key.startswith(
            ("text_model.", "encoder.block.", "shared.", "model.layers.", "model.embed_tokens.")
        ),
        "a text encoder",
    ),
    (lambda key: key.startswith(("down_blocks.", "conv_in.")), "a diffusers UNet"),
    (
        lambda key: key.startswith(("double_blocks.", "joint_blocks.", "transformer_blocks.")),
        "a FLUX or SD3 model",
    ),
    (
        lambda key: key.startswith(
            ("net.blocks.", "cap_embedder.", "x_embedder.", "patch_embedding.", "txt_norm.")
        ),
        "a diffusion transformer",
    ),
)


def _not_a_lora(header: Header) -> LoraFileError:
    for matches, what in OTHER_FILES:
        if any(matches(key) for key in header.tensors):
            return LoraFileError(
                "{path} is {what}, not a LoRA",
                hint="`inspect` describes LoRA files.",
                path=header.path,
                what=what,
            )
    example = next(iter(header.tensors))[:200]
    return LoraFileError(
        "{path} holds no LoRA: it has weights such as {example}",
        hint="Choose a LoRA file.",
        path=header.path,
        example=example,
    )


def _part_line(part: PartDescription) -> str:
    text = f"{part.module_count} {'layer' if part.module_count == 1 else 'layers'}"
    if part.effect is not None:
        text += f", typical change of a weight {part.effect:.2e}"
    return text + (f", {part.idle_modules} of them without effect" if part.idle_modules else "")


def _trained(step: int | None, epoch: int | None) -> str | None:
    pieces = [
        f"{number} {noun}{'' if number == 1 else 's'}" if number is not None else ""
        for number, noun in ((step, "step"), (epoch, "epoch"))
    ]
    return ", ".join(piece for piece in pieces if piece) or None


def _numbers(values: Iterable[float]) -> str:
    listed = [f"{value:g}" for value in values]
    if len(listed) <= 8:
        return ", ".join(listed)
    return f"{len(listed)} different, {listed[0]} to {listed[-1]}"


FITS = "none: every layer fits the base model"


def _layers(names: tuple[str, ...], none: str) -> str:
    if not names:
        return none
    return (
        f"{len(names)} {'layer' if len(names) == 1 else 'layers'}: "
        + ", ".join(names[:3])
        + (", ..." if len(names) > 3 else "")
    )
