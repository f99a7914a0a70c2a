"""The tab appears on both WebUIs, whatever happens inside it."""

from __future__ import annotations

from tests.browser.tab import open_tab


def test_the_tab_appears_and_nothing_complains(host, visitor):
    page = open_tab(visitor, host)
    titles = page.locator("#lora_trainer_root .lora-trainer-step-title").all_inner_texts()
    assert titles == ["Images", "Captions", "Settings", "Train", "Try it"]


def test_the_extension_writes_no_error_to_the_hosts_console(host, visitor):
    open_tab(visitor, host)
    assert "Traceback" not in host.log()
    assert "***" not in host.log()
