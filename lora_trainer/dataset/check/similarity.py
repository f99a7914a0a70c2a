"""Compares images with each other: near-duplicates in clusters, and the variety of a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_trainer.dataset.check.fingerprint import colour_distance, colours, vectors
from lora_trainer.dataset.check.image_findings import CheckedImage, border_share
from lora_trainer.dataset.check.measure import Measures
from lora_trainer.dataset.embeddings import Embedded, covering, spread
from lora_trainer.dataset.findings import Finding, Kind, warning

SAME = 0.86
"""Similarity of fingerprints above which two images count as near-duplicates."""
OTHER_COLOURS = 0.22
"""check.fingerprint.colour_distance above which they do not."""
ALIKE = 0.6
"""Mean similarity of all pairs of fingerprints above which a dataset has little variety."""
MIN_SPREAD = 0.2
"""Minimum mean distance (1 - cosine) of all pairs of embeddings, relative to that of unrelated
drawings (captioning.encoder).

Derived, not measured with real weights: DreamBooth's photographs of one subject, taken from several
angles in several places, have a cosine of 0.885 with CLIP (ViT-B/32; arXiv 2208.12242, table 1), a
distance of 0.115, which is enough to train on. Such a set passes if the unrelated drawings'
distance is at most 0.57. That distance is unknown for CLIP and BLIP, so the limit is relative, and
the finding is only a hint.
"""
MIN_IMAGES = 5
"""With fewer different images, variety is not judged."""
_BLOCK = 1024

Matrix = NDArray[np.float32]
Member = tuple[CheckedImage, Measures]


def clusters(measures: Sequence[Measures]) -> list[list[int]]:
    """Indices of images that show the same, mirrored or not; each cluster sorted by size and
    sharpness, best first.

    Compares all pairs: a quarter of a second for two thousand images.
    """
    if len(measures) < 2:
        return []
    plain, mirrored = vectors([bytes.fromhex(each.fingerprint) for each in measures])
    palettes = colours([bytes.fromhex(each.palette) for each in measures])
    roots = list(range(len(measures)))
    for one, other in _pairs(plain, mirrored):
        straight = float(plain[one] @ plain[other]) >= float(mirrored[one] @ plain[other])
        seen = palettes[one] if straight else palettes[one][:, ::-1]
        if colour_distance(seen, palettes[other]) <= OTHER_COLOURS:
            roots[_root(roots, one)] = _root(roots, other)
    grouped: dict[int, list[int]] = {}
    for index in range(len(measures)):
        grouped.setdefault(_root(roots, index), []).append(index)
    return [
        sorted(group, key=lambda index: _rank(measures[index]))
        for group in grouped.values()
        if len(group) > 1
    ]


def near_duplicates(members: Sequence[Member]) -> list[Finding]:
    """A warning for each image with a better copy, including identical files; `related` is the
    whole cluster, best first.
    """
    findings = []
    for group in clusters([measures for _, measures in members]):
        images = [members[index][0] for index in group]
        best = images[0]
        best_measures = members[group[0]][1]
        for index in group[1:]:
            image, measures = members[index]
            kind: Kind = "duplicate-image"
            similarity = 1.0
            if measures.digest == best_measures.digest:
                hint = "Remove the copies, unless they are meant to count twice."
                template = "{name} is a copy of {original}"
            else:
                kind = "near-duplicate"
                similarity = round(_similarity(measures, best_measures), 3)
                hint = (
                    "Keep the best of each: an image that occurs twice is learned twice as"
                    " strongly."
                )
                template = "{name} is nearly the same image as {original}"
            finding = warning(
                kind,
                template,
                hint=hint,
                path=image.path,
                measured=similarity,
                fix={"do": "leave_out"},
                related=tuple(each.path for each in images),
                name=image.name,
                original=best.name,
            )
            findings.append(finding)
    return findings


def variety(members: Sequence[Member], embedded: Sequence[Embedded] = ()) -> list[Finding]:
    """A warning if there are too few different images, or all are similar.

    `embedded`: captioners' embeddings. If none covers nearly all images, fingerprints are compared,
    which reflect composition and light but not content.
    """
    copies = sum(len(group) - 1 for group in clusters([measures for _, measures in members]))
    different = len(members) - copies
    if not members:
        return []
    if different < MIN_IMAGES:
        hint = (
            "Ten to thirty, from several angles, at several distances and on several "
            "backgrounds, make a more flexible LoRA."
        )
        template = "there are only {count} different images"
        if different == 1:
            template = "there is only one image, not counting copies"
        return [
            warning(
                "little-variety", template, hint=hint, measured=float(different), count=different
            )
        ]
    digests = [measures.digest for _, measures in members]
    seen = covering([one for one in embedded if one.unrelated > 0], digests)
    return _alike_as_seen(seen, digests) if seen is not None else _alike_in_light(members)


def _alike_as_seen(seen: Embedded, digests: Sequence[str]) -> list[Finding]:
    part = spread(seen.rows(digests)) / seen.unrelated
    if part >= MIN_SPREAD:
        return []
    hint = (
        "If they show one angle or one distance, add others, or other backgrounds and light; what"
        " all images share becomes part of the LoRA."
    )
    template = (
        "for {encoder} the images are very similar: they differ {percent} % as much as "
        "unrelated images do"
    )
    part = max(0.0, part)
    found = warning(
        "little-variety",
        template,
        hint=hint,
        measured=round(part, 3),
        encoder=seen.title,
        percent=round(100 * part),
    )
    return [dataclasses.replace(found, severity="info")]


def _alike_in_light(members: Sequence[Member]) -> list[Finding]:
    likeness = 1 - spread(
        vectors([bytes.fromhex(measures.fingerprint) for _, measures in members])[0]
    )
    if likeness <= ALIKE:
        return []
    hint = (
        "Add other angles, distances, backgrounds or light; what all images share becomes part of"
        " the LoRA."
    )
    template = "the images are very similar in light and dark: {percent} % on average"
    return [
        warning(
            "little-variety",
            template,
            hint=hint,
            measured=round(likeness, 3),
            percent=round(100 * likeness),
        )
    ]


def _pairs(plain: Matrix, mirrored: Matrix) -> Iterator[tuple[int, int]]:
    """Pairs of indices, smaller first, with nearly equal fingerprints, maybe mirrored."""
    for start in range(0, len(plain), _BLOCK):
        rows = slice(start, start + _BLOCK)
        alike = np.maximum(plain[rows] @ plain.T, mirrored[rows] @ plain.T)
        for row, other in zip(*np.nonzero(alike >= SAME), strict=True):
            if start + row < other:
                yield int(start + row), int(other)


def _root(roots: list[int], index: int) -> int:
    while roots[index] != index:
        roots[index] = roots[roots[index]]
        index = roots[index]
    return index


def _rank(measures: Measures) -> tuple[float, bool, float]:
    """Sort key: larger inside its borders first, then without borders, then sharper. A tenth more
    pixels does not count.
    """
    sharpness = (
        measures.edge_width / measures.analysed_side if measures.edge_width is not None else 1.0
    )
    left, top, right, bottom = measures.inner
    return (
        -round(np.log((right - left) * (bottom - top)) * 5),
        border_share(measures) > 0,
        sharpness,
    )


def _similarity(one: Measures, other: Measures) -> float:
    plain, mirrored = vectors([bytes.fromhex(one.fingerprint), bytes.fromhex(other.fingerprint)])
    return float(max(plain[0] @ plain[1], mirrored[0] @ plain[1]))
