"""How a step is dealt out, and what a process does where another one is gone."""

import dataclasses
import itertools
import os
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from lora_trainer.errors import DatasetError, ProcessLost
from lora_trainer.tasks.provenance import Provenance, require_same
from lora_trainer.training.device import listed_devices
from lora_trainer.training.joined import Joined, open_store
from lora_trainer.training.processes import ALONE, Processes
from lora_trainer.worker.companions import Watch


def one_of(rank, count):
    processes = Processes()
    processes.rank, processes.count = rank, count
    return processes


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_example_of_a_step_is_dealt_to_one_process_and_evenly(count):
    sizes = (4, 1, 3)
    dealt = []
    for rank in range(count):
        processes, start, mine = one_of(rank, count), 0, []
        for size in sizes:
            mine += [start + row for row in processes.share(start, size)]
            start += size
        dealt.append(mine)
    assert sorted(itertools.chain(*dealt)) == list(range(8))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_single_process_has_everything_and_sends_nothing():
    assert ALONE.is_first and ALONE.share(5, 3) == range(3)
    assert (ALONE.first(lambda: "made"), ALONE.gather("mine")) == ("made", ["mine"])


def test_devices_are_those_that_are_named():
    assert listed_devices("cpu", "auto") == ["cpu"]
    assert listed_devices("cpu", "all") == ["cpu"]
    assert listed_devices("auto", "0, 2") == ["cuda:0", "cuda:2"]
    assert listed_devices("auto", "cpu,cpu") == ["cpu", "cpu"]


def test_a_process_that_hangs_in_a_sum_of_one_that_is_gone_gives_up():
    told = threading.Event()
    waiting = SimpleNamespace(
        busy_since=None, lost=lambda how: ProcessLost("process 2 was ended ({how})", how=how[1])
    )
    ended, errors = {}, []

    def give_up(error):
        errors.append(str(error))
        told.set()

    with Watch(waiting, lambda: ended, give_up, patience=0.1):
        # long sums of processes that live, and ends of processes that nobody waits for
        waiting.busy_since = time.monotonic() - 10
        assert not told.wait(0.5)
        waiting.busy_since = None
        ended[1] = "signal 9"
        assert not told.wait(0.5)
        waiting.busy_since = time.monotonic()
        assert told.wait(120)
    assert errors == ["process 2 was ended (signal 9)"]


def test_a_sum_that_is_over_when_the_end_of_another_one_is_noticed_has_not_hung():
    told, looked = threading.Event(), threading.Event()
    waiting = SimpleNamespace(
        busy_since=time.monotonic() - 10, lost=lambda how: ProcessLost("process 2 was ended")
    )

    def ended():
        waiting.busy_since = None
        looked.set()
        return {1: "signal 9"}

    with Watch(waiting, ended, lambda error: told.set(), patience=0.1):
        assert looked.wait(120)
        assert not told.wait(0.5)


def test_other_images_or_another_checkpoint_under_the_same_paths_are_named():
    first = Provenance(
        settings={"seed": "0"}, files={"base_model": "a"}, examples={"1.png": "x", "2.png": "y"}
    )
    require_same(first, first)
    own = dataclasses.replace(first, files={"base_model": "b"}, examples={"1.png": "x"})
    with pytest.raises(DatasetError, match=r"\(2\): base_model, 2\.png$"):
        require_same(own, first)


@pytest.mark.skipif(os.name == "nt", reason="PyTorch for Windows binds to every address")
def test_processes_of_one_machine_listen_to_it_only():
    joined = Joined(open_store(1), 0, 1)
    try:
        listening = {
            one.laddr.ip
            for one in psutil.Process().connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        # a parameter without a gradient has none afterwards
        with_one, without = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        with_one.grad = torch.tensor([1.0, 2.0])
        losses = torch.tensor([3.0])
        joined.add_up([with_one, without], losses)
        assert (with_one.grad.tolist(), without.grad, losses.tolist()) == ([1, 2], None, [3])
        assert joined.first(lambda: {"a": 1}) == {"a": 1} and joined.gather(5) == [5]
        assert joined.busy_since is None and not joined.is_over
    finally:
        joined.leave()
