"""The script for minutes on a graphics card, as far as it can be tried without one."""

from __future__ import annotations

import json

from lora_trainer.settings import training
from tests.benchmark import on_a_card
from tests.benchmark.on_a_card import Check


def test_every_trainings_settings_are_valid(tmp_path):
    wanted = on_a_card.checks("cuda")
    for check in wanted:
        values = {
            "train_data_dir": tmp_path,
            "base_model": tmp_path,
            "output_dir": tmp_path / "run",
        }
        training.from_mapping({**values, **check.settings})
    assert len({check.name for check in wanted}) == len(wanted)
    # what matters most comes first, and fits
    assert sum(check.seconds for check in wanted[:5]) < on_a_card.SECONDS


def test_a_check_that_fails_or_has_no_time_left_does_not_keep_the_others_from_running(tmp_path):
    def fails(place):
        raise ValueError("no such kernel")

    wanted = [
        Check("first", 1, lambda place: {"exists": (place / "models").is_dir()}),
        Check("second", 1, fails),
        Check("third", 10_000, fails),
        Check("fourth", 1, lambda place: {"value": 0.12345678}),
    ]
    found = on_a_card.run(wanted, tmp_path, 60.0)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert found["first"]["exists"] is True
    assert found["second"]["failed"] == "no such kernel"
    assert "fails" in " ".join(found["second"]["where"])
    assert found["third"] == {"left_out": "needs up to 10000 s"}
    assert "| fourth | value 0.1235, took " in (tmp_path / "results.md").read_text()
