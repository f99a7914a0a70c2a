"""Forge's ledger of the GPU."""

from __future__ import annotations

import threading

from modules import calls, shared

current_loaded_models = []
total_vram = 8192 if shared.cmd_opts.fake_gpu else 16384


def get_total_memory(dev=None, torch_total_too=False):
    total = 8 * 2**30
    return (total, total) if torch_total_too else total


def load_models_gpu(models, memory_required=0, hard_memory_preservation=0):
    for model in models:
        if model not in current_loaded_models:
            calls.record("load_models_gpu")
            current_loaded_models.append(model)


def free_memory(memory_required, device, keep_loaded=[], free_all=False):  # noqa: B006
    current_loaded_models.clear()


def soft_empty_cache(force=False):
    calls.record("soft_empty_cache", force=force)


def unload_all_models():
    calls.record(
        "unload_all_models", in_main_thread=threading.current_thread() is threading.main_thread()
    )
    current_loaded_models.clear()
