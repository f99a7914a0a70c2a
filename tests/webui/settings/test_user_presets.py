"""The visitor's own presets: kept as files, read anew, and none of them hides another."""

from __future__ import annotations

import pytest

from lora_trainer.errors import ConfigError
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.http.routing import Conflict
from lora_trainer.webui.settings import user_presets
from lora_trainer.webui.settings.presets import Presets, read
from lora_trainer.webui.settings.user_presets import UserPresets


@pytest.fixture
def data(tmp_path):
    return DataFolder(tmp_path / "daten 数据")


@pytest.fixture
def own(data):
    return UserPresets(data, Presets())


def test_a_saved_preset_is_a_file_with_what_differs_from_the_defaults(own, data):
    values = {
        "lora_rank": 16,
        "learning_rate": 0.0002,
        "epochs": 10,
        "sample_strengths": [0, 1],
        "lora_alpha": None,
    }
    assert own.save("  Ink\tfaces ", "For portraits.", values) == "own:Ink faces.yaml"
    text = (data.root / "presets" / "Ink faces.yaml").read_text(encoding="utf-8")
    assert (
        text == "title: Ink faces\nwhy: For portraits.\nvalues:\n  lora_rank: 16\n  learning_rate:"
        " 0.0002\n  sample_strengths: [0.0, 1.0]\n"
    )
    assert own.listing("en") == {
        "presets": [
            {
                "id": "own:Ink faces.yaml",
                "file": "Ink faces.yaml",
                "title": "Ink faces",
                "why": "For portraits.",
                "notes": {},
                "family_values": {},
                "values": {
                    "lora_rank": 16,
                    "learning_rate": 0.0002,
                    "sample_strengths": [0.0, 1.0],
                },
            }
        ],
        "problems": [],
    }


def test_what_belongs_to_images_checkpoint_or_name_is_not_saved(own, data):
    bound = {
        "trigger_word": "ohwx",
        "sample_prompts": ["a fox"],
        "prediction_type": "epsilon",
        "zero_terminal_snr": True,
        "clip_skip": 2,
    }
    elsewhere = {
        "name": "fox",
        "base_model": "C:/models/a.safetensors",
        "train_data_dir": "D:/fox",
        "vae": "v",
        "nonsense": 1,
    }
    own.save("Mine", "", {**bound, **elsewhere, "batch_size": 2})
    assert read(data.root / "presets" / "Mine.yaml").values == {"batch_size": 2}


def test_a_name_that_no_file_can_have_is_only_a_title(own, data):
    own.save("1:2 <lora> / CON?", "", {"batch_size": 2})
    own.save("con", "", {"batch_size": 3})
    assert [preset["title"] for preset in own.listing("en")["presets"]] == [
        "1:2 <lora> / CON?",
        "con",
    ]
    assert sorted(path.name for path in (data.root / "presets").iterdir()) == [
        "1_2 _lora_ _ CON_.yaml",
        "_con.yaml",
    ]


def test_two_titles_of_one_file_name_are_two_files(own, data):
    own.save("a?", "", {"batch_size": 2})
    assert own.save("a*", "", {"batch_size": 3}) == "own:a_-2.yaml"


@pytest.mark.parametrize("title", ["", "  ", "\x00\n"])
def test_a_preset_needs_a_name(own, title):
    with pytest.raises(ConfigError, match="a preset needs a name"):
        own.save(title, "", {"batch_size": 2})


@pytest.mark.parametrize("title", ["Style", "style", "画风"])
def test_the_names_that_come_with_the_extension_are_taken_in_every_language(own, title):
    with pytest.raises(ConfigError, match=f"built-in preset is already called {title}"):
        own.save(title, "", {"batch_size": 2})


def test_where_nothing_was_changed_there_is_nothing_to_save(own, data):
    with pytest.raises(ConfigError, match="there is nothing to save"):
        own.save("Mine", "", {"epochs": 10, "trigger_word": "ohwx"})
    assert list((data.root / "presets").iterdir() if (data.root / "presets").is_dir() else []) == []


def test_a_value_that_the_settings_refuse_is_not_saved(own):
    with pytest.raises(ConfigError, match="lora_rank is 0"):
        own.save("Mine", "", {"lora_rank": 0})


