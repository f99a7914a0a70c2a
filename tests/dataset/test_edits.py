"""Captions changed in place: what was asked for changes, and nothing else does."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from lora_trainer.dataset import edits
from lora_trainer.dataset.edits import (
    ChangedMeanwhile,
    remove_rows,
    restore_rows,
    rows_of,
    write_captions,
)
from lora_trainer.dataset.listing import list_folder
from lora_trainer.dataset.sources import fill_in, read_captions
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings


def dataset(
    folder: Path, files: dict[str, str | bytes], images: tuple[str, ...] = ("a.png", "b.png")
) -> Path:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, content in files.items():
        (folder / name).write_bytes(
            content.encode("utf-8") if isinstance(content, str) else content
        )
    return folder


def read(folder: Path):
    listing, settings = list_folder(folder), DatasetSettings(train_data_dir=folder)
    return listing, fill_in(read_captions(listing, settings), listing.images, listing, settings)


def write(folder: Path, **captions: str) -> None:
    listing, found = read(folder)
    write_captions(
        listing, found, {folder / f"{name}.png": caption for name, caption in captions.items()}
    )


def shown(folder: Path) -> dict[str, str]:
    listing, found = read(folder)
    return {listing.name(image): caption.text for image, caption in found.by_image.items()}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        (
            "metadata.csv",
            (
                '"file_name","text","note"\r\n"a.png","a fox, ""red""","keep'
                ' ""this"""\r\n"b.png","b",""\r\n'
            ),
        ),
        ("metadata.csv", 'file_name,text,,\na.png, "a  fox, red" ,,\nb.png,b,,\n'),
        ("metadata.csv", 'file_name,text\r\na.png,"one fox\r\na  fox"\r\nb.png,"x\r\ny"\r\n'),
        ("metadata.csv", 'sep=;\r\nfile;caption\r\na.png;"a fox"\r\nb.png;b'),
        ("metadata.tsv", 'file_name\ttext\textra\na.png\ta fox\t"x"\nb.png\tb\t\n'),
        ("a.txt", "a  fox,red \r\n\r\ntwo  fox\r\n"),
        ("a.txt", "a fox,\r\nred,\nsnow, fox\r\n"),
    ],
)
def test_one_word_changes_and_not_one_byte_more(tmp_path, name, before):
    folder = dataset(tmp_path, {name: before})
    write(folder, a=shown(folder)["a.png"].replace("fox", "wolf"))
    assert (folder / name).read_bytes().decode("utf-8") == before.replace("fox", "wolf")


@pytest.mark.parametrize(
    ("name", "before", "caption", "after"),
    [
        ("a.txt", "a  fox,\r\n\r\nred \r\n", "a grey wolf,\nred", "a  grey wolf,\r\n\r\nred \r\n"),
        ("a.txt", "a  fox \n", "a fox, snow", "a  fox, snow \n"),
        (
            "metadata.csv",
            'file_name,text\r\na.png,"a  fox\r\n\r\nred"\r\n',
            "a fox\nred\nsnow",
            'file_name,text\r\na.png,"a  fox\r\n\r\nred\r\nsnow"\r\n',
        ),
        (
            "metadata.csv",
            'file_name,text\na.png,"a  fox\n\nred"\n',
            "a fox\nred\nsnow",
            'file_name,text\na.png,"a  fox\n\nred\nsnow"\n',
        ),
        (
            "metadata.csv",
            'image,caption,note\na.png, a  fox, "x"\n',
            "a fox, snow",
            'image,caption,note\na.png, "a  fox, snow", "x"\n',
        ),
    ],
    ids=["several words", "at the end", "a line, CRLF", "a line, LF", "a comma"],
)
def test_words_come_into_a_caption_and_the_rest_stays_byte_for_byte(
    tmp_path, name, before, caption, after
):
    folder = dataset(tmp_path, {name: before}, ("a.png",))
    write(folder, a=caption)
    assert (folder / name).read_bytes().decode("utf-8") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('a.png,"a fox, snow"\nb.png,"a cat"\n', 'a.png,"a red fox, ice"\nb.png,"a cat"\n'),
        ("a.png,a fox, snow\nb.png,a cat, sun", 'a.png,"a red fox, ice"\nb.png,a cat, sun'),
        (
            'file_name,text\r\na.png,"a fox"\r\nb.png,"a cat"\r\n',
            'file_name,text\r\na.png,"a red fox, ice"\r\nb.png,"a cat"\r\n',
        ),
        (
            "id,image,rating,caption\n7,a.png,5,a fox\n\n8,b.png,3,a cat\n",
            'id,image,rating,caption\n7,a.png,5,"a red fox, ice"\n\n8,b.png,3,a cat\n',
        ),
        ('a.png,"a fox,\n snow"\nb.png,a cat\n', 'a.png,"a red fox, ice"\nb.png,a cat\n'),
        ("sep=;\na.png;a fox\nb.png;a cat\n", "sep=;\na.png;a red fox, ice\nb.png;a cat\n"),
        ("a.png\ta fox\nb.png\ta cat\n", "a.png\ta red fox, ice\nb.png\ta cat\n"),
        (
            "image,caption\na.png,a fox\nb.png,a cat\nb.png,a later cat\n",
            'image,caption\na.png,"a red fox, ice"\nb.png,a cat\nb.png,a later cat\n',
        ),
    ],
)
def test_one_row_of_a_csv_changes_and_the_rest_stays_byte_for_byte(tmp_path, before, after):
    folder = dataset(tmp_path, {"metadata.csv": before})
    write(folder, a="a red fox, ice")
    assert (folder / "metadata.csv").read_bytes().decode("utf-8") == after
    assert shown(folder)["a.png"] == "a red fox, ice"


