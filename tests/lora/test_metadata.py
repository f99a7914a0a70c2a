from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_trainer import families
from lora_trainer.lora.credits import KEYS, Credits
from lora_trainer.lora.metadata import FolderFacts, TrainingFacts, build, distinct, tag_frequency
from lora_trainer.settings.training import RunConfig, from_mapping


def config(**changes: Any) -> RunConfig:
    return from_mapping(
        {
            "train_data_dir": "data",
            "base_model": "models/雪 v1.5.safetensors",
            "output_dir": "out",
            **changes,
        },
        base=Path("/work"),
    )


def facts(settings: RunConfig | None = None, **changes: Any) -> TrainingFacts:
    known: dict[str, Any] = {
        "config": (
            settings
            or config(
                lora_rank=16,
                lora_alpha=8,
                trigger_word="sks cat",
                epochs=3,
                max_train_steps=90,
                learning_rate=2e-4,
                seed=7,
            )
        ),
        "name": "my_cat",
        "family": "sd1",
        "prediction_type": "epsilon",
        "zero_terminal_snr": False,
        "resolution": 512,
        "mixed_precision": "bf16",
        "text_encoder_lr": None,
        "step": 60,
        "step_count": 90,
        "epoch": 2,
        "epoch_count": 3,
        "batches_per_epoch": 30,
        "folders": (
            FolderFacts(
                name="10_cat",
                image_count=3,
                repeats=10,
                captions=("sks cat, Sitting", "sks cat", "a dog, sitting"),
            ),
        ),
        "buckets": (((512, 512), 20), ((448, 576), 10)),
        "started_at": 1763696040.5,
        "written_at": 1763699640.9,
        "base_sha256": "ab" * 32,
        "base_legacy_hash": "cc6cb27103",
    }
    values = {**known, **changes}
    return TrainingFacts(**{**values, "family": families.get(values["family"])})


ROWS = {
    "ss_base_model_version",
    "ss_v2",
    "ss_output_name",
    "ss_tag_frequency",
    "ss_dataset_dirs",
    "ss_bucket_info",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_clip_skip",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_training_started_at",
    "ss_training_finished_at",
    "ss_learning_rate",
    "ss_unet_lr",
    "ss_text_encoder_lr",
    "ss_num_train_images",
    "ss_num_epochs",
    "ss_epoch",
    "ss_steps",
    "ss_max_train_steps",
    "ss_seed",
    "ss_optimizer",
    "ss_lr_scheduler",
    "ss_mixed_precision",
    "ss_noise_offset",
    "ss_min_snr_gamma",
    "ss_resolution",
    "ss_batch_size_per_device",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.title",
    "modelspec.resolution",
    "modelspec.date",
    "modelspec.prediction_type",
    "modelspec.trigger_phrase",
    "modelspec.encoder_layer",
}


def test_every_value_is_a_string_and_every_table_row_is_there() -> None:
    metadata = build(facts())
    assert all(isinstance(value, str) for value in metadata.values())
    assert set(metadata) >= ROWS


def test_credits_are_written_where_they_are_set() -> None:
    credits = {
        "author": "Ann",
        "license": "CC-BY-NC-4.0",
        "description": "Ink landscapes",
        "training_comment": "Own drawings",
    }
    metadata = build(facts(config(**credits)))
    assert metadata["modelspec.author"] == "Ann"
    assert metadata["modelspec.license"] == "CC-BY-NC-4.0"
    assert metadata["modelspec.description"] == "Ink landscapes"
    assert metadata["ss_training_comment"] == "Own drawings"
    assert Credits.of(metadata) == Credits(**credits)
    assert set(metadata) - set(build(facts(config()))) == set(KEYS.values())


def test_bounds_of_the_buckets_follow_from_the_resolution_unless_they_are_set() -> None:
    keys = ("ss_min_bucket_reso", "ss_max_bucket_reso", "ss_num_reg_images")
    own = config(min_bucket_side=320, max_bucket_side=768)
    assert [[build(one)[key] for key in keys] for one in (facts(), facts(own))] == [
        ["256", "1024", "0"],
        ["320", "768", "0"],
    ]


def test_the_text_encoders_layers_are_named_where_it_was_trained() -> None:
    plain = build(facts(config(lora_dropout=0.0)))
    trained = build(facts(config(train_text_encoder=True, lora_dropout=0.1)))
    targets = [json.loads(built["ss_network_args"]) for built in (plain, trained)]
    assert ["text_encoder_targets" in one for one in targets] == [False, True]
    assert all("to_q" in one["target_modules"] for one in targets)
    assert trained["ss_network_dropout"] == "0.1"
    assert plain["ss_network_dropout"] == "None", "as kohya's trainer has it"


