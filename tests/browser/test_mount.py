"""The tab appears on both WebUIs, whatever happens inside it; its modules are of one version."""

from __future__ import annotations

import re

import pytest

from tests.browser.running import FakeHost
from tests.browser.tab import ROOT, expect, open_bare_tab, open_tab, show_tab
from tests.browser.test_trouble import extension_copy


@pytest.mark.webuis("forge")
def test_a_page_that_is_there_before_our_routes_starts_by_itself(host, visitor):
    page = visitor.page()
    page.route(
        "**/lora-trainer/modules",
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


@pytest.fixture
def watched(visitor):
    """The visitor, with what their pages ask for."""
    visitor.note_requests()
    return visitor


def versions(visitor) -> set[str]:
    """Of the modules that a visitor's pages asked for."""
    found = (re.search(r"/lora-trainer/static/(\w+)/", url) for _, url in visitor.requests)
    return {match[1] for match in found if match}


def test_the_tab_appears_with_modules_of_one_version_and_nothing_complains(host, watched):
    seen = len(host.log())
    page = open_tab(watched, host)
    titles = page.locator("#lora_trainer_root .lora-trainer-step-title").all_inner_texts()
    assert titles == ["Images", "Captions", "Settings", "Train", "Try it"]

    told = host.get("modules")
    urls = [url.removeprefix(host.url) for _, url in watched.requests]
    assert {f"lora-trainer/{path}" for path in told["all"]} <= set(urls)
    assert len(versions(watched)) == 1
    # every script but the entry
    ours = {url.split("?")[0].rsplit("/", 1)[1] for url in urls if "/javascript/" in url}
    assert ours == {"lora_trainer.js"}

    # nor does the extension write an error to the host's console; a WebUI that was reloaded
    # meanwhile has told of its own server's end
    started = host.log().split("Startup time:")[0]
    for log in (started, host.log()[seen:]):
        assert "Traceback" not in log
        assert "***" not in log


@pytest.mark.webuis("forge")
def test_a_page_whose_modules_are_gone_says_that_it_must_be_reloaded(host, visitor):
    told = host.get("modules")
    gone = {**told, "start": re.sub(r"/\w{16}/", "/0123456789abcdef/", told["start"]), "all": []}
    page = visitor.page()
    # asked before an update, and answered; the module is asked for after it
    page.route("**/lora-trainer/modules", lambda route: route.fulfill(json=gone), times=1)
    page.goto(host.url)
    page.wait_for_selector("#tabs")
    show_tab(page)
    page.locator(ROOT).get_by_text("Reload the page: the extension may").wait_for()
    assert page.locator(f"{ROOT} [role=tablist]").count() == 0
    assert page.evaluate("window.loraTrainer") is None
    assert visitor.complaints
    visitor.complaints.clear()
    page.locator(ROOT).get_by_role("button", name="Reload the page").click()
    page.wait_for_selector("#tabs")
    show_tab(page)
    page.wait_for_selector(f"{ROOT} [role=tablist]")


@pytest.mark.webuis("forge")
@pytest.mark.webuis("a1111")
def test_after_an_update_a_page_has_the_modules_of_the_running_webui(
    host, flavour, watched, tmp_path
):
    copy = extension_copy(tmp_path)
    updated = FakeHost(
        data=tmp_path / "web ui", flavour=flavour, arguments=("--extension", str(copy))
    )
    updated.start()
    try:
        page = open_bare_tab(watched, updated)
        (before,) = versions(watched)
        with (copy / "javascript" / "common" / "store.js").open("a", encoding="utf-8") as stream:
            stream.write("\n// updated\n")

        # the WebUI still runs what it started with
        watched.requests.clear()
        page.reload()
        page.wait_for_selector(f"{ROOT} [role=tablist]")
        assert versions(watched) <= {before}
        assert before in updated.get("modules")["start"]

        updated.kill()
        updated.start()
        expect(page.locator(ROOT).get_by_text("The WebUI was restarted.")).to_be_visible()
        watched.requests.clear()
        open_bare_tab(watched, updated)
        (now,) = versions(watched)
        assert now != before
        assert {url for _, url in watched.requests if f"/lora-trainer/static/{now}/" in url} == {
            f"{updated.url}lora-trainer/{path}" for path in updated.get("modules")["all"]
        }
    finally:
        updated.kill()
        # while it was gone
        watched.complaints.clear()
