import json

import pytest

from lora_trainer.errors import CheckpointError, Message
from lora_trainer.runs import events
from lora_trainer.runs.events import EventWriter, Progress, from_line, read_events


def test_events_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path, clock=lambda: 12.5)
    writer.write(events.Planned(name="墨", step_count=3))
    writer.write(events.Progress(step=1, loss=0.25))
    found, _ = read_events(path)
    assert found == [
        events.Planned(name="墨", step_count=3, time=12.5),
        events.Progress(step=1, loss=0.25, time=12.5),
    ]


def test_a_torn_last_line_is_left_for_the_next_read(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"saved","step":1}\n{"event":"sav')
    found, offset = read_events(path)
    assert [event.kind for event in found] == ["saved"] and offset == 27
    path.write_bytes(path.read_bytes() + b'ed","step":2}\n')
    assert read_events(path, offset)[0] == [events.Saved(step=2)]


def test_a_new_worker_does_not_write_into_the_torn_line_of_a_dead_one(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"saved","step":1}\n{"event":"sav')
    EventWriter(path, clock=lambda: 0.0).write(events.Saved(step=3))
    assert read_events(path)[0] == [events.Saved(step=1), events.Saved(step=3)]


def test_a_loss_that_is_not_finite_is_left_out():
    line = events.to_line(
        events.Progress(step=1, loss=float("nan"), smoothed_loss=float("inf"), learning_rate=0.5)
    )
    assert json.loads(line) == {
        "event": "progress",
        "time": 0.0,
        "step": 1,
        "epoch": 0,
        "learning_rate": 0.5,
    }


def test_events_and_fields_of_a_later_version_are_passed_over():
    assert events.from_line('{"event":"teleported"}') is None
    assert events.from_line('{"event":"saved","step":4,"colour":"red"}') == events.Saved(step=4)
    assert events.from_line("[]") is None


def test_a_failure_keeps_template_and_values_for_translation():
    failed = events.Failed.of(
        CheckpointError("{path} is a {what}", hint="Choose a checkpoint.", path="a.pt", what="VAE")
    )
    assert (failed.error, failed.message, failed.hint) == (
        "CheckpointError",
        "a.pt is a VAE",
        "Choose a checkpoint.",
    )
    assert failed.template.format(**failed.values) == failed.message


def test_a_warning_carries_its_hint():
    warned = events.Warned.of(
        Message("{n} images are small", {"n": 3}), Message("Use larger ones.")
    )
    assert (warned.message, warned.hint) == ("3 images are small", "Use larger ones.")


def test_a_prompt_with_any_line_separator_is_still_one_event(tmp_path):
    path = tmp_path / "events.jsonl"
    EventWriter(path, clock=lambda: 0.0).write(
        events.Previewed(step=1, prompt="a\u2028b\u0085c\x0bd")
    )
    assert read_events(path)[0] == [events.Previewed(step=1, prompt="a\u2028b\u0085c\x0bd")]


def test_a_file_name_that_is_not_utf8_can_be_told(tmp_path):
    path = tmp_path / "events.jsonl"
    EventWriter(path, clock=lambda: 0.0).write(events.Warned(message="\udcc4\udce3.png"))
    assert read_events(path)[0] == [events.Warned(message="\udcc4\udce3.png")]


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"progress","step":"x"}',
        '{"event":"progress","step":1e400}',
        '{"event":"progress","step":true}',
        '{"event":"progress","step":null}',
        '{"event":"progress","step":1,"loss":NaN}',
        '{"event":"progress","step":1,"loss":1' + "0" * 400 + "}",
        '{"event":"failed","values":5}',
        '{"event":"previewed","file":3}',
        '{"event":"saved","step":1,"file":null}',
        '{"event":"started","time":"noon"}',
        '{"event":' + "[" * 100_000,
    ],
)
def test_a_line_whose_values_are_none_is_no_event(line):
    assert from_line(line) is None


def test_whole_numbers_are_numbers_and_null_is_nothing():
    assert from_line(
        '{"event":"progress","time":5,"step":1,"loss":1,"smoothed_loss":null}'
    ) == Progress(time=5, step=1, loss=1, smoothed_loss=None)
