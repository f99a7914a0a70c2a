"""Which keys of a LoRA file a WebUI loads: its layers' names, by WebUI and model family.

    names("neo", "anima")        what stands before `.lora_down.weight` and the like -> the Place
                                 in the model, for every name that this WebUI reads
    translations("anima")        (part, flat path) -> Place, for every name in use, read or not

host_layers.json has the layers and their shapes; its `about` says where they come from. How a
WebUI derives its names from them is here. Without torch.

Sources: model_lora_keys_unet and model_lora_keys_clip of Forge
(packages_3rdparty/comfyui_lora_collection/lora.py), reForge (ldm_patched/modules/lora.py) and Forge
Neo (modules_forge/packages/comfy/lora.py; also process_anima in sd_forge_lora/networks.py), and
A1111's convert_diffusers_name_to_compvis and load_network (extensions-builtin/Lora/networks.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.checkpoint.names import rename, unet_modules
from lora_trainer.lora.layouts import TEXT, TEXT_2, UNET

DATA = Path(__file__).with_name("host_layers.json")
Shape = tuple[int, ...]

A1111, FORGE, REFORGE, CLASSIC, NEO = "a1111", "forge", "reforge", "classic", "neo"
HOST_NAMES: Mapping[str, str] = {
    A1111: "A1111",
    FORGE: "Forge",
    REFORGE: "reForge",
    CLASSIC: "Forge Classic",
    NEO: "Forge Neo",
}
"""Id of a WebUI, as `hosts.base.Host.kind` -> its name."""
IN_CLIP = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.[kqv]_proj|self_attn\.out_proj)"
)
"""The layers of a CLIP that ComfyUI's map names."""
ADAPTER_OF_TEXT = "llm_adapter."
"""Between a language model and the denoiser; Forge Neo keeps it with the language model, files with
the denoiser.
"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layer of the model, or some rows of it, that a name in a LoRA file stands for."""

    part: str
    layer: str
    """The model's own name, without prefix and `.weight`."""
    shape: Shape
    """Of the weight, or of those rows; (), if the model has no such layer."""
    first: int = 0
    """The first row."""
    whole: Shape = ()
    """The shape of the whole weight."""
    swapped: bool = False
    """The halves of the rows are exchanged: diffusers' scale and shift are shift and scale."""

    @property
    def exists(self) -> bool:
        """Whether the model has the layer. WebUIs skip names of layers that it does not have."""
        return bool(self.shape)

    @property
    def is_part(self) -> bool:
        """Whether it is some rows of a fused layer."""
        return self.shape != self.whole


@cache
def _data() -> Mapping[str, Any]:
    data: Mapping[str, Any] = files.parse_json(DATA.read_bytes())
    return data


def models() -> tuple[str, ...]:
    """Every model that is known: a family's id, or of a family of several sizes one for each."""
    return tuple(_data()["families"])


def models_of(family: str) -> tuple[str, ...]:
    """The models of a family, as `layouts.FAMILIES` names it; empty if its layers are not known."""
    return tuple(
        model for model, entry in _data()["families"].items() if entry.get("of", model) == family
    )


def family_of(model: str) -> str:
    """The id in `layouts.FAMILIES`."""
    return str(_data()["families"][model].get("of", model))


def runs(host: str, model: str) -> bool:
    """Whether a WebUI runs a model."""
    return host in _data()["families"][model]["hosts"]


def loads(host: str, family: str) -> bool | None:
    """Whether a WebUI loads checkpoints of a family; None if either is not known here."""
    known = models_of(family)
    return any(runs(host, model) for model in known) if host in HOST_NAMES and known else None


def hosts_of(family: str) -> tuple[str, ...]:
    """The WebUIs that load checkpoints of a family, as in HOST_NAMES."""
    return tuple(host for host in HOST_NAMES if loads(host, family))


def needs_all_of_attention(host: str, model: str, part: str) -> bool:
    """Whether a WebUI applies a text encoder's attention only where query, key, value and output
    are all adapted: A1111, whose OpenCLIP has the first three in one weight.
    """
    encoder = _data()["families"][model].get("text", {}).get(part, "")
    return host == A1111 and encoder in ("clip_g", "clip_h")


def version_word(host: str, family: str) -> str | None:
    """`sd version` in NAME.json beside a LoRA by which a WebUI shows it while a model of the family
    is loaded; None if it has no word for it.
    """
    found = (_data()["families"][model].get("version", {}).get(host) for model in models_of(family))
    return next(found, None)


