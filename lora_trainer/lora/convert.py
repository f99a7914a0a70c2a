"""Copies a LoRA file under names that a WebUI loads, with the same effect.

Names become kohya's of the model's own layers (`lora_unet_` + path), which every WebUI reads for
every model, and weights are copied byte by byte where one layer becomes one layer. Alpha is written
for layers whose scale is stated elsewhere: in the metadata, in adapter_config.json (rsLoRA too).

Layers that are rows of a fused layer (diffusers' to_q, to_k, to_v of a qkv) become one adapter: the
first factors stacked, the second ones block-diagonal, the rank their sum, alpha / rank as it was.
So LoRA and LoHa stay what they are; a LoKr whose second factor is a product, or a mixture of kinds,
becomes a LoRA of the same delta. Others keep the names of the parts where the WebUI reads those,
and are refused where not.

The copy is checked before it gets its name: by loading.load, and by what each layer makes of random
vectors. Needs torch to write, not to plan.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.checkpoint.header import BYTES_EACH, Header, TensorInfo
from lora_trainer.errors import LoraFileError
from lora_trainer.families import find
from lora_trainer.files import replace_file
from lora_trainer.lora import host_layers
from lora_trainer.lora.changes import ADDED_KINDS, WeightChange, change_of
from lora_trainer.lora.file import encode_header, read_header
from lora_trainer.lora.host_layers import ADAPTER_OF_TEXT, HOST_NAMES, Place
from lora_trainer.lora.layouts import (
    ENDS,
    FAMILIES,
    KOHYA,
    SD,
    TEXT,
    UNET,
    Layer,
    families_of,
    form_of,
    layers_in,
    split_key,
)
from lora_trainer.lora.loading import fits_place, load, models_in, place_of
from lora_trainer.lora.scales import IN_HEADER, Scales, scales_of
from lora_trainer.lora.tensors import DTYPES, read_bytes, read_number, read_tensor

if TYPE_CHECKING:
    import torch

ROLES = {"down": "lora_down.weight", "up": "lora_up.weight"}
"""kohya's names of the two matrices; other suffixes are the same in all formats."""
COPIED_KINDS = frozenset({"LoRA", "LoHa", "LoKr", "GLoRA", "full difference", "norms", "DoRA", ""})
CONVERTED = "lora_trainer.converted"
"""Metadata: what a file was converted from."""
PROBES = 8
"""Random vectors by which two deltas are compared."""
MOST_DIFFERENT = 1e-5
"""Largest difference of two responses, relative to the largest number in them: float32 rounding of
sums in another order stays below.
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer of the copy."""

    name: str
    layers: tuple[str, ...]
    """The original's: one, or the parts of a fused layer in the order of their rows."""
    places: tuple[Place | None, ...]
    """Theirs in the model; None where the model's layers are not known."""

    @property
    def is_fused(self) -> bool:
        """Whether parts become a whole layer."""
        return any(place is not None and place.is_part for place in self.places)

    @property
    def is_swapped(self) -> bool:
        return any(place is not None and place.swapped for place in self.places)


