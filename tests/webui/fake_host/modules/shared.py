from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
from modules import calls, options
from modules.paths_internal import (
    data_path,
    extensions_builtin_dir,
    extensions_dir,
    models_path,
    script_path,
)
from modules.shared_cmd_options import cmd_opts, parser

__all__ = [
    "cmd_opts",
    "data_path",
    "extensions_builtin_dir",
    "extensions_dir",
    "models_path",
    "parser",
    "script_path",
]

OptionInfo = options.OptionInfo
OptionHTML = options.OptionHTML
options_section = options.options_section
config_filename = cmd_opts.ui_settings_file
demo: Any = None
tab_names: list[str] = []
settings_components: dict[str, Any] = {}


class State:
    skipped = False
    interrupted = False
    stopping_generation = False
    job = ""
    job_no = 0
    job_count = 0
    job_timestamp = "0"
    sampling_step = 0
    sampling_steps = 0
    current_latent = None
    current_image = None
    textinfo = None
    time_start: float | None = None

    def __init__(self) -> None:
        self.server_start = time.time()
        self._signal = threading.Event()
        self._command: str | None = None

    @property
    def server_command(self) -> str | None:
        return self._command

    @server_command.setter
    def server_command(self, value: str | None) -> None:
        self._command = value
        self._signal.set()

    def wait_for_server_command(self, timeout: float | None = None) -> str | None:
        if self._signal.wait(timeout):
            self._signal.clear()
            command, self._command = self._command, None
            return command
        return None

    def request_restart(self) -> None:
        self.interrupt()
        self.server_command = "restart"

    def interrupt(self) -> None:
        self.interrupted = True

    def skip(self) -> None:
        self.skipped = True

    def begin(self, job: str = "(unknown)") -> None:
        self.sampling_step = self.job_no = 0
        self.job_count = -1
        self.skipped = self.interrupted = self.stopping_generation = False
        self.time_start = time.time()
        self.job_timestamp = time.strftime("%Y%m%d%H%M%S")
        self.job = job
        calls.record("state.begin", job=job)

    def end(self) -> None:
        self.job = ""
        self.job_count = 0
        calls.record("state.end")


class MemUsageMonitor:
    """The hosts' gauge: on a fake GPU of 8 GB, the model takes 4 while it is there."""

    disabled = not cmd_opts.fake_gpu

    def cuda_mem_get_info(self) -> tuple[int, int]:
        from modules import sd_models

        model = sd_models.model_data.sd_model
        is_there = getattr(model, "is_on_gpu", lambda: False)()
        return (8 - 4 * is_there) * 2**30 - 2**29, 8 * 2**30

    def read(self) -> dict[str, int]:
        free, total = self.cuda_mem_get_info()
        return {"free": free, "total": total, "reserved": 8 * 2**30 - 2**29 - free}


state = State()
mem_mon = MemUsageMonitor()
gradio_theme = gr.themes.Default(
    font=["Source Sans Pro", "ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["IBM Plex Mono", "monospace"],
)

options_templates: dict[str, OptionInfo] = {
    "sd_model_checkpoint": OptionInfo(
        None, "Stable Diffusion checkpoint", section=("sd", "Stable Diffusion")
    ),
    "sd_checkpoint_hash": OptionInfo(
        "", "SHA256 hash of the current checkpoint", section=("sd", "Stable Diffusion")
    ),
    "sd_vae": OptionInfo("Automatic", "SD VAE", section=("sd", "Stable Diffusion")),
    "CLIP_stop_at_last_layers": OptionInfo(1, "Clip skip", section=("sd", "Stable Diffusion")),
    "localization": OptionInfo("None", "Localization", section=("ui", "User interface")),
    "hidden_tabs": OptionInfo([], "Hidden UI tabs", section=("ui", "User interface")),
    "samples_format": OptionInfo(
        "png", "File format for images", section=("saving-images", "Saving images/grids")
    ),
    "samples_save": OptionInfo(
        False, "Always save all generated images", section=("saving-images", "Saving images/grids")
    ),
    "save_to_dirs": OptionInfo(
        True, "Save images to a subdirectory", section=("saving-to-dirs", "Saving to a directory")
    ),
    "outdir_samples": OptionInfo(
        "", "Output directory for images", section=("saving-paths", "Paths for saving")
    ),
    "outdir_txt2img_samples": OptionInfo(
        str(Path(data_path, "outputs")),
        "Output directory for txt2img images",
        section=("saving-paths", "Paths for saving"),
    ),
    "outdir_txt2img_grids": OptionInfo(
        str(Path(data_path, "outputs")),
        "Output directory for txt2img grids",
        section=("saving-paths", "Paths for saving"),
    ),
    "extra_networks_default_multiplier": OptionInfo(
        1.0, "Default multiplier for extra networks", section=("extra_networks", "Extra Networks")
    ),
    "extra_networks_add_text_separator": OptionInfo(
        " ", "Extra networks separator", section=("extra_networks", "Extra Networks")
    ),
    "lora_preferred_name": OptionInfo(
        "Alias from file",
        "When adding to prompt, refer to Lora by",
        section=("extra_networks", "Extra Networks"),
    ),
    "sd_lora": OptionInfo(
        "None", "Add network to prompt", section=("extra_networks", "Extra Networks")
    ),
}
opts = options.Options(options_templates)
opts.load(config_filename)
if cmd_opts.localization:
    opts.data["localization"] = cmd_opts.localization


def __getattr__(name: str) -> Any:
    """As on the hosts, looking at the loaded model loads one."""
    if name == "sd_model":
        from modules import calls, sd_models

        calls.record("shared.sd_model")
        return sd_models.model_data.get_sd_model()
    if name == "device":
        from modules import devices

        return devices.device
    raise AttributeError(name)
