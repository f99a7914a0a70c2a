"""Cropped copies: the right part, the right size, captions along, originals untouched."""

from __future__ import annotations

import hashlib

import pytest
from PIL import Image, ImageDraw

from lora_trainer.dataset.crop import choose_box, crop_folder, shaped
from lora_trainer.dataset.listing import list_folder
from lora_trainer.dataset.masks import find_masks
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings
from tests.dataset.pictures import save


def plain_with_detail(size, at, side=60):
    """A grey image with a chequered patch around `at`."""
    image = Image.new("RGB", size, "grey")
    draw = ImageDraw.Draw(image)
    for number in range(36):
        x, y = (
            at[0] - side // 2 + number % 6 * side // 6,
            at[1] - side // 2 + number // 6 * side // 6,
        )
        draw.rectangle(
            (x, y, x + side // 6 - 1, y + side // 6 - 1),
            fill="black" if (number + number // 6) % 2 else "white",
        )
    return image


def crop(folder, output, **options):
    return crop_folder(DatasetSettings(train_data_dir=folder, bucket_step=8), output, **options)


# --- which part -----------------------------------------------------------------------------------


def test_the_centre_is_kept_unless_the_subject_is_asked_for():
    image = plain_with_detail((400, 200), (60, 100))
    assert choose_box(image, 1.0) == (100, 0, 300, 200)
    left, top, right, bottom = choose_box(image, 1.0, subject=True)
    assert (top, bottom, right - left) == (0, 200, 200) and left <= 30


def test_a_picture_without_detail_is_cropped_at_its_centre():
    assert choose_box(Image.new("RGB", (400, 200), "grey"), 1.0, subject=True) == (100, 0, 300, 200)


def test_a_mask_says_where_the_subject_is_and_brings_it_closer(tmp_path):
    image = plain_with_detail((400, 400), (60, 60))
    mask = Image.new("L", (400, 400))
    ImageDraw.Draw(mask).rectangle((300, 300, 379, 379), fill=255)
    mask.save(tmp_path / "mask.png")
    left, top, right, bottom = choose_box(image, 1.0, subject=True, mask=tmp_path / "mask.png")
    assert left <= 300 and top <= 300 and right >= 380 and bottom >= 380
    assert 80 * 80 / ((right - left) * (bottom - top)) == pytest.approx(0.6, abs=0.05)
    assert choose_box(image, 1.0, subject=True, mask=tmp_path / "mask.png", least_width=200) == (
        200,
        200,
        400,
        400,
    )


def test_a_strip_is_brought_into_shape_around_its_subject():
    box = shaped(plain_with_detail((900, 100), (800, 50)), 2.0)
    assert box[2] - box[0] == 200 and box[0] <= 770 and box[2] >= 830


# --- the folder -----------------------------------------------------------------------------------


def test_squares_are_written_with_their_captions_and_originals_stay(tmp_path):
    source = tmp_path / "my 图片"
    save(source / "fox.jpg", (300, 200))
    (source / "fox.txt").write_text("a fox", encoding="utf-8")
    save(source / "10_hen" / "hen.png", (128, 256))
    before = {
        path: hashlib.sha256(path.read_bytes()).digest()
        for path in source.rglob("*")
        if path.is_file()
    }
    done = crop(source, tmp_path / "out", size=128)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in done.written] == [
        "fox.png",
        "10_hen/hen.png",
    ]
    assert [Image.open(path).size for path in done.written] == [(128, 128), (128, 128)]
    assert (tmp_path / "out" / "fox.txt").read_text(encoding="utf-8") == "a fox\n"
    assert not (tmp_path / "out" / "10_hen" / "hen.txt").exists() and done.findings == ()
    assert before == {
        path: hashlib.sha256(path.read_bytes()).digest()
        for path in source.rglob("*")
        if path.is_file()
    }


def test_buckets_keep_the_shape(tmp_path):
    save(tmp_path / "in" / "wide.png", (400, 200))
    save(tmp_path / "in" / "tall.png", (200, 400))
    sizes = [
        Image.open(path).size
        for path in crop(tmp_path / "in", tmp_path / "out", size=128, into_buckets=True).written
    ]
    assert sizes == [(88, 176), (176, 88)]


@pytest.mark.parametrize(
    ("mask", "copied"),
    [
        ("fox_mask.png", "fox_mask.png"),
        ("fox-masklabel.png", "fox_mask.png"),
        ("masks/fox.png", "masks/fox.png"),
    ],
)
def test_a_mask_is_cut_as_its_picture_is_and_stays_black_and_white(tmp_path, mask, copied):
    # red where the mask is white
    picture, marked = Image.new("RGB", (300, 120), "blue"), Image.new("L", (100, 40))
    picture.paste("red", (120, 30, 210, 90))
    marked.paste(255, (40, 10, 70, 30))
    (tmp_path / "in" / "masks").mkdir(parents=True)
    picture.save(tmp_path / "in" / "fox.png")
    marked.save(tmp_path / "in" / mask)
    (tmp_path / "in" / "fox.txt").write_text("a fox", encoding="utf-8")
    done = crop(tmp_path / "in", tmp_path / "out", size=64, subject=True)
    assert [path.name for path in done.written] == ["fox.png"]
    with (
        Image.open(tmp_path / "out" / "fox.png") as image,
        Image.open(tmp_path / "out" / copied) as cut,
    ):
        assert (image.size, cut.size, cut.mode) == ((64, 64), (64, 64), "L")
        assert {value for _, value in cut.getcolors()} == {0, 255}
        red = [pixel[0] > 128 for pixel in image.getdata()]
        assert (
            sum(is_red != (white == 255) for is_red, white in zip(red, cut.getdata(), strict=True))
            <= 130
        )
    scanned = find_masks(list_folder(tmp_path / "out").images, ())
    assert scanned == {tmp_path / "out" / copied: tmp_path / "out" / "fox.png"}


def test_a_mask_that_cannot_be_read_is_named_and_its_picture_is_written(tmp_path):
    save(tmp_path / "in" / "fox.png", size=(80, 80))
    (tmp_path / "in" / "fox_mask.png").write_bytes(b"no image")
    done = crop(tmp_path / "in", tmp_path / "out", size=64)
    assert [path.name for path in done.written] == ["fox.png"]
    assert [(finding.kind, finding.path.name) for finding in done.findings] == [
        ("unreadable-image", "fox_mask.png")
    ]


def test_enlarged_pictures_are_told(tmp_path):
    save(tmp_path / "in" / "small.png", (64, 100))
    (finding,) = crop(tmp_path / "in", tmp_path / "out", size=128).findings
    assert (
        str(finding)
        == "small.png was enlarged 2.00 times: its part of 64 x 64 pixels became 128 x 128"
        and finding.measured == 2.0
    )


def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").write_text("mine", encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        crop(tmp_path / "in", tmp_path / "out", size=64)
    assert "b.png exists already (1 such files in all)" in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


def test_an_output_that_cannot_be_written_gets_a_sentence(tmp_path):
    save(tmp_path / "images" / "a.png", (100, 100))
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"out.a\.png cannot be written"):
        crop(tmp_path / "images", tmp_path / "out", size=64)


