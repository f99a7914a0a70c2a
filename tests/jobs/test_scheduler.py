"""The scheduler with a clock and workers made for the test: what it starts, when, and what it does
about every kind of end.
"""

import contextlib
import errno
import shutil
import time

import pytest

from lora_trainer import files
from lora_trainer.errors import SetupError
from lora_trainer.jobs.history import History
from lora_trainer.jobs.queue import Queue
from lora_trainer.jobs.scheduler import Scheduler, SchedulerOptions
from lora_trainer.jobs.trash import contents
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.state import DISK_FULL
from tests.jobs.logs import BEGUN, FINISHED, TRAINED, append, steps, write_run


class FakeWorker:
    """A process that holds the folder's lock until the test ends it."""

    def __init__(self, folder):
        self.folder = folder
        self.status = None
        self.holding = contextlib.ExitStack()
        self.holding.enter_context(files.lock(folder.lock))

    def poll(self):
        return self.status

    def end(self, status, *history, start=10_000.0):
        append(self.folder, *history, start=start)
        self.status = status
        self.holding.close()


class FakeLease:
    def __init__(self):
        self.calls = []
        self.free = self.kept = True
        self.trouble = None
        self.ticks = 0

    def before_start(self, folder):
        self.calls.append(("before_start", folder.path.name))
        if self.trouble:
            raise self.trouble
        return self.free

    def adopt(self, folder, since):
        self.calls.append(("adopt", folder.path.name))
        return self.free

    def holds(self, folder):
        return self.kept

    def after_end(self, folder):
        self.calls.append(("after_end", folder.path.name))

    def tick(self):
        self.ticks += 1


class Bench:
    """A data folder with a scheduler, whose workers are fakes."""

    def __init__(self, root):
        self.root = root
        self.now = 5000.0
        self.queue = Queue(root / "queue.json")
        self.history = History(root / "runs")
        self.gpu_lease = FakeLease()
        self.options = SchedulerOptions()
        self.workers = {}
        self.refreshed = 0
        self.start_error = None
        self.scheduler = self.another()

    def another(self):
        """A second scheduler on the folder: another WebUI, or this one started again."""
        return Scheduler(
            history=self.history,
            queue=self.queue,
            lock=self.root / "keeper.lock",
            trash=self.root / "trash",
            gpu_lease=self.gpu_lease,
            delivered=self.refresh,
            options=lambda: self.options,
            start=self.start,
            clock=lambda: self.now,
        )

    def start(self, folder, options):
        if self.start_error:
            raise self.start_error
        self.workers[folder.path.name] = worker = FakeWorker(folder)
        return worker

    def refresh(self):
        self.refreshed += 1

    def run(self, name, *history):
        return write_run(self.root / "runs" / name, *history)

    def queued(self, *names):
        for name in names:
            self.run(name)
            self.queue.add(name)

    def tick(self, seconds=1.0):
        self.now += seconds
        self.scheduler.tick()
        return self.scheduler.active()


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    for worker in made.workers.values():
        worker.holding.close()


@pytest.mark.parametrize(
    "last",
    [
        (0, [*TRAINED, events.Finished(step=10)]),
        (3, [*TRAINED, events.Stopped(step=10)]),
        (1, [*BEGUN, events.Failed(message="no")]),
        (-9, list(BEGUN)),
    ],
)
def test_the_next_run_starts_after_an_end_of_any_kind(bench, last):
    bench.queued("a", "b")
    assert bench.tick() == ("a",)
    assert bench.tick() == ("a",) and list(bench.workers) == ["a"]
    assert bench.queue.read().starting is None, "it runs"
    bench.workers["a"].end(last[0], *last[1])
    assert bench.tick() == ("b",)
    assert bench.gpu_lease.calls == [
        ("before_start", "a"),
        ("after_end", "a"),
        ("before_start", "b"),
    ]


def test_a_death_is_written_down_for_everyone_to_see(bench):
    bench.queued("a")
    bench.tick()
    folder = bench.workers["a"].folder
    folder.log.write_text("2026 INFO x\nSegmentation fault\n", encoding="utf-8")
    bench.workers["a"].end(-9, *TRAINED)
    bench.tick()
    state = History(bench.root / "runs").entry("a").state
    assert (
        state.status == "failed"
        and "signal 9" in state.failure.message
        and "Segmentation fault" in state.failure.message
    )
    assert "out of memory" in state.failure.hint


