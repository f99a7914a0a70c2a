from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer import __main__ as command_line
from lora_trainer.captioning.captioner import CaptionerOutput
from lora_trainer.dataset import caption_provenance, embeddings
from lora_trainer.dataset.images import digest
from lora_trainer.errors import CaptionerError, LoraTrainerError, OutOfMemory, SetupError
from lora_trainer.jobs import start
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import captioning
from lora_trainer.tasks import caption as task
from lora_trainer.tasks.caption import CaptionTask
from lora_trainer.tasks.report import Report
from lora_trainer.worker import job
from tests.captioning.hub import serve
from tests.captioning.tiny_captioners import tiny_blip, tiny_clip, tiny_qwen, tiny_tagger
from tests.made import worker_here

ROOT = Path(__file__).resolve().parent.parent.parent


class Says:
    """A captioner that says how bright each image is, and does what a test asks for on the
    way.
    """

    def __init__(self, on_batch=lambda images: None):
        self.batches, self.on_batch = [], on_batch

    def caption(self, images):
        self.on_batch(images)
        self.batches.append(len(images))
        return [CaptionerOutput(text=f"level {image.getpixel((0, 0))[0]}") for image in images]


def draw(folder, count=5):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (64, 64), (number * 10,) * 3).save(folder / f"img{number}.png")
    return folder


def work(images, says=None, **changes):
    """One caption job in this process, as the worker does it. Returns its outcome and its
    folder.
    """
    settings = captioning.from_mapping(
        {"input": str(images), "captioner": "blip", "batch_size": 2, "device": "cpu", **changes}
    )
    folder = folders.begin_captioning(
        images / ".lora_trainer" / "captioning", captioning.to_yaml(settings)
    )
    with (
        folders.occupy(folder, {}) as heartbeat,
        contextlib.closing(Report(folder, heartbeat)) as report,
    ):
        mine = CaptionTask(folder, report)
        if says is not None:
            mine.prepare_files = lambda selection: None
            mine.load = lambda selection, files: says
        return mine.run(), folder


def captions(images):
    text = (images / "metadata.csv").read_text(encoding="utf-8-sig")
    return dict(line.split(",", 1) for line in text.splitlines()[1:])


def told(folder, kind):
    """The events of this kind since the last start."""
    history = folder.read_events()
    start = max(number for number, event in enumerate(history) if isinstance(event, events.Started))
    return [event for event in history[start:] if isinstance(event, kind)]


# --- each captioner, loaded as a real one is ------------------------------------------------------


@pytest.mark.parametrize(
    ("captioner", "model", "more"),
    [
        ("blip", tiny_blip, {"max_tokens": 8}),
        ("blip-large", tiny_blip, {"max_tokens": 8}),
        ("qwen", tiny_qwen, {"max_tokens": 8}),
        ("clip", tiny_clip, {"threshold": 0.0, "top_k": 1}),
        ("wd", tiny_tagger, {}),
    ],
)
def test_each_captioner_captions_a_folder(tmp_path, captioner, model, more):
    if captioner == "wd":
        pytest.importorskip("onnxruntime")
    images = draw(tmp_path / "我的 图", 3)
    outcome, folder = work(images, captioner=captioner, model=str(model()), trigger="zorb", **more)
    assert outcome == "finished"
    written = captions(images)
    assert sorted(written) == ["img0.png", "img1.png", "img2.png"] and all(
        "zorb" in text for text in written.values()
    )
    state = folder.read_state()
    assert (state.job, state.status, state.step, state.step_count, state.image_count) == (
        "caption",
        "finished",
        3,
        3,
        3,
    )
    assert state.file == str(images / "metadata.csv")
    assert [(event.image, event.caption) for event in told(folder, events.Captioned)] == [
        (name, text.strip('"').replace('""', '"')) for name, text in written.items()
    ]


