"""What is said of a worker that died, without one; tests/jobs/test_real_workers.py has those."""

import pytest

from lora_trainer.jobs.start import death_of, last_lines, tail
from tests.jobs.logs import TRAINED, write_run


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (None, "exit status unknown"),
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-1, "signal 1"),
        (-9, "signal 9"),
    ],
)
def test_a_death_says_how_the_process_ended_in_any_language(tmp_path, status, how):
    failure = death_of(write_run(tmp_path / "ink", *TRAINED), status)
    assert failure.message.endswith(f"unexpectedly ({how}): no output")
    assert failure.template.format(**failure.values) == failure.message


def test_last_words_in_no_encoding_are_told_too(tmp_path):
    (tmp_path / "worker.log").write_bytes(b"Get\xf6tet\n")
    assert tail(tmp_path / "worker.log") == "Get\ufffdtet"


def test_a_line_that_the_last_bytes_hold_in_part_is_left_out(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes(b"one\ntwo\n")
    assert [last_lines(log, count) for count in (8, 7)] == [["one", "two"], ["two"]]
