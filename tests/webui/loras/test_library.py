from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from lora_trainer import families
from lora_trainer.errors import LoraFileError
from lora_trainer.families.sdxl import SDXL
from lora_trainer.families.stable_diffusion import SD1
from lora_trainer.hosts.base import HostPaths
from lora_trainer.jobs.history import History
from lora_trainer.runs import events
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.loras.library import TRIES, Loras, to_mapping
from tests.webui.lora_files import write_lora, write_run


class Host:
    kind = "a1111"

    def __init__(self, root):
        self.root = root
        self.refreshed = 0

    def paths(self):
        return HostPaths(
            data=self.root, models=self.root / "models", lora_dir=self.root / "models" / "Lora"
        )

    def refresh_loras(self):
        self.refreshed += 1


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def folder(host):
    return host.paths().lora_dir


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def loras(host, runs):
    return Loras(host, History(runs))


def only(loras):
    (found,) = loras.listing()
    return found


def test_ours_are_listed_and_those_of_others_are_not(loras, folder):
    write_lora(folder / "styles" / "ink.safetensors", trigger="inkstyle")
    write_lora(folder / "downloaded.safetensors", ours=False)
    (folder / "broken.safetensors").write_bytes(b"no header")
    found = only(loras)
    assert (found.name, found.trigger, found.family, found.delivered, found.run) == (
        "ink",
        "inkstyle",
        SD1,
        True,
        None,
    )
    assert found.tag == "<lora:ink:0.7>"


def test_author_licence_and_description_come_from_the_file(loras, folder, runs):
    credits = {"modelspec.author": "Ann", "modelspec.license": "CC-BY-4.0"}
    write_lora(folder / "ink.safetensors", metadata=credits)
    view = to_mapping(only(loras), "")
    assert [view[key] for key in ("author", "license", "description", "training_comment")] == [
        "Ann",
        "CC-BY-4.0",
        "",
        "",
    ]


