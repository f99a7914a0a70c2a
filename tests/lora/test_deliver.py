from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image, PngImagePlugin

from lora_trainer import families, files
from lora_trainer.errors import LoraFileError
from lora_trainer.lora import deliver as module
from lora_trainer.lora.deliver import Delivered, clean_name, deliver, used_names
from lora_trainer.lora.file import read_header
from tests.killed import ended_process, killed_at


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """The run's own file."""
    return of_run(tmp_path, "run")


def of_run(tmp_path: Path, run: str, value: float = 1.0) -> Path:
    path = tmp_path / run / "cat.safetensors"
    path.parent.mkdir(exist_ok=True)
    metadata = {
        "ss_output_name": "cat",
        "modelspec.title": "cat",
        "sshs_model_hash": "stale",
        "ss_steps": "10",
        "modelspec.description": "A cat",
        "modelspec.author": "Ann",
        "modelspec.license": "CC-BY-4.0",
    }
    safetensors.torch.save_file(
        {"lora_unet_x.lora_down.weight": torch.full((2, 3), value)}, path, metadata
    )
    return path


@pytest.fixture
def lora_dir(tmp_path: Path) -> Path:
    path = tmp_path / "stable diffusion 雪" / "models" / "Lora"
    path.mkdir(parents=True)
    return path


def put(file: Path, lora_dir: Path, name: str = "cat", **changes: Any) -> Delivered:
    return deliver(
        file,
        lora_dir,
        name,
        **{
            "trigger": "sks cat",
            "preferred_weight": 0.7,
            "family": families.get("sd1"),
            **changes,
        },
    )


def sidecar_of(delivered: Delivered) -> Any:
    content = delivered.path.with_suffix(".json").read_text(encoding="utf-8")
    return json.loads(content)


def names(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)).replace("\\", "/")
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_the_weights_the_sidecar_and_the_picture_stand_in_the_folder(
    lora: Path, lora_dir: Path, tmp_path: Path
) -> None:
    settings = PngImagePlugin.PngInfo()
    settings.add_text("parameters", "a cat\nSteps: 20")
    Image.new("RGB", (1024, 1536), "red").save(tmp_path / "preview.png", pnginfo=settings)
    delivered = put(lora, lora_dir, preview=tmp_path / "preview.png", negative_text="blurry")
    assert (delivered.name, delivered.renamed, delivered.path) == (
        "cat",
        False,
        lora_dir / "cat.safetensors",
    )
    assert names(lora_dir) == ["cat.json", "cat.png", "cat.safetensors"]
    assert (
        (lora_dir / "cat.json").read_text(encoding="utf-8")
        == '{\n    "description": "A cat",\n    "sd version": "SD1",\n    "activation text": "sks cat",\n    "preferred weight": 0.7,\n    "negative text": "blurry",\n    "notes": "Author: Ann\\nLicence: CC-BY-4.0"\n}\n'
    )
    with Image.open(lora_dir / "cat.png") as picture:
        assert (picture.format, picture.size, picture.info["parameters"]) == (
            "PNG",
            (512, 768),
            "a cat\nSteps: 20",
        )
    assert torch.equal(
        safetensors.torch.load_file(delivered.path)["lora_unet_x.lora_down.weight"],
        torch.ones(2, 3),
    )


@pytest.mark.parametrize(("family", "version"), [("sd1", "SD1"), ("sd2", "SD2"), ("sdxl", "SDXL")])
def test_the_sidecar_names_the_family_as_the_host_does(
    family: str, version: str, lora: Path, lora_dir: Path
) -> None:
    delivered = put(lora, lora_dir, family=families.get(family))
    assert sidecar_of(delivered)["sd version"] == version


@pytest.mark.parametrize(
    ("webui", "family", "version"),
    [
        ("neo", "sd1", "sd"),
        ("neo", "sdxl", "xl"),
        ("neo", "flux", "flux"),
        ("neo", "klein4b", "klein"),
        ("neo", "zimage", "zit"),
        ("neo", "anima", "anima"),
        ("neo", "sd2", "SD2"),
        ("forge", "flux", "Flux"),
        ("a1111", "sdxl", "SDXL"),
        ("unknown", "sd1", "SD1"),
    ],
)
def test_the_sidecar_has_the_words_of_the_webui_that_lists_it(
    webui: str, family: str, version: str, lora: Path, lora_dir: Path
) -> None:
    delivered = put(lora, lora_dir, family=families.get(family), webui=webui)
    assert sidecar_of(delivered)["sd version"] == version


