"""What threads that wait cost: a step of convolutions on two threads, alone and beside others.

    python -m tests.benchmark.waiting_threads               each setting alone, and beside another
    python -m tests.benchmark.waiting_threads --seconds 10  measured for longer

OpenMP's threads wait by spinning, GNU's for some milliseconds. Where another program uses the same
cores, the thread that is waited for does not run meanwhile. The settings are tried in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lora_trainer import environment
from lora_trainer.environment import LIBRARY_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    {name: LIBRARY_SETTINGS[name] for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")},
    {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
)
"""The libraries' own, ours, and none: each is kept by `environment.activate`."""
SIZES = ((32, 16), (320, 32))
"""(channels, side) of a small and of a usual layer."""
TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(measured(*asked.measure, asked.seconds))
        return
    print(
        "| setting | channels, side | alone, ms | beside another, ms |\n| --- | --- | --- | --- |"
    )
    for channels, side in SIZES:
        found: dict[tuple[int, int], list[float]] = {}
        for _ in range(TURNS):
            for number, setting in enumerate(SETTINGS):
                for count in (1, 2):
                    times = beside(setting, count, channels, side, asked.seconds)
                    found.setdefault((number, count), []).extend(times)
        for number, setting in enumerate(SETTINGS):
            alone, together = (statistics.median(found[number, count]) for count in (1, 2))
            words = ", ".join(f"{name}={value}" for name, value in setting.items())
            print(f"| {words} | {channels}, {side} | {alone:.1f} | {together:.1f} |", flush=True)


def beside(
    setting: dict[str, str], count: int, channels: int, side: int, seconds: float
) -> list[float]:
    """Median milliseconds of a step in each of `count` processes at the same time."""
    command = [sys.executable, "-m", "tests.benchmark.waiting_threads", "--seconds", str(seconds)]
    command += ["--measure", str(channels), str(side)]
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**plain, **setting}, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    return [float(process.communicate()[0]) for process in running]


def measured(channels: int, side: int, seconds: float) -> float:
    """Median milliseconds of a forward and backward pass through six convolutions."""
    environment.activate()
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(6)]
    model, pixels = torch.nn.Sequential(*layers), torch.randn(1, channels, side, side)
    model(pixels).square().mean().backward()
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        model(pixels).square().mean().backward()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
