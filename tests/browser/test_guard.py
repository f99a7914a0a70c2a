"""Who may ask, and for what: every route of the table, over real HTTP. No browser needed."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from lora_trainer.webui.http.routing import ROUTES, RouteEntry, find_routes
from tests.browser.pictures import picture
from tests.browser.running import HEADERS, ROOT, Answer, FakeHost, Line, missing_for_fake_hosts
from tests.hardening import web_attack
from tests.hardening.harness import Run

find_routes()
# the guard is our own; who is logged in is asked of gradio
pytestmark = pytest.mark.webuis("forge")
SECRET = b"nobody outside may read this"

# as they stand in the address: a browser or a proxy would tidy most of them up, an attacker would
# not
ATTEMPTS = (
    "..",
    ".",
    "...",
    "../..",
    "../../secret.txt",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fsecret.txt",
    "..%2f..%2fsecret.txt",
    "..%2Fsecret.txt",
    "%2fetc%2fpasswd",
    "%252e%252e%252fsecret.txt",
    "..%252f..%252fsecret.txt",
    "..%5c..%5csecret.txt",
    "..\\..\\secret.txt",
    "%5c%5cserver%5cshare%5cx",
    "\\\\server\\share",
    "C:%5cWindows%5cwin.ini",
    "C:/Windows/win.ini",
    "c:",
    "C:..%5csecret.txt",
    "link",
    "link%2fsecret.txt",
    "link.txt",
    "secret.txt%00.png",
    "%00",
    "..%00",
    "%c0%ae%c0%ae%2fsecret.txt",
    "%ff%fe",
    "%ef%bc%8e%ef%bc%8e",
    "~",
    "~root",
    "$HOME",
    "%25SystemRoot%25",
    "file:%2f%2f%2fetc%2fpasswd",
    "CON",
    "nul",
    "COM1.txt",
    "aux.",
    "inside.",
    "inside%20",
    "%20",
    ".hidden",
    "..%0d%0aX-Evil:1",
    "x" * 300,
    "%e2%80%ae",
    "inside::$DATA",
    "inside%3a%3a$INDEX_ALLOCATION",
    "*",
    "%3f",
    "inside;..",
    "..;",
    "..%2e",
    "queue.json",
    "..%2fqueue.json",
)
PLAIN = (
    "..",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fsecret.txt",
    "..%5c..%5csecret.txt",
    "%2fetc%2fpasswd",
    "C:%5cWindows%5cwin.ini",
    "link",
    "link%2fsecret.txt",
    "link.txt",
    "%00",
    "x" * 300,
)
"""One of each kind."""


@pytest.fixture(scope="module")
def open_host(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    """A WebUI that other machines can reach, with secrets around the extension's data folder and
    links that lead there.
    """
    reason = missing_for_fake_hosts()
    if reason:
        pytest.skip(reason)
    running = FakeHost(
        data=tmp_path_factory.mktemp(f"open {flavour}"),
        flavour=flavour,
        variables={"GRADIO_SERVER_NAME": "0.0.0.0"},
    )
    for folder in (running.data, running.trainer_folder, running.data / "elsewhere"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "secret.txt").write_bytes(SECRET)
        (folder / "secret.png").write_bytes(SECRET)
    for kind in ("datasets", "runs", "tries", "trash"):
        inside = running.trainer_folder / kind / "inside"
        inside.mkdir(parents=True)
        (inside / "a.png").write_bytes(picture(1))
        (inside / "link.txt").symlink_to(running.data / "secret.txt")
        (inside / "link.png").symlink_to(running.data / "secret.png")
        (inside / "link").symlink_to(running.data / "elsewhere", target_is_directory=True)
        (running.trainer_folder / kind / "link").symlink_to(
            running.data / "elsewhere", target_is_directory=True
        )
        (running.trainer_folder / kind / "link.txt").symlink_to(running.data / "secret.txt")
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def locked_host(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    """A WebUI with a login."""
    reason = missing_for_fake_hosts()
    if reason:
        pytest.skip(reason)
    running = FakeHost(
        data=tmp_path_factory.mktemp(f"locked {flavour}"),
        flavour=flavour,
        arguments=["--gradio-auth", "me:open sesame"],
    )
    running.start()
    yield running
    running.kill()


def address(entry: RouteEntry, value: str, others: str = "inside") -> Iterator[str]:
    """The route's address with `value` in each of its places in turn."""
    places = re.findall(r"\{\w+\}", entry.path)
    for chosen in places:
        yield "lora-trainer" + re.sub(
            r"\{\w+\}",
            lambda found, chosen=chosen: value if found.group() == chosen else others,
            entry.path,
        )


