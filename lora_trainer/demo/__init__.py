"""The demo: generated images of simple shapes, a small checkpoint trained on them, and a LoRA
trained with both.
"""

from pathlib import Path

EMBEDDED = Path(__file__).with_name("embedded.safetensors")
"""The embedded checkpoint, in the WebUI's format, made by tests/embedded/make_checkpoint.py."""
