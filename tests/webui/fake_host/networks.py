"""The hosts' built-in LoRA extension: which files there are. Known in sys.modules by this name on
all hosts.
"""

from __future__ import annotations

import json
from pathlib import Path

from modules import calls, shared

available_networks: dict[str, NetworkOnDisk] = {}
available_network_aliases: dict[str, NetworkOnDisk] = {}
forbidden_network_aliases: dict[str, int] = {}
loaded_networks: list = []


class NetworkOnDisk:
    def __init__(self, name, filename):
        self.name = name
        self.filename = filename
        self.is_safetensors = Path(filename).suffix == ".safetensors"
        self.metadata = self._read_metadata()
        self.alias = self.metadata.get("ss_output_name", name)
        self.hash = None
        self.shorthash = None

    def _read_metadata(self):
        try:
            with Path(self.filename).open("rb") as stream:
                return json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).get(
                    "__metadata__", {}
                )
        except (OSError, ValueError, OverflowError, MemoryError):
            return {}

    def get_alias(self):
        return (
            self.name
            if shared.opts.lora_preferred_name == "Filename"
            or self.alias.lower() in forbidden_network_aliases
            else self.alias
        )


def list_available_networks():
    calls.record("list_available_networks")
    available_networks.clear()
    available_network_aliases.clear()
    forbidden_network_aliases.clear()
    folder = Path(shared.cmd_opts.lora_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".pt", ".ckpt", ".safetensors") and path.is_file():
            entry = NetworkOnDisk(path.stem, str(path))
            available_networks[path.stem] = entry
            if entry.alias in available_network_aliases:
                forbidden_network_aliases[entry.alias.lower()] = 1
            available_network_aliases[path.stem] = entry
            available_network_aliases[entry.alias] = entry


def find(name):
    """By name or alias; a name that is not known yet is looked for on the disk, as on the hosts."""
    entry = available_network_aliases.get(name)
    if entry is None or not Path(entry.filename).is_file():
        list_available_networks()
    return available_network_aliases.get(name)
