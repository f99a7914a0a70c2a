"""Checks captions: missing, identical, too long. The trigger word is not required, because training
adds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from lora_trainer.dataset.captions import with_trigger_word
from lora_trainer.dataset.findings import Finding, error, warning
from lora_trainer.dataset.scan import long_caption
from lora_trainer.dataset.syntax import escaped_brackets, foreign_syntax

MAX_IDENTICAL_SHARE = 0.2
"""Share of identical captions that is not reported."""

LONGEST_QUOTE = 80
"""Characters of a caption in a message."""


class ImageCaption(Protocol):
    """An image with its caption: "" where there is none; None: say nothing about it."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def caption(self) -> str | None: ...


def caption_findings(
    images: Sequence[ImageCaption],
    trigger_word: str = "",
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
) -> list[Finding]:
    """Problems with the captions. Their length is only checked with `count_tokens`."""
    found = [findings_of_one(image, trigger_word, count_tokens, token_limit) for image in images]
    return [*(finding for some in found for finding in some), *findings_of_all(images)]


def findings_of_one(
    image: ImageCaption,
    trigger_word: str = "",
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
) -> list[Finding]:
    """Problems with one caption that do not depend on the others."""
    if image.caption is None:
        return []
    if not image.caption:
        return [_missing(image)]
    findings = escaped_brackets(image.path, image.name, image.caption)
    if count_tokens is not None:
        caption = with_trigger_word(image.caption, trigger_word)
        findings += long_caption(image.path, image.name, caption, count_tokens, token_limit)
    return findings


def findings_of_all(images: Sequence[ImageCaption]) -> list[Finding]:
    """What is told once, of several captions."""
    captioned = [image for image in images if image.caption]
    return _identical(captioned) + foreign_syntax(
        (image.path, image.name, image.caption or "") for image in captioned
    )


def _missing(image: ImageCaption) -> Finding:
    hint = "Write one, or let a captioner write a first draft."
    return error("no-caption", "{name} has no caption", hint=hint, path=image.path, name=image.name)


def _identical(images: Sequence[ImageCaption]) -> list[Finding]:
    """One warning for each caption that too many images share, from three on."""
    captions = [(image.caption or "").casefold() for image in images]
    least = max(3, MAX_IDENTICAL_SHARE * len(images))
    groups: dict[str, list[ImageCaption]] = {
        caption: [] for caption, count in Counter(captions).items() if count >= least
    }
    for image, caption in zip(images, captions, strict=True) if groups else ():
        if caption in groups:
            groups[caption].append(image)
    hint = (
        "Describe what differs from image to image: what captions do not distinguish is learned"
        " as one thing."
    )
    template = '{count} images have the same caption, "{caption}"'
    return [
        warning(
            "identical-captions",
            template,
            hint=hint,
            measured=float(len(group)),
            related=tuple(each.path for each in group),
            count=len(group),
            caption=_shortened(str(group[0].caption)),
        )
        for group in groups.values()
        if len(group) > MAX_IDENTICAL_SHARE * len(images)
    ]


def _shortened(caption: str) -> str:
    if len(caption) <= LONGEST_QUOTE:
        return caption
    return caption[: LONGEST_QUOTE - 1].rstrip(" ,") + "…"
