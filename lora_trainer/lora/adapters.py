"""The LoRA inside the model: low-rank layers beside frozen ones.

    output = base(x) + strength * alpha / rank * up(down(dropout(x)))          (LoRA, arXiv
        2106.09685)

In: Parts with frozen base weights in any float type. Out: Adapters, whose parameters (float32) the
optimizer trains. training, previews and export call it. The layers are PEFT's; which ones, their
first values and their scale are decided here, because PEFT draws the first values from the global
random state and in the base's type, and silently passes over names that match nothing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import ConfigError, LoraFileError
from lora_trainer.families.base import Family
from lora_trainer.lora.names import Part, adaptable_layers, part_models
from lora_trainer.settings.training import TEXT_ENCODER_TARGETS, LoraSettings

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One layer's adapter. `layer` is PEFT's layer, which stands in the model where the base layer
    stood.
    """

    part: Part
    path: str
    layer: Any

    @property
    def down(self) -> torch.nn.Parameter:
        """(rank, in) or (rank, in, height, width), float32"""
        return self.layer.lora_A[ADAPTER].weight  # type: ignore[no-any-return]

    @property
    def up(self) -> torch.nn.Parameter:
        """(out, rank) or (out, rank, 1, 1), float32"""
        return self.layer.lora_B[ADAPTER].weight  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        """diffusers' name: part and path."""
        return f"{self.part}.{self.path}"

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(f"{self.name}.lora_A.weight", self.down), (f"{self.name}.lora_B.weight", self.up)]


