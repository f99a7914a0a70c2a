from __future__ import annotations

from typing import NamedTuple


class SamplerData(NamedTuple):
    name: str
    constructor: object = None
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


all_samplers = [SamplerData(name) for name in ("DPM++ 2M", "Euler a", "Euler", "DDIM")]
all_samplers_map = {sampler.name: sampler for sampler in all_samplers}
samplers = all_samplers
samplers_for_img2img = all_samplers
samplers_map = {sampler.name.lower(): sampler.name for sampler in all_samplers}


def set_samplers():
    pass


def visible_sampler_names():
    return [sampler.name for sampler in all_samplers]
