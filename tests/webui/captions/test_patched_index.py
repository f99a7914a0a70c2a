"""Whatever is done to a dataset, here or by another program, and in whatever order: what the tab
keeps of it between two requests is what a WebUI that has just been started finds.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_trainer.dataset.findings import warning
from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui.captions import tag_counts
from lora_trainer.webui.captions.check import CheckSettings, IdentifiedFinding
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.datasets import image_query
from lora_trainer.webui.datasets.caption_store import CaptionStore

NAMES = [f"{letter}.png" for letter in "abcdef"]
CAPTIONS = [
    "fox",
    "Fox",
    "a fox, ink, snow",
    "a fox \\(animal\\), ink",
    "a (fox:1.2) in snow, __place__",
    "zrb, " + "wolf " * 90,
    "two\nlines here.",
    "füchse, ink",
    "",
]
CHECK = CheckSettings(resolution=64, trigger="zrb", tokens=75)


class Folder:
    """A dataset, an open workbench of it, and everything that may happen to it."""

    def __init__(self, root: Path, kind: str, seed: int) -> None:
        self.root, self.kind, self.draw = root, kind, random.Random(seed)
        for name in NAMES[:4]:
            self._draw_picture(root / name)
        if kind == "csv":
            self._write_table({name: self.draw.choice(CAPTIONS) for name in NAMES[:4]})
        else:
            for name in NAMES[:3]:
                self._write_text(name)
        self.bench = self._opened()

    def _opened(self) -> Workbench:
        bench = Workbench(CaptionStore(self.root, follow_links=True), clock=lambda: 1e9)
        bench.checker.start(CHECK)
        bench.checker.wait()
        return bench

    def _draw_picture(self, path: Path) -> None:
        pixels = np.random.default_rng(self.draw.randrange(10**6)).integers(0, 255, (40, 30, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    def _write_text(self, name: str) -> None:
        text = self.draw.choice(CAPTIONS)
        (self.root / name).with_suffix(".txt").write_text(text, encoding="utf-8")

    def _write_table(self, captions: dict[str, str]) -> None:
        rows = "".join(f'{name},"{caption}"\n' for name, caption in captions.items())
        (self.root / "metadata.csv").write_text("file_name,text\n" + rows, encoding="utf-8")

    def _item(self):
        return self.draw.choice(self.bench.store.latest().items)

    # --- what may happen --------------------------------------------------------------------------

    def save(self) -> None:
        item = self._item()
        self.bench.save(item.key, self.draw.choice(CAPTIONS), item.caption)

    def save_again(self) -> None:
        for _ in range(3):
            self.save()

    def change_many(self) -> None:
        keys = [item.key for item in self.bench.store.view().items]
        action = {"do": "add", "text": self.draw.choice(["ink", "zrb"]), "at": "front"}
        self.bench.apply(self.bench.preview(keys, action))

    def remove(self) -> None:
        if len(self.bench.store.view().items) > 2:
            self.bench.remove([self._item().key])

    def restore(self) -> None:
        removed = self.bench.store.removed()
        if removed:
            self.bench.restore([self.draw.choice(removed).key])

    def crop(self) -> None:
        item = self._item()
        fix = {"do": "crop", "box": [2, 2, 28, 30]}
        told = warning("wide-border", "{name}", path=item.path, fix=fix, name=item.name)
        self.bench.fix([IdentifiedFinding(told)])

    def undo(self) -> None:
        self.bench.undo()

    def redo(self) -> None:
        self.bench.redo()

    def others_write_a_caption(self) -> None:
        item = self._item()
        if self.kind == "txt":
            return self._write_text(item.name)
        captions = {each.name: each.caption for each in self.bench.store.latest().items}
        return self._write_table({**captions, item.name: self.draw.choice(CAPTIONS)})

    def others_write_as_much_at_the_same_time(self) -> None:
        path = self.root / "metadata.csv" if self.kind == "csv" else self._item().path
        path = path if self.kind == "csv" else path.with_suffix(".txt")
        if path.exists():
            details = path.stat()
            path.write_bytes(path.read_bytes().swapcase())
            os.utime(path, ns=(details.st_atime_ns, details.st_mtime_ns))

    def others_add_an_image(self) -> None:
        self._draw_picture(self.root / self.draw.choice(NAMES))

    def others_take_an_image_away(self) -> None:
        if len(self.bench.store.view().items) > 2:
            self._item().path.unlink()

    def others_make_a_folder(self) -> None:
        (self.root / "more").mkdir(exist_ok=True)
        self._draw_picture(self.root / "more" / "g.png")
        (self.root / "more" / "g.txt").write_text("a folder's fox", encoding="utf-8")


HAPPENINGS = [name for name in vars(Folder) if not name.startswith("_")]


def seen(bench: Workbench) -> dict[str, object]:
    """All that a page shows of a dataset."""
    view = bench.store.view()
    known = bench.known(view, "zrb", 75)
    found = known.findings
    query = image_query.PageQuery(trigger="zrb", order="findings")
    return {
        "items": view.items,
        "findings": view.findings,
        "captions": view.captions.by_image,
        "versions": view.versions,
        "order": [item.name for item in image_query.page(view, query, known).items],
        "counts": image_query.counts(view.items, query, known),
        "tags": tag_counts.table([item.caption for item in view.items]),
        "told": {path: [told.id for told in some] for path, some in found.of_images.items()},
        "of all": sorted(told.id for told in found.of_all),
        "sums": Counter(
            (one.severity, one.kind, str(one.message), str(one.hint), frozenset(one.about))
            for one in found.summed
        ),
    }


@pytest.mark.parametrize("kind", ["txt", "csv"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_a_fresh_start_finds(tmp_path, kind, seed):
    folder = Folder(tmp_path, kind, seed)
    done = []
    for _ in range(12):
        done.append(folder.draw.choice(HAPPENINGS))
        try:
            getattr(folder, done[-1])()
        except LoraTrainerError:
            done[-1] += " (refused)"
        view = folder.bench.store.view()
        if folder.bench.checker.status(view).stale:
            # images are measured again by themselves, after a while
            folder.bench.checker.start(CHECK)
            folder.bench.checker.wait()
        fresh = seen(folder._opened())
        for what, now in seen(folder.bench).items():
            assert now == fresh[what], (what, done)
    assert not all(each.endswith("(refused)") for each in done)
