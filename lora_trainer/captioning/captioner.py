"""What every captioner is, what it is offered as, and what it gives. Imports neither torch nor
Pillow: the tab and the command line list captioners with it.
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
    """One tag and how sure the captioner is of it, from 0 to 1."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class CaptionerOutput:
    """What a captioner says of one image: a sentence, or tags, the first to be written first."""

    text: str = ""
    tags: tuple[Tag, ...] = ()
    embedding: Row | None = field(default=None, compare=False, repr=False)
    """What the captioner's image encoder made of the image, where it has one (captioning.encoder).
    """


class Captioner(Protocol):
    """A loaded model that captions. None of them samples: the same images give the same captions,
    in whatever batches.
    """

    def caption(self, images: Sequence[Image.Image]) -> list[CaptionerOutput]:
        """One Caption for each upright 8-bit RGB image, in their order. Out of memory is raised as
        the library raises it.
        """
        ...


# --- what is told of one before it is loaded ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """Settings of a captioner that has none of its own."""


@dataclass(frozen=True, kw_only=True)
class SentenceSettings(Settings):
    """Settings of a captioner that writes sentences."""

    max_tokens: int = setting(75, label="Max new tokens", at_least=5, at_most=500)
    """Longest caption in the model's tokens. The WebUI's text encoder takes 75 at once."""


@dataclass(frozen=True, kw_only=True)
class TagSettings(Settings):
    """Settings of a captioner that writes tags."""

    exclude: tuple[str, ...] = setting((), label="Excluded tags", audience="everyone", order=1)
    """Tags never to be written."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What a model's folder must hold."""

    needed: tuple[str, ...]
    """Each must be there."""
    weights: tuple[str, ...]
    """One of them, or all parts that one of their indexes names; the best first."""
    small: tuple[str, ...]
    """Patterns of what is fetched beside the weights."""


TRANSFORMERS = ModelFiles(
    needed=("config.json", "preprocessor_config.json"),
    weights=("model.safetensors", "pytorch_model.bin"),
    small=("*.json", "vocab.txt", "merges.txt", "*.model", "*.jinja"),
)
"""A model that transformers loads."""


@dataclass(frozen=True, kw_only=True)
class CaptionerInfo:
    """One captioner, as it is offered. Sizes are those of the model named; with another model they
    are another's.
    """

    name: str
    title: str
    sentence: str
    """What it writes, in one sentence."""
    model: str
    """Its model's id on the hub."""
    download_bytes: int
    memory_bytes: int
    """Of the card's memory, about, with the default batch."""
    licence: str
    batch_size: int
    """Images at once, unless the settings say so."""
    load: Callable[..., Captioner]
    """(path, own settings, *, device, dtype, listener) -> the captioner, on its device. `path` is
    what source.find gave. Raises CaptionerError, and what running out of memory raises.
    """
    settings: type[Settings] = NoSettings
    """The settings that only it, and those of its kind, have, each with a default. Its captions
    depend on all of them.
    """
    reads: Callable[[Any], str] | None = None
    """Own settings -> the content of the files that they name, on which the captions depend."""
    files: ModelFiles = TRANSFORMERS
    takes_file: bool = False
    """Whether its model may be one file, in place of a folder."""
    host_file: str = ""
    """Where in a WebUI's models folder the same model lies, if the WebUI has fetched it."""
    needs: str = ""
    """What must be installed for it besides the worker's packages: a key of
    packages.CAPTIONER_PACKAGES, or nothing.
    """
    fp16_is_safe: bool = True
    """Whether its numbers stay within fp16's range; where not, bf16 is used, or float32."""


Method = TypeVar("Method", bound=Callable[..., Any])


def inference(method: Method) -> Method:
    """The method in torch.inference_mode(); torch is imported when it is called."""

    @functools.wraps(method)
    def run(*values: Any, **more: Any) -> Any:
        import torch

        with torch.inference_mode():
            return method(*values, **more)

    return run  # type: ignore[return-value]
