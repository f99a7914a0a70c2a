"""The workbench of the captions on both WebUIs: many captions at once, tags, fields, the check, a
captioner; and everything undone again.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image, ImageDraw

from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from tests.browser.looks import NAMELESS, PALE, TOO_WIDE, complaints, resize, still
from tests.browser.played_worker import PlayedCaptioner
from tests.browser.tab import ROOT, eventually, expect, open_bare_tab, open_step, open_tab
from tests.made import draw_images

pytestmark = pytest.mark.webuis("a1111")

CAPTIONS = [
    "red fox, snow, day",
    "red fox, forest, day",
    "grey wolf, snow, night",
    "grey wolf, forest, night",
]


class Dataset:
    """A dataset's folder and its name in the tab."""

    def __init__(self, host: Any, captions: list[str]) -> None:
        self.name = f"Bench {time.time_ns()}"
        self.id = host.post("datasets", {"name": self.name}).json()["id"]
        self.folder: Path = host.trainer_folder / "datasets" / self.id
        draw_images(self.folder, len(captions))
        self.write(captions)

    def write(self, captions: list[str]) -> None:
        """As a spreadsheet does it."""
        lines = [f'img{number:02d}.png,"{caption}"' for number, caption in enumerate(captions)]
        (self.folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def captions(self) -> list[str]:
        """As they are on disk."""
        with (self.folder / "metadata.csv").open(encoding="utf-8-sig", newline="") as stream:
            rows = {row[0]: row[1] for row in csv.reader(stream)}
        return [rows[name] for name in sorted(rows) if name != "file_name"]


@pytest.fixture
def dataset(host: Any) -> Iterator[Dataset]:
    """Four captions of three tags."""
    made = Dataset(host, CAPTIONS)
    yield made
    host.post(f"datasets/{quote(made.id)}/delete")


@pytest.fixture
def visitor(dataset: Dataset, visitor: Any) -> Any:
    """One who comes after the dataset, and leaves before it is deleted: an open page asks for the
    images of what it shows.
    """
    return visitor


@pytest.fixture
def visit(dataset: Dataset, visit: Any) -> Any:
    """The same for several."""
    return visit


def open_captions(page: Any, dataset: Dataset) -> Any:
    """The section with this dataset's rows in it."""
    images = open_step(page, "images")
    images.get_by_role("radio", name=dataset.name).click()
    section = open_step(page, "captions")
    section.get_by_role("heading", name=dataset.name).wait_for()
    section.locator(".lora-trainer-caption-row").first.wait_for()
    return section


def choose(section: Any, item: str) -> None:
    section.get_by_role("button", name="More", exact=True).click()
    section.get_by_role("menuitem", name=item, exact=True).click()


def dialog_of(page: Any, title: str) -> Any:
    dialog = page.locator("dialog[open]", has=page.get_by_role("heading", name=title, exact=True))
    dialog.wait_for()
    return dialog


def apply(dialog: Any) -> None:
    dialog.locator(".lora-trainer-dialog-actions .lora-trainer-primary").click()


def names(section: Any) -> list[str]:
    return [
        str(name)
        for name in section.locator(
            ".lora-trainer-caption-row .lora-trainer-cell-name"
        ).all_text_contents()
    ]


# --- many at once ---------------------------------------------------------------------------------


def test_a_change_is_seen_before_it_is_made_and_undone_after(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_role("button", name="Batch edit").click()
    dialog = dialog_of(page, "Batch edit captions")
    dialog.get_by_label("Change", exact=True).select_option("replace")
    dialog.get_by_label("Find", exact=True).fill("[")
    dialog.get_by_label("Regular expression").check()
    dialog.get_by_role("alert").wait_for()
    expect(dialog.get_by_role("button", name="Change", exact=True)).to_be_disabled()
    dialog.get_by_label("Find", exact=True).fill(r"(red|grey) (\w+)")
    dialog.get_by_label("Replace with").fill(r"\2 in \1")
    dialog.get_by_text("4 of 4 captions will change.").wait_for()
    eventually(lambda: dialog.locator("li").first.locator("del").all_text_contents(), ["red "])
    eventually(lambda: dialog.locator("li").first.locator("ins").all_text_contents(), [" in red"])
    eventually(dataset.captions, CAPTIONS)
    apply(dialog)
    page.get_by_text("4 captions changed").wait_for()
    changed = [
        "fox in red, snow, day",
        "fox in red, forest, day",
        "wolf in grey, snow, night",
        "wolf in grey, forest, night",
    ]
    assert dataset.captions() == changed
    eventually(lambda: section.get_by_label("Caption of img00.png").input_value(), changed[0])

    page.reload()
    undo = page.locator(ROOT).get_by_role("button", name="Undo: ").first
    undo.click()
    page.get_by_text("Undone: ").wait_for()
    eventually(dataset.captions, CAPTIONS)
    page.get_by_role("button", name="Redo").click()
    eventually(dataset.captions, changed)


def test_only_what_is_selected_changes_and_what_somebody_else_changed_meanwhile_stays(
    host, visitor, dataset
):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_label("Select img00.png").check()
    section.get_by_label("Select img02.png").click(modifiers=["Shift"])
    section.get_by_text("3 selected").wait_for()
    section.get_by_label("Select img01.png").uncheck()
    section.get_by_role("button", name="Batch edit").click()
    dialog = dialog_of(page, "Batch edit captions")
    dialog.get_by_label("Words", exact=True).fill("ink, snow")
    dialog.get_by_text("2 of 2 captions will change.").wait_for()
    apply(dialog)
    page.get_by_text("2 captions changed").wait_for()
    assert dataset.captions() == [
        "red fox, snow, day, ink",
        CAPTIONS[1],
        "grey wolf, snow, night, ink",
        CAPTIONS[3],
    ]
    # what somebody else changed after the preview stays, and is named
    section.get_by_role("button", name="Undo: ").click()
    eventually(dataset.captions, CAPTIONS)
    section.get_by_role("button", name="Select none").click()
    section.get_by_role("button", name="Batch edit").click()
    dialog = dialog_of(page, "Batch edit captions")
    dialog.get_by_label("Words", exact=True).fill("ink")
    dialog.get_by_text("4 of 4 captions will change.").wait_for()
    dataset.write([CAPTIONS[0], "from the spreadsheet", *CAPTIONS[2:]])
    apply(dialog)
    left = dialog_of(page, "1 caption was not changed")
    assert left.locator("li").all_text_contents()[0].startswith("img01.png")
    expect(left.locator("li").first).to_contain_text("from the spreadsheet", use_inner_text=True)
    assert dataset.captions() == [
        "red fox, snow, day, ink",
        "from the spreadsheet",
        "grey wolf, snow, night, ink",
        "grey wolf, forest, night, ink",
    ]


def test_the_tags_stay_beside_the_images_and_a_tag_shows_them_and_goes_from_all_captions(
    host, visitor, dataset
):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_role("button", name="Tags", exact=True).click()
    table = section.get_by_role("region", name="Tags", exact=True)
    for _ in range(2):
        row = section.locator(".lora-trainer-caption-row").first
        table.get_by_role("button", name="snow: in 2 captions").wait_for()
        left, right = table.bounding_box(), row.bounding_box()
        assert (
            left["x"] + left["width"] <= right["x"]
            and right["width"] > 430
            and left["width"] >= 230
        )
        page.reload()
        section.locator(".lora-trainer-caption-row").first.wait_for()
    section.get_by_role("button", name="Tags", exact=True).click()
    expect(table).to_be_hidden()
    # a tag shows its images, and goes from all captions
    section.get_by_role("button", name="Tags", exact=True).click()
    table.get_by_text("6 different tags").wait_for()
    eventually(
        lambda: [
            text.strip()
            for text in table.locator(".lora-trainer-bench-tag-count").all_text_contents()
        ],
        ["2"] * 6,
    )
    table.get_by_role("button", name="snow: in 2 captions. Show them").click()
    section.get_by_text("2 of 4 images").wait_for()
    assert names(section) == ["img00.png", "img02.png"]
    section.get_by_role("button", name="Remove the filter Tag: snow").click()
    table.get_by_role("button", name="Remove snow from all captions").click()
    page.get_by_text("2 captions changed").wait_for()
    assert dataset.captions() == ["red fox, day", CAPTIONS[1], "grey wolf, night", CAPTIONS[3]]
    table.get_by_text("5 different tags").wait_for()
    # several narrow what is shown, and others are kept away
    section.get_by_role("button", name="Undo: ").click()
    eventually(dataset.captions, CAPTIONS)
    table.get_by_text("6 different tags").wait_for()
    section.get_by_role("button", name="red fox: in 2 captions").click()
    eventually(lambda: names(section), ["img00.png", "img01.png"])
    section.get_by_role("button", name="night: in 2 captions").click()
    section.get_by_text("No images match.").wait_for()
    section.get_by_label("Match").select_option("any")
    eventually(lambda: len(names(section)), 4)
    section.get_by_role("button", name="Show the captions without snow").click()
    eventually(lambda: names(section), ["img01.png", "img03.png"])
    # only in what was counted
    section.get_by_text("Sorting and counting").click()
    section.get_by_label("Images to count").select_option("matching")
    section.get_by_role(
        "button", name="Remove forest from the captions that match the filter"
    ).click()
    eventually(
        dataset.captions,
        ["red fox, snow, day", "red fox, day", "grey wolf, snow, night", "grey wolf, night"],
    )
    section.get_by_role("button", name="Remove the filter Not: snow").click()
    eventually(lambda: len(names(section)), 4)


def test_tags_of_the_dataset_are_offered_where_many_are_changed_and_while_one_is_typed(
    host, visitor, dataset
):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_role("button", name="Batch edit").click()
    dialog = dialog_of(page, "Batch edit captions")
    dialog.get_by_label("Change", exact=True).select_option("remove")
    box = dialog.get_by_label("Tags", exact=True)
    box.press_sequentially("sn")
    eventually(dialog.locator("[role=listbox] li:visible").all_text_contents, ["snow2"])
    box.press("Enter")
    expect(box).to_have_value("snow, ")
    dialog.get_by_text("2 of 4 captions will change.").wait_for()
    # Escape closes the list, and then the dialog
    box.press_sequentially("fo")
    dialog.locator("[role=listbox] li:visible").first.wait_for()
    box.press("Escape")
    expect(dialog).to_be_visible()
    expect(dialog.locator("[role=listbox]")).to_be_hidden()
    dialog.get_by_label("Change", exact=True).select_option("replace-tag")
    box = dialog.get_by_label("Tag", exact=True)
    box.press_sequentially("gre")
    dialog.locator("[role=listbox] li:visible").first.click()
    expect(box).to_have_value("grey wolf")
    dialog.get_by_label("New name").fill("white wolf")
    dialog.get_by_text("2 of 4 captions will change.").wait_for()
    apply(dialog)
    eventually(
        dataset.captions,
        [
            "red fox, snow, day",
            "red fox, forest, day",
            "white wolf, snow, night",
            "white wolf, forest, night",
        ],
    )
    section.get_by_role("button", name="Undo: ").click()
    eventually(dataset.captions, CAPTIONS)
    # while a caption is typed
    row = section.locator(".lora-trainer-caption-row").first
    box = row.get_by_role("textbox")
    box.press("Control+End")
    box.press_sequentially(", FOR")
    options = row.get_by_role("option")
    eventually(options.all_text_contents, ["forest2"])
    box.press("Enter")
    expect(box).to_have_value("red fox, snow, day, forest, ")
    # as if it were typed
    box.press("Control+z")
    expect(box).to_have_value("red fox, snow, day, FOR")
    box.press("Control+End")
    box.press_sequentially("E")
    options.first.wait_for()
    box.press("ArrowDown")
    assert box.get_attribute("aria-activedescendant") == options.first.get_attribute("id")
    box.press("Tab")
    expect(box).to_have_value("red fox, snow, day, forest, ")
    # nothing is offered that the caption has, nor when nothing fits
    box.press_sequentially("snow")
    page.wait_for_timeout(400)
    expect(row.get_by_role("listbox")).to_be_hidden()
    for _ in range(4):
        box.press("Backspace")
    box.press("Tab")
    eventually(lambda: dataset.captions()[0], "red fox, snow, day, forest")


def test_selected_images_are_marked_removed_and_brought_back_by_the_keyboard(
    host, visitor, dataset
):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_label("Select img01.png").check()
    section.get_by_label("Select img03.png").click(modifiers=["Shift"])
    section.get_by_role("button", name="Mark as reviewed").click()
    page.get_by_text("3 captions marked as reviewed").wait_for()
    eventually(
        lambda: [box.is_checked() for box in section.get_by_label("Reviewed", exact=True).all()],
        [False, True, True, True],
    )
    section.get_by_role("button", name="Remove images").click()
    eventually(lambda: names(section), ["img00.png"])
    page.keyboard.press("Control+z")
    eventually(lambda: len(names(section)), 4)
    eventually(dataset.captions, CAPTIONS)
    page.keyboard.press("Control+y")
    eventually(lambda: names(section), ["img00.png"])
    # in a box the keys are the box's own
    section.get_by_label("Caption of img00.png").press("Control+z")
    page.wait_for_timeout(500)
    assert names(section) == ["img00.png"]


def test_beside_large_pictures_the_keyboard_goes_from_caption_to_caption(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    small = section.locator(".lora-trainer-caption-image img").first.bounding_box()["width"]
    section.get_by_label("Images", exact=True).select_option("large")
    image = section.locator(".lora-trainer-caption-image img").first
    assert "/image/" in image.get_attribute("src")
    assert image.bounding_box()["width"] > 2 * small
    page.reload()
    page.locator(f"{ROOT} .lora-trainer-captions[data-images=large]").wait_for()
    # page keys go from caption to caption, and save
    focused = lambda: page.evaluate("document.activeElement.getAttribute('aria-label')")  # noqa: E731
    box = section.get_by_label("Caption of img00.png")
    box.fill("a fox")
    box.press("PageDown")
    assert focused() == "Caption of img01.png"
    eventually(lambda: dataset.captions()[0], "a fox")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    # the whole image came along
    row = section.locator(".lora-trainer-caption-row").last.bounding_box()
    assert row["y"] >= 0 and row["y"] + row["height"] <= page.viewport_size["height"]
    page.keyboard.press("PageUp")
    assert focused() == "Caption of img02.png"
    choose(section, "Keyboard shortcuts")
    expect(dialog_of(page, "Keyboard shortcuts").get_by_text("Page Down, Page Up")).to_be_visible()
    page.keyboard.press("Escape")

    # what is done with a selection follows down the page
    resize(page, 700)
    last = section.locator(".lora-trainer-caption-row").last
    last.scroll_into_view_if_needed()
    bar = section.locator(".lora-trainer-bench-selection")
    assert bar.bounding_box()["y"] < 0
    section.get_by_label("Select img03.png").check()
    eventually(lambda: round(bar.bounding_box()["y"]), 0)
    bar.get_by_role("button", name="Batch edit").click()
    eventually(
        lambda: (
            dialog_of(page, "Batch edit captions")
            .get_by_label("Which images")
            .locator("option:checked")
            .text_content()
        ),
        "The selected images (1)",
    )
    page.keyboard.press("Escape")
    bar.get_by_role("button", name="Select none").click()
    eventually(lambda: bar.bounding_box()["y"] < 0, True)


def test_filters_stay_for_the_session_and_ctrl_enter_marks_as_reviewed(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_label("Caption or name contains").fill("forest")
    eventually(lambda: names(section), ["img01.png", "img03.png"])
    page.reload()
    section = page.locator("#lora_trainer_section_captions")
    eventually(lambda: names(section), ["img01.png", "img03.png"])
    expect(section.get_by_label("Caption or name contains")).to_have_value("forest")

    section.get_by_label("Caption of img01.png").press("Control+Enter")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')") == "Caption of img03.png"
    )
    section.locator(".lora-trainer-caption-row").first.get_by_label("Reviewed").and_(
        section.locator(":checked")
    ).wait_for()
    section.get_by_role("button", name="Show all").click()
    section.get_by_label("Which images", exact=True).select_option("unreviewed")
    eventually(lambda: names(section), ["img00.png", "img02.png", "img03.png"])


def test_a_model_that_reads_longer_captions_has_its_own_limit_and_what_falls_off_the_end_is_struck_out(
    host, visitor, dataset
):
    def of_flux(route):
        told = route.fetch().json()
        for known in (told["loaded"], *told["checkpoints"]):
            known["caption_tokens"] = 512
        route.fulfill(json=told)

    page = open_bare_tab(visitor, host)
    # from here on, the browser's cache is of no use: the tab starts again, and loads no module
    for name in ("home", "checkpoints"):
        visitor.context.route(f"**/lora-trainer/{name}", of_flux)
    page.evaluate("loraTrainer.tab.start()")
    section = open_captions(page, dataset)
    row = section.locator(".lora-trainer-caption-row").first
    row.get_by_text("6 / 512 tokens").wait_for()
    # what falls off the end of a caption is struck out while it is typed
    if not host.post("tokens", {"caption": "a fox", "trigger": "", "limit": 75}).json()[
        "available"
    ]:
        pytest.skip("CLIP's vocabulary is not installed here")
    visitor.context.unroute_all(behavior="wait")
    page.evaluate("loraTrainer.tab.start()")
    row.get_by_text("6 / 75 tokens").wait_for()
    section.get_by_label("Caption of img00.png").fill("fox " * 75 + "snow owl")
    row.get_by_text("77 / 75 tokens").wait_for()
    eventually(lambda: row.locator("s").inner_text().strip(), "snow owl")
    section.get_by_label("Caption of img00.png").fill("fox, snow")
    row.get_by_text("3 / 75 tokens").wait_for()
    expect(row.locator("s")).to_be_hidden()


def test_a_captioner_is_stopped_by_a_click_and_the_page_shows_what_it_wrote(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    captioner = PlayedCaptioner(
        RunFolder(host.trainer_folder / "runs" / dataset.id), str(dataset.folder), len(CAPTIONS)
    )
    try:
        captioner.write(events.Progress(step=1, seconds_left=60.0))
        section = open_captions(page, dataset)
        panel = section.get_by_role("region", name="Writing captions", exact=True)
        panel.get_by_text("1 of 4 images").wait_for()
        panel.get_by_role("button", name="Stop").click()
        assert captioner.taken() == "stop"
        dataset.write(["from the captioner", *CAPTIONS[1:]])
        captioner.end(events.Stopped(step=1, file=str(dataset.folder)))
        panel.get_by_text("The captioner has stopped.").wait_for()
        expect(panel.get_by_role("button", name="Continue")).to_be_visible()
        expect(section.get_by_label("Caption of img00.png")).to_have_value("from the captioner")
        panel.get_by_role("button", name="Close").click()
        panel.wait_for(state="hidden")
    finally:
        page.goto("about:blank")
        captioner.go()


# --- what was typed -------------------------------------------------------------------------------


def test_a_page_that_is_left_while_somebody_types_saves_first(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    page.on("dialog", lambda dialog: dialog.accept())
    box = section.get_by_label("Caption of img00.png")
    box.fill("the last words")
    page.goto("about:blank")
    eventually(dataset.captions, ["the last words", *CAPTIONS[1:]])


def test_what_is_typed_as_soon_as_the_step_opens_is_saved_though_every_answer_is_late(
    host, visitor, dataset
):
    page = open_bare_tab(visitor, host)
    open_step(page, "images").get_by_role("radio", name=dataset.name).click()
    page.route("**/lora-trainer/**", lambda route: page.wait_for_timeout(300) or route.continue_())
    section = open_step(page, "captions")
    box = section.get_by_label("Caption of img00.png")
    box.fill("typed at once")
    box.blur()
    section.get_by_text("Saved", exact=True).wait_for()
    eventually(dataset.captions, ["typed at once", *CAPTIONS[1:]])
    # answers that are still late would outlive the page
    page.unroute_all(behavior="wait")


# --- fields and words -----------------------------------------------------------------------------


def test_a_caption_in_fields_and_the_datasets_own_words(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_label("Caption of img00.png").press("F2")
    dialog = dialog_of(page, "Fields of a caption")
    expect(dialog.get_by_label("Subject", exact=True)).to_have_value("red fox")
    dialog.get_by_label("Light", exact=True).fill("soft light")
    dialog.locator("ins", has_text="soft light").wait_for()
    dialog.get_by_role("button", name="Save and next").click()
    dialog.get_by_text("img01.png (2 of 4)").wait_for()
    written = dataset.captions()[0]
    assert (
        written.startswith("red fox, ")
        and "soft light" in written
        and set(written.split(", ")) == {"red fox", "snow", "day", "soft light"}
    )
    page.keyboard.press("Escape")

    choose(section, "Template and vocabulary")
    words = dialog_of(page, "Template and vocabulary")
    words.get_by_label("Subject", exact=True).fill("gray wolf")
    words.get_by_role("button", name="Save and check").click()
    words.get_by_text("2 captions differ from it").wait_for()
    words.get_by_role("button", name="Fix", exact=True).first.click()
    words.get_by_text("1 caption differs from it").wait_for()
    assert dataset.captions()[2:] == ["gray wolf, snow, night", "grey wolf, forest, night"]
    eventually(
        lambda: section.get_by_label("Caption of img02.png").input_value(), "gray wolf, snow, night"
    )


def test_captions_go_out_and_come_in_again(host, visitor, dataset, tmp_path):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    choose(section, "Export captions")
    dialog = dialog_of(page, "Export captions")
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Download").last.click()
    lines = [
        json.loads(line) for line in Path(download.value.path()).read_text("utf-8").splitlines()
    ]
    assert [line["text"] for line in lines] == CAPTIONS
    page.keyboard.press("Escape")

    choose(section, "Import captions")
    table = tmp_path / "new.csv"
    table.write_text(
        "file_name,text\nimg03.png,from a table\nnowhere.png,nothing\n", encoding="utf-8"
    )
    dialog = dialog_of(page, "Import captions")
    dialog.get_by_label("Files").set_input_files(table)
    apply(dialog)
    dialog.get_by_text("1 caption written").wait_for()
    dialog.get_by_text("nowhere.png").wait_for()
    assert dataset.captions() == [*CAPTIONS[:3], "from a table"]
    page.keyboard.press("Escape")
    section.get_by_role("button", name="Undo: ").click()
    eventually(dataset.captions, CAPTIONS)


# --- images -------------------------------------------------------------------------------------


def spoil(folder: Path) -> None:
    """img01 gets a wide border; img03 is img02 again."""
    bordered = Image.new("RGB", (640, 640), "black")
    inner = Image.effect_noise((640, 400), 90).convert("RGB")
    ImageDraw.Draw(inner).ellipse((200, 60, 460, 320), fill="teal", outline="white", width=6)
    bordered.paste(inner, (0, 120))
    bordered.save(folder / "img01.png")
    (folder / "img03.png").write_bytes((folder / "img02.png").read_bytes())


def test_what_the_check_finds_is_fixed_with_a_click_and_undone(host, visitor, dataset, screenshots):
    spoil(dataset.folder)
    before = (dataset.folder / "img01.png").read_bytes()
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_role("button", name="Check images").click()
    found = section.get_by_role("region", name="Check", exact=True)
    border = found.locator(".lora-trainer-bench-sum", has_text="border of one colour")
    border.wait_for()
    if screenshots is not None:
        page.screenshot(path=screenshots / f"{host.flavour}-check.png")
    border.locator("summary").click()
    eventually(
        lambda: border.locator("figcaption .lora-trainer-cell-name").all_text_contents(),
        ["img01.png"],
    )
    border.get_by_role("button", name="Show only these").click()
    eventually(lambda: names(section), ["img01.png"])
    # what was asked for is in sight, though the list of what was found is long
    eventually(
        lambda: section.locator(".lora-trainer-caption-row").evaluate(
            "row => row.getBoundingClientRect().top < innerHeight - 200"
        ),
        True,
    )
    crop = section.locator(".lora-trainer-caption-row").get_by_role(
        "button", name="Crop", exact=True
    )
    crop.hover()
    section.locator(".lora-trainer-bench-outline").wait_for()
    crop.click()
    page.get_by_text("1 image fixed").wait_for()
    with Image.open(dataset.folder / "img01.png") as image:
        assert image.size == (640, 400)
    # however long the list of datasets takes, the button is for the next change
    page.evaluate(
        "() => { const { api } = loraTrainer, { get } = api; api.get = (path, ...rest) => path ==="
        " 'datasets' ? new Promise(() => {}) : get(path, ...rest); }"
    )
    section.get_by_role("button", name="Undo: ").click()
    eventually(lambda: (dataset.folder / "img01.png").read_bytes(), before)
    page.get_by_text("Undone: ").wait_for()

    head = found.locator("summary", has_text="of issue")
    head.click()
    expect(found.get_by_role("button", name="Compare")).to_be_hidden()
    section.get_by_role("button", name="Tags", exact=True).click()
    head.click()
    section.get_by_role("button", name="Tags", exact=True).click()
    section.get_by_role("button", name="Tags", exact=True).click()
    tags = section.get_by_label("Find a tag", exact=True)
    assert tags.evaluate(
        "box => box === document.activeElement && box.getBoundingClientRect().bottom < innerHeight"
        " - 100"
    )
    section.get_by_role("button", name="Tags", exact=True).click()

    found.get_by_role("button", name="Compare").click()
    dialog = dialog_of(page, "Similar images")
    eventually(
        lambda: sorted(dialog.locator(".lora-trainer-cell-name").all_text_contents()),
        ["img02.png", "img03.png"],
    )
    figure = dialog.locator("figure", has_text="img03.png")
    figure.get_by_role("button", name="Keep this one").click()
    dialog.wait_for(state="detached")
    assert sorted(path.name for path in dataset.folder.glob("*.png")) == [
        "img00.png",
        "img01.png",
        "img03.png",
    ]
    section.get_by_role("button", name="Undo: ").click()
    eventually(lambda: (dataset.folder / "img02.png").is_file(), True)
    eventually(dataset.captions, CAPTIONS)


def test_pictures_are_cropped_into_a_dataset_of_their_own(host, visitor, dataset):
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    choose(section, "Crop into a new dataset")
    dialog = dialog_of(page, "Crop into a new dataset")
    expect(dialog.get_by_label("Name of the new dataset")).to_have_value(f"{dataset.name} 512")
    apply(dialog)
    dialog.get_by_text("4 images in the new dataset").wait_for()
    dialog.get_by_role("button", name="Go to the new dataset").click()
    section.get_by_role("heading", name=f"{dataset.name} 512").wait_for()
    new = dataset.folder.parent / f"{dataset.name} 512"
    with Image.open(new / "img00.png") as image:
        assert image.size == (512, 512)
    with Image.open(dataset.folder / "img00.png") as image:
        assert image.size == (64, 64)
    eventually(lambda: section.get_by_label("Caption of img00").input_value(), CAPTIONS[0])
    # a page that shows it asks for its edits
    page.close()
    host.post(f"datasets/{quote(new.name)}/delete")


# --- a captioner ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("forking_host")
def test_a_captioner_writes_what_is_missing(host, visitor, dataset):
    captioners = pytest.importorskip("tests.captioning.tiny_captioners")
    dataset.write([CAPTIONS[0], "", "", ""])
    page = open_bare_tab(visitor, host)
    section = open_captions(page, dataset)
    section.get_by_label("Select img03.png").check()
    section.get_by_role("button", name="Write captions").click()
    dialog = dialog_of(page, "Write captions")
    eventually(
        lambda: dialog.get_by_label("Which images").locator("option:checked").text_content(),
        "The selected images (1)",
    )
    expect(
        dialog.get_by_role("radio", name="All 1, including captions by a person")
    ).to_be_visible()
    dialog.get_by_label("Which images").select_option("all")
    dialog.get_by_role("radio", name="Only images without a caption (3)").check()
    dialog.get_by_role("radio", name="BLIP base").check()
    dialog.get_by_label("Caption prefix").fill("a drawing of")
    dialog.get_by_text("More settings").click()
    dialog.get_by_label("Another model").fill(str(captioners.tiny_blip()))
    apply(dialog)
    panel = section.get_by_role("region", name="Writing captions", exact=True)
    panel.get_by_role("progressbar").wait_for()
    panel.get_by_text("The captions are written.").wait_for(timeout=300_000)
    eventually(
        lambda: (
            section.get_by_label("Caption of img01.png").input_value().startswith("a drawing of")
        ),
        True,
    )
    captions = dataset.captions()
    assert captions[0] == CAPTIONS[0]
    assert all(caption.startswith("a drawing of") for caption in captions[1:])
    section.get_by_role("button", name="Undo: Captioned with BLIP base").wait_for()
    section.get_by_label("Which images", exact=True).select_option("machine")
    eventually(lambda: names(section), ["img01.png", "img02.png", "img03.png"])


# --- looks ----------------------------------------------------------------------------------------


@pytest.mark.webuis("a1111-dark", "forge-light")
@pytest.mark.parametrize(
    ("scheme", "widths"), [("dark", (1280, 390)), ("light", (1280, 1600))], ids=["dark", "light"]
)
def test_every_dialog_fits_and_can_be_read(host, visit, dataset, screenshots, scheme, widths):
    page = open_tab(visit(color_scheme=scheme), host, f"?__theme={scheme}")
    section = open_captions(page, dataset)
    problems = {}

    def look(name: str) -> None:
        still(page, 100)
        for width in widths:
            resize(page, width)
            if screenshots is not None:
                page.screenshot(
                    path=screenshots / f"{host.flavour}-bench-{name}-{scheme}-{width}.png"
                )
            if found := complaints(page, TOO_WIDE, PALE, NAMELESS):
                problems[name, width] = found

    section.get_by_label("Select this page").check()
    section.get_by_role("button", name="Tags", exact=True).click()
    look("tags")
    section.get_by_role("button", name="Tags", exact=True).click()
    for button in ("Write captions", "Batch edit"):
        section.get_by_role("button", name=button).click()
        page.locator("dialog[open]").wait_for()
        look(button)
        page.keyboard.press("Escape")
    for item in (
        "Template and vocabulary",
        "What training will read",
        "Crop into a new dataset",
        "Import captions",
        "Export captions",
        "Changes",
    ):
        choose(section, item)
        page.locator("dialog[open]").wait_for()
        look(item)
        page.keyboard.press("Escape")
    section.get_by_label("Caption of img00.png").press("F2")
    page.locator("dialog[open]").wait_for()
    look("fields")
    assert problems == {}
