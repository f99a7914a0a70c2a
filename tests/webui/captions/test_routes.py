"""The workbench over HTTP, as one browser, two browsers, and a browser beside a spreadsheet use
it.
"""

from __future__ import annotations

import io
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.dataset import caption_provenance, embeddings
from lora_trainer.dataset.caption_provenance import CaptionRecord
from lora_trainer.dataset.images import digest
from lora_trainer.hosts.base import HostDevice
from lora_trainer.settings import captioning
from lora_trainer.webui.captions import routes
from lora_trainer.webui.captions.cropped_copies import Copies
from lora_trainer.webui.captions.workbench import Workbenches
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.caption_store import key_of
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http import routing
from lora_trainer.webui.images import uploads
from lora_trainer.webui.options import Options
from tests.dataset.pictures import corners, noise, save
from tests.webui import made_runs

ALL = {"where": {}}


@pytest.fixture
def page(tmp_path):
    """A browser on a data folder with the dataset "fox": a.png "a fox", b.png "a wolf, snow", c.png
    without a caption. `page.again()`: a restart.
    """
    facts = {"remote": False}
    paths = SimpleNamespace(models=tmp_path / "models")
    host = SimpleNamespace(
        language=lambda: "",
        is_remote=lambda: facts["remote"],
        api_credentials=dict,
        paths=lambda: paths,
        device=lambda: HostDevice(kind="cuda", device_id=None, name="a card", count=2),
    )
    data = DataFolder(tmp_path / "data folder")
    folder = data.folder("datasets") / "fox"
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("c.png", "blue")):
        save(folder / name, size=(64, 48), colour=colour)
    (folder / "metadata.csv").write_text(
        'file_name,text\na.png,a fox\nb.png,"a wolf, snow"\n', encoding="utf-8"
    )
    made = SimpleNamespace(facts=facts, folder=folder, root=tmp_path)

    def again():
        datasets = Datasets(data, host.is_remote)
        made.app = SimpleNamespace(
            host=host,
            datasets=datasets,
            workbenches=Workbenches(datasets),
            copies=Copies(datasets),
            options=Options(),
            redactions=dict,
        )
        routing.find_routes()
        host_app = Starlette()
        routing.mount(host_app, made.app)
        made.client = TestClient(
            host_app,
            base_url="http://127.0.0.1",
            raise_server_exceptions=False,
            headers={"X-LoRA-Trainer": "1"},
        )

    def get(path, **query):
        return made.client.get(f"/lora-trainer/{path}", params=query)

    def post(path, **body):
        return made.client.post(f"/lora-trainer/{path}", json=body)

    made.again, made.get, made.post = again, get, post
    made.items = lambda **query: get("datasets/fox/items", **query).json()["items"]
    made.captions = lambda: {item["name"]: item["caption"] for item in made.items()}
    again()
    return made


def test_a_bulk_edit_is_previewed_applied_and_undone(page):
    action = {"do": "replace", "find": "a (\\w+)", "replace": "one \\1", "regex": True}
    shown = page.post("datasets/fox/bulk/preview", select=ALL, action=action).json()
    assert (shown["selected"], shown["changing"]) == (3, 2)
    assert shown["samples"][1] == {
        "key": key_of("b.png"),
        "name": "b.png",
        "before": "a wolf, snow",
        "after": "one wolf, snow",
    }
    done = page.post("datasets/fox/bulk", plan=shown["plan"]).json()
    assert (done["changed"], done["unchanged"], done["conflicts"]) == (2, 1, [])
    undo = done["edits"]["undo"]
    assert (undo["title"], undo["count"], undo["undone"]) == (
        "a (\\w+) replaced by one \\1",
        2,
        False,
    )
    assert page.captions() == {"a.png": "one fox", "b.png": "one wolf, snow", "c.png": ""}
    assert page.post("datasets/fox/bulk", plan=shown["plan"]).status_code == 409
    page.again()
    back = page.post("datasets/fox/undo").json()
    assert (back["changed"], back["edits"]["undo"], back["edits"]["redo"]["id"]) == (
        2,
        None,
        undo["id"],
    )
    assert page.captions()["a.png"] == "a fox"
    assert page.post("datasets/fox/redo").json()["changed"] == 2
    assert [line["title"] for line in page.get("datasets/fox/edits").json()["list"]] == [
        "a (\\w+) replaced by one \\1"
    ]


