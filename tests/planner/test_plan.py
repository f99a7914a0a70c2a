"""What a plan says of a card, and what it advises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from lora_trainer import __main__ as command_line
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.cpu import convolutions as cpu_convolutions
from lora_trainer.planner import plan as planning
from lora_trainer.planner.formula import StepBytes
from lora_trainer.planner.plan import cheaper, make_plan, of_share, process_count
from lora_trainer.runs import events
from lora_trainer.settings import training
from tests.checkpoint.samples import full_file
from tests.jobs.logs import append, write_run
from tests.made import small_checkpoint
from tests.planner.test_accounting import config_of

GB = 10**9
BLOCKS = 40


def estimate(config):
    """1 GB of weights, half in 8 bits, a tenth of what is swapped; 1 GB an image at 512 pixels, a
    third with checkpointing; half a GB to encode one, a tenth in tiles.
    """
    settings = config.training
    image = GB * (config.dataset.resolution / 512) ** 2
    away = 0.9 * (settings.blocks_to_swap or 0) / BLOCKS
    return StepBytes(
        weights=int(GB * (1 - away) / (1 + (config.checkpoint.base_precision == "int8"))),
        adapters=0,
        optimizer=0 if settings.optimizer.endswith("8bit") else GB // 10,
        activations=int(
            settings.batch_size * image / (3 if settings.gradient_checkpointing else 1)
        ),
        encoding=int(image / (10 if settings.vae_tiling else 2)),
        preview=3 * GB,
    )


HALF = {"batch_size": 2, "gradient_accumulation_steps": 2}
ONE = {"batch_size": 1, "gradient_accumulation_steps": 4}
CHECKPOINTING = {"gradient_checkpointing": True}
INT8 = {"base_precision": "int8"}


@pytest.mark.parametrize(
    ("free", "changes"),
    [
        pytest.param(9, {}, id="it fits"),
        pytest.param(4.5, HALF, id="smaller batches first"),
        pytest.param(3.1, ONE, id="and still smaller ones"),
        pytest.param(2.4, {**HALF, **CHECKPOINTING}, id="checkpointing next"),
        pytest.param(2.05, {**ONE, **CHECKPOINTING}, id="both together"),
        pytest.param(1.9, {**HALF, **CHECKPOINTING, **INT8}, id="8-bit weights"),
        pytest.param(1.6, {**ONE, **CHECKPOINTING, **INT8}, id="with the smallest batch"),
        pytest.param(
            1.4, {**ONE, **CHECKPOINTING, **INT8, "optimizer": "adamw8bit"}, id="the optimizer"
        ),
        pytest.param(
            1.35,
            {**ONE, **CHECKPOINTING, **INT8, "optimizer": "adamw8bit", "resolution": 448},
            id="the resolution last",
        ),
        pytest.param(0.9, None, id="nothing"),
    ],
)
def test_the_cheapest_change_that_fits_is_advised(free, changes):
    free = int(free * GB)
    made = make_plan(config_of(resolution=512, batch_size=4), estimate, "cuda", free)
    if changes == {}:
        assert made.fits and made.change is None
        return
    assert made.fits is False
    assert (made.change and made.change.settings) == changes
    assert made.change is None or made.change.peak <= free


def test_each_of_several_cards_holds_its_share_of_a_batch():
    config = config_of(resolution=512, batch_size=5)
    whole, share = (
        make_plan(config, of_share(estimate, process_count(devices, 3)), "cuda", None)
        for devices in ("auto", "all")
    )
    assert [plan.step.activations for plan in (whole, share)] == [5 * GB, 2 * GB]
    assert process_count("0,1", 3) == 2 and process_count("all", 0) == 1


def test_blocks_are_swapped_where_8_bit_weights_are_ruled_out_and_only_on_a_card():
    config = config_of(resolution=512, base_precision="same")
    made = make_plan(config, estimate, "cuda", int(1.8 * GB), BLOCKS)
    assert made.change.settings == {**CHECKPOINTING, "blocks_to_swap": BLOCKS // 4}
    fixed = config_of(resolution=512, base_precision="same", blocks_to_swap=0)
    for asked, device, blocks in (
        (config, "cpu", BLOCKS),
        (config, "cuda", 0),
        (fixed, "cuda", BLOCKS),
    ):
        assert all("blocks_to_swap" not in one for one in cheaper(asked, device, blocks))
        assert all("base_precision" not in one for one in cheaper(asked, device, blocks))


def test_tiles_are_advised_where_the_encoding_is_what_does_not_fit():
    config = config_of(resolution=1536, gradient_checkpointing=True, base_precision="int8")
    need = estimate(config).encoding + planning.CONTEXT_BYTES
    large = make_plan(config, estimate, "cuda", 10 * GB)
    assert large.fits and large.peak > need
    tiny = lambda asked: replace(estimate(asked), weights=0, activations=GB)  # noqa: E731
    made = make_plan(config, tiny, "cuda", 3 * GB)
    assert made.peak == need + round(0.05 * GB) and not made.fits
    assert made.change.settings == {"vae_tiling": True} and made.change.peak < 2 * GB


def test_a_plan_adds_what_the_process_takes():
    config = config_of(resolution=512)
    on_card = make_plan(config, estimate, "cuda", None)
    assert on_card.peak == int(2.1 * GB) + planning.CONTEXT_BYTES + round(0.05 * GB)
    assert make_plan(config, estimate, "cpu", None).overhead == planning.PROCESS_BYTES
    assert on_card.fits is None and on_card.previews_fit is None


def test_no_8_bit_optimizer_is_advised_without_one_for_the_device():
    asked = config_of(resolution=512, optimizer="prodigy")
    assert all("optimizer" not in one for one in cheaper(asked, "cuda"))
    assert all("optimizer" not in one for one in cheaper(config_of(resolution=512), "cpu"))


@pytest.fixture
def plan(tmp_path, capsys):
    """Run `plan` for a full-size SD1.5 with these settings: (exit status, stdout, stderr)."""
    base = full_file(tmp_path, "sd1")

    def run(*arguments, **changes):
        values = {
            "train_data_dir": str(tmp_path),
            "base_model": str(base),
            "output_dir": str(tmp_path / "runs" / "new"),
            "resolution": 512,
            **changes,
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        status = command_line.main(["plan", "--config", str(file), *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_plan_says_whether_a_card_is_large_enough(plan):
    status, out, _ = plan("--card", "8GB", "--json")
    found = json.loads(out)
    assert status == 0 and found["fits"] is True and found["changes"] == {}
    assert found["weights_bytes"] == pytest.approx(1.72e9, rel=0.01)
    assert found["card_bytes"] == 8 * 2**30 and found["seconds_per_step"] is None
    assert found["peak_bytes"] == sum(
        found[f"{part}_bytes"]
        for part in ("weights", "adapters", "optimizer", "activations", "overhead")
    )
    status, out, _ = plan("--card", "3GB", "--set", "batch_size=2")
    assert status == 1
    assert "It does not fit: 3.00 GiB are free." in out
    assert "gradient_checkpointing: true" in out.splitlines()[-1]


def test_what_plan_cannot_answer_gets_a_sentence(plan, tmp_path):
    status, _, err = plan("--card", "much")
    assert (status, err) == (
        1,
        "--card is 'much'\nUse the memory of a graphics card, such as 8GB or 11.5GB.\n",
    )
    status, _, err = plan("--card", "8GB", device="cpu")
    assert status == 1 and err.startswith("--card is given, but device is cpu\n")
    status, _, err = plan("--card", "8GB", base_model=str(tmp_path / "missing.safetensors"))
    assert status == 1 and "missing.safetensors" in err and "Traceback" not in err


def test_an_unknown_architecture_is_counted_and_earlier_runs_tell_the_time(plan, tmp_path):
    earlier = write_run(tmp_path / "runs" / "ink", resolution=64, device="cpu")
    append(
        earlier,
        events.Started(),
        events.Planned(family="sd1", step_count=30),
        events.Progress(step=30, loss=0.1, images_per_second=4.0),
        start=5000.0,
    )
    status, out, _ = plan(
        "--json",
        base_model=str(small_checkpoint()),
        resolution=64,
        device="cpu",
        batch_size=2,
        gradient_accumulation_steps=3,
    )
    found = json.loads(out)
    assert status == 0 and found["counted"] is True and found["fits"] is True
    assert found["seconds_per_step"] == pytest.approx(6 / 4)
    assert 0 < found["weights_bytes"] < 100e6
    assert training.DEFAULT_RANK == 8 and found["adapters_bytes"] > 0


def test_on_a_processor_the_layouts_of_convolutions_are_counted(plan, monkeypatch):
    asked = {"base_model": str(small_checkpoint()), "resolution": 64, "device": "cpu"}

    def weights(precision, packs):
        monkeypatch.setattr(cpu_convolutions, "can_prepack", lambda: packs)
        status, out, err = plan("--json", **asked, mixed_precision=precision)
        assert status == 0, err
        return json.loads(out)["weights_bytes"]

    unet = open_checkpoint(small_checkpoint()).outline().unet
    convolutions = sum(
        module.weight.numel()
        for module in unet.modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1)
    )
    plain = weights("bf16", packs=False)
    assert plain == pytest.approx(weights("no", packs=False) / 2, rel=0.01)
    assert weights("bf16", packs=True) == plain + 2 * convolutions


def test_layouts_are_not_counted_of_blocks_in_8_bits(monkeypatch):
    monkeypatch.setattr(cpu_convolutions, "can_prepack", lambda: True)
    inside, outside = (torch.nn.Conv2d(4, 8, 3).to(torch.bfloat16) for _ in range(2))
    model = torch.nn.ModuleList([torch.nn.Sequential(inside), outside])
    assert cpu_convolutions.layout_bytes(model, torch.bfloat16) == 2 * 2 * outside.weight.numel()
    found = cpu_convolutions.layout_bytes(model, torch.bfloat16, [model[0]])
    assert found == 2 * outside.weight.numel()
