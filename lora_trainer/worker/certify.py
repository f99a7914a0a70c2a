"""Certifies a LoRA file for a WebUI, writes a copy that it loads, or measures what is left of it in
few bits, in a process with the worker's packages, for the tab, which has no torch.

Reads JSON on stdin: {"path": ..., "host": "neo", "folders": [...], "copy": null or a path}, or
{"path": ..., "host": ..., "base": a checkpoint, "strength": 0.7}. Prints a JSON line:
{"certificate": {...}} as lora.certificate.Certificate.to_mapping has it, of the file or of the
copy, {"kept": {...}} as lora.survival.Survival.to_mapping, or {"error": {...}}. Called by
webui.loras.certificates.
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
    from lora_trainer.errors import LoraTrainerError
    from lora_trainer.lora.certificate import words

    try:
        return _kept(asked) if "base" in asked else _certificate(asked)
    except LoraTrainerError as error:
        return {"error": {**words(error.message), "hint": error.hint.template}}


def _kept(asked: dict[str, Any]) -> dict[str, Any]:
    from lora_trainer.lora.certificate import words
    from lora_trainer.lora.survival import survival

    found = survival(Path(asked["path"]), Path(asked["base"]), [asked["strength"]])
    return {"kept": found.to_mapping(words, [asked["host"]])}


def _certificate(asked: dict[str, Any]) -> dict[str, Any]:
    from lora_trainer.errors import LoraFileError
    from lora_trainer.lora.certificate import certify, words
    from lora_trainer.lora.convert import convert

    path, copy = Path(asked["path"]), asked["copy"]
    try:
        if copy is not None:
            convert(path, Path(copy), asked["host"])
            path = Path(copy)
        found = certify(path, asked["host"], folders=[Path(folder) for folder in asked["folders"]])
    except OSError as error:
        raise LoraFileError.cannot_write(
            Path(error.filename or copy or path).name,
            error,
            "Check the permissions and the disk.",
        ) from error
    return {"certificate": found.to_mapping(words)}


if __name__ == "__main__":
    main()
