"""Converts images in a subprocess with the worker's packages, for a host whose Pillow decodes
neither HEIC nor AVIF.

Reads JSON on stdin: {"images": [[image, stem of the copy], ...]}. Prints a JSON line when it has
started, then one for each image: {"made": path}, or an error's template, hint and values. If the
process dies, the image after the last line is the cause. Called by webui.converting.
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
    from lora_trainer.dataset.images import convert
    from lora_trainer.errors import DatasetError

    def converted(image: str, stem: str) -> dict[str, Any]:
        try:
            return {"made": str(convert(Path(image), Path(stem)))}
        except MemoryError:
            problem = DatasetError(
                "there is not enough memory for {path}",
                hint="Make it smaller, or close other programs.",
                path=image,
            )
        except DatasetError as found:
            problem = found
        message, hint = problem.message, problem.hint
        values = {
            key: value if isinstance(value, (int, float)) else str(value)
            for key, value in {**message.values, **hint.values}.items()
        }
        return {"message": message.template, "hint": hint.template, "values": values}

    images = files.parse_json(sys.stdin.buffer.read(), names=True)["images"]
    _print({"begun": True})
    for image, stem in images:
        _print(converted(image, stem))


def _print(values: dict[str, Any]) -> None:
    # as ASCII: only escapes preserve file names that are not UTF-8
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