def without_name(content: bytes, key: bytes, value: bytes) -> bytes:
    """A LoRA file with one value of its header's JSON replaced as bytes."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(key, value)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


BROKEN = {
    "empty": lambda good: b"",
    "no header": lambda good: b"no header",
    "cut off": lambda good: good[:-3],
    "metadata is a list": lambda good: without_name(
        good, b'"__metadata__":{', b'"__metadata__":["x"],"other":{'
    ),
    "Infinity": lambda good: without_name(good, b'"1","', b'Infinity,"'),
    "nested": lambda good: (90_000).to_bytes(8, "little") + b'{"a":' + b"[" * 90_000,
    "5,000 digits": lambda good: without_name(
        good, b'"shape":[1,1]', b'"shape":[1' + b"0" * 5000 + b",1]"
    ),
    "half a surrogate pair": lambda good: without_name(good, b"lora_unet_0", rb"\ud800"),
    "a trigger of megabytes": lambda good: without_name(
        good, b'"modelspec.trigger_phrase":"', b'"modelspec.trigger_phrase":"' + b"x" * 2_000_000
    ),
}
SIDECARS = {
    "nested": "[" * 50_000,
    "a list": "[1]",
    "digits": '{"preferred weight": 1' + "0" * 5000 + "}",
    "infinite": '{"preferred weight": Infinity}',
}


def test_one_broken_file_never_hides_its_neighbours(loras, folder, runs):
    good = write_lora(folder / "good.safetensors", trigger="inkstyle").read_bytes()
    (folder / "good.json").write_text('{"preferred weight": 0.5}')
    for name, broken in BROKEN.items():
        (folder / f"{name}.safetensors").write_bytes(broken(good))
    for name, text in SIDECARS.items():
        write_lora(folder / f"sidecar {name}.safetensors")
        (folder / f"sidecar {name}.json").write_text(text)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.safetensors")
        write_lora(folder / "sidecar pipe.safetensors")
        os.mkfifo(folder / "sidecar pipe.json")
        (folder / os.fsdecode(b"not utf-8 \xff.safetensors")).write_bytes(good)
    for number, weight in enumerate((".nan", ".inf", "heavy", "[1]", "0.6")):
        run = write_run(runs, f"run{number}", (100,))
        run.config.write_text(f"name: run\npreferred_weight: {weight}\n")
    found = {lora.name: lora for lora in loras.listing()}
    assert (found["good"].trigger, found["good"].preferred_weight) == ("inkstyle", 0.5)
    assert [found[f"run{number}"].preferred_weight for number in range(5)] == [
        0.7,
        0.7,
        0.7,
        0.7,
        0.6,
    ]
    assert {found[f"sidecar {name}"].preferred_weight for name in SIDECARS} == {0.7}
    assert max(len(lora.trigger) for lora in found.values()) == 1000
    json.dumps([to_mapping(lora, "there") for lora in found.values()], allow_nan=False)
    assert loras.insertable()[1] == {"good": 0.5}


def test_a_run_that_names_files_outside_its_folder_shows_none_of_them(loras, folder, runs):
    write_lora(runs.parent / "secret.safetensors")
    run = write_run(runs, "ink", (100,))
    writer = events.EventWriter(run.events)
    for file in ("../../secret.safetensors", str(runs.parent / "secret.safetensors"), "a\0b"):
        writer.write(events.Saved(step=200, file=file))
    writer.write(events.Previewed(step=100, file="../../secret.safetensors"))
    writer.write(events.Finished(step=100, file="ink.safetensors", delivered="a\0b"))
    writer.close()
    assert [(lora.name, lora.preview) for lora in loras.listing()] == [("ink", None)]


def test_the_sidecar_says_trigger_and_strength(loras, folder):
    write_lora(folder / "ink.safetensors", trigger="old")
    (folder / "ink.json").write_text(
        '{"activation text": "ink style", "preferred weight": 0.55}', encoding="utf-8-sig"
    )
    assert (only(loras).trigger, only(loras).preferred_weight) == ("ink style", 0.55)
    assert to_mapping(only(loras), "there")["tag"] == "<lora:ink:0.55> ink style"


def test_a_preferred_weight_of_zero_is_none_as_in_the_hosts_own_editor(loras, folder):
    write_lora(folder / "ink.safetensors")
    (folder / "ink.json").write_text('{"preferred weight": 0.0}', encoding="utf-8")
    assert only(loras).preferred_weight == 0.7
    assert loras.insertable()[1] == {}


def test_the_strength_changes_one_key_of_the_sidecar_and_keeps_the_rest(loras, folder, host):
    write_lora(folder / "ink.safetensors")
    sidecar = folder / "ink.json"
    sidecar.write_text(
        '{"notes": "墨", "preferred weight": 0.7, "somebody elses": [1, 2], "negative text":'
        ' "blurry"}',
        encoding="utf-8",
    )
    assert loras.set_strength(only(loras).id, 0.9).preferred_weight == 0.9
    values = json.loads(sidecar.read_text(encoding="utf-8"))
    assert list(values.items()) == [
        ("notes", "墨"),
        ("preferred weight", 0.9),
        ("somebody elses", [1, 2]),
        ("negative text", "blurry"),
    ]
    assert (
        host.refreshed == 1
        and [path.name for path in folder.iterdir() if "part" in path.name] == []
    )


def test_a_lora_without_a_sidecar_gets_one(loras, folder):
    write_lora(folder / "ink.safetensors", trigger="inkstyle", family="sdxl")
    loras.set_strength(only(loras).id, 1.2)
    assert json.loads((folder / "ink.json").read_text(encoding="utf-8")) == {
        "activation text": "inkstyle",
        "sd version": "SDXL",
        "preferred weight": 1.2,
    }


def test_a_new_sidecar_has_the_webuis_own_word_for_the_kind_of_model(loras, host, folder, runs):
    host.kind = "neo"
    write_lora(folder / "ink.safetensors", family="sdxl")
    loras.set_strength(only(loras).id, 1.2)
    assert json.loads((folder / "ink.json").read_text(encoding="utf-8"))["sd version"] == "xl"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("sd1", (7.0, "", "")),
        ("flux", (1.0, "Euler", "Simple")),
        ("anima", (4.5, "Euler", "Simple")),
        ("zimage", (4.0, "Euler", "Simple")),
        ("klein4b", (4.0, "Euler", "Simple")),
    ],
)
def test_a_lora_comes_with_what_suits_its_family_in_the_webui(family, expected, loras, folder):
    write_lora(folder / "ink.safetensors")
    view = to_mapping(replace(only(loras), family=families.get(family)), "")
    assert (view["cfg"], view["sampler"], view["scheduler"]) == expected
    assert view["steps"] == 20


def test_a_sidecar_that_cannot_be_read_is_not_overwritten(loras, folder):
    write_lora(folder / "ink.safetensors")
    (folder / "ink.json").write_text('{"notes": "half', encoding="utf-8")
    with pytest.raises(LoraFileError, match="ink.json is not valid JSON"):
        loras.set_strength(only(loras).id, 0.9)
    assert (folder / "ink.json").read_text(encoding="utf-8") == '{"notes": "half'


@pytest.mark.parametrize("strength", [0.0, -0.1, 2.01, float("nan"), float("inf"), True])
def test_what_is_no_strength_is_refused(loras, folder, strength):
    write_lora(folder / "ink.safetensors")
    with pytest.raises(LoraFileError, match="cannot be the preferred strength"):
        loras.set_strength(only(loras).id, strength)
    assert not (folder / "ink.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_a_sidecar_that_leads_out_of_the_folder_is_left_alone(loras, folder, tmp_path):
    write_lora(folder / "ink.safetensors")
    outside = tmp_path / "outside.json"
    outside.write_text("{}", encoding="utf-8")
    (folder / "ink.json").symlink_to(outside)
    with pytest.raises(LoraFileError, match="is not inside the WebUI's LoRA folder"):
        loras.set_strength(only(loras).id, 0.9)
    assert outside.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize(
    "text", ["1" + "0" * 400, "NaN", "Infinity", '"inf"', '"strong"', "true", "[0.5]", "null"]
)
def test_a_preferred_weight_that_is_no_strength_counts_as_none(loras, folder, text):
    write_lora(folder / "ink.safetensors")
    (folder / "ink.json").write_text('{"preferred weight": ' + text + "}", encoding="utf-8")
    assert only(loras).preferred_weight == 0.7


def test_every_lora_with_a_preferred_weight_is_known_to_the_strength_panel_by_name_and_alias(
    loras, folder
):
    write_lora(folder / "mine.safetensors")
    (folder / "mine.json").write_text('{"preferred weight": 0.6}', encoding="utf-8")
    foreign = write_lora(folder / "alias.safetensors", ours=False)
    foreign.rename(folder / "theirs.safetensors")
    (folder / "theirs.json").write_text('{"preferred weight": "0.4"}', encoding="utf-8")
    ours, weights = loras.insertable()
    assert [lora.name for lora in ours] == ["mine"]
    assert weights == {"mine": 0.6, "theirs": 0.4, "alias": 0.4}


def test_saved_steps_are_listed_newest_first_with_what_the_run_knows(loras, runs):
    run = write_run(runs, "fox", (100, 200, 300), trigger="foxy", family="sdxl")
    found = loras.listing()
    assert [(lora.name, lora.step, lora.run, lora.delivered) for lora in found] == [
        ("fox", 300, "fox", False),
        ("fox-step00000200", 200, "fox", False),
        ("fox-step00000100", 100, "fox", False),
    ]
    assert (found[1].trigger, found[1].preferred_weight, found[1].family) == (
        "foxy",
        0.8,
        SDXL,
    )
    run.saved_file("fox", 200).unlink()
    assert [lora.step for lora in loras.listing()] == [300, 100]


def test_a_delivered_run_is_listed_once_with_its_run(loras, folder, runs):
    path = write_lora(folder / "fox.safetensors")
    write_run(runs, "fox", (100, 200), delivered=str(path))
    assert [(lora.name, lora.run, lora.step, lora.delivered) for lora in loras.listing()] == [
        ("fox", "fox", 200, True),
        ("fox-step00000100", "fox", 100, False),
    ]


def test_a_saved_step_shows_the_preview_nearest_to_its_strength(loras, runs):
    run = write_run(runs, "fox", (100,))
    run.previews.mkdir()
    writer = events.EventWriter(run.events)
    for strength in (0.0, 0.7, 1.0):
        Image.new("RGB", (8, 8)).save(run.previews / f"{strength}.png")
        writer.write(events.Previewed(step=100, file=f"previews/{strength}.png", strength=strength))
    writer.close()
    assert only(loras).preview == run.previews / "0.7.png"


def test_a_saved_step_has_its_measured_strength_where_the_settings_leave_it_at_auto(loras, runs):
    run = write_run(runs, "fox", (100, 200, 300))
    run.config.write_text("train_data_dir: images\nname: fox\npreferred_weight: auto\n")
    writer = events.EventWriter(run.events)
    writer.write(events.Judged(step=100, strength=0.5, strengths={"100": 0.5, "200": 1, "300": {}}))
    writer.close()
    found = {lora.step: lora.preferred_weight for lora in loras.listing()}
    assert found == {100: 0.5, 200: 1.0, 300: 0.7}
    run.config.write_text("train_data_dir: images\nname: fox\npreferred_weight: 0.9\n")
    assert {lora.preferred_weight for lora in loras.listing()} == {0.9}


def test_a_saved_step_is_delivered_once_however_often_it_is_clicked(loras, folder, runs, host):
    write_run(runs, "fox", (100, 200), trigger="foxy")
    step = next(lora for lora in loras.listing() if lora.step == 100)
    first = loras.deliver(step.id)
    second = loras.deliver(step.id)
    assert first.name == "fox-step00000100" and second == first
    assert first.delivered and first.trigger == "foxy" and first.preferred_weight == 0.8
    assert (
        json.loads((folder / "fox-step00000100.json").read_text(encoding="utf-8"))[
            "activation text"
        ]
        == "foxy"
    )
    assert host.refreshed == 2
    assert loras.deliver(first.id) == first


def test_the_strength_of_a_saved_step_cannot_be_written(loras, runs):
    write_run(runs, "fox", (100,))
    with pytest.raises(LoraFileError, match="fox is not in the WebUI's LoRA folder yet"):
        loras.set_strength(only(loras).id, 0.9)


def test_what_is_only_being_tried_is_not_listed(loras, folder):
    write_lora(folder / TRIES / "try-00000000-0.safetensors")
    assert loras.listing() == []


@pytest.mark.parametrize("lora_id", ["", "..", "../../etc/passwd", "0" * 16])
def test_an_id_that_is_not_listed_is_not_found(loras, folder, lora_id):
    write_lora(folder / "ink.safetensors")
    with pytest.raises(NotFound):
        loras.find(lora_id)


def test_a_changed_file_is_read_again(loras, folder):
    write_lora(folder / "ink.safetensors", trigger="one")
    assert only(loras).trigger == "one"
    write_lora(folder / "ink.safetensors", trigger="another")
    assert only(loras).trigger == "another"


def test_a_page_of_cards_looks_through_the_folders_once(loras, folder, monkeypatch):
    for name in ("ink", "neon"):
        write_lora(folder / f"{name}.safetensors")
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    found = loras.listing()
    looked = []
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *all, **options: looked.append(all) or walk(*all, **options)
    )
    assert [loras.preview(lora.id).name for lora in found] == [
        f"{lora.name}.png" for lora in found
    ] and looked == []
    assert loras.find(*(lora.id for lora in found)) == found and len(looked) == 1
    assert [lora.name for lora in loras.insertable()[0]] == [lora.name for lora in found] and len(
        looked
    ) == 2


def test_a_picture_that_came_or_went_since_is_looked_for_again(loras, folder):
    write_lora(folder / "ink.safetensors")
    lora = only(loras)
    with pytest.raises(NotFound, match="no image"):
        loras.preview(lora.id)
    Image.new("RGB", (8, 8)).save(folder / "ink.png")
    assert loras.preview(lora.id) == folder / "ink.png"
    Image.new("RGB", (8, 8)).save(folder / "ink.jpg")
    (folder / "ink.png").unlink()
    assert loras.preview(lora.id) == folder / "ink.jpg"
    with pytest.raises(NotFound, match="no longer exist"):
        loras.preview("0" * 16)


def test_a_saved_step_that_was_put_into_the_folder_is_known_as_the_runs_and_no_more_offered(
    loras, runs, folder
):
    run = write_run(runs, "fox", steps=(100, 200))
    for step, path in ((100, run.saved_file("fox", 100)), (200, run.path / "fox.safetensors")):
        write_lora(path, content=step, hashed=True)
    before = {lora.step: lora for lora in loras.listing()}
    delivered = loras.deliver(before[100].id)
    assert (delivered.run, delivered.step, delivered.delivered) == ("fox", 100, True)
    assert [(lora.step, lora.delivered) for lora in loras.listing()] == [(100, True), (200, False)]
    # whatever it is called there
    delivered.path.rename(folder / "renamed.safetensors")
    assert next((lora.name, lora.run, lora.step) for lora in loras.listing()) == (
        "renamed",
        "fox",
        100,
    )
    (folder / "renamed.safetensors").unlink()
    assert [lora.step for lora in loras.listing()] == [200, 100]
