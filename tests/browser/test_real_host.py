"""The artist's way through the tab on an installed AUTOMATIC1111, Forge, reForge, Forge Classic or
Forge Neo, ending with images that the host makes with the LoRA.

    python -m tests tests/browser/test_real_host.py --host-folder FOLDER [--host-checkpoint FILE]

FOLDER is the WebUI as it was installed, with its `venv`. Nothing in it is changed: it runs with a
data folder of the test's own, in which the extension is a link to this checkout. FILE is an SD1.5
checkpoint (with its .yaml, where it has one); without it, the smallest one of FOLDER serves. It is
started by `venv/bin/python launch.py` with --skip-install (so that our install.py does not run
either: the tab sets training up), --skip-torch-cuda-test --skip-version-check, on the processor
(A1111: --use-cpu all --no-half --no-hashing --loglevel DEBUG; Forge Neo: --cpu; the others:
--always-cpu; but for A1111, --skip-python-version-check), with --data-dir --gradio-allowed-path
--lora-trainer-data-dir --ckpt --port --server-name 127.0.0.1 --api and
--enable-insecure-extension-access. Nothing is downloaded (HF_HUB_OFFLINE) but what the set-up
needs. Variables of the environment reach it: HF_HOME names a cache that has the tokenizer of
openai/clip-vit-large-patch14, if the usual one has it not. A full-size checkpoint needs about 16 GB
of memory for the WebUI and the worker together, and the whole a quarter of an hour on four cores.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from lora_trainer.runs.requests import send_request
from lora_trainer.settings.training import DEFAULT_STRENGTH
from tests.browser.pictures import picture
from tests.browser.running import RealHost
from tests.browser.tab import eventually, expect, open_host, open_step, open_tab, show_tab
from tests.browser.test_journey import files, wait_for_run
from tests.browser.visitors import Visitor

NAME, TRIGGER = "real discs", "ohwx"
STEPS = 6
LONG = 20_000
SIDE = 64
SETTINGS = {
    "max_train_steps": STEPS,
    "resolution": SIDE,
    "batch_size": 1,
    "learning_rate": 0.003,
    "save_steps": 3,
    "sample_size": SIDE,
    "sample_steps": 2,
    "trigger_word": TRIGGER,
}
MINUTE = 60_000
PATIENCE = 9 * MINUTE
"""Milliseconds for a training, which loads a full-size model on a processor that others use too."""

pytestmark = pytest.mark.xdist_group("real-host")


@pytest.fixture(scope="module")
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealHost]:
    named = request.config.getoption("--host-folder")
    if named is None:
        pytest.skip("no installed WebUI was named with --host-folder")
    folder = Path(named).resolve()
    checkpoint = request.config.getoption("--host-checkpoint") or _smallest_checkpoint(folder)
    running = RealHost(
        data=tmp_path_factory.mktemp("web ui data"),
        folder=folder,
        checkpoint=Path(checkpoint).resolve(),
        patience=400.0,
    )
    running.prepare()
    running.start()
    yield running
    print(f"the WebUI's log: {running.log_file}")
    running.kill()
    # a worker outlives its WebUI
    for run in running.trainer_folder.glob("runs/*"):
        send_request(run / "requests", "stop")


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Makes visitors. The hosts' own scripts have faults of their own (A1111's when a width is
    typed): only what ours do fails a test.
    """
    visitors: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, **options))
        return visitors[-1]

    yield make
    for one in visitors:
        one.close()
    ours = [
        text for one in visitors for text in one.complaints if re.search("lora[-_]trainer", text)
    ]
    # a page says so itself while its WebUI is away; one that comes back answers before it has the
    # routes of extensions
    away = re.compile(r"net::ERR_|Failed to fetch|status of 404 .*/lora-trainer/(pulse|home)")
    assert [text for text in ours if not away.search(text)] == []


@pytest.fixture
def visitor(visit: Any) -> Visitor:
    one: Visitor = visit()
    return one


