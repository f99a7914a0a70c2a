"""Who has the graphics card: a ledger of its bytes, a worker that does what real ones do in a run
folder, and every way in which one may end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_trainer import files
from lora_trainer.errors import LoraTrainerError
from lora_trainer.hosts import gpu_lease
from lora_trainer.hosts.base import HostDevice, HostError, Memory
from lora_trainer.hosts.gpu_lease import GpuLease, GpuLeaseError
from lora_trainer.hosts.queue_lock import QueueLock
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import send_request, take_requests, waiting_requests
from tests.webui.fake_host.modules.fifo_lock import FIFOLock

CARD, MODEL, WORKER, PICTURE = 8, 4, 6, 3
"""Bytes: the model leaves room for an image, but not for a worker."""
PATIENCE = 20.0


class Card:
    """The graphics card: who has how many bytes. Two who do not fit together are an error, at once
    and in the end.
    """

    def __init__(self):
        self.used: dict[str, int] = {}
        self.overflows: list[dict[str, int]] = []
        self._lock = threading.Lock()

    def take(self, who, size):
        with self._lock:
            self.used[who] = size
            if sum(self.used.values()) > CARD:
                self.overflows.append(dict(self.used))

    def give(self, who):
        with self._lock:
            self.used.pop(who, None)

    @property
    def free(self):
        return CARD - sum(self.used.values())


class GpuHost:
    """A host as A1111 is: an image with the model elsewhere is an error."""

    def __init__(self, card, *, kind="cuda", watchable=True):
        self.card, self.kind = card, kind
        self.queue = QueueLock(FIFOLock() if watchable else threading.Lock())
        self.moves: list[str] = []
        self.pictures = 0
        self.restore_fails = 0
        card.take("model", MODEL)

    def device(self):
        return HostDevice(kind=self.kind, device_id=None, name=self.kind)

    def memory(self):
        return Memory(free=self.card.free, total=CARD)

    def model_on_device(self):
        return "model" in self.card.used

    def is_generating(self):
        return self.queue.in_use_by_host

    def our_turn(self, *, wait=True):
        return self.queue.ours(wait=wait)

    def on_generation(self, before, after, *, describe):
        return self.queue.watch(before, after)

    def release_model(self):
        self.moves.append("release")
        self.card.give("model")

    def restore_model(self):
        if self.restore_fails:
            self.restore_fails -= 1
            raise HostError(
                "the WebUI's model could not be moved back to the graphics card: {reason}",
                reason="out of memory",
            )
        self.moves.append("restore")
        self.card.take("model", MODEL)

    def generate(self, seconds=0.02, fails=False):
        with self.queue.lock:
            assert self.model_on_device(), "Expected all tensors to be on the same device"
            self.card.take("picture", PICTURE)
            try:
                time.sleep(seconds)
                if fails:
                    raise RuntimeError("a script failed")
                self.pictures += 1
            finally:
                self.card.give("picture")


class Worker(threading.Thread):
    """What a training process does, as far as others see it: it holds the lock, says events, obeys
    requests and takes memory.
    """

    def __init__(self, folder, card, *, preparing=0.0, prepared=None, paused=False):
        super().__init__(daemon=True)
        self.folder, self.card, self.preparing, self.prepared = folder, card, preparing, prepared
        self.listens = True
        self.end: str | None = None
        self._paused = paused
        self.writer = events.EventWriter(folder.events)

    def run(self):
        with files.lock(self.folder.lock, patience=2):
            if not self._paused:
                self.writer.write(events.Started())
                self.card.take(self.name, WORKER)
                self.writer.write(events.Phase(phase="encoding"))
                time.sleep(self.preparing)
                if self.prepared:
                    self.prepared.wait(20)
            self.writer.write(events.Phase(phase="training"))
            while self.end is None:
                asked = take_requests(self.folder.requests) if self.listens else []
                # of several pauses and resumes the last one counts
                last = next(
                    (one for one in reversed(asked) if one.kind in ("pause", "resume")), None
                )
                if "stop" in [one.kind for one in asked]:
                    self.end = "stopped"
                elif last and last.kind == "resume":
                    self.card.take(self.name, WORKER)
                    self._paused = False
                    self.writer.write(events.Resumed(request=last.name))
                elif last and last.kind == "pause":
                    self.card.give(self.name)
                    self._paused = True
                    self.writer.write(events.Paused(request=last.name))
                time.sleep(0.003)
            if self.end == "finished":
                self.writer.write(events.Finished())
            elif self.end == "stopped":
                self.writer.write(events.Stopped())
            elif self.end == "failed":
                self.writer.write(events.Failed(error="TrainingError"))
            time.sleep(0.02)  # a process leaves after its last word, and takes its memory with it
            self.card.give(self.name)
            self.writer.close()

    @property
    def status(self):
        return self.folder.read_state().status


class Scheduler:
    """The thread that starts workers and notices their end, as in jobs.scheduler."""

    def __init__(self, lease):
        self.lease = lease
        self.over = threading.Event()
        self.current = None
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self._started = []

    def start(self, worker):
        assert until(lambda: self.lease.before_start(worker.folder))
        worker.start()
        self._started.append(worker)
        self.current = worker
        if not self.thread.is_alive():
            self.thread.start()
        return worker

    def _loop(self):
        while not self.over.wait(0.003):
            if self.current and not self.current.is_alive():
                self.lease.after_end(self.current.folder)
                self.current = None
            self.lease.tick()

    def close(self):
        """The host ends; its workers go on."""
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()

    def close_all(self):
        """End the workers too, whatever became of the test."""
        self.close()
        for worker in self._started:
            worker.end = worker.end or "killed"
            worker.join()


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.003)
    return True


@pytest.fixture
def card():
    return Card()


@pytest.fixture
def host(card):
    return GpuHost(card)


@pytest.fixture
def lease(host, tmp_path):
    return make(host, tmp_path)


@pytest.fixture
def scheduling():
    """Makes schedulers; none of their threads outlives the test."""
    with contextlib.ExitStack() as stack:

        def schedule(lease):
            scheduler = Scheduler(lease)
            stack.callback(scheduler.close_all)
            return scheduler

        yield schedule


@pytest.fixture
def scheduler(scheduling, lease):
    return scheduling(lease)


def make(host, tmp_path, **settings):
    settings = {"patience": lambda: PATIENCE, "grace": 0.03, **settings}
    return GpuLease(
        host, tmp_path / "lent.json", sleep=lambda seconds: time.sleep(0.003), **settings
    )


def folder(tmp_path, name="run"):
    (tmp_path / name).mkdir(exist_ok=True)
    return RunFolder(tmp_path / name)


def training(scheduler, tmp_path, card, **settings):
    worker = scheduler.start(Worker(folder(tmp_path), card, **settings))
    assert until(lambda: worker.folder.read_state().phase == "training")
    return worker


def assert_all_is_well(card, lease):
    assert until(lambda: lease.state == "idle" and card.used == {"model": MODEL}), (
        lease.state,
        card.used,
    )
    assert card.overflows == []
    assert until(lambda: not lease._marker.exists())


@pytest.mark.parametrize("end", ["finished", "stopped", "failed", "killed"])
def test_the_model_makes_room_for_a_run_and_comes_back_however_it_ends(
    end, card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    assert "model" not in card.used and lease.state == "training"
    worker.end = end
    assert_all_is_well(card, lease)
    assert host.moves == ["release", "restore"]


@pytest.mark.parametrize("end", ["finished", "stopped", "failed", "killed"])
def test_a_run_that_ends_while_it_is_paused_for_a_picture_leaves_the_card_to_the_host(
    end, card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    with host.queue.lock:
        assert lease.state == "lent" and card.used == {"model": MODEL}
        worker.end = end
        assert until(lambda: not worker.is_alive())
        assert until(lambda: scheduler.current is None), "its end waits for no image"
    assert_all_is_well(card, lease)


def test_a_worker_that_dies_before_it_says_a_word_keeps_nobody_waiting(card, host, lease, tmp_path):
    run = folder(tmp_path)
    assert lease.before_start(run)
    with ThreadPoolExecutor() as pool:
        picture = pool.submit(host.generate)
        assert until(lambda: lease.state == "asking")
        lease.after_end(run)
        picture.result(timeout=120)
    assert_all_is_well(card, lease)


def test_an_end_that_is_told_while_its_lock_is_looked_at_is_not_forgotten(
    lease, tmp_path, monkeypatch
):
    run = folder(tmp_path)
    assert lease.before_start(run)
    with contextlib.closing(events.EventWriter(run.events)) as writer:
        writer.write(events.Started())
    (kept,) = lease._runs.values()
    with monkeypatch.context() as patched:
        patched.setattr(
            RunFolder, "is_alive", property(lambda run: setattr(kept, "ended", True) or True)
        )
        kept.is_over()
    assert kept.ended


def test_a_worker_that_has_yet_to_say_a_word_is_not_over_whatever_its_lock_looks_like(
    lease, tmp_path, monkeypatch
):
    run = folder(tmp_path)
    assert lease.before_start(run)
    (kept,) = lease._runs.values()
    for seen in (True, False):
        monkeypatch.setattr(RunFolder, "is_alive", property(lambda run, seen=seen: seen))
        lease.tick()
        assert not kept.is_over()
    with contextlib.closing(events.EventWriter(run.events)) as writer:
        writer.write(events.Started())
    assert kept.is_over(), "it held its lock when it said this"


def test_a_run_whose_folder_others_look_at_is_not_taken_for_one_that_has_ended(
    card, host, tmp_path, scheduling
):
    lease = make(host, tmp_path, grace=60.0)
    scheduler = scheduling(lease)
    run = folder(tmp_path)
    over = threading.Event()

    def look():
        while not over.is_set():
            assert run.is_alive in (True, False)

    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            pool.submit(look)
        try:
            for _ in range(10):
                worker = scheduler.start(Worker(run, card, preparing=0.01))
                host.generate()
                assert (lease.state, worker.status) == ("lent", "paused")
                worker.end = "finished"
                assert until(lambda: scheduler.current is None)
        finally:
            over.set()
    assert_all_is_well(card, lease)


def test_a_picture_pauses_the_training_which_then_goes_on(card, host, lease, scheduler, tmp_path):
    worker = training(scheduler, tmp_path, card)
    host.generate()
    assert host.pictures == 1
    assert until(lambda: worker.status == "running" and lease.state == "training")
    assert [event.kind for event in worker.folder.read_events()] == [
        "started",
        "phase",
        "phase",
        "paused",
        "resumed",
    ]
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_picture_asked_for_while_the_worker_starts_waits_for_its_first_step(
    card, host, lease, scheduler, tmp_path
):
    worker = scheduler.start(Worker(folder(tmp_path), card, preparing=0.2))
    host.generate()
    assert [event.kind for event in worker.folder.read_events()][:4] == [
        "started",
        "phase",
        "phase",
        "paused",
    ]
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_pictures_in_a_row_pause_the_training_once(card, host, tmp_path, scheduling):
    now = 100.0
    lease = make(host, tmp_path, grace=1.0, clock=lambda: now)
    scheduler = scheduling(lease)
    worker = training(scheduler, tmp_path, card)
    for _ in range(3):
        host.generate()
        now += 0.9
    assert worker.status == "paused"
    now += 0.2
    assert until(lambda: worker.status == "running")
    assert [event.kind for event in worker.folder.read_events()].count("paused") == 1
    assert host.moves == ["release", "restore", "release"]
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_picture_that_fails_does_not_keep_the_training_waiting(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    with pytest.raises(RuntimeError, match="a script failed"):
        host.generate(fails=True)
    assert until(lambda: worker.status == "running" and lease.state == "training")
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_pause_of_the_users_own_outlasts_a_picture(card, host, lease, scheduler, tmp_path):
    worker = training(scheduler, tmp_path, card)
    lease.ask(worker.folder, "pause")
    assert until(lambda: worker.status == "paused")
    host.generate()
    assert until(lambda: lease.state == "training")
    assert worker.status == "paused" and waiting_requests(worker.folder.requests) == ()
    lease.ask(worker.folder, "resume")
    assert until(lambda: worker.status == "running")
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_pause_sent_from_the_command_line_outlasts_a_picture(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    send_request(worker.folder.requests, "pause")
    assert until(lambda: worker.status == "paused")
    host.generate()
    assert until(lambda: lease.state == "training")
    time.sleep(0.05)
    assert worker.status == "paused"
    worker.end = "stopped"
    assert_all_is_well(card, lease)


def test_pause_pressed_while_a_picture_is_made_holds_afterwards(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    with host.queue.lock:
        lease.ask(worker.folder, "pause")
    assert until(lambda: lease.state == "training")
    time.sleep(0.05)
    assert worker.status == "paused"
    worker.end = "stopped"
    assert_all_is_well(card, lease)


def test_resume_pressed_while_a_picture_is_made_waits_for_it(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    lease.ask(worker.folder, "pause")
    assert until(lambda: worker.status == "paused")
    with host.queue.lock:
        lease.ask(worker.folder, "resume")
        time.sleep(0.05)
        assert worker.status == "paused"
    assert until(lambda: worker.status == "running")
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_picture_is_refused_in_a_sentence_when_the_training_cannot_pause_in_time(
    card, host, tmp_path, monkeypatch, scheduling
):
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", PICTURE)
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + PICTURE - 1)
    lease = make(host, tmp_path, patience=lambda: 0.05)
    scheduler = scheduling(lease)
    prepared = threading.Event()
    worker = scheduler.start(Worker(folder(tmp_path), card, prepared=prepared))
    assert until(lambda: worker.status == "running")
    with pytest.raises(GpuLeaseError, match="still preparing and cannot pause yet"):
        host.generate()
    assert host.pictures == 0 and lease.state == "training" and not host.is_generating()
    # the pause that was asked for does not come true later
    prepared.set()
    assert until(
        lambda: (
            worker.folder.read_state().phase == "training"
            and waiting_requests(worker.folder.requests) == ()
        )
    )
    assert worker.status == "running"
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_picture_is_made_beside_a_run_that_cannot_pause_when_there_is_room_for_both(
    card, host, tmp_path, monkeypatch, scheduling
):
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", PICTURE)
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", 20)
    lease = make(host, tmp_path, patience=lambda: 0.05)
    scheduler = scheduling(lease)
    prepared = threading.Event()
    worker = scheduler.start(Worker(folder(tmp_path), card, prepared=prepared))
    assert until(lambda: worker.status == "running")
    host.generate()
    assert host.pictures == 1 and worker.status == "running"
    prepared.set()
    assert until(lambda: lease.state == "training" and "model" not in card.used)
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_on_a_processor_nothing_moves_and_no_run_is_paused_for_a_picture(card, tmp_path):
    host = GpuHost(card, kind="cpu")
    lease = make(host, tmp_path)
    assert not host.queue.watched
    run = folder(tmp_path)
    assert lease.before_start(run)
    host.generate()
    lease.tick()
    lease.after_end(run)
    assert host.moves == [] and waiting_requests(run.requests) == ()
    assert str(lease.status().sentence).startswith("The WebUI runs on the CPU")
    with host.queue.lock:
        assert not lease.waits()


def test_a_run_that_does_not_pause_for_pictures_has_the_model_beside_it_while_one_is_made(
    card, host, tmp_path, monkeypatch, scheduling
):
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + PICTURE)
    lease = make(host, tmp_path, pauses=lambda: False)
    scheduler = scheduling(lease)
    worker = training(scheduler, tmp_path, card)
    assert lease.status().sentence.template.endswith(
        "moved back for an image while training continues."
    )
    with host.queue.lock:
        card.take("picture", PICTURE)
        assert card.used == {"model": MODEL, worker.name: WORKER, "picture": PICTURE}
        assert (lease.state, worker.status) == ("beside", "running")
        card.give("picture")
    assert until(lambda: lease.state == "training" and card.used == {worker.name: WORKER})
    assert [
        event.kind for event in worker.folder.read_events() if event.kind in ("paused", "resumed")
    ] == []
    assert waiting_requests(worker.folder.requests) == ()
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_pause_pressed_while_a_picture_is_made_beside_the_training_is_heard_at_once(
    card, host, tmp_path, monkeypatch, scheduling
):
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + PICTURE)
    now = 0.0
    lease = make(host, tmp_path, pauses=lambda: False, grace=1.0, clock=lambda: now)
    scheduler = scheduling(lease)
    worker = training(scheduler, tmp_path, card)
    host.generate()
    assert lease.state == "beside"
    lease.ask(worker.folder, "pause")
    assert until(lambda: worker.status == "paused") and lease.state == "beside"
    now = 2.0
    assert until(lambda: lease.state == "training")
    time.sleep(0.05)
    assert worker.status == "paused"
    worker.end = "stopped"
    assert_all_is_well(card, lease)


def test_the_choice_to_pause_is_asked_at_each_picture(
    card, host, tmp_path, monkeypatch, scheduling
):
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + PICTURE)
    chosen = [False]
    lease = make(host, tmp_path, pauses=lambda: chosen[0], grace=60.0)
    scheduler = scheduling(lease)
    worker = training(scheduler, tmp_path, card)
    host.generate()
    assert (lease.state, worker.status) == ("beside", "running")
    chosen[0] = True
    host.generate()
    assert (lease.state, worker.status) == ("lent", "paused")
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_host_that_starts_again_lets_a_run_go_on_that_was_paused_for_a_picture(
    card, host, lease, scheduler, tmp_path, scheduling
):
    worker = training(scheduler, tmp_path, card)
    with host.queue.lock:
        scheduler.close()  # the host dies in the middle of an image
        assert worker.status == "paused"
        card.give("model")
        card.give("picture")
    reborn = GpuHost(card)
    again = make(reborn, tmp_path)
    assert again.adopt(worker.folder)
    scheduler = scheduling(again)
    scheduler.current = worker
    scheduler.thread.start()
    assert until(lambda: worker.status == "running")
    worker.end = "finished"
    assert_all_is_well(card, again)


def test_a_host_that_starts_again_leaves_a_run_paused_that_its_user_had_paused(card, tmp_path):
    worker = Worker(folder(tmp_path), card, paused=True)
    worker.writer.write(events.Started())
    worker.writer.write(events.Paused())
    worker.start()
    host = GpuHost(card)
    lease = make(host, tmp_path)
    assert until(lambda: worker.folder.is_alive)
    assert lease.adopt(worker.folder)
    host.generate()
    for _ in range(20):
        lease.tick()
        time.sleep(0.005)
    assert worker.status == "paused" and waiting_requests(worker.folder.requests) == ()
    worker.end = "stopped"
    worker.join()
    lease.tick()
    assert_all_is_well(card, lease)


def test_a_host_that_starts_again_knows_that_a_picture_was_long_made(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    host.generate()
    assert until(lambda: worker.status == "running" and lease.state == "training")
    lease.ask(worker.folder, "pause")
    assert until(lambda: worker.status == "paused")
    scheduler.close()
    again = make(GpuHost(card), tmp_path)
    assert again.adopt(worker.folder)
    time.sleep(0.05)
    assert worker.status == "paused"
    worker.end = "stopped"
    worker.join()
    again.tick()
    assert_all_is_well(card, again)


def test_a_checkpoint_chosen_during_the_training_leaves_the_card_again(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    worker.card.give(worker.name)  # room, so that the ledger does not complain of the instant
    card.take("model", MODEL)
    assert until(lambda: "model" not in card.used)
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_run_that_begins_while_two_threads_generate_never_meets_them_on_the_card(
    card, host, tmp_path, scheduling
):
    lease = make(host, tmp_path, grace=0.01)
    scheduler = scheduling(lease)
    with ThreadPoolExecutor() as pool:
        pictures = [pool.submit(lambda: [host.generate(0.01) for _ in range(6)]) for _ in range(2)]
        for number in range(3):
            worker = scheduler.start(Worker(folder(tmp_path, f"run{number}"), card))
            time.sleep(0.1)
            worker.end = ("finished", "killed", "failed")[number]
            assert until(lambda: scheduler.current is None)
        for picture in pictures:
            picture.result(timeout=120)
    assert host.pictures == 12
    assert_all_is_well(card, lease)


def test_a_run_is_not_begun_while_a_picture_is_made(card, host, lease, tmp_path):
    run = folder(tmp_path)
    started, done = threading.Event(), threading.Event()

    def paint():
        with host.queue.lock:
            started.set()
            done.wait(20)

    with ThreadPoolExecutor() as pool:
        picture = pool.submit(paint)
        started.wait()
        assert not lease.before_start(run) and lease.waits()
        done.set()
        picture.result()
    assert lease.before_start(run) and "model" not in card.used and not lease.waits()


@pytest.mark.parametrize("resumed_by", ["lease", "user"])
def test_a_picture_asked_for_before_a_worker_has_read_that_it_goes_on_waits_for_it(
    card, host, lease, scheduler, tmp_path, resumed_by
):
    worker = training(scheduler, tmp_path, card)
    for _ in range(2):
        if resumed_by == "lease":
            with host.queue.lock:
                worker.listens = False
            assert until(lambda: lease.state == "training")
        else:
            lease.ask(worker.folder, "pause")
            assert until(lambda: worker.status == "paused")
            worker.listens = False
            lease.ask(worker.folder, "resume")
        with ThreadPoolExecutor(1) as pool:
            picture = pool.submit(host.generate)
            assert until(lambda: lease.state == "asking")
            worker.listens = True
            picture.result(timeout=120)
        assert card.overflows == []
        # nobody but the pictures has paused it
        assert until(lambda: worker.status == "running")
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_a_run_that_the_command_line_resumes_while_a_picture_has_the_card_is_paused_for_the_next(
    card, host, tmp_path, scheduling
):
    lease = make(host, tmp_path, grace=60.0)
    worker = training(scheduling(lease), tmp_path, card)
    host.generate()
    card.take = lambda who, size: card.used.update({who: size})  # its user has asked for this
    send_request(worker.folder.requests, "resume")
    assert until(lambda: worker.status == "running")
    del card.take
    host.generate()
    assert (lease.state, worker.status) == ("lent", "paused") and card.overflows == []
    worker.end = "finished"
    assert_all_is_well(card, lease)


def told(worker, kind):
    return [event for event in worker.folder.read_events() if event.kind == kind]


def begun(card, folder):
    """A worker that somebody else has started, while it trains."""
    worker = Worker(folder, card)
    worker.start()
    assert until(lambda: folder.read_state().phase == "training")
    return worker


def ended(worker):
    worker.end = "killed"
    worker.join()


def deaf(scheduler, tmp_path, card):
    """A worker that takes no requests yet."""
    worker = Worker(folder(tmp_path), card)
    worker.listens = False
    scheduler.start(worker)
    assert until(lambda: worker.name in card.used)
    return worker


def goes_on_when_it_listens(worker):
    """Whether what waits for the worker leaves it running."""
    worker.listens = True
    if not until(lambda: waiting_requests(worker.folder.requests) == ()):
        return False
    time.sleep(0.05)
    return worker.status == "running"


def after_a_picture(lease, worker, status):
    """Whether that is the worker's status when training has gone on, and stays so."""
    if not until(lambda: lease.state == "training" and worker.status == status):
        return False
    time.sleep(0.1)
    return worker.status == status


