"""pytest-xdist keeps the tests of a group in one process: what is started or trained once for a
group would else be started in each.
"""

from __future__ import annotations

import os
import subprocess
import sys

GROUPED = """
import os, pytest
NAMES = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("a", "b")]
@pytest.fixture(scope="session", params=NAMES)
def name(request): return request.param
@pytest.mark.parametrize("number", range(6))
def test_one(name, number):
    with open(os.environ["SEEN"], "a") as file: file.write(name + os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_a_group_stays_in_one_process(tmp_path):
    (tmp_path / "test_grouped.py").write_text(GROUPED, encoding="utf-8")
    environ = {
        **os.environ,
        "SEEN": str(tmp_path / "seen"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environ.pop("PYTEST_XDIST_WORKER", None)
    # no plugin but the one that is asked for
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "xdist",
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "test_grouped.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = (tmp_path / "seen").read_text(encoding="utf-8").split()
    assert len(seen) == 12 and len(set(seen)) == 2
