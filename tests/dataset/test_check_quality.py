"""The check is right often enough: a small run of tests.benchmark.check_quality, on drawn images
alone.
"""

from __future__ import annotations

import pytest

from tests.benchmark.check_quality import drawn_sources, run

FLOORS = {
    # flat shapes cropped to a strip: enlarged, some are blurred indeed, and straight sides that are
    # cut off look like bars
    "blurred-image": (0.85, 0.8),
    "wide-border": (0.75, 1.0),
    "small-image": (1.0, 1.0),
    "extreme-aspect": (1.0, 1.0),
    "lettering": (0.85, 0.75),
    "too-dark": (0.75, 1.0),
    "too-bright": (0.85, 0.8),
    "low-contrast": (0.75, 1.0),
    "near-duplicate": (0.9, 0.9),
}
"""(precision, recall) at least."""


@pytest.mark.slow
def test_precision_and_recall_stay_above_their_floors():
    count, scores = run(list(drawn_sources(9, side=460)))
    assert count >= 120
    found = {kind: (score.precision, score.recall) for kind, score in scores.items()}
    assert found.keys() == FLOORS.keys()
    assert {
        kind: value
        for kind, value in found.items()
        if value[0] < FLOORS[kind][0] or value[1] < FLOORS[kind][1]
    } == {}