def test_a_bad_pattern_and_a_missing_choice_are_sentences(page):
    answer = page.post(
        "datasets/fox/bulk/preview",
        select=ALL,
        action={"do": "replace", "find": "(", "replace": "", "regex": True},
    )
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(
        "The regular expression is invalid"
    )
    assert (
        page.post("datasets/fox/bulk/preview", select={}, action={"do": "clear"}).json()["error"][
            "message"
        ]
        == "No image was chosen"
    )
    assert (
        page.post(
            "datasets/fox/bulk/preview", select={"keys": [1]}, action={"do": "clear"}
        ).status_code
        == 400
    )


def test_two_browsers_lose_nothing_of_each_other(page):
    key = key_of("a.png")
    mine = page.post(
        "datasets/fox/bulk/preview", select=ALL, action={"do": "add", "text": "ink", "at": "end"}
    ).json()
    theirs = page.post("datasets/fox/caption", key=key, caption="a red fox", was="a fox").json()
    assert (theirs["caption"], theirs["reviewed"], theirs["author"]) == (
        "a red fox",
        True,
        "person",
    )
    done = page.post("datasets/fox/bulk", plan=mine["plan"]).json()
    assert done["changed"] == 2
    assert done["conflicts"] == [
        {
            "key": key,
            "name": "a.png",
            "current": "a red fox",
            "message": "This caption was changed elsewhere, and was left as it is",
        }
    ]
    late = page.post("datasets/fox/caption", key=key, caption="my fox", was="a fox")
    assert late.status_code == 409 and late.json()["current"] == "a red fox"
    assert page.captions() == {"a.png": "a red fox", "b.png": "a wolf, snow, ink", "c.png": "ink"}


def test_a_spreadsheet_beside_the_browser_is_noticed_merged_and_never_clobbered(page):
    revision = page.get("datasets/fox/items").json()["revision"]
    assert page.get("datasets/fox/items", known=revision).json() == {
        "unchanged": True,
        "revision": revision,
    }
    # saved by a Chinese Excel: GBK, CRLF, a column of its own
    (page.folder / "metadata.csv").write_bytes(
        'file_name,text,备注\r\na.png,红狐狸,好\r\nb.png,"a wolf, snow",\r\n'.encode("gbk")
    )
    assert page.get("datasets/fox/items", known=revision).json()["items"][0]["caption"] == "红狐狸"
    page.post(
        "datasets/fox/bulk",
        select={"keys": [key_of("b.png"), key_of("c.png")]},
        action={"do": "add", "text": "水墨", "at": "front"},
    )
    text = (page.folder / "metadata.csv").read_bytes().decode("gbk")
    assert (
        text
        == 'file_name,text,备注\r\na.png,红狐狸,好\r\nb.png,"水墨, a wolf, snow",\r\nc.png,水墨,\r\n'
    )


def test_pages_are_filtered_counted_and_sorted(page):
    answer = page.get("datasets/fox/items", filter="missing").json()
    assert [item["name"] for item in answer["items"]] == ["c.png"]
    assert (
        answer["counts"]["missing"] == 1
        and answer["counts"]["unreviewed"] == 3
        and answer["counts"]["no-trigger"] == 0
    )
    assert [item["name"] for item in page.items(filter="no-trigger", trigger="wolf")] == [
        "a.png",
        "c.png",
    ]
    assert [item["name"] for item in page.items(order="tokens-down")] == ["b.png", "a.png", "c.png"]
    assert [item["name"] for item in page.items(tag="snow")] == ["b.png"]
    assert page.items(text="wolf")[0]["tokens"] == {
        "count": 4,
        "limit": 75,
        "kept_end": 12,
        "over": False,
    }
    assert (
        page.post("datasets/fox/reviewed", select={"where": {"text": "fox"}}, reviewed=True).json()[
            "count"
        ]
        == 1
    )
    assert [item["name"] for item in page.items(filter="reviewed")] == ["a.png"]


