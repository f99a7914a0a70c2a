"""Converts HEIC and AVIF images to JPEG or PNG in a subprocess with the worker's packages, because
the host's Pillow often cannot decode them.

    converter.is_ready                        whether those packages are installed
    converter.convert([(image, stem), ...]) -> the path of the copy, or a DatasetError, for each

One subprocess converts all images of a call, with a timeout. Called by uploads.py and workbench.py.
Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_trainer import environment, files
from lora_trainer.environment import Overlay
from lora_trainer.errors import DatasetError

SECONDS_TO_BEGIN = 60.0
SECONDS_EACH = 60.0
"""Timeout per image. 12 megapixels take one or two seconds, six on a busy machine."""
_AT_ONCE = threading.Semaphore(2)
"""Leaves CPU time for the host; each large image takes half a gigabyte."""

_TOO_LONG = ""


class Converter:
    """Thread-safe."""

    def __init__(
        self,
        command: Callable[[], Sequence[str]] = environment.convert_command,
        look: Callable[[], Overlay] = environment.find_overlay,
        seconds: tuple[float, float] = (SECONDS_TO_BEGIN, SECONDS_EACH),
    ) -> None:
        self._command = command
        self._look = look
        self._seconds = seconds

    @property
    def is_ready(self) -> bool:
        """Whether images can be converted."""
        return self._look().state != "missing"

    def convert(self, images: Sequence[tuple[Path, Path]]) -> list[Path | DatasetError]:
        """(image, stem of its copy) -> the copy with suffix, or the error."""
        results: list[Path | DatasetError] = []
        while len(results) < len(images):
            rest = images[len(results) :]
            with _AT_ONCE:
                converted, reason, goes_on = self._run(rest)
            results += converted
            unfinished = rest[len(converted) :]
            # a decoder that crashes on one image may be able to convert the next
            results += [
                _failed(image, reason) for image, _ in (unfinished[:1] if goes_on else unfinished)
            ]
        return results

    def _run(
        self, images: Sequence[tuple[Path, Path]]
    ) -> tuple[list[Path | DatasetError], str, bool]:
        """The results of one subprocess, why it ended early, and whether the image caused that."""
        asked = json.dumps({"images": [(str(image), str(stem)) for image, stem in images]})
        begin, each = self._seconds
        try:
            done = subprocess.run(
                self._command(),
                input=asked.encode(),
                capture_output=True,
                timeout=begin + each * len(images),
                check=False,
                env=environment.worker_environ(os.environ),
                creationflags=environment.NO_WINDOW,
            )
        except subprocess.TimeoutExpired as error:
            return _parse_results(error.stdout or b"", images)[0], _TOO_LONG, False
        except OSError as error:
            return [], error.strerror or str(error), False
        converted, begun = _parse_results(done.stdout, images)
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return converted, words[-1] if words else f"exit status {done.returncode}", begun


def _parse_results(
    output: bytes, images: Sequence[tuple[Path, Path]]
) -> tuple[list[Path | DatasetError], bool]:
    """The lines of output as results, and whether it had started. Other output of libraries is
    ignored.
    """
    lines = []
    for line in output.splitlines():
        try:
            lines.append(files.parse_json(line, names=True))
        except files.NotJson:
            continue
    answers = [line for line in lines if isinstance(line, dict)]
    return [_result(line) for line in answers[1 : len(images) + 1]], bool(answers)


def _result(line: dict[str, Any]) -> Path | DatasetError:
    return (
        Path(line["made"])
        if "made" in line
        else DatasetError(line["message"], hint=line["hint"], **line["values"])
    )


def _failed(image: Path, reason: str) -> DatasetError:
    hint = "Try again, or convert it in another program."
    if reason == _TOO_LONG:
        return DatasetError("{path} cannot be converted: it takes too long", hint=hint, path=image)
    return DatasetError(
        "{path} cannot be converted: {reason}", hint=hint, path=image, reason=reason
    )