class Adapters:
    """All adapters of one model, in the model's own order: the same order in every run of the same
    settings.
    """

    def __init__(
        self,
        *,
        rank: int,
        alpha: float,
        layers: Sequence[Adapter],
        models: Mapping[Part, Any],
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.layers = tuple(layers)
        self._models = dict(models)

    def parameters_unet(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The UNet's trainable parameters with their names."""
        return [
            pair
            for adapter in self.layers
            if adapter.part == "unet"
            for pair in adapter.parameters()
        ]

    def parameters_text_encoder(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The trainable parameters of the text encoder, or of both, with their names."""
        return [
            pair
            for adapter in self.layers
            if adapter.part != "unet"
            for pair in adapter.parameters()
        ]

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """All trainable parameters with their names."""
        return [pair for adapter in self.layers for pair in adapter.parameters()]

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for _, parameter in self.parameters())

    @property
    def module_count(self) -> int:
        return len(self.layers)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all weights on the CPU, float32, under their names: what an exact resume
        needs.
        """
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self.parameters()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put weights from `state_dict` back, in place. Raises LoraFileError unless names and
        shapes are exactly these adapters'.
        """
        parameters = dict(self.parameters())
        wrong = sorted(set(parameters) ^ set(state)) or [
            name for name in parameters if parameters[name].shape != state[name].shape
        ]
        if wrong:
            raise LoraFileError(
                "the saved adapters do not fit this model and these settings: {count} of {total}"
                " weights differ, such as {example}",
                hint=(
                    "Continue with the base model, lora_rank and target_modules the run was started"
                    " with."
                ),
                count=len(wrong),
                total=len(parameters),
                example=wrong[0],
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    @contextmanager
    def strength(self, value: float) -> Iterator[None]:
        """The model as the WebUI shows it with `<lora:NAME:value>`: scaled (0 is the base itself, 1
        the whole LoRA), and without dropout.
        """
        before = [
            (
                adapter.layer,
                adapter.layer.scaling[ADAPTER],
                adapter.layer.lora_dropout[ADAPTER].training,
            )
            for adapter in self.layers
        ]
        try:
            for layer, _, _ in before:
                layer.set_scale(ADAPTER, value)
                layer.lora_dropout[ADAPTER].train(False)
            yield
        finally:
            for layer, scale, training in before:
                layer.scaling[ADAPTER] = scale
                layer.lora_dropout[ADAPTER].train(training)

    def remove(self) -> None:
        """Take the adapters out: the base layers stand where they stood. The adapters' weights stay
        readable here.
        """
        for adapter in self.layers:
            parent_path, _, child = adapter.path.rpartition(".")
            setattr(
                self._models[adapter.part].get_submodule(parent_path),
                child,
                adapter.layer.base_layer,
            )
        for model in self._models.values():
            if hasattr(model, "peft_config"):
                del model.peft_config


def add_adapters(parts: Parts, settings: LoraSettings, seed: int) -> Adapters:
    """Freeze everything that is loaded and put fresh adapters into the UNet and, if asked, the text
    encoders.

    The adapters' weights are float32 on their model's device, whatever the base's type; call it
    after the base has its type. Down is drawn from `seed` (uniform, as kaiming for sqrt(5)), up is
    zero, so that a fresh adapter changes nothing. The global random state is neither read nor
    moved. Dropout draws from it in each step, outside of `Adapters.strength`. Raises ConfigError if
    a name in target_modules or text_encoder_targets matches no layer.
    """
    alpha = float(settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha)
    chosen = list(target_layers(parts, settings))
    for _, model in part_models(parts):
        model.requires_grad_(False)
    if parts.vae is not None:
        parts.vae.requires_grad_(False)
    if not chosen:
        raise ConfigError(
            "nothing would be trained",
            hint="Leave target_modules out, or set train_text_encoder to true.",
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    layers = [
        adapter
        for part, model, paths in chosen
        for adapter in _inject(part, model, paths, settings, alpha, generator)
    ]
    return Adapters(
        rank=settings.lora_rank,
        alpha=alpha,
        layers=layers,
        models={part: model for part, model, _ in chosen},
    )


def _inject(
    part: Part,
    model: Any,
    paths: list[str],
    settings: LoraSettings,
    alpha: float,
    generator: torch.Generator,
) -> Iterator[Adapter]:
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=paths,
        init_lora_weights=False,
    )
    # low_cpu_mem_usage: PEFT leaves the weights without values, and so draws none from the global
    # random state
    inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)
    for path in paths:
        layer = model.get_submodule(path)
        device = layer.base_layer.weight.device
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        bound = 1 / math.sqrt(down.weight[0].numel())
        first = torch.empty(down.weight.shape, dtype=torch.float32).uniform_(
            -bound, bound, generator=generator
        )
        down.weight = torch.nn.Parameter(first.to(device))
        up.weight = torch.nn.Parameter(
            torch.zeros(up.weight.shape, dtype=torch.float32, device=device)
        )
        yield Adapter(part=part, path=path, layer=layer)


# --- which layers ---------------------------------------------------------------------------------

NAMES_OF_LANGUAGE_MODELS = {
    *TEXT_ENCODER_TARGETS,
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "query_key_value",
}


def target_layers(parts: Parts, settings: LoraSettings) -> Iterator[tuple[Part, Any, list[str]]]:
    """Each loaded model that learns, with the paths of its layers that do. Raises ConfigError for
    names that match no layer.
    """
    family = parts.family
    asked = family.learning(settings)
    for part, model in part_models(parts):
        if part == "unet":
            setting, targets, default = "target_modules", asked.target_modules, family.unet_targets
        else:
            setting, default = "text_encoder_targets", family.text_encoder_targets
            targets = asked.text_encoder_targets if asked.train_text_encoder else ()
        if targets:
            yield part, model, matching_layers(model, family, setting, targets, default)


def matching_layers(
    model: Any,
    family: Family,
    setting: str,
    targets: Sequence[str],
    default: Sequence[str],
) -> list[str]:
    """Paths of the Linear and Conv2d layers whose path is a target or ends with `.` and a target,
    in the model's order.

    Raises ConfigError naming the targets that match nothing. (Of the family's `default` set, one
    match is enough.)
    """
    layers = adaptable_layers(model, family)
    matched = {
        path: [target for target in targets if path == target or path.endswith("." + target)]
        for path in layers
    }
    found = [path for path, by in matched.items() if by]
    lost = [target for target in targets if not any(target in by for by in matched.values())]
    if lost and not (found and tuple(targets) == tuple(default)):
        raise _no_such_layer(model, setting, lost, layers)
    return found


def _no_such_layer(
    model: Any, setting: str, lost: list[str], layers: Mapping[str, Any]
) -> ConfigError:
    named, existing = ", ".join(lost), ", ".join(short_names(layers))
    if setting == "target_modules" and set(lost) & NAMES_OF_LANGUAGE_MODELS:
        hint = (
            "Those are names of text encoders and language models; a UNet has to_q, to_k, to_v,"
            " to_out.0."
        )
        return ConfigError(
            "{setting}: no layer of the UNet is called {named}",
            hint=hint,
            setting=setting,
            named=named,
        )
    if setting == "text_encoder_targets" and any(target.startswith("to_") for target in lost):
        hint = (
            "Those are names of a UNet; a text encoder has q_proj, k_proj, v_proj, out_proj, fc1,"
            " fc2."
        )
        return ConfigError(
            "{setting}: no layer of the text encoder is called {named}",
            hint=hint,
            setting=setting,
            named=named,
        )
    blocks = [
        target
        for target in lost
        if any(path == target or path.endswith("." + target) for path, _ in model.named_modules())
    ]
    if blocks:
        inside = ", ".join(
            short_names([path for path in layers if f".{blocks[0]}." in f".{path}."])
        )
        hint = (
            "Only Linear and Conv2d layers can. Inside it: {inside}."
            if inside
            else "Only Linear and Conv2d layers can: {existing}."
        )
        template = "{setting}: {named} is not a layer that can hold a LoRA"
        return ConfigError(
            template, hint=hint, setting=setting, named=blocks[0], inside=inside, existing=existing
        )
    close = "".join(difflib.get_close_matches(lost[0], short_names(layers), 1))
    hint = "Did you mean {close}? There are: {existing}." if close else "There are: {existing}."
    return ConfigError(
        "{setting}: no layer is called {named}",
        hint=hint,
        setting=setting,
        named=named,
        close=close,
        existing=existing,
    )


def short_names(paths: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The different ends of paths, each once: "to_q", "to_out.0"."""
    ends: dict[str, None] = {}
    for path in paths:
        pieces = path.split(".")
        count = 2 if pieces[-1].isdigit() and len(pieces) > 1 else 1
        ends[".".join(pieces[-count:])] = None
    return list(ends)