def test_a_worker_that_dies_before_it_speaks_is_not_taken_for_the_one_before(bench):
    bench.run("a", *TRAINED, events.Stopped(step=10))
    bench.queue.add("a")
    bench.tick()
    bench.workers["a"].end(1)
    bench.tick()
    assert bench.history.entry("a").state.status == "failed"


def test_a_delivered_lora_is_shown_in_the_host_and_another_end_is_not(bench):
    bench.queued("a", "b")
    bench.tick()
    bench.workers["a"].end(
        0,
        *TRAINED,
        events.Finished(step=10, file="ink.safetensors", delivered="/Lora/ink.safetensors"),
    )
    bench.tick()
    assert bench.refreshed == 1
    bench.workers["b"].end(0, *FINISHED)
    bench.tick()
    assert bench.refreshed == 1


def test_a_run_from_the_command_line_is_adopted_and_the_queue_waits_for_it(bench):
    bench.queued("a")
    bench.run("mine", *BEGUN)
    with files.lock(RunFolder(bench.root / "runs" / "mine").lock):
        assert bench.tick() == ("mine",)
        assert bench.tick() == ("mine",) and not bench.workers
    assert bench.tick() == ("a",)
    assert bench.gpu_lease.calls == [
        ("adopt", "mine"),
        ("after_end", "mine"),
        ("before_start", "a"),
    ]
    assert "exit status unknown" in bench.history.entry("mine").state.failure.message


def test_a_run_that_ends_and_starts_again_between_two_looks_has_its_device_again(bench):
    bench.run("mine", *BEGUN)
    with files.lock(RunFolder(bench.root / "runs" / "mine").lock):
        bench.tick()
        # the lease has seen that it has ended, the scheduler only that it lives
        bench.gpu_lease.kept = False
        bench.tick()
        bench.gpu_lease.kept = True
        bench.tick()
    assert bench.gpu_lease.calls == [("adopt", "mine"), ("adopt", "mine")]


def test_a_run_that_is_queued_again_before_its_end_was_noticed_is_resumed(bench):
    bench.queued("first")
    bench.run("mine", *BEGUN)
    with files.lock(RunFolder(bench.root / "runs" / "mine").lock):
        assert bench.tick() == ("mine",)
    bench.queue.add("mine", first=True)
    assert bench.tick() == ("mine",) and list(bench.workers) == ["mine"]
    bench.tick()
    bench.workers["mine"].end(3, events.Stopped(step=10))
    bench.queue.add("mine")
    assert bench.tick() == ("first",) and bench.queue.read().waiting == ("mine",)


def test_a_waiting_run_that_somebody_else_starts_leaves_the_queue(bench):
    bench.queued("a", "b")
    with files.lock(RunFolder(bench.root / "runs" / "a").lock):
        assert bench.tick() == ("a",)
        assert bench.queue.read().waiting == ("b",)


def test_the_next_host_finds_the_run_and_the_queue_where_they_are(bench):
    bench.queued("a", "b")
    bench.tick()
    worker = bench.workers["a"]
    bench.scheduler.close()
    bench.scheduler = bench.another()
    assert bench.tick() == ("a",) and bench.queue.read().starting is None
    worker.end(0, *FINISHED)
    assert bench.tick() == ("b",)
    assert bench.history.entry("a").state.status == "finished"


def test_of_two_webuis_on_one_folder_one_starts_the_runs(bench):
    bench.queued("a", "b")
    other = bench.another()
    bench.tick()
    other.tick()
    assert (
        bench.scheduler.on_duty
        and not other.on_duty
        and list(bench.workers) == ["a"]
        and other.active() == ()
    )
    bench.workers["a"].end(0, *FINISHED)
    bench.scheduler.close()
    other.tick()
    assert other.on_duty and list(bench.workers) == ["a", "b"]
    other.close()


@pytest.mark.parametrize(
    ("history", "again"), [([], True), ([*BEGUN, *steps(1, 10), events.Finished(step=10)], False)]
)
def test_a_run_whose_start_a_crash_cut_off_starts_once(bench, history, again):
    bench.queued("a", "b")
    bench.queue.take(900.0)
    append(RunFolder(bench.root / "runs" / "a"), *history)
    assert bench.tick() == (("a",) if again else ("b",))