def ask(line: Line, entry: RouteEntry, path: str) -> Answer:
    if entry.method == "GET":
        return line.ask("GET", path, headers={"X-LoRA-Trainer": "1"})
    return line.ask(entry.method, path, {}, HEADERS)


def outside(host: FakeHost) -> dict[str, bytes]:
    """What nobody may change, delete or add to: all that surrounds the data folder, and the places
    the links lead to.
    """
    places = [
        path
        for path in host.data.rglob("*")
        if host.trainer_folder not in path.parents and path.is_file()
    ]
    kept = {"host.log", "calls.jsonl"}
    return {str(path): path.read_bytes() for path in places if path.name not in kept} | {
        "/etc": repr(sorted(Path("/etc").iterdir())).encode() if Path("/etc").is_dir() else b""
    }


def test_there_are_enough_attempts():
    assert len(set(ATTEMPTS)) >= 50


@pytest.mark.webuis("a1111", "forge")
def test_an_anonymous_visitor_gets_401_from_every_route(locked_host):
    with Line(locked_host) as asked:
        for entry in ROUTES:
            path = "lora-trainer" + re.sub(r"\{\w+\}", "inside", entry.path)
            for headers in (
                {},
                HEADERS,
                {**HEADERS, "Cookie": "access-token=guessed"},
                {**HEADERS, "Authorization": "Basic bWU6d3Jvbmc="},
            ):
                answer = asked.ask(
                    entry.method, path, None if entry.method == "GET" else {}, headers
                )
                assert answer.status == 401, (entry.method, entry.path, headers)
                assert answer.json()["error"]["message"]