def _smallest_checkpoint(folder: Path) -> Path:
    found = sorted(
        (folder / "models" / "Stable-diffusion").glob("*.safetensors"),
        key=lambda path: path.stat().st_size,
    )
    assert found, f"there is no checkpoint in {folder}: name one with --host-checkpoint"
    return found[0]


def test_set_up_in_the_tab(host, visitor):
    page = open_tab(visitor, host)
    card = page.get_by_label("Set-up", exact=True)
    if card.is_visible():
        card.get_by_role("button", name="Set up").click()
        end = time.monotonic() + PATIENCE / 1000
        while host.get("setup")["hint"] and time.monotonic() < end:
            time.sleep(0.5)
        # once everything is there, the card has nothing more to say
        card.wait_for(state="hidden")
    assert host.get("setup")["state"] == "ready"
    assert host.get("home")["host"]["kind"] == host.flavour
    assert host.checkpoint.name in host.get("home")["loaded"]["title"]


def test_from_images_to_a_card_in_a_page_that_was_open_all_the_time(host, visitor):
    page = open_tab(visitor, host)
    page.set_default_timeout(MINUTE)
    images = open_step(page, "images")
    images.locator("input[type=file]").set_input_files(files(1, 2, 3, 4))
    dialog = page.locator("dialog[open]")
    images.get_by_text("4 images added.").or_(dialog).first.wait_for()
    if dialog.count():
        dialog.get_by_role("textbox").fill("discs")
        dialog.locator(".lora-trainer-dialog-actions .lora-trainer-primary").click()
    images.get_by_text("4 images added.").wait_for()

    box = open_step(page, "captions").get_by_label("Caption of image 1.png")
    box.fill("a disc, plain ground")
    box.blur()
    (dataset,) = host.get("datasets")
    end = time.monotonic() + 60
    while host.get("datasets")[0]["captioned"] == 0 and time.monotonic() < end:
        time.sleep(0.2)
    for item in host.get(f"datasets/{quote(dataset['id'])}/items")["items"]:
        if item["name"] != "image 1.png":
            assert (
                host.post(
                    f"datasets/{quote(dataset['id'])}/caption",
                    {"key": item["key"], "caption": "a disc", "was": ""},
                ).status
                == 200
            )
        else:
            assert item["caption"] == "a disc, plain ground"

    section = open_step(page, "settings")
    section.get_by_role("button", name="Quick test", exact=True).click()
    section.locator("#lora_trainer_name").fill(NAME)
    section.evaluate(
        "element => element.querySelectorAll('details').forEach(box => { box.open = true; })"
    )
    for key, value in SETTINGS.items():
        section.locator(f"input#lora_trainer_field_{key}").fill(str(value))
    section.get_by_label("What will happen").get_by_text(f"Trains {STEPS} steps").wait_for()

    # the page of LoRA cards is open before there is a card of ours
    show_tab(page, "txt2img")
    page.locator("#txt2img_extra_tabs > .tab-nav > button", has_text="Lora").first.click()
    page.locator("#txt2img_lora_cards").wait_for()
    expect(page.locator("#txt2img_lora_cards .card")).to_have_count(0)
    show_tab(page)

    train = open_step(page, "train")
    train.get_by_role("button", name="Start", exact=True).click()
    live = train.get_by_label("Training", exact=True)
    live.get_by_role("progressbar").wait_for()
    live.get_by_text(re.compile(rf"Finished after {STEPS} steps")).first.wait_for(timeout=PATIENCE)
    live.get_by_text(f"Your LoRA is ready: {NAME}").wait_for()
    assert (host.lora_folder / f"{NAME}.safetensors").is_file()
    assert (
        json.loads((host.lora_folder / f"{NAME}.json").read_text(encoding="utf-8"))[
            "activation text"
        ]
        == TRIGGER
    )
    run = wait_for_run(host, NAME, "finished")
    print(
        f"{STEPS} steps, {run['images_per_second']} images/s, {run['changed'] - run['started']:.0f}"
        " s in all"
    )

    show_tab(page, "txt2img")
    card = page.locator("#txt2img_lora_cards .card", has_text=NAME)
    card.first.wait_for()
    prompt = page.locator("#txt2img_prompt textarea")
    before = prompt.input_value()
    card.first.click()
    eventually(
        lambda: prompt.input_value().removeprefix(before).strip(),
        f"<lora:{NAME}:{DEFAULT_STRENGTH}> {TRIGGER}",
    )