def test_a_preset_is_replaced_only_when_asked_to(own):
    own.save("Mine", "", {"batch_size": 2})
    with pytest.raises(Conflict, match="you already have a preset called MINE"):
        own.save("MINE", "", {"batch_size": 3})
    assert own.save("MINE", "", {"batch_size": 3}, replace=True) == "own:Mine.yaml"
    assert [(preset["title"], preset["values"]) for preset in own.listing("en")["presets"]] == [
        ("MINE", {"batch_size": 3})
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"values: {lora_rank: 0}", "lora_rank is 0"),
        (b"values: {base_model: a}", "bad.yaml: base_model cannot be set by a preset"),
        (b"train_data_dir: images\nbase_model: a\n", "bad.yaml is a YAML file, but not a preset"),
        (b"", "bad.yaml is a YAML file, but not a preset"),
        (b"values: [1, 2]", "bad.yaml is a YAML file, but not a preset"),
        (
            b"values: {batch_size: 2}\nfamilies: {sdxl: 7}",
            "bad.yaml is a YAML file, but not a preset",
        ),
        (b"values: {batch_size: 2}\nfamilies: [sdxl]", "bad.yaml is a YAML file, but not a preset"),
        (b"values: {batch_size: 2}\nnotes: why", "bad.yaml is a YAML file, but not a preset"),
        (b"values: {batch_size: 2}\norder: first", "bad.yaml is a YAML file, but not a preset"),
        (b"values: {1: 2, [a]: 3}", "bad.yaml"),
        (b"values: {seed: 2026-02-31}", "bad.yaml holds a value that cannot be used"),
        (b"values: {a: 1\n", "not valid YAML"),
        (b"- a\n- b\n", "is not a list of `key: value` lines"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"[" * 5000, "bad.yaml"),
    ],
    ids=range(15),
)
def test_a_file_that_is_no_preset_is_named_and_hides_no_other(own, data, content, words):
    own.save("Mine", "", {"batch_size": 2})
    (data.root / "presets" / "bad.yaml").write_bytes(content)
    listing = own.listing("en")
    assert [preset["title"] for preset in listing["presets"]] == ["Mine"]
    (problem,) = listing["problems"]
    assert words in problem["message"]
    own.delete("bad.yaml")
    assert own.listing("en")["problems"] == []


def test_a_file_put_there_by_hand_is_offered_as_it_is_and_changes_are_seen(own, data):
    path = data.folder("presets") / "肖像.yaml"
    path.write_text(
        "title: 肖像\nvalues: {lora_rank: 12}\nfamilies: {sdxl: {lora_rank: 24}}\nnotes:"
        " {lora_rank: Faces.}\n",
        encoding="utf-8",
    )
    (shown,) = own.listing("en")["presets"]
    assert (shown["id"], shown["family_values"], shown["notes"]) == (
        "own:肖像.yaml",
        {"sdxl": {"lora_rank": 24}},
        {"lora_rank": "Faces."},
    )
    path.write_text("title: 肖像\nvalues: {lora_rank: 13}\n", encoding="utf-8")
    assert own.listing("en")["presets"][0]["values"] == {"lora_rank": 13}


def test_a_preset_that_another_window_deletes_while_it_is_read_is_no_problem(own, monkeypatch):
    own.save("Ink", "", {"batch_size": 2})

    def late(path):
        path.unlink()
        return read(path)

    monkeypatch.setattr(user_presets, "read", late)
    assert own.listing("en") == {"presets": [], "problems": []}


def test_a_deleted_preset_lies_in_the_trash(own, data):
    for _ in range(2):
        own.save("Mine", "", {"batch_size": 2})
        own.delete("Mine.yaml")
    assert own.listing("en")["presets"] == []
    assert sorted(path.name for path in (data.root / "trash").iterdir()) == [
        "preset-Mine-2.yaml",
        "preset-Mine.yaml",
    ]


@pytest.mark.parametrize(
    "name",
    ["..", "../queue.json", "notes.txt", "folder.yaml", "link.yaml", "gone.yaml", "", "a/b.yaml"],
)
def test_only_a_preset_of_the_folder_can_be_deleted(own, data, name):
    folder = data.folder("presets")
    (data.root / "queue.json").write_text("{}", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "folder.yaml").mkdir()
    (folder / "link.yaml").symlink_to(data.root / "queue.json")
    with pytest.raises(NotFound):
        own.delete(name)
    assert (data.root / "queue.json").is_file() and sorted(
        path.name for path in folder.iterdir()
    ) == ["folder.yaml", "link.yaml", "notes.txt"]