@pytest.mark.parametrize("paused_in", ["tab", "console"])
def test_a_resume_from_the_command_line_ends_a_pause_for_good(
    card, host, lease, scheduler, tmp_path, paused_in
):
    worker = training(scheduler, tmp_path, card)
    if paused_in == "tab":
        lease.ask(worker.folder, "pause")
    else:
        send_request(worker.folder.requests, "pause")
    assert until(lambda: worker.status == "paused")
    host.generate()
    assert after_a_picture(lease, worker, "paused")
    send_request(worker.folder.requests, "resume")
    assert until(lambda: worker.status == "running")
    host.generate()
    assert after_a_picture(lease, worker, "running")


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_pause_from_the_command_line_outlasts_the_picture_that_it_meets(
    card, host, lease, scheduler, tmp_path, when
):
    worker = training(scheduler, tmp_path, card)
    if when == "during":
        with host.queue.lock:
            send_request(worker.folder.requests, "pause")
            assert until(lambda: len(told(worker, "paused")) == 2)
    else:
        worker.listens = False
        send_request(worker.folder.requests, "pause")
        with ThreadPoolExecutor(1) as pool:
            picture = pool.submit(host.generate)
            assert until(lambda: len(waiting_requests(worker.folder.requests)) == 2)
            worker.listens = True
            picture.result(timeout=120)
    assert after_a_picture(lease, worker, "paused")


