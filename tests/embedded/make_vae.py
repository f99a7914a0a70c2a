"""The embedded checkpoint's VAE: downscaling factor 8, four latent channels, widths that the
WebUI's configuration can express, trained on 64-pixel drawings.

Trained normally, a VAE of this size takes hours on a few cores (22 dB after 14 minutes, blurred and
in wrong colours). Three things made it 32 dB in 22 minutes: it is initialized to pass on each
block's mean colour (`pass_colour`); group norms get constant channels to normalize colours against
(`RULER`); and blocks that are the identity at full resolution are skipped while training
(`Skeleton`, `widen`).
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional

from lora_trainer.demo import world
from lora_trainer.families.stable_diffusion import SD1
from tests.embedded import scenes
from tests.embedded.stages import Share, StageProgress, follow, load_state, one_cycle, save_state

WIDTH = 96
"""Channels at every level: the WebUI's configuration has only whole multiples of the first, and
always 32 norm groups. A group of one channel loses the colour, one of two keeps its sign: three are
needed before the last norms of encoder and decoder, two of which are constants (`RULER`).
"""
TRAINED = (96, 32, 64, 96)
"""Channels trained per level; the others stay 0 (see `widen`)."""
LIVE = 32
"""Trained channels of the encoder's first level; the others stay 0."""
RULER = (0.0, 1.5, -1.5)


@dataclass(frozen=True, kw_only=True)
class VaeSettings:
    seed: int = 20
    step_count: int = 1500
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    kl_weight: float = 4e-6
    ema_decay: float = 0.995


def new_vae(channels: tuple[int, ...] = (WIDTH,) * 4) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=SD1.latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=32,
        sample_size=world.SIDE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=SD1.latent_scale,
    )


class SparseNorm(torch.nn.Module):
    """A group norm of 96 channels in 32 groups, of which only each group's first one or two exist
    and the others are 0.
    """

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps
        self.groups = norm.num_groups

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = hidden.shape
        grouped = hidden.reshape(batch, self.groups, -1)
        count = WIDTH // self.groups * height * width
        mean = grouped.sum(-1) / count
        variance = grouped.pow(2).sum(-1) / count - mean.pow(2)
        live = channels // self.groups
        scale = torch.rsqrt(variance + self.eps).repeat_interleave(live, 1) * self.weight
        shift = self.bias - mean.repeat_interleave(live, 1) * scale
        return torch.addcmul(shift[:, :, None, None], hidden, scale[:, :, None, None])


def new_trained_vae() -> AutoencoderKL:
    """The VAE with only the trained channels. The resamplers change the width, where SD's blocks
    do.
    """
    vae = new_vae(TRAINED)
    encoder, decoder = vae.encoder, vae.decoder
    downward, upward = TRAINED, TRAINED[::-1]
    for level in range(3):
        encoder.down_blocks[level].downsamplers[0].conv = torch.nn.Conv2d(
            downward[level], downward[level + 1], 3, stride=2
        )
        decoder.up_blocks[level].upsamplers[0].conv = torch.nn.Conv2d(
            upward[level], upward[level + 1], 3, padding=1
        )
        for block, width in (
            (encoder.down_blocks[level + 1], downward[level + 1]),
            (decoder.up_blocks[level + 1], upward[level + 1]),
        ):
            block.resnets[0] = ResnetBlock2D(
                in_channels=width, out_channels=width, temb_channels=None, groups=32, eps=1e-6
            )
    for parent in list(vae.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, torch.nn.GroupNorm) and norm.num_channels < WIDTH:
                setattr(parent, name, SparseNorm(norm))
    return vae


def widen(trained: AutoencoderKL) -> AutoencoderKL:
    """The same VAE with all channels: those of a narrower level become the first of each norm
    group, the others are 0.
    """
    places = {
        32: torch.arange(32) * 3,
        64: (torch.arange(32)[:, None] * 3 + torch.arange(2)).flatten(),
    }
    wide = new_vae()
    state = {}
    for name, tensor in wide.state_dict().items():
        narrow = trained.state_dict()[name]
        for axis in range(min(2, narrow.ndim)):
            if narrow.shape[axis] != tensor.shape[axis]:
                widened = torch.zeros(
                    *narrow.shape[:axis], tensor.shape[axis], *narrow.shape[axis + 1 :]
                )
                widened.index_copy_(axis, places[narrow.shape[axis]], narrow)
                narrow = widened
        state[name] = narrow
    wide.load_state_dict(state)
    return wide