@dataclass(frozen=True, kw_only=True)
class CopyPlan:
    """How a file is converted."""

    model: str | None
    """In host_layers' words; None where its layers are not known."""
    targets: tuple[Target, ...]
    left_out: tuple[str, ...] = ()
    """Layers that the model does not have."""
    impossible: tuple[str, ...] = ()
    """Layers whose delta has no form that the WebUI loads."""
    renames: bool = True
    """Whether anything but the order changes."""

    @property
    def is_possible(self) -> bool:
        return bool(self.targets) and not self.impossible


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written."""

    layer_count: int
    """Layers of the copy."""
    left_out: tuple[str, ...]


def can_convert(
    layers: Mapping[str, Layer], models: Sequence[str], *, families: Sequence[str] = ()
) -> bool:
    """Whether there is a copy that every WebUI loads, with other names than the file's. models:
    from loading.models_in. families: the same, where no model is known.
    """
    planned = plan(layers, models, families=families)
    return planned.is_possible and planned.renames


# --- the plan -------------------------------------------------------------------------------------


def plan(
    layers: Mapping[str, Layer],
    models: Sequence[str],
    host: str | None = None,
    families: Sequence[str] = (),
) -> CopyPlan:
    """The layers of a copy that `host` loads, or by default every WebUI that runs the model.

    models: those that the file may be for; all must give the same names. families: the same, where
    no model is known.
    """
    plans = [
        _plan(layers, model, host)
        for model in models
        if host is None or host_layers.runs(host, model)
    ]
    if not plans:
        return _by_family(layers, families)
    first = plans[0]
    same = all((one.targets, one.left_out) == (first.targets, first.left_out) for one in plans)
    if same or _names_of(plans):
        return first
    return CopyPlan(model=None, targets=(), impossible=tuple(layers))


def _names_of(plans: Sequence[CopyPlan]) -> bool:
    """Whether all plans have the same names; places differ between sizes of a family."""
    named = [[(target.name, target.layers) for target in one.targets] for one in plans]
    return all(one == named[0] for one in named)


def _plan(layers: Mapping[str, Layer], model: str, host: str | None) -> CopyPlan:
    hosts = [
        one for one in ([host] if host else HOST_NAMES) if one and host_layers.runs(one, model)
    ]
    groups: dict[tuple[str, str], list[tuple[str, Place]]] = {}
    targets, left_out, impossible = [], [], []
    for name, layer in layers.items():
        place = place_of(layer, model)
        if place is None:
            simple = _simple_name(layer, host_layers.family_of(model))
            unread = host is not None and simple not in host_layers.names(host, model)
            if simple is None or unread or not _is_copied(layer):
                left_out.append(name)
            else:
                targets.append(Target(name=simple, layers=(name,), places=(None,)))
        elif not _is_copied(layer):
            impossible.append(name)
        else:
            groups.setdefault((place.part, place.layer), []).append((name, place))
    for members in groups.values():
        found = _targets(layers, sorted(members, key=lambda one: one[1].first), model, hosts)
        if found is None:
            impossible += [name for name, _ in members]
        else:
            targets += found
    order = {name: index for index, name in enumerate(layers)}
    targets.sort(key=lambda target: order[target.layers[0]])
    return CopyPlan(
        model=model,
        targets=tuple(targets),
        left_out=tuple(left_out),
        impossible=tuple(impossible),
        renames=any(target.layers != (target.name,) for target in targets) or bool(left_out),
    )


def _targets(
    layers: Mapping[str, Layer],
    members: Sequence[tuple[str, Place]],
    model: str,
    hosts: Sequence[str],
) -> list[Target] | None:
    """The layers of the copy for the adapters of one layer of the model."""
    parts = [layers[name] for name, _ in members]
    whole = not any(place.is_part for _, place in members)
    if whole and len(members) > 1:
        return None
    place = members[0][1]
    names, places = zip(*members, strict=True)
    fits = all(fits_place(layers[name], one) for name, one in members)
    fusable = whole or (fits and _is_disjoint(places) and all(_as_lora(one) for one in parts))
    swappable = not place.swapped or _as_lora(parts[0]) or "diff" in parts[0].roles
    if fusable and swappable:
        target = _name_of(parts[0], place, model, hosts)
        if target is not None:
            return [Target(name=target, layers=names, places=places)]
    found = [_name_of_part(one, model, hosts) for _, one in members]
    if any(name is None for name in found):
        return None
    # the WebUI itself puts rows, or halves, where they belong
    return [
        Target(name=str(target), layers=(name,), places=(None,))
        for target, (name, _) in zip(found, members, strict=True)
    ]


def _is_disjoint(places: Sequence[Place]) -> bool:
    """Whether no two parts have a row in common. places: in the order of their rows."""
    return all(one.first + one.shape[0] <= other.first for one, other in itertools.pairwise(places))


def _as_lora(layer: Layer) -> bool:
    """Whether the delta is a product of two small matrices."""
    roles = layer.roles.keys()
    if layer.kernel not in ((), (1, 1)) or "magnitude" in roles:
        return False
    if layer.kinds <= {"LoRA", ""}:
        return roles >= {"down", "up"} and not roles & {"mid", "bias"}
    if layer.kinds <= {"LoHa", ""}:
        return roles >= {"w1_a", "w1_b", "w2_a", "w2_b"} and not roles & {"t1", "t2"}
    if layer.kinds <= {"LoKr", ""}:
        return roles >= {"w2_a", "w2_b"} and "t2" not in roles
    return False


def _is_copied(layer: Layer) -> bool:
    return layer.kinds <= COPIED_KINDS and not any(
        end.startswith(("lora_magnitude_vector", "lora_embedding")) for end in layer.weights
    )


def _name_of(layer: Layer, place: Place, model: str, hosts: Sequence[str]) -> str | None:
    """A name that stands for the whole of a layer for these WebUIs."""
    simple = _simple_name(layer, host_layers.family_of(model))
    flat = place.layer.replace(".", "_")
    if place.part == UNET:
        candidates = [f"lora_unet_{flat}", f"diffusion_model.{place.layer}"]
    elif place.layer.startswith(ADAPTER_OF_TEXT):
        candidates = [f"diffusion_model.{place.layer}", f"lora_unet_{flat}"]
    else:
        flat = flat.removeprefix("model_")
        candidates = [f"lora_te{number}_{flat}" for number in ("", 1, 2, 3)]
    for name in ([simple] if simple else []) + candidates:
        found = [host_layers.names(host, model).get(name) for host in hosts]
        if all(one and one.layer == place.layer and one.part == place.part for one in found):
            ours = [one for one in found if one]
            if all(not one.is_part and not one.swapped for one in ours):
                return name
    return None


def _name_of_part(place: Place, model: str, hosts: Sequence[str]) -> str | None:
    """A name that stands for some rows of a layer for these WebUIs."""
    tables = [host_layers.names(host, model) for host in hosts]
    return next(
        (
            name
            for name, one in tables[0].items()
            if one == place and all(table.get(name) == place for table in tables)
        ),
        None,
    )


def _by_family(layers: Mapping[str, Layer], families: Sequence[str]) -> CopyPlan:
    """Names for a model whose layers are not known: those of the model's own are kept."""
    found = {
        name: {_simple_name(layer, family) if _is_copied(layer) else None for family in families}
        for name, layer in layers.items()
    }
    impossible = tuple(
        name for name, new in found.items() if len(new) != 1 or None in new or not families
    )
    targets = tuple(
        Target(name=str(next(iter(new))), layers=(name,), places=(None,))
        for name, new in found.items()
        if name not in impossible
    )
    return CopyPlan(
        model=None,
        targets=targets,
        impossible=impossible,
        renames=any(target.layers != (target.name,) for target in targets),
    )