def test_progress_is_told_as_for_a_training(tmp_path):
    _, folder = work(draw(tmp_path / "images"), Says())
    assert [event.step for event in told(folder, events.Progress)][-3:] == [2, 4, 5]
    last = told(folder, events.Progress)[-1]
    assert last.images_per_second > 0 and last.seconds_left == 0 and last.memory > 0
    (planned,) = told(folder, events.Planned)
    assert (planned.name, planned.step_count, planned.image_count) == ("BLIP base", 5, 5)


def test_only_the_images_that_are_named_are_captioned(tmp_path):
    images = draw(tmp_path / "images", 4)
    (images / "sub").mkdir()
    Image.new("RGB", (64, 64), (200,) * 3).save(images / "sub" / "IMG9.png")
    _, folder = work(images, Says(), only=["img2.png", "sub/IMG9.png", "img0.png", "ghost.png"])
    assert captions(images) == {
        "img0.png": "level 0",
        "img2.png": "level 20",
        "sub/IMG9.png": "level 200",
    }
    assert [warned.message for warned in told(folder, events.Warned)] == [
        f"there is no image ghost.png in {images}"
    ]
    # these captions say nothing of which images were meant: the next call goes on with the rest
    _, folder = work(images, Says())
    assert told(folder, events.Planned)[0].step_count == 2


# --- what a person wrote --------------------------------------------------------------------------


def test_what_a_person_wrote_is_never_replaced_unless_told(tmp_path):
    images = draw(tmp_path / "images", 3)
    (images / "img1.txt").write_text("mine", encoding="utf-8")
    _, folder = work(images, Says())
    assert captions(images) == {"img0.png": "level 0", "img2.png": "level 20"}
    assert [warned.message for warned in told(folder, events.Warned)] == [
        "captions written or edited by a person are kept (1)"
    ]
    work(images, Says(), overwrite=True)
    assert captions(images)["img1.png"] == "level 10"


@pytest.mark.parametrize("file", ["metadata.csv", "img1.txt"])
def test_what_a_person_changed_is_theirs_in_whatever_file(tmp_path, file):
    images = draw(tmp_path / "images", 3)
    work(images, Says(), format="csv" if file == "metadata.csv" else "txt")
    path = images / file
    path.write_text(
        path.read_text(encoding="utf-8-sig").replace("level 10", "my fox"), encoding="utf-8"
    )
    # another format, another prefix: all others are captioned anew
    work(images, Says(), prefix="ink", format="txt")
    assert (images / "img0.txt").read_text(encoding="utf-8").strip() == "ink, level 0"
    assert "my fox" in path.read_text(encoding="utf-8-sig") and "level 10" not in path.read_text(
        encoding="utf-8-sig"
    )


def test_a_person_who_puts_an_older_draft_back_is_a_person(tmp_path):
    images = draw(tmp_path / "images", 1)
    work(images, Says(), prefix="one")
    first = (images / "metadata.csv").read_bytes()
    work(images, Says(), prefix="two")
    (images / "metadata.csv").write_bytes(first)
    work(images, Says(), prefix="three")
    assert (images / "metadata.csv").read_bytes() == first


def test_drafts_in_rows_and_text_files_stay_drafts_however_often_they_are_made_anew(tmp_path):
    images = draw(tmp_path / "images", 1)
    work(images, Says(), prefix="one", format="txt")
    for prefix in ("two", "three", "four", "five"):
        work(images, Says(), prefix=prefix)
    assert captions(images) == {"img0.png": '"five, level 0"'}
    assert (images / "img0.txt").read_text(encoding="utf-8") == "five, level 0\n"


def test_drafts_written_elsewhere_leave_the_datasets_own_ones_drafts(tmp_path):
    images = draw(tmp_path / "images", 1)
    work(images, Says(), prefix="one")
    work(images, Says(), prefix="two", output=str(tmp_path / "other.csv"))
    work(images, Says(), prefix="three")
    assert captions(images) == {"img0.png": '"three, level 0"'}


