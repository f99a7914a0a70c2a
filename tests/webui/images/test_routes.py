"""Datasets over HTTP, through the guard, as the page uses them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_trainer.webui.captions import routes as _captions_routes  # noqa: F401 - its addresses
from lora_trainer.webui.captions.workbench import Workbenches
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.datasets.caption_store import key_of
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http import routing
from lora_trainer.webui.images import routes
from tests.dataset.pictures import save
from tests.webui.heic import heic, without_decoder

ASK = {"X-LoRA-Trainer": "1"}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A browser's view: get, post, upload; `page.remote` makes the visitor one from elsewhere."""
    without_decoder(monkeypatch)
    facts = {"remote": False}
    host = SimpleNamespace(
        language=lambda: "", is_remote=lambda: facts["remote"], api_credentials=dict
    )
    datasets = Datasets(DataFolder(tmp_path / "data folder"), host.is_remote)
    app = SimpleNamespace(
        host=host, datasets=datasets, workbenches=Workbenches(datasets), redactions=dict
    )
    host_app = Starlette()
    routing.mount(host_app, app)
    client = TestClient(host_app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    def upload(identity, name, data, **query):
        query = {"name": name, "size": len(data), **query}
        return client.post(
            f"/lora-trainer/datasets/{identity}/upload", params=query, content=data, headers=ASK
        )

    return SimpleNamespace(
        client=client,
        datasets=datasets,
        facts=facts,
        root=tmp_path,
        get=lambda path, **query: client.get(f"/lora-trainer/{path}", params=query),
        post=lambda path, body=None: client.post(
            f"/lora-trainer/{path}", json=body or {}, headers=ASK
        ),
        upload=upload,
        address=lambda address: client.get("/" + address),
    )


def picture(colour: str = "red", size=(80, 60), name="x.png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, name.split(".")[-1].upper())
    return buffer.getvalue()


def test_the_artists_way_from_nothing_to_a_caption(page):
    card = page.post("datasets", {"name": "水墨 fox"}).json()
    assert (card["id"], card["name"], card["count"], card["cover"]) == (
        "水墨 fox",
        "水墨 fox",
        0,
        None,
    )
    answer = page.upload("水墨 fox", "a.png", picture()).json()
    added = [{"key": key_of("a.png"), "name": "a.png", "width": 80, "height": 60}]
    assert answer == {
        "added": added,
        "converted": {},
        "waiting": {},
        "captions": 0,
        "texts": 0,
        "skipped": [],
    }
    skipped = page.upload("水墨 fox", "b.jxl", b"\xff\x0a" + b"\0" * 20).json()["skipped"]
    assert [(one["name"], one["message"], one["kept_caption"]) for one in skipped] == [
        ("b.jxl", "b.jxl is a JPEG XL image, which is not supported", False)
    ]
    assert skipped[0]["hint"].startswith("Export it as JPEG or PNG.")
    item = page.get("datasets/水墨 fox/items").json()["items"][0]
    assert (item["name"], item["width"], item["height"], item["caption"], item["source"]) == (
        "a.png",
        80,
        60,
        "",
        None,
    )
    written = page.post(
        "datasets/水墨 fox/caption", {"key": item["key"], "caption": " a fox,\n ink ", "was": ""}
    ).json()
    assert (
        written["caption"],
        written["source"],
        written["caption_file"],
        written["findings"],
    ) == ("a fox,\nink", "metadata", "metadata.csv", [])
    card = page.get("datasets").json()[0]
    assert (card["count"], card["captioned"]) == (1, 1)
    assert page.address(card["cover"]).headers["content-type"] == "image/webp"


def test_a_phones_pictures_are_converted_as_they_arrive_and_where_they_lie(page):
    page.post("datasets", {"name": "fox"})
    answer = page.upload("fox", "IMG_1.HEIC", heic(orientation=6)).json()
    assert (answer["added"][0]["name"], answer["converted"], answer["skipped"]) == (
        "IMG_1.jpg",
        {"HEIC": 1},
        [],
    )
    assert (
        page.address(page.get("datasets/fox/items").json()["items"][0]["image"]).headers[
            "content-type"
        ]
        == "image/jpeg"
    )
    folder = page.root / "own"
    folder.mkdir()
    (folder / "2.heic").write_bytes(heic())
    identity = page.post("datasets/open", {"folder": str(folder)}).json()["id"]
    (remark,) = page.get(f"datasets/{identity}/items").json()["findings"]
    assert (remark["message"], remark["fix"]) == (
        "2.heic cannot be read directly, but can be converted",
        {"do": "convert", "label": "Convert"},
    )
    assert page.post(f"datasets/{identity}/convert").json()["changed"] == 1
    answer = page.get(f"datasets/{identity}/items").json()
    assert ([item["name"] for item in answer["items"]], answer["findings"]) == (["2.jpg"], [])
    answer = page.post(f"datasets/{identity}/undo").json()
    assert answer["changed"] == 1 and [path.name for path in folder.iterdir() if path.suffix] == [
        "2.heic"
    ]
    assert (
        page.post("datasets/fox/convert").json()["error"]["message"]
        == "There is nothing left to convert here"
    )


def test_pictures_are_kept_by_the_browser_for_good_under_their_version(page):
    page.post("datasets", {"name": "fox"})
    page.upload("fox", "a.png", picture())
    item = page.get("datasets/fox/items").json()["items"][0]
    for address in (item["thumbnail"], item["image"]):
        answer = page.address(address)
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert page.address(address.split("?")[0]).headers["cache-control"] == "no-cache"
    assert page.address(item["image"]).content == picture()
    os.utime(page.root / "data folder" / "datasets" / "fox" / "a.png", (1, 1))
    assert page.get("datasets/fox/items").json()["items"][0]["thumbnail"] != item["thumbnail"]


def test_a_format_no_browser_shows_is_shown_as_webp(page):
    page.post("datasets", {"name": "fox"})
    page.upload("fox", "a.tiff", picture(name="x.tiff"))
    answer = page.address(page.get("datasets/fox/items").json()["items"][0]["image"])
    assert (answer.headers["content-type"], answer.content[8:12]) == ("image/webp", b"WEBP")


def test_of_two_browsers_the_second_gets_the_current_text(page):
    page.post("datasets", {"name": "fox"})
    key = page.upload("fox", "a.png", picture()).json()["added"][0]["key"]
    assert (
        page.post("datasets/fox/caption", {"key": key, "caption": "theirs", "was": ""}).status_code
        == 200
    )
    answer = page.post("datasets/fox/caption", {"key": key, "caption": "mine", "was": ""})
    assert (answer.status_code, answer.json()["current"]) == (409, "theirs")
    assert answer.json()["error"]["message"] == "Someone else has changed the caption of a.png"
    assert (
        page.post("datasets/fox/caption", {"key": key, "caption": "mine", "was": "theirs"}).json()[
            "caption"
        ]
        == "mine"
    )


def test_who_knows_the_revision_gets_no_page_again(page):
    page.post("datasets", {"name": "fox"})
    page.upload("fox", "a.png", picture())
    revision = page.get("datasets/fox/items").json()["revision"]
    assert page.get("datasets/fox/items", known=revision).json() == {
        "unchanged": True,
        "revision": revision,
    }
    (page.root / "data folder" / "datasets" / "fox" / "a.txt").write_text(
        "edited elsewhere", encoding="utf-8"
    )
    assert (
        page.get("datasets/fox/items", known=revision).json()["items"][0]["caption"]
        == "edited elsewhere"
    )


def test_pages_of_a_dataset(page):
    page.post("datasets", {"name": "fox"})
    for number in range(5):
        page.upload("fox", f"{number}.png", picture(size=(20 + number, 20)))
    answer = page.get("datasets/fox/items", offset=3, limit=3).json()
    assert (
        [item["name"] for item in answer["items"]],
        answer["total"],
        answer["matching"],
        answer["captioned"],
    ) == (["3.png", "4.png"], 5, 5, 0)
    assert page.get("datasets/fox/items", text="4.").json()["matching"] == 1
    assert (
        page.get("datasets/fox/items", offset="-1", limit="x", order="?", filter="?").json()[
            "matching"
        ]
        == 5
    )


def test_removing_and_undoing(page):
    page.post("datasets", {"name": "fox"})
    key = page.upload("fox", "a.png", picture()).json()["added"][0]["key"]
    page.upload("fox", "a.txt", b"a fox")
    assert page.post("datasets/fox/remove", {"keys": [key]}).json()["total"] == 0
    assert page.get("datasets/fox/items").json()["removed"] == 1
    assert [
        (entry["name"], entry["caption"]) for entry in page.get("datasets/fox/removed").json()
    ] == [("a.png", "a fox")]
    restored = page.post("datasets/fox/restore", {"keys": [key]}).json()
    assert (restored["total"], restored["captioned"], restored["changed"]) == (1, 1, 1)
    assert page.post("datasets/fox/remove", {"keys": [key, "unknown"]}).status_code == 404
    assert page.post("datasets/fox/remove", {"keys": [1]}).status_code == 400
    assert page.get("datasets/fox/items").json()["total"] == 1


def test_a_zip_over_http(page):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.png", picture())
        file.writestr("a.txt", "a fox")
    page.post("datasets", {"name": "fox"})
    answer = page.upload("fox", "set.zip", buffer.getvalue()).json()
    assert ([added["name"] for added in answer["added"]], answer["captions"]) == (["a.png"], 1)


def test_uploaded_captions_replace_others_when_asked_to(page):
    page.post("datasets", {"name": "fox"})
    page.upload("fox", "a.png", picture())
    page.upload("fox", "a.txt", b"first")
    assert page.upload("fox", "a.txt", b"second").json()["skipped"][0]["kept_caption"]
    assert page.upload("fox", "a.txt", b"second", captions="replace").json()["captions"] == 1


def test_renaming_and_deleting(page):
    page.post("datasets", {"name": "fox"})
    assert page.post("datasets/fox/rename", {"name": "Red fox"}).json()["name"] == "Red fox"
    trashed = page.post("datasets/fox/delete").json()["trash"]
    assert page.get("datasets").json() == []
    assert page.get("datasets/fox/items").status_code == 404
    # whoever deleted it, and whoever misses it
    assert [(entry["id"], entry["name"]) for entry in page.get("deleted-datasets").json()] == [
        (trashed, "Red fox")
    ]
    assert page.post(f"deleted-datasets/{trashed}/restore").json()["name"] == "Red fox"
    assert (
        page.get("deleted-datasets").json() == []
        and page.get("datasets/fox/items").status_code == 200
    )


def test_a_draft_is_sent_with_the_revision_it_was_made_from(page):
    page.post("datasets", {"name": "fox"})
    values = {"changes": {"trigger_word": "zrb"}, "captioner": {}, "name": "fox"}
    first = page.post("datasets/fox/draft", {"values": values, "revision": ""}).json()
    assert first["values"] == values and page.get("datasets/fox/draft").json() == first
    late = page.post("datasets/fox/draft", {"values": {}, "revision": "older"})
    assert late.status_code == 409 and late.json()["current"] == first


def test_a_folder_of_this_machine_is_for_the_person_at_it(page):
    save(page.root / "mine" / "a.png")
    card = page.post("datasets/open", {"folder": str(page.root / "mine")}).json()
    assert (card["external"], card["count"], card["path"]) == (True, 1, str(page.root / "mine"))
    page.facts["remote"] = True
    assert page.post("datasets/open", {"folder": str(page.root / "mine")}).status_code == 403
    assert page.post(f"datasets/{card['id']}/folder").status_code == 403
    assert page.get(f"datasets/{card['id']}/items").status_code == 404
    assert page.get("datasets").json() == []


ATTEMPTS = [
    "..",
    "../..",
    "..%2f..",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fsecret",
    "....//",
    "..\\..",
    "..%5c..",
    "%5c%5chost%5cshare",
    "//host/share",
    "/etc",
    "%2fetc%2fpasswd",
    "C:",
    "C:%5cWindows",
    "c%3a%2fwindows",
    "fox%00",
    "%00",
    "fox%2f..%2f..%2fsecret",
    "fox/../../secret",
    "./fox/../..",
    ".",
    "%2e",
    ".lora_trainer",
    "~",
    "~root",
    "file:%2f%2f%2fetc%2fpasswd",
    "secret",
    "link",
    "link%2fsecret.png",
    "nul",
    "CON",
    "aux.txt",
    "fox ",
    "fox.",
    " ",
    "fox%0a",
    "%ff%fe",
    "x" * 400,
    "folder-0000000000000000",
    "datasets.json",
    "..;/secret",
    "%u002e%u002e",
]


@pytest.mark.parametrize("remote", [True, False])
def test_no_address_leads_out_of_the_data_folder(page, remote):
    save(page.root / "secret" / "secret.png")
    page.post("datasets", {"name": "fox"})
    page.upload("fox", "a.png", picture())
    own = page.root / "data folder" / "datasets"
    if os.name != "nt":
        (own / "link").symlink_to(page.root / "secret")
        (own / "fox" / "link.png").symlink_to(page.root / "secret" / "secret.png")
    page.facts["remote"] = remote
    for attempt in ATTEMPTS:
        require_inside(page, attempt)


def require_inside(page, attempt):
    before = sorted(str(path) for path in page.root.rglob("*") if ".lora_trainer" not in path.parts)
    for path in (
        f"datasets/{attempt}/items",
        f"datasets/{attempt}",
        f"datasets/fox/picture/{attempt}",
        f"datasets/fox/thumbnail/{attempt}.webp",
    ):
        answer = page.client.get(f"/lora-trainer/{path}")
        # clients take "." and ".." out of an address before it is sent, the router a line's end;
        # what is left may be an address that is answered
        innocent = (
            attempt in (".", "..", "../..", "./fox/../..", "fox%0a")
            and b"secret" not in answer.content
        )
        assert answer.status_code in (400, 404) or innocent, (path, answer.text)
    with pytest.raises(NotFound):
        page.datasets.store(unquote(attempt, errors="surrogateescape"))
    for body in ({"keys": [attempt]}, {"key": attempt, "caption": "x", "was": ""}):
        what = "remove" if "keys" in body else "caption"
        assert page.post("datasets/fox/" + what, body).status_code == 404, attempt
        assert page.client.post(
            f"/lora-trainer/datasets/{attempt}/{what}", json=body, headers=ASK
        ).status_code in (400, 404, 405)
    assert (
        page.client.post(
            f"/lora-trainer/datasets/{attempt}/delete", json={}, headers=ASK
        ).status_code
        in (400, 404, 405)
        or attempt == "./fox/../.."
    )
    assert (
        sorted(str(path) for path in page.root.rglob("*") if ".lora_trainer" not in path.parts)
        == before
    )


def test_every_change_needs_the_header_no_other_page_can_send(page):
    page.post("datasets", {"name": "fox"})
    changing = [
        entry
        for entry in routing.ROUTES
        if entry.handler.__module__ == routes.__name__ and entry.method == "POST"
    ]
    assert len(changing) == 12
    for entry in changing:
        address = "/lora-trainer" + entry.path.replace("{id}", "fox")
        assert (
            page.client.post(
                address, content=json.dumps({}), headers={"content-type": "application/json"}
            ).status_code
            == 403
        )


@pytest.mark.parametrize("size", ["9" * 5000, "-1", "12.5", "\u0663", ""])
def test_a_size_that_is_no_number_is_as_good_as_none(page, size):
    page.post("datasets", {"name": "fox"})
    answer = page.upload("fox", "a.png", picture(), size=size)
    assert (answer.status_code, [added["name"] for added in answer.json()["added"]]) == (
        200,
        ["a.png"],
    )


def test_encoded_images_are_measured_and_deleted_and_nothing_else_is(page):
    identity = page.post("datasets", {"name": "ink"}).json()["id"]
    dataset = page.datasets.find(identity).path
    assert page.get(f"datasets/{identity}/encoded").json() == {"size": 0}
    encoded = dataset / ".lora_trainer" / "encoded"
    encoded.mkdir(parents=True)
    for name, size in (("a.safetensors", 1000), ("b.safetensors", 500), ("notes.txt", 7)):
        (encoded / name).write_bytes(bytes(size))
    captions = dataset / ".lora_trainer" / "captions.json"
    captions.write_text("{}")
    assert page.get(f"datasets/{identity}/encoded").json() == {"size": 1500}
    assert page.post(f"datasets/{identity}/delete-encoded").json() == {"size": 0}
    assert [path.name for path in encoded.iterdir()] == ["notes.txt"] and captions.exists()


def test_a_link_in_place_of_the_encoded_images_leads_nowhere(page):
    identity = page.post("datasets", {"name": "ink"}).json()["id"]
    elsewhere = page.root / "models"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_bytes(bytes(9))
    place = page.datasets.find(identity).path / ".lora_trainer"
    place.mkdir(exist_ok=True)
    (place / "encoded").symlink_to(elsewhere, target_is_directory=True)
    assert page.post(f"datasets/{identity}/delete-encoded").json() == {"size": 0}
    assert (elsewhere / "model.safetensors").exists()