@pytest.mark.webuis("a1111", "forge")
def test_who_logged_in_may_ask(locked_host):
    form = b"username=me&password=open+sesame"
    login = locked_host.ask(
        "POST", "login", form, {"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert login.status == 200
    cookies = re.findall(r"(access-token[^=]*=[^;,]+)", login.headers["set-cookie"])
    assert cookies
    answer = locked_host.ask("GET", "lora-trainer/home", headers={"Cookie": "; ".join(cookies)})
    assert answer.status == 200


def test_a_page_that_only_pretends_to_be_the_webuis_is_refused_by_every_route(host):
    with Line(host) as asked:
        for entry in ROUTES:
            path = "lora-trainer" + re.sub(r"\{\w+\}", "inside", entry.path)
            answer = asked.ask(
                entry.method,
                path,
                None if entry.method == "GET" else {},
                {**HEADERS, "Host": f"evil.example:{host.port}"},
            )
            assert answer.status == 403 and b"evil.example" in answer.body, (
                entry.method,
                entry.path,
            )


@pytest.mark.parametrize("missing", ["X-LoRA-Trainer", "Content-Type"])
def test_another_web_page_cannot_change_anything(host, missing):
    sent = {name: value for name, value in HEADERS.items() if name != missing}
    with Line(host) as asked:
        for entry in ROUTES:
            if entry.method != "GET" and not (entry.upload and missing == "Content-Type"):
                path = "lora-trainer" + re.sub(r"\{\w+\}", "inside", entry.path)
                answer = asked.ask(
                    entry.method, path, {}, {**sent, "Origin": "https://evil.example"}
                )
                assert answer.status == 403, (entry.method, entry.path)


def test_no_address_leads_out_of_the_data_folder(open_host):
    before = outside(open_host)
    routes_with_ids = [
        entry for entry in ROUTES if "{" in entry.path and not entry.path.startswith("/texts/")
    ]
    assert routes_with_ids
    # a body that is missing may be what is refused
    routes_with_ids.sort(key=lambda entry: entry.method != "GET")
    # every route is asked with the plain ones; what an encoding makes of them is up to the server
    # and to what kind of thing is named, whichever route it is
    seen: set[tuple[str, ...]] = set()
    with Line(open_host) as asked:
        for entry in routes_with_ids:
            kind = (entry.path.split("/")[1], *re.findall(r"\{\w+\}", entry.path))
            for attempt in PLAIN if kind in seen else ATTEMPTS:
                for path in address(entry, attempt):
                    answer = ask(asked, entry, path)
                    assert 400 <= answer.status < 500, (
                        entry.method,
                        path,
                        answer.status,
                        answer.body[:300],
                    )
                    assert SECRET not in answer.body and b"root:" not in answer.body, path
            seen.add(kind)
    assert outside(open_host) == before


def test_no_language_leads_to_a_file(open_host):
    (entry,) = (entry for entry in ROUTES if entry.path.startswith("/texts/"))
    with Line(open_host) as asked:
        for attempt in ATTEMPTS:
            for path in address(entry, attempt):
                answer = ask(asked, entry, path)
                assert answer.status < 500 and SECRET not in answer.body, path
                assert answer.status >= 400 or answer.json() == {}, path


def test_no_value_in_a_request_leads_out_of_the_data_folder(open_host):
    before = outside(open_host)
    decoded = (
        "..",
        "../..",
        "../../secret.txt",
        str(open_host.data / "secret.txt"),
        "/etc/passwd",
        "link",
        "link/secret.txt",
        "..\\..\\secret.txt",
        "C:\\Windows",
        "\\\\server\\share",
        "inside\x00",
        "\x00",
        "a" * 5000,
        "CON",
        "~",
        "",
        " ",
        "\ud800",
    )
    names = "id key dataset checkpoint name lora folder token what was caption prompt kind".split()
    with Line(open_host) as asked:
        for entry in ROUTES:
            if entry.method == "GET" or entry.upload or entry.path == "/setup":
                continue
            path = "lora-trainer" + re.sub(r"\{\w+\}", "inside", entry.path)
            for value in decoded:
                body = {
                    **dict.fromkeys(names, value),
                    "keys": [value],
                    "loras": [value],
                    "settings": {"output_dir": value, "train_data_dir": value},
                }
                answer = asked.ask(entry.method, path, json.dumps(body).encode(), HEADERS)
                assert answer.status < 500, (
                    entry.method,
                    entry.path,
                    value[:40],
                    answer.body[:400],
                )
                assert SECRET not in answer.body and b"root:" not in answer.body, (
                    entry.path,
                    value,
                )
    assert outside(open_host) == before


def test_every_route_survives_values_of_the_wrong_kind(open_host):
    with Line(open_host) as asked:
        for entry in ROUTES:
            if entry.method == "GET" or entry.upload or entry.path == "/setup":
                continue
            path = "lora-trainer" + re.sub(r"\{\w+\}", "inside", entry.path)
            for value in (None, 7, -1, 1e300, True, [], {}, [[]], {"a": {}}):
                answer = asked.ask(
                    entry.method, path, dict.fromkeys(web_attack.NAMES, value), HEADERS
                )
                assert answer.status < 500, (entry.method, entry.path, value, answer.body[:400])


def test_an_upload_stays_in_its_dataset(open_host):
    made = open_host.post("datasets", {"name": "uploads"})
    assert made.status == 200, made.body
    identity = made.json()["id"]
    before = outside(open_host)
    for attempt in (
        "../evil.png",
        "..\\evil.png",
        "/tmp/evil.png",
        "C:\\evil.png",
        "a/b.png",
        "link/evil.png",
        "evil\x00.png",
        ".png",
        "x" * 300 + ".png",
        "CON.png",
    ):
        answer = open_host.ask(
            "POST",
            f"lora-trainer/datasets/{identity}/upload?name={quote(attempt)}",
            picture(2),
            {"X-LoRA-Trainer": "1"},
        )
        assert answer.status < 500, (attempt, answer.body)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in (
            "../evil.png",
            "/tmp/evil.png",
            "C:\\evil.png",
            "..\\evil.png",
            "fine.png",
            "a/../../evil.png",
        ):
            archive.writestr(name, picture(3))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(open_host.data / "secret.png"))
    answer = open_host.ask(
        "POST",
        f"lora-trainer/datasets/{identity}/upload?name=all.zip",
        content.getvalue(),
        {"X-LoRA-Trainer": "1"},
    )
    assert answer.status == 200, answer.body
    assert outside(open_host) == before
    folder = next(
        path for path in (open_host.trainer_folder / "datasets").iterdir() if path.name == identity
    )
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert {path.parent for path in folder.rglob("evil*")} <= {folder}
    assert not any(SECRET in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("character", list("<>:,="))
def test_a_name_that_the_tag_could_not_hold_is_refused_with_a_sentence(host, character):
    identity = host.post("datasets", {"name": "names"}).json()["id"]
    host.ask(
        "POST",
        f"lora-trainer/datasets/{quote(identity)}/upload?name=a.png",
        picture(4),
        {"X-LoRA-Trainer": "1"},
    )
    body = {
        "name": f"my{character}lora",
        "dataset": identity,
        "checkpoint": "practice",
        "settings": {"trigger_word": "ohwx"},
    }
    answer = host.post("runs", {**body, "token": f"a name with {character}", "when": "queue"})
    assert answer.status == 400, answer.body
    assert f"'my{character}lora'" in answer.json()["error"]["message"]
    plan = host.post("plan", body).json()
    assert [problem["field"] for problem in plan["problems"] if problem["severity"] == "error"] == [
        "name"
    ]
    assert not plan["ok"]


@pytest.mark.parametrize("character", list("<>:,="))
def test_images_may_be_called_anything_and_their_folder_and_lora_are_called_what_can_be(
    host, character
):
    made = host.post("datasets", {"name": f"my{character}images"}).json()
    assert made["name"].startswith(f"my{character}images") and made["id"].startswith("my_images")


def test_no_answer_to_others_tells_where_things_lie_on_this_machine(open_host):
    run = open_host.trainer_folder / "runs" / "told"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"train_data_dir: {open_host.trainer_folder / 'datasets' / 'inside'}\nbase_model:"
        f" {open_host.data / 'models' / 'x.safetensors'}\n",
        encoding="utf-8",
    )
    (run / "worker.log").write_text(f"saved {run / 'fox.safetensors'}\n", encoding="utf-8")
    for path in (
        "home",
        "runs",
        "pulse",
        "datasets",
        "checkpoints",
        "setup?report=1",
        "loras",
        "runs/told/live?log=1",
        "runs/told/log",
        "runs/told/config",
    ):
        answer = open_host.ask("GET", "lora-trainer/" + path)
        assert answer.status == 200, (path, answer.body)
        if path == "setup?report=1":
            report = answer.json()["report"]
            assert "gradio" in report and str(Path.home()) + "/" not in report
        is_json = answer.headers["content-type"].startswith("application/json")
        text = json.dumps(answer.json(), ensure_ascii=False) if is_json else answer.body.decode()
        assert str(open_host.data) not in text and str(ROOT) not in text, path
    told = open_host.ask("GET", "lora-trainer/runs/told/config").body.decode()
    assert f"train_data_dir: {open_host.trainer_folder.name}{os.sep}datasets{os.sep}inside" in told


def test_no_folder_of_this_machine_is_opened_for_others(open_host):
    # no flag says that this one listens to the network: only its sockets do
    for route in ("datasets/open", "checkpoints/open", "asks/x/copy"):
        answer = open_host.post(route, {"folder": str(open_host.data)})
        assert answer.status == 403
        assert "Upload" in answer.json()["error"]["hint"]


def test_hostile_requests_of_every_kind_are_answered_with_sentences(open_host):
    run = Run(seed=7, seconds=20, most=80)
    while run.goes_on():
        web_attack.one(run, open_host)
    assert run.faults == [] and run.counts["requests"] >= 1
