"""The section "try" and the strength panel on both WebUIs: the host makes the images, and takes
up the prompt that a slider wrote.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.lora.file import encode_header, read_header
from lora_trainer.runs import events
from tests.browser.looks import TOO_WIDE, complaints
from tests.browser.tab import (
    eventually,
    expect,
    open_bare_tab,
    open_step,
    open_tab,
    show_tab,
)
from tests.jobs.logs import write_run
from tests.webui.lora_files import write_lora


@pytest.fixture
def lora(host: Any) -> Iterator[str]:
    """A delivered LoRA of ours; the host has a checkpoint to draw with."""
    write_lora(host.data / "models" / "Stable-diffusion" / "base.safetensors", ours=False)
    path = write_lora(host.lora_folder / "tried_fox.safetensors", trigger="ohwx")
    path.with_suffix(".json").write_text(
        json.dumps({"preferred weight": 0.8, "activation text": "ohwx"}), encoding="utf-8"
    )
    yield path.stem
    for file in host.lora_folder.glob("tried_fox*"):
        file.unlink()


def open_try(
    visitor: Any, host: Any, name: str, *, open_page: Any = open_bare_tab
) -> tuple[Any, Any]:
    page = open_page(visitor, host)
    section = open_step(page, "try")
    section.get_by_label("LoRA", exact=True).select_option(label=name)
    return page, section


def test_without_and_with_stand_side_by_side_and_go_to_txt2img_with_tag_and_trigger(
    host, visitor, lora
):
    page, section = open_try(visitor, host, lora, open_page=open_tab)
    section.get_by_label("Prompt", exact=True).fill("a fox in the snow")
    section.get_by_role("spinbutton", name="Seed").fill("7")
    section.get_by_role("button", name="Generate").click()
    section.get_by_text("The images are ready.").wait_for(state="attached")
    eventually(
        lambda: section.locator("figcaption").all_inner_texts(),
        ["Without the LoRA", "Strength 0.8"],
    )
    job = host.get("tries")[0]
    assert (job["seed"], job["strengths"]) == (7, [0.0, 0.8])
    section.get_by_role("button", name="Enlarge: Without the LoRA").click()
    page.keyboard.press("ArrowRight")
    eventually(
        lambda: page.get_by_role("dialog").locator("img").get_attribute("alt"), "Strength 0.8"
    )
    page.keyboard.press("Escape")

    section.get_by_role("slider", name="Strength").fill("0.55")
    section.get_by_role("button", name="Send to txt2img").click()
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.wait_for(state="visible")
    expect(prompt).to_have_value("ohwx, a fox in the snow <lora:tried_fox:0.55>")
    for tab, strength in (("txt2img", "0.35"), ("img2img", "0.4")):
        the_host_takes_up_the_prompt_that_a_slider_wrote(host, page, tab, strength)


def the_host_takes_up_the_prompt_that_a_slider_wrote(
    host: Any, page: Any, tab: str, strength: str
) -> None:
    written = f"a fox <lora:tried_fox:{strength}>"
    heard = sum(call["what"] == "generate pressed" for call in host.calls())
    show_tab(page, tab)
    page.locator(f"#{tab}_prompt textarea").fill("a fox <lora:tried_fox:0.7>")
    panel = page.locator(f"#lora_trainer_strength_{tab}")
    panel.get_by_role("slider", name="Strength of tried_fox").fill(strength)
    expect(page.locator(f"#{tab}_prompt textarea")).to_have_value(written)
    pressed: list[str] = []
    end = time.monotonic() + 120
    while not pressed and time.monotonic() < end:
        # gradio 4 draws its buttons before it listens to them
        page.locator(f"#{tab}_generate").click()
        page.wait_for_timeout(2000)
        pressed = [call["prompt"] for call in host.calls() if call["what"] == "generate pressed"][
            heard:
        ]
    # the panel wrote it, and gradio sent it: what the host heard is not what was typed
    assert pressed[:1] == [written]


@pytest.mark.webuis("forge")
def test_steps_and_cfg_are_those_of_the_webuis_checkpoint_until_they_are_changed(
    host, visitor, lora
):
    def with_a_distilled_checkpoint(route):
        answer = route.fetch()
        told = answer.json()
        for checkpoint in told["checkpoints"]:
            checkpoint |= {"loaded": True, "family": "sd1", "steps": 8, "cfg": 1.0}
        route.fulfill(response=answer, json=told)

    visitor.context.route("**/lora-trainer/home", with_a_distilled_checkpoint)
    write_lora(host.lora_folder / "tried_fox_2.safetensors")
    _, section = open_try(visitor, host, lora)
    section.get_by_text("More", exact=True).click()
    steps, cfg = (
        section.get_by_role("spinbutton", name=name) for name in ("Sampling steps", "CFG scale")
    )
    eventually(lambda: (steps.input_value(), cfg.input_value()), ("8", "1"))
    steps.fill("12")
    section.get_by_label("LoRA", exact=True).select_option(label="tried_fox_2")
    eventually(lambda: (steps.input_value(), cfg.input_value()), ("12", "1"))
    # what is still on its way must not fail when the browser closes
    visitor.context.unroute_all(behavior="ignoreErrors")


@pytest.mark.webuis("forge")
def test_the_saved_steps_of_a_run_stand_below_its_lora(host, visitor, lora):
    run = host.trainer_folder / "runs" / "fox run"
    saved = [
        events.Saved(step=step, file=f"checkpoints/tried_fox-step{step}.safetensors")
        for step in (50, 100)
    ]
    for event in saved:
        write_lora(run / event.file)
    delivered = str(host.lora_folder / "tried_fox.safetensors")
    write_run(
        run,
        events.Planned(name="tried_fox", family="sd1", step_count=150),
        *saved,
        events.Finished(step=150, file="", delivered=delivered),
    )
    try:
        _, section = open_try(visitor, host, lora)
        shown = section.get_by_label("LoRA", exact=True).evaluate(
            "select => [...select.children].map(child => child.tagName === 'OPTGROUP' ?"
            " [child.label, ...[...child.children].map(one => one.label)] : child.label)"
        )
        at = shown.index("tried_fox")
        assert shown[at + 1] == ["fox run: saved steps", "fox run, step 100", "fox run, step 50"]
        assert [label for label in shown if isinstance(label, str) and "step" in label] == []
        # and their images: a row for each step, a column for each strength
        section.get_by_label("Prompt", exact=True).fill("a fox")
        section.get_by_role("button", name="Saved steps × strengths").click()
        section.page.get_by_role("dialog").get_by_role("button", name="Generate the images").click()
        section.get_by_role("button", name="All in one image").wait_for()
        places = [
            figure.bounding_box()
            for figure in section.locator(".lora-trainer-try-matrix figure").all()
        ]
        assert (
            len(places),
            len({round(place["x"]) for place in places}),
            len({round(place["y"]) for place in places}),
        ) == (12, 4, 3)
    finally:
        shutil.rmtree(run)


@pytest.mark.webuis("a1111")
def test_a_grid_shows_each_strength_and_one_sheet(host, visitor, lora):
    _, section = open_try(visitor, host, lora)
    section.get_by_label("Prompt", exact=True).fill("a fox")
    section.get_by_role("button", name="Strength grid", exact=True).click()
    section.get_by_role("button", name="All in one image").wait_for()
    with Image.open(io.BytesIO(host.ask("GET", host.get("tries")[0]["sheet"]).body)) as sheet:
        assert sheet.width > 5 * 64
    eventually(
        lambda: section.locator("figcaption").all_inner_texts(),
        ["Without the LoRA", "Strength 0.25", "Strength 0.5", "Strength 0.8", "Strength 1"],
    )
    assert (
        len(
            {
                round(figure.bounding_box()["y"])
                for figure in section.locator(".lora-trainer-try-grid figure").all()
            }
        )
        == 1
    )


@pytest.mark.webuis("forge")
def test_a_single_try_is_deleted_and_taken_back(host, visitor, lora):
    page, section = open_try(visitor, host, lora)
    section.get_by_label("Prompt", exact=True).fill("a fox to delete")
    section.get_by_role("button", name="Strength grid", exact=True).click()
    # its own: a grid of before may still be shown
    item = section.locator(
        ".lora-trainer-try-history-item[title='a fox to delete'][aria-pressed=true]"
    )
    item.wait_for()
    section.get_by_role("button", name="All in one image").wait_for()
    job = next(job for job in host.get("tries") if job["prompt"] == "a fox to delete")
    expect(item).to_have_count(1)
    section.get_by_role("button", name="Delete", exact=True).click()
    section.get_by_text("The images appear here.").wait_for()
    expect(item).to_have_count(0)
    assert not (host.trainer_folder / "tries" / job["id"]).exists() and job["id"] not in [
        other["id"] for other in host.get("tries")
    ]
    page.locator(".lora-trainer-toast").get_by_role("button", name="Undo").click()
    item.wait_for()
    expect(section.locator("figcaption")).to_have_count(5)
    eventually(lambda: item.get_attribute("aria-pressed"), "true")
    assert (host.trainer_folder / "tries" / job["id"] / "sheet.png").is_file()


@pytest.mark.webuis("forge")
def test_use_this_strength_becomes_the_recommended_one_everywhere(host, visitor, lora):
    page, section = open_try(visitor, host, lora, open_page=open_tab)
    section.get_by_role("slider", name="Strength").fill("0.6")
    section.get_by_text("More", exact=True).click()
    section.get_by_role("button", name="Use this strength").click()
    page.get_by_text("now inserts <lora:tried_fox:0.6>").wait_for()
    # the form was drawn again: what was unfolded stays so
    expect(section.get_by_label("Width", exact=True)).to_be_visible()
    assert (
        json.loads((host.lora_folder / "tried_fox.json").read_text(encoding="utf-8"))[
            "preferred weight"
        ]
        == 0.6
    )
    show_tab(page, "txt2img")
    page.locator("#txt2img_prompt textarea").fill("<lora:tried_fox:1>")
    page.locator("#lora_trainer_strength_txt2img").get_by_role(
        "button", name="Recommended: 0.6"
    ).wait_for()


@pytest.mark.webuis("a1111")
def test_many_earlier_tries_do_not_widen_the_page_of_a_phone(host, visit, lora):
    page, section = open_try(
        visit(viewport={"width": 390, "height": 844}), host, lora, open_page=open_tab
    )
    section.evaluate("""section => {
        const row = section.querySelector('.lora-trainer-try-history-row');
        for (let at = 0; at < 9; at++) row.append(Object.assign(document.createElement('button'), {className: 'lora-trainer-try-history-item', textContent: 'grid'}));
        for (let at = row; at !== section; at = at.parentElement) at.hidden = false;
    }""")
    assert section.locator(".lora-trainer-try-history-item", has_text="grid").last.evaluate(
        "one => one.checkVisibility()"
    )
    assert complaints(page, TOO_WIDE) == []


@pytest.mark.webuis("forge")
@pytest.mark.usefixtures("forking_host")
def test_why_a_lora_does_nothing_and_a_copy_that_loads(host, visitor, lora):
    """A file of another trainer, in names that no WebUI reads."""
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    sides = {"lora_A.weight": (1, 768), "lora_B.weight": (640, 1)}
    infos, end = {}, 0
    for side, shape in sides.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        infos[f"{name}.{side}"] = TensorInfo("F16", shape, start, end)
    path = host.lora_folder / "foreign.safetensors"
    path.write_bytes(encode_header(infos, {"ss_base_model_version": "sd_v1"}) + b"\0\x30" * 1408)
    copy = path.with_name("foreign-fixed.safetensors")
    try:
        _, section = open_try(visitor, host, lora)
        section.get_by_text("Why does this LoRA do nothing?").click()
        section.get_by_label("LoRA file").select_option(label="foreign")
        section.get_by_role("button", name="Check this file").click()
        told = "loads nothing of this file: its names are diffusers' for SD1"
        section.get_by_text(told).wait_for()
        section.get_by_role("cell", name=f"{name}.lora_A.weight").wait_for()
        assert complaints(section.page, TOO_WIDE) == []
        section.get_by_role("button", name="Write a copy that loads").click()
        section.get_by_text("foreign-fixed was written.").wait_for()
        section.get_by_text("loads all 1 of 1 layers.").wait_for()
        assert section.get_by_label("LoRA file").evaluate(
            "select => select.selectedOptions[0].label"
        ) == ("foreign-fixed")
        keys = read_header(copy).tensors
        flat = name.removeprefix("unet.").replace(".", "_")
        assert f"lora_unet_{flat}.lora_down.weight" in keys
    finally:
        for file in (path, copy):
            file.unlink(missing_ok=True)


@pytest.mark.webuis("forge")
@pytest.mark.usefixtures("forking_host")
def test_how_much_of_a_lora_is_kept_in_the_chosen_checkpoint(host, visitor, lora):
    base = host.data / "models" / "Stable-diffusion" / "My model v1.safetensors"
    tensors = read_header(base).tensors
    key = next(key for key in tensors if key.endswith(".attn2.to_k.weight"))
    name = key.removeprefix("model.diffusion_model.").removesuffix(".weight")
    rows, width = tensors[key].shape
    sides = {"lora_A.weight": (1, width), "lora_B.weight": (rows, 1)}
    infos, end = {}, 0
    for side, shape in sides.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        infos[f"diffusion_model.{name}.{side}"] = TensorInfo("F16", shape, start, end)
    path = host.lora_folder / "faint.safetensors"
    # 2**-7 times 2**-7; fp8 has no steps below 2**-9
    path.write_bytes(encode_header(infos, {}) + b"\0\x20" * (end // 2))
    try:
        _, section = open_try(visitor, host, lora)
        section.get_by_text("Why does this LoRA do nothing?").click()
        section.get_by_label("LoRA file").select_option(label="faint")
        section.get_by_role("button", name="How much of it is kept?").click()
        section.get_by_text("At strength 1 in My model v1.safetensors.").wait_for()
        section.get_by_text("Forge adds the LoRA to weights in fp16").wait_for()
        section.get_by_text("With other settings of the WebUI").click()
        section.get_by_text("rounds the sum: 0% of it is kept").first.wait_for()
        told = 'With "Diffusion in Low Bits: float8-e4m3fn (fp16 LoRA)", '
        section.get_by_text(told).wait_for()
        assert complaints(section.page, TOO_WIDE) == []
    finally:
        path.unlink()
