"""The captioners as the tab offers them, and the settings that a click becomes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_trainer import environment
from lora_trainer.captioning import captioners
from lora_trainer.dataset.caption_provenance import CaptionRecord, record
from lora_trainer.dataset.images import digest
from lora_trainer.errors import ConfigError
from lora_trainer.hosts.base import HostDevice
from lora_trainer.hosts.gpu_lease import GpuLease
from lora_trainer.runs import events
from lora_trainer.runs.folder import begin_captioning
from lora_trainer.settings import captioning
from lora_trainer.webui.captions.caption_runs import (
    CaptionRequest,
    expect_more,
    hub_cache,
    is_on_disk,
    keeps_texts,
    offers,
    settings_of,
)
from lora_trainer.webui.captions.workbench import Workbenches
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.caption_store import CaptionChange, CaptionStore, key_of
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http.routing import Forbidden
from lora_trainer.webui.training.runs import Runs
from tests.dataset.pictures import save
from tests.jobs.logs import append


def caption_request(captioner="blip", **given) -> CaptionRequest:
    return CaptionRequest(
        **{
            "captioner": captioner,
            "options": {},
            "only_missing": False,
            "overwrite": False,
            "trigger": "",
            **given,
        }
    )


def settings(folder: Path, asked: CaptionRequest, *, remote=False):
    return settings_of(
        asked,
        folder,
        CaptionStore(folder, follow_links=True).view(),
        folder / "models",
        remote=remote,
    )


def test_every_captioner_is_offered_with_what_it_costs_and_its_own_settings(tmp_path):
    found = {
        offer["name"]: offer for offer in offers(tmp_path, {"HF_HUB_CACHE": str(tmp_path)}, "")
    }
    assert list(found) == list(captioners.every())
    qwen, wd = found["qwen"], found["wd"]
    assert (qwen["download_text"], qwen["on_disk"]) == ("4.4 GB", False)
    # one text, however long: a list of lines is no instruction
    assert [
        (field["type"], field["default"])
        for field in qwen["fields"]
        if field["key"] == "instruction"
    ] == [("paragraph", "")]
    assert "threshold" not in [field["key"] for field in qwen["fields"]]
    fields = {field["key"]: field for field in wd["fields"]}
    assert (
        fields["threshold"]["type"],
        fields["threshold"]["minimum"],
        fields["threshold"]["maximum"],
    ) == ("auto_number", 0.0, 1.0)
    assert fields["exclude"] == {**fields["exclude"], "type": "list", "default": []}
    assert [choice["value"] for choice in fields["mixed_precision"]["choices"]] == [
        "auto",
        "no",
        "fp16",
        "bf16",
    ]
    assert all(field["help"] for offer in found.values() for field in offer["fields"])


def test_what_a_captioner_needs_is_told_until_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CAPTIONER_OVERLAYS", {"wd": tmp_path / "overlay-wd"})
    needs = lambda: {offer["name"]: offer["needs"] for offer in offers(tmp_path, {}, "")}["wd"]  # noqa: E731
    assert needs() == {"sentence": "Needs onnxruntime (60 MB), which is downloaded on first use."}
    stamp = tmp_path / "overlay-wd" / "cp311" / "0123456789" / "stamp.json"
    stamp.parent.mkdir(parents=True)
    stamp.write_text("{}", encoding="utf-8")
    assert needs() is None


def test_weights_on_this_disk_are_seen(tmp_path):
    blip, environ = captioners.every()["blip"], {"HF_HOME": str(tmp_path / "hf")}
    assert not is_on_disk(blip, tmp_path, environ)
    weights = (
        tmp_path
        / "hf"
        / "hub"
        / "models--Salesforce--blip-image-captioning-base"
        / "snapshots"
        / "1a2b"
        / "pytorch_model.bin"
    )
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x")
    assert is_on_disk(blip, tmp_path, environ)
    assert not is_on_disk(blip, tmp_path, {"HF_HOME": str(tmp_path)})
    (tmp_path / blip.host_file).parent.mkdir()
    (tmp_path / blip.host_file).write_bytes(b"x")
    assert is_on_disk(blip, tmp_path, {"HF_HOME": str(tmp_path)})
    assert not is_on_disk(captioners.every()["blip-large"], tmp_path, {"HF_HOME": str(tmp_path)})


def test_the_hubs_cache_is_where_its_variables_say():
    assert hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path("~/.cache/huggingface/hub").expanduser()


def test_a_click_becomes_settings_that_the_worker_reads_back(tmp_path):
    save(tmp_path / "a.png")
    options = {"threshold": 0.4, "exclude": ["solo"], "prefix": "", "top_k": None, "max_tokens": 50}
    found = settings(
        tmp_path, caption_request("wd", options=options, only_missing=True, trigger="sks")
    )
    assert (
        found.input,
        found.captioner,
        found.own.threshold,
        found.own.exclude,
        found.only_missing,
        found.trigger,
        found.format,
    ) == (
        tmp_path,
        "wd",
        0.4,
        ("solo",),
        True,
        "sks",
        "auto",
    )
    # a setting of another captioner is left out
    assert not hasattr(found.own, "max_tokens")
    (tmp_path / "caption.yaml").write_text(captioning.to_yaml(found), encoding="utf-8")
    assert captioning.read(tmp_path / "caption.yaml") == found


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (caption_request("florence"), "there is no captioner florence"),
        (caption_request(options={"input": "/etc"}), "input cannot be changed here"),
        (caption_request("wd", options={"threshold": 7}), "threshold"),
        (caption_request(only_missing=True, overwrite=True), "contradict"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, asked, sentence):
    with pytest.raises(ConfigError, match=sentence):
        settings(tmp_path, asked)


@pytest.mark.parametrize(
    "model",
    [
        "/etc",
        "../secret",
        "C:\\models",
        "models",
        "somebody/a-model-of-900-gigabytes",
        "Salesforce/blip-x",
    ],
)
def test_visitors_from_elsewhere_choose_from_the_list_and_name_no_model_or_file(tmp_path, model):
    assert settings(tmp_path, caption_request(options={"model": model})).model == model
    with pytest.raises(Forbidden, match="only the captioners in the list"):
        settings(tmp_path, caption_request(options={"model": model}), remote=True)
    with pytest.raises(Forbidden):
        settings(
            tmp_path, caption_request("clip", options={"vocabulary": "/etc/passwd"}), remote=True
        )
    assert (
        settings(tmp_path, caption_request(options={"model": "", "prefix": "a"}), remote=True).model
        == ""
    )


def test_visitors_from_elsewhere_are_not_asked_for_what_they_cannot_name(tmp_path):
    asked = {
        remote: {
            field["key"]
            for offer in offers(tmp_path, {}, "", remote=remote)
            for field in offer["fields"]
        }
        for remote in (False, True)
    }
    assert asked[False] - asked[True] == {"model", "vocabulary"}


def test_captions_go_where_the_dataset_keeps_them(tmp_path):
    save(tmp_path / "a" / "a.png")
    assert not keeps_texts(CaptionStore(tmp_path / "a", follow_links=True).view())
    (tmp_path / "a" / "a.txt").write_text("fox", encoding="utf-8")
    assert keeps_texts(CaptionStore(tmp_path / "a", follow_links=True).view())
    assert settings(tmp_path / "a", caption_request()).format == "txt"
    (tmp_path / "a" / "metadata.csv").write_text("a.png,fox\n", encoding="utf-8")
    assert not keeps_texts(CaptionStore(tmp_path / "a", follow_links=True).view())
    save(tmp_path / "b" / "10_fox" / "a.png")
    assert keeps_texts(CaptionStore(tmp_path / "b", follow_links=True).view())


@pytest.mark.parametrize("known", [True, False])
def test_what_is_captioned_after_continue_can_be_undone(tmp_path, known):
    data = DataFolder(tmp_path / "data folder")
    datasets = Datasets(data, is_remote=lambda: False)
    folder = datasets.create("fox").path if known else tmp_path / "fox"
    save(folder / "a.png")
    benches = Workbenches(datasets)
    host = SimpleNamespace(device=lambda: HostDevice(kind="cpu", device_id=None, name="cpu"))
    runs = Runs(
        data=data,
        gpu_lease=GpuLease(host, data.root / "handover.json"),
        delivered=lambda: None,
        captions_again=partial(expect_more, benches),
    )
    asked = captioning.to_yaml(settings(folder, caption_request()))
    run = begin_captioning(data.folder("runs") / "captions-fox", asked)
    append(run, events.Started(job="caption"), events.Stopped(step=0))
    assert runs.go_on(run.path.name, {}, "en")["status"] == "queued"
    edited = CaptionStore(folder, follow_links=False)
    edited.write_captions(
        [CaptionChange(key=key_of("a.png"), caption="a fox", was="")], edited.view()
    )
    record(folder, {digest(folder / "a.png"): CaptionRecord(text="a fox", by="blip 0123")})
    append(run, events.Started(job="caption"), events.Finished(step=1), start=2000.0)
    bench = benches.at(folder)
    assert (bench is not None) == known
    if bench is not None:
        bench.settle()
        assert [(str(line.title), line.count) for line in bench.journal.lines()] == [
            ("Captioned with BLIP base", 1)
        ]
