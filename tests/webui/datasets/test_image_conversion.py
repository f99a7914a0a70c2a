"""HEIC and AVIF in a process that decodes neither: converted by one that does, kept until then,
named where nothing was uploaded, and undone.
"""

from __future__ import annotations

import asyncio
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lora_trainer import environment
from lora_trainer.errors import DatasetError
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.datasets.image_conversion import Converter
from lora_trainer.webui.images import uploads
from lora_trainer.webui.images.uploads import Accepted
from tests.webui.heic import avif, heic, without_decoder

PLENTY = lambda path: 2**40  # noqa: E731
HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40
"""The beginning of a HEIC image: enough to tell what it is, for tests in which nothing decodes
it.
"""


class FakeConverter(Converter):
    """Makes a JPEG of one colour of whatever it is given, but for what is called torn."""

    def __init__(self, *, ready: bool = True) -> None:
        super().__init__()
        self.ready = ready
        self.asked: list[int] = []

    @property
    def is_ready(self) -> bool:
        return self.ready

    def convert(self, pictures: Sequence[tuple[Path, Path]]) -> list[Path | DatasetError]:
        self.asked.append(len(pictures))
        return [self._made(picture, stem) for picture, stem in pictures]

    def _made(self, picture: Path, stem: Path) -> Path | DatasetError:
        if b"torn" in picture.read_bytes():
            return DatasetError("{path} is damaged ({reason})", path=picture, reason="torn")
        made = stem.with_name(stem.name + ".jpg")
        Image.new("RGB", (64, 48), (len(picture.read_bytes()) % 256, 9, 9)).save(made)
        return made


@pytest.fixture
def store(tmp_path, monkeypatch):
    without_decoder(monkeypatch)
    (tmp_path / "fox").mkdir()
    return CaptionStore(tmp_path / "fox", follow_links=False)


def send(store: CaptionStore, name: str, data: bytes, converter: Converter | None) -> Accepted:
    async def pieces():
        yield data

    incoming = asyncio.run(uploads.receive(pieces(), store, name, len(data), PLENTY))
    accepted = uploads.accept(store, incoming, name, free=PLENTY, converter=converter)
    hidden = store.path / ".lora_trainer"
    assert [
        path
        for folder in ("incoming", "making")
        if (hidden / folder).is_dir()
        for path in (hidden / folder).iterdir()
    ] == []
    return accepted


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def there(store: CaptionStore) -> dict[str, str]:
    return {item.name: item.caption for item in store.view().items}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# --- the process ----------------------------------------------------------------------------------


def test_one_process_converts_what_it_can_and_says_of_the_rest_why_not(tmp_path):
    (tmp_path / "水 1.heic").write_bytes(heic("red", where=True))
    (tmp_path / "b.heic").write_bytes(heic("red")[:-30])
    (tmp_path / "c.avif").write_bytes(avif("blue"))
    red, problem, blue = Converter().convert(
        [(tmp_path / name, tmp_path / f"made-{name}") for name in ("水 1.heic", "b.heic", "c.avif")]
    )
    assert (red, blue) == (tmp_path / "made-水 1.heic.jpg", tmp_path / "made-c.avif.jpg")
    assert isinstance(problem, DatasetError) and problem.message.values["path"] == str(
        tmp_path / "b.heic"
    )
    reds, blues = (Image.open(path).convert("RGB").getpixel((9, 9)) for path in (red, blue))
    assert reds[0] > 240 and reds[2] < 20 and blues[2] > 240 and blues[0] < 20


def program(code: str) -> Converter:
    """A converter that is a few lines of Python: `asked` is what it is told."""
    before = (
        "import json, os, sys, time\nasked = json.load(sys.stdin)['images']\nsend = lambda line:"
        " print(json.dumps(line), flush=True)\n"
    )
    return Converter(
        command=lambda: [sys.executable, "-I", "-c", before + code], seconds=(2.0, 0.0)
    )


