"""What a WebUI makes of a LoRA file: which layers it loads, and why it passes over the others.

    models_in(layers, metadata)         the models that a file may be for
    load(header, layers, host, model)   as the WebUI does, from the header alone

Names and shapes: host_layers. What each WebUI's loader takes of a layer's keys, and when it rejects
a file, is here. Without torch.

Sources, besides those of host_layers: Forge's and Forge Neo's load_lora_for_models
(sd_forge_lora/networks.py), the adapters of Forge Neo (modules_forge/packages/comfy/weight_adapter)
and reForge (ldm_patched/modules/weight_adapter), A1111's module types
(extensions-builtin/Lora/network_*.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from lora_trainer.checkpoint.header import Header
from lora_trainer.lora import host_layers
from lora_trainer.lora.host_layers import A1111, CLASSIC, FORGE, NEO, REFORGE, Place, Shape
from lora_trainer.lora.layouts import (
    TEXT,
    TEXT_2,
    TEXT_3,
    UNET,
    Layer,
    families_of,
    split_key,
)
from lora_trainer.lora.names import fits

Reason = Literal[
    "names", "family", "unknown", "shape", "half", "absent", "kind", "text", "attention"
]
"""Why a layer is not loaded:

names: the model has it, and the WebUI does not read names of this form
family: another model has a layer of this name
unknown: no known model has one
shape: its weights do not fit the layer
half: one of two factors is missing
absent: the WebUI reads the name, and its own model has no such layer
kind: the WebUI does not know this kind of adapter
text: a text encoder that the model does not have in this WebUI
attention: a text encoder's attention, of which the WebUI needs query, key, value and output
"""
TEXTS = frozenset({TEXT, TEXT_2, TEXT_3, "language model"})
KOHYA = {"lora_up.weight": "lora_down.weight"}
OLDEST = {"_lora.up.weight": "_lora.down.weight"}
PEFT = {"lora_B.weight": "lora_A.weight"}
DIFFUSERS = {"lora.up.weight": "lora.down.weight"}
TRANSFORMERS = {"lora_linear_layer.up.weight": "lora_linear_layer.down.weight"}
MOCHI = {"lora_B": "lora_A"}
DEFAULT = {"lora_B.default.weight": "lora_A.default.weight"}
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = tuple("lokr_w1 lokr_w2 lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b lokr_t2".split())
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
OFT = ("oft_blocks", "oft_diag", "rescale")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a WebUI's loader takes."""

    pairs: Mapping[str, str]
    """Suffix of the second factor -> of the first, in order of precedence."""
    orthogonal: tuple[str, ...] = ()
    """Suffixes of OFT that it reads."""
    most_unmatched: int | None = None
    """Number of unknown keys above which it rejects the file."""
    most_unmatched_share: float | None = None
    most_skipped: int | None = None
    """Number of layers, of the denoiser or of the text encoders, that its model does not have,
    above which it takes none of them.
    """
    most_skipped_share: float | None = None

    def rejects(self, unmatched: int, keys: int) -> bool:
        return _above(unmatched, keys, self.most_unmatched, self.most_unmatched_share)

    def skips(self, skipped: int, patches: int) -> bool:
        return _above(skipped, patches, self.most_skipped, self.most_skipped_share)


def _above(count: int, of: int, most: int | None, share: float | None) -> bool:
    return (most is not None and count > most) or (share is not None and count > share * of)


