"""report.html: what stands in it, and that nothing of it runs, loads or names a folder."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from lora_trainer import __main__ as command
from lora_trainer.report import write
from lora_trainer.report.curves import ticks
from lora_trainer.report.elements import joined, tag
from lora_trainer.settings import training
from lora_trainer.verdict import judge, read
from tests.verdict.made_run import HOSTILE, write_run


class Outline(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, content):
        super().__init__()
        self.tags = []
        self.text = []
        self.feed(content)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def count(self, name):
        return sum(found == name for found, _ in self.tags)


def test_the_command_writes_a_report_with_everything_in_it(tmp_path, capsys):
    folder = write_run(tmp_path / "run", prompts=("a fox", HOSTILE))
    assert command.main(["report", str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Step 60 of 100 at strength 0.75 is best.")
    assert "- From step 80 on, previews copy img01 and img03. Train 60 steps" in said
    assert said.rstrip().endswith("report.html")
    assert read(folder) == judge(folder)

    content = (folder.path / "report.html").read_text(encoding="utf-8")
    page = Outline(content)
    text = " ".join(page.text)
    assert "Step 60 of 100 at strength 0.75 is best." in text
    assert "max_train_steps: 60" in text
    # curves: loss under fixed noise, by strength, change, each step
    assert page.count("svg") == 4 and page.count("polyline") == 2 + 2 + 2 + 2
    # two prompts at five steps and two strengths, and five images
    images = [attributes for name, attributes in page.tags if name == "img"]
    assert len(images) == 2 * 5 * 2 + 5
    assert all(one["src"].startswith("data:image/jpeg;base64,/9j/") for one in images)
    assert sum(("class", "chosen") in attributes.items() for _, attributes in page.tags) == 2
    assert "inkstyle, a red disc on green" in text
    assert "torch" in text and "2.9.0" in text and "base.safetensors" in text


def test_names_captions_and_prompts_are_texts_and_no_folder_is_named(tmp_path):
    folder = write_run(tmp_path / "run", caption=HOSTILE, prompts=(HOSTILE,))
    files = {"text_encoders": [tmp_path / "clip_l.safetensors"], "tokenizers": tmp_path / "t5"}
    asked = training.read(folder.config).replace(**files)
    folder.config.write_text(training.to_yaml(asked), encoding="utf-8")
    assert command.main(["report", str(folder.path)]) == 0
    content = (folder.path / "report.html").read_text(encoding="utf-8")
    page = Outline(content)
    assert {"script", "a", "link", "iframe"} & {name for name, _ in page.tags} == set()
    assert HOSTILE in " ".join(page.text) and "<script" not in content
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg)", content)
    assert str(tmp_path) not in content and "clip_l.safetensors" in content
    policies = [attributes.get("content") for name, attributes in page.tags if name == "meta"]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policies


def test_a_report_stands_without_the_images_and_without_a_verdict(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert command.main(["report", str(folder.path)]) == 0
    assert "Without the images" in capsys.readouterr().err
    content = write(folder, (), None).read_text(encoding="utf-8")
    assert "Nothing was saved, so there is nothing to evaluate." in content


def test_texts_are_escaped_where_they_enter():
    assert tag("p", "<b>", tag("i", "&"), title='"') == (
        '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert joined(["a<", [1, None]]) == "a&lt;1"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0.11, 0.12, [0.11, 0.112, 0.114, 0.116, 0.118, 0.12])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)
