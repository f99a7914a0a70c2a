"""Rehearses a training on texts in a process with the worker's packages, for the tab, which has no
tokenizer.

Reads the run's settings as JSON on stdin: flat keys, as in config.yaml. Prints a JSON line:
{"rehearsal": {...}} with the fields of tasks.language.Rehearsal, or {"error": {...}}. Called by
webui.settings.rehearsals.
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
    print(json.dumps(rehearsed(files.parse_json(sys.stdin.buffer.read(), names=True))), flush=True)


def rehearsed(settings: dict[str, Any]) -> dict[str, Any]:
    """The answer to these settings."""
    from lora_trainer.errors import LoraTrainerError
    from lora_trainer.settings import training
    from lora_trainer.tasks.language import rehearse

    try:
        found = rehearse(training.from_mapping(settings))
    except LoraTrainerError as error:
        return {"error": _words(error.message, error.hint)}
    values = {key: value for key, value in vars(found).items() if key != "findings"}
    findings = [
        {
            **_words(one.message, one.hint),
            "kind": one.kind,
            "severity": one.severity,
            "path": str(one.path),
        }
        for one in found.findings
    ]
    return {"rehearsal": {**values, "findings": findings}}


def _words(message: Any, hint: Any) -> dict[str, Any]:
    values = {**hint.values, **message.values}
    return {
        "message": message.template,
        "hint": hint.template,
        "values": {
            key: value if isinstance(value, (int, float)) else str(value)
            for key, value in values.items()
        },
    }


if __name__ == "__main__":
    main()