def test_a_picture_that_ends_the_process_is_one_and_the_next_are_converted(tmp_path):
    pictures = [(tmp_path / name, tmp_path / f"made-{name}") for name in ("a", "deadly", "c")]
    code = (
        "send({'begun': True})\nfor image, stem in asked:\n    os._exit(11) if"
        " image.endswith('deadly') else send({'made': stem})"
    )
    first, problem, third = program(code).convert(pictures)
    assert (first, third) == (tmp_path / "made-a", tmp_path / "made-c")
    assert str(problem) == f"{tmp_path / 'deadly'} cannot be converted: exit status 11"


def test_a_process_that_cannot_begin_is_not_tried_once_a_picture(tmp_path):
    code = f"open({str(tmp_path / 'tries')!r}, 'a').write('x')\nsys.exit('no module named PIL')"
    results = program(code).convert([(tmp_path / name, tmp_path / name) for name in "abc"])
    assert [str(result) for result in results] == [
        f"{tmp_path / name} cannot be converted: no module named PIL" for name in "abc"
    ]
    assert (tmp_path / "tries").read_text() == "x"


def test_a_process_that_takes_too_long_is_ended_and_what_it_made_counts(tmp_path):
    code = "send({'begun': True})\nsend({'made': asked[0][1]})\ntime.sleep(600)"
    first, problem = program(code).convert(
        [(tmp_path / name, tmp_path / f"made-{name}") for name in "ab"]
    )
    assert (first, str(problem)) == (
        tmp_path / "made-a",
        f"{tmp_path / 'b'} cannot be converted: it takes too long",
    )


def test_it_is_ready_when_the_workers_packages_are_there():
    assert not Converter(look=lambda: SimpleNamespace(state="missing")).is_ready
    assert Converter(look=lambda: SimpleNamespace(state="ready")).is_ready
    assert environment.convert_command()[1].endswith("convert.py")


# --- uploads --------------------------------------------------------------------------------------


def test_an_uploaded_heic_becomes_a_jpeg_of_its_name(store):
    accepted = send(store, "IMG 1.HEIC", heic("blue", (64, 48), orientation=6), Converter())
    assert [(added.name, added.width, added.height) for added in accepted.added] == [
        ("IMG 1.jpg", 48, 64)
    ]
    assert (accepted.converted, accepted.waiting, accepted.skipped) == ({"HEIC": 1}, {}, [])
    assert names(store.path) == ["IMG 1.jpg"]
    assert send(store, "IMG 1.HEIC.txt", b"a fox", Converter()).captions == 1
    assert there(store) == {"IMG 1.jpg": "a fox"}


@pytest.mark.parametrize("name", ["fox.jpg", "fox", "fox.heif", "fox.hif"])
def test_what_a_picture_is_tells_its_content(store, name):
    assert [added.name for added in send(store, name, HEAD, FakeConverter()).added] == ["fox.jpg"]


def test_a_zip_is_converted_at_once_and_keeps_its_captions(store):
    converter = FakeConverter()
    members = {
        "10_fox/a.heic": HEAD,
        "10_fox/a.txt": b"a fox",
        "b.heic": HEAD + b"torn",
        "c.heic": HEAD + b"c",
        "d.png": png(),
        "metadata.csv": b"file_name,text\nc.heic,a cat\nd.png,a dog\n",
    }
    accepted = send(store, "set.zip", archive(members), converter)
    assert (converter.asked, accepted.converted) == ([3], {"HEIC": 2})
    assert there(store) == {"10_fox/a.jpg": "a fox", "c.jpg": "a cat", "d.png": "a dog"}
    assert [(skipped.name, str(skipped.message)) for skipped in accepted.skipped] == [
        ("b.heic", "b.heic is damaged (torn)")
    ]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "green").save(buffer, "PNG")
    return buffer.getvalue()


