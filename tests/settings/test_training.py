from pathlib import Path

import pytest
import yaml

from lora_trainer.errors import ConfigError
from lora_trainer.settings import schema, training
from tests.made import SEED_1, SEED_2

REQUIRED = {"train_data_dir": "images", "base_model": "base.safetensors", "output_dir": "out"}


def problems(values):
    with pytest.raises(ConfigError) as caught:
        training.from_mapping(values)
    return {str(problem): str(problem.hint) for problem in caught.value.problems}


def one_problem(**values):
    (found,) = problems({**REQUIRED, **values}).items()
    return found


def test_the_first_seed_reads_as_it_is_printed(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(SEED_1, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = training.read(Path("a.yaml"))
    assert run.dataset.train_data_dir == tmp_path / "data" / "style_train"
    assert run.dataset.metadata_path == tmp_path / "data" / "style_train" / "metadata.csv"
    assert (
        run.checkpoint.base_model
        == tmp_path / "models" / "Stable-diffusion" / "v1-5-pruned.safetensors"
    )
    assert (run.lora.lora_rank, run.lora.target_modules) == (8, ("to_q", "to_v"))
    assert (run.training.batch_size, run.training.epochs, run.training.learning_rate) == (
        4,
        10,
        2e-4,
    )
    assert (run.output.output_dir, run.output.save_steps) == (
        tmp_path / "output" / "my_style_lora",
        100,
    )


def test_the_second_seed_reads_as_it_is_printed(tmp_path):
    (tmp_path / "b.yaml").write_text(SEED_2, encoding="utf-8")
    run = training.read(tmp_path / "b.yaml")
    assert (run.lora.lora_rank, run.training.learning_rate, run.lora.target_modules) == (
        16,
        1.5e-4,
        training.UNET_TARGETS,
    )


def test_everything_wrong_is_listed_at_once():
    found = problems(
        {
            "lora_rnk": 3,
            "network_dim": 8,
            "lora_rank": 0,
            "learning_rate": "fast",
            "batch_size": 2.5,
            "lr_scheduler": "cosin",
            "output_dir": "out",
        }
    )
    assert found == {
        "lora_rnk is not a setting": "Did you mean lora_rank?",
        "network_dim is not a setting": "Did you mean lora_rank?",
        "learning_rate is 'fast', but must be a number, such as 1e-4": (
            "Use 1e-4 to 3e-4 with AdamW."
        ),
        "batch_size is 2.5, but must be a whole number": "1 to 4 on a consumer card.",
        "train_data_dir is missing": 'The folder with your images: a flat folder, kohya folders ("10_name") or subfolders.',
        "base_model is missing": found["base_model is missing"],
        "lora_rank is 0, but must be between 1 and 1024": "Use 4 to 64; 8 suits most styles.",
        "lr_scheduler is 'cosin', but must be one of: constant, linear, cosine, cosine_with_restarts, polynomial": (
            "Did you mean cosine?"
        ),
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan, but must be between 0 and 1"),
        ({"learning_rate": True}, "learning_rate is True, but must be a number, such as 1e-4"),
        ({"lora_alpha": 0}, "lora_alpha is 0.0, but must be above 0 and at most 4096"),
        ({"epochs": -1}, "epochs is -1, but must be between 1 and 100000"),
        ({"max_token_length": 77}, "max_token_length is 77, but must be one of: 75, 150, 225"),
        ({"target_modules": []}, "target_modules is empty, so nothing would be trained"),
        (
            {"target_modules": {"a": 1}},
            "target_modules is {'a': 1}, but must be a list of texts, such as [to_q, to_v]",
        ),
        ({"sample_strengths": [0, 5]}, "sample_strengths is 5.0, but must be between 0 and 2"),
        ({"name": "a:b<c"}, "name 'a:b<c' contains : <, which <lora:NAME:0.7> cannot hold"),
        ({"background": "pink"}, "background is 'pink'"),
        ({"bucket_step": 20}, "bucket_step is 20"),
        (
            {"train_text_encoder": "maybe"},
            "train_text_encoder is 'maybe', but must be true or false",
        ),
        ({"base_model": ["a", "b"]}, "base_model is ['a', 'b'], but must be a path"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"validation_split": 0.6}, "validation_split is 0.6, but must be between 0 and 0.5"),
        (
            {"validation_split": 0.1, "validation_dir": "held"},
            "validation_split and validation_dir are both set",
        ),
        (
            {"validation_split": 0, "early_stopping": 3},
            "early_stopping is 3, but validation_split is 0: there is no validation loss",
        ),
        (
            {"min_bucket_side": 512, "max_bucket_side": 256},
            "min_bucket_side is 512, above max_bucket_side 256",
        ),
        (
            {"min_bucket_side": 1024, "resolution": 512},
            "min_bucket_side is 1024, above resolution 512",
        ),
        (
            {"max_bucket_side": 512, "resolution": 1024},
            "max_bucket_side is 512, below resolution 1024",
        ),
    ],
)
def test_a_wrong_value_gets_a_sentence(values, sentence):
    found, hint = one_problem(**values)
    assert found == sentence
    assert hint or "must be" in found