def test_a_run_waits_until_the_host_has_made_its_picture(bench):
    bench.queued("a")
    bench.gpu_lease.free = False
    assert bench.tick() == () and bench.queue.read().starting == "a"
    assert bench.tick() == ()
    bench.gpu_lease.free = True
    assert bench.tick() == ("a",)


def test_a_run_that_waits_for_the_host_can_be_withdrawn(bench):
    bench.queued("a")
    bench.gpu_lease.free = False
    bench.tick()
    assert bench.scheduler.withdraw("a")
    bench.gpu_lease.free = True
    assert bench.tick() == () and not bench.workers
    bench.queue.add("a")
    bench.tick()
    assert not bench.scheduler.withdraw("a"), "its process is there"


def test_a_host_whose_model_cannot_leave_does_not_keep_a_run_from_starting(bench):
    bench.queued("a")
    bench.gpu_lease.trouble = RuntimeError("CUDA error")
    assert bench.tick() == ("a",)
    bench.tick()
    bench.gpu_lease.free = True
    assert bench.gpu_lease.calls == [("before_start", "a"), ("adopt", "a")]


def test_a_host_in_trouble_is_not_asked_every_second_and_a_busy_one_is(bench, monkeypatch):
    def trouble(folder, since):
        bench.gpu_lease.calls.append("asked")
        raise RuntimeError("CUDA error")

    bench.run("mine", *BEGUN)
    with files.lock(RunFolder(bench.root / "runs" / "mine").lock):
        with monkeypatch.context() as patched:
            patched.setattr(bench.gpu_lease, "adopt", trouble)
            for _ in range(40):
                bench.tick()
        assert bench.gpu_lease.calls == ["asked", "asked"]
        bench.gpu_lease.free = False
        bench.tick(30.0)
        bench.tick()
        bench.gpu_lease.free = True
        bench.tick()
        bench.tick()
        assert bench.gpu_lease.calls[2:] == [("adopt", "mine")] * 3


def test_a_worker_that_gave_way_to_another_is_no_death(bench):
    bench.queued("a")
    bench.tick()
    folder = bench.workers["a"].folder
    bench.workers["a"].end(1, *BEGUN)
    with files.lock(folder.lock):
        assert bench.tick() == ("a",)
        assert bench.history.entry("a").state.status == "running" and not folder.death.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SetupError("no packages", hint="Set up."), "no packages"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_a_worker_that_cannot_be_started_is_a_failure_with_a_sentence_and_the_next_has_its_turn(
    bench, error, words
):
    bench.queued("a", "b")
    bench.start_error = error
    bench.tick()
    state = bench.history.entry("a").state
    assert state.status == "failed" and words in state.failure.message and state.failure.hint
    assert bench.queue.read().waiting == () and bench.history.entry("b").state.status == "failed"
    assert bench.gpu_lease.calls[:2] == [("before_start", "a"), ("after_end", "a")]


def test_a_queued_run_whose_folder_is_gone_is_passed_over(bench):
    bench.queued("a", "b")
    shutil.rmtree(bench.root / "runs" / "a")
    assert bench.tick() == ("b",)


def test_finished_runs_beyond_those_to_keep_go_to_the_trash_and_no_others(bench):
    for number in range(5):
        folder = bench.run(f"done-{number}")
        append(folder, *FINISHED, start=1000.0 * (number + 1))
    bench.run("stopped", *TRAINED, events.Stopped(step=10))
    bench.run("waits", *FINISHED)
    bench.queue.add("waits")
    bench.options = SchedulerOptions(runs_to_keep=2)
    with files.lock(RunFolder(bench.root / "runs" / "done-0").lock):
        bench.tick(100.0)
    assert sorted(path.name for path in (bench.root / "runs").iterdir()) == [
        "done-0",
        "done-3",
        "done-4",
        "stopped",
        "waits",
    ]
    assert sorted(found.name for found in contents(bench.root / "trash", "run")) == [
        "done-1",
        "done-2",
    ]


def test_all_runs_are_kept_unless_told_otherwise(bench):
    for number in range(3):
        bench.run(f"done-{number}", *FINISHED)
    bench.tick(1000.0)
    assert len(bench.history.listing()) == 3