def test_letters_that_no_file_can_hold_do_not_make_a_draft_a_persons(tmp_path):
    images, says = draw(tmp_path / "images", 1), Says()
    says.caption = lambda pictures: [
        CaptionerOutput(text="a\u200bfox\x07 \U0001f468\u200d\U0001f3a8")
    ]
    work(images, says)
    _, folder = work(images, Says(), prefix="new")
    assert not told(folder, events.Warned) and captions(images) == {"img0.png": '"new, level 0"'}


def test_a_person_is_remembered_by_content_when_the_image_is_renamed(tmp_path):
    images = draw(tmp_path / "images", 2)
    work(images, Says(), format="txt")
    (images / "img0.png").rename(images / "fox.png")
    (images / "img0.txt").rename(images / "fox.txt")
    captioner = Says()
    work(images, captioner, format="txt")
    assert captioner.batches == []


def test_a_caption_changed_while_it_was_made_stays(tmp_path):
    images = draw(tmp_path / "images", 3)
    outcome, folder = work(
        images,
        Says(lambda batch: (images / "img1.txt").write_text("mine", encoding="utf-8")),
        format="txt",
    )
    assert outcome == "finished" and (images / "img1.txt").read_text(encoding="utf-8") == "mine"
    assert "the caption of img1.png was changed in the meantime; it is not replaced" in [
        warned.message for warned in told(folder, events.Warned)
    ]
    assert folder.read_state().step == 2


def test_only_missing_leaves_a_captioners_earlier_captions_alone(tmp_path):
    images = draw(tmp_path / "images", 3)
    work(images, Says())
    Image.new("RGB", (64, 64), (99, 99, 99)).save(images / "new.png")
    captioner = Says()
    work(images, captioner, prefix="ink", only_missing=True)
    assert (
        captioner.batches == [1]
        and captions(images)["new.png"] == '"ink, level 99"'
        and captions(images)["img0.png"] == "level 0"
    )


def test_nothing_to_do_loads_nothing(tmp_path):
    images = draw(tmp_path / "images", 2)
    work(images, Says())
    # its model is not on this disk, and the network is off
    outcome, folder = work(images)
    assert outcome == "finished" and folder.read_state().step_count == 0
    with pytest.raises(CaptionerError, match="is not on this disk"):
        work(images, prefix="ink")


# --- stop, pause, resume --------------------------------------------------------------------------


def test_a_stop_keeps_what_was_captioned_and_the_next_call_goes_on(tmp_path):
    images = draw(tmp_path / "images")
    requests = images / ".lora_trainer" / "captioning" / "requests"
    outcome, folder = work(images, Says(lambda batch: send_request(requests, "stop")))
    assert outcome == "stopped" and folder.read_state().status == "stopped"
    assert captions(images) == {"img0.png": "level 0", "img1.png": "level 10"}
    captioner = Says()
    assert work(images, captioner)[0] == "finished"
    assert captioner.batches == [2, 1] and len(captions(images)) == 5


def test_overwriting_goes_on_after_a_stop_too(tmp_path):
    images = draw(tmp_path / "images")
    (images / "metadata.csv").write_text(
        "".join(f"img{number}.png,by hand\n" for number in range(5)), encoding="utf-8"
    )
    requests = images / ".lora_trainer" / "captioning" / "requests"
    work(images, Says(lambda batch: send_request(requests, "stop")), overwrite=True)
    captioner = Says()
    work(images, captioner, overwrite=True)
    assert captioner.batches == [2, 1]
    assert "by hand" not in (images / "metadata.csv").read_text(encoding="utf-8")


