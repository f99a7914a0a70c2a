"""What a run looks like on a terminal and in a file: a worker's events in, text out."""

import dataclasses
import io
import signal
import sys
from pathlib import Path

import pytest

from lora_trainer import console
from lora_trainer.console import Console, Lines, describe_pace, describe_state
from lora_trainer.jobs.start import tail
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import take_requests
from lora_trainer.runs.state import RunState, fold

PLANNED = events.Planned(
    name="ink",
    family="sd1",
    family_name="SD1.5",
    step_count=20,
    epoch_count=1,
    image_count=1,
    bucket_count=2,
    resolution=512,
    device="CPU",
    precision="no",
)
TRAINING = events.Phase(phase="training", total=20)


class DeadWorker:
    """A process that has ended."""

    returncode = 0

    def poll(self):
        return self.returncode


def watch(tmp_path, history):
    folder = RunFolder(tmp_path / "水墨 run")
    shown = Console(folder, DeadWorker())
    writer = events.EventWriter(folder.events)
    for event in history:
        writer.write(event)
    writer.close()
    return shown.watch()


def progress(step, **values):
    return events.Progress(
        step=step, epoch=1, loss=0.5, smoothed_loss=0.25, seconds_left=2.0 * (20 - step), **values
    )


def test_previews_and_saves_do_not_move_the_training_on(tmp_path, capsys):
    previewing = [
        events.Phase(phase="previewing", total=3),
        events.Progress(step=1),
        events.Progress(step=2),
        TRAINING,
    ]
    watch(
        tmp_path,
        [
            events.Started(),
            PLANNED,
            TRAINING,
            progress(10),
            *previewing,
            progress(11),
            events.Finished(step=11, file="ink.safetensors"),
        ],
    )
    shown = capsys.readouterr().err
    assert [line.split(",")[0] for line in shown.splitlines()] == [
        "Training: 10 of 20",
        "Training: 11 of 20",
    ]


def test_a_check_is_told_with_its_losses_and_its_cost(tmp_path, capsys):
    watch(
        tmp_path,
        [
            dataclasses.replace(PLANNED, image_count=20, held_out_count=2),
            events.Phase(phase="validating"),
            events.Validated(step=4, training_loss=0.05, validation_loss=0.0625, seconds=1.25),
            events.Validated(step=8, training_loss=0.04, seconds=0.5),
        ],
    )
    shown = capsys.readouterr().out
    assert "20 images (2 more held out) in 2 buckets" in shown
    assert "Step 4: loss 0.0500 on training images, 0.0625 on held-out images (1.2 s)" in shown
    assert "Step 8: loss 0.0400 on training images (0.5 s)" in shown


def test_a_file_gets_a_line_for_each_twentieth_and_no_carriage_return(monkeypatch, capsys):
    lines = Lines(1000, "Training")
    for step in range(1, 1001):
        lines.show(step)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert shown.splitlines()[:3] == [
        "Training: 1 of 1000",
        "Training: 50 of 1000",
        "Training: 100 of 1000",
    ]
    assert len(shown.splitlines()) == 21
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    lines.show(1000)
    assert capsys.readouterr().err == "Training: 1000 of 1000\n"


def test_a_terminal_gets_one_bar_with_the_workers_own_time_left(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    watch(
        tmp_path,
        [
            events.Started(),
            PLANNED,
            TRAINING,
            progress(10),
            events.Finished(step=10, file="ink.safetensors"),
        ],
    )
    assert "10/20 [00:00, loss 0.2500, 0:20 left, 2.00 s/step]" in screen.getvalue()


def test_each_phase_is_told_once(tmp_path, capsys):
    checking = [
        events.Phase(phase="checking"),
        events.Phase(phase="checking", total=2),
        events.Progress(step=2),
    ]
    watch(
        tmp_path,
        [
            events.Started(),
            *checking,
            PLANNED,
            events.Phase(phase="loading"),
            events.Finished(step=0, file="ink.safetensors"),
        ],
    )
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["Checking the dataset: 2 of 2"]
    assert shown.out.splitlines() == [
        f"Starting in {tmp_path / '水墨 run'}",
        "ink: SD1.5, 1 image in 2 buckets at 512 px, 20 steps in 1 epoch, on CPU, mixed_precision no",
        "Loading the model",
        "Finished: ink, 0 steps",
        f"  {tmp_path / '水墨 run' / 'ink.safetensors'}",
    ]


def test_a_hint_is_a_sentence_of_its_own_and_is_said_once(tmp_path, capsys):
    def copy(name):
        return events.Warned(message=f"{name} is a copy of a.png", hint="Remove the copies.")

    watch(
        tmp_path,
        [
            events.Started(),
            copy("b.png"),
            copy("c.png"),
            events.Finished(step=1, file="x.safetensors"),
        ],
    )
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "Note: b.png is a copy of a.png. Remove the copies.",
        "Note: c.png is a copy of a.png",
    ]


def test_what_a_pause_needs_is_a_command_that_can_be_copied(tmp_path, capsys):
    watch(
        tmp_path,
        [
            events.Started(),
            PLANNED,
            events.Paused(step=3),
            events.Resumed(step=3),
            events.Stopped(step=3, file="a.safetensors"),
        ],
    )
    path = tmp_path / "水墨 run"
    assert capsys.readouterr().out.splitlines()[2:] == [
        f'Paused at step 3. Continue with: python -m lora_trainer tell "{path}" resume',
        "Resumed",
        f"Stopped at step 3 of 20; saved as {path / 'a.safetensors'}",
        f'Continue with: python -m lora_trainer resume "{path}"',
    ]


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        ((), "nothing was saved"),
        ((events.Saved(step=6, file="a"), events.Saved(step=8, file="b")), "step 8 is saved"),
    ],
)
def test_an_interrupted_run_says_what_is_kept(saved, sentence):
    state = fold([events.Started(), PLANNED, *saved, TRAINING, progress(9)])
    assert describe_state(state, RunFolder(Path("/x"))).startswith(
        f"Interrupted at step 9 of 20; {sentence}\nContinue with: "
    )