def test_what_cannot_be_converted_yet_is_kept_with_its_captions_and_converted_later(store):
    converter = FakeConverter(ready=False)
    accepted = send(store, "a.heic", HEAD, converter)
    assert (accepted.added, accepted.waiting, accepted.skipped) == ([], {"HEIC": 1}, [])
    accepted = send(store, "a.heic", HEAD, converter)
    assert [str(skipped.message) for skipped in accepted.skipped] == [
        "a.heic is already in this dataset"
    ]
    members = {
        "b.heic": HEAD + b"b",
        "c.jpg": HEAD + b"c",
        "metadata.csv": b"file_name,text\nb.heic,a cat\nc.jpg,a dog\n",
    }
    assert send(store, "set.zip", archive(members), converter).waiting == {"HEIC": 2}
    assert send(store, "a.txt", b"a fox", converter).captions == 1
    again = send(store, "a.txt", b"a wolf", converter)
    assert [str(skipped.message) for skipped in again.skipped] == [
        "a.heic has another caption already, which was kept"
    ]
    assert (
        names(store.path) == ["a.heic", "a.txt", "b.heic", "b.txt", "c.heic", "c.txt"]
        and there(store) == {}
    )
    bench = Workbench(store, converter=converter)
    with pytest.raises(DatasetError, match="not installed yet"):
        bench.convert()
    converter.ready = True
    assert bench.convert().changed == 3
    assert there(store) == {"a.jpg": "a fox", "b.jpg": "a cat", "c.jpg": "a dog"}


# --- folders in place -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, store):
    """Opened in place: two phone images, one of them with a caption beside it, and the JPEG that
    a phone made of a third.
    """
    for name, data in {
        "1.heic": HEAD,
        "sub/2.HEIF": HEAD + b"2",
        "3.heic": HEAD,
        "3.jpg": b"",
    }.items():
        path = store.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    Image.new("RGB", (40, 30)).save(store.path / "3.jpg")
    (store.path / "1.txt").write_text("a fox")
    return store


def test_a_folders_pictures_are_named_and_nothing_is_changed_unasked(folder):
    before = names(folder.path)
    found = [finding for finding in folder.view().findings if finding.kind == "unconverted-image"]
    assert [(str(finding), finding.severity, finding.fix) for finding in found] == [
        ("1.heic cannot be read directly, but can be converted", "error", {"do": "convert"}),
        ("sub/2.HEIF cannot be read directly, but can be converted", "error", {"do": "convert"}),
    ]
    assert names(folder.path) == before and there(folder) == {"3.jpg": ""}


def test_converting_a_folder_is_undone_and_done_again(folder):
    bench = Workbench(folder, converter=FakeConverter())
    outcome = bench.convert()
    assert (str(outcome.title), outcome.changed, outcome.conflicts) == (
        "Converted: 2 images",
        2,
        (),
    )
    assert there(folder) == {"1.jpg": "a fox", "3.jpg": "", "sub/2.jpg": ""}
    assert names(folder.path) == ["1.jpg", "1.txt", "3.heic", "3.jpg", "sub"]
    assert bench.undo().changed == 2
    assert names(folder.path) == ["1.heic", "1.txt", "3.heic", "3.jpg", "sub"] and names(
        folder.path / "sub"
    ) == ["2.HEIF"]
    assert (folder.path / "1.heic").read_bytes() == HEAD
    assert bench.redo().changed == 2 and names(folder.path / "sub") == ["2.jpg"]
    assert (
        Workbench(folder).undo().changed == 2
        and (folder.path / "sub" / "2.HEIF").read_bytes() == HEAD + b"2"
    )


def test_there_may_be_nothing_left_to_convert(store):
    with pytest.raises(DatasetError, match="nothing left to convert"):
        Workbench(store, converter=FakeConverter()).convert()


def test_what_cannot_be_converted_stays_and_is_named(folder):
    (folder.path / "1.heic").write_bytes(HEAD + b"torn")
    bench = Workbench(folder, converter=FakeConverter())
    outcome = bench.convert()
    assert outcome.changed == 1 and [str(conflict.message) for conflict in outcome.conflicts] == [
        "1.heic is damaged (torn)"
    ]
    assert (folder.path / "1.heic").is_file()
    (folder.path / "sub" / "2.jpg").write_bytes(b"edited")
    undone = bench.undo()
    assert [str(conflict.message) for conflict in undone.conflicts] == [
        "sub/2.jpg was changed elsewhere, and was left as it is"
    ]
    assert bench.convert().changed == 0 and bench.journal.undoable is None
