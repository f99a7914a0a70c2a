from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from modules.shared_cmd_options import extension_folders

extensions: list[Extension] = []


class ScriptFile(NamedTuple):
    basedir: str
    filename: str
    path: str


class Extension:
    def __init__(self, name: str, path: str, enabled: bool = True, is_builtin: bool = False):
        self.name = name
        self.path = path
        self.enabled = enabled
        self.is_builtin = is_builtin
        self.canonical_name = name.lower()

    def list_files(self, subdir: str, extension: str) -> list[ScriptFile]:
        folder = Path(self.path, subdir)
        if not folder.is_dir():
            return []
        found = sorted(
            path for path in folder.iterdir() if path.is_file() and path.suffix.lower() == extension
        )
        return [ScriptFile(self.path, path.name, str(path)) for path in found]


def list_extensions() -> None:
    extensions[:] = [Extension(folder.name, str(folder)) for folder in extension_folders()]


def active() -> list[Extension]:
    return [extension for extension in extensions if extension.enabled]
