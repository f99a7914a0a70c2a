"""The certificate of a LoRA file for one WebUI: what it loads, what it drops and why, and what else
can make a LoRA do nothing. For `python -m lora_trainer inspect FILE --for HOST` and the tab.

    certify(path, "neo") -> Certificate

Reads the header and the alphas; with measure=True also the weights, which needs torch. Names and
loaders: host_layers, loading. The copy that loads: convert.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.checkpoint.header import Header
from lora_trainer.errors import LoraFileError, Message
from lora_trainer.families import find
from lora_trainer.lora import host_layers
from lora_trainer.lora.changes import ADDED_KINDS, change_of
from lora_trainer.lora.checkpoint_layers import CheckpointLayers
from lora_trainer.lora.convert import CopyPlan, plan
from lora_trainer.lora.file import find_in_folder
from lora_trainer.lora.file import read_header as read_lora_header
from lora_trainer.lora.host_layers import A1111, HOST_NAMES
from lora_trainer.lora.layouts import (
    FAMILIES,
    UNET,
    Layer,
    families_of,
    form_of,
    layers_in,
    stated_family,
)
from lora_trainer.lora.loading import Loading, Reason, load, models_in
from lora_trainer.lora.scales import Scales, scales_of
from lora_trainer.lora.tensors import read_number

EXAMPLES = 3
ReasonTexts = Mapping[Reason, str]
TINY = 1e-6
"""Typical change of a weight below which nothing is seen. The models' weights are about 2e-2, and
LoRAs that show are at 1e-4 and more: a hundredth of the one is a hundredth of the others' smallest
effect.
"""
PROBES = 4
SUFFIXES = (".safetensors", ".ckpt", ".pt")
MOST_FILES = 100_000
"""Files of a LoRA folder that are searched for another of the same name."""

REASONS: ReasonTexts = {
    "names": "names that {host} does not read",
    "family": "names of another model's layers",
    "unknown": "names of no known model's layers",
    "shape": "weights that do not fit {family}'s layers",
    "half": "one of the two factors is missing",
    "absent": "layers that {family} does not have in {host}",
    "kind": "a kind of adapter that {host} does not load: {kinds}",
    "text": "a text encoder that {family} does not have in {host}",
    "attention": "attention that {host} applies only where q, k, v and out are all there",
}


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Layers that are not loaded, for one reason."""

    reason: Reason
    count: int
    message: Message
    examples: tuple[str, ...]
    """Up to three keys."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What else keeps the LoRA from doing something."""

    message: Message
    hint: Message


@dataclass(frozen=True, kw_only=True)
class Certificate:
    path: Path
    host: str
    """Its id: neo."""
    families: tuple[str, ...]
    """Ids in layouts.FAMILIES; several if names and shapes do not tell."""
    family_source: str
    layer_count: int
    loaded: int | None
    """None if it is not known which layers the model has."""
    verdict: Message
    dropped: tuple[Dropped, ...]
    causes: tuple[Cause, ...]
    can_fix: bool
    """Whether convert writes a copy of which more is loaded, or with the stated alpha."""

    @property
    def family(self) -> str:
        return " or ".join(FAMILIES[family].name for family in self.families)

    @property
    def _gain(self) -> str:
        if self.loaded == self.layer_count:
            return f"with alpha where {HOST_NAMES[self.host]} reads it"
        return "that it loads"

    def to_json(self) -> str:
        return json.dumps(self.to_mapping(), ensure_ascii=False, indent=2)

    def to_mapping(self, render: Callable[[Message], Any] = str) -> dict[str, Any]:
        """As JSON; `render` makes of a message what stands for it, by default the English text."""
        return {
            "path": str(self.path),
            "host": HOST_NAMES[self.host],
            "families": list(self.families),
            "family": self.family,
            "layer_count": self.layer_count,
            "loaded": self.loaded,
            "verdict": render(self.verdict),
            "dropped": [
                {
                    "reason": one.reason,
                    "count": one.count,
                    "message": render(one.message),
                    "examples": list(one.examples),
                }
                for one in self.dropped
            ],
            "causes": [
                {"message": render(one.message), "hint": render(one.hint)} for one in self.causes
            ],
            "can_fix": self.can_fix,
        }

    def to_text(self) -> str:
        """A few aligned lines."""
        lines = [
            ("file", str(self.path)),
            ("family", f"{self.family or 'unknown'} ({self.family_source or 'not recognised'})"),
            (
                "verdict",
                f"{self.verdict}" + (" --fix writes a copy that it loads." if self.can_fix else ""),
            ),
            *(
                (
                    "dropped",
                    f"{one.count} {'layer' if one.count == 1 else 'layers'}: {one.message}"
                    f" ({', '.join(one.examples)}{', ...' if one.count > EXAMPLES else ''})",
                )
                for one in self.dropped
            ),
            *(
                ("cause", " ".join(filter(None, map(str, (c.message, c.hint)))))
                for c in self.causes
            ),
        ]
        return "\n".join(f"{label + ':':<16} {value}" for label, value in lines)


