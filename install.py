"""Installs the worker's packages into a folder of this extension; the interpreter's own packages
are not changed.

    python install.py             what the worker needs
    python install.py --tests     also the tools of `python -m tests`: ruff, mypy, pytest, the
    WebUIs' gradio, the newer libraries; prettier, eslint and tsc if there is npm; and a browser if
    there is none
    python install.py --captioner wd      also onnxruntime, which only the WD taggers need
    python install.py --packages newer    also the newer libraries that some kinds of models need

The WebUI runs this file without arguments at each start; a failure is then printed and does not
stop the WebUI. Otherwise a failure exits with 1. With nothing to install it takes a fraction of a
second and imports neither torch nor pip.

Environment: INDEX_URL (a mirror, as for the WebUI), TORCH_INDEX_URL (CUDA builds of torch), and
what pip reads, such as PIP_INDEX_URL and HTTPS_PROXY. With --skip-install (here, or in the WebUI's
COMMANDLINE_ARGS) nothing is installed.
"""

# An older Python 3 must be able to print the sentence below: no syntax newer than 3.6 in this file.
import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

OLDEST = (3, 10)
TOO_NEW_FOR_WEBUIS = (3, 12)
"""The older of the WebUIs' gradio versions imports distutils, which Python removed here."""
HERE = Path(__file__).absolute()


def is_run_by_a_host(environ: "Mapping[str, str]", arguments: "Sequence[str]") -> bool:
    """Whether a WebUI runs this file: without arguments, and with its own folder on PYTHONPATH."""
    folders = environ.get("PYTHONPATH", "").split(os.pathsep)
    return not arguments and any(
        folder and (Path(folder) / "modules" / "launch_utils.py").is_file() for folder in folders
    )


if sys.version_info < OLDEST:
    print(
        "LoRA Trainer needs Python 3.10 or newer, and this is Python"
        f" {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})."
    )
    print("Run install.py with the Python that the WebUI uses, or install Python 3.10 to 3.13.")
    sys.exit(0 if is_run_by_a_host(os.environ, sys.argv[1:]) else 1)

sys.path.insert(0, str(HERE.parent))

from lora_trainer import environment  # noqa: E402
from lora_trainer.errors import SetupError  # noqa: E402
from lora_trainer.packages import (  # noqa: E402
    CAPTIONER_PACKAGES,
    FAMILY_PACKAGES,
    TORCH,
    WEBUI_PACKAGES,
)

