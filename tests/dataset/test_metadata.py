"""metadata.csv and metadata.jsonl as people write them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from lora_trainer.dataset.metadata import read_metadata

FOX = "a red fox, snow"
CAT = "a cat"


def read(tmp_path: Path, content: str | bytes, name: str = "metadata.csv") -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    metadata = read_metadata(path)
    assert metadata.findings == ()
    return [(row.file_name, row.caption) for row in metadata.rows]


def sentences(tmp_path: Path, content: str | bytes, name: str = "metadata.csv") -> list[str]:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    findings = read_metadata(path).findings
    assert all(str(finding.hint) for finding in findings)
    return [str(finding).replace(str(tmp_path), "") for finding in findings]


@pytest.mark.parametrize(
    "content",
    [
        'img01.jpg,"a red fox, snow"\nimg02.jpg,a cat\n',
        'img01.jpg, "a red fox, snow"\nimg02.jpg, a cat',
        "img01.jpg,a red fox, snow\nimg02.jpg,a cat\n",
        'file_name,text\nimg01.jpg,"a red fox, snow"\nimg02.jpg,a cat\n',
        "file_name,text\nimg01.jpg,a red fox, snow\nimg02.jpg,a cat\n",
        '"file_name","text"\n"img01.jpg","a red fox, snow"\n"img02.jpg","a cat"\n',
        'image,caption\r\nimg01.jpg,"a red fox, snow"\r\n\r\nimg02.jpg,a cat\r\n',
        'Filename;Prompt\nimg01.jpg;"a red fox, snow"\nimg02.jpg;a cat\n',
        "img01.jpg;a red fox, snow\nimg02.jpg;a cat\n",
        "path\tlabel\nimg01.jpg\ta red fox, snow\nimg02.jpg\ta cat\n",
        "img01.jpg\ta red fox, snow\nimg02.jpg\ta cat\n",
        'sep=;\nimg01.jpg;"a red fox, snow"\nimg02.jpg;a cat\n',
        "caption,image\na red fox, snow,img01.jpg\na cat,img02.jpg\n",
        'id,file name,width,text\n1,img01.jpg,512,"a red fox, snow"\n2,img02.jpg,512,a cat\n',
        "text,file_name,width\na red fox, snow,img01.jpg,512\na cat,img02.jpg,512\n",
        'file_name,label,text\nimg01.jpg,7,"a red fox, snow"\nimg02.jpg,8,a cat\n',
        'img01.jpg,"a red fox, snow",,,\nimg02.jpg,a cat,,,\n',
        "foto,beschreibung\nimg01.jpg,a red fox, snow\nimg02.jpg,a cat\n",
        "file_name,beschreibung\nimg01.jpg,a red fox, snow\nimg02.jpg,a cat\n",
        "图片,描述\nimg01.jpg,a red fox, snow\nimg02.jpg,a cat\n",
    ],
)
def test_csv_is_understood_however_it_is_written(tmp_path, content):
    assert read(tmp_path, content) == [("img01.jpg", FOX), ("img02.jpg", CAT)]


@pytest.mark.parametrize("content", ['"a ""big"" fox"', "'a \"big\" fox'"])
def test_quotation_marks_inside_captions_stay(tmp_path, content):
    assert read(tmp_path, f"a.jpg,{content}\n")[0][1].strip("'") == 'a "big" fox'


def test_the_seeds_file_is_read(tmp_path):
    content = (
        'img01.jpg,"futuristic sci-fi laboratory with glowing blue consoles, metallic walls,'
        ' holographic displays, dim ambient lighting"\nimg02.jpg,"high-tech research lab with'
        ' robotic arms, glass containment units, neon interface panels"\n'
    )
    assert read(tmp_path, content) == [
        (
            "img01.jpg",
            (
                "futuristic sci-fi laboratory with glowing blue consoles, metallic walls,"
                " holographic displays, dim ambient lighting"
            ),
        ),
        (
            "img02.jpg",
            (
                "high-tech research lab with robotic arms, glass containment units, neon interface"
                " panels"
            ),
        ),
    ]


@pytest.mark.parametrize(
    "encode",
    [codecs.BOM_UTF8.__add__, lambda data: data.decode().encode("utf-16")],
    ids=["BOM", "UTF-16"],
)
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, encode):
    assert read(tmp_path, encode("图.jpg,一只红狐狸\n".encode())) == [("图.jpg", "一只红狐狸")]


def test_gbk_is_read_and_said_to_be_guessed(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_bytes('file_name,text\n图.jpg,"一只红狐狸,雪地"\n'.encode("gbk"))
    metadata = read_metadata(path)
    assert [(row.file_name, row.caption) for row in metadata.rows] == [
        ("图.jpg", "一只红狐狸,雪地")
    ]
    assert [(finding.severity, str(finding)) for finding in metadata.findings] == [
        ("warning", 'metadata.csv is not UTF-8; it was read as GBK: "图.jpg,"一只红狐狸,雪地""')
    ]


def test_rows_know_their_lines(tmp_path):
    (tmp_path / "metadata.csv").write_text(
        'sep=,\nfile_name,text\n\na.jpg,"one\ntwo"\nb.jpg,three\n', encoding="utf-8"
    )
    assert [row.line for row in read_metadata(tmp_path / "metadata.csv").rows] == [4, 6]


def test_a_quotation_mark_left_open_is_named_with_its_line(tmp_path):
    content = 'a.jpg,one\nb.jpg,"two\nc.jpg,"three, four"\nd.jpg,five\n'
    assert sentences(tmp_path, content) == [
        "metadata.csv, line 2: a quotation mark is not closed, so the rows below it are lost"
    ]


def test_a_row_that_names_no_image_is_named(tmp_path):
    assert sentences(tmp_path, "a.jpg,one\n,two\n") == ["metadata.csv, line 2: no image is named"]


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (
            "id,image,width\n1,a.jpg,512\n",
            "metadata.csv",
            (
                "/metadata.csv has the columns id, image, width: none of them is a known name "
                "for captions"
            ),
        ),
        (
            b"a caf\x81\xfe\x81\x00\n",
            "metadata.csv",
            "/metadata.csv is in an unknown encoding (line 1)",
        ),
        (b"PK\x03\x04", "metadata.xlsx", "/metadata.xlsx is a workbook, not a CSV file"),
        (
            '{\n  "a.jpg": {\n',
            "meta.json",
            (
                "/meta.json is not valid JSON (Expecting property name enclosed in double quotes:"
                " line 3 column 1 (char 15))"
            ),
        ),
        (
            'a.jpg,"' + "x" * 200_000,
            "metadata.csv",
            "/metadata.csv, line 1: a cell has more than 131072 characters",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, name, sentence):
    assert sentences(tmp_path, content, name) == [sentence]


def test_an_empty_file_has_no_rows(tmp_path):
    assert (
        read(tmp_path, "") == [] == read(tmp_path, "\n\n") == read(tmp_path, "", "metadata.jsonl")
    )


def test_json_lines_are_read(tmp_path):
    content = (
        '{"file_name": "img01.jpg", "text": "a red fox, snow"}\n\n'
        '{"image": "img02.jpg", "caption": ["a cat"], "id": 3}\n'
        '{"file_name": "c.jpg", "text": null}'
    )
    assert read(tmp_path, content, "metadata.jsonl") == [
        ("img01.jpg", FOX),
        ("img02.jpg", CAT),
        ("c.jpg", ""),
    ]


def test_json_lines_that_cannot_be_read_are_named(tmp_path):
    content = (
        '{"file_name": "a.jpg", "text": "x"}\n{"file_name": "b.jpg", text}\n["c.jpg"]\n{"text":'
        ' "d"}\n{"file_name": "e.jpg", "text": 7}\n'
    )
    found = sentences(tmp_path, content, "metadata.jsonl")
    assert [sentence.split(" (")[0] for sentence in found] == [
        "metadata.jsonl, line 2: not valid JSON",
        "metadata.jsonl, line 3: not a JSON object",
        "metadata.jsonl, line 4: no image is named",
        "metadata.jsonl, line 5: the caption is 7, not a text",
    ]
