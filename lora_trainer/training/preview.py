"""The adapters as they are -> pictures, with the WebUI's samplers, text encoding, and `parameters`
text inside the PNG.

The starting noise is drawn on the CPU from the seed, as the WebUI does with its random number
source set to CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_trainer import files
from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.lora.adapters import Adapters
from lora_trainer.settings.training import SampleSettings
from lora_trainer.training.encode import TextStates, decode_latents, join_rows
from lora_trainer.training.images import to_image
from lora_trainer.training.loss import predict
from lora_trainer.training.schedule import scheduler_config

SAMPLER_NAMES = {"euler_a": "Euler a", "dpmpp_2m_karras": "DPM++ 2M Karras", "ddim": "DDIM"}
"""Setting -> what the WebUI calls it."""


class Abandoned(Exception):
    """A stop was asked for before the picture was done."""


@dataclass(frozen=True)
class Picture:
    image: Image.Image
    prompt: str
    strength: float
    parameters: str


def make_sampler(name: str, schedule: NoiseSchedule) -> Any:
    """diffusers' scheduler of that name, set up as the WebUI's."""
    config = scheduler_config(schedule)
    spacing = "trailing" if schedule.zero_terminal_snr else "leading"
    # the WebUI's k-diffusion begins at the noisiest level there is and spaces its steps evenly down
    # to the least
    spread = "trailing" if schedule.zero_terminal_snr else "linspace"
    if name == "ddim":
        return DDIMScheduler(
            **config,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing=spacing,
        )
    if name == "dpmpp_2m_karras":
        return DPMSolverMultistepScheduler(
            **config, use_karras_sigmas=True, steps_offset=1, timestep_spacing=spacing
        )
    return EulerAncestralDiscreteScheduler(**config, steps_offset=1, timestep_spacing=spread)


def sample_latents(
    unet: Any,
    schedule: NoiseSchedule,
    prompt: TextStates,
    negative: TextStates,
    settings: SampleSettings,
    size: tuple[int, int],
    stop_asked: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """One picture's latents, (1, 4, height / 8, width / 8), by classifier-free guidance (arXiv
    2207.12598). `size`: width, height in pixels.

    Raises Abandoned between two sampling steps once `stop_asked`.
    """
    device = next(unet.parameters()).device
    width, height = size
    generator = torch.Generator("cpu").manual_seed(settings.sample_seed)
    sampler = make_sampler(settings.sample_sampler, schedule)
    sampler.set_timesteps(settings.sample_steps, device=device)
    latents: torch.Tensor = (
        torch.randn((1, 4, height // 8, width // 8), generator=generator).to(device)
        * sampler.init_noise_sigma
    )
    sizes = None
    if prompt.pooled is not None:
        sizes = torch.tensor(
            [[height, width, 0, 0, height, width]], dtype=torch.float32, device=device
        )
    extra = {} if settings.sample_sampler == "dpmpp_2m_karras" else {"generator": generator}
    texts = [negative.to(device), prompt.to(device)]
    if texts[0].hidden.shape == texts[1].hidden.shape:
        texts = [join_rows(texts)]
    with torch.no_grad():
        for timestep in sampler.timesteps:
            if stop_asked():
                raise Abandoned
            scaled = sampler.scale_model_input(latents, timestep)
            predictions = [_predict_rows(unet, scaled, timestep, text, sizes) for text in texts]
            without, with_prompt = torch.cat(predictions).float().chunk(2)
            guided = without + settings.sample_guidance * (with_prompt - without)
            latents = sampler.step(guided, timestep, latents, **extra, return_dict=False)[0]
    return latents


def make_pictures(
    parts: Parts,
    adapters: Adapters,
    prompts: Sequence[str],
    encode: Callable[[str], TextStates],
    settings: SampleSettings,
    *,
    size: tuple[int, int],
    name: str,
    model_name: str,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Iterator[Picture]:
    """Every prompt at every strength. `parts` needs its unet and vae; modes and strengths are as
    before afterwards.

    `encode` gives a text's states; it is asked anew at each strength, for the text encoder may hold
    adapters too. Raises Abandoned once `stop_asked`.
    """
    for prompt in prompts:
        for strength in settings.sample_strengths:
            with adapters.strength(strength):
                negative = _negative_states(parts, encode, settings.sample_negative_prompt)
                latents = sample_latents(
                    parts.unet, parts.schedule, encode(prompt), negative, settings, size, stop_asked
                )
            image = to_image(decode_latents(parts.vae, latents)[0])
            tag = f"{prompt} <lora:{name}:{strength:g}>" if strength else prompt
            yield Picture(image, prompt, strength, parameters_text(tag, settings, size, model_name))


def _negative_states(parts: Parts, encode: Callable[[str], TextStates], text: str) -> TextStates:
    """The WebUI and diffusers give SDXL zeros for an empty negative prompt: that is what its base
    was trained with (sd_models_xl.py).
    """
    states = encode(text)
    if parts.family != "sdxl" or text:
        return states
    return TextStates(
        torch.zeros_like(states.hidden),
        None if states.pooled is None else torch.zeros_like(states.pooled),
    )


def parameters_text(
    prompt: str, settings: SampleSettings, size: tuple[int, int], model_name: str
) -> str:
    """The WebUI's own text for a picture's settings: its PNG Info tab reads it and sends it to
    txt2img.
    """
    lines = [prompt]
    if settings.sample_negative_prompt:
        lines.append(f"Negative prompt: {settings.sample_negative_prompt}")
    lines.append(
        f"Steps: {settings.sample_steps}, Sampler: {SAMPLER_NAMES[settings.sample_sampler]}, CFG"
        f" scale: {settings.sample_guidance:g}, Seed: {settings.sample_seed}, Size:"
        f" {size[0]}x{size[1]}, Model: {model_name.replace(',', '').replace(':', '')}, RNG: CPU"
    )
    return "\n".join(lines)


def write_picture(picture: Picture, target: Path) -> None:
    """PNG with the settings inside, whole or not at all."""
    info = PngInfo()
    info.add_itxt("parameters", picture.parameters)
    files.replace_file(
        target, lambda partial: picture.image.save(partial, format="PNG", pnginfo=info)
    )


def _predict_rows(
    unet: Any,
    scaled: torch.Tensor,
    timestep: torch.Tensor,
    text: TextStates,
    sizes: torch.Tensor | None,
) -> torch.Tensor:
    """The prediction for one picture under each row of `text`."""
    count = len(text.hidden)
    return predict(
        unet,
        scaled.expand(count, -1, -1, -1),
        timestep.expand(count),
        text,
        None if sizes is None else sizes.expand(count, -1),
    )
