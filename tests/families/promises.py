"""What every family of transformers promises, of a tiny member of it: a file in any layout is told
and loaded, what is missing or quantised is named, a training learns, its file is what it learned
under names that hosts find, and a resumed run is the same. A test file says with a fixture `member`
of which families, and imports these tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer import families
from lora_trainer.adapters.export import export
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.header import read_header
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import CheckpointError
from lora_trainer.families.base import Family
from lora_trainer.lora import host_layers
from lora_trainer.settings import training
from lora_trainer.training import checksummed
from lora_trainer.worker import job
from tests.made import begin, losses

CAPTIONS = ["a red disc on white", "yellow and red"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A tiny model in the files that a host has."""

    family: str
    written: Callable[[], Path]
    """The checkpoint of a WebUI's folder of models, made once a process."""
    write: Callable[[Path], Path]
    """The same in a folder of its own."""
    tensors: Callable[[str], dict[str, torch.Tensor]]
    """The checkpoint's own, whose names begin with this."""
    transformer: Callable[[], Any]
    """diffusers' model."""
    prefix: str = "model.diffusion_model."
    prefixes: tuple[str, ...] = ("model.diffusion_model.", "diffusion_model.", "")
    diffusers_prefixes: tuple[str, ...] = ("",)
    """Of files under diffusers' names; none: hosts have no such."""
    has_vae: bool = True
    """As it is told where the VAE is a file of its own."""
    wide: str
    """A weight of two dimensions, without the prefix."""
    part: tuple[str, str]
    """The file of a part, and what is told when it is missing."""
    learns: Mapping[str, Any]
    """Settings with which the loss is halved."""
    layers: int
    """In the LoRA file."""
    grows: float
    """How far a prediction moves at least."""
    close: float = 1e-5
    """How near the predictions with the adapter and of the merged file are."""
    latents: tuple[int, int, int]
    words: tuple[str, str, str]
    """ss_base_model_version, modelspec.architecture, `sd version`."""
    savings: tuple[Mapping[str, Any], ...]
    """Settings that save memory."""
    shorter: tuple[Any, int] | None = None
    """A module, and the TEXT_LENGTH that is enough here."""
    full: Callable[[], Any] | None = None
    """diffusers' model of the published size."""
    full_layers: tuple[int, int] = (0, 0)
    """Layers that learn at that size, of diffusers' model and of the checkpoint."""

    @property
    def kind(self) -> Family:
        return families.get(self.family)


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    """With the metadata of a model for small images."""
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"modelspec.resolution": "64x64"})
    return path