def test_tags_are_asked_for_and_kept_away_in_pages_and_changes(page):
    page.post("datasets/fox/bulk", select=ALL, action={"do": "add", "text": "ink", "at": "end"})
    assert [item["name"] for item in page.items(tag="ink, snow")] == ["b.png"]
    assert [item["name"] for item in page.items(tag="a fox, snow", match="any")] == [
        "a.png",
        "b.png",
    ]
    assert [item["name"] for item in page.items(tag="ink", without="snow")] == ["a.png", "c.png"]
    where = {"tag": "a fox, snow", "match": "any", "without": "nothing"}
    assert (
        page.post(
            "datasets/fox/bulk", select={"where": where}, action={"do": "remove", "tags": ["ink"]}
        ).json()["changed"]
        == 2
    )
    assert [tag["tag"] for tag in page.get("datasets/fox/tags", without="snow").json()["tags"]] == [
        "a fox",
        "ink",
    ]


def test_what_a_filter_shows_is_removed_and_brought_back(page):
    answer = page.post("datasets/fox/remove", select={"where": {"lacks": "fox"}}).json()
    assert (answer["changed"], answer["total"]) == (2, 1)
    assert page.post("datasets/fox/undo").json()["changed"] == 2
    assert page.captions() == {"a.png": "a fox", "b.png": "a wolf, snow", "c.png": ""}


def test_a_long_caption_shows_where_it_is_cut(page):
    page.post(
        "datasets/fox/bulk",
        select={"keys": [key_of("a.png")]},
        action={"do": "set", "caption": "fox " * 80},
    )
    item = page.items(trigger="sks", tokens=75)[0]
    # "sks" and the comma in front take two of the 75
    assert item["tokens"] == {"count": 82, "limit": 75, "kept_end": 4 * 73 - 1, "over": True}
    assert page.items(tokens=150)[0]["tokens"]["over"] is False
    assert page.post("tokens", caption=item["caption"], trigger="sks", limit=75).json() == {
        "available": True,
        **item["tokens"],
    }


def test_a_trigger_word_is_rare_or_means_something(page):
    dog, made_up = (
        page.get("trigger", word="dog").json(),
        page.get("trigger", word="zqxv_style").json(),
    )
    assert (dog["is_good"], dog["message"]) == (
        False,
        '"dog" is a common word, which already means something to the model',
    )
    assert (made_up["is_good"], made_up["message"][:31]) == (
        True,
        '"zqxv_style" is a made-up word ',
    )
    assert page.get("trigger", word=" ").json()["available"] is False


def test_tags_are_counted_and_removed_at_a_click(page):
    page.post("datasets/fox/bulk", select=ALL, action={"do": "add", "text": "snow", "at": "end"})
    found = page.get("datasets/fox/tags").json()
    assert (found["images"], found["distinct"], found["mostly"]) == (3, 3, "tags")
    assert found["tags"][0] == {"tag": "snow", "count": 3}
    assert page.get("datasets/fox/tags", kind="words", text="fox").json()["tags"] == [
        {"tag": "fox", "count": 1},
        {"tag": "snow", "count": 1},
    ]
    page.post(
        "datasets/fox/bulk",
        select={"where": {"tag": "snow"}},
        action={"do": "remove", "tags": ["snow"]},
    )
    assert page.captions() == {"a.png": "a fox", "b.png": "a wolf", "c.png": ""}


