"""Images are answered for at once, looked at thoroughly once, and again only when they change."""

from __future__ import annotations

import json

import pytest

from lora_trainer.dataset.images import examine
from lora_trainer.errors import DatasetError
from lora_trainer.webui.settings.image_cache import ImageCache
from tests.made import draw_images


@pytest.fixture
def images(tmp_path):
    return sorted(draw_images(tmp_path / "images", 4, (48, 32)).glob("*.png"))


def test_the_first_look_knows_the_size_and_the_second_the_content(tmp_path, images):
    known = ImageCache(tmp_path / "images.json")
    first = known.examine(images[0])
    known.wait()
    second = known.examine(images[0])
    assert (first.width, first.height) == (second.width, second.height) == (48, 32)
    assert first.digest != second.digest == examine(images[0]).digest
    assert known.unchecked(images) == 0


def test_what_is_known_is_kept_from_start_to_start(tmp_path, images):
    before = ImageCache(tmp_path / "images.json")
    before.examine(images[0])
    before.close()
    seen = []
    after = ImageCache(
        tmp_path / "images.json", thorough=lambda path: seen.append(path) or examine(path)
    )
    assert after.examine(images[0]).digest == examine(images[0]).digest
    after.wait()
    assert seen == []


@pytest.mark.parametrize(
    "made_up",
    [
        {"width": "48", "height": 32, "digest": "0"},
        {"width": 48, "height": 32, "digest": None},
        {"width": 48, "digest": "0"},
        {"problem": 5, "hint": "", "values": {}},
        {"problem": "no {such}", "hint": "", "values": {}},
        {"problem": "no", "hint": None, "values": {}},
        {"problem": "no", "hint": "", "values": {"hint": "x"}},
        {},
    ],
)
def test_what_was_kept_must_be_what_is_kept_there(tmp_path, images, made_up):
    details = images[0].stat()
    entry = {"mark": [details.st_mtime_ns, details.st_size], **made_up}
    (tmp_path / "images.json").write_text(
        json.dumps({str(images[0]): entry, "/other": [1]}), encoding="utf-8"
    )
    found = ImageCache(tmp_path / "images.json").examine(images[0])
    assert (found.width, found.height) == (48, 32) and isinstance(found.digest, str)


def test_a_changed_file_is_looked_at_again(tmp_path, images):
    known = ImageCache(tmp_path / "images.json")
    known.examine(images[0])
    known.wait()
    images[0].write_bytes(
        draw_images(tmp_path / "other", 1, (80, 80)).joinpath("img00.png").read_bytes()
    )
    assert (known.examine(images[0]).width, known.examine(images[0]).height) == (80, 80)


def test_damage_inside_a_picture_is_found_by_the_thorough_look(tmp_path, images):
    content = images[0].read_bytes()
    images[0].write_bytes(content[: len(content) - 40])
    known = ImageCache(tmp_path / "images.json")
    assert known.examine(images[0]).width == 48
    known.close()
    for again in (known, ImageCache(tmp_path / "images.json")):
        with pytest.raises(DatasetError, match=r"img00\.png is (cut off|damaged)"):
            again.examine(images[0])


def test_a_file_that_is_gone_or_no_picture_is_told_at_once(tmp_path):
    known = ImageCache(tmp_path / "images.json")
    (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
    for name in ("gone.png", "text.png"):
        with pytest.raises(DatasetError):
            known.examine(tmp_path / name)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"mark": [1, 2]}}', "\x00"])
def test_a_damaged_memory_is_begun_anew(tmp_path, images, content):
    (tmp_path / "images.json").write_text(content, encoding="utf-8")
    assert ImageCache(tmp_path / "images.json").examine(images[0]).width == 48


def test_what_could_not_be_read_is_looked_at_again_by_the_next_start(tmp_path, images):
    def too_large(path):
        raise DatasetError("{path} is too large", hint="Raise the limit.", path=path)

    known = ImageCache(tmp_path / "images.json", thorough=too_large)
    known.examine(images[0])
    known.wait()
    with pytest.raises(DatasetError, match="too large"):
        known.examine(images[0])
    known.close()
    known = ImageCache(tmp_path / "images.json")
    with pytest.raises(DatasetError, match="too large"):
        known.examine(images[0])
    known.wait()
    assert known.examine(images[0]) == examine(images[0])
    known.close()
