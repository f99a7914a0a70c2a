"""Try it, against a host that paints."""

from __future__ import annotations

import re
import shutil
import threading
import time

import pytest
from PIL import Image

from lora_trainer.errors import LoraTrainerError
from lora_trainer.families.stable_diffusion import SD1
from lora_trainer.hosts.base import HostError
from lora_trainer.jobs.history import History
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.comparing import generation
from lora_trainer.webui.comparing.comparisons import (
    ComparisonError,
    ComparisonRequest,
    request_from,
)
from lora_trainer.webui.comparing.generation import ComparisonJobs
from lora_trainer.webui.loras.library import TRIES, Loras
from tests.webui.lora_files import write_lora, write_run
from tests.webui.painting_host import PaintingHost


@pytest.fixture
def host(tmp_path):
    return PaintingHost(tmp_path)


@pytest.fixture
def folder(host):
    return host.paths().lora_dir


@pytest.fixture
def data(tmp_path):
    return DataFolder(tmp_path / "data")


@pytest.fixture
def jobs(host, data):
    return make(host, data)


def make(host, data, family=SD1):
    return ComparisonJobs(
        host, data, Loras(host, History(data.folder("runs"))), lambda path: family
    )


def lora_id(jobs, name):
    return next(lora.id for lora in jobs._loras.listing() if lora.name == name)


def ask(jobs, *names, **values):
    return over(submit(jobs, *names, **values))


def submit(jobs, *names, **values):
    values = {
        "kind": "pair",
        "prompt": "a fox",
        "seed": 7,
        "width": 64,
        "height": 64,
        "steps": 3,
        "strengths": (),
        **values,
    }
    loras = tuple(lora_id(jobs, name) for name in names)
    return jobs.submit(ComparisonRequest(loras=loras, **values))


