"""The job as it really runs: image files and a checkpoint file in, a run folder full of results
out.
"""

import json
import shutil
from collections import Counter

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from lora_trainer import verdict
from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.jobs import resume
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import training
from lora_trainer.tasks import diffusion
from lora_trainer.tasks.control import Requests
from lora_trainer.tasks.hooks.previewing import Previewing
from lora_trainer.tasks.hooks.reporting import Reporting
from lora_trainer.tasks.lora_file_output import LoraFileOutput
from lora_trainer.worker import job
from tests.checkpoint.write import write_checkpoint
from tests.made import begin, checks, losses, measure_after_few_images, small_checkpoint
from tests.tiny import small_parts


def train_until(folder, step, monkeypatch, request="stop"):
    """Run the folder's job, with a request that arrives when `step` steps are done."""
    real = Requests.before_step

    def before_step(self, loop):
        if loop.work.step == step:
            send_request(folder.requests, request)
        real(self, loop)

    with monkeypatch.context() as patched:
        patched.setattr(Requests, "before_step", before_step)
        return job.run(folder.path)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_run_ends_with_both_files_and_a_delivered_lora(tmp_path, family, monkeypatch):
    measure_after_few_images(monkeypatch, 8.0)
    (tmp_path / "Lora").mkdir()
    folder = begin(
        tmp_path,
        "ink",
        family,
        trigger_word="zrb",
        lora_dir=str(tmp_path / "Lora"),
        sample_steps=1,
        save_steps=2,
        images=3,
    )
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert (state.status, state.step, state.step_count, state.image_count, state.family) == (
        "finished",
        4,
        4,
        3,
        family,
    )
    assert [saved.file for saved in state.saved] == [
        "checkpoints/ink-step00000002.safetensors",
        "ink.safetensors",
    ]
    assert {path.name for path in (tmp_path / "Lora").iterdir()} == {
        "ink.safetensors",
        "ink.json",
        "ink.png",
    }
    assert [event.step for event in checks(folder)] == [0, 2, 4]
    assert checks(folder)[0].prompted_change == 0 < checks(folder)[-1].prompted_change
    sidecar = json.loads((tmp_path / "Lora" / "ink.json").read_text(encoding="utf-8"))
    assert sidecar["sd version"] == {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}[family]
    weights = load_file(folder.path / "ink.safetensors")
    assert any(
        tensor.abs().max() > 0
        for name, tensor in weights.items()
        if name.endswith("lora_up.weight")
    )
    assert load_file(folder.path / "pytorch_lora_weights.safetensors")
    with safe_open(tmp_path / "Lora" / "ink.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (
        metadata["ss_output_name"],
        metadata["ss_steps"],
        metadata["modelspec.trigger_phrase"],
    ) == ("ink", "4", "zrb")
    assert (sidecar["activation text"], sidecar["preferred weight"]) == (
        "zrb",
        float(metadata["lora_trainer.strength"]),
    )
    judged = verdict.read(folder)
    assert (state.judged.step, state.judged.message) == (judged.best_step, judged.text())
    assert metadata["lora_trainer.verdict"] == str(judged.sentences[0])
    assert "zrb, a red disc on green" in (folder.path / "report.html").read_text(encoding="utf-8")
    assert list(folder.logs.iterdir())