def test_text_in_any_script_is_written_as_it_is(lora: Path, lora_dir: Path) -> None:
    delivered = put(lora, lora_dir, "雪猫", trigger='雪猫, "quoted"')
    assert delivered.path == lora_dir / "雪猫.safetensors"
    assert '"activation text": "雪猫, \\"quoted\\""' in (lora_dir / "雪猫.json").read_text(
        encoding="utf-8"
    )


def test_another_lora_of_the_name_gets_a_new_one_inside_and_outside(
    lora: Path, lora_dir: Path, tmp_path: Path
) -> None:
    put(lora, lora_dir)
    second, third = (put(of_run(tmp_path, run), lora_dir) for run in ("run-2", "run-3"))
    assert [(d.name, d.renamed) for d in (second, third)] == [("cat-2", True), ("cat-3", True)]
    metadata = read_header(second.path).metadata
    assert (metadata["ss_output_name"], metadata["modelspec.title"], metadata["ss_steps"]) == (
        "cat-2",
        "cat-2",
        "10",
    )
    assert len(metadata["sshs_model_hash"]) == 64
    assert read_header(lora).metadata["ss_output_name"] == "cat"


@pytest.mark.parametrize(
    "taken", ["sub/deeper/cat.safetensors", "CAT.safetensors", "Cat.pt", "sub/cat.CKPT"]
)
def test_a_name_used_anywhere_in_the_tree_in_any_case_is_taken(
    taken: str, lora: Path, lora_dir: Path
) -> None:
    (lora_dir / taken).parent.mkdir(parents=True, exist_ok=True)
    (lora_dir / taken).write_bytes(b"another")
    assert put(lora, lora_dir).name == "cat-2"
    assert (lora_dir / taken).read_bytes() == b"another"


def test_a_name_used_beside_a_subfolder_or_among_lycoris_is_taken(
    lora: Path, lora_dir: Path
) -> None:
    (lora_dir / "mine").mkdir()
    (lora_dir / "cat.safetensors").write_bytes(b"another")
    (lora_dir.parent / "LyCORIS").mkdir()
    (lora_dir.parent / "LyCORIS" / "cat-2.safetensors").write_bytes(b"another")
    assert put(lora, lora_dir / "mine").path == lora_dir / "mine" / "cat-3.safetensors"


@pytest.mark.parametrize("left", ["cat.json", "cat.png", "cat.txt", "cat.preview.png", "Cat.json"])
def test_notes_and_pictures_of_a_lora_that_is_gone_are_kept(
    left: str, lora: Path, lora_dir: Path
) -> None:
    (lora_dir / left).write_bytes(b"kept")
    assert put(lora, lora_dir).name == "cat-2"
    assert (lora_dir / left).read_bytes() == b"kept"


def test_a_name_deleted_earlier_is_free_again(lora: Path, lora_dir: Path) -> None:
    first = put(lora, lora_dir)
    first.path.unlink()
    (lora_dir / "cat.json").unlink()
    assert put(lora, lora_dir).name == "cat"


