"""Pairs from documents as a job: written as they come, stopped by request, refused without any."""

import json

import pytest

from lora_trainer.language import pairs
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import pairing
from lora_trainer.worker import job


class Server:
    """Answers about each passage by its first line."""

    def __init__(self, reply='{{"question": "{0}?", "answer": "Yes."}}', at_first=lambda: None):
        self.reply, self.at_first = reply, at_first

    def ask(self, prompt):
        self.at_first()
        return self.reply.format(prompt.split("\n\n")[1].splitlines()[0].strip("# "))


@pytest.fixture
def begin(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "rules.md").write_text("# One\n\nFirst.\n\n# Two\n\nSecond.\n")
    settings = pairing.from_mapping(
        {
            "input": str(tmp_path / "docs"),
            "output": str(tmp_path / "pairs" / "pairs.jsonl"),
            "url": "http://localhost:1/v1",
        }
    )

    def make(server):
        monkeypatch.setattr(pairs, "open_server", lambda url, model: server)
        return folders.begin_job(tmp_path / "run", "pairs", pairing.to_yaml(settings))

    make.output = settings.output
    return make


def questions(path):
    return [json.loads(line)["question"] for line in path.read_text().splitlines()]


def test_pairs_are_written_with_progress(begin):
    folder = begin(Server())
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert (state.job, state.data, state.step_count, state.step) == ("pairs", "texts", 2, 2)
    assert questions(begin.output) == ["One?", "Two?"]


def test_a_stopped_job_keeps_what_was_written(begin, tmp_path):
    stop = lambda: send_request(tmp_path / "run" / "requests", "stop")  # noqa: E731
    folder = begin(Server(at_first=stop))
    assert job.run(folder.path) == job.STOPPED
    assert questions(begin.output) == ["One?"]


def test_a_model_that_writes_no_pairs_is_told_and_leaves_no_file(begin):
    folder = begin(Server(reply="I do not know."))
    assert job.run(folder.path) == job.FAILED
    failure = folder.read_state().failure
    assert "no pair was written" in failure.message and failure.hint
    assert not begin.output.exists()
