"""A run in words: its status, what can be asked of it, and numbers that JSON can hold."""

import json
from pathlib import Path

import pytest

from lora_trainer.errors import RunError
from lora_trainer.jobs.history import HistoryEntry
from lora_trainer.jobs.queue import QueueState
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.state import fold
from lora_trainer.webui import texts
from lora_trainer.webui.training import run_view
from tests.jobs.logs import BEGUN, FINISHED, TRAINED, steps

FOLDER = RunFolder(Path("/data/runs/ink 水"))
SETTINGS = {
    "name": "ink",
    "base_model": "/models/My Model.safetensors",
    "train_data_dir": "/images/ink",
    "max_train_steps": 10,
    "preferred_weight": 0.7,
}


def entry(*history, **facts):
    return HistoryEntry(
        **{"id": "ink 水", "folder": FOLDER, "settings": SETTINGS, "state": fold(history), **facts}
    )


def shown(found, line=None, **facts):
    return run_view.run(found, line or QueueState(), str, **facts)


PAUSED = (*TRAINED, events.Paused(step=10))
STOPPED = (*TRAINED, events.Stopped(step=10, file="checkpoints/ink-step00000010.safetensors"))
FAILED = (
    *TRAINED,
    events.Failed(
        error="OutOfMemory",
        message="out of memory at step 10",
        template="out of memory at step {step}",
        values={"step": 10},
        hint="Set batch_size to 1.",
        hint_template="Set batch_size to 1.",
    ),
)
DELIVERED = (
    *TRAINED,
    events.Finished(
        step=10, file="ink.safetensors", delivered="/webui/models/Lora/ink-2.safetensors"
    ),
)


@pytest.mark.parametrize(
    ("found", "line", "status", "sentence"),
    [
        (
            entry(),
            QueueState(waiting=("ink 水",)),
            "queued",
            "Starts as soon as no other training is running.",
        ),
        (
            entry(),
            QueueState(waiting=("a", "b", "ink 水")),
            "queued",
            "Number 3 in the queue.",
        ),
        (entry(), QueueState(starting="ink 水"), "starting", "The training process is starting."),
        (
            entry(*STOPPED, alive=True, heard=False),
            QueueState(starting="ink 水"),
            "starting",
            "The training process is starting.",
        ),
        (entry(*BEGUN, alive=True), QueueState(), "running", "Reading the settings ..."),
        (
            entry(
                *BEGUN, events.Phase(phase="encoding", total=5), events.Progress(step=2), alive=True
            ),
            QueueState(),
            "running",
            "Encoding images: 2 of 5",
        ),
        (entry(*TRAINED, alive=True), QueueState(), "running", "Step 10 of 10"),
        (
            entry(*TRAINED[:3], events.Progress(step=4, loss=0.1, seconds_left=300.0), alive=True),
            QueueState(),
            "running",
            "Step 4 of 10, about 5 minutes left",
        ),
        (
            entry(*TRAINED, alive=True, asked=("pause",)),
            QueueState(),
            "pausing",
            "Pauses after this step.",
        ),
        (entry(*PAUSED, alive=True), QueueState(), "paused", "Paused at step 10."),
        (
            entry(*PAUSED, alive=True, asked=("stop",)),
            QueueState(),
            "stopping",
            "Stops after this step and saves the training so far.",
        ),
        (entry(*FINISHED), QueueState(), "finished", "Finished after 10 steps."),
        (
            entry(*DELIVERED),
            QueueState(),
            "finished",
            "Finished after 10 steps. In a prompt: <lora:ink-2:0.7>",
        ),
        (entry(*FINISHED, alive=True), QueueState(), "finished", "Finished after 10 steps."),
        (
            entry(*STOPPED),
            QueueState(),
            "stopped",
            "Stopped at step 10. The training so far is saved.",
        ),
        (
            entry(*BEGUN, events.Stopped()),
            QueueState(),
            "stopped",
            "Stopped before the first step.",
        ),
        (entry(), QueueState(), "stopped", "Not started yet."),
        (entry(*FAILED), QueueState(), "failed", "out of memory at step 10"),
        (
            entry(*TRAINED, resume_step=8),
            QueueState(),
            "lost",
            (
                "The training process ended unexpectedly: the computer was switched off, or the"
                " process was killed. It can continue from step 8."
            ),
        ),
        (
            entry(*STOPPED),
            QueueState(waiting=("ink 水",)),
            "queued",
            "Starts as soon as no other training is running.",
        ),
        (
            entry(problem=RunError("{name} holds no config.yaml", name="x")),
            QueueState(),
            "failed",
            "x holds no config.yaml",
        ),
    ],
)
def test_where_a_run_stands_in_one_word_and_one_sentence(found, line, status, sentence):
    run = shown(found, line)
    assert (run["status"], run["sentence"]) == (status, sentence)


