"""A process that converts pictures: `python .../lora_trainer/worker/convert.py`, for a host whose
own Pillow decodes neither HEIC nor AVIF.

It is told on its standard input, as JSON: {"pictures": [[picture, stem of the copy], ...]}. It says
a JSON line each: first that it has begun, then for each picture {"made": path} or the sentence for
why not. So a picture that ends the process is the one after the last line.

Started by path like the worker (see __main__.py), with the worker's packages. Called by
webui.converting.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

EXTENSION = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    """Convert what the standard input names."""
    sys.path.insert(0, str(EXTENSION))
    from lora_trainer import environment, files

    environment.activate()
    from lora_trainer.dataset.images import convert
    from lora_trainer.errors import DatasetError

    def told(picture: str, stem: str) -> dict[str, Any]:
        try:
            return {"made": str(convert(Path(picture), Path(stem)))}
        except MemoryError:
            problem = DatasetError(
                "{path} needs more memory than there is",
                hint="Make it smaller, or close other programs.",
                path=picture,
            )
        except DatasetError as found:
            problem = found
        message, hint = problem.message, problem.hint
        values = {
            key: value if isinstance(value, (int, float)) else str(value)
            for key, value in {**message.values, **hint.values}.items()
        }
        return {"message": message.template, "hint": hint.template, "values": values}

    pictures = files.parse_json(sys.stdin.buffer.read(), names=True)["pictures"]
    _say({"begun": True})
    for picture, stem in pictures:
        _say(told(picture, stem))


def _say(values: dict[str, Any]) -> None:
    # in ASCII: a file's name may hold bytes that are no characters, and they survive only escaped
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
