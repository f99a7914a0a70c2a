"""Pictures compared with each other: near-duplicates in clusters, and how much variety a dataset has. Called by `check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_trainer.dataset.check.fingerprint import colour_distance, colours, vectors
from lora_trainer.dataset.check.judge import Picture, border_share
from lora_trainer.dataset.check.measure import Measures
from lora_trainer.dataset.findings import Finding, problem

SAME = 0.86
"""Similarity of fingerprints from which on two pictures are taken for one."""
OTHER_COLOURS = 0.22
"""check.fingerprint.colour_distance above which two equal shapes are two pictures all the same."""
ALIKE, ALIKE_EMBEDDED = 0.6, 0.9
"""Mean similarity of all pairs above which a dataset has little variety: of fingerprints, and of an image encoder's embeddings (cosine)."""
FEWEST = 5
"""Fewer different pictures hold too little to learn from; fewer are not judged for variety."""
_BLOCK = 1024

Matrix = NDArray[np.float32]
Member = tuple[Picture, Measures]


def clusters(measures: Sequence[Measures]) -> list[list[int]]:
    """Indices of pictures that show the same, mirrored or not, each cluster by size of the picture and sharpness: the best first.

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
    return [sorted(group, key=lambda index: _rank(measures[index])) for group in grouped.values() if len(group) > 1]


def near_duplicates(members: Sequence[Member]) -> list[Finding]:
    """A warning for each picture of which there is a better copy; `related` holds the whole cluster, the best picture first.

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
                    "duplicate-image", template, hint=hint, path=picture.path, measured=1.0, mend=mend, related=related, name=name, original=original
                )
            else:
                hint = "Keep the best of each: what is there twice is learned twice as strongly."
                template = "{name} is nearly the same picture as {original}"
                similarity = round(_similarity(measures, best_measures), 3)
                finding = problem(
                    "near-duplicate", template, hint=hint, path=picture.path, measured=similarity, mend=mend, related=related, name=name,
                    original=original,
                )  # fmt: skip
            findings.append(finding)
    return findings


def variety(members: Sequence[Member], embeddings: Matrix | None = None) -> list[Finding]:
    """A warning where the dataset holds too few different pictures, or pictures that are all much alike.

    `embeddings`: one row for each member, from a captioner's image encoder (any length, need not be normalised). Without it, fingerprints
    are compared: they see composition, light and framing, but not what is shown.
    """
    copies = sum(len(group) - 1 for group in clusters([measures for _, measures in members]))
    different = len(members) - copies
    if not members:
        return []
    if different < FEWEST:
        hint = "Ten to thirty, from several angles, at several distances and on several backgrounds, make a LoRA that can be steered."
        template = "there are only {count} different pictures"
        return [problem("little-variety", template, hint=hint, measured=float(different), count=different)]
    rows, most = (embeddings, ALIKE_EMBEDDED) if embeddings is not None else (_rows(members), ALIKE)
    likeness = _mean_likeness(rows)
    if likeness <= most:
        return []
    hint = "Add other angles, distances, backgrounds or light; what all pictures share becomes part of the LoRA."
    template = "the pictures are much alike: {percent} % on average"
    return [problem("little-variety", template, hint=hint, measured=round(likeness, 3), percent=round(100 * likeness))]


def _rows(members: Sequence[Member]) -> Matrix:
    return vectors([bytes.fromhex(measures.fingerprint) for _, measures in members])[0]


def _pairs(plain: Matrix, mirrored: Matrix) -> Iterator[tuple[int, int]]:
    """Pairs, the smaller index first, whose fingerprints are as good as equal, one of them mirrored perhaps."""
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
    """The better picture comes first: larger inside its borders, then without any, then sharper. A tenth more pixels is no difference."""
    sharpness = measures.edge_width / measures.analysed_side if measures.edge_width is not None else 1.0
    left, top, right, bottom = measures.inner
    return -round(np.log((right - left) * (bottom - top)) * 5), border_share(measures) > 0, sharpness


def _similarity(one: Measures, other: Measures) -> float:
    plain, mirrored = vectors([bytes.fromhex(one.fingerprint), bytes.fromhex(other.fingerprint)])
    return float(max(plain[0] @ plain[1], mirrored[0] @ plain[1]))


def _mean_likeness(rows: Matrix) -> float:
    """The mean cosine of all pairs of rows."""
    rows = np.asarray(rows, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    count, total = len(rows), rows.sum(axis=0)
    # the sum of all products is the square of the sum; the count of them are a row's with itself
    return float((total @ total - (rows * rows).sum()) / (count * (count - 1)))
