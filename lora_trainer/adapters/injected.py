"""Injects adapters beside the frozen layers of a model.

Takes Parts with base weights in any float dtype; returns Adapters, whose float32 parameters the
optimizer trains. Target layers are matched here, because PEFT silently ignores names that match
nothing.
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
from lora_trainer.lora.names import Learnable, Part, adaptable_layers, is_target, part_models
from lora_trainer.settings.training import TEXT_ENCODER_TARGETS, LoraSettings


class Adapters:
    """All adapters of a model, in the model's order, which is the same in every run."""

    def __init__(
        self, *, lora_type: LoraType, layers: Sequence[Adapter], models: Mapping[Part, Any]
    ) -> None:
        self.type = lora_type
        self.layers = tuple(layers)
        self._models = dict(models)

    def groups(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Trainable parameters with their names, by the learning rate that they have: those of the
        main model under its name, those of all text encoders as "text_encoder".
        """
        found: dict[str, list[tuple[str, torch.nn.Parameter]]] = {}
        for adapter in self.layers:
            name = "text_encoder" if adapter.part.startswith("text_encoder") else adapter.part
            found.setdefault(name, []).extend(adapter.parameters())
        return found

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
        """Copies of all weights, float32 on the CPU, by name."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self.parameters()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore weights in place. Raises LoraFileError if names or shapes differ."""
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
        """For the block, the model as with `<lora:NAME:value>`: scaled (0: base only), without
        dropout.
        """
        with ExitStack() as scaled:
            for adapter in self.layers:
                scaled.enter_context(adapter.at_strength(value))
            yield

    def remove(self) -> None:
        """Put the base layers back. The adapters' weights remain readable here."""
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
    """Freeze all loaded models and inject new adapters into the UNet and, if configured, the text
    encoders.

    The weights are float32 on their model's device, initialized from `seed`; the global random
    state is not used, except by dropout in each step. New adapters have no effect. Call it after
    the base has its dtype. Raises ConfigError if a target matches no layer.
    """
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
    return inject(chosen, settings, seed)


def inject(
    chosen: Sequence[tuple[Part, Any, Sequence[str]]], settings: LoraSettings, seed: int
) -> Adapters:
    """Inject new adapters beside the layers at these paths of frozen models, initialized from
    `seed`.
    """
    lora_type = types.get(settings.lora_type)
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

LANGUAGE_MODEL_TARGETS = {
    *TEXT_ENCODER_TARGETS,
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "query_key_value",
}


def target_layers(parts: Parts, settings: LoraSettings) -> Iterator[tuple[Part, Any, list[str]]]:
    """Each loaded model with targets, and the paths of its target layers. Raises ConfigError for
    targets that match no layer.
    """
    family = parts.family
    asked, lora_type = family.learning(settings), types.get(settings.lora_type)
    for part, model in part_models(parts):
        if part == "unet":
            targets, default = asked.target_modules, family.unet_targets
        else:
            default = family.text_encoder_targets
            targets = asked.text_encoder_targets if asked.train_text_encoder else ()
        if targets:
            paths = matching_layers(model, family, part, targets, default)
            more = lora_type.more_targets(family, part)
            learning = [
                path
                for path in (adaptable_layers(model, family) if more else paths)
                if path in paths or is_target(path, more)
            ]
            yield part, model, learning


def matching_layers(
    model: Any, base: Learnable, part: Part, targets: Sequence[str], default: Sequence[str]
) -> list[str]:
    """Paths of the Linear and Conv2d layers that are a target, or end with `.` and a target, in the
    model's order.

    Raises ConfigError naming the targets without a match. (Of the `default` targets, one match is
    enough.)
    """
    layers = adaptable_layers(model, base)
    matched = {
        path: [target for target in targets if is_target(path, (target,))] for path in layers
    }
    found = [path for path, by in matched.items() if by]
    lost = [target for target in targets if not any(target in by for by in matched.values())]
    if lost and not (found and tuple(targets) == tuple(default)):
        raise _no_such_layer(model, part, lost, layers)
    return found


def _no_such_layer(
    model: Any, part: Part, lost: list[str], layers: Mapping[str, Any]
) -> ConfigError:
    named, existing = ", ".join(lost), ", ".join(short_names(layers))
    setting = "text_encoder_targets" if part.startswith("text_encoder") else "target_modules"
    if part == "unet" and set(lost) & LANGUAGE_MODEL_TARGETS:
        return ConfigError(
            "{setting}: no layer of the UNet is called {named}",
            hint=(
                "Those are names of text encoders and language models; a UNet has to_q, to_k,"
                " to_v, to_out.0."
            ),
            setting=setting,
            named=named,
        )
    if part.startswith("text_encoder") and any(target.startswith("to_") for target in lost):
        return ConfigError(
            "{setting}: no layer of the text encoder is called {named}",
            hint=(
                "Those are names of a UNet; a text encoder has q_proj, k_proj, v_proj, out_proj,"
                " fc1, fc2."
            ),
            setting=setting,
            named=named,
        )
    paths = ["." + path for path, _ in model.named_modules()]
    blocks = [target for target in lost if any(path.endswith("." + target) for path in paths)]
    if blocks:
        inside = ", ".join(
            short_names([path for path in layers if f".{blocks[0]}." in f".{path}."])
        )
        hint = "Only Linear and Conv2d layers can: {existing}."
        if inside:
            hint = "Only Linear and Conv2d layers can. Inside it: {inside}."
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
    """The distinct last components of paths: "to_q", "to_out.0"."""
    ends: dict[str, None] = {}
    for path in paths:
        pieces = path.split(".")
        count = 2 if pieces[-1].isdigit() else 1
        ends[".".join(pieces[-count:])] = None
    return list(ends)
