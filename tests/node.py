"""The tools for the tab's JavaScript, which run on Node: prettier, eslint
and tsc, which checks its types (tsconfig.json).

    python tests/node.py        installs them into node_modules, as package-lock.json names them

Where there is no npm they are left out; on Debian as root npm itself is fetched with apt-get first.
Called by `install.py --tests`; it never fails, since `python -m tests` says of each tool whether it
ran, and takes a missing one for a failure on CI (CI=true). Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "package-lock.json"
MODULES = ROOT / "node_modules"
INSTALLED = MODULES / ".package-lock.json"
"""What npm notes of what it has put there, last of all."""

TOOLS = {
    "prettier": ("prettier/bin/prettier.cjs", "--check", "--log-level", "warn", "."),
    "eslint": ("eslint/bin/eslint.js", "."),
    "tsc": ("typescript/bin/tsc", "--project", "."),
}
"""Name -> its program below node_modules, and what it is asked."""

PATIENCE = 900.0
"""Seconds for npm, or for apt-get."""


def is_ready() -> bool:
    """Whether the tools can run, as the lock file names them."""
    return (
        shutil.which("node") is not None
        and INSTALLED.is_file()
        and INSTALLED.stat().st_mtime >= LOCK.stat().st_mtime
    )


def is_required(environ: Mapping[str, str]) -> bool:
    """Whether tools that cannot run are a failure: on CI, not on the machine of somebody who
    changes Python.
    """
    return environ.get("CI", "").lower() not in ("", "0", "false")


def run(tool: str) -> int:
    """Let one tool look at the project; its output goes where ours goes. Returns its exit code."""
    program, *arguments = TOOLS[tool]
    print(f"== {tool} {' '.join(arguments)}", flush=True)
    return subprocess.run(
        ["node", str(MODULES / program), *arguments], cwd=ROOT, check=False
    ).returncode


def install(environ: Mapping[str, str]) -> None:
    """Try to get them; tells what it does, and leaves it to is_ready to see the result."""
    if shutil.which("npm") is None and sys.platform == "linux":
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            return
        quiet = {**environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "update", "-qq"], quiet)
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nodejs", "npm"], quiet)
    npm = shutil.which("npm")
    if npm is not None:
        _run([npm, "ci", "--no-audit", "--no-fund"], environ)
        if INSTALLED.is_file():
            os.utime(INSTALLED)


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    print(f"  {' '.join(command)}", flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"  {error}", flush=True)
        return
    if done.returncode != 0:
        print("\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-5:]), flush=True)


def main(environ: Mapping[str, str]) -> None:
    if not is_ready():
        install(environ)
    names = ", ".join(TOOLS)
    if is_ready():
        print(f"LoRA Trainer (JavaScript): {names} in node_modules")
    else:
        print(
            f"LoRA Trainer (JavaScript): no {names}, so `python -m tests` will leave them out."
            " Install Node 18.18 or newer with npm, and run install.py --tests again."
        )


if __name__ == "__main__":
    main(os.environ)
