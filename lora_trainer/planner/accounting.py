"""Counts the memory of a training step without allocating it: runs the trainer's own step under
torch's FakeTensorMode on the CPU and counts every storage.

    account(checkpoint, config, dtype) -> StepMemory
    step_flops(checkpoint, config, dtype) -> floating-point operations of a step

Takes seconds: the time to dispatch the operations of one step. Not included is the overhead of a
graphics card (CUDA context, rounding by the allocator, kernel workspaces): planner.plan adds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.checkpoint.tensors import empty_in
from lora_trainer.cpu import attention
from lora_trainer.cpu.convolutions import prepackable
from lora_trainer.cpu.quicken import can_quicken, use_faster_layers
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.held_out import HeldOut
from lora_trainer.dataset.scan import Dataset, Example
from lora_trainer.families.base import Family, TextStates
from lora_trainer.frozen.layers import FrozenLayer, freeze, homes
from lora_trainer.planner.autocast import as_on_a_card
from lora_trainer.planner.storages import LiveStorages
from lora_trainer.settings.training import RunConfig
from lora_trainer.tasks.diffusion import (
    image_encoding_dtype,
    load_with_adapters,
    make_trainer,
    text_encoder_dtype,
    text_encoder_precision,
)
from lora_trainer.tasks.images import Encoded, PreparedImages
from lora_trainer.training import batches
from lora_trainer.training.optimizers import OPTIMIZERS
from lora_trainer.training.train import BatchSchedule, Trainer

CPU = torch.device("cpu")
ON_A_PROCESSOR = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda change, query, key, value, *_, **__: sdpa_backward_flop_count(  # type: ignore[no-untyped-call]
            change, query, key, value
        )
    ),
}
"""FLOP formulas of CPU attention, which torch's FlopCounterMode lacks."""
STEP_COUNT = 2**20
"""Long enough for any warm-up."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes at the peak of a step, by kind. gradients: those that exist at the peak."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations


def account(
    checkpoint: Checkpoint, config: RunConfig, dtype: torch.dtype, device: str = "cuda"
) -> StepMemory:
    """The memory of a step for which the optimizer's state exists.

    config: `resolution` is set. dtype: of the frozen model. device: the device type whose autocast
    rules and text encoder dtype apply; "cpu" is this processor, with its forms (`cpu`), except the
    layouts of convolutions (cpu.convolutions.layout_bytes). The batch is of squares, each with a
    caption of max_token_length tokens.
    """
    with _fake_trainer(checkpoint, config, dtype, device) as (trainer, live):
        _fill_optimizer(trainer, live)
        live.restart()
        trainer.advance()
    found = {field.name: live.peak.get(field.name, 0) for field in dataclasses.fields(StepMemory)}
    return StepMemory(**found)


def step_flops(checkpoint: Checkpoint, config: RunConfig, dtype: torch.dtype) -> int:
    """Floating-point operations of the matrix multiplications, convolutions and attention of one
    step, forward and backward, including what gradient checkpointing recomputes. `config` as for
    `account`.
    """
    with (
        _fake_trainer(checkpoint, config, dtype, "cuda") as (trainer, _),
        FlopCounterMode(display=False, custom_mapping=ON_A_PROCESSOR) as counted,
    ):
        trainer.advance()
    return int(counted.get_total_flops())


@contextlib.contextmanager
def _fake_trainer(
    checkpoint: Checkpoint, config: RunConfig, dtype: torch.dtype, device: str
) -> Iterator[tuple[Trainer, LiveStorages]]:
    """A trainer under FakeTensorMode, and its storages."""
    config = _countable(config)
    prepared = _prepared(checkpoint, config, dtype)
    encoders = prepared.checkpoint.load_text_encoders(
        text_encoder_dtype(torch.device(device), dtype, checkpoint.family)
    )
    if config.lora.train_text_encoder:
        prepared.parts.text_encoders = encoders
    adapters = load_with_adapters(prepared)
    quick = can_quicken(torch.device(device), dtype)
    keeps: Any = _KeptWeights() if quick and attention.is_available() else contextlib.nullcontext()
    with _counting(device) as live, keeps:
        for encoder in encoders:
            _leave_meta(encoder)
        captions = _captions(prepared, encoders)
        if not prepared.parts.text_encoders:
            for encoder in encoders:
                _free(encoder)
        _leave_meta(prepared.parts.unet)
        if quick:
            _quicken(prepared.parts.unet, dtype)
        for home in homes(prepared.parts.unet):
            home.gather()
            live.leave_out(home.hosted)
            live.mark("weights", home.resident)
        for model in (prepared.parts.unet, *prepared.parts.text_encoders):
            live.mark("weights", [*model.parameters(), *model.buffers()])
        images = _EmptyImages(prepared)
        encoded = Encoded(captions=captions, images=images, held_out=images)
        trainer = make_trainer(prepared, encoded, adapters)
        live.mark("adapters", trainer.parameters)
        for parameter in trainer.parameters:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda one: live.mark("gradients", [one.grad])
            )
        yield trainer, live


def _quicken(unet: Any, dtype: torch.dtype) -> None:
    """Give a model the layers that it has on this processor. In place of prepacked convolutions,
    others that keep as little for the backward pass.
    """
    frozen = [layer for layer in prepackable(unet) if not layer.weight.requires_grad]
    for layer in freeze(frozen, "same"):
        layer.dtype = dtype
    use_faster_layers(unet)


class _KeptWeights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps for the backward pass what cpu.attention would keep."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        if func is not torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            return result
        output, sums = result
        if not attention.serves(*args, **named):
            return output, sums
        query, key, value = args[:3]
        return output, attention.room_to_keep(query, key, value, self._kept)


def decoding_peak(checkpoint: Checkpoint, size: tuple[int, int]) -> int:
    """Bytes of the VAE in float32 while it decodes one preview of this width and height."""
    family = checkpoint.family
    shape = _latent_shape(family, size, family.latent_channels)
    return _vae_peak(checkpoint, lambda vae: family.decode(vae, torch.zeros(shape)))


def encoding_peak(
    checkpoint: Checkpoint,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> int:
    """Bytes of the VAE while it encodes one image of this width and height. dtype: the trained
    model's.
    """
    width, height = size
    return _vae_peak(
        checkpoint,
        lambda vae: checkpoint.family.encode_images(vae, torch.zeros(1, 3, height, width)),
        image_encoding_dtype(torch.device(device), dtype, checkpoint.family),
    )


def text_encoding_peak(
    checkpoint: Checkpoint, config: RunConfig, dtype: torch.dtype, device: str
) -> int:
    """Bytes of the text encoders' weights, which are all loaded while captions are encoded;
    activations are small compared to them and not counted.
    """
    encoders = _weightless(checkpoint).load_text_encoders(
        text_encoder_dtype(torch.device(device), dtype, checkpoint.family),
        kept=text_encoder_precision(config),
    )
    return sum(tensor.nbytes for model in encoders for tensor in model.parameters())


def _vae_peak(checkpoint: Checkpoint, use: Any, dtype: torch.dtype = torch.float32) -> int:
    vae = _weightless(checkpoint).load_vae(dtype)
    with _counting("cpu") as live:
        _leave_meta(vae)
        use(vae)
    return sum(live.peak.values())


@contextlib.contextmanager
def _counting(device: str) -> Iterator[LiveStorages]:
    rules = as_on_a_card() if device != "cpu" else contextlib.nullcontext()
    mode = FakeTensorMode()
    # LiveStorages remembers what operations return
    mode.cache_enabled = False
    with mode, LiveStorages(mode) as live, rules:
        yield live


def _countable(config: RunConfig) -> RunConfig:
    """The config with an optimizer that runs on the CPU; the planner computes the state's size."""
    kept = OPTIMIZERS[config.training.optimizer].device in ("", "cpu")
    return config if kept else config.replace(optimizer="adamw")


