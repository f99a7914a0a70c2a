"""A record of what was done to this host, for the tests: one JSON object a line in
<data>/calls.jsonl.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from modules.paths_internal import data_path

PATH = Path(data_path, "calls.jsonl")


def record(what: str, **facts: Any) -> None:
    line = json.dumps(
        {"what": what, "time": time.time(), "thread": threading.current_thread().name, **facts}
    )
    with PATH.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
