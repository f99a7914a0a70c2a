"""The LoRA inside the model: adapters of the chosen type beside frozen layers.

In: Parts with frozen base weights in any float type. Out: Adapters, whose parameters (float32) the
optimizer trains. training, previews and export call it. Which layers learn is decided here, because
PEFT silently passes over names that match nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lora_trainer.adapters import types
from lora_trainer.adapters.base import Adapter, LoraType
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import ConfigError, LoraFileError
from lora_trainer.families.base import Family
from lora_trainer.lora.names import Part, adaptable_layers, is_target, part_models
from lora_trainer.settings.training import TEXT_ENCODER_TARGETS, LoraSettings


class Adapters:
    """All adapters of one model, in the model's own order: the same order in every run of the same
    settings.
    """

    def __init__(
        self, *, lora_type: LoraType, layers: Sequence[Adapter], models: Mapping[Part, Any]
    ) -> None:
        self.type = lora_type
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
        with ExitStack() as scaled:
            for adapter in self.layers:
                scaled.enter_context(adapter.at_strength(value))
            yield

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
    after the base has its type. First values are drawn from `seed`, and a fresh adapter changes
    nothing. The global random state is neither read nor moved. Dropout draws from it in each step,
    outside of `Adapters.strength`. Raises ConfigError if a name in target_modules or
    text_encoder_targets matches no layer.
    """
    lora_type = types.get(settings.lora_type)
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
    layers: list[Adapter] = []
    for part, model, paths in chosen:
        sizes = {
            path: lora_type.size(tuple(model.get_submodule(path).weight.shape), settings)
            for path in paths
        }
        layers += lora_type.inject(part, model, sizes, settings, generator)
    models = {part: model for part, model, _ in chosen}
    return Adapters(lora_type=lora_type, layers=layers, models=models)


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
    asked, lora_type = family.learning(settings), types.get(settings.lora_type)
    for part, model in part_models(parts):
        if part == "unet":
            setting, targets, default = "target_modules", asked.target_modules, family.unet_targets
        else:
            setting, default = "text_encoder_targets", family.text_encoder_targets
            targets = asked.text_encoder_targets if asked.train_text_encoder else ()
        if targets:
            paths = matching_layers(model, family, setting, targets, default)
            more = lora_type.more_targets(family, part)
            learning = [
                path
                for path in (adaptable_layers(model, family) if more else paths)
                if path in paths or is_target(path, more)
            ]
            yield part, model, learning


def matching_layers(
    model: Any, family: Family, setting: str, targets: Sequence[str], default: Sequence[str]
) -> list[str]:
    """Paths of the Linear and Conv2d layers whose path is a target or ends with `.` and a target,
    in the model's order.

    Raises ConfigError naming the targets that match nothing. (Of the family's `default` set, one
    match is enough.)
    """
    layers = adaptable_layers(model, family)
    matched = {
        path: [target for target in targets if is_target(path, (target,))] for path in layers
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