def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others(tmp_path, plain):
    weights = {"plain": load_file(plain.path / "plain.safetensors")}
    seed = training.read(plain.config).training.seed
    for name, value in (("same", seed), ("other", seed + 1)):
        folder = begin(tmp_path, name, seed=value)
        job.run(folder.path)
        weights[name] = load_file(folder.path / f"{name}.safetensors")
    same, other = (
        [torch.equal(tensor, weights[name][key]) for key, tensor in weights["plain"].items()]
        for name in ("same", "other")
    )
    assert all(same) and not all(other)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "batch_size": 1,
            "gradient_accumulation_steps": 2,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 1,
            "lora_dropout": 0.2,
        },
        {
            "train_text_encoder": True,
            "shuffle_caption": True,
            "caption_dropout": 0.5,
            "flip_augmentation": True,
            "noise_offset": 0.1,
        },
        {"base_precision": "int8", "gradient_checkpointing": True},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, changes):
    whole = begin(tmp_path, "whole", epochs=3, **changes)
    assert job.run(whole.path) == job.FINISHED
    parts = begin(tmp_path, "parts", epochs=3, name="whole", **changes)
    assert train_until(parts, 4, monkeypatch) == job.STOPPED
    assert parts.read_state().step == 4
    assert job.run(parts.path) == job.FINISHED
    assert losses(parts) == losses(whole)
    expected, found = (load_file(folder.path / "whole.safetensors") for folder in (whole, parts))
    assert expected.keys() == found.keys() and all(
        torch.equal(expected[key], found[key]) for key in expected
    )
    states = [
        torch.load(folder.state / "step00000009.pt", weights_only=True) for folder in (whole, parts)
    ]
    first, second = (state["optimizer"]["state"] for state in states)
    assert all(torch.equal(first[key]["exp_avg_sq"], second[key]["exp_avg_sq"]) for key in first)
    assert (
        states[0]["rates"] == states[1]["rates"]
        and states[0]["smoothed_loss"] == states[1]["smoothed_loss"]
    )


def assert_same_lora(*runs):
    """The files that they ended with."""
    first, *others = (load_file(one.path / f"{one.path.name}.safetensors") for one in runs)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_a_run_that_was_killed_goes_on_from_its_last_save(tmp_path, monkeypatch, plain):
    killed = begin(tmp_path, "killed", save_steps=2)

    def die(self, loop, result):
        if loop.work.step == 5:
            raise KeyboardInterrupt  # what nobody catches, as a kill would be
        real(self, loop, result)

    real = Reporting.after_step
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Reporting, "after_step", die)
        job.run(killed.path)
    assert killed.read_state().status == "running" and not killed.is_alive
    assert job.run(killed.path) == job.FINISHED
    started = [event for event in killed.read_events() if isinstance(event, events.Started)]
    assert [event.resumed_from for event in started] == [None, 4]
    assert_same_lora(killed, plain)


def test_the_resolved_config_reproduces_the_run(tmp_path, plain):
    resolved = training.read(plain.config)
    assert resolved.dataset.resolution == 64  # what the checkpoint's metadata says
    assert (resolved.lora.name, resolved.lora.lora_alpha, resolved.training.max_train_steps) == (
        "plain",
        2.0,
        6,
    )
    assert (resolved.checkpoint.prediction_type, resolved.checkpoint.mixed_precision) == (
        "epsilon",
        "no",
    )
    again = resolved.replace(output_dir=str(tmp_path / "again"))
    folder = folders.begin(again.output.output_dir, training.to_yaml(again))
    job.run(folder.path)
    assert losses(folder) == losses(plain)


def test_stop_keeps_what_was_learned(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    assert train_until(folder, 2, monkeypatch) == job.STOPPED
    state = folder.read_state()
    assert (state.status, state.step, state.file) == (
        "stopped",
        2,
        "checkpoints/run-step00000002.safetensors",
    )
    assert load_file(folder.path / state.file)


def test_save_and_preview_on_request(tmp_path, monkeypatch):
    folder = begin(
        tmp_path,
        sample_prompts=["a red disc"],
        sample_strengths=[0, 1],
        sample_steps=2,
        sample_every=100,
    )
    assert train_until(folder, 3, monkeypatch, "save") == job.FINISHED
    assert [saved.step for saved in folder.read_state().saved] == [3, 6]
    other = begin(
        tmp_path,
        "other",
        sample_prompts=["a red disc"],
        sample_strengths=[0, 1],
        sample_steps=2,
        sample_every=100,
    )
    assert train_until(other, 3, monkeypatch, "preview") == job.FINISHED
    previews = other.read_state().previews
    assert [(preview.step, preview.strength) for preview in previews] == [
        (3, 0.0),
        (3, 1.0),
        (6, 0.0),
        (6, 1.0),
    ]
    base, after = (Image.open(other.path / preview.file) for preview in previews[:2])
    assert base.size == (64, 64) and base.tobytes() != after.tobytes()
    assert (
        Image.open(other.path / previews[2].file).tobytes() == base.tobytes()
    )  # strength 0 is the base, whatever was learned
    assert after.text["parameters"].startswith(
        "a red disc <lora:other:1>\nSteps: 2, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 64x64"
    )


def test_previews_and_saves_change_nothing_in_the_training(tmp_path, plain):
    busy = begin(
        tmp_path, "busy", save_steps=1, sample_prompts=["x"], sample_every=1, sample_steps=1
    )
    job.run(busy.path)
    assert losses(busy) == losses(plain)


def test_pause_waits_for_resume(tmp_path, monkeypatch, plain):
    folder = begin(tmp_path)
    monkeypatch.setattr(
        "lora_trainer.tasks.control.sleep",
        lambda seconds: send_request(folder.requests, "resume"),
    )
    assert train_until(folder, 2, monkeypatch, "pause") == job.FINISHED
    kinds = [event.kind for event in folder.read_events()]
    assert kinds.index("paused") + 1 == kinds.index("resumed") < kinds.index("finished")
    assert losses(folder) == losses(plain)


def test_only_the_last_saves_are_kept_when_asked(tmp_path):
    folder = begin(tmp_path, save_steps=1, keep_last=2)
    job.run(folder.path)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "run-step00000004.safetensors",
        "run-step00000005.safetensors",
    ]


