"""The check in the tab: images measured once, captions judged as they are now, findings fixed at
a click.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from lora_trainer.dataset import embeddings
from lora_trainer.dataset.check import measure
from lora_trainer.dataset.images import digest
from lora_trainer.dataset.template import Vocabulary, write_vocabulary
from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui.captions import check
from lora_trainer.webui.captions.check import CheckSettings, clusters
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.datasets.caption_store import CaptionStore, key_of
from tests.dataset.pictures import noise


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        noise((300, 260), seed + 1).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(
        "file_name,text\na.png,sks fox\nb.png,wolf\nc.png,\n", encoding="utf-8"
    )
    return tmp_path


def again(folder: Path) -> Workbench:
    return Workbench(CaptionStore(folder, follow_links=True), clock=lambda: 1e9)


def checked(folder: Path, **settings) -> Workbench:
    bench = again(folder)
    bench.checker.start(CheckSettings(**{"resolution": 256, **settings}))
    bench.checker.wait()
    return bench


def kinds(bench: Workbench) -> dict[str, list[str]]:
    found = bench.checker.findings(bench.store.view()).of_images
    return {path.name: sorted(told.finding.kind for told in some) for path, some in found.items()}


def test_nothing_is_said_before_anybody_asked(folder):
    bench = again(folder)
    assert kinds(bench) == {}
    assert bench.checker.status(bench.store.view()).state == "none"


def test_findings_stand_beside_their_image_and_go_when_the_caption_is_fixed(folder):
    bench = checked(folder, resolution=768, trigger="sks")
    status = bench.checker.status(bench.store.view())
    assert (status.state, status.done, status.total, status.stale) == ("done", 3, 3, False)
    found = kinds(bench)
    # a caption without the trigger word is no fault: training adds it
    assert found["a.png"] == found["b.png"] == ["small-image"]
    # what the folder says already is not said twice
    assert "no-caption" not in found["c.png"]
    serial, revision = bench.checker.serial, bench.revision(bench.store.view())
    bench.save(key_of("b.png"), "wolf " * 80, "wolf")
    assert kinds(bench)["b.png"] == ["long-caption", "small-image"]
    bench.save(key_of("b.png"), "sks wolf", ("wolf " * 80).strip())
    assert kinds(bench)["b.png"] == ["small-image"]
    assert bench.checker.serial == serial and bench.revision(bench.store.view()) != revision


def test_the_vocabulary_is_asked_as_it_is_now(folder):
    bench = checked(folder)
    write_vocabulary(folder, Vocabulary(opening="lab"))
    told = bench.checker.findings(bench.store.view()).of_images[folder / "b.png"]
    assert [dict(each.finding.fix) for each in told if each.finding.kind == "vocabulary"] == [
        {"do": "set_caption", "caption": "lab, wolf"}
    ]
    bench.fix([each for each in told if each.finding.kind == "vocabulary"])
    assert bench.store.view().item(key_of("b.png")).caption == "lab, wolf"
    assert "vocabulary" not in kinds(bench).get("b.png", [])


def test_what_was_measured_is_remembered_over_a_restart_and_new_pictures_are_looked_at(
    folder, monkeypatch
):
    checked(folder)
    opened = []
    real = measure.measure
    monkeypatch.setattr(
        measure, "measure", lambda path, *rest: (opened.append(path.name), real(path, *rest))[1]
    )
    noise((300, 260), 9).save(folder / "d.png")
    bench = again(folder)
    view = bench.store.view()
    assert bench.checker.status(view).stale
    bench.checker.keep_up(view)
    bench.checker.wait()
    assert opened == ["d.png"]
    assert not bench.checker.status(bench.store.view()).stale
    bench.checker.keep_up(bench.store.view())
    bench.checker.wait()
    assert opened == ["d.png"]


def test_findings_of_a_picture_that_was_replaced_are_not_shown(folder):
    bench = checked(folder, resolution=768)
    assert "small-image" in kinds(bench)["a.png"]
    noise((768, 768), 4).save(folder / "a.png")
    assert "small-image" not in kinds(bench).get("a.png", [])
    assert bench.checker.status(bench.store.view()).stale


def test_what_a_captioner_saw_is_looked_at_once_it_is_done(folder):
    for seed in range(6):
        noise((300, 260), seed + 10).save(folder / f"{seed}.png")
    bench = checked(folder)
    rows = {digest(path): np.array([1, 0], np.float16) for path in folder.glob("*.png")}
    embeddings.add(
        folder,
        embeddings.Embedded(encoder="CLIP of a test", title="CLIP", unrelated=0.4, by_digest=rows),
    )
    changed = (folder / ".lora_trainer" / "embeddings").stat().st_mtime
    for since, expected in ((5, []), (15, ["little-variety"])):
        bench.checker._clock = lambda now=changed + since: now
        assert bench.checker.status(bench.store.view()).stale == bool(expected)
        bench.checker.keep_up(bench.store.view())
        bench.checker.wait()
        assert [
            told.finding.kind for told in bench.checker.findings(bench.store.view()).of_all
        ] == expected
    assert not bench.checker.status(bench.store.view()).stale


def test_near_duplicates_come_as_a_cluster_with_the_one_to_keep(folder):
    noise((300, 260), 1).save(folder / "e.jpg", quality=90)
    bench = checked(folder)
    view = bench.store.view()
    found = [
        ({path.name for path in paths}, best.name)
        for paths, best in clusters(bench.checker.findings(view), view)
    ]
    assert (
        len(found) == 1 and found[0][0] == {"a.png", "e.jpg"} and found[0][1] in ("a.png", "e.jpg")
    )
    other = ({"a.png", "e.jpg"} - {found[0][1]}).pop()
    assert "near-duplicate" in kinds(bench)[other]


def test_a_check_is_stopped_and_begun_again_with_other_settings(folder, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = measure.measure

    def slow(path, *rest):
        begun.set()
        assert go_on.wait(120)
        return real(path, *rest)

    monkeypatch.setattr(measure, "measure", slow)
    bench = again(folder)
    bench.checker.start(CheckSettings(resolution=256))
    assert begun.wait(120)
    bench.checker.stop()
    go_on.set()
    bench.checker.wait()
    assert bench.checker.status(bench.store.view()).state == "stopped"
    begun.clear()
    go_on.clear()
    bench.checker.start(CheckSettings(resolution=256))
    bench.checker.start(CheckSettings(resolution=1024))
    go_on.set()
    bench.checker.wait()
    status = bench.checker.status(bench.store.view())
    assert (status.state, status.settings.resolution) == ("done", 1024)
    assert "small-image" in kinds(bench)["a.png"]


def test_a_check_that_fails_says_why(folder, monkeypatch):
    def fail(*_, **__):
        raise LoraTrainerError("the disk is gone")

    monkeypatch.setattr(check.check, "check", fail)
    bench = checked(folder)
    status = bench.checker.status(bench.store.view())
    assert (status.state, str(status.error)) == ("failed", "the disk is gone")
    bench.checker.keep_up(bench.store.view())
    assert bench.checker.status(bench.store.view()).state == "failed"


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens": []},
        {"tokens": 7},
        {"resolution": None},
        {"resolution": 10**30},
        {"tokens": "many"},
    ],
    ids=str,
)
def test_settings_of_a_check_that_are_none_are_begun_anew(folder, damage):
    kept = {
        "settings": {"resolution": 768, "trigger": "zorb", "tokens": 150, **damage},
        "checked": 1e9,
    }
    (folder / ".lora_trainer").mkdir()
    (folder / ".lora_trainer" / "check.json").write_text(json.dumps(kept), encoding="utf-8")
    bench = again(folder)
    view = bench.store.view()
    assert bench.checker.status(view).settings == CheckSettings()
    assert bench.checker.findings(view).of_images == {}
