"""A folder as people have it -> the examples they meant, and every problem by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.dataset.findings import refuse
from lora_trainer.dataset.images import digest
from lora_trainer.dataset.scan import Dataset, long_caption, scan
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings
from tests.dataset.pictures import noise, save


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def draw(root: Path, *names: str) -> Path:
    """Pictures, each of its own colour."""
    for number, name in enumerate(names):
        save(root / name, colour=(number * 7 % 256, 90, 200), size=(32, 24))
    return root


def look(root: Path, **values: object) -> Dataset:
    return scan(DatasetSettings(train_data_dir=root, **values))  # type: ignore[arg-type]


def captions(dataset: Dataset) -> dict[str, str]:
    return {example.name: example.caption for example in dataset.examples}


def told(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.kind, str(finding)) for finding in dataset.findings]


# --- layouts --------------------------------------------------------------------------------------


def test_the_seeds_dataset_is_read(tmp_path):
    root = draw(tmp_path / "sci_lab", "img01.jpg", "img02.jpg")
    table = write(
        root / "metadata.csv",
        'img01.jpg,"futuristic laboratory, metallic walls"\nimg02.jpg,"research lab with robotic'
        ' arms"\n',
    )
    for dataset in (look(root), look(root, metadata_path=table)):
        assert captions(dataset) == {
            "img01.jpg": "futuristic laboratory, metallic walls",
            "img02.jpg": "research lab with robotic arms",
        }
        assert dataset.findings == ()


def test_an_example_knows_its_file(tmp_path):
    root = tmp_path / "数据 set"
    save(
        root / "狐 狸.jpg",
        size=(40, 30),
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )  # lying on its side
    write(root / "狐 狸.txt", "一只狐狸\r\n")
    (example,) = look(root, repeats=3).examples
    assert example.path == root / "狐 狸.jpg"
    assert (example.name, example.folder, example.repeats) == ("狐 狸.jpg", "数据 set", 3)
    assert (example.width, example.height) == (30, 40)
    assert example.digest == digest(example.path)
    assert example.caption == "一只狐狸"


def test_text_files_beside_the_images_are_captions(tmp_path):
    draw(tmp_path, "a.png", "b.png", "sub/c.png", "d.webp")
    write(tmp_path / "a.txt", "a fox,\n red ")
    write(tmp_path / "b.caption", "a cat")
    write(tmp_path / "sub/C.TXT", "a dog")
    write(tmp_path / "d.webp.txt", "an owl")
    dataset = look(tmp_path)
    assert captions(dataset) == {
        "a.png": "a fox, red",
        "b.png": "a cat",
        "d.webp": "an owl",
        "sub/c.png": "a dog",
    }
    assert dataset.findings == ()


def test_kohya_folders_give_repeats_and_the_caption_of_last_resort(tmp_path):
    draw(
        tmp_path,
        "10_sks fox/a.png",
        "10_sks fox/b.png",
        "3_cat/c.png",
        "plain/d.png",
        "10_sks fox/inner/e.png",
    )
    for name in ("10_sks fox/a", "3_cat/c", "plain/d", "10_sks fox/inner/e"):
        write(tmp_path / f"{name}.txt", f"about {name[-1]}")
    dataset = look(tmp_path, repeats=2)
    assert {
        example.name: (example.repeats, example.folder, example.caption)
        for example in dataset.examples
    } == {
        "10_sks fox/a.png": (10, "10_sks fox", "about a"),
        "10_sks fox/b.png": (10, "10_sks fox", "sks fox"),
        "10_sks fox/inner/e.png": (10, "10_sks fox/inner", "about e"),
        "3_cat/c.png": (3, "3_cat", "about c"),
        "plain/d.png": (2, "plain", "about d"),
    }
    text = (
        "10_sks fox: images without a caption of their own (1) get the one in the folder's name,"
        ' "sks fox"'
    )
    assert told(dataset) == [("warning", "folder-name-caption", text)]


def test_a_kohya_folder_given_itself_is_understood(tmp_path):
    root = draw(tmp_path / "10_fox", "a.png")
    (example,) = look(root).examples
    assert (example.repeats, example.caption, example.folder) == (10, "fox", "10_fox")


def test_a_kohya_folder_with_no_repeats_is_left_out(tmp_path):
    draw(tmp_path, "0_off/a.png", "02_cats/b.png")
    dataset = look(tmp_path)
    assert [(example.name, example.repeats) for example in dataset.examples] == [
        ("02_cats/b.png", 2)
    ]
    assert [(kind, text) for _, kind, text in told(dataset)][1:] == [
        (
            "repeats",
            (
                "02_cats: the number in its name is taken for repeats, so each image in it is seen"
                " 2 times an epoch"
            ),
        ),
        ("left-out", "0_off is left out: its name asks for 0 repeats"),
    ]


def test_json_lines_in_each_folder_are_read(tmp_path):
    draw(tmp_path, "train/a.png", "test/a.png")
    write(tmp_path / "train/metadata.jsonl", '{"file_name": "a.png", "text": "a fox"}\n')
    write(tmp_path / "test/metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}\n')
    dataset = look(tmp_path)
    assert captions(dataset) == {"test/a.png": "a cat", "train/a.png": "a fox"}
    assert dataset.findings == ()


def test_a_metadata_file_may_lie_elsewhere_and_name_files_as_another_machine_did(tmp_path):
    root = draw(tmp_path / "set", "10_fox/a.png", "B.JPG", "c.png")
    table = write(
        tmp_path / "tables/meta.csv",
        "path;prompt\nC:\\Users\\me\\10_fox\\a.png;a fox\nb.jpg;a cat\n../set/c.png;a dog\n",
    )
    dataset = look(root, metadata_path=table)
    assert captions(dataset) == {"10_fox/a.png": "a fox", "B.JPG": "a cat", "c.png": "a dog"}
    assert dataset.findings == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_captions_are_read_in_every_encoding(tmp_path, encoding):
    draw(tmp_path, "图.png", "b.png")
    write(tmp_path / "metadata.csv", "file_name,text\n图.png,一只红狐狸\n", encoding)
    write(tmp_path / "b.txt", "雪地", encoding)
    dataset = look(tmp_path)
    assert captions(dataset) == {"b.png": "雪地", "图.png": "一只红狐狸"}
    guessed = (
        [("metadata.csv", "图.png,一只红狐狸"), ("b.txt", "雪地")] if encoding == "gbk" else []
    )
    assert [text for _, _, text in told(dataset)] == [
        f'{name} is not UTF-8; it was read as GBK: "{line}"' for name, line in guessed
    ]


# --- where captions disagree ----------------------------------------------------------------------


def test_a_row_goes_before_a_text_file_and_a_difference_is_told(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png", "d.png")
    write(tmp_path / "metadata.csv", "a.png,a fox\nb.png,a cat\nc.png,\n")
    for name, text in (("a", "another fox"), ("b", "a  cat"), ("c", "a dog"), ("d", "an owl")):
        write(tmp_path / f"{name}.txt", text)
    dataset = look(tmp_path)
    assert captions(dataset) == {
        "a.png": "a fox",
        "b.png": "a cat",
        "c.png": "a dog",
        "d.png": "an owl",
    }
    text = "a.png: metadata.csv and a.txt have different captions; that in metadata.csv is used"
    assert told(dataset) == [("warning", "captions-differ", text)]


def test_two_rows_for_one_image_are_told_and_the_last_is_used(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "metadata.csv", "a.png,a fox\nb.png,a cat\na.png,a red fox\nb.png,a cat\n")
    dataset = look(tmp_path)
    assert captions(dataset) == {"a.png": "a red fox", "b.png": "a cat"}
    text = (
        "a.png has several rows with different captions (lines 1, 3 of metadata.csv); the last is"
        " used"
    )
    assert told(dataset) == [("warning", "duplicate-row", text)]


def test_a_row_for_a_file_elsewhere_does_not_take_the_place_of_the_images_own(tmp_path):
    root = draw(tmp_path / "train", "a.png")
    write(root / "metadata.csv", "a.png,a fox\ntest/a.png,a cat\n")
    dataset = look(root)
    assert captions(dataset) == {"a.png": "a fox"}
    assert told(dataset) == [
        ("error", "row-without-file", "metadata.csv, line 2: there is no image test/a.png")
    ]


def test_two_images_of_one_stem_share_a_text_file_and_it_is_told(tmp_path):
    draw(tmp_path, "a.jpg", "a.png")
    write(tmp_path / "a.txt", "a fox")
    dataset = look(tmp_path)
    assert captions(dataset) == {"a.jpg": "a fox", "a.png": "a fox"}
    assert told(dataset) == [
        ("warning", "shared-caption", "a.jpg and a.png share the caption in a.txt")
    ]


def test_a_row_without_a_suffix_that_fits_two_images_is_ambiguous(tmp_path):
    draw(tmp_path, "a.jpg", "a.png")
    write(tmp_path / "metadata.csv", "file_name,text\na,a fox\na.png,a fox\na.jpg,a cat\n")
    assert told(look(tmp_path)) == [
        ("error", "ambiguous-row", "metadata.csv, line 2: a matches several images: a.jpg, a.png")
    ]


def test_an_image_that_was_converted_is_taken_for_the_one_named_and_it_is_told(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "metadata.csv", "a.jpg,a fox\n")
    dataset = look(tmp_path)
    assert captions(dataset) == {"a.png": "a fox"}
    assert told(dataset) == [
        (
            "warning",
            "other-suffix",
            "metadata.csv, line 1: there is no a.jpg; a.png is used instead",
        )
    ]


def test_masks_are_left_out_unless_they_have_captions(tmp_path):
    draw(
        tmp_path,
        "fox.jpg",
        "fox_mask.png",
        "fox-masklabel.png",
        "masks/fox.png",
        "iron_mask.png",
        "iron.png",
        "lone_mask.png",
    )
    for name in ("fox", "iron", "iron_mask", "lone_mask"):
        write(tmp_path / f"{name}.txt", name)
    dataset = look(tmp_path)
    assert list(captions(dataset)) == ["fox.jpg", "iron.png", "iron_mask.png", "lone_mask.png"]
    assert told(dataset) == [
        ("warning", "left-out", "masks are not trained on (3 of them, such as fox-masklabel.png)")
    ]


# --- the trigger word -----------------------------------------------------------------------------


def test_the_trigger_word_is_in_every_caption(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "metadata.csv", "a.png,a fox\nb.png,photo of SKS\n")
    assert captions(look(tmp_path, trigger_word="sks")) == {
        "a.png": "sks, a fox",
        "b.png": "photo of SKS",
    }


def test_without_any_caption_the_trigger_word_is_every_caption(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    dataset = look(tmp_path, trigger_word="sks fox")
    assert captions(dataset) == {"a.png": "sks fox", "b.png": "sks fox"}
    text = 'no image has a caption (2 in all); the trigger word "sks fox" is the caption of each'
    assert told(dataset) == [("warning", "trigger-word-caption", text)]


def test_with_some_captions_the_trigger_word_does_not_stand_in_for_the_others(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "a.txt", "a fox")
    dataset = look(tmp_path, trigger_word="sks")
    assert captions(dataset) == {"a.png": "sks, a fox"}
    assert told(dataset) == [("error", "no-caption", "b.png has no caption")]


# --- bad data -------------------------------------------------------------------------------------


def bad_dataset(root: Path) -> Path:
    """One of everything."""
    draw(root, "good.png", "lonely.png", "empty.png", "garbled.png")
    (root / "copy.png").write_bytes((root / "good.png").read_bytes())
    noise().save(root / "torn.jpg")
    (root / "torn.jpg").write_bytes((root / "torn.jpg").read_bytes()[:4000])
    (root / "page.jpg").write_bytes(b"<html>not found</html>")
    (root / "phone.jxl").write_bytes(b"\xff\x0a")
    write(root / "empty.txt", "\n")
    (root / "garbled.txt").write_bytes(b"caf\x81\xfe\x81\xff")
    write(
        root / "metadata.csv",
        "file_name,text\ngood.png,a fox\ncopy.png,a"
        " fox\ntorn.jpg,x\npage.jpg,x\nphone.jxl,x\ngone.png,x\n,x\n",
    )
    return root


def test_every_problem_is_named_and_only_good_examples_are_left(tmp_path):
    dataset = look(bad_dataset(tmp_path))
    assert list(captions(dataset)) == ["copy.png", "good.png"]
    assert sorted(told(dataset)) == [
        ("error", "no-caption", "empty.png has no caption: empty.txt is empty"),
        ("error", "no-caption", "lonely.png has no caption"),
        ("error", "row-without-file", "metadata.csv, line 7: there is no image gone.png"),
        ("error", "unreadable-caption", "garbled.txt is in an unknown encoding (line 1)"),
        ("error", "unreadable-image", "page.jpg is a web page, not an image"),
        ("error", "unreadable-image", "torn.jpg is cut off: the file ends before the image does"),
        ("error", "unreadable-row", "metadata.csv, line 8: no image is named"),
        ("error", "unsupported-format", "phone.jxl is in a format that is not supported"),
        ("warning", "duplicate-image", "good.png is a copy of copy.png"),
    ]
    assert all(str(finding.hint) for finding in dataset.findings if finding.severity == "error")


def test_stop_refuses_them_all_at_once_and_skip_goes_on(tmp_path):
    settings = DatasetSettings(train_data_dir=bad_dataset(tmp_path))
    with pytest.raises(DatasetError) as caught:
        refuse(scan(settings).findings, settings)
    for name in (
        "empty.png",
        "lonely.png",
        "gone.png",
        "garbled.txt",
        "page.jpg",
        "torn.jpg",
        "line 8",
        "phone.jxl",
    ):
        assert name in str(caught.value)
    assert "(8 found)" in str(caught.value)
    skipping = DatasetSettings(train_data_dir=tmp_path, on_bad_data="skip")
    dataset = scan(skipping)
    refuse(dataset.findings, skipping)
    assert len(dataset.examples) == 2


def test_long_captions_are_errors_and_stay_examples(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "metadata.csv", "a.png,one two three four five\nb.png,one two\n")
    settings = DatasetSettings(train_data_dir=tmp_path, trigger_word="sks")
    dataset = scan(settings, count_tokens=lambda caption: len(caption.split()), token_limit=4)
    assert told(dataset) == [
        ("error", "long-caption", "a.png: the caption has 6 tokens, 2 more than max_token_length 4")
    ]
    assert len(dataset.examples) == 2


@pytest.mark.parametrize(
    ("limit", "message", "hint"),
    [
        (150, "900 tokens, 750 more than max_token_length 150", "raise max_token_length"),
        (225, "900 tokens, 675 more than max_token_length 225", "Shorten it."),
        (498, "900 tokens, and the model reads 498", "Shorten it."),
    ],
)
def test_only_where_it_helps_a_larger_token_limit_is_advised(limit, message, hint):
    path = Path("a.png")
    (finding,) = long_caption(path, "a.png", "word " * 900, lambda text: text.count(" "), limit)
    assert str(finding).startswith(f"a.png: the caption has {message}")
    assert hint in str(finding.hint)
    assert limit == 150 or "max_token_length" not in str(finding.hint)


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_a_dataset_without_a_usable_image_is_refused_with_the_reasons(tmp_path, choice):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "words.csv", "c.png,a fox\n")
    with pytest.raises(DatasetError) as caught:
        look(tmp_path, on_bad_data=choice)
    assert str(caught.value).startswith(
        f"no image in {tmp_path} can be used (2 found):\n- 2 images have no caption\n"
    )
    assert str(caught.value).endswith("\n  a.png, b.png")
    assert "If words.csv holds the captions, set metadata_path to it." in str(caught.value)


def test_a_metadata_file_that_cannot_be_read_is_one_of_the_problems(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "b.txt", "a cat")
    (tmp_path / "metadata.csv").write_bytes(b"a.png,caf\x81\xfe\x81\x00\n")
    dataset = look(tmp_path)
    assert told(dataset)[0] == (
        "error",
        "unreadable-metadata",
        f"{tmp_path / 'metadata.csv'} is in an unknown encoding (line 1)",
    )
    assert captions(dataset) == {"b.png": "a cat"}


def test_a_metadata_path_that_is_not_there_is_refused(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "metadata.csv", "a.png,a fox\n")
    with pytest.raises(DatasetError) as caught:
        look(tmp_path, metadata_path=tmp_path / "metdata.csv")
    assert str(caught.value) == f"metadata_path {tmp_path / 'metdata.csv'} does not exist"
    assert str(caught.value.hint) == f"Did you mean {tmp_path / 'metadata.csv'}?"
    with pytest.raises(DatasetError, match="is a folder"):
        look(tmp_path, metadata_path=tmp_path)


def test_progress_is_heard_to_the_last_image(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    heard: list[tuple[int, int]] = []
    scan(
        DatasetSettings(train_data_dir=tmp_path, trigger_word="x"),
        progress=lambda done, count: heard.append((done, count)),
    )
    assert heard == [(1, 3), (2, 3), (3, 3)]
