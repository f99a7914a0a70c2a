from __future__ import annotations

import pytest

from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui.common.data_folder import DataFolder, NotFound

SNEAKY = [
    "",
    ".",
    "..",
    "../runs",
    "..\\runs",
    "/etc",
    "/etc/passwd",
    "C:",
    "C:\\Windows",
    "C:/Windows",
    "\\\\server\\share",
    "//server/share",
    "a/b",
    "a\\b",
    "a\0b",
    "\0",
    " fox",
    "fox ",
    ".hidden",
    "fox.",
    "...",
    "%2e%2e",
    "..%2f..",
    "fox\n",
    "fox\t1",
    "CON",
    "nul.txt",
    "com1",
    "a:b",
    "a|b",
    "a?b",
    "a*b",
    "<fox>",
    'fo"x',
    "fo'x",
    "x" * 300,
    "\u202efox",
    "~root/x",
    "fox/../../etc",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("name", SNEAKY, ids=ascii)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    data = DataFolder(tmp_path / "data")
    (tmp_path / "runs").mkdir()
    with pytest.raises(NotFound):
        data.child("datasets", name)


def test_a_link_that_leads_out_is_not_there(tmp_path):
    data = DataFolder(tmp_path / "data")
    (tmp_path / "outside").mkdir()
    try:
        (data.folder("datasets") / "fox").symlink_to(tmp_path / "outside", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links for this user")
    with pytest.raises(NotFound):
        data.child("datasets", "fox")


def test_a_folder_is_found_under_either_spelling_of_an_accent(tmp_path):
    data = DataFolder(tmp_path)
    data.new("datasets", "cafe\u0301").mkdir()
    assert data.child("datasets", "caf\u00e9").is_dir()


@pytest.mark.parametrize("name", ["a<b", "a>b", "a:b", "a,b", "a=b", "NUL", "..", ""])
def test_a_name_that_cannot_be_is_refused_with_a_sentence(tmp_path, name):
    with pytest.raises(LoraTrainerError, match="the name"):
        DataFolder(tmp_path).new("runs", name)


def test_names_in_any_script_are_kept(tmp_path):
    assert DataFolder(tmp_path).new("runs", "水墨 风格").name == "水墨 风格"


def test_a_data_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "data").write_text("a file is in the way")
    with pytest.raises(LoraTrainerError, match="the data folder .*data cannot be written"):
        DataFolder(tmp_path / "data").folder("runs")