def test_pause_pressed_when_the_command_line_has_resumed_during_a_picture_comes_true(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    card.take = lambda who, size: card.used.update({who: size})  # its user has asked for this
    with host.queue.lock:
        send_request(worker.folder.requests, "resume")
        assert until(lambda: worker.status == "running")
        lease.ask(worker.folder, "pause")
    assert after_a_picture(lease, worker, "paused")


@pytest.mark.parametrize("asked", ["nothing", "pause", "resume"])
def test_a_pause_that_the_worker_has_yet_to_take_is_its_senders(
    card, host, tmp_path, monkeypatch, scheduling, asked
):
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", PICTURE)
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + PICTURE)
    lease = make(host, tmp_path, patience=lambda: 0.05)
    worker = deaf(scheduling(lease), tmp_path, card)
    if asked == "resume":
        lease.ask(worker.folder, "pause")
    with host.queue.lock:  # there is room, and the lease's own pause waits
        if asked == "pause":
            send_request(worker.folder.requests, "pause")
        elif asked == "resume":
            lease.ask(worker.folder, "resume")
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", 10 * PICTURE)
    with pytest.raises(GpuLeaseError):
        host.generate()
    worker.listens = True
    assert after_a_picture(lease, worker, "paused" if asked == "pause" else "running")


