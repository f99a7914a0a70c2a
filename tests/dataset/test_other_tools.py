"""What other tools write beside images: read, or named; and what is not an image of the
subject.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_trainer.dataset.listing import is_class_folder
from lora_trainer.errors import DatasetError
from tests.dataset.pictures import save
from tests.dataset.test_edits import write as edit
from tests.dataset.test_scan import captions, draw, look, told, write

TRIGGER = {"trigger_word": "trg"}


@pytest.mark.parametrize(
    "files",
    [
        {"a.tags": "fox a", "b.tags": "fox b"},
        {"a.cap": "fox a", "b.cap": "fox b"},
        {"a.json": '{"caption": "fox a"}', "b.png.json": '{"Tags": ["fox b"], "width": 3}'},
        {"caption.csv": "caption,image_file\nfox a,a.png\nfox b,b.png\n"},
        {
            "metadata.json": (
                '[{"file_name": "a.png", "text": "fox a"}, {"file_name": "b.png", "text": "fox b"}]'
            )
        },
        {
            "meta_cap.json": (
                '{"/data/x/a.png": {"caption": "fox a"}, "/data/x/b.png": {"tags": "fox b"}}'
            )
        },
        {"prompts.json": '{"a": "fox a", "b": "fox b"}'},
        {
            "data.json": (
                '{"file_name": "a.png", "text": "fox a"}\n{"file_name": "b.png", "text": "fox b"}\n'
            )
        },
    ],
    ids=lambda files: next(iter(files)),
)
def test_captions_by_any_usual_name_are_read(tmp_path, files):
    draw(tmp_path, "a.png", "b.png")
    for name, content in files.items():
        write(tmp_path / name, content)
    dataset = look(tmp_path, **TRIGGER)
    assert captions(dataset) == {"a.png": "trg, fox a", "b.png": "trg, fox b"}
    assert {severity for severity, _, _ in told(dataset)} <= {"info"}


def test_kohyas_tags_are_trained_behind_the_caption(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "meta_cap.json", '{"a.png": {"caption": "a red fox", "tags": "fox, snow"}}')
    assert captions(look(tmp_path)) == {"a.png": "a red fox, fox, snow"}


@pytest.mark.parametrize(
    "files",
    [
        {"a.prompt": "fox a", "b.prompt": "fox b"},
        {"captions.xlsx": "PK\x03\x04"},
        {"captions.txt": "a.png: fox a\nb.png: fox b\n"},
        {"words.yaml": "a.png: fox a\n"},
        {"captions/a.txt": "fox a", "captions/b.txt": "fox b"},
        {"list.json": '{"images": [["a.png", "fox a"]]}'},
        {
            "a.json": '{"id": 1, "tag_string_general": "fox snow"}',
            "b.json": '{"tags": {"species": ["fox"]}}',
        },
        {"a.png.caption.txt": "fox a", "b_tags.txt": "fox b"},
    ],
    ids=lambda files: next(iter(files)),
)
@pytest.mark.parametrize("folder", ["", "10_sks fox"])
def test_neither_the_trigger_word_nor_a_folders_name_stands_in_for_captions_that_are_there(
    tmp_path, files, folder
):
    root = tmp_path / "set"
    draw(root / folder, "a.png", "b.png")
    for name, content in files.items():
        write(root / folder / name, content)
    listing = look_at(root)
    assert [(severity, kind) for severity, kind, _ in listing].count(
        ("error", "unread-captions")
    ) == 1
    (sentence,) = [text for _, kind, text in listing if kind == "unread-captions"]
    assert all(Path(name).name in sentence for name in files)
    assert not any(
        kind in ("trigger-word-caption", "folder-name-caption") for _, kind, _ in listing
    )


def look_at(root: Path) -> list[tuple[str, str, str]]:
    from lora_trainer.errors import DatasetError

    try:
        return told(look(root, **TRIGGER))
    except DatasetError as problem:
        return [
            (finding.severity, finding.kind, str(finding))
            for finding in problem.message.values["findings"]
        ]


def test_without_such_files_the_trigger_word_is_the_caption_as_before(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "readme.md", "about this dataset")
    (tmp_path / "a.npz").write_bytes(b"PK\0\0")
    dataset = look(tmp_path, **TRIGGER)
    assert captions(dataset) == {"a.png": "trg"}
    assert [kind for _, kind, _ in told(dataset)] == ["trigger-word-caption"]


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "gb18030", "big5", "cp1251"])
def test_captions_in_old_encodings_come_out_as_they_were_written(tmp_path, encoding):
    text = {
        "cp1252": "zorbl, Pokémon café, señorita in the décor",
        "cp932": "猫耳の少女、赤いリボン、図書館",
        "gb18030": "猫耳少女, 红色缎带, 图书馆",
        "big5": "貓耳少女，紅色緞帶，圖書館裡",
        "cp1251": "девочка с красной лентой",
    }[encoding]
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    dataset = look(tmp_path)
    assert captions(dataset) == {"a.png": text}
    ((severity, kind, sentence),) = told(dataset)
    assert (severity, kind) == ("warning", "guessed-encoding") and f'"{text}"' in sentence
    edit(tmp_path, a=text.replace("a", "o") + ", x")
    assert (tmp_path / "a.txt").read_bytes() == (text.replace("a", "o") + ", x").encode(encoding)


# --- class images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "reg/1_animal",
        "Reg_images",
        "10_fox/reg",
        "regularization images/1_cat",
        "1_regularisation",
        "class_images",
        "正则化",
        "img2/reg/1_cat",
    ],
)
def test_class_images_are_never_trained_as_the_subject(tmp_path, place):
    draw(tmp_path, "10_sks fox/a.png")
    save(tmp_path / place / "z.png", colour="green")
    dataset = look(tmp_path, **TRIGGER)
    assert list(captions(dataset)) == ["10_sks fox/a.png"]
    assert any(
        "class images (regularisation images, 1 of them)" in text for _, _, text in told(dataset)
    )


@pytest.mark.parametrize(
    "name",
    [
        "reg_dog",
        "dog_reg",
        "1_reg dog",
        "regularization-dog",
        "person_reg_images",
        "class images (dog)",
        "generated_class_images",
        "prior_images",
        "ClassImages",
        "regImages",
        "regul",
        "正则化素材",
        "正則化画像",
    ],
)
def test_class_images_are_known_by_one_word_among_others(name):
    assert is_class_folder(name)


@pytest.mark.parametrize(
    "name",
    [
        "superior images",
        "classic images",
        "10_registered",
        "regina",
        "class photos",
        "5_dog",
        "img",
    ],
)
def test_other_words_make_no_class_images(name):
    assert not is_class_folder(name)


def test_a_class_by_itself_beside_its_token_is_class_images():
    assert is_class_folder("1_dog", ("20_sks dog", "1_dog")) and is_class_folder(
        "1_old dog", ("5_ohwx old_dog",)
    )
    # seen as often as the other, or of another kind: they are subjects
    assert not is_class_folder("1_dog", ("1_sks dog", "1_dog")) and not is_class_folder(
        "10_dog", ("20_sks dog",)
    )
    assert not is_class_folder("1_cat", ("20_sks dog",)) and not is_class_folder(
        "20_sks dog", ("1_dog",)
    )


def test_class_images_alone_are_told_as_that(tmp_path):
    save(tmp_path / "reg" / "1_dog" / "z.png")
    with pytest.raises(DatasetError, match="no images in .* but class images .*, in reg"):
        look(tmp_path, **TRIGGER)


def test_class_is_a_name_of_class_images_beside_instances_only():
    assert is_class_folder("class", ("class", "instance")) and is_class_folder(
        "class", ("train", "class")
    )
    assert (
        not is_class_folder("class", ("class", "teachers"))
        and not is_class_folder("regatta")
        and not is_class_folder("10_register")
    )


# --- named ----------------------------------------------------------------------------------------


def test_pictures_by_odd_names_and_texts_without_a_picture_are_named(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "a.txt", "fox")
    shutil.copy(tmp_path / "a.png", tmp_path / "noname")
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png_large")
    write(tmp_path / "gone.txt", "a caption")
    write(tmp_path / "README.txt", "about")
    assert [text for _, _, text in told(look(tmp_path))] == [
        "c.png_large is left out: it is an image, but its name does not end in .png",
        "noname is left out: it is an image, but its name does not end in .png",
        "texts that belong to no image are left out (1 of them, such as gone.txt)",
    ]


# --- edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.json", '{"caption":"a fox","n": [1,\t2]}\r\n', '{"caption":"a hat","n": [1,\t2]}\r\n'),
        ("a.json", '{"n": 1, "tags": ["a fox"]}', '{"n": 1, "tags": ["a hat"]}'),
        (
            "metadata.jsonl",
            '{"file_name":"a.png","text":"a fox"}\n{ "file_name":"b.png" , "text":"b"}',
            '{"file_name":"a.png","text":"a hat"}\n{ "file_name":"b.png" , "text":"b"}',
        ),
        (
            "meta.json",
            '{ "x/a.png" : {"caption":"a fox"} ,\n"b.png":{"caption":"b"} }',
            '{ "x/a.png" : {"caption":"a hat"} ,\n"b.png":{"caption":"b"} }',
        ),
        (
            "list.json",
            '[{"image": "b.png", "text": "b"},\n {"image": "a.png",  "text": "a fox"}]',
            '[{"image": "b.png", "text": "b"},\n {"image": "a.png",  "text": "a hat"}]',
        ),
        ("a.txt", "\ufeff  a  fox \r\n\r\n", "\ufeff  a  hat \r\n\r\n"),
        ("a.txt", "a fox", "a hat"),
    ],
)
def test_an_edit_changes_the_caption_and_not_one_byte_more(tmp_path, name, before, after):
    draw(tmp_path, "a.png", "b.png")
    if "b.png" not in before:
        write(tmp_path / "b.txt", "b")
    write(tmp_path / name, before)
    edit(tmp_path, a="a hat")
    assert (tmp_path / name).read_bytes().decode("utf-8") == after


def test_lines_of_a_file_stay_lines_when_one_of_them_is_changed(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"a red boat\r\n\r\n1boat,  red\r\n")
    edit(tmp_path, a="a blue boat\n1boat, red")
    assert (tmp_path / "a.txt").read_bytes() == b"a blue boat\r\n\r\n1boat,  red\r\n"


def test_rows_leave_one_json_and_come_back(tmp_path):
    from lora_trainer.dataset.edits import remove_rows, restore_rows, rows_of
    from tests.dataset.test_edits import read

    draw(tmp_path, "a.png", "b.png", "c.png")
    table = write(
        tmp_path / "meta.json",
        '{"a.png": {"caption": "a"}, "b.png": {"caption": "b"}, "c.png": {"caption": "c"}}',
    )
    for gone in (
        ["b.png"],
        ["c.png"],
        ["a.png", "b.png"],
        ["b.png", "c.png"],
        ["a.png", "b.png", "c.png"],
    ):
        _, found = read(tmp_path)
        rows = rows_of(found, [tmp_path / name for name in gone])
        remove_rows(found, [tmp_path / name for name in gone])
        left = [name for name in ("a.png", "b.png", "c.png") if name not in gone]
        assert list(json.loads(table.read_text("utf-8"))) == left
        restore_rows([row for one in rows.values() for row in one])
        assert json.loads(table.read_text("utf-8")) == {
            name: {"caption": name[0]} for name in ("a.png", "b.png", "c.png")
        }
        table.write_text(
            '{"a.png": {"caption": "a"}, "b.png": {"caption": "b"}, "c.png": {"caption": "c"}}',
            encoding="utf-8",
        )
