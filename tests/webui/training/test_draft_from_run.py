"""An earlier run's settings fill the form again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lora_trainer.errors import RunError
from lora_trainer.jobs.history import History
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.webui.settings.preflight import PlanRequest
from lora_trainer.webui.training.draft_from_run import draft_of
from tests.jobs.logs import FINISHED, append
from tests.made import draw_images, tiny_checkpoint
from tests.webui.drafts import app as make_app


@pytest.fixture
def app(tmp_path):
    """Five images, a tiny checkpoint, and a finished run "ink" of them whose settings are
    resolved as a worker leaves them.
    """
    made = make_app(tmp_path)
    made.datasets.folders["discs"] = draw_images(tmp_path / "discs", 5)
    made.datasets.all = lambda: [
        SimpleNamespace(id=key, path=path) for key, path in made.datasets.folders.items()
    ]
    made.host.list(tiny_checkpoint("sd1"))
    made.host.load(tiny_checkpoint("sd1"))
    history = History(made.data.folder("runs"))
    made.entry = history.entry
    asked = {"max_train_steps": 40, "lora_rank": 4, "sample_size": 128, "trigger_word": "zrb"}
    run = made.preflight.run_config(PlanRequest(dataset="discs", name="ink", settings=asked))
    done = training.settle(run, 64, 40).replace(
        prediction_type="epsilon", zero_terminal_snr=False, mixed_precision="no"
    )
    folder = folders.begin(run.output.output_dir, training.to_yaml(done))
    append(folder, *FINISHED)
    return made


def draft_again(app):
    return draft_of(app.entry("ink"), app.datasets, app.checkpoints, app.loras, on_processor=True)


def test_what_auto_came_to_is_auto_again_and_what_was_chosen_stays(app):
    draft = draft_again(app)
    shown = {
        key: draft["settings"][key]
        for key in (
            "max_train_steps",
            "lora_rank",
            "trigger_word",
            "sample_size",
            "lora_alpha",
            "save_steps",
            "resolution",
        )
    }
    assert shown == {
        "max_train_steps": 40,
        "lora_rank": 4,
        "trigger_word": "zrb",
        "sample_size": 128,
        "lora_alpha": None,
        "save_steps": None,
        "resolution": None,
    }
    assert [
        draft["settings"][key]
        for key in ("prediction_type", "zero_terminal_snr", "mixed_precision")
    ] == ["auto", None, "auto"]
    assert (draft["name"], draft["dataset"]) == ("ink", "discs")
    assert draft["growth"] == {"lora_rank": 8, "lora_alpha": None, "max_train_steps": 20}


def test_the_draft_can_be_planned_and_started_as_it_is(app):
    draft = draft_again(app)
    request = PlanRequest(
        dataset=draft["dataset"],
        checkpoint=draft["checkpoint"],
        name=draft["name"],
        settings=draft["settings"],
    )
    made = app.preflight.check(request)
    assert made.ok and made.steps == 40
    assert app.preflight.run_config(request).lora.lora_rank == 4


def test_images_and_checkpoint_that_are_gone_are_left_open(app):
    app.datasets.folders.clear()
    app.host.list()
    app.host.now = None
    draft = draft_again(app)
    assert (draft["dataset"], draft["checkpoint"]) == (None, None) and draft["settings"][
        "lora_rank"
    ] == 4


def test_a_caption_run_has_none(app):
    app.entry = lambda run: SimpleNamespace(id=run, problem=None, job="caption")
    with pytest.raises(RunError, match="ink has no training settings"):
        draft_again(app)