def test_a_tick_that_goes_wrong_is_not_the_last(bench, monkeypatch):
    bench.queued("a")
    real, failures = bench.scheduler.tick, []

    def tick():
        if not failures:
            failures.append(1)
            raise OSError(5, "Input/output error")
        real()

    monkeypatch.setattr(bench.scheduler, "tick", tick)
    monkeypatch.setattr("lora_trainer.jobs.scheduler.TICK_SECONDS", 0.01)
    bench.scheduler.begin()
    bench.scheduler.begin()
    deadline = time.monotonic() + 120
    while not bench.workers and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.scheduler.close()
    assert list(bench.workers) == ["a"] and failures == [1]


def test_trouble_is_told_once_and_again_when_it_comes_back(bench, monkeypatch, caplog):
    def trouble():
        raise RuntimeError("CUDA error")

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(bench.gpu_lease, "tick", trouble)
            bench.tick()
            bench.tick()
        bench.tick()
    assert [record.message for record in caplog.records] == ["while lending the device"] * 2


def test_whether_a_worker_ends_with_the_webui_may_be_changed_while_it_works_but_not_for_anothers(
    bench,
):
    bench.queued("a")
    bench.tick()
    worker = bench.workers["a"]
    bench.options = SchedulerOptions(keep_training=False)
    bench.tick()
    written = worker.folder.host.stat().st_mtime_ns
    bench.tick()
    assert worker.folder.host.stat().st_mtime_ns == written, "once, not with every tick"
    bench.options = SchedulerOptions(keep_training=True)
    bench.tick()
    assert not worker.folder.host.exists()
    worker.end(0, *FINISHED)
    bench.run("mine", *BEGUN)
    bench.options = SchedulerOptions(keep_training=False)
    with files.lock(RunFolder(bench.root / "runs" / "mine").lock):
        assert bench.tick(10.0) == ("mine",)
        assert not RunFolder(bench.root / "runs" / "mine").host.exists()


# --- the disk is full -----------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """A disk on which nothing can be written while the list holds something."""
    real, is_full = files.replace_file, []

    def replace_file(target, write, **options):
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(target, write, **options)

    monkeypatch.setattr(files, "replace_file", replace_file)
    return is_full


def test_a_run_that_ends_on_a_full_disk_gives_the_device_back_and_its_end_is_noted_later(
    bench, full, caplog
):
    bench.queued("a", "b")
    bench.tick()
    assert bench.queue.read().starting == "a", "its worker was not heard of yet"
    full.append(True)
    for _ in range(3):
        assert bench.tick() == ("a",)
    bench.workers["a"].end(DISK_FULL)
    for _ in range(3):
        assert bench.tick() == ()
    assert bench.gpu_lease.ticks == 7 and bench.gpu_lease.calls == [
        ("before_start", "a"),
        ("after_end", "a"),
    ]
    assert [record.message for record in caplog.records].count(
        "while taking a run out of the line"
    ) == 1, "not with every tick"
    full.clear()
    assert bench.tick() == ("b",)
    failure = bench.history.entry("a").state.failure
    assert (failure.message, bench.queue.read().waiting) == ("the disk is full", ())


def test_a_run_that_cannot_start_on_a_full_disk_is_tried_once_and_says_so(bench, full):
    bench.queued("a", "b")
    bench.gpu_lease.free = False
    bench.tick()
    bench.gpu_lease.free = True
    full.append(True)
    bench.start_error = OSError(errno.ENOSPC, "No space left on device")
    for _ in range(3):
        assert bench.tick() == ()
    assert bench.gpu_lease.calls[1:] == [("before_start", "a"), ("after_end", "a")]
    full.clear()
    bench.start_error = None
    assert bench.tick() == ("b",)
    failure = bench.history.entry("a").state.failure
    assert failure.message == "the disk is full" and "Free some space" in failure.hint


def test_a_deleted_run_does_not_come_back_when_there_is_room_for_its_end(bench, full):
    bench.queued("a")
    bench.tick()
    full.append(True)
    bench.workers["a"].end(DISK_FULL)
    bench.tick()
    shutil.rmtree(bench.root / "runs" / "a")
    full.clear()
    bench.tick()
    assert not (bench.root / "runs" / "a").exists()
