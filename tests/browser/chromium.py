"""A Chromium for the browser tests: where one is on this machine, and how to get one.

    python tests/browser/chromium.py            says which one the tests will use, and fetches one
                                                if there is none

Looked for: the program named in the environment variable CHROMIUM; Chromium, Chrome and Edge on
PATH and in their usual places; what Playwright downloaded earlier. Fetched: on Debian as root with
apt-get, else with Playwright's own downloader. Called by `install.py --tests`; it never fails,
since everything but the browser tests works without a browser, and those say at the end of the test
output why they did not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    # the same engine without the rest of a browser: a sixth less processor time
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
PATIENCE = 900.0
"""Seconds for one way to get one."""


def find(environ: Mapping[str, str]) -> Path | None:
    """The browser's program; None if there is none."""
    named = environ.get("CHROMIUM")
    if named:
        return Path(named) if Path(named).is_file() else None
    on_path = (shutil.which(name, path=environ.get("PATH")) for name in NAMES)
    return next((Path(path) for path in on_path if path), None) or next(
        (path for path in _usual_places(environ) if path.is_file()), None
    )


def _usual_places(environ: Mapping[str, str]) -> list[Path]:
    programs = [
        Path(environ[name])
        for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
        if environ.get(name)
    ]
    places = [
        folder / end
        for folder in programs
        for end in ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
    ]
    places += [
        Path("/Applications") / f"{name}.app" / "Contents" / "MacOS" / name
        for name in ("Google Chrome", "Chromium", "Microsoft Edge")
    ]
    caches = [Path.home() / ".cache", Path.home() / "Library" / "Caches", *programs]
    stores = (
        [Path(environ["PLAYWRIGHT_BROWSERS_PATH"])]
        if environ.get("PLAYWRIGHT_BROWSERS_PATH")
        else [cache / "ms-playwright" for cache in caches]
    )
    ends = (
        "chrome",
        "chrome.exe",
        "Chromium",
        "headless_shell",
        "chrome-headless-shell",
        "chrome-headless-shell.exe",
    )
    return places + [
        path
        for store in stores
        for end in ends
        for path in sorted(store.glob(f"chromium*/**/{end}"))
    ]


def fetch(environ: Mapping[str, str]) -> None:
    """Try to get one; tells what it does, and leaves it to `find` to see the result."""
    if sys.platform == "linux" and shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {**environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "update", "-qq"], quiet)
        for package in ("chromium-headless-shell", "chromium"):
            _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], quiet)
            # some systems have none of that name, or only a pointer to another store
            if _answers(find(environ)):
                return
    _run(
        [
            sys.executable,
            str(ROOT / "tests" / "__main__.py"),
            "--module",
            "playwright",
            "install",
            "chromium",
        ],
        environ,
    )


def _answers(program: Path | None) -> bool:
    if program is None:
        return False
    try:
        done = subprocess.run(
            [str(program), "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    print(f"  {' '.join(command)}", flush=True)
    try:
        done = subprocess.run(
            command,
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
    if not _answers(find(environ)):
        print("Looking for a browser for the tests ...", flush=True)
        if not environ.get("CHROMIUM"):
            fetch(environ)
    program = find(environ)
    if _answers(program):
        print(f"LoRA Trainer (browser tests): {program}")
    else:
        print(
            "LoRA Trainer (browser tests): no browser, so they will be skipped. Install Chromium,"
            " or name one in the environment variable CHROMIUM."
        )


if __name__ == "__main__":
    main(os.environ)
