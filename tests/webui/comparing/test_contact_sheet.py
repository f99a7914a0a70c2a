from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from lora_trainer.webui.comparing import contact_sheet
from lora_trainer.webui.comparing.contact_sheet import sheet

RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")


def has_ink(area):
    return area.convert("L").getextrema()[0] < 80


@pytest.mark.parametrize("old_pillow", [False, True])
def test_pictures_lie_in_rows_and_columns_with_labels_that_can_be_read(old_pillow, monkeypatch):
    if old_pillow:  # before 10.1 there is only a bitmap font of one size
        bitmap = (
            ImageFont.load_default_imagefont()
            if hasattr(ImageFont, "load_default_imagefont")
            else ImageFont.load_default()
        )

        def load_default(size=None):
            if size is not None:
                raise TypeError("load_default() takes 0 positional arguments but 1 was given")
            return bitmap

        monkeypatch.setattr(ImageFont, "load_default", load_default)
    whole = sheet([[RED, BLUE], [BLUE, RED]], ["0", "0.5"], ["100", "200"])
    left, top = whole.width - 2 * 72, whole.height - 2 * 72
    assert left > 20 and top > 20
    corners = [
        whole.getpixel((left + 72 * column, top + 72 * row))
        for row in range(2)
        for column in range(2)
    ]
    assert corners == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]
    for column in range(2):
        assert has_ink(whole.crop((left + 72 * column, 0, left + 72 * column + 64, top)))
    for row in range(2):
        assert has_ink(whole.crop((0, top + 72 * row, left, top + 72 * row + 64)))


def test_one_row_without_a_name_has_no_column_for_names():
    assert sheet([[RED, BLUE]], ["0", "1"], [""]).width == 8 + 2 * 72


def test_a_name_that_the_bitmap_font_lacks_is_no_error(monkeypatch):
    monkeypatch.setattr(
        contact_sheet, "_font", lambda size, file: (ImageFont.load_default_imagefont(), 2)
    )
    assert sheet([[RED]], ["1"], ["狐狸"]).width > 72


def test_a_very_large_sheet_is_made_smaller(monkeypatch):
    monkeypatch.setattr(contact_sheet, "LONGEST_SIDE", 100)
    assert max(sheet([[RED, BLUE]], ["0", "1"], [""]).size) == 100


def test_a_font_file_that_is_not_one_is_left_aside(tmp_path):
    (tmp_path / "font.ttf").write_bytes(b"no font")
    assert has_ink(sheet([[RED]], ["1"], [""], tmp_path / "font.ttf").crop((0, 0, 72, 20)))
