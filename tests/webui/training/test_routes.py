"""The routes of runs as a browser asks them."""

from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer import verdict
from lora_trainer.errors import DatasetError, Message
from lora_trainer.runs import events
from lora_trainer.runs.requests import take_requests
from lora_trainer.webui.common import file_manager
from lora_trainer.webui.http import routing
from lora_trainer.webui.training import routes
from tests.jobs.logs import FINISHED, TRAINED, append, write_run
from tests.webui import made_runs

BODY = {
    "dataset": "ink",
    "checkpoint": "loaded",
    "name": "水墨 ink",
    "settings": {},
    "token": "a-token-of-a-click",
}
ADDRESS = "/lora-trainer/runs/%E6%B0%B4%E5%A2%A8%20ink"


@pytest.fixture
def desk(tmp_path):
    with made_runs.desk(tmp_path) as made:
        yield made


def run_config(desk, plan):
    if not plan.dataset:
        raise DatasetError("no images are chosen", hint="Add images first, under Images.")
    return desk.asked(plan.name)


def browser(desk, *, remote=False, app=None):
    host = SimpleNamespace(language=lambda: "", is_remote=lambda: remote, api_credentials=dict)
    app = app or Starlette()
    preflight = SimpleNamespace(run_config=lambda plan: run_config(desk, plan))
    routing.mount(
        app, SimpleNamespace(host=host, runs=desk.runs, preflight=preflight, redactions=dict)
    )
    return TestClient(
        app,
        base_url="http://127.0.0.1",
        raise_server_exceptions=False,
        headers={"X-LoRA-Trainer": "1"},
    )


def test_a_run_from_the_click_to_the_trash(desk):
    client = browser(desk)
    for _ in range(2):
        begun = client.post("/lora-trainer/runs", json=BODY)
        assert (
            begun.status_code == 200
            and begun.json()["id"] == "水墨 ink"
            and begun.json()["status"] == "queued"
        )
    desk.tick()
    append(desk.folder("水墨 ink"), *TRAINED, start=6000.0)
    assert client.get("/lora-trainer/runs").json()["runs"][0]["status"] == "running"
    live = client.get(f"{ADDRESS}/live?offset=0&log=1").json()
    assert live["run"]["step"] == 10 and len(live["points"]) == 10
    assert client.get(f"{ADDRESS}/live?offset={live['offset']}").json()["points"] == []
    assert (
        client.get(f"{ADDRESS}/live?offset=-1").json()["whole"]
        and client.get(f"{ADDRESS}/live?offset=%D9%A3").json()["whole"]
    )
    assert client.get("/lora-trainer/pulse").json()["active"][0]["id"] == "水墨 ink"
    assert client.post(f"{ADDRESS}/ask", json={"what": "stop"}).json()["status"] == "stopping"
    assert [request.kind for request in take_requests(desk.folder("水墨 ink").requests)] == ["stop"]
    append(desk.folder("水墨 ink"), events.Stopped(step=10), start=7000.0)
    desk.workers["水墨 ink"].end(3)
    desk.tick(5000.0)
    assert client.post(f"{ADDRESS}/continue", json={"changes": {}}).json()["status"] == "queued"
    assert client.post(f"{ADDRESS}/move", json={"position": 0}).json()["runs"][0]["position"] == 0
    assert client.post(f"{ADDRESS}/unqueue", json={}).json()["status"] == "stopped"
    trash = client.post(f"{ADDRESS}/delete", json={}).json()["trash"]
    assert client.get("/lora-trainer/runs").json()["runs"] == []
    assert client.get("/lora-trainer/trash").json()["count"] == 1
    assert client.post(f"/lora-trainer/trash/{trash}/restore", json={}).json()["id"] == "水墨 ink"
    assert "train_data_dir" in client.get(f"{ADDRESS}/config").text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**BODY, "token": ""},
        {**BODY, "token": 3},
        {**BODY, "token": "x" * 300},
        {**BODY, "dataset": ""},
    ],
)
def test_a_bad_request_gets_a_sentence(desk, body):
    answer = browser(desk).post("/lora-trainer/runs", json=body)
    assert (
        answer.status_code == 400
        and answer.json()["error"]["message"]
        and not list(desk.data.folder("runs").iterdir())
    )


@pytest.mark.parametrize(
    "path",
    [
        "..%2F..",
        "%2Fetc",
        "C%3A%5CWindows",
        "a%00",
        "nothing",
        "..%5C..",
        "%2e%2e",
        ".hidden",
        "ink%2F..%2Fink",
        "%C0%AE",
        "x" * 400,
    ],
)
@pytest.mark.parametrize("part", ["/log", "/config", "/live", "/report", "/preview/a.png"])
def test_no_address_leads_out_of_the_runs_folder(desk, path, part):
    write_run(desk.folder("ink").path, *FINISHED)
    assert browser(desk).get(f"/lora-trainer/runs/{path}{part}").status_code == 404


def test_pictures_are_kept_by_browsers_and_changing_ones_have_other_addresses(desk):
    folder = write_run(
        desk.folder("ink").path, *TRAINED, events.Previewed(step=10, file="previews/a 水.png")
    )
    folder.previews.mkdir()
    (folder.previews / "a 水.png").write_bytes(b"\x89PNG")
    client = browser(desk)
    address = client.get("/lora-trainer/runs").json()["runs"][0]["preview"]
    answer = client.get("/" + address)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (
        200,
        b"\x89PNG",
        "image/png",
    )
    assert "max-age" in answer.headers["cache-control"]
    assert client.get("/lora-trainer/runs/ink/preview/..%2F..%2Fconfig.yaml").status_code == 404