def _simple_name(layer: Layer, family: str) -> str | None:
    """kohya's name of a layer by its own path, or None if there is no equivalent."""
    if layer.layout is KOHYA and (layer.part != UNET or _is_own(layer, family)):
        return layer.name
    known = find(family)
    if layer.part == UNET and _is_own(layer, family):
        return "lora_unet_" + (layer.path if known is None else known.host_path(layer.path))
    heads = {TEXT: "lora_te1_"} if known is None else known.lora_prefixes
    if layer.part in heads and layer.path.startswith("text_model_"):
        return heads[layer.part] + layer.path
    return None


def _is_own(layer: Layer, family: str) -> bool:
    """Whether a WebUI reads the path after lora_unet_."""
    return family in SD or form_of(layer, family) == "native"


# --- the copy -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    length: int
    """In bytes."""
    content: Callable[[], bytes]

    @classmethod
    def of(cls, header: Header, info: TensorInfo) -> _Tensor:
        """As it is in a file."""
        return cls(info.dtype, info.shape, info.end - info.start, lambda: read_bytes(header, info))


def convert(source: Path, target: Path, host: str | None = None) -> Converted:
    """Write the copy atomically. host: for which WebUI; by default for every one that runs the
    model. Raises LoraFileError or OSError.
    """
    header = read_header(source)
    layers = layers_in(header)
    if target.exists():
        raise LoraFileError("{path} exists already", hint="Choose another name.", path=target)
    families, _ = families_of(layers, header.metadata)
    models = models_in(layers, header.metadata)
    if host is not None and models and not any(host_layers.runs(host, one) for one in models):
        raise LoraFileError(
            "{host} does not run {family} models.",
            hint="Name a WebUI that does.",
            host=HOST_NAMES[host],
            family=FAMILIES[host_layers.family_of(models[0])].name,
        )
    planned = plan(layers, models, host, families)
    if not planned.is_possible:
        raise _refused(source, layers, planned)
    if len({one.name for one in planned.targets}) < len(planned.targets):
        raise LoraFileError(
            "{path} has two layers that get the same name in the WebUI",
            hint="Ask its author for a file for ComfyUI.",
            path=source,
        )
    scales = scales_of(header, layers, lambda info: read_number(header, info))
    tensors = dict(_tensors(header, layers, scales, planned))
    metadata = _metadata(header, layers, families, host)

    def write(partial: Path) -> None:
        _write(partial, tensors, metadata)
        _check(partial, header, layers, scales, planned, host)

    replace_file(target, write)
    return Converted(
        layer_count=len(planned.targets),
        left_out=planned.left_out,
    )


