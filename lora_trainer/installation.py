"""Builds the overlay: pip into a folder beside, a trial import, and only then its real name.

Comes in: an `environment.Overlay` that lacks something, and the environment variables. Goes out:
one that is ready, or a SetupError whose hint says what to do. Nothing half-done is ever used: a set
has its name only when it is complete, so an interrupted, offline or disk-full installation leaves
the previous set at work and at most a `p<pid>` folder, which the next one clears away.

The interpreter's site-packages are not written to; neither pip nor the trial import leave byte code
there. Called by install.py (at each start of a host, after `environment.look` said that there is
something to do). Standard library only; pip runs as a process of its own.
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

Say = Callable[[str], None]

INDEX_SECONDS, INDEX_BYTES = 10.0, 2**20
PATIENCE = 3600.0
"""Seconds to wait for another installation of the same: torch may come over a slow line."""


@dataclass(frozen=True)
class Haste:
    """How long somebody who waits for the installation can wait at all."""

    seconds: float
    """For all that pip does. What has arrived by then is in pip's cache the next time."""
    silence: int = 10
    """pip's --timeout: seconds without a word from the index."""
    retries: int = 1


NOT_FOR_US = (
    # where and for whom the user's own pip installs, and what else would change the meaning of our
    # command
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_SRC",
    "PIP_PYTHON",
    "PIP_PLATFORM",
    "PIP_PYTHON_VERSION",
    "PIP_IMPLEMENTATION",
    "PIP_ABI",
    "PIP_CONSTRAINT",
    "PIP_REQUIREMENT",
    "PIP_EDITABLE",
    "PIP_GROUP",
    "PIP_NO_DEPS",
    "PIP_UPGRADE",
    "PIP_DRY_RUN",
    "PIP_REPORT",
    "PIP_QUIET",
    "PIP_NO_BINARY",
    "PIP_ONLY_BINARY",
    "PIP_IGNORE_REQUIRES_PYTHON",
    "PIP_LOG",
)
INSTEAD = {
    "PIP_USER": "0",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PYTHONUTF8": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}

NETWORK_TROUBLE = (
    "NewConnectionError",
    "Failed to establish a new connection",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "getaddrinfo failed",
    "ConnectTimeout",
    "Read timed out",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "Connection aborted",
    "Connection reset",
    "RemoteDisconnected",
    "IncompleteRead",
    "HTTP error 5",
    "HTTP error 403",
    "incomplete-download",
    "Name or service not known",
    "nodename nor servname provided",
    "No address associated with hostname",
    "Failed to resolve",
    "gaierror",
    "Network is unreachable",
    "No route to host",
    "Max retries exceeded",
    "Connection refused",
    "ConnectionError",
    "timed out",
)
DISK_FULL = (
    "Errno 28",
    "No space left on device",
    "WinError 112",
    "Errno 122",
    "Disk quota exceeded",
)


def install(
    overlay: Overlay,
    *,
    environ: Mapping[str, str],
    say: Say,
    patience: float = PATIENCE,
    free_space: Callable[[Path], int] | None = None,
    haste: Haste | None = None,
) -> None:
    """Make `overlay` ready, or raise SetupError; `look()` afterwards sees the result.

    say: takes one line of progress. patience: seconds to wait for another installation of the same.
    free_space: bytes free at a path (default: asks the system). haste: for a WebUI that starts;
    else it may take as long as it takes.
    """
    try:
        overlay.shelf.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(overlay.shelf, error) from error
    with _only_one(overlay.shelf, say, patience):
        clear_leftovers(overlay)
        if overlay.state == "ready" and overlay.is_checked:
            return
        folder = overlay.folder
        if overlay.state == "ready" and folder is not None:
            say("Checking the packages beside the interpreter's new ones ...")
            _try_imports(folder, overlay.packages, environ)
            stamp = read_stamp(folder)
            if stamp is not None:
                _write_stamp(
                    folder,
                    dataclasses.replace(stamp, checked=(*stamp.checked, overlay.surroundings)),
                )
            return
        _build(overlay, environ, say, free_space or _free_space, haste)
        clear_leftovers(overlay)


def tidy(overlay: Overlay) -> None:
    """Clear leftovers beside a set that is ready, unless an installation is at work there."""
    with contextlib.suppress(OSError), files.lock(overlay.shelf / "lock"):
        clear_leftovers(overlay)


def clear_leftovers(overlay: Overlay) -> None:
    """Delete what interrupted installations left, and sets that nobody needs any more and no
    process holds. What resists stays for the next time.
    """
    keep = overlay.folder
    for folder in list(overlay.shelf.iterdir()):
        if not folder.is_dir() or folder == keep:
            continue
        stamp = read_stamp(folder)
        is_other_interpreters = (
            stamp is not None
            and stamp.interpreter != sys.prefix
            and Path(stamp.interpreter).exists()
        )
        if is_other_interpreters or files.is_locked(folder / IN_USE):
            continue
        doomed = folder if re.fullmatch(r"p\d+", folder.name) else overlay.shelf / f"p{os.getpid()}"
        with contextlib.suppress(OSError):
            # on Windows, renaming fails while a process has a file of it open: then it stays whole
            os.replace(folder, doomed)
        if doomed.exists():
            shutil.rmtree(doomed, ignore_errors=True)


def pip_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's environment for pip: mirror, proxy, certificates and cache stay; what would lead
    it elsewhere does not.
    """
    kept = {name: value for name, value in environ.items() if name.upper() not in NOT_FOR_US}
    return {**kept, **INSTEAD}


def pip_command(
    target: Path,
    requirements: Iterable[str],
    *,
    environ: Mapping[str, str],
    constraints: Path | None = None,
) -> list[str]:
    """The argument list for one pip call into `target`. Without `constraints`, exactly the given
    requirements; with, what they depend on as well.

    INDEX_URL is the hosts' variable for a mirror, TORCH_INDEX_URL for the one with torch's CUDA
    builds; PIP_INDEX_URL and the like pip reads itself.
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
        # empty: switches off what a configuration file may say, which pip refuses to combine with
        # --target
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
    """What pip's output means, as a sentence and a hint. `is_index`: whether what answered for a
    package's name is an index at all.
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
    last = (
        next(
            (line.strip() for line in reversed(output.splitlines()) if line.startswith("ERROR:")),
            "",
        )
        or output.strip().rpartition("\n")[2]
    )
    if "ResolutionImpossible" in output or "conflicting dependencies" in output:
        conflict = next(
            (line.strip() for line in output.splitlines() if "conflicting dependencies" in line),
            last,
        )
        return SetupError(
            "pip finds no set of versions that fit together: {conflict}",
            conflict=conflict,
            python=sys.executable,
            hint=(
                "Constraints of yours (a pip.conf) or an incomplete mirror narrow the choice:"
                ' "{python}" -m pip config list shows them.'
            ),
        )
    trouble = next(
        (
            line.strip()
            for line in reversed(output.splitlines())
            if any(sign in line for sign in NETWORK_TROUBLE)
        ),
        "",
    )
    if trouble:
        return SetupError(
            "the package index cannot be reached: {last}",
            last=trouble[:500],
            hint=(
                "Check the connection, or name a mirror in the environment variable INDEX_URL and a"
                " proxy in HTTPS_PROXY; then start again."
            ),
        )
    unavailable = re.search(r"No matching distribution found for (\S+)", output)
    if unavailable and not is_index(re.split(r"[=<>!~\[; ]", unavailable.group(1))[0]):
        return SetupError(
            "what answers is no package index, but a web page: the login page of this network,"
            " perhaps",
            hint=(
                "Open a web page in a browser and log in to the network; or name a mirror in the"
                " environment variable INDEX_URL. Then start again."
            ),
        )
    if unavailable:
        return SetupError(
            "the package index has no ready-made {requirement} for {tag} on {platform}",
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
            "a download arrived damaged: {last}",
            last=last,
            hint="Start again; if it happens again, use another mirror (INDEX_URL).",
        )
    return SetupError(
        "pip could not install the packages: {last}",
        last=last or "it said nothing",
        hint="The lines above tell more.",
    )


def _build(
    overlay: Overlay,
    environ: Mapping[str, str],
    say: Say,
    free_space: Callable[[Path], int],
    haste: Haste | None,
) -> None:
    """Install what is missing beside, try it, and give it its name."""
    if importlib.util.find_spec("pip") is None:
        raise SetupError(
            "this Python has no pip ({python})",
            python=sys.executable,
            hint='Run "{python}" -m ensurepip, or install pip for it as its maker says.',
        )
    needed = sum(package.megabytes for package in overlay.missing)
    if TORCH in overlay.missing:
        needed += sum(package.megabytes for package in TORCH_DEPENDENCIES)
    # the archives and their contents are on the disk together for a while
    needed = needed * 3 // 2 + 50
    free = free_space(overlay.shelf) // 2**20
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
    workshop = overlay.shelf / f"p{os.getpid()}"
    build = workshop / "set"
    try:
        (workshop / "t").mkdir(parents=True)
        say(
            f"Installing {len(overlay.missing)} packages into {overlay.wanted} (the interpreter's"
            " own packages are not touched) ..."
        )
        _run_pip_for(overlay.missing, build, workshop, environ, say, haste)
        _check_versions(overlay.missing, build)
        say("Trying them out ...")
        _try_imports(build, overlay.packages, environ)
        (build / IN_USE).touch()
        _write_stamp(build, _new_stamp(overlay, build))
        _put_in_place(build, overlay.wanted)
    except OSError as error:
        if error.errno in (28, 122) or getattr(error, "winerror", 0) == 112:
            raise _disk_full(overlay.shelf) from error
        raise _cannot_write(overlay.shelf, error) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _run_pip_for(
    missing: tuple[Package, ...],
    build: Path,
    workshop: Path,
    environ: Mapping[str, str],
    say: Say,
    haste: Haste | None,
) -> None:
    """First what pip completes with its dependencies (torch), then the rest, each exactly as
    named.
    """
    end = time.monotonic() + haste.seconds if haste else None

    def run(command: list[str]) -> None:
        if haste:
            command = [*command, "--timeout", str(haste.silence), "--retries", str(haste.retries)]
        _run_pip(command, workshop, environ, say, end)

    loose = [package for package in missing if package.with_dependencies]
    if loose:
        constraints = workshop / "constraints.txt"
        held = [package.requirement for package in (*missing, *TORCH_DEPENDENCIES)]
        constraints.write_text("\n".join(held) + "\n", encoding="utf-8")
        run(
            pip_command(
                build,
                [package.requirement for package in loose],
                environ=environ,
                constraints=constraints,
            )
        )
    already = found_versions(missing, [str(build)])
    rest = [package.requirement for package in missing if package.key not in already]
    if rest:
        run(pip_command(build, rest, environ=environ))


def _run_pip(
    command: list[str], workshop: Path, environ: Mapping[str, str], say: Say, end: float | None
) -> None:
    """Run pip, telling what it fetches, until `end` at the latest. Its temporary files stay in the
    workshop, and are cleared away with it.
    """
    temporary = str(workshop / "t")
    variables = {**pip_environ(environ), "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary}
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
        cwd=workshop,
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
                    say("  " + line.strip())
        except BaseException:
            # Ctrl-C: pip must be gone before its folder is deleted
            pip.kill()
            raise
        finally:
            if alarm:
                alarm.cancel()
    if ended_early.is_set():
        raise SetupError(
            "the packages were not there in time, and the WebUI starts without them",
            hint="The tab LoRA Trainer offers to go on: there it may take longer.",
        )
    if pip.returncode != 0:
        output = "".join(lines)
        raise explain(
            output, workshop.parent, is_index=lambda name: _is_index(output, name, environ)
        )


def _is_index(output: str, name: str, environ: Mapping[str, str]) -> bool:
    """Whether the index that pip looked into answers as one. The login page of a hotel or a company
    answers everything with itself.
    """
    told = re.search(r"^Looking in indexes: (\S+?),?(?:\s|$)", output, re.MULTILINE)
    index = (
        told.group(1)
        if told
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
        return True  # whatever it is, it is no page in place of an index
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
        names = ", ".join(wrong)
        hint = '"{python}" -m pip config list shows whether pip was told to install elsewhere.'
        raise SetupError(
            "pip ended well, but these are not in {build}: {names}",
            hint=hint,
            build=build,
            names=names,
            python=sys.executable,
        )


TRIAL = """
import importlib, importlib.util, json, py_compile, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
folder, modules, files = json.loads(sys.argv[1])
sys.path[:1] = [folder]
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
    if path.startswith(folder) and path.endswith(".py"):
        py_compile.compile(path, quiet=2)
"""
"""Imports what the worker will, as the worker will; and compiles what was imported, so that the
worker's first start is quick.

argv[1]: [folder, modules, files]. Ends with 1 and [name, reason] on the last line if something does
not work.
"""


def _try_imports(folder: Path, wanted: tuple[Package, ...], environ: Mapping[str, str]) -> None:
    modules = [module for package in wanted for module in package.modules]
    data_files = [file for package in wanted for file in package.files]
    variables = {**environ, **LIBRARY_SETTINGS, **INSTEAD, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", TRIAL, json.dumps([str(folder), modules, data_files])],
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
    metadata = tuple(
        sorted(entry.name for entry in build.iterdir() if entry.name.endswith(".dist-info"))
    )
    there = found_versions((*overlay.packages, *TORCH_DEPENDENCIES), [str(build)])
    return Stamp(
        versions=there,
        metadata=metadata,
        interpreter=sys.prefix,
        platform=sysconfig.get_platform(),
        checked=(overlay.surroundings,),
    )


def _write_stamp(folder: Path, stamp: Stamp) -> None:
    files.write_text(folder / STAMP, json.dumps(dataclasses.asdict(stamp), indent=1))


def _put_in_place(build: Path, wanted: Path) -> None:
    """Give the finished set its name. A virus scanner may hold its files for a moment: Windows then
    refuses, and a second later does not.
    """
    if wanted.exists():
        shutil.rmtree(wanted)  # it was incomplete, or we would not be here
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
def _only_one(shelf: Path, say: Say, patience: float) -> Iterator[None]:
    """Wait for the other installation, if there is one. Its lock goes with its process, so none is
    ever stale.
    """
    lock = shelf / "lock"
    with contextlib.ExitStack() as stack:
        try:
            if files.is_locked(lock):
                say("Another installation is running; waiting for it ...")
            stack.enter_context(files.lock(lock, patience))
        except files.Locked as error:
            raise SetupError(
                "another installation of the worker's packages is still running",
                hint="Wait for it, then start again.",
            ) from error
        except OSError as error:
            raise (
                _disk_full(shelf) if files.is_disk_full(error) else _cannot_write(shelf, error)
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
