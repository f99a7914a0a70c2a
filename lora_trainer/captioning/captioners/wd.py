"""The WD taggers, version 3: Danbooru tags from an ONNX model, run with onnxruntime.

Input as in SmilingWolf's own code: the image centred on a white square, 448 x 448, bicubic, BGR, 0
to 255, channels last. Output: a probability for each line of selected_tags.csv, whose category is 0
for general tags, 4 for characters, 9 for ratings. Ratings are not written.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.captioning.captioner import (
    CaptionerInfo,
    CaptionerOutput,
    ModelFiles,
    Tag,
    TagSettings,
)
from lora_trainer.captioning.weights import explained
from lora_trainer.errors import CaptionerError
from lora_trainer.settings.schema import setting

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from lora_trainer.captioning.source import Listener

GENERAL, CHARACTER = "0", "4"
KAOMOJI = frozenset(
    (
        "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"
    ).split()
)
"""Tags whose underscores are kept."""
PROVIDERS = ("CUDAExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider")
"""In order of preference; availability depends on the onnxruntime build."""


USUAL_THRESHOLD = 0.35


@dataclass(frozen=True, kw_only=True)
class WdSettings(TagSettings):
    """The tagger's settings."""

    threshold: float | None = setting(
        None,
        label="Confidence threshold",
        bounds=(0.0, 1.0),
        hint="0.35 is usual.",
        audience="everyone",
        step=0.05,
    )
    """Tags less sure than this are left out. auto: 0.35."""
    character_threshold: float = setting(
        0.85,
        label="Character confidence threshold",
        bounds=(0.0, 1.0),
        audience="everyone",
        step=0.05,
    )
    """The same for names of characters, where a wrong one does more harm."""
    top_k: int | None = setting(
        None, label="Max tags", bounds=(1, 1000), audience="everyone", order=2
    )
    """Maximum number of tags. auto: no limit."""


@dataclass(frozen=True, kw_only=True)
class KnownTag:
    """A line of selected_tags.csv."""

    text: str
    category: str


class Wd:
    """A loaded tagger."""

    def __init__(
        self,
        session: Any,
        tags: Sequence[KnownTag],
        *,
        threshold: float,
        character_threshold: float,
        top_k: int | None,
    ) -> None:
        self._session = session
        self._tags = tuple(tags)
        self._threshold = threshold
        self._character_threshold = character_threshold
        self._top_k = top_k
        self._input = session.get_inputs()[0]
        # (images, height, width, 3); some exports have dynamic sizes
        self._side = self._input.shape[1] if isinstance(self._input.shape[1], int) else 448
        # some exports have a fixed batch size
        self._fixed_batch = self._input.shape[0] if isinstance(self._input.shape[0], int) else None

    def caption(self, images: Sequence[Image.Image]) -> list[CaptionerOutput]:
        import numpy as np

        pixels = np.stack([prepare(image, self._side) for image in images])
        step = self._fixed_batch or len(pixels)
        scores = np.concatenate(
            [self._run(pixels[start : start + step]) for start in range(0, len(pixels), step)]
        )
        return [CaptionerOutput(tags=self._chosen(row)) for row in scores.tolist()]

    def _run(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import numpy as np

        missing = (self._fixed_batch or len(pixels)) - len(pixels)
        padded = (
            np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)]) if missing else pixels
        )
        scores: np.ndarray[Any, Any] = self._session.run(None, {self._input.name: padded})[0]
        return scores[: len(pixels)]

    def _chosen(self, scores: Sequence[float]) -> tuple[Tag, ...]:
        """Characters, then general tags, each by descending score."""
        limits = {GENERAL: self._threshold, CHARACTER: self._character_threshold}
        found = [
            (known.category != CHARACTER, -score, Tag(text=known.text, score=score))
            for known, score in zip(self._tags, scores, strict=True)
            if score >= limits.get(known.category, 2.0)
        ]
        found.sort(key=lambda entry: entry[:2])
        return tuple(tag for _, _, tag in found[: self._top_k])


def load(
    folder: Path, own: WdSettings, *, device: torch.device, dtype: torch.dtype, listener: Listener
) -> Wd:
    """Load a folder with model.onnx and selected_tags.csv. Raises CaptionerError. Requires
    onnxruntime.
    """
    import onnxruntime

    tags = read_tags(folder / "selected_tags.csv")
    providers = [
        name
        for name in PROVIDERS
        if name in onnxruntime.get_available_providers()
        and (device.type != "cpu" or name.startswith("CPU"))
    ]
    with explained(folder, "a WD tagger"):
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=providers)
        outputs = session.get_outputs()[0].shape[-1]
    if isinstance(outputs, int) and outputs != len(tags):
        raise CaptionerError(
            "{folder}: the model knows {outputs} tags, but selected_tags.csv lists {count}",
            folder=folder,
            outputs=outputs,
            count=len(tags),
            hint="The two files are of different models: download both again.",
        )
    return Wd(
        session,
        tags,
        threshold=USUAL_THRESHOLD if own.threshold is None else own.threshold,
        character_threshold=own.character_threshold,
        top_k=own.top_k,
    )


def prepare(image: Image.Image, side: int) -> np.ndarray[Any, Any]:
    """An RGB image -> (side, side, 3), float32, BGR, 0 to 255, centred on a white square."""
    import numpy as np
    from PIL import Image

    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[:, :, ::-1])


def read_tags(path: Path) -> tuple[KnownTag, ...]:
    """The tags of selected_tags.csv, in the model's order. Raises CaptionerError or
    DatasetError.
    """
    from lora_trainer.dataset.text import read_text

    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path).content)))
        return tuple(
            KnownTag(text=shown(row["name"]), category=row["category"].strip()) for row in rows
        )
    except (csv.Error, KeyError, AttributeError, TypeError) as error:
        raise CaptionerError(
            "{path} is not a WD tagger's table of tags: it needs the columns name and category",
            path=path,
            hint="Download selected_tags.csv again, from the same place as model.onnx.",
        ) from error


def shown(tag: str) -> str:
    """A tag as in a caption: with spaces, except in kaomoji."""
    return tag if tag in KAOMOJI else tag.replace("_", " ")


CAPTIONERS = (
    CaptionerInfo(
        name="wd",
        title="WD tagger v3",
        sentence="Writes Danbooru tags, for drawings and anime, characters by name included.",
        model="SmilingWolf/wd-swinv2-tagger-v3",
        download_bytes=467_000_000,
        memory_bytes=1_500_000_000,
        licence="Apache-2.0",
        batch_size=8,
        load=load,
        settings=WdSettings,
        files=ModelFiles(
            needed=("selected_tags.csv",),
            weights=("model.onnx",),
            small=("selected_tags.csv", "config.json"),
        ),
        needs="wd",
    ),
)