def test_a_pause_gives_the_memory_back_and_a_resume_goes_on(tmp_path, monkeypatch):
    images = draw(tmp_path / "images")
    requests = images / ".lora_trainer" / "captioning" / "requests"
    asked = iter(["pause"])

    def on_batch(batch):
        for kind in asked:
            send_request(requests, kind)

    freed = []
    monkeypatch.setattr(task, "free_memory", lambda device: freed.append(device))
    monkeypatch.setattr(
        "lora_trainer.tasks.control.sleep", lambda seconds: send_request(requests, "resume")
    )
    outcome, folder = work(images, Says(on_batch))
    assert outcome == "finished" and len(captions(images)) == 5 and len(freed) == 2
    kinds = [event.kind for event in told(folder, (events.Paused, events.Resumed, events.Finished))]
    assert kinds == ["paused", "resumed", "finished"]


def test_a_killed_worker_loses_no_more_than_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "WRITE_SECONDS", 0.0)
    images = draw(tmp_path / "images")

    class Killed(BaseException):
        pass

    calls = iter([False, False, True])

    def on_batch(batch):
        if next(calls):
            raise Killed

    with pytest.raises(Killed):
        work(images, Says(on_batch))
    assert len(captions(images)) == 4
    captioner = Says()
    work(images, captioner)
    assert captioner.batches == [1]


# --- trouble --------------------------------------------------------------------------------------


def test_bad_images_are_named_and_end_nothing(tmp_path):
    images = draw(tmp_path / "images", 3)
    (images / "cut.png").write_bytes((images / "img1.png").read_bytes()[:60])
    (images / "no.jpg").write_text("<html>")
    outcome, folder = work(images, Says())
    assert outcome == "finished" and sorted(captions(images)) == [
        "img0.png",
        "img1.png",
        "img2.png",
    ]
    warned = " ".join(event.message for event in told(folder, events.Warned))
    assert "cut.png" in warned and "no.jpg is a web page, not an image" in warned
    captioner = Says()
    work(images, captioner)
    assert captioner.batches == []


def test_an_image_that_spoils_its_batch_ends_only_its_own_caption(tmp_path):
    images = draw(tmp_path / "images")

    def on_batch(batch):
        if any(image.getpixel((0, 0))[0] == 30 for image in batch):
            raise ValueError("a shape of its own")

    outcome, folder = work(images, Says(on_batch))
    assert outcome == "finished" and sorted(captions(images)) == [
        "img0.png",
        "img1.png",
        "img2.png",
        "img4.png",
    ]
    assert "img3.png could not be captioned: ValueError: a shape of its own" in [
        event.message for event in told(folder, events.Warned)
    ]


def test_a_captioner_that_fails_at_every_image_is_the_trouble_itself(tmp_path):
    def on_batch(batch):
        raise ValueError("no such layer")

    with pytest.raises(CaptionerError, match="fails at every image: ValueError: no such layer"):
        work(draw(tmp_path / "images"), Says(on_batch))


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_for_good(tmp_path, error):
    images = draw(tmp_path / "images", 12)

    def on_batch(batch):
        if len(batch) > 2:
            raise error

    captioner = Says(on_batch)
    assert work(images, captioner, batch_size=8)[0] == "finished"
    assert captioner.batches == [2] * 6 and len(captions(images)) == 12


def test_out_of_memory_at_one_image_says_so_and_keeps_the_rest(tmp_path):
    images = draw(tmp_path / "images", 3)

    def on_batch(batch):
        if any(image.getpixel((0, 0))[0] == 20 for image in batch):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="out of memory at img2\\.png"):
        work(images, Says(on_batch))
    assert len(captions(images)) == 2


def test_a_model_that_does_not_fit_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(
        task,
        "load",
        lambda *values, **more: (_ for _ in ()).throw(
            torch.cuda.OutOfMemoryError("CUDA out of memory")
        ),
    )
    with pytest.raises(OutOfMemory, match="BLIP base does not fit into the memory of CPU"):
        work(draw(tmp_path / "images"), model=str(tiny_blip()))


