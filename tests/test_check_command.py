"""The commands `check` and `crop`, as they are typed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from PIL import Image

from lora_trainer.__main__ import main
from lora_trainer.dataset import embeddings
from lora_trainer.dataset.check import measure
from lora_trainer.dataset.images import digest
from tests.benchmark.check_quality import dead_leaves
from tests.made import tiny_checkpoint


@pytest.fixture(scope="module")
def scenes():
    return [dead_leaves(random.Random(seed), 128) for seed in range(5)]


@pytest.fixture
def folder(tmp_path, scenes):
    folder = tmp_path / "my 图片"
    folder.mkdir()
    for number, scene in enumerate(scenes):
        scene.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zorbl, scene {number}", encoding="utf-8")
    return folder


def test_a_good_dataset_passes(folder, capsys):
    assert main(["check", str(folder), "--resolution", "128", "--trigger", "zorbl"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Images checked: 5. No problems found",
        (
            'Trigger word: "zorbl" is a made-up word of 2 tokens: zor + bl. It can take a new '
            "meaning, but its parts may bring some of their own: try it in a prompt before "
            "training."
        ),
    ]


def test_a_second_check_measures_nothing_again(folder, capsys, monkeypatch):
    assert main(["check", str(folder), "--resolution", "128"]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(measure, "measure", None)
    assert main(["check", str(folder), "--resolution", "128"]) == 0
    assert capsys.readouterr().out == first
    assert sorted(path.suffix for path in folder.iterdir()) == ["", *[".png"] * 5, *[".txt"] * 5]


def test_warnings_pass_and_errors_do_not(folder, scenes, tmp_path, capsys):
    Image.new("RGB", (128, 128), "grey").save(folder / "0.png")
    assert main(["check", str(folder), "--resolution", "128"]) == 0
    assert "0.png has little contrast" in capsys.readouterr().out
    (folder / "1.txt").write_text("cat " * 80, encoding="utf-8")
    assert (
        main(["check", str(folder), "--resolution", "128", "--json", str(tmp_path / "r.json")]) == 1
    )
    assert (
        "1.png: the caption has 80 tokens, 5 more than max_token_length 75"
        in capsys.readouterr().out
    )
    kinds = [
        each["kind"]
        for each in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["findings"]
    ]
    assert sorted(kinds) == ["long-caption", "low-contrast"]
    assert main(["check", str(folder), "--resolution", "128", "--tokens", "150"]) == 0


def test_the_checkpoint_tells_the_resolution(folder, capsys):
    # the tiny checkpoint says that its images are 64 pixels wide: nothing has to grow
    assert main(["check", str(folder), "--checkpoint", str(tiny_checkpoint("sd1"))]) == 0
    assert "No problems found" in capsys.readouterr().out


def test_the_vocabulary_beside_the_images_is_kept_to(folder, capsys):
    (folder / "vocabulary.yaml").write_text("opening: drawn leaves\n", encoding="utf-8")
    assert main(["check", str(folder), "--resolution", "128", "--trigger", "zorbl"]) == 0
    assert '0.png: the caption does not begin with "drawn leaves"' in capsys.readouterr().out


def test_what_a_captioner_saw_tells_how_much_variety_there_is(folder, capsys):
    rows = {
        digest(path): (np.full(4, 0.5) + np.eye(4)[number % 4] * 0.01).astype(np.float16)
        for number, path in enumerate(folder.glob("*.png"))
    }
    embeddings.add(
        folder,
        embeddings.Embedded(encoder="CLIP of a test", title="CLIP", unrelated=0.4, by_digest=rows),
    )
    assert main(["check", str(folder), "--resolution", "128"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Images checked: 5. Things to look at: 1",
        "- for CLIP the images are very similar: they differ 0 % as much as unrelated images do",
        (
            "  If they show one angle or one distance, add others, or other backgrounds and light;"
            " what all images share becomes part of the LoRA."
        ),
    ]


def test_twenty_pictures_with_one_fault_are_one_thing(folder, scenes, capsys):
    for number in range(5):
        (folder / f"{number}.txt").write_text("a scene", encoding="utf-8")
        framed = Image.new("RGB", (192, 192), "white")
        framed.paste(scenes[number], (32, 32))
        framed.save(folder / f"{number}.png")
    assert main(["check", str(folder), "--resolution", "128", "--trigger", "zorbl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Images checked: 5. Things to look at: 2, in 5 files"
    assert [line for line in lines if line.startswith("- ")] == [
        '- 5 images have the same caption, "a scene"',
        "- 5 images have a wide border of one colour",
    ]
    assert "zorbl" not in "".join(lines[:-1])


def test_a_resolution_of_nothing_is_refused(folder, capsys):
    assert main(["check", str(folder), "--resolution", "0"]) == 1
    assert "resolution is 0, but must be between 64 and 4096" in capsys.readouterr().err


def test_a_folder_that_is_not_there_gets_a_sentence(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_crop_writes_copies_once(folder, tmp_path, capsys):
    call = [
        "crop",
        "--input",
        str(folder),
        "--output",
        str(tmp_path / "out"),
        "--size",
        "64",
        "--subject",
    ]
    assert main(call) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Images written to {tmp_path / 'out'}: 5"
    assert Image.open(tmp_path / "out" / "3.png").size == (64, 64)
    assert (tmp_path / "out" / "3.txt").read_text(encoding="utf-8") == "zorbl, scene 3\n"
    assert main(call) == 1
    assert "exists already (10 such files in all)" in capsys.readouterr().err
