"""What is set for a dataset lies with it: no other gets its trigger word, every browser sees the
same, and nobody's change is lost.
"""

from __future__ import annotations

import math

import pytest

from lora_trainer.errors import DatasetError
from lora_trainer.webui.captions.cropped_copies import Copies
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets import settings_draft
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http.routing import Conflict
from tests.dataset.pictures import save

VALUES = {
    "preset": "style",
    "checkpoint": "practice",
    "name": "fox",
    "changes": {"trigger_word": "zrb"},
    "captioner": {"captioner": "blip", "options": {}},
}


@pytest.fixture
def datasets(tmp_path):
    return Datasets(DataFolder(tmp_path / "data"), lambda: False)


def test_a_draft_belongs_to_its_dataset_and_is_on_its_card(datasets):
    fox, owl = datasets.create("fox"), datasets.create("owl")
    written = datasets.set_draft(fox.id, VALUES, "")
    assert datasets.draft(fox.id) == written and written.values == VALUES
    assert datasets.draft(owl.id).values == {} and datasets.draft(owl.id).revision == ""
    cards = {card["id"]: card["draft"] for card in datasets.listing("en")}
    assert cards["fox"] == written.to_json() and cards["owl"]["values"] == {}
    # it is no image and no caption
    assert datasets.store(fox.id).view().items == ()
    assert datasets.draft(datasets.open(str(fox.path)).id).values == VALUES


def test_who_has_not_seen_the_newest_gets_it_instead_of_overwriting_it(datasets):
    fox = datasets.create("fox")
    first = datasets.set_draft(fox.id, VALUES, "")
    second = datasets.set_draft(fox.id, {**VALUES, "name": "vixen"}, first.revision)
    with pytest.raises(Conflict) as caught:
        datasets.set_draft(fox.id, {**VALUES, "name": "late"}, first.revision)
    assert (
        caught.value.current == second.to_json()
        and datasets.draft(fox.id).values["name"] == "vixen"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"values": 3}',
        '{"values": {"changes": 1, "preset": 7}}',
        '{"values": {"changes": {"lora_rank": NaN}}}',
        "[" * 5000,
        "\udc80",
    ],
)
def test_a_draft_that_cannot_be_read_is_none(tmp_path, content):
    path = settings_draft.path_of(tmp_path)
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    assert settings_draft.read(tmp_path).values in ({}, {"changes": {}, "captioner": {}})


def test_only_settings_of_the_form_are_kept_and_only_so_many(tmp_path):
    kept = settings_draft.write(
        tmp_path, {"changes": {"lora_rank": 8, "output_dir": "/"}, "other": 1, "name": 3}, ""
    )
    assert kept.values == {"changes": {"lora_rank": 8}, "captioner": {}}
    with pytest.raises(DatasetError, match="too long to be saved: more than 65536 bytes"):
        settings_draft.write(
            tmp_path, {"changes": {"sample_prompts": ["x" * 70_000]}}, kept.revision
        )
    with pytest.raises(DatasetError, match="not finite"):
        settings_draft.write(tmp_path, {"changes": {"lora_rank": math.inf}}, kept.revision)
    assert settings_draft.read(tmp_path) == kept


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / ".lora_trainer").write_text("in the way")
    with pytest.raises(DatasetError, match="cannot be saved in its folder"):
        settings_draft.write(tmp_path, VALUES, "")


def test_a_cropped_copy_has_the_same_trigger_word(datasets):
    fox = datasets.create("fox")
    save(fox.path / "a.png", size=(80, 60))
    datasets.set_draft(fox.id, VALUES, "")
    copies = Copies(datasets)
    copy = copies.start(fox.path, "fox cropped", ["a.png"], size=64, buckets=False, subject=False)
    inherited = datasets.draft("fox cropped").values
    assert inherited["changes"] == {"trigger_word": "zrb"} and inherited["name"] == ""
    while copy.state == "running":
        pass