def words(message: Message) -> dict[str, Any]:
    """A message as JSON, to be translated elsewhere."""
    values = {
        key: value if isinstance(value, (int, float)) else str(value)
        for key, value in message.values.items()
    }
    return {"message": message.template, "values": values}


def certify(
    path: Path,
    host: str,
    *,
    base: Path | None = None,
    folders: Sequence[Path] | None = None,
    measure: bool = True,
) -> Certificate:
    """The certificate of a LoRA file, or of the one in a folder. base: a checkpoint file with whose
    layers its shapes are compared. folders: the WebUI's LoRA folders, by default the one that the
    file lies in. measure: read the weights, with torch.

    Raises LoraFileError and, for `base`, CheckpointError.
    """
    path = find_in_folder(Path(path))
    header = read_lora_header(path)
    layers = layers_in(header)
    if not layers:
        raise LoraFileError("{path} is not a LoRA", hint="`inspect` shows what it is.", path=path)
    families, source = families_of(layers, header.metadata)
    models = models_in(layers, header.metadata)
    own = CheckpointLayers.of(base) if base is not None else None
    if own is not None and {*models} & {*own.models}:
        models = tuple(model for model in models if model in own.models)
    if models:
        families = tuple(dict.fromkeys(host_layers.family_of(model) for model in models))
    loadings = _loadings(header, layers, host, models, own)
    loading = next(iter(loadings), None)
    scales = scales_of(header, layers, lambda info: read_number(header, info))
    certificate = Certificate(
        path=path,
        host=host,
        families=families,
        family_source=source or ("names and shapes of its layers" if models else ""),
        layer_count=len(layers),
        loaded=len(loading.loaded) if loading else (None if _may_run(families) else 0),
        verdict=Message(""),
        dropped=tuple(_dropped(layers, loading)) if loading else (),
        causes=(),
        can_fix=False,
    )
    causes = [
        *_scale_causes(layers, scales),
        *(_measured(header, layers, scales) if measure else ()),
        *_family_causes(header, families, own),
        *_doubts(loadings),
        *_listing_causes(path, header, certificate, folders),
    ]
    planned = plan(layers, models, host) if loading else None
    return replace(
        certificate,
        causes=tuple(causes),
        verdict=_verdict(layers, loading, certificate),
        can_fix=_can_fix(planned, loading, layers, scales),
    )


def _may_run(families: Sequence[str]) -> bool:
    """Whether it is not known what a WebUI makes of these families."""
    return not families or any(not host_layers.models_of(family) for family in families)


