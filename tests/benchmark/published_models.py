"""Writes lora_trainer/bench/published: names and shapes of published checkpoints' tensors.

python -m tests.benchmark.published_models sd15 sd21 sdxl flux1
python -m tests.benchmark.published_models anima klein4b zimage   they need the newer libraries
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer import environment

NEWER = ("anima", "klein4b", "zimage")
if __name__ == "__main__":
    environment.activate(environment.find_tests_overlay())
    environment.activate()
    if set(NEWER) & set(sys.argv):
        environment.activate(environment.find_family_overlay("newer").require())

from lora_trainer import families  # noqa: E402
from lora_trainer.bench.models import PUBLISHED  # noqa: E402
from lora_trainer.checkpoint.header import read_header  # noqa: E402
from tests.checkpoint.samples import full_shapes  # noqa: E402

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """A model as it was published."""

    family: str
    title: str
    write_full_size: Callable[[Path], Path] | None = None
    """Writes all files of a model that comes in several, without content, into a folder; returns
    the checkpoint. None: one file.
    """
    tokenizers: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Shapes]:
        """File, by the setting that it is given to -> tensor -> shape."""
        if self.write_full_size is None:
            return {"base_model": full_shapes(self.family)}
        with tempfile.TemporaryDirectory() as made:
            checkpoint = self.write_full_size(Path(made))
            encoders = sorted(Path(made, "text_encoder").glob("*.safetensors"))
            (vae,) = Path(made, "VAE").glob("*.safetensors")
            files = {"base_model": checkpoint, "vae": vae}
            files |= {f"text_encoders.{number}": one for number, one in enumerate(encoders)}
            return {
                name: {key: info.shape for key, info in read_header(file).tensors.items()}
                for name, file in files.items()
            }

    def stated(self) -> dict[str, Any]:
        """What the model's file holds."""
        family = families.get(self.family)
        content: dict[str, Any] = {"title": self.title, "resolution": family.usual_resolution}
        if family.packages:
            content["packages"] = family.packages
        if self.tokenizers:
            content["tokenizers"] = self.tokenizers
        return {**content, "tensors": self.tensors()}


def _flux1(folder: Path) -> Path:
    from tests.families import tiny_flux

    return tiny_flux.full_size(folder)


def _anima(folder: Path) -> Path:
    from tests.newer import tiny_anima

    return tiny_anima.write_full_size(folder)


def _klein4b(folder: Path) -> Path:
    from tests.newer import tiny_flux2

    return tiny_flux2.write_full_size(folder, "4B")


def _zimage(folder: Path) -> Path:
    from tests.newer import tiny_z_image

    checkpoint = tiny_z_image.write_full_size(folder)
    for one in Path(folder, "text_encoder").glob("*.safetensors"):
        if "qwen" not in one.name:
            one.unlink()
    return checkpoint


MODELS = {
    "sd15": Published("sd1", "SD1.5"),
    "sd21": Published("sd2", "SD2.1"),
    "sdxl": Published("sdxl", "SDXL"),
    "flux1": Published("flux", "FLUX.1 dev", _flux1, ("t5",)),
    "anima": Published("anima", "Anima", _anima, ("qwen3", "t5")),
    "klein4b": Published("klein4b", "FLUX.2 klein 4B", _klein4b, ("qwen3",)),
    "zimage": Published("zimage", "Z-Image", _zimage, ("qwen3",)),
}


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write a model's file; the same content gives the same bytes."""
    path = PUBLISHED / f"{name}.json.gz"
    text = json.dumps(content, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return path


def main() -> int:
    for name in sys.argv[1:]:
        print(write(name, MODELS[name].stated()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
