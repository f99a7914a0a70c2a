"""The interface of captioners, their descriptions and their results. Imports neither torch nor
Pillow, for the tab and the command line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lora_trainer.settings.schema import Settings, setting

if TYPE_CHECKING:
    from PIL import Image

    from lora_trainer.dataset.embeddings import Row


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag and its confidence, from 0 to 1."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class CaptionerOutput:
    """A captioner's result for one image: a sentence, or tags in order of output."""

    text: str = ""
    tags: tuple[Tag, ...] = ()
    embedding: Row | None = field(default=None, compare=False, repr=False)
    """The image encoder's embedding of the image, if the captioner has one (captioning.encoder)."""


class Captioner(Protocol):
    """A loaded captioning model. Deterministic: no sampling, and independent of batching."""

    def caption(self, images: Sequence[Image.Image]) -> list[CaptionerOutput]:
        """One output per image (8-bit RGB, upright), in order. Out-of-memory errors propagate."""
        ...


# --- descriptions ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """For captioners without own settings."""


@dataclass(frozen=True, kw_only=True)
class SentenceSettings(Settings):
    """For captioners that write sentences."""

    max_tokens: int = setting(75, label="Max new tokens", bounds=(5, 500))
    """Longest caption in the model's tokens. The WebUI's text encoder takes 75 at once."""


@dataclass(frozen=True, kw_only=True)
class TagSettings(Settings):
    """For captioners that write tags."""

    exclude: tuple[str, ...] = setting((), label="Excluded tags", audience="everyone", order=1)
    """Tags never to be written."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a model's folder."""

    needed: tuple[str, ...]
    """All of them are required."""
    weights: tuple[str, ...]
    """One of these, or the parts listed in one's index; in order of preference."""
    small: tuple[str, ...]
    """Patterns of files downloaded besides the weights."""


TRANSFORMERS = ModelFiles(
    needed=("config.json", "preprocessor_config.json"),
    weights=("model.safetensors", "pytorch_model.bin"),
    small=("*.json", "vocab.txt", "merges.txt", "*.model", "*.jinja"),
)
"""A transformers model."""


@dataclass(frozen=True, kw_only=True)
class CaptionerInfo:
    """Description of a captioner. Sizes are those of the default model."""

    name: str
    title: str
    sentence: str
    """What it writes."""
    model: str
    """Its default model's id on the hub."""
    download_bytes: int
    memory_bytes: int
    """Approximate device memory with the default batch size."""
    licence: str
    batch_size: int
    """Default batch size."""
    load: Callable[..., Captioner]
    """(path, own settings, *, device, dtype, listener) -> the captioner, on its device. `path` is
    from source.find. Raises CaptionerError; out-of-memory exceptions pass through.
    """
    settings: type[Settings] = NoSettings
    """Its own settings, which all have defaults and all affect the captions."""
    reads: Callable[[Any], str] | None = None
    """Own settings -> the content of files they name, which affects the captions."""
    files: ModelFiles = TRANSFORMERS
    takes_file: bool = False
    """Whether its model may be a single file."""
    host_file: str = ""
    """Path of the same model in a WebUI's models folder."""
    needs: str = ""
    """A key of packages.CAPTIONER_PACKAGES, or ""."""
    fp16_is_safe: bool = True
    """Whether activations stay within fp16's range; otherwise bf16 or float32 is used."""


Method = TypeVar("Method", bound=Callable[..., Any])


def inference(method: Method) -> Method:
    """Run the method in torch.inference_mode(); torch is imported when it is called."""

    @functools.wraps(method)
    def run(*values: Any, **more: Any) -> Any:
        import torch

        with torch.inference_mode():
            return method(*values, **more)

    return run  # type: ignore[return-value]
