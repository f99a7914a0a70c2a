"""A blank page with the extension's scripts in it: their pure parts are tested without a WebUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script_page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(locale="en-US")
    page.set_content('<div id="txt2img_prompt"><textarea></textarea></div>')
    for name in ("lora_trainer.js", "lora_trainer_tags.js", "lora_trainer_draft.js"):
        page.add_script_tag(path=ROOT / "javascript" / name)
    yield page
    page.close()


@pytest.fixture
def call(script_page: Any) -> Any:
    """call("tags.find", prompt): what loraTrainer.tags.find says."""

    def run(path: str, *arguments: Any) -> Any:
        look_up = (
            "([path, args]) => path.split('.').reduce((found, name) => found[name],"
            " window.loraTrainer)(...args)"
        )
        return script_page.evaluate(look_up, [path, list(arguments)])

    return run
