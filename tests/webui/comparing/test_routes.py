"""The routes of LoRAs and tries, over HTTP."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.jobs.history import History
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.comparing import routes
from lora_trainer.webui.comparing.generation import ComparisonJobs
from lora_trainer.webui.http import routing
from lora_trainer.webui.loras import routes as lora_routes
from lora_trainer.webui.loras.library import Loras
from tests.webui.lora_files import write_lora, write_run
from tests.webui.painting_host import PaintingHost

ASK = {"X-LoRA-Trainer": "1"}


@pytest.fixture
def host(tmp_path):
    return PaintingHost(tmp_path)


@pytest.fixture
def data(tmp_path):
    return DataFolder(tmp_path / "data")


@pytest.fixture
def client(host, data):
    assert routes and lora_routes
    loras = Loras(host, History(data.folder("runs")))
    app = SimpleNamespace(
        host=host, loras=loras, comparisons=ComparisonJobs(host, data, loras, lambda path: None)
    )
    host_app = Starlette()
    routing.mount(host_app, app)
    return TestClient(host_app, base_url="http://127.0.0.1")


@pytest.fixture
def ink(host):
    return write_lora(host.paths().lora_dir / "ink.safetensors", trigger="inkstyle")


def post(client, path, body):
    return client.post(f"/lora-trainer{path}", json=body, headers=ASK)


def over(client, job):
    deadline = time.monotonic() + 120
    while job["status"] in ("waiting", "making"):
        assert time.monotonic() < deadline
        job = client.get(f"/lora-trainer/tries/{job['id']}").json()
    return job


def test_a_lora_is_tried_and_its_pictures_are_served(client, ink):
    (lora,) = client.get("/lora-trainer/loras").json()
    assert (lora["name"], lora["file"], lora["tag"], lora["preview"]) == (
        "ink",
        "ink.safetensors",
        "<lora:ink:0.7> inkstyle",
        None,
    )
    answer = post(
        client,
        "/tries",
        {
            "lora": lora["id"],
            "prompt": "a fox",
            "kind": "grid",
            "strengths": [0, 1],
            "width": 64,
            "height": 64,
        },
    )
    job = over(client, answer.json())
    assert (job["status"], job["done"], job["total"], job["sentence"]) == ("done", 2, 2, "")
    for address in (job["sheet"], *(picture["url"] for picture in job["images"])):
        picture = client.get("/" + address)
        assert (
            picture.status_code == 200
            and picture.headers["content-type"] == "image/png"
            and "immutable" in picture.headers["cache-control"]
        )
    assert [past["id"] for past in client.get("/lora-trainer/tries").json()] == [job["id"]]


def test_what_is_wrong_with_a_request_is_told(client, ink):
    (lora,) = client.get("/lora-trainer/loras").json()
    answer = post(client, "/tries", {"lora": lora["id"], "prompt": ""})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The prompt is empty"
    assert post(client, "/tries", {"lora": "0" * 16, "prompt": "a fox"}).status_code == 404
    assert post(client, "/tries", ["a list"]).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/tries/unknown",
        "/tries/..%2F..%2Fqueue.json",
        "/tries/unknown/image/00.png",
        "/loras/unknown/preview",
        "/loras/..%2Fink/preview",
    ],
)
def test_what_is_not_there_is_not_found(client, ink, path):
    assert client.get(f"/lora-trainer{path}").status_code == 404


def test_a_lora_without_a_picture_says_so(client, ink):
    (lora,) = client.get("/lora-trainer/loras").json()
    assert client.get(f"/lora-trainer/loras/{lora['id']}/preview").status_code == 404


def test_the_strength_is_written_and_shown_to_the_panel(client, ink):
    (lora,) = client.get("/lora-trainer/loras").json()
    assert (
        post(client, f"/loras/{lora['id']}/strength", {"strength": 1}).json()["preferred_weight"]
        == 1.0
    )
    assert client.get("/lora-trainer/insertable").json()["weights"] == {"ink": 1.0}
    assert post(client, f"/loras/{lora['id']}/strength", {"strength": 9}).status_code == 400


def test_a_saved_step_is_delivered(client, data):
    write_run(data.folder("runs"), "fox", (100,))
    (step,) = client.get("/lora-trainer/loras").json()
    assert step["tag"] is None
    delivered = post(client, f"/loras/{step['id']}/deliver", {}).json()
    assert delivered["delivered"] and delivered["tag"] == "<lora:fox:0.8>"
    assert [lora["name"] for lora in client.get("/lora-trainer/insertable").json()["loras"]] == [
        "fox"
    ]


def test_the_hosts_samplers_are_listed(client):
    assert client.get("/lora-trainer/samplers").json() == {
        "samplers": ["Euler", "DPM++ 2M"],
        "schedulers": ["Automatic", "Karras"],
    }


def test_a_try_is_deleted_and_taken_back(client, ink):
    (lora,) = client.get("/lora-trainer/loras").json()
    job = over(
        client,
        post(
            client,
            "/tries",
            {
                "lora": lora["id"],
                "prompt": "a fox",
                "kind": "grid",
                "strengths": [0, 1],
                "width": 64,
                "height": 64,
            },
        ).json(),
    )
    assert post(client, f"/tries/{job['id']}/delete", {}).status_code == 200
    assert (
        client.get("/lora-trainer/tries").json() == []
        and client.get("/" + job["sheet"]).status_code == 404
    )
    assert post(client, f"/tries/{job['id']}/delete", {}).status_code == 404
    assert post(client, f"/tries/{job['id']}/restore", {}).json() == job
    assert client.get("/" + job["sheet"]).status_code == 200
