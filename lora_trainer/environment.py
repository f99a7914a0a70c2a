"""The worker's packages: where they are, whether they are complete, and how a process imports them.

They are in an *overlay*, a folder of the extension that only our own processes import from; the
interpreter's site-packages are never written to. An overlay has one folder for each set of
packages:

    <extension>/overlay/cp311/3f2a9c1d04/    a complete set: packages, and stamp.json about them
    <extension>/overlay/cp311/p4711/         being built by process 4711, or left over from it

The required packages depend on the interpreter (its own torch, numpy ... are used where their
version is accepted), and a set's name is a hash of its requirements. So two interpreters can share
one checkout, a new release installs its set beside the one a running worker uses, and nothing is
renamed while in use (which Windows does not allow).

    activate()           puts the overlay and the extension first on sys.path of this process
    worker_command()     and worker_environ(): how a worker is started
    find_overlay()               what is required, and what is installed

Standard library only, and quick: install.py calls it at each start of the WebUI.
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

from lora_trainer import deferred, files, packages
from lora_trainer.errors import SetupError
from lora_trainer.packages import Package, same_version

ROOT = Path(__file__).resolve().parent.parent
"""The extension's folder."""
OVERLAY = ROOT / "overlay"
TEST_OVERLAY = ROOT / "overlay-tests"
CAPTIONER_OVERLAYS = {name: ROOT / f"overlay-{name}" for name in packages.CAPTIONER_PACKAGES}
"""Packages that only one captioner needs, apart from the worker's set."""
CAPTIONER_MODULES = {
    name: wanted[0].modules[0] for name, wanted in packages.CAPTIONER_PACKAGES.items()
}
"""The module that shows whether the interpreter already has a captioner's packages."""
FAMILY_OVERLAYS = {name: ROOT / f"overlay-{name}" for name in packages.FAMILY_PACKAGES}
"""Training libraries for some model families, in place of those of the worker's set."""

NO_WINDOW = 0x08000000 if os.name == "nt" else 0
"""subprocess.CREATE_NO_WINDOW, which exists on Windows only; 0 elsewhere."""
STAMP = "stamp.json"
IN_USE = "in-use"
"""A file in each set, held open (and locked with flock on POSIX) by each process that uses the set.
"""

State = Literal["ready", "outdated", "missing"]

LIBRARY_SETTINGS = {
    # keep transformers from importing TensorFlow or JAX where they are installed
    "USE_TORCH": "1",
    "USE_TF": "0",
    "USE_FLAX": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # OpenMP's threads wait by spinning, GNU's for some milliseconds by default, Intel's for 200:
    # beside another program that computes, the thread that is waited for does not run meanwhile,
    # and a training takes many times as long. So long as waking a thread takes, they still spin
    "GOMP_SPINCOUNT": "1000",
    "KMP_BLOCKTIME": "1",
}
"""Environment variables that libraries read when imported. A value already set is kept."""

UNUSED = ("scipy", "sklearn", "boto3")
"""Packages that diffusers, transformers and accelerate import if they are installed, but that are
not needed here. scipy takes a second at each start of a worker, and fails if built for another
numpy. Hidden by `activate`.
"""

