"""Forge's one thread for everything that moves models: the process's main thread."""

from __future__ import annotations

import threading
import time
import traceback

lock = threading.Lock()
last_id = 0
waiting_list = []
finished_list = []
last_exception = None


class Task:
    def __init__(self, task_id, func, args, kwargs):
        self.task_id = task_id
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.result = None
        self.exception = None

    def work(self):
        global last_exception
        try:
            self.result = self.func(*self.args, **self.kwargs)
            last_exception = None
        except Exception as error:
            traceback.print_exc()
            self.exception = last_exception = error


def loop():
    while True:
        time.sleep(0.01)
        if waiting_list:
            with lock:
                task = waiting_list.pop(0)
            task.work()
            with lock:
                finished_list.append(task)


def async_run(func, *args, **kwargs):
    global last_id
    with lock:
        last_id += 1
        task = Task(task_id=last_id, func=func, args=args, kwargs=kwargs)
        waiting_list.append(task)
    return task.task_id


def run_and_wait_result(func, *args, **kwargs):
    number = async_run(func, *args, **kwargs)
    while True:
        time.sleep(0.01)
        task = next((task for task in list(finished_list) if task.task_id == number), None)
        if task is not None:
            with lock:
                finished_list.remove(task)
            return task.result
