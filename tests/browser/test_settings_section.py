"""The section "settings" and the set-up screen in a real browser, on both WebUIs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lora_trainer.settings import schema
from tests.browser.looks import resize
from tests.browser.tab import ROOT, eventually, expect, open_bare_tab, open_step
from tests.made import draw_images
from tests.webui.lora_files import write_lora

pytestmark = [pytest.mark.webuis("forge"), pytest.mark.xdist_group("sections")]


@pytest.fixture
def dataset(host: Any) -> Iterator[str]:
    """Six square images with captions; its id."""
    identity = json.loads(host.post("datasets", {"name": f"Discs {time.time_ns()}"}).body)["id"]
    draw_images(host.trainer_folder / "datasets" / identity, 6)
    yield identity
    host.post(f"datasets/{quote(identity)}/delete")


@pytest.fixture
def visitor(dataset: str, visitor: Any) -> Any:
    """One who leaves before the dataset is deleted: an open page keeps what is set for it."""
    return visitor


@pytest.fixture
def visit(dataset: str, visit: Any) -> Any:
    return visit


def open_settings(
    visitor: Any, host: Any, dataset: str = "", checkpoint: str = ""
) -> tuple[Any, Any]:
    """(page, section) with a dataset chosen, and a checkpoint."""
    page = open_bare_tab(visitor, host)
    page.evaluate("id => loraTrainer.datasets.choose(id)", dataset)
    section = open_step(page, "settings")
    if checkpoint:
        page.select_option("#lora_trainer_checkpoint", checkpoint)
        page.wait_for_function("id => loraTrainer.store.get('checkpoint') === id", arg=checkpoint)
    return page, section


def field(section: Any, key: str) -> Any:
    return section.locator(f"[data-key={key}]")


def wait_for_plan(page: Any, condition: str) -> None:
    page.wait_for_function(
        f"() => {{ const plan = loraTrainer.store.get('plan'); return plan && ({condition}); }}"
    )


def test_the_practice_model_and_a_dataset_are_enough_to_start(host, visitor, dataset):
    page, section = open_settings(visitor, host, dataset, "practice")
    # nothing has to be installed
    expect(page.locator(f"{ROOT} .lora-trainer-setup")).to_be_hidden()
    wait_for_plan(page, "plan.ok && plan.steps === 250")
    plan = section.locator(".lora-trainer-settings-plan")
    expect(plan).to_contain_text(
        "Trains 250 steps on 6 images of one size, with Tiny practice model (SD1.5).",
        use_inner_text=True,
    )
    assert "models/Lora/Discs" in plan.inner_text().replace("\\", "/")
    assert (
        section.locator("#lora_trainer_checkpoint_text")
        .inner_text()
        .startswith("SD1.5 · made for 64 pixels")
    )
    expect(field(section, "learning_rate").locator("input")).to_have_value("0.003")
    expect(field(section, "resolution")).to_contain_text("auto is 64 here.", use_inner_text=True)
    assert (
        section.locator(".lora-trainer-actions-text")
        .inner_text()
        .endswith(": 6 images · 250 steps")
    )
    # a preview is planned without anybody asking, and can be emptied
    wait_for_plan(page, "plan.suggested.sample_prompts.length === 1")
    prompts = field(section, "sample_prompts").locator("textarea")
    suggested = prompts.input_value()
    assert suggested
    expect(field(section, "sample_prompts")).to_contain_text(
        "From the first caption.", use_inner_text=True
    )
    assert page.evaluate("loraTrainer.store.get('settings').sample_prompts") == [suggested]
    field(section, "trigger_word").locator("input").fill("zrb")
    page.wait_for_function(
        "() => loraTrainer.store.get('settings').sample_prompts[0].startsWith('zrb, ')"
    )
    prompts.fill("")
    prompts.blur()
    assert page.evaluate("loraTrainer.store.get('settings').sample_prompts") == []
    field(section, "sample_prompts").get_by_role(
        "button", name="Preview prompts is changed; reset to"
    ).click()
    expect(prompts).to_have_value(f"zrb, {suggested}")
    section.get_by_role("button", name="Continue to training").click()
    expect(page.locator("#lora_trainer_section_train")).to_be_visible()


def test_a_wrong_value_is_told_beside_its_field_and_in_the_list(host, visitor, dataset):
    page, section = open_settings(visitor, host, dataset, "practice")
    rank = field(section, "lora_rank")
    rank.locator("input").fill("0")
    wait_for_plan(page, "plan.problems.some((one) => one.field === 'lora_rank')")
    expect(rank.locator(".lora-trainer-settings-problem")).to_contain_text(
        "Rank is 0, but must be between 1 and 1024", use_inner_text=True
    )
    assert rank.locator("input").get_attribute("aria-invalid") is not None
    listed = section.locator(".lora-trainer-settings-problems li", has_text="Rank is 0")
    page.locator("#lora_trainer_checkpoint").focus()
    listed.get_by_role("button", name="Show where").click()
    assert rank.locator("input").evaluate("input => input === document.activeElement")
    expect(section.get_by_role("button", name="Continue to training")).to_be_disabled()
    # in a field that is folded away it is unfolded
    rank.locator("input").fill("2")
    warmup = field(section, "lr_warmup_steps")
    expect(warmup).to_be_hidden()
    page.evaluate(
        "loraTrainer.store.set('settings', {...loraTrainer.store.get('settings'), lr_warmup_steps:"
        " 9999})"
    )
    section.locator(
        ".lora-trainer-settings-problems li", has_text="lr_warmup_steps is 9999"
    ).get_by_role("button", name="Show where").click()
    expect(warmup).to_be_visible()
    expect(warmup.locator("input")).to_have_value("9999")
    warmup.locator("input").fill("0")
    wait_for_plan(page, "plan.ok")
    expect(section.get_by_role("button", name="Continue to training")).to_be_enabled()


def test_while_training_cannot_start_the_next_thing_is_what_fixes_it(host, visitor, dataset):
    folder = host.trainer_folder / "datasets" / dataset
    for file in folder.glob("*.csv"):
        file.unlink()
    (folder / "img00.txt").write_text("a disc", encoding="utf-8")
    page, section = open_settings(visitor, host, dataset, "practice")
    field(section, "trigger_word").locator("input").fill("zrb")
    wait_for_plan(page, "plan.problems.some((one) => one.field === 'captions')")
    primary = section.locator(".lora-trainer-primary:visible")
    eventually(lambda: primary.all_inner_texts(), ["Go to the captions"])
    # a trigger word is set: its box is not to blame
    assert field(section, "trigger_word").locator("input").get_attribute("aria-invalid") is None
    primary.click()
    expect(page.locator("#lora_trainer_section_captions")).to_be_visible()
    for number in range(1, 6):
        (folder / f"img{number:02d}.txt").write_text(f"disc {number}", encoding="utf-8")
    open_step(page, "settings")
    page.evaluate(
        "loraTrainer.store.set('settings', {...loraTrainer.store.get('settings'), lora_rank: 9})"
    )
    wait_for_plan(page, "plan.ok")
    eventually(lambda: primary.all_inner_texts(), ["Continue to training"])


def test_a_change_is_marked_has_a_way_back_and_outlives_a_preset(host, visitor, dataset):
    page, section = open_settings(visitor, host, dataset, "practice")
    wait_for_plan(page, "plan.ok")
    steps = field(section, "max_train_steps")
    steps.locator("input").fill("77")
    assert "lora-trainer-settings-changed" in steps.get_attribute("class")
    section.get_by_role("button", name="Undo my change (1)", exact=True).wait_for()
    steps.get_by_role("button", name="is changed; reset to 250").click()
    expect(steps.locator("input")).to_have_value("250")
    assert "lora-trainer-settings-changed" not in steps.get_attribute("class")
    # steps or epochs are one choice
    wait_for_plan(page, "plan.steps === 250")
    # six images, one a step
    page.evaluate(
        "loraTrainer.store.set('settings', {...loraTrainer.store.get('settings'), batch_size: 1})"
    )
    length = field(section, "max_train_steps")
    expect(length.get_by_label("Steps", exact=True)).to_have_value("250")
    expect(length.locator("input")).to_have_count(1)
    length.get_by_label("Unit").select_option("epochs")
    length.get_by_label("Epochs", exact=True).fill("3")
    wait_for_plan(page, "plan.steps === 18")
    expect(length).to_contain_text("That is 18 steps.", use_inner_text=True)
    length.get_by_label("Unit").select_option("steps")
    expect(length.get_by_label("Steps", exact=True)).to_have_value("250")
    length.get_by_role("button", name="Training length is changed; reset to 250").click()
    assert page.evaluate("loraTrainer.store.get('settings').max_train_steps") == 250
    # a preset sets fields and keeps what was changed
    field(section, "lora_rank").locator("input").fill("5")
    section.get_by_role("button", name="Quick test").click()
    eventually(
        lambda: section.get_by_role("button", name="Quick test").get_attribute("aria-pressed"),
        "true",
    )
    expect(field(section, "max_train_steps").locator("input")).to_have_value("120")
    expect(field(section, "lora_rank").locator("input")).to_have_value("5")
    wait_for_plan(page, "plan.steps === 120")
    assert page.evaluate("loraTrainer.store.get('settings').save_steps") == 40


@pytest.mark.parametrize("sent", [True, False])
def test_the_draft_survives_a_refresh(sent, host, visitor, dataset):
    page, section = open_settings(visitor, host, dataset, "practice")
    eventually(lambda: "practice" in draft_of(host, dataset), True)
    if not sent:
        page.evaluate("() => { loraTrainer.api.post = () => new Promise(() => {}); }")
    field(section, "trigger_word").locator("input").fill("zrbl")
    section.locator("#lora_trainer_name").fill("My discs")
    section.get_by_role("button", name="Character").click()
    # at once: the server may not have answered, or not even heard of it
    page.reload()
    section = open_step(page, "settings")
    expect(section.locator("#lora_trainer_name")).to_have_value("My discs")
    expect(field(section, "trigger_word").locator("input")).to_have_value("zrbl")
    eventually(
        lambda: section.get_by_role("button", name="Character").get_attribute("aria-pressed"),
        "true",
    )
    expect(section.locator("#lora_trainer_checkpoint")).to_have_value("practice")
    eventually(lambda: "My discs" in draft_of(host, dataset), True)


@pytest.fixture
def two(host: Any) -> Iterator[tuple[str, str]]:
    """The ids of two datasets in which nothing has been set."""
    made = tuple(
        host.post("datasets", {"name": f"{name} {time.time_ns()}"}).json()["id"]
        for name in ("Fox", "Owl")
    )
    for identity in made:
        draw_images(host.trainer_folder / "datasets" / identity, 2)
    yield made
    for identity in made:
        host.post(f"datasets/{quote(identity)}/delete")


def test_a_trigger_word_stays_with_its_dataset_and_every_browser_sees_it(host, two, visitor, visit):
    fox, owl = two
    page = open_bare_tab(visitor, host)
    page.evaluate("id => loraTrainer.datasets.choose(id)", fox)
    captions = open_step(page, "captions")
    captions.get_by_label("Trigger word").fill("zrb")
    captions.get_by_label("Trigger word").blur()
    section = open_step(page, "settings")
    section.locator("#lora_trainer_name").fill("My fox")
    page.evaluate("id => loraTrainer.datasets.choose(id)", owl)
    # at once, before the server has said anything
    assert page.evaluate("loraTrainer.triggerWord()") == ""
    assert page.evaluate("loraTrainer.store.get('settings').sample_prompts || []") == []
    expect(section.locator("#lora_trainer_name")).to_have_value("")
    expect(open_step(page, "captions").get_by_label("Trigger word")).to_have_value("")
    page.wait_for_function(
        "id => fetch(`lora-trainer/datasets/${encodeURIComponent(id)}/draft`).then((got) =>"
        " got.json()).then((draft) => draft.values.name === 'My fox')",
        arg=fox,
    )
    other = open_bare_tab(visit(), host)
    other.evaluate("id => loraTrainer.datasets.choose(id)", fox)
    section = open_step(other, "settings")
    expect(field(section, "trigger_word").locator("input")).to_have_value("zrb")
    expect(section.locator("#lora_trainer_name")).to_have_value("My fox")
    # what the second changes, the first sees when it looks again; what the first changes meanwhile
    # stays
    field(section, "trigger_word").locator("input").fill("vxn")
    page.evaluate("id => loraTrainer.datasets.choose(id)", fox)
    open_step(page, "settings").locator("#lora_trainer_name").fill("Our fox")
    page.wait_for_function(
        "() => { loraTrainer.drafts.look(); return loraTrainer.triggerWord() === 'vxn' &&"
        " loraTrainer.store.get('name') === 'Our fox'; }"
    )


def test_what_a_browser_kept_before_goes_to_the_dataset_it_was_for(host, two, visitor):
    fox, owl = two
    page = open_bare_tab(visitor, host)
    before = {
        "preset": "style",
        "changes": {"trigger_word": "zrb"},
        "checkpoint": "practice",
        "name": "old",
        "advanced": True,
    }
    page.evaluate(
        "([id, draft]) => { for (const key of Object.keys(localStorage))"
        " localStorage.removeItem(key); localStorage.setItem('lora-trainer-dataset',"
        " JSON.stringify(id)); localStorage.setItem('lora-trainer-draft',"
        " JSON.stringify(draft)); }",
        [fox, before],
    )
    section = open_step(open_bare_tab(visitor, host), "settings")
    expect(field(section, "trigger_word").locator("input")).to_have_value("zrb")
    expect(section.locator("#lora_trainer_name")).to_have_value("old")
    again = visitor.context.pages[-1]
    again.wait_for_function(
        "id => fetch(`lora-trainer/datasets/${encodeURIComponent(id)}/draft`).then((got) =>"
        " got.json()).then((draft) => draft.values.name === 'old')",
        arg=fox,
    )
    again.evaluate("id => loraTrainer.datasets.choose(id)", owl)
    expect(field(section, "trigger_word").locator("input")).to_have_value("")
    expect(section.locator("#lora_trainer_checkpoint")).to_have_value("practice")


@pytest.fixture
def own_presets(host: Any) -> Iterator[Path]:
    """The folder of the visitor's own presets; what the test leaves there goes."""
    folder = host.trainer_folder / "presets"
    yield folder
    for path in folder.glob("*.yaml"):
        path.unlink()


