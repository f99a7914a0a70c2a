from __future__ import annotations

import base64
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from lora_trainer.errors import ConfigError, LoraTrainerError
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.http import routing

ASK = {"X-LoRA-Trainer": "1"}


def host(**facts):
    facts = {"language": "", "remote": False, "credentials": {}, **facts}
    return SimpleNamespace(
        language=lambda: facts["language"],
        is_remote=lambda: facts["remote"],
        api_credentials=lambda: facts["credentials"],
        names=lambda: {"mypc"},
        expect_visitors=lambda: facts.update(remote=True),
    )


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(routing, "ROUTES", [])

    @routing.route("GET", "/things/{name}")
    def thing(app, request):
        if request.path["name"] == "none":
            raise NotFound("there is no {name}", name="none")
        return {
            "name": request.path["name"],
            "query": request.query,
            "language": request.language,
            "remote": request.remote,
        }

    @routing.route("POST", "/things")
    def make(app, request):
        if request.body.get("taken"):
            raise routing.Conflict("taken", current="theirs")
        if request.body.get("broken"):
            raise ZeroDivisionError("oops")
        if request.body.get("disk"):
            raise PermissionError(13, "Permission denied", "/home/ann/datasets")
        if request.body.get("config"):
            raise ConfigError.listing(
                [ConfigError("one is wrong", hint="Fix one."), ConfigError("two is wrong")],
                "x.yaml",
            )
        return {"rank": request.value("rank", int), "rate": request.value("rate", float, 0.5)}

    @routing.route("POST", "/files", upload=True)
    async def upload(app, request):
        return {"size": sum([len(piece) async for piece in request.stream()])}

    @routing.route("GET", "/log")
    def log(app, request):
        return PlainTextResponse(
            "saved /home/ann/webui/fox.png\n", headers={"Cache-Control": "no-store"}
        )

    @routing.route("GET", "/telling")
    def telling(app, request):
        return {"file": "/home/ann/webui/fox.png"}

    @routing.route("GET", "/failing")
    def failing(app, request):
        raise LoraTrainerError(
            "{file} is missing", hint="Look into {file}.", file=Path("/home/ann/webui/fox.png")
        )

    @routing.route("POST", "/folder")
    def folder(app, request):
        request.require_local()
        return {}

    def make_client(host_app=None, **facts):
        host_app = host_app or Starlette()
        routing.mount(
            host_app,
            SimpleNamespace(
                host=host(**facts), redactions=lambda: {Path("/home/ann/webui"): "webui"}
            ),
        )
        return TestClient(host_app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    return make_client


def test_a_handlers_answer_is_json_that_nobody_keeps(client):
    answer = client().get("/lora-trainer/things/fox?page=2")
    assert answer.json() == {
        "name": "fox",
        "query": {"page": "2"},
        "language": "en",
        "remote": False,
    }
    assert answer.headers["cache-control"] == "no-store"


def test_every_answer_names_the_app_that_gave_it(client):
    one, other = client(), client()
    names = [
        one.get(f"/lora-trainer/{path}").headers["x-lora-trainer-session"]
        for path in ("things/fox", "failing", "nowhere")
    ]
    assert (
        names == names[:1] * 3
        and other.get("/lora-trainer/nowhere").headers["x-lora-trainer-session"] not in names
    )


def test_what_changes_something_needs_the_header_and_json(client):
    visitor = client()
    assert visitor.post("/lora-trainer/things", json={"rank": 8}).status_code == 403
    assert (
        visitor.post(
            "/lora-trainer/things", content="{}", headers={**ASK, "Content-Type": "text/plain"}
        ).status_code
        == 403
    )
    assert visitor.post("/lora-trainer/things", json={"rank": 8}, headers=ASK).json() == {
        "rank": 8,
        "rate": 0.5,
    }
    assert visitor.post("/lora-trainer/files", content=b"12345").status_code == 403
    assert visitor.post("/lora-trainer/files", content=b"12345", headers=ASK).json() == {"size": 5}


@pytest.mark.parametrize(
    "body", [{}, {"rank": "8"}, {"rank": True}, {"rank": None}, [1], {"rank": 8, "rate": "fast"}]
)
def test_a_body_of_another_shape_is_refused_with_a_sentence(client, body):
    answer = client().post("/lora-trainer/things", json=body, headers=ASK)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_whose_name_was_pointed_at_this_machine_is_refused_and_told_what_to_set(
    client, method
):
    visitor, path = (
        client(),
        ("/lora-trainer/things/fox" if method == "GET" else "/lora-trainer/folder"),
    )
    answer = visitor.request(
        method,
        path,
        headers={**ASK, "Host": "evil.example:7860"},
        json={} if method == "POST" else None,
    )
    assert answer.status_code == 403
    assert (
        answer.json()["error"]["message"]
        == "evil.example is not an allowed host name of this WebUI"
    )
    assert "Settings, LoRA Trainer, Allowed host names" in answer.json()["error"]["hint"]
    assert (
        visitor.request(
            method,
            path,
            headers={**ASK, "Host": "localhost:7860"},
            json={} if method == "POST" else None,
        ).status_code
        == 200
    )


def test_another_sites_page_is_refused(client):
    visitor = client()
    assert (
        visitor.get(
            "/lora-trainer/things/fox",
            headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        ).status_code
        == 403
    )
    assert (
        visitor.post(
            "/lora-trainer/things",
            json={"rank": 8},
            headers={**ASK, "Origin": "http://evil.example"},
        ).status_code
        == 403
    )
    assert (
        visitor.post(
            "/lora-trainer/things",
            json={"rank": 8},
            headers={**ASK, "Origin": "http://127.0.0.1:7860"},
        ).status_code
        == 200
    )
    assert (
        visitor.get(
            "/lora-trainer/log",
            headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        ).status_code
        == 200
    )


def test_after_a_request_from_elsewhere_no_folder_is_opened_from_the_browser(client):
    visitor = client()
    assert visitor.post("/lora-trainer/folder", json={}, headers=ASK).status_code == 200
    assert (
        visitor.post(
            "/lora-trainer/folder", json={}, headers={**ASK, "X-Forwarded-For": "203.0.113.9"}
        ).status_code
        == 403
    )
    assert visitor.post("/lora-trainer/folder", json={}, headers=ASK).status_code == 403, (
        "a tunnel stands open, whoever comes next"
    )


def test_with_a_login_the_name_does_not_matter(client):
    host_app = Starlette()
    host_app.auth, host_app.tokens = {"ann": "secret"}, {"T0K": "ann"}
    visitor = client(host_app)
    assert (
        visitor.get("/lora-trainer/things/fox", headers={"Host": "art.example"}).status_code == 401
    )
    assert (
        visitor.get(
            "/lora-trainer/things/fox",
            headers={"Host": "art.example", "Cookie": "access-token=T0K"},
        ).status_code
        == 200
    )


def test_bad_json_and_too_much_of_it_are_refused(client):
    headers = {**ASK, "Content-Type": "application/json"}
    assert (
        "not valid JSON"
        in client()
        .post("/lora-trainer/things", content=b"{", headers=headers)
        .json()["error"]["message"]
    )
    assert (
        client()
        .post("/lora-trainer/things", content=b" " * (routing.LONGEST_BODY + 1), headers=headers)
        .status_code
        == 400
    )


def test_numbers_from_files_that_json_cannot_hold_are_left_out_of_an_answer():
    answer = routing._json({"a": float("nan"), "b": [10**400, 1, True], "c": ("x", float("-inf"))})
    assert answer.body == b'{"a":null,"b":[null,1,true],"c":["x",null]}'


def test_addresses_with_numbers_of_thousands_of_digits_and_with_bytes_that_are_no_characters_are_answered(
    client,
):
    visitor = client()
    assert visitor.get("/lora-trainer/things/" + "9" * 5000).status_code == 200
    assert visitor.get("/lora-trainer/things/%ff%fe?page=%ff").status_code == 200
    request = routing.Request(
        path={},
        query={"offset": "9" * 5000, "page": "٣"},
        body={},
        language="en",
        remote=False,
        raw=None,
    )
    assert (request.number("offset", 0), request.number("page", 1)) == (0, 1)


def test_errors_are_sentences_with_their_status(client):
    visitor = client()
    missing = visitor.get("/lora-trainer/things/none")
    assert (missing.status_code, missing.json()["error"]) == (
        404,
        {"kind": "NotFound", "message": "There is no none", "hint": ""},
    )
    conflict = visitor.post("/lora-trainer/things", json={"taken": 1}, headers=ASK)
    assert (conflict.status_code, conflict.json()["current"]) == (409, "theirs")
    broken = visitor.post("/lora-trainer/things", json={"broken": 1}, headers=ASK)
    assert (broken.status_code, broken.json()["error"]["message"]) == (
        500,
        "Something unexpected went wrong: ZeroDivisionError: oops",
    )
    config = visitor.post("/lora-trainer/things", json={"config": 1}, headers=ASK).json()["error"]
    assert config["problems"] == [
        {"message": "One is wrong", "hint": "Fix one."},
        {"message": "Two is wrong", "hint": ""},
    ]
    assert visitor.get("/lora-trainer/nothing/here").json()["error"]["kind"] == "NotFound"
    assert visitor.delete("/lora-trainer/things").status_code == 404


def test_a_disk_in_trouble_is_a_sentence_without_the_folders_name(client):
    answer = client().post("/lora-trainer/things", json={"disk": 1}, headers=ASK)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        500,
        "A file or folder cannot be read or written: Permission denied",
    )
    assert "/home/ann" not in answer.text


