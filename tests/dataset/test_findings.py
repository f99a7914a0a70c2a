"""Everything that is wrong is said at once, and the run stops unless the settings say otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lora_trainer.dataset.findings import (
    error,
    from_error,
    refuse,
    refuse_empty,
    report,
    sums,
    warning,
)
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings

LACKING = [
    error("no-caption", "{name} has no caption", hint="Write one.", name=f"{number:02d}.png")
    for number in range(13)
]
DAMAGED = error("unreadable-image", "{name} is damaged", hint="Copy it again.", name="x.png")
COPY = warning("duplicate-image", "{name} is a copy", name="y.png")


def settings(**values: object) -> DatasetSettings:
    return DatasetSettings(train_data_dir=Path("my data"), **values)  # type: ignore[arg-type]


def test_a_report_says_each_thing_once_names_ten_and_counts_the_rest():
    lines = report([COPY, *LACKING[:7], DAMAGED, *LACKING[7:]]).splitlines()
    assert lines == [
        "- 13 images have no caption",
        "  Write one.",
        (
            "  00.png, 01.png, 02.png, 03.png, 04.png, 05.png, 06.png, 07.png, 08.png, 09.png and 3"
            " more"
        ),
        "- x.png is damaged",
        "  Copy it again.",
        "- y.png is a copy",
    ]


def test_rows_of_one_table_are_counted_and_not_the_table():
    rows = [
        error(
            "unreadable-row",
            "{name}, line {line}: no image is named",
            path=Path("metadata.csv"),
            name="metadata.csv",
            line=line,
        )
        for line in (2, 3, 7)
    ]
    assert [str(one.named(3)) for one in sums(rows)] == ["3 rows cannot be read (metadata.csv)"]


def test_what_was_measured_of_each_picture_stands_below_their_sum():
    borders = [
        warning(
            "wide-border",
            "{name} has a border: {percent} %",
            name=f"{number}.png",
            percent=number,
            path=Path(f"{number}.png"),
        )
        for number in range(12)
    ]
    lines = report(borders).splitlines()
    assert lines[0] == "- 12 images have a wide border of one colour"
    assert lines[1:] == [
        *(f"  - {number}.png has a border: {number} %" for number in range(10)),
        "  - and 2 more like these",
    ]


def test_what_is_about_most_files_comes_first_of_its_severity():
    dark = [
        warning("too-dark", "{name} is dark", path=Path(f"{number}.png"), name=f"{number}.png")
        for number in range(2)
    ]
    alike = warning(
        "identical-captions",
        "{count} images have the same caption",
        related=tuple(Path(f"{number}.png") for number in range(20)),
        count=20,
    )
    lone = warning("blurred-image", "{name} is blurred", path=Path("9.png"), name="9.png")
    found = sums([lone, dark[0], alike, DAMAGED, dark[1]])
    assert [(one.kind, len(one.about)) for one in found] == [
        ("unreadable-image", 0),
        ("identical-captions", 20),
        ("too-dark", 2),
        ("blurred-image", 1),
    ]
    assert (
        str(found[2].named(1)) == "2 images are very dark (0.png ...)"
        and str(found[3].named(1)) == "9.png is blurred"
    )


def test_captions_that_many_share_are_not_added_up_to_one():
    groups = [
        warning(
            "identical-captions",
            "{count} images have the caption {caption}",
            count=3,
            caption=caption,
        )
        for caption in ("fox", "hen")
    ]
    assert [str(one.message) for one in sums(groups)] == [
        "3 images have the caption fox",
        "3 images have the caption hen",
    ]


def test_the_gravest_comes_first_and_a_hint_last():
    hint = dataclasses.replace(warning("little-variety", "all are alike"), severity="info")
    assert report([hint, COPY, DAMAGED]).splitlines() == [
        "- x.png is damaged",
        "  Copy it again.",
        "- y.png is a copy",
        "- all are alike",
    ]
    refuse([hint], settings())


def test_errors_stop_the_run_all_at_once():
    with pytest.raises(DatasetError) as caught:
        refuse([COPY, LACKING[0], DAMAGED], settings())
    assert (
        str(caught.value)
        == "the images and captions in my data need attention (2 found):\n- 00.png has no caption\n"
        "  Write one.\n- x.png is damaged\n  Copy it again."
    )
    assert "on_bad_data to skip" in str(caught.value.hint)
    assert caught.value.message.values["findings"] == (LACKING[0], DAMAGED)


def test_warnings_stop_nothing():
    refuse([COPY], settings())


def test_skip_stops_nothing():
    refuse([COPY, DAMAGED, *LACKING], settings(on_bad_data="skip"))


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_a_dataset_without_a_usable_image_is_refused_either_way(choice):
    with pytest.raises(DatasetError) as caught:
        refuse_empty([DAMAGED], settings(on_bad_data=choice))
    assert (
        str(caught.value)
        == "no image in my data can be used (1 found):\n- x.png is damaged\n  Copy it again."
    )


def test_an_error_about_a_file_becomes_a_finding_under_the_files_short_name():
    problem = DatasetError(
        "{path} is damaged ({reason})",
        hint="Copy {path} again.",
        path=Path("/long/way/a.png"),
        reason="bad {brace}",
    )
    finding = from_error("unreadable-image", problem, Path("/long/way/a.png"), "sub/a.png")
    assert str(finding) == "sub/a.png is damaged (bad {brace})"
    assert (finding.severity, finding.path) == ("error", Path("/long/way/a.png"))
