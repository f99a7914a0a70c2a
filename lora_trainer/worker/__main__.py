"""The worker process: `python .../lora_trainer/worker/__main__.py RUN_DIR` runs the job of a run
folder.

Started by file path, because an embedded Windows Python ignores PYTHONPATH and the working
directory; so this file puts the overlay and the extension first on sys.path before it imports
anything else.

Exit status: 0 finished, 3 stopped by request, 1 failed, 4 failed on a full disk without a `failed`
event. Progress goes to events.jsonl, output to worker.log.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path

EXTENSION = Path(__file__).resolve().parent.parent.parent


def main(arguments: list[str]) -> int:
    """Run the job in the folder given as the only argument. Returns the exit status."""
    sys.path.insert(0, str(EXTENSION))
    # what is imported stays: looking through it for garbage takes a sixth of the start. The job
    # turns it on again
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # worker.log is UTF-8, also under an embedded Windows Python, which ignores PYTHONUTF8
            stream.reconfigure(encoding="utf-8", errors="replace")
    if len(arguments) != 1:
        print("usage: python lora_trainer/worker/__main__.py RUN_DIR", file=sys.stderr)
        return 2
    from lora_trainer import environment

    overlay = environment.activate()
    from lora_trainer.worker import job

    run = job.take_part if environment.is_companion() else job.run
    status = run(Path(arguments[0]).absolute(), overlay)
    for stream in (sys.stdout, sys.stderr):
        # a full disk under worker.log must not change the exit status
        with contextlib.suppress(OSError):
            stream.flush()
    return status


if __name__ == "__main__":
    # everything is closed; what is left, taking torch's modules apart, is half a second of nothing
    os._exit(main(sys.argv[1:]))
