"""torch.autocast on the CPU with the rules of CUDA.

CUDA autocast runs more operations in float32 than CPU autocast: normalization, softmax and
interpolation too (AT_FORALL_FP32 in ATen/autocast_mode.h). Their float32 results are saved for the
backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

IN_FLOAT32 = ("group_norm", "layer_norm", "rms_norm", "softmax", "interpolate")
"""The functions of torch.nn.functional used by models that CUDA autocast runs in float32."""


@contextlib.contextmanager
def as_on_a_card() -> Iterator[None]:
    """A context manager in which IN_FLOAT32 functions cast their arguments to float32 under
    autocast.
    """
    functional: Any = torch.nn.functional
    kept = {name: getattr(functional, name) for name in IN_FLOAT32 if hasattr(functional, name)}
    try:
        for name, function in kept.items():
            setattr(functional, name, _in_float32(function))
        yield
    finally:
        for name, function in kept.items():
            setattr(functional, name, function)


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    def cast(*args: Any, **kwargs: Any) -> Any:
        if _is_on():
            args = tuple(_widened(value) for value in args)
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return cast


def _is_on() -> bool:
    try:
        return torch.is_autocast_enabled("cpu")
    except TypeError:  # before torch 2.4
        return torch.is_autocast_cpu_enabled()


def _widened(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value