def save_preset(page: Any, section: Any, name: str) -> Any:
    section.get_by_role("button", name="Save as a preset").click()
    dialog = page.get_by_role("dialog", name="Save as a preset")
    dialog.get_by_label("Name of the preset").fill(name)
    dialog.get_by_role("button", name="Save", exact=True).click()
    return dialog


def test_settings_are_saved_as_a_preset_and_chosen_again(host, visitor, dataset, own_presets):
    page, section = open_settings(visitor, host, dataset, "practice")
    wait_for_plan(page, "plan.ok")
    field(section, "lora_rank").locator("input").fill("5")
    field(section, "trigger_word").locator("input").fill("zrb")
    save_preset(page, section, "My <discs>").wait_for(state="detached")
    mine = section.get_by_role("button", name="My <discs>")
    eventually(lambda: mine.get_attribute("aria-pressed"), "true")
    kept = schema.read_mapping(own_presets / "My _discs_.yaml")["values"]
    assert (
        kept["lora_rank"] == 5
        and kept["max_train_steps"] == 250
        and not {"trigger_word", "sample_prompts"} & set(kept)
    )
    # the trigger word is the images': it stays a change
    section.get_by_role("button", name="Undo my change (1)", exact=True).wait_for()
    section.get_by_role("button", name="Style").click()
    expect(field(section, "lora_rank").locator("input")).to_have_value("8")
    mine.click()
    expect(field(section, "lora_rank").locator("input")).to_have_value("5")
    expect(section.locator(".lora-trainer-settings-why")).to_contain_text(
        "Rank 5", use_inner_text=True
    )
    # the other page reads what this one has written
    eventually(lambda: "own:My _discs_.yaml" in draft_of(host, dataset), True)
    section = open_step(open_bare_tab(visitor, host), "settings")
    eventually(
        lambda: section.get_by_role("button", name="My <discs>").get_attribute("aria-pressed"),
        "true",
    )
    expect(field(section, "lora_rank").locator("input")).to_have_value("5")