def _loadings(
    header: Header,
    layers: Mapping[str, Layer],
    host: str,
    models: Sequence[str],
    base: CheckpointLayers | None,
) -> list[Loading]:
    """What the WebUI makes of it with each model that it runs, most layers first."""
    found = [
        load(header, layers, host, model, shapes=base.shapes if base else None)
        for model in models
        if host_layers.runs(host, model)
    ]
    return sorted(found, key=lambda one: -one.matched)


def _can_fix(
    planned: CopyPlan | None, loading: Loading | None, layers: Mapping[str, Layer], scales: Scales
) -> bool:
    if planned is None or loading is None or not planned.is_possible:
        return False
    kept = {name for target in planned.targets for name in target.layers}
    gains = any(
        name in kept and reason in ("names", "absent", "kind")
        for name, reason in loading.dropped.items()
    )
    gains |= loading.rejected and bool(planned.left_out)
    misread = bool(scales.source) and any(scale != 1 for scale in scales.known)
    unread = any("scale" in layer.roles for layer in layers.values())
    misfits = any(reason in ("shape", "half") for reason in loading.dropped.values())
    return (gains or misread or unread) and not loading.fails and not misfits


# --- sentences ------------------------------------------------------------------------------------


def _verdict(
    layers: Mapping[str, Layer], loading: Loading | None, certificate: Certificate
) -> Message:
    values: dict[str, Any] = {
        "host": HOST_NAMES[certificate.host],
        "family": certificate.family,
        "count": len(layers),
    }
    if loading is None:
        if not certificate.families:
            return Message("It is not known for which model this LoRA is.", values)
        if certificate.loaded is None:
            return Message("It is not known which layers of {family} {host} loads.", values)
        return Message("{host} does not run {family} models.", values)
    values |= {
        "loaded": len(loading.loaded),
        "unmatched": loading.unmatched,
        "keys": loading.keys,
        "example": next(iter(loading.fails or loading.dropped), ""),
    }
    if loading.fails:
        template = (
            "{host} loads nothing of this file: it stops with an error at {example}, where one of"
            " the two factors is missing."
            if loading.dropped[loading.fails[0]] == "half"
            else "{host} loads nothing of this file: it stops with an error at {example}, which is"
            " a kind of adapter that it does not know."
        )
        return Message(template, values)
    if len(loading.loaded) == len(layers):
        return Message("{host} loads all {count} of {count} layers.", values)
    if loading.loaded:
        return Message("{host} loads {loaded} of {count} layers.", values)
    if loading.matched:
        return Message(
            "{host} loads nothing of this file: it does not know {unmatched} of its {keys} keys,"
            " and ignores the whole file.",
            values,
        )
    main = max(certificate.dropped, key=lambda one: one.count)
    if main.reason != "names":
        return Message("{host} loads nothing of this file.", values)
    forms = {
        form_of(layers[name], certificate.families[0])
        for name, reason in loading.dropped.items()
        if reason == "names" and layers[name].part == UNET
    }
    if forms and forms <= {"diffusers", "processor"}:
        return Message(
            "{host} loads nothing of this file: its names are diffusers' for {family}, which {host}"
            " does not read.",
            values,
        )
    return Message(
        "{host} loads nothing of this file: its names, such as {example}, are none that {host}"
        " reads for {family}.",
        values,
    )


def _dropped(layers: Mapping[str, Layer], loading: Loading) -> Iterator[Dropped]:
    grouped: dict[Reason, list[str]] = {}
    for name, reason in loading.dropped.items():
        grouped.setdefault(reason, []).append(name)
    for reason, names in sorted(grouped.items(), key=lambda one: -len(one[1])):
        kinds = sorted({kind for name in names for kind in layers[name].kinds if kind})
        values = {
            "host": HOST_NAMES[loading.host],
            "family": FAMILIES[host_layers.family_of(loading.model)].name,
            "kinds": ", ".join(kinds),
        }
        yield Dropped(
            reason=reason,
            count=len(names),
            message=Message(REASONS[reason], values),
            examples=tuple(_example(layers[name]) for name in names[:EXAMPLES]),
        )