def test_two_originals_of_one_name_get_two_copies(tmp_path):
    save(tmp_path / "in" / "a.jpg")
    save(tmp_path / "in" / "a.png")
    assert sorted(
        path.name for path in crop(tmp_path / "in", tmp_path / "out", size=64).written
    ) == ["a-png.png", "a.png"]


def test_only_the_named_pictures_are_taken(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        save(tmp_path / "in" / name)
    done = crop(tmp_path / "in", tmp_path / "out", size=64, only=["sub/c.png", "A.png"])
    assert [path.relative_to(tmp_path / "out").as_posix() for path in done.written] == [
        "sub/c.png",
        "a.png",
    ]
    with pytest.raises(DatasetError, match="there is no image d.png"):
        crop(tmp_path / "in", tmp_path / "other", size=64, only=["d.png"])


def test_a_damaged_picture_is_named_and_the_others_are_written(tmp_path):
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:60])
    done = crop(tmp_path / "in", tmp_path / "out", size=64)
    assert [path.name for path in done.written] == ["a.png"]
    assert [
        (finding.kind, finding.severity) for finding in done.findings if finding.severity == "error"
    ] == [("unreadable-image", "error")]


def test_captions_of_several_lines_are_carried_along_line_by_line(tmp_path):
    save(tmp_path / "in" / "a.png", size=(80, 64))
    (tmp_path / "in" / "a.txt").write_text("a red boat\nthe boat lies still.\n", encoding="utf-8")
    crop(tmp_path / "in", tmp_path / "out", size=64)
    assert (tmp_path / "out" / "a.txt").read_text("utf-8") == "a red boat\nthe boat lies still.\n"


def test_what_is_not_copied_is_named(tmp_path):
    for name in ("a.png", "reg/1_fox/z.png", "b.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "a.txt").write_bytes(b"\xff\xfea")
    (tmp_path / "in" / "c.xcf").touch()
    done = crop(tmp_path / "in", tmp_path / "out", size=64)
    assert [path.name for path in done.written] == ["a.png", "b.png"]
    told = " ".join(str(finding.message) for finding in done.findings)
    assert (
        "reg holds class images" in told
        and "a.txt is damaged" in told
        and "c.xcf is in a format that is not supported" in told
    )
    # who asks for one image hears of that one
    assert crop(tmp_path / "in", tmp_path / "one", size=64, only=["b.png"]).findings == ()