def test_save_epochs_saves_at_the_end_of_each(tmp_path):
    folder = begin(tmp_path, epochs=3, save_epochs=1)
    job.run(folder.path)
    assert [saved.step for saved in folder.read_state().saved] == [3, 6, 9]


def failure(folder):
    assert job.run(folder.path) == job.FAILED
    return folder.read_state().failure


def test_a_bad_dataset_fails_with_its_list_before_anything_is_loaded(tmp_path):
    folder = begin(tmp_path)
    (tmp_path / "images" / "img01.png").write_bytes(b"not an image")
    (tmp_path / "images" / "img02.png").unlink()
    failed = failure(folder)
    assert (
        failed.error == "DatasetError"
        and "img01.png" in failed.message
        and "img02.png" in failed.message
        and "on_bad_data" in failed.hint
    )
    assert not folder.state.exists()


def test_on_bad_data_skip_goes_on_without_them_and_says_so(tmp_path):
    folder = begin(tmp_path, on_bad_data="skip")
    (tmp_path / "images" / "img01.png").write_bytes(b"not an image")
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert state.image_count == 4 and any(
        "img01.png" in warning.message for warning in state.warnings
    )


def test_wrong_layers_fail_with_the_right_names(tmp_path):
    failed = failure(begin(tmp_path, target_modules=["q_proj", "v_proj"]))
    assert failed.error == "ConfigError" and "to_q" in failed.hint


def test_a_restricting_licence_is_warned_of_and_credits_reach_file_and_card(tmp_path):
    base = write_checkpoint(
        small_parts(),
        tmp_path / "inkbase.safetensors",
        metadata={"modelspec.resolution": "64x64", "modelspec.license": "cc-by-nc-4.0"},
    )
    (tmp_path / "Lora").mkdir()
    credits = {"author": "Ann", "description": "Ink", "training_comment": "Own drawings"}
    shown = {"lora_dir": str(tmp_path / "Lora"), "sample_steps": 1}
    run = begin(tmp_path, base_model=str(base), epochs=1, **shown, **credits)
    assert job.run(run.path) == job.FINISHED
    warned = [one.message for one in run.read_events() if isinstance(one, events.Warned)]
    assert warned == ["inkbase is not for commercial use (cc-by-nc-4.0)"]
    with safe_open(run.path / "run.safetensors", "pt") as opened:
        assert opened.metadata()["modelspec.author"] == "Ann"
    card = json.loads((tmp_path / "Lora" / "run.json").read_text(encoding="utf-8"))
    assert card["description"] == "Ink"
    assert card["notes"] == "Author: Ann\nImages: Own drawings"


def test_a_lora_dir_that_does_not_exist_fails_before_training(tmp_path):
    failed = failure(begin(tmp_path, lora_dir=str(tmp_path / "nowhere")))
    assert "nowhere" in failed.message and "models/Lora" in failed.hint


