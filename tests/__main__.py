"""`python -m tests`: ruff (rules and format), mypy, prettier, eslint and pytest, each with the
packages from the overlays or node_modules. Exit code 0 if all are content.

    python -m tests                     everything, on all cores
    python -m tests tests/dataset -x    only pytest, with these arguments

The tools come from `python install.py --tests`. Standard library only, and no package of the
interpreter is needed.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lora_trainer import environment  # noqa: E402
from lora_trainer.errors import SetupError  # noqa: E402

FAILED = "failed"
MOST_PROCESSES = 8
"""Each test process loads torch: more of them need memory rather than save time."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 1 if a tool is not content or not installed."""
    if arguments[:1] == ["--module"]:
        return run_module(arguments[1], arguments[2:])
    try:
        environment.look().require()
        environment.look_at_tests().require()
    except SetupError as error:
        print(f'{error}\nRun: "{sys.executable}" install.py --tests', file=sys.stderr)
        return 1
    if arguments:
        return run("pytest", *arguments)
    processes = min(cores(), MOST_PROCESSES)
    results = {
        "ruff": said(run("ruff", "check", ".")),
        "format": said(run("ruff", "format", "--check", "--quiet", ".")),
        "mypy": said(run("mypy")),
        **look_at_javascript(),
        "pytest": said(
            run("pytest", *(["-n", str(processes), "--dist", "loadgroup"] if processes > 1 else []))
        ),
    }
    print("\n" + "\n".join(f"{name}: {result}" for name, result in results.items()))
    return 1 if FAILED in results.values() else 0


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
    command = [sys.executable, str(Path(__file__).resolve()), "--module", tool, *arguments]
    environ = dict(os.environ)
    if "-n" in arguments:
        # the processes share the cores; torch in each would use them all
        environ.setdefault("OMP_NUM_THREADS", "1")
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode


def run_module(tool: str, arguments: list[str]) -> int:
    """In that process: the extension and the overlays first on sys.path, then what `python -m TOOL`
    does.
    """
    sys.path[:] = [
        entry
        for entry in sys.path
        if Path(entry or ".").resolve() != Path(__file__).resolve().parent
    ]
    tools, packages = environment.activate(environment.look_at_tests()), environment.activate()
    # mypy reads the types of installed packages from sys.path, but for its first entry, which is to
    # be the project
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT))]
    # for pytest's own processes, which start before they learn sys.path
    found = [str(folder) for folder in (ROOT, packages.folder, tools.folder) if folder]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*found, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    sys.argv = [tool, *arguments]
    runpy.run_module(tool, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
