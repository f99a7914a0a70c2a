"""What several tests compare their runs with."""

from __future__ import annotations

import pytest

from lora_trainer.runs.folder import RunFolder
from lora_trainer.worker import job
from tests.made import begin


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished training with the settings that `begin` gives by itself: to be read only."""
    folder = begin(tmp_path_factory.mktemp("plain"), "plain")
    assert job.run(folder.path) == job.FINISHED
    return folder
