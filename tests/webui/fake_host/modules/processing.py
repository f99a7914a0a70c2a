"""The hosts' pipeline, drawn by Pillow: an image depends on prompt, seed, size and settings, and
on each LoRA file that is there, by its strength.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import calls, extra_networks, sd_models, shared
from PIL import Image, ImageChops, ImageDraw

STEP_SECONDS = float(os.environ.get("FAKE_HOST_STEP_SECONDS", "0.002"))


@dataclass(repr=False)
class StableDiffusionProcessing:
    sd_model: object = None
    outpath_samples: str = None
    outpath_grids: str = None
    prompt: str = ""
    prompt_for_display: str = None
    negative_prompt: str = ""
    styles: list[str] = None
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    seed_enable_extras: bool = True
    sampler_name: str = None
    scheduler: str = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool = None
    tiling: bool = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict[str, Any] = None
    override_settings: dict[str, Any] = None
    override_settings_restore_afterwards: bool = True
    disable_extra_networks: bool = False
    comments: dict = None
    scripts_value: Any = field(default=None, init=False)
    script_args_value: list = field(default=None, init=False)
    all_prompts: list = field(default=None, init=False)
    all_negative_prompts: list = field(default=None, init=False)
    all_seeds: list = field(default=None, init=False)
    user: str = field(default=None, init=False)
    is_api: bool = field(default=False, init=False)

    def __post_init__(self):
        self.comments = self.comments or {}
        self.styles = self.styles or []
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.sampler_name = self.sampler_name or "Euler"
        self.script_args_value = []

    @property
    def scripts(self):
        return self.scripts_value

    @scripts.setter
    def scripts(self, value):
        self.scripts_value = value

    @property
    def script_args(self):
        return self.script_args_value

    @script_args.setter
    def script_args(self, value):
        self.script_args_value = list(value)

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        pass


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False
    denoising_strength: float = 0.75
    hr_scale: float = 2.0
    hr_upscaler: str = None
    force_task_id: str = None


class Processed:
    def __init__(
        self,
        p: StableDiffusionProcessing,
        images_list,
        seed=-1,
        info="",
        subseed=None,
        all_prompts=None,
        all_negative_prompts=None,
        all_seeds=None,
        all_subseeds=None,
        index_of_first_image=0,
        infotexts=None,
        comments="",
    ):
        self.images = images_list
        self.extra_images = []
        self.prompt = p.prompt
        self.negative_prompt = p.negative_prompt
        self.seed = seed
        self.info = info
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.width = p.width
        self.height = p.height
        self.steps = p.steps
        self.sampler_name = p.sampler_name
        self.cfg_scale = p.cfg_scale
        self.all_prompts = all_prompts or [p.prompt]
        self.all_seeds = all_seeds or [seed]
        self.index_of_first_image = index_of_first_image
        self.infotexts = infotexts or [info] * len(images_list)

    def js(self):
        return json.dumps({"prompt": self.prompt, "seed": self.seed, "infotexts": self.infotexts})


def get_fixed_seed(seed):
    return random.randrange(4294967294) if seed in ("", None, -1, "-1") else int(seed)


def fix_seed(p):
    p.seed = get_fixed_seed(p.seed)


def process_images(p: StableDiffusionProcessing) -> Processed:
    calls.record("process_images", prompt=p.prompt, seed=p.seed)
    if p.scripts is not None:
        p.scripts.before_process(p)
    model = sd_models.model_for_generation()
    processed = _process(p, model)
    if p.scripts is not None:
        p.scripts.postprocess(p, processed)
    calls.record("processed", prompt=p.prompt, seed=p.seed)
    return processed


def _process(p: StableDiffusionProcessing, model: Any) -> Processed:
    import networks

    fix_seed(p)
    if p.scripts is not None:
        p.scripts.process(p)
    text, found = extra_networks.parse_prompt(p.prompt)
    loras = []
    for parameters in found["lora"]:
        name, *numbers = parameters.positional
        on_disk = networks.find(name)
        if on_disk is None:
            p.comment(f"Networks not found: {name}")
            continue
        te = float(parameters.named.get("te", numbers[0] if numbers else 1.0))
        unet = float(parameters.named.get("unet", numbers[1] if len(numbers) > 1 else te))
        loras.append((on_disk.filename, te, unet))
    shared.state.sampling_steps = p.steps
    images = []
    for number in range(p.n_iter * p.batch_size):
        for step in range(p.steps):
            if shared.state.interrupted:
                break
            shared.state.sampling_step = step + 1
            time.sleep(STEP_SECONDS)
        images.append(
            draw(
                f"{text.strip()}|{p.negative_prompt}|{p.seed + number}|{model.filename}|{p.cfg_scale}|{p.sampler_name}",
                p.width,
                p.height,
                loras,
            )
        )
    info = (
        f"{p.prompt}\nNegative prompt: {p.negative_prompt}\nSteps: {p.steps}, Sampler:"
        f" {p.sampler_name}, CFG scale: {p.cfg_scale}, Seed: {p.seed}, Size: {p.width}x{p.height},"
        f" Model hash: {model.sd_model_hash}, Model: {Path(model.filename).stem}"
    )
    return Processed(p, images, seed=p.seed, info=info)


def draw(key: str, width: int, height: int, loras: list[tuple[str, float, float]]) -> Image.Image:
    """The image of a key; each LoRA adds a pattern of its own, as strong as its strength.
    Strength 0 adds nothing at all.
    """
    image = _pattern(hashlib.sha256(key.encode()).digest(), width, height, 30)
    for path, te, unet in loras:
        if te or unet:
            mark = _pattern(hashlib.sha256(Path(path).read_bytes()).digest(), width, height, 8)
            image = ImageChops.add(
                image,
                Image.eval(
                    mark,
                    lambda value, strength=(te + 2 * unet) / 3: round(
                        value * min(max(strength, 0), 2) / 2
                    ),
                ),
            )
    return image


def _pattern(seed: bytes, width: int, height: int, count: int) -> Image.Image:
    chance = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(chance.randrange(60) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(count):
        left, top = chance.randrange(-width // 4, width), chance.randrange(-height // 4, height)
        box = (
            left,
            top,
            left + chance.randrange(8, width // 2 + 9),
            top + chance.randrange(8, height // 2 + 9),
        )
        pen.ellipse(box, fill=tuple(chance.randrange(220) for _ in range(3)))
    return image