def test_names_behind_a_link_are_taken_and_one_that_leads_back_up_does_not_hang_the_search(
    lora_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "fox.safetensors").write_bytes(b"")
    try:
        (lora_dir / "loop").symlink_to(lora_dir, target_is_directory=True)
        (lora_dir / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    (lora_dir / "dog.safetensors").write_bytes(b"")
    assert {"dog", "fox"} <= used_names(lora_dir)


def test_deliveries_at_the_same_moment_never_share_a_name(lora_dir: Path, tmp_path: Path) -> None:
    start, done, lock = threading.Barrier(8), [], threading.Lock()

    def work(file: Path, name: str) -> None:
        start.wait()
        delivered = put(file, lora_dir, name)
        with lock:
            done.append(delivered.name)

    threads = [
        threading.Thread(
            target=work, args=(of_run(tmp_path, str(number)), "cat" if number % 2 else "Cat")
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({name.casefold() for name in done}) == 8
    assert sorted(name.rpartition("-")[2].casefold() for name in done) == [
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "cat",
    ]
    assert names(lora_dir) == sorted(
        f"{name}.{end}" for name in done for end in ("json", "safetensors")
    )
    assert all(
        read_header(lora_dir / f"{name}.safetensors").metadata["ss_output_name"] == name
        for name in done
    )


def test_the_host_never_sees_the_weights_before_all_else_is_there(
    lora: Path, lora_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    replace = os.replace

    def watching(source: Any, target: Any) -> None:
        if Path(target).parent == lora_dir:
            seen.append(
                [
                    Path(target).name,
                    *(name for name in names(lora_dir) if name.endswith(".safetensors")),
                ]
            )
        replace(source, target)

    monkeypatch.setattr(os, "replace", watching)
    put(lora, lora_dir)
    assert seen == [["cat.json"], ["cat.safetensors"]]


def test_the_file_is_newer_than_anything_the_host_remembers(lora: Path, lora_dir: Path) -> None:
    os.utime(lora, (1_000_000, 1_000_000))
    assert abs(put(lora, lora_dir).path.stat().st_mtime - time.time()) < 60


def test_a_file_without_metadata_gets_none(lora_dir: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {"lora_unet_x.alpha": torch.ones(())}, tmp_path / "plain.safetensors"
    )
    assert read_header(put(tmp_path / "plain.safetensors", lora_dir).path).metadata == {}


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("my_cat-2", "my_cat-2"),
        ("My: style v1.5", "My_style v1_5"),
        ("<lora:x=1>", "lora_x_1"),
        ("a, b", "a_b"),
        ('it\'s "x"', "it_s_x"),
        ("雪 猫", "雪 猫"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\x|y?*", "C_x_y"),
        ("...", "lora"),
        ("", "lora"),
        ("  a\tb\n", "a_b"),
        ("x" * 300, "x" * 150),
        ("雪" * 100, "雪" * 50),
        ("e\u0301", "é"),
        ("\u202egnp", "gnp"),
        ("a\udcff", "a"),
    ],
)
def test_names_are_cleaned_of_what_prompts_and_disks_cannot_hold(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_a_cleaned_name_counts_as_renamed(lora: Path, lora_dir: Path) -> None:
    delivered = put(lora, lora_dir, "cat v1.5")
    assert (delivered.name, delivered.renamed, delivered.path.name) == (
        "cat v1_5",
        True,
        "cat v1_5.safetensors",
    )


@pytest.mark.parametrize("name", ["none", "CON", "nul", "com1"])
def test_words_of_the_host_and_of_windows_are_not_names(
    name: str, lora: Path, lora_dir: Path
) -> None:
    assert put(lora, lora_dir, name).name == f"{name}-2"


def test_a_broken_picture_is_a_warning(lora: Path, lora_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "preview.png").write_bytes(b"not an image")
    delivered = put(lora, lora_dir, preview=tmp_path / "preview.png")
    assert "cannot be read and was left out" in str(delivered.warnings[0])
    assert names(lora_dir) == ["cat.json", "cat.safetensors"]


def test_a_missing_folder_gets_a_sentence(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="there is no folder") as caught:
        put(lora, tmp_path / "nowhere")
    assert str(lora) in str(caught.value.hint)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LoraFileError, match="is not a folder"):
        put(lora, tmp_path / "file")


def test_a_missing_file_gets_a_sentence(lora_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="there is no file"):
        put(tmp_path / "gone.safetensors", lora_dir)
    assert names(lora_dir) == []


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "the disk of .* is full"),
        (errno.EACCES, "cannot be written to"),
        (errno.EIO, "could not be put into"),
    ],
)
def test_trouble_half_way_leaves_nothing_behind_and_the_runs_own_file_alone(
    code: int,
    sentence: str,
    lora: Path,
    lora_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    before = lora.read_bytes()
    Image.new("RGB", (64, 64)).save(tmp_path / "preview.png")

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, "copy_with_metadata", fail)
    with pytest.raises(LoraFileError, match=sentence) as caught:
        put(lora, lora_dir, preview=tmp_path / "preview.png")
    assert str(lora) in str(caught.value.hint)
    assert names(lora_dir) == []
    assert lora.read_bytes() == before


def test_a_folder_that_cannot_be_written_to_gets_a_sentence(lora: Path, lora_dir: Path) -> None:
    lora_dir.chmod(0o555)
    try:
        (lora_dir / "probe").touch()
    except OSError:
        with pytest.raises(LoraFileError, match="cannot be written to"):
            put(lora, lora_dir)
    else:
        pytest.skip("this user may write anywhere")
    finally:
        lora_dir.chmod(0o755)


