"""The scale of each layer of a LoRA at strength 1: alpha / rank.

None for a layer whose alpha is not stated. Sources in order of precedence:

1. a tensor in the file: `.alpha`, or `.scale` itself (kohya, LyCORIS, OneTrainer)
2. the header's `lora_adapter_metadata` (diffusers since 0.34), or `unet.lora_alpha` in it
(SimpleTuner)
3. `adapter_config.json` beside the file (PEFT), with alpha_pattern, rank_pattern and use_rslora:
alpha / sqrt(rank)
4. none: 1 for layouts where that is the convention, and for our own files in diffusers' form, whose
weights include the scale
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_trainer import files
from lora_trainer.checkpoint.header import Header, TensorInfo
from lora_trainer.lora.layouts import DIFFUSERS, Layer

CONFIG_FILE = "adapter_config.json"
IN_HEADER = "lora_adapter_metadata"
OURS = "sd-webui-lora-trainer/"
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True, kw_only=True)
class Scales:
    """alpha and alpha / rank of each layer with a rank."""

    by_layer: Mapping[str, float | None]
    """None: unknown."""
    alphas: tuple[float, ...]
    source: str
    """Where alpha is stated, if not in the weights: a metadata key, or a file name."""
    square_root: bool = False
    """Whether the scale is alpha / sqrt(rank)."""

    @property
    def known(self) -> tuple[float, ...]:
        return tuple(sorted({scale for scale in self.by_layer.values() if scale is not None}))


def scales_of(
    header: Header, layers: Mapping[str, Layer], number: Callable[[TensorInfo], float | None]
) -> Scales:
    """`number` reads a scalar tensor."""
    ranks = {name: layer.rank for name, layer in layers.items() if layer.rank}
    stated = {
        name: (layers[name].weights.get("alpha"), layers[name].weights.get("scale"))
        for name in ranks
    }
    if any(alpha or scale for alpha, scale in stated.values()):
        return _in_weights(ranks, stated, number)
    source, configs = _configs(header)
    if configs is not None:
        return _by_configs(layers, ranks, configs, source)
    is_peft = any(
        end.startswith(("lora_A", "lora_B")) for layer in layers.values() for end in layer.weights
    )
    by_us = header.metadata.get("modelspec.implementation_version", "").startswith(OURS)
    ours = by_us and all(layer.layout is DIFFUSERS for layer in layers.values())
    scale = 1.0 if ours or not is_peft else None
    return Scales(by_layer=dict.fromkeys(ranks, scale), alphas=(), source="")


def _in_weights(
    ranks: Mapping[str, int],
    stated: Mapping[str, tuple[TensorInfo | None, TensorInfo | None]],
    number: Callable[[TensorInfo], float | None],
) -> Scales:
    scales: dict[str, float | None] = {}
    alphas = set[float]()
    for name, rank in ranks.items():
        alpha, scale = (number(info) if info else None for info in stated[name])
        if alpha is not None:
            alphas.add(alpha)
        # without alpha, in a file that has some, every reader assumes scale 1
        default = None if any(stated[name]) else 1.0
        from_alpha = default if alpha is None else alpha / rank
        scales[name] = from_alpha if scale is None else scale
    return Scales(by_layer=scales, alphas=tuple(sorted(alphas)), source="")


def _configs(header: Header) -> tuple[str, Mapping[str, Mapping[str, Any]] | None]:
    """(source, component -> PEFT's settings); "" stands for any component. None if nothing is
    stated.
    """
    if IN_HEADER in header.metadata:
        try:
            found = files.parse_json(header.metadata[IN_HEADER])
        except files.NotJson:
            found = None
        return IN_HEADER, _by_component(found if isinstance(found, dict) else {})
    plain = {
        key: value
        for key, value in header.metadata.items()
        if key.rpartition(".")[2] in ("lora_alpha", "r", "use_rslora") or key == "alpha"
    }
    if any(key.endswith("alpha") for key in plain):
        return "metadata", _by_component(
            {"lora_alpha" if key == "alpha" else key: value for key, value in plain.items()}
        )
    beside = header.path.with_name(CONFIG_FILE)
    if beside.exists():
        return CONFIG_FILE, {"": files.read_json(beside, dict, {})}
    return "", None


def _by_component(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"": {}}
    for key, value in settings.items():
        component, _, inner = key.rpartition(".")
        found.setdefault(component, {})[inner] = value
    return found


def _by_configs(
    layers: Mapping[str, Layer],
    ranks: Mapping[str, int],
    configs: Mapping[str, Mapping[str, Any]],
    source: str,
) -> Scales:
    alphas, scales, rooted = set[float](), dict[str, float | None](), False
    for name, rank in ranks.items():
        component = next(
            (component for component in COMPONENTS if name.startswith(f"{component}.")), ""
        )
        config = configs.get(component) or configs.get("") or {}
        alpha = _alpha(layers[name], config)
        root = config.get("use_rslora") in (True, "True", "true")
        rooted |= root
        if alpha is not None:
            alphas.add(alpha)
        scales[name] = None if alpha is None else alpha / (math.sqrt(rank) if root else rank)
    return Scales(by_layer=scales, alphas=tuple(sorted(alphas)), source=source, square_root=rooted)


MAX_ALPHA = 1e30
LITERAL = re.compile(r"\^?[\w.]{1,200}\$?")


def _alpha(layer: Layer, config: Mapping[str, Any]) -> float | None:
    """Alpha from the config. alpha_pattern's keys are regular expressions in PEFT; only plain layer
    names are supported.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(
        LITERAL.fullmatch(pattern) for pattern in patterns
    ):
        return None
    for pattern, value in patterns.items():
        end = pattern.strip("^$")
        if layer.dotted == end or (
            not pattern.startswith("^") and layer.dotted.endswith(f".{end}")
        ):
            return _number(value)
    return _number(config.get("lora_alpha", config.get("alpha")))


def _number(value: Any) -> float | None:
    number = files.finite_number(value)
    # larger values do not fit a float32
    return number if number is not None and abs(number) <= MAX_ALPHA else None