def test_an_ended_run_whose_process_lives_is_exiting_and_accepts_nothing_yet():
    exiting, ended, working = (
        shown(entry(*STOPPED, alive=True, resume_step=10)),
        shown(entry(*STOPPED, resume_step=10)),
        shown(entry(*TRAINED, alive=True)),
    )
    assert [run["exiting"] for run in (exiting, ended, working)] == [True, False, False]
    assert not any(exiting["can"].values()) and ended["can"]["continue"]


def test_a_run_whose_turn_has_come_says_what_it_waits_for():
    line = QueueState(starting="ink 水")
    assert (
        shown(entry(), line, waits_for_host=True)["sentence"]
        == "Starts as soon as the WebUI has released the graphics card."
    )
    assert (
        shown(entry(*BEGUN, alive=True), line, waits_for_host=True)["sentence"]
        == "Reading the settings ..."
    )


def able(found, line=None, **facts):
    return {what for what, possible in shown(found, line, **facts)["can"].items() if possible}


def test_what_can_be_asked_of_a_run():
    assert able(entry(*TRAINED, alive=True)) == {"pause", "stop", "save", "preview"}
    assert able(entry(*BEGUN, alive=True)) == {"pause", "stop"}
    assert able(entry(*PAUSED, alive=True)) == {"resume", "stop"}
    assert able(entry(*TRAINED, alive=True), asked="pause") == {"resume", "stop", "save", "preview"}
    assert able(entry(*TRAINED, alive=True), asked="stop") == set()
    assert able(entry(), QueueState(waiting=("ink 水",))) == {"move", "unqueue"}
    assert able(entry(), QueueState(starting="ink 水")) == {"stop"}
    assert (
        able(entry(*STOPPED))
        == able(entry(*FAILED))
        == able(entry(*TRAINED))
        == able(entry())
        == {"continue", "delete"}
    )
    assert able(entry(*FINISHED, resume_step=10)) == {"further", "delete"}
    assert able(entry(*FINISHED, alive=True, resume_step=10)) == set(), "its process is about to go"
    assert able(entry(problem=RunError("broken"))) == {"delete"}
    assert able(entry(problem=RunError("broken"), alive=True)) == {"pause", "stop"}