_used_markers: list[IO[bytes]] = []


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """stamp.json of a complete set of packages."""

    versions: Mapping[str, str]
    """Normalized name -> version of each distribution in the folder."""
    metadata: tuple[str, ...]
    """Their .dist-info folders."""
    interpreter: str
    """sys.prefix of the interpreter that built it."""
    platform: str
    """sysconfig.get_platform(): Windows and WSL may share one checkout."""
    checked: tuple[str, ...] = ()
    """`Overlay.surroundings` of the interpreters in which everything was imported successfully."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The packages required by this interpreter: installed ones, missing ones, and the folder with
    the latter.
    """

    home: Path
    """<extension>/overlay, for all interpreters."""
    packages: tuple[Package, ...]
    found: Mapping[str, str]
    """Installed in the interpreter: normalized name -> version."""
    missing: tuple[Package, ...]
    """Not in the interpreter, or in a version that is not accepted."""
    captioner: str = ""
    """The captioner that needs them; empty for the worker's own set."""
    family_packages: str = ""
    """Their name in packages.FAMILY_PACKAGES, for a set that model families need."""
    below: Path | None = None
    """The folder of the worker's own set, which this one is imported before; None: none."""

    @property
    def version_folder(self) -> Path:
        """The folder of this Python version."""
        return self.home / python_tag()

    @property
    def wanted(self) -> Path:
        """The folder of the set of missing packages, whether it exists or not."""
        recipe = [
            python_tag(),
            sysconfig.get_platform(),
            sorted(package.requirement for package in self.missing),
        ]
        return self.version_folder / _digest(recipe)

    @property
    def surroundings(self) -> str:
        """A hash of the interpreter's own packages beside the overlay."""
        return _digest(
            sorted(
                (package.key, self.found.get(package.key, ""))
                for package in self.packages
                if package not in self.missing
            )
        )

    @property
    def folder(self) -> Path | None:
        """The folder to import from: a set with all missing packages in the wanted versions, else
        the newest one with them in any version.
        """
        if not self.missing:
            return None
        needed = {package.key for package in self.missing}
        return self._exact or _newest(
            folder
            for folder in sets(self.version_folder)
            if complete(folder) and _has_packages(folder, needed)
        )

    @property
    def _exact(self) -> Path | None:
        """The wanted set, or one built for this interpreter when it lacked more packages: other
        extensions install some of them later, and then nothing has to be downloaded again.
        """
        if complete(self.wanted):
            return self.wanted
        return _newest(
            folder
            for folder in sets(self.version_folder)
            if complete(folder) and _has_exact(folder, self.missing)
        )

    @property
    def state(self) -> State:
        """ "ready"; "outdated": usable, in other versions; "missing": the worker cannot start."""
        if not self.missing or self._exact:
            return "ready"
        return "outdated" if self.folder else "missing"

    @property
    def is_checked(self) -> bool:
        """Whether the set was imported successfully beside the interpreter's current packages."""
        folder = self.folder
        if folder is None:
            return not self.missing
        stamp = read_stamp(folder)
        return stamp is not None and self.surroundings in stamp.checked

    @property
    def megabytes(self) -> int:
        """Approximate installed size of the missing packages."""
        return sum(package.megabytes for package in self.missing)

    def require_torch(self) -> None:
        """Raise SetupError if these packages need a newer torch: for a set of families, none is
        installed.
        """
        torch = next((one for one in self.missing if one.key == packages.TORCH.key), None)
        if not self.family_packages or torch is None:
            return
        raise SetupError(
            "this kind of model needs torch {least} or newer, and the torch here is {version}",
            hint=(
                "Use a WebUI with a newer torch, such as Forge Neo or reForge; or choose a"
                " checkpoint of another kind."
            ),
            least=torch.at_least,
            version=self.found.get(torch.key, "?"),
        )

    def require(self) -> Overlay:
        """Returns self if the worker can start; else raises SetupError with the command to run."""
        self.require_torch()
        if self.state != "missing":
            return self
        if self.family_packages:
            raise SetupError(
                "this kind of model needs packages that are not installed: {names}",
                hint='In {root} run: "{python}" install.py --packages {set}',
                names=", ".join(package.requirement for package in self.missing),
                set=self.family_packages,
                root=ROOT,
                python=sys.executable,
            )
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
        command: dict[str, Any] = {"root": ROOT, "python": sys.executable}
        if self.wanted.exists():
            raise SetupError(
                "the worker's packages in {folder} are incomplete",
                hint=hint,
                folder=self.wanted,
                **command,
            )
        others = sorted(
            version_folder.name
            for version_folder in _folders(self.home)
            if version_folder != self.version_folder and sets(version_folder)
        )
        if others and not sets(self.version_folder):
            raise SetupError(
                "the worker's packages are installed for {others}, but this is {tag} ({python})",
                hint=hint,
                others=", ".join(others),
                tag=python_tag(),
                **command,
            )
        names = ", ".join(package.name for package in self.missing[:6])
        raise SetupError(
            "the worker's packages are not installed: {names}",
            hint=hint,
            names=names + (" ..." if len(self.missing) > 6 else ""),
            **command,
        )


