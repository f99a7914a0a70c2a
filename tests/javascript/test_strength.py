"""The strength panel on a page with the hosts' prompt boxes: the prompt's text and the
sliders say the same, whichever is changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("scripts")

ROOT = Path(__file__).resolve().parents[2]
PAGE = """<!doctype html><div id="lora_trainer_root" class="lora-trainer"></div>
<div id="tab_txt2img"><div id="txt2img_prompt_container"><div id="txt2img_prompt"><label><textarea></textarea></label></div></div></div>"""
HOME = {
    "language": "en",
    "languages": [{"code": "en", "name": "English"}],
    "host": {"remote": False},
}
INSERTABLE = {
    "loras": [
        {
            "name": "fox",
            "tag": "<lora:fox:0.8> ohwx",
            "preferred_weight": 0.8,
            "trigger": "ohwx",
            "preview": None,
        }
    ],
    "weights": {"fox": 0.8, "other": 0.65},
}


@pytest.fixture(scope="module")
def open_panel(browser, server):
    """Opens the page; the server's part is two answers."""
    from tests.browser.visitors import Visitor

    opened = []

    def open_page(insertable):
        opened.append(Visitor(browser))
        page = opened[-1].page()
        answers = {"/lora-trainer/home": HOME, "/lora-trainer/insertable": insertable}

        def answer(method, path, headers, body):
            if path == "/":
                return 200, {"content-type": "text/html"}, PAGE.encode()
            if path in answers:
                content = json.dumps(answers[path]).encode()
                return 200, {"content-type": "application/json"}, content
            return None

        server.answering = answer
        page.goto(server.url)
        page.add_style_tag(path=ROOT / "style.css")
        # what the page's boxes are told, as gradio would hear it
        page.evaluate(
            "window.heard = []; document.querySelector('textarea').addEventListener('input',"
            " (event) => heard.push(event.target.value))"
        )
        page.evaluate(
            """async () => {
                await import("/javascript/prompt/strength_panel.js");
                const { register } = await import("/javascript/common/sections.js");
                // so that the tab has something to open
                register({ id: "train", title: () => "Train", draw() {} });
                await (await import("/javascript/common/start.js")).start();
            }"""
        )
        page.wait_for_selector("#lora_trainer_strength_txt2img", state="attached")
        return page

    yield open_page
    for one in opened:
        one.close()
    server.answering = None


@pytest.fixture(scope="module")
def usual_panel(open_panel, server):
    """A page with the usual LoRAs, and the server's part of it."""
    return open_panel(INSERTABLE), server.answering


@pytest.fixture
def page(usual_panel, server):
    """The page with an empty prompt: what the panel shows follows from the prompt alone."""
    page, server.answering = usual_panel
    page.evaluate(
        "() => { for (const part of document.querySelectorAll('details')) part.open = false; }"
    )
    page.locator("textarea").fill("")
    page.wait_for_function("() => !document.querySelector('.lora-trainer-strength-row')")
    page.evaluate("heard.length = 0")
    return page


def prompt_of(page):
    return page.locator("textarea").input_value()


def rows(page):
    return page.locator(".lora-trainer-strength-row")


def slide(page, label, value):
    page.get_by_role("slider", name=label, exact=True).fill(str(value))


def test_moving_the_slider_rewrites_the_number_at_once_and_gradio_hears_of_it(page):
    page.locator("textarea").fill("a fox <lora:fox:0.7>, ink")
    slide(page, "Strength of fox", 0.35)
    assert prompt_of(page) == "a fox <lora:fox:0.35>, ink"
    assert page.evaluate("heard.at(-1)") == "a fox <lora:fox:0.35>, ink"
    assert page.get_by_role("spinbutton", name="Strength of fox").input_value() == "0.35"


def test_typing_in_the_prompt_moves_the_slider(page):
    page.locator("textarea").fill("<lora:fox:0.7>")
    page.locator("textarea").fill("<lora:fox:1.2>")
    assert page.get_by_role("slider", name="Strength of fox").input_value() == "1.2"


def test_a_prompt_that_the_host_sets_without_an_event_moves_the_slider(page):
    page.evaluate("document.querySelector('textarea').value = 'pasted <lora:other:0.4>'")
    page.wait_for_function(
        "document.querySelector('.lora-trainer-strength-row input[type=range]')?.value === '0.4'",
    )


def test_two_strengths_have_two_sliders_and_each_moves_its_own_number(page):
    page.locator("textarea").fill("<lora:fox:te=0.2:unet=0.9>")
    slide(page, "Strength of fox in the text encoder", 0.5)
    slide(page, "Strength of fox in the image model", 1.1)
    assert prompt_of(page) == "<lora:fox:te=0.5:unet=1.1>"