HOST_LOCK_TIMEOUT = 60.0
"""Seconds that a starting WebUI waits for another one's installation."""
HOST_SECONDS = 300.0
"""Seconds that a starting WebUI waits for pip. It starts without the packages after that, and the
tab offers to continue.
"""


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Returns the exit code: 0, or 1 if it failed and was run by hand."""
    by_host = is_run_by_a_host(environ, arguments)
    asked = _parser().parse_args(arguments)
    if asked.skip_install or (by_host and "--skip-install" in _host_arguments(environ)):
        if not by_host:
            print("Nothing installed, because of --skip-install.")
        return 0
    try:
        overlay = environment.find_overlay()
        if by_host:
            _refuse_to_replace_torch(overlay)
        _make_ready(overlay, environ, by_host)
        for captioner in asked.captioner:
            _make_ready(environment.find_captioner_overlay(captioner), environ, by_host)
        for name in asked.packages:
            _make_ready(environment.find_family_overlay(name), environ, by_host)
        if asked.tests:
            _make_ready_for_tests(environ)
        return 0
    except SetupError as error:
        print(f"LoRA Trainer: {error.report()}", flush=True)
    except KeyboardInterrupt:
        print(
            "Interrupted. Nothing half-done is left in use; run install.py again to go on.",
            flush=True,
        )
        return 130
    except Exception as error:
        if not by_host:
            raise
        print(
            f"LoRA Trainer: installing the worker's packages failed: {type(error).__name__}:"
            f" {error}",
            flush=True,
        )
    return 0 if by_host else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.py", description="Installs LoRA Trainer's packages into its own folder."
    )
    parser.add_argument(
        "--tests", action="store_true", help="also install the tools for `python -m tests`"
    )
    parser.add_argument(
        "--captioner",
        action="append",
        choices=sorted(CAPTIONER_PACKAGES),
        default=[],
        help="also install what only this captioner needs",
    )
    parser.add_argument(
        "--packages",
        action="append",
        choices=sorted(FAMILY_PACKAGES),
        default=[],
        help="also install this set of libraries, which some kinds of models need",
    )
    parser.add_argument("--skip-install", action="store_true", help="install nothing")
    parser.add_argument(
        "--by-hand",
        action="store_true",
        help="report failure by the exit code, even if a WebUI's folder is on PYTHONPATH",
    )
    return parser


def _make_ready(overlay: environment.Overlay, environ: Mapping[str, str], by_host: bool) -> None:
    """Install what is missing. Prints only if something was done or a person runs it."""
    is_ready = overlay.state == "ready" and overlay.is_checked
    if not is_ready or environment.has_leftovers(overlay):
        from lora_trainer import installation

        if is_ready:
            installation.tidy(overlay)
        else:
            patience, time_limit = (
                (HOST_LOCK_TIMEOUT, installation.TimeLimit(HOST_SECONDS))
                if by_host
                else (installation.LOCK_TIMEOUT, None)
            )
            installation.install(
                overlay,
                environ=environ,
                echo=lambda line: print(line, flush=True),
                patience=patience,
                time_limit=time_limit,
            )
    if not (is_ready and by_host):
        print(_summary(overlay), flush=True)


def _make_ready_for_tests(environ: "Mapping[str, str]") -> None:
    """The tools, the families' own libraries, the WebUIs' gradio that the tab is tested on, a
    browser to look at it, and what looks at its JavaScript.
    """
    _make_ready(environment.find_tests_overlay(), environ, by_host=False)
    for name in FAMILY_PACKAGES:
        overlay = environment.find_family_overlay(name)
        try:
            overlay.require_torch()
        except SetupError as error:
            print(f"The tests that need the packages {name} will be skipped: {error}", flush=True)
        else:
            _make_ready(overlay, environ, by_host=False)
    if sys.version_info < TOO_NEW_FOR_WEBUIS:
        for host in WEBUI_PACKAGES:
            _make_ready(environment.find_gradio_overlay(host), environ, by_host=False)
    else:
        print(
            "The WebUIs' gradio does not work on this Python; the tests of the tab in a browser"
            " will be skipped.",
            flush=True,
        )
    tests = HERE.parent / "tests"
    for program in (tests / "browser" / "chromium.py", tests / "node.py"):
        if program.is_file():
            import subprocess

            subprocess.run([sys.executable, str(program)], env=dict(environ), check=False)


def _summary(overlay: environment.Overlay) -> str:
    name = (
        overlay.home.relative_to(HERE.parent).as_posix()
        if HERE.parent in overlay.home.parents
        else overlay.home.name
    )
    if not overlay.missing:
        return f"LoRA Trainer ({name}): this Python has everything that is needed."
    return f"LoRA Trainer ({name}): ready, {len(overlay.missing)} packages in {overlay.folder}"


def _refuse_to_replace_torch(overlay: environment.Overlay) -> None:
    """Do not download a second torch of several gigabytes at a WebUI's start because its own is too
    old.
    """
    version = overlay.found.get(TORCH.key)
    if version is not None and TORCH in overlay.missing and overlay.state == "missing":
        raise SetupError(
            "the WebUI's torch {version} is too old; {least} or newer is needed",
            version=version,
            least=TORCH.at_least,
            hint=(
                "Update the WebUI. Or give the trainer its own torch {own}, several gigabytes: run"
                ' "{python}" "{path}" --by-hand'
            ),
            own=TORCH.version,
            python=sys.executable,
            path=HERE,
        )


def _host_arguments(environ: Mapping[str, str]) -> list[str]:
    text = environ.get("COMMANDLINE_ARGS", "")
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


if __name__ == "__main__":
    with contextlib.suppress(AttributeError, ValueError):
        # a console that cannot print a folder's name must not end the installation
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:], os.environ))
