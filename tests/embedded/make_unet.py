"""The embedded checkpoint's UNet and text encoder, trained together on latents and captions of the
drawings, without the concepts. The folder holds the trained VAE, and gets their progress.
"""

from __future__ import annotations

import copy
import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lora_trainer.demo import world
from lora_trainer.families.stable_diffusion import SD1
from tests.embedded.make_vae import Skeleton, drawn, settled_skeleton
from tests.embedded.scenes import drawings
from tests.embedded.stages import Share, StageProgress, follow, load_state, one_cycle, save_state


@dataclass(frozen=True, kw_only=True)
class UnetSettings:
    seed: int = 30
    step_count: int = 3700
    batch_size: int = 48
    image_count: int = 10000
    learning_rate: float = 1e-3
    ema_decay: float = 0.998
    caption_dropout: float = 0.1


TEXT_WIDTH = 48
"""Most of the text encoder is its embedding of 49408 tokens with this width."""


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=world.SIDE // SD1.pixels_per_latent,
        in_channels=SD1.latent_channels,
        out_channels=SD1.latent_channels,
        block_out_channels=(96, 96),
        layers_per_block=1,
        norm_num_groups=32,
        attention_head_dim=8,
        cross_attention_dim=TEXT_WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=1,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


class TokenizedCaptions:
    """Token ids of captions: start, tokens, end, padded with end to 77."""

    def __init__(self) -> None:
        self._tokenizer = SD1.tokenizers()[0]
        self._known: dict[str, list[int]] = {}

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """(B, 77)"""
        for caption in captions:
            if caption not in self._known:
                self._known[caption] = self._tokenizer(
                    caption, padding="max_length", max_length=77, truncation=True
                ).input_ids
        return torch.tensor([self._known[caption] for caption in captions])


def world_latents(
    folder: Path, skeleton: Skeleton, settings: UnetSettings, share: Share
) -> torch.Tensor:
    """(image_count, 4, 8, 8), unit variance; each process encodes and caches its part."""
    path = folder / f"latents-{share.rank}-of-{share.count}.pt"
    count = settings.image_count // share.count
    if path.exists():
        kept: torch.Tensor = torch.load(path, weights_only=True)
        return kept
    found = []
    source = drawings(settings.seed + share.rank)
    with torch.no_grad():
        for _ in range(count // 50):
            pictures = drawn(source, 50)
            found.append(
                skeleton.encode(pictures)[:, : SD1.latent_channels]
                * skeleton.vae.config.scaling_factor
            )
    latents = torch.cat(found)
    torch.save(latents, path)
    return latents


def train_unet(folder: Path, settings: UnetSettings, share: Share) -> None:
    skeleton, _ = settled_skeleton(folder)
    latents = world_latents(folder, skeleton, settings, share)
    scenes = [
        drawing.scene
        for drawing in itertools.islice(drawings(settings.seed + share.rank), len(latents))
    ]
    print(
        f"{len(latents)} latents, mean {latents.mean():.3f}, deviation {latents.std():.3f}",
        flush=True,
    )
    torch.manual_seed(settings.seed)
    model = torch.nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder()})
    average = copy.deepcopy(model).eval().requires_grad_(False)
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    path = folder / "unet.pt"
    reached = load_state(path, model=model, average=average, optimizer=optimizer)
    step, seconds = reached.step, reached.seconds
    captions = TokenizedCaptions()
    kept = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    ).alphas_cumprod
    rng = random.Random(settings.seed + 1000 * step + share.rank)
    torch.manual_seed(settings.seed + 1000 * step + share.rank)
    last_saved = started = time.monotonic()
    mean_loss = 0.0
    while step < settings.step_count:
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, settings.step_count, settings.learning_rate)
        chosen = rng.sample(range(len(latents)), settings.batch_size // share.count)
        words = [
            "" if rng.random() < settings.caption_dropout else world.describe(scenes[index], rng)
            for index in chosen
        ]
        clean = latents[chosen]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(chosen),))
        signal = kept[timesteps][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        tokens = captions.tokens(words)
        text = model["text"](tokens).last_hidden_state
        predicted = model["unet"](noisy, timesteps, encoder_hidden_states=text).sample
        # equivalent to the v-prediction loss: unweighted, the background's colour, decided at high
        # noise, would hardly count
        weight = (1 / kept[timesteps]).clamp(max=20)
        loss = (weight * (predicted - noise).pow(2).mean((1, 2, 3))).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share.average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        follow(average, model, min(settings.ema_decay, step / (step + 10)))
        mean_loss = loss.item() if mean_loss == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if share.rank:
            continue
        if step % 50 == 0:
            print(
                f"unet {step} loss {mean_loss:.4f} {(time.monotonic() - started):.0f} s", flush=True
            )
        if time.monotonic() - last_saved > 120 or step == settings.step_count:
            now = time.monotonic()
            seconds += now - last_saved
            last_saved = now
            save_state(
                path,
                StageProgress(step, seconds),
                model=model,
                average=average,
                optimizer=optimizer,
            )
            print(f"unet {step} saved, {seconds / 60:.1f} min", flush=True)