def test_fp16_on_a_cpu_fails_with_a_sentence(tmp_path):
    assert (
        failure(begin(tmp_path, mixed_precision="fp16")).message
        == "mixed_precision is fp16, but training runs on the CPU"
    )


def test_nan_never_reaches_the_weights_and_its_image_is_named(tmp_path, monkeypatch):
    folder = begin(tmp_path, epochs=4)
    real = diffusion.encode

    def broken(*arguments):
        encoded = real(*arguments)
        images = encoded.images
        images._store.get(images._keys[2])["moments"].fill_(float("nan"))
        return encoded

    monkeypatch.setattr(diffusion, "encode", broken)
    status = job.run(folder.path)
    # one image of five is broken: each of its steps is left out, named, and the others go on
    state = folder.read_state()
    skipped = [warning.message for warning in state.warnings if "was skipped" in warning.message]
    assert skipped and all("img02.png" in message for message in skipped)
    assert status == job.FINISHED
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_file(folder.path / "run.safetensors").values()
    )


def spoiled_checkpoint(tmp_path, name, value):
    tensors = {other: tensor.float() for other, tensor in load_file(small_checkpoint()).items()}
    tensors[name].fill_(value)
    save_file(tensors, tmp_path / "spoiled.safetensors", {"modelspec.resolution": "64x64"})
    return str(tmp_path / "spoiled.safetensors")


def phases(folder):
    return [event.phase for event in folder.read_events() if isinstance(event, events.Phase)]


def test_a_broken_checkpoint_is_named_before_anything_is_encoded(tmp_path):
    name = "model.diffusion_model.out.2.bias"
    folder = begin(tmp_path, base_model=spoiled_checkpoint(tmp_path, name, float("nan")))
    failed = failure(folder)
    assert (
        failed.error == "CheckpointError"
        and failed.message.startswith("the UNet in ")
        and f"{name} has NaN or infinite values" in failed.message
    )
    assert not list((tmp_path / "images").rglob("*.safetensors"))


def test_a_vae_whose_latents_are_not_finite_is_named_while_encoding(tmp_path):
    base = spoiled_checkpoint(tmp_path, "first_stage_model.encoder.conv_out.weight", 3e38)
    failed = failure(begin(tmp_path, base_model=base))
    assert failed.error == "NotFinite" and failed.message.startswith(
        f"the VAE in {base} encodes img0"
    )
    assert failed.hint == "Set vae to another VAE file for this kind of checkpoint."


def test_a_text_encoder_whose_answer_is_not_finite_is_named_while_encoding(tmp_path):
    base = spoiled_checkpoint(
        tmp_path, "cond_stage_model.transformer.text_model.final_layer_norm.weight", 3e38
    )
    folder = begin(tmp_path, base_model=base)
    failed = failure(folder)
    assert (
        failed.error == "NotFinite"
        and failed.message == 'the text encoder encodes the caption "" to NaN or infinite numbers'
    )
    assert "training" not in phases(folder)


def test_a_run_without_one_finite_step_is_not_called_finished(tmp_path):
    base = spoiled_checkpoint(tmp_path, "model.diffusion_model.out.2.weight", 3e38)
    folder = begin(tmp_path, base_model=base)  # of six steps; from ten on the loop itself gives up
    failed = failure(folder)
    assert failed.message == "all 6 steps gave NaN or infinite numbers, so nothing was learned"
    assert "learning_rate is not the cause" in failed.hint
    assert all(
        "learning_rate is not the cause" in warning.hint for warning in folder.read_state().warnings
    )
    assert not (folder.path / "run.safetensors").exists()


def test_a_run_that_learned_nothing_is_not_called_finished(tmp_path):
    (tmp_path / "Lora").mkdir()
    folder = begin(tmp_path, learning_rate=1e-30, lora_dir=str(tmp_path / "Lora"))
    failed = failure(folder)
    assert (
        failed.message == "after 6 steps the LoRA changes nothing: it has learned nothing"
        and "learning_rate" in failed.hint
    )
    assert not (folder.path / "run.safetensors").exists() and not list(
        (tmp_path / "Lora").iterdir()
    )


