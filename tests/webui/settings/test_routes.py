"""The routes of settings and set-up over real HTTP: what the browser gets, for valid requests and for
nonsense.
"""

from __future__ import annotations

import json
import sys
import time

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.families.sdxl import SDXL
from lora_trainer.families.stable_diffusion import SD1
from lora_trainer.webui.http import routing
from lora_trainer.webui.settings.checkpoints import Checkpoints, _mark, summarize
from lora_trainer.webui.settings.setup import Setup
from tests.made import draw_images, small_checkpoint, tiny_checkpoint
from tests.webui.drafts import app as make_app

ASK = {"X-LoRA-Trainer": "1"}
routing.find_routes()


@pytest.fixture
def app(tmp_path):
    made = make_app(tmp_path)
    made.datasets.folders["discs"] = draw_images(tmp_path / "discs", 5)
    made.host.list(tiny_checkpoint("sd1"), tiny_checkpoint("sdxl"))
    made.host.load(tiny_checkpoint("sd1"), clip_skip=2)
    made.setup = Setup(
        made.host,
        made.data,
        command=[sys.executable, "-c", "print('Installing'); raise SystemExit(1)"],
    )
    return made


@pytest.fixture
def client(app):
    host_app = Starlette()
    routing.mount(host_app, app)
    return TestClient(host_app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def post(client, path, body, language="en"):
    return client.post(
        f"/lora-trainer/{path}", json=body, headers={**ASK, "X-LoRA-Trainer-Language": language}
    )


def test_a_plan_is_told_in_the_visitors_language(client):
    body = {
        "dataset": "discs",
        "checkpoint": "loaded",
        "name": "ink",
        "settings": {"max_train_steps": 40, "lora_rank": 0},
    }
    told = post(client, "plan", body).json()
    assert (told["ok"], told["steps"], told["target"]) == (False, 40, "models/Lora/ink.safetensors")
    assert told["problems"][0] == {
        "field": "lora_rank",
        "severity": "error",
        "message": "Rank is 0, but must be between 1 and 1024",
        "hint": "Use 4 to 64; 8 suits most styles.",
        "change": {},
    }
    assert told["facts"][0] == {
        "label": "Checkpoint",
        "value": "tiny-sd1 (SD1.5), currently loaded",
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"settings": "text"},
        {"settings": {"lora_rank": {"a": []}}},
        {"dataset": "../..", "checkpoint": "/etc/passwd"},
    ],
)
def test_nonsense_is_a_plan_with_problems(client, body):
    answer = post(client, "plan", body)
    assert answer.status_code == 200 and answer.json()["ok"] is False and answer.json()["problems"]


def test_a_checkpoints_family_is_told_at_once(client, app):
    told = post(client, "checkpoint", {"id": "loaded"}).json()
    assert (told["family"], told["family_name"], told["resolution"], told["clip_skip"]) == (
        "sd1",
        "SD1.5",
        64,
        2,
    )
    other = next(
        choice for choice in app.checkpoints.choices() if choice.path == tiny_checkpoint("sdxl")
    )
    assert post(client, "checkpoint", {"id": other.id}).json()["family_name"] == "SDXL"
    # clip skip changes nothing there, so it is not told
    app.host.load(other.path, clip_skip=2)
    told = post(client, "checkpoint", {"id": "loaded"}).json()
    assert (told["family_name"], told["clip_skip"]) == ("SDXL", None)
    practice = post(client, "checkpoint", {"id": "practice"}).json()
    assert (practice["practice"], practice["title"], len(practice["notes"])) == (
        True,
        "Tiny practice model",
        1,
    )


def test_a_checkpoint_that_cannot_be_used_says_why(client, app, tmp_path):
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04" + bytes(600))
    app.host.list(tmp_path / "old.ckpt")
    told = post(client, "checkpoint", {"id": app.checkpoints.choices()[0].id}).json()
    assert (told["family"], told["title"]) == (None, "old.ckpt")
    assert told["problem"].startswith("old.ckpt is a pickle") and told["hint"]
    app.host.now = None
    assert (
        post(client, "checkpoint", {"id": "loaded"}).json()["problem"]
        == "The WebUI has no checkpoint loaded"
    )
    assert (
        post(client, "checkpoint", {"id": str(tmp_path / "old.ckpt")}).json()["problem"]
        == "The WebUI no longer lists this checkpoint"
    )


def test_the_list_names_families_as_they_become_known_and_keeps_them(client, app, tmp_path):
    (tmp_path / "inpainting.ckpt").write_bytes(b"\x80\x02" + bytes(600))
    app.host.list(
        tiny_checkpoint("sd1"),
        tiny_checkpoint("sdxl"),
        tmp_path / "inpainting.ckpt",
        tmp_path / "gone.safetensors",
    )
    first = client.get("/lora-trainer/checkpoints").json()["checkpoints"]
    assert [entry["seen"] for entry in first] == [False, False, False, True, False]
    app.checkpoints.wait()
    told = client.get("/lora-trainer/checkpoints").json()
    assert [entry["family_name"] for entry in told["checkpoints"]] == [
        "SD1.5",
        "SDXL",
        None,
        None,
        "SD1.5",
    ]
    assert [bool(entry["problem"]) for entry in told["checkpoints"]] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert [entry["loaded"] for entry in told["checkpoints"]] == [True, False, False, False, False]
    assert told["checkpoints"][-1]["title"] == "Tiny practice model"
    assert told["loaded"]["title"] == "tiny-sd1.safetensors"
    assert str(tmp_path) not in json.dumps(told)
    again = Checkpoints(app.host, app.data.root / "checkpoints.json").listing("en")
    assert [entry["seen"] for entry in again] == [True] * 5


