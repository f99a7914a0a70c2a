from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

import pytest

from lora_trainer.webui.http.path_redaction import redact

FOLDERS = {
    Path("/home/ann"): "~",
    Path("/home/ann/webui/models/Lora"): "Lora",
    Path("/srv/我的 data"): "data",
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/ann/webui/models/Lora/fox.safetensors", "Lora/fox.safetensors"),
        ("/home/ann/webui/log.txt is full", "~/webui/log.txt is full"),
        (
            "train_data_dir: /srv/我的 data/datasets/fox\nbase_model: '/home/ann'",
            "train_data_dir: data/datasets/fox\nbase_model: '~'",
        ),
        ("/home/anna/x, /home/ann-2, /srv/home/ann", "/home/anna/x, /home/ann-2, /srv/home/ann"),
        ("a caption, 1/2 of /home", "a caption, 1/2 of /home"),
    ],
)
def test_folders_are_named_without_what_lies_above(text, told):
    assert redact(text, FOLDERS) == told


@pytest.mark.parametrize(
    "text",
    [
        r"C:\Users\Ann\webui\run",
        r"C:\\Users\\Ann\\webui\\run",
        "C:/Users/Ann/webui/run",
        r"c:\users\ann\webui\run",
    ],
)
def test_windows_paths_in_each_of_their_spellings(text):
    told = redact(text, {PureWindowsPath(r"C:\Users\Ann\webui"): "webui"})
    assert re.fullmatch(r"webui(/|\\{1,2})run", told)


def test_everything_in_an_answer_is_looked_at():
    answer = {
        "log": ["/home/ann/a", 3, None],
        "deep": {"list": [("/home/ann/b",)]},
        "loss": 0.5,
        "on": True,
    }
    assert redact(answer, FOLDERS) == {
        "log": ["~/a", 3, None],
        "deep": {"list": [["~/b"]]},
        "loss": 0.5,
        "on": True,
    }


def test_a_root_is_no_folder_to_hide():
    assert redact("/a and/b", {Path("/"): "root"}) == "/a and/b"
    assert redact("/a", {}) == "/a"
