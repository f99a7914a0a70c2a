"""Questions to a trained language model: a job of the queue, which goes on with the next one."""

import json

import pytest

from lora_trainer.errors import RunError
from lora_trainer.runs import events
from lora_trainer.runs.requests import take_requests
from lora_trainer.settings import asking
from lora_trainer.webui.asking import asks as asks_module
from lora_trainer.webui.asking.asks import Asking
from tests.webui.made_runs import Desk, LockHolder

TOKEN = "0123456789abcdef"


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def trained(desk, name="station"):
    folder = desk.folder(name)
    folder.path.mkdir(parents=True)
    folder.config.write_text("train_data_dir: texts\nbase_model: models/tiny\nname: station\n")
    lora = folder.adapter / "station"
    lora.mkdir(parents=True)
    (lora / "adapter_config.json").write_text("{}")
    writer = events.EventWriter(folder.events)
    for event in (
        events.Started(),
        events.Planned(name="station", data="texts", step_count=20),
        events.Saved(step=10, file="checkpoints/station-step00000010"),
        events.Saved(step=20, file="adapter/station"),
        events.Judged(step=10, strength=0.8, strengths={"10": 0.8}),
        events.Finished(step=20, file="adapter/station"),
    ):
        writer.write(event)
    writer.close()
    return folder


def test_a_question_starts_a_job_and_the_next_one_is_sent_to_it(desk):
    folder = trained(desk)
    asks = Asking(desk.runs)
    (model,) = asks.listing(remote=False)
    assert (model["id"], model["steps"], model["best_step"], model["strength"]) == (
        "station",
        [10, 20],
        10,
        0.8,
    )
    assert model["folder"] == str(folder.adapter / "station")
    assert asks.listing(remote=True)[0]["folder"] == ""
    asks.ask("station", " Who? ", 0.5, 10, TOKEN)
    job = desk.folder("ask-station")
    settings = asking.read(job.path / "ask.yaml")
    assert (settings.run, settings.question, settings.strength, settings.step) == (
        folder.path,
        "Who?",
        0.5,
        10,
    )
    assert desk.runs.queue.read().waiting == ("ask-station",)
    with pytest.raises(RunError, match="is waiting for the model"):
        asks.ask("station", "And?", 1.0, None, TOKEN + "2")
    # at work, it is sent the next one, and its answers are shown
    desk.runs.queue.drop("ask-station")
    worker = LockHolder(job, 0.0)
    writer = events.EventWriter(job.events)
    writer.write(events.Started(job="ask"))
    writer.write(events.Answered(step=10, prompt="Who?", strength=0.5, answer="Ann."))
    asks.ask("station", "And?", 1.0, None, TOKEN + "3")
    (request,) = take_requests(job.requests)
    assert request.values == {"question": "And?", "strength": 1.0, "step": None}
    view = asks.view("station", "en", remote=False)
    assert [answer["answer"] for answer in view["answers"]] == ["Ann."]
    assert view["job"]["job"] == "ask"
    # another worker goes on with the same answers
    writer.write(events.Finished(step=1))
    worker.end(0)
    asks.ask("station", "Why?", 1.0, None, TOKEN + "4")
    assert desk.runs.queue.read().waiting == ("ask-station",)
    writer.write(events.Started(job="ask"))
    assert len(asks.view("station", "en", remote=False)["answers"]) == 1


def test_the_oldest_of_very_many_answers_are_only_counted(desk, monkeypatch):
    # the page waits for the count to grow
    monkeypatch.setattr(asks_module, "MOST_ANSWERS", 2)
    trained(desk)
    asks = Asking(desk.runs)
    assert asks.view("station", "en", remote=False)["count"] == 0
    asks.ask("station", "Who?", 1.0, None, TOKEN)
    writer = events.EventWriter(desk.folder("ask-station").events)
    writer.write(events.Started(job="ask"))
    for number in range(3):
        writer.write(events.Answered(step=10, prompt="Who?", strength=1.0, answer=str(number)))
    view = asks.view("station", "en", remote=False)
    assert ([one["answer"] for one in view["answers"]], view["count"]) == (["1", "2"], 3)


@pytest.mark.parametrize(
    ("question", "strength", "step", "message"),
    [
        ("", 1.0, None, "the question has 0 characters"),
        ("Who?", 2.5, None, "2.5 is not a strength"),
        ("Who?", 1.0, 15, "step 15 is no longer saved"),
    ],
)
def test_what_cannot_be_asked_is_said(desk, question, strength, step, message):
    trained(desk)
    with pytest.raises(RunError, match=message):
        Asking(desk.runs).ask("station", question, strength, step, TOKEN)


def test_the_loras_folder_is_copied_out_under_a_free_name(desk, tmp_path):
    trained(desk)
    asks = Asking(desk.runs)
    for name in ("station", "station-2"):
        copy = asks.copy("station", None, str(tmp_path / "out"))
        assert copy == tmp_path / "out" / name
        assert json.loads((copy / "adapter_config.json").read_text()) == {}
    with pytest.raises(RunError, match="is not the full path"):
        asks.copy("station", None, "out")
