"""To add a section to the tab is to add a folder here, one in javascript/ and a line in
tab/main.js: one_more/toy stands among the sections, and nothing else knows of it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer import webui
from lora_trainer.webui.http import routing
from lora_trainer.webui.tab import es_modules

HEADERS = {"X-LoRA-Trainer": "1"}


@pytest.fixture
def client(tmp_path, monkeypatch):
    routing.find_routes()
    monkeypatch.setattr(routing, "ROUTES", [*routing.ROUTES])
    folder = Path(__file__).with_name("one_more")
    monkeypatch.setattr(webui, "__path__", [*webui.__path__, str(folder)])
    routing.find_routes()
    scripts = tmp_path / "javascript"
    shutil.copytree(es_modules.FOLDER, scripts)
    (scripts / "toy").mkdir()
    (scripts / "toy" / "section.js").write_text("export const section = {};\n", encoding="utf-8")
    with (scripts / "tab" / "main.js").open("a", encoding="utf-8") as main:
        main.write('import "../toy/section.js";\n')
    monkeypatch.setattr(es_modules, "MODULES", es_modules.read(scripts))
    host = SimpleNamespace(
        name="a host",
        language=lambda: "",
        is_remote=lambda: False,
        api_credentials=dict,
        names=frozenset,
    )
    host_app = Starlette()
    routing.mount(host_app, SimpleNamespace(host=host, redactions=dict))
    yield TestClient(host_app, base_url="http://127.0.0.1/lora-trainer/")
    for name in [name for name in sys.modules if name.startswith("lora_trainer.webui.toy")]:
        del sys.modules[name]


def test_its_routes_are_found_in_its_folder_and_stand_behind_the_guard(client):
    body = {"name": "zrb"}
    answer = client.post("name-length", json=body, headers=HEADERS)
    assert answer.json() == {"letters": 3, "host": "a host"}
    assert client.post("name-length", json=body).status_code == 403
    told = client.post("name-length", json={}, headers=HEADERS)
    assert told.json()["error"]["message"] == "The request lacks name"


def test_its_script_is_served_with_the_others(client):
    modules = client.get("modules").json()
    (address,) = (one for one in modules["all"] if one.endswith("/toy/section.js"))
    assert client.get(address).text == "export const section = {};\n"
    assert 'import "../toy/section.js";' in client.get(modules["start"]).text
