"""The sections "images" and "captions" in a browser, against the real routes: what the artist does,
and what two of them do at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.webui.captions import routes as caption_routes
from lora_trainer.webui.captions.workbench import Workbenches
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.common.form import form
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http import routing
from lora_trainer.webui.images import routes
from lora_trainer.webui.tab import routes as tab_routes
from tests.dataset.pictures import save
from tests.javascript.serving import Server
from tests.webui.heic import heic, without_decoder

pytestmark = pytest.mark.xdist_group("scripts")

HTML = (
    '<!doctype html><link rel="stylesheet" href="style.css"><div id="lora_trainer_root"'
    ' class="lora-trainer"></div><script src="javascript/lora_trainer.js"></script>'
)
POLLS = {b"pollInterval = 4;": b"pollInterval = 0.4;"}
"""What is waited for here comes ten times as soon."""


class Tab:
    """A WebUI of nothing but datasets; `open()` is one visitor's page, with the requests it makes
    answered in this process.
    """

    def __init__(self, folder: Path, browser, server: Server) -> None:
        self.folder = folder / "datasets"
        self.complaints: list[str] = []
        self.does_not_answer = ""
        """How the addresses end that get no answer."""
        self.answer_is_lost = ""
        """The same for requests that are carried out."""
        self.fails = ""
        """The same for those that are answered with an error."""
        self._browser, self._server = browser, server
        self._visitors = []
        host = SimpleNamespace(
            language=lambda: "",
            is_remote=lambda: False,
            api_credentials=dict,
            names=lambda: frozenset({"127.0.0.1"}),
        )
        self.datasets = Datasets(DataFolder(folder), host.is_remote)
        host_app = Starlette()
        modules = (routes.__name__, caption_routes.__name__, tab_routes.__name__)
        entries = [
            entry
            for entry in routing.ROUTES
            if entry.handler.__module__ in modules and entry.path != "/home"
        ]
        before = routing.ROUTES[:]
        routing.ROUTES[:] = [*entries, routing.RouteEntry("GET", "/home", self._home, False)]
        app = SimpleNamespace(
            host=host,
            datasets=self.datasets,
            workbenches=Workbenches(self.datasets),
            runs=SimpleNamespace(newest_captioning=lambda path: None),
            redactions=dict,
        )
        routing.mount(host_app, app)
        routing.ROUTES[:] = before
        self.client = TestClient(
            host_app, base_url="http://127.0.0.1", raise_server_exceptions=False
        )
        # one event loop for all requests, and not one for each
        self.client.__enter__()
        server.answering = self._answer

    def _home(self, app, request):
        return {
            "language": "en",
            "languages": [{"code": "en", "name": "English"}],
            "host": {"remote": False},
            "form": form("en"),
            "datasets": self.datasets.listing("en"),
        }

    def make(self, name: str, files: dict[str, str], images: tuple[str, ...]) -> Path:
        folder = self.datasets.create(name).path
        for image in images:
            save(folder / image, size=(90, 60), colour="teal")
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return folder

    def open(self, section: str = "images"):
        from tests.browser.visitors import Visitor

        self._visitors.append(Visitor(self._browser))
        page = self._visitors[-1].page()
        page.set_default_timeout(10_000)
        page.goto(self._server.url)
        page.click(f"#lora_trainer_step_{section}")
        return page

    def _answer(self, method, path, headers, body):
        if path == "/":
            return 200, {"content-type": "text/html"}, HTML.encode()
        if not path.startswith("/lora-trainer/"):
            return None
        name = urlsplit(path).path
        if self.does_not_answer and name.endswith(self.does_not_answer):
            raise ConnectionAbortedError
        if self.fails and name.endswith(self.fails):
            return 500, {}, b"no"
        answer = self.client.request(method, path, content=body, headers=headers)
        if self.answer_is_lost and name.endswith(self.answer_is_lost):
            raise ConnectionAbortedError
        content = answer.content
        if name.endswith("/images/pages.js"):
            for now, sooner in POLLS.items():
                assert now in content
                content = content.replace(now, sooner)
        return answer.status_code, answer.headers, content

    def close(self) -> None:
        for one in self._visitors:
            one.close()
            self.complaints += [text for text in one.complaints if "Failed to load" not in text]
        self._server.answering = None
        self.client.__exit__()


@pytest.fixture
def tab(tmp_path, browser, server):
    made = Tab(tmp_path / "data", browser, server)
    yield made
    made.close()
    assert made.complaints == []


def wait(page, expression: str) -> None:
    page.wait_for_function(expression)


def names(page) -> list[str]:
    return page.eval_on_selector_all(
        ".lora-trainer-cell .lora-trainer-cell-name", "all => all.map((one) => one.textContent)"
    )


# --- images ---------------------------------------------------------------------------------------


def test_files_become_a_dataset_with_a_name_and_what_is_left_out_is_named(tab, tmp_path):
    page = tab.open()
    save(tmp_path / "a.png", size=(90, 60))
    (tmp_path / "a.txt").write_text("a fox", encoding="utf-8")
    (tmp_path / "b.jxl").write_bytes(b"\xff\x0a" + b"\0" * 20)
    # nobody wants a dataset for them: they are left where they are
    page.set_input_files("input[type=file]", [tmp_path / "a.png"])
    page.wait_for_selector("dialog input")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert [path.name for path in tab.folder.iterdir() if path.is_dir()] == []
    assert page.is_enabled("button:has-text('Add images')")
    page.set_input_files(
        "input[type=file]", [tmp_path / "a.txt", tmp_path / "b.jxl", tmp_path / "a.png"]
    )
    # loose files have no name of their own, and the LoRA will have this one
    page.fill("dialog input", "foxes")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1 image added, 1 caption written.")
    page.wait_for_selector("text=b.jxl is a JPEG XL image, which is not supported")
    page.wait_for_selector(".lora-trainer-cell")
    assert names(page) == ["a.png"]
    assert (tab.folder / "foxes" / "metadata.csv").read_text(
        "utf-8-sig"
    ) == "file_name,text\na.png,a fox\n"
    assert (
        page.text_content("#lora_trainer_step_images .lora-trainer-step-note") == "foxes: 1 image"
    )
    assert page.text_content(".lora-trainer-drop p").startswith("Drop more images for foxes here")
    # what goes wrong in a dialog is told in it
    page.click("button:has-text('New dataset')")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .lora-trainer-notice-error:has-text('a dataset needs a name')")
    page.keyboard.type("owls")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog", state="detached")
    page.wait_for_selector("h3:has-text('owls')")


def images_step(page) -> tuple[str, str]:
    """What the step says under its name, and how it is marked."""
    return tuple(
        page.eval_on_selector(
            "#lora_trainer_step_images",
            "step => [step.querySelector('.lora-trainer-step-note').textContent,"
            " step.dataset.state]",
        )
    )


def test_the_step_is_marked_when_its_folder_goes_and_well_again_when_it_is_back(tab, tmp_path):
    folder = tmp_path / "fox images"
    save(folder / "a.png", size=(90, 60), colour="teal")
    identity = tab.datasets.open(str(folder)).id
    tab.make("other", {}, ("b.png",))
    page = tab.open()
    page.evaluate("id => loraTrainer.datasets.choose(id)", identity)
    page.wait_for_selector(".lora-trainer-cell")
    assert images_step(page) == ("fox images: 1 image", "")
    folder.rename(tmp_path / "elsewhere")
    page.wait_for_function(
        "() => document.querySelector('#lora_trainer_step_images').dataset.state === 'problem'"
    )
    assert images_step(page) == ("The folder is gone", "problem")
    notice = page.locator(".lora-trainer-images .lora-trainer-notice-error")
    assert notice.inner_text().startswith(f"The folder {folder} no longer exists")
    assert "no longer exists" in page.get_by_role("radio", name="fox images").inner_text()
    # a page that is opened now says the same
    other = tab.open()
    other.evaluate("id => loraTrainer.datasets.choose(id)", identity)
    assert images_step(other) == ("The folder is gone", "problem")
    (tmp_path / "elsewhere").rename(folder)
    page.wait_for_selector(".lora-trainer-cell")
    assert images_step(page) == ("fox images: 1 image", "")
    # while another step is open, the plan notices it
    page.click("#lora_trainer_step_captions")
    box(page, "a.png").wait_for()
    tab.does_not_answer = "/items"
    folder.rename(tmp_path / "elsewhere")
    page.evaluate(
        "loraTrainer.store.set('plan', {problems: [{severity: 'error', field: 'dataset', message:"
        " 'the folder no longer exists'}]})"
    )
    page.wait_for_function(
        "() => document.querySelector('#lora_trainer_step_images').dataset.state === 'problem'"
    )


def test_a_dataset_deleted_elsewhere_stays_in_view_as_gone_and_no_other_takes_its_place(tab):
    tab.make("fox", {}, ("a.png",))
    tab.make("other", {}, ("b.png",))
    page = tab.open()
    page.get_by_role("radio", name="fox").click()
    page.wait_for_selector(".lora-trainer-cell")
    tab.datasets.delete("fox")
    page.wait_for_function(
        "() => document.querySelector('#lora_trainer_step_images').dataset.state === 'problem'"
    )
    assert page.evaluate("loraTrainer.store.get('dataset')") == "fox"
    assert "This dataset no longer exists." in page.get_by_role("radio", name="fox").inner_text()
    page.locator(".lora-trainer-images").get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("radio", name="fox").wait_for(state="detached")
    assert images_step(page) == ("other: 1 image", "")


def test_the_grid_by_keyboard_undo_and_pictures_shown_large(tab):
    folder = tab.make(
        "fox", {"metadata.csv": "1.png,one\n2.png,two\n"}, ("1.png", "2.png", "3.png")
    )
    page = tab.open()
    page.focus(".lora-trainer-cell >> nth=0")
    for key in ("ArrowRight", " ", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert page.locator(".lora-trainer-cell[tabindex='0']").count() == 1
    assert page.eval_on_selector_all(
        ".lora-trainer-cell[aria-selected=true]",
        "all => all.map((one) => one.title.split('\\n')[0])",
    ) == ["2.png", "3.png"]
    page.keyboard.press("Delete")
    page.wait_for_selector("text=2 images removed")
    wait(page, "document.querySelectorAll('.lora-trainer-cell').length === 1")
    assert (folder / "metadata.csv").read_text("utf-8") == "1.png,one\n"
    page.click("text=Undo")
    wait(page, "document.querySelectorAll('.lora-trainer-cell').length === 3")
    assert (folder / "metadata.csv").read_text("utf-8") == "1.png,one\n2.png,two\n"
    # shown large, the arrow keys go on
    page.click(".lora-trainer-cell >> nth=0")
    page.wait_for_selector("dialog[open] >> text=1.png")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("dialog[open] >> text=2.png")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")


def test_undo_beside_a_conversion_is_of_that_though_another_edit_was_made_since(tab, monkeypatch):
    without_decoder(monkeypatch)
    folder = tab.make("fox", {}, ("2.png",))
    (folder / "1.heic").write_bytes(heic())
    page = tab.open()
    page.get_by_role("button", name="Convert").click()
    page.wait_for_selector("text=1 image converted")
    assert (folder / "1.jpg").is_file() and not (folder / "1.heic").exists()
    bench = Workbenches(tab.datasets).any_of(folder.name)
    added = {"do": "add", "text": "a fox", "at": "end"}
    bench.apply(bench.preview([item.key for item in bench.store.view().items], added))
    page.get_by_role("button", name="Undo").click()
    wait(page, "document.querySelectorAll('.lora-trainer-cell').length === 1")
    assert (folder / "1.heic").is_file() and not (folder / "1.jpg").exists()
    assert {item.name: item.caption for item in bench.store.view().items} == {"2.png": "a fox"}


def test_pages_of_a_large_dataset(tab):
    folder = tab.make("fox", {}, ("000.png",))
    for number in range(1, 130):
        (folder / f"{number:03}.png").hardlink_to(folder / "000.png")
    page = tab.open()
    page.wait_for_selector("text=1 to 60 of 130")
    page.click("#lora_trainer_section_images >> text=Next page")
    page.wait_for_selector("text=61 to 120 of 130")
    assert names(page)[0] == "060.png"
    page.click("#lora_trainer_section_images >> text=Next page")
    page.wait_for_selector("text=121 to 130 of 130")
    assert page.is_disabled("#lora_trainer_section_images >> text=Next page")


# --- captions -------------------------------------------------------------------------------------


def box(page, name: str):
    return page.get_by_label(f"Caption of {name}", exact=True)


def saved(page, folder: Path, text: str) -> None:
    """Until the file says so; the page's requests are answered meanwhile."""
    end = time.monotonic() + 120
    while (folder / "metadata.csv").read_text("utf-8-sig") != text and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert (folder / "metadata.csv").read_text("utf-8-sig") == text


