"""The tab's JavaScript modules, as they were when the WebUI started.

    MODULES.start       the address of the first one: static/<version>/tab/main.js
    MODULES.find(version, name)     one module's text

The version is a hash over all of them and a part of every address. Modules import each other by
relative addresses, so what one module of a version imports is of that version too, in any browser's
cache. An update changes the files on the disk while the WebUI runs: the running WebUI goes on with
the modules that belong to its Python, and one that was started again refuses the addresses of the
version before. Used by tab/routes.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.webui.common.data_folder import NotFound

FOLDER = Path(__file__).resolve().parents[3] / "javascript"
START = "tab/main.js"
"""The module that imports the others."""


@dataclass(frozen=True)
class TabModules:
    version: str
    texts: Mapping[str, bytes]
    """Path below javascript/ -> what stands there."""

    def address(self, name: str) -> str:
        """Where a module is, below /lora-trainer/."""
        return f"static/{self.version}/{name}"

    def find(self, version: str, name: str) -> bytes:
        """The module's text. Raises NotFound for one of another version, and for one that is not
        there.
        """
        if version != self.version or name not in self.texts:
            raise NotFound(
                "this page belongs to another version of LoRA Trainer", hint="Reload the page."
            )
        return self.texts[name]


def read(folder: Path) -> TabModules:
    """The modules of a folder: what lies in the folders of the features. The host loads what lies
    beside them by itself.
    """
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