def _refused(source: Path, layers: Mapping[str, Layer], planned: CopyPlan) -> LoraFileError:
    kinds = sorted({kind for name in planned.impossible for kind in layers[name].kinds if kind})
    if planned.model is None or not planned.impossible:
        hint = (
            "Its layers do not match the WebUI's one by one, or its model is unknown. Ask its "
            "author for a file for ComfyUI."
        )
        return LoraFileError(
            "{path} cannot be converted by renaming its keys", hint=hint, path=source
        )
    return LoraFileError(
        "{path} cannot be converted: {count} of its {total} layers ({kinds}), such as {example},"
        " have no form that the WebUI loads",
        hint="Ask its author for a file for ComfyUI.",
        path=source,
        count=len(planned.impossible),
        total=len(layers),
        kinds=", ".join(kinds),
        example=planned.impossible[0],
    )


def _metadata(
    header: Header, layers: Mapping[str, Layer], families: Sequence[str], host: str | None
) -> dict[str, str]:
    metadata = {
        key: value
        for key, value in header.metadata.items()
        if key != IN_HEADER and not key.startswith(("sshs_", "modelspec.hash"))
    }
    names = " and ".join(sorted({layer.layout.name for layer in layers.values()}))
    metadata[CONVERTED] = f"from {names} names" + (f" for {HOST_NAMES[host]}" if host else "")
    known = find(families[0]) if len(families) == 1 else None
    if known is not None:
        metadata = {
            "ss_base_model_version": known.base_model_version(None),
            "ss_v2": str(known.is_v2),
            **metadata,
        }
    return metadata


def _tensors(
    header: Header, layers: Mapping[str, Layer], scales: Scales, planned: CopyPlan
) -> Iterator[tuple[str, _Tensor]]:
    moved = {target.layers[0]: target for target in planned.targets}
    inner = {name for target in planned.targets for name in target.layers[1:]}
    seen = set[str]()
    for key, info in header.tensors.items():
        parsed = split_key(key)
        name = parsed[0] if parsed else ""
        if name not in layers:
            yield key, _Tensor.of(header, info)
            continue
        if name in seen or name in inner or name not in moved:
            continue
        seen.add(name)
        target = moved[name]
        if target.is_fused or target.is_swapped:
            made = _made(header, layers, scales, target)
        else:
            made = _copied(header, layers[name], scales.by_layer.get(name))
        for end, tensor in made:
            yield f"{target.name}.{end}", tensor


def _copied(header: Header, layer: Layer, scale: float | None) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of a layer that only gets another name."""
    for end, info in layer.weights.items():
        meaning = split_key(layer.key(end))
        role = meaning[2].role if meaning else ""
        usual = end in ENDS and not ENDS[end].style
        if role == "scale" and layer.rank:
            continue
        if role == "bias":
            yield "diff_b", _numbers(header, info, scale or 1.0)
            continue
        yield end if usual else ROLES.get(role, end), _Tensor.of(header, info)
    if "alpha" not in layer.roles and scale is not None and scale != 1:
        yield "alpha", _alpha(scale * (layer.rank or 1))


def _made(
    header: Header, layers: Mapping[str, Layer], scales: Scales, target: Target
) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of a layer whose rows are put together, or exchanged."""
    parts = [layers[name] for name in target.layers]
    places = [place for place in target.places if place is not None]
    known = [scales.by_layer.get(name) for name in target.layers]
    factors = [1.0 if scale is None else scale for scale in known]
    # one alpha for all: the strongest part has it, others' second factors are made smaller
    common = max(factors, key=abs) or 1.0
    ratios = [factor / common for factor in factors]
    rows = places[0].whole[0]
    swap = places[0].swapped
    if all(layer.kinds <= {"LoHa", ""} for layer in parts) and not swap:
        pairs = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))
        for (up, down), change in zip(pairs, (ratios, [1.0] * len(parts)), strict=True):
            factored = [
                (_Matrix.of(header, layer.weights[down]), _Matrix.of(header, layer.weights[up]))
                for layer in parts
            ]
            stacked, diagonal = _put_together(factored, change, places, rows)
            yield up, diagonal.tensor()
            yield down, stacked.tensor()
    elif "diff" in parts[0].roles:
        whole = _Matrix.of(header, parts[0].roles["diff"])
        yield "diff", whole.swapped().tensor()
        return
    else:
        factored = [_factors(header, layer) for layer in parts]
        stacked, diagonal = _put_together(factored, ratios, places, rows)
        yield "lora_up.weight", (diagonal.swapped() if swap else diagonal).tensor()
        yield "lora_down.weight", stacked.tensor()
    rank = stacked.rows
    stated = any("alpha" in layer.roles for layer in parts)
    if stated or common != 1:
        yield "alpha", _alpha(common * rank)


