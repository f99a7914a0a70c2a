"""Tiny wheels and bare interpreters, made on the spot: so that the real installer can be driven
without a network.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

from lora_trainer.packages import Package

ROOT = Path(__file__).resolve().parent.parent


def make_wheel(
    folder: Path, name: str, version: str, files: dict[str, str], requires: Iterable[str] = ()
) -> Path:
    """A pure-Python wheel with the given files (path -> text) and requirements."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + "".join(f"Requires-Dist: {one}\n" for one in requires)
        ),
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def module_files(package: Package) -> dict[str, str]:
    """Empty stand-ins for all that a package is expected to hold; each top-level module says its
    version.
    """
    files: dict[str, str] = dict.fromkeys(package.files, "data")
    for path in package.files:
        files[f"{path.split('/')[0]}/__init__.py"] = ""
    for module in package.modules:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            files["/".join(parts[:depth]) + "/__init__.py"] = f"__version__ = {package.version!r}\n"
    return files


def make_wheels(folder: Path, packages: Iterable[Package]) -> Path:
    """A wheel for each package, in its pinned version. Returns the folder."""
    for package in packages:
        make_wheel(folder, package.name, package.version, module_files(package))
    return folder


QUICK_PIP = """
import os, sys, zipfile
from pathlib import Path

target = Path(sys.argv[sys.argv.index("--target") + 1])
source = Path(os.environ["PIP_FIND_LINKS"])
print("Looking in indexes: none")
for wanted in sys.argv:
    name, is_exact, version = wanted.partition("==")
    if not is_exact:
        continue
    print("Collecting " + wanted)
    wheel = source / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not wheel.is_file():
        sys.exit("ERROR: No matching distribution found for " + wanted)
    zipfile.ZipFile(wheel).extractall(target)
"""


def quick_pip(folder: Path) -> Path:
    """A stand-in for pip in that folder: it unpacks `make_wheel`'s wheels from PIP_FIND_LINKS, and
    says of a missing one what pip says. For what concerns our code around pip, which takes ten
    times as long. Returns the folder.
    """
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(QUICK_PIP, encoding="utf-8")
    return folder


def make_interpreter(folder: Path, *, pip: Path | None) -> Path:
    """A Python with pip and nothing else, made without ensurepip, which some systems leave out.
    Returns its program.

    pip: the package's folder; None: the quick one.
    """
    venv.EnvBuilder(with_pip=False, symlinks=sys.platform != "win32").create(folder)
    if pip is None:
        quick_pip(site_packages(folder))
    else:
        # with its byte code: compiling pip takes longer than what it has to do here
        shutil.copytree(pip, site_packages(folder) / "pip")
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def real_pip() -> Path:
    """The package pip of the interpreter that runs the tests."""
    spec = importlib.util.find_spec("pip")
    assert spec is not None and spec.origin is not None, "the tests of the installer need pip"
    return Path(spec.origin).parent


def site_packages(folder: Path) -> Path:
    if sys.platform == "win32":
        return folder / "Lib" / "site-packages"
    return (
        folder
        / "lib"
        / f"python{sys.version_info.major}.{sys.version_info.minor}"
        / "site-packages"
    )


def copy_extension(target: Path) -> Path:
    """The extension as a user has it, without overlays: what the installer and the environment
    need.
    """
    target.mkdir(parents=True)
    shutil.copy(ROOT / "install.py", target)
    shutil.copytree(
        ROOT / "lora_trainer", target / "lora_trainer", ignore=shutil.ignore_patterns("__pycache__")
    )
    return target


def unpack(wheel: Path, folder: Path) -> None:
    """Install a wheel the way it lies in site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below: path -> (size, time of change), to compare before and after."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
