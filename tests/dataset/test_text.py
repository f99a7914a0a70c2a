"""Text files in the encodings people have."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from lora_trainer.dataset.text import decode, read_text, write_bytes
from lora_trainer.errors import DatasetError

CHINESE = "一只红狐狸,雪地,水墨风格"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (CHINESE.encode("utf-8"), "utf-8"),
        (codecs.BOM_UTF8 + CHINESE.encode("utf-8"), "utf-8"),
        (CHINESE.encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + CHINESE.encode("utf-16-be"), "utf-16"),
        (CHINESE.encode("gbk"), "gb18030"),
    ],
    ids=["UTF-8", "UTF-8 with BOM", "UTF-16", "UTF-16 big-endian", "GBK"],
)
def test_chinese_is_read_in_every_encoding(data, encoding):
    text = decode(data, Path("a.txt"))
    assert (text.content, text.encoding) == (CHINESE, encoding)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_are_one(ending):
    assert decode(f"a{ending}b{ending}".encode(), Path("a.txt")).content == "a\nb\n"


def test_one_broken_byte_does_not_turn_utf8_into_other_chinese():
    """Cut in the middle of a character, this passes as GBK, and would be read as 涓€鍙..."""
    data = (f"first\n{CHINESE}").encode()[:-4] + b"xx"
    with pytest.raises(DatasetError, match=r"^a\.txt is damaged UTF-8 text \(line 2\)$"):
        decode(data, Path("a.txt"))


def test_what_is_in_no_encoding_gets_a_sentence():
    with pytest.raises(DatasetError, match=r"^a\.txt is in an unknown encoding \(line 2\)$"):
        decode(b"a fox\na caf\x81\xfe\x81\x00", Path("a.txt"))


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n\0\0\0", b"a\0b\0", codecs.BOM_UTF16_LE + b"\0\xd8a"],
    ids=["PNG", "zeros", "half a pair"],
)
def test_what_is_no_text_gets_a_sentence(data):
    with pytest.raises(
        DatasetError, match=r"^a\.txt is (not a text file|in an unknown encoding|damaged)"
    ):
        decode(data, Path("a.txt"))


def test_a_missing_file_gets_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_text(tmp_path / "a.txt")


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "新 folder" / "a.txt"
    write_bytes(path, b"a longer text than the next")
    write_bytes(path, CHINESE.encode())
    assert path.read_bytes() == CHINESE.encode("utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DatasetError, match="cannot be written"):
        write_bytes(tmp_path / "a.txt", b"text")
