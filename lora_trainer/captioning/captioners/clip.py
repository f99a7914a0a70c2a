"""CLIP (arXiv 2103.00020) with a vocabulary: the words of a list that fit an image best.

A word's score is the softmax of CLIP's similarities within its group of the vocabulary. Each group
gives at most `top_k` words above the threshold, in the order of the file; so captions have the
structure [subject][action][clothing or features][scene][style][light][colour] and use the same
words throughout the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.captioning import image_text
from lora_trainer.captioning.captioner import (
    CaptionerInfo,
    CaptionerOutput,
    Tag,
    TagSettings,
    inference,
)
from lora_trainer.errors import CaptionerError
from lora_trainer.settings.schema import setting

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lora_trainer.captioning.image_text import ImageTextEncoder
    from lora_trainer.captioning.source import Listener
    from lora_trainer.dataset.embeddings import Row

DEFAULT_VOCABULARY = Path(__file__).with_name("vocabulary.txt")
TEMPLATES = ("{}", "a picture of {}")
"""Each word's embedding is the mean over these prompts (section 3.1.4 of the paper)."""
USUAL_THRESHOLD = 0.2
USUAL_TOP_K = 2


@dataclass(frozen=True, kw_only=True)
class ClipSettings(TagSettings):
    """CLIP's settings."""

    threshold: float | None = setting(
        None,
        label="Confidence threshold",
        bounds=(0.0, 1.0),
        hint="0.2 is usual.",
        audience="everyone",
        step=0.05,
    )
    """Words less sure than this are left out. auto: 0.2."""
    top_k: int | None = setting(
        None, label="Max tags per group", bounds=(1, 1000), audience="everyone", order=2
    )
    """Maximum number of words from each group of the vocabulary. auto: 2."""
    vocabulary: Path | None = setting(None, label="Vocabulary file", audience="local")
    """A text file with one word or phrase a line, [headings] between groups. auto: the one that
    comes with the trainer.
    """


@dataclass(frozen=True, kw_only=True)
class Group:
    """Words of which the scores add up to 1."""

    name: str
    words: tuple[str, ...]


class Clip:
    """A loaded CLIP and its encoded vocabulary."""

    encoder = "CLIP"

    def __init__(
        self,
        encoder: ImageTextEncoder,
        groups: Sequence[Group],
        *,
        threshold: float,
        top_k: int,
    ) -> None:
        self._encoder, self._model = encoder, encoder.model
        self._groups = tuple(groups)
        self._threshold, self._top_k = threshold, top_k
        self._words = self._encode_all()

    @inference
    def caption(self, images: Sequence[Image.Image]) -> list[CaptionerOutput]:
        import torch

        from lora_trainer.captioning.encoder import rows

        features = self._encoder.images(images)
        logits = self._model.logit_scale.float().exp() * features @ self._words.T
        scores = torch.cat(
            [
                part.softmax(dim=-1)
                for part in logits.split([len(group.words) for group in self._groups], dim=-1)
            ],
            dim=-1,
        )
        return [
            CaptionerOutput(tags=self._tags(row), embedding=seen)
            for row, seen in zip(scores.tolist(), rows(features), strict=True)
        ]

    @inference
    def embed(self, images: Sequence[Image.Image]) -> list[Row | None]:
        from lora_trainer.captioning.encoder import rows

        return rows(self._encoder.images(images))

    def _tags(self, scores: Sequence[float]) -> tuple[Tag, ...]:
        found: list[Tag] = []
        start = 0
        for group in self._groups:
            tags = [
                Tag(text=word, score=score)
                for word, score in zip(group.words, scores[start:], strict=False)
            ]
            tags.sort(key=lambda tag: -tag.score)
            found += [tag for tag in tags[: self._top_k] if tag.score >= self._threshold]
            start += len(group.words)
        return tuple(found)

    def _encode_all(self) -> torch.Tensor:
        import torch

        return torch.cat([self._encode(group.words) for group in self._groups])

    def _encode(self, words: Sequence[str]) -> torch.Tensor:
        """(words, width): the normalized mean over each word's templates."""
        import torch

        texts = [template.format(word) for word in words for template in TEMPLATES]
        features = self._encoder.texts(texts)
        means = features.reshape(len(words), len(TEMPLATES), -1).mean(dim=1)
        return torch.nn.functional.normalize(means, dim=-1)


def load(
    folder: Path, own: ClipSettings, *, device: torch.device, dtype: torch.dtype, listener: Listener
) -> Clip:
    """Load a folder from the hub. Raises CaptionerError."""
    groups = groups_of(own)
    return Clip(
        image_text.load(folder, device=device, dtype=dtype),
        groups,
        threshold=USUAL_THRESHOLD if own.threshold is None else own.threshold,
        top_k=own.top_k or USUAL_TOP_K,
    )


def groups_of(own: ClipSettings) -> tuple[Group, ...]:
    """The vocabulary in the settings. Raises CaptionerError or DatasetError."""
    return read_vocabulary(own.vocabulary or DEFAULT_VOCABULARY)


def read_vocabulary(path: Path) -> tuple[Group, ...]:
    """Read a text file with one word or phrase per line; [heading] starts a group, # a comment.
    Raises CaptionerError or DatasetError.
    """
    from lora_trainer.dataset.text import read_text

    if not path.is_file():
        raise CaptionerError(
            "there is no vocabulary {path}",
            path=path,
            hint="A vocabulary is a text file with one word or phrase a line.",
        )
    return parse_vocabulary(read_text(path).content, path)


def parse_vocabulary(content: str, path: Path) -> tuple[Group, ...]:
    """The groups in `content`; `path` is for the error message."""
    groups: dict[str, dict[str, None]] = {}
    name = ""
    for line in content.split("\n"):
        word = line.strip()
        if word.startswith("[") and word.endswith("]"):
            name = word[1:-1].strip()
        elif word and not word.startswith("#"):
            groups.setdefault(name, {})[word] = None
    if not groups:
        raise CaptionerError(
            "the vocabulary {path} has no words in it",
            path=path,
            hint="Write one word or phrase a line.",
        )
    return tuple(Group(name=name, words=tuple(words)) for name, words in groups.items())


CAPTIONERS = (
    CaptionerInfo(
        name="clip",
        title="CLIP with a vocabulary",
        sentence="Picks what fits from a list of words, so that all captions use the same ones.",
        model=image_text.MODEL,
        download_bytes=image_text.DOWNLOAD_BYTES,
        memory_bytes=1_500_000_000,
        licence=image_text.LICENCE,
        batch_size=16,
        load=load,
        settings=ClipSettings,
        reads=lambda own: repr(groups_of(own)),
    ),
)
