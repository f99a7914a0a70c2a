"""What is measured of one image: on images of which the answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from lora_trainer.dataset.check.borders import inner_box
from lora_trainer.dataset.check.fingerprint import (
    colour_distance,
    colours,
    fingerprint,
    palette,
    vectors,
)
from lora_trainer.dataset.check.image_findings import CheckedImage, findings_of_image
from lora_trainer.dataset.check.measure import measure, measure_all
from lora_trainer.dataset.check.sharpness import edge_width, smooth
from lora_trainer.dataset.check.store import Store
from lora_trainer.dataset.check.watermarks import find_mark
from tests.benchmark.check_quality import bokeh, dead_leaves, flat, grained, on_paper
from tests.dataset.pictures import save
from tests.embedded import scenes
from tests.made import draw_images


def rng(seed=1):
    import random

    return random.Random(seed)


@pytest.fixture(scope="module")
def leaves():
    return dead_leaves(rng(), 400)


def steps(side=256):
    levels = np.zeros((side, side), np.float32)
    levels[:, side // 2 :] = 160
    levels[side // 3 :] += 60
    return levels


def spoiled(kept, name, value):
    (measures,) = kept["measures"].values()
    measures[name] = value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept["digests"].update({name: {"a": 1} for name in kept["digests"]}),
        lambda kept: kept["digests"].update({name: [] for name in kept["digests"]}),
        lambda kept: kept["measures"].update({content: [] for content in kept["measures"]}),
        lambda kept: spoiled(kept, "inner", "all"),
        lambda kept: spoiled(kept, "width", "64"),
        lambda kept: spoiled(kept, "fingerprint", "zz"),
        lambda kept: spoiled(kept, "palette", "00"),
        lambda kept: spoiled(kept, "mark", [1, 2]),
        lambda kept: spoiled(kept, "darkest", None),
        lambda kept: spoiled(kept, "more", 1),
    ],
)
def test_what_was_measured_before_must_be_what_is_measured(tmp_path, spoil):
    path = draw_images(tmp_path, 1) / "img00.png"
    store = Store(tmp_path / "kept.json")
    right = measure_all([path], store)[path]
    store.save()
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    spoil(kept)
    (tmp_path / "kept.json").write_text(json.dumps(kept), encoding="utf-8")
    again = Store(tmp_path / "kept.json")
    assert measure_all([path], again)[path] == right
    again.save()


def grey(image):
    return np.asarray(image.convert("L"), np.float32)


# --- sharpness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0, 5.0])
def test_the_measured_width_of_an_edge_is_the_sigma_it_was_blurred_by(sigma):
    assert edge_width(smooth(steps(), sigma)) == pytest.approx(sigma, rel=0.12)


def test_a_picture_without_edges_has_no_width():
    assert edge_width(np.full((200, 200), 90, np.float32)) is None
    assert edge_width(np.linspace(0, 150, 40000, dtype=np.float32).reshape(200, 200)) is None


def test_the_same_picture_at_another_size_is_as_sharp_in_its_own_pixels(leaves):
    large = leaves.filter(ImageFilter.GaussianBlur(4))
    half = large.resize((200, 200), Image.Resampling.LANCZOS)
    assert edge_width(grey(large)) / 400 == pytest.approx(edge_width(grey(half)) / 200, rel=0.25)


@pytest.mark.parametrize(
    "spoil", [lambda image, r: image, grained, bokeh], ids=["as it is", "grain", "bokeh"]
)
def test_flat_drawings_grain_and_bokeh_are_sharp(leaves, spoil):
    for image in (leaves, on_paper(rng(2), 400)):
        assert edge_width(grey(spoil(image, rng(3)))) < 0.9


def test_a_blurred_picture_is_not(leaves):
    assert edge_width(grey(leaves.filter(ImageFilter.GaussianBlur(3)))) > 1.8


def test_shake_is_seen_though_it_leaves_the_edges_along_it_sharp():
    board = (
        np.kron(np.indices((10, 10)).sum(axis=0) % 2, np.ones((40, 40))).astype(np.float32) * 180
    )
    shaken = sum(np.roll(board, step, axis=1) for step in range(14)) / 14
    assert edge_width(board) < 0.9
    assert edge_width(shaken) > 3


# --- borders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("border", "box"),
    [
        ((40, 0, 40, 0), (40, 0, 440, 400)),
        ((0, 30, 0, 50), (0, 30, 400, 430)),
        ((20, 20, 20, 20), (20, 20, 420, 420)),
        ((0, 0, 60, 0), (0, 0, 400, 400)),
    ],
)
def test_bars_and_frames_end_where_the_picture_begins(leaves, border, box):
    assert inner_box(np.asarray(ImageOps.expand(leaves, border, "black"))) == box


def test_a_picture_without_borders_stays_whole(leaves):
    assert inner_box(np.asarray(leaves)) == (0, 0, 400, 400)


def test_the_plain_ground_of_a_drawing_is_no_border():
    for image in (on_paper(rng(4), 300), Image.new("RGB", (300, 200), "white")):
        assert inner_box(np.asarray(image)) == (0, 0, *image.size)


def test_neither_a_gradient_sky_nor_the_flat_ground_below_it_is_a_border():
    sky = Image.linear_gradient("L").resize((300, 220))
    scene = Image.merge("RGB", (sky, sky, Image.new("L", sky.size, 250)))
    assert inner_box(np.asarray(scene)) == (0, 0, 300, 220)
    assert inner_box(np.asarray(ImageOps.expand(scene, (0, 0, 0, 80), "darkgreen"))) == (
        0,
        0,
        300,
        300,
    )


def test_a_border_that_jpeg_has_touched_is_found(leaves, tmp_path):
    ImageOps.expand(leaves, (0, 50), "white").save(tmp_path / "a.jpg", quality=70)
    left, top, right, bottom = inner_box(np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")))
    assert (left, right) == (0, 400) and abs(top - 50) <= 3 and abs(bottom - 450) <= 3


# --- light ----------------------------------------------------------------------------------------


def pencil(level, paper, width=2):
    image = Image.new("RGB", (800, 800), paper)
    ImageDraw.Draw(image).arc((100, 100, 700, 700), 0, 300, fill=(level,) * 3, width=width)
    return image


def vivid():
    across = Image.linear_gradient("L").resize((300, 300))
    return Image.merge(
        "RGB",
        (
            Image.new("L", (300, 300), 255),
            across,
            across.rotate(90).point(lambda level: level * 0.9),
        ),
    )


@pytest.mark.parametrize(
    ("image", "kinds"),
    [
        (pencil(0, "white"), []),
        (pencil(150, "white"), []),
        (pencil(90, (245, 238, 220)), []),
        (vivid(), []),
        (Image.new("RGB", (600, 600), "grey"), ["low-contrast"]),
        (Image.new("RGB", (600, 600), (20, 20, 20)), ["too-dark"]),
    ],
)
def test_thin_lines_on_paper_and_vivid_colours_are_no_faults_of_light(tmp_path, image, kinds):
    image.save(tmp_path / "a.png")
    found = findings_of_image(
        CheckedImage(path=tmp_path / "a.png", name="a"), measure(tmp_path / "a.png"), 512
    )
    assert [
        finding.kind
        for finding in found
        if finding.kind in ("too-dark", "too-bright", "low-contrast")
    ] == kinds


# --- lettering ------------------------------------------------------------------------------------


def written(image, text="www.example.com", y=0.93, ink="white"):
    image = image.copy()
    ImageDraw.Draw(image).text(
        (20, y * image.height), text, font=ImageFont.load_default(18), fill=ink
    )
    return image.convert("L")


def test_lettering_on_quiet_ground_is_found_where_it_stands():
    ground = Image.linear_gradient("L").resize((600, 400)).convert("RGB")
    mark = find_mark(written(ground, y=0.9, ink="black"))
    assert mark is not None and mark.left < 0.2 and 0.87 < mark.top < 0.93 < mark.bottom < 1


@pytest.mark.parametrize("seed", range(4))
def test_leaves_and_drawings_hold_no_lettering(seed):
    assert find_mark(dead_leaves(rng(seed), 400).convert("L")) is None
    assert find_mark(on_paper(rng(seed), 400).convert("L")) is None


def test_lettering_in_the_middle_belongs_to_the_picture():
    assert find_mark(written(Image.new("RGB", (600, 400), "navy"), y=0.5)) is None


# --- fingerprints ---------------------------------------------------------------------------------


def similarity(one, other):
    plain, mirrored = vectors([fingerprint(one), fingerprint(other)])
    return float(plain[0] @ plain[1]), float(mirrored[0] @ plain[1])


def test_a_copy_has_nearly_the_same_fingerprint(leaves):
    copy = ImageEnhance.Brightness(leaves.resize((230, 260))).enhance(0.8)
    assert similarity(leaves, copy)[0] > 0.98


def test_a_mirrored_picture_is_known_from_the_mirrored_fingerprint(leaves):
    straight, mirrored = similarity(leaves, ImageOps.mirror(leaves))
    assert straight < 0.5 and mirrored > 0.999


def test_another_picture_has_another_fingerprint(leaves):
    assert max(similarity(leaves, dead_leaves(rng(9), 400))) < 0.6


def test_a_picture_of_one_colour_is_like_none(leaves):
    assert similarity(Image.new("RGB", (50, 50), "red"), leaves) == (0.0, 0.0)


def test_palettes_tell_colours_apart_but_not_light(leaves):
    plain, lighter, swapped, colourless = colours(
        [
            palette(each)
            for each in (
                leaves,
                ImageEnhance.Brightness(leaves).enhance(1.2),
                Image.merge("RGB", leaves.split()[::-1]),
                leaves.convert("L"),
            )
        ]
    )
    assert colour_distance(plain, lighter) < 0.15
    assert colour_distance(plain, swapped) > 0.5
    assert colour_distance(plain, colourless) < 0.05


def test_pictures_smaller_than_the_measures_are_measured(tmp_path):
    for size in ((1, 1), (1, 300), (300, 2), (40, 30)):
        measures = measure(save(tmp_path / "small.png", size))
        assert (
            (measures.width, measures.height) == size
            and measures.inner == (0, 0, *size)
            and measures.edge_width is None
        )


def test_a_turned_and_transparent_picture_is_measured_as_it_is_seen(tmp_path):

    image = flat(next(scenes.drawings(3, 8)).scene, 200)
    image = ImageOps.expand(image, (0, 30), "black")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    measures = measure(tmp_path / "turned.jpg")
    assert (measures.width, measures.height) == (200, 260)
    assert all(
        abs(found - wanted) <= 2
        for found, wanted in zip(measures.inner, (0, 30, 200, 230), strict=True)
    )
