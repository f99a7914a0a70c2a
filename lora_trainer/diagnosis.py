"""The environment for a bug report, and for tools that start a worker: `python -m lora_trainer env
[--json]`.

Returns plain values, or text. Contains no secrets: environment variables by name only; in the text,
the home folder is ~. torch is queried in a subprocess, so that this process takes no GPU memory and
a broken torch becomes a line of the report.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer import __version__, environment, files
from lora_trainer.environment import ROOT, Overlay
from lora_trainer.errors import SetupError
from lora_trainer.packages import FAMILY_PACKAGES

REPORTED_VARIABLES = tuple(
    (
        "INDEX_URL TORCH_INDEX_URL PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE HTTP_PROXY"
        " HTTPS_PROXY ALL_PROXY HF_ENDPOINT HF_HOME HF_HUB_OFFLINE CUDA_VISIBLE_DEVICES"
        " HIP_VISIBLE_DEVICES PYTORCH_CUDA_ALLOC_CONF PYTHONPATH PYTHONHOME COMMANDLINE_ARGS"
    ).split()
)
"""Variables that affect us. Only whether they are set is reported: values may hold passwords."""

TORCH_TIMEOUT = 120.0

TORCH_PROBE = """
import json, sys
sys.path[:1] = json.loads(sys.argv[1])
import torch
devices = []
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        devices.append({
            "device": f"cuda:{index}",
            "name": torch.cuda.get_device_name(index),
            "capability": f"{major}.{minor}",
            "free_mb": free // 2**20,
            "total_mb": total // 2**20,
        })
elif getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
    devices.append({"device": "mps", "name": "Apple GPU"})
elif hasattr(torch, "xpu") and torch.xpu.is_available():
    devices.append({"device": "xpu", "name": torch.xpu.get_device_name(0)})
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "hip": getattr(torch.version, "hip", None),
    "threads": torch.get_num_threads(),
    "devices": devices or [{"device": "cpu", "name": "no GPU that this torch can use"}],
}))
"""


def report(overlay: Overlay | None = None) -> dict[str, Any]:
    """The environment as JSON values. Sizes are whole MiB; None where unknown."""
    overlay = overlay or environment.find_overlay()
    return {
        "extension": {"version": __version__, "commit": _commit(ROOT), "folder": str(ROOT)},
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "prefix": sys.prefix,
            "tag": environment.python_tag(),
            "platform": platform.platform(),
            "has_pip": _has("pip"),
            "has_venv": _has("venv"),
        },
        "overlay": _overlay(overlay),
        "family_overlays": {
            name: _overlay(environment.find_family_overlay(name)) for name in FAMILY_PACKAGES
        },
        "packages": _packages(overlay),
        "torch": _torch(overlay),
        "memory": _memory(overlay),
        "disk": {
            "overlay_free_mb": _free_mb(ROOT),
            "working_folder": str(Path.cwd()),
            "working_folder_free_mb": _free_mb(Path.cwd()),
        },
        "worker": {
            "command": environment.worker_command(Path("RUN_DIR")),
            "environment": environment.worker_environ({}),
        },
        "variables_set": [name for name in REPORTED_VARIABLES if os.environ.get(name)],
    }


def report_text(values: Mapping[str, Any]) -> str:
    """`report` as text, with the home folder as ~."""
    extension, python, overlay = values["extension"], values["python"], values["overlay"]
    torch, memory, disk = values["torch"], values["memory"], values["disk"]
    lines = [
        f"LoRA Trainer   {extension['version']}"
        + (f" ({extension['commit'][:10]})" if extension["commit"] else "")
        + f"  {extension['folder']}",
        f"Python         {python['version']}  {python['executable']}",
        f"System         {python['platform']}",
        f"Packages       {overlay['state']}: {_overlay_line(overlay)}",
        *([f"               {overlay['problem']}"] if overlay["problem"] else []),
        *(
            f"  {name:12} {found['state']}: {_overlay_line(found)}"
            for name, found in values["family_overlays"].items()
        ),
        f"torch          {torch['version'] or 'not importable'}"
        + (f"  {torch['error']}" if torch["error"] else ""),
        *(f"Device         {_device_line(device)}" for device in torch["devices"]),
        f"Memory         {_gb(memory['available_mb'])} free of {_gb(memory['total_mb'])}",
        (
            f"Disk           {_gb(disk['overlay_free_mb'])} free for packages,"
            f" {_gb(disk['working_folder_free_mb'])} free in {disk['working_folder']}"
        ),
        "Variables set  " + (", ".join(values["variables_set"]) or "none that matter here"),
        "",
        *(
            f"  {name:20} {entry['version'] or '-':14} {entry['from'] or 'missing'}"
            for name, entry in values["packages"].items()
        ),
    ]
    return "\n".join(lines).replace(str(Path.home()), "~")


def _overlay(overlay: Overlay) -> dict[str, Any]:
    folder = overlay.folder
    try:
        overlay.require()
        problem = None
    except SetupError as error:
        problem = error.report().replace("\n", " ")
    if problem is None and overlay.state == "outdated":
        problem = (
            f'These are not the versions of this release. In {ROOT} run: "{sys.executable}"'
            " install.py"
        )
    return {
        "state": overlay.state,
        "folder": str(folder) if folder else None,
        "wanted": str(overlay.wanted) if overlay.missing else None,
        "megabytes": _folder_mb(folder) if folder else 0,
        "problem": problem,
    }


def _packages(overlay: Overlay) -> dict[str, dict[str, str | None]]:
    """Each package's version as the worker imports it, and where from."""
    folder = overlay.folder
    stamp = environment.read_stamp(folder) if folder else None
    ours = stamp.versions if stamp else {}
    table: dict[str, dict[str, str | None]] = {}
    for package in overlay.packages:
        if package.key in ours:
            table[package.name] = {"version": ours[package.key], "from": "overlay"}
        elif package in overlay.missing:
            table[package.name] = {"version": overlay.found.get(package.key), "from": None}
        else:
            table[package.name] = {"version": overlay.found[package.key], "from": "interpreter"}
    return table