# --- kills ----------------------------------------------------------------------------------------


def test_a_file_is_delivered_once_however_often_it_is_asked_for(
    lora: Path, lora_dir: Path, tmp_path: Path
) -> None:
    first, again = put(lora, lora_dir), put(lora, lora_dir)
    assert (first.name, again) == ("cat", first)
    assert names(lora_dir) == ["cat.json", "cat.safetensors"]
    of_run(
        tmp_path, "run", value=2.0
    )  # the run was trained further: hosts keep showing what was loaded under the old name
    assert put(lora, lora_dir).name == put(lora, lora_dir).name == "cat-2"
    first.path.unlink()
    (lora_dir / "cat.json").unlink()
    assert put(of_run(tmp_path, "other"), lora_dir).name == "cat", (
        "what a person has deleted is free"
    )


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
def test_a_kill_at_any_step_is_made_good_by_the_next_delivery_of_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "preview.png")
    step, seen = 1, set()
    while True:
        folder = tmp_path / str(step)
        lora_dir = folder / "Lora"
        (lora_dir / "sub").mkdir(parents=True)
        (lora_dir / "sub" / "dog.safetensors").touch()
        file = of_run(folder, "run")
        if not killed_at(
            step, folder, partial(put, file, lora_dir, preview=tmp_path / "preview.png")
        ):
            break
        seen.add(tuple(name.replace(files.writer_id(), "") for name in names(lora_dir)))
        done = put(file, lora_dir, preview=tmp_path / "preview.png")
        assert (done.name, done.renamed) == ("cat", False), step
        assert names(lora_dir) == [
            "cat.json",
            "cat.png",
            "cat.safetensors",
            "sub/dog.safetensors",
        ], step
        assert names(file.parent) == [
            "cat.safetensors",
            "cat.safetensors.delivery.json",
            "delivery.lock",
        ], step
        step += 1
    assert step > 25 and len(seen) > 8


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
@pytest.mark.parametrize("run_is_there", [True, False])
def test_a_claim_is_kept_for_the_run_that_was_killed_as_long_as_there_is_one(
    run_is_there: bool, tmp_path: Path
) -> None:
    step = 1
    while True:
        folder = tmp_path / str(step)
        lora_dir = folder / "Lora"
        lora_dir.mkdir(parents=True)
        file, other = of_run(folder, "run"), of_run(folder, "other", value=2.0)
        if not killed_at(step, lora_dir, partial(put, file, lora_dir)):
            break
        claimed = (lora_dir / "cat.safetensors.part").exists()
        arrived = (lora_dir / "cat.safetensors").exists()
        if not run_is_there:
            shutil.rmtree(file.parent)
        assert put(other, lora_dir).name == (
            "cat-2" if arrived or (claimed and run_is_there) else "cat"
        ), step
        if run_is_there:
            assert put(file, lora_dir).name == ("cat" if arrived or claimed else "cat-2")
        assert {Path(name).suffix for name in names(lora_dir)} == {".json", ".safetensors"}
        assert len(names(lora_dir)) == (4 if run_is_there or arrived else 2)
        step += 1
    assert step > 10


def test_a_claim_that_a_kill_left_empty_is_the_deliverys_own(lora: Path, lora_dir: Path) -> None:
    note = {"name": "cat", "token": "t", "folder": str(lora_dir), "was_free": False}
    module.note_of(lora).write_text(json.dumps(note), encoding="utf-8")
    (lora_dir / f"cat{module.CLAIM_END}").touch()
    assert put(lora, lora_dir).name == "cat"
    assert names(lora_dir) == ["cat.json", "cat.safetensors"]


def test_a_killed_delivery_into_another_folder_leaves_the_first_one_clean(
    lora: Path, lora_dir: Path, tmp_path: Path
) -> None:
    writer = f"{files.writer_id().partition('-')[0]}-{ended_process()}"
    note = lora.with_name("cat.safetensors.delivery.json")
    note.write_text(
        json.dumps({"name": "cat", "token": "t", "folder": str(lora_dir), "was_free": True})
    )
    (lora_dir / "cat.safetensors.part").write_text(
        json.dumps({"token": "t", "writer": writer, "note": str(note)})
    )
    (lora_dir / "cat.json").touch()
    (tmp_path / "Lora").mkdir()
    assert put(lora, tmp_path / "Lora").path == tmp_path / "Lora" / "cat.safetensors"
    assert names(lora_dir) == []