def test_shuffled_captions_are_those_that_training_feeds(page):
    body = {
        "caption": "a fox, snow, ink, red",
        "shuffle": True,
        "keep_tokens": 1,
        "dropout": 0.0,
        "trigger": "sks",
        "seed": 3,
    }
    sample = page.post("datasets/fox/shuffle", **body).json()["samples"][0]
    assert sample["caption"] == "sks, a fox, snow, ink, red" and len(sample["trained"]) == 6
    assert all(
        sorted(caption.split(", ")) == ["a fox", "ink", "red", "sks", "snow"]
        for caption in sample["trained"]
    )
    assert (
        all(caption.startswith("sks, ") for caption in sample["trained"])
        and len(set(sample["trained"])) > 1
    )
    assert page.post("datasets/fox/shuffle", **body).json()["samples"][0] == sample
    dropped = page.post(
        "datasets/fox/shuffle", keys=[key_of("b.png")], shuffle=False, dropout=1.0
    ).json()["samples"]
    assert [(each["name"], set(each["trained"])) for each in dropped] == [("b.png", {""})]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_what_was_exported_can_be_imported_and_that_undone(page, kind):
    page.post(
        "datasets/fox/bulk", select=ALL, action={"do": "add", "text": '水墨, "ink"', "at": "end"}
    )
    before = page.captions()
    answer = page.get("datasets/fox/export", **{"as": kind})
    name = answer.headers["content-disposition"].split('"')[1]
    if kind == "csv":
        assert answer.content.startswith("\ufefffile_name,text\r\n".encode())
    if kind == "txt":
        assert zipfile.ZipFile(io.BytesIO(answer.content)).namelist() == ["a.txt", "b.txt", "c.txt"]
    page.post("datasets/fox/bulk", select=ALL, action={"do": "clear"})
    query = {"name": name, "size": len(answer.content), "captions": "replace"}
    page.client.post("/lora-trainer/datasets/fox/upload", params=query, content=answer.content)
    assert page.captions() == before
    undone = page.post("datasets/fox/undo").json()
    assert (undone["title"], set(page.captions().values())) == (f"Imported: {name}", {""})


def test_a_caption_that_is_saved_while_an_archive_is_unpacked_is_no_part_of_its_import(
    page, monkeypatch
):
    unpacked = uploads._captions_in

    def slowly(*given):
        captions = unpacked(*given)
        for name, was in (("a.png", "a fox"), ("b.png", "a wolf, snow")):
            page.post("datasets/fox/caption", key=key_of(name), caption="typed", was=was)
        return captions

    monkeypatch.setattr(uploads, "_captions_in", slowly)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        image = io.BytesIO()
        Image.new("RGB", (64, 48)).save(image, "PNG")
        file.writestr("d.png", image.getvalue())
        for name in ("a", "c", "d"):
            file.writestr(f"{name}.txt", "imported")
    page.client.post(
        "/lora-trainer/datasets/fox/upload",
        params={"name": "x.zip", "size": len(packed.getvalue()), "captions": "replace"},
        content=packed.getvalue(),
    )
    imported = dict.fromkeys(("a.png", "c.png", "d.png"), "imported")
    assert page.captions() == {**imported, "b.png": "typed"}
    undone = page.post("datasets/fox/undo").json()
    assert (undone["title"], undone["changed"], undone["conflicts"]) == ("Imported: x.zip", 2, [])
    assert page.captions() == {
        "a.png": "typed",
        "b.png": "typed",
        "c.png": "",
        "d.png": "imported",
    }


def test_an_unknown_kind_of_export_is_said(page):
    assert (
        page.get("datasets/fox/export", **{"as": "xls"}).json()["error"]["message"]
        == "xls is not a format for captions"
    )


