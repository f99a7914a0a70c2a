"""report.html in the run's folder: one self-contained file that a person can send.

    write(folder, examples)   -> its path; examples: the images, as trained

Verdict, curves, previews by steps and strengths, images with captions, settings and versions.
Images are JPEGs inside the file and curves SVG; it loads nothing, runs no script, and names no
folder of the machine. page.py puts the parts together, elements.py escapes, curves.py draws,
images.py shrinks. Called by the worker at the end of a run and by `python -m lora_trainer
report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_trainer import files
from lora_trainer.dataset.scan import Example
from lora_trainer.report.page import page
from lora_trainer.runs.folder import RunFolder
from lora_trainer.verdict import Verdict
from lora_trainer.verdict.measurements import read_measurements

FILE = "report.html"


def write(folder: RunFolder, examples: Sequence[Example], verdict: Verdict | None) -> Path:
    """Write report.html. Raises ConfigError if the run's settings cannot be read, and OSError."""
    target = folder.path / FILE
    content = page(folder, read_measurements(folder), verdict, examples)
    # names that are not UTF-8 hold lone surrogates
    files.write_bytes(target, content.encode("utf-8", errors="replace"))
    return target