def find_overlay(
    home: Path = OVERLAY,
    *,
    wanted: Sequence[Package] = packages.WORKER_PACKAGES,
    folders: Sequence[str] | None = None,
) -> Overlay:
    """The state of the packages `wanted`, for an interpreter that imports from `folders` (default:
    sys.path without the extension).
    """
    applying = tuple(package for package in wanted if package.applies())
    found = packages.found_versions(applying, interpreter_folders() if folders is None else folders)
    return Overlay(
        home=home,
        packages=applying,
        found=found,
        missing=packages.missing_packages(applying, found),
    )


def find_tests_overlay() -> Overlay:
    """`find_overlay` for the packages of the tests."""
    return find_overlay(TEST_OVERLAY, wanted=packages.TEST_PACKAGES)


def find_gradio_overlay(host: str) -> Overlay:
    """`find_overlay` for the tests' WebUI, "a1111" or "forge": a complete set, independent of the
    interpreter's.
    """
    return find_overlay(TEST_OVERLAY / host, wanted=packages.WEBUI_PACKAGES[host], folders=())


def find_captioner_overlay(captioner: str) -> Overlay:
    """`find_overlay` for a key of packages.CAPTIONER_PACKAGES."""
    return replace(
        find_overlay(CAPTIONER_OVERLAYS[captioner], wanted=packages.CAPTIONER_PACKAGES[captioner]),
        captioner=captioner,
    )


def find_family_overlay(name: str) -> Overlay:
    """The state of the set `name` of packages.FAMILY_PACKAGES. All of it is in its overlay, but for
    torch: whatever the interpreter has of it would be hidden by the worker's own set.
    """
    own = find_overlay()
    wanted = packages.FAMILY_PACKAGES[name]
    folders = [str(own.folder)] if own.folder else []
    found = packages.found_versions(
        (package for package in wanted if package.at_least is not None),
        [*folders, *interpreter_folders()],
    )
    return Overlay(
        home=FAMILY_OVERLAYS[name],
        packages=wanted,
        found=found,
        missing=packages.missing_packages(wanted, found),
        family_packages=name,
        below=own.folder,
    )


def activate(overlay: Overlay | None = None) -> Overlay:
    """Put the overlay and the extension first on sys.path of this process. Never raises.

    Without an overlay only the extension is added; `activate().require()` raises then. Works under
    an embedded Python, which ignores PYTHONPATH. Call it before the torch stack is imported. The
    overlay of a captioner or a family comes in front of those that are active already.
    """
    overlay = overlay or find_overlay()
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in UNUSED:
        # the value that makes Python raise ModuleNotFoundError
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    folder = overlay.folder
    first = [str(path) for path in (folder, ROOT) if path is not None]
    # Python puts a script's folder on sys.path; our module names must not shadow others
    inside = str(ROOT / "lora_trainer")
    sys.path[:] = first + [
        entry for entry in sys.path if entry not in first and not _is_within(entry, inside)
    ]
    deferred.defer()
    if folder is not None:
        _mark_used(folder)
    return overlay


def show(name: str) -> None:
    """Make a package that `activate` has hidden importable again."""
    if name in sys.modules and sys.modules[name] is None:
        del sys.modules[name]


def is_launched() -> bool:
    """Whether torchrun, or what is like it, has started this process as one of several."""
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")
    return several and all(name in os.environ for name in needed)


