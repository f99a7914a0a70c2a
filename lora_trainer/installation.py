"""Builds the overlay: pip into a temporary folder, a test import, then a rename to its final name.

Takes an `environment.Overlay` with missing packages; raises SetupError with a hint. A set gets its
name only when complete, so an interrupted or failed installation leaves the previous set usable and
at most a `p<pid>` folder, which the next one deletes. The interpreter's site-packages are not
written to. Called by install.py. Standard library only; pip runs as a subprocess.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.environment import (
    IN_USE,
    LIBRARY_SETTINGS,
    STAMP,
    Overlay,
    Stamp,
    python_tag,
    read_stamp,
)
from lora_trainer.errors import SetupError
from lora_trainer.packages import TORCH, TORCH_DEPENDENCIES, Package, found_versions, same_version

Echo = Callable[[str], None]

INDEX_SECONDS, INDEX_BYTES = 10.0, 2**20
LOCK_TIMEOUT = 3600.0
"""Seconds to wait for another installation of the same set, which may be downloading torch."""


@dataclass(frozen=True)
class TimeLimit:
    """Limits for an installation that a starting WebUI waits for."""

    seconds: float
    """For all pip calls. pip's cache keeps what was downloaded by then."""
    timeout: int = 10
    """pip's --timeout."""
    retries: int = 1


