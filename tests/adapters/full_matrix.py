"""A toy type of LoRA in one file: the whole change of each weight, as hosts read it from `.diff`."""

from __future__ import annotations

from contextlib import contextmanager
from math import prod

from lora_trainer.adapters.base import Adapter, LoraType

DIFF = ".diff"


class FullMatrix(LoraType):
    id = "full"
    label = "Full matrix"
    webui_ends = diffusers_ends = (DIFF,)

    def inject(self, part, model, sizes, settings, generator):
        import torch

        class Changed(torch.nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base_layer = base
                self.diff = torch.nn.Parameter(torch.zeros_like(base.weight, dtype=torch.float32))
                self.strength = 1.0

            def forward(self, x):
                change = torch.nn.functional.linear(x, self.strength * self.diff.to(x))
                return self.base_layer(x) + change

        for path, size in sizes.items():
            parent, _, child = path.rpartition(".")
            layer = Changed(model.get_submodule(path))
            setattr(model.get_submodule(parent), child, layer)
            yield FullMatrixAdapter(part, path, layer, size)

    def weight_count(self, shape, size):
        return prod(shape)

    def fits(self, base, shapes):
        return shapes[DIFF] == base

    def is_idle(self, tensors):
        return not bool(tensors[DIFF].count_nonzero())

    def effect(self, tensors):
        return tensors[DIFF].float()


class FullMatrixAdapter(Adapter):
    def parameters(self):
        return [(f"{self.name}.diff", self.layer.diff)]

    def begin_from(self, change):
        import torch

        whole = change.scale * change.up @ change.down if change.whole is None else change.whole
        with torch.no_grad():
            self.layer.diff.copy_(whole)
        return 1.0, float((whole**2).sum())

    @contextmanager
    def at_strength(self, value):
        before, self.layer.strength = self.layer.strength, value
        try:
            yield
        finally:
            self.layer.strength = before

    def webui_tensors(self):
        return {DIFF: self.layer.diff.detach()}

    diffusers_tensors = webui_tensors


TYPES = (FullMatrix(),)
