"""What the tab's requests about one dataset cost in processor time.

    python -m tests.benchmark.dataset_index                 2,000 and 10,000 images, with captions
                                                            in .txt files and in metadata.csv
    python -m tests.benchmark.dataset_index --images 500    another number of them

Each request is the handler's own work up to its JSON, without the web server around it. Processor
time of all threads (`time.process_time`), the median of some runs; beside it how many folders were
listed (`os.scandir`) and how many files were asked for their size and time (`os.stat`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from lora_trainer import environment

    environment.activate(environment.find_tests_overlay())
    environment.activate()

from PIL import Image

from lora_trainer.webui.captions import routes as caption_routes
from lora_trainer.webui.captions.workbench import Workbenches
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http.routing import Request
from lora_trainer.webui.images import routes as dataset_routes
from lora_trainer.webui.settings.preflight import PlanRequest
from tests.made import tiny_checkpoint
from tests.webui.drafts import app as make_app

RUNS = 7
ASKED = {"trigger": "zrb", "tokens": "75"}
"""What the page says with each question."""
WORDS = (
    "a red fox leaping over a log, thick winter fur, in a birch forest, soft morning light",
    "1girl, solo, long hair, blue eyes, smile, outdoors, from side, ink wash",
    "a wolf beside a frozen river, three quarters view, muted colours, watercolour, snow",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 10000])
    parser.add_argument("--captions", nargs="+", default=["txt", "csv"], choices=["txt", "csv"])
    chosen = parser.parse_args()
    print("| images | captions in | request | processor ms | folders listed | files asked |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in chosen.images:
        for kind in chosen.captions:
            with tempfile.TemporaryDirectory() as folder:
                for name, milliseconds, calls in measured(Path(folder), count, kind):
                    print(
                        f"| {count:,} | {kind} | {name} | {milliseconds:.1f} | {calls['scandir']}"
                        f" | {calls['stat']:,} |",
                        flush=True,
                    )


def open_anew(app: Any, data: DataFolder) -> None:
    """As after a start: nothing is known of the datasets."""
    app.datasets = Datasets(data, lambda: False)
    app.workbenches = Workbenches(app.datasets)
    app.preflight = dataclasses.replace(app.preflight, datasets=app.datasets)


def measured(root: Path, count: int, kind: str) -> Iterator[tuple[str, float, Counter[str]]]:
    """(request, milliseconds, calls to the system), for each kind of request."""
    app = make_app(root)
    app.host.list(tiny_checkpoint("sd1"))
    app.host.load(tiny_checkpoint("sd1"))
    data = DataFolder(root / "data")
    open_anew(app, data)
    folder = data.folder("datasets") / "many"
    write_images(folder, count, kind)

    def items(**query: Any) -> dict[str, Any]:
        return told(dataset_routes.items, query={"limit": "60", **ASKED, **query})

    def told(handler: Callable[..., Any], **values: Any) -> Any:
        answer = handler(app, request(**values))
        json.dumps(answer)
        return answer

    def opened() -> None:
        open_anew(app, data)
        items()

    captions = {item["key"]: item["caption"] for item in items(limit="500")["items"]}
    keys = iter(captions)
    news = iter(range(10**6))

    def save() -> None:
        key = next(keys)
        caption = f"{captions[key]}, {next(news)}"
        told(
            dataset_routes.write_caption,
            body={"key": key, "caption": caption, "was": captions[key], "trigger": "zrb"},
        )

    def foresee() -> None:
        plan = PlanRequest(
            dataset="many", settings={"lora_rank": 8 + next(news), "trigger_word": "q"}
        )
        json.dumps(app.preflight.check(plan).to_json(""))

    revision = ""

    def poll() -> None:
        assert items(known=revision)["unchanged"]

    yield "the card among the datasets", *timed(lambda: told(dataset_routes.list_datasets))
    yield "opening the workbench, first time", *timed(opened, 3)
    items()
    yield "a page of 60", *timed(items)
    yield "a page of 60, with a filter", *timed(lambda: items(filter="long", text="fox"))
    revision = items()["revision"]
    yield "looking again (unchanged)", *timed(poll)
    yield (
        "the table of tags",
        *timed(lambda: told(caption_routes.tags, query={"limit": "300", **ASKED})),
    )
    yield "a saved caption", *timed(save)
    first = timed(foresee, 1)
    app.image_cache.wait()
    yield "a form's first plan", *first
    foresee()
    yield "a changed form field", *timed(foresee)
    bench = app.workbenches.of("many")
    bench.checker.start(bench.checker.status(bench.store.view()).settings)
    bench.checker.wait()
    items()
    yield "a page of 60, after a check", *timed(items)
    yield "a saved caption, after a check", *timed(save)
    yield "the check's own panel", *timed(lambda: told(caption_routes.read_check))
    app.image_cache.close()


def write_images(folder: Path, count: int, kind: str) -> None:
    folder.mkdir(parents=True)
    rows = ["file_name,text"]
    for number in range(count):
        name = f"{number:06d}"
        # no two are alike
        Image.frombytes("RGB", (12, 8), random.randbytes(288)).save(folder / f"{name}.png")
        caption = f"{WORDS[number % len(WORDS)]}, number {number}"
        if kind == "txt":
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
        rows.append(f'{name}.png,"{caption}"')
    if kind == "csv":
        (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    # as a folder that has lain there for a while: nothing in it is of this very moment
    old = time.time() - 3600
    for path in (*folder.iterdir(), folder):
        os.utime(path, (old, old))


def request(*, query: dict[str, str] | None = None, body: dict[str, Any] | None = None) -> Request:
    return Request(
        path={"id": "many"},
        query=query or {},
        body=body or {},
        language="",
        remote=False,
        raw=SimpleNamespace(),  # type: ignore[arg-type]
    )


def timed(what: Callable[[], object], runs: int = RUNS) -> tuple[float, Counter[str]]:
    """The median of `runs` times, in milliseconds, and the calls of one more."""
    times = []
    for _ in range(runs):
        begin = time.process_time()
        what()
        times.append(time.process_time() - begin)
    if runs == 1:
        return times[0] * 1000, Counter()
    with counted() as calls:
        what()
    return statistics.median(times) * 1000, calls


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts listings of folders and questions about files, those of directory entries included."""
    calls: Counter[str] = Counter()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.scandir", "os.listdir"):
            calls["scandir"] += 1

    stat = os.stat

    def counting(*arguments: Any, **options: Any) -> os.stat_result:
        calls["stat"] += 1
        return stat(*arguments, **options)

    hooks.append(audit)
    with mock.patch("os.stat", counting):
        try:
            yield calls
        finally:
            hooks.remove(audit)


hooks: list[Callable[[str, tuple[Any, ...]], None]] = []
sys.addaudithook(lambda event, arguments: [hook(event, arguments) for hook in hooks][:0] or None)

if __name__ == "__main__":
    main()