@dataclass(frozen=True)
class _Matrix:
    """A matrix in a file's number format, as bytes, so that any format is copied as it is."""

    dtype: str
    values: torch.Tensor
    """(rows, columns, bytes of a number), uint8"""

    @classmethod
    def of(cls, header: Header, info: TensorInfo) -> _Matrix:
        import torch

        rows = info.shape[0]
        content = torch.frombuffer(bytearray(read_bytes(header, info)), dtype=torch.uint8)
        size = content.numel() // max(1, math.prod(info.shape))
        return cls(info.dtype, content.reshape(rows, -1, size))

    @classmethod
    def from_numbers(cls, numbers: torch.Tensor) -> _Matrix:
        """A float32 matrix."""
        import torch

        content = numbers.float().contiguous()
        return cls("F32", content.view(torch.uint8).reshape(*content.shape, 4))

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def columns(self) -> int:
        return self.values.shape[1]

    def swapped(self) -> _Matrix:
        """With the halves of the rows exchanged."""
        import torch

        half = self.rows // 2
        return _Matrix(self.dtype, torch.cat([self.values[half:], self.values[:half]]))

    def tensor(self) -> _Tensor:
        values = self.values.contiguous()
        return _Tensor(
            self.dtype,
            (self.rows, self.columns),
            values.numel(),
            lambda: bytes(values.numpy().tobytes()),
        )


def _put_together(
    factored: Sequence[tuple[_Matrix, _Matrix]],
    ratios: Sequence[float],
    places: Sequence[Place],
    rows: int,
) -> tuple[_Matrix, _Matrix]:
    """(first factors below each other, second ones block-diagonal) of the parts of a layer with
    `rows` rows. First factors that are all the same stay one.
    """
    import torch

    dtypes = {matrix.dtype for pair in factored for matrix in pair}
    if len(dtypes) > 1 or any(ratio != 1 for ratio in ratios):
        factored = [
            (_Matrix.from_numbers(_floats(down)), _Matrix.from_numbers(_floats(up) * ratio))
            for (down, up), ratio in zip(factored, ratios, strict=True)
        ]
    downs, ups = [down for down, _ in factored], [up for _, up in factored]
    shared = all(torch.equal(down.values, downs[0].values) for down in downs)
    stacked = downs[0].values if shared else torch.cat([down.values for down in downs])
    diagonal = torch.zeros((rows, stacked.shape[0], stacked.shape[2]), dtype=torch.uint8)
    column = 0
    for place, up in zip(places, ups, strict=True):
        diagonal[place.first : place.first + up.rows, column : column + up.columns] = up.values
        column += 0 if shared else up.columns
    return _Matrix(downs[0].dtype, stacked), _Matrix(downs[0].dtype, diagonal)


def _floats(matrix: _Matrix) -> torch.Tensor:
    import torch

    dtype = getattr(torch, DTYPES[matrix.dtype])
    return matrix.values.contiguous().view(dtype).squeeze(-1).float()