def _example(layer: Layer) -> str:
    """A key of a layer, rather of its weights than its alpha."""
    return layer.key(max(layer.weights, key=lambda end: end not in ("alpha", "scale")))


def _cause(*, template: str, hint: str, **values: Any) -> Cause:
    return Cause(message=Message(template, values), hint=Message(hint, values if hint else {}))


def _scale_causes(layers: Mapping[str, Layer], scales: Scales) -> Iterator[Cause]:
    if None in scales.by_layer.values():
        yield _cause(
            template=(
                "Alpha is stated neither in the file nor in an adapter_config.json beside it; the"
                " WebUIs take it to be the rank."
            ),
            hint="If the effect is too weak or too strong, ask its author for alpha.",
        )
    elif scales.source and any(scale != 1 for scale in scales.known):
        yield _cause(
            template=(
                "The WebUIs do not read alpha from {source}: there a strength of {strength} has the"
                " effect of 1."
            ),
            hint="A copy has alpha where they read it.",
            source=scales.source,
            strength=", ".join(f"{scale:g}" for scale in scales.known[:3]),
        )
    zero = sum(scale == 0 for scale in scales.by_layer.values())
    if zero:
        yield _cause(
            template="Alpha is 0 in {count} of {total} layers, which do nothing.",
            hint="Train it again with another alpha, such as the rank.",
            count=zero,
            total=len(layers),
        )


def _measured(header: Header, layers: Mapping[str, Layer], scales: Scales) -> Iterator[Cause]:
    """What the weights tell. Needs torch."""
    effects = [
        effect
        for name, layer in layers.items()
        if scales.by_layer.get(name) != 0
        if (effect := _effect(header, layer, scales.by_layer.get(name))) is not None
    ]
    broken = sum(not math.isfinite(effect) for effect in effects)
    zero = sum(effect == 0 for effect in effects)
    if broken:
        yield _cause(
            template=(
                "{count} of {total} layers have weights that are NaN or infinite: images will be"
                " black or noise."
            ),
            hint="Take an earlier saved step, or train it again with a lower learning rate.",
            count=broken,
            total=len(layers),
        )
    elif zero and zero == len(effects):
        yield _cause(
            template="All its weights are zero: it learned nothing.",
            hint="Train it again; look for steps that were skipped, or a learning rate of 0.",
        )
    elif zero:
        yield _cause(
            template="{count} of {total} layers have no effect: their weights are zero.",
            hint="",
            count=zero,
            total=len(layers),
        )
    typical = math.sqrt(sum(effect**2 for effect in effects) / len(effects)) if effects else 0.0
    if 0 < typical < TINY:
        yield _cause(
            template=(
                "Its effect is tiny: a weight changes by {effect}, and by 1e-04 in a LoRA that"
                " shows."
            ),
            hint="Train longer or with a higher learning rate; a higher strength helps a little.",
            effect=f"{typical:.0e}",
        )


def _effect(header: Header, layer: Layer, scale: float | None) -> float | None:
    """Root mean square of a layer's delta at strength 1, estimated from its response to random
    vectors; None for kinds that depend on the base's weights.
    """
    import torch

    if not layer.kinds <= ADDED_KINDS or "set" in layer.roles:
        return None
    if not layer.roles.keys() & {"down", "w1", "w1_a", "w1_b", "diff"}:
        return None
    try:
        change = change_of(header, layer, 1.0 if scale is None else scale)
    except LoraFileError:
        return None
    vectors = torch.randn(change.width, PROBES, generator=torch.Generator().manual_seed(0))
    return float(change.of(vectors).pow(2).mean().sqrt()) / math.sqrt(change.width)


