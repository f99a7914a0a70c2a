"""What the product promises when things go wrong, attacked: kills, full disks, mutated files,
hostile requests.

    python -m tests.hardening.kills --seed 1 --seconds 120        each harness by hand, for as long
                                                                  as one likes
    python -m tests tests/hardening                               a small run of each, with the
                                                                  other tests

A harness ends with one line, such as "kills: 120 kills, 0 lost, 0 differ", and exit status 1 if it
found anything. What it found is printed above, with the number of the trial, by which the same seed
comes to the same fault again.
"""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("pytest") is None:
    from lora_trainer import environment

    environment.activate(environment.find_tests_overlay())
    environment.activate()
