"""The worker's packages: where they are, whether they are complete, and how a process comes to use
them.

They live in an *overlay*, a folder inside the extension that only our own processes import from;
the interpreter's own site-packages are never written to. An overlay holds one folder for each set
of packages that was ever needed:

    <extension>/overlay/cp311/3f2a9c1d04/             complete, or it would not have this name:
                                                      packages, and stamp.json about them
    <extension>/overlay/cp311/p4711/                  being built by process 4711, or left over from
                                                      it

What is needed depends on the interpreter (it keeps its own torch, numpy, ... in a usable version),
and the folder's name on what is needed. So two interpreters can share one checkout, a new release
finds its new set beside the old one that a running worker still uses, and nothing has to be renamed
while it is in use (Windows forbids it).

    activate()           in our own processes: the overlay and the extension come first on sys.path
    worker_command()     and worker_environ(): how a worker is started; convert_command(): the
                         converter of pictures
    look()               what is needed, what is there

Called by the worker's entry file, the command line, the tests, the tab and `installation`. Standard
library only, and quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from lora_trainer import files, packages
from lora_trainer.errors import SetupError
from lora_trainer.packages import Package, same_version

ROOT = Path(__file__).resolve().parent.parent
"""The extension's folder."""
OVERLAY = ROOT / "overlay"
TEST_OVERLAY = ROOT / "overlay-tests"
CAPTIONER_OVERLAYS = {name: ROOT / f"overlay-{name}" for name in packages.CAPTIONER_PACKAGES}
"""For what only one captioner needs: nobody else downloads it, and the worker's own set stays as it
is.
"""
CAPTIONER_MODULES = {
    name: wanted[0].modules[0] for name, wanted in packages.CAPTIONER_PACKAGES.items()
}
"""What the captioner imports of it: an interpreter that has it needs no overlay."""

NO_WINDOW = 0x08000000 if os.name == "nt" else 0
"""subprocess.CREATE_NO_WINDOW: on Windows, a console program would open one. As a number, because
the WebUI waits for install.py at each start.
"""
STAMP = "stamp.json"
IN_USE = "in-use"
"""A file in each set; a process that uses the set holds it open (and locked, where the system
shares locks).
"""

State = Literal["ready", "outdated", "missing"]