def test_a_run_as_the_browser_gets_it():
    saved = events.Saved(step=10, file="checkpoints/ink-step00000010.safetensors")
    previewed = events.Previewed(
        step=5,
        file="previews/step00000005-00-strength0.70.png",
        prompt="a fox",
        strength=0.7,
        time=2.5,
    )
    found = entry(*TRAINED, previewed, saved, alive=True)
    run = shown(found)
    assert (
        run["id"] == "ink 水"
        and run["name"] == "ink (ink 水)"
        and run["job"] == "train"
        and run["family"] == "sd1"
    )
    assert (run["checkpoint"], run["dataset"]) == (
        "My Model.safetensors",
        "ink",
    ), "no folder of this machine"
    assert (
        run["step"],
        run["step_count"],
        run["epoch_count"],
        run["loss"],
        run["smoothed_loss"],
    ) == (10, 10, 2, 0.1, 0.2)
    assert (run["phase"], run["delivered"], run["lora"], run["failure"]) == (
        "Training",
        None,
        None,
        None,
    )
    assert (
        run["preview"]
        == "lora-trainer/runs/ink%20%E6%B0%B4/preview/step00000005-00-strength0.70.png?v=2500"
    )
    assert run_view.preview(found, previewed) == {
        "step": 5,
        "strength": 0.7,
        "prompt": "a fox",
        "url": run["preview"],
    }
    done = shown(entry(*DELIVERED))
    assert (done["delivered"], done["lora"], done["seconds_left"]) == (
        "ink-2.safetensors",
        "ink-2",
        None,
    )
    assert done["preview"].startswith("lora-trainer/runs/ink%20%E6%B0%B4/preview/delivered?v=")


def test_a_run_that_waits_to_go_on_shows_no_numbers_of_the_past_but_its_step():
    run = shown(entry(*FAILED), QueueState(waiting=("ink 水",)))
    assert (run["step"], run["loss"], run["failure"], run["position"]) == (10, None, None, 0)


@pytest.mark.parametrize(("prompts", "some"), [(["a fox"], True), ([], False), (None, False)])
def test_previews_come_by_themselves_where_there_are_prompts_for_them(prompts, some):
    assert (
        shown(entry(settings={**SETTINGS, "sample_prompts": prompts}))["has_preview_prompts"]
        is some
    )


def test_a_delivery_on_windows_is_named_too():
    run = shown(
        entry(
            *TRAINED, events.Finished(step=10, delivered="C:\\WebUI\\models\\Lora\\ink.safetensors")
        )
    )
    assert (run["delivered"], run["lora"]) == ("ink.safetensors", "ink")


def test_numbers_that_json_cannot_hold_are_null():
    odd = events.Progress(
        step=3,
        loss=float("nan"),
        smoothed_loss=float("inf"),
        seconds_left=float("-inf"),
        images_per_second=float("nan"),
    )
    run = shown(entry(*BEGUN, events.Phase(phase="training", total=10), odd, alive=True))
    assert json.loads(json.dumps(run, allow_nan=False))["loss"] is None
    assert run_view.points([(1, float("nan"), float("inf")), (2, 0.5, None), (3, 0.25, "x")]) == [
        [1, None, None],
        [2, 0.5, None],
        [3, 0.25, None],
    ]


def test_settings_of_any_kind_do_no_harm():
    odd = {
        "name": ["a"],
        "base_model": 3,
        "max_train_steps": "auto",
        "preferred_weight": "x",
        "train_data_dir": None,
    }
    run = shown(entry(*FINISHED, settings=odd))
    assert (run["checkpoint"], run["dataset"], run["step_count"]) == ("3", "", 10)
    json.dumps(run, allow_nan=False)


def test_what_a_worker_said_is_translated_by_its_template_and_braces_of_others_stay(monkeypatch):
    monkeypatch.setattr(
        texts,
        "table",
        lambda language: {
            "out of memory at step {step}": "第 {step} 步内存不足",
            "Set batch_size to 1.": "把 batch_size 设为 1。",
        },
    )
    failure = run_view.run(
        entry(*FAILED), QueueState(), lambda message: texts.render(message, "zh_CN")
    )["failure"]
    assert failure == {"message": "第 10 步内存不足", "hint": "把 batch_size 设为 1。"}
    odd = events.Failed(
        message="unexpected {brace} in {}", template="unexpected {brace} in {}", values={"other": 1}
    )
    assert shown(entry(*BEGUN, odd))["failure"] == {
        "message": "unexpected {brace} in {}",
        "hint": "",
    }
    bare = events.Failed(message="said {plainly}")
    assert shown(entry(*BEGUN, bare))["failure"]["message"] == "said {plainly}"


