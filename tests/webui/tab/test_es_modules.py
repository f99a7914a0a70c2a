"""The tab's modules: an update gives all of them other addresses, and none of another version is
handed out.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.http import routing
from lora_trainer.webui.tab import es_modules, routes

COMMENT = re.compile(r"/\*[\s\S]*?\*/")
"""In which types are imported, for tsc only."""
IMPORT = re.compile(r'(?:from|import)\s+"([^"]+)"|\bimport\(([^)]*)\)')


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(
        routing,
        "ROUTES",
        [entry for entry in routing.ROUTES if entry.handler.__module__ == routes.__name__],
    )
    host = SimpleNamespace(
        language=lambda: "", is_remote=lambda: False, api_credentials=dict, names=frozenset
    )
    app = Starlette()
    routing.mount(app, SimpleNamespace(host=host, redactions=dict))
    return TestClient(app, base_url="http://127.0.0.1")


def addresses(folder):
    modules = es_modules.read(folder)
    return {modules.address(name) for name in modules.texts}


@pytest.mark.parametrize("change", ["another text", "a file more", "a file less", "another name"])
def test_any_change_gives_every_module_another_address(tmp_path, change):
    folder = tmp_path / "javascript"
    shutil.copytree(es_modules.FOLDER, folder)
    before = addresses(folder)
    assert addresses(folder) == before == addresses(es_modules.FOLDER)
    leaf = folder / "common" / "store.js"
    match change:
        case "another text":
            leaf.write_bytes(leaf.read_bytes() + b"\n")
        case "a file more":
            (folder / "common" / "new.js").touch()
        case "a file less":
            leaf.unlink()
        case "another name":
            leaf.rename(leaf.with_name("shop.js"))
    assert addresses(folder).isdisjoint(before)


def test_modules_import_only_what_goes_out_with_them():
    # relative, so that what is imported lies below the same version; and nothing later, when the
    # WebUI may be another one
    modules = es_modules.MODULES
    assert es_modules.START in modules.texts
    for name, text in modules.texts.items():
        for target, later in IMPORT.findall(COMMENT.sub("", text.decode("utf-8"))):
            assert not later, f"{name} imports {later} when it is already running"
            assert target.startswith("."), f"{name} imports {target}"
            found = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            assert found in modules.texts, f"{name} imports {target}"


def test_the_host_loads_the_entry_by_itself_and_nothing_else():
    # it loads every script directly in javascript/
    assert [path.name for path in es_modules.FOLDER.iterdir() if path.is_file()] == [
        "lora_trainer.js"
    ]


def test_the_first_module_and_all_others_are_there_to_be_kept_for_ever(client):
    told = client.get("/lora-trainer/modules")
    assert told.headers["cache-control"] == "no-store"
    assert told.json()["start"] in told.json()["all"]
    for address in told.json()["all"]:
        answer = client.get(f"/lora-trainer/{address}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert "immutable" in answer.headers["cache-control"]
        assert "private" in answer.headers["cache-control"]


def test_a_module_of_another_version_is_refused_with_what_to_do(client):
    now = es_modules.MODULES.version
    for address in (
        "static/0123456789abcdef/common/store.js",
        f"static/{now}/common/none.js",
        f"static/{now}/common/..%2Flora_trainer.js",
        f"static/{now}/..%2F..%2Finstall.py/x",
    ):
        answer = client.get(f"/lora-trainer/{address}")
        assert answer.status_code == 404
        assert "Reload the page" in answer.json()["error"]["hint"]
        assert answer.headers["cache-control"] == "no-store"


def test_files_that_change_while_the_webui_runs_change_nothing(tmp_path):
    folder = tmp_path / "javascript"
    shutil.copytree(es_modules.FOLDER, folder)
    modules = es_modules.read(folder)
    shutil.rmtree(folder)
    assert b"export const store" in modules.find(modules.version, "common/store.js")
    with pytest.raises(NotFound):
        modules.find("0" * 16, "common/store.js")