@pytest.fixture(scope="module")
def trained(host):
    """What the journey leaves behind; made over HTTP where a single test is run alone."""
    if not any(run["name"] == NAME for run in host.get("runs")["runs"]):
        identity = host.post("datasets", {"name": "discs"}).json()["id"]
        for number in (1, 2, 3, 4):
            answer = host.ask(
                "POST",
                f"lora-trainer/datasets/{identity}/upload?name={number}.png",
                picture(number),
                {"X-LoRA-Trainer": "1"},
            )
            assert answer.status == 200, answer.body
        body = {
            "dataset": identity,
            "checkpoint": "loaded",
            "name": NAME,
            "settings": SETTINGS,
            "token": "made by the fixture",
            "when": "now",
        }
        answer = host.post("runs", body)
        assert answer.status == 200, answer.body
    return wait_for_run(host, NAME, "finished", seconds=PATIENCE / 1000)


def test_try_it_makes_pair_grid_and_matrix_with_the_hosts_pipeline(host, visitor, trained):
    page = open_tab(visitor, host)
    page.set_default_timeout(MINUTE)
    section = open_step(page, "try")
    section.get_by_label("Prompt", exact=True).fill("a disc")
    section.get_by_text("More", exact=True).click()
    for label, value in {"Width": SIDE, "Height": SIDE, "Sampling steps": 2, "Seed": 7}.items():
        section.get_by_label(label, exact=True).fill(str(value))
    section.get_by_role("slider", name="Strength").fill("1")
    section.get_by_role("button", name="Generate", exact=True).click()
    pair = finished_try(host, "pair")
    assert pair["infotext"].startswith(f"{TRIGGER}, a disc <lora:{NAME}:1>")
    without, with_lora = (host.ask("GET", made["url"]).body for made in pair["images"])
    assert pixels(without) != pixels(with_lora)
    section.get_by_label("Images", exact=True).locator("img").nth(1).wait_for()

    section.get_by_role("button", name="Strength grid", exact=True).click()
    grid = finished_try(host, "grid")
    assert [made["strength"] for made in grid["images"]] == [0, 0.25, 0.5, DEFAULT_STRENGTH, 1]
    shown = [pixels(host.ask("GET", made["url"]).body) for made in grid["images"]]
    assert shown[0] == pixels(without)
    assert shown[4] == pixels(with_lora)
    assert len(set(shown)) == 5
    section.get_by_role("button", name="All in one image", exact=True).wait_for()

    section.get_by_role("button", name="Saved steps × strengths", exact=True).click()
    page.locator("dialog[open]").get_by_role("button", name="Generate the images").click()
    matrix = finished_try(host, "matrix")
    assert len(matrix["loras"]) == 2
    assert len({pixels(host.ask("GET", made["url"]).body) for made in matrix["images"]}) > 4
    assert [
        note
        for job in (pair, grid, matrix)
        for note in job["notes"]
        if "remarked" in note or "could use" in note
    ] == []
    # copies of saved steps, made for the host to find, are gone
    assert sorted(path.name for path in host.lora_folder.rglob("*.safetensors")) == [
        f"{NAME}.safetensors"
    ]

    section.get_by_role("slider", name="Strength").fill("0.55")
    section.get_by_role("button", name="Use this strength").click()
    page.get_by_text("A click on the card of").wait_for()
    assert (
        json.loads((host.lora_folder / f"{NAME}.json").read_text(encoding="utf-8"))[
            "preferred weight"
        ]
        == 0.55
    )


