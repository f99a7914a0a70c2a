"""What anybody may put into a dataset is read in time that grows with it, and no faster: four times
the text in about four times the time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_trainer.dataset import sources
from lora_trainer.dataset.captions import parts, variants
from lora_trainer.dataset.listing import Listing
from lora_trainer.dataset.matching import NameIndex
from lora_trainer.dataset.metadata import Metadata, Row, read_metadata
from lora_trainer.dataset.syntax import foreign
from lora_trainer.dataset.template import Vocabulary, departures
from lora_trainer.webui.captions.bulk_edits import action

TABLE, JSON_LINES, DOCUMENT = Path("metadata.csv"), Path("metadata.jsonl"), Path("metadata.json")
SMALL = 8_000
SIGNS = [
    ",",
    '"',
    "\n",
    "\n\n",
    ";",
    "\t",
    " ",
    "a.png",
    "x",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\",
    ":",
    '{"',
    '":',
    "，",
    "“",
    "\r\n",
    "a.png,",
    '"""',
]


def seconds(run: Callable[[str], object], text: str) -> float:
    begun = time.process_time()
    run(text)
    return time.process_time() - begun


def table(text: str) -> object:
    return read_metadata(TABLE, text.encode())


def json_lines(text: str) -> object:
    return read_metadata(JSON_LINES, text.encode())


def document(text: str) -> object:
    return read_metadata(DOCUMENT, text.encode())


def edits(caption: str) -> object:
    asked = [
        {"do": "dedupe"},
        {"do": "sort"},
        {"do": "remove", "tags": ["a"]},
        {"do": "replace", "find": "a", "replace": ""},
    ]
    return [action(values, [caption])(caption[:20_000]) for values in asked]


def require_linear(run: Callable[[str], object], make: Callable[[int], str]) -> None:
    little, much = make(SMALL), make(4 * SMALL)
    large = seconds(run, much)
    # what takes next to no time is no square
    if large < 0.05:
        return
    # the best of three: a busy machine is slow now and then, not always
    small = min(seconds(run, little) for _ in range(3))
    large = min(large, *(seconds(run, much) for _ in range(2)))
    # of a square it would be sixteen times
    assert large < 9 * small, f"{small:.3f} s, of four times as much {large:.3f} s"


def departing(caption: str) -> object:
    vocabulary = Vocabulary(
        opening="ink wash", fields={"light": ("soft light", "softlight"), "colour": ("grey",)}
    )
    return departures({"a.png": caption}, vocabulary)


@pytest.mark.parametrize(
    ("run", "piece"),
    [
        (table, '{"a.png,""' + "\n"),
        (table, ","),
        (table, '"a\n'),
        (table, "a.png,x" + "\n"),
        (table, "\n \n"),
        (table, '""'),
        (table, ";\t,"),
        (json_lines, "["),
        (json_lines, '{"a":'),
        (json_lines, "\n"),
        (json_lines, "9"),
        (document, '{"a":'),
        (document, "["),
        (parts, "("),
        (parts, "(,"),
        (parts, "([{"),
        (parts, ")]}"),
        (parts, "(a, b), "),
        (variants, "a\n"),
        (foreign, "("),
        (foreign, "[a|"),
        (foreign, "{a|"),
        (foreign, "--a "),
        (edits, "a, "),
        (departing, "gray "),
        (departing, "soft-light, "),
        (edits, "a,"),
        (edits, "(a, b"),
    ],
)
def test_repeated_pieces_are_read_in_proportion(run, piece):
    require_linear(run, lambda length: (piece * length)[:length])


def test_a_quoted_cell_of_many_line_ends_and_many_trailing_commas_are_read_in_proportion():
    require_linear(table, lambda length: 'file_name,text\na.png,"' + "\n" * length + '"\n')
    require_linear(table, lambda length: "file_name,text\na.png,a fox" + "," * length + "\n")
    require_linear(
        table, lambda length: "file_name,text\n" + 'a.png,"' + " \n" * (length // 2) + '"\n'
    )
    require_linear(
        document,
        lambda length: (
            "[" + ", ".join(['{"file_name": "a.png", "text": "x"}'] * (length // 36)) + "]"
        ),
    )


def matching(rows: int, folders: int) -> float:
    """Processor's seconds for rows with paths of another machine, each of which may mean an image
    in any of the folders.
    """
    index = NameIndex(Path(f"/data/{number}/1.png") for number in range(folders))
    listing = Listing(root=Path("/data"))
    names = [f"D:/x/{number}/1.jpg" for number in range(rows)] + ["E:/1.png"] * rows
    table = Metadata(
        path=Path("/data/metadata.csv"),
        rows=tuple(Row(file_name=name, caption="x", line=1) for name in names),
        findings=(),
    )
    begun = time.process_time()
    captions, _, findings = sources._rows([table], index, listing)
    assert len(captions) == min(rows, folders) and len(findings) >= rows
    return time.process_time() - begun


def test_rows_are_matched_in_time_that_does_not_grow_with_how_many_images_share_their_name():
    few, many = (
        min(matching(2_000, 20) for _ in range(3)),
        min(matching(2_000, 2_000) for _ in range(3)),
    )
    assert many < 0.1 or many < 5 * few, (
        f"{few:.3f} s among 20 images of one name, {many:.3f} s among 2,000"
    )


def test_a_name_that_a_damaged_table_repeats_is_looked_up_once():
    index = NameIndex([Path("/data/fox.png")])
    folders = (Path("/data/sub"), Path("/data"))

    def looked_up(names: list[str]) -> float:
        begun = time.process_time()
        assert {index.find(name, folders).images for name in names} == {()}
        return time.process_time() - begun

    others = min(
        looked_up([f"{time_} {number} two lines" for number in range(20_000)]) for time_ in range(3)
    )
    same = min(looked_up(["n two lines"] * 20_000) for _ in range(3))
    assert same < others / 2, (
        f"{same:.3f} s for one name again and again, {others:.3f} s for as many names"
    )


@pytest.mark.parametrize("seed", range(6))
def test_mixed_pieces_raise_nothing_and_are_read_in_proportion(seed):
    def make(length: int) -> str:
        draw = random.Random(seed)
        chosen = draw.sample(SIGNS, 4)
        return "".join(draw.choice(chosen) for _ in range(length))

    for run in (table, json_lines, document, parts, foreign):
        require_linear(run, make)