def test_values_are_read_as_people_write_them():
    run = training.from_mapping(
        {
            **REQUIRED,
            "learning_rate": "2e-4",
            "epochs": 3.0,
            "mixed_precision": False,
            "resolution": "auto",
            "target_modules": "to_q, to_v",
        }
    )
    assert (run.training.learning_rate, run.training.epochs, run.checkpoint.mixed_precision) == (
        2e-4,
        3,
        "no",
    )
    assert (run.dataset.resolution, run.lora.target_modules) == (None, ("to_q", "to_v"))
    assert training.from_mapping(
        {**REQUIRED, "sample_prompts": "a cat, red"}
    ).samples.sample_prompts == ("a cat, red",)


def test_yaml_and_settings_are_each_others_inverse(tmp_path):
    run = training.from_mapping(
        {
            **REQUIRED,
            "learning_rate": 1.5e-5,
            "name": "墨",
            "sample_prompts": ["a: b", "c, d"],
            "vae": "v.safetensors",
            "trigger_word": "on",
        }
    )
    (tmp_path / "c.yaml").write_text(training.to_yaml(run), encoding="utf-8")
    assert training.read(tmp_path / "c.yaml") == run


def test_the_commented_yaml_holds_every_key_and_reads_as_the_defaults():
    text = training.commented_yaml()
    live = yaml.safe_load(text)
    assert set(live) == set(REQUIRED)
    uncommented = yaml.safe_load(
        "\n".join(
            line[1:] if line.startswith("#") and not line.startswith("# ") else line
            for line in text.splitlines()
        )
    )
    assert training.from_mapping(uncommented) == training.from_mapping(live)
    assert list(uncommented) == list(training.to_mapping(training.from_mapping(live)))


def test_every_setting_is_documented():
    for key in training.to_mapping(training.from_mapping(REQUIRED)):
        assert training.documentation()[key].endswith((".", ")")), key


@pytest.mark.parametrize(
    ("step_count", "save_steps"),
    [(1, 1), (15, 2), (100, 10), (4990, 499), (5010, 500), (9000, 500)],
)
def test_a_run_is_saved_every_tenth_of_it_and_at_most_every_500_steps(step_count, save_steps):
    run = training.from_mapping(REQUIRED)
    settled = training.settle(run, 512, step_count)
    assert settled.output.save_steps == settled.samples.sample_every == save_steps


