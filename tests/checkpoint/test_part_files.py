"""Parts in files of their own are found by their headers, wherever a WebUI or ComfyUI keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.checkpoint.detect import Detected, detect_file
from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.part_files import find_parts
from lora_trainer.checkpoint.parts import PartKind
from lora_trainer.errors import CheckpointError
from lora_trainer.families.sdxl import SDXL

TEXT, VAE = "text.weight", "decoder.weight"


def width_of(name: str):
    def width(header: Header, prefix: str) -> int | None:
        shape = header.shape(prefix + name)
        return shape[0] if shape else None

    return width


def kind(identity: str, part: str, tensor: str, inside: str) -> PartKind:
    return PartKind(
        id=identity,
        part=part,
        name=identity.upper(),
        file=f"{identity}.safetensors",
        size="1.2 GB",
        source=f"the {identity} of somebody",
        width=width_of(tensor),
        inside=(inside,),
    )


class Apart(type(SDXL)):
    id = "apart"
    name = "Apart"
    part_kinds = (kind("tx", "text encoder", TEXT, "tx."), kind("ae", "VAE", VAE, "vae."))


DETECTED = Detected(family=Apart(), has_vae=False, widths={"tx": 8})


def write(path: Path, dtype: torch.dtype = torch.float16, **shapes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.zeros(width, 2).to(dtype) for name, width in shapes.items()}
    save_file(tensors, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "models/Stable-diffusion/mine/model.safetensors", **{"block.weight": 4})


def find(checkpoint: Path, **more):
    found = find_parts(checkpoint, DETECTED, **more)
    return {name: file.path.name for name, file in found.files.items()}, found


@pytest.mark.parametrize("folder", ["text_encoder", "text_encoders", "clip", "VAE/deeper"])
def test_parts_are_told_by_their_headers_in_the_folders_beside(checkpoint, tmp_path, folder):
    write(tmp_path / "models" / folder / "one.safetensors", **{VAE: 4})
    write(tmp_path / "models" / folder / "two.safetensors", **{TEXT: 8})
    write(tmp_path / "models" / folder / "too wide.safetensors", **{TEXT: 16})
    files, found = find(checkpoint)
    assert files == {"tx": "two.safetensors", "ae": "one.safetensors"}
    assert found.missing == () and found.notes == ()
    found.require()


def test_what_is_missing_is_named_with_what_to_fetch(checkpoint, tmp_path):
    write(tmp_path / "models/VAE/ae.safetensors", **{VAE: 4})
    _, found = find(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        found.require()
    assert "TX (tx.safetensors, 1.2 GB, the tx of somebody)" in str(caught.value.message)
    assert "AE" not in str(caught.value.message)


def test_a_file_that_cannot_be_read_is_named_where_a_part_is_missing(checkpoint, tmp_path):
    whole = write(tmp_path / "models/text_encoder/tx.safetensors", **{TEXT: 8})
    whole.write_bytes(whole.read_bytes()[:-4])
    write(tmp_path / "models/VAE/ae.safetensors", **{VAE: 4})
    with pytest.raises(CheckpointError, match=r"lacks TX .*, and tx.safetensors cannot be read"):
        find(checkpoint)[1].require()
    # nothing is said of it where nothing is missing
    write(tmp_path / "models/text_encoder/another.safetensors", **{TEXT: 8})
    assert find(checkpoint)[1].unreadable == ()


def test_full_precision_is_preferred_and_the_choice_is_told(checkpoint, tmp_path):
    folder = tmp_path / "models/text_encoder"
    write(folder / "a.safetensors", torch.float8_e4m3fn, **{TEXT: 8})
    write(folder / "z.safetensors", torch.bfloat16, **{TEXT: 8})
    write(folder / "0.safetensors", torch.bfloat16, **{TEXT: 8, "scaled_fp8": 1})
    files, found = find(checkpoint)
    assert files["tx"] == "z.safetensors"
    assert [str(note) for note in found.notes] == ["TX: of 2 files that fit, z.safetensors is used"]
    write(folder / "tx.safetensors", torch.float16, **{TEXT: 8})
    assert find(checkpoint)[0]["tx"] == "tx.safetensors"


def test_plain_fp8_is_used_and_quantised_weights_are_named(checkpoint, tmp_path):
    folder = tmp_path / "models/text_encoder"
    quantised = write(folder / "q.safetensors", torch.int8, **{TEXT: 8})
    _, found = find(checkpoint)
    with pytest.raises(CheckpointError, match="q.safetensors"):
        found.require()
    with pytest.raises(CheckpointError, match="is quantised"):
        find(checkpoint, asked=[quantised])
    write(folder / "f8.safetensors", torch.float8_e4m3fn, **{TEXT: 8})
    assert find(checkpoint)[0]["tx"] == "f8.safetensors"


def test_order_of_precedence_is_asked_inside_in_use_folders(checkpoint, tmp_path):
    beside = write(tmp_path / "models/text_encoder/beside.safetensors", **{TEXT: 8})
    other = write(tmp_path / "else/folder.safetensors", **{TEXT: 8})
    used = write(tmp_path / "used.safetensors", **{TEXT: 8})
    asked = write(tmp_path / "asked.safetensors", **{TEXT: 8})
    whole = write(
        checkpoint.with_name("whole.safetensors"), **{f"tx.{TEXT}": 8, f"vae.{VAE}": 4, "b": 2}
    )
    assert find(checkpoint)[0]["tx"] == beside.name
    assert find(checkpoint, folders=[other.parent])[0]["tx"] == other.name
    assert find(checkpoint, folders=[other.parent], in_use=[used])[0]["tx"] == used.name
    assert find(whole, in_use=[used])[0] == {"tx": whole.name, "ae": whole.name}
    assert find(whole, in_use=[used])[1].files["tx"].prefix == "tx."
    assert find(whole, asked=[asked])[0] == {"tx": asked.name, "ae": whole.name}


def test_files_that_are_asked_for_and_do_not_fit_are_refused(checkpoint, tmp_path):
    narrow = write(tmp_path / "narrow.safetensors", **{TEXT: 4})
    with pytest.raises(CheckpointError, match="none of the parts of Apart: TX, AE"):
        find(checkpoint, asked=[narrow])
    first, second = (write(tmp_path / f"{n}.safetensors", **{TEXT: 8}) for n in "ab")
    with pytest.raises(CheckpointError, match="are both TX"):
        find(checkpoint, asked=[first, second])
    vae = write(tmp_path / "v.safetensors", **{VAE: 4})
    # the order does not matter
    assert find(checkpoint, asked=[vae, first])[0] == {"ae": "v.safetensors", "tx": "a.safetensors"}


def test_damaged_files_beside_are_passed_over(checkpoint, tmp_path):
    (tmp_path / "models/VAE").mkdir()
    (tmp_path / "models/VAE/broken.safetensors").write_bytes(b"\0" * 100)
    assert [one.id for one in find(checkpoint)[1].missing] == ["tx", "ae"]


def test_a_folder_of_files_is_no_part(checkpoint, tmp_path):
    folder = write(tmp_path / "models/text_encoder/one.safetensors", **{TEXT: 8}).parent
    with pytest.raises(CheckpointError, match=r"is a folder without config\.json"):
        find(checkpoint, asked=[folder])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer_blocks.0.img_mod.1.weight", "a Qwen-Image model"),
        ("model.diffusion_model.transformer_blocks.0.img_mod.1.weight", "a Qwen-Image model"),
        ("model.layers.0.self_attn.q_norm.weight", "a text encoder alone"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, name, kind):
    path = write(tmp_path / "some.safetensors", **{name: 4})
    with pytest.raises(CheckpointError, match=kind):
        detect_file(path)


def test_a_text_encoder_that_is_named_as_the_vae_is_told(checkpoint, tmp_path):
    file = write(tmp_path / "one.safetensors", **{TEXT: 8})
    with pytest.raises(CheckpointError, match=r"vae is .*one.safetensors, which is TX"):
        find(checkpoint, vae=file)
