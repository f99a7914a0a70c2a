"""Checks a dataset for what would spoil a training; each finding has a measured value, a message
and, if possible, a fix.

    check_folder(settings, ...) -> CheckReport    a dataset folder, as training reads it
    check(images, ...)        -> CheckReport    known images and captions

Pillow and numpy only. An image of 1024 x 1024 pixels takes about 0.13 seconds on one core; with
`cache`, two thousand take a second the next time.

A finding's `measured`, by kind, and its `fix`:

    small-image         times the sides are enlarged; leave_out
    blurred-image       sigma of the sharpest edges, in pixels of the trained image; leave_out
    wide-border         share of the image that is border, 0 to 1; crop
    extreme-aspect      long side / short side; crop_subject, with a ratio (dataset.crop)
    lettering           height of the lettering / height of the image; crop
    too-dark            level of the brightest hundredth, 0 to 255; leave_out
    too-bright          share in which a channel is clipped, 0 to 1; leave_out
    low-contrast        levels between the darkest and the brightest hundredth; leave_out
    small-subject       bounding box of the subject / the image, 0 to 1; needs a mask; crop
    near-duplicate      similarity to the best of its cluster (`related`), up to 1; leave_out
    duplicate-image     1: identical files; leave_out
    escaped-brackets    unescape
    vocabulary          set_caption, with a caption
    identical-captions  how many share it (`related`; its `path` is None)
    little-variety      the number of different images; or, with embeddings, the mean distance of
                        all pairs relative to unrelated images; else the mean similarity of all
                        pairs
    unreadable-image    leave_out

A fix is {"do": name, ...}; crop has {"box": [left, top, right, bottom]} in pixels of the upright
image. check_folder's Report has dataset.scan's other findings (metadata rows, formats, layout) as
well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.dataset import findings as reporting
from lora_trainer.dataset.check.caption_findings import caption_findings
from lora_trainer.dataset.check.image_findings import (
    CheckedImage,
    findings_of_image,
    is_blurred,
    unreadable,
)
from lora_trainer.dataset.check.measure import Measures, measure_all
from lora_trainer.dataset.check.similarity import near_duplicates, variety
from lora_trainer.dataset.check.store import Store
from lora_trainer.dataset.embeddings import Embedded, read_all
from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.dataset.listing import list_folder
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.scan import unsupported, without_masks
from lora_trainer.dataset.sources import fill_in, read_captions
from lora_trainer.dataset.template import Vocabulary, vocabulary_findings
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings

log = logging.getLogger(__name__)

__all__ = [
    "CheckReport",
    "CheckedImage",
    "Measures",
    "Store",
    "check",
    "check_folder",
    "images_of",
]

MOSTLY_SOFT = 0.5
"""Share of blurred images above which softness is taken for the style, and reported once."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of a check."""

    images: tuple[CheckedImage, ...]
    measures: Mapping[Path, Measures]
    """Of the readable images."""
    findings: tuple[Finding, ...]

    @property
    def stops_training(self) -> bool:
        """Whether training would refuse this dataset."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_text(self) -> str:
        """Findings grouped by kind, errors first."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        if not self.findings:
            return f"Images checked: {len(self.images)}. No problems found"
        about = len({path for finding in self.findings for path in finding.about})
        things, files = len(reporting.sums(self.findings)), f", in {about} files" if about else ""
        head = f"Images checked: {len(self.images)}. Things to look at: {things}{files}"
        return "\n".join(
            [
                head + (f". Errors, which stop a training: {errors}" if errors else ""),
                reporting.report(self.findings),
            ]
        )

    def to_json(self, root: Path) -> str:
        """The report as JSON; paths are relative to `root`, with forward slashes."""
        data = {
            "images": [
                (
                    {"name": image.name, "width": known.width, "height": known.height}
                    if known
                    else {"name": image.name}
                )
                for image in self.images
                for known in [self.measures.get(image.path)]
            ],
            "findings": [as_data(finding, root) for finding in self.findings],
        }
        return json.dumps(data, ensure_ascii=False, indent=1)


