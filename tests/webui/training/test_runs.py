"""What the tab does with runs: one click, one run; nothing that is at work is lost; nothing outside
a run's folder is shown.
"""

import json
import os
import threading
from pathlib import Path

import pytest

from lora_trainer.errors import ConfigError, RunError
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import take_requests
from lora_trainer.settings import captioning, training
from lora_trainer.webui.common.data_folder import NotFound
from tests.jobs.logs import BEGUN, FINISHED, TRAINED, append, steps, write_run
from tests.webui import made_runs


@pytest.fixture
def desk(tmp_path):
    with made_runs.desk(tmp_path) as made:
        yield made


def test_one_click_is_one_run_in_many_threads_and_processes(desk):
    answers = []
    windows = [desk.runs, desk.another()]

    def click(number):
        answers.append(
            windows[number % 2].create(desk.asked("ink"), "the-token-of-it", "now", "en")["id"]
        )

    threads = [threading.Thread(target=click, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["ink"] * 8 and [run["id"] for run in desk.runs.listing("en")["runs"]] == [
        "ink"
    ]
    assert training.read(desk.folder("ink").config).lora.name == "ink"
    desk.tick()
    windows[1].scheduler.tick()
    assert list(desk.workers) == ["ink"]
    desk.workers["ink"].end(0)
    append(desk.folder("ink"), *FINISHED)
    desk.tick()
    assert (
        desk.create("ink", "the-token-of-it") == "ink" and desk.runs.queue.read().waiting == ()
    ), "even when it has ended"


def test_a_run_that_waits_for_nobody_does_not_say_that_it_waits_for_the_graphics_card(desk):
    said = []
    start = desk.start

    def start_and_look(folder, options):
        said.append(desk.runs.one("ink", "en"))
        return start(folder, options)

    desk.runs.scheduler._start = start_and_look
    desk.create("ink")
    desk.tick()
    assert [(run["status"], run["sentence"]) for run in said] == [
        ("starting", "The training process is starting.")
    ]


def test_the_names_to_come_are_those_at_work_and_in_the_queue(desk):
    desk.create("ink")
    desk.tick()
    desk.create("fox")
    assert desk.runs.pending_names() == ["ink", "fox"]
    desk.workers["ink"].end(0)
    append(desk.folder("ink"), *FINISHED)
    desk.tick()
    assert desk.runs.pending_names() == ["fox"]


def test_two_clicks_of_one_name_at_one_instant_are_two_runs(desk, monkeypatch):
    real, first = folders.free_name, []

    def free_name(path):
        free = real(path)
        if not first:
            first.append(1)
            free.mkdir()  # another browser was quicker
        return free

    monkeypatch.setattr(folders, "free_name", free_name)
    assert desk.create("ink") == "ink-2"


def test_a_click_without_a_token_begins_nothing(desk):
    with pytest.raises(RunError, match="token is 0 characters"):
        desk.runs.create(desk.asked("ink"), "", "now", "en")
    assert desk.runs.listing("en")["runs"] == []


def test_runs_wait_in_order_and_now_means_next(desk):
    for name in ("a", "b", "c"):
        desk.create(name)
    desk.create("urgent", when="now")
    assert desk.runs.queue.read().waiting == ("urgent", "a", "b", "c")
    desk.runs.move("c", 0, "en")
    desk.runs.unqueue("a", "en")
    found = {run["id"]: (run["status"], run["position"]) for run in desk.runs.listing("en")["runs"]}
    assert found == {
        "c": ("queued", 0),
        "urgent": ("queued", 1),
        "b": ("queued", 2),
        "a": ("stopped", None),
    }
    with pytest.raises(RunError, match="a is not in the queue"):
        desk.runs.move("a", 0, "en")


def test_a_run_from_click_to_end(desk):
    desk.create("ink", when="now")
    assert desk.status("ink") == "queued"
    desk.tick()
    assert desk.status("ink") == "starting"
    append(desk.folder("ink"), *TRAINED, start=6000.0)
    desk.tick()
    run = desk.runs.one("ink", "en")
    assert (
        run["status"] == "running"
        and "output_dir" in desk.runs.settings("ink")
        and run["can"]["pause"]
    )
    assert desk.runs.ask("ink", "pause", "en")["status"] == "pausing"
    assert [request.kind for request in take_requests(desk.folder("ink").requests)] == ["pause"]
    assert desk.status("ink") == "pausing", "the worker is at its step"
    append(desk.folder("ink"), events.Paused(step=10), start=6100.0)
    assert desk.status("ink") == "paused"
    assert desk.runs.ask("ink", "resume", "en")["status"] == "paused"
    append(desk.folder("ink"), events.Resumed(step=10), start=6200.0)
    assert desk.status("ink") == "running"
    assert desk.runs.ask("ink", "stop", "en")["status"] == "stopping"
    take_requests(desk.folder("ink").requests)
    assert desk.status("ink") == "stopping"
    append(desk.folder("ink"), events.Stopped(step=10), start=6300.0)
    desk.workers["ink"].end(3)
    desk.tick(2000.0)
    assert desk.status("ink") == "stopped"
    with pytest.raises(RunError, match="this run is not running"):
        desk.runs.ask("ink", "pause", "en")


def test_what_is_no_request_and_what_comes_too_early_is_refused(desk):
    desk.create("ink")
    desk.tick()
    append(desk.folder("ink"), *BEGUN, start=6000.0)
    with pytest.raises(RunError, match="fly is not a request"):
        desk.runs.ask("ink", "fly", "en")
    with pytest.raises(RunError, match="nothing to save or preview yet"):
        desk.runs.ask("ink", "save", "en")
    append(desk.folder("ink"), events.Phase(phase="training", total=10), *steps(1, 2), start=6100.0)
    desk.runs.ask("ink", "save", "en")
    assert [request.kind for request in take_requests(desk.folder("ink").requests)] == ["save"]


def test_a_stopped_run_goes_on_once_however_often_it_is_asked(desk):
    write_run(desk.folder("ink").path, *TRAINED, events.Stopped(step=10))
    for _ in range(3):
        assert desk.runs.go_on("ink", {}, "en")["status"] == "queued"
    assert desk.runs.queue.read().waiting == ("ink",)
    desk.tick()
    assert (
        desk.runs.go_on("ink", {}, "en")["status"] == "starting"
        and desk.runs.queue.read().waiting == ()
    )


def test_a_finished_run_is_trained_further_and_only_with_fields_of_the_form(desk):
    folder = write_run(desk.folder("ink").path, *FINISHED)
    for changes, words in (
        ({}, "is finished"),
        ({"max_train_steps": 5}, "already has 10 steps"),
        ({"output_dir": "/etc"}, "output_dir cannot be changed"),
    ):
        with pytest.raises((RunError, ConfigError), match=words):
            desk.runs.go_on("ink", changes, "en")
    assert desk.runs.queue.read().waiting == ()
    run = desk.runs.go_on("ink", {"max_train_steps": 25}, "en")
    assert run["status"] == "queued" and training.read(folder.config).training.max_train_steps == 25


def test_a_folder_without_readable_settings_does_not_get_into_the_queue(desk):
    (desk.runs.history.runs / "stray").mkdir()
    (desk.runs.history.runs / "stray" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"stray has no config\.yaml"):
        desk.runs.go_on("stray", {}, "en")
    assert desk.runs.queue.read().waiting == ()


def test_what_is_deleted_lies_in_the_trash_and_comes_back(desk):
    write_run(desk.folder("ink").path, *FINISHED)
    before = desk.runs.listing("en")["revision"]
    moved = desk.runs.delete("ink")["trash"]
    assert (
        desk.runs.listing("en") == {"runs": [], "revision": desk.runs.pulse("en")["revision"]}
        and desk.runs.pulse("en")["revision"] != before
    )
    assert desk.runs.trash_load()["count"] == 1
    write_run(desk.folder("ink").path, *BEGUN)
    assert desk.runs.restore(moved, "en")["id"] == "ink-2"
    for name in (moved, "..", "../runs/ink", ""):
        with pytest.raises(NotFound):
            desk.runs.restore(name, "en")


def test_what_is_at_work_or_waits_cannot_be_deleted(desk):
    desk.create("works")
    desk.tick()
    desk.create("waits")
    for name in ("works", "waits"):
        with pytest.raises(RunError, match=f"{name} is running or queued"):
            desk.runs.delete(name)
    desk.workers["works"].end(0)
    desk.runs.unqueue("waits", "en")
    desk.runs.delete("waits")
    desk.runs.delete("works")
    assert desk.runs.listing("en")["runs"] == []


def test_a_live_look_gives_what_is_new(desk):
    folder = write_run(desk.folder("ink").path, *TRAINED)
    folder.log.write_text(
        "\n".join(f"line {number}" for number in range(1000)) + "\n", encoding="utf-8"
    )
    first = desk.runs.live("ink", 0, True, "en")
    assert first["whole"] and first["points"][0] == [1, 0.01, 0.02] and len(first["points"]) == 10
    assert first["log"][-1] == "line 999" and len(first["log"]) == 60
    assert desk.runs.live("ink", first["offset"], False, "en")["points"] == []
    append(folder, *steps(11, 12), events.Previewed(step=12, file="previews/a.png", strength=0.7))
    then = desk.runs.live("ink", first["offset"], False, "en")
    assert (then["points"], then["whole"], then["log"]) == (
        [[11, 0.11, 0.22], [12, 0.12, 0.24]],
        False,
        [],
    )
    assert (
        then["previews"][0]["url"].startswith("lora-trainer/runs/ink/preview/a.png?v=")
        and then["handover"]["state"] == "idle"
    )
    append(folder, *steps(13, 5000))
    points = desk.runs.live("ink", 0, False, "en")["points"]
    assert len(points) == 600 and points[0][0] == 1 and points[-1][0] == 5000
    json.dumps(then, allow_nan=False)


def test_a_pulse_names_what_is_active_also_where_another_webui_keeps_the_runs(desk):
    desk.create("ink")
    desk.create("next")
    desk.tick()
    append(desk.folder("ink"), *TRAINED, start=6000.0)
    other = desk.another()
    other.scheduler.tick()
    for runs in (desk.runs, other):
        beat = runs.pulse("en")
        assert ([run["id"] for run in beat["active"]], beat["queued"]) == (["ink"], 1)
    before = desk.runs.pulse("en")["revision"]
    assert desk.runs.pulse("en")["revision"] == before == desk.runs.listing("en")["revision"]
    desk.runs.unqueue("next", "en")
    assert desk.runs.pulse("en")["revision"] != before


def test_a_run_started_on_the_command_line_is_shown_like_any_other(desk):
    folder = write_run(desk.folder("mine").path, *TRAINED)
    worker = made_runs.LockHolder(folder)
    desk.tick()
    assert desk.status("mine") == "running" and [
        run["id"] for run in desk.runs.pulse("en")["active"]
    ] == ["mine"]
    desk.runs.ask("mine", "stop", "en")
    assert [request.kind for request in take_requests(folder.requests)] == ["stop"]
    worker.end(3)


def test_only_the_runs_own_pictures_are_given(desk, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    lora = tmp_path / "Lora" / "ink.safetensors"
    lora.parent.mkdir()
    names = ["a.png", "link.png", "notes.txt", "../../secret.png", "config.yaml"]
    history = [events.Previewed(step=1, file=f"previews/{name}") for name in names]
    folder = write_run(
        desk.folder("ink").path, *TRAINED, *history, events.Finished(step=10, delivered=str(lora))
    )
    folder.previews.mkdir()
    for name in ("a.png", "unlisted.png", "notes.txt", "config.yaml"):
        (folder.previews / name).write_bytes(b"picture")
    if os.name != "nt":
        (folder.previews / "link.png").symlink_to(secret)
    assert desk.runs.preview("ink", "a.png") == folder.previews / "a.png"
    refused = [
        "link.png",
        "notes.txt",
        "unlisted.png",
        "secret.png",
        "../../secret.png",
        "..\\secret.png",
        "config.yaml",
        str(secret),
        "a.png\0",
        "",
        ".",
        "..",
        "delivered",
    ]
    for name in refused:
        with pytest.raises(NotFound):
            desk.runs.preview("ink", name)
    lora.with_suffix(".png").write_bytes(b"card")
    assert desk.runs.preview("ink", "delivered") == lora.with_suffix(".png")


@pytest.mark.parametrize(
    "name", ["..", "../runs/ink", "/etc", "C:\\Windows", "ink\0", "", ".hidden", "a/b", "nothing"]
)
def test_an_id_that_is_no_run_reaches_nothing(desk, name):
    write_run(desk.folder("ink").path, *FINISHED)
    for ask in (
        desk.runs.log,
        desk.runs.settings,
        desk.runs.folder,
        desk.runs.delete,
        lambda run: desk.runs.one(run, "en"),
        lambda run: desk.runs.live(run, 0, True, "en"),
    ):
        with pytest.raises(NotFound):
            ask(name)


@pytest.mark.skipif(os.name == "nt", reason="names that Windows refuses")
def test_a_folder_whose_name_no_address_can_hold_says_so(desk):
    write_run(desk.data.folder("runs") / "a=b,c", *FINISHED)
    (run,) = desk.runs.listing("en")["runs"]
    assert (
        run["status"] == "failed"
        and "character" in run["sentence"]
        and run["failure"]["hint"] == "Rename the folder."
    )


def test_the_newest_captioning_of_a_dataset_is_known_without_looking_through_all_runs(
    desk, monkeypatch
):
    looks = []
    listing = desk.runs.history.listing
    monkeypatch.setattr(desk.runs.history, "listing", lambda: looks.append(1) or listing())
    fox, ink = Path("/images/fox"), Path("/images/ink")

    def caption(name, dataset):
        settings = captioning.from_mapping({"captioner": "wd", "input": str(dataset)})
        with desk.runs.click(f"token-of-{name}", "queue") as click:
            click.run_id = desk.runs.make(name, settings).path.name

    assert desk.runs.newest_captioning(fox) is None
    caption("captions-fox", fox)
    os.utime(desk.folder("captions-fox").caption_config, (4000.0, 4000.0))
    assert [desk.runs.newest_captioning(fox) for _ in range(5)] == ["captions-fox"] * 5 and len(
        looks
    ) == 2
    caption("captions-ink", ink)
    caption("captions-fox-2", fox)
    assert (desk.runs.newest_captioning(fox), desk.runs.newest_captioning(ink)) == (
        "captions-fox-2",
        "captions-ink",
    )
    desk.runs.unqueue("captions-fox-2", "en")
    desk.runs.delete("captions-fox-2")
    assert desk.runs.newest_captioning(fox) == "captions-fox"
