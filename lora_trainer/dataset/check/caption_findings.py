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
    """A picture with its caption: "" where there is none; None: say nothing about it."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def caption(self) -> str | None: ...


def caption_findings(
    pictures: Sequence[ImageCaption],
    trigger_word: str = "",
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
) -> list[Finding]:
    """Problems with the captions. Their length is only checked with `count_tokens`."""
    found = [
        findings_of_one(picture, trigger_word, count_tokens, token_limit) for picture in pictures
    ]
    return [*(finding for some in found for finding in some), *findings_of_all(pictures)]


def findings_of_one(
    picture: ImageCaption,
    trigger_word: str = "",
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
) -> list[Finding]:
    """Problems with one caption that do not depend on the others."""
    if picture.caption is None:
        return []
    if not picture.caption:
        return [_missing(picture)]
    findings = escaped_brackets(picture.path, picture.name, picture.caption)
    if count_tokens is not None:
        caption = with_trigger_word(picture.caption, trigger_word)
        findings += long_caption(picture.path, picture.name, caption, count_tokens, token_limit)
    return findings


def findings_of_all(pictures: Sequence[ImageCaption]) -> list[Finding]:
    """What is told once, of several captions."""
    captioned = [picture for picture in pictures if picture.caption]
    return _identical(captioned) + foreign_syntax(
        (picture.path, picture.name, picture.caption or "") for picture in captioned
    )


def _missing(picture: ImageCaption) -> Finding:
    hint = "Write one, or let a captioner write a first draft."
    return error(
        "no-caption", "{name} has no caption", hint=hint, path=picture.path, name=picture.name
    )


def _identical(pictures: Sequence[ImageCaption]) -> list[Finding]:
    """One warning for each caption that too many images share, from three on."""
    captions = [(picture.caption or "").casefold() for picture in pictures]
    least = max(3, MAX_IDENTICAL_SHARE * len(pictures))
    groups: dict[str, list[ImageCaption]] = {
        caption: [] for caption, count in Counter(captions).items() if count >= least
    }
    for picture, caption in zip(pictures, captions, strict=True) if groups else ():
        if caption in groups:
            groups[caption].append(picture)
    hint = (
        "Say what differs from picture to picture: what captions do not tell apart is learned as"
        " one."
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
        if len(group) > MAX_IDENTICAL_SHARE * len(pictures)
    ]


def _shortened(caption: str) -> str:
    if len(caption) <= LONGEST_QUOTE:
        return caption
    return caption[: LONGEST_QUOTE - 1].rstrip(" ,") + "…"