def test_the_template_splits_composes_and_keeps_its_order(page):
    found = page.get("datasets/fox/template").json()
    assert found["order"][0] == "subject" and found["fields"][0]["label"] == "Subject"
    fields = page.post("datasets/fox/split", caption="a red fox, in the forest, soft light").json()[
        "fields"
    ]
    assert fields == {"subject": "a red fox", "scene": "in the forest", "light": "soft light"}
    assert page.post("datasets/fox/compose", fields={"light": "x", "subject": "y"}).json() == {
        "caption": "y, x"
    }
    order = ["light", *(name for name in found["order"] if name != "light")]
    assert page.post("datasets/fox/template", order=order).json()["order"] == order
    assert page.post("datasets/fox/compose", fields={"light": "x", "subject": "y"}).json() == {
        "caption": "x, y"
    }
    assert page.post("datasets/fox/compose", fields={"mood": "x"}).status_code == 400


def test_a_vocabulary_names_what_departs_from_it_and_fixes_it(page):
    assert page.get("datasets/fox/vocabulary").json()["exists"] is False
    found = page.post(
        "datasets/fox/vocabulary", opening="winter", fields={"scene": ["snow"], "light": []}
    ).json()
    assert (found["opening"], found["fields"], found["departures"]["count"]) == (
        "winter",
        {"scene": ["snow"]},
        2,
    )
    assert found["departures"]["list"][0] == {
        "key": key_of("a.png"),
        "name": "a.png",
        "caption": "a fox",
        "fixed": "winter, a fox",
    }
    page.post("datasets/fox/bulk", select=ALL, action={"do": "vocabulary"})
    assert page.captions() == {
        "a.png": "winter, a fox",
        "b.png": "winter, a wolf, snow",
        "c.png": "",
    }
    assert page.get("datasets/fox/vocabulary").json()["departures"]["count"] == 0
    assert (
        page.post("datasets/fox/vocabulary", opening="x", fields={"mood": ["grim"]}).status_code
        == 400
    )


