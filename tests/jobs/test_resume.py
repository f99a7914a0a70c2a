import pytest

from lora_trainer import files
from lora_trainer.errors import ConfigError, RunError
from lora_trainer.jobs.resume import prepare
from lora_trainer.runs import events
from lora_trainer.settings import training
from tests.jobs.logs import FINISHED, TRAINED, write_run


def written(folder):
    return training.read(folder.config)


def test_a_stopped_run_goes_on_with_its_settings_as_they_are(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED, events.Stopped(step=10))
    before = folder.config.read_bytes()
    prepare(folder, {})
    assert folder.config.read_bytes() == before


def test_a_finished_run_goes_on_only_with_more_steps(tmp_path):
    folder = write_run(tmp_path / "ink", *FINISHED)
    with pytest.raises(RunError, match="this run is finished: all its 10 steps are done"):
        prepare(folder, {})
    with pytest.raises(
        ConfigError, match="max_train_steps is 10, but this run already has 10 steps"
    ):
        prepare(folder, {"max_train_steps": 10})
    assert written(folder).training.max_train_steps == 10
    prepare(folder, {"max_train_steps": 15, "learning_rate": 1e-5})
    assert (written(folder).training.max_train_steps, written(folder).training.learning_rate) == (
        15,
        1e-5,
    )


def test_a_finished_run_goes_on_for_more_epochs_instead_of_the_steps_that_its_epochs_came_to(
    tmp_path,
):
    folder = write_run(tmp_path / "ink", *FINISHED)
    prepare(folder, {"epochs": 40})
    assert (written(folder).training.epochs, written(folder).training.max_train_steps) == (40, None)
    prepare(folder, {"epochs": 40, "max_train_steps": 15})
    assert written(folder).training.max_train_steps == 15


def test_a_stopped_run_may_end_where_it_is(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED, events.Stopped(step=10), max_train_steps=20)
    prepare(folder, {"learning_rate": 1e-5})
    assert written(folder).training.max_train_steps == 20
    prepare(folder, {"max_train_steps": 10})
    assert written(folder).training.max_train_steps == 10


def test_the_shape_of_what_was_learned_stays(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED)
    prepare(folder, {"lora_rank": 4})
    assert written(folder).lora.lora_rank == 4, "nothing was kept of what it learned"
    (folder.path / "state").mkdir()
    (folder.path / "state" / "step00000004.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="lora_rank cannot be changed after the start"):
        prepare(folder, {"lora_rank": 64})
    prepare(folder, {"max_train_steps": 20})
    assert written(folder).training.max_train_steps == 20


def test_a_run_at_work_is_left_alone(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED)
    with files.lock(folder.lock), pytest.raises(RunError, match="already training"):
        prepare(folder, {"max_train_steps": 20})