@pytest.mark.parametrize("paused_in", ["tab", "picture"])
def test_a_resume_from_the_command_line_counts_that_meets_a_pause_before_the_worker_does(
    card, host, lease, scheduler, tmp_path, paused_in
):
    worker = training(scheduler, tmp_path, card)
    worker.listens = False
    with ThreadPoolExecutor(1) as pool:
        if paused_in == "tab":
            lease.ask(worker.folder, "pause")
        else:
            picture = pool.submit(host.generate)
            assert until(lambda: waiting_requests(worker.folder.requests) == ("pause",))
        send_request(worker.folder.requests, "resume")
        worker.listens = True
        if paused_in == "tab":
            assert until(lambda: told(worker, "resumed"))
            host.generate()
        else:
            # it is asked again
            picture.result(timeout=10)
    assert after_a_picture(lease, worker, "running") and card.overflows == []


def test_the_lease_does_not_hold_what_it_knows_to_have_ended(card, host, lease, tmp_path):
    worker = begun(card, folder(tmp_path))
    card.give("model")
    assert lease.adopt(worker.folder) and lease.holds(worker.folder)
    ended(worker)
    (run,) = lease._runs.values()
    assert run.is_over() and not lease.holds(worker.folder)


@pytest.mark.parametrize("room", [PICTURE, 10 * PICTURE])
def test_pictures_in_a_row_beside_a_run_that_cannot_pause_wait_once(
    card, host, tmp_path, monkeypatch, scheduling, room
):
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", PICTURE)
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + room)
    lease = make(host, tmp_path, patience=lambda: 0.1, grace=60.0)
    deaf(scheduling(lease), tmp_path, card)
    host.generate()
    lease._patience = None  # nobody asks for it
    for _ in range(2):
        host.generate()
    assert host.pictures == 3 and card.overflows == []


