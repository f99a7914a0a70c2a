"""The worker's ear: which requests it hears, and that it notices the end of the WebUI it was tied to."""

import contextlib
import json
import os
import subprocess
import sys

import psutil
import pytest

from lora_trainer.jobs.start import tie
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import Request
from lora_trainer.worker import report as reports
from lora_trainer.worker.report import Report, is_orphan


@pytest.fixture
def folder(tmp_path):
    return folders.begin(tmp_path / "run", "")


def test_a_run_that_is_tied_to_nobody_is_no_orphan(folder):
    assert not is_orphan(folder)
    tie(folder, True)
    assert not is_orphan(folder), "this process lives"
    tie(folder, False)
    assert not folder.host.exists()
    tie(folder, False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_damaged_note_ties_to_nobody(folder, text):
    folder.host.write_text(text, encoding="utf-8")
    assert not is_orphan(folder)


def test_a_dead_host_is_noticed_also_when_another_process_has_its_number(folder):
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.readline()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    folder.host.write_text(json.dumps({"pid": process.pid, "started": started}), encoding="utf-8")
    assert not is_orphan(folder)
    process.communicate(b"\n")
    assert is_orphan(folder)
    folder.host.write_text(json.dumps({"pid": os.getpid(), "started": started - 1000}), encoding="utf-8")
    assert is_orphan(folder)


def test_the_end_of_the_host_asks_for_a_stop_and_goes_on_asking(folder, monkeypatch):
    monkeypatch.setattr(reports, "HOST_SECONDS", 0.0)
    with folders.occupy(folder, {}) as heartbeat, contextlib.closing(Report(folder, heartbeat)) as report:
        tie(folder, True)
        assert report.requests() == [] and not report.stop_asked()
        folder.host.write_text(json.dumps({"pid": os.getpid(), "started": 1.0}), encoding="utf-8")
        assert report.stop_asked()
        tie(folder, False)
        assert report.requests() == [Request("stop")]