def check(
    images: Sequence[CheckedImage],
    *,
    resolution: int,
    trigger_word: str = "",
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
    vocabulary: Vocabulary | None = None,
    embedded: Sequence[Embedded] = (),
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Measure the images and report problems with them and their captions.

    `embedded`: embeddings by image encoders, for variety. `cache`: a JSON file for measurements,
    created if missing. `progress` receives (images measured, total); its exceptions end the check.
    """
    store = Store(cache)
    measured = measure_all([image.path for image in images], store, progress)
    try:
        store.save()
    except OSError as error:
        # the report matters more than the cache
        log.warning("%s cannot be written: %s", cache, error)
    findings: list[Finding] = []
    readable: list[tuple[CheckedImage, Measures]] = []
    for image in images:
        result = measured[image.path]
        if isinstance(result, DatasetError):
            findings.append(unreadable(image, result))
        else:
            readable.append((image, result))
    findings += caption_findings(images, trigger_word, count_tokens, token_limit)
    if vocabulary is not None:
        captions = {image.path: (image.name, image.caption) for image in images if image.caption}
        findings += vocabulary_findings(captions, vocabulary, trigger_word)
    on_images = [
        finding
        for image, measures in readable
        for finding in findings_of_image(image, measures, resolution)
    ]
    findings += _soft_as_a_whole(on_images, readable, resolution)
    findings += near_duplicates(readable)
    findings += variety(readable, embedded)
    return CheckReport(
        images=tuple(images),
        measures={image.path: measures for image, measures in readable},
        findings=tuple(findings),
    )


def check_folder(
    settings: DatasetSettings,
    *,
    resolution: int,
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int = 75,
    vocabulary: Vocabulary | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check settings.train_data_dir as training reads it. Raises DatasetError only if there is no
    folder, or no image in it.
    """
    images, found = images_of(settings)
    report = check(
        images,
        resolution=resolution,
        trigger_word=settings.trigger_word,
        count_tokens=count_tokens,
        token_limit=token_limit,
        vocabulary=vocabulary,
        embedded=read_all(settings.train_data_dir),
        cache=cache,
        progress=progress,
    )
    return CheckReport(
        images=report.images, measures=report.measures, findings=(*found, *report.findings)
    )


def images_of(settings: DatasetSettings) -> tuple[tuple[CheckedImage, ...], tuple[Finding, ...]]:
    """The images of a dataset folder with captions and masks, without opening them, and findings
    about its files. Raises DatasetError.
    """
    listing = list_folder(settings.train_data_dir)
    captions = read_captions(listing, settings)
    paths, mask_findings = without_masks(listing, captions)
    masks = {image: mask for mask, image in find_masks(listing.images, captions.by_image).items()}
    filled = fill_in(captions, paths, listing, settings)

    def caption_of(image: Path) -> str | None:
        if image in captions.by_image:
            return captions.by_image[image].text
        # filled-in and unreadable captions are reported once, not per image
        return None

    images = tuple(
        CheckedImage(
            path=image, name=listing.name(image), caption=caption_of(image), mask=masks.get(image)
        )
        for image in paths
    )
    return images, (*listing.findings, *filled.findings, *mask_findings, *unsupported(listing))


def as_data(finding: Finding, root: Path) -> dict[str, Any]:
    """A finding as JSON values: kind, severity, message, hint, template and values for translation;
    path and related relative to `root`.
    """

    def name(path: Path) -> str:
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "message": str(finding.message),
        "hint": str(finding.hint),
        "template": finding.message.template,
        "values": {key: str(value) for key, value in finding.message.values.items()},
        "path": name(finding.path) if finding.path else None,
        "measured": finding.measured,
        "fix": dict(finding.fix) if finding.fix else None,
        "related": [name(path) for path in finding.related],
    }


def _soft_as_a_whole(
    findings: list[Finding], members: Sequence[tuple[CheckedImage, Measures]], resolution: int
) -> list[Finding]:
    blurred = sum(is_blurred(measures, resolution) for _, measures in members)
    if len(members) < 4 or blurred <= MOSTLY_SOFT * len(members):
        return findings
    hint = "If that is the style, ignore this. If they were enlarged, train at a lower resolution."
    template = "most images are soft at {resolution}: {count} of {total}"
    share, total = round(blurred / len(members), 3), len(members)
    whole = warning(
        "blurred-image",
        template,
        hint=hint,
        measured=share,
        resolution=resolution,
        count=blurred,
        total=total,
    )
    return [*(finding for finding in findings if finding.kind != "blurred-image"), whole]
