from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from tests import forked

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere"),
    pytest.mark.xdist_group("forked"),
]


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_script_has_what_its_launcher_was_given_and_the_packages(forking, script, tmp_path):
    path = script(
        "import os, sys\nloaded = 'torch' in sys.modules\n"
        "print(loaded, __name__, sys.argv[1:], os.environ['X'], os.getcwd(), input())\n"
        "raise SystemExit(7)"
    )
    done = subprocess.run(
        [*forking, path, "a b", "水"],
        cwd=tmp_path,
        env={**os.environ, "X": "1", "PYTHONIOENCODING": "utf-8"},
        input="word",
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout == f"True __main__ ['a b', '水'] 1 {tmp_path} word\n"


def test_the_end_of_one_is_the_others(forking, script):
    path = script("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    for kill_the_script in (True, False):
        with subprocess.Popen([*forking, path], stdout=subprocess.PIPE) as launcher:
            process = psutil.Process(int(launcher.stdout.readline()))
            if kill_the_script:
                os.kill(process.pid, signal.SIGTERM)
                assert launcher.wait(60) == -signal.SIGTERM
            else:
                launcher.kill()
            until = time.monotonic() + 60
            while process.is_running() and time.monotonic() < until:
                time.sleep(0.02)
            assert not process.is_running()


def test_an_error_is_told(forking, script):
    done = subprocess.run(
        [*forking, script("1 / 0")], stderr=subprocess.PIPE, encoding="utf-8", check=False
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_nothing_is_left_behind(script):
    path = script("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    with (
        tempfile.TemporaryDirectory() as folder,
        forked.server(f"{folder}/s", imported=()) as command,
    ):
        launcher = subprocess.Popen(
            [*command, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        pid = int(launcher.stdout.readline())
    assert launcher.wait(60) != 0 and not psutil.pid_exists(pid)
    launcher.stdout.close()
