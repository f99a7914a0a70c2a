"""Language models: found on the host's disk or by a typed folder, told what they are, and planned
with texts.
"""

import json
import shutil

import pytest

from lora_trainer.errors import CheckpointError
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.settings import rehearsals
from lora_trainer.webui.settings.checkpoints import Checkpoints
from lora_trainer.webui.settings.preflight import PlanRequest, Preflight
from lora_trainer.webui.settings.rehearsals import Rehearsals
from lora_trainer.worker.rehearse import rehearsed
from tests.language.made import FACTS, base, write_pairs
from tests.webui import drafts

MODEL = "LLM/tiny"


@pytest.fixture
def app(tmp_path):
    made = drafts.app(tmp_path)
    shutil.copytree(base("qwen2"), made.host.models / "LLM" / "tiny")
    other = made.host.models / "text_encoder" / "clip"
    other.mkdir(parents=True)
    (other / "config.json").write_text(
        '{"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}'
    )
    return made


def listed(checkpoints):
    checkpoints.listing("en")
    checkpoints.wait()
    return {one["title"]: one for one in checkpoints.listing("en") if one["data"] == "texts"}


def test_language_models_are_listed_with_what_they_are(app):
    (found,) = listed(app.checkpoints).values()
    assert found["title"] == MODEL and found["family"] is None and found["problem"] is None
    assert found["language_model"] == "Language model, qwen2, 344,448 parameters, 1 MB"
    # kept over a restart
    again = Checkpoints(app.host, app.data.root / "checkpoints.json")
    assert listed(again)[MODEL]["language_model"] == found["language_model"]


def test_a_typed_folder_is_added_and_anything_else_refused(app, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(base("llama"), tmp_path / "mine" / name)
    first = app.checkpoints.open(f' "{tmp_path / "mine"}" ')
    assert app.checkpoints.find(first).path == tmp_path / "mine" / "a"
    assert set(listed(app.checkpoints)) == {MODEL, "mine/a", "mine/b"}
    with pytest.raises(CheckpointError, match="which is not a language model that continues"):
        app.checkpoints.open(str(app.host.models / "text_encoder" / "clip"))
    with pytest.raises(CheckpointError, match="is not the folder of a language model"):
        app.checkpoints.open(str(app.host.models / "Lora"))
    # typed folders are not for visitors from other machines
    app.host.is_remote = lambda: True
    assert set(listed(app.checkpoints)) == {MODEL}
    with pytest.raises(CheckpointError):
        app.checkpoints.find(first)


def test_a_config_without_architectures_is_left_to_transformers(app):
    path = app.host.models / "LLM" / "tiny" / "config.json"
    config = json.loads(path.read_text())
    del config["architectures"]
    path.write_text(json.dumps(config))
    assert listed(app.checkpoints)[MODEL]["problem"] is None


@pytest.fixture
def planned(app):
    """A plan with the rehearsal in this process."""
    datasets = Datasets(app.data, lambda: False)
    write_pairs(datasets.create("station", "texts").path / "pairs.jsonl")
    parts = {
        name: getattr(app, name) for name in Preflight.__dataclass_fields__ if name in vars(app)
    }
    rehearsed_here = Rehearsals(run=rehearsed, is_ready=lambda: True)
    preflight = Preflight(**{**parts, "datasets": datasets, "rehearsals": rehearsed_here})
    listed(app.checkpoints)
    model = next(one.id for one in app.checkpoints.choices() if one.title == MODEL)

    def plan(checkpoint=model, **settings):
        wish = PlanRequest(dataset="station", checkpoint=checkpoint, settings=settings)
        preflight.check(wish)
        rehearsed_here.wait()
        return wish, preflight.check(wish).to_json("en")

    plan.preflight = preflight
    plan.path = datasets.find("station").path
    return plan


def test_the_plan_of_texts_is_what_the_worker_would_do(planned):
    wish, plan = planned(epochs=4, batch_size=2, resolution=768, lora_type="locon")
    assert plan["ok"] and plan["steps"] == 8 and plan["problems"] == []
    assert plan["sentence"].startswith("Trains 8 steps on 3 texts, with tiny.")
    facts = {fact["label"]: fact["value"] for fact in plan["facts"]}
    assert facts["Layers"] == "q_proj, v_proj" and facts["Length"] == "At most 256 tokens"
    assert facts["LoRA"] == "7,168 weights, a file of 1 MB"
    assert plan["suggested"]["sample_prompts"] == [next(iter(FACTS))]
    config = planned.preflight.run_config(wish)
    # nothing that means nothing for texts, and no folder of the WebUI's LoRAs
    assert config.dataset.resolution is None and config.lora.lora_type == "lora"
    assert config.output.lora_dir is None


def test_findings_about_texts_are_beside_their_place(planned):
    write_pairs(planned.path / "pairs.jsonl", {**FACTS, "Who?": "Ann. " * 90})
    _, plan = planned(max_length=64)
    (problem,) = plan["problems"]
    assert problem["field"] == "max_length" and "pairs.jsonl, line 4 has" in problem["message"]
    _, plan = planned(max_length=64, on_bad_data="skip")
    assert plan["ok"] and plan["problems"][0]["severity"] == "warning"
    _, plan = planned(target_modules=["to_q"])
    assert [problem["field"] for problem in plan["problems"]] == ["target_modules"]
    _, plan = planned(checkpoint="practice")
    assert "no language model is chosen" in plan["problems"][0]["message"].lower()


def test_a_rehearsal_that_fails_is_told(planned, monkeypatch):
    def broken(values):
        raise RuntimeError("no module")

    monkeypatch.setattr(rehearsals, "_in_a_process", broken)
    failing = Rehearsals(is_ready=lambda: True)
    object.__setattr__(planned.preflight, "rehearsals", failing)
    wish, _ = planned()
    failing.wait()
    plan = planned.preflight.check(wish).to_json("en")
    assert not plan["ok"] and "no module" in plan["problems"][0]["message"]