@pytest.mark.parametrize(
    ("family", "prediction", "version", "v2", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "False", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512/lora"),
        ("sd2", "v_prediction", "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
        ("sdxl", "v_prediction", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_the_hosts_are_told_the_family(
    family: str, prediction: str, version: str, v2: str, architecture: str
) -> None:
    metadata = build(facts(family=family, prediction_type=prediction))
    assert (
        metadata["ss_base_model_version"],
        metadata["ss_v2"],
        metadata["modelspec.architecture"],
    ) == (version, v2, architecture)
    assert metadata["modelspec.prediction_type"] == (
        "v" if prediction == "v_prediction" else "epsilon"
    )


def a1111_parses(metadata: dict[str, str]) -> dict[str, Any]:
    """A1111 reads values that begin with a brace as JSON."""
    return {
        key: json.loads(value) if value.startswith("{") else value
        for key, value in metadata.items()
    }


def test_the_cards_dialog_shows_tags_images_and_resolutions() -> None:
    metadata = a1111_parses(build(facts()))
    assert metadata["ss_tag_frequency"] == {"10_cat": {"sks cat": 2, "sitting": 2, "a dog": 1}}
    assert metadata["ss_dataset_dirs"] == {"10_cat": {"n_repeats": 10, "img_count": 3}}
    assert metadata["ss_bucket_info"] == {
        "buckets": {
            "0": {"resolution": [512, 512], "count": 20},
            "1": {"resolution": [448, 576], "count": 10},
        }
    }
    assert metadata["ss_num_train_images"] == "30"
    assert float(metadata["ss_training_started_at"]) == 1763696040.5


def test_the_lora_and_its_training_are_stated() -> None:
    metadata = build(facts())
    expected = {
        "ss_output_name": "my_cat",
        "modelspec.title": "my_cat",
        "ss_sd_model_name": "雪 v1.5.safetensors",
        "ss_sd_model_hash": "cc6cb27103",
        "ss_new_sd_model_hash": "ab" * 32,
        "ss_network_dim": "16",
        "ss_network_alpha": "8",
        "ss_network_module": "networks.lora",
        "ss_steps": "60",
        "ss_max_train_steps": "90",
        "ss_epoch": "2",
        "ss_num_epochs": "3",
        "ss_learning_rate": "0.0002",
        "ss_unet_lr": "0.0002",
        "ss_seed": "7",
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)",
        "ss_lr_scheduler": "constant",
        "ss_clip_skip": "1",
        "ss_mixed_precision": "bf16",
        "ss_min_snr_gamma": "None",
        "ss_noise_offset": "None",
        "ss_resolution": "(512, 512)",
        "modelspec.resolution": "512x512",
        "modelspec.date": "2025-11-21T04:34:00+00:00",
        "modelspec.trigger_phrase": "sks cat",
        "modelspec.encoder_layer": "1",
        "modelspec.implementation": "diffusers",
    }
    assert {key: metadata[key] for key in expected} == expected


def test_alpha_is_the_one_that_was_used() -> None:
    assert build(facts(config(lora_rank=16)))["ss_network_alpha"] == "16"
    assert build(facts(config(lora_rank=16, lora_alpha=2.7)))["ss_network_alpha"] == "2.7"


def test_sdxl_has_no_clip_skip_of_its_own() -> None:
    metadata = build(facts(family="sdxl"))
    assert metadata["ss_clip_skip"] == "None"
    assert "modelspec.encoder_layer" not in metadata


def test_what_is_not_known_is_left_out() -> None:
    metadata = build(facts(config(), base_sha256=None, base_legacy_hash=None))
    assert not {
        "ss_sd_model_hash",
        "ss_new_sd_model_hash",
        "ss_vae_name",
        "modelspec.trigger_phrase",
    } & set(metadata)


def test_no_path_of_this_machine_is_in_the_file() -> None:
    metadata = build(
        facts(
            config(vae="/home/me/secret/vae.safetensors"),
            vae_sha256="cd" * 32,
            vae_legacy_hash="0123abcd",
        )
    )
    assert (metadata["ss_vae_name"], metadata["ss_new_vae_hash"], metadata["ss_vae_hash"]) == (
        "vae.safetensors",
        "cd" * 32,
        "0123abcd",
    )
    assert not [value for value in metadata.values() if "/home" in value or "secret" in value]


def test_folders_of_one_name_are_kept_apart() -> None:
    folders = [FolderFacts(name="images", image_count=count, repeats=1) for count in (1, 2, 3)]
    assert {name: folder.image_count for name, folder in distinct(folders).items()} == {
        "images": 1,
        "images (2)": 2,
        "images (3)": 3,
    }


def test_tags_are_the_comma_separated_parts_in_lower_case() -> None:
    assert tag_frequency(["A, b,,", "a ,c", ""]) == {"a": 2, "b": 1, "c": 1}
