"""A run whose checkpoint needs newer libraries: which it is, and how they come."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lora_trainer import environment
from lora_trainer.__main__ import main
from lora_trainer.checkpoint import packages as needs
from lora_trainer.families.stable_diffusion import SD1
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import training
from lora_trainer.worker import job, packages
from tests.made import begin


@pytest.fixture
def newer(tmp_path, monkeypatch):
    """SD1 needs the newer libraries, which are not there. newer(program): what stands in
    install.py's place. `.activated`: the overlays that were activated.
    """
    monkeypatch.setattr(type(SD1), "packages", "newer")
    monkeypatch.setitem(environment.FAMILY_OVERLAYS, "newer", tmp_path / "overlay-newer")
    find = environment.find_family_overlay

    def look(name):
        if (tmp_path / "asked").exists():
            ready = SimpleNamespace(state="ready", require=lambda: "the overlay")
            ready.require_torch = lambda: None
            return ready
        return find(name)

    activated = []
    monkeypatch.setattr(environment, "find_family_overlay", look)
    monkeypatch.setattr(environment, "activate", activated.append)
    monkeypatch.setattr(environment, "ROOT", tmp_path)

    def write(program):
        (tmp_path / "install.py").write_text(program, encoding="utf-8")
        return activated

    return write


def overlay():
    return SimpleNamespace(require=lambda: None)


def test_libraries_are_installed_when_a_checkpoint_first_needs_them(tmp_path, newer):
    activated = newer(
        "import pathlib, sys; pathlib.Path(__file__).with_name('asked').write_text('"
        " '.join(sys.argv[1:]))"
    )
    folder = begin(tmp_path / "run")
    assert job.run(folder.path, overlay()) == job.FINISHED
    assert (tmp_path / "asked").read_text() == "--by-hand --packages newer"
    assert activated == ["the overlay"]
    told = folder.read_events()
    assert [type(one) for one in told[:3]] == [events.Started, events.Phase, events.Started]
    assert told[1].phase == "installing"


def test_libraries_that_cannot_be_installed_fail_the_run_with_the_command(tmp_path, newer):
    newer("raise SystemExit(1)")
    folder = begin(tmp_path / "run")
    assert job.run(folder.path, overlay()) == job.FAILED
    failure = folder.read_state().failure
    assert "this kind of model needs packages that are not installed" in str(failure.message)
    assert "install.py --packages newer" in str(failure.hint)


def test_processes_that_torchrun_has_started_install_nothing(tmp_path, newer, monkeypatch):
    newer("import pathlib; pathlib.Path(__file__).with_name('asked').touch()")
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "::1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    folder = begin(tmp_path / "run")
    assert job.run(folder.path, overlay()) == job.FAILED
    assert "install.py --packages newer" in str(folder.read_state().failure.hint)
    assert not (tmp_path / "asked").exists()


def test_a_stop_while_libraries_are_installed_ends_that_too(tmp_path, newer):
    newer("import time; time.sleep(3600)")
    folder = begin(tmp_path / "run")
    send_request(folder.requests, "stop")
    assert job.run(folder.path, overlay()) == job.STOPPED
    assert folder.read_state().status == "stopped"


def test_other_checkpoints_and_jobs_need_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "activate", lambda overlay: pytest.fail("activated"))
    folder = begin(tmp_path / "run")
    report = SimpleNamespace(write=lambda event: pytest.fail(str(event)))
    packages.prepare(folder, report)
    folder.config.write_text("base_model: [", encoding="utf-8")
    packages.prepare(folder, report)
    folder.config.unlink()
    (folder.path / "caption.yaml").write_text("input: x", encoding="utf-8")
    packages.prepare(folder, report)


def test_plan_and_inspect_use_the_libraries_that_the_checkpoint_needs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(needs, "activate_for", asked.append)
    folder = begin(tmp_path / "run")
    base = training.read(folder.config).checkpoint.base_model
    assert main(["plan", "--config", str(folder.config)]) == 0
    # no LoRA, which is found after the checkpoint was looked at
    assert main(["inspect", str(folder.config), "--base", str(base)]) == 1
    assert asked == [base, base]


def test_libraries_are_chosen_before_any_of_them_is_imported(tmp_path):
    folder = begin(tmp_path / "run")
    code = f"""
import json, sys
sys.path.insert(0, {str(environment.ROOT)!r})
from lora_trainer import environment
environment.activate()
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.worker import job, packages
packages.prepare(folders.RunFolder(__import__("pathlib").Path({str(folder.path)!r})), None)
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    names = {one.modules[0].partition(".")[0] for one in job_packages()}
    assert not names & set(json.loads(found.stdout))


def job_packages():
    from lora_trainer.packages import FAMILY_PACKAGES, TORCH

    return [TORCH, *(one for one in FAMILY_PACKAGES["newer"] if one.modules)]


def test_the_versions_in_the_run_folder_are_those_imported_last(tmp_path):
    folder = folders.RunFolder(tmp_path)
    with folders.occupy(folder, {"diffusers": "0.35.2"}) as heartbeat:
        heartbeat.note({"diffusers": "0.39.0"})
        written = json.loads(folder.worker.read_text(encoding="utf-8"))
    assert written["versions"] == {"diffusers": "0.39.0"}
