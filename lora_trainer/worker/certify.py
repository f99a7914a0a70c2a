"""Certifies a LoRA file for a WebUI, or writes a copy that it loads, in a process with the worker's
packages, for the tab, which has no torch.

Reads JSON on stdin: {"path": ..., "host": "neo", "folders": [...], "copy": null or a path}. Prints
a JSON line: {"certificate": {...}} as lora.certificate.Certificate.to_mapping has it, of the file
or of the copy, or {"error": {...}}. Called by webui.loras.certificates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

EXTENSION = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    sys.path.insert(0, str(EXTENSION))
    from lora_trainer import environment, files

    environment.activate()
    asked = files.parse_json(sys.stdin.buffer.read(), names=True)
    # as ASCII: only escapes preserve file names that are not UTF-8
    print(json.dumps(certified(asked)), flush=True)


def certified(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to this request."""
    from lora_trainer.errors import LoraFileError, LoraTrainerError
    from lora_trainer.lora.certificate import certify, words
    from lora_trainer.lora.convert import convert

    path, copy = Path(asked["path"]), asked["copy"]
    try:
        try:
            if copy is not None:
                convert(path, Path(copy), asked["host"])
                path = Path(copy)
            found = certify(
                path, asked["host"], folders=[Path(folder) for folder in asked["folders"]]
            )
        except OSError as error:
            raise LoraFileError.cannot_write(
                Path(error.filename or copy or path).name,
                error,
                "Check the permissions and the disk.",
            ) from error
    except LoraTrainerError as error:
        return {"error": {**words(error.message), "hint": error.hint.template}}
    return {"certificate": found.to_mapping(words)}


if __name__ == "__main__":
    main()
