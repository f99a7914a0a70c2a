"""Texts are edited in their files; each change can be undone, and nobody else's is overwritten."""

import json
import threading

import pytest

from lora_trainer.language import text_files
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http.routing import Conflict
from lora_trainer.webui.pairs.workbench import TextBenches

PAIRS = [{"question": f"What is {n}?", "answer": f"It is {n}.", "id": n} for n in range(4)]


@pytest.fixture
def datasets(tmp_path):
    return Datasets(DataFolder(tmp_path / "data"), lambda: False)


@pytest.fixture
def bench(datasets):
    made = datasets.create("station", "texts")
    text = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    (made.path / "pairs.jsonl").write_text(text, encoding="utf-8")
    return TextBenches(datasets).of("station")


def pairs(bench):
    lines = (bench.root / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def keys(bench):
    return [item.key for item in bench.store.view().items]


def test_a_dataset_of_texts_stands_beside_those_of_images(datasets, tmp_path):
    assert datasets.create("station", "texts").kind == "texts"
    assert datasets.create("fox").kind == "images"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rules.md").write_text("# Rules\n")
    assert datasets.open(str(tmp_path / "mine")).kind == "texts"
    cards = {card["name"]: (card["kind"], card["count"]) for card in datasets.listing("en")}
    assert cards == {"station": ("texts", 0), "fox": ("images", 0), "mine": ("texts", 1)}
    with pytest.raises(NotFound):
        datasets.texts("fox")


def test_a_file_that_goes_while_its_dataset_is_listed_is_no_problem(datasets, bench, monkeypatch):
    view = bench.store.view()
    (bench.root / "pairs.jsonl").unlink()
    monkeypatch.setattr(bench.store, "view", lambda: view)
    (card,) = datasets.listing("en")
    assert (card["count"], card["problem"]) == (4, None)


def test_a_file_is_not_removed_between_listing_and_reading_it(bench, monkeypatch):
    removing = threading.Thread(target=bench.remove_file, args=("pairs.jsonl",))
    list_files = text_files.list_files

    def then_removed(folder):
        found = list_files(folder)
        if removing.ident is None:
            removing.start()
            removing.join(0.3)
        return found

    monkeypatch.setattr(text_files, "list_files", then_removed)
    view = bench.store.view()
    assert (len(view.items), view.findings) == (4, ())
    removing.join()
    assert bench.store.view().items == ()


def test_a_saved_text_keeps_what_is_not_edited_and_can_be_undone(bench):
    item = bench.save(keys(bench)[1], ["What is 1?", "One."])
    assert [field.text for field in item.fields] == ["What is 1?", "One."]
    assert pairs(bench)[1] == {"question": "What is 1?", "answer": "One.", "id": 1}
    assert bench.undo().changed == 1 and pairs(bench) == PAIRS
    assert bench.redo().changed == 1 and pairs(bench)[1]["answer"] == "One."


def test_an_edit_is_undone_where_its_text_has_moved_to_and_others_edits_stay(bench):
    bench.save(keys(bench)[2], ["What is 2?", "Two."])
    path = bench.root / "pairs.jsonl"
    theirs = '{"question": "New?", "answer": "Theirs."}\n'
    path.write_text(theirs + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert bench.undo().conflicts == ()
    assert pairs(bench) == [json.loads(theirs), *PAIRS]


def test_a_text_that_somebody_else_has_changed_is_left_alone(bench):
    key = keys(bench)[0]
    path = bench.root / "pairs.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("It is 0.", "Theirs."))
    with pytest.raises(Conflict):
        bench.save(key, ["What is 0?", "Mine."])
    bench.save(keys(bench)[1], ["What is 1?", "One."])
    path.write_text(path.read_text(encoding="utf-8").replace("One.", "Theirs."))
    outcome = bench.undo()
    assert (outcome.changed, len(outcome.conflicts)) == (0, 1)
    assert [pair["answer"] for pair in pairs(bench)[:2]] == ["Theirs.", "Theirs."]


def test_removed_texts_come_back_in_their_places(bench):
    every = keys(bench)
    outcome = bench.remove([every[3], every[1], "unknown"])
    assert outcome.changed == 2 and len(outcome.conflicts) == 1
    assert pairs(bench) == [PAIRS[0], PAIRS[2]]
    bench.undo()
    assert pairs(bench) == PAIRS
    bench.remove_file("pairs.jsonl")
    assert bench.store.view().items == ()
    bench.undo()
    assert pairs(bench) == PAIRS


def test_a_new_pair_has_the_form_of_the_others(bench):
    item, edit = bench.add("Who?", "Ann.")
    assert pairs(bench)[4] == {"question": "Who?", "answer": "Ann."} and item.number == 4
    # another one was added meanwhile
    bench.add("Where?", "Here.")
    bench.undo(edit)
    assert [one["question"] for one in pairs(bench)[4:]] == ["Where?"]
    (bench.root / "pairs.jsonl").unlink()
    (bench.root / "rules.md").write_text("# Rules\n")
    item, edit = bench.add("Who?", "Ann.")
    assert item.file == "pairs.jsonl"
    bench.undo(edit)
    assert not (bench.root / "pairs.jsonl").exists()
    rules = bench.store.view().items[0]
    bench.save(rules.key, ["# Other rules"])
    bench.undo()
    assert (bench.root / "rules.md").read_text() == "# Rules\n"
