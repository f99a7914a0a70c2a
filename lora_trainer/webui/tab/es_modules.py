"""The tab's JavaScript modules as they were when the WebUI started.

    MODULES.start       the URL of the first one: static/<version>/tab/main.js
    MODULES.find(version, name)     the text of a module

The version is a hash of all modules and part of every URL. Modules import each other by relative
URLs, so all modules of a page have the same version, whatever the browser has cached. When an
update changes the files under a running WebUI, it keeps serving the modules that match its Python;
after a restart, URLs of the old version are refused. Used by tab/routes.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.webui.common.data_folder import NotFound

FOLDER = Path(__file__).resolve().parents[3] / "javascript"
START = "tab/main.js"
"""The module that imports all others."""


@dataclass(frozen=True)
class TabModules:
    version: str
    texts: Mapping[str, bytes]
    """Path below javascript/ -> content."""

    def address(self, name: str) -> str:
        """A module's URL below /lora-trainer/."""
        return f"static/{self.version}/{name}"

    def find(self, version: str, name: str) -> bytes:
        """The module's text. Raises NotFound for another version or an unknown name."""
        if version != self.version or name not in self.texts:
            raise NotFound(
                "this page belongs to another version of LoRA Trainer", hint="Reload the page."
            )
        return self.texts[name]


def read(folder: Path) -> TabModules:
    """The modules in the feature folders. Files directly in javascript/ are loaded by the host."""
    texts = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("*/*.js"))
    }
    digest = hashlib.sha256()
    for name, text in texts.items():
        digest.update(f"{name}\n{len(text)}\n".encode())
        digest.update(text)
    return TabModules(digest.hexdigest()[:16], texts)


MODULES = read(FOLDER)
