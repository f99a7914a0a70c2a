"""The check as a whole: a folder in, sentences with measures and fixes out."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lora_trainer.dataset.check import CheckedImage, check, check_folder, measure
from lora_trainer.dataset.check.caption_findings import caption_findings
from lora_trainer.dataset.check.image_findings import grown
from lora_trainer.dataset.check.similarity import variety
from lora_trainer.dataset.check.store import VERSION
from lora_trainer.dataset.embeddings import Embedded
from lora_trainer.dataset.embeddings import add as add_embeddings
from lora_trainer.dataset.images import digest
from lora_trainer.dataset.template import Vocabulary
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings
from tests.benchmark.check_quality import dead_leaves


@pytest.fixture(scope="module")
def scenes():
    return [dead_leaves(random.Random(seed), 256) for seed in range(6)]


@pytest.fixture
def folder(tmp_path, scenes):
    for number, scene in enumerate(scenes):
        put(tmp_path, f"scene{number}.png", scene, f"a scene with {number} leaves")
    return tmp_path


def put(folder, name, image, caption=None):
    image.save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def checked(folder, **options):
    settings = DatasetSettings(train_data_dir=folder, trigger_word=options.pop("trigger_word", ""))
    return check_folder(settings, resolution=256, **options)


def only(report, kind):
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def test_a_good_dataset_has_no_findings(folder):
    report = checked(folder)
    assert report.findings == () and not report.stops_training
    assert report.to_text() == "Images checked: 6. No problems found"


def test_each_fault_is_named_with_its_measure_and_its_fix(folder, scenes):
    put(
        folder,
        "blurred.png",
        dead_leaves(random.Random(20), 256).filter(ImageFilter.GaussianBlur(4)),
        "one",
    )
    put(
        folder,
        "bars.png",
        ImageOps.expand(dead_leaves(random.Random(21), 256), (0, 32), "black"),
        "two",
    )
    put(
        folder,
        "dark.png",
        dead_leaves(random.Random(22), 256).point(lambda level: level // 6),
        "three",
    )
    put(
        folder,
        "small.png",
        dead_leaves(random.Random(23), 256).resize((128, 128), Image.Resampling.LANCZOS),
        "four",
    )
    put(folder, "strip.png", dead_leaves(random.Random(24), 600).crop((0, 0, 600, 200)), "five")
    put(folder, "mirrored.png", ImageOps.mirror(scenes[0]), "six")
    (folder / "cut.png").write_bytes((folder / "scene1.png").read_bytes()[:3000])
    report = checked(folder)
    assert sorted(finding.kind for finding in report.findings) == [
        "blurred-image",
        "extreme-aspect",
        "near-duplicate",
        "no-caption",
        "small-image",
        "too-dark",
        "unreadable-image",
        "wide-border",
    ]
    assert only(report, "blurred-image").measured == pytest.approx(4, rel=0.35)
    border = only(report, "wide-border")
    assert (border.measured, border.fix) == (0.2, {"do": "crop", "box": [0, 32, 256, 288]})
    assert str(border) == "bars.png has a border of one colour: 20 % of the image"
    assert only(report, "small-image").measured == 2.0
    assert (only(report, "extreme-aspect").measured, only(report, "extreme-aspect").fix) == (
        3.0,
        {"do": "crop_subject", "ratio": 2.0},
    )
    copy = only(report, "near-duplicate")
    assert (
        copy.related == (folder / "mirrored.png", folder / "scene0.png")
        and copy.path == folder / "scene0.png"
    )
    assert copy.measured > 0.99 and copy.fix == {"do": "leave_out"}
    broken = only(report, "unreadable-image")
    assert str(
        broken
    ) == "cut.png is cut off: the file ends before the image does" and broken.fix == {
        "do": "leave_out"
    }
    assert report.stops_training


def test_a_copied_file_is_called_a_copy(folder):
    (folder / "twin.png").write_bytes((folder / "scene2.png").read_bytes())
    (folder / "twin.txt").write_text("a twin", encoding="utf-8")
    finding = only(checked(folder), "duplicate-image")
    assert str(finding) == "twin.png is a copy of scene2.png"


def test_the_larger_of_two_copies_is_the_one_to_keep(folder, scenes):
    put(folder, "again.png", scenes[3].resize((400, 400)), "again")
    finding = only(checked(folder), "near-duplicate")
    assert finding.path == folder / "scene3.png" and finding.related[0] == folder / "again.png"


def test_a_dataset_that_is_soft_altogether_is_told_once(folder):
    for path in folder.glob("*.png"):
        Image.open(path).filter(ImageFilter.GaussianBlur(4)).save(path)
    finding = only(checked(folder), "blurred-image")
    assert str(finding) == "most images are soft at 256: 6 of 6" and finding.path is None


def test_a_mask_says_how_much_of_the_picture_is_the_subject(folder):
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((32, 64, 63, 127), fill=255)
    mask.save(folder / "scene4_mask.png")
    finding = only(checked(folder), "small-subject")
    assert str(finding) == "scene4.png: the subject takes up 12 % of the image"
    # the mask is half the image's size: its box is 64 x 128 at (64, 128)
    assert finding.fix == {"do": "crop", "box": list(grown((64, 128, 128, 256), 0.6, 256, 256))}
    assert finding.measured == 0.125


def test_a_box_grows_around_the_subject_as_far_as_the_picture_goes():
    assert grown((100, 100, 200, 200), 0.25, 1000, 1000) == (50, 50, 250, 250)
    assert grown((0, 0, 100, 100), 0.25, 120, 1000) == (0, 0, 120, 150)


# --- captions -------------------------------------------------------------------------------------


def pictures(*captions):
    return [
        CheckedImage(path=Path(f"{number}.png"), name=f"{number}.png", caption=caption)
        for number, caption in enumerate(captions)
    ]


def test_captions_are_asked_for_but_not_the_trigger_word_which_training_adds():
    findings = caption_findings(pictures("", "Zorbl in snow", "a zorbling", None), "zorbl")
    assert [(finding.kind, str(finding.path)) for finding in findings] == [("no-caption", "0.png")]


def test_too_many_equal_captions_are_told_once():
    (finding,) = caption_findings(pictures("a fox", "A fox", "a fox", "a hen", "a cat"))
    assert (finding.kind, finding.measured, finding.path) == ("identical-captions", 3.0, None)
    assert [path.name for path in finding.about] == ["0.png", "1.png", "2.png"]
    assert str(finding) == '3 images have the same caption, "a fox"'
    assert caption_findings(pictures("a fox", "a fox", "a hen")) == []


def test_long_captions_are_counted_with_the_trigger_that_training_adds():
    def count(text):
        return len(text.replace(",", " ,").split())

    (finding,) = caption_findings(pictures("one two three", "one two"), "zorbl", count, 4)
    assert (
        str(finding) == "0.png: the caption has 5 tokens, 1 more than max_token_length 4"
        and finding.severity == "error"
    )


def test_captions_beside_the_vocabulary_are_named_with_the_fixed_one(folder):
    (folder / "scene0.txt").write_text("a scene, cold blue lights", encoding="utf-8")
    report = checked(folder, vocabulary=Vocabulary(fields={"light": ("cold blue light",)}))
    finding = only(report, "vocabulary")
    assert finding.fix == {"do": "set_caption", "caption": "a scene, cold blue light"}


def test_what_training_fills_in_is_not_called_identical(tmp_path, scenes):
    for number, scene in enumerate(scenes):
        put(tmp_path, f"{number}.png", scene)
    assert [finding.kind for finding in checked(tmp_path, trigger_word="zorbl").findings] == [
        "trigger-word-caption"
    ]


# --- variety --------------------------------------------------------------------------------------


def members(images, folder):
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return [
        (CheckedImage(path=path, name=path.name), measure.measure(path))
        for path in sorted(folder.glob("*.png"))
    ]


def test_copies_do_not_make_a_dataset_larger(tmp_path, scenes):
    found = variety(
        members([*scenes[:3], *(ImageOps.mirror(scene) for scene in scenes[:3])], tmp_path)
    )
    assert [(str(finding), finding.measured) for finding in found] == [
        ("there are only 3 different images", 3.0)
    ]


def test_pictures_of_one_composition_have_little_variety(tmp_path, scenes):
    ground = Image.radial_gradient("L").convert("RGB")
    assert variety(members(scenes, tmp_path)) == []
    (finding,) = variety(members([Image.blend(ground, scene, 0.4) for scene in scenes], tmp_path))
    assert finding.kind == "little-variety" and finding.measured > 0.6


def as_seen(folder, directions, unrelated=0.5, title="CLIP"):
    """What an encoder made of the images of a folder, in the order of their names: one direction
    each.
    """
    digests = [digest(path) for path in sorted(folder.glob("*.png"))]
    rows = [np.asarray(row, np.float64) / np.linalg.norm(row) for row in directions]
    by_digest = {
        content: row.astype(np.float16) for content, row in zip(digests, rows, strict=True)
    }
    return Embedded(
        encoder=f"{title} of a test", title=title, unrelated=unrelated, by_digest=by_digest
    )


ALIKE, APART = np.ones((6, 8)) + np.eye(6, 8), np.ones((6, 8)) + np.eye(6, 8) * 4
"""Directions with a distance (1 - cosine) of 1/11 and of 1/2 between any two."""


@pytest.mark.parametrize(
    ("directions", "unrelated", "measured"),
    [
        (ALIKE, 0.5, 0.182),
        (APART, 0.5, None),
        (np.ones((6, 8)), 0.5, 0.0),
        # one and the same distance is little to an encoder that sees images far apart, and much
        # to one that does not
        (ALIKE, 0.4, None),
        (APART, 4.0, 0.125),
    ],
)
def test_an_encoders_embeddings_are_read_by_the_encoders_own_scale(
    folder, directions, unrelated, measured
):
    add_embeddings(folder, as_seen(folder, directions, unrelated))
    found = [(each.kind, each.severity, each.measured) for each in checked(folder).findings]
    assert found == (
        [] if measured is None else [("little-variety", "info", pytest.approx(measured, abs=0.002))]
    )


def test_the_finding_says_whose_embeddings_it_is_from_and_what_to_do(folder):
    add_embeddings(folder, as_seen(folder, ALIKE, title="BLIP"))
    report = checked(folder)
    finding = only(report, "little-variety")
    assert str(finding) == (
        "for BLIP the images are very similar: they differ 18 % as much as unrelated images do"
    )
    assert (
        "add others, or other backgrounds and light" in str(finding.hint)
        and not report.stops_training
    )


def test_embeddings_are_asked_before_fingerprints(tmp_path, scenes):
    ground = Image.radial_gradient("L").convert("RGB")
    alike_in_light = members([Image.blend(ground, scene, 0.4) for scene in scenes], tmp_path)
    assert str(variety(alike_in_light)[0]).startswith(
        "the images are very similar in light and dark: "
    )
    assert variety(alike_in_light, [as_seen(tmp_path, APART)]) == []


def test_an_encoder_that_has_not_seen_nearly_all_pictures_is_not_asked(folder):
    add_embeddings(folder, as_seen(folder, ALIKE))
    assert only(checked(folder), "little-variety")
    # another content is another image, of which nothing is known; and five of six are not nearly
    # all
    dead_leaves(random.Random(30), 256).save(folder / "scene0.png")
    assert checked(folder).findings == ()


# --- the store, and use by the tab ----------------------------------------------------------------


def test_a_second_check_opens_no_picture(folder, tmp_path, monkeypatch):
    first = checked(folder, cache=tmp_path / "cache" / "check.json")
    monkeypatch.setattr(
        measure, "read_image", lambda path, **how: pytest.fail(f"{path} was opened")
    )
    monkeypatch.setattr(
        "lora_trainer.dataset.check.store.digest", lambda path: pytest.fail(f"{path} was read")
    )
    second = checked(folder, cache=tmp_path / "cache" / "check.json")
    assert second.measures == first.measures and second.findings == first.findings


def test_a_changed_picture_is_measured_again_and_a_moved_one_is_not(
    folder, tmp_path, monkeypatch, scenes
):
    cache = tmp_path / "check.json"
    checked(folder, cache=cache)
    (folder / "scene5.png").rename(folder / "moved.png")
    (folder / "scene5.txt").rename(folder / "moved.txt")
    scenes[0].filter(ImageFilter.GaussianBlur(4)).save(folder / "scene0.png")
    os.utime(folder / "scene0.png", (time.time() + 5, time.time() + 5))
    opened = []
    original = measure.read_image
    monkeypatch.setattr(
        measure,
        "read_image",
        lambda path, **how: (opened.append(path.name), original(path, **how))[1],
    )
    report = checked(folder, cache=cache)
    assert opened == ["scene0.png"] and only(report, "blurred-image").path == folder / "scene0.png"


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"version": 0}', f'{{"version": {VERSION}, "measures": 3, "digests": {{}}}}', "[]"],
)
def test_a_cache_that_cannot_be_read_is_begun_anew(folder, tmp_path, content):
    cache = tmp_path / "check.json"
    cache.write_text(content, encoding="utf-8")
    assert checked(folder, cache=cache).findings == ()
    assert json.loads(cache.read_text(encoding="utf-8"))["version"] == VERSION


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(folder, tmp_path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert checked(folder, cache=tmp_path / "file" / "check.json").findings == ()


def test_a_check_can_be_stopped(folder):
    class Stop(Exception):
        pass

    def progress(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        checked(folder, progress=progress)


def test_the_report_as_json_has_what_a_fix_needs(folder, scenes):
    put(folder, "bars.png", ImageOps.expand(scenes[0], (32, 0), "white"), "bars")
    data = json.loads(checked(folder).to_json(folder))
    border = next(each for each in data["findings"] if each["kind"] == "wide-border")
    assert (border["path"], border["fix"]) == (
        "bars.png",
        {"do": "crop", "box": [32, 0, 288, 256]},
    )
    assert (
        border["template"] == "{name} has a border of one colour: {percent} % of the image"
        and border["values"]["percent"] == "20"
    )
    copy = next(each for each in data["findings"] if each["kind"] == "near-duplicate")
    assert copy["related"] == ["scene0.png", "bars.png"]
    assert {"name": "bars.png", "width": 320, "height": 256} in data["images"]


def test_the_tab_checks_pictures_it_knows(folder):
    report = check(
        [CheckedImage(path=folder / "scene0.png", name="first", caption="")], resolution=512
    )
    assert [str(finding) for finding in report.findings] == [
        "first has no caption",
        "first is only 256 x 256 pixels: for 512 it is enlarged 2.0 times",
        "there is only one image, not counting copies",
    ]


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(DatasetError):
        checked(tmp_path)
