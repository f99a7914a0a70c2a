"""The section "train" on both WebUIs, watching a worker that the test plays: it holds the run's
lock, writes events and takes requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from lora_trainer import verdict
from lora_trainer.errors import Message, OutOfMemory
from lora_trainer.jobs.queue import Queue
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from tests.browser.looks import resize
from tests.browser.played_worker import PlayedWorker
from tests.browser.tab import PATIENCE, ROOT, eventually, expect, open_bare_tab, open_step, open_tab
from tests.webui.lora_files import write_lora

pytestmark = [pytest.mark.webuis("forge"), pytest.mark.xdist_group("sections")]


@pytest.fixture
def worker(host: Any, visitor: Any) -> Iterator[Any]:
    made: list[PlayedWorker] = []

    def begin(name: str, settings: str = "", steps: int = 100) -> PlayedWorker:
        made.append(PlayedWorker(RunFolder(host.trainer_folder / "runs" / name), settings, steps))
        return made[-1]

    yield begin
    for page in visitor.context.pages:
        # nobody asks for a run whose folder is taken away
        page.goto("about:blank")
    for one in made:
        one.go()


def watch(visitor: Any, host: Any, name: str, *, open_page: Any = open_bare_tab) -> tuple[Any, Any]:
    """(page, live view) with the run shown."""
    page = open_page(visitor, host)
    section = open_step(page, "train")
    show = section.locator(".lora-trainer-runs li", has_text=name).get_by_role(
        "button", name="Show", exact=True
    )
    live = section.locator(".lora-trainer-live")
    heading = live.get_by_role("heading", name=name, exact=True)

    def is_shown() -> bool:
        # a row that is drawn anew between press and release, as in a run's first seconds, has not
        # been clicked
        show.click()
        end = time.monotonic() + 5
        while not heading.is_visible() and time.monotonic() < end:
            page.wait_for_timeout(50)
        return bool(heading.is_visible())

    eventually(is_shown, True)
    return page, live


def fact(live: Any, label: str) -> str:
    return str(live.locator(".lora-trainer-facts > div", has_text=label).locator("dd").inner_text())


@pytest.mark.webuis("forge")
def test_the_numbers_below_the_chart_are_whole_in_a_long_training(host, visitor, worker):
    run = worker("seen for long", steps=100_000)
    run.step(10)
    _, live = watch(visitor, host, "seen for long")
    chart = live.locator(".lora-trainer-chart")
    last = chart.get_by_text("100,000", exact=True).bounding_box()
    assert last is not None
    edge = chart.bounding_box()
    assert last["x"] + last["width"] <= edge["x"] + edge["width"]


def test_a_run_that_was_started_elsewhere_is_shown_as_it_goes(host, visitor, worker):
    run = worker("seen live")
    run.step(10)
    page, live = watch(visitor, host, "seen live")
    live.get_by_text("Step 10 of 100").wait_for()
    place = live.locator(".lora-trainer-chart").bounding_box()
    for step in range(11, 31):
        run.step(step, 0.2 - step / 1000)
    live.get_by_text("Step 30 of 100").wait_for()
    assert (
        fact(live, "Step"),
        fact(live, "Epoch"),
        fact(live, "Loss"),
        fact(live, "Images per second"),
    ) == ("30 / 100", "1 / 5", "0.17", "1.5")
    eventually(lambda: live.get_by_role("progressbar").get_attribute("aria-valuenow"), "30")
    for step, loss in ((0, 0.3), (30, 0.18)):
        run.write(events.Validated(step=step, training_loss=loss - 0.05, validation_loss=loss))
    legend = live.locator(".lora-trainer-chart-legend li")
    eventually(
        legend.all_inner_texts,
        ["Smoothed loss", "Held-out images, fixed noise", "Training images, fixed noise"],
    )
    assert live.locator("circle.lora-trainer-chart-validation").count() == 2
    assert live.locator("polyline.lora-trainer-chart-training").get_attribute("points")
    assert "0.12 at step 10, 0.17 at step 30" in live.locator(".lora-trainer-chart").get_attribute(
        "aria-label"
    )
    # nothing jumps: the chart is where it was, but for a part of a pixel
    assert live.locator(".lora-trainer-chart").bounding_box() == pytest.approx(place, abs=1)
    page.locator(
        "#lora_trainer_step_train .lora-trainer-step-note", has_text="Training, 30 %"
    ).wait_for()
    # the list says the same, in the row that stands there already
    row = page.locator(".lora-trainer-runs li", has_text="seen live")
    row.get_by_text("Training \u00b7").and_(row.get_by_text("30 of 100 steps")).wait_for()
    unfolded = row.locator("details")
    unfolded.locator("summary").click()
    run.write(events.Phase(phase="saving", total=0))
    run.step(31)
    row.get_by_text("31 of 100 steps").wait_for()
    assert unfolded.get_attribute("open") is not None


def test_previews_are_promised_only_where_some_will_come(host, visitor, worker):
    worker("no prompts")
    other = worker("with a prompt", "sample_prompts: [a fox]\n")
    page, live = watch(visitor, host, "no prompts")
    live.get_by_text(
        "No preview prompts are set. “Preview now” makes one image immediately."
    ).wait_for()
    page.locator(".lora-trainer-runs li", has_text="with a prompt").get_by_role(
        "button", name="Show", exact=True
    ).click()
    live.get_by_text("Previews appear here during the training.").wait_for()
    other.end(events.Stopped(step=0))
    live.get_by_text("This run has made no previews.").wait_for()
    # a language model answers instead
    texts = worker("station rules")
    texts.write(events.Planned(name="station rules", family="qwen2", data="texts", step_count=100))
    for strength, answer in ((0.0, "I do not know."), (1.0, "Close hatch B,\nthen call.")):
        texts.write(events.Answered(step=50, prompt="What is 7?", strength=strength, answer=answer))
    texts.step(100)
    texts.end(events.Finished(step=100, file="adapter/station rules", delivered="/loras/rules"))
    row = page.locator(".lora-trainer-runs li", has_text="station rules")
    row.get_by_text("Language model").wait_for()
    row.get_by_role("button", name="Show", exact=True).click()
    live.get_by_text("It is adapter/station rules in the run's folder").wait_for()
    assert live.locator(".lora-trainer-answers dd").all_inner_texts() == [
        "I do not know. Strength 0",
        "Close hatch B,\nthen call. Strength 1",
    ]
    assert not live.get_by_text("This run has made no previews.").is_visible()
    assert not row.get_by_role("button", name="Try it").count()
    expect(row.get_by_role("button", name="Ask it")).to_be_visible()
    # another run of the list may have images
    assert not row.locator("img").count() and not live.locator("img").count()


def test_previews_come_with_their_step_and_open_large(host, visitor, worker):
    run = worker("with previews")
    run.preview(10)
    page, live = watch(visitor, host, "with previews")
    run.preview(20)
    live.get_by_role("button", name="Enlarge: Step 20, strength 1").click()
    dialog = page.get_by_role("dialog")
    eventually(lambda: dialog.locator("img").get_attribute("alt"), "Step 20, strength 1")
    page.keyboard.press("ArrowLeft")
    eventually(lambda: dialog.locator("img").get_attribute("alt"), "Step 10, strength 1")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    eventually(
        lambda: live.get_by_role("heading", level=5).all_inner_texts(), ["Step 20", "Step 10"]
    )


def places(live: Any, selector: str) -> list[tuple[float, float]]:
    """(left, top) of each, to a pixel."""
    boxes = [one.bounding_box() for one in live.locator(selector).all()]
    return [(round(box["x"]), round(box["y"])) for box in boxes]


def test_previews_stand_side_by_side_and_those_of_several_strengths_are_a_row_for_each_step(
    host, visitor, worker
):
    run = worker("one strength")
    for step in (10, 20, 30):
        run.preview(step)
    other = worker("several")
    for step in (10, 20):
        for strength in (0.0, 1.0):
            other.preview(step, strength)
    page, live = watch(visitor, host, "one strength")
    live.get_by_role("heading", name="Step 30", level=5).wait_for()
    found = places(live, ".lora-trainer-previews-step")
    assert (
        len(found) == 3
        and len({top for _, top in found}) == 1
        and [left for left, _ in found] == sorted({left for left, _ in found})
    )

    page.locator(".lora-trainer-runs li", has_text="several").get_by_role(
        "button", name="Show", exact=True
    ).click()
    live.get_by_role("heading", name="several", exact=True).wait_for()
    live.get_by_role("heading", name="Step 30", level=5).wait_for(state="detached")
    live.get_by_role("heading", name="Step 20", level=5).wait_for()
    rows = places(live, ".lora-trainer-previews-step")
    assert len(rows) == 2 and len({left for left, _ in rows}) == 1 and rows[0][1] < rows[1][1]
    pictures = places(live, ".lora-trainer-previews-step figure")
    assert (
        len(pictures) == 4
        and len({left for left, _ in pictures}) == 2
        and len({top for _, top in pictures}) == 2
    )


def test_the_buttons_ask_the_worker(host, visitor, worker):
    run = worker("asked")
    run.step(5)
    page, _ = watch(visitor, host, "asked")
    bar = page.locator("#lora_trainer_section_train .lora-trainer-actions")
    bar.get_by_role("button", name="Save now").click()
    assert run.taken() == "save"
    bar.get_by_role("button", name="Preview now").click()
    assert run.taken() == "preview"
    bar.get_by_role("button", name="Pause").click()
    assert run.taken() == "pause"
    run.write(events.Paused(step=5))
    bar.get_by_role("button", name="Resume").click()
    assert run.taken() == "resume"
    run.write(events.Resumed(step=5))
    bar.get_by_role("button", name="Pause").wait_for()
    bar.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("dialog")).to_contain_text(
        "The training so far is saved as a LoRA file", use_inner_text=True
    )
    page.get_by_role("dialog").get_by_role("button", name="Stop and keep").click()
    assert run.taken() == "stop"


def test_while_a_run_is_at_work_its_buttons_take_the_place_of_start(host, visitor, worker):
    run = worker("at work")
    run.step(5)
    page, live = watch(visitor, host, "at work")
    section = page.locator("#lora_trainer_section_train")
    bar = section.locator(".lora-trainer-actions")
    eventually(
        lambda: bar.get_by_role("button").all_inner_texts(),
        ["Pause", "Stop", "Save now", "Preview now"],
    )
    expect(section.get_by_role("button", name="Train it next")).to_be_hidden()
    form = section.locator("details.lora-trainer-start")
    assert (
        form.bounding_box()["y"] > live.bounding_box()["y"] and form.bounding_box()["height"] < 60
    )
    form.locator("summary").click()
    expect(section.get_by_role("button", name="Train it next")).to_be_visible()
    expect(section.locator(".lora-trainer-primary:visible")).to_have_count(0)
    # the page sees its end first, and only then what it accepts
    run.end(events.Failed.of(OutOfMemory("GPU out of memory", hint="")), exiting=3.0)
    bar.get_by_role("button", name="Continue").wait_for()
    eventually(
        lambda: section.locator(".lora-trainer-primary:visible").all_inner_texts(), ["Continue"]
    )


def judge(folder: RunFolder) -> None:
    """What a worker leaves of its verdict."""
    one = verdict.VerdictFinding(
        name="detail_lost",
        sentence=Message("From step {step:,} on it is lost.", {"step": 5}),
        advice=Message("Use rank {rank}.", {"rank": 16}),
        changes={"lora_rank": 16},
    )
    best = Message(
        "Step {step:,} of {total:,} at strength {strength:g} is best.",
        {"step": 10, "total": 100, "strength": 0.75},
    )
    verdict.write(
        folder,
        verdict.Verdict(step=10, step_count=100, best_step=10, sentences=(best,), findings=(one,)),
    )
    (folder.path / "report.html").write_text("<p>What was judged</p>", encoding="utf-8")


def test_after_a_stop_what_was_learned_is_tried_delivered_or_trained_on_there_and_then(
    host, visitor, worker
):
    run = worker("stopped early")
    run.step(10)
    run.preview(10)
    path = run.folder.saved_file("stopped_early", 10)
    write_lora(path, content=10, hashed=True)
    run.write(events.Saved(step=10, file=run.folder.relative(path)))
    page, live = watch(visitor, host, "stopped early")
    judge(run.folder)
    run.end(events.Stopped(step=10, file=run.folder.relative(path)))
    section = page.locator("#lora_trainer_section_train")
    bar = section.locator(".lora-trainer-actions")
    bar.get_by_role("button", name="Put into the LoRA folder").wait_for()
    # the worker is gone a moment after its last word
    bar.get_by_role("button", name="Continue").wait_for()
    eventually(
        lambda: bar.get_by_role("button").all_inner_texts(),
        ["Try it", "Put into the LoRA folder", "Continue"],
    )
    eventually(
        lambda: section.locator(".lora-trainer-primary:visible").all_inner_texts(), ["Try it"]
    )
    expect(live.get_by_text("The training so far is saved.", exact=True)).to_be_visible()
    assert (
        live.locator(".lora-trainer-live-kept > img").evaluate(
            "image => image.decode().then(() => image.naturalWidth)"
        )
        > 0
    )
    live.get_by_role("button", name="Saved steps").click()
    dialog = page.get_by_role("dialog")
    assert (
        dialog.locator("li img").evaluate("image => image.decode().then(() => image.naturalWidth)")
        > 0
    )
    page.keyboard.press("Escape")
    judged = live.get_by_role("region", name="Verdict")
    expect(judged.get_by_text("Step 10 of 100 at strength 0.75 is best.")).to_be_visible()
    expect(judged.get_by_role("button", name="Put step 10 into the LoRA folder")).to_be_visible()
    with page.expect_popup() as opened:
        judged.get_by_role("link", name="Open the report").click()
    expect(opened.value.get_by_text("What was judged")).to_be_visible()
    opened.value.close()
    try:
        bar.get_by_role("button", name="Put into the LoRA folder").click()
        live.get_by_text("Your LoRA is ready: stopped_early-step").wait_for()
        bar.get_by_role("button", name="Put into the LoRA folder").wait_for(state="detached")
        eventually(lambda: bar.get_by_role("button").all_inner_texts(), ["Try it", "Continue"])
        expect(judged.get_by_role("button", name="Put step 10")).to_have_count(0)
        judged.get_by_role("button", name="Apply to the next run").click()
        page.get_by_text("These are the settings of stopped early.").wait_for()
        expect(page.get_by_label("Rank", exact=True)).to_have_value("16")
        open_step(page, "train")
        assert len(list(host.lora_folder.glob("stopped_early*.safetensors"))) == 1
        bar.get_by_role("button", name="Try it").click()
        page.locator(
            "#lora_trainer_section_try .lora-trainer-actions-text", has_text="stopped_early-step"
        ).wait_for()
        # the settings that train it further: twice the rank, half the steps
        open_step(page, "train")
        live.get_by_role("button", name="More detail ...").click()
        page.get_by_text("The next training continues from stopped_early").wait_for()
        form = page.locator("#lora_trainer_section_settings")
        expect(form.get_by_label("Rank", exact=True)).to_have_value("16")
        expect(form.get_by_label("Steps", exact=True)).to_have_value("50")
        begun = form.get_by_label("Start from a LoRA").locator("option:checked")
        expect(begun).to_have_text("stopped_early-step00000010")
    finally:
        # the image stays: the host's cards go on asking for it
        for ending in ("safetensors", "json"):
            for left in host.lora_folder.glob(f"stopped_early*.{ending}"):
                left.unlink()


def test_that_another_run_is_at_work_is_said_only_while_it_is(host, visitor, worker):
    worker("looked at").end(events.Stopped(step=0, file=""))
    page, _ = watch(visitor, host, "looked at")
    other = worker("the other")
    other.step(5)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    note = page.get_by_text("the other is running now.")
    note.wait_for()
    other.end(events.Stopped(step=5, file=""))
    note.wait_for(state="detached")
    page.locator("#lora_trainer_section_train").get_by_text("Queue another training").wait_for(
        state="hidden"
    )


def asked_until_quiet(
    page: Any, visitor: Any, milliseconds: int = 3000, tries: int = 8
) -> list[str]:
    """What a page that should have nothing to ask went on to ask: one that asks every second is
    never quiet for three.

    The first seconds are not meant: what was asked already may still be on its way, and the
    strength panel reads its list once.
    """
    visitor.note_requests()
    asked: list[str] = []
    for _ in range(tries):
        before = len(visitor.requests)
        page.wait_for_timeout(milliseconds)
        asked = [url for _, url in visitor.requests[before:] if "lora-trainer/" in url]
        if not asked:
            break
    return asked


def test_when_nothing_runs_any_more_nothing_is_asked_any_more(host, visitor, worker):
    run = worker("soon over")
    run.step(100)
    page, live = watch(visitor, host, "soon over")
    run.end(events.Stopped(step=100, file=""))
    live.locator(".lora-trainer-badge", has_text="Stopped").wait_for()
    assert asked_until_quiet(page, visitor) == []


def test_a_hidden_tab_asks_nothing(host, visitor, worker):
    run = worker("unseen")
    run.step(1)
    page, live = watch(visitor, host, "unseen", open_page=open_tab)
    page.locator("#tabs > .tab-nav > button", has_text="txt2img").first.click()
    assert asked_until_quiet(page, visitor) == []
    run.step(2)
    page.locator("#tabs > .tab-nav > button", has_text="LoRA Trainer").first.click()
    live.get_by_text("Step 2 of 100").wait_for()


def test_when_a_run_has_ended_what_will_happen_is_asked_anew(host, visitor, worker):
    run = worker("tells the pace")
    run.step(7)
    page, live = watch(visitor, host, "tells the pace")
    live.get_by_text("Step 7 of 100").wait_for()
    page.wait_for_timeout(1500)
    with page.expect_request(lambda request: request.url.endswith("lora-trainer/plan")):
        run.end(events.Stopped(step=8, file=""))


def test_a_failure_says_what_and_what_to_try(host, visitor, worker):
    run = worker("went wrong")
    run.step(7)
    run.end(events.Failed.of(OutOfMemory("GPU out of memory", hint="Set the batch size to 1.")))
    page, live = watch(visitor, host, "went wrong")
    notice = live.locator(".lora-trainer-notice-error")
    eventually(
        lambda: notice.locator("p").all_inner_texts(),
        ["GPU out of memory", "Set the batch size to 1."],
    )
    eventually(lambda: notice.get_by_role("button").all_inner_texts(), ["Continue", "Copy report"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notice.get_by_role("button", name="Copy report").click()
    page.get_by_text("Copied.").wait_for()
    report = page.evaluate("navigator.clipboard.readText()")
    assert "GPU out of memory" in report and "the last line" in report


def test_a_deleted_run_can_be_taken_back_until_the_trash_is_emptied_after_a_question(
    host, visitor, worker
):
    run = worker("thrown away")
    run.end(events.Stopped(step=3, file=""))
    page, _ = watch(visitor, host, "thrown away")
    row = page.locator(".lora-trainer-runs li", has_text="thrown away")
    row.locator("summary").click()
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Move to the trash").click()
    row.wait_for(state="detached")
    assert not run.folder.path.exists()
    page.get_by_role("button", name="Undo").click()
    row.wait_for()
    assert run.folder.path.is_dir()
    row.locator("details").evaluate("row => { row.open = true; }")
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Move to the trash").click()
    runs = page.get_by_role("region", name="Runs")
    runs.get_by_text("In the trash:").wait_for()
    runs.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert host.get("trash")["count"] >= 1
    runs.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete permanently").click()
    page.get_by_text("The trash is empty.").wait_for()
    runs.get_by_text("In the trash:").wait_for(state="hidden")
    assert list((host.trainer_folder / "trash").iterdir()) == []


def test_the_dialog_of_saved_steps_is_as_wide_as_what_is_in_it(host, visitor, worker):
    run = worker("with saves")
    for step in (10, 20):
        file = f"checkpoints/fox-step{step:08d}.safetensors"
        write_lora(run.folder.path / file)
        run.write(events.Saved(step=step, file=file))
    run.end(events.Stopped(step=20, file=""))
    page, _ = watch(visitor, host, "with saves")
    page.locator("#lora_trainer_section_train").get_by_role(
        "button", name="Saved steps"
    ).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Step 20", exact=True).wait_for()
    for width in (1600, 390):
        resize(page, width)
        box = dialog.bounding_box()
        assert 300 <= box["width"] <= min(800, width - 24) and box["x"] >= 0
        # nothing is cut off, and on a wide screen each step is one line
        assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
        lines = [line.bounding_box()["height"] for line in dialog.get_by_role("listitem").all()]
        assert len(lines) == 2 and (width < 600 or max(lines) < 80)


def test_the_settings_of_a_run_are_told_in_words_and_fill_the_form_again(host, visitor, worker):
    run = worker("settings again", "lora_rank: 5\ntrigger_word: zrb\nsample_prompts: [a fox]\n")
    run.end(events.Stopped(step=3, file=""))
    page, _ = watch(visitor, host, "settings again")
    row = page.locator(".lora-trainer-runs li", has_text="settings again")
    row.locator("summary").click()
    row.get_by_role("button", name="Settings", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name="Settings of settings again").wait_for()
    words = dict(
        zip(
            dialog.locator("dt").all_inner_texts(),
            dialog.locator("dd").all_inner_texts(),
            strict=True,
        )
    )
    assert (words["Rank"], words["Trigger word"], words["Steps"], words["Preview prompts"]) == (
        "5",
        "zrb",
        "100",
        "a fox",
    )
    page.evaluate("loraTrainer.datasets.choose('')")
    dialog.get_by_role("button", name="Use these settings").click()
    section = page.locator("#lora_trainer_section_settings")
    section.wait_for(state="visible")
    expect(section.get_by_label("Rank", exact=True)).to_have_value("5")
    expect(section.get_by_label("Trigger word", exact=True)).to_have_value("zrb")
    expect(section.get_by_label("Name of the LoRA")).to_have_value("settings again")
    assert page.evaluate("loraTrainer.store.get('settings').lora_rank") == 5


def test_a_connection_that_is_lost_heals_by_itself(host, visitor, worker):
    run = worker("cut off")
    run.step(1)
    page, live = watch(visitor, host, "cut off")
    page.route("**/lora-trainer/**", lambda route: route.abort())
    try:
        live.get_by_text("Connection lost, trying again ...").wait_for()
        said = page.locator(f"{ROOT} .lora-trainer-connection")
        said.get_by_text("A running training continues").wait_for()
        stop = page.locator("#lora_trainer_section_train .lora-trainer-actions").get_by_role(
            "button", name="Stop"
        )
        eventually(lambda: stop.get_attribute("aria-disabled"), "true")
        stop.click(force=True)
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.unroute("**/lora-trainer/**")
        run.step(2)
        live.get_by_text("Step 2 of 100").wait_for()
        said.wait_for(state="detached")
        assert stop.get_attribute("aria-disabled") is None
    finally:
        # the browser itself tells of each request that fails
        visitor.complaints[:] = [text for text in visitor.complaints if "ERR_FAILED" not in text]
    expect(live.get_by_text("Connection lost")).to_have_count(0)


def test_a_page_of_a_webui_that_was_started_again_says_that_it_has_to_be_reloaded(
    host, visitor, worker
):
    worker("went on").step(1)
    page, _ = watch(visitor, host, "went on", open_page=open_tab)

    def renamed(route):
        answer = route.fetch()
        route.fulfill(
            response=answer, headers={**answer.headers, "x-lora-trainer-session": "another"}
        )

    page.route("**/lora-trainer/pulse", renamed)
    said = page.locator(f"{ROOT} .lora-trainer-connection")
    said.get_by_text("The WebUI was restarted. Reload this page").wait_for()
    # our own tab goes on working
    expect(
        page.locator("#lora_trainer_section_train .lora-trainer-actions").get_by_role(
            "button", name="Pause"
        )
    ).to_be_enabled()
    page.evaluate("loraTrainer.host.send('txt2img', {prompt: 'a fox'})")
    page.get_by_text("Reload this page first").wait_for()
    assert page.locator("#txt2img_prompt textarea").input_value() != "a fox"
    page.unroute_all(behavior="ignoreErrors")
    said.get_by_role("button", name="Reload the page").click()
    page.wait_for_selector(f"{ROOT} [role=tablist]", state="attached")
    expect(page.locator(f"{ROOT} .lora-trainer-connection")).to_have_count(0)


def test_the_queue_is_put_in_another_order_from_the_keyboard(host, visitor, worker):
    worker("at work").step(1)
    queue = Queue(host.trainer_folder / "queue.json")
    for name in ("waits first", "waits second"):
        worker(name).end(events.Stopped(step=0, file=""))
        queue.add(name)
    try:
        page, _ = watch(visitor, host, "at work")
        waiting = page.get_by_role("region", name="Queue").locator("strong")
        eventually(lambda: waiting.all_inner_texts(), ["waits first", "waits second"])
        page.get_by_role("button", name="Move up").last.focus()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('[aria-label=Queue] strong').textContent === 'waits"
            " second'"
        )
        assert queue.read().waiting == ("waits second", "waits first")
        # it cannot go further up: the focus is on the row's next button
        assert page.evaluate("document.activeElement.textContent") == "Move down"
        page.get_by_role("button", name="Remove").first.click()
        page.wait_for_function(
            "() => document.querySelectorAll('[aria-label=Queue] strong').length === 1"
        )
        assert queue.read().waiting == ("waits first",)
    finally:
        for name in ("waits first", "waits second"):
            queue.drop(name)


class PlayedQueue:
    """A start that the test answers: the run waits, is at work, is over, as `status` says."""

    def __init__(self, visitor: Any, run: dict[str, Any]) -> None:
        self.run, self.status = run, ""
        self.others_are_adopted = True
        """Whether the scheduler has seen the runs that it did not start itself."""
        plan = {
            "ok": True,
            "sentence": "Trains 100 steps.",
            "problems": [],
            "facts": [],
            "unchecked": 0,
            "resolved": {},
            "suggested": {},
            "steps": 100,
        }
        visitor.context.route("**/lora-trainer/plan", lambda route: route.fulfill(json=plan))
        visitor.context.route("**/lora-trainer/runs", self._runs)
        visitor.context.route("**/lora-trainer/pulse", self._pulse)
        visitor.context.route("**/lora-trainer/runs/*/live*", self._live)

    def shown(self) -> dict[str, Any]:
        return {
            **self.run,
            "status": self.status,
            "position": 0 if self.status == "queued" else None,
        }

    def _runs(self, route: Any) -> None:
        if route.request.method == "POST":
            self.status = "queued"
            route.fulfill(json=self.shown())
            return
        answer = route.fetch()
        others = [run for run in answer.json()["runs"] if run["id"] != self.run["id"]]
        route.fulfill(
            response=answer, json={"runs": [*([self.shown()] if self.status else []), *others]}
        )

    def _live(self, route: Any) -> None:
        answer = route.fetch()
        real = answer.json()
        ours = real["run"]["id"] == self.run["id"]
        route.fulfill(response=answer, json={**real, "run": self.shown()} if ours else real)

    def _pulse(self, route: Any) -> None:
        answer = route.fetch()
        real = answer.json()
        active = [self.shown()] if self.status == "running" else []
        told = {
            "revision": f"{real['revision']} {self.status}",
            "active": [*(real["active"] if self.others_are_adopted else []), *active],
            "queued": int(self.status == "queued"),
        }
        route.fulfill(response=answer, json={**real, **told})


@pytest.fixture
def played_queue(host: Any, visitor: Any, worker: Any) -> Iterator[Any]:
    worker("to be started").end(events.Stopped(step=0, file=""))
    yield PlayedQueue(
        visitor, next(run for run in host.get("runs")["runs"] if run["name"] == "to be started")
    )
    visitor.context.unroute_all(behavior="ignoreErrors")


def open_start(visitor: Any, host: Any) -> tuple[Any, Any]:
    """(page, section) where Start can be pressed."""
    page = open_bare_tab(visitor, host)
    section = open_step(page, "train")
    page.evaluate("loraTrainer.datasets.choose('played')")
    section.get_by_text("Trains 100 steps.").wait_for(state="attached")
    return page, section


def pulses(visitor: Any) -> int:
    return sum(url.endswith("lora-trainer/pulse") for _, url in visitor.requests)


def test_after_a_start_the_queue_is_looked_at_every_second_until_the_run_is_over(
    host, visitor, played_queue
):
    page, section = open_start(visitor, host)
    assert asked_until_quiet(page, visitor) == [], "nothing goes on"
    section.get_by_role("button", name="Start", exact=True).click()
    queue = page.get_by_role("region", name="Queue")
    queue.get_by_text("to be started").wait_for()
    before, end = pulses(visitor), time.monotonic() + PATIENCE
    while pulses(visitor) - before < 3 and time.monotonic() < end:
        page.wait_for_timeout(500)
    assert pulses(visitor) - before >= 3
    played_queue.status = "running"
    row = page.get_by_role("region", name="Runs").locator("li", has_text="to be started")
    row.wait_for()
    expect(queue).to_be_hidden()
    played_queue.status = "stopped"
    row.get_by_text("Stopped").wait_for()
    assert asked_until_quiet(page, visitor) == [], "nothing goes on any more"


def test_a_start_while_another_run_is_at_work_leaves_that_in_view(
    host, visitor, worker, played_queue
):
    worker("busy one").step(5)
    played_queue.others_are_adopted = False
    page, section = open_start(visitor, host)
    live = section.locator(".lora-trainer-live")
    live.get_by_role("heading", name="busy one", exact=True).wait_for()
    section.get_by_text("Queue another training").click()
    section.get_by_role("button", name="Train it next").click()
    page.get_by_text("to be started was added to the queue.").wait_for()
    page.get_by_role("region", name="Queue").get_by_text("to be started").wait_for()
    expect(live.get_by_role("heading", name="busy one", exact=True)).to_be_visible()
