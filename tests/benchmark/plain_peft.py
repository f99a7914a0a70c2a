"""The yardstick of BENCHMARKS.md: a LoRA trained with diffusers and PEFT as their examples do it,
and nothing else.

    python tests/benchmark/plain_peft.py CHECKPOINT --size 256 --steps 10 --dtype float32

Random latents stand in for encoded images, random states for the text: what is timed is the step
itself (UNet forward and backward, optimizer), on the same 192 layers at rank 8 that our default
trains. Prints seconds from start to first step, each step, and peak memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from lora_trainer import environment  # noqa: E402

environment.activate().require()

import torch  # noqa: E402
from diffusers import DDPMScheduler  # noqa: E402
from peft import LoraConfig  # noqa: E402

from lora_trainer.checkpoint.load import open_checkpoint  # noqa: E402
from lora_trainer.settings.training import UNET_TARGETS  # noqa: E402
from lora_trainer.training.device import choose_device, peak_memory  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    asked = parser.parse_args()
    device, dtype = choose_device("auto"), getattr(torch, asked.dtype)
    # our loader, because diffusers' own would ask a hub for its configuration files
    unet = open_checkpoint(asked.checkpoint).load_unet(dtype, device)
    unet.add_adapter(
        LoraConfig(
            r=8, lora_alpha=8, target_modules=list(UNET_TARGETS), init_lora_weights="gaussian"
        )
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    unet.train()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    side = asked.size // 8
    latents = torch.randn(1, 4, side, side, device=device)
    text = torch.randn(1, 77, unet.config.cross_attention_dim, device=device)
    print(f"ready after {time.perf_counter() - STARTED:.1f} s", flush=True)
    for step in range(asked.steps):
        before = time.perf_counter()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (1,), device=device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            predicted = unet(
                scheduler.add_noise(latents, noise, timesteps),
                timesteps,
                encoder_hidden_states=text,
            ).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(
            f"step {step + 1}: {time.perf_counter() - before:.2f} s, loss {loss.item():.4f}",
            flush=True,
        )
    print(f"peak memory {peak_memory(device) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
