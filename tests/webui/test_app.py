"""The parts put together: what the user chose reaches them, and what they took of the host is given
back.
"""

from __future__ import annotations

import threading

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.errors import LoraTrainerError
from lora_trainer.hosts.base import (
    Host,
    HostCheckpoint,
    HostDevice,
    HostPaths,
    LoadedCheckpoint,
)
from lora_trainer.hosts.queue_lock import QueueLock
from lora_trainer.settings import training
from lora_trainer.webui import callbacks
from lora_trainer.webui.app import App
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.http import routing
from lora_trainer.webui.lazy_app import LazyApp
from tests.made import draw_images, tiny_checkpoint
from tests.webui.fake_host.modules.fifo_lock import FIFOLock


class CardHost(Host):
    """A host with a card and the real queue; the rest of it is not asked for."""

    def __init__(self):
        super().__init__()
        self._queue = QueueLock(FIFOLock())
        self.options = {}

    def device(self):
        return HostDevice(kind="cuda", device_id=None, name="a card")

    def option(self, key, default=None):
        return self.options.get(key, default)


def test_whether_a_run_pauses_for_pictures_is_the_users_choice_at_any_time(tmp_path):
    host = CardHost()
    pauses = App(host, DataFolder(tmp_path)).gpu_lease._pauses
    assert pauses() is True
    host.options["lora_trainer_pause_for_pictures"] = False
    assert pauses() is False


def test_two_first_requests_at_once_have_the_same_datasets(tmp_path, monkeypatch):
    app, created, had = App(CardHost(), DataFolder(tmp_path)), [], []
    other = threading.Thread(target=lambda: had.append(app.datasets))

    def create(*given):
        created.append(object())
        if len(created) == 1:
            other.start()
            other.join(0.3)
        return created[-1]

    monkeypatch.setattr("lora_trainer.webui.app.Datasets", create)
    had.append(app.datasets)
    other.join()
    assert had[0] is had[1] and len(created) == 1


def test_an_unloaded_extension_leaves_the_hosts_queue_as_it_was_found(tmp_path, monkeypatch):
    host = CardHost()
    app = App(host, DataFolder(tmp_path))
    monkeypatch.setattr("lora_trainer.webui.app._only", [app])
    late = LazyApp(Starlette())
    monkeypatch.setattr("lora_trainer.webui.lazy_app._current", [late])
    late.load()
    assert host.queue.watched
    callbacks.on_script_unloaded()
    assert type(host.queue.lock) is FIFOLock
    app.gpu_lease.watch()
    assert host.queue.watched
    app.runs.scheduler.close()


def test_an_extension_that_is_unloaded_while_it_is_still_loading_does_not_begin(
    tmp_path, monkeypatch
):
    host = CardHost()
    monkeypatch.setattr("lora_trainer.webui.app._only", [App(host, DataFolder(tmp_path))])
    late = LazyApp(Starlette())
    late.end()
    late.load()
    assert type(host.queue.lock) is FIFOLock


def test_what_keeps_the_extension_from_working_is_answered_to_every_request(monkeypatch):
    monkeypatch.setattr("lora_trainer.webui.app._only", [])
    monkeypatch.setattr("lora_trainer.webui.app.find", lambda: 1 / 0)
    host_app = Starlette()
    late = LazyApp(host_app)
    host_app.mount("/lora-trainer", late)
    late.load()
    client = TestClient(host_app)
    told = client.get("/lora-trainer/home").json()["error"]
    assert client.get("/lora-trainer/home").status_code == 500
    assert told["message"] == "LoRA Trainer cannot start"
    assert "division by zero" in told["report"]
    # with a login, nobody has been asked for it
    host_app.auth = {"ann": "secret"}
    told = client.get("/lora-trainer/home").json()["error"]
    assert "report" not in told
    assert told["hint"] == "Look at the WebUI's console."


def test_unloading_never_raises(monkeypatch, caplog):
    monkeypatch.setattr("lora_trainer.webui.lazy_app._current", [threading.Lock()])
    callbacks.on_script_unloaded()
    assert "cannot restore" in caplog.text


def test_a_data_folder_that_is_back_is_taken_up_without_a_new_start(tmp_path):
    folder = tmp_path / "data"
    folder.write_text("a file where the folder should be", encoding="utf-8")
    app = App(CardHost(), DataFolder(folder))
    with pytest.raises(LoraTrainerError, match="data cannot be written"):
        app.begin()
    folder.unlink()
    app.begin_late()
    try:
        assert app.runs.scheduler._thread is not None and app.runs.scheduler._thread.is_alive()
    finally:
        app.runs.scheduler.close()


class ListingHost(CardHost):
    """A host that computes on the processor, has one checkpoint, and is asked for no more."""

    kind, name, version = "a1111", "a host", "1"

    def __init__(self, root):
        super().__init__()
        models = root / "models"
        self._paths = HostPaths(data=root, models=models, lora_dir=models / "Lora")
        self._paths.lora_dir.mkdir(parents=True)

    def paths(self):
        return self._paths

    def device(self):
        return HostDevice(kind="cpu", device_id=None, name="cpu")

    def checkpoints(self):
        return [HostCheckpoint(title="base", path=tiny_checkpoint("sd1"))]

    def loaded(self):
        return LoadedCheckpoint(title="base", path=tiny_checkpoint("sd1"), vae=None, clip_skip=1)

    def language(self):
        return "en"

    def is_remote(self):
        return False

    def api_credentials(self):
        return {}

    def names(self):
        return frozenset()


def test_from_an_upload_to_runs_in_the_queue(tmp_path):
    app, host_app = App(ListingHost(tmp_path), DataFolder(tmp_path / "data")), Starlette()
    routing.find_routes()
    routing.mount(host_app, app)
    headers = {"X-LoRA-Trainer": "1"}
    client = TestClient(host_app, base_url="http://127.0.0.1/lora-trainer/", headers=headers)

    def post(path, **body):
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    fox = post("datasets", name="fox")["id"]
    picture = next(draw_images(tmp_path / "drawn", 1).glob("*.png"))
    query = {"name": "a.png", "size": picture.stat().st_size}
    sent = client.post(f"datasets/{fox}/upload", params=query, content=picture.read_bytes())
    (added,) = sent.json()["added"]
    post(f"datasets/{fox}/caption", key=added["key"], caption="a disc", was="")
    body = {"dataset": fox, "name": "ink", "settings": {"max_train_steps": 4}}
    assert post("plan", **body)["target"] == "models/Lora/ink.safetensors"
    for click in ("the-first-click", "the-first-click", "the-second-click"):
        post("runs", **body, token=click, when="queue")
    gone = {**body, "dataset": "deleted-meanwhile"}
    assert post("runs", **gone, token="the-first-click", when="queue")["id"] == "ink"
    post(f"datasets/{fox}/caption-run", captioner="blip", token="the-third-click", when="queue")
    waiting = [run["id"] for run in client.get("runs").json()["runs"]]
    assert sorted(waiting) == ["captions-fox", "ink", "ink-2"]
    assert app.runs.queue.read().waiting == ("ink", "ink-2", "captions-fox")
    second = training.read(app.data.folder("runs") / "ink-2" / "config.yaml")
    assert (second.output.output_dir.name, second.lora.name) == ("ink-2", "ink")
    assert client.get("runs/ink/draft").json()["dataset"] == fox
    assert post("plan", **body)["target"] == "models/Lora/ink-3.safetensors"
    post(f"datasets/{fox}/undo")
    assert client.get(f"datasets/{fox}/items").json()["captioned"] == 0