def test_where_fp16_is_not_safe_bf16_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "choose_precision", lambda *values: torch.float16)
    qwen, blip = (
        captioning.from_mapping({"input": "x", "captioner": name}) for name in ("qwen", "blip")
    )
    found = [
        task.precision_for(settings, tiny_qwen(), torch.device(device))
        for settings, device in ((qwen, "cuda"), (qwen, "mps"), (blip, "mps"))
    ]
    assert found == [torch.bfloat16, torch.float32, torch.float16]


def test_the_memory_is_given_back_at_the_end(tmp_path, monkeypatch):
    freed = []
    monkeypatch.setattr(task, "free_memory", lambda device: freed.append(device.type))
    work(draw(tmp_path / "images", 2), Says())
    assert freed == ["cpu"]


def test_a_tag_captioner_that_finds_nothing_writes_nothing(tmp_path):
    pytest.importorskip("onnxruntime")
    images = draw(tmp_path / "images", 2)
    _, folder = work(
        images,
        captioner="wd",
        model=str(tiny_tagger()),
        exclude="always, red theme, green theme, blue theme",
    )
    assert not (images / "metadata.csv").exists()
    assert "no caption was generated for img0.png" in [
        event.message for event in told(folder, events.Warned)
    ]


def test_what_a_captioner_wrote_is_remembered_by_content(tmp_path):
    images = draw(tmp_path / "images", 2)
    work(images, Says())
    known = caption_provenance.read_authors(images)
    assert {written.text for written in known.by_digest.values()} == {"level 0", "level 10"}
    assert known.author(digest(images / "img1.png"), "level 10") == "machine"


