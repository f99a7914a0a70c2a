"""Presets are complete, explained, accepted by the settings, and only set fields."""

from __future__ import annotations

import pytest

from lora_trainer.errors import ConfigError
from lora_trainer.settings import training
from lora_trainer.webui.common import form
from lora_trainer.webui.settings.presets import Presets, known_families, read

PRESETS = Presets().all


def test_these_presets_come_with_the_extension_in_this_order():
    assert [preset.id for preset in PRESETS] == [
        "style",
        "character",
        "product",
        "scene",
        "low_memory",
        "quick_test",
    ]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.id)
def test_a_preset_says_why_for_each_value_it_sets(preset):
    everywhere = set(preset.values) | {
        key for family in ("sd1", "sd2", "sdxl") for key in preset.family_values.get(family, {})
    }
    # what SDXL needs to fit at all is explained once, by the field's own help
    assert everywhere - set(preset.notes) <= {"gradient_checkpointing"}
    assert set(preset.notes) <= everywhere
    assert all(text.endswith(".") for text in [preset.why, *preset.notes.values()])


def values_on(preset, family):
    """As javascript/settings/values.js puts them together."""
    return {**preset.values, **preset.family_values.get(family, {})}


@pytest.mark.parametrize("family", known_families())
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.id)
def test_a_preset_is_accepted_by_the_settings_on_every_family(preset, family):
    values = values_on(preset, family)
    assert set(values) <= form.KEYS
    run = training.from_mapping(
        {**values, "train_data_dir": "a", "base_model": "b", "output_dir": "c"}
    )
    training.require_warmup_fits(run.training, run.training.max_train_steps or 0)
    # measured, unless somebody says otherwise
    assert run.output.preferred_weight is None


def test_family_values_lie_over_the_common_ones():
    character = next(preset for preset in PRESETS if preset.id == "character")
    assert values_on(character, "sd1")["train_text_encoder"] is True
    assert "train_text_encoder" not in values_on(character, "sdxl")
    assert values_on(character, "sdxl")["gradient_checkpointing"] is True
    assert values_on(character, "practice")["learning_rate"] == 2e-3


def test_a_browser_gets_plain_values():
    quick = Presets().listing("en")[-1]
    assert quick["title"] == "Quick test"
    assert quick["values"]["max_train_steps"] == 150
    assert quick["family_values"]["sdxl"] == {"resolution": 768, "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("values: {lora_dir: somewhere}", "lora_dir cannot be set by a preset"),
        ("values: {lora_rank: 0}", "lora_rank is 0"),
        ("families: {sd9: {lora_rank: 4}}", "there is no family sd9"),
        ("families: {sdxl: {lora_rank: high}}", "lora_rank"),
    ],
)
def test_a_preset_that_does_not_fit_is_left_out_with_a_sentence(tmp_path, caplog, text, words):
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read(tmp_path / "own.yaml")
    assert Presets(tmp_path).all == ()
    assert words in caplog.text


def test_a_third_preset_is_one_more_file(tmp_path):
    (tmp_path / "portrait.yaml").write_text(
        "title: Portrait\nwhy: For faces.\nvalues: {lora_rank: 12, min_snr_gamma: auto}\n",
        encoding="utf-8",
    )
    (preset,) = Presets(tmp_path).all
    assert (preset.id, preset.title, dict(preset.values)) == (
        "portrait",
        "Portrait",
        {"lora_rank": 12, "min_snr_gamma": None},
    )
