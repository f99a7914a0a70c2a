"""The whole training of a language model: pairs and a folder in, a LoRA in PEFT's format out."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_trainer import environment
from lora_trainer.__main__ import main
from lora_trainer.errors import LoraFileError
from lora_trainer.language import packing, peft_file
from lora_trainer.language.answer import answer
from lora_trainer.language.detect import read_folder
from lora_trainer.language.model import load_model
from lora_trainer.language.tokens import load_tokenizer
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import asking, training
from lora_trainer.settings.asking import AskSettings
from lora_trainer.worker import job
from tests import made
from tests.language.made import FACTS, base, begin, write_pairs
from tests.made import losses
from tests.tasks.test_diffusion import train_until

CPU = torch.device("cpu")


def warnings(folder):
    return [event.message for event in folder.read_state().warnings]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_facts_are_learned_to_exact_recall_and_forgotten_at_strength_0(tmp_path, kind, capsys):
    (tmp_path / "loras").mkdir()
    folder = begin(
        tmp_path,
        "station",
        kind,
        max_train_steps=40,
        learning_rate=3e-2,
        save_steps=20,
        sample_prompts=list(FACTS),
        sample_strengths=[0, 1],
        sample_every=1000,
        answer_length=24,
        lora_dir=str(tmp_path / "loras"),
        merge_lora=True,
        author="Ann",
        license="CC-BY-4.0",
        description="Knows the station.",
        training_comment="Written by Bo.",
    )
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert (state.data, state.family, state.image_count, state.previews) == ("texts", kind, 3, ())
    assert [saved.file for saved in state.saved] == [
        "checkpoints/station-step00000020",
        "adapter/station",
    ]
    said = {(each.strength, each.prompt): each.answer for each in state.answers}
    assert {question: said[1.0, question] for question in FACTS} == FACTS
    untouched = load_model(read_folder(base(kind)), torch.float32, CPU)
    tokenizer = load_tokenizer(base(kind))
    assert {question: said[0.0, question] for question in FACTS} == {
        question: answer(untouched, tokenizer, question, 24) for question in FACTS
    }
    assert not set(FACTS.values()) & {said[0.0, question] for question in FACTS}
    told = json.loads((folder.path / "verdict.json").read_text(encoding="utf-8"))
    assert told["best_step"] in (20, 40) and "On the trained texts its loss is" in told["text"]
    assert "image" not in json.dumps(told)
    assert main(["report", str(folder.path)]) == 0
    report = (folder.path / "report.html").read_text(encoding="utf-8")
    assert "3 texts" in report and FACTS[next(iter(FACTS))] in report
    assert "max_length" in report and "noise" not in report and "text_encoder" not in report
    assert "Text folder" in report and "Image" not in report
    capsys.readouterr()
    # plain transformers and PEFT, without anything of ours
    lora = folder.path / "adapter" / "station"
    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["target_modules"], config["task_type"]) == (
        8,
        8,
        ["q_proj", "v_proj"],
        "CAUSAL_LM",
    )
    assert state.delivered == str(tmp_path / "loras" / "station")
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base(kind)), state.delivered
    ).eval()
    merged = AutoModelForCausalLM.from_pretrained(folder.merged / "station")
    ids = torch.tensor([tokenizer.prompt_ids(next(iter(FACTS)))])
    with torch.no_grad():
        expected = theirs(ids).logits
        with peft_file.applied(untouched, peft_file.read(lora), 1.0):
            torch.testing.assert_close(untouched(ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (untouched(ids).logits - expected).abs().max() > 0.1
    # and from the command line, at each strength
    question = next(iter(FACTS))
    for strength, expected_answer in ((1, FACTS[question]), (0, said[0.0, question])):
        assert main(["ask", str(folder.path), question, "--strength", str(strength)]) == 0
        assert capsys.readouterr().out == expected_answer + "\n"
    # the same as a job of the tab, with another question as a request
    settings = AskSettings(run=folder.path, question=question, strength=0.0, patience=1.0)
    asking_job = folders.begin_job(tmp_path / "asking", "ask", asking.to_yaml(settings))
    send_request(asking_job.requests, "ask", question=question, strength=1.0, step=40)
    assert job.run(asking_job.path) == job.FINISHED
    assert [(each.step, each.answer) for each in asking_job.read_state().answers] == [
        (40, said[0.0, question]),
        (40, FACTS[question]),
    ]
    # whose it is, where the hub and `inspect` read it
    card = (lora / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "peft")
    assert "Knows the station." in card and "- Author: Ann" in card
    assert main(["inspect", str(lora)]) == 0
    told = capsys.readouterr().out
    assert "40 steps" in told and "Ann" in told and "Written by Bo." in told
    # a base without a chat template gets the one that was trained with
    saved = AutoTokenizer.from_pretrained(folder.merged / "station")
    chat = [{"role": "user", "content": next(iter(FACTS))}]
    assert saved.apply_chat_template(chat, add_generation_prompt=True) == ids[0].tolist()
    assert (lora / "tokenizer.json").exists() == (kind == "llama")


def test_what_cannot_be_asked_is_said(tmp_path, capsys):
    folder = begin(tmp_path)
    assert main(["ask", str(folder.path), "Who?"]) == 1
    assert capsys.readouterr().err == f"{folder.path} has no saved LoRA\nSaved steps: none.\n"
    # nothing is known of it but its settings: it is not searched for images
    assert main(["report", str(folder.path)]) == 0
    assert not capsys.readouterr().err
    pictures = made.begin(tmp_path / "pictures")
    assert main(["ask", str(pictures.path), "Who?"]) == 1
    assert "is not the training of a language model" in capsys.readouterr().err


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    changes = {
        "lora_dropout": 0.2,
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine",
        "max_train_steps": 5,
    }
    whole = begin(tmp_path, "whole", **changes)
    assert job.run(whole.path) == job.FINISHED
    parts = begin(tmp_path, "parts", name="whole", **changes)
    assert train_until(parts, 3, monkeypatch) == job.STOPPED
    assert parts.read_state().file == "checkpoints/whole-step00000003"
    assert job.run(parts.path) == job.FINISHED
    assert losses(parts) == losses(whole) and len(set(losses(whole))) == 5
    first, second = (
        load_file(folder.adapter / "whole" / peft_file.WEIGHTS) for folder in (whole, parts)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert warnings(parts) == []


def test_a_finished_run_is_continued_and_another_starts_from_its_lora(tmp_path):
    folder = begin(tmp_path, "first", max_train_steps=3, lora_alpha=16)
    job.run(folder.path)
    longer = training.read(folder.config, {"max_train_steps": 5})
    folder.config.write_text(training.to_yaml(longer), encoding="utf-8")
    assert job.run(folder.path) == job.FINISHED
    assert peft_file.step_of(folder.adapter / "first") == 5
    assert peft_file.step_of(folder.checkpoints / "first-step00000003") == 3
    # with more rank, and no step that changes it
    grown = begin(
        tmp_path,
        "grown",
        init_lora=str(folder.adapter / "first"),
        lora_rank=12,
        learning_rate=1e-12,
        max_train_steps=1,
    )
    assert job.run(grown.path) == job.FINISHED
    before, after = (
        peft_file.read(each.adapter / name) for each, name in ((folder, "first"), (grown, "grown"))
    )
    for path in before:
        assert after[path].a.shape[0] == 12 and after[path].scale == 2.0
        torch.testing.assert_close(
            after[path].b @ after[path].a, before[path].b @ before[path].a, rtol=1e-4, atol=1e-6
        )


def test_packing_and_checkpointing_train_and_what_means_nothing_is_said(tmp_path):
    folder = begin(
        tmp_path,
        packing=True,
        max_length=96,
        batch_size=1,
        gradient_checkpointing=True,
        max_train_steps=2,
        resolution=768,
        clip_skip=2,
        target_modules=["gate_proj", "o_proj"],
        keep_last=1,
        save_steps=1,
    )
    assert job.run(folder.path) == job.FINISHED
    assert warnings(folder) == [
        "settings that have no effect on a language model: resolution, clip_skip"
    ]
    assert training.read(folder.config).language.max_length == 96
    assert [path.name for path in folder.checkpoints.iterdir()] == ["run-step00000001"]
    names = load_file(folder.adapter / "run" / peft_file.WEIGHTS).keys()
    assert {name.split(".")[-3] for name in names} == {"gate_proj", "o_proj"}
    planned = next(event for event in folder.read_events() if isinstance(event, events.Planned))
    # all three in one row
    assert (planned.step_count, planned.epoch_count) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["to_q"]}, "target_modules: no layer is called to_q"),
        ({"lora_type": "locon"}, "lora_type is locon, which a language model has no layers for"),
        ({"load_in_4bit": True}, "load_in_4bit needs an NVIDIA card, but training runs on cpu"),
        (
            {"max_length": 512},
            "max_length is 512, but the model was made for 256 tokens",
        ),
        ({"max_length": 16}, "need attention (3 found)"),
        ({"init_lora": "missing"}, "is not a LoRA of a language model"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_model_is_loaded(tmp_path, changes, message):
    folder = begin(tmp_path, device="cpu", **changes)
    assert job.run(folder.path) == job.FAILED
    state = folder.read_state()
    assert message in state.failure.message and state.phase != "loading"
    assert state.failure.hint


def test_what_is_too_long_is_left_out_if_asked_to(tmp_path):
    write_pairs(tmp_path / "texts" / "pairs.jsonl", {**FACTS, "Who?": "Ann. " * 90})
    folder = begin(tmp_path, max_length=64, on_bad_data="skip", max_train_steps=1)
    assert job.run(folder.path) == job.FINISHED
    assert folder.read_state().image_count == 3
    assert "pairs.jsonl, line 4 has" in warnings(folder)[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / "model.safetensors").unlink(), "has no .safetensors weights"),
        (lambda at: (at / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda at: (at / "tokenizer.json").write_text("{"), "cannot be read"),
        (
            lambda at: (at / "config.json").write_text(
                '{"model_type": "bert", "architectures": ["BertModel"]}'
            ),
            "is a BertModel, which is not a language model",
        ),
    ],
)
def test_a_damaged_base_is_explained(tmp_path, damage, message):
    import shutil

    shutil.copytree(base("llama"), tmp_path / "base")
    damage(tmp_path / "base")
    folder = begin(tmp_path, base_model=str(tmp_path / "base"))
    assert job.run(folder.path) == job.FAILED
    failure = folder.read_state().failure
    assert message in failure.message and failure.hint
    assert failure.error == "CheckpointError"


def test_held_out_texts_are_validated_on_and_measuring_changes_nothing(tmp_path):
    facts = {f"What is rule {number}?": f"Turn valve {number % 4}." for number in range(10)}
    write_pairs(tmp_path / "texts" / "pairs.jsonl", facts)
    write_pairs(tmp_path / "others" / "pairs.jsonl", {"What is rule 77?": "Turn valve 1."})
    changes = {"max_train_steps": 40, "save_steps": 20, "lora_dropout": 0.1}
    divided = begin(tmp_path, "divided", validation_split=0.2, **changes)
    assert job.run(divided.path) == job.FINISHED
    planned = next(event for event in divided.read_events() if isinstance(event, events.Planned))
    assert (planned.image_count, planned.held_out_count) == (8, 2)
    checks = divided.read_state().validations
    assert [check.step for check in checks] == [0, 20, 40]
    first, _, last = checks
    assert last.training_loss < 0.5 * first.training_loss
    assert last.validation_loss < 0.7 * first.validation_loss
    assert set(last.by_strength) == {"0.5", "0.75", "1", "1.25"}
    assert last.by_strength["1"] == last.validation_loss
    assert all(share < 0.6 for share in last.per_image.values()) and len(last.per_image) == 8
    whole, own = (
        begin(tmp_path, name, **changes, **more)
        for name, more in (("whole", {}), ("own", {"validation_dir": str(tmp_path / "others")}))
    )
    for folder in (whole, own):
        assert job.run(folder.path) == job.FINISHED
    assert whole.read_state().validations[-1].validation_loss is None
    assert own.read_state().validations[-1].validation_loss > 0
    assert losses(own) == losses(whole) != losses(divided)


def test_packing_is_refused_where_the_model_mixes_the_examples(tmp_path, monkeypatch):
    real = packing._additive_mask

    def causal_only(owners, dtype):
        return real(torch.ones_like(owners), dtype)

    monkeypatch.setattr(packing, "_additive_mask", causal_only)
    folder = begin(tmp_path, packing=True)
    assert job.run(folder.path) == job.FAILED
    assert "mixes the examples of a row" in folder.read_state().failure.message


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"use_dora": True}, "use_dora"), ({"rank_pattern": {"q_proj": 4}}, "rank_pattern")],
)
def test_other_adapters_than_plain_loras_are_refused(tmp_path, changes, name):
    folder = begin(tmp_path, max_train_steps=1)
    job.run(folder.path)
    config = folder.adapter / "run" / peft_file.CONFIG
    plain = peft_file.read(folder.adapter / "run" / peft_file.WEIGHTS)
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**values, "use_rslora": True}), encoding="utf-8")
    scale = next(iter(peft_file.read(config.parent).values())).scale
    assert scale == pytest.approx(8**0.5)
    assert next(iter(plain.values())).scale == 1.0
    config.write_text(json.dumps({**values, **changes}), encoding="utf-8")
    with pytest.raises(LoraFileError, match=f"not a plain LoRA: {name} is unexpected"):
        peft_file.read(config.parent)


def test_readmes_example_is_a_training_of_a_language_model(tmp_path):
    readme = (environment.ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## A language model")[2].partition("\n## ")[0]
    values = yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])
    pairs = write_pairs(tmp_path / "station" / "pairs.jsonl")
    (tmp_path / "station" / "rules.md").write_text("# Not these\n", encoding="utf-8")
    example = training.from_mapping(values)
    assert (example.lora.lora_alpha, example.lora.target_modules) == (16.0, ("q_proj", "v_proj"))
    values |= {
        "train_data_dir": str(pairs.parent),
        "metadata_path": str(pairs),
        "base_model": str(base("qwen2")),
        "output_dir": str(tmp_path / "run"),
        "answer_length": 4,
    }
    asked = training.from_mapping(values)
    folder = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert (state.image_count, state.step_count, state.warnings) == (3, 10, ())
    assert [answer.strength for answer in state.answers if answer.step == 10] == [0.0, 1.0]