def test_a_delivery_that_fails_does_not_lose_the_lora(tmp_path, monkeypatch):
    (tmp_path / "Lora").mkdir()
    folder = begin(tmp_path, lora_dir=str(tmp_path / "Lora"), sample_steps=1)

    def make_final(self, strength):
        shutil.rmtree(tmp_path / "Lora")
        return []

    monkeypatch.setattr(Previewing, "make_final", make_final)
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert (
        state.delivered == ""
        and (folder.path / state.file).exists()
        and "no folder" in state.warnings[-1].message
    )


def test_latents_and_text_on_disk_train_the_same_and_are_found_again(tmp_path, monkeypatch):
    changes = {"flip_augmentation": True, "caption_dropout": 0.3}
    memory = begin(tmp_path, "memory", cache_latents="memory", **changes)
    job.run(memory.path)
    disk = begin(tmp_path, "disk", cache_latents="disk", **changes)
    assert train_until(disk, 2, monkeypatch) == job.STOPPED
    kept = sorted(
        path.relative_to(disk.cache).as_posix() for path in disk.cache.rglob("*.safetensors")
    )
    assert len([name for name in kept if name.startswith("images/")]) == 5
    assert (
        len([name for name in kept if name.startswith("captions/")]) == 6
    )  # five captions and the empty one
    times = {name: (disk.cache / name).stat().st_mtime_ns for name in kept}
    assert train_until(disk, 4, monkeypatch) == job.STOPPED
    assert {name: (disk.cache / name).stat().st_mtime_ns for name in kept} == times
    assert job.run(disk.path) == job.FINISHED
    assert losses(disk) == losses(memory)
    assert not disk.cache.exists()


def test_gradient_checkpointing_of_text_encoders_and_unet_computes_again_and_changes_no_loss(
    tmp_path, monkeypatch
):
    computed = Counter()

    def count(layer):
        real = layer.forward

        def forward(self, *arguments, **named):
            computed[layer] += 1
            return real(self, *arguments, **named)

        monkeypatch.setattr(layer, "forward", forward)

    changes = {"train_text_encoder": True, "max_train_steps": 3, "learning_rate": 1e-3}
    plain = begin(tmp_path, "plain", "sdxl", **changes)
    saving = begin(tmp_path, "saving", "sdxl", gradient_checkpointing=True, **changes)
    count(BasicTransformerBlock)
    count(CLIPEncoderLayer)
    job.run(plain.path)
    once = dict(computed)
    computed.clear()
    job.run(saving.path)
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-4)
    assert once and all(computed[layer] > count for layer, count in once.items())


def test_a_full_disk_between_two_steps_costs_that_save_and_no_more(tmp_path, monkeypatch):
    folder = begin(tmp_path, save_steps=2)
    real = LoraFileOutput.write_state
    full = iter([True, False, False, False])

    def write_state(self, trainer):
        if next(full):
            raise OSError(28, "No space left on device")
        real(self, trainer)

    monkeypatch.setattr(LoraFileOutput, "write_state", write_state)
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert [warning.message for warning in state.warnings] == [
        "step 2 could not be saved: the disk is full"
    ]
    assert [saved.step for saved in state.saved] == [4, 6]


def test_a_finished_run_that_is_trained_further_keeps_what_it_had_ended_with(tmp_path):
    (tmp_path / "Lora").mkdir()
    folder = begin(tmp_path, max_train_steps=3, lora_dir=str(tmp_path / "Lora"), sample_steps=1)
    assert job.run(folder.path) == job.FINISHED
    first = load_file(folder.path / "run.safetensors")
    for steps in (5, 6):
        resume.prepare(folder, {"max_train_steps": steps})
        assert job.run(folder.path) == job.FINISHED
    kept = [folder.checkpoints / f"run-step{step:08d}.safetensors" for step in (3, 5)]
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(kept[0]).items())
    with safe_open(kept[0], "pt") as file:
        assert (file.metadata()["ss_steps"], file.metadata()["ss_output_name"]) == (
            "3",
            "run-step00000003",
        )
    saved = {saved.step: saved.file for saved in folder.read_state().saved}
    assert (saved[3], saved[5], saved[6]) == (
        "checkpoints/run-step00000003.safetensors",
        "checkpoints/run-step00000005.safetensors",
        "run.safetensors",
    )
    assert sorted(path.name for path in (tmp_path / "Lora").glob("*.safetensors")) == [
        "run-2.safetensors",
        "run-3.safetensors",
        "run.safetensors",
    ]


