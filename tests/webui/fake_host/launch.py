"""A small WebUI for the tests: what an extension meets on AUTOMATIC1111 or on Forge, without torch
and without a model.

    python tests/webui/fake_host/launch.py --data-dir FOLDER --port 7999 --flavour a1111 python
    tests/webui/fake_host/launch.py --data-dir FOLDER --port 7999 --flavour forge --gradio-auth
    me:secret

It runs on the real gradio of that host (a1111: 3.41.2, forge: 4.40.0), which `install.py --tests`
puts into folders of their own; that folder comes first on this process's sys.path and nowhere else,
so a worker that the extension starts from here knows nothing of it. The modules beside this file
have the names and signatures of the hosts' own, and as little inside as behaves the same: images
are drawn by Pillow, the "GPU" is a label (--fake-gpu). Every call that a test may ask about is
written to FOLDER/calls.jsonl.

The hosts' own flags keep their names. `import launch` works as on the hosts: extensions ask it for
the version.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FLAVOURS = ("a1111", "forge")
VERSIONS = {"a1111": "v1.10.1", "forge": "f2.0.1v1.10.1-previous-659-gdfdcbab6"}

NOT_NEEDED = (
    "altair",
    "matplotlib",
    "matplotlib.animation",
    "matplotlib.pyplot",
    "pandas",
    "pandas.api",
    "pandas.api.types",
    "pandas.io",
    "pandas.io.formats",
    "pandas.io.formats.style",
)


class NotNeeded(ModuleType):
    """Stands for a package; each name in it is a class of which there is no object."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = sys.modules.get(f"{self.__name__}.{name}")
        return found or type(name, (), {"__init__": lambda self, *values, **named: None})


class ComponentMeta(SourceFileLoader):
    """gradio 4's module of that name, which reads the source of each component and writes a file of
    types beside it: a third of its start, and done by the first.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        vars(module)["create_or_modify_pyi"] = lambda *given: None


class ComponentMetaFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = None
        if fullname == "gradio.component_meta":
            found = PathFinder.find_spec(fullname, path)
            if found is not None and found.origin is not None:
                found.loader = ComponentMeta(fullname, found.origin)
        return found


def git_tag() -> str:
    """The host's version, as the hosts tell it."""
    return VERSIONS[flavour()]


def flavour() -> str:
    """Which host this process plays."""
    return os.environ.get("FAKE_HOST_FLAVOUR", "a1111")


def module_folders(name: str) -> list[str]:
    """What a process puts on sys.path to be such a host: Forge's own modules hide the common ones
    of the same name.
    """
    return [str(HERE / "forge"), str(HERE)] if name == "forge" else [str(HERE)]


def gradio_folder(name: str) -> Path:
    """Where `install.py --tests` put this host's gradio and what belongs to it. Raises SetupError
    if it is not there.
    """
    before = list(sys.path)
    sys.path.insert(0, str(ROOT))
    try:
        from lora_trainer import environment

        overlay = environment.find_gradio_overlay(name).require()
        assert overlay.folder is not None
        return overlay.folder
    finally:
        # the extension has to be imported the way a host imports it
        sys.path[:] = before
        for module in [module for module in sys.modules if module.split(".")[0] == "lora_trainer"]:
            del sys.modules[module]


def value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of one flag before there is a parser: the modules read sys.argv while they are
    imported, as the hosts' do.
    """
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(flag + "="):
            return argument.partition("=")[2]
    return None


def main() -> None:
    name = value_of("--flavour", sys.argv) or "a1111"
    if name not in FLAVOURS:
        raise SystemExit(f"--flavour is one of {', '.join(FLAVOURS)}")
    os.environ["FAKE_HOST_FLAVOUR"] = name
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    site = value_of("--site-packages", sys.argv)
    folder = Path(site) if site else gradio_folder(name)
    own = [entry for entry in sys.path if entry and Path(entry).resolve() != HERE]
    sys.path[:] = [*module_folders(name), str(folder), *own]
    # what gradio and its packages take along where it is installed, for notebooks and clouds: no host
    # has them, and each start would import them
    sys.modules.update(dict.fromkeys(("IPython", "boto3")))  # type: ignore[arg-type]
    # what gradio imports for plots and tables, which are nowhere on this page: a third of its start
    sys.modules.update({name: NotNeeded(name) for name in NOT_NEEDED})
    sys.meta_path.insert(0, ComponentMetaFinder())
    # gradio is imported, and stays: nothing of it is garbage, and the tests start many of these
    gc.disable()
    from modules import webui

    gc.freeze()
    gc.enable()
    webui.run()


if __name__ == "__main__":
    main()