def wait_for_check(page):
    deadline = time.monotonic() + 120
    while (found := page.get("datasets/fox/check").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_the_check_stands_beside_each_image_and_is_fixed_at_a_click(page):
    framed = Image.new("RGB", (400, 300), "white")
    framed.paste(noise((240, 200)), (80, 50))
    framed.save(page.folder / "d.png")
    assert page.get("datasets/fox/check").json()["state"] == "none"
    page.post("datasets/fox/check", resolution=256, trigger="sks", tokens=75)
    found = wait_for_check(page)
    assert (found["state"], found["done"], found["total"], found["stale"]) == ("done", 4, 4, False)
    sums = {
        one["kind"]: (one["label"], one["message"], one["images"], one["fix"])
        for one in found["sums"]
    }
    assert sums["wide-border"] == (
        "Wide border",
        "d.png has a border of one colour: 60 % of the image",
        1,
        {"label": "Crop", "count": 1},
    )
    assert sums["no-caption"] == ("No caption", "2 images have no caption", 2, None)
    assert "no-trigger" not in sums and found["sums"][0]["severity"] == "error", "the gravest first"
    item = page.items(finding="wide-border")[0]
    told = next(finding for finding in item["findings"] if finding["kind"] == "wide-border")
    # beside its image the sentence does not repeat the image's name
    assert told["message"] == "Has a border of one colour: 60 % of the image"
    assert (
        item["name"] == "d.png"
        and told["measured"] > 0.3
        and told["fix"]["do"] == "crop"
        and len(told["fix"]["box"]) == 4
    )
    original = (page.folder / "d.png").read_bytes()
    done = page.post("datasets/fox/fix", ids=[told["id"]]).json()
    assert (done["changed"], done["title"]) == (1, "Fixed: 1 finding")
    with Image.open(page.folder / "d.png") as cropped:
        assert cropped.size[0] < 260 and cropped.size[1] < 220
    page.post("datasets/fox/undo")
    assert (page.folder / "d.png").read_bytes() == original
    assert page.post("datasets/fox/fix", ids=["nonsense"]).status_code == 400
    assert page.post("datasets/fox/check", resolution=9).status_code == 400


def test_what_is_one_thing_is_said_once_fixed_at_once_and_shown_picture_by_picture(page):
    for number in range(6):
        framed = Image.new("RGB", (400, 300), "white")
        framed.paste(noise((240, 200), number + 10), (80, 50))
        framed.save(page.folder / f"n{number}.png")
        (page.folder / f"n{number}.txt").write_text("a hen", encoding="utf-8")
    page.post("datasets/fox/check", resolution=128, trigger="sks", tokens=75)
    found = wait_for_check(page)
    sums = [
        (one["message"], one["images"], one["fix"])
        for one in found["sums"]
        if one["kind"] in ("identical-captions", "wide-border")
    ]
    # the trigger word, which none of the captions has, is added by training and no remark
    assert sums == [
        ('6 images have the same caption, "a hen"', 6, None),
        ("6 images have a wide border of one colour", 6, {"label": "Crop", "count": 6}),
    ]
    assert [item["name"] for item in page.items(finding="identical-captions")] == [
        f"n{number}.png" for number in range(6)
    ]
    assert all(
        "same caption" not in finding["message"]
        for item in page.items()
        for finding in item["findings"]
    )
    chinese = page.client.get(
        "/lora-trainer/datasets/fox/check", headers={routing.LANGUAGE_HEADER: "zh_CN"}
    ).json()["sums"]
    assert "6 张图片有较宽的单色边框" in [one["message"] for one in chinese]
    assert page.post("datasets/fox/fix", kind="wide-border").json()["changed"] == 6
    assert "wide-border" not in [one["kind"] for one in wait_for_check(page)["sums"]]


def seen_alike(folder, count):
    """As a caption job leaves it behind: CLIP saw `count` images of the folder, all nearly the
    same.
    """
    paths = sorted(folder.glob("*.png"))[:count]
    rows = {
        digest(path): np.array([1, number / 25], np.float16) for number, path in enumerate(paths)
    }
    embeddings.add(
        folder,
        embeddings.Embedded(encoder="CLIP of a test", title="CLIP", unrelated=0.4, by_digest=rows),
    )


def test_the_check_says_that_to_a_captioners_image_encoder_the_pictures_look_alike(page):
    for number in range(6):
        noise((260, 260), number + 1).save(page.folder / f"n{number}.png")
    for name in "abc":
        (page.folder / f"{name}.png").unlink()
    page.post("datasets/fox/check", resolution=256)
    assert [one["kind"] for one in wait_for_check(page)["sums"]] == ["no-caption"]
    seen_alike(page.folder, 6)
    page.post("datasets/fox/check", resolution=256)
    found = wait_for_check(page)
    _, told = found["sums"]
    assert told["message"] == (
        "For CLIP the images are very similar: they differ 1 % as much as unrelated images do"
    )
    assert (told["kind"], told["label"], told["severity"], told["images"], told["fix"]) == (
        "little-variety",
        "Little variety",
        "info",
        0,
        None,
    )
    chinese = page.client.get(
        "/lora-trainer/datasets/fox/check", headers={routing.LANGUAGE_HEADER: "zh_CN"}
    ).json()["sums"][1]["message"]
    assert chinese == "在 CLIP 看来，图片彼此很相似：差别只有互不相关的图片之间的 1 %"


def test_copies_are_cropped_into_a_new_dataset_and_the_originals_stay(page):
    corners((400, 200)).save(page.folder / "a.png")
    before = {path.name: path.read_bytes() for path in page.folder.glob("*.*")}
    keys = [key_of("a.png"), key_of("b.png")]
    copy = page.post(
        "datasets/fox/crop-copy", name="水墨 512", size=512, select={"keys": keys}
    ).json()
    deadline = time.monotonic() + 120
    while (copy := page.get(f"crop-copies/{copy['id']}").json())["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (
        copy["state"],
        copy["dataset"],
        copy["card"]["count"],
        copy["card"]["captioned"],
        copy["done"],
    ) == ("done", "水墨 512", 2, 2, 2)
    assert copy["notes"] and "was enlarged" in copy["notes"][0]["message"]
    with Image.open(page.folder.parent / "水墨 512" / "a.png") as image:
        assert image.size == (512, 512)
    assert {path.name: path.read_bytes() for path in page.folder.glob("*.*")} == before
    assert (
        page.post("datasets/fox/crop-copy", name="x", size=9, select={"keys": keys}).status_code
        == 400
    )
    assert page.get("crop-copies/none").status_code == 404


@pytest.fixture
def desk(tmp_path):
    with made_runs.desk(tmp_path / "runs desk") as made:
        yield made


def test_a_captioner_is_started_from_the_page_and_shown_among_the_runs(page, desk):
    page.app.runs = desk.runs
    body = {
        "captioner": "blip",
        "options": {"prefix": "ink,"},
        "trigger": "sks",
        "token": "a-token-of-a-click",
    }
    assert page.get("datasets/fox/caption-run").json() == {}
    for _ in range(2):
        run = page.post("datasets/fox/caption-run", **body).json()
        assert (run["id"], run["job"], run["status"]) == ("captions-fox", "caption", "queued")
    settings = captioning.read(desk.folder("captions-fox").caption_config)
    assert (
        settings.input,
        settings.captioner,
        settings.prefix,
        settings.trigger,
        settings.overwrite,
    ) == (page.folder, "blip", "ink,", "sks", False)
    assert page.get("datasets/fox/caption-run").json()["id"] == "captions-fox"
    assert (
        page.post("datasets/fox/caption-run", **{**body, "token": "another-token"}).json()["id"]
        == "captions-fox-2"
    )
    assert page.post("datasets/fox/caption-run", **{**body, "token": "x"}).status_code == 400
    page.facts["remote"] = True
    assert (
        page.post(
            "datasets/fox/caption-run",
            **{**body, "options": {"model": "/etc"}, "token": "a-third-token"},
        ).status_code
        == 403
    )


def test_a_captioner_is_started_for_what_is_selected(page, desk):
    page.app.runs = desk.runs

    def begin(token, **body):
        return page.post("datasets/fox/caption-run", captioner="blip", token=token, **body)

    only = lambda run: captioning.read(desk.folder(run.json()["id"]).caption_config).only  # noqa: E731
    assert only(
        begin("token number 1", select={"keys": [key_of("c.png"), key_of("a.png"), "gone"]})
    ) == ("c.png", "a.png")
    assert only(begin("token number 2", select={"where": {"text": "fox"}})) == ("a.png",)
    assert only(begin("token number 3", select={"where": {}})) == ()
    answer = begin("token number 4", select={"keys": ["gone"]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "No image was chosen")


def test_what_a_captioner_wrote_is_told_from_what_a_person_wrote(page):
    caption_provenance.record(
        page.folder, {digest(page.folder / "a.png"): CaptionRecord(text="a fox", by="blip 0123")}
    )
    assert [item["author"] for item in page.items()] == ["machine", "person", "nobody"]
    assert [item["name"] for item in page.items(filter="machine")] == ["a.png"]


def test_the_captioners_are_listed(page):
    found = page.get("captioners").json()
    assert [offer["name"] for offer in found] == ["blip-large", "blip", "qwen", "clip", "wd"]
    assert all("devices" in {field["key"] for field in offer["fields"]} for offer in found)


def test_every_route_of_the_workbench_is_behind_the_guard(page):
    assert routes.__name__.endswith("captions.routes")
    without = TestClient(page.client.app, base_url="http://127.0.0.1")
    assert without.post("/lora-trainer/datasets/fox/undo", json={}).status_code == 403
    assert page.get("datasets/nothing/tags").status_code == 404
