"""The form shows every setting that is not decided elsewhere, with the config's own bounds and
help, under a human name.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from lora_trainer.environment import ROOT
from lora_trainer.settings import training
from lora_trainer.webui.common import form

ALL_KEYS = {item.name for _, group in training.GROUPS for item in dataclasses.fields(group)}


def fields(language="en"):
    return {
        field["key"]: field for group in form.form(language)["groups"] for field in group["fields"]
    }


def test_every_setting_is_a_field_or_decided_elsewhere():
    assert set(fields()) | set(form.CHOSEN_ELSEWHERE) == ALL_KEYS
    assert not set(fields()) & set(form.CHOSEN_ELSEWHERE)


def test_several_cards_are_a_choice_only_where_there_are_several():
    (field,) = (
        field
        for group in form.form("en", cards=2)["groups"]
        for field in group["fields"]
        if field["key"] == "devices"
    )
    assert [(one["value"], one["label"]) for one in field["choices"]] == [
        ("auto", "one card"),
        ("all", "all of this machine"),
    ]
    alone = {
        field["key"] for group in form.form("en", cards=1)["groups"] for field in group["fields"]
    }
    assert set(fields()) - alone == {"devices"}


def test_every_field_has_a_human_name_of_its_own_and_a_help_text():
    shown = fields()
    assert len({field["label"] for field in shown.values()}) == len(shown)
    for key, field in shown.items():
        assert "_" not in field["label"] and field["label"][0].isupper(), key
        own = training.documentation()[key]
        assert field["help"].split()[:2] == own.split()[:2] or "\u201c" in field["help"]


def test_no_help_speaks_of_files_and_keys_that_are_not_in_the_tab():
    words = (
        "epochs says",
        "resolution x resolution",
        "matrices",
        "frozen",
        "adamw8bit",
        "euler_a",
        "[",
        "stop:",
        "arXiv",
    )
    assert [
        (key, word) for key, field in fields().items() for word in words if word in field["help"]
    ] == []


def test_a_chinese_help_calls_auto_what_its_field_shows():
    speaking = [
        field["help"]
        for field in fields("zh_CN").values()
        if field["optional"] or "auto" in [choice["value"] for choice in field["choices"]]
    ]
    assert [text for text in speaking if "auto" in text] == [] and any(
        "自动：" in text for text in speaking
    )


@pytest.mark.parametrize(
    ("looked_for", "key"),
    [
        ("max grad norm", "max_grad_norm"),
        ("gradient clipping", "max_grad_norm"),
        ("gradient accumulation", "gradient_accumulation_steps"),
        ("network dim", "lora_rank"),
        ("network_alpha", "lora_alpha"),
        ("clip skip", "clip_skip"),
        ("noise offset", "noise_offset"),
        ("bucket reso steps", "bucket_step"),
        ("flip aug", "flip_augmentation"),
        ("train batch size", "batch_size"),
        ("unet lr", "learning_rate"),
        ("te lr", "text_encoder_lr"),
        ("v parameterization", "prediction_type"),
        ("ztsnr", "zero_terminal_snr"),
        ("save every n epochs", "save_epochs"),
        ("max train epochs", "epochs"),
        ("min snr gamma", "min_snr_gamma"),
        ("cache latents to disk", "cache_latents"),
        ("network train unet only", "train_text_encoder"),
        ("keep tokens", "keep_tokens"),
        ("arb", "enable_bucket"),
        ("xyz", ""),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh_CN"])
def test_a_setting_is_found_by_the_names_that_other_trainers_give_it(language, looked_for, key):
    words = looked_for.replace("_", " ").split()
    found = {
        name
        for name, field in fields(language).items()
        if all(word in f"{field['label']} {field['terms']}".lower() for word in words)
    }
    assert key in found if key else not found


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("max_grad_norm", "Max grad norm"),
        ("bucket_step", "Bucket step"),
        ("gradient_accumulation_steps", "Gradient accumulation"),
        ("cache_latents", "Cache latents"),
        ("epochs", "Epochs"),
    ],
)
def test_a_setting_has_the_name_that_the_field_gives_it(key, label):
    assert fields()[key]["label"] == label
    assert (fields("zh_CN")["lora_rank"]["label"], fields("zh_CN")["epochs"]["label"]) == (
        "Rank (维度)",
        "轮数",
    )


def test_a_beginner_sees_few_fields():
    groups = form.form("en")["groups"]
    assert [group["id"] for group in groups] == [
        "plain",
        "dataset",
        "checkpoint",
        "lora",
        "training",
        "validation",
        "samples",
        "language",
        "output",
        "credits",
    ]
    assert [field["key"] for field in groups[0]["fields"]] == list(form.PLAIN)
    assert [group["advanced"] for group in groups] == [False] + 9 * [True]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_rank", "auto_integer"),
        ("resolution", "auto_integer"),
        ("learning_rate", "auto_number"),
        ("lora_alpha", "auto_number"),
        ("enable_bucket", "flag"),
        ("zero_terminal_snr", "auto_flag"),
        ("trigger_word", "text"),
        ("sample_prompts", "lines"),
        ("target_modules", "list"),
        ("sample_strengths", "number_list"),
        ("optimizer", "choice"),
        ("max_token_length", "choice"),
    ],
)
def test_a_field_is_entered_as_its_type_asks(key, kind):
    assert fields()[key]["type"] == kind


def test_bounds_and_defaults_are_the_configs_own():
    size = fields()["batch_size"]
    assert (size["minimum"], size["maximum"], size["default"], size["step"]) == (1, 256, 1, 1)
    assert fields()["resolution"]["default"] is None
    assert fields()["sample_strengths"]["default"] == [1.0]
    assert fields()["lora_alpha"]["above"] == 0


def test_every_default_is_accepted_back():
    values = {key: field["default"] for key, field in fields().items()}
    asked = training.from_mapping(
        {**values, "train_data_dir": "a", "base_model": "b", "output_dir": "c"}
    )
    assert asked == training.from_mapping(
        {"train_data_dir": "a", "base_model": "b", "output_dir": "c"}
    )


def test_every_choice_has_words():
    for field in fields().values():
        assert [bool(choice["label"]) for choice in field["choices"]] == [True] * len(
            field["choices"]
        )
    assert {choice["value"]: choice["label"] for choice in fields()["mixed_precision"]["choices"]}[
        "no"
    ] == "float32"


@pytest.mark.parametrize("language", ["en", "zh_CN"])
def test_a_help_names_other_fields_as_the_form_does(language):
    helps = {key: field["help"] for key, field in fields(language).items()}
    keys = [key for key in form.LABELS if "_" in key]
    assert [
        (key, text)
        for key, text in helps.items()
        if any(other in text.replace("(", " ").split() for other in keys)
    ] == []
    assert (
        f"\u201c{fields(language)['train_text_encoder']['label']}\u201d"
        in helps["text_encoder_targets"]
    )


def test_an_update_of_the_files_under_a_running_webui_takes_no_help_away() -> None:
    code = (
        "import inspect, os, sys\n"
        "sys.path[:] = sys.argv[1:]\n"
        "from pathlib import Path\n"
        "from lora_trainer.webui.captions import caption_runs\n"
        "from lora_trainer.webui.common import form\n"
        "inspect.getsource = lambda part: 'class Updated: ...'\n"
        "assert all(field['help'] for group in form.form('en')['groups'] for field in group['fields'])\n"
        "caption_runs.offers(Path('models'), os.environ, 'en')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT), *sys.path], cwd=ROOT, check=True)