def _family_causes(
    header: Header, families: Sequence[str], base: CheckpointLayers | None
) -> Iterator[Cause]:
    stated = stated_family(header.metadata)
    if stated and families and stated not in families:
        yield _cause(
            template="Its metadata says {stated}, but its layers are those of {family}.",
            hint="Use it with {family}.",
            stated=FAMILIES[stated].name,
            family=" or ".join(FAMILIES[family].name for family in families),
        )
    theirs = {host_layers.family_of(model) for model in base.models} if base else set()
    if base and theirs and families and not theirs & {*families}:
        yield _cause(
            template="{base} is for {theirs}, and this LoRA for {family}.",
            hint="Choose a {family} checkpoint.",
            base=base.header.path.name,
            theirs=" or ".join(FAMILIES[family].name for family in sorted(theirs)),
            family=" or ".join(FAMILIES[family].name for family in families),
        )


def _doubts(loadings: Sequence[Loading]) -> Iterator[Cause]:
    """That the file may be for several models, of which the WebUI does not load the same."""
    if len({one.matched for one in loadings}) > 1:
        models = dict.fromkeys(host_layers.family_of(one.model) for one in loadings)
        yield _cause(
            template="Its layer names fit several models: {families}.",
            hint="This check is for {family}.",
            families=", ".join(FAMILIES[family].name for family in models),
            family=FAMILIES[next(iter(models))].name,
        )


def _listing_causes(
    path: Path, header: Header, certificate: Certificate, folders: Sequence[Path] | None
) -> Iterator[Cause]:
    """Why the WebUI's list may not show it, or another file takes its place."""
    host, families = certificate.host, certificate.families
    family = families[0] if len(families) == 1 else None
    sidecar = path.with_suffix(".json")
    values: dict[str, Any] = files.read_json(sidecar, dict, {}) if sidecar.is_file() else {}
    word = str(values.get("sd version", ""))
    ours = host_layers.version_word(host, family) if family else None
    if ours and word in host_layers.version_words(host) and word != ours:
        yield _cause(
            template=(
                "{file} says {word}: {host} hides it from its list while {family} is loaded."
            ),
            hint="Set the version to {ours} in the dialog of its card.",
            file=sidecar.name,
            word=word,
            host=HOST_NAMES[host],
            family=certificate.family,
            ours=ours,
        )
    known = find(family)
    version = header.metadata.get("ss_base_model_version", "")
    if (
        host == A1111
        and not word
        and known
        and FAMILIES[known.id].version
        and header.metadata
        and not version.startswith(FAMILIES[known.id].version)
    ):
        yield _cause(
            template=(
                "The metadata does not say SDXL: A1111 takes it for SD1 and hides it while an SDXL"
                " model is loaded."
            ),
            hint="Set the version in the dialog of its card.",
        )
    others = sorted(_of_the_same_name(path, folders or _lora_folders(path)))
    if others:
        yield _cause(
            template=(
                "Another file has this name: {other}. {host} loads the one that it finds last."
            ),
            hint="Give one of them another name.",
            other=others[0],
            host=HOST_NAMES[host],
        )


def _lora_folders(path: Path) -> list[Path]:
    """The LoRA folder that a file lies in, as it is usually called, if it lies in one."""
    return [folder for folder in path.absolute().parents if folder.name.lower() == "lora"][:1]


def _of_the_same_name(path: Path, folders: Sequence[Path]) -> Iterator[str]:
    """Other files that the WebUI lists under the same name, relative to their folder. Without
    folders: those beside the file.
    """
    seen, count = {os.path.realpath(path)}, 0
    for folder in folders or [path.absolute().parent]:
        for inside, subfolders, names in os.walk(folder):
            if not folders:
                subfolders.clear()
            for other in (Path(inside, name) for name in names):
                count += 1
                if count > MOST_FILES:
                    return
                if other.stem != path.stem or other.suffix.lower() not in SUFFIXES:
                    continue
                if (real := os.path.realpath(other)) not in seen:
                    seen.add(real)
                    yield os.path.relpath(other, folder)