def test_a_suggestion_that_changes_while_a_preset_is_saved_is_no_change_of_ones_own(
    host, visitor, dataset, own_presets
):
    page, section = open_settings(visitor, host, dataset, "practice")
    wait_for_plan(page, "plan.ok")
    # a plan that is told during the saving suggests another prompt, as it does after a new trigger
    # word
    page.evaluate("""() => {
        const post = loraTrainer.api.post, suggested = { sample_prompts: ['another one'] };
        let saved = false;
        loraTrainer.api.post = async (path, ...rest) => {
            const answer = await post(path, ...rest);
            if (path === 'presets') {
                saved = true;
                loraTrainer.store.set('plan', { ...loraTrainer.store.get('plan'), suggested });
            }
            return path === 'plan' && saved ? { ...answer, suggested } : answer;
        };
    }""")
    save_preset(page, section, "Mine").wait_for(state="detached")
    expect(section.get_by_role("button", name="Undo my changes", exact=True)).to_be_disabled()
    assert page.evaluate("loraTrainer.store.get('settings').sample_prompts") == ["another one"]


def test_a_preset_of_the_same_name_is_replaced_and_deleted_when_that_is_said(
    host, visitor, dataset, own_presets
):
    own_presets.mkdir(exist_ok=True)
    (own_presets / "foreign.yaml").write_text("some: thing\n", encoding="utf-8")
    (own_presets / "good.yaml").write_text(
        "title: Good\nvalues: {batch_size: 2}\n", encoding="utf-8"
    )
    page, section = open_settings(visitor, host, dataset, "practice")
    wait_for_plan(page, "plan.ok")
    # one that cannot be used is named beside the others
    section.get_by_text("foreign.yaml is a YAML file, but not a preset").wait_for()
    expect(section.get_by_role("button", name="Good")).to_be_visible()
    expect(section.get_by_role("button", name="Style")).to_be_visible()
    delete = section.get_by_role("button", name="Delete this preset")
    expect(delete).to_be_hidden()
    save_preset(page, section, "Mine").wait_for(state="detached")
    field(section, "lora_rank").locator("input").fill("6")
    dialog = save_preset(page, section, "Mine")
    dialog.get_by_text("you already have a preset called Mine").wait_for()
    dialog.get_by_role("button", name="Replace it").click()
    dialog.wait_for(state="detached")
    assert schema.read_mapping(own_presets / "Mine.yaml")["values"]["lora_rank"] == 6
    expect(section.get_by_role("button", name="Mine")).to_have_count(1)

    delete.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert (own_presets / "Mine.yaml").is_file()
    delete.click()
    page.get_by_role("dialog").get_by_role("button", name="Move to the trash").click()
    section.get_by_role("button", name="Mine").wait_for(state="detached")
    assert not (own_presets / "Mine.yaml").exists()
    expect(delete).to_be_hidden()
    # the settings stay
    expect(field(section, "lora_rank").locator("input")).to_have_value("6")
    wait_for_plan(page, "plan.ok && plan.steps === 250")


