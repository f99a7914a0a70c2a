"""Pausing and stopping, without a job: what is asked in the run's folder, and what comes of it."""

from types import SimpleNamespace

import pytest

from lora_trainer.runs import events
from lora_trainer.runs.folder import Heartbeat, RunFolder
from lora_trainer.runs.requests import send_request
from lora_trainer.tasks.control import Control, Requests
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import StopRequested

HERE = SimpleNamespace(step=7)


class Occupant:
    """Notes what the last event was when it left the device, and when it returned."""

    def __init__(self, folder):
        self.folder, self.moves = folder, []

    def leave_device(self):
        self.moves.append(("leaves", [event.kind for event in self.folder.read_events()][-1:]))

    def return_to_device(self):
        self.moves.append(("returns", [event.kind for event in self.folder.read_events()][-1:]))


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def control(folder):
    report = Report(folder, Heartbeat(folder.worker, {}))
    yield Control(report)
    report.close()


def during_a_pause(monkeypatch, folder, *kinds):
    """These requests arrive one after the other while the run is paused."""
    coming = iter(kinds)
    monkeypatch.setattr(
        "lora_trainer.tasks.control.sleep",
        lambda seconds: send_request(folder.requests, next(coming)),
    )


def said(folder):
    return [(event.kind, event.step) for event in folder.read_events()]


def test_a_pause_is_told_with_the_name_of_what_it_obeys_and_again_for_the_next(
    folder, control, monkeypatch
):
    names = [send_request(folder.requests, "pause")]
    coming = iter(["pause", "pause", "resume"])
    monkeypatch.setattr(
        "lora_trainer.tasks.control.sleep",
        lambda seconds: names.append(send_request(folder.requests, next(coming))),
    )
    control.check(HERE)
    paused = [event for event in folder.read_events() if isinstance(event, events.Paused)]
    assert [event.request for event in paused] == names[:3] == sorted(names[:3])
    assert said(folder)[-1][0] == "resumed"


def test_whatever_lies_on_the_device_leaves_before_the_pause_is_told(folder, control, monkeypatch):
    during_a_pause(monkeypatch, folder, "resume")
    occupants = [Occupant(folder), Occupant(folder)]
    for occupant in occupants:
        control.occupy(occupant)
    control.check(HERE)
    assert said(folder) == []
    send_request(folder.requests, "pause")
    control.check(HERE)
    assert said(folder) == [("paused", 7), ("resumed", 7)]
    assert [occupant.moves for occupant in occupants] == [
        [("leaves", []), ("returns", ["resumed"])]
    ] * 2


def test_a_stop_goes_before_a_pause(folder, control):
    for kind in ("pause", "stop"):
        send_request(folder.requests, kind)
    with pytest.raises(StopRequested):
        control.check(HERE)
    assert said(folder) == []


def test_a_stop_ends_a_pause_and_leaves_the_device_to_others(folder, control, monkeypatch):
    during_a_pause(monkeypatch, folder, "save", "stop")
    occupant = Occupant(folder)
    control.occupy(occupant)
    send_request(folder.requests, "pause")
    with pytest.raises(StopRequested):
        control.check(HERE)
    assert said(folder) == [("paused", 7)] and occupant.moves == [("leaves", [])]


def test_things_are_given_on_until_a_stop_and_wait_during_a_pause(folder, control, monkeypatch):
    during_a_pause(monkeypatch, folder, "resume")
    given = []
    with pytest.raises(StopRequested):
        for thing in control.until_stopped("abc", HERE):
            given.append(thing)
            send_request(folder.requests, {"a": "pause", "b": "stop"}[thing])
    assert given == ["a", "b"] and said(folder) == [("paused", 7), ("resumed", 7)]


def test_requests_come_in_their_order_with_pauses_obeyed_on_the_way(folder, control, monkeypatch):
    during_a_pause(monkeypatch, folder, "preview", "resume")
    for kind in ("save", "pause"):
        send_request(folder.requests, kind)
    asked = []
    loop = SimpleNamespace(work=HERE, request=asked.append)
    Requests(control).before_step(loop)
    assert asked == ["save", "preview"] and said(folder) == [("paused", 7), ("resumed", 7)]
    Requests(control).before_step(loop)
    assert asked == ["save", "preview"]
    for kind in ("save", "stop"):
        send_request(folder.requests, kind)
    with pytest.raises(StopRequested):
        next(control.requests(HERE))