@pytest.fixture
def lacking(tmp_path, monkeypatch):
    """A machine without onnxruntime. lacking(program): what stands in install.py's place there."""
    monkeypatch.setattr(task.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(task.environment, "interpreter_folders", list)
    monkeypatch.setitem(task.environment.CAPTIONER_OVERLAYS, "wd", tmp_path / "overlay-wd")
    monkeypatch.setattr(task.environment, "ROOT", tmp_path)
    return (tmp_path / "install.py").write_text


def test_what_only_one_captioner_needs_is_installed_when_it_is_first_asked_for(
    tmp_path, monkeypatch, lacking
):
    lacking(
        "import pathlib, sys; pathlib.Path(__file__).with_name('asked').write_text('"
        " '.join(sys.argv[1:]))"
    )
    look, activated = task.environment.find_captioner_overlay, []

    def look_again(captioner):
        found = look(captioner)
        return (
            found
            if not (tmp_path / "asked").exists()
            else SimpleNamespace(state="ready", require=lambda: "the overlay")
        )

    monkeypatch.setattr(task.environment, "find_captioner_overlay", look_again)
    monkeypatch.setattr(task.environment, "activate", activated.append)
    outcome, folder = work(draw(tmp_path / "images", 1), captioner="wd", model=str(tiny_tagger()))
    assert (outcome, activated, (tmp_path / "asked").read_text()) == (
        "finished",
        ["the overlay"],
        "--by-hand --captioner wd",
    )
    assert [event.phase for event in told(folder, events.Phase)][-3:] == [
        "installing",
        "loading",
        "captioning",
    ]


def test_a_captioner_whose_packages_cannot_be_installed_says_how_to_get_them(tmp_path, lacking):
    lacking("raise SystemExit(1)")
    with pytest.raises(
        SetupError, match="the captioner wd needs packages that are not installed: onnxruntime"
    ) as caught:
        work(draw(tmp_path / "images", 1), captioner="wd", model=str(tiny_tagger()))
    assert "install.py --captioner wd" in str(caught.value.hint)


def test_a_stop_while_packages_are_installed_ends_that_too(tmp_path, lacking):
    lacking("import time; time.sleep(3600)")
    images = draw(tmp_path / "images", 1)
    send_request(images / ".lora_trainer" / "captioning" / "requests", "stop")
    asked = iter([False, False, True])

    class Late(Report):
        def stop_asked(self):
            return next(asked, True) and super().stop_asked()

    settings = captioning.from_mapping(
        {"input": str(images), "captioner": "wd", "model": str(tiny_tagger()), "device": "cpu"}
    )
    folder = folders.begin_captioning(
        images / ".lora_trainer" / "captioning", captioning.to_yaml(settings)
    )
    with (
        folders.occupy(folder, {}) as heartbeat,
        contextlib.closing(Late(folder, heartbeat)) as report,
    ):
        assert CaptionTask(folder, report).run() == "stopped"
    assert [event.phase for event in told(folder, events.Phase)][-1] == "installing"


# --- what the image encoder saw -------------------------------------------------------------------


def seen(images):
    """Encoder -> the images whose embeddings are kept, as they are now."""
    names = {digest(path): path.name for path in images.glob("*.png")}
    return {
        one.title: sorted(names.get(content, "?") for content in one.by_digest)
        for one in embeddings.read_all(images)
    }


class Sees(Says):
    """Says how bright each image is, and has an image encoder."""

    encoder = "CLIP"

    def caption(self, images):
        said = zip(super().caption(images), self.embed(images), strict=True)
        return [dataclasses.replace(caption, embedding=row) for caption, row in said]

    def embed(self, images):
        return [np.array([0.6, image.getpixel((0, 0))[0] / 255], np.float16) for image in images]


@pytest.mark.parametrize(
    ("captioner", "model", "more", "encoder"),
    [
        ("blip", tiny_blip, {"max_tokens": 5}, "BLIP"),
        ("clip", tiny_clip, {"threshold": 0.0, "top_k": 1}, "CLIP"),
        ("qwen", tiny_qwen, {"max_tokens": 5}, None),
    ],
)
def test_what_the_image_encoder_saw_is_kept_for_the_check(
    tmp_path, captioner, model, more, encoder
):
    images = draw(tmp_path / "我的 图", 3)
    work(images, captioner=captioner, model=str(model()), **more)
    assert seen(images) == ({encoder: ["img0.png", "img1.png", "img2.png"]} if encoder else {})
    for one in embeddings.read_all(images):
        assert one.encoder == f"{encoder} {model()}" and 0 < one.unrelated < 2
        lengths = [float(np.linalg.norm(row.astype(float))) for row in one.by_digest.values()]
        assert lengths == pytest.approx([1, 1, 1], abs=2e-3)


def test_a_stopped_job_keeps_what_was_seen_and_the_next_one_adds_to_it(tmp_path):
    images = draw(tmp_path / "images")
    requests = images / ".lora_trainer" / "captioning" / "requests"
    work(images, Sees(lambda batch: send_request(requests, "stop")))
    assert seen(images) == {"CLIP": ["img0.png", "img1.png"]}
    work(images, Sees())
    assert seen(images) == {"CLIP": [f"img{number}.png" for number in range(5)]}


def test_an_image_that_became_another_one_is_not_known_by_the_old_ones_embedding(tmp_path):
    images = draw(tmp_path / "images", 3)
    work(images, Sees())
    Image.new("RGB", (64, 64), (200,) * 3).save(images / "img1.png")
    (images / "img2.png").unlink()
    # as long as nobody captions, the old ones lie there under contents that no image has
    assert seen(images) == {"CLIP": ["?", "?", "img0.png"]}
    work(images, Sees(), prefix="ink", only=["img0.png"])
    assert seen(images) == {"CLIP": ["?", "?", "img0.png"]}
    work(images, Sees(), overwrite=True)
    assert seen(images) == {"CLIP": ["img0.png", "img1.png"]}


def test_what_nothing_was_found_to_say_of_was_seen_all_the_same(tmp_path):
    images, sees = draw(tmp_path / "images", 2), Sees()
    sees.caption = lambda pictures: [CaptionerOutput(embedding=row) for row in sees.embed(pictures)]
    work(images, sees)
    assert (
        seen(images) == {"CLIP": ["img0.png", "img1.png"]}
        and not (images / "metadata.csv").exists()
    )


def test_a_broken_file_of_embeddings_is_made_anew(tmp_path):
    images = draw(tmp_path / "images", 2)
    work(images, Sees())
    (path,) = (images / ".lora_trainer" / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert seen(images) == {}
    work(images, Sees(), prefix="ink")
    assert seen(images) == {"CLIP": ["img0.png", "img1.png"]}


def test_no_caption_is_lost_for_an_embeddings_sake(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    images, blind = draw(tmp_path / "images", 3), Sees()
    monkeypatch.setattr(embeddings, "add", fail)
    assert work(images, Sees())[0] == "finished" and len(captions(images)) == 3
    monkeypatch.undo()
    blind.embed = lambda pictures: (
        fail() if pictures[0].width == 224 else [np.array([1, 0], np.float16)] * len(pictures)
    )
    assert (
        work(images, blind, prefix="ink")[0] == "finished"
        and captions(images)["img0.png"] == '"ink, level 0"'
    )
    assert seen(images) == {}


# --- through the worker and the command line ------------------------------------------------------


def test_a_failure_is_told_with_its_hint(tmp_path):
    images = draw(tmp_path / "images", 2)
    settings = captioning.from_mapping(
        {"input": str(images), "captioner": "blip", "model": str(tmp_path)}
    )
    folder = folders.begin_captioning(
        images / ".lora_trainer" / "captioning", captioning.to_yaml(settings)
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert job.run(folder.path) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    failure = folder.read_state().failure
    assert (
        failure.error == "CaptionerError"
        and "is not a complete model of this kind" in failure.message
        and failure.hint
    )


def test_a_trainings_folder_is_no_tasks(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(LoraTrainerError, match="is the folder of a training"):
        folders.begin_captioning(tmp_path, "input: x\n")


def call(*arguments, cwd, **environ):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **environ}
    command = [sys.executable, "-m", "lora_trainer", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_the_seeds_call_fetches_captions_and_writes(tmp_path):
    images = draw(tmp_path / "我的 图", 3)
    with serve("me/tiny-blip", tiny_blip()) as hub:
        done = call(
            "caption",
            "--input",
            images.name,
            "--output",
            f"{images.name}/metadata.csv",
            "--captioner",
            "blip",
            "--model",
            "me/tiny-blip",
            "--max-tokens",
            "8",
            cwd=tmp_path,
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE="0",
            HF_HOME=str(tmp_path / "hf"),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"Finished: 3 captions written, in {images / 'metadata.csv'}" in done.stdout
        and "Downloading the model, in MB" in done.stderr
    )
    assert len(captions(images)) == 3
    status = call("status", images / ".lora_trainer" / "captioning", cwd=tmp_path)
    assert status.stdout.startswith("Finished: 3 captions written")
    wrong = call("caption", "--input", "nowhere", cwd=tmp_path)
    assert wrong.returncode == 1 and "nowhere is not a folder" in wrong.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_cleanly_and_the_next_call_goes_on(tmp_path, monkeypatch, capsys):
    images = draw(tmp_path / "images", 24)
    asked = [
        "caption",
        "--input",
        str(images),
        "--captioner",
        "qwen",
        "--model",
        str(tiny_qwen()),
        "--max-tokens",
        "30",
        "--batch-size",
        "1",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", *asked],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    folder = folders.RunFolder(images / ".lora_trainer" / "captioning")
    deadline = time.monotonic() + 300
    while folder.read_state().step < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    state = folder.read_state()
    assert (process.returncode, state.status) == (3, "stopped") and "Stopped:" in output
    assert "24 images to caption" in output
    written = len(captions(images))
    assert 2 <= written == state.step < 24
    # the next one is asked in the same way; its worker is this process
    monkeypatch.setattr(start, "start_worker", worker_here)
    assert command_line.main(asked) == 0
    assert f"Finished: {24 - written} captions written" in capsys.readouterr().out
    assert len(captions(images)) == 24
