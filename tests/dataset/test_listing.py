"""What a dataset folder holds, and folders that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.dataset.listing import kohya_folder, list_folder
from lora_trainer.errors import DatasetError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def images(root: Path) -> list[str]:
    listing = list_folder(root)
    return [listing.name(image) for image in listing.images]


def test_pictures_are_found_at_any_depth_in_a_stable_order(tmp_path):
    touch(
        tmp_path, "b.PNG", "a.jpg", "z/y/x.webp", "10_fox/c d.jpeg", "图/狐.bmp", "e.tiff", "f.gif"
    )
    assert images(tmp_path) == [
        "a.jpg",
        "b.PNG",
        "e.tiff",
        "f.gif",
        "10_fox/c d.jpeg",
        "z/y/x.webp",
        "图/狐.bmp",
    ]


def test_what_other_programs_leave_is_ignored(tmp_path):
    touch(tmp_path, "a.jpg", ".hidden.jpg", "._a.jpg", "Thumbs.db", "a.npz")
    touch(
        tmp_path, "__MACOSX/a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "$RECYCLE.BIN/a.jpg"
    )
    assert images(tmp_path) == ["a.jpg"]


def test_the_previews_of_a_run_are_no_training_images(tmp_path):
    assert images(touch(tmp_path, "a.jpg", "output/events.jsonl", "output/previews/step.png")) == [
        "a.jpg"
    ]


def test_of_a_kohya_project_only_img_is_trained(tmp_path):
    touch(tmp_path, "img/10_fox/a.jpg", "reg/1_animal/b.jpg", "model/sample/c.png")
    assert images(tmp_path) == ["img/10_fox/a.jpg"]
    assert [str(finding) for finding in list_folder(tmp_path).findings] == [
        (
            "reg holds class images (regularisation images, 1 of them): they are left out, and not"
            " trained as the subject"
        ),
        f"{tmp_path.name} is laid out as a kohya project: only its folder img is trained",
    ]


def test_a_folder_named_img_alone_is_a_folder_like_others(tmp_path):
    assert images(touch(tmp_path, "img/a.jpg", "more/b.jpg")) == ["img/a.jpg", "more/b.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "set/a.jpg", "elsewhere/b.jpg")
    try:
        (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "set/circle").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError:
        pytest.skip("links need a privilege on Windows")
    assert images(tmp_path / "set") == ["a.jpg", "link/b.jpg"]


def test_formats_that_are_not_read_are_set_apart_unless_a_readable_picture_has_their_name(tmp_path):
    listing = list_folder(touch(tmp_path, "a.jpg", "a.psd", "b.jxl", "c.CR2", "notes.doc"))
    assert [listing.name(path) for path in listing.others] == ["b.jxl", "c.CR2"]


def test_one_metadata_file_a_folder_is_chosen_and_the_other_named(tmp_path):
    listing = list_folder(
        touch(
            tmp_path,
            "a.jpg",
            "metadata.jsonl",
            "Metadata.CSV",
            "sub/metadata.jsonl",
            "captions.csv",
        )
    )
    assert [listing.name(path) for path in listing.metadata] == [
        "Metadata.CSV",
        "sub/metadata.jsonl",
    ]
    assert [listing.name(path) for path in listing.tables] == ["captions.csv"]
    assert [str(finding) for finding in listing.findings] == [
        "metadata.jsonl is not used: Metadata.CSV in the same folder is used instead"
    ]


def test_the_text_files_of_an_image_are_found_in_the_order_of_preference(tmp_path):
    listing = list_folder(
        touch(tmp_path, "Fox.png", "fox.TXT", "fox.png.txt", "fox.caption", "fo.txt")
    )
    assert [path.name for path in listing.texts_beside(tmp_path / "Fox.png")] == [
        "fox.TXT",
        "fox.png.txt",
        "fox.caption",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10_fox animal", (10, "fox animal")),
        ("3_my_style", (3, "my_style")),
        ("5_", (5, "")),
        ("0_off", (0, "off")),
        ("999_a", (999, "a")),
    ],
)
def test_kohya_folders_carry_repeats_and_a_class(name, expected):
    folder = kohya_folder(Path(name))
    assert folder and (folder.repeats, folder.class_name) == expected


@pytest.mark.parametrize("name", ["fox", "2024_summer", "10fox", "_fox", "10 fox", "-1_fox"])
def test_other_folders_are_no_kohya_folders(name):
    assert kohya_folder(Path(name)) is None


# --- folders that cannot be a dataset -------------------------------------------------------------


def refusal(folder: Path) -> tuple[str, str]:
    with pytest.raises(DatasetError) as caught:
        list_folder(folder)
    return str(caught.value), str(caught.value.hint)


def test_a_missing_folder_names_its_nearest_neighbour(tmp_path):
    touch(tmp_path, "data/ink_painting/a.jpg")
    folder = tmp_path / "data" / "ink-paintings"
    assert refusal(folder) == (
        f"train_data_dir {folder} does not exist",
        f"Did you mean {tmp_path / 'data' / 'ink_painting'}?",
    )


def test_a_missing_folder_names_the_part_that_exists(tmp_path):
    folder = tmp_path / "qqqq" / "sub"
    assert refusal(folder) == (
        f"train_data_dir {folder} does not exist",
        f"{tmp_path} exists, but there is no qqqq in it.",
    )


def test_a_file_is_no_folder(tmp_path):
    touch(tmp_path, "a.jpg", "a.zip")
    assert refusal(tmp_path / "a.jpg") == (
        f"train_data_dir {tmp_path / 'a.jpg'} is a file",
        f"Give the folder: {tmp_path}",
    )
    assert refusal(tmp_path / "a.zip") == (
        f"train_data_dir {tmp_path / 'a.zip'} is an archive",
        "Unpack it and give the folder.",
    )


def test_a_folder_without_pictures_tells_what_it_holds(tmp_path):
    assert refusal(tmp_path)[0] == f"{tmp_path} holds no files"
    touch(tmp_path, "a.txt", "b.txt", "c.mp4")
    assert (
        refusal(tmp_path)[0]
        == f"no images in {tmp_path} or the folders in it, only other files: 2 .txt, 1 .mp4"
    )


def test_nor_are_they_where_the_run_is_made_in_the_images_own_folder(tmp_path):
    assert images(
        touch(tmp_path, "a.jpg", "events.jsonl", "previews/step.png", "more/previews/b.png")
    ) == ["a.jpg", "more/previews/b.png"]
