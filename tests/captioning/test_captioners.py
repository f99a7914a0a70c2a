"""A captioner is one file: it is found, listed, an option of the command line, and runs."""

from __future__ import annotations

import signal
import sys

import pytest
from PIL import Image

from lora_trainer import __main__ as command_line
from lora_trainer.captioning import captioners
from lora_trainer.runs import folder as folders
from lora_trainer.settings import captioning
from lora_trainer.webui.captions.caption_runs import offers
from lora_trainer.worker import job

TOY = '''
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_trainer.captioning.captioner import CaptionerInfo, CaptionerOutput, ModelFiles, TagSettings
from lora_trainer.captioning.captioner import Tag
from lora_trainer.settings.schema import setting


@dataclass(frozen=True, kw_only=True)
class ToySettings(TagSettings):
    """The toy's settings."""

    loudness: int = setting(2, label="Loudness", at_least=1, at_most=9, audience="everyone")
    """How often each word is said."""


class Toy:
    def __init__(self, word, times):
        self.word, self.times = word, times

    def caption(self, images):
        tags = tuple(Tag(text=f"{self.word} {n}", score=1.0) for n in range(self.times))
        return [CaptionerOutput(tags=tags) for image in images]


def load(path, own, *, device, dtype, listener):
    return Toy((path / "toy.txt").read_text().strip(), own.loudness)


CAPTIONERS = (
    CaptionerInfo(
        name="toy",
        title="A toy",
        sentence="Says one word.",
        model="me/toy",
        download_bytes=1_000_000,
        memory_bytes=2_000_000,
        licence="MIT",
        batch_size=2,
        load=load,
        settings=ToySettings,
        files=ModelFiles(needed=(), weights=("toy.txt",), small=()),
    ),
)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with the toy's model; the toy's file lies among the captioners."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(captioners, "__path__", [*captioners.__path__, str(folder)])
    captioners.every.cache_clear()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "toy.txt").write_text("beep", encoding="utf-8")
    yield tmp_path / "model"
    captioners.every.cache_clear()
    sys.modules.pop(f"{captioners.__name__}.toy", None)


def test_the_tab_lists_a_captioner_from_one_file_with_its_own_settings(toy, tmp_path):
    found = {offer["name"]: offer for offer in offers(tmp_path, {}, "en")}["toy"]
    assert (found["title"], found["download_text"], found["licence"]) == ("A toy", "1 MB", "MIT")
    assert [field["key"] for field in found["fields"] if not field["advanced"]] == [
        "prefix",
        "suffix",
        "loudness",
        "exclude",
    ]


def test_the_command_line_offers_it_and_its_settings(toy, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["caption", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "toy (A toy: Says one word)" in shown
    assert "--loudness N toy: How often each word is said. (default: 2)" in shown
    asked = command_line.make_parser().parse_args(
        ["caption", "--input", "x", "--captioner", "toy", "--loudness", "3"]
    )
    assert captioning.from_mapping({"input": "x", "captioner": "toy", "loudness": asked.loudness})


def test_a_caption_job_runs_it(toy, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 10,) * 3).save(images / f"img{number}.png")
    settings = captioning.from_mapping(
        {
            "input": images,
            "captioner": "toy",
            "model": str(toy),
            "loudness": 3,
            "exclude": ["beep 1"],
            "device": "cpu",
        }
    )
    folder = folders.begin_captioning(
        images / ".lora_trainer" / "captioning", captioning.to_yaml(settings)
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert job.run(folder.path) == 0, folder.read_state().failure
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    written = (images / "metadata.csv").read_text(encoding="utf-8-sig").splitlines()
    assert written[1:] == [f'img{number}.png,"beep 0, beep 2"' for number in range(3)]