def test_a_caption_is_saved_when_its_box_is_left_and_other_edits_and_filters_leave_it_alone(tab):
    images = ("a.png", "b.png", "c.png", "d.png")
    folder = tab.make("fox", {"metadata.csv": "a.png,one\n"}, images)
    page = tab.open("captions")
    box(page, "a.png").fill("a red  fox,\nsnow")
    page.keyboard.press("Tab")
    page.wait_for_selector('text="Saved"')
    assert box(page, "a.png").input_value() == "a red fox,\nsnow"
    page.keyboard.type("second")
    page.keyboard.press("Control+Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Caption of c.png"
    wait(page, "document.querySelectorAll('[data-kind=saved]').length === 2")
    assert (folder / "metadata.csv").read_text(
        "utf-8"
    ) == 'a.png,"a red fox,\nsnow"\nb.png,second\n'
    page.keyboard.type("not this")
    page.keyboard.press("Escape")
    assert box(page, "c.png").input_value() == ""
    # an edit in a spreadsheet is seen, and what is being typed stays
    box(page, "b.png").fill("being typed")
    (folder / "metadata.csv").write_text(
        "a.png,from the spreadsheet\nb.png,second\n", encoding="utf-8"
    )
    wait(
        page,
        "[...document.querySelectorAll('textarea')].some((one) => one.value === 'from the"
        " spreadsheet')",
    )
    assert box(page, "b.png").input_value() == "being typed"
    page.keyboard.press("Tab")
    saved(page, folder, "a.png,from the spreadsheet\nb.png,being typed\n")
    # a row that no longer fits the filter stays until another page is asked for
    page.select_option("#lora_trainer_section_captions [aria-label='Which images']", "missing")
    wait(page, "document.querySelectorAll('textarea').length === 2")
    box(page, "c.png").fill("written")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=3 of 4 with a caption")
    with page.expect_response(lambda response: "known=" in response.url):
        pass
    assert page.locator("textarea").count() == 2
    page.select_option("#lora_trainer_section_captions [aria-label='Which images']", "all")
    wait(page, "document.querySelectorAll('textarea').length === 4")
    # the trigger word is shown where a caption lacks it
    (folder / "metadata.csv").write_text(
        'a.png,a fox\nb.png,"sks, a fox"\nc.png,sks\nd.png,sks\n', encoding="utf-8"
    )
    wait(page, "[...document.querySelectorAll('textarea')].some((one) => one.value === 'a fox')")
    page.get_by_label("Trigger word").fill("sks")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=trained as “sks, …”")
    assert page.locator("text=trained as").count() == 1
    assert page.evaluate("loraTrainer.store.get('settings').trigger_word") == "sks"


def test_of_two_browsers_neither_loses_a_text(tab):
    folder = tab.make("fox", {"metadata.csv": "a.png,one\nb.png,two\n"}, ("a.png", "b.png"))
    mine, theirs = tab.open("captions"), tab.open("captions")
    box(mine, "a.png").fill("mine")
    box(theirs, "a.png").fill("theirs")
    theirs.keyboard.press("Tab")
    theirs.wait_for_selector('text="Saved"')
    mine.keyboard.press("Tab")
    mine.wait_for_selector("text=Someone else has changed this caption in the meantime")
    assert mine.eval_on_selector_all(
        ".lora-trainer-two-texts dd", "all => all.map((one) => one.textContent)"
    ) == ["mine", "theirs"]
    assert (folder / "metadata.csv").read_text("utf-8") == "a.png,theirs\nb.png,two\n"
    mine.click("text=Keep mine")
    mine.wait_for_selector('text="Saved"')
    assert (folder / "metadata.csv").read_text("utf-8") == "a.png,mine\nb.png,two\n"
    # the other browser sees it, without a reload
    wait(theirs, "[...document.querySelectorAll('textarea')].some((one) => one.value === 'mine')")


# --- what was typed is never lost -----------------------------------------------------------------


def test_what_was_typed_is_saved_whatever_becomes_of_the_requests(tab):
    folder = tab.make("fox", {"metadata.csv": "a.png,one\n"}, ("a.png",))
    page = tab.open("captions")
    # a look at the page that fails takes no box away
    box(page, "a.png").click()
    page.keyboard.type(" and", delay=10)
    tab.fails = "/items"
    page.wait_for_selector("text=The WebUI answered with an error (500).")
    page.keyboard.type(" more")
    tab.fails = ""
    page.wait_for_selector("text=The WebUI answered with an error (500).", state="detached")
    page.keyboard.press("Tab")
    saved(page, folder, "a.png,one and more\n")
    # a box whose save failed is saved later by itself
    tab.does_not_answer = "/caption"
    box(page, "a.png").fill("typed while it was away")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=Not saved: The WebUI does not answer.")
    tab.does_not_answer = ""
    saved(page, folder, "a.png,typed while it was away\n")
    page.wait_for_selector("[data-kind=saved]")
    # so is one that loses its focus unheard
    with page.expect_response("**/caption"):
        page.eval_on_selector(
            "textarea",
            "box => { box.value = 'put there'; box.dispatchEvent(new Event('input', { bubbles: true"
            " })); }",
        )
    saved(page, folder, "a.png,put there\n")
    # a text that arrived without an answer is no conflict
    tab.answer_is_lost = "/caption"
    box(page, "a.png").fill("first")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=Not saved: The WebUI does not answer.")
    assert (folder / "metadata.csv").read_text("utf-8") == "a.png,first\n"
    tab.answer_is_lost = ""
    box(page, "a.png").fill("second")
    page.keyboard.press("Tab")
    page.wait_for_selector("[data-kind=saved]")
    saved(page, folder, "a.png,second\n")


def test_what_could_not_be_saved_is_there_again_after_another_dataset_a_new_page_and_another_language(
    tab,
):
    folder = tab.make("fox", {"metadata.csv": "a.png,one\n"}, ("a.png",))
    owls = tab.make("owl", {"metadata.csv": "a.png,two\nb.png,two\n"}, ("a.png", "b.png"))
    page = tab.open()
    page.get_by_role("radio", name="fox").click()
    page.click("#lora_trainer_step_captions")
    page.on("dialog", lambda dialog: dialog.accept())
    # a page that is left saves once more, past every route of a test
    tab.does_not_answer = "/caption"
    box(page, "a.png").fill("not lost")

    for name in ("owl", "fox"):
        page.click("#lora_trainer_step_images")
        page.get_by_role("radio", name=name).click()
        page.click("#lora_trainer_step_captions")
        box(page, "b.png" if name == "owl" else "a.png").wait_for()
    assert box(page, "a.png").input_value() == "not lost"
    page.reload()
    box(page, "a.png").wait_for()
    assert box(page, "a.png").input_value() == "not lost"
    page.evaluate("loraTrainer.tab.start()")
    page.wait_for_selector("text=Not saved: The WebUI does not answer.")
    assert box(page, "a.png").input_value() == "not lost"
    assert (folder / "metadata.csv").read_text("utf-8") == "a.png,one\n"
    tab.does_not_answer = ""
    saved(page, folder, "a.png,not lost\n")
    # a text left in another dataset is saved there by itself
    page.wait_for_selector("[data-kind=saved]")
    tab.does_not_answer = "/caption"
    box(page, "a.png").fill("of the fox")
    page.click("#lora_trainer_step_images")
    page.get_by_role("radio", name="owl").click()
    page.click("#lora_trainer_step_captions")
    page.wait_for_selector("text=The caption of a.png is not saved")
    tab.does_not_answer = ""
    saved(page, folder, "a.png,of the fox\n")
    assert (owls / "metadata.csv").read_text("utf-8") == "a.png,two\nb.png,two\n"


def test_while_a_word_is_composed_the_box_keeps_its_place_and_the_others_move(tab):
    folder = tab.make("fox", {"metadata.csv": "b.png,two\nd.png,four\n"}, ("b.png", "d.png"))
    page = tab.open("captions")
    box(page, "d.png").click()
    page.evaluate(
        "window.left = 0; document.activeElement.addEventListener('blur', () => { window.left +="
        " 1; })"
    )
    for name in ("a.png", "c.png", "e.png"):
        save(folder / name, size=(90, 60), colour="teal")
    wait(page, "document.querySelectorAll('.lora-trainer-caption-row').length === 5")
    page.evaluate("loraTrainer.filter.turn({ order: 'name' })")
    shown = page.eval_on_selector_all(
        ".lora-trainer-caption-row .lora-trainer-cell-name",
        "all => all.map((one) => one.textContent)",
    )
    assert shown == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert page.evaluate("[window.left, document.activeElement.getAttribute('aria-label')]") == [
        0,
        "Caption of d.png",
    ]


def test_nothing_is_wider_than_the_page(tab):
    tab.make(
        "fox",
        {"metadata.csv": f"a.png,{'word ' * 60}\n"},
        ("a.png", "a very long name of an image that goes on and on and on.png"),
    )
    page = tab.open()
    for section in ("images", "captions"):
        page.click(f"#lora_trainer_step_{section}")
        page.wait_for_selector(f"#lora_trainer_section_{section} .lora-trainer-thumb >> nth=0")
        for width in (390, 1280, 1600):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