COLOUR = (0, 3, 6)
"""The channels that carry red, green and blue through the initialized VAE, in separate norm
groups.
"""


@torch.no_grad()
def pass_colour(vae: AutoencoderKL) -> None:
    """Initialize the VAE to reproduce each 8 x 8 block's mean colour, which otherwise takes
    thousands of steps to learn.
    """
    encoder, decoder = vae.encoder, vae.decoder
    for resnet in [module for module in vae.modules() if hasattr(module, "conv2")]:
        resnet.conv2.weight *= 0.2
        resnet.conv2.bias.zero_()
        resnet.conv2.weight[list(COLOUR)] = 0
    for block in (encoder.mid_block, decoder.mid_block):
        block.attentions[0].to_out[0].weight *= 0.1
        block.attentions[0].to_out[0].weight[list(COLOUR)] = 0
        block.attentions[0].to_out[0].bias.zero_()
    carry(encoder.conv_in, (0, 1, 2), COLOUR)
    for down in encoder.down_blocks[:3]:
        convolution = down.downsamplers[0].conv
        carry(convolution, COLOUR, COLOUR)
        for channel in COLOUR:
            convolution.weight[channel, channel] = 0
            convolution.weight[channel, channel, :2, :2] = 0.25
    for up in decoder.up_blocks[:2]:
        carry(up.upsamplers[0].conv, COLOUR, COLOUR)
    # for large inputs SiLU is the identity
    for norm, out in (
        (encoder.conv_norm_out, encoder.conv_out),
        (decoder.conv_norm_out, decoder.conv_out),
    ):
        norm.bias[list(COLOUR)] = 4.0
        carry(out, COLOUR, (0, 1, 2), gain=1.6, offset=-4.0 * 1.6)
    encoder.conv_out.weight[4:] *= 0.1
    encoder.conv_out.bias[4:] = -5.0
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.copy_(torch.eye(convolution.out_channels)[:, :, None, None])
        convolution.bias.zero_()
    carry(decoder.conv_in, (0, 1, 2), COLOUR)


@torch.no_grad()
def carry(
    convolution: torch.nn.Conv2d,
    sources: tuple[int, ...],
    targets: tuple[int, ...],
    gain: float = 1.0,
    offset: float = 0.0,
) -> None:
    """Make output channels of a convolution copies of input channels."""
    assert convolution.bias is not None
    middle = convolution.kernel_size[0] // 2
    for source, target in zip(sources, targets, strict=True):
        convolution.weight[target] = 0
        convolution.weight[target, source, middle, middle] = gain
        convolution.bias[target] = offset


