"""What image encoders saw, kept by content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_trainer.dataset.embeddings import Embedded, add, covering, read_all, spread


def seen(rows, encoder="CLIP a/b", title="CLIP", unrelated=0.5):
    by_digest = {name: np.asarray(row, np.float16) for name, row in rows.items()}
    return Embedded(encoder=encoder, title=title, unrelated=unrelated, by_digest=by_digest)


def kept(folder):
    return [{name: row.tolist() for name, row in one.by_digest.items()} for one in read_all(folder)]


def file_of(folder) -> Path:
    (path,) = (folder / ".lora_trainer" / "embeddings").iterdir()
    return path


def test_what_is_added_is_read_again(tmp_path):
    add(tmp_path, seen({"aa": [1, 0], "bb": [0.6, 0.8]}))
    (one,) = read_all(tmp_path)
    assert (one.encoder, one.title, one.unrelated) == ("CLIP a/b", "CLIP", 0.5)
    assert one.by_digest["bb"].dtype == np.float16 and one.rows(["bb", "none", "aa"]).tolist() == [
        pytest.approx([0.6, 0.8], abs=1e-3),
        [1, 0],
    ]


def test_a_later_job_adds_to_it_and_drops_what_is_gone(tmp_path):
    add(tmp_path, seen({"aa": [1, 0], "bb": [0, 1]}))
    add(tmp_path, seen({"bb": [1, 0], "cc": [1, 0]}))
    assert kept(tmp_path) == [{"aa": [1, 0], "bb": [1, 0], "cc": [1, 0]}]
    add(tmp_path, seen({"dd": [0, 1]}), keep={"bb", "dd"})
    assert kept(tmp_path) == [{"bb": [1, 0], "dd": [0, 1]}]


def test_each_encoder_has_a_file_of_its_own(tmp_path):
    add(tmp_path, seen({"aa": [1, 0]}))
    add(tmp_path, seen({"aa": [1, 0, 0]}, encoder="BLIP C:\\models\\我的", title="BLIP"))
    assert [(one.title, one.rows(["aa"]).shape) for one in read_all(tmp_path)] == [
        ("BLIP", (1, 3)),
        ("CLIP", (1, 2)),
    ]


def test_a_model_that_became_another_one_begins_anew(tmp_path):
    add(tmp_path, seen({"aa": [1, 0]}))
    add(tmp_path, seen({"bb": [1, 0, 0]}))
    assert kept(tmp_path) == [{"bb": [1, 0, 0]}]


def changed_head(content: bytes, **changes) -> bytes:
    head, _, body = content.partition(b"\n")
    return json.dumps({**json.loads(head), **changes}).encode() + b"\n" + body


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: content + b"xx",
        lambda content: b"\x80\x04K\x01.",
        lambda content: b"[]\n",
        lambda content: b"[" * 100_000,
        lambda content: changed_head(content, version=0),
        lambda content: changed_head(content, width=-1),
        lambda content: changed_head(content, digests=None),
        lambda content: changed_head(content, unrelated="NaN"),
        lambda content: content[:-2] + b"\xff\x7f",
        lambda content: changed_head(content, width=10**30),
    ],
)
def test_a_file_that_does_not_read_is_as_none_and_made_anew(tmp_path, spoil):
    add(tmp_path, seen({"aa": [1, 0]}))
    path = file_of(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    assert read_all(tmp_path) == ()
    add(tmp_path, seen({"bb": [0, 1]}))
    assert file_of(tmp_path) == path and kept(tmp_path) == [{"bb": [0, 1]}]


def test_nothing_seen_is_nothing_kept(tmp_path):
    add(tmp_path, seen({}))
    assert read_all(tmp_path) == () and not list(tmp_path.rglob("*.bin"))


def test_two_thousand_images_take_three_megabytes(tmp_path):
    add(tmp_path, seen({f"{number:040x}": np.full(768, 0.036) for number in range(2000)}))
    assert file_of(tmp_path).stat().st_size < 3_200_000


def test_the_encoder_that_saw_nearly_all_is_asked():
    some, most = (
        seen({str(number): [1, 0] for number in range(8)}),
        seen({str(number): [1, 0] for number in range(9)}, title="BLIP"),
    )
    images = [str(number) for number in range(10)]
    assert (
        covering([some, most], images) is most
        and covering([some], images) is None
        and covering([], images) is None
        and covering([some], []) is None
    )


def test_spread_is_the_mean_distance_of_all_pairs():
    assert spread(np.array([[1, 0], [2, 0]])) == pytest.approx(0)
    assert spread(np.array([[1, 0], [0, 1], [0, 3]])) == pytest.approx(2 / 3)
