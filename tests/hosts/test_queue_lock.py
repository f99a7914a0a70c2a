"""The host's queue lock: whose turn it is."""

import threading

from lora_trainer.hosts.queue_lock import QueueLock


def test_a_turn_of_ours_that_is_over_gives_no_right_to_the_next():
    turns = QueueLock(threading.Lock())
    with turns.ours() as ours, turns.ours() as within:
        assert ours and within
    turns.lock.acquire()  # the host's
    with turns.ours(wait=False) as ours:
        assert not ours