def _factors(header: Header, layer: Layer) -> tuple[_Matrix, _Matrix]:
    """(down, up) of which a layer's delta, without its scale, is the product."""
    import torch

    if layer.kinds <= {"LoRA", ""}:
        roles = layer.roles
        return _Matrix.of(header, roles["down"]), _Matrix.of(header, roles["up"])
    tensors = {
        role: tensor
        for role, info in layer.roles.items()
        if (tensor := read_tensor(header, info)) is not None
    }
    if layer.kinds <= {"LoHa", ""}:
        # (A1 B1) * (A2 B2) is the product of all pairs of columns and all pairs of rows
        up = torch.einsum("or,os->ors", tensors["w1_a"], tensors["w2_a"]).flatten(1)
        down = torch.einsum("ri,si->rsi", tensors["w1_b"], tensors["w2_b"]).flatten(0, 1)
    else:
        # kron(W, A B) = kron(W, A) kron(1, B)
        first = tensors["w1"] if "w1" in tensors else tensors["w1_a"] @ tensors["w1_b"]
        up = torch.kron(first, tensors["w2_a"])
        down = torch.kron(torch.eye(first.shape[1]), tensors["w2_b"].flatten(1))
    return _Matrix.from_numbers(down), _Matrix.from_numbers(up)


def _alpha(value: float) -> _Tensor:
    return _Tensor("F32", (), 4, lambda: struct.pack("<f", value))


def _numbers(header: Header, info: TensorInfo, factor: float) -> _Tensor:
    def content() -> bytes:
        values = read_tensor(header, info)
        assert values is not None
        return bytes((values * factor).float().numpy().tobytes())

    return _Tensor("F32", info.shape, 4 * math.prod(info.shape), content)


def _write(path: Path, tensors: Mapping[str, _Tensor], metadata: Mapping[str, str]) -> None:
    # numbers of more bytes first: an offset must be a multiple of the element's size
    order = sorted(tensors, key=lambda key: -BYTES_EACH.get(tensors[key].dtype, 1))
    infos, offset = {}, 0
    for key in order:
        tensor = tensors[key]
        infos[key] = TensorInfo(tensor.dtype, tensor.shape, offset, offset + tensor.length)
        offset += tensor.length
    with path.open("wb") as out:
        out.write(encode_header(infos, metadata))
        for key in order:
            out.write(tensors[key].content())


# --- the check ------------------------------------------------------------------------------------


def _check(
    path: Path,
    header: Header,
    layers: Mapping[str, Layer],
    scales: Scales,
    planned: CopyPlan,
    host: str | None,
) -> None:
    """Raises LoraFileError if the copy does not load, or has another effect."""
    copy = read_header(path)
    found = layers_in(copy)
    if planned.model is not None and host is not None:
        loading = load(copy, found, host, planned.model, compare=False)
        theirs = [name for name in loading.dropped if any(t.name == name for t in planned.targets)]
        if loading.rejected or loading.fails or theirs:
            raise _failed(header.path, (theirs or [header.path.name])[0])
    new = scales_of(copy, found, lambda info: read_number(copy, info))
    for target in planned.targets:
        for name, place in zip(target.layers, target.places, strict=True):
            ours = found[target.name]
            if not layers[name].kinds <= ADDED_KINDS or "bias" in layers[name].roles:
                continue
            before = _change(header, layers[name], scales.by_layer.get(name))
            after = _change(copy, ours, new.by_layer.get(target.name))
            if not _same(before, after, place):
                raise _failed(header.path, name)


def _failed(path: Path, layer: str) -> LoraFileError:
    return LoraFileError(
        "the copy of {path} would not have the same effect: {layer}",
        hint="Please report it with the file.",
        path=path,
        layer=layer,
    )


def _change(header: Header, layer: Layer, scale: float | None) -> WeightChange:
    return change_of(header, layer, 1.0 if scale is None else scale)


def _same(before: WeightChange, after: WeightChange, place: Place | None) -> bool:
    import torch

    width = before.width
    if after.width != width:
        return False
    vectors = torch.randn(width, PROBES, generator=torch.Generator().manual_seed(0))
    theirs, ours = before.of(vectors), after.of(vectors)
    if place is not None:
        if place.swapped:
            half = ours.shape[0] // 2
            ours = torch.cat([ours[half:], ours[:half]])
        if place.is_part:
            ours = ours[place.first : place.first + place.shape[0]]
    if ours.shape != theirs.shape:
        return False
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    if not math.isfinite(largest):
        # damaged numbers stay as they are
        return True
    return float((ours - theirs).abs().max()) <= MOST_DIFFERENT * largest
