"""The set-up screen's states, the live lines of a real process, one set-up at a time, and a report
that gives nobody away.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from lora_trainer import environment, files
from lora_trainer.environment import Overlay
from lora_trainer.packages import TORCH, WORKER_PACKAGES
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.settings import setup as setting_up
from lora_trainer.webui.settings.setup import Setup, masked
from tests.webui.drafts import FakeHost

DIFFUSERS = next(package for package in WORKER_PACKAGES if package.name == "diffusers")


def overlay(home: Path, *missing, found=None) -> Overlay:
    return Overlay(home=home, packages=WORKER_PACKAGES, found=found or {}, missing=missing)


def waiting_for(gate):
    """The lines of a script that goes on when the file `gate` is there."""
    return f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"


def make(tmp_path, found, script="print('done')"):
    """A Setup whose overlay is `found`, or what that returns, and whose installer is a script."""
    return Setup(
        FakeHost(tmp_path / "host"),
        DataFolder(tmp_path / "data"),
        look=found if callable(found) else lambda: found,
        command=[sys.executable, "-u", "-c", script],
    )


def test_with_everything_there_it_is_ready(tmp_path):
    setup = make(tmp_path, overlay(tmp_path))
    assert (setup.view("en")["state"], setup.view("en")["megabytes"]) == ("ready", 0)


def test_what_is_missing_is_named_with_its_size(tmp_path):
    setup = make(tmp_path, overlay(tmp_path, DIFFUSERS))
    told = setup.view("en")
    assert (told["state"], told["megabytes"]) == ("missing", DIFFUSERS.megabytes)
    assert told["message"] == "Training needs packages that are not installed yet: diffusers."
    assert "the WebUI's own packages are not changed" in told["hint"]


def test_of_many_that_are_missing_some_are_named_and_the_others_counted(tmp_path):
    some = WORKER_PACKAGES[:8]
    told = make(tmp_path, overlay(tmp_path, *some)).view("en")["message"]
    assert (
        told == "Training needs packages that are not installed yet:"
        f" {', '.join(package.name for package in some[:6])} and 2 more."
    )


def test_a_half_deleted_set_is_broken(tmp_path):
    found = overlay(tmp_path, DIFFUSERS)
    found.wanted.mkdir(parents=True)
    assert make(tmp_path, found).view("en")["state"] == "broken"


def test_an_old_torch_is_told_before_gigabytes_are_downloaded(tmp_path):
    told = make(tmp_path, overlay(tmp_path, TORCH, found={"torch": "1.13.1"})).view("en")
    assert told["message"].startswith("The WebUI's torch 1.13.1 is too old for training")
    assert "several gigabytes" in told["hint"] and told["megabytes"] > 500


def test_lines_come_while_it_runs_and_success_is_seen_without_a_restart(tmp_path):
    state = [overlay(tmp_path, DIFFUSERS)]
    gate = tmp_path / "go"
    script = f"print('Installing ünïcode')\n{waiting_for(gate)}\nprint('ready')"
    setup = make(tmp_path, lambda: state[0], script)
    setup.begin()
    deadline = time.monotonic() + 120
    while not (told := setup.view("en"))["lines"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (told["state"], told["lines"]) == ("installing", ["Installing ünïcode"])
    state[0] = overlay(tmp_path)
    gate.touch()
    setup.wait()
    assert (setup.view("en")["state"], setup.view("en")["lines"]) == (
        "ready",
        ["Installing ünïcode", "ready"],
    )


def test_what_was_seen_of_the_packages_before_a_set_up_has_ended_is_not_kept(tmp_path):
    state, gate = [overlay(tmp_path, DIFFUSERS)], tmp_path / "go"
    looking, ended = threading.Event(), threading.Event()

    def look():
        found = state[0]
        looking.set()
        ended.wait()
        return found

    setup = make(tmp_path, look, waiting_for(gate))
    setup.begin()
    told = []
    poll = threading.Thread(target=lambda: told.append(setup.view("en")["state"]))
    poll.start()
    looking.wait()
    state[0] = overlay(tmp_path)
    gate.touch()
    setup.wait()
    ended.set()
    poll.join()
    assert told == ["installing"] and setup.view("en")["state"] == "ready"


def test_a_failure_is_told_in_the_installers_words_and_can_be_tried_again(tmp_path):
    script = (
        "print('Collecting x'); print('LoRA Trainer: the package index cannot be reached:"
        " timeout'); print('Check the connection.'); raise SystemExit(1)"
    )
    setup = make(tmp_path, overlay(tmp_path, DIFFUSERS), script)
    setup.begin()
    setup.wait()
    told = setup.view("en")
    assert told["state"] == "failed"
    assert told["message"] == "Setting up failed: the package index cannot be reached: timeout"
    assert told["hint"] == "Check the connection."
    setup.begin()
    setup.wait()
    assert setup.view("en")["lines"] == told["lines"]


def test_a_failure_without_words_still_says_something(tmp_path):
    setup = make(tmp_path, overlay(tmp_path, DIFFUSERS), "raise SystemExit(3)")
    setup.begin()
    setup.wait()
    assert setup.view("en")["message"] == "Setting up failed with exit code 3."


def test_a_program_that_cannot_be_started_is_a_failure_too(tmp_path):
    setup = Setup(
        FakeHost(tmp_path / "host"),
        DataFolder(tmp_path / "data"),
        look=lambda: overlay(tmp_path, DIFFUSERS),
        command=[str(tmp_path / "nothing")],
    )
    setup.begin()
    setup.wait()
    assert setup.view("en")["state"] == "failed"


def test_a_failed_update_does_not_keep_anybody_from_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Overlay, "state", property(lambda self: "outdated"))
    setup = make(
        tmp_path,
        overlay(tmp_path, DIFFUSERS),
        "print('LoRA Trainer: the disk is full'); raise SystemExit(1)",
    )
    setup.begin()
    setup.wait()
    told = setup.view("en")
    assert (told["state"], told["message"]) == ("ready", "Setting up failed: the disk is full")


def test_two_clicks_start_one_installer(tmp_path):
    marks, gate = tmp_path / "marks", tmp_path / "go"
    script = f"open({str(marks)!r}, 'a').write('x')\n{waiting_for(gate)}"
    setup = make(tmp_path, overlay(tmp_path, DIFFUSERS), script)
    for _ in range(5):
        setup.begin()
    gate.touch()
    setup.wait()
    assert marks.read_text(encoding="utf-8") == "x"


def test_another_process_at_it_is_seen(tmp_path):
    found = overlay(tmp_path, DIFFUSERS)
    setup = make(tmp_path, found)
    with files.lock(found.version_folder / "lock"):
        assert (
            setup.view("en")["message"]
            == "Another installation of the packages for training is running."
        )
    assert setup.view("en")["state"] == "missing"


def test_another_process_at_it_keeps_nobody_from_training_who_could(tmp_path, monkeypatch):
    found = overlay(tmp_path, DIFFUSERS)
    setup = make(tmp_path, found)
    for state in ("ready", "outdated"):
        monkeypatch.setattr(Overlay, "state", property(lambda self, state=state: state))
        with files.lock(found.version_folder / "lock"):
            assert setup.view("en")["state"] == "ready"


def test_the_installer_is_the_one_that_fails_with_code_1(tmp_path):
    setup = Setup(FakeHost(tmp_path / "host"), DataFolder(tmp_path / "data"))
    assert setup._command[1:] == ["-u", str(environment.ROOT / "install.py"), "--by-hand"]


# --- the report -----------------------------------------------------------------------------------


def test_the_report_has_versions_host_and_the_last_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(
        setting_up, "ENV_COMMAND", "print('torch 2.1.2'); import sys; print(sys.argv[1] != '')"
    )
    setup = make(
        tmp_path,
        overlay(tmp_path, DIFFUSERS),
        "print('Collecting diffusers'); print('LoRA Trainer: no'); raise SystemExit(1)",
    )
    setup.begin()
    setup.wait()
    run = tmp_path / "data" / "runs" / "ink"
    run.mkdir(parents=True)
    (run / "worker.log").write_text("CUDA error: device-side assert\n", encoding="utf-8")
    report = setup.report()
    for words in (
        "AUTOMATIC1111 v1.10.1 (a1111)",
        "torch 2.1.2",
        "Collecting diffusers",
        "CUDA error: device-side assert",
    ):
        assert words in report


def test_the_real_report_leaves_this_process_as_it_is(tmp_path):
    before = list(sys.path)
    report = make(tmp_path, overlay(tmp_path)).report()
    assert "Packages" in report and "torch" in report
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"C:\Users\Ann Example\sd\webui", r"C:\Users\***\sd\webui"),
        (r"c:\users\张三\sd", r"c:\users\***\sd"),
        ("/home/ann/webui and /Users/bob/x", "/home/***/webui and /Users/***/x"),
        ("https://ann:pa55@mirror.example/simple", "https://***@mirror.example/simple"),
        ("https://t0ken@mirror.example/simple", "https://***@mirror.example/simple"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=***"),
        ("using hf_abcdefghijklmnop here", "using hf_*** here"),
        ("--gradio-auth ann:pw --listen", "--gradio-auth *** --listen"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("password=hunter2&x=1", "password=***&x=1"),
        ("torch 2.1.2+cu121 at step 100", "torch 2.1.2+cu121 at step 100"),
    ],
)
def test_a_report_names_no_person_password_or_token(text, shown):
    assert masked(text) == shown


def test_the_home_folder_is_a_tilde():
    assert masked(f"{Path.home()}/webui/x.py") == "~/webui/x.py"