@pytest.mark.parametrize(
    ("encode", "start"),
    [
        (lambda text: text.encode("utf-8-sig"), codecs.BOM_UTF8),
        (lambda text: text.encode("gbk"), "a.png,".encode("gbk")),
        (lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"), codecs.BOM_UTF16_LE),
        (lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"), codecs.BOM_UTF16_BE),
    ],
    ids=["BOM", "GBK", "UTF-16 LE", "UTF-16 BE"],
)
def test_the_encoding_stays(tmp_path, encode, start):
    folder = dataset(
        tmp_path, {"metadata.csv": encode("a.png,一只红狐狸\nb.png,一只白猫在雪地里\n")}
    )
    write(folder, a="水墨风格的狐狸")
    data = (folder / "metadata.csv").read_bytes()
    assert data == encode("a.png,水墨风格的狐狸\nb.png,一只白猫在雪地里\n")
    assert data.startswith(start)


@pytest.mark.parametrize(
    "cell",
    ['"a red disc, "Infinity""', '"a red disc, ""quoted"true', '"a red disc, ""quoted"[null]'],
)
def test_a_cell_whose_quotation_marks_do_not_match_is_written_anew(tmp_path, cell):
    images = dataset(
        tmp_path / "images",
        {"metadata.csv": f"file_name,text,mark\na.png,{cell},1\nb.png,a ring,2\n"},
    )
    was = shown(images)["a.png"]
    write(images, a=was.replace("disc", "ball"))
    assert shown(images) == {"a.png": was.replace("disc", "ball"), "b.png": "a ring"}
    assert (images / "metadata.csv").read_text(encoding="utf-8").endswith(",1\nb.png,a ring,2\n")


def test_a_gbk_file_takes_a_character_gbk_lacks(tmp_path):
    folder = dataset(
        tmp_path, {"metadata.csv": "a.png,一只红狐狸\nb.png,一只白猫在雪地里\n".encode("gbk")}
    )
    write(folder, a="狐狸 🦊")
    assert shown(folder) == {"a.png": "狐狸 🦊", "b.png": "一只白猫在雪地里"}


def test_json_lines_keep_their_other_values(tmp_path):
    folder = dataset(
        tmp_path,
        {
            "metadata.jsonl": (
                '{"file_name": "a.png", "Text": "a fox", "n": [1]}\n{"file_name": "b.png", "text":'
                ' "a cat"}\n'
            )
        },
    )
    write(folder, a="红狐狸")
    assert (
        (folder / "metadata.jsonl").read_text("utf-8")
        == '{"file_name": "a.png", "Text": "红狐狸", "n": [1]}\n{"file_name": "b.png", "text": "a cat"}\n'
    )


def test_a_caption_in_a_text_file_stays_there(tmp_path):
    folder = dataset(
        tmp_path, {"a.txt": "一只红狐狸在雪地里".encode("gbk"), "b.caption": "a cat\n"}
    )
    write(folder, a="一只白狐狸", b="two cats")
    assert (folder / "a.txt").read_bytes() == "一只白狐狸".encode("gbk")
    assert (folder / "b.caption").read_text("utf-8") == "two cats\n"
    assert not (folder / "b.txt").exists() and not (folder / "metadata.csv").exists()


@pytest.mark.parametrize(
    ("files", "images", "target", "content"),
    [
        ({}, ("a.png",), "metadata.csv", "\ufefffile_name,text\na.png,a fox\n"),
        (
            {"metadata.csv": "b.png,a cat"},
            ("a.png", "b.png"),
            "metadata.csv",
            "b.png,a cat\na.png,a fox\n",
        ),
        (
            {"metadata.csv": "id,text,image\r\n1,a cat,b.png\r\n"},
            ("a.png", "b.png"),
            "metadata.csv",
            "id,text,image\r\n1,a cat,b.png\r\n,a fox,a.png\r\n",
        ),
        (
            {"metadata.csv": "a.png,\nb.png,a cat\n"},
            ("a.png", "b.png"),
            "metadata.csv",
            "a.png,a fox\nb.png,a cat\n",
        ),
        ({"b.txt": "a cat"}, ("a.png", "b.png"), "a.txt", "a fox\n"),
        ({"a.caption": ""}, ("a.png",), "a.caption", "a fox\n"),
    ],
    ids=[
        "nothing yet",
        "a table",
        "a table with its own columns",
        "an empty row",
        "text files",
        "an empty text file",
    ],
)
def test_a_new_caption_goes_where_the_dataset_keeps_its_captions(
    tmp_path, files, images, target, content
):
    folder = dataset(tmp_path, files, images)
    write(folder, a="a fox")
    assert (folder / target).read_bytes().decode("utf-8") == content
    assert shown(folder)["a.png"] == "a fox"


def test_in_a_kohya_folder_a_new_caption_is_a_text_file(tmp_path):
    folder = dataset(tmp_path, {}, ("10_fox/a.png",))
    listing, found = read(folder)
    write_captions(listing, found, {folder / "10_fox" / "a.png": "a fox"})
    assert (folder / "10_fox" / "a.txt").read_text("utf-8") == "a fox\n"


def test_many_captions_replace_the_file_once(tmp_path, monkeypatch):
    folder = dataset(tmp_path, {"metadata.csv": "a.png,a fox\n"})
    written = []
    monkeypatch.setattr(
        edits, "write_bytes", lambda path, data: written.append((path.name, data.decode("utf-8")))
    )
    write(folder, a="one", b="two")
    assert written == [("metadata.csv", "a.png,one\nb.png,two\n")]


def test_a_row_that_an_unclosed_quotation_mark_would_swallow_is_refused(tmp_path):
    content = 'a.png,a fox\nb.png,"a cat\n'
    folder = dataset(tmp_path, {"metadata.csv": content}, ("a.png", "b.png", "c.png"))
    listing, found = read(folder)
    with pytest.raises(DatasetError, match="without losing others"):
        write_captions(listing, found, {folder / "c.png": "a dog"})
    assert (folder / "metadata.csv").read_text("utf-8") == content


def test_a_file_saved_by_another_program_meanwhile_is_not_overwritten(tmp_path):
    folder = dataset(tmp_path, {"metadata.csv": "a.png,a fox\nb.png,a cat\n"})
    listing, found = read(folder)
    (folder / "metadata.csv").write_text("b.png,a cat\na.png,a fox\n", encoding="utf-8")
    with pytest.raises(ChangedMeanwhile, match="changed by another program"):
        write_captions(listing, found, {folder / "a.png": "mine"})
    assert (folder / "metadata.csv").read_text("utf-8") == "b.png,a cat\na.png,a fox\n"


def test_a_text_file_saved_by_another_program_meanwhile_is_not_overwritten(tmp_path):
    folder = dataset(tmp_path, {"a.txt": "a fox"})
    listing, found = read(folder)
    (folder / "a.txt").write_text("theirs", encoding="utf-8")
    with pytest.raises(ChangedMeanwhile):
        write_captions(listing, found, {folder / "a.png": "mine"})
    assert (folder / "a.txt").read_text("utf-8") == "theirs"


def test_a_caption_is_text_that_a_file_can_hold(tmp_path):
    folder = dataset(tmp_path, {"metadata.csv": "b.png,a cat\n"})
    write(folder, a=' a "big"\tfox\0\ud800 \r\n\r\n and\ufeff a cat 👩‍🎨')
    assert shown(folder)["a.png"] == 'a "big" fox\nand a cat 👩‍🎨'


@pytest.mark.parametrize("name", ["metadata.csv", "b.txt"])
def test_what_is_too_long_to_be_a_caption_is_refused_and_nothing_is_written(tmp_path, name):
    folder = dataset(tmp_path, {name: "b.png,a cat\n"})
    with pytest.raises(DatasetError, match="has 20001 characters"):
        write(folder, a="x" * 20_001, b="a dog")
    assert [path.name for path in folder.iterdir() if path.suffix != ".png"] == [name]
    assert (folder / name).read_text("utf-8") == "b.png,a cat\n"


def test_all_rows_of_a_table_leave_it_and_come_back(tmp_path):
    content = "file_name,text\na.png,a fox\nb.png,a cat\n"
    folder = dataset(tmp_path, {"metadata.csv": content})
    _, found = read(folder)
    rows = rows_of(found, [folder / "a.png", folder / "b.png"])
    remove_rows(found, rows)
    assert (folder / "metadata.csv").read_text("utf-8") == "file_name,text\n"
    restore_rows([row for one in rows.values() for row in one])
    assert (folder / "metadata.csv").read_text("utf-8") == content


def test_removed_rows_come_back_as_they_were(tmp_path):
    folder = dataset(
        tmp_path,
        {"metadata.csv": "image,caption,rating\na.png,a fox,5\nb.png,a cat,3\na.png,a red fox,4\n"},
    )
    _, found = read(folder)
    rows = rows_of(found, [folder / "a.png"])[folder / "a.png"]
    remove_rows(found, [folder / "a.png"])
    assert (folder / "metadata.csv").read_text("utf-8") == "image,caption,rating\nb.png,a cat,3\n"
    restore_rows(rows)
    assert (folder / "metadata.csv").read_text(
        "utf-8"
    ) == "image,caption,rating\nb.png,a cat,3\na.png,a fox,5\na.png,a red fox,4\n"