def test_settings_are_found_ticked_and_changed_by_arrows_in_fields_with_names(
    host, visitor, dataset
):
    page, section = open_settings(visitor, host, dataset, "practice")
    # one is found by its other names, and the others are back after
    shown = section.locator(".lora-trainer-settings-field:visible .lora-trainer-settings-label")
    section.get_by_label("Find a setting").fill("gradient clipping")
    eventually(lambda: [text.strip() for text in shown.all_inner_texts()], ["Max grad norm"])
    section.get_by_label("Find a setting").fill("xyz")
    section.get_by_text("No settings match.").wait_for()
    section.get_by_label("Find a setting").fill("")
    expect(shown).to_have_count(7)
    expect(field(section, "max_grad_norm")).to_be_hidden()
    # ticks show what is set, and arrows change a number within its bounds
    section.locator(".lora-trainer-settings-advanced > summary").click()
    expect(section.get_by_label("Aspect ratio buckets")).to_be_checked()
    assert not section.get_by_label("Flip augmentation").is_checked()
    rank = field(section, "lora_rank").locator("input")
    rank.fill("2")
    for key in ("ArrowUp", "ArrowDown", "ArrowDown", "ArrowDown"):
        rank.press(key)
    expect(rank).to_have_value("1")
    # nothing is wider than the screen, and every input has a name that is read out
    wait_for_plan(page, "plan.ok")
    for width in (390, 1280, 1600):
        resize(page, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = section.evaluate(
        "section => [...section.querySelectorAll('input, select, textarea')].filter((input) =>"
        " !(input.labels && input.labels.length) && !input.ariaLabel).map((input) => input.id)"
    )
    assert nameless == []


def test_settings_are_not_called_wrong_before_anybody_was_there(host, visitor, dataset):
    page, _ = open_settings(visitor, host, dataset, "practice")
    page.evaluate(
        "loraTrainer.store.set('settings', {...loraTrainer.store.get('settings'), lora_rank: 0})"
    )
    page.locator("#lora_trainer_step_settings[data-state=problem]").wait_for()
    # an answer that comes while the settings are shown would note them as seen again
    open_step(page, "images")
    page.evaluate("sessionStorage.removeItem('lora-trainer-settings-seen')")
    page.evaluate("loraTrainer.replan(0)")
    page.wait_for_function(
        "() => document.querySelector('#lora_trainer_step_settings').dataset.state === ''"
    )
    open_step(page, "settings")
    page.locator("#lora_trainer_step_settings[data-state=problem]").wait_for()


# --- set-up ---------------------------------------------------------------------------------------


@pytest.fixture
def played_setup(visitor: Any) -> Iterator[Any]:
    yield lambda **now: PlayedSetup(visitor, **now)
    # what is still on its way must not fail when the browser closes
    visitor.context.unroute_all(behavior="ignoreErrors")


MISSING = {
    "state": "missing",
    "message": "Training needs packages.",
    "hint": "Set up.",
    "lines": [],
    "seconds": 0,
    "megabytes": 138,
    "report": "",
}


class PlayedSetup:
    """The server's answers about the set-up, as a test wants them."""

    def __init__(self, visitor: Any, **now: Any) -> None:
        self.now = {**MISSING, **now}
        self.begun = 0
        visitor.context.route("**/lora-trainer/home", self._home)
        visitor.context.route("**/lora-trainer/setup*", self._answer)

    def _home(self, route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "setup": self.now})

    def _answer(self, route: Any) -> None:
        if route.request.method == "POST":
            self.begun += 1
            self.now.update(state="installing", lines=["Collecting diffusers"], seconds=1)
        route.fulfill(
            json={**self.now, "report": "a report" if "report=1" in route.request.url else ""}
        )