LIBRARY_SETTINGS = {
    # a host may have TensorFlow or JAX installed for something else; importing them costs seconds
    # and memory, if it works at all
    "USE_TORCH": "1",
    "USE_TF": "0",
    "USE_FLAX": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What the libraries read from the environment when they are first imported. A value that is
already set stays.
"""

UNUSED = ("scipy", "sklearn", "boto3")
"""Packages that diffusers, transformers and accelerate import when they find them, for what is not
done here. scipy alone takes a second of a worker's start, and one that was built for another numpy
ends it.
"""

_held: list[IO[bytes]] = []


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a finished set of packages says about itself."""

    versions: Mapping[str, str]
    """Normal name -> version, for each distribution in the folder."""
    metadata: tuple[str, ...]
    """Their .dist-info folders."""
    interpreter: str
    """sys.prefix of the interpreter it was built by."""
    platform: str
    """sysconfig.get_platform(): one checkout may serve Windows and its Linux subsystem."""
    checked: tuple[str, ...] = ()
    """For which interpreters' own packages (`Overlay.surroundings`) everything was imported once,
    successfully.
    """


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The packages for this interpreter: what it has itself, what it lacks, and the folder that
    holds what it lacks.
    """

    home: Path
    """<extension>/overlay, for all interpreters."""
    packages: tuple[Package, ...]
    found: Mapping[str, str]
    """The interpreter's own: normal name -> version."""
    missing: tuple[Package, ...]
    """What it lacks, or has in a version that does not do."""
    captioner: str = ""
    """The captioner that needs it, if it is not for all of the worker."""

    @property
    def shelf(self) -> Path:
        """The folder of this Python version."""
        return self.home / python_tag()

    @property
    def wanted(self) -> Path:
        """Where the missing packages belong, whether they are there or not."""
        recipe = [
            python_tag(),
            sysconfig.get_platform(),
            sorted(package.requirement for package in self.missing),
        ]
        return self.shelf / _digest(recipe)

    @property
    def surroundings(self) -> str:
        """A digest of the interpreter's own packages that the overlay works with: another torch is
        another one.
        """
        return _digest(
            sorted(
                (package.key, self.found.get(package.key, ""))
                for package in self.packages
                if package not in self.missing
            )
        )

    @property
    def folder(self) -> Path | None:
        """The folder to import from: one that has everything missing in the versions wanted, else
        the newest that has it in some version.
        """
        if not self.missing:
            return None
        needed = {package.key for package in self.missing}
        return self._exact or _newest(
            folder
            for folder in sets(self.shelf)
            if complete(folder) and _can_stand_in(folder, needed)
        )

    @property
    def _exact(self) -> Path | None:
        """The wanted set, or one that was built for this interpreter while it lacked more: other
        extensions give it packages, and what is ours is not fetched again for that.
        """
        if complete(self.wanted):
            return self.wanted
        return _newest(
            folder
            for folder in sets(self.shelf)
            if complete(folder) and _holds(folder, self.missing)
        )

    @property
    def state(self) -> State:
        """ready; outdated: works, in other versions than wanted; missing: the worker cannot
        start.
        """
        if not self.missing or self._exact:
            return "ready"
        return "outdated" if self.folder else "missing"

    @property
    def is_checked(self) -> bool:
        """Whether the set was once imported successfully beside the packages that the interpreter
        has now.
        """
        folder = self.folder
        if folder is None:
            return not self.missing
        stamp = read_stamp(folder)
        return stamp is not None and self.surroundings in stamp.checked

    def require(self) -> Overlay:
        """Itself, if the worker can start; else a SetupError that says how to get there."""
        if self.state != "missing":
            return self
        if self.captioner:
            raise SetupError(
                "the captioner {captioner} needs packages that are not installed: {names}",
                hint='In {root} run: "{python}" install.py --captioner {captioner}',
                captioner=self.captioner,
                names=", ".join(package.name for package in self.missing),
                root=ROOT,
                python=sys.executable,
            )
        hint = 'In {root} run: "{python}" install.py'
        if self.wanted.exists():
            raise SetupError(
                "the worker's packages in {folder} are incomplete",
                hint=hint,
                folder=self.wanted,
                root=ROOT,
                python=sys.executable,
            )
        others = sorted(
            shelf.name for shelf in _folders(self.home) if shelf != self.shelf and sets(shelf)
        )
        if others and not sets(self.shelf):
            raise SetupError(
                "the worker's packages are installed for {others}, but this is {tag} ({python})",
                hint=hint,
                others=", ".join(others),
                tag=python_tag(),
                python=sys.executable,
                root=ROOT,
            )
        names = ", ".join(package.name for package in self.missing[:6]) + (
            " ..." if len(self.missing) > 6 else ""
        )
        raise SetupError(
            "the worker's packages are not installed: {names}",
            hint=hint,
            names=names,
            root=ROOT,
            python=sys.executable,
        )


def look(
    home: Path = OVERLAY,
    *,
    wanted: Sequence[Package] = packages.WORKER_PACKAGES,
    folders: Sequence[str] | None = None,
) -> Overlay:
    """What this interpreter has and lacks, judged by `folders` (default: everything it imports
    from, but for the extension itself).
    """
    applying = tuple(package for package in wanted if package.applies())
    found = packages.found_versions(applying, interpreter_folders() if folders is None else folders)
    return Overlay(
        home=home,
        packages=applying,
        found=found,
        missing=packages.missing_packages(applying, found),
    )


def look_at_tests() -> Overlay:
    """The same for the tools that the tests need."""
    return look(TEST_OVERLAY, wanted=packages.TEST_PACKAGES)


def look_at_gradio(host: str) -> Overlay:
    """The same for the WebUI that the tests play, "a1111" or "forge": always complete in itself,
    whatever the interpreter has.
    """
    return look(TEST_OVERLAY / host, wanted=packages.WEBUI_PACKAGES[host], folders=())


def look_at_captioner(captioner: str) -> Overlay:
    """The same for what one captioner needs: a key of packages.CAPTIONER_PACKAGES."""
    return replace(
        look(CAPTIONER_OVERLAYS[captioner], wanted=packages.CAPTIONER_PACKAGES[captioner]),
        captioner=captioner,
    )


def activate(overlay: Overlay | None = None) -> Overlay:
    """Put the overlay and the extension first on sys.path, for this process.

    Never fails: without an overlay only the extension is added, and `activate().require()` says how
    to get one. Works under an embedded Python, which ignores PYTHONPATH and the working directory.
    Call it before anything of the torch stack is imported.
    """
    overlay = overlay or look()
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in UNUSED:
        # Python's own way to say that a module cannot be had
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    folder = overlay.folder
    first = [str(path) for path in (folder, ROOT) if path is not None]
    # a script's own folder comes with the script: its modules must not hide the standard library's
    inside = str(ROOT / "lora_trainer")
    sys.path[:] = first + [
        entry for entry in sys.path if entry not in first and not _is_within(entry, inside)
    ]
    if folder is not None:
        _hold(folder)
    return overlay


def worker_command(run_dir: Path) -> list[str]:
    """The argument list that starts a worker: interpreter, entry file by its path, run folder. No
    shell, no -m, no PYTHONPATH needed.
    """
    return [*_entry("__main__.py"), str(run_dir)]


def convert_command() -> list[str]:
    """How pictures are converted in a process that has the worker's packages: see
    worker/convert.py.
    """
    return _entry("convert.py")


def _entry(name: str) -> list[str]:
    if not sys.executable:
        raise SetupError(
            "Python does not say where its program is",
            hint="Start the WebUI with its own start script.",
        )
    return [sys.executable, str(ROOT / "lora_trainer" / "worker" / name)]


def install_command(*arguments: str) -> list[str]:
    """How install.py is run as a process of its own: it says line by line what it does, and a
    failure by its exit code.
    """
    return [sys.executable, "-u", str(ROOT / "install.py"), "--by-hand", *arguments]


def worker_environ(base: Mapping[str, str], device_id: str | None = None) -> dict[str, str]:
    """The environment for a worker: `base`, UTF-8 throughout, the libraries' settings, and the GPU
    that the host was told to use.

    device_id: the host's --device-id. An inherited CUDA_VISIBLE_DEVICES renumbers the cards, so the
    id is looked up in it.
    """
    environ = {
        **LIBRARY_SETTINGS,
        **base,
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
    }
    if device_id is not None and device_id.strip():
        environ["CUDA_VISIBLE_DEVICES"] = _compose_devices(
            base.get("CUDA_VISIBLE_DEVICES"), device_id.strip()
        )
    return environ


def python_tag() -> str:
    """cp311 for CPython 3.11: binary packages fit one such tag."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"


def interpreter_folders() -> list[str]:
    """Where this interpreter imports from by itself: sys.path without the extension and its
    overlays.
    """
    ours = [
        ROOT / "lora_trainer",
        ROOT / "tests",
        OVERLAY,
        TEST_OVERLAY,
        *CAPTIONER_OVERLAYS.values(),
    ]
    return [
        entry
        for entry in sys.path
        if entry
        and Path(entry) != ROOT
        and not any(_is_within(entry, str(folder)) for folder in ours)
    ]


def sets(shelf: Path) -> list[Path]:
    """The finished sets of one Python version."""
    return [folder for folder in _folders(shelf) if (folder / STAMP).is_file()]


def has_leftovers(overlay: Overlay) -> bool:
    """Whether something beside the set in use lies on the shelf: another interpreter's set, an
    older one, an interrupted installation.
    """
    used = overlay.folder or overlay.wanted
    return any(folder != used for folder in _folders(overlay.shelf))


def complete(folder: Path) -> bool:
    """Whether a set is finished and each of its packages still has its metadata."""
    stamp = read_stamp(folder)
    return stamp is not None and all((folder / name).is_dir() for name in stamp.metadata)


def read_stamp(folder: Path) -> Stamp | None:
    """What the set says about itself; None where there is no readable stamp."""

    def told(fields: Any) -> Stamp | None:
        return Stamp(
            versions=dict(fields["versions"]),
            metadata=tuple(fields["metadata"]),
            interpreter=str(fields["interpreter"]),
            platform=str(fields["platform"]),
            checked=tuple(fields["checked"]),
        )

    return files.read_json(folder / STAMP, told, None)


def _can_stand_in(folder: Path, needed: set[str]) -> bool:
    stamp = read_stamp(folder)
    return (
        stamp is not None
        and stamp.platform == sysconfig.get_platform()
        and needed <= set(stamp.versions)
    )


def _holds(folder: Path, missing: Iterable[Package]) -> bool:
    """Whether the set was built for this interpreter and has all of these in exactly our versions.

    A torch of its own is used only where the interpreter's is missing: it would hide one that was
    built for the graphics card.
    """
    stamp = read_stamp(folder)
    if stamp is None or stamp.platform != sysconfig.get_platform():
        return False
    wanted = {package.key: package.version for package in missing}
    return (
        stamp.interpreter == sys.prefix
        and all(
            same_version(stamp.versions.get(key, ""), version) for key, version in wanted.items()
        )
        and (packages.TORCH.key in wanted or packages.TORCH.key not in stamp.versions)
    )


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def _hold(folder: Path) -> None:
    """Keep the set from being cleaned away under this process; the system lets go when the process
    ends, however it ends.
    """
    with contextlib.suppress(OSError):
        stream = (folder / IN_USE).open("rb")
        _held.append(stream)
        if os.name != "nt":
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _compose_devices(inherited: str | None, device_id: str) -> str:
    """`inherited` lists the cards this process may see; `device_id` counts in that list. A number
    beyond it was already applied by the host.
    """
    if inherited is None or not device_id.isdigit():
        return device_id if inherited is None else inherited
    cards = [card.strip() for card in inherited.split(",") if card.strip()]
    return cards[int(device_id)] if int(device_id) < len(cards) else inherited


def _folders(parent: Path) -> list[Path]:
    try:
        return [entry for entry in parent.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _is_within(entry: str, folder: str) -> bool:
    entry = os.path.normcase(entry)
    folder = os.path.normcase(folder)
    return entry == folder or entry.startswith(folder + os.sep)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:10]