class Skeleton(torch.nn.Module):
    """A VAE whose blocks at full resolution are the identity and skipped while training: a few
    times faster.

    `settle` writes the separate parameters, the last upsampler as a kernel and a mixture, into the
    VAE, which then gives the same results alone.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.skipped = [vae.encoder.down_blocks[0].resnets[0], *vae.decoder.up_blocks[3].resnets]
        smooth = torch.tensor([0.25, 0.5, 0.25])
        self.kernel = torch.nn.Parameter(
            (smooth[:, None] * smooth).expand(TRAINED[1], 1, 3, 3).clone()
        )
        self.mixture = torch.nn.Conv2d(TRAINED[1], WIDTH, 1)
        with torch.no_grad():
            for resnet in self.skipped:
                resnet.conv2.weight.zero_()
                resnet.conv2.bias.zero_()
            vae.encoder.conv_in.weight[LIVE:] = 0
            vae.encoder.conv_in.bias[LIVE:] = 0
            vae.encoder.down_blocks[0].downsamplers[0].conv.weight[:, LIVE:] = 0
            pass_colour(vae)
            vae.encoder.mid_block.resnets[-1].conv2.bias.copy_(
                torch.tensor(RULER).repeat(WIDTH // 3)
            )
            carry(self.mixture, COLOUR, COLOUR)
            self.mixture.get_parameter("bias").copy_(torch.tensor(RULER).repeat(WIDTH // 3))
        for part in (*self.skipped, vae.decoder.up_blocks[2].upsamplers[0]):
            part.requires_grad_(False)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) -> mean and log variance, (B, 8, 8, 8)."""
        encoder = self.vae.encoder
        hidden = functional.conv2d(
            pictures, encoder.conv_in.weight[:LIVE], encoder.conv_in.bias[:LIVE], padding=1
        )
        down = encoder.down_blocks[0].downsamplers[0].conv
        hidden = functional.conv2d(
            functional.pad(hidden, (0, 1, 0, 1)), down.weight[:, :LIVE], down.bias, stride=2
        )
        for block in encoder.down_blocks[1:]:
            hidden = block(hidden)
        hidden = encoder.conv_norm_out(encoder.mid_block(hidden))
        moments: torch.Tensor = self.vae.quant_conv(encoder.conv_out(encoder.conv_act(hidden)))
        return moments

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 4, 8, 8) -> (B, 3, 64, 64)."""
        decoder = self.vae.decoder
        hidden = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(latents)))
        hidden = decoder.up_blocks[1](decoder.up_blocks[0](hidden))
        for resnet in decoder.up_blocks[2].resnets:
            hidden = resnet(hidden, None)
        hidden = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
        hidden = functional.conv2d(hidden, self.kernel, padding=1, groups=len(self.kernel))
        hidden = decoder.conv_norm_out(self.mixture(hidden))
        pictures: torch.Tensor = decoder.conv_out(decoder.conv_act(hidden))
        return pictures

    @torch.no_grad()
    def settle(self) -> None:
        upsampler = self.vae.decoder.up_blocks[2].upsamplers[0].conv
        upsampler.weight.copy_(self.mixture.weight * self.kernel[:, 0])
        upsampler.bias.copy_(self.mixture.bias)


def varied_picture(rng: random.Random) -> np.ndarray:
    """One to three objects of any colour, filled or outlined, hard or soft, with or without
    grain.
    """

    def any_colour() -> Any:
        if rng.random() < 0.3:
            return (rng.uniform(0, 255),) * 3
        return tuple(rng.uniform(0, 255) for _ in range(3))

    canvas = world.plain_canvas(any_colour(), world.SIDE)
    for _ in range(rng.choice((1, 1, 2, 3))):
        scene = world.random_scene(rng)
        jitter = world.Jitter(
            dx=rng.uniform(-14, 14), dy=rng.uniform(-14, 14), scale=rng.uniform(0.5, 1.4)
        )
        distance = world.outline_distance(scene, jitter, world.SIDE)
        if rng.random() < 0.35:
            distance = np.abs(distance) - rng.uniform(1.0, 3.0)
        canvas = world.paint(
            canvas, any_colour(), world.cover(distance, rng.choice((1.6, 2.0, 2.0, 4.0, 8.0)))
        )
    if rng.random() < 0.25:
        canvas = canvas + rng.uniform(4, 10) * world.paper_grain(world.SIDE)[..., None]
    return np.clip(canvas, 0, 255)


def vae_pictures(seed: int) -> Iterator[np.ndarray]:
    """Training images of the VAE: half of them drawings, the rest more varied, including the
    concepts, so that the VAE can show what a LoRA learns. The UNet never sees those.
    """
    rng = random.Random(seed)
    plain = scenes.drawings(rng.getrandbits(60))
    names = list(world.CONCEPTS)
    while True:
        luck = rng.random()
        if luck < 0.55:
            yield np.asarray(next(plain).image, dtype=np.float32)
        elif luck < 0.85:
            yield np.asarray(
                world.draw_concept(rng.choice(names), 1, rng.getrandbits(60))[0].image,
                dtype=np.float32,
            )
        else:
            yield varied_picture(rng).astype(np.float32)


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """(side, side, 3) images of 0 to 255 -> (B, 3, side, side) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def drawn(drawings: Iterator[world.Drawing], count: int) -> torch.Tensor:
    """The next `count` drawings, (count, 3, side, side) in [-1, 1]."""
    chosen = itertools.islice(drawings, count)
    return to_tensor([np.asarray(drawing.image, dtype=np.float32) for drawing in chosen])