def test_of_two_tags_of_one_name_only_the_moved_one_changes(page):
    page.locator("textarea").fill("<lora:fox:0.1> and <lora:fox:0.2>")
    page.get_by_role("slider", name="Strength of fox").nth(1).fill("0.9")
    assert prompt_of(page) == "<lora:fox:0.1> and <lora:fox:0.9>"


def test_the_recommended_strength_is_marked_and_a_click_takes_it(page):
    page.locator("textarea").fill("<lora:other:0.2>")
    page.get_by_role("button", name="Recommended: 0.65").click()
    assert prompt_of(page) == "<lora:other:0.65>"


def test_a_strength_outside_the_slider_is_shown_and_kept(page):
    page.locator("textarea").fill("<lora:fox:2.25> <lora:other:-1>")
    assert page.get_by_role("spinbutton", name="Strength of fox").input_value() == "2.25"
    assert page.get_by_role("spinbutton", name="Strength of other").input_value() == "-1"
    page.wait_for_timeout(700)
    assert prompt_of(page) == "<lora:fox:2.25> <lora:other:-1>"


def test_a_number_may_be_typed_slowly(page):
    page.locator("textarea").fill("<lora:fox:0.7>")
    number = page.get_by_role("spinbutton", name="Strength of fox")
    number.focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("0.05", delay=120)
    assert number.input_value() == "0.05"
    assert prompt_of(page) == "<lora:fox:0.05>"


def test_the_caret_stays_at_its_word(page):
    page.locator("textarea").fill("<lora:fox:0.7> a fox")
    page.evaluate("document.querySelector('textarea').setSelectionRange(15, 16)")
    slide(page, "Strength of fox", 0.35)
    assert page.evaluate(
        "[document.querySelector('textarea').selectionStart,"
        " document.querySelector('textarea').selectionEnd]"
    ) == [16, 17]


def test_removing_a_tag_leaves_the_rest_and_can_be_taken_back(page):
    page.locator("textarea").fill("a fox, <lora:fox:0.7>, ink")
    page.get_by_role("button", name="Remove fox from the prompt").click()
    assert prompt_of(page) == "a fox, ink"
    page.keyboard.press("Control+z")
    assert prompt_of(page) == "a fox, <lora:fox:0.7>, ink"
    assert rows(page).count() == 1


def test_a_lora_of_ours_is_inserted_at_the_end_with_its_trigger(page):
    page.locator("textarea").fill("an image")
    page.locator("summary", has_text="Insert a LoRA").click()
    page.locator(".lora-trainer-insert-choice", has_text="fox").click()
    assert prompt_of(page) == "an image <lora:fox:0.8> ohwx"
    assert page.evaluate("heard.at(-1)") == "an image <lora:fox:0.8> ohwx"
    assert rows(page).count() == 1


def test_a_lora_that_is_there_already_is_not_inserted_twice(page):
    page.locator("textarea").fill("an image <lora:fox:0.3>")
    page.locator("summary", has_text="Insert a LoRA").click()
    page.locator(".lora-trainer-insert-choice", has_text="already in the prompt").click()
    assert prompt_of(page) == "an image <lora:fox:0.3>"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Strength of fox"


def test_without_tags_and_without_loras_of_ours_the_panel_takes_no_room(open_panel):
    page = open_panel({"loras": [], "weights": {}})
    page.locator("textarea").fill("a fox")
    assert (
        page.evaluate("document.querySelector('#lora_trainer_strength_txt2img').offsetHeight") == 0
    )
    page.locator("textarea").fill("a fox <lora:other:0.5>")
    assert (
        page.evaluate("document.querySelector('#lora_trainer_strength_txt2img').offsetHeight") > 20
    )


def test_a_number_that_no_host_can_read_is_told_and_fixed_by_the_slider(page):
    page.locator("textarea").fill("<lora:fox:much>")
    assert "cannot be read" in rows(page).inner_text()
    slide(page, "Strength of fox", 0.6)
    assert prompt_of(page) == "<lora:fox:0.6>"
    assert "cannot be read" not in rows(page).inner_text()


def test_the_focus_stays_on_the_slider_while_it_moves(page):
    page.locator("textarea").fill("<lora:fox:0.7>")
    page.get_by_role("slider", name="Strength of fox").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert prompt_of(page) == "<lora:fox:0.85>"
    assert page.evaluate("document.activeElement.type") == "range"
