from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer import __version__, diagnosis, environment
from lora_trainer.packages import WORKER_PACKAGES, Package
from tests.test_environment import put_set

IN_ONE_PROCESS = pytest.mark.xdist_group("diagnosis")
"""The report of the module is made once."""


@pytest.fixture(scope="module")
def values() -> dict[str, object]:
    return diagnosis.report()


@pytest.fixture
def torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that imports it takes seconds, for what is told of it: that is in `values`."""
    told = {
        "version": "2.0",
        "cuda": None,
        "hip": None,
        "threads": 1,
        "error": None,
        "devices": [],
    }
    monkeypatch.setattr(diagnosis, "_torch", lambda overlay: told)


@IN_ONE_PROCESS
def test_the_report_is_plain_json_and_complete(values: dict[str, object]) -> None:
    assert json.loads(json.dumps(values)) == values
    assert values.keys() == {
        "extension",
        "python",
        "overlay",
        "family_overlays",
        "packages",
        "torch",
        "memory",
        "disk",
        "worker",
        "variables_set",
    }
    assert values["packages"].keys() == {
        package.name for package in WORKER_PACKAGES if package.applies()
    }  # type: ignore[attr-defined]


@IN_ONE_PROCESS
def test_the_report_tells_what_this_process_really_has(
    values: dict[str, dict[str, object]],
) -> None:
    import numpy
    import torch

    assert values["torch"]["version"] == torch.__version__
    assert values["torch"]["error"] is None
    assert values["torch"]["devices"]
    assert values["packages"]["numpy"]["version"] == numpy.__version__  # type: ignore[index]
    assert values["extension"]["version"] == __version__
    assert values["python"]["executable"] == sys.executable
    assert 0 < values["memory"]["available_mb"] <= values["memory"]["total_mb"]  # type: ignore[operator]


@IN_ONE_PROCESS
def test_the_workers_command_in_the_report_is_the_one_that_starts_it(
    values: dict[str, dict[str, list[str]]],
) -> None:
    assert values["worker"]["command"] == environment.worker_command(Path("RUN_DIR"))
    assert Path(values["worker"]["command"][1]).is_file()


@IN_ONE_PROCESS
def test_the_text_names_each_package_and_hides_the_home_folder(
    values: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: environment.ROOT.parent)
    text = diagnosis.report_text(values)
    assert all(package.name in text for package in WORKER_PACKAGES if package.applies())
    assert str(environment.ROOT.parent) not in text.replace(values["python"]["executable"], "")
    assert str(Path("~") / environment.ROOT.name) in text


@pytest.mark.usefixtures("torch_is_not_asked")
def test_addresses_and_other_values_of_variables_are_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INDEX_URL", "https://me:secret@mirror.example")
    monkeypatch.setenv("UNRELATED_TOKEN", "secret")
    overlay = environment.find_overlay(wanted=())
    values = diagnosis.report(overlay)
    assert "INDEX_URL" in values["variables_set"]
    assert "secret" not in json.dumps(values)
    assert "secret" not in diagnosis.report_text(values)


@pytest.mark.usefixtures("torch_is_not_asked")
def test_a_missing_overlay_is_a_line_of_the_report_and_not_an_error(tmp_path: Path) -> None:
    overlay = environment.find_overlay(
        tmp_path / "overlay", wanted=(Package(name="trainer", version="1.0"),), folders=[]
    )
    values = diagnosis.report(overlay)
    assert values["overlay"]["state"] == "missing"
    assert values["overlay"]["problem"].startswith(
        "the worker's packages are not installed: trainer In "
    )
    assert values["packages"] == {"trainer": {"version": None, "from": None}}
    assert "missing: not installed" in diagnosis.report_text(values)


@pytest.mark.usefixtures("torch_is_not_asked")
def test_packages_of_the_overlay_are_told_from_the_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    overlay = environment.find_overlay(
        tmp_path / "overlay", wanted=(Package(name="trainer", version="1.0"),), folders=[]
    )
    put_set(overlay.wanted, {"trainer": "1.0"})
    values = diagnosis.report(overlay)
    assert values["packages"] == {"trainer": {"version": "1.0", "from": "overlay"}}
    assert (values["overlay"]["state"], values["overlay"]["folder"]) == (
        "ready",
        str(overlay.wanted),
    )


def test_a_torch_that_does_not_import_is_a_line_of_the_report(tmp_path: Path) -> None:
    overlay = environment.find_overlay(
        tmp_path / "overlay", wanted=(Package(name="torch", version="9.9"),), folders=[]
    )
    put_set(overlay.wanted, {"torch": "9.9"})
    (overlay.wanted / "torch" / "__init__.py").write_text(
        "raise OSError('libcudart.so.12: cannot open shared object file')", encoding="utf-8"
    )
    values = diagnosis._torch(overlay)
    assert values["version"] is None
    assert values["error"] == "OSError: libcudart.so.12: cannot open shared object file"


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=n", "-c", "user.email=e@example"]
    subprocess.run(
        ["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "one"],
        check=True,
    )
    expected = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"],
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout.strip()
    assert diagnosis._commit(tmp_path) == expected
    subprocess.run(["git", "-C", str(tmp_path), "pack-refs", "--all"], check=True)
    assert diagnosis._commit(tmp_path) == expected
    assert diagnosis._commit(tmp_path / "nowhere") is None
