"""A family in one file: flow matching in sixteen latent channels, told by bytes of text. Its models
are a few small layers each, made up here.

    toy.denoiser.   latents, time and text -> the flow
    toy.text.       bytes -> states, as many as there are bytes
    toy.vae.        pixels <-> latents
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint.detect import Detected, Sidecar, stated_side
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import (
    Component,
    Components,
    FlowSchedule,
    Part,
    Parts,
    PredictionType,
    Schedule,
)
from lora_trainer.families.base import Family, NoiseProcess, Shape, TextStates

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.load import Checkpoint

PREFIX = "toy."
TEXT_WIDTH = 24


class Toy(Family):
    id = "toy"
    name = "Toy"
    sd_version = "Toy"
    latent_channels = 16
    is_flow = True
    text_tensors = ("hidden", "mask")
    unet_targets = ("query", "value", "wide")
    text_encoder_targets = ("reader",)
    caption_bytes = 400 * TEXT_WIDTH * 4

    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        if PREFIX + "denoiser.enter.weight" not in header.tensors:
            return None
        return Detected(
            family=self,
            has_vae=True,
            resolution=stated_side(header.metadata, self.pixels_per_latent),
        )

    def native_resolution(self, prediction_type: PredictionType | None) -> int:
        return self.usual_resolution

    @property
    def usual_resolution(self) -> int:
        return 64

    def components(self, header: Header, detected: Detected) -> Components:
        return Components(
            unet=_component(header, "UNet", "denoiser"),
            text_encoders=(_component(header, "text encoder", "text"),),
            vae=_component(header, "VAE", "vae"),
        )

    def vae_component(self, path: Path) -> Component:
        return _component(read_header(path), "VAE", "vae")

    def tokenizers(self) -> tuple[Any, ...]:
        return (lambda text: list(text.encode()),)

    def schedule(self, checkpoint: Checkpoint) -> Schedule:
        return FlowSchedule(shift=2.0)

    def layer_shapes(self, path: Path, detected: Detected) -> dict[str, list[tuple[str, Shape]]]:
        tensors = read_header(path).tensors
        return {
            part: [
                (name.removesuffix(".weight"), info.shape)
                for name, info in tensors.items()
                if name.startswith(PREFIX + model) and len(info.shape) > 1
            ]
            for part, model in (("unet", "denoiser"), ("text_encoder", "text"))
        }

    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        return len(tokenizers[0](caption))

    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        from lora_trainer.families.components.text import join_rows

        (encoder,), (tokenizer,) = parts.text_encoders, parts.tokenizers
        # 256 begins each text, so that none is empty
        return join_rows([encoder([256, *tokenizer(caption)]) for caption in captions])

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.no_grad():
            mean = vae.encode(pixels)
        return torch.cat([mean, torch.full_like(mean, 0.1)], 1)

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.no_grad():
            pixels: torch.Tensor = vae.decode(latents)
        return pixels.sigmoid()

    def noise_process(self, schedule: Schedule, device: torch.device | str = "cpu") -> NoiseProcess:
        from lora_trainer.families.components.noise import Flow

        assert isinstance(schedule, FlowSchedule)
        return Flow(schedule)

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        predicted: torch.Tensor = model(noisy, times, text.hidden, text.mask)
        return predicted

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "toy_v1"

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return "toy-flow"


FAMILIES = (Toy(),)


def _component(header: Header, part: Part, model: str) -> Component:
    from lora_trainer.checkpoint.tensors import tensors_of

    return Component(
        part=part,
        config={},
        tensors=tensors_of([header]),
        place=lambda name: Stored(f"{PREFIX}{model}.{name}"),
        build=lambda config: build(model),
        prefix=f"{PREFIX}{model}.",
    )


def build(model: str) -> torch.nn.Module:
    """denoiser, text or vae, its weights drawn from torch's own generator."""
    import torch
    from torch import nn

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
            self.query, self.key = nn.Linear(32, 32), nn.Linear(TEXT_WIDTH, 32)
            self.value = nn.Linear(TEXT_WIDTH, 32)
            self.clock, self.wide, self.narrow = (
                nn.Linear(1, 32),
                nn.Linear(32, 64),
                nn.Linear(64, 32),
            )

        def forward(self, noisy: Any, times: Any, hidden: Any, mask: Any) -> Any:
            grid = self.enter(noisy)
            words = grid.flatten(2).transpose(1, 2) + self.clock(times[:, None])[:, None]
            found = nn.functional.scaled_dot_product_attention(
                self.query(words), self.key(hidden), self.value(hidden), mask[:, None].bool()
            )
            words = words + found
            words = words + self.narrow(self.wide(words).relu())
            return self.leave(words.transpose(1, 2).unflatten(2, grid.shape[2:]))

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters = nn.Embedding(257, TEXT_WIDTH)
            self.reader = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

        def forward(self, letters: list[int]) -> TextStates:
            device = self.letters.weight.device
            hidden = self.reader(self.letters(torch.tensor(letters, device=device))).tanh()
            return TextStates(hidden[None], mask=torch.ones(1, len(letters), device=device))

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 16, 8, stride=8)
            self.up = nn.ConvTranspose2d(16, 3, 8, stride=8)

        def encode(self, pixels: Any) -> Any:
            return self.down(pixels)

        def decode(self, latents: Any) -> Any:
            return self.up(latents)

    made: dict[str, type[nn.Module]] = {"denoiser": Denoiser, "text": Text, "vae": Vae}
    return made[model]()
