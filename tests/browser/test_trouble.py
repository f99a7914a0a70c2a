"""When something is broken, the tab still appears, and says what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.browser.running import ROOT, FakeHost, missing_for_fake_hosts
from tests.browser.tab import expect, open_bare_tab, open_host, show_tab


def extension_copy(folder: Path) -> Path:
    """The extension as an artist has it, in a folder of their choice, to be broken. With what Python
    has compiled of it: a host would be busy with that for seconds.
    """
    target = folder / "extensions" / "我的 trainer"
    ignored = shutil.ignore_patterns("*.safetensors")
    for name in ("lora_trainer", "scripts", "javascript"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("install.py", "preload.py", "style.css"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target)
    return target


@pytest.fixture
def start(flavour, tmp_path):
    reason = missing_for_fake_hosts()
    if reason:
        pytest.skip(reason)
    started = []

    def begin(*arguments: str) -> FakeHost:
        host = FakeHost(data=tmp_path / "web ui", flavour=flavour, arguments=arguments)
        host.start()
        started.append(host)
        return host

    yield begin
    for host in started:
        host.kill()


@pytest.mark.webuis("a1111")
def test_without_the_workers_packages_the_tab_offers_to_set_them_up(start, visitor):
    host = start("--lacking", "lora-trainer-lacks-this")
    page = open_bare_tab(visitor, host)
    setup = page.get_by_label("Set-up", exact=True)
    setup.get_by_role("button", name="Set up").wait_for()
    expect(setup.get_by_role("button", name="Copy a report")).to_be_visible()
    expect(
        setup.get_by_text(
            "Training needs packages that are not installed yet: lora-trainer-lacks-this"
        )
    ).to_be_visible()


@pytest.mark.parametrize(
    ("file", "addition", "reason"),
    [
        pytest.param(
            "lora_trainer/webui/datasets/registry.py",
            "\nimport no_such_package\n",
            "no_such_package",
            marks=pytest.mark.webuis("forge"),
        ),
        pytest.param(
            "lora_trainer/hosts/base.py",
            "\nthis is no Python\n",
            "invalid syntax",
            marks=pytest.mark.webuis("a1111"),
        ),
    ],
)
def test_a_fault_in_the_extension_leaves_a_tab_that_says_so(
    start, visitor, tmp_path, file, addition, reason
):
    copy = extension_copy(tmp_path)
    assert (copy / file).is_file()
    with (copy / file).open("a", encoding="utf-8") as stream:
        stream.write(addition)
    host = start("--extension", str(copy))
    page = open_host(visitor, host)
    show_tab(page)
    trouble = page.locator("#lora_trainer_trouble")
    trouble.wait_for()
    report = trouble.locator("textarea").input_value()
    assert reason in report
    assert "gradio" in report
    # the browser notes the answer that told it
    visitor.complaints[:] = [
        text
        for text in visitor.complaints
        if "the server responded with a status of 500" not in text
    ]