def test_the_words_of_an_unforeseen_error_are_for_visitors_at_this_machine(client):
    answer = client(remote=True).post("/lora-trainer/things", json={"broken": 1}, headers=ASK)
    assert (
        answer.json()["error"]["message"]
        == "Something unexpected went wrong: ZeroDivisionError: ..."
    )


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, '{"rank": 8, "rate": 1' + "0" * 400 + "}"],
    ids=["lists", "objects", "number"],
)
def test_json_that_is_too_deep_or_too_large_a_number_is_refused_with_a_sentence(client, content):
    answer = client().post(
        "/lora-trainer/things", content=content, headers={**ASK, "Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_folders_of_this_machine_are_for_visitors_at_this_machine(client):
    assert (
        client(remote=False).post("/lora-trainer/folder", json={}, headers=ASK).status_code == 200
    )
    assert client(remote=True).post("/lora-trainer/folder", json={}, headers=ASK).status_code == 403


def test_visitors_from_elsewhere_are_told_no_whole_path_of_this_machine(client):
    here, elsewhere = client(remote=False), client(remote=True)
    assert here.get("/lora-trainer/log").text == "saved /home/ann/webui/fox.png\n"
    assert here.get("/lora-trainer/telling").json() == {"file": "/home/ann/webui/fox.png"}
    log = elsewhere.get("/lora-trainer/log")
    assert (log.text, log.headers["cache-control"], log.headers["content-type"]) == (
        "saved webui/fox.png\n",
        "no-store",
        "text/plain; charset=utf-8",
    )
    assert elsewhere.get("/lora-trainer/telling").json() == {"file": "webui/fox.png"}
    assert (
        elsewhere.get("/lora-trainer/failing").json()["error"]["message"]
        == "webui/fox.png is missing"
    )
    assert (
        elsewhere.get("/lora-trainer/failing").json()["error"]["hint"] == "Look into webui/fox.png."
    )


@pytest.mark.parametrize("cookie", ["access-token", "access-token-unsecure", "access-token-Qx3"])
def test_with_a_login_only_who_is_logged_in_comes_in(client, cookie):
    host_app = Starlette()
    host_app.auth, host_app.tokens = {"ann": "secret"}, {"T0K": "ann"}
    visitor = client(host_app)
    for method, path in [
        ("GET", "/things/fox"),
        ("POST", "/things"),
        ("POST", "/files"),
        ("POST", "/folder"),
    ]:
        assert visitor.request(method, f"/lora-trainer{path}", headers=ASK).status_code == 401
    assert visitor.get("/lora-trainer/things/fox", cookies={cookie: "wrong"}).status_code == 401
    assert visitor.get("/lora-trainer/things/fox", cookies={"other": "T0K"}).status_code == 401
    assert visitor.get("/lora-trainer/things/fox", cookies={cookie: "T0K"}).status_code == 200


def test_the_apis_own_password_opens_too(client):
    host_app = Starlette()
    host_app.auth, host_app.tokens = {"ann": "secret"}, {}
    visitor = client(host_app, credentials={"bot": "pw"})
    assert visitor.get("/lora-trainer/things/fox", headers=basic("bot:pw")).status_code == 200
    for wrong in ("bot:no", "ann:pw", "bot", ""):
        assert visitor.get("/lora-trainer/things/fox", headers=basic(wrong)).status_code == 401
    assert (
        visitor.get("/lora-trainer/things/fox", headers={"Authorization": "Basic ***"}).status_code
        == 401
    )


def basic(words: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(words.encode()).decode()}


def test_the_language_is_the_visitors_preference_then_the_hosts_then_the_browsers(client):
    visitor = client(language="zh-Hans (All)")
    assert visitor.get("/lora-trainer/things/fox").json()["language"] == "zh_CN"
    assert (
        visitor.get("/lora-trainer/things/fox", headers={"X-LoRA-Trainer-Language": "en"}).json()[
            "language"
        ]
        == "en"
    )
    assert (
        client()
        .get("/lora-trainer/things/fox", headers={"Accept-Language": "fr;q=0.9, zh-TW;q=0.8"})
        .json()["language"]
        == "zh_CN"
    )


def test_conflicts_and_not_found_are_errors_of_ours():
    assert (
        issubclass(routing.Conflict, LoraTrainerError)
        and issubclass(routing.Forbidden, LoraTrainerError)
        and issubclass(NotFound, LoraTrainerError)
    )


def test_folders_are_looked_up_for_texts_only_and_not_in_the_hosts_own_thread(monkeypatch):
    monkeypatch.setattr(routing, "ROUTES", [])
    here, asked = [], []

    @routing.route("GET", "/picture")
    async def picture(app, request):
        here.append(threading.get_ident())
        return Response(b"\x89PNG", media_type="image/png")

    @routing.route("GET", "/words")
    def words(app, request):
        return {"file": "/home/ann/webui/fox.png"}

    def redactions():
        asked.append(threading.get_ident())
        return {Path("/home/ann/webui"): "webui"}

    host_app = Starlette()
    routing.mount(host_app, SimpleNamespace(host=host(remote=True), redactions=redactions))
    with TestClient(host_app, base_url="http://127.0.0.1") as client:
        assert client.get("/lora-trainer/picture").content == b"\x89PNG" and asked == []
        assert client.get("/lora-trainer/words").json() == {"file": "webui/fox.png"}
    assert len(asked) == 1 and asked[0] not in here