def test_missing_packages_are_set_up_here_or_elsewhere_with_live_lines_and_again_after_a_failure(
    host, visitor, played_setup
):
    played = played_setup()
    page = open_bare_tab(visitor, host)
    card = page.locator(f"{ROOT} .lora-trainer-setup")
    card.get_by_role("button", name="Set up").wait_for()
    # one that was started elsewhere is noticed
    played.now.update(state="installing", lines=["Collecting diffusers"])
    card.get_by_text("Collecting diffusers").wait_for()
    played.now.update(
        state="ready", hint="", message="Everything that training needs is installed."
    )
    page.get_by_text("Everything is installed. You can train now.").wait_for()
    card.wait_for(state="hidden")
    assert played.begun == 0
    assert page.evaluate("loraTrainer.store.get('home').setup.state") == "ready"
    # who can train already is offered the set-up, and sent on to the images all the same
    played.now.update(hint="If training does not start, set up again: that tests them.")
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(card.get_by_role("button", name="Set up again", exact=True)).to_be_visible()
    expect(page.locator(f"{ROOT} .lora-trainer-primary:visible")).to_have_count(1)
    card.get_by_role("button", name="Later").click()
    with page.expect_response("**/lora-trainer/setup*"):
        page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_timeout(300)
    expect(card).to_be_hidden()
    # in a tab that starts again, packages are missing
    played.now.update(MISSING)
    page.evaluate("loraTrainer.tab.start()")
    expect(card).to_contain_text("One step before training", use_inner_text=True)
    expect(card).to_contain_text("Training needs packages.", use_inner_text=True)
    card.get_by_role("button", name="Set up (about 138 MB)").click()
    card.get_by_text("Collecting diffusers").wait_for()
    expect(card.get_by_role("progressbar")).to_be_visible()
    expect(card.get_by_role("button", name="Set up")).to_be_hidden()
    assert played.begun == 1
    # one that fails can be reported and tried again
    played.now.update(
        state="failed",
        message="Setting up failed: no connection",
        hint="Check the connection.",
    )
    expect(card).to_contain_text("no connection", use_inner_text=True)
    expect(card).to_contain_text("Check the connection.", use_inner_text=True)
    card.get_by_role("button", name="Copy a report").click()
    page.get_by_role("dialog").get_by_text("a report", exact=True).wait_for()
    page.keyboard.press("Escape")
    card.get_by_role("button", name="Try again").click()
    card.get_by_role("progressbar").wait_for()
    assert played.begun == 2
    played.now.update(
        state="ready",
        hint="",
        message="Everything that training needs is installed.",
        lines=["Collecting diffusers", "ready"],
    )
    page.get_by_text("Everything is installed. You can train now.").wait_for()
    # done: neither pip's words nor a button to put them away stand above the steps
    card.wait_for(state="hidden")