def test_a_damaged_resume_point_and_damaged_latents_cost_some_steps_and_nothing_else(
    tmp_path, monkeypatch, plain
):
    hurt = begin(tmp_path, "hurt", cache_latents="disk", save_steps=2)
    assert train_until(hurt, 4, monkeypatch) == job.STOPPED
    newest = hurt.state / "step00000004.pt"
    newest.write_bytes(newest.read_bytes()[:-60])
    for number, file in enumerate(sorted(hurt.cache.rglob("*.safetensors"))):
        file.write_bytes(b"" if number % 2 else file.read_bytes()[:-40])
    assert job.run(hurt.path) == job.FINISHED
    assert [
        event.resumed_from for event in hurt.read_events() if isinstance(event, events.Started)
    ] == [None, 2]
    assert [str(event.template) for event in hurt.read_state().warnings][:1] == [
        "the resume point {name} is damaged ({reason}); the run continues from step {step}"
    ]
    assert_same_lora(hurt, plain)


def test_a_locon_is_trained_resumed_and_told_in_its_metadata(tmp_path, monkeypatch):
    settings = {"lora_type": "locon", "conv_rank": 2, "conv_alpha": 1, "save_steps": 3}
    whole = begin(tmp_path / "whole", "ink", **settings)
    assert job.run(whole.path) == job.FINISHED
    parted = begin(tmp_path / "parted", "ink", **settings)
    train_until(parted, 3, monkeypatch)
    assert job.run(parted.path) == job.FINISHED
    files = [folder.path / "ink.safetensors" for folder in (whole, parted)]
    weights = [load_file(file) for file in files]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    assert weights[0][f"{name}.lora_down.weight"].shape[0] == 2
    assert weights[0][f"{name}.lora_up.weight"].abs().max() > 0
    with safe_open(files[0], framework="pt") as opened:
        told = opened.metadata()
    assert told["ss_network_module"] == "networks.lora"
    arguments = json.loads(told["ss_network_args"])
    assert (arguments["conv_dim"], arguments["conv_alpha"]) == ("2", "1")


def test_a_base_in_eight_bits_gives_a_lora_of_the_same_form_in_full_precision(tmp_path):
    files, found = {}, {}
    for precision in ("auto", "int8", "fp8"):
        folder = begin(tmp_path, precision, name="ink", base_precision=precision, blocks_to_swap=2)
        assert job.run(folder.path) == job.FINISHED
        config = training.read(folder.config)
        assert config.checkpoint.base_precision == precision.replace("auto", "same")
        warned = [one.message for one in folder.read_events() if isinstance(one, events.Warned)]
        assert "blocks_to_swap has no effect" in " ".join(map(str, warned))
        files[precision] = load_file(folder.path / "ink.safetensors")
        found[precision] = losses(folder)
        state = torch.load(next(folder.state.iterdir()), weights_only=True)
        assert {tensor.dtype for tensor in state["adapters"].values()} == {torch.float32}
    for precision in ("int8", "fp8"):
        assert found[precision] != found["auto"]
        assert found[precision] == pytest.approx(found["auto"], rel=0.1)
        form = {key: (one.shape, one.dtype) for key, one in files[precision].items()}
        assert form == {key: (one.shape, one.dtype) for key, one in files["auto"].items()}


def test_images_are_encoded_in_bfloat16_and_previews_drawn_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "processor_has_bfloat16", lambda: True)
    dtypes, load = [], Checkpoint.load_vae

    def loaded(self, dtype, *rest):
        dtypes.append(dtype)
        return load(self, dtype, *rest)

    monkeypatch.setattr(Checkpoint, "load_vae", loaded)
    folder = begin(
        tmp_path,
        images=2,
        mixed_precision="bf16",
        max_train_steps=1,
        sample_prompts=["a red disc"],
        sample_every=1,
        sample_steps=1,
    )
    assert job.run(folder.path) == job.FINISHED
    assert dtypes[0] == torch.bfloat16 and set(dtypes[1:]) == {torch.float32}