def test_a_pause_for_a_picture_is_withdrawn_when_the_user_wants_none(
    card, host, tmp_path, monkeypatch, scheduling
):
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", PICTURE)
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER + PICTURE)
    wanted = True
    lease = make(host, tmp_path, patience=lambda: 0.1, grace=60.0, pauses=lambda: wanted)
    worker = deaf(scheduling(lease), tmp_path, card)
    host.generate()
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", 10 * PICTURE)
    wanted = False
    host.generate()
    assert lease.state == "beside" and not lease._marker.exists()
    assert goes_on_when_it_listens(worker)


def test_a_resume_that_cannot_be_written_is_sent_when_it_can(
    card, host, lease, scheduler, tmp_path, monkeypatch
):
    worker = training(scheduler, tmp_path, card)
    real, refused, is_full = gpu_lease.send_named, [], True

    def full(folder, name, kind):
        if kind == "resume" and is_full:
            refused.append(name)
            no_space()
        real(folder, name, kind)

    monkeypatch.setattr(gpu_lease, "send_named", full)
    host.generate()
    for count in (2, 4):
        assert until(lambda count=count: len(refused) >= count) and lease._marker.exists()
        # the model comes back for an image all the same
        host.generate()
    is_full = False
    assert after_a_picture(lease, worker, "running")
    assert host.pictures == 3 and card.overflows == [] and not lease._marker.exists()


