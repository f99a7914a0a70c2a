"""The extension's section on the host's Settings page.

    add()             adds the section, from on_ui_settings
    Options.of(host)  the choices with checked types: the host stores any value

Labels and help are passed in the user's language: the host could only translate them from a table
that it merges into its whole interface (texts.py). Called by callbacks.py and app.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from lora_trainer.hosts import find
from lora_trainer.hosts.base import HOST_NAMES, Host, HostOption
from lora_trainer.webui import texts
from lora_trainer.webui.common.form import Texts
from lora_trainer.webui.settings.presets import Presets

SECTION = ("lora_trainer", "LoRA Trainer")

DATA_FOLDER = "lora_trainer_data_folder"
RUNS_TO_KEEP = "lora_trainer_runs_to_keep"
HF_MIRROR = "lora_trainer_hf_mirror"
KEEP_TRAINING = "lora_trainer_keep_training"
PAUSE_FOR_PICTURES = "lora_trainer_pause_for_pictures"
PRESET = "lora_trainer_preset"

LABELS: Texts = {
    DATA_FOLDER: "Folder for datasets and runs",
    RUNS_TO_KEEP: "Finished runs to keep",
    HF_MIRROR: "Hugging Face mirror",
    KEEP_TRAINING: "Keep training when the WebUI closes",
    PAUSE_FOR_PICTURES: "Pause training while the WebUI generates an image",
    PRESET: "Default preset",
    HOST_NAMES: "Allowed host names",
}
HELP: Texts = {
    DATA_FOLDER: (
        "Empty: lora-trainer in the WebUI's data folder. The flag --lora-trainer-data-dir overrides"
        " it. Needs a restart of the WebUI."
    ),
    RUNS_TO_KEEP: (
        "Older ones go to the trash in that folder; their delivered LoRAs stay. 0 keeps all."
    ),
    HF_MIRROR: (
        "A URL such as https://hf-mirror.com, to download captioners from. Empty: huggingface.co,"
        " or the value of HF_ENDPOINT."
    ),
    KEEP_TRAINING: (
        "Training runs in a process of its own: it can continue, and the tab shows it again when"
        " the WebUI is back."
    ),
    PAUSE_FOR_PICTURES: (
        "Otherwise both use the graphics card at once, which needs memory for both."
    ),
    PRESET: "The preset of new datasets.",
    HOST_NAMES: (
        "For a proxy or tunnel without https and without a login: the host names of its URL, such"
        " as art.example.com, *.example.com, or * for any."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The user's choices, except for the data folder: that is `host.data_folder()`, because a
    command-line flag may override it.
    """

    runs_to_keep: int = 0
    hf_mirror: str = ""
    """An http(s) URL without a trailing slash, or empty."""
    keep_training: bool = True
    pause_for_pictures: bool = True
    preset: str = "style"
    """A preset's id."""

    @classmethod
    def of(cls, host: Host) -> Options:
        preset = str(host.option(PRESET, cls.preset))
        return cls(
            runs_to_keep=_count(host.option(RUNS_TO_KEEP, cls.runs_to_keep)),
            hf_mirror=_address(host.option(HF_MIRROR, cls.hf_mirror)),
            keep_training=bool(host.option(KEEP_TRAINING, cls.keep_training)),
            pause_for_pictures=bool(host.option(PAUSE_FOR_PICTURES, cls.pause_for_pictures)),
            preset=preset if preset in _preset_ids() else cls.preset,
        )

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables for a worker."""
        return {"HF_ENDPOINT": self.hf_mirror} if self.hf_mirror else {}


def add(host: Host | None = None) -> None:
    """Add the section to the host's Settings page."""
    place, usual = host or find(), Options()
    language = texts.choose(place.language())
    defaults: dict[str, str | int | bool] = {
        DATA_FOLDER: "",
        RUNS_TO_KEEP: usual.runs_to_keep,
        HF_MIRROR: usual.hf_mirror,
        KEEP_TRAINING: usual.keep_training,
        PAUSE_FOR_PICTURES: usual.pause_for_pictures,
        PRESET: usual.preset,
        HOST_NAMES: "",
    }
    choices = {PRESET: _preset_ids()}

    def option(key: str) -> HostOption:
        label, help = texts.translate(LABELS[key], language), texts.translate(HELP[key], language)
        return HostOption(
            key=key, label=label, help=help, default=defaults[key], choices=choices.get(key, ())
        )

    place.add_options(SECTION, [option(key) for key in LABELS])


@cache
def _preset_ids() -> tuple[str, ...]:
    """Read once: the scheduler asks for the options several times a second."""
    return tuple(preset.id for preset in Presets().all)


def _count(value: object) -> int:
    try:
        return max(0, int(float(str(value))))
    except (ValueError, OverflowError):
        return 0


def _address(value: object) -> str:
    text = str(value or "").strip().rstrip("/")
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return text if parts.scheme in ("http", "https") and parts.netloc else ""
