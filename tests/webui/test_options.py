"""The section on the host's Settings page is built from the host's own OptionInfo, and whatever is
stored there becomes a usable value.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lora_trainer.hosts.a1111 import A1111
from lora_trainer.webui import options, texts
from lora_trainer.webui.options import Options


class OptionInfo:
    """With the host's own signature (modules/options.py of A1111 v1.10.1)."""

    def __init__(
        self,
        default=None,
        label="",
        component=None,
        component_args=None,
        onchange=None,
        section=None,
        refresh=None,
        comment_before="",
        comment_after="",
    ):
        (
            self.default,
            self.label,
            self.component,
            self.component_args,
            self.section,
            self.comment_after,
        ) = (default, label, component, component_args, section, comment_after)

    def info(self, info):
        self.comment_after += f"<span class='info'>({info})</span>"
        return self


@pytest.fixture
def host(monkeypatch):
    """A host whose Settings page can be looked at, and whose options can be set."""
    added = {}
    shared = ModuleType("modules.shared")
    shared.OptionInfo = OptionInfo
    shared.opts = SimpleNamespace(add_option=added.__setitem__)
    shared.cmd_opts = SimpleNamespace()
    gradio = ModuleType("gradio")
    gradio.Dropdown, gradio.Number = type("Dropdown", (), {}), type("Number", (), {})
    paths = ModuleType("modules.paths_internal")
    paths.data_path, paths.models_path = "/webui", "/webui/models"
    for name, module in {
        "modules": ModuleType("modules"),
        "modules.shared": shared,
        "gradio": gradio,
        "modules.paths_internal": paths,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    made = A1111()
    made.added, made.shared = added, shared
    return made


def test_the_section_has_few_options_each_with_help(host):
    options.add(host)
    assert list(host.added) == list(options.LABELS) and len(host.added) == 7
    for key, made in host.added.items():
        assert made.section == ("lora_trainer", "LoRA Trainer")
        assert made.label == options.LABELS[key] and options.HELP[key] in made.comment_after


def test_the_section_speaks_the_hosts_language(host, monkeypatch):
    # whichever language pack it is: the host itself would know our sentences only from a table that
    # it merges into all of its pages
    monkeypatch.setattr(host, "language", lambda: "zh-Hans (Stable)")
    options.add(host)
    made = host.added[options.RUNS_TO_KEEP]
    known = texts.table("zh_CN")
    assert made.label == known["Finished runs to keep"] != "Finished runs to keep"
    assert (
        made.comment_after
        == f"<span class='info'>({known[options.HELP[options.RUNS_TO_KEEP]]})</span>"
    )


def test_each_option_gets_the_widget_its_kind_needs(host):
    options.add(host)
    widgets = {
        key: made.component.__name__ if made.component else None for key, made in host.added.items()
    }
    # None: the host itself draws a box for a text and a tick for a yes or no
    assert widgets == {
        "lora_trainer_data_folder": None,
        "lora_trainer_runs_to_keep": "Number",
        "lora_trainer_hf_mirror": None,
        "lora_trainer_keep_training": None,
        "lora_trainer_pause_for_pictures": None,
        "lora_trainer_preset": "Dropdown",
        "lora_trainer_host_names": None,
    }
    assert host.added["lora_trainer_preset"].component_args == {
        "choices": ["style", "character", "product", "scene", "low_memory", "quick_test"]
    }


def test_before_anything_is_stored_the_defaults_hold(host):
    assert Options.of(host) == Options(
        runs_to_keep=0, hf_mirror="", keep_training=True, pause_for_pictures=True, preset="style"
    )


@pytest.mark.parametrize(
    ("key", "stored", "field", "value"),
    [
        ("lora_trainer_runs_to_keep", 12.0, "runs_to_keep", 12),
        ("lora_trainer_runs_to_keep", -3, "runs_to_keep", 0),
        ("lora_trainer_runs_to_keep", "many", "runs_to_keep", 0),
        ("lora_trainer_runs_to_keep", float("inf"), "runs_to_keep", 0),
        (
            "lora_trainer_hf_mirror",
            " https://hf-mirror.com/ ",
            "hf_mirror",
            "https://hf-mirror.com",
        ),
        ("lora_trainer_hf_mirror", "hf-mirror.com", "hf_mirror", ""),
        ("lora_trainer_hf_mirror", "https://[broken", "hf_mirror", ""),
        ("lora_trainer_keep_training", False, "keep_training", False),
        ("lora_trainer_preset", "gone", "preset", "style"),
        ("lora_trainer_preset", "character", "preset", "character"),
    ],
)
def test_what_is_stored_becomes_a_usable_value(host, key, stored, field, value):
    setattr(host.shared.opts, key, stored)
    assert getattr(Options.of(host), field) == value


def test_a_mirror_reaches_the_worker_as_the_variable_the_libraries_read(host):
    assert Options.of(host).environ == {}
    host.shared.opts.lora_trainer_hf_mirror = "https://hf-mirror.com"
    assert Options.of(host).environ == {"HF_ENDPOINT": "https://hf-mirror.com"}


def test_the_flag_for_the_data_folder_goes_before_the_setting(host, tmp_path):
    assert host.data_folder().parts[-2:] == ("webui", "lora-trainer")
    host.shared.opts.lora_trainer_data_folder = str(tmp_path / "chosen")
    assert host.data_folder() == tmp_path / "chosen"
    host.shared.cmd_opts.lora_trainer_data_dir = str(tmp_path / "flag")
    assert host.data_folder() == tmp_path / "flag"
