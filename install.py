"""Installs the worker's packages into a folder of this extension; the interpreter's own packages
stay as they are.

    python install.py             what the worker needs
    python install.py --tests     and the tools for `python -m tests`: ruff, mypy, pytest, the
                                  WebUIs' gradio, prettier, eslint and tsc where there is npm, and a
                                  browser if there is none
    python install.py --captioner wd      and onnxruntime, which only the WD taggers need

The WebUI runs this file, without arguments, at every start: then a failure is told and never stops
the WebUI. Run by hand, a failure ends with code 1. When there is nothing to do it takes a fraction
of a second and imports neither torch nor pip.

Environment: INDEX_URL (a mirror, as for the WebUI), TORCH_INDEX_URL (where CUDA builds of torch
are, if torch is missing too), and all that pip itself reads, such as PIP_INDEX_URL and HTTPS_PROXY.
With --skip-install (here, or in the WebUI's COMMANDLINE_ARGS) nothing is installed.
"""

# An older Python 3 has to get as far as the sentence below: nothing in this file may be syntax that
# 3.6 does not know.
import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

OLDEST = (3, 10)
TOO_NEW_FOR_WEBUIS = (3, 12)
"""From this version on the older of the WebUIs' two gradios does not work: it imports distutils."""
HERE = Path(__file__).absolute()


def is_run_by_a_host(environ: "Mapping[str, str]", arguments: "Sequence[str]") -> bool:
    """A WebUI starts its extensions' installers without arguments and with its own folder on
    PYTHONPATH.
    """
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
from lora_trainer.packages import CAPTIONER_PACKAGES, TORCH, WEBUI_PACKAGES  # noqa: E402

HOST_PATIENCE = 60.0
"""Seconds a starting WebUI waits for another one's installation."""
HOST_SECONDS = 300.0
"""Seconds a starting WebUI waits for its own: without the packages it starts all the same, and the
tab offers to go on.
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
        overlay = environment.look()
        if by_host:
            _refuse_to_replace_torch(overlay)
        _make_ready(overlay, environ, by_host)
        for captioner in asked.captioner:
            _make_ready(environment.look_at_captioner(captioner), environ, by_host)
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
    parser.add_argument("--skip-install", action="store_true", help="install nothing")
    parser.add_argument(
        "--by-hand",
        action="store_true",
        help="report failure by the exit code, even if a WebUI's folder is on PYTHONPATH",
    )
    return parser


def _make_ready(overlay: environment.Overlay, environ: Mapping[str, str], by_host: bool) -> None:
    """Install what is missing; tell of it only if something was done, or a person asked."""
    is_ready = overlay.state == "ready" and overlay.is_checked
    if not is_ready or environment.has_leftovers(overlay):
        from lora_trainer import installation

        if is_ready:
            installation.tidy(overlay)
        else:
            patience, haste = (
                (HOST_PATIENCE, installation.Haste(HOST_SECONDS))
                if by_host
                else (installation.PATIENCE, None)
            )
            installation.install(
                overlay,
                environ=environ,
                say=lambda line: print(line, flush=True),
                patience=patience,
                haste=haste,
            )
    if not (is_ready and by_host):
        print(_summary(overlay), flush=True)


def _make_ready_for_tests(environ: "Mapping[str, str]") -> None:
    """The tools, the WebUIs' gradio that the tab is tested on, a browser to look at it, and what
    looks at its JavaScript.
    """
    _make_ready(environment.look_at_tests(), environ, by_host=False)
    if sys.version_info < TOO_NEW_FOR_WEBUIS:
        for host in WEBUI_PACKAGES:
            _make_ready(environment.look_at_gradio(host), environ, by_host=False)
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
    """A WebUI whose torch is too old for us is not given a second one of several gigabytes
    unasked.
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
        # a console that cannot show a folder's name must not end the installation
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:], os.environ))
