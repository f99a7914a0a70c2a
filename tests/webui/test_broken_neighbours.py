"""One broken thing hides none of its neighbours, in any list of the tab; where it can be said what
it was, it is shown as broken, with a reason.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.jobs.history import History
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.comparing import routes as comparing_routes
from lora_trainer.webui.comparing.generation import ComparisonJobs
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http import routing
from lora_trainer.webui.loras import routes
from lora_trainer.webui.loras.library import Loras
from lora_trainer.webui.settings.presets import Presets
from lora_trainer.webui.settings.user_presets import UserPresets
from tests.dataset.pictures import save
from tests.jobs.logs import FINISHED
from tests.webui.lora_files import write_lora, write_run
from tests.webui.made_runs import desk
from tests.webui.painting_host import PaintingHost


def folder_instead(path: Path) -> None:
    path.mkdir()


def link_to_itself(path: Path) -> None:
    # nobody can read it, not even root
    path.symlink_to(path)


BREAKING = {
    "a number of 5,000 digits": (
        b'{"max_train_steps": ' + b"9" * 5000 + b', "version": ' + b"9" * 5000 + b"}"
    ),
    "2,000 brackets": b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    "2,000 opening brackets": b"a: " + b"[" * 2000,
    "a lone surrogate": b'{"base_model": "\\ud800", "name": "\\udfff", "title": "\\ud800"}',
    "not UTF-8": b"name: caf\xe9\xff\xfe\x00\n",
    "not finite": b'{"preferred_weight": .nan, "max_train_steps": .inf, "images": NaN}',
    "a list": b"[1, 2, 3]",
    "a bomb of references": (
        b"a: &a [x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 121))
    ),
    "unreadable": link_to_itself,
    "a folder": folder_instead,
}
EACH = pytest.mark.parametrize("breaking", BREAKING)


def put(path: Path, breaking: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        path.unlink()
    what = BREAKING[breaking]
    try:
        what(path) if callable(what) else path.write_bytes(what)
    except OSError:
        pytest.skip("this system makes no links")


def as_answer(content) -> None:
    """It can be sent."""
    json.loads(routing._json(content).body)


@EACH
def test_runs(tmp_path, breaking):
    with desk(tmp_path) as made:
        good = made.create("good")
        runs = made.data.folder("runs")
        for name in ("config.yaml", "caption.yaml"):
            put(runs / f"bad {name}" / name, breaking)
        for name in ("events.jsonl", "worker.json", "host.json"):
            shutil.copytree(runs / good, runs / f"bad {name}")
            put(runs / f"bad {name}" / name, breaking)
        shown = made.runs.listing("en")
        as_answer(shown)
        listed = {run["id"]: run for run in shown["runs"]}
        assert set(listed) == {
            good,
            "bad config.yaml",
            "bad caption.yaml",
            "bad events.jsonl",
            "bad worker.json",
            "bad host.json",
        }
        assert listed[good]["status"] == "queued"
        # what is no settings says so; odd values in settings are told by the check before a
        # training
        if breaking not in (
            "a number of 5,000 digits",
            "a lone surrogate",
            "not finite",
            "2,000 brackets",
            "a bomb of references",
        ):
            assert (
                listed["bad config.yaml"]["status"] == "failed"
                and listed["bad config.yaml"]["failure"]["message"]
            )
        as_answer(made.runs.pulse("en"))
        for run in listed:
            as_answer(made.runs.one(run, "en"))


@EACH
def test_datasets(tmp_path, breaking):
    datasets = Datasets(DataFolder(tmp_path / "data"), lambda: False)
    for name in ("good", "bad table", "bad lines", "bad authors", "bad vocabulary", "bad removed"):
        save(datasets.create(name).path / "a.png")
    put(datasets.find("bad table").path / "metadata.csv", breaking)
    put(datasets.find("bad lines").path / "metadata.jsonl", breaking)
    put(datasets.find("bad authors").path / ".lora_trainer" / "captions.json", breaking)
    put(datasets.find("bad vocabulary").path / "vocabulary.yaml", breaking)
    put(
        datasets.find("bad removed").path / ".lora_trainer" / "removed" / "x" / "removed.json",
        breaking,
    )
    cards = {card["name"]: card for card in datasets.listing("en")}
    as_answer(list(cards.values()))
    assert set(cards) == {
        "good",
        "bad table",
        "bad lines",
        "bad authors",
        "bad vocabulary",
        "bad removed",
    }
    assert (cards["good"]["count"], cards["good"]["problem"]) == (1, None)
    put(tmp_path / "data" / "datasets.json", breaking)
    assert {card["id"] for card in datasets.listing("en")} == {
        card["id"] for card in cards.values()
    }


@EACH
def test_presets(tmp_path, breaking):
    presets = UserPresets(DataFolder(tmp_path), Presets())
    presets.save("Good one", "", {"lora_rank": 4})
    put(tmp_path / "presets" / "bad.yaml", breaking)
    found = presets.listing("en")
    as_answer(found)
    assert [preset["title"] for preset in found["presets"]] == ["Good one"]
    (problem,) = found["problems"]
    assert problem["message"]


@EACH
def test_loras(tmp_path, breaking):
    host, history = PaintingHost(tmp_path), History(tmp_path / "runs")
    folder = host.paths().lora_dir
    write_lora(folder / "good.safetensors", trigger="ink")
    write_lora(folder / "bad sidecar.safetensors", trigger="ink")
    put(folder / "bad sidecar.json", breaking)
    put(folder / "bad file.safetensors", breaking)
    header = json.dumps(
        {"__metadata__": {"modelspec.implementation_version": "sd-webui-lora-trainer/1"}}
    ).encode()
    broken = BREAKING[breaking]
    if isinstance(broken, bytes):
        (folder / "bad header.safetensors").write_bytes(
            len(broken).to_bytes(8, "little") + broken + header
        )
    write_run(tmp_path / "runs", "good")
    shutil.copytree(tmp_path / "runs" / "good", tmp_path / "runs" / "bad")
    put(tmp_path / "runs" / "bad" / "config.yaml", breaking)
    loras = Loras(host, history)
    found = loras.listing()
    as_answer([routes._lora(lora) for lora in found])
    assert {"good", "bad sidecar"} <= {lora.name for lora in found}
    assert {lora.run for lora in found if lora.run} >= {"good"}
    ours, weights = loras.insertable()
    assert "good" in {lora.name for lora in ours} and all(
        -2 <= weight <= 2 for weight in weights.values()
    )


@EACH
def test_tries(tmp_path, breaking):
    data, host = DataFolder(tmp_path / "data"), PaintingHost(tmp_path)
    loras = Loras(host, History(data.folder("runs")))
    good = {
        "id": "good",
        "wanted": {"kind": "pair", "prompt": "a fox", "loras": ["x"], "strengths": [0.0, 1.0]},
        "total": 2,
        "started": 5.0,
        "status": "done",
        "pictures": [],
        "sheet": "",
        "infotext": "",
        "seed": 1,
        "notes": [],
        "error": None,
    }
    (data.folder("tries") / "good").mkdir()
    (data.folder("tries") / "good" / "try.json").write_text(json.dumps(good), encoding="utf-8")
    put(data.folder("tries") / "bad" / "try.json", breaking)
    for number, odd in enumerate(
        [
            {"started": 1e400},
            {"notes": [{"template": "{x}", "values": {}}]},
            {"pictures": [{"file": 7}]},
            {"seed": 10**400},
            {"infotext": None},
        ]
    ):
        folder = data.folder("tries") / f"odd{number}"
        folder.mkdir()
        (folder / "try.json").write_text(
            json.dumps({**good, "id": folder.name, **odd}), encoding="utf-8"
        )
    app = Starlette()
    assert comparing_routes
    routing.mount(
        app,
        SimpleNamespace(
            host=host, loras=loras, comparisons=ComparisonJobs(host, data, loras, lambda path: None)
        ),
    )
    answer = TestClient(app, base_url="http://127.0.0.1").get("/lora-trainer/tries")
    assert answer.status_code == 200
    shown = {job["id"]: job for job in answer.json()}
    assert shown["good"]["prompt"] == "a fox" and shown["good"]["status"] == "done"
    assert {"bad", "odd0", "odd1", "odd2", "odd3"} <= set(
        shown
    ) and "comparison cannot be read" in shown["bad"]["error"]["message"]


def test_a_run_that_finished_is_shown_beside_one_whose_record_is_torn(tmp_path):
    from tests.jobs.logs import write_run as write_log

    with desk(tmp_path) as made:
        write_log(made.data.folder("runs") / "good", *FINISHED)
        torn = write_log(made.data.folder("runs") / "torn", *FINISHED)
        torn.events.write_bytes(
            torn.events.read_bytes()[:-20]
            + b'\n{"event":"progress","step":'
            + b"9" * 5000
            + b"}\n"
            + b"[" * 2000
            + b"\n\xff\n"
        )
        shown = {run["id"]: run["status"] for run in made.runs.listing("en")["runs"]}
        assert shown["good"] == "finished" and "torn" in shown
