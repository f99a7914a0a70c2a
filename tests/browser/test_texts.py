"""Texts in the tab: dropped, edited in their file, and the language models that they can be trained
into.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.browser.tab import eventually, expect, open_step, open_tab
from tests.language.made import FACTS, base

pytestmark = [pytest.mark.webuis("forge"), pytest.mark.xdist_group("sections")]


def test_pairs_are_dropped_edited_and_offered_a_language_model(host, visitor, tmp_path):
    shutil.copytree(base("qwen2"), host.data / "models" / "LLM" / "tiny", dirs_exist_ok=True)
    file = tmp_path / "pairs.jsonl"
    lines = [{"question": key, "answer": FACTS[key], "id": 7} for key in FACTS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    try:
        drop_and_edit(visitor, host, file, lines)
    finally:
        # the next page would choose the only dataset that there is
        host.post("datasets/station/delete")
        shutil.rmtree(host.data / "models" / "LLM")


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def drop_and_edit(visitor: Any, host: Any, file: Path, lines: list[dict[str, Any]]) -> None:
    page = open_tab(visitor, host)
    open_step(page, "images")
    tab = page.locator(".lora-trainer")
    # of its own, whatever other tests have chosen
    tab.get_by_role("button", name="New dataset").click()
    dialog = page.locator("dialog[open]")
    dialog.get_by_label("Name").fill("station")
    dialog.get_by_label("Kind of data").select_option("texts")
    dialog.get_by_role("button", name="Create").click()
    expect(page.locator("#lora_trainer_step_images")).to_contain_text("Texts")
    tab.locator("input[type=file]").first.set_input_files(str(file))
    expect(tab.get_by_text("3 texts added")).to_be_visible()
    open_step(page, "captions")
    row = page.locator(".lora-trainer-pair").first
    row.get_by_label("Answer").fill("Open hatch C.")
    row.get_by_label("Answer").blur()
    expect(row.get_by_text("Saved")).to_be_visible()
    (kept,) = host.data.rglob("datasets/station/pairs.jsonl")
    saved = [json.loads(line) for line in lines_of(kept)]
    assert saved == [{**lines[0], "answer": "Open hatch C."}, *lines[1:]]
    page.get_by_role("button", name="Undo", exact=True).first.click()
    eventually(lambda: json.loads(lines_of(kept)[0]), lines[0])
    tab.get_by_role("button", name="Add a pair").click()
    dialog.get_by_label("Question").fill("Who?")
    dialog.get_by_label("Answer").fill("Ann.")
    dialog.get_by_role("button", name="Add", exact=True).click()
    undo = page.locator(".lora-trainer-toast").get_by_role("button", name="Undo")
    expect(undo).to_be_visible()
    # somebody else adds one as well, which stays
    host.post("datasets/station/add-text", {"question": "Where?", "answer": "Here."})
    undo.click()
    added = {"question": "Where?", "answer": "Here."}
    eventually(lambda: [json.loads(line) for line in lines_of(kept)[len(lines) :]], [added])
    tab.get_by_role("button", name="Changes").click()
    expect(dialog.locator("li").first).to_contain_text("1 text")
    dialog.get_by_text("Close", exact=True).click()
    open_step(page, "settings")
    page.locator("#lora_trainer_checkpoint").select_option(label="LLM/tiny")
    words = page.locator("#lora_trainer_checkpoint_text")
    expect(words).to_contain_text("Language model, qwen2")
    # nothing of images
    assert page.locator("[data-key=resolution]").count() == 0
    expect(page.locator("[data-key=sample_prompts]")).to_contain_text("Sample questions")
