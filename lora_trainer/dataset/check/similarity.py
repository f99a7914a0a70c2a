"""Pictures compared with each other: near-duplicates in clusters, and how much variety a dataset
has. Called by `check`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_trainer.dataset.check.fingerprint import colour_distance, colours, vectors
from lora_trainer.dataset.check.image_findings import CheckedImage, border_share
from lora_trainer.dataset.check.measure import Measures
from lora_trainer.dataset.embeddings import Embedded, covering, spread
from lora_trainer.dataset.findings import Finding, problem

SAME = 0.86
"""Similarity of fingerprints from which on two pictures are taken for one."""
OTHER_COLOURS = 0.22
"""check.fingerprint.colour_distance above which two equal shapes are two pictures all the same."""
ALIKE = 0.6
"""Mean similarity of all pairs of fingerprints above which a dataset has little variety."""
LEAST_SPREAD = 0.2
"""As an image encoder sees them: the mean distance (1 - cosine) of all pairs, as part of that of
unrelated drawings (captioning.encoder).

Reasoned, not measured: no real weights were at hand. To CLIP, DreamBooth's photographs of one
subject each, taken from several angles in several places, have a cosine of 0.885 (ViT-B/32; arXiv
2208.12242, table 1): a distance of 0.115, which is enough to train on. Such a set passes where the
unrelated drawings are no further apart than 0.57. How far apart they are to CLIP or to BLIP is not
known here, which is why the limit is relative to the encoder's own scale, and the finding a hint.
"""
FEWEST = 5
"""Fewer different pictures hold too little to learn from; fewer are not judged for variety."""
_BLOCK = 1024

Matrix = NDArray[np.float32]
Member = tuple[CheckedImage, Measures]


def clusters(measures: Sequence[Measures]) -> list[list[int]]:
    """Indices of pictures that show the same, mirrored or not, each cluster by size of the picture
    and sharpness: the best first.

    Every picture is compared with every other: a quarter of a second for two thousand.
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
    """A warning for each picture of which there is a better copy; `related` holds the whole
    cluster, the best picture first.

    Files equal byte for byte are among them.
    """
    findings = []
    for group in clusters([measures for _, measures in members]):
        pictures = [members[index][0] for index in group]
        best = pictures[0]
        best_measures = members[group[0]][1]
        for index in group[1:]:
            picture, measures = members[index]
            related, mend = tuple(each.path for each in pictures), {"mend": "leave_out"}
            name, original = picture.name, best.name
            if measures.digest == best_measures.digest:
                hint = "Remove the copies, unless they are meant to count twice."
                template = "{name} is a copy of {original}"
                finding = problem(
                    "duplicate-image",
                    template,
                    hint=hint,
                    path=picture.path,
                    measured=1.0,
                    mend=mend,
                    related=related,
                    name=name,
                    original=original,
                )
            else:
                hint = "Keep the best of each: what is there twice is learned twice as strongly."
                template = "{name} is nearly the same picture as {original}"
                similarity = round(_similarity(measures, best_measures), 3)
                finding = problem(
                    "near-duplicate",
                    template,
                    hint=hint,
                    path=picture.path,
                    measured=similarity,
                    mend=mend,
                    related=related,
                    name=name,
                    original=original,
                )
            findings.append(finding)
    return findings


def variety(members: Sequence[Member], embedded: Sequence[Embedded] = ()) -> list[Finding]:
    """A warning where the dataset holds too few different pictures, or pictures that are all much
    alike.

    `embedded`: what captioners' image encoders made of them. Where none has seen nearly all of
    them, fingerprints are compared: they see composition, light and framing, but not what is shown.
    """
    copies = sum(len(group) - 1 for group in clusters([measures for _, measures in members]))
    different = len(members) - copies
    if not members:
        return []
    if different < FEWEST:
        hint = (
            "Ten to thirty, from several angles, at several distances and on several backgrounds,"
            " make a LoRA that can be steered."
        )
        template = (
            "there is only one picture, copies aside"
            if different == 1
            else "there are only {count} different pictures"
        )
        return [
            problem(
                "little-variety", template, hint=hint, measured=float(different), count=different
            )
        ]
    digests = [measures.digest for _, measures in members]
    seen = covering([one for one in embedded if one.unrelated > 0], digests)
    return _alike_as_seen(seen, digests) if seen is not None else _alike_in_light(members)


def _alike_as_seen(seen: Embedded, digests: Sequence[str]) -> list[Finding]:
    part = spread(seen.rows(digests)) / seen.unrelated
    if part >= LEAST_SPREAD:
        return []
    hint = (
        "If they show one angle or one distance, add others, or other backgrounds and light; what"
        " all pictures share becomes part of the LoRA."
    )
    template = (
        "to {encoder} the pictures look much alike: they differ {percent} % as much as unrelated"
        " pictures do"
    )
    part = max(0.0, part)
    found = problem(
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
        "Add other angles, distances, backgrounds or light; what all pictures share becomes part of"
        " the LoRA."
    )
    template = "by light and dark the pictures are much alike: {percent} % on average"
    return [
        problem(
            "little-variety",
            template,
            hint=hint,
            measured=round(likeness, 3),
            percent=round(100 * likeness),
        )
    ]


def _pairs(plain: Matrix, mirrored: Matrix) -> Iterator[tuple[int, int]]:
    """Pairs, the smaller index first, whose fingerprints are as good as equal, one of them mirrored
    perhaps.
    """
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
    """The better picture comes first: larger inside its borders, then without any, then sharper. A
    tenth more pixels is no difference.
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
