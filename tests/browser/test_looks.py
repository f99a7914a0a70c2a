"""The tab at home in the WebUI: sizes, light and dark, names of controls, both languages; and quiet
while nobody looks.
"""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.browser.looks import (
    NAMELESS,
    PALE,
    TOO_WIDE,
    UNSEEN,
    complaints,
    foreign_words,
    resize,
    still,
)
from tests.browser.tab import expect, open_step, open_tab
from tests.browser.test_journey import trained

__all__ = ["trained"]

SECTIONS = ("images", "captions", "settings", "train", "try")
SIZES = {"laptop": (1280, 800), "tablet": (1024, 700), "desktop": (1600, 1000), "phone": (390, 844)}
SAID_EVERYWHERE = (
    # names, units, file endings, what a prompt holds, and the words that Chinese users write in
    # Latin letters too
    "lora",
    "trainer",
    "webui",
    "txt2img",
    "img2img",
    "txt",
    "img",
    "zip",
    "gpu",
    "cpu",
    "vae",
    "clip",
    "sdxl",
    "png",
    "jpg",
    "jpeg",
    "webp",
    "csv",
    "jsonl",
    "safetensors",
    "ohwx",
    "mychar",
    "name",
    "ctrl",
    "alt",
    "delete",
    "enter",
    "esc",
    "escape",
    "shift",
    "english",
    "unet",
    "adamw",
    "adam",
    "prodigy",
    "cosine",
    "constant",
    "linear",
    "sgd",
    "lion",
    "adafactor",
    "float",
    "bit",
    "bfloat",
    "ddim",
    "euler",
    "dpm",
    "snr",
    "min",
    "gamma",
    "huber",
    "auto",
    "output",
    "models",
    "dropout",
    "seed",
    "cfg",
    "rank",
    "alpha",
    "epoch",
    "epochs",
    "steps",
    "yaml",
    "json",
    "https",
    "http",
    "huggingface",
    "hugging",
    "face",
    "aaa",
    "fp16",
    "bf16",
    "webp",
    "loss",
)


def visit_all(page):
    still(page, 0)
    for step in SECTIONS:
        open_step(page, step)
        still(page, 200)
        yield step


@pytest.mark.webuis("a1111-dark", "forge-light")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_fits_and_can_be_read(host, visit, trained, screenshots, scheme):
    page = open_tab(visit(color_scheme=scheme), host, f"?__theme={scheme}")
    problems = {}
    for step in visit_all(page):
        for name, (width, height) in SIZES.items():
            resize(page, width, height)
            if screenshots is not None:
                page.screenshot(path=screenshots / f"{host.flavour}-{step}-{scheme}-{width}.png")
            if found := complaints(page, TOO_WIDE, PALE, NAMELESS, UNSEEN):
                problems[step, name] = found
    assert problems == {}


@pytest.mark.parametrize(("scheme", "drawn"), [("light", "normal"), ("dark", "dark")])
def test_a_box_to_tick_follows_the_hosts_theme_and_shows_that_the_keyboard_is_on_it(
    host, visit, scheme, drawn
):
    page = open_tab(visit(), host, f"?__theme={scheme}")
    section = open_step(page, "settings")
    box = section.locator("input[type=checkbox]").first
    assert box.evaluate("box => getComputedStyle(box).colorScheme") == drawn
    section.evaluate(
        "section => section.querySelectorAll('details').forEach(part => { part.open = true; })"
    )
    page.keyboard.press("Tab")
    box.focus()
    assert box.evaluate("box => getComputedStyle(box).outlineStyle") == "solid"


@pytest.mark.webuis("forge")
def test_in_chinese_no_english_is_left(host, visit, trained, screenshots):
    page = open_tab(visit(locale="zh-CN"), host)
    words = {
        word
        for run in host.get("runs")["runs"]
        for text in (run["name"], run["dataset"] or "")
        for word in text.replace(".", " ").replace("_", " ").split()
    }
    tries = host.get("tries")
    words |= {
        word
        for one in (tries["tries"] if isinstance(tries, dict) else tries)
        for word in one["prompt"].replace(",", " ").split()
    }
    items = [
        item
        for card in host.get("datasets")
        for item in host.get(f"datasets/{quote(card['id'])}/items")["items"]
    ]
    words |= {
        word
        for item in items
        for word in f"{item['caption']} {item['name']}".replace(",", " ").replace(".", " ").split()
    }
    words |= {word for card in host.get("datasets") for word in card["name"].split()} | {
        "My",
        "model",
        "Tiny",
        "practice",
        "picture",
        "step",
        "tiny",
        "sd1",
        "discs",
        "red",
    }
    problems = {}
    for step in visit_all(page):
        if screenshots is not None:
            page.screenshot(path=screenshots / f"{host.flavour}-{step}-zh_CN.png")
        known = [*SAID_EVERYWHERE, *words, host.get("home")["host"]["name"]]
        if found := foreign_words(page, known):
            problems[step] = found
    assert problems == {}


@pytest.mark.webuis("a1111")
def test_the_keyboard_moves_through_the_steps_and_a_dialog_stands_in_the_middle_of_the_window(
    host, visitor
):
    page = open_tab(visitor, host)
    page.locator("#lora_trainer_step_images").click()
    for key, chosen in (
        ("ArrowRight", "captions"),
        ("ArrowRight", "settings"),
        ("End", "try"),
        ("ArrowLeft", "train"),
        ("Home", "images"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == f"lora_trainer_step_{chosen}"
        expect(page.locator(f"#lora_trainer_section_{chosen}")).to_be_visible()
    resize(page, 1280, 900)
    open_step(page, "images").get_by_role("button", name="New dataset", exact=True).click()
    box = page.locator("dialog[open]").bounding_box()
    assert abs(box["x"] + box["width"] / 2 - 640) <= 10
    assert abs(box["y"] + box["height"] / 2 - 450) <= 2