RULES: Mapping[str, Rules] = {
    A1111: Rules(pairs=KOHYA | PEFT),
    FORGE: Rules(
        pairs=KOHYA | OLDEST | PEFT | DIFFUSERS | TRANSFORMERS, most_unmatched=12, most_skipped=12
    ),
    CLASSIC: Rules(pairs=KOHYA | OLDEST | TRANSFORMERS, most_unmatched=12, most_skipped=12),
    REFORGE: Rules(
        pairs=KOHYA | OLDEST | PEFT | DIFFUSERS | MOCHI | TRANSFORMERS,
        orthogonal=("oft_blocks", "rescale"),
    ),
    NEO: Rules(
        pairs=KOHYA | OLDEST | PEFT | DIFFUSERS | MOCHI | TRANSFORMERS | DEFAULT,
        orthogonal=("oft_blocks", "rescale", "oft_R.weight"),
        most_unmatched_share=0.5,
        most_skipped_share=0.25,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What a WebUI makes of a file."""

    host: str
    model: str
    loaded: tuple[str, ...]
    """Layers that change the model; empty if the file is rejected."""
    matched: int
    """Layers that would be loaded if the file were not rejected."""
    dropped: Mapping[str, Reason]
    """The other layers."""
    unmatched: int
    """Keys that the WebUI does not know."""
    keys: int
    rejected: bool = False
    """Whether the file is ignored because of unknown keys, or of layers that are not there."""
    fails: tuple[str, ...] = ()
    """Layers at which the loader stops with an error, so that nothing of the file is loaded."""


def load(
    header: Header,
    layers: Mapping[str, Layer],
    host: str,
    model: str,
    *,
    shapes: Mapping[str, Shape] | None = None,
    compare: bool = True,
) -> Loading:
    """What a WebUI that runs `model` makes of a file.

    shapes: of a checkpoint's weights by the model's own names, instead of the published model's.
    compare: whether weights must fit these shapes.
    """
    names, rules = host_layers.names(host, model), RULES[host]
    dropped: dict[str, Reason] = {}
    loaded: list[str] = []
    used = set[str]()
    fails = []
    counts = {True: Counter[str](), False: Counter[str]()}
    for name, layer in layers.items():
        place = names.get(name)
        if place is None:
            dropped[name] = _reason(layer, host, model)
            continue
        reading = _read(layer, host, rules)
        used |= reading.keys
        if reading.fails:
            fails.append(name)
            dropped[name] = "half" if reading.is_half else "kind"
            continue
        if not reading.is_whole:
            dropped[name] = "half" if reading.is_half else "kind"
            continue
        denoiser = place.part == UNET
        counts[denoiser]["patches"] += 1
        if not place.exists:
            counts[denoiser]["skipped"] += 1
            dropped[name] = "absent"
        elif compare and not fits_place(layer, place, shapes):
            dropped[name] = "shape"
        else:
            loaded.append(name)
    lonely = _lonely(loaded, names, host, model)
    dropped |= dict.fromkeys(lonely, "attention")
    loaded = [name for name in loaded if name not in lonely]
    unmatched = sum(key not in used and not _is_used(key, names, host) for key in header.tensors)
    keys = len(header.tensors)
    matched = len(loaded)
    rejected = rules.rejects(unmatched, keys)
    skipped = {
        denoiser
        for denoiser, count in counts.items()
        if rules.skips(count["skipped"], count["patches"])
    }
    kept = [name for name in loaded if (names[name].part == UNET) not in skipped]
    return Loading(
        host=host,
        model=model,
        loaded=() if rejected or fails else tuple(kept),
        matched=matched,
        dropped=dropped,
        unmatched=unmatched,
        keys=keys,
        rejected=rejected or (bool(loaded) and not kept),
        fails=tuple(fails),
    )


def _lonely(loaded: Sequence[str], names: Mapping[str, Place], host: str, model: str) -> list[str]:
    """Layers of a text encoder's attention whose companions are missing, where all are needed."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in loaded:
        place = names[name]
        block, attention, _ = place.layer.partition(".self_attn.")
        if attention and host_layers.needs_all_of_attention(host, model, place.part):
            groups.setdefault((place.part, block), []).append(name)
    return [name for group in groups.values() if len(group) < 4 for name in group]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    keys: frozenset[str]
    is_whole: bool
    is_half: bool = False
    fails: bool = False


def _read(layer: Layer, host: str, rules: Rules) -> _Reading:
    """Which of a layer's keys a WebUI's loader uses."""
    ends = layer.weights.keys()
    used = {"alpha", "dora_scale"} & ends
    whole = half = fails = False
    for up, down in rules.pairs.items():
        if up in ends:
            used |= {up, down} & ends
            whole, half = down in ends, down not in ends
            if up in KOHYA:
                used |= {"lora_mid.weight"} & ends
            if host in (NEO, REFORGE):
                used |= {"reshape_weight"} & ends
            break
    else:
        half = bool(ends & {*rules.pairs.values()})
    if LOHA[0] in ends:
        used |= {end for end in ends if end.startswith("hada_")}
        whole, half = ends >= {*LOHA}, not ends >= {*LOHA}
    elif ends & {*LOHA}:
        half = True
    if ends & {*LOKR}:
        used |= {*LOKR} & ends
        whole = all(
            ends & {f"lokr_w{n}"} or ends >= {f"lokr_w{n}_a", f"lokr_w{n}_b"} for n in (1, 2)
        )
        half = not whole
    if GLORA[0] in ends:
        used |= {*GLORA} & ends
        whole, half = ends >= {*GLORA}, not ends >= {*GLORA}
    if ends & {*rules.orthogonal} - {"rescale"}:
        used |= {*rules.orthogonal} & ends
        whole = True
    for end in ("diff", "diff_b", "set_weight", "w_norm"):
        if end in ends:
            used |= {end, *({"b_norm"} & ends if end == "w_norm" else ())}
            whole = True
    if host == A1111:
        used = set(ends)
        whole |= bool(ends & {"oft_blocks", "oft_diag"}) or "weight" in ends
        # its loader stops at a layer that no kind of adapter accepts
        fails = not whole
    else:
        # the first factor is looked up without asking whether it is there
        fails = half and bool(ends & {*rules.pairs, LOHA[0], GLORA[0], *LOKR})
    return _Reading(
        keys=frozenset(layer.key(end) for end in used),
        is_whole=whole and not half,
        is_half=half,
        fails=fails,
    )


def _is_used(key: str, names: Mapping[str, Place], host: str) -> bool:
    """Whether a WebUI knows a key that belongs to no layer: an alpha without weights."""
    parsed = split_key(key)
    if parsed is None or parsed[0] not in names:
        return False
    return host == A1111 or parsed[1] in ("alpha", "dora_scale")


def _reason(layer: Layer, host: str, model: str) -> Reason:
    """Why a WebUI does not know a layer's name."""
    place = place_of(layer, model)
    if place is not None:
        return "names" if (place.part, place.layer) in host_layers.layers(host, model) else "absent"
    if layer.part in TEXTS:
        return "text"
    others = (other for other in host_layers.models() if other != model)
    return "family" if any(place_of(layer, other) for other in others) else "unknown"


def place_of(layer: Layer, model: str) -> Place | None:
    """The place in the model that a layer's name means, in whatever form it is written."""
    known = host_layers.translations(model)
    found = known.get((layer.part, layer.path))
    if found is None and layer.part in TEXTS:
        found = known.get((TEXT, layer.path))
    return found


def fits_place(layer: Layer, place: Place, shapes: Mapping[str, Shape] | None = None) -> bool:
    """Whether a layer's weights fit its place. Kinds whose size cannot be told from their shapes
    fit.
    """
    shape = place.shape
    if shapes is not None and place.layer in shapes:
        whole = shapes[place.layer]
        shape = whole if not place.is_part else (place.shape[0], *whole[1:])
    down, up, mid = (layer.roles.get(role) for role in ("down", "up", "mid"))
    if down and up:
        if len(shape) < 2:
            return False
        return fits(shape, (*down.shape[:2], *mid.shape[2:]) if mid else down.shape, up.shape)
    for role in ("diff", "w_norm"):
        if role in layer.roles:
            return prod(layer.roles[role].shape) == prod(shape)
    if len(shape) < 2:
        return layer.width is None
    height = _height(layer)
    return layer.width in (None, shape[1], prod(shape[1:])) and height in (None, shape[0])


def _height(layer: Layer) -> int | None:
    rows = {role: info.shape[0] for role, info in layer.roles.items() if info.shape}
    if layer.kinds & {"LoKr"}:
        first, second = (rows.get(f"w{n}", rows.get(f"w{n}_a")) for n in (1, 2))
        # a Tucker factor is transposed
        return first * second if first and second and "t2" not in layer.roles else None
    if layer.kinds & {"LoHa"}:
        return rows.get("w1_a") if "t1" not in layer.roles else None
    return layer.height


# --- the model ------------------------------------------------------------------------------------


def models_in(layers: Mapping[str, Layer], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The models that a file may be for, in host_layers' words: by the layers' names and marks as
    layouts.families_of, and where that leaves several, or has less than half of the layers, those
    with most layers of these names and shapes.
    """
    families, _ = families_of(layers, metadata)
    candidates = [model for family in families for model in host_layers.models_of(family)]
    found = _best(layers, candidates)
    if found or (families and not candidates):
        return found
    return _best(layers, host_layers.models())


def _best(layers: Mapping[str, Layer], models: Sequence[str]) -> tuple[str, ...]:
    """Those of the models that have most of the layers; none if all have less than half."""
    scores = {model: _score(layers, model) for model in models}
    best = max(scores.values(), default=(0, 0))
    if 2 * best[1] < len(layers):
        return ()
    return tuple(model for model, score in scores.items() if score == best)


def _score(layers: Mapping[str, Layer], model: str) -> tuple[int, int]:
    """(layers that fit, layers of known names)"""
    places = [(layer, place_of(layer, model)) for layer in layers.values()]
    found = [(layer, place) for layer, place in places if place is not None]
    return sum(fits_place(layer, place) for layer, place in found), len(found)