def test_every_name_from_other_trainers_leads_to_a_setting():
    fields = [item for _, group in training.GROUPS for item in schema.fields_of(group)]
    others = [name for item in fields for name in schema.about(item).other_names]
    assert {"network_dim", "unet_lr", "v_parameterization"} <= set(others)
    assert len(others) == len(set(others)) and not set(others) & {item.name for item in fields}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [1", "line 1: not valid YAML"),
        ("base_model: a\tb", "line 1: not valid YAML"),
        ("- a\n- b", "is not a list of `key: value` lines"),
        ("", "3 settings in"),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        training.read(path)


def test_a_missing_file_gets_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        training.read(tmp_path / "nothing.yaml")


def test_changes_are_laid_over_the_file_and_checked(tmp_path):
    (tmp_path / "a.yaml").write_text(SEED_1, encoding="utf-8")
    assert training.read(tmp_path / "a.yaml", {"lora_rank": 4}).lora.lora_rank == 4
    with pytest.raises(ConfigError, match="lora_rank is 0"):
        training.read(tmp_path / "a.yaml", {"lora_rank": 0})


@pytest.mark.parametrize(
    ("content", "sentence", "hint"),
    [
        (
            b"lora_rank: 8\n\tepochs: 2\n",
            "line 2: not valid YAML (a tab)",
            "YAML does not allow tabs",
        ),
        (
            b"lora_rank: 8\nepochs 2\nseed: 1\n",
            "line 2: not valid YAML (could not find expected ':')",
            "Each line is `key: value`",
        ),
        (
            b"lora_rank: 8\nepochs: 2\nlora_rank: 4\n",
            "line 3: not valid YAML (duplicate key lora_rank)",
            "Keep one",
        ),
        ("trigger_word: 中国画\n".encode("gbk"), "is not a text file in UTF-8", "Save as"),
    ],
)
def test_a_yaml_file_that_cannot_be_read_gets_a_sentence(tmp_path, content, sentence, hint):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        training.read(path)
    assert sentence in str(caught.value) and hint in str(caught.value.hint)


def test_a_folder_and_a_toml_file_are_no_yaml(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder"):
        training.read(tmp_path)
    toml = tmp_path / "kohya.toml"
    toml.write_text("[training]\nlearning_rate = 1e-4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="TOML file, as other trainers use"):
        training.read(toml)


@pytest.mark.parametrize("name", ["con", "NUL.v2", "lpt1", "水" * 60])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(ConfigError, match=r"a file's name"):
        training.LoraSettings(name=name)
    assert training.LoraSettings(name="console").name == "console"


@pytest.mark.parametrize("value", [".inf", 10**400, float("inf"), "1e999", float("nan")])
def test_a_number_beyond_all_numbers_gets_a_sentence(value):
    (sentence,) = problems(
        {**REQUIRED, "batch_size": yaml.safe_load(value) if isinstance(value, str) else value}
    )
    assert sentence.startswith("batch_size is ")
    (sentence,) = problems(
        {**REQUIRED, "learning_rate": yaml.safe_load(value) if isinstance(value, str) else value}
    )
    assert sentence.startswith("learning_rate is ")


@pytest.mark.parametrize("devices", ["2", "0,0", "cuda:0", "all,0", "cpu", "cpu,0", ""])
def test_several_devices_that_mean_nothing_are_refused(devices):
    assert one_problem(devices=devices)[0] == f"devices is {devices!r}"


def test_several_devices_are_named_in_one_place():
    several = training.from_mapping({**REQUIRED, "devices": "0, 1"})
    assert several.training.devices == "0, 1"
    for device, devices in (("cuda", "0,1"), ("cpu", "cpu,cpu"), ("cuda", "all")):
        training.from_mapping({**REQUIRED, "device": device, "devices": devices})


@pytest.mark.parametrize(
    ("device", "devices"),
    [("cuda:1", "0,1"), ("cuda:1", "all"), ("cpu", "0,1"), ("xpu", "0,1"), ("cuda", "xpu:0,xpu:1")],
)
def test_device_and_devices_that_name_different_ones_are_refused(device, devices):
    problem, hint = one_problem(devices=devices, device=device)
    assert problem == f"device is {device}, but devices is {devices}: they name different devices"
    assert "auto" in hint


@pytest.mark.parametrize("device", ["cuda:x", "cuda:", "cpu:9", "cuda:-1", "mps:1"])
def test_a_device_that_torch_cannot_read_is_refused(device):
    assert one_problem(device=device)[0] == f"device is {device!r}"


def test_a_home_that_is_not_there_gets_a_sentence():
    assert one_problem(train_data_dir="~nobody-of-this-name/x")[0].startswith(
        "train_data_dir is '~nobody-of-this-name/x'"
    )


def test_a_folder_called_by_a_number_is_a_folder():
    assert (
        training.from_mapping({**REQUIRED, "train_data_dir": 2024}).dataset.train_data_dir.name
        == "2024"
    )


def test_a_run_inside_the_webuis_lora_folder_is_refused(tmp_path):
    for inside in (tmp_path / "Lora", tmp_path / "Lora" / "ink"):
        sentence, _ = one_problem(output_dir=str(inside), lora_dir=str(tmp_path / "Lora"))
        assert "lies in lora_dir" in sentence
    assert training.from_mapping(
        {**REQUIRED, "output_dir": str(tmp_path / "Lora-runs"), "lora_dir": str(tmp_path / "Lora")}
    )


@pytest.mark.parametrize("name", ["a\nb", "ink."])
def test_a_name_that_becomes_no_file_later_is_refused_now(name):
    assert one_problem(name=name)[0].startswith("name ")


@pytest.mark.parametrize(
    ("asked", "byte_count", "on_disk"),
    [
        ("auto", 2**31, False),
        ("auto", 2**31 + 1, True),
        ("memory", 2**40, False),
        ("disk", 1, True),
    ],
)
def test_auto_keeps_encoded_images_in_memory_as_far_as_two_gigabytes_go(asked, byte_count, on_disk):
    assert training.caches_on_disk(asked, byte_count) is on_disk


PASTED = "train_data_dir: {}\nbase_model: a.safetensors\noutput_dir: out\n"


@pytest.mark.parametrize(
    "text",
    [
        "'\"data/my style\"'",
        "\"'data/my style'\"",
        "' data/my style '",
        "\u201cdata/my style\u201d",
    ],
)
def test_pasted_quotes_are_no_part_of_a_path(tmp_path, text):
    (tmp_path / "a.yaml").write_text(PASTED.format(text), encoding="utf-8")
    assert (
        training.read(tmp_path / "a.yaml").dataset.train_data_dir
        == Path.cwd() / "data" / "my style"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (r'"C:\new\training data"', "train_data_dir is .* which holds a line end or a tab"),
        (r'"D:\sd\models"', "a.yaml, line 1: not valid YAML .found unknown escape character 's'."),
    ],
)
def test_a_windows_path_in_double_quotes_is_told_with_its_fix(tmp_path, text, sentence):
    (tmp_path / "a.yaml").write_text(PASTED.format(text), encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence) as caught:
        training.read(tmp_path / "a.yaml")
    assert "Put the path in single quotes, or write / for \\." in str(caught.value.hint)


BROKEN_YAML = {
    "a number of 5,000 digits": "seed: " + "7" * 5000,
    "a number of 1,000 digits": "seed: " + "7" * 1000,
    "2,000 brackets": "sample_prompts: " + "[" * 2000 + "]" * 2000,
    "2,000 dashes": "- " * 2000 + "a",
    "a lone surrogate": 'name: "\\ud800"',
    "a lone surrogate as a key": '"\\ud800": 1',
    "a date that is none": "seed: 2024-13-45",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nname: *b",
    "a list as a key": "? [a]\n: b",
    "a tag": "name: !!python/name:os.system a",
    "a control character": "name: a\x01b",
}


@pytest.mark.parametrize("what", BROKEN_YAML)
def test_a_file_that_nobody_wrote_by_hand_is_a_sentence(tmp_path, what):
    (tmp_path / "a.yaml").write_text(BROKEN_YAML[what], encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        training.read(tmp_path / "a.yaml")
    caught.value.report().encode("utf-8")


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [("6GB", 6), ("11.5 gib", 11.5), ("8", 8), ("0.1GB", None), ("much", None), ("", None)],
)
def test_a_size_of_memory_is_read(text, gigabytes):
    assert training.memory_bytes(text) == (gigabytes and int(gigabytes * 2**30))


def test_memory_that_is_neither_a_mode_nor_a_size_gets_a_sentence():
    needed = {"train_data_dir": "images", "base_model": "base.safetensors", "output_dir": "run"}
    with pytest.raises(ConfigError, match="memory is 'lots'"):
        training.from_mapping({**needed, "memory": "lots"})
