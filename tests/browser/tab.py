"""Finding one's way around the tab, as the tests' visitors do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 120.0
"""Seconds for which what a page should say is waited for: an answer is drawn a moment after it has
come.
"""
expect.set_options(timeout=1000 * PATIENCE)

ROOT = "#lora_trainer_root"


def open_host(visitor: Any, host: Any, query: str = "") -> Page:
    """The WebUI's page, drawn."""
    page = visitor.page()
    page.set_default_timeout(host.page_patience)
    page.goto(host.url + query)
    page.wait_for_selector("#tabs")
    return page


def open_tab(visitor: Any, host: Any, query: str = "") -> Page:
    """Our tab, started: its steps are there."""
    page = open_host(visitor, host, query)
    show_tab(page)
    page.wait_for_selector(f"{ROOT} [role=tablist]")
    return page


def open_bare_tab(visitor: Any, host: Any) -> Page:
    """Our tab alone, without the WebUI's page around it: half of the processor time. For what only
    our own modules do; gradio's styles, themes and prompts are not there.
    """
    page = visitor.page()
    page.set_default_timeout(host.page_patience)
    page.goto(host.url + "bare")
    page.wait_for_selector(f"{ROOT} [role=tablist]")
    return page


def show_tab(page: Page, title: str = "LoRA Trainer") -> None:
    """Choose one of the host's tabs."""
    # a host with many tabs has more buttons of a name; gradio 4 draws them twice to measure them
    page.locator("#tabs > .tab-nav > button", has_text=title).first.click()


def open_step(page: Page, step: str) -> Any:
    """One of the tab's steps ("images", "captions", "settings", "train", "try"). Returns its
    section.
    """
    page.locator(f"#lora_trainer_step_{step}").click()
    section = page.locator(f"#lora_trainer_section_{step}")
    section.wait_for(state="visible")
    return section


def eventually(said: Any, wanted: Any, seconds: float = PATIENCE) -> None:
    """Until said() is what is wanted."""
    end = time.monotonic() + seconds
    while (last := said()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert last == wanted, f"{last!r}, not {wanted!r}"
