"""Train a LoRA from your own images, inside the Stable Diffusion WebUI or from the command line."""

__version__ = "0.1.0"