def test_time_and_speed_are_told_in_the_readers_units():
    state = RunState(step=10, step_count=20, smoothed_loss=0.5, seconds_left=3723.0)
    assert describe_pace(state) == "loss 0.5000, 1:02:03 left, 372.30 s/step"
    assert (
        describe_pace(RunState(step=10, step_count=20, seconds_left=2.0))
        == "0:02 left, 5.00 steps/s"
    )
    assert describe_pace(RunState(step=20, step_count=20, seconds_left=0.0)) == ""


def test_last_words_are_what_was_printed_not_what_was_logged(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text(
        "2026-01-01 10:00:00,000 INFO lora_trainer.tasks.report: Phase(total=0)\nSegmentation"
        " fault\n",
        encoding="utf-8",
    )
    assert tail(log) == "Segmentation fault"


def test_a_stop_before_the_first_step_names_no_file(tmp_path):
    state = fold([events.Started(), events.Stopped(step=0)])
    assert (
        describe_state(state, RunFolder(tmp_path)).splitlines()[0]
        == "Stopped at step 0; nothing was trained yet"
    )


def test_ctrl_c_while_the_worker_still_imports_is_no_crash(tmp_path, capsys):
    class Worker:
        returncode = -2
        polls = 0

        def poll(self):
            self.polls += 1
            if self.polls == 1:
                signal.raise_signal(signal.SIGINT)
                return None
            return self.returncode

    folder = RunFolder(tmp_path)
    folder.log.write_text(
        "Traceback (most recent call last):\n  import torch\nKeyboardInterrupt\n", encoding="utf-8"
    )
    assert Console(folder, Worker()).watch() == 1
    told = capsys.readouterr()
    assert "unexpectedly" not in told.out + told.err and "report it" not in told.out + told.err


def test_an_interrupt_that_only_the_console_heard_reaches_the_worker(tmp_path, capsys):
    asked = []

    class Worker:
        returncode = 3
        polls = 0

        def poll(self):
            self.polls += 1
            if self.polls == 1:
                signal.raise_signal(signal.SIGINT)
                return None
            asked.extend(request.kind for request in take_requests(tmp_path / "requests"))
            return self.returncode

    folder = RunFolder(tmp_path)
    folder.log.write_text("KeyboardInterrupt\n", encoding="utf-8")
    Console(folder, Worker()).watch()
    assert asked == ["stop"] and "Ctrl-C again: stop at once." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("last_words", "status"),
    [
        ([events.Stopped(step=3, file="checkpoints/ink-step00000003.safetensors")], 3),
        ([events.Finished(step=20, file="ink.safetensors")], 0),
        ([events.Failed(message="the disk is full")], 1),
        ([], 1),
    ],
)
def test_a_worker_that_is_killed_after_its_last_word_has_ended_as_it_said(
    tmp_path, last_words, status
):
    folder = RunFolder(tmp_path)
    before = events.EventWriter(folder.events)
    before.write(events.Stopped(step=1))
    before.close()

    class Worker:
        returncode = None

        def poll(self):
            if self.returncode is None:
                writer = events.EventWriter(folder.events)
                for event in [events.Started(), PLANNED, TRAINING, *last_words]:
                    writer.write(event)
                writer.close()
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return self.returncode

        def kill(self):
            self.returncode = -9

    assert Console(folder, Worker()).watch() == status


def test_the_training_adapter_is_told_where_there_is_one(tmp_path, capsys):
    adapted = dataclasses.replace(PLANNED, training_adapter="adapter_v2.safetensors")
    watch(tmp_path, [events.Started(), adapted])
    assert "\nTraining adapter: adapter_v2.safetensors\n" in capsys.readouterr().out
    watch(tmp_path / "other", [events.Started(), PLANNED])
    assert "adapter:" not in capsys.readouterr().out


def test_a_caption_job_is_told_in_images_and_captions(tmp_path, capsys):
    history = [
        events.Started(job="caption"),
        events.Planned(name="BLIP base", step_count=12, image_count=14, device="CPU"),
        events.Phase(phase="captioning", total=12),
        events.Progress(step=12, images_per_second=2.0, seconds_left=0.0),
        events.Finished(step=11, file="/pictures/metadata.csv"),
    ]
    assert watch(tmp_path, history) == 0
    captured = capsys.readouterr()
    assert (
        "BLIP base: 12 of 14 images to caption, on CPU" in captured.out
        and "Captioning: 12 of 12" in captured.err
    )
    assert captured.out.rstrip().endswith(
        "Finished: 11 captions written, in /pictures/metadata.csv"
    )


def test_a_caption_job_that_was_stopped_or_killed_says_that_its_captions_stay(tmp_path):
    folder = RunFolder(tmp_path)
    go_on = f'Continue with: python -m lora_trainer resume "{tmp_path}"'
    half = RunState(job="caption", status="running", step=3, step_count=12)
    assert (
        describe_state(half, folder)
        == f"Interrupted at image 3 of 12; the captions that were written stay\n{go_on}"
    )
    assert (
        describe_state(RunState(job="caption", status="stopped", step=1, file="m.csv"), folder)
        == f"Stopped: 1 caption written, in m.csv\n{go_on}"
    )


def test_a_caption_jobs_pace_is_in_images():
    state = RunState(
        job="caption", status="running", phase="captioning", step=2, step_count=12, seconds_left=5.0
    )
    assert describe_pace(state) == "0:05 left, 2.00 images/s"
