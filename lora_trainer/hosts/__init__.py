"""The supported WebUIs, one module each; nothing else imports `modules.*` and the like.

    host = find()       the host of this process

To add a host: a module here with a subclass of base.Host that has `kind`, `name` and `is_here()`.
queue_lock.py watches the host's queue; gpu_lease.py shares its GPU.
"""

from __future__ import annotations

import importlib
from pkgutil import iter_modules

from lora_trainer.hosts.base import Host, HostError


def kinds() -> list[type[Host]]:
    """The classes of all hosts, most derived first."""
    modules = [importlib.import_module(f"{__name__}.{one.name}") for one in iter_modules(__path__)]
    known = {kind for module in modules for kind in vars(module).values() if _is_a_host(kind)}
    return sorted(known, key=lambda kind: (-len(kind.__mro__), kind.kind))


def find() -> Host:
    """The host of this process. Raises HostError outside a WebUI."""
    for kind in kinds():
        if kind.is_here():
            return kind()
    raise HostError(
        "this is not inside a WebUI", hint="Use the command line: python -m lora_trainer."
    )


def _is_a_host(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Host) and bool(found.kind)