def version_words(host: str) -> frozenset[str]:
    """All words that a WebUI knows; it shows LoRAs with others always."""
    every = (entry.get("version", {}).get(host) for entry in _data()["families"].values())
    return frozenset(word for word in every if word)


@cache
def layers(host: str, model: str) -> Mapping[tuple[str, str], Shape]:
    """(part, layer) -> shape of the weight, as this WebUI builds the model."""
    entry = _data()["families"][model]
    tables = [entry["layers"], entry.get(host, {}).get("layers", {})]
    found = {(UNET, name): shape for table in tables for name, shape in _shapes(table)}
    for part, encoder in entry.get("text", {}).items():
        found |= {(part, name): shape for name, shape in _shapes(_data()["text"][encoder])}
    return found


@cache
def names(host: str, model: str) -> Mapping[str, Place]:
    """Every layer name that a WebUI finds in a LoRA file. Empty if it does not run the model."""
    return dict(_names(host, model)) if runs(host, model) else {}


@cache
def translations(model: str) -> Mapping[tuple[str, str], Place]:
    """(part, path with underscores for dots) -> Place, for the model's own names, diffusers', and
    the text encoders'.
    """
    entry, known = _data()["families"][model], layers(NEO, model)
    found = {}
    for part, layer in known:
        place = _place(known, layer, part=part)
        found[part, _flat(layer)] = place
        if layer.startswith(ADAPTER_OF_TEXT):
            found[UNET, _flat(layer)] = place
        found[part, _flat(layer.removeprefix("model."))] = place
    tables = [entry, entry.get(NEO, {}), {"diffusers": entry.get("unread", {})}]
    for table in tables:
        found |= {
            (UNET, _flat(name)): place
            for name, place in _places(table.get("diffusers", {}), known)
            if place.exists
        }
    found |= {(UNET, _flat(name)): place for name, place in _unet_names(entry, known)}
    return found


# --- the names that a WebUI derives ---------------------------------------------------------------


def _names(host: str, model: str) -> Iterator[tuple[str, Place]]:
    """Later ones replace earlier ones."""
    entry, known = _data()["families"][model], layers(host, model)
    own = {layer: _place(known, layer) for part, layer in known if part == UNET}
    misses = {
        miss
        for name in entry.get("misses", {}).get(host, ())
        for miss in (name, name.replace("add_", "class_"))
    }
    theirs = {name: place for name, place in _unet_names(entry, known) if name not in misses}
    if host == A1111:
        for head in ("lora_unet_", "oft_unet_"):
            yield from _headed(head, own)
        yield from _headed("lora_unet_", theirs)
        yield from _a1111_text(entry, known)
        return
    # Forge Classic has the older of ComfyUI's maps
    more = () if host == CLASSIC else ("diffusion_model.", "lycoris_")
    for head in ("lora_unet_", *more[:1], *entry.get("native", {}).get(host, ())):
        yield from _headed(head, own)
    for head in ("lora_unet_", *more[1:]):
        yield from _headed(head, theirs)
    for name, place in theirs.items():
        processor = name.replace(".to_", ".processor.to_")
        processor = processor[:-2] if processor.endswith(".to_out.0") else processor
        yield processor, place
        yield f"unet.{processor}", place
    for table in (entry, entry.get(host, {})):
        read = dict(_places(table.get("diffusers", {}), known))
        for head in entry.get("reads", {}).get(host, ()):
            yield from _headed(head, read)
        yield from _places(table.get("names", {}), known)
    yield from _comfy_text(host, entry, known)


def _headed(head: str, places: Mapping[str, Place]) -> Iterator[tuple[str, Place]]:
    for name, place in places.items():
        yield head + (_flat(name) if head.endswith("_") else name), place


def _unet_names(
    entry: Mapping[str, Any], known: Mapping[tuple[str, str], Shape]
) -> Iterator[tuple[str, Place]]:
    """diffusers' names of a UNet's layers."""
    if "unet" not in entry:
        return
    modules = {theirs: ours for ours, theirs in unet_modules(entry["unet"]).items()}
    for part, layer in known:
        if part == UNET:
            try:
                name = rename(layer, modules)
            except KeyError:
                continue
            yield name, _place(known, layer)
            if name.startswith("add_embedding."):
                # its older name
                yield name.replace("add_", "class_"), _place(known, layer)