def test_a_verdict_is_told_in_the_visitors_language_and_its_report_runs_nothing(desk):
    folder = write_run(desk.folder("ink").path, *FINISHED)
    client = browser(desk)
    live = client.get("/lora-trainer/runs/ink/live").json()
    assert (live["verdict"], live["report"]) == (None, None)
    assert client.get("/lora-trainer/runs/ink/report").status_code == 404

    best = Message("Step {step:,} of {total:,} is best.", {"step": 1200, "total": 2000})
    images = Message("{names} and {last}", {"names": "a", "last": "b"})
    copied = Message("After step {step:,} it copies {images}.", {"step": 1400, "images": images})
    found = verdict.VerdictFinding(
        name="copies",
        sentence=Message("From step {step:,} on, previews copy {images}.", copied.values),
        advice=Message("Use rank {rank}.", {"rank": 16}),
        changes={"max_train_steps": 1400, "output_dir": "/etc"},
        section="images",
    )
    made = verdict.Verdict(
        step=2000, step_count=2000, best_step=1200, sentences=(best, copied), findings=(found,)
    )
    verdict.write(folder, made)
    (folder.path / "report.html").write_text("<p>水</p>", encoding="utf-8")
    headers = {"X-LoRA-Trainer-Language": "zh_CN"}
    live = client.get("/lora-trainer/runs/ink/live", headers=headers).json()
    assert live["verdict"] == {
        "best_step": 1200,
        "strength": None,
        "sentence": "第 1,200 步最好，共 2,000 步。",
        "details": "第 1,400 步之后，它照抄了 a 和 b。",
        "findings": [
            {
                "name": "copies",
                "sentence": "从第 1,400 步起，预览照抄 a 和 b。",
                "advice": "请使用 rank 16。",
                # what the form does not set is not set by a verdict
                "changes": {"max_train_steps": 1400},
                "section": "images",
            }
        ],
    }
    answer = client.get("/" + live["report"])
    assert (answer.status_code, answer.text) == (200, "<p>水</p>")
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    (folder.path / "verdict.json").write_text('{"step": "x"}', encoding="utf-8")
    assert client.get("/lora-trainer/runs/ink/live").json()["verdict"] is None


def test_a_folder_is_opened_for_the_person_at_this_machine_only(desk, monkeypatch):
    write_run(desk.folder("ink").path, *FINISHED)
    opened = []
    monkeypatch.setattr(
        file_manager.subprocess, "Popen", lambda command, **named: opened.append(command)
    )
    monkeypatch.setattr(file_manager.sys, "platform", "linux")
    assert (
        browser(desk, remote=True).post("/lora-trainer/runs/ink/folder", json={}).status_code == 403
        and opened == []
    )
    assert browser(desk).post("/lora-trainer/runs/ink/folder", json={}).status_code == 200
    assert opened == [["xdg-open", str(desk.folder("ink").path)]]


def test_where_there_is_no_file_manager_the_folder_is_named(desk, monkeypatch):
    write_run(desk.folder("ink").path, *FINISHED)

    def none(command, **named):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(file_manager.subprocess, "Popen", none)
    monkeypatch.setattr(file_manager.sys, "platform", "linux")
    answer = browser(desk).post("/lora-trainer/runs/ink/folder", json={})
    assert (
        answer.status_code == 400 and str(desk.folder("ink").path) in answer.json()["error"]["hint"]
    )


def test_the_log_is_its_end(desk):
    folder = write_run(desk.folder("ink").path, *FINISHED)
    folder.log.write_text(
        "".join(f"line {number:06d}\n" for number in range(50_000)), encoding="utf-8"
    )
    text = browser(desk).get("/lora-trainer/runs/ink/log").text
    assert len(text) <= 200_000 and text.endswith("line 049999\n") and text.startswith("line ")


def test_the_trash_is_emptied_only_where_nobody_else_can_do_it(desk):
    write_run(desk.folder("ink").path, *FINISHED)
    client = browser(desk)
    client.post("/lora-trainer/runs/ink/delete", json={})
    assert client.get("/lora-trainer/trash").json()["count"] == 1
    assert browser(desk, remote=True).post("/lora-trainer/trash/empty", json={}).status_code == 403
    assert client.post("/lora-trainer/trash/empty", json={}).json() == {"count": 0, "size": 0}
    assert client.get("/lora-trainer/trash").json() == {"count": 0, "size": 0}


def test_an_anonymous_visitor_sees_none_of_it(desk):
    write_run(desk.folder("ink").path, *FINISHED)
    app = Starlette()
    app.auth, app.tokens = {"user": "password"}, {}
    client = browser(desk, app=app)
    ours = [entry for entry in routing.ROUTES if entry.handler.__module__ == routes.__name__]
    assert {"/runs", "/runs/{id}/live", "/trash/empty"} <= {entry.path for entry in ours}
    for entry in ours:
        path = "/lora-trainer" + entry.path.replace("{id}", "ink").replace("{name}", "a.png")
        assert (
            client.request(
                entry.method, path, json={} if entry.method == "POST" else None
            ).status_code
            == 401
        ), path
