"""`python -m tests`: ruff (rules and format), mypy, prettier, eslint, tsc and pytest, each with
the packages from the overlays or node_modules; pytest beside the others. Exit code 0 if all are
content.

    python -m tests                     everything, on all cores
    python -m tests tests/dataset -x    only pytest, with these arguments
    python -m tests --newer tests/lora  the same with the libraries that some model families need

A process imports one set of libraries. tests/newer is for what only the newer ones can do, and is
collected in a pytest of its own, which has them.

The tools come from `python install.py --tests`. Standard library only, and no package of the
interpreter is needed.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lora_trainer import environment  # noqa: E402
from lora_trainer.errors import SetupError  # noqa: E402

FAILED = "failed"
NEWER, ITS_TESTS = "--newer", "tests/newer"
MOST_PROCESSES = 8
"""Each test process loads torch: more of them need memory rather than save time."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 1 if a tool is not content or not installed."""
    if arguments[:1] == ["--module"]:
        return run_module(arguments[1], arguments[2:])
    try:
        environment.find_overlay().require()
        environment.find_tests_overlay().require()
    except SetupError as error:
        print(f'{error}\nRun: "{sys.executable}" install.py --tests', file=sys.stderr)
        return 1
    if arguments:
        own = [ITS_TESTS in Path(one.split("::")[0]).as_posix() for one in arguments]
        return run("pytest", *([NEWER] if any(own) else []), *arguments)
    with ThreadPoolExecutor() as beside:
        looking, newer = beside.submit(look_at_sources), beside.submit(test_with_newer)
        tested = said(run("pytest", *side_by_side(cores())))
        results = {
            **looking.result(),
            "pytest, newer libraries": newer.result(),
            "pytest": tested,
        }
    print("\n" + "\n".join(f"{name}: {result}" for name, result in results.items()))
    return 1 if any(result.startswith(FAILED) for result in results.values()) else 0


def side_by_side(core_count: int) -> list[str]:
    """pytest-xdist's arguments for that many cores: two processes more, since a test in a browser
    waits half of its time.
    """
    if core_count < 2:
        return []
    return ["-n", str(min(core_count + 2, MOST_PROCESSES)), "--dist", "loadgroup"]


def look_at_sources() -> dict[str, str]:
    """Tool -> what came of it. They run one after the other, on one core, beside the tests."""
    return {
        "ruff": said(look("ruff", "check", ".")),
        "format": said(look("ruff", "format", "--check", "--quiet", ".")),
        "mypy": said(look("mypy")),
        **look_at_javascript(),
    }


def test_with_newer() -> str:
    """What came of tests/newer: a few minutes beside the others, so it does not wait for them."""
    overlay = environment.find_family_overlay("newer")
    try:
        overlay.require_torch()
    except SetupError as error:
        return f"skipped, {error.message}"
    if overlay.state == "missing":
        return f"{FAILED}, not installed: {sys.executable} install.py --tests"
    return said(look("pytest", NEWER, ITS_TESTS))


def said(code: int) -> str:
    return FAILED if code else "passed"


def look_at_javascript() -> dict[str, str]:
    """Tool -> what came of it. Without Node they are skipped, but on CI that is a failure."""
    from tests import node

    if node.is_ready():
        return {tool: said(node.run(tool)) for tool in node.TOOLS}
    missing = FAILED if node.is_required(os.environ) else "skipped, no npm or not installed yet"
    return dict.fromkeys(node.TOOLS, missing)


def cores() -> int:
    """How many cores this process may use: a container, or taskset, may leave it fewer than the
    machine has.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(tool: str, *arguments: str) -> int:
    """Run one tool in a process of its own, in the extension's folder; its output goes where ours
    goes.
    """
    print(f"== {tool} {' '.join(arguments)}", flush=True)
    return subprocess.run(
        command(tool, *arguments), cwd=ROOT, env=environ_for(arguments), check=False
    ).returncode


def environ_for(arguments: Sequence[str]) -> dict[str, str]:
    """Our own environment, but for what would make each of the many processes of the tests slow."""
    environ = dict(os.environ)
    # every process would compile all sources again
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if "-n" in arguments:
        # the processes share the cores; torch in each would use them all
        environ.setdefault("OMP_NUM_THREADS", "1")
    return environ


def look(tool: str, *arguments: str) -> int:
    """The same, while others run: what it says is printed in one piece when it is done."""
    done = subprocess.run(
        command(tool, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    print(f"\n== {tool} {' '.join(arguments)}\n{done.stdout}", end="", flush=True)
    return done.returncode


def command(tool: str, *arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--module", tool, *arguments]


def run_module(tool: str, arguments: list[str]) -> int:
    """In that process: the extension and the overlays first on sys.path, then what `python -m TOOL`
    does.
    """
    sys.path[:] = [
        entry
        for entry in sys.path
        if Path(entry or ".").resolve() != Path(__file__).resolve().parent
    ]
    tools, packages = environment.activate(environment.find_tests_overlay()), environment.activate()
    active = [packages, tools]
    if NEWER in arguments:
        arguments = [argument for argument in arguments if argument != NEWER]
        newer = environment.find_family_overlay("newer").require()
        active.insert(0, environment.activate(newer))
    # mypy reads the types of installed packages from sys.path, but for its first entry, which is to
    # be the project
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT))]
    # for pytest's own processes, which start before they learn sys.path
    found = [str(ROOT), *(str(overlay.folder) for overlay in active if overlay.folder)]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*found, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    sys.argv = [tool, *arguments]
    runpy.run_module(tool, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
