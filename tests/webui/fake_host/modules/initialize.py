"""What the hosts do at their start, and again on "Reload UI"."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

from modules import (
    extensions,
    localization,
    scripts,
    sd_models,
    sd_samplers,
    sd_vae,
    shared,
    ui_extra_networks,
)


def initialize() -> None:
    for folder in ("Stable-diffusion", "Lora", "VAE"):
        Path(shared.models_path, folder).mkdir(parents=True, exist_ok=True)
    sd_models.list_models()
    initialize_rest(reload_script_modules=False)


def initialize_rest(*, reload_script_modules: bool = False) -> None:
    sd_samplers.set_samplers()
    extensions.list_extensions()
    sd_models.list_models()
    localization.list_localizations()
    scripts.load_scripts()
    sd_vae.refresh_vae_list()
    ui_extra_networks.initialize()
    ui_extra_networks.register_page(ui_extra_networks.ExtraNetworksPageLora())
    # the hosts' built-in LoRA extension leaves this name behind in sys.modules
    import networks

    networks.list_available_networks()
    if (
        shared.cmd_opts.flavour == "a1111"
        and not shared.cmd_opts.skip_load_model_at_start
        and sd_models.checkpoints_list
    ):
        Thread(target=lambda: shared.sd_model, name="load model").start()