def finished_try(host: RealHost, kind: str) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        newest = next(iter(host.get("tries")), {})
        if newest.get("kind") == kind and newest["status"] in ("done", "failed", "cancelled"):
            assert newest["status"] == "done", newest["error"]
            return dict(newest)
        time.sleep(0.5)
    raise AssertionError(f"no {kind} was made: {host.get('tries')}")


def pixels(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").tobytes()


def test_send_to_txt2img_the_slider_rewrites_the_tag_and_zero_is_no_lora_at_all(
    host, visitor, trained
):
    page = open_tab(visitor, host)
    page.set_default_timeout(MINUTE)
    section = open_step(page, "try")
    section.get_by_label("Prompt", exact=True).fill("a disc on grass")
    section.get_by_role("button", name="Send to txt2img").click()
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.wait_for(state="visible")
    expect(prompt).to_have_value(f"{TRIGGER}, a disc on grass <lora:{NAME}:0.55>")

    slider = page.locator("#lora_trainer_strength_txt2img").get_by_role(
        "slider", name=f"Strength of {NAME}"
    )
    slider.fill("0.35")
    assert f"<lora:{NAME}:0.35>" in prompt.input_value()
    prompt.fill(prompt.input_value().replace(":0.35>", ":1.1>"))
    page.wait_for_function(
        "() => document.querySelector('#lora_trainer_strength_txt2img input[type=range]').value ==="
        " '1.1'"
    )

    page.locator("#txt2img_seed input").fill("7")
    for name, value in {"width": SIDE, "height": SIDE, "steps": 2}.items():
        field = page.locator(f"#txt2img_{name} input[type=number]")
        field.fill(str(value))
        field.blur()
    said = len(host.log())
    made = {}
    for strength in ("1", "0"):
        slider.fill(strength)
        assert f"<lora:{NAME}:{strength}>" in prompt.input_value()
        made[strength] = generate(page, host)
    prompt.fill(re.sub(r"\s*<lora:[^>]*>", "", prompt.input_value()))
    made["none"] = generate(page, host)
    assert made["0"] == made["none"] != made["1"]
    assert len(made["1"]) == SIDE * SIDE * 3
    # all hosts name the keys that the model has no place for, A1111 at this log level
    spoken = host.log()[said:]
    refused = r"didn't match keys|mismatch|unmatched|not loaded|skipped\s+[1-9]\d*\s+keys"
    assert re.findall(refused, spoken, re.IGNORECASE) == []
    if host.flavour != "a1111":
        # those of Try it too: a host loads nothing that it has loaded for the image before. Neo's
        # log is wrapped at a console's width
        stated = r"\[LORA\]\s+loaded.*?(?:with|loaded)\s+(\d+)\s+keys"
        loaded = re.findall(stated, host.log(), re.DOTALL | re.IGNORECASE)
        print(f"{host.flavour}: {loaded} keys loaded")
        assert loaded
        assert "0" not in loaded

    page.locator("#lora_trainer_strength_txt2img").get_by_text("Insert a LoRA").click()
    page.locator("#lora_trainer_strength_txt2img").get_by_role("button", name=NAME).click()
    assert (
        prompt.input_value().endswith(f"<lora:{NAME}:0.55> {TRIGGER}")
        or f"<lora:{NAME}:0.55>" in prompt.input_value()
    )


def generate(page: Any, host: RealHost) -> bytes:
    """Press the host's Generate; returns the image's pixels."""
    sources = (
        "() => [...document.querySelectorAll('#txt2img_gallery img')].map(image =>"
        " image.src).join()"
    )
    before = page.evaluate(sources)
    page.locator("#txt2img_generate").click()
    page.wait_for_function(
        "before => { const all = [...document.querySelectorAll('#txt2img_gallery img')]; const now"
        " = all.map(image => image.src).join(); return now && now !== before && all[0].complete &&"
        " all[0].naturalWidth && !document.querySelector('.livePreview'); }",
        arg=before,
        timeout=PATIENCE,
    )
    source = page.evaluate("() => document.querySelector('#txt2img_gallery img').src")
    answer = host.ask("GET", source.split(f":{host.port}/", 1)[1].split("?")[0])
    assert answer.status == 200, source
    return pixels(answer.body)


def test_the_strength_panel_of_img2img(host, visitor, trained):
    page = open_host(visitor, host)
    show_tab(page, "img2img")
    prompt = page.locator("#img2img_prompt textarea")
    prompt.fill(f"a disc <lora:{NAME}:0.4:0.6>")
    panel = page.locator("#lora_trainer_strength_img2img")
    panel.get_by_role("slider", name=re.compile("in the image model")).fill("0.9")
    expect(prompt).to_have_value(f"a disc <lora:{NAME}:0.4:0.9>")


def test_pictures_and_training_at_once_then_reload_ui_and_the_death_of_the_host(
    host, visit, trained
):
    name = "long run"
    settings = {
        "max_train_steps": LONG,
        "trigger_word": TRIGGER,
        "resolution": SIDE,
        "batch_size": 1,
        "save_steps": LONG,
        "sample_prompts": [],
    }
    body = {
        "dataset": trained["dataset"],
        "checkpoint": "loaded",
        "name": name,
        "settings": settings,
        "token": "a click on Start",
        "when": "now",
    }
    assert host.post("runs", body).status == 200
    reach(host, name, 1)

    page = open_tab(visit(), host)
    page.set_default_timeout(MINUTE)
    section = open_step(page, "try")
    section.get_by_label("Prompt", exact=True).fill("a disc")
    section.get_by_text("More", exact=True).click()
    for label, value in {"Width": SIDE, "Height": SIDE, "Sampling steps": 2}.items():
        section.get_by_label(label, exact=True).fill(str(value))
    at_picture = run_of(host, name)["step"]
    section.get_by_role("button", name="Generate", exact=True).click()
    finished_try(host, "pair")
    run = reach(host, name, at_picture + 1)
    # on a processor neither waits for the other
    assert host.get("home")["host"]["cpu"] is False or run["status"] == "running"

    start = host.log_file.stat().st_size
    page.evaluate("() => gradioApp().getElementById('settings_restart_gradio').click()")
    # a page with routes asks nothing of its server while this process sleeps
    end = time.monotonic() + MINUTE / 1000
    while b"Restarting UI" not in host.log_file.read_bytes()[start:] and time.monotonic() < end:
        page.wait_for_timeout(200)
    host.wait_until_ready(start)
    after_reload = reach(host, name, run["step"] + 1)
    again = open_tab(visit(), host)
    open_step(again, "train").get_by_text(re.compile(r"Step \d+ of 20,?000")).first.wait_for(
        timeout=MINUTE
    )

    host.kill()
    between = time.monotonic()
    host.start()
    print(f"started again in {time.monotonic() - between:.0f} s")
    after_death = reach(host, name, after_reload["step"] + 1)
    assert after_death["started"] == run["started"]
    third = open_tab(visit(), host)
    open_step(third, "train").get_by_text(re.compile(r"Step \d+ of 20,?000")).first.wait_for(
        timeout=MINUTE
    )
    assert host.post(f"runs/{quote(after_death['id'])}/ask", {"what": "stop"}).status == 200
    stopped = wait_for_run(host, name, "stopped", seconds=PATIENCE / 1000)
    assert stopped["step"] >= after_death["step"]


def run_of(host: RealHost, name: str) -> dict[str, Any]:
    return next(run for run in host.get("runs")["runs"] if run["name"] == name)


def reach(host: RealHost, name: str, step: int) -> dict[str, Any]:
    """The run, once it has done so many steps."""
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        run = run_of(host, name)
        assert run["status"] in ("queued", "starting", "running"), run
        if run["step"] >= step:
            return run
        time.sleep(0.5)
    raise AssertionError(f"{name} did not reach step {step}: {run_of(host, name)}")
