"""An artist's way through the tab, from a few images to an image with the LoRA; and what a run
survives meanwhile.

Everything is real but the WebUI's images: the worker trains the embedded checkpoint. One test
leaves what the next begins with, as an artist would. On Forge the training is asked for without a
page: the tab's part of it is the same as on A1111, what the WebUI makes of the LoRA is not.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser.pictures import picture
from tests.browser.tab import (
    eventually,
    expect,
    open_bare_tab,
    open_host,
    open_step,
    open_tab,
    show_tab,
)

pytestmark = pytest.mark.usefixtures("forking_host")
NAME = "red discs"
STEPS = 12
PATIENCE = 300_000
"""Milliseconds for a training: other tests may share the processor."""


def files(*numbers: int) -> list[dict[str, Any]]:
    return [
        {"name": f"image {number}.png", "mimeType": "image/png", "buffer": picture(number)}
        for number in numbers
    ]


def choose_settings(page: Any, name: str, steps: int) -> None:
    """Practice model, Quick test, a name, a few steps."""
    section = open_step(page, "settings")
    section.locator("#lora_trainer_checkpoint").select_option("practice")
    section.get_by_role("button", name="Quick test", exact=True).click()
    section.locator("#lora_trainer_name").fill(name)
    section.get_by_label("Trigger word", exact=True).fill("ohwx")
    section.get_by_label("Steps", exact=True).fill(str(steps))
    plan = section.get_by_label("What will happen")
    plan.get_by_text(re.compile(f"Trains {steps:,} steps".replace(",", ",?"))).wait_for()


def runs(host: Any) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in host.get("runs")["runs"]}


def wait_for_run(host: Any, name: str, *status: str, seconds: float = 300) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run = runs(host).get(name)
        if run and run["status"] in status:
            return run
        assert run is None or run["status"] not in ("failed", "lost"), run
        time.sleep(0.2)
    raise AssertionError(f"{name} did not become {status}: {runs(host).get(name)}")


@pytest.fixture(scope="module")
def trained(forking_host):
    """What the first journey leaves behind; made over HTTP where there was none."""
    host = forking_host
    if NAME not in runs(host):
        identity = host.post("datasets", {"name": "discs"}).json()["id"]
        for number in range(4):
            host.ask(
                "POST",
                f"lora-trainer/datasets/{identity}/upload?name={number}.png",
                picture(number),
                {"X-LoRA-Trainer": "1"},
            )
        settings = {"max_train_steps": STEPS, "trigger_word": "ohwx", "save_steps": 4}
        asked = {
            "dataset": identity,
            "checkpoint": "practice",
            "name": NAME,
            "settings": settings,
            "token": "made by the fixture",
            "when": "now",
        }
        answer = host.post("runs", asked)
        assert answer.status == 200, answer.body
    return wait_for_run(host, NAME, "finished")


@pytest.mark.webuis("a1111")
def test_from_images_to_a_finished_lora(host, visitor):
    page = open_tab(visitor, host)

    images = open_step(page, "images")
    images.get_by_role("button", name="New dataset", exact=True).click()
    dialog = page.locator("dialog[open]")
    dialog.get_by_role("textbox").fill("discs")
    dialog.locator(".lora-trainer-dialog-actions .lora-trainer-primary").click()
    images.get_by_role("radio", name="discs", checked=True).wait_for()
    images.locator("input[type=file]").set_input_files(files(1, 2, 3, 4))
    images.get_by_text("4 images added.").wait_for()
    images.locator(".lora-trainer-cell").nth(3).wait_for()
    expect(images.locator(".lora-trainer-cell")).to_have_count(4)

    captions = open_step(page, "captions")
    for number in (1, 2, 3, 4):
        box = captions.get_by_label(f"Caption of image {number}.png")
        box.fill(f"a disc, plain ground {number}")
        box.blur()
        captions.get_by_text(f"{number} of 4 with a caption").first.wait_for()
    (card,) = (card for card in host.get("datasets") if card["name"] == "discs")
    captioned = {
        item["name"]: item["caption"]
        for item in host.get(f"datasets/{quote(card['id'])}/items")["items"]
    }
    assert captioned == {
        f"image {number}.png": f"a disc, plain ground {number}" for number in (1, 2, 3, 4)
    }

    choose_settings(page, NAME, STEPS)

    train = open_step(page, "train")
    train.get_by_role("button", name="Start", exact=True).click()
    live = train.get_by_label("Training", exact=True)
    live.get_by_role("progressbar").wait_for()
    live.get_by_text(re.compile(rf"Step \d+ of {STEPS}")).first.wait_for(timeout=PATIENCE)
    live.get_by_text(re.compile(rf"Finished after {STEPS} steps")).first.wait_for(timeout=PATIENCE)
    # decode() waits for what is still loading, and fails for what is no image
    live.locator("img").first.evaluate("image => image.decode()")

    assert (host.lora_folder / f"{NAME}.safetensors").is_file()
    assert (
        json.loads((host.lora_folder / f"{NAME}.json").read_text(encoding="utf-8"))[
            "activation text"
        ]
        == "ohwx"
    )
    assert (host.lora_folder / f"{NAME}.png").is_file()

    images = open_step(page, "images")
    images.get_by_text("kept so that the next training starts sooner").wait_for()
    images.get_by_role("button", name="Delete encoded images").click()
    page.get_by_text("The next training encodes them again.").wait_for()
    assert host.get(f"datasets/{quote(card['id'])}/encoded") == {"size": 0}


def test_the_hosts_lora_page_has_the_card_without_a_restart_and_its_click_inserts_tag_and_trigger(
    host, visitor, trained
):
    page = open_host(visitor, host)
    page.wait_for_function(
        "() => typeof opts === 'object' && 'extra_networks_add_text_separator' in opts"
    )
    page.locator("#txt2img_extra_tabs > .tab-nav > button", has_text="Lora").first.click()
    page.locator("#txt2img_lora_extra_refresh_internal").click()
    page.locator("#txt2img_lora_cards .card", has_text=NAME).first.click()
    assert (
        page.locator("#txt2img_prompt textarea")
        .input_value()
        .strip()
        .startswith(f"<lora:{NAME}:0.")
    )
    assert page.locator("#txt2img_prompt textarea").input_value().endswith("> ohwx")


def test_send_to_txt2img_then_the_slider_changes_the_picture_and_zero_is_no_lora_at_all(
    host, visitor, trained
):
    page = open_tab(visitor, host)
    section = open_step(page, "try")
    section.get_by_label("Prompt", exact=True).fill("a disc on grass")
    section.get_by_role("button", name="Send to txt2img").click()
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.wait_for(state="visible")
    assert re.fullmatch(rf"ohwx, a disc on grass <lora:{NAME}:0\.\d+>", prompt.input_value())

    slider = page.get_by_role("slider", name=f"Strength of {NAME}")
    slider.fill("0.35")
    assert f"<lora:{NAME}:0.35>" in prompt.input_value()
    prompt.fill(prompt.input_value().replace(":0.35>", ":1.1>"))
    page.wait_for_function(
        "() => document.querySelector('#lora_trainer_strength_txt2img input[type=range]').value ==="
        " '1.1'"
    )

    page.locator("#txt2img_seed input").fill("7")
    made = {}
    for strength in ("0", "1"):
        slider.fill(strength)
        made[strength] = generate(page)
    slider.fill("0")
    prompt.fill(re.sub(r"<lora:[^>]*>", "", prompt.input_value()).strip())
    made["none"] = generate(page)
    assert made["0"] == made["none"] != made["1"]


def generate(page: Any) -> bytes:
    """Press the host's Generate; returns the image's pixels, as the browser has them."""
    before = page.evaluate(
        "() => [...document.querySelectorAll('#txt2img_gallery img')].map(image =>"
        " image.src).join()"
    )
    page.locator("#txt2img_generate").click()
    page.wait_for_function(
        "before => { const all = [...document.querySelectorAll('#txt2img_gallery img')]; return"
        " all.length && all.map(image => image.src).join() !== before && all[0].complete &&"
        " all[0].naturalWidth; }",
        arg=before,
    )
    source = page.evaluate("() => document.querySelector('#txt2img_gallery img').src")
    return bytes(
        page.evaluate(
            "async source => { const image = new Image(); image.src = source; await image.decode();"
            " const canvas = document.createElement('canvas'); canvas.width = image.naturalWidth;"
            " canvas.height = image.naturalHeight; const pen = canvas.getContext('2d');"
            " pen.drawImage(image, 0, 0); return [...pen.getImageData(0, 0, canvas.width,"
            " canvas.height).data]; }",
            source,
        )
    )


@pytest.mark.webuis("a1111")
def test_try_it_shows_base_and_lora_side_by_side_and_keeps_the_strength_that_was_chosen(
    host, visitor, trained
):
    page = open_tab(visitor, host)
    section = open_step(page, "try")
    section.get_by_label("Prompt", exact=True).fill("a disc")
    section.get_by_role("slider", name="Strength").fill("0.6")
    section.get_by_role("button", name="Generate", exact=True).click()
    pictures = section.get_by_label("Images", exact=True)
    pictures.locator("img").nth(1).wait_for()
    sources = [picture.get_attribute("src") for picture in pictures.locator("img").all()[:2]]
    base, with_lora = (host.ask("GET", source).body for source in sources)
    assert base != with_lora
    section.get_by_role("button", name="Use this strength").click()
    sidecar = host.lora_folder / f"{NAME}.json"
    eventually(lambda: json.loads(sidecar.read_text(encoding="utf-8"))["preferred weight"], 0.6)


@pytest.mark.webuis("a1111")
def test_a_run_is_found_again_after_refresh_second_browser_reload_ui_and_the_death_of_the_host(
    host, visit, trained
):
    name = "long run"
    visitors = [visit() for _ in range(4)]
    page = open_tab(visitors[0], host)
    open_step(page, "images").get_by_role("radio").first.click()
    choose_settings(page, name, 4000)
    train = open_step(page, "train")
    train.get_by_role("button", name="Start", exact=True).click()
    step = re.compile(r"Step \d+ of 4,?000")
    train.get_by_text(step).first.wait_for(timeout=PATIENCE)
    # what is looked at is where it is, and not how fast it trains
    worker = host.worker_of(runs(host)[name]["id"])
    worker.suspend()

    page.reload()
    show_tab(page)
    open_step(page, "train").get_by_text(step).first.wait_for()

    second = open_bare_tab(visitors[1], host)
    open_step(second, "train").get_by_text(step).first.wait_for()

    host.reload_ui()
    again = open_bare_tab(visitors[2], host)
    open_step(again, "train").get_by_text(step).first.wait_for()
    at_reload = runs(host)[name]["step"]

    host.kill()
    host.start()
    # the first page finds its way by itself, once the host answers
    page.wait_for_timeout(500)
    after = open_bare_tab(visitors[3], host)
    open_step(after, "train").get_by_text(step).first.wait_for()
    now = wait_for_run(host, name, "running")
    assert now["step"] >= at_reload
    open_step(page, "train").get_by_text(step).first.wait_for()

    one_click_starts_one_run(host, trained["dataset"])
    worker.resume()
    eventually(lambda: runs(host)[name]["step"] > at_reload, True)

    open_step(after, "train")
    bar = after.locator("#lora_trainer_section_train .lora-trainer-actions")
    bar.get_by_role("button", name="Pause", exact=True).click()
    wait_for_run(host, name, "paused")
    bar.get_by_role("button", name="Resume", exact=True).click()
    wait_for_run(host, name, "running")
    bar.get_by_role("button", name="Stop", exact=True).click()
    after.locator("dialog[open]").get_by_role("button", name="Stop and keep").click()
    stopped = wait_for_run(host, name, "stopped")
    assert stopped["step"] > 0
    for one in visitors:
        # the browser notes each question to a WebUI that is away or starting
        one.complaints[:] = [
            text for text in one.complaints if not text.startswith("Failed to load resource: ")
        ]
    assert [run["name"] for run in host.get("pulse")["active"] if run["status"] != "stopped"] == []


def one_click_starts_one_run(host: Any, dataset: str) -> None:
    """Two tabs send the same click twice, while something trains: one run waits, and a later one
    behind it.
    """
    body = {
        "dataset": dataset,
        "checkpoint": "practice",
        "settings": {"max_train_steps": 2, "trigger_word": "ohwx"},
        "when": "queue",
    }
    one, same = (
        host.post("runs", {**body, "name": "queued one", "token": "one and the same click"}).json()
        for _ in range(2)
    )
    other = host.post(
        "runs", {**body, "name": "queued two", "token": "another click, later"}
    ).json()
    assert one["id"] == same["id"] != other["id"]
    assert {
        name: run["position"] for name, run in runs(host).items() if run["status"] == "queued"
    } == {"queued one": 0, "queued two": 1}
    for run in (one, other):
        assert host.post(f"runs/{quote(run['id'])}/unqueue").status == 200
    assert not any(run["status"] == "queued" for run in runs(host).values())
