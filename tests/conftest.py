"""For all tests: one thread a process. Tiny models are no faster on several, and test processes running side by side would wait for each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
