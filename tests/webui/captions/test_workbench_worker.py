"""From the click in the tab to captions in the dataset, through a worker's process."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from lora_trainer.hosts.base import HostDevice
from lora_trainer.hosts.gpu_lease import GpuLease
from lora_trainer.webui.captions.caption_runs import CaptionRequest, begin, settings_of
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.caption_store import CaptionStore, key_of
from lora_trainer.webui.training.runs import Runs
from tests.captioning.tiny_captioners import tiny_blip
from tests.dataset.pictures import save


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
@pytest.mark.usefixtures("forked_workers")
def test_a_captioner_of_the_tab_writes_what_is_missing_and_leaves_a_persons_words(tmp_path):
    data = DataFolder(tmp_path / "data folder")
    folder = data.folder("datasets") / "水墨 fox"
    save(folder / "a.png", colour="red")
    save(folder / "b.png", colour="blue")
    (folder / "metadata.csv").write_text("file_name,text\nb.png,mine\n", encoding="utf-8")
    bench = Workbench(CaptionStore(folder, follow_links=False))
    host = SimpleNamespace(device=lambda: HostDevice(kind="cpu", device_id=None, name="cpu"))
    gpu_lease = GpuLease(host, data.root / "handover.json")
    runs = Runs(data=data, gpu_lease=gpu_lease, delivered=lambda: None)
    options = {"model": str(tiny_blip()), "max_tokens": 5, "prefix": "ink,"}
    request = CaptionRequest(
        captioner="blip", options=options, only_missing=False, overwrite=False, trigger="sks"
    )
    settings = settings_of(request, folder, bench.store.view(), tmp_path / "models", remote=False)
    run = begin(
        runs, bench, settings, "水墨 fox", token="a-token-of-a-click", when="now", language=""
    )
    deadline = time.monotonic() + 300
    while runs.one(run["id"], "")["status"] in ("queued", "starting", "running"):
        assert time.monotonic() < deadline, runs.log(run["id"])
        runs.scheduler.tick()
        time.sleep(0.1)
    ended = runs.one(run["id"], "")
    assert (ended["status"], ended["job"], ended["sentence"]) == (
        "finished",
        "caption",
        "Finished: 1 image is captioned.",
    ), runs.log(run["id"])
    view = bench.store.view()
    assert (
        view.item(key_of("a.png")).caption.startswith("sks, ink, ")
        and view.item(key_of("b.png")).caption == "mine"
    )
    known = bench.known(view)
    assert [known.author(item) for item in view.items] == ["machine", "person"]
    bench.settle()
    bench.undo()
    assert {item.name: item.caption for item in bench.store.view().items} == {
        "a.png": "",
        "b.png": "mine",
    }
    runs.scheduler.close()
