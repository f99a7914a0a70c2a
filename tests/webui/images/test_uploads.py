"""What a browser sends becomes images and captions, or a sentence for each file that does not;
never half a file.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import threading
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.errors import DatasetError
from lora_trainer.files import RESERVED_DISK_SPACE
from lora_trainer.webui.common.safe_names import free_name, natural_order, safe_name
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.images import uploads
from lora_trainer.webui.images.uploads import Accepted, accept, receive
from tests.webui.heic import without_decoder

PLENTY = lambda path: 2**40  # noqa: E731


def picture(colour: str = "red", form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path, monkeypatch):
    without_decoder(monkeypatch)
    (tmp_path / "fox").mkdir()
    return CaptionStore(tmp_path / "fox", follow_links=False)


def send(store: CaptionStore, name: str, data: bytes, **options: object) -> Accepted:
    async def pieces():
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    incoming = asyncio.run(receive(pieces(), store, name, len(data), PLENTY))
    accepted = accept(store, incoming, name, free=PLENTY, **options)  # type: ignore[arg-type]
    assert list((store.path / ".lora_trainer" / "incoming").iterdir()) == []
    return accepted


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def reasons(accepted: Accepted) -> list[str]:
    return [str(skipped.message) for skipped in accepted.skipped]


def captions(store: CaptionStore) -> dict[str, str]:
    return {item.name: item.caption for item in store.view().items}


# --- images -------------------------------------------------------------------------------------


def test_a_picture_is_taken_as_it_is(store):
    accepted = send(store, "狐 狸.png", picture())
    assert [(added.name, added.width, added.height) for added in accepted.added] == [
        ("狐 狸.png", 40, 30)
    ]
    assert (store.path / "狐 狸.png").read_bytes() == picture()
    assert store.view().items[0].key == accepted.added[0].key


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("../../evil.png", "evil.png"),
        ("C:\\temp\\fox.png", "fox.png"),
        ("/etc/fox.png", "fox.png"),
        ("a<b>:c|d?.png", "a_b__c_d_.png"),
        ("CON.png", "_CON.png"),
        (".hidden.png", "hidden.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("x\0y\nz.png", "x_y_z.png"),
        ("fox.JPG", "fox.jpg"),
        ("fox", "fox.png"),
        ("fox.jpg_large", "fox.jpg_large.png"),
        ("IMG_1.heic", "IMG_1.png"),
        ("é" * 200 + ".png", "é" * 65 + ".png"),
    ],
)
def test_a_name_is_made_safe(store, name, stored):
    assert [added.name for added in send(store, name, picture()).added] == [stored]
    assert [path.name for path in store.path.iterdir() if path.name != ".lora_trainer"] == [stored]
    assert not any(path.name in ("evil.png", "fox.png") for path in store.path.parent.iterdir())


def test_of_a_dropped_folders_path_only_kohyas_folder_is_kept(store):
    send(store, "train/10_fox/sub/1.png", picture("red"))
    send(store, "train/3_cat/1.png", picture("blue"))
    send(store, "train/10_fox/1.txt", b"a fox")
    send(store, "train/other/2.png", picture("green"))
    assert captions(store) == {"2.png": "", "3_cat/1.png": "cat", "10_fox/1.png": "a fox"}


def test_the_same_picture_twice_is_one_and_another_of_its_name_gets_a_number(store):
    send(store, "fox.png", picture("red"))
    again = send(store, "FOX.png", picture("red"))
    assert (again.added, reasons(again)) == ([], ["FOX.png is already in this dataset"])
    assert [added.name for added in send(store, "Fox.PNG", picture("blue")).added] == ["Fox-2.png"]
    # fox.png and fox.jpg would share one fox.txt
    assert [added.name for added in send(store, "fox.jpg", picture("red", "JPEG")).added] == [
        "fox-3.jpg"
    ]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("fox.png", b"", "fox.png is empty (0 bytes)"),
        ("fox.png", picture()[:60], "fox.png is cut off"),
        ("fox.png", b"<!DOCTYPE html><html>", "fox.png is a web page, not an image"),
        (
            "fox.heic",
            b"\0\0\0\x18ftypheic" + b"\0" * 40,
            "fox.heic is an HEIC image, which cannot be read here",
        ),
        ("fox.psd", b"8BPS" + b"\0" * 40, "fox.psd is not an image in a supported format"),
        ("fox.exe", b"MZ\0" + b"\1" * 40, "fox.exe is not an image"),
        ("fox.rar", b"Rar!", "fox.rar is an unsupported kind of archive"),
        ("fox.xlsx", b"PK", "fox.xlsx is a workbook, not a CSV file"),
        ("fox.zip", b"PK\3\4 nonsense", "fox.zip is damaged, or not a zip file"),
    ],
)
def test_what_is_no_picture_is_named_with_its_reason_and_leaves_nothing(store, name, data, reason):
    accepted = send(store, name, data)
    assert accepted.added == []
    assert reasons(accepted)[0].startswith(reason)
    assert str(accepted.skipped[0].hint)
    assert [path.name for path in store.path.iterdir()] == [".lora_trainer"]


# --- receiving ------------------------------------------------------------------------------------


def receiving(
    store: CaptionStore, pieces, name: str = "fox.png", size: int | None = None, free=PLENTY
) -> Path:
    async def stream():
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    return asyncio.run(receive(stream(), store, name, size, free))


@pytest.mark.parametrize("trouble", [ConnectionError("gone"), asyncio.CancelledError()])
def test_an_upload_that_breaks_off_leaves_nothing(store, trouble):
    with pytest.raises((DatasetError, asyncio.CancelledError)):
        receiving(store, [b"x" * 10, trouble])
    assert list((store.path / ".lora_trainer" / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("pieces", "name", "size", "free", "message"),
    [
        ([b"xx"], "fox.png", 3, 2**40, "only 2 of 3 bytes of fox.png arrived"),
        ([b"x"], "fox.png", 600 * 2**20, 2**40, "fox.png is larger than 512 MB"),
        ([b"x"], "fox.txt", 65 * 2**20, 2**40, "fox.txt is larger than 1 MB"),
        (
            [b"x"],
            "fox.zip",
            10**10,
            RESERVED_DISK_SPACE + 10**9,
            "there is not enough disk space for fox.zip: 1977 MB are free",
        ),
        ([b"x" * 2**20] * 65, "fox.txt", None, 2**40, "fox.txt is larger than 1 MB"),
    ],
)
def test_what_is_too_large_or_incomplete_is_refused_and_leaves_nothing(
    store, pieces, name, size, free, message
):
    with pytest.raises(DatasetError, match="^" + message):
        receiving(store, pieces, name, size, lambda path: free)
    assert list((store.path / ".lora_trainer" / "incoming").iterdir()) == []


def test_a_disk_that_takes_its_time_does_not_hold_up_the_host(store, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(threading.get_ident()) or fsync(descriptor)
    )
    assert receiving(store, [b"x"]).read_bytes() == b"x"
    assert len(synced) == 1 and threading.get_ident() not in synced


def test_what_a_crash_left_is_cleared_away_after_a_day(store):
    folder = store.path / ".lora_trainer" / "incoming"
    folder.mkdir(parents=True)
    for name, age in (("old", 2 * 24 * 3600), ("recent", 60)):
        (folder / name).write_bytes(b"x")

        os.utime(folder / name, (time.time() - age, time.time() - age))
    receiving(store, [b"x"]).unlink()
    assert [path.name for path in folder.iterdir()] == ["recent"]


# --- captions -------------------------------------------------------------------------------------


def test_an_upload_is_not_disturbed_by_another_that_takes_its_file_away(store, monkeypatch):
    shared = [store.path / ".lora_trainer" / name for name in ("incoming", "making")]
    for folder in shared:
        folder.mkdir(parents=True)
    listed = Path.iterdir
    # listed, and moved to its place by another upload before it is looked at
    monkeypatch.setattr(
        Path,
        "iterdir",
        lambda folder: (
            iter([folder / "taken", *listed(folder)]) if folder in shared else listed(folder)
        ),
    )

    async def pieces():
        yield picture()

    assert asyncio.run(receive(pieces(), store, "fox.png", None, PLENTY)).read_bytes() == picture()
    with store.scratch() as folder:
        assert folder.is_dir()


def test_a_text_file_is_the_caption_of_the_image_of_its_name(store):
    send(store, "fox.png", picture())
    assert send(store, "Fox.txt", "一只红狐狸在雪地里".encode("gbk")).captions == 1
    assert captions(store) == {"fox.png": "一只红狐狸在雪地里"}
    # one file for all captions, as the seeds have it
    assert (store.path / "metadata.csv").read_bytes().decode(
        "utf-8"
    ) == "\ufefffile_name,text\nfox.png,一只红狐狸在雪地里\n"
    assert reasons(send(store, "cat.txt", b"a cat")) == ["cat.txt matches no image of this dataset"]


def test_a_caption_that_is_there_is_kept_unless_replacing_is_asked_for(store):
    send(store, "fox.png", picture())
    send(store, "fox.txt", b"by hand")
    kept = send(store, "fox.txt", b"another")
    assert (kept.captions, reasons(kept), kept.skipped[0].kept_caption) == (
        0,
        ["fox.png has another caption already, which was kept"],
        True,
    )
    assert captions(store) == {"fox.png": "by hand"}
    assert send(store, "fox.txt", b"another", replace_captions=True).captions == 1
    assert captions(store) == {"fox.png": "another"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("captions.csv", b'a.png,"a fox, snow"\nc.png,nobody\n'),
        ("captions.csv", "图片;描述\na.png;a fox, snow\nc.png;nobody\n".encode("gbk")),
        (
            "metadata.jsonl",
            (
                b'{"file_name": "a.png", "text": "a fox, snow"}\n{"file_name": "c.png", "text":'
                b' "nobody"}\n'
            ),
        ),
    ],
)
def test_a_table_of_captions_is_merged(store, name, data):
    send(store, "a.png", picture("red"))
    send(store, "b.png", picture("blue"))
    send(store, "b.txt", b"a cat")
    accepted = send(store, name, data)
    assert captions(store) == {"a.png": "a fox, snow", "b.png": "a cat"}
    assert accepted.captions == 1
    assert [reason.split(": ")[1] for reason in reasons(accepted)] == ["there is no image c.png"]


# --- zip ------------------------------------------------------------------------------------------


def test_a_zip_brings_images_and_their_captions(store):
    members = {
        "set/a.png": picture("red"),
        "set/a.txt": b"a red one",
        "set/b.png": picture("blue"),
        "set/c.jpg": picture("green", "JPEG"),
        "set/metadata.csv": b'b.png,"blue, plain"\nset/c.jpg,a green one\n',
        "__MACOSX/set/._a.png": b"x",
        "set/.DS_Store": b"x",
        "set/Thumbs.db": b"x",
    }
    accepted = send(store, "set.zip", archive(members))
    assert captions(store) == {
        "a.png": "a red one",
        "b.png": "blue, plain",
        "c.jpg": "a green one",
    }
    assert accepted.captions == 3
    assert reasons(accepted) == ["hidden and system files are left out (3 of them)"]


def test_folders_are_flattened_and_captions_follow_the_new_names(store):
    members = {
        "x/1.png": picture("red"),
        "x/1.txt": b"red",
        "y/1.png": picture("blue"),
        "y/1.txt": b"blue",
        "metadata.csv": b"",
    }
    send(store, "set.zip", archive(members))
    assert captions(store) == {"1.png": "red", "1-2.png": "blue"}


def test_kohyas_folders_stay(store):
    send(
        store,
        "set.zip",
        archive(
            {
                "img/10_fox/1.png": picture("red"),
                "img/10_fox/1.txt": b"a fox",
                "img/3_cat/1.png": picture("blue"),
            }
        ),
    )
    assert captions(store) == {"3_cat/1.png": "cat", "10_fox/1.png": "a fox"}
    assert (store.path / "10_fox" / "1.txt").read_text("utf-8") == "a fox\n"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "x/../../evil.png",
        "/evil.png",
        "C:/evil.png",
        "..\\evil.png",
        "\\\\host\\share\\evil.png",
    ],
)
def test_a_member_that_points_out_of_the_archive_is_named_and_left_out(store, name):
    accepted = send(store, "set.zip", archive({name: picture(), "good.png": picture("blue")}))
    assert list(captions(store)) == ["good.png"]
    assert reasons(accepted) == [f"{name.replace(chr(92), '/')} points outside the archive"]
    assert not list(store.path.parent.rglob("evil*"))


def test_links_locked_members_and_other_files_are_named_and_left_out(store):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("notes.docx", b"x")
        file.writestr("inner.zip", b"x")
        file.writestr("broken.png", b"x")
        file.writestr("locked.png", picture())
    data = bytearray(buffer.getvalue())
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        start = 0
        while (start := data.find(mark, start) + 1) > 0:
            at = start - 1
            if b"locked.png" in data[at : at + 60]:
                data[at + flags] |= 1
    assert sorted(reasons(send(store, "set.zip", bytes(data)))) == [
        "broken.png is not an image in a supported format",
        "inner.zip is an archive in an archive",
        "link.png is a link, not a file",
        "locked.png is protected with a password",
        "notes.docx is neither an image nor a caption",
    ]


def test_a_member_damaged_in_the_archive_leaves_the_others_alone(store):
    data = bytearray(archive({"a.png": picture("red", size=(300, 300)), "b.png": picture("blue")}))
    at = data.find(b"a.png") + 5
    data[at + 30 : at + 60] = b"\xff" * 30
    accepted = send(store, "set.zip", bytes(data))
    assert reasons(accepted) == ["a.png is damaged in the archive"]
    assert list(captions(store)) == ["b.png"]


def test_a_zip_bomb_is_refused_before_it_unpacks(store, monkeypatch):
    monkeypatch.setattr(uploads, "SMALL_ENOUGH", 2**20)
    bomb = archive({f"{number}.png": b"\0" * 2**20 for number in range(8)})
    assert reasons(send(store, "bomb.zip", bomb)) == [
        "bomb.zip would unpack to 8 MB, far more than images do"
    ]


def test_a_zip_of_too_many_files_is_refused(store, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_MEMBERS", 3)
    assert reasons(
        send(store, "set.zip", archive({f"{number}.png": b"" for number in range(4)}))
    ) == ["set.zip contains more than 3 files"]


def test_chinese_names_packed_on_windows_are_read(store):
    data = archive({"XXXX.png": picture(), "XXXX.txt": b"a fox"}).replace(
        b"XXXX", "狐狸".encode("gbk")
    )
    send(store, "set.zip", data)
    assert captions(store) == {"狐狸.png": "a fox"}


# --- names ----------------------------------------------------------------------------------------


def test_names_get_the_first_free_number():
    assert free_name("fox.png", {"fox.png", "fox-2.png"}.__contains__) == "fox-3.png"
    assert free_name("v1.5", {"v1.5"}.__contains__) == "v1.5-2"


def test_safe_names_hold_nothing_a_system_forbids():
    assert [safe_name(name) for name in ("a/b", "nul.txt", "  . ", "\ud800x", "ok")] == [
        "a_b",
        "_nul.txt",
        "unnamed",
        "_x",
        "ok",
    ]


def test_numbers_in_names_count_as_numbers():
    assert sorted(["img10", "img9", "IMG1", "alpha", "7"], key=natural_order) == [
        "7",
        "alpha",
        "IMG1",
        "img9",
        "img10",
    ]


# --- other tools' files ---------------------------------------------------------------------------


def test_captions_of_several_lines_stay_so_in_a_file_and_in_a_zip(store):
    send(store, "a.png", picture())
    send(store, "a.txt", b"a red boat on a lake\r\nthe boat lies still\r\n")
    send(
        store,
        "pack.zip",
        archive({"b.png": picture("blue"), "b.txt": b"a blue boat sails.\nA boat, blue"}),
    )
    send(store, "c.png", picture("green"))
    send(store, "more.csv", b'file_name,text\nc.png,"a green boat.\nA boat at night"\n')
    lines = {name: caption.split("\n") for name, caption in captions(store).items()}
    assert lines == {
        "a.png": ["a red boat on a lake", "the boat lies still"],
        "b.png": ["a blue boat sails.", "A boat, blue"],
        "c.png": ["a green boat.", "A boat at night"],
    }


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metadata.json", b'[{"file_name": "a.png", "text": "fox"}]'),
        ("meta_cap.json", b'{"/data/a.png": {"caption": "fox"}}'),
        ("a.json", b'{"caption": "fox"}'),
        ("a.tags", b"fox"),
        ("a.cap", b"fox"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "in a zip"])
def test_other_tools_files_are_taken(store, name, data, packed):
    if packed:
        accepted = send(store, "pack.zip", archive({"set/a.png": picture(), f"set/{name}": data}))
    else:
        send(store, "a.png", picture())
        accepted = send(store, name, data)
    assert (captions(store), reasons(accepted)) == ({"a.png": "fox"}, [])


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "metadata.json",
            b'{"width": 3}',
            "metadata.json has no captions with the names of their images",
        ),
        ("metadata.json", b"[1, 2", "metadata.json is not valid JSON"),
        ("a.json", b'{"width": 3}', "a.json contains no caption"),
        ("fox.prompt", b"a fox", "fox.prompt is a text file in an unsupported format"),
        ("a.txt", b"x" * 130_000, "a.txt: the caption has 130000 characters, more than 20000"),
        ("more.jsonl", b"[" * 100_000, "more.jsonl, line 1: not valid JSON"),
        ("more.json", b'{"a":' * 100_000, "more.json is not valid JSON"),
        ("more.json", b'{"a.png": ' + b"9" * 5_000 + b"}", "more.json"),
    ],
)
def test_what_is_no_caption_is_told_what_it_is(store, name, data, reason):
    send(store, "a.png", picture())
    accepted = send(store, name, data)
    assert captions(store) == {"a.png": ""}
    assert reasons(accepted)[0].startswith(reason)
    assert all(str(skipped.hint) for skipped in accepted.skipped)


def test_class_images_are_left_out_of_uploads_and_told(store):
    alone = send(store, "set/reg/1_animal/z.png", picture("green"))
    packed = send(
        store,
        "pack.zip",
        archive(
            {
                "set/10_fox/a.png": picture(),
                "set/reg/1_animal/z.png": picture("green"),
                "set/reg/1_animal/z.txt": b"x",
            }
        ),
    )
    assert list(captions(store)) == ["10_fox/a.png"]
    assert reasons(alone) == ["z.png is left out: it is among class images (regularisation images)"]
    assert reasons(packed) == ["class images (regularisation images) are left out (2 files)"]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("猫耳の少女", "cp932"), ("café élan", "cp437"), ("狐狸", "gb18030"), ("狐狸 été", "utf-8")],
)
def test_names_in_a_zip_are_read_in_the_packers_encoding(store, name, encoding):
    data = archive({f"{'x' * len(name.encode(encoding))}.png": picture()})
    raw = name.encode(encoding)
    accepted = send(store, "pack.zip", data.replace(b"x" * len(raw) + b".png", raw + b".png"))
    assert ([added.name for added in accepted.added], reasons(accepted)) == ([f"{name}.png"], [])


def test_a_number_of_five_thousand_digits_in_a_name_is_a_name_like_others(store):
    accepted = send(
        store,
        "pack.zip",
        archive({"img" + "7" * 5_000 + ".png": picture(), "img2.png": picture("blue")}),
    )
    assert len(accepted.added) == 2 and reasons(accepted) == []
    assert sorted(["img10", "img9", "img" + "9" * 5000, "img007"], key=natural_order) == [
        "img007",
        "img9",
        "img10",
        "img" + "9" * 5000,
    ]
