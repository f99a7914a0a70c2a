"""The hosts' start is free of our work: what the script and the tab import when they are loaded, in
a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "app",
    "http.routing",
    "tab.routes",
    "settings.preflight",
    "datasets.registry",
    "training.runs",
)
HEAVY = (
    "torch",
    "transformers",
    "diffusers",
    "pandas",
    "numpy",
    "PIL",
    "psutil",
    "yaml",
    "starlette",
    "ftfy",
    "safetensors",
    *(f"lora_trainer.webui.{name}" for name in OURS),
)

LOAD = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
callbacks = types.ModuleType("modules.script_callbacks")
callbacks.__getattr__ = lambda name: lambda callback, **options: None
modules = types.ModuleType("modules")
modules.script_callbacks = callbacks
sys.modules |= {"modules": modules, "modules.script_callbacks": callbacks}
before = set(sys.modules)
exec(compile(open(sys.argv[1] + "/scripts/lora_trainer_tab.py").read(), "lora_trainer_tab.py", "exec"), {"__name__": "script"})
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_loading_the_script_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(ROOT)], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert "lora_trainer.webui.callbacks" in loaded
    assert sorted(loaded & set(HEAVY)) == []


def test_drawing_the_mount_point_imports_nothing_of_what_the_tab_works_with():
    drawn = LOAD.replace(
        "print(",
        'from lora_trainer.webui import callbacks\nassert "lora_trainer_root" in'
        " callbacks.mount_point()\nprint(",
    )
    done = subprocess.run(
        [sys.executable, "-c", drawn, str(ROOT)], capture_output=True, text=True, check=True
    )
    assert (
        sorted(set(json.loads(done.stdout)) & {f"lora_trainer.webui.{name}" for name in OURS}) == []
    )