def launched_count() -> int | None:
    """How many processes torchrun, or what is like it, has started; None if it has started none."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else None


def is_companion() -> bool:
    """Whether this is one of several processes, and not the first of them."""
    return is_launched() and os.environ["RANK"] != "0"


def worker_command(run_dir: Path) -> list[str]:
    """The command that starts a worker: by file path, without a shell, -m or PYTHONPATH."""
    return [*_entry("__main__.py"), str(run_dir)]


def convert_command() -> list[str]:
    """The command of the image converter, worker/convert.py."""
    return _entry("convert.py")


def rehearsal_command() -> list[str]:
    """The command of the rehearsal of a training on texts, worker/rehearse.py."""
    return _entry("rehearse.py")


def certificate_command() -> list[str]:
    """The command of the certificate of a LoRA file, worker/certify.py."""
    return _entry("certify.py")


def _entry(name: str) -> list[str]:
    if not sys.executable:
        raise SetupError(
            "Python does not say where its program is",
            hint="Start the WebUI with its own start script.",
        )
    return [sys.executable, str(ROOT / "lora_trainer" / "worker" / name)]


def install_command(*arguments: str) -> list[str]:
    """The command that runs install.py and reports failure by its exit code."""
    return [sys.executable, "-u", str(ROOT / "install.py"), "--by-hand", *arguments]


def worker_environ(base: Mapping[str, str], device_id: str | None = None) -> dict[str, str]:
    """The environment of a worker: `base`, UTF-8, the libraries' settings and the host's GPU.

    device_id: the host's --device-id, an index into an inherited CUDA_VISIBLE_DEVICES.
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
    """ "cp311" for CPython 3.11; binary wheels are specific to it."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"


def interpreter_folders() -> list[str]:
    """sys.path without the extension and its overlays."""
    ours = [ROOT / "lora_trainer", ROOT / "tests", OVERLAY, TEST_OVERLAY]
    ours += [*CAPTIONER_OVERLAYS.values(), *FAMILY_OVERLAYS.values()]
    others = (entry for entry in sys.path if entry and Path(entry) != ROOT)
    return [entry for entry in others if not any(_is_within(entry, str(path)) for path in ours)]


def sets(version_folder: Path) -> list[Path]:
    """The complete sets of one Python version."""
    return [folder for folder in _folders(version_folder) if (folder / STAMP).is_file()]


def has_leftovers(overlay: Overlay) -> bool:
    """Whether there are sets other than the one in use, or interrupted installations."""
    used = overlay.folder or overlay.wanted
    return any(folder != used for folder in _folders(overlay.version_folder))


def complete(folder: Path) -> bool:
    """Whether a set has its stamp and the metadata of each package."""
    stamp = read_stamp(folder)
    return stamp is not None and all((folder / name).is_dir() for name in stamp.metadata)


def read_stamp(folder: Path) -> Stamp | None:
    """A set's stamp, or None."""

    def parsed(fields: Any) -> Stamp | None:
        return Stamp(
            versions=dict(fields["versions"]),
            metadata=tuple(fields["metadata"]),
            interpreter=str(fields["interpreter"]),
            platform=str(fields["platform"]),
            checked=tuple(fields["checked"]),
        )

    return files.read_json(folder / STAMP, parsed, None)


def _has_packages(folder: Path, needed: set[str]) -> bool:
    stamp = read_stamp(folder)
    return (
        stamp is not None
        and stamp.platform == sysconfig.get_platform()
        and needed <= set(stamp.versions)
    )


def _has_exact(folder: Path, missing: Iterable[Package]) -> bool:
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


def _mark_used(folder: Path) -> None:
    """Mark the set as used, so that it is not deleted. The operating system releases it when the
    process ends.
    """
    with contextlib.suppress(OSError):
        stream = (folder / IN_USE).open("rb")
        _used_markers.append(stream)
        if os.name != "nt":
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _compose_devices(inherited: str | None, device_id: str) -> str:
    """CUDA_VISIBLE_DEVICES for device `device_id` of the inherited list. An index beyond the list
    means that the host has already applied it.
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
