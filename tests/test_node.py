"""tests/node.py: when the tools for the JavaScript count as installed, and what a missing one
means."""

from __future__ import annotations

import json
import os

import pytest

from tests import __main__ as tests_main
from tests import node


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A checkout in which npm has just put what the lock file names."""
    monkeypatch.setattr(node, "LOCK", tmp_path / "package-lock.json")
    monkeypatch.setattr(node, "INSTALLED", tmp_path / "node_modules" / ".package-lock.json")
    monkeypatch.setattr(node.shutil, "which", lambda name: f"/usr/bin/{name}")
    node.INSTALLED.parent.mkdir()
    node.LOCK.write_text("{}")
    node.INSTALLED.write_text("{}")
    return tmp_path


def test_tools_of_an_older_lock_file_are_not_used(installed):
    assert node.is_ready()
    now = node.INSTALLED.stat().st_mtime
    os.utime(node.LOCK, (now + 60, now + 60))
    assert not node.is_ready()


@pytest.mark.parametrize(
    ("environ", "result"),
    [({}, "skipped"), ({"CI": "false"}, "skipped"), ({"CI": "true"}, "failed")],
)
def test_without_node_the_tools_are_skipped_and_on_ci_that_is_a_failure(
    installed, monkeypatch, environ, result
):
    monkeypatch.setattr(node.shutil, "which", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    said = tests_main.look_at_javascript()
    assert set(said) == set(node.TOOLS)
    assert all(words.startswith(result) for words in said.values())


def test_the_lock_file_names_no_place_to_get_packages_from():
    # it would send machines with a registry of their own to another one
    lock = json.loads((node.ROOT / "package-lock.json").read_text(encoding="utf-8"))
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


def test_the_tools_versions_are_pinned():
    tools = json.loads((node.ROOT / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    assert all(version[0].isdigit() for version in tools.values()), tools


def test_processes_side_by_side_share_the_cores_and_what_was_compiled(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "OMP_NUM_THREADS" not in tests_main.environ_for(["tests/dataset"])
    environ = tests_main.environ_for(["-n", "3"])
    assert environ["OMP_NUM_THREADS"] == "1" and "PYTHONDONTWRITEBYTECODE" not in environ


def test_two_processes_more_than_cores_run_tests():
    assert tests_main.side_by_side(1) == []
    assert tests_main.side_by_side(2)[:2] == ["-n", "4"]
    assert tests_main.side_by_side(64)[:2] == ["-n", str(tests_main.MOST_PROCESSES)]
