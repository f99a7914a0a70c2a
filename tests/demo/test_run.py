"""The demo as a newcomer runs it, shortened to a few steps."""

import json
from types import SimpleNamespace

from PIL import Image

from lora_trainer.demo import run
from tests.made import worker_here


def test_the_demo_trains_delivers_and_draws_its_grid(tmp_path, monkeypatch, capsys):
    short = run.Recipe(
        prompts=("a big heart in the middle, sumiwash style",), steps=3, image_count=4
    )
    monkeypatch.setitem(run.RECIPES, "ink", short)
    # a worker of its own is started in tests/test_main.py
    monkeypatch.setattr(run, "start_worker", worker_here)
    place = tmp_path / "demo"
    place.mkdir()  # an empty folder that was named is the one that was meant
    assert run.run_demo(place, "ink") == 0
    assert {path.name for path in (place / "Lora").iterdir()} == {
        "ink.safetensors",
        "ink.json",
        "ink.png",
    }
    grid = Image.open(place / "what-it-learned.png")
    assert grid.width > 5 * 64 and grid.height > 64
    said = capsys.readouterr().out
    card = json.loads((place / "Lora" / "ink.json").read_text(encoding="utf-8"))
    assert "what-it-learned.png" in said
    assert f"<lora:ink:{card['preferred weight']:g}> sumiwash" in said
    assert f": {place / 'ink' / 'report.html'}" in said
    # what is there already stays, and the status of a worker that fails is the command's
    before = (place / "ink" / "report.html").read_bytes()
    monkeypatch.setattr(
        run, "start_worker", lambda folder: SimpleNamespace(returncode=4, poll=lambda: 4)
    )
    assert run.run_demo(place, "ink") == 4
    assert len(list((tmp_path / "demo-2" / "images").glob("*.png"))) == 4
    assert not (tmp_path / "demo-2" / "what-it-learned.png").exists()
    assert (place / "ink" / "report.html").read_bytes() == before


def test_every_concept_has_a_recipe_with_its_trigger():
    from lora_trainer.demo.world import CONCEPTS

    assert set(run.RECIPES) == set(CONCEPTS)
    for name, recipe in run.RECIPES.items():
        assert all(CONCEPTS[name].trigger in prompt for prompt in recipe.prompts)