def _a1111_text(
    entry: Mapping[str, Any], known: Mapping[tuple[str, str], Shape]
) -> Iterator[tuple[str, Place]]:
    text = entry.get("text", {})
    heads = {TEXT: ["lora_te_"], TEXT_2: ["lora_te2_"]}
    if TEXT_2 in text:
        heads[TEXT] = ["lora_te1_"]
    elif text.get(TEXT) == "clip_l":
        heads[TEXT] += ["lora_te1_"]
    for part, layer in known:
        # OpenCLIP's modules have other names
        if part != UNET and (text[part] == "clip_l" or IN_CLIP.fullmatch(layer)):
            for head in heads[part]:
                yield head + _flat(layer), _place(known, layer, part=part)


def _comfy_text(
    host: str, entry: Mapping[str, Any], known: Mapping[tuple[str, str], Shape]
) -> Iterator[tuple[str, Place]]:
    encoders: Mapping[str, str] = entry.get("text", {})
    heads = {
        TEXT: ("lora_te_", "lora_te1_", "text_encoder."),
        TEXT_2: ("lora_te2_", "text_encoder_2."),
    }
    for part, layer in known:
        if part == UNET:
            continue
        encoder, place = encoders[part], _place(known, layer, part=part)
        if encoder.startswith("clip"):
            if IN_CLIP.fullmatch(layer):
                yield from (_with(head, layer, place) for head in heads[part])
            elif layer == "text_projection" and host in (FORGE, REFORGE) and encoder != "clip_h":
                yield ("lora_te1_" if part == TEXT else "lora_te2_") + layer, place
                if part == TEXT_2 and host == FORGE:
                    yield f"text_encoder.{layer}", place
        elif encoder.startswith("t5"):
            yield from (_with(head, layer, place) for head in _t5_heads(host, encoders))
        else:
            yield "lora_te_" + _flat(layer.removeprefix("model.")), place
            if layer.startswith(ADAPTER_OF_TEXT):
                yield from (
                    _with(head, layer, place) for head in ("diffusion_model.", "lora_unet_")
                )
        if host in (NEO, REFORGE):
            inside = f"{encoder}.transformer." if encoder[:2] in ("cl", "t5") else f"{encoder}."
            yield f"text_encoders.{inside}{layer}", place


def _with(head: str, layer: str, place: Place) -> tuple[str, Place]:
    return head + (_flat(layer) if head.endswith("_") else layer), place


def _t5_heads(host: str, encoders: Mapping[str, str]) -> Sequence[str]:
    if host == FORGE:
        return ("lora_te3_", "lora_te2_")
    if TEXT in encoders and TEXT_2 not in encoders:
        return ("lora_te2_", "lora_te3_")
    return (f"lora_te{len(encoders)}_",)


# --- the data -------------------------------------------------------------------------------------

BRACES = re.compile(r"\{[\d.,]*\}")


def _expand(pattern: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every name that a pattern stands for, with the numbers in it."""
    choices = [_numbers(found[1:-1]) for found in BRACES.findall(pattern)]
    pieces = BRACES.split(pattern)
    for numbers in itertools.product(*choices):
        pairs = itertools.zip_longest(pieces, map(str, numbers), fillvalue="")
        yield "".join(itertools.chain.from_iterable(pairs)), numbers


def _numbers(text: str) -> Sequence[int]:
    if ".." in text:
        first, _, last = text.partition("..")
        return range(int(first), int(last) + 1)
    return [int(number) for number in text.split(",")]


def _shapes(table: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Shape]]:
    for pattern, shape in table.items():
        yield from ((name, tuple(shape)) for name, _ in _expand(pattern))


def _places(
    table: Mapping[str, Sequence[Any]], known: Mapping[tuple[str, str], Shape]
) -> Iterator[tuple[str, Place]]:
    for pattern, (target, *rest) in table.items():
        for name, numbers in _expand(pattern):
            layer = target.replace("{}", str(numbers[0])) if numbers else target
            place = _place(known, layer)
            if rest == ["swap"]:
                place = replace(place, swapped=True)
            elif rest and place.exists:
                first, rows = rest
                place = replace(place, first=first, shape=(rows, *place.whole[1:]))
            yield name, place


def _place(known: Mapping[tuple[str, str], Shape], layer: str, *, part: str = UNET) -> Place:
    shape = known.get((part, layer), ())
    return Place(part=part, layer=layer, shape=shape, whole=shape)


def _flat(name: str) -> str:
    return name.replace(".", "_")
