"""The demo: a small drawn world, a small real checkpoint trained on it, and what a LoRA can show
with both.
"""

from pathlib import Path

EMBEDDED = Path(__file__).with_name("embedded.safetensors")
"""The embedded checkpoint: a WebUI file like any other, made by `make_checkpoint`."""
