"""A plan's scan is kept while nothing that it depends on changes, and no longer."""

from __future__ import annotations

import pytest

from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.settings import scan_cache as module
from lora_trainer.webui.settings.image_cache import ImageCache
from lora_trainer.webui.settings.scan_cache import ScanCache
from tests.dataset.pictures import save


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    """scanned(settings) -> (the scan, how many times the dataset was scanned in all)."""
    folder = tmp_path / "fox"
    for name in ("a.png", "b.png"):
        save(folder / name, size=(64, 48))
        (folder / name).with_suffix(".txt").write_text(f"a fox, {name}", encoding="utf-8")
    images, store = ImageCache(tmp_path / "images.json"), CaptionStore(folder, follow_links=True)
    scans, counts = ScanCache(images), []
    scan = module.scan
    monkeypatch.setattr(module, "scan", lambda *a, **b: counts.append(1) or scan(*a, **b))

    def ask(**settings):
        asked = DatasetSettings(train_data_dir=folder, **settings)
        found = scans.scan(store, asked, None, 75)
        images.wait()
        return found, len(counts)

    ask()  # the first one has its images decoded afterwards
    counts.clear()
    ask.folder = folder
    yield ask
    images.close()


def test_settings_that_do_not_concern_it_change_nothing(scanned):
    first, _ = scanned(resolution=512)
    again, count = scanned(resolution=768, bucket_step=32)
    assert again is first and count == 1


@pytest.mark.parametrize("settings", [{"trigger_word": "zrb"}, {"repeats": 3}])
def test_settings_that_concern_it_are_scanned_for(scanned, settings):
    first, _ = scanned()
    other, count = scanned(**settings)
    assert count == 2
    assert other.dataset.examples != first.dataset.examples


def test_what_another_program_saved_is_in_the_next_plan(scanned):
    scanned()
    (scanned.folder / "a.txt").write_text("a wolf", encoding="utf-8")
    found, _ = scanned()
    assert [example.caption for example in found.dataset.examples] == ["a wolf", "a fox, b.png"]
    save(scanned.folder / "c.png", size=(64, 48), colour="blue")
    found, _ = scanned()
    assert "c.png has no caption" in [str(one.message) for one in found.sums]


def test_a_folder_that_cannot_be_trained_says_so_each_time(scanned):
    for path in scanned.folder.glob("*.png"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(DatasetError, match="no images"):
            scanned()