def _weightless(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, set to load its models onto the meta device without reading weights."""
    return dataclasses.replace(checkpoint, fill=empty_in)


def _prepared(checkpoint: Checkpoint, config: RunConfig, dtype: torch.dtype) -> PreparedImages:
    """A dataset with one batch for each accumulation step, in one square bucket."""
    training, side = config.training, config.dataset.resolution
    assert side is not None, "the resolution is known"
    # two are enough: a third batch needs as much memory as the second
    part_count = min(training.gradient_accumulation_steps, 2)
    count = training.batch_size * part_count
    bucket = Bucket(side, side)
    indices = {bucket: list(range(count))}
    return PreparedImages(
        config=config,
        checkpoint=_weightless(checkpoint),
        parts=Parts(
            family=checkpoint.family,
            schedule=checkpoint.schedule,
            tokenizers=checkpoint.tokenizers(),
        ),
        dataset=Dataset(
            examples=tuple(_example(number, bucket, config) for number in range(count)),
            findings=(),
        ),
        buckets=indices,
        held_out=HeldOut(),
        held_out_buckets={},
        plan=BatchSchedule(
            buckets=indices,
            repeats=[1] * count,
            batch_size=training.batch_size,
            accumulation=part_count,
            seed=training.seed,
            step_count=STEP_COUNT,
        ),
        device=CPU,
        dtype=dtype,
    )


def _example(number: int, bucket: Bucket, config: RunConfig) -> Example:
    name = f"{number}.png"
    return Example(
        path=Path(name),
        name=name,
        caption=" ".join(["word"] * config.checkpoint.max_token_length),
        width=bucket.width,
        height=bucket.height,
        digest=str(number),
        repeats=1,
        folder="",
    )


class _EmptyImages(batches.EncodedImages):
    """Encoded images of one size; all zeros."""

    def __init__(self, prepared: PreparedImages) -> None:
        super().__init__(batches.TensorStore(None))
        family = prepared.parts.family
        (bucket,) = prepared.buckets
        size = (bucket.width, bucket.height)
        self._shape = _latent_shape(family, size, 2 * family.latent_channels)[1:]

    def get(self, index: int, *, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(self._shape), torch.zeros(6)


class _EmptyCaptions(batches.CaptionEncoder):
    """Cached text states: `row` for every caption."""

    def __init__(self, prepared: PreparedImages, row: TextStates) -> None:
        store = batches.TensorStore(None)
        super().__init__(prepared.parts, prepared.config.checkpoint, store, "", live=False)
        self._row = row

    def _kept(self, caption: str) -> TextStates:
        return self._row


def _captions(prepared: PreparedImages, encoders: tuple[Any, ...]) -> batches.CaptionEncoder:
    """The source of text states: the text encoders if they are trained, else cached states of the
    shape of their output.
    """
    parts = dataclasses.replace(prepared.parts, text_encoders=encoders)
    live = batches.CaptionEncoder(
        parts, prepared.config.checkpoint, batches.TensorStore(None), "", live=True
    )
    if prepared.parts.text_encoders:
        return live
    with torch.no_grad():
        return _EmptyCaptions(prepared, live.states([prepared.dataset.examples[0].caption]))


def _latent_shape(
    family: Family, size: tuple[int, int], channels: int
) -> tuple[int, int, int, int]:
    width, height = (side // family.pixels_per_latent for side in size)
    return 1, channels, height, width


def _leave_meta(model: Any) -> None:
    """Replace a model's meta tensors by fake CPU tensors. Called under FakeTensorMode."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(
                name, torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            )
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(
                name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False
            )
        if isinstance(module, FrozenLayer) and module.scale is not None:
            module.scale = torch.empty(module.scale.shape, dtype=module.scale.dtype)


def _free(model: Any) -> None:
    """Drop the model's tensors: transformers leaves reference cycles behind, so that it stays."""
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()


def _fill_optimizer(trainer: Trainer, live: LiveStorages) -> None:
    """Create the optimizer's state, as the first step does; the weight averages exist already."""
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    for state in trainer.optimizer.state.values():
        live.mark("optimizer", [value for value in state.values() if torch.is_tensor(value)])
    live.mark("optimizer", trainer.averages)