def test_a_pause_that_cannot_be_written_is_told(
    card, host, lease, scheduler, tmp_path, monkeypatch
):
    worker = training(scheduler, tmp_path, card)
    with monkeypatch.context() as patched:
        patched.setattr(gpu_lease, "send_named", no_space)
        for ask in (host.generate, lambda: lease.ask(worker.folder, "pause")):
            with pytest.raises(GpuLeaseError, match="requests cannot be written: No space left"):
                ask()
    assert host.pictures == 0
    # nor does it come true later
    host.generate()
    assert after_a_picture(lease, worker, "running") and not lease._marker.exists()


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_whatever_keeps_the_lease_from_waiting_leaves_no_run_paused(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    worker.listens = False
    lease._sleep = None
    with pytest.raises(TypeError):
        host.generate()
    assert lease.state == "training" and not lease._marker.exists()
    assert goes_on_when_it_listens(worker)


def test_a_second_host_resumes_what_the_first_paused_after_the_second_was_started(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    again = make(GpuHost(Card()), tmp_path)
    with host.queue.lock:
        scheduler.close()
        assert worker.status == "paused" and again.adopt(worker.folder)
        assert until(lambda: worker.status == "running")
        ended(worker)


@pytest.mark.parametrize("by", ["tab", "console"])
def test_a_host_that_starts_again_leaves_a_later_pause_of_the_users_own(
    card, host, lease, scheduler, tmp_path, by
):
    worker = training(scheduler, tmp_path, card)
    with host.queue.lock:
        earlier = lease._marker.read_text(encoding="utf-8")
        if by == "console":
            scheduler.close()
            card.give("model")
            send_request(worker.folder.requests, "resume")
            assert until(lambda: worker.status == "running")
            send_request(worker.folder.requests, "pause")
            assert until(lambda: worker.status == "paused")
    if by == "tab":
        assert after_a_picture(lease, worker, "running")
        lease.ask(worker.folder, "pause")
        assert until(lambda: worker.status == "paused")
        scheduler.close()
        # that of a host that died, which nobody has removed
        lease._marker.write_text(earlier, encoding="utf-8")
    again = make(GpuHost(Card()), tmp_path)
    assert again.adopt(worker.folder)
    time.sleep(0.05)
    assert worker.status == "paused" and waiting_requests(worker.folder.requests) == ()
    again.host.generate()
    assert until(lambda: again.tick() or again.state == "training")
    assert stays_paused(worker)


def test_what_an_earlier_version_has_paused_for_a_picture_is_resumed(lease, tmp_path):
    run = folder(tmp_path)
    with contextlib.closing(events.EventWriter(run.events)) as writer:
        writer.write(events.Started())
        writer.write(events.Paused())
    lease._marker.write_text(json.dumps({"paused_for_a_picture": [str(run.path)]}))
    assert lease.adopt(run)
    assert waiting_requests(run.requests) == ("resume",) and not lease._marker.exists()


def test_a_resume_pressed_as_a_picture_ends_leaves_no_marker(
    card, host, lease, scheduler, tmp_path, monkeypatch
):
    worker = training(scheduler, tmp_path, card)
    mark, pressing = lease._mark, threading.Event()

    def slow_in_the_browser():
        if threading.current_thread() is browser:
            pressing.set()
            time.sleep(0.1)
        mark()

    monkeypatch.setattr(lease, "_mark", slow_in_the_browser)
    browser = threading.Thread(target=lease.ask, args=(worker.folder, "resume"))
    with host.queue.lock:
        browser.start()
        assert pressing.wait(20)
    assert after_a_picture(lease, worker, "running")
    browser.join()
    assert not lease._marker.exists()


def test_the_marker_names_every_run_that_is_paused_for_a_picture(card, host, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", 100)
    lease = make(host, tmp_path, grace=60.0)
    workers = [begun(card, folder(tmp_path, name)) for name in ("first", "second")]
    assert all(lease.adopt(worker.folder) for worker in workers)
    host.generate()
    send_request(workers[1].folder.requests, "resume")
    assert until(lambda: workers[1].status == "running")
    host.generate()
    again = make(GpuHost(Card()), tmp_path)
    assert all(again.adopt(worker.folder) for worker in workers)
    assert until(lambda: all(worker.status == "running" for worker in workers))
    for worker in workers:
        ended(worker)


def test_a_clock_that_is_set_back_hides_no_pause(card, host, tmp_path, monkeypatch):
    lease = make(host, tmp_path)
    worker = Worker(folder(tmp_path), card)
    ahead = time.time() + 3600
    worker.writer._clock = lambda: ahead
    worker.start()
    assert until(lambda: worker.folder.read_state().phase == "training")
    worker.writer._clock = time.time
    assert lease.adopt(worker.folder, ahead - 1)
    host.generate()
    assert host.pictures == 1 and worker.status == "paused"
    ended(worker)


def test_a_host_that_died_while_it_waited_for_a_pause_is_not_obeyed_later(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    worker.listens = False
    with ThreadPoolExecutor(1) as pool:
        picture = pool.submit(host.generate)
        assert until(lambda: waiting_requests(worker.folder.requests) == ("pause",))
        scheduler.close()
        again = make(GpuHost(Card()), tmp_path)
        assert again.adopt(worker.folder) and worker.status == "running"
        lease._sleep = None  # with the host its thread dies
        with pytest.raises(TypeError):
            picture.result(timeout=120)
    assert goes_on_when_it_listens(worker)
    worker.end = "finished"
    worker.join()


def test_a_host_that_starts_again_does_not_take_an_earlier_workers_pause_for_this_ones(
    card, host, lease, scheduler, tmp_path
):
    run = folder(tmp_path)
    with contextlib.closing(events.EventWriter(run.events)) as earlier:
        earlier.write(events.Started())
        earlier.write(events.Paused())
    since = time.time()
    assert lease.adopt(run, since)
    for _ in range(3):
        lease.tick()
    assert lease.state == "training", "its worker is about to take the lock"
    worker = Worker(run, card)
    worker.start()
    scheduler.current = worker
    scheduler.thread.start()
    assert until(lambda: run.read_state().phase == "training")
    host.generate()
    assert until(lambda: worker.status == "running")
    worker.end = "finished"
    assert_all_is_well(card, lease)


@pytest.mark.parametrize("room", [True, False])
def test_pause_pressed_while_a_picture_waits_comes_true_though_the_worker_never_had_to_pause(
    card, host, tmp_path, monkeypatch, scheduling, room
):
    needed = PICTURE if room else CARD
    monkeypatch.setattr("lora_trainer.hosts.gpu_lease.GENERATION_MEMORY", needed)
    monkeypatch.setattr("tests.hosts.test_gpu_lease.CARD", MODEL + WORKER)
    now = 0.0
    lease = make(host, tmp_path, patience=lambda: 1.0, clock=lambda: now)
    scheduler = scheduling(lease)
    worker = Worker(folder(tmp_path), card)
    assert lease.before_start(worker.folder)
    with ThreadPoolExecutor(1) as pool:
        picture = pool.submit(host.generate)
        assert until(lambda: lease.state == "asking")
        lease.ask(worker.folder, "pause")
        now = 2.0
        with contextlib.nullcontext() if room else pytest.raises(GpuLeaseError):
            picture.result(timeout=120)
    now = 3.0
    scheduler.start(worker)
    assert until(lambda: stays_paused(worker))
    worker.end = "stopped"
    assert_all_is_well(card, lease)


def test_a_model_that_cannot_come_back_is_told_and_tried_again_at_the_next_picture(
    card, host, lease, tmp_path
):
    run = folder(tmp_path)
    lease.before_start(run)
    host.restore_fails = 1
    lease.after_end(run)
    assert (
        str(lease.status().sentence)
        == "the WebUI's model could not be moved back to the graphics card: out of memory"
    )
    host.generate()
    assert_all_is_well(card, lease)


def test_a_model_that_cannot_come_back_for_a_picture_lets_the_training_go_on(
    card, host, lease, scheduler, tmp_path
):
    worker = training(scheduler, tmp_path, card)
    host.restore_fails = 1
    with pytest.raises(LoraTrainerError, match="could not be moved back"):
        host.generate()
    assert until(lambda: worker.status == "running")
    worker.end = "finished"
    assert_all_is_well(card, lease)


def test_memory_before_and_after_is_shown(card, host, lease, tmp_path):
    lease.before_start(folder(tmp_path))
    told = lease.status().to_mapping(str)
    assert told["state"] == "training"
    assert told["before"] == {"free": 4, "total": 8} and told["after"] == {"free": 8, "total": 8}
    lease.before_start(folder(tmp_path, "second"))
    assert lease.status().to_mapping(str) == told, "the model left for the first"


def test_a_host_without_a_model_on_the_card_has_nothing_to_move(card, host, lease, tmp_path):
    host.generate()
    assert host.moves == [], "nor has one that was never asked to make room"
    card.give("model")
    lease.before_start(folder(tmp_path))
    assert host.moves == []
    told = lease.status().to_mapping(str)
    assert told["before"] == told["after"] == {"free": 8, "total": 8}


def test_a_host_whose_queue_cannot_be_watched_says_what_to_do(card, tmp_path):
    host = GpuHost(card, watchable=False)
    lease = make(host, tmp_path)
    lease.before_start(folder(tmp_path))
    assert (
        str(lease.status().sentence)
        == "This WebUI does not report generations: press Pause before you generate, and Resume"
        " after it."
    )


def test_asking_another_run_than_the_one_on_the_card_goes_straight_to_it(lease, tmp_path):
    other = folder(tmp_path, "other")
    lease.ask(other, "pause")
    assert waiting_requests(other.requests) == ("pause",)


def test_the_lock_is_left_as_it_was_found(host, lease):
    host.queue.unwatch()
    assert type(host.queue.lock) is FIFOLock
    with contextlib.suppress(AssertionError):
        host.generate()
    assert not host.is_generating()


def test_two_runs_at_once_are_both_paused_and_the_model_comes_back_after_the_last(
    card, host, lease, scheduler, tmp_path
):
    card.used.clear()
    first = training(scheduler, tmp_path, card)
    second = Worker(folder(tmp_path, "by hand"), card)
    first.card.give(
        first.name
    )  # the ledger has no room for two; who shares the card is not the matter here
    card.take = lambda who, size, take=card.take: take(
        who, 2 if who in (first.name, second.name) else size
    )
    second.start()
    assert until(lambda: second.folder.read_state().phase == "training") and until(
        lambda: lease.adopt(second.folder)
    )
    host.restore_model()
    lease._model_moved = True
    assert until(lambda: "model" not in card.used)
    with host.queue.lock:
        assert (first.status, second.status) == ("paused", "paused")
    assert until(lambda: (first.status, second.status) == ("running", "running"))
    first.end = "finished"
    assert until(lambda: not first.is_alive() and scheduler.current is None)
    time.sleep(0.05)
    assert lease.state == "training" and "model" not in card.used
    second.end = "killed"
    assert_all_is_well(card, lease)


def test_a_host_that_lists_a_model_which_will_not_leave_is_asked_once_a_turn(
    card, host, lease, tmp_path
):
    host.model_on_device = lambda: True
    lease.before_start(folder(tmp_path))
    for _ in range(5):
        lease.tick()
    assert host.moves == ["release"]
    lease._after_turn()
    for _ in range(5):
        lease.tick()
    assert host.moves == ["release", "release"]


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
@pytest.mark.usefixtures("forked_workers")
def test_a_real_worker_makes_way_for_a_picture_and_goes_on_as_if_nothing_had_been(
    card, host, tmp_path
):
    from lora_trainer.jobs.history import History
    from lora_trainer.jobs.queue import Queue
    from lora_trainer.jobs.scheduler import Scheduler as RealScheduler
    from tests.made import begin

    run = begin(tmp_path, "runs/run", epochs=3000, save_steps=100_000)
    queue = Queue(tmp_path / "queue.json")
    lease = make(host, tmp_path, patience=lambda: 90.0)
    real = RealScheduler(
        history=History(tmp_path / "runs"),
        queue=queue,
        lock=tmp_path / "keeper.lock",
        trash=tmp_path / "trash",
        gpu_lease=lease,
    )
    queue.add("run")

    def look(condition):
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline, (run.read_state(), lease.state)
            real.tick()
            time.sleep(0.02)

    look(lambda: real.active() == ("run",))
    assert "model" not in card.used
    with ThreadPoolExecutor(1) as pool:
        picture = pool.submit(host.generate)  # while the worker is still starting
        look(picture.done)
        picture.result()
    paused_at = run.read_state().step
    look(lambda: run.read_state().step > paused_at + 2)
    assert lease.state == "training" and "model" not in card.used
    assert [event.kind for event in run.read_events() if event.kind in ("paused", "resumed")] == [
        "paused",
        "resumed",
    ]
    send_request(run.requests, "stop")
    look(lambda: real.active() == ())
    real.close()
    assert run.read_state().status == "stopped"
    assert card.used == {"model": MODEL} and card.overflows == [] and lease.state == "idle"


@pytest.mark.parametrize("first", ["pause", "picture"])
def test_pause_pressed_before_or_while_a_picture_waits_for_the_worker_to_start_comes_true(
    card, host, lease, scheduler, tmp_path, first
):
    run = folder(tmp_path)
    worker = scheduler.start(Worker(run, card, preparing=0.2))
    if first == "pause":
        lease.ask(run, "pause")
    with ThreadPoolExecutor(1) as pool:
        picture = pool.submit(host.generate)
        assert until(lambda: lease.state == "asking")
        if first == "picture":
            lease.ask(run, "pause")
        picture.result(timeout=120)
    assert until(lambda: lease.state == "training")
    # after the image the worker goes on for a moment, until it has read what was asked
    assert until(lambda: stays_paused(worker))
    worker.end = "stopped"
    assert_all_is_well(card, lease)


def test_pause_pressed_at_the_moment_in_which_a_training_goes_on_comes_true(
    card, host, lease, scheduler, tmp_path, monkeypatch
):
    worker = training(scheduler, tmp_path, card)
    resume_all, pressed = lease._resume_all, []

    def pressed_meanwhile():
        resume_all()
        thread = threading.Thread(target=lease.ask, args=(worker.folder, "pause"))
        thread.start()
        # whoever sees it may wait for it
        pressed.append(thread)
        time.sleep(0.1)

    monkeypatch.setattr(lease, "_resume_all", pressed_meanwhile)
    host.generate()
    assert until(lambda: pressed)
    pressed[0].join(20)
    assert until(lambda: stays_paused(worker))
    worker.end = "stopped"
    assert_all_is_well(card, lease)


def stays_paused(worker):
    if worker.status != "paused":
        return False
    time.sleep(0.3)
    return worker.status == "paused"