@pytest.fixture(autouse=True)
def few_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter texts: the time of a step is that of its tokens."""
    member = request.getfixturevalue("member") if "member" in request.fixturenames else None
    if member is not None and member.shorter is not None:
        monkeypatch.setattr(member.shorter[0], "TEXT_LENGTH", member.shorter[1])


def run(member: Member, tmp_path: Path, name: str = "ink", **changes: Any):
    asked = {"device": "cpu", "base_model": str(member.written()), **changes}
    folder = begin(tmp_path, name, **asked)
    assert job.run(folder.path) == job.FINISHED, folder.read_state()
    return folder


def same_weights(model: Any, expected: Mapping[str, torch.Tensor]) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


# --- files ----------------------------------------------------------------------------------------


def test_it_is_told_by_its_tensors_whatever_they_begin_with(member, tmp_path):
    expected = member.transformer().state_dict()
    for number, prefix in enumerate(member.prefixes):
        extra = {f"{prefix}accum_iteration": torch.ones(1)} if member.prefix == "net." else {}
        path = save({**member.tensors(prefix), **extra}, tmp_path / f"{number}.safetensors")
        detected = detect_file(path)
        told = (detected.family, detected.resolution, detected.has_vae)
        assert told == (member.kind, 64, member.has_vae), prefix
        checkpoint = open_checkpoint(path)
        same_weights(checkpoint.load_unet(torch.float32), expected)
        assert checkpoint.notes == [], prefix
        assert checkpoint.unet_parameter_count == sum(map(torch.numel, expected.values()))


def test_a_file_under_diffusers_names_is_the_same(member, tmp_path):
    state = member.transformer().state_dict()
    if not member.diffusers_prefixes:
        pytest.skip("there are no such files")
    for prefix in member.diffusers_prefixes:
        path = tmp_path / "some.safetensors"
        save({prefix + name: tensor for name, tensor in state.items()}, path)
        assert detect_file(path).family is member.kind
        same_weights(open_checkpoint(path).load_unet(torch.float32), state)


def test_plain_fp8_is_taken_and_quantised_weights_are_named(member, tmp_path):
    path = tmp_path / "some.safetensors"
    eight = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim > 1 else tensor
        for name, tensor in member.tensors(member.prefix).items()
    }
    save(eight, path)
    checkpoint = open_checkpoint(path)
    loaded = checkpoint.load_unet(torch.float32).state_dict()
    whole = {name: tensor.float() for name, tensor in eight.items()}
    again = open_checkpoint(save(whole, tmp_path / "whole.safetensors")).load_unet(torch.float32)
    assert all(torch.equal(one, loaded[name]) for name, one in again.state_dict().items())
    wide = member.prefix + member.wide
    for extra in (
        {wide.replace("weight", "scale_weight"): torch.ones(1)},
        {member.prefix + "scaled_fp8": torch.ones(1)},
        {wide: torch.ones(8, 8, dtype=torch.uint8)},
    ):
        save({**eight, **extra}, path)
        with pytest.raises(CheckpointError, match="quantised"):
            detect_file(path)


def test_parts_that_are_missing_are_named(member, tmp_path):
    path = member.write(tmp_path)
    file, words = member.part
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path).require_parts()


# --- the LoRA -------------------------------------------------------------------------------------


def test_every_layer_that_learns_has_the_hosts_name_at_full_size(member):
    if member.full is None:
        pytest.skip("its own test says so, for each WebUI")
    with torch.device("meta"):
        model = member.full()
    known = host_layers.names("neo", member.family)
    native = member.kind.native_layers(model.config)
    ends = tuple(one.rpartition("*")[2] for one in member.kind.unet_targets)
    learning = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and path.endswith(ends)
    }
    places = {native[path].path for path in learning}
    assert (len(learning), len(places)) == member.full_layers
    alone = [layer.path for layer in native.values() if layer.rows is None]
    assert len(set(alone)) == len(alone)
    for path, layer in learning.items():
        own = native[path]
        place = known["lora_unet_" + own.path.replace(".", "_")]
        rows = layer.out_features if own.rows is None else own.rows.of
        assert (place.layer, place.shape) == (own.path, (rows, layer.in_features))
    modules = {name.rpartition(".")[0] for name in model.state_dict()} - {""}
    assert modules == set(native)


def test_a_training_halves_the_loss_and_its_file_is_the_adapter(member, tmp_path):
    folder = run(member, tmp_path, batch_size=4, validation_split=0, **member.learns)
    told = losses(folder)
    assert sum(told[-5:]) < 0.5 * sum(told[:5])
    rounded = load_file(folder.path / "ink.safetensors")
    layers = {name.partition(".")[0] for name in rounded}
    assert len(layers) == member.layers
    assert layers <= set(host_layers.names("neo", member.family))

    # the same in float32, merged into the published names by the host's rule
    live = open_checkpoint(member.written()).load(torch.float32)
    config = training.read(folder.config)
    adapters = add_adapters(live, config.lora, seed=config.training.seed)
    newest = max(folder.state.glob("*.pt"))
    adapters.load_state_dict(checksummed.read_state(newest)["adapters"])
    exact = tmp_path / "exact.safetensors"
    export(adapters, live, exact, metadata={}, dtype=torch.float32)
    file, tensors = load_file(exact), member.tensors(member.prefix)
    for name, tensor in file.items():
        assert torch.allclose(rounded[name].float(), tensor, rtol=1e-3, atol=1e-6)
    flat = {
        "lora_unet_"
        + name.removeprefix(member.prefix).removesuffix(".weight").replace(".", "_"): name
        for name in tensors
    }
    for layer in layers:
        down, up = file[f"{layer}.lora_down.weight"], file[f"{layer}.lora_up.weight"]
        scale = float(file[f"{layer}.alpha"]) / down.shape[0]
        tensors[flat[layer]] = tensors[flat[layer]] + scale * up @ down
    merged = open_checkpoint(save(tensors, tmp_path / "merged.safetensors"))
    noisy = torch.randn(2, *member.latents, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        text = member.kind.encode_captions(live, CAPTIONS, clip_skip=1, max_token_length=75)
        ours, theirs, before = (
            member.kind.predict(model, noisy, torch.tensor([0.3, 0.8]), text, torch.ones(2, 6))
            for model in (live.unet, merged.load_unet(torch.float32), member.transformer())
        )
    assert (ours - before).abs().max() > member.grows
    torch.testing.assert_close(ours, theirs, rtol=member.close, atol=member.close)


def test_a_resumed_run_equals_a_whole_one_bit_for_bit_and_files_say_what_hosts_look_for(
    member, tmp_path
):
    (tmp_path / "Lora").mkdir()
    shown = {"lora_dir": str(tmp_path / "Lora"), "sample_prompts": ["a zorbl"], "sample_steps": 2}
    whole = run(member, tmp_path, "whole", max_train_steps=4, save_steps=2, **shown)
    half = run(member, tmp_path, "half", max_train_steps=2, save_steps=2)
    more = training.read(half.config).replace(max_train_steps=4)
    half.config.write_text(training.to_yaml(more), encoding="utf-8")
    assert job.run(half.path) == job.FINISHED
    first, second = (
        load_file(folder.path / f"{folder.path.name}.safetensors") for folder in (whole, half)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    delivered = tmp_path / "Lora" / "whole.safetensors"
    metadata = read_header(delivered).metadata
    sidecar = json.loads(delivered.with_suffix(".json").read_text(encoding="utf-8"))
    assert member.words == (
        metadata["ss_base_model_version"],
        metadata["modelspec.architecture"],
        sidecar["sd version"],
    )


def test_it_trains_in_little_memory(member, tmp_path):
    for number, saving in enumerate(member.savings):
        folder = run(member, tmp_path, f"run{number}", max_train_steps=3, batch_size=2, **saving)
        assert all(torch.tensor(losses(folder)).isfinite()), saving