def test_a_file_that_was_exchanged_is_looked_at_again(app, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_checkpoint("sd1").read_bytes())
    assert app.checkpoints.facts(path).family is SD1
    path.write_bytes(tiny_checkpoint("sdxl").read_bytes())
    assert app.checkpoints.facts(path).family is SDXL


def test_two_hundred_checkpoints_hold_up_nobody(app, tmp_path):
    content = small_checkpoint().read_bytes()[:400_000]
    paths = [tmp_path / f"model{number:03d}.safetensors" for number in range(200)]
    for path in paths:
        path.write_bytes(content)
    app.host.list(*paths)
    begin = time.thread_time()
    assert len(app.checkpoints.listing("en")) == 201
    assert time.thread_time() - begin < 0.5
    app.checkpoints.wait()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', '{"a": {"mark": [1, 2]}}', "\x00"])
def test_a_damaged_file_of_what_was_found_is_begun_anew(app, content):
    (app.data.root / "checkpoints.json").write_text(content, encoding="utf-8")
    assert (
        Checkpoints(app.host, app.data.root / "checkpoints.json")
        .facts(tiny_checkpoint("sd1"))
        .family
        is SD1
    )


@pytest.mark.parametrize(
    "made_up",
    [
        {"family": "sd9"},
        {"family": []},
        {"family": "sd2", "stated_resolution": "64"},
        {"family": "sd1", "prediction_type": 3},
        {"has_vae": None},
        {"is_distilled": 1},
        {"notes": [["no {such}", {}]]},
        {"problem": 5},
        {"problem": "no {such}", "hint": "", "hint_values": {}, "values": {"a": 1}},
        {"problem": "no", "hint": "", "hint_values": {}, "values": 7},
    ],
)
def test_what_was_found_must_be_what_is_found(app, made_up):
    path = tiny_checkpoint("sd1")
    sound = {
        "family": "sd1",
        "prediction_type": None,
        "stated_resolution": None,
        "has_vae": True,
        "is_distilled": False,
        "licence": None,
        "notes": [],
    }
    values = {str(path): {"mark": _mark(path), **sound, **made_up}, "/other": 3}
    (app.data.root / "checkpoints.json").write_text(json.dumps(values), encoding="utf-8")
    facts = Checkpoints(app.host, app.data.root / "checkpoints.json").facts(path)
    assert (facts.family, facts.has_vae, summarize(facts, "en")["problem"]) == (SD1, True, None)


def test_set_up_is_begun_and_watched(client, app):
    assert client.get("/lora-trainer/setup").json()["state"] == "ready"
    told = post(client, "setup", {}).json()
    assert told["state"] in ("installing", "ready")
    app.setup.wait()
    told = client.get("/lora-trainer/setup").json()
    assert (told["lines"], told["report"]) == (["Installing"], "")


def test_without_the_header_nothing_is_set_up(client, app):
    assert client.post("/lora-trainer/setup", json={}).status_code == 403
    assert client.get("/lora-trainer/setup").json()["lines"] == []


def test_a_preset_of_ones_own_is_saved_shown_and_deleted(client):
    body = {"title": "墨 faces", "why": "", "values": {"lora_rank": 16, "trigger_word": "ohwx"}}
    saved = post(client, "presets", body).json()
    assert saved["saved"] == "own:墨 faces.yaml" and [
        preset["values"] for preset in saved["presets"]
    ] == [{"lora_rank": 16}]
    again = post(client, "presets", body, language="zh_CN")
    assert (
        again.status_code == 409
        and again.json()["error"]["message"] == "你已有名为 墨 faces 的预设"
    )
    assert post(client, "presets", {**body, "replace": True}).json()["saved"] == "own:墨 faces.yaml"
    assert post(client, "presets/%E5%A2%A8%20faces.yaml/delete", {}).json() == {
        "presets": [],
        "problems": [],
    }
    assert post(client, "presets/%E5%A2%A8%20faces.yaml/delete", {}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": 1, "values": {}},
        {"title": "Mine", "values": []},
        {"title": "Mine", "values": {"lora_rank": {"a": [1]}}},
    ],
)
def test_nonsense_is_no_preset(client, app, body):
    answer = post(client, "presets", body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert app.user_presets.listing("en") == {"presets": [], "problems": []}


def test_visitors_from_elsewhere_may_save_presets_as_they_may_train_and_read_no_folder_of_this_machine(
    client, app
):
    app.host.is_remote = lambda: True
    app.redactions = lambda: {app.data.root: "data"}
    post(client, "presets", {"title": "Mine", "values": {"lora_rank": 16}})
    (app.data.root / "presets" / "bad.yaml").write_text("- a\n", encoding="utf-8")
    answer = post(client, "presets", {"title": "Other", "values": {"lora_rank": 16}})
    assert [preset["title"] for preset in answer.json()["presets"]] == ["Mine", "Other"]
    assert (
        str(app.data.root) not in answer.text
        and "bad.yaml" in answer.json()["problems"][0]["message"]
    )
    assert post(client, "presets/Mine.yaml/delete", {}).status_code == 200
