"""Checks captions: missing, identical, too long. The trigger word is not required, because training
adds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from lora_trainer.dataset.captions import variants, with_trigger_word
from lora_trainer.dataset.check.image_findings import CheckedImage
from lora_trainer.dataset.findings import Finding, error, warning
from lora_trainer.dataset.syntax import caption_syntax

MAX_IDENTICAL_SHARE = 0.2
"""Share of identical captions that is not reported."""

LONGEST_QUOTE = 80
"""Characters of a caption in a message."""


def caption_findings(
    pictures: Sequence[CheckedImage],
    trigger_word: str = "",
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
) -> list[Finding]:
    """Problems with the captions. Their length is only checked with `count_tokens`."""
    checked = [picture for picture in pictures if picture.caption is not None]
    findings = [_missing(picture) for picture in checked if not picture.caption]
    captioned = [picture for picture in checked if picture.caption]
    findings += _identical(captioned)
    findings += caption_syntax(
        {picture.path: (picture.name, str(picture.caption)) for picture in captioned}
    )
    if count_tokens is not None:
        findings += _too_long(captioned, trigger_word, count_tokens, token_limit)
    return findings


def _missing(picture: CheckedImage) -> Finding:
    hint = "Write one, or let a captioner write a first draft."
    return error(
        "no-caption", "{name} has no caption", hint=hint, path=picture.path, name=picture.name
    )


def _identical(pictures: Sequence[CheckedImage]) -> list[Finding]:
    """One warning for each caption that too many images share, from three on."""
    groups: dict[str, list[CheckedImage]] = defaultdict(list)
    for picture in pictures:
        groups[str(picture.caption).casefold()].append(picture)
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
        if len(group) >= 3 and len(group) > MAX_IDENTICAL_SHARE * len(pictures)
    ]


def _shortened(caption: str) -> str:
    if len(caption) <= LONGEST_QUOTE:
        return caption
    return caption[: LONGEST_QUOTE - 1].rstrip(" ,") + "…"


def _too_long(
    pictures: Sequence[CheckedImage],
    trigger_word: str,
    count_tokens: Callable[[str], int],
    limit: int,
) -> list[Finding]:
    template = "{name}: the caption has {count} tokens, {excess} more than max_token_length {limit}"
    hint = "Shorten it, or raise max_token_length (150 or 225)."
    findings = []
    for picture in pictures:
        count = max(
            map(count_tokens, variants(with_trigger_word(str(picture.caption), trigger_word)))
        )
        if count > limit:
            excess = count - limit
            findings.append(
                error(
                    "long-caption",
                    template,
                    hint=hint,
                    path=picture.path,
                    name=picture.name,
                    count=count,
                    excess=excess,
                    limit=limit,
                )
            )
    return findings
