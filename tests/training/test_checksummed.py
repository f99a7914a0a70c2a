"""Resume points and encoded images on a disk that lies: one wrong bit, a cut, an empty file."""

import errno
import os

import pytest
import torch

from lora_trainer.errors import RunError, TrainingError
from lora_trainer.training import checksummed, resume
from lora_trainer.training.batches import TensorStore
from tests.hardening.harness import in_child

resource = pytest.importorskip("resource") if os.name != "nt" else None


def state(step, **changes):
    adapters = {"a": torch.arange(24.0).reshape(4, 6) + step}
    values = {
        "adapters": adapters,
        "optimizer": {"state": {}},
        "rates": {},
        "smoothed_loss": {"average": 0.1, "weight": 0.2},
        "skipped": 0,
    }
    return {"step": step, **values, "scaler": None, **changes}


def write_states(folder, *states):
    for one in states:
        resume.write_state(folder, one)


def test_no_wrong_bit_of_a_state_is_ever_read(tmp_path):
    file = tmp_path / "a.pt"
    checksummed.write_state(file, state(1))
    whole = file.read_bytes()
    end = len(whole) - checksummed.TRAILER_SIZE
    for place in [*range(0, end, 7), *range(end, len(whole))]:
        file.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        )
        with pytest.raises(checksummed.Damaged):
            checksummed.read_state(file)


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
@pytest.mark.parametrize("room", [0, 1, 2000, 5000, 9000])
def test_a_state_for_which_there_is_no_room_is_an_error_of_the_system_and_not_of_torch(
    tmp_path, room
):
    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(OSError) as raised:
            checksummed.write_state(tmp_path / "a.pt", {"a": torch.ones(2500)})
        return raised.value.errno

    outcome = in_child(write)
    assert (outcome.how, outcome.value) == ("value", errno.EFBIG), outcome.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 1, 100, -checksummed.TRAILER_SIZE - 1])
def test_a_cut_state_is_damaged(tmp_path, length):
    file = tmp_path / "a.pt"
    checksummed.write_state(file, state(1))
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(checksummed.Damaged):
        checksummed.read_state(file)


@pytest.mark.parametrize("behind", [b"x", b"PK", checksummed.MARK])
def test_a_hash_that_is_not_in_its_place_does_not_pass_for_none(tmp_path, behind):
    file = tmp_path / "a.pt"
    checksummed.write_state(file, state(1))
    file.write_bytes(file.read_bytes() + behind)
    with pytest.raises(checksummed.Damaged, match="not as it was written"):
        checksummed.read_state(file)


def test_the_two_newest_states_are_kept(tmp_path):
    write_states(tmp_path, state(9), state(10), state(11))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step00000010.pt",
        "step00000011.pt",
    ]


def test_a_damaged_newest_state_gives_way_to_the_one_before_and_is_told(tmp_path):
    write_states(tmp_path, state(10), state(20))
    newest = tmp_path / "step00000020.pt"
    content = bytearray(newest.read_bytes())
    content[content.index(torch.arange(24.0).add(20).numpy().tobytes()) + 40] ^= 1
    newest.write_bytes(content)
    found, notes = resume.read_state(tmp_path)
    assert found["step"] == 10
    assert [str(note).replace(str(note.values["reason"]), "...") for note in notes] == [
        "the resume point step00000020.pt is damaged (...); the run continues from step 10"
    ]
    write_states(tmp_path, state(12))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step00000010.pt",
        "step00000012.pt",
        "step00000020.pt.damaged",
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapters": {"a": torch.full((2, 2), float("nan"))}}, "NaN or infinite numbers"),
        (
            {"optimizer": {"state": {0: {"exp_avg": torch.tensor([float("inf")])}}}},
            "NaN or infinite numbers",
        ),
        ({"adapters": None}, "it lacks adapters"),
        ({"rates": ..., "skipped": "no"}, "it lacks rates, skipped"),
        ({"format": 2}, "written by another version"),
    ],
)
def test_a_state_that_no_run_can_go_on_from_is_a_sentence(tmp_path, changes, reason):
    values = {"format": resume.FORMAT, **state(20), **changes}
    checksummed.write_state(
        tmp_path / "step00000020.pt",
        {key: value for key, value in values.items() if value is not ...},
    )
    with pytest.raises(
        RunError, match=f"no resume point in .* can be read .step00000020.pt: .*{reason}"
    ):
        resume.read_state(tmp_path)


def test_a_state_of_an_earlier_version_is_read(tmp_path):
    torch.save({"format": 1, **state(7)}, tmp_path / "step00000007.pt")
    assert resume.read_state(tmp_path).state["step"] == 7


def test_what_is_damaged_or_something_else_counts_as_not_encoded(tmp_path):
    store, shapes = TensorStore(tmp_path), {"moments": (8, 2, 2), "size_condition": (6,)}
    good = {"moments": torch.zeros(8, 2, 2), "size_condition": torch.zeros(6)}
    store.put("a", good)
    file = tmp_path / "a.safetensors"
    whole = file.read_bytes()
    assert store.holds("a", shapes) and not store.holds("none", shapes)
    for content in (
        b"",
        whole[:-30],
        whole[:-60],
        whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
    ):
        file.write_bytes(content)
        assert not store.holds("a", shapes)
        with pytest.raises(
            TrainingError, match="which holds an encoded image or caption, is damaged"
        ):
            store.get("a")
    for wrong in (
        {**good, "moments": torch.zeros(8, 4, 2)},
        {"moments": good["moments"]},
        {**good, "moments": torch.full((8, 2, 2), float("nan"))},
    ):
        store.put("a", wrong)
        assert not store.holds("a", shapes)


def test_a_state_waits_for_the_disk_and_an_encoded_image_does_not(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    TensorStore(tmp_path).put("image", {"moments": torch.zeros(2)})
    assert not synced and list(tmp_path.iterdir())
    checksummed.write_state(tmp_path / "a.pt", state(1))
    assert synced
