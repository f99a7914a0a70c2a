"""Small copies of images: made once, by content, whoever asks."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from lora_trainer.errors import DatasetError
from lora_trainer.webui.datasets import thumbnails
from lora_trainer.webui.datasets.thumbnails import Thumbnails
from tests.dataset.pictures import noise, save


@pytest.fixture
def made(monkeypatch):
    """The images decoded so far."""
    decoded = []
    real = thumbnails.write_reduced
    monkeypatch.setattr(
        thumbnails,
        "write_reduced",
        lambda path, *rest: (decoded.append(path.name), real(path, *rest)),
    )
    return decoded


def test_a_thumbnail_is_a_small_webp(tmp_path):
    small = Thumbnails(tmp_path / "cache").image(save(tmp_path / "a.png", size=(800, 400)))
    with Image.open(small) as image:
        assert (image.format, image.size) == ("WEBP", (384, 192))


def test_it_is_made_once_also_for_a_copy_and_by_another_process(tmp_path, made):
    first, copy = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    cache = Thumbnails(tmp_path / "cache")
    assert cache.image(first) == cache.image(copy) == Thumbnails(tmp_path / "cache").image(first)
    assert made == ["a.png"]


def test_a_changed_picture_gets_another_one(tmp_path, made):
    cache = Thumbnails(tmp_path / "cache")
    before = cache.image(save(tmp_path / "a.png", colour="red"))
    path = save(tmp_path / "a.png", colour="blue")
    os.utime(path, (1, 1))
    assert cache.image(path) != before
    assert made == ["a.png", "a.png"]


def test_those_who_ask_at_once_wait_for_the_same_one(tmp_path, made):
    path = tmp_path / "a.png"
    noise((400, 300)).save(path)
    cache = Thumbnails(tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: cache.image(path), range(8)))) == 1
    assert made == ["a.png"]


def test_a_damaged_picture_is_said_and_leaves_no_half_copy(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError):
        Thumbnails(tmp_path / "cache").image(path)
    assert [found for found in (tmp_path / "cache").rglob("*") if found.is_file()] == []


def test_what_nobody_has_looked_at_for_a_month_goes_away(tmp_path, made):
    kept, gone = (
        save(tmp_path / "kept.png", colour="red"),
        save(tmp_path / "gone.png", colour="blue"),
    )
    now = [1_000_000.0]
    cache = Thumbnails(tmp_path / "cache", clock=lambda: now[0])
    small_kept, small_gone = cache.image(kept), cache.image(gone)
    for small in (small_kept, small_gone):
        os.utime(small, (now[0], now[0]))
    now[0] += 20 * 86400
    cache.image(kept)
    now[0] += 20 * 86400
    cache.image(kept)
    end = time.monotonic() + 120
    while small_gone.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert small_kept.exists() and not small_gone.exists()
    assert cache.image(gone) == small_gone and made == ["kept.png", "gone.png", "gone.png"]


def test_the_same_picture_in_two_datasets_may_be_asked_for_at_once(tmp_path, monkeypatch):
    for name in ("fox.png", "owl.png"):
        save(tmp_path / name, size=(80, 60))
    real, both = thumbnails.write_reduced, threading.Barrier(2)

    def at_once(path, partial, side):
        both.wait(120)
        real(path, partial, side)
        both.wait(120)

    monkeypatch.setattr(thumbnails, "write_reduced", at_once)
    scheduler = thumbnails.Thumbnails(tmp_path / "cache")
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(scheduler.image, (tmp_path / "fox.png", tmp_path / "owl.png"))
    assert one == other and [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file()
    ] == [one]