def test_a_lora_to_begin_with_is_chosen_kept_and_missed(
    host: Any, visitor: Any, dataset: str
) -> None:
    file = write_lora(host.lora_folder / "others" / "begin_with.safetensors", ours=False)
    page, section = open_settings(visitor, host, dataset, "practice")
    chooser = section.get_by_label("Start from a LoRA")
    expect(chooser).to_have_value("")
    chooser.select_option(label="others/begin_with")
    # the preset has a rank of its own
    wait_for_plan(page, "plan.resolved.lora_rank === 8")
    section.get_by_label("Rank", exact=True).fill("auto")
    wait_for_plan(page, "plan.resolved.lora_rank === 1")
    eventually(lambda: "init_lora" in draft_of(host, dataset), True)
    file.unlink()
    page, section = open_settings(visitor, host, dataset)
    chooser = section.get_by_label("Start from a LoRA")
    expect(chooser.locator("option:checked")).to_have_text("a LoRA that no longer exists")
    expect(section).to_contain_text("This LoRA no longer exists")
    chooser.select_option("")
    wait_for_plan(page, "plan.resolved.lora_rank === 8 && plan.problems.length === 0")


def draft_of(host: Any, dataset: str) -> str:
    """What is kept beside the images."""
    file = host.trainer_folder / "datasets" / dataset / ".lora_trainer" / "draft.json"
    return file.read_text(encoding="utf-8") if file.exists() else ""