def over(job, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not job.over:
        assert time.monotonic() < deadline, job
        time.sleep(0.005)
    return job


def told(job):
    return job.to_mapping(str, lambda name: f"/{name}")


def test_a_pair_shows_one_seed_without_and_with_the_lora(jobs, host, folder, data):
    write_lora(folder / "ink.safetensors", trigger="inkstyle")
    job = ask(jobs, "ink", strengths=(0.9,), negative="blurry", cfg=5.0, sampler="Euler")
    assert job.status == "done" and job.error is None
    assert [request.prompt for request in host.requests] == [
        "inkstyle, a fox",
        "inkstyle, a fox <lora:ink:0.9>",
    ]
    assert {
        (request.seed, request.negative, request.cfg, request.steps, request.sampler)
        for request in host.requests
    } == {(7, "blurry", 5.0, 3, "Euler")}
    first, second = (Image.open(jobs.file(job.id, picture.file)) for picture in job.images)
    assert first.tobytes() != second.tobytes()
    assert second.info["parameters"] == "inkstyle, a fox <lora:ink:0.9>\nSteps: 3"
    answer = told(job)
    assert [picture["label"] for picture in answer["images"]] == [
        "Without the LoRA",
        "Strength 0.9",
    ]
    assert answer["notes"] == ["The trigger inkstyle was added to the prompt."]
    assert (answer["sheet"], answer["done"], answer["total"], answer["infotext"]) == (
        None,
        2,
        2,
        second.info["parameters"],
    )


def test_a_prompt_with_the_trigger_and_a_tag_of_its_own_gets_neither_twice(jobs, host, folder):
    write_lora(folder / "ink.safetensors", trigger="InkStyle")
    write_lora(folder / "other.safetensors", content=9)
    job = ask(jobs, "ink", prompt="inkstyle, a fox <lora:ink:0.3> <lora:other:1>", strengths=(1.0,))
    assert [request.prompt for request in host.requests] == [
        "inkstyle, a fox <lora:other:1>",
        "inkstyle, a fox <lora:other:1> <lora:ink:1>",
    ]
    assert told(job)["notes"] == [
        "The tag of ink in the prompt was replaced by the strengths tried here."
    ]


def test_a_pair_without_a_strength_uses_the_preferred_one(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    (folder / "ink.json").write_text('{"preferred weight": 0.45}', encoding="utf-8")
    ask(jobs, "ink")
    assert host.requests[1].prompt == "a fox <lora:ink:0.45>"


def test_a_seed_of_minus_one_is_drawn_once_for_all_pictures(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    job = ask(jobs, "ink", kind="grid", seed=-1)
    assert {request.seed for request in host.requests} == {job.seed} and job.seed >= 0


@pytest.mark.parametrize(
    ("weight", "grid", "matrix"),
    [
        (0.7, (0, 0.25, 0.5, 0.7, 1), (0.4, 0.7, 1)),
        (0.75, (0, 0.25, 0.5, 0.75, 1), (0.4, 0.75, 1)),
        (0.95, (0, 0.25, 0.5, 0.75, 0.95, 1), (0.4, 0.7, 0.95, 1)),
        (1.3, (0, 0.25, 0.5, 0.75, 1, 1.3), (0.4, 0.7, 1, 1.3)),
    ],
)
def test_the_recommended_strength_is_among_those_that_are_compared(
    jobs, folder, weight, grid, matrix
):
    write_lora(folder / "ink.safetensors")
    (folder / "ink.json").write_text(f'{{"preferred weight": {weight}}}', encoding="utf-8")
    (lora,) = jobs._loras.listing()
    assert (lora.grid, lora.matrix) == (grid, matrix)


def test_a_grid_is_five_strengths_on_one_labelled_sheet(jobs, folder):
    write_lora(folder / "ink.safetensors")
    job = ask(jobs, "ink", kind="grid")
    assert [picture.strength for picture in job.images] == [
        0.0,
        0.25,
        0.5,
        0.7,
        1.0,
    ], "the recommended strength is one of them"
    sheet = Image.open(jobs.file(job.id, "sheet.png"))
    assert sheet.width == 5 * (64 + 8) + 8
    head = sheet.height - (64 + 8)
    for column in range(5):
        label = sheet.crop((8 + 72 * column, 0, 72 + 72 * column, head))
        assert label.convert("L").getextrema()[0] < 60, f"no label above column {column}"
        picture = Image.open(jobs.file(job.id, f"{column:02d}.png"))
        assert (
            sheet.crop((8 + 72 * column, head, 72 + 72 * column, head + 64)).tobytes()
            == picture.convert("RGB").tobytes()
        )
    assert "parameters" in sheet.info


def test_a_matrix_shows_saved_steps_which_the_host_sees_only_meanwhile(jobs, host, folder, data):
    write_run(data.folder("runs"), "fox", (100, 200, 300), trigger="foxy")
    job = ask(
        jobs, "fox-step00000100", "fox-step00000200", kind="matrix", strengths=(0.0, 0.5, 1.0)
    )
    assert job.status == "done", job.error
    # without the LoRA it is the same image in both rows
    assert [(picture.step, picture.strength) for picture in job.images] == [
        (None, 0.0),
        (100, 0.5),
        (100, 1.0),
        (200, 0.5),
        (200, 1.0),
    ]
    assert len(host.requests) == job.total == 5
    names = {name for name, _ in host.seen}
    assert len(names) == 2 and all(re.fullmatch(r"try-[0-9a-f]{8}-[01]", name) for name in names)
    assert all(alias == name for name, alias in host.seen)
    assert not (folder / TRIES).exists() and host.refreshed == 2
    assert [picture["label"] for picture in told(job)["images"]][:2] == [
        "Without the LoRA",
        "Step 100, strength 0.5",
    ]
    assert (
        Image.open(jobs.file(job.id, "01.png"))
        .info["parameters"]
        .startswith("foxy, a fox <lora:fox-step00000100:0.5>")
    )
    sheet = Image.open(jobs.file(job.id, "sheet.png"))
    assert sheet.height > 2 * 72 and sheet.width > 3 * 72 + 8


def test_each_try_of_a_saved_step_has_a_name_of_its_own(jobs, host, data):
    write_run(data.folder("runs"), "fox", (100,))
    ask(jobs, "fox")
    ask(jobs, "fox")
    assert len({name for name, _ in host.seen}) == 2


def test_what_goes_wrong_in_the_host_is_a_sentence_and_leaves_nothing_behind(
    jobs, host, folder, data
):
    write_run(data.folder("runs"), "fox", (100,))
    host.fails = HostError(
        "the WebUI could not generate the image: {reason}",
        hint="Try it in txt2img.",
        reason="ValueError: no",
    )
    job = ask(jobs, "fox")
    assert job.status == "failed" and told(job)["error"] == {
        "message": "the WebUI could not generate the image: ValueError: no",
        "hint": "Try it in txt2img.",
    }
    assert not (folder / TRIES).exists()
    host.fails = RuntimeError("a bug")
    assert (
        told(ask(jobs, "fox"))["error"]["message"]
        == "the images could not be generated: RuntimeError: a bug"
    )
    host.fails = None
    assert ask(jobs, "fox").status == "done"


def test_a_lora_that_the_host_did_not_find_is_no_picture(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    host.comments = ("Networks not found: {name}",)
    job = ask(jobs, "ink")
    assert str(job.error) == "the WebUI did not find the LoRA ink" and [
        picture.strength for picture in job.images
    ] == [0.0]


@pytest.mark.parametrize(
    "comment", ["[LORA] LoRA version mismatch for KModel: /loras/{name}.safetensors", "matched"]
)
def test_a_lora_that_does_not_fit_the_checkpoint_is_no_picture(jobs, host, folder, comment):
    write_lora(folder / "ink.safetensors")
    if comment == "matched":
        host.matched = 0
    else:
        host.comments = (comment,)
    assert (
        str(ask(jobs, "ink").error)
        == "the WebUI could use none of the layers of ink with the checkpoint that is loaded"
    )


def test_a_lora_of_which_the_host_ignores_some_keys_is_tried(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    host.comments = ("[LORA] apparent version mismatch {name}.safetensors ignoring 12 keys",)
    assert told(ask(jobs, "ink"))["notes"] == [
        "Message from the WebUI: [LORA] apparent version mismatch ink.safetensors ignoring 12 keys"
    ]


def test_unmatched_layers_are_told(jobs, host, folder):
    write_lora(folder / "ink.safetensors", modules=10)
    host.matched = 7
    host.comments = ("[LORA] Loading {name} for KModel with unmatched keys ['x']",)
    assert told(ask(jobs, "ink"))["notes"] == [
        "Message from the WebUI: [LORA] Loading ink for KModel with unmatched keys ['x']",
        "The WebUI could use 7 of the 10 layers of ink.",
    ]


def test_a_lora_that_changes_nothing_is_told(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    host.blind = True
    assert told(ask(jobs, "ink"))["notes"] == [
        "ink has no effect: the images with and without it are identical."
    ]


def test_a_lora_of_another_family_is_refused_at_once(host, data, folder):
    write_lora(folder / "ink.safetensors", family="sdxl")
    with pytest.raises(
        ComparisonError,
        match=(
            r"ink was trained for SDXL, and the WebUI's checkpoint base.safetensors \[0123\] is"
            r" SD1.5"
        ),
    ):
        ask(make(host, data), "ink")
    assert host.requests == []


@pytest.mark.parametrize("number", [10**400, -(10**400), float("nan"), float("inf"), 2**40])
@pytest.mark.parametrize("key", ["seed", "steps", "cfg", "width", "height", "strengths"])
def test_a_number_of_no_use_is_a_sentence(key, number):
    with pytest.raises(ComparisonError):
        request_from(
            {
                "kind": "grid",
                "prompt": "a fox",
                "lora": "x",
                key: [number] if key == "strengths" else number,
            }
        )


def test_cancelling_interrupts_the_picture_and_gives_up_the_rest(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    host.gate = threading.Event()
    first = submit(jobs, "ink", kind="grid")
    second = submit(jobs, "ink")
    while not host.requests:
        time.sleep(0.005)
    assert (
        told(first)["sentence"] == "Image 1 of 5: step 1 of 3."
        and told(second)["sentence"] == "Waiting in the queue."
    )
    assert told(jobs.cancel(second.id))["sentence"] == "Cancelled."
    jobs.delete(second.id)
    jobs.cancel(first.id)
    assert over(first).status == "cancelled"
    assert len(host.requests) == 1


def test_what_a_crash_left_in_the_lora_folder_is_removed_at_the_next_start(host, data, folder):
    write_lora(folder / TRIES / "try-0123abcd-0.safetensors")
    (folder / TRIES / "try-0123abcd-1.safetensors.4711.part").write_bytes(b"half")
    mine = write_lora(folder / TRIES / "mine.safetensors")
    make(host, data)
    assert list((folder / TRIES).iterdir()) == [mine]
    mine.unlink()
    make(host, data)
    assert not (folder / TRIES).exists()


def test_pictures_outlive_a_restart_and_what_was_under_way_is_told(host, data, jobs, folder):
    write_lora(folder / "ink.safetensors", trigger="inkstyle")
    done = ask(jobs, "ink")
    host.gate = threading.Event()
    cut = submit(jobs, "ink")
    again = make(host, data)
    assert told(again.find(done.id)) == told(done)
    assert str(again.find(cut.id).error) == "the WebUI was closed before the images were generated"
    host.gate.set()
    over(cut)


def test_the_newest_twenty_are_kept(host, data, folder, monkeypatch):
    monkeypatch.setattr(generation, "KEPT", 3)
    write_lora(folder / "ink.safetensors")
    now = iter(range(1000, 2000))
    jobs = ComparisonJobs(
        host,
        data,
        Loras(host, History(data.folder("runs"))),
        lambda path: None,
        clock=lambda: float(next(now)),
    )
    made = [ask(jobs, "ink") for _ in range(5)]
    assert [job.id for job in jobs.recent()] == [job.id for job in reversed(made[-3:])]
    assert sorted(path.name for path in data.folder("tries").iterdir()) == sorted(
        job.id for job in made[-3:]
    )


@pytest.mark.parametrize("name", ["try.json", "../try.json", "..", "", "99.png", "sheet.png"])
def test_only_a_trys_own_pictures_are_served(jobs, folder, name):
    write_lora(folder / "ink.safetensors")
    job = ask(jobs, "ink")
    with pytest.raises(NotFound):
        jobs.file(job.id, name)


BODY = {"lora": "abc", "prompt": "a fox"}


def test_a_request_has_the_usual_values():
    assert request_from({**BODY, "strengths": [0.5]}) == ComparisonRequest(
        kind="pair", prompt="a fox", loras=("abc",), strengths=(0.5,)
    )
    matrix = request_from({**BODY, "kind": "matrix", "loras": ["a", "b"], "width": 512.0, "cfg": 5})
    assert (matrix.loras, matrix.width, matrix.cfg) == (("a", "b"), 512, 5.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "video"}, "'video' is not a kind of comparison"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": 5}, "prompt is not a text"),
        ({"prompt": "x" * 10_001}, "the prompt is longer than 10000 characters"),
        ({"lora": None}, "no LoRA is chosen"),
        ({"lora": 7}, "lora is not a text"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is not a number"),
        ({"steps": "20"}, "steps is not a number"),
        ({"steps": True}, "steps is not a number"),
        ({"width": 4096}, "width is 4096"),
        ({"width": 500}, "500 x 512 is not a valid image size"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"seed": 2**40}, "seed is 1099511627776"),
        ({"strengths": 0.5}, "strengths is not a list"),
        ({"strengths": [3]}, "strength is 3.0"),
        ({"strengths": ["a"]}, "strength is not a number"),
        (
            {"kind": "matrix", "loras": ["a"] * 30, "strengths": [0.1, 0.2, 0.3]},
            "that would be more than 64 images",
        ),
        ({"kind": "matrix", "loras": "abc"}, "loras is not a list"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ComparisonError) as refused:
        request_from({**BODY, **changes})
    assert str(refused.value) == sentence


def test_a_sampler_that_the_host_lacks_is_refused(jobs, folder):
    write_lora(folder / "ink.safetensors")
    with pytest.raises(LoraTrainerError, match="this WebUI has no sampler Nonesuch"):
        ask(jobs, "ink", sampler="Nonesuch")


def test_a_deleted_try_goes_with_its_pictures_and_their_sheet_and_comes_back(
    jobs, host, folder, data
):
    write_lora(folder / "ink.safetensors")
    first, job = ask(jobs, "ink"), ask(jobs, "ink", kind="grid", strengths=(0.0, 1.0))
    before = told(job)
    jobs.delete(job.id)
    assert jobs.recent() == [first] and [path.name for path in data.folder("tries").iterdir()] == [
        first.id
    ]
    (thrown,) = data.folder("trash").iterdir()
    assert sorted(path.name for path in thrown.iterdir()) == [
        "00.png",
        "01.png",
        "discarded.json",
        "sheet.png",
        "try.json",
    ]
    with pytest.raises(NotFound):
        jobs.file(job.id, "sheet.png")
    # another process, a restart of the WebUI, finds the same
    assert [found.id for found in make(host, data).recent()] == [first.id]
    assert told(jobs.restore(job.id)) == before
    assert jobs.file(job.id, "sheet.png").is_file() and list(data.folder("trash").iterdir()) == []
    with pytest.raises(NotFound, match="no longer exist"):
        jobs.restore(job.id)


def test_what_is_still_being_made_is_not_deleted(jobs, host, folder):
    write_lora(folder / "ink.safetensors")
    host.gate = threading.Event()
    job = submit(jobs, "ink")
    with pytest.raises(ComparisonError, match="still being generated"):
        jobs.delete(job.id)
    host.gate.set()
    over(job)
    jobs.delete(job.id)
    assert jobs.recent() == []


def test_a_try_whose_folder_is_gone_can_be_deleted(jobs, folder, data):
    write_lora(folder / "ink.safetensors")
    job = ask(jobs, "ink")
    shutil.rmtree(data.folder("tries") / job.id)
    jobs.delete(job.id)
    assert jobs.recent() == []
