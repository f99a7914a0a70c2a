"""The tab appears on both WebUIs, whatever happens inside it."""

from __future__ import annotations

from tests.browser.tab import ROOT, open_tab, show_tab


def test_the_tab_appears_and_nothing_complains(host, visitor):
    page = open_tab(visitor, host)
    titles = page.locator("#lora_trainer_root .lora-trainer-step-title").all_inner_texts()
    assert titles == ["Images", "Captions", "Settings", "Train", "Try it"]


def test_the_extension_writes_no_error_to_the_hosts_console(host, visitor):
    open_tab(visitor, host)
    assert "Traceback" not in host.log()
    assert "***" not in host.log()


def test_a_page_that_is_there_before_our_routes_starts_by_itself(host, visitor):
    page = visitor.page()
    page.route(
        "**/lora-trainer/home*",
        lambda route: route.fulfill(status=404, body='{"detail":"Not Found"}'),
        times=2,
    )
    page.goto(host.url)
    page.wait_for_selector("#tabs")
    show_tab(page)
    page.wait_for_selector(f"{ROOT} [role=tablist]")
    assert [text for text in visitor.complaints if "404" not in text] == [] and len(
        visitor.complaints
    ) == 2
    visitor.complaints.clear()
