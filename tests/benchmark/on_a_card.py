"""What minutes on a graphics card are for: checks and measurements, the most important first, each
within its time.

    python -m tests.benchmark.on_a_card OUT                on this machine's device, eight minutes
    python -m tests.benchmark.on_a_card OUT --seconds 300  in less time
    python -m tests.benchmark.on_a_card OUT --only sd15    those whose names begin so

Writes OUT/results.json after every check, and OUT/results.md. A check that fails is noted with its
error, and the next one begins; one that would not fit the remaining time is left out, by name.

    trains        SD1.5 at 512 px and SDXL at 1024 px, bf16: seconds a step, peak beside the plan's
    learns        the embedded world on the card and on the processor: the same losses
    hand-over     a paused worker leaves the card, and comes back
    fp16          with loss scaling
    plain         diffusers and PEFT alone on the same checkpoint
    less memory   checkpointing, int8, fp8, blocks swapped, the smallest of all
    more          batch 4, rank 32, LoCon, 8-bit AdamW
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer import environment

environment.activate(environment.find_tests_overlay())
environment.activate()

import torch  # noqa: E402

from lora_trainer import files  # noqa: E402
from lora_trainer.bench import models  # noqa: E402
from lora_trainer.bench.command import bench  # noqa: E402
from lora_trainer.demo import world  # noqa: E402
from lora_trainer.demo.run import demo_config  # noqa: E402
from lora_trainer.jobs.start import start_worker  # noqa: E402
from lora_trainer.runs import events  # noqa: E402
from lora_trainer.runs import folder as folders  # noqa: E402
from lora_trainer.runs.folder import RunFolder  # noqa: E402
from lora_trainer.runs.requests import send_request  # noqa: E402
from lora_trainer.settings import training  # noqa: E402
from lora_trainer.training.device import choose_device, describe_device  # noqa: E402

SECONDS = 480.0
STEPS = 22
EMBEDDED_STEPS = 24
PATIENCE = 120.0
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One check. `run` returns what was found."""

    name: str
    seconds: float
    """How long it may take, so that it is left out when less is left."""
    run: Callable[[Path], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of a training of `bench`."""


def measured(name: str, seconds: float, model: str, **changes: Any) -> Check:
    """A training of `bench`."""

    def run(place: Path) -> Mapping[str, Any]:
        [result] = bench([model], STEPS, changes, place / "models")
        return result.to_mapping()

    return Check(name, seconds, run, changes)


def checks(device: str) -> Sequence[Check]:
    """All of them, the most important first."""
    less = {"gradient_checkpointing": True}
    small = {**less, "base_precision": "int8", "vae_tiling": True}

    def sd15(name: str, seconds: float = 30, **changes: Any) -> Check:
        return measured(f"sd15 {name}", seconds, "sd15", device=device, **changes)

    def sdxl(name: str, seconds: float = 45, **changes: Any) -> Check:
        return measured(f"sdxl {name}", seconds, "sdxl", device=device, **changes)

    return (
        sd15("512 bf16", 60, mixed_precision="bf16"),
        sdxl("1024 bf16", 120, mixed_precision="bf16"),
        Check("learns as on the processor", 90, lambda place: learns(place, device)),
        Check("hand-over", 60, lambda place: hand_over(place, device)),
        sd15("512 fp16", mixed_precision="fp16"),
        Check("plain diffusers and PEFT", 60, lambda place: plain(place, "sd15")),
        sdxl("1024 checkpointing", **less),
        sdxl("1024 checkpointing int8", **less, base_precision="int8"),
        sdxl("1024 smallest", 60, **small, blocks_to_swap=91),
        sd15("512 smallest", **small, blocks_to_swap=25),
        sd15("512 batch 4", batch_size=4),
        sd15("512 fp8", base_precision="fp8"),
        sd15("512 swapped", blocks_to_swap=25),
        sd15("512 locon rank 32", lora_type="locon", lora_rank=32),
        sd15("512 adamw8bit", optimizer="adamw8bit"),
        sdxl("1024 fp16", mixed_precision="fp16"),
    )


def learns(place: Path, device: str) -> Mapping[str, Any]:
    """The embedded world trained on the device and on the processor: mean losses of the last eight
    steps, and the largest difference of a step's loss. Raises AssertionError if they differ.
    """
    ours = _embedded_losses(place / "here", device)
    theirs = _embedded_losses(place / "processor", "cpu")
    furthest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    found = {
        "device": sum(ours[-8:]) / 8,
        "processor": sum(theirs[-8:]) / 8,
        "largest_difference": furthest,
    }
    assert furthest < 0.02 * theirs[0] and ours[-1] < ours[0], found
    return found


def _embedded_losses(place: Path, device: str) -> list[float]:
    world.write_concept(place / "images", "ink", 24, 0)
    config = demo_config(place, "ink", 0).replace(
        device=device,
        mixed_precision="no",
        max_train_steps=EMBEDDED_STEPS,
        save_steps=EMBEDDED_STEPS,
        sample_prompts=(),
        lora_dir=None,
    )
    folder = folders.begin(config.output.output_dir, training.to_yaml(config))
    with start_worker(folder) as worker:
        assert worker.wait(PATIENCE) == 0, folder.log.read_text()[-2000:]
    return [one.loss for one in _progress(folder) if one.loss is not None]


def hand_over(place: Path, device: str) -> Mapping[str, Any]:
    """Free bytes of the card before a training, during it, while it is paused, when it goes on and
    when it has ended. Raises AssertionError if a pause leaves much of it behind.
    """
    world.write_concept(place / "images", "ink", 24, 0)
    base = models.named("sd15").write(place / "models")
    config = demo_config(place, "ink", 0).replace(
        **base,
        device=device,
        resolution=512,
        batch_size=1,
        max_train_steps=100_000,
        save_steps=100_000,
        sample_prompts=(),
        lora_dir=None,
    )
    free = {"before": _free()}
    folder = folders.begin(config.output.output_dir, training.to_yaml(config))
    with start_worker(folder) as worker, _killed(worker):
        _until(folder, lambda: folder.read_state().step >= 3)
        free["training"] = _free()
        for kind, status in (("pause", "paused"), ("resume", "running")):
            send_request(folder.requests, kind)  # type: ignore[arg-type]
            asked = time.perf_counter()
            _until(folder, lambda status=status: folder.read_state().status == status)
            free[f"seconds until {status}"] = time.perf_counter() - asked
            free[status] = _free()
        step = folder.read_state().step
        _until(folder, lambda: folder.read_state().step >= step + 3)
        send_request(folder.requests, "stop")
        assert worker.wait(PATIENCE) == 0
    free["after"] = _free()
    taken, left = free["before"] - free["training"], free["before"] - free["paused"]
    if choose_device(device).type == "cuda":
        # a process that has used the card keeps its context there
        assert left < min(GIB, 0.5 * taken), free
        assert free["before"] - free["after"] < GIB / 4, free
    return free


def _free() -> float:
    return float(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0.0


def _until(folder: RunFolder, condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        state = folder.read_state()
        assert state.failure is None, state.failure
        assert time.monotonic() < ends, state
        time.sleep(0.05)


@contextlib.contextmanager
def _killed(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the worker if the block fails."""
    try:
        yield
    except BaseException:
        worker.kill()
        raise


def plain(place: Path, name: str) -> Mapping[str, Any]:
    """The seconds a step of diffusers and PEFT alone, as tests/benchmark/plain_peft.py prints
    them.
    """
    [path] = models.named(name).write(place / "models").values()
    script = Path(__file__).with_name("plain_peft.py")
    command = [sys.executable, str(script), str(path), "--steps", str(STEPS)]
    bf16 = ["--dtype", "bfloat16"] if torch.cuda.is_available() else []
    said = subprocess.run([*command, *bf16], capture_output=True, text=True, check=True).stdout
    steps = [float(line.split()[2]) for line in said.splitlines() if line.startswith("step ")]
    return {"seconds_per_step": sorted(steps[2:])[len(steps[2:]) // 2], "said": said[-200:]}


def _progress(folder: RunFolder) -> list[events.Progress]:
    return [one for one in folder.read_events() if isinstance(one, events.Progress)]


def run(wanted: Sequence[Check], out: Path, seconds: float) -> dict[str, Any]:
    """Run the checks one after the other, as long as there is time: name -> what was found, an
    error, or that there was no time.
    """
    ends, found = time.monotonic() + seconds, dict[str, Any]()
    with tempfile.TemporaryDirectory() as made:
        for number, check in enumerate(wanted):
            if time.monotonic() + check.seconds > ends:
                found[check.name] = {"left_out": f"needs up to {check.seconds:.0f} s"}
                continue
            place = Path(made) / str(number)
            place.mkdir()
            (place / "models").symlink_to(Path(made), target_is_directory=True)
            started = time.monotonic()
            try:
                found[check.name] = {**check.run(place)}
            except Exception as error:
                lines = traceback.format_exc().splitlines()
                found[check.name] = {"failed": str(error)[:2000], "where": lines[-8:]}
            found[check.name]["took"] = time.monotonic() - started
            print(f"{check.name}: {_short(found[check.name])}", flush=True)
            files.write_text(out / "results.json", json.dumps(found, indent=1))
    files.write_text(out / "results.md", as_table(found))
    return found


def as_table(found: Mapping[str, Any]) -> str:
    """The results as a table for BENCHMARKS.md."""
    lines = ["| | |", "| --- | --- |"]
    return (
        "\n".join([*lines, *(f"| {name} | {_short(one)} |" for name, one in found.items())]) + "\n"
    )


def _short(one: Mapping[str, Any]) -> str:
    if "share_of_matmul_rate" in one:
        return (
            f"{one['seconds_per_step']:.3f} s/step, {one['share_of_matmul_rate']:.0%} of the matmul"
            f" rate, peak {one['peak'] / GIB:.2f} GiB (planned {one['planned_peak'] / GIB:.2f}),"
            f" first step after {one['first_step']:.1f} s, loss {one['losses'][-1]:.4f}"
        )
    return ", ".join(f"{key} {_number(value)}" for key, value in one.items() if key != "where")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    device = str(choose_device(asked.device))
    print(f"{describe_device(torch.device(device))}, torch {torch.__version__}", flush=True)
    wanted = [check for check in checks(device) if check.name.startswith(tuple(asked.only))]
    found = run(wanted, asked.out, asked.seconds)
    return 1 if any("failed" in one for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
