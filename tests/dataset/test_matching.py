"""Which image a row means."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.dataset.matching import MatchQuality, NameIndex

ROOT = Path("/data/my set")
IMAGES = [
    ROOT / name
    for name in (
        "a.png",
        "B.JPG",
        "10_fox/a.png",
        "10_fox/c.png",
        "20_cat/c.png",
        "é ü.webp",
        "fox v1.5.png",
        "d.png",
    )
]


def found(name: str, root: Path = ROOT) -> tuple[list[str], MatchQuality]:
    match = NameIndex(IMAGES).find(name, (root,))
    return [image.relative_to(ROOT).as_posix() for image in match.images], match.quality


@pytest.mark.parametrize(
    ("name", "image", "sureness"),
    [
        ("a.png", "a.png", MatchQuality.SAME_PATH),
        ("./10_fox/a.png", "10_fox/a.png", MatchQuality.SAME_PATH),
        ("10_fox\\a.png", "10_fox/a.png", MatchQuality.SAME_PATH),
        ('"a.png"', "a.png", MatchQuality.SAME_PATH),
        ("/data/my set/10_fox/a.png", "10_fox/a.png", MatchQuality.SAME_PATH),
        ("file:///data/my%20set/10_fox/a.png", "10_fox/a.png", MatchQuality.SAME_PATH),
        ("A.PNG", "a.png", MatchQuality.SAME_BUT_CASE),
        ("b.jpg", "B.JPG", MatchQuality.SAME_BUT_CASE),
        ("e\u0301 u\u0308.webp", "é ü.webp", MatchQuality.SAME_BUT_CASE),  # as macOS spells it
        ("C:\\Users\\me\\set\\10_fox\\a.png", "10_fox/a.png", MatchQuality.END_OF_PATH),
        ("/home/other/20_cat/c.png", "20_cat/c.png", MatchQuality.END_OF_PATH),
        ("https://example.org/img/d.png?size=big", "d.png", MatchQuality.END_OF_PATH),
        ("images/d.png", "d.png", MatchQuality.END_OF_PATH),
        ("d", "d.png", MatchQuality.STEM),
        ("fox v1.5", "fox v1.5.png", MatchQuality.STEM),
        ("10_fox/c", "10_fox/c.png", MatchQuality.STEM),
        ("d.jpg", "d.png", MatchQuality.OTHER_SUFFIX),
    ],
)
def test_a_name_finds_its_image(name, image, sureness):
    assert found(name) == ([image], sureness)


@pytest.mark.parametrize("name", ["e.png", "dd.png", "", "..", "/", "\0"])
def test_a_name_without_an_image_finds_none(name):
    assert found(name)[0] == []


def test_a_name_that_fits_two_images_equally_finds_both():
    assert found("c.png")[0] == ["10_fox/c.png", "20_cat/c.png"]


def test_names_are_also_meant_from_the_metadata_files_own_folder():
    assert found("a.png", ROOT / "10_fox") == (["10_fox/a.png"], MatchQuality.SAME_PATH)
    assert found("../a.png", ROOT / "10_fox") == (["a.png"], MatchQuality.SAME_PATH)