def _torch(overlay: Overlay) -> dict[str, Any]:
    """torch's version and devices as a worker would find them."""
    keys = ("version", "cuda", "hip", "threads", "error")
    unknown: dict[str, Any] = {**dict.fromkeys(keys), "devices": []}
    first = [str(overlay.folder)] if overlay.folder else []
    try:
        result = subprocess.run(
            [sys.executable, "-c", TORCH_PROBE, json.dumps(first)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TORCH_TIMEOUT,
            check=False,
            env=environment.worker_environ(os.environ),
            encoding="utf-8",
            errors="replace",
            cwd=ROOT.parent,
        )
    except subprocess.TimeoutExpired:
        return {**unknown, "error": f"no answer within {TORCH_TIMEOUT:.0f} seconds"}
    if result.returncode != 0:
        last = result.stderr.strip().rpartition("\n")[2]
        return {**unknown, "error": last or f"it ended with code {result.returncode}"}
    try:
        return {**unknown, **files.parse_json(result.stdout.strip().rpartition("\n")[2])}
    except files.UNREADABLE as error:
        return {**unknown, "error": f"no answer: {error}"}


def _memory(overlay: Overlay) -> dict[str, int | None]:
    environment.activate(overlay)
    try:
        import psutil
    except ImportError:
        return {"total_mb": None, "available_mb": None}
    memory = psutil.virtual_memory()
    return {"total_mb": memory.total // 2**20, "available_mb": memory.available // 2**20}


def _commit(root: Path) -> str | None:
    """The checked-out commit, read from .git without running git."""
    try:
        git = root / ".git"
        if git.is_file():  # a worktree or submodule
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        reference = head.removeprefix("ref:").strip()
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)
    except (OSError, UnicodeDecodeError):
        return None


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def _free_mb(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free // 2**20
    except OSError:
        return None


def _folder_mb(folder: Path) -> int:
    return files.folder_size(folder) // 2**20


def _overlay_line(overlay: Mapping[str, Any]) -> str:
    if overlay["folder"]:
        return f"{overlay['folder']}, {overlay['megabytes']} MB"
    return "not installed" if overlay["state"] == "missing" else "this Python has everything"


def _device_line(device: Mapping[str, Any]) -> str:
    if "total_mb" in device:
        return (
            f"{device['device']}  {device['name']}, {_gb(device['free_mb'])} free of"
            f" {_gb(device['total_mb'])}"
        )
    return f"{device['device']}  {device['name']}"


def _gb(megabytes: int | None) -> str:
    return "unknown" if megabytes is None else f"{megabytes / 1024:.1f} GB"
