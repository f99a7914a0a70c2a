"""One telling of each setting: what stands at the field is in the form, README's table, the YAML and
the command line; a setting that was renamed reads under its earlier name.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from lora_trainer import __main__ as command_line
from lora_trainer.captioning import captioners
from lora_trainer.errors import ConfigError
from lora_trainer.jobs.history import History
from lora_trainer.settings import captioning, schema, training
from lora_trainer.settings.schema import ProperName, Settings, about, setting
from lora_trainer.webui.captions.caption_runs import offers
from lora_trainer.webui.common import form
from lora_trainer.webui.datasets import settings_draft

TRAINING = [(group, item) for _, group in training.GROUPS for item in schema.fields_of(group)]


@dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    """Toys"""

    wheels: int = setting(
        4,
        label="Wheels",
        unit="pieces",
        at_least=1,
        at_most=18,
        hint="4 suits most.",
        renamed_from=("tyres",),
        other_names=("rollers",),
        audience="everyone",
        step=2,
    )
    """How many roll."""
    paint: Literal["red", "matt"] = setting(
        "red", label="Paint", choices={"matt": "without gloss", "red": ProperName("RAL 3000")}
    )
    """What covers it."""
    riders: tuple[str, ...] = setting((), label="Riders", entry="lines")
    """Who sits in it."""
    horn: bool = setting(True, label="Horn")
    """Whether it is heard."""


GROUPS = (("toys", ToySettings),)


def read(values):
    return schema.groups_from_mapping(GROUPS, values, "toys")["toys"]


# --- one field, told everywhere -------------------------------------------------------------------


def test_every_field_has_a_label_a_text_and_if_the_tab_does_not_show_it_a_reason():
    for group, item in TRAINING:
        told = about(item)
        assert told.label and schema.documentation_of(group)[item.name].endswith((".", ")"))
        assert (
            told.audience != "elsewhere"
            or told.place
            or item.name in ("output_dir", "lora_dir", "webui", "validation_dir")
        )


def test_the_form_holds_every_setting_that_its_audience_sees():
    shown = {
        field["key"]: field for group in form.form("en")["groups"] for field in group["fields"]
    }
    for group, item in TRAINING:
        told = about(item)
        is_shown = told.audience != "elsewhere"
        assert (item.name in shown) is is_shown, item.name
        if item.name in shown:
            field = shown[item.name]
            assert (field["label"], field["unit"]) == (told.label, told.unit)
            assert field["data"] != ("texts" if group.for_images else "images")
            assert field["advanced"] is (told.audience == "advanced")
            values = [choice["value"] for choice in field["choices"]]
            # a free text has those that are offered
            assert tuple(values) == (schema.choices_of(group, item) or tuple(told.choices))


def test_readmes_table_the_yaml_and_the_command_line_hold_every_setting():
    table, text = training.readme_table(), training.commented_yaml()
    for group, item in TRAINING:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{item.name}` |"))
        remark = " ".join(text[: text.index(f"{item.name}: ")].split("\n\n")[-1].split("\n# "))
        for words in (
            about(item).label,
            about(item).unit,
            schema.documentation_of(group)[item.name],
        ):
            assert words in row.replace("\\|", "|") and words in " ".join(remark.split()), item.name
        for choice in schema.choices_of(group, item):
            assert str(choice) in row, item.name
    given = {item.name: "1" for _, item in TRAINING}
    changes = [f"{key}={value}" for key, value in given.items()]
    asked = command_line.make_parser().parse_args(
        ["train", "--config", "x", *(part for change in changes for part in ("--set", change))]
    )
    assert set(command_line.parse_changes(asked.changes)) == set(given)


def test_every_setting_of_a_captioner_is_offered_in_the_tab_and_at_the_command_line(tmp_path):
    offered = {offer["name"]: offer["fields"] for offer in offers(tmp_path, {}, "en", cards=2)}
    shown = command_line.make_parser()._subparsers._group_actions[0].choices["caption"]
    shown.complete()
    helps = {action.dest: " ".join((action.help or "").split()) for action in shown._actions}
    for name, info in captioners.every().items():
        for group in (captioning.CaptionSettings, info.settings):
            for item in schema.fields_of(group):
                told, text = about(item), schema.documentation_of(group)[item.name]
                fields = [field for field in offered[name] if field["key"] == item.name]
                assert [field["label"] for field in fields] == (
                    [told.label] if told.audience != "elsewhere" else []
                )
                assert text in helps[item.name].replace("%%", "%")
    assert "clip: Words less sure" in helps["threshold"] and "wd: Tags" in helps["threshold"]
    assert "wd (WD tagger v3: Writes Danbooru tags" in helps["captioner"]


def test_a_new_field_is_told_everywhere_from_where_it_stands():
    wheels, paint = (form.shown(ToySettings, key, "en") for key in ("wheels", "paint"))
    assert wheels == {
        "key": "wheels",
        "label": "Wheels",
        "help": "How many roll.",
        "type": "integer",
        "choices": [],
        "minimum": 1,
        "maximum": 18,
        "above": None,
        "step": 2,
        "default": 4,
        "optional": False,
        "advanced": False,
        "unit": "pieces",
    }
    assert paint["choices"] == [
        {"value": "red", "label": "RAL 3000"},
        {"value": "matt", "label": "without gloss"},
    ]
    assert schema.readme_table(GROUPS).splitlines() == [
        "**Toys**",
        "",
        "| key | name | default | meaning |",
        "| --- | --- | --- | --- |",
        "| `wheels` | Wheels (pieces) | `4` | How many roll. |",
        "| `paint` | Paint | `red` | What covers it. One of: red (RAL 3000), matt (without gloss). |",
        "| `riders` | Riders | `[]` | Who sits in it. |",
        "| `horn` | Horn | `true` | Whether it is heard. |",
    ]
    text = schema.commented_yaml(GROUPS, {"wheels": 3})
    assert "# Wheels (pieces): How many roll.\nwheels: 3\n" in text and "#horn: true" in text
    assert yaml.safe_load(text) == {"wheels": 3}


def test_a_new_field_is_an_option_of_the_command_line():
    parser = argparse.ArgumentParser()
    schema.add_options(parser, [("", ToySettings)])
    asked = vars(parser.parse_args(["--wheels", "3", "--no-horn"]))
    assert asked == {"wheels": "3", "horn": False}
    toys = read(asked)
    assert (toys.wheels, toys.horn) == (3, False)
    assert "How many roll. (default: 4)" in " ".join(parser.format_help().split())


# --- a setting that was renamed -------------------------------------------------------------------


def test_a_renamed_setting_reads_under_its_earlier_name_and_is_written_under_its_new_one():
    toys = read({"tyres": 6})
    assert toys.wheels == 6
    assert schema.group_to_mapping(toys)["wheels"] == 6
    with pytest.raises(ConfigError, match="tyres is an earlier name of wheels"):
        read({"tyres": 6, "wheels": 4})
    with pytest.raises(ConfigError, match="wheels is 40, but must be between 1 and 18"):
        read({"tyres": 40})
    with pytest.raises(ConfigError) as caught:
        read({"rollers": 4})
    assert "rollers is not a setting" in str(caught.value)
    assert "Did you mean wheels?" in caught.value.report()


@pytest.fixture
def renamed(monkeypatch):
    """The trainer in a version that calls `lora_rank` by another name than this one."""

    @dataclass(frozen=True, kw_only=True)
    class RenamedSettings(training.LoraSettings):
        lora_rank: int = setting(8, label="Rank", at_least=1, at_most=64, renamed_from=("size",))

    monkeypatch.setattr(
        training,
        "GROUPS",
        tuple((name, RenamedSettings if name == "lora" else one) for name, one in training.GROUPS),
    )
    return training.GROUPS


def test_old_files_drafts_and_runs_go_on_after_a_setting_was_renamed(tmp_path, renamed):
    old = tmp_path / "runs" / "ink" / "config.yaml"
    old.parent.mkdir(parents=True)
    old.write_text("train_data_dir: a\nbase_model: b\noutput_dir: c\nsize: 6\n", encoding="utf-8")
    assert training.read(old).lora.lora_rank == 6
    assert training.read(old, {"lora_rank": 4}).lora.lora_rank == 4
    assert training.read(old, {"size": 5}).lora.lora_rank == 5
    assert History(tmp_path / "runs").entry("ink").settings["lora_rank"] == 6
    draft = Path(settings_draft.path_of(tmp_path))
    draft.parent.mkdir()
    draft.write_text(json.dumps({"values": {"changes": {"size": 6, "other": 1}}}))
    assert settings_draft.read(tmp_path).values["changes"] == {"lora_rank": 6}