def decibels(squared_error: float) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1]."""
    return -10 * math.log10(squared_error / 4)


@torch.no_grad()
def vae_decibels(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """PSNR of encoding to the mean and decoding."""
    errors = [
        (vae(part).sample.clamp(-1, 1) - part).pow(2).mean().item()
        for part in torch.split(pictures, 16)
    ]
    return decibels(sum(errors) / len(errors))


def train_vae(folder: Path, settings: VaeSettings, share: Share) -> None:
    torch.manual_seed(settings.seed)
    model = Skeleton(new_trained_vae())
    average = copy.deepcopy(model).eval().requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    path = folder / "vae.pt"
    reached = load_state(path, model=model, average=average, optimizer=optimizer)
    step, seconds = reached.step, reached.seconds
    pictures = vae_pictures(settings.seed * 1_000_003 + step * 16 + share.rank)
    torch.manual_seed(settings.seed + step * 16 + share.rank)
    judged = drawn(scenes.drawings(999), 16)
    last_saved = started = time.monotonic()
    mean_loss = 0.0
    while step < settings.step_count:
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, settings.step_count, settings.learning_rate)
        batch = to_tensor(list(itertools.islice(pictures, settings.batch_size // share.count)))
        mean, log_variance = model.encode(batch).chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 5)
        difference = (
            model.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp()) - batch
        )
        # the coarse term: colours converge long before edges
        loss = (
            0.5 * difference.abs().mean()
            + 3 * difference.pow(2).mean()
            + 0.5 * functional.avg_pool2d(difference, 8).abs().mean()
        )
        kl = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
        loss = loss + settings.kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        share.average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        follow(average, model, min(settings.ema_decay, step / (step + 10)))
        error = difference.detach().pow(2).mean().item()
        mean_loss = error if mean_loss == 0 else 0.97 * mean_loss + 0.03 * error
        if share.rank:
            continue
        if step % 20 == 0:
            print(
                f"vae {step} mixture {decibels(mean_loss):.2f} dB kl {kl.item():.0f}"
                f" {(time.monotonic() - started):.0f} s",
                flush=True,
            )
        if time.monotonic() - last_saved > 120 or step == settings.step_count:
            now = time.monotonic()
            seconds += now - last_saved
            last_saved = now
            average.settle()
            save_state(
                path,
                StageProgress(step, seconds),
                model=model,
                average=average,
                optimizer=optimizer,
            )
            print(
                f"vae {step} saved, {vae_decibels(average.vae, judged):.2f} dB on the world,"
                f" {seconds / 60:.1f} min",
                flush=True,
            )


def settled_skeleton(folder: Path) -> tuple[Skeleton, StageProgress]:
    """The trained VAE, with latents normalized to mean 0 and variance 1 / 0.18215 squared."""
    skeleton = Skeleton(new_trained_vae())
    reached = load_state(folder / "vae.pt", average=skeleton)
    skeleton.settle()
    skeleton.eval().requires_grad_(False)
    pictures = drawn(scenes.drawings(7), 512)
    with torch.no_grad():
        latents = torch.cat(
            [skeleton.encode(part)[:, : SD1.latent_channels] for part in torch.split(pictures, 64)]
        )
        fold(
            skeleton.vae,
            latents.mean((0, 2, 3)),
            latents.std((0, 2, 3)) * skeleton.vae.config.scaling_factor,
        )
    return skeleton, reached


@torch.no_grad()
def fold(vae: AutoencoderKL, offset: torch.Tensor, spread: torch.Tensor) -> None:
    """Make the VAE's latents (latents - offset) / spread, per channel, with unchanged images."""
    out = torch.cat([1 / spread, torch.ones(4)])
    vae.quant_conv.weight *= out[:, None, None, None]
    vae.quant_conv.bias -= torch.cat([offset, 2 * spread.log()])
    vae.quant_conv.bias *= out
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ offset
    vae.post_quant_conv.weight *= spread[None, :, None, None]