def test_warnings_are_the_newest_few():
    many = [
        events.Warned(
            message=f"note {number}",
            template="note {number}",
            values={"number": number},
            hint="h",
            hint_template="h",
        )
        for number in range(30)
    ]
    warnings = shown(entry(*BEGUN, *many, alive=True))["warnings"]
    assert len(warnings) == 20 and warnings[-1] == {"message": "note 29", "hint": "h"}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (5399, "90 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_times_in_words(seconds, words):
    run = shown(
        entry(
            *BEGUN,
            events.Phase(phase="training", total=10),
            events.Progress(step=3, loss=1.0, seconds_left=float(seconds)),
            alive=True,
        )
    )
    assert run["sentence"] == f"Step 3 of 10, about {words} left"


def test_a_caption_job_speaks_of_images():
    begun = (
        events.Started(job="caption"),
        events.Planned(name="captions", step_count=40, image_count=40),
    )
    assert (
        shown(
            entry(
                *begun,
                events.Phase(phase="captioning", total=40),
                *steps(1, 3),
                alive=True,
                job="caption",
            )
        )["sentence"]
        == "Captioning: 3 of 40"
    )
    assert (
        shown(entry(*begun, events.Finished(step=40), job="caption"))["sentence"]
        == "Finished: 40 images are captioned."
    )
    assert (
        shown(entry(*begun, events.Stopped(step=3), job="caption"))["sentence"]
        == "Stopped: 3 images are captioned."
    )


def test_every_phase_of_a_task_has_words():
    source = Path(events.__file__).parents[1] / "tasks"
    named = {
        word for path in source.rglob("*.py") for word in _phases(path.read_text(encoding="utf-8"))
    }
    assert named and named <= set(run_view.PHASES)


def _phases(text):
    return {piece.split('"')[1] for piece in text.split(".phase(")[1:] if piece.startswith('"')}


@pytest.mark.parametrize(
    ("run_id", "name", "title"),
    [
        ("fox", "fox", "fox"),
        ("fox-2", "fox", "fox-2"),
        ("run7", "fox", "fox (run7)"),
        ("fox-red", "fox", "fox (fox-red)"),
        ("a+b-3", "a+b", "a+b-3"),
    ],
)
def test_runs_of_one_name_are_told_apart(run_id, name, title):
    assert run_view.title_of(HistoryEntry(id=run_id, folder=RunFolder(Path(run_id))), name) == title


def test_a_warning_names_no_folder_of_this_machine():
    template = "{lora_dir} already has a LoRA called {old}, so this one is called {new}"
    for path in ("/home/me/webui/models/Lora", "C:\\webui\\models\\Lora"):
        event = events.Warned(
            message="", template=template, values={"lora_dir": path, "old": "ink", "new": "ink-2"}
        )
        assert (
            run_view.warning(event, str)["message"]
            == "Lora already has a LoRA called ink, so this one is called ink-2"
        )


def test_a_language_models_run_has_answers_and_no_picture():
    history = (
        events.Started(),
        events.Planned(name="station", family="qwen2", data="texts", step_count=10, image_count=3),
        events.Phase(phase="training", total=10),
        events.Answered(step=5, prompt="Who?", strength=1.0, answer="Ann."),
        events.Progress(step=10, loss=0.5),
        events.Saved(step=10, file="adapter/station"),
        events.Finished(step=10, file="adapter/station", delivered="/text/loras/station"),
    )
    found = entry(*history)
    run = shown(found)
    assert (run["data"], run["family"], run["preview"], run["lora"]) == (
        "texts",
        "qwen2",
        None,
        None,
    )
    assert (run["file"], run["delivered"]) == ("adapter/station", "station")
    assert run["sentence"] == "Finished after 10 steps. Ask it something."
    assert [run_view.answer(event) for event in found.state.answers] == [
        {"step": 5, "strength": 1.0, "prompt": "Who?", "answer": "Ann."}
    ]
