"""Preview images of the current adapters, with the WebUI's samplers, text encoding, and
`parameters` in the PNG.

The initial noise is drawn on the CPU, as in the WebUI with its random number source set to CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_trainer import files
from lora_trainer.adapters.injected import Adapters
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.families.base import Family, TextStates
from lora_trainer.families.components.text import join_rows
from lora_trainer.settings.training import USUAL_STEPS, SampleSettings
from lora_trainer.training.images import to_image
from lora_trainer.training.loop import Abandoned


@dataclass(frozen=True)
class PreviewImage:
    image: Image.Image
    prompt: str
    strength: float
    parameters: str


def sample_latents(
    parts: Parts,
    prompt: TextStates,
    negative: TextStates,
    settings: SampleSettings,
    size: tuple[int, int],
    stop_asked: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """Latents of one image, (1, C, h, w), with classifier-free guidance (arXiv 2207.12598). `size`:
    width, height in pixels.

    Raises Abandoned between steps once `stop_asked`.
    """
    family = parts.family
    device = next(parts.unet.parameters()).device
    width, height = size
    generator = torch.Generator("cpu").manual_seed(settings.sample_seed)
    side = family.pixels_per_latent
    shape = (1, family.latent_channels, height // side, width // side)
    sampler = family.noise_process(parts.schedule).sampler(
        settings.sample_sampler, steps_of(settings), device, shape
    )
    latents = sampler.start(torch.randn(shape, generator=generator).to(device))
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device)
    guidance = guidance_of(family, settings)
    texts = [negative.to(device), prompt.to(device)]
    # at 1 the negative prompt cancels out
    has_negative = not family.has_distilled_guidance and guidance != 1
    if not has_negative:
        texts = texts[1:]
    elif texts[0].hidden.shape == texts[1].hidden.shape:
        texts = [join_rows(texts)]
    with torch.no_grad():
        for time in sampler.times:
            if stop_asked():
                raise Abandoned
            scaled = sampler.scaled(latents, time)
            found = torch.cat(
                [_predict_rows(parts, scaled, time, text, sizes, guidance) for text in texts]
            ).float()
            if has_negative:
                without, with_prompt = found.chunk(2)
                found = without + guidance * (with_prompt - without)
            latents = sampler.step(found, time, latents, generator)
    return latents


def guidance_of(family: Family, settings: SampleSettings) -> float:
    """sample_guidance, or the family's own for auto."""
    asked = settings.sample_guidance
    return family.usual_guidance if asked is None else asked


def steps_of(settings: SampleSettings) -> int:
    """sample_steps, or the usual number for auto."""
    return settings.sample_steps or USUAL_STEPS


def make_previews(
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
) -> Iterator[PreviewImage]:
    """Generate every prompt at every strength. `parts` needs unet and vae, which are unchanged
    afterwards.

    `encode`: text -> states, called at each strength because text encoders may have adapters.
    Raises Abandoned once `stop_asked`.
    """
    label = parts.family.noise_process(parts.schedule).sampler_label(settings.sample_sampler)
    for prompt in prompts:
        for strength in settings.sample_strengths:
            with adapters.strength(strength):
                negative = _negative_states(parts, encode, settings.sample_negative_prompt)
                latents = sample_latents(
                    parts, encode(prompt), negative, settings, size, stop_asked
                )
            image = to_image(parts.family.decode(parts.vae, latents)[0])
            tag = f"{prompt} <lora:{name}:{strength:g}>" if strength else prompt
            yield PreviewImage(
                image,
                prompt,
                strength,
                parameters_text(tag, settings, label, size, model_name, parts.family),
            )


def _negative_states(parts: Parts, encode: Callable[[str], TextStates], text: str) -> TextStates:
    """The negative prompt's states, as in the WebUI and diffusers for this family."""
    states = encode(text)
    if text or not parts.family.has_empty_negative:
        return states
    zeros = {name: torch.zeros_like(tensor) for name, tensor in states.tensors().items()}
    return TextStates(**zeros)


def parameters_text(
    prompt: str,
    settings: SampleSettings,
    sampler: str,
    size: tuple[int, int],
    model_name: str,
    family: Family,
) -> str:
    """Generation parameters in the WebUI's format, for its PNG Info tab. `sampler`: the WebUI's
    name.
    """
    lines = [prompt]
    if settings.sample_negative_prompt:
        lines.append(f"Negative prompt: {settings.sample_negative_prompt}")
    guidance = f"CFG scale: {guidance_of(family, settings):g}"
    if family.has_distilled_guidance:
        guidance = f"CFG scale: 1, Distilled CFG Scale: {guidance_of(family, settings):g}"
    lines.append(
        f"Steps: {steps_of(settings)}, Sampler: {sampler}, {guidance},"
        f" Seed: {settings.sample_seed}, Size:"
        f" {size[0]}x{size[1]}, Model: {model_name.replace(',', '').replace(':', '')}, RNG: CPU"
    )
    return "\n".join(lines)


def write_preview(image: PreviewImage, target: Path) -> None:
    """Write a PNG with `parameters`, atomically."""
    info = PngInfo()
    info.add_itxt("parameters", image.parameters)
    files.replace_file(
        target, lambda partial: image.image.save(partial, format="PNG", pnginfo=info)
    )


def _predict_rows(
    parts: Parts,
    scaled: torch.Tensor,
    time: torch.Tensor,
    text: TextStates,
    sizes: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """The prediction for one latent under each row of `text`."""
    count = len(text.hidden)
    return parts.family.predict_sample(
        parts.unet,
        scaled.expand(count, -1, -1, -1),
        time.expand(count),
        text,
        sizes.expand(count, -1),
        guidance,
    )
