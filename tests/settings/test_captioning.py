from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer import __main__ as command_line
from lora_trainer.captioning import captioners
from lora_trainer.captioning.captioner import SentenceSettings
from lora_trainer.errors import ConfigError
from lora_trainer.settings import captioning, schema
from lora_trainer.settings.captioning import fingerprint, from_mapping

ROOT = Path(__file__).resolve().parent.parent.parent
ASKED = {
    "input": "pictures",
    "captioner": "wd",
    "threshold": "0.4",
    "exclude": "solo, 1girl",
    "top_k": 12,
    "output": "auto",
}


def test_settings_survive_their_yaml(tmp_path):
    settings = from_mapping(ASKED, base=tmp_path)
    (tmp_path / "caption.yaml").write_text(captioning.to_yaml(settings), encoding="utf-8")
    assert captioning.read(tmp_path / "caption.yaml") == settings
    assert (settings.input, settings.own.threshold, settings.own.exclude, settings.output) == (
        tmp_path / "pictures",
        0.4,
        ("solo", "1girl"),
        None,
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"captioner": "blib"},
            "captioner is 'blib', but must be one of: blip-large, blip, qwen, clip, wd",
        ),
        ({"threshold": 1.5}, "threshold is 1.5, but must be between 0 and 1"),
        (
            {"only_missing": True, "overwrite": True},
            "only_missing and overwrite contradict each other",
        ),
        ({"format": "txt", "output": "captions.csv"}, "format is txt, but output is"),
        ({"output": "captions.xlsx"}, "does not end in .csv or .tsv or .jsonl or .ndjson"),
        ({"format": "jsonl", "output": "metadata.csv"}, "does not end in .jsonl or .ndjson"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"captionr": "wd"}, "captionr is not a setting"),
    ],
)
def test_what_is_wrong_gets_a_sentence(change, sentence, tmp_path):
    with pytest.raises(ConfigError) as caught:
        from_mapping({"input": "pictures", **change}, base=tmp_path)
    assert sentence in str(caught.value)


def test_a_wrong_value_is_told_once_also_where_two_captioners_have_the_setting():
    with pytest.raises(ConfigError) as caught:
        from_mapping({"input": "x", "captioner": "blip", "max_tokens": 1})
    assert len(caught.value.problems) == 1


def test_the_input_is_required():
    with pytest.raises(ConfigError, match="input is missing"):
        from_mapping({})


def test_every_setting_and_captioner_says_what_it_is():
    for _, group in captioning.option_groups():
        keys = {item.name for item in schema.fields_of(group)}
        assert keys <= set(schema.documentation_of(group))
        assert all(schema.about(item).label for item in schema.fields_of(group))
    for info in captioners.every().values():
        info.settings()
        assert (
            info.sentence.endswith(".")
            and info.download_bytes > 1e8
            and info.memory_bytes > 1e8
            and "/" in info.model
        )


def test_a_file_of_an_earlier_version_holds_every_captioners_settings_and_still_runs():
    settings = from_mapping(
        {
            "input": "pictures",
            "captioner": "blip",
            "max_tokens": 30,
            "threshold": "auto",
            "character_threshold": 0.85,
            "exclude": [],
            "vocabulary": "auto",
            "top_k": "auto",
            "instruction": "",
        }
    )
    assert settings.own == SentenceSettings(max_tokens=30)
    assert "threshold" not in captioning.to_yaml(settings)


@pytest.mark.parametrize(
    ("captioner", "own", "before"),
    [
        ("blip-large", {}, "blip-large d37b5fd696e4"),
        ("blip", {"max_tokens": 30}, "blip 1c2fcc7d28e0"),
        ("qwen", {"instruction": "say"}, "qwen 8e07e1334f3a"),
        ("clip", {"top_k": 3, "threshold": 0.3}, "clip 568342c4d886"),
        ("wd", {"exclude": ["solo"]}, "wd 649a68275c69"),
    ],
)
def test_what_an_earlier_version_captioned_is_not_captioned_again(captioner, own, before):
    settings = from_mapping({"input": "x", "captioner": captioner, "trigger": "zorb", **own})
    assert fingerprint(settings, "fox" if captioner == "clip" else "") == before


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"threshold": 0.5}, False),
        ({"prefix": "ink"}, False),
        ({"model": "me/other"}, False),
        ({"captioner": "clip"}, False),
        ({"device": "cpu"}, True),
        ({"batch_size": 3}, True),
        ({"overwrite": True}, True),
        ({"instruction": "say"}, True),
        ({"output": "a.csv"}, True),
    ],
)
def test_the_fingerprint_changes_with_what_changes_the_captions(change, same):
    before = from_mapping(ASKED)
    assert (fingerprint(before) == fingerprint(from_mapping({**ASKED, **change}))) is same


def test_another_vocabulary_is_another_fingerprint():
    settings = from_mapping({"input": "pictures", "captioner": "clip"})
    assert fingerprint(settings, "fox") != fingerprint(settings, "snow")


def test_the_tab_may_import_it_without_torch():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lora_trainer.captioning import captioners;"
        " captioners.every();"
        " sys.exit(bool({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], check=False).returncode == 0


def test_each_option_of_the_command_is_a_setting():
    asked = command_line.make_parser().parse_args(
        [
            "caption",
            "--input",
            "x",
            "--top-k",
            "3",
            "--only-missing",
            "--character-threshold",
            "0.9",
        ]
    )
    given = {key for key in vars(asked) if key not in ("command", "needs_packages")}
    assert given == {"input", "top_k", "only_missing", "character_threshold"}
    parser = command_line.make_parser()._subparsers._group_actions[0].choices["caption"]
    parser.complete()
    fields = {
        item.name for _, group in captioning.option_groups() for item in schema.fields_of(group)
    }
    assert {action.dest for action in parser._actions} - {"help"} == fields