IGNORED_PIP_VARIABLES = re.compile(
    "PIP_(TARGET|PREFIX|ROOT|SRC|PYTHON|PLATFORM|PYTHON_VERSION|IMPLEMENTATION|ABI|CONSTRAINT"
    "|REQUIREMENT|EDITABLE|GROUP|NO_DEPS|UPGRADE|DRY_RUN|REPORT|QUIET|NO_BINARY|ONLY_BINARY"
    "|IGNORE_REQUIRES_PYTHON|LOG)"
)
"""These would redirect the installation or change the meaning of our command."""
PIP_OVERRIDES = {
    "PIP_USER": "0",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PYTHONUTF8": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}

NETWORK_ERRORS = re.compile(
    "ConnectionError|Failed to establish a new connection|NameResolutionError|name resolution"
    "|getaddrinfo failed|gaierror|ConnectTimeout|ReadTimeoutError|timed out|ProxyError|SSLError"
    "|Connection (aborted|reset|refused)|RemoteDisconnected|IncompleteRead|HTTP error (5|403)"
    "|incomplete-download|Name or service not known|nodename nor servname provided"
    "|No address associated with hostname|Failed to resolve|Network is unreachable"
    "|No route to host|Max retries exceeded"
)
DISK_FULL = ("Errno 28", "No space left on device", "WinError 112", "Errno 122", "Disk quota")


def install(
    overlay: Overlay,
    *,
    environ: Mapping[str, str],
    echo: Echo,
    patience: float = LOCK_TIMEOUT,
    free_space: Callable[[Path], int] | None = None,
    time_limit: TimeLimit | None = None,
) -> None:
    """Install the missing packages of `overlay`. Raises SetupError; `find_overlay()` afterwards
    returns the result.

    echo: receives progress lines. patience: seconds to wait for another installation. free_space:
    bytes free at a path, for tests. time_limit: for a starting WebUI; None waits for pip.
    """
    overlay.require_torch()
    try:
        overlay.version_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(overlay.version_folder, error) from error
    with _locked(overlay.version_folder, echo, patience):
        clear_leftovers(overlay)
        if overlay.state == "ready" and overlay.is_checked:
            return
        folder = overlay.folder
        if overlay.state == "ready" and folder is not None:
            echo("Checking the packages with the interpreter's new ones ...")
            _try_imports(folder, overlay, environ)
            stamp = read_stamp(folder)
            if stamp is not None:
                _write_stamp(
                    folder,
                    dataclasses.replace(stamp, checked=(*stamp.checked, overlay.surroundings)),
                )
            return
        _build(overlay, environ, echo, free_space or _free_space, time_limit)
        clear_leftovers(overlay)


def tidy(overlay: Overlay) -> None:
    """Delete leftovers beside a complete set, unless an installation is running."""
    with contextlib.suppress(OSError), files.lock(overlay.version_folder / "lock"):
        clear_leftovers(overlay)


def clear_leftovers(overlay: Overlay) -> None:
    """Delete interrupted installations, and sets that no process uses and no interpreter needs.
    Errors are ignored.
    """
    keep = overlay.folder
    for folder in list(overlay.version_folder.iterdir()):
        if not folder.is_dir() or folder == keep:
            continue
        stamp = read_stamp(folder)
        is_other_interpreters = (
            stamp is not None
            and stamp.interpreter != sys.prefix
            and Path(stamp.interpreter).exists()
        )
        if is_other_interpreters or files.is_locked(folder / IN_USE, shared=True):
            continue
        doomed = (
            folder
            if re.fullmatch(r"p\d+", folder.name)
            else overlay.version_folder / f"p{os.getpid()}"
        )
        with contextlib.suppress(OSError):
            # on Windows this fails, and leaves the set intact, while a process has a file in it
            # open
            os.replace(folder, doomed)
        if doomed.exists():
            shutil.rmtree(doomed, ignore_errors=True)


def pip_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's environment for pip: mirror, proxy, certificates, cache, but no other target."""
    ignored = IGNORED_PIP_VARIABLES.fullmatch
    kept = {name: value for name, value in environ.items() if not ignored(name.upper())}
    return {**kept, **PIP_OVERRIDES}


def pip_command(
    target: Path,
    requirements: Iterable[str],
    *,
    environ: Mapping[str, str],
    constraints: Path | None = None,
) -> list[str]:
    """The command of one pip call into `target`: exactly `requirements`, or with `constraints` also
    their dependencies.

    INDEX_URL is the WebUIs' variable for a mirror, TORCH_INDEX_URL for torch's CUDA builds.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--target",
        str(target),
        "--only-binary=:all:",
        "--no-compile",
        "--no-warn-conflicts",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        # overrides a prefix from pip's configuration, which conflicts with --target
        "--prefix=",
    ]
    command += ["--no-deps"] if constraints is None else ["--constraint", str(constraints)]
    if environ.get("INDEX_URL"):
        command += ["--index-url", environ["INDEX_URL"]]
    if constraints is not None and environ.get("TORCH_INDEX_URL"):
        command += ["--extra-index-url", environ["TORCH_INDEX_URL"]]
    return [*command, *requirements]


def explain(
    output: str, target: Path, is_index: Callable[[str], bool] = lambda name: True
) -> SetupError:
    """pip's output as an error with a hint. is_index: whether a package index, not a login page,
    answers for a package's name.
    """
    if any(sign in output for sign in DISK_FULL):
        return _disk_full(target)
    if "Permission denied" in output or "WinError 5]" in output or "WinError 32]" in output:
        return _cannot_write(target, None)
    if "WinError 206" in output or "Long Path support" in output:
        return SetupError(
            "the path of {target} is too long for Windows",
            target=target,
            hint=(
                "Move the extension or the WebUI to a shorter path, such as C:\\webui, or enable"
                " long paths in Windows."
            ),
        )
    lines = [line.strip() for line in output.splitlines()]
    last = next(
        (line for line in reversed(lines) if line.startswith("ERROR:")),
        output.strip().rpartition("\n")[2],
    )
    if "ResolutionImpossible" in output or "conflicting dependencies" in output:
        return SetupError(
            "pip found no compatible versions: {conflict}",
            conflict=next((line for line in lines if "conflicting dependencies" in line), last),
            python=sys.executable,
            hint=(
                "Constraints of yours (a pip.conf) or an incomplete mirror narrow the choice:"
                ' "{python}" -m pip config list shows them.'
            ),
        )
    network_error = next(filter(NETWORK_ERRORS.search, reversed(lines)), "")
    if network_error:
        return SetupError(
            "the package index cannot be reached: {last}",
            last=network_error[:500],
            hint=(
                "Check the connection, or name a mirror in the environment variable INDEX_URL and a"
                " proxy in HTTPS_PROXY; then start again."
            ),
        )
    unavailable = re.search(r"No matching distribution found for (\S+)", output)
    if unavailable and not is_index(re.split(r"[=<>!~\[; ]", unavailable.group(1))[0]):
        return SetupError(
            "the answer is not from a package index: it is a web page, perhaps the login page "
            "of this network",
            hint=(
                "Open a web page in a browser and log in to the network; or name a mirror in the"
                " environment variable INDEX_URL. Then start again."
            ),
        )
    if unavailable:
        return SetupError(
            "the package index has no wheel of {requirement} for {tag} on {platform}",
            requirement=unavailable.group(1),
            tag=python_tag(),
            platform=sysconfig.get_platform(),
            hint=(
                "Use Python 3.10 to 3.13. Offline, or with an incomplete mirror: name a full one in"
                " INDEX_URL."
            ),
        )
    if "DO NOT MATCH THE HASHES" in output:
        return SetupError(
            "a download is damaged: {last}",
            last=last,
            hint="Start again; if it happens again, use another mirror (INDEX_URL).",
        )
    return SetupError(
        "pip could not install the packages: {last}",
        last=last or "no output",
        hint="The lines above have details.",
    )


def _build(
    overlay: Overlay,
    environ: Mapping[str, str],
    echo: Echo,
    free_space: Callable[[Path], int],
    time_limit: TimeLimit | None,
) -> None:
    """Install the missing packages into a temporary folder, import them, and rename it."""
    if importlib.util.find_spec("pip") is None:
        raise SetupError(
            "this Python has no pip ({python})",
            python=sys.executable,
            hint='Run "{python}" -m ensurepip, or install pip for it as its maker says.',
        )
    needed = sum(package.megabytes for package in overlay.missing)
    if TORCH in overlay.missing:
        needed += sum(package.megabytes for package in TORCH_DEPENDENCIES)
    # archives and unpacked files exist side by side for a while
    needed = needed * 3 // 2 + 50
    free = free_space(overlay.version_folder) // 2**20
    if free < needed:
        raise SetupError(
            "the disk with {folder} has {free} MB free, and {needed} MB are needed",
            folder=overlay.home,
            free=free,
            needed=needed,
            hint=(
                "Free some space, or move the extension's folder to another disk and put a link in"
                " its place."
            ),
        )
    temporary = overlay.version_folder / f"p{os.getpid()}"
    build = temporary / "set"
    try:
        (temporary / "t").mkdir(parents=True)
        echo(
            f"Installing {len(overlay.missing)} packages into {overlay.wanted} (the interpreter's"
            " own packages are not touched) ..."
        )
        _run_pip_for(overlay.missing, build, temporary, environ, echo, time_limit)
        _check_versions(overlay.missing, build)
        echo("Testing them ...")
        _try_imports(build, overlay, environ)
        (build / IN_USE).touch()
        _write_stamp(build, _new_stamp(overlay, build))
        _put_in_place(build, overlay.wanted)
    except OSError as error:
        if error.errno in (28, 122) or getattr(error, "winerror", 0) == 112:
            raise _disk_full(overlay.version_folder) from error
        raise _cannot_write(overlay.version_folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_pip_for(
    missing: tuple[Package, ...],
    build: Path,
    temporary: Path,
    environ: Mapping[str, str],
    echo: Echo,
    time_limit: TimeLimit | None,
) -> None:
    """Install torch with its dependencies first, then the other packages without theirs."""
    end = time.monotonic() + time_limit.seconds if time_limit else None

    def run(command: list[str]) -> None:
        if time_limit:
            command = [
                *command,
                "--timeout",
                str(time_limit.timeout),
                "--retries",
                str(time_limit.retries),
            ]
        _run_pip(command, temporary, environ, echo, end)

    loose = [package for package in missing if package.with_dependencies]
    if loose:
        constraints = temporary / "constraints.txt"
        held = [package.requirement for package in (*missing, *TORCH_DEPENDENCIES)]
        constraints.write_text("\n".join(held) + "\n", encoding="utf-8")
        requirements = [package.requirement for package in loose]
        run(pip_command(build, requirements, environ=environ, constraints=constraints))
    already = found_versions(missing, [str(build)])
    rest = [package.requirement for package in missing if package.key not in already]
    if rest:
        run(pip_command(build, rest, environ=environ))


def _run_pip(
    command: list[str], temporary: Path, environ: Mapping[str, str], echo: Echo, end: float | None
) -> None:
    """Run pip until `end` at most, reporting downloads. Its temporary files stay in `temporary`."""
    variables = pip_environ(environ)
    variables.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary / "t")))
    lines: list[str] = []
    ended_early = threading.Event()

    def stop() -> None:
        ended_early.set()
        pip.kill()

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        cwd=temporary,
        encoding="utf-8",
        errors="replace",
    ) as pip:
        alarm = None if end is None else threading.Timer(max(0.0, end - time.monotonic()), stop)
        if alarm:
            alarm.daemon = True
            alarm.start()
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                lines.append(line)
                if re.match(
                    r"(Collecting|Downloading .* MB\)|ERROR|WARNING: Retrying)", line.strip()
                ):
                    echo("  " + line.strip())
        except BaseException:
            # Ctrl-C: pip must end before its folder is deleted
            pip.kill()
            raise
        finally:
            if alarm:
                alarm.cancel()
    if ended_early.is_set():
        raise SetupError(
            "the packages were not installed in time, so the WebUI starts without them",
            hint="Continue the installation in the tab LoRA Trainer, where it may take longer.",
        )
    if pip.returncode != 0:
        output = "".join(lines)
        raise explain(
            output, temporary.parent, is_index=lambda name: _is_index(output, name, environ)
        )


def _is_index(output: str, name: str, environ: Mapping[str, str]) -> bool:
    """Whether the index pip used is one; a captive portal answers every request with its login
    page.
    """
    printed = re.search(r"^Looking in indexes: (\S+?),?(?:\s|$)", output, re.MULTILINE)
    index = (
        printed.group(1)
        if printed
        else environ.get("INDEX_URL") or environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    )
    if not index.startswith(("http://", "https://")):
        return True
    try:
        with urllib.request.urlopen(
            f"{index.rstrip('/')}/{name}/", timeout=INDEX_SECONDS
        ) as answer:
            page = answer.read(INDEX_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException):
        return True  # not a login page, in any case
    return (
        re.search(r"\.(whl|tar\.gz|zip)\b", page) is not None or "pypi:repository-version" in page
    )


def _check_versions(missing: tuple[Package, ...], build: Path) -> None:
    there = found_versions(missing, [str(build)])
    wrong = [
        package.requirement
        for package in missing
        if not same_version(there.get(package.key, ""), package.version)
    ]
    if wrong:
        raise SetupError(
            "pip ended without an error, but these are not in {build}: {names}",
            hint='"{python}" -m pip config list shows whether pip installs somewhere else.',
            build=build,
            names=", ".join(wrong),
            python=sys.executable,
        )


IMPORT_CHECK = """
import importlib, importlib.util, json, py_compile, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
folders, modules, files = json.loads(sys.argv[1])
sys.path[:1] = folders
for name in modules:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(json.dumps([name, f"{type(error).__name__}: {error}"[:500]]))
        sys.exit(1)
for name in files:
    top, _, rest = name.partition("/")
    spec = importlib.util.find_spec(top)
    places = (spec and spec.submodule_search_locations) or ()
    if not any((Path(place) / rest).is_file() for place in places):
        print(json.dumps([name, "the file is not there"]))
        sys.exit(1)
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.startswith(folders[0]) and path.endswith(".py"):
        py_compile.compile(path, quiet=2)
"""
"""Imports what a worker imports, then compiles it, so that the worker's first start is quick.

argv[1]: [folders, modules, files], the set's folder first. Exits with 1 and [name, reason] on the
last line on failure.
"""


def _try_imports(folder: Path, overlay: Overlay, environ: Mapping[str, str]) -> None:
    modules = [module for package in overlay.packages for module in package.modules]
    data_files = [file for package in overlay.packages for file in package.files]
    folders = [str(path) for path in (folder, overlay.below) if path is not None]
    variables = {**environ, **LIBRARY_SETTINGS, **PIP_OVERRIDES, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_CHECK, json.dumps([folders, modules, data_files])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=variables,
        cwd=folder.parent,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode == 0:
        return
    try:
        name, reason = files.parse_json(result.stdout.strip().rpartition("\n")[2])
    except files.UNREADABLE:
        name = "Python"
        reason = (
            result.stderr.strip().rpartition("\n")[2] or f"it ended with code {result.returncode}"
        )
    raise SetupError(
        "{name} does not work with this Python's packages: {reason}",
        name=name,
        reason=reason,
        hint=(
            'If another extension changed them, restore the WebUI\'s own versions. "{python}" -m'
            " pip check names what does not fit."
        ),
        python=sys.executable,
    )


def _new_stamp(overlay: Overlay, build: Path) -> Stamp:
    return Stamp(
        versions=found_versions((*overlay.packages, *TORCH_DEPENDENCIES), [str(build)]),
        metadata=tuple(sorted(entry.name for entry in build.glob("*.dist-info"))),
        interpreter=sys.prefix,
        platform=sysconfig.get_platform(),
        checked=(overlay.surroundings,),
    )


def _write_stamp(folder: Path, stamp: Stamp) -> None:
    files.write_text(folder / STAMP, json.dumps(dataclasses.asdict(stamp), indent=1))


def _put_in_place(build: Path, wanted: Path) -> None:
    """Rename the finished set, retrying while a virus scanner has its files open (Windows)."""
    if wanted.exists():
        shutil.rmtree(wanted)  # incomplete, else it would not be built
    for attempt in range(20):
        try:
            os.replace(build, wanted)
            break
        except PermissionError:
            if attempt == 19:
                raise
            time.sleep(0.5)
    files.sync_folder(wanted.parent)


@contextlib.contextmanager
def _locked(version_folder: Path, echo: Echo, patience: float) -> Iterator[None]:
    """Hold the installation lock, waiting for another installation. Raises SetupError."""
    lock = version_folder / "lock"
    with contextlib.ExitStack() as stack:
        try:
            if files.is_locked(lock):
                echo("Another installation is running; waiting for it ...")
            stack.enter_context(files.lock(lock, patience))
        except files.Locked as error:
            raise SetupError(
                "another installation of the worker's packages is still running",
                hint="Wait for it, then start again.",
            ) from error
        except OSError as error:
            raise (
                _disk_full(version_folder)
                if files.is_disk_full(error)
                else _cannot_write(version_folder, error)
            ) from error
        yield


def _free_space(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _disk_full(folder: Path) -> SetupError:
    hint = "Free some space (about 500 MB; up to 6 GB if torch is installed too) and start again."
    return SetupError("the disk with {folder} is full", hint=hint, folder=folder)


def _cannot_write(folder: Path, error: OSError | None) -> SetupError:
    reason = f" ({error.strerror})" if error is not None and error.strerror else ""
    return SetupError(
        "{folder} cannot be written{reason}",
        folder=folder,
        reason=reason,
        hint=(
            "Check that the folder belongs to you and that no other program (a running training, a"
            " virus scanner) holds its files."
        ),
    )
