"""Workers forked from a process that has imported their packages already: for tests that start
several and are about something else than a start, most of which is imports.

    pytest -> a server, once: `forked.py serve ADDRESS`
           -> in an interpreter's place: `forked.py launch ADDRESS SCRIPT ARGUMENT ...`

The launcher hands its standard streams, environment and working directory to the server, which
forks a process that runs the script. The launcher ends as that process ends, by the same signal if
it was one; and that process is killed when the launcher is. Other signals are for the process
itself. All of them have the server's hash seed, and the number of threads that it was started with.

Linux only: elsewhere a process that has imported torch cannot be relied on after a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
STREAMS = (0, 1, 2)
READY = "ready"
IMPORTED = (
    "lora_trainer.worker.job",
    "lora_trainer.tasks.caption",
    "lora_trainer.tasks.diffusion",
    "lora_trainer.tasks.language",
    "lora_trainer.training.joined",
    "lora_trainer.families.components.ldm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "peft",
)


@contextlib.contextmanager
def server(address: str, imported: Sequence[str] = IMPORTED) -> Iterator[list[str]]:
    """Start a server at that path of a socket, with these modules imported. Yields what stands in
    an interpreter's place.
    """
    import subprocess

    with subprocess.Popen(
        [sys.executable, str(HERE), "serve", address, *imported],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        # a Ctrl-C is not for it
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == READY
        # without site, it starts in no time
        yield [sys.executable, "-I", "-S", str(HERE), "launch", address]
        # leaving closes its standard input, and it ends with what it has started
        process.communicate()


def launch(address: str, command: Sequence[str]) -> None:
    """Have the command forked, and end as it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = json.dumps([command, dict(os.environ), str(Path.cwd())]).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(asked).to_bytes(8, "big")], STREAMS)
        connection.sendall(asked)
        answer = connection.recv(8)
    if not answer:
        sys.exit("the server is gone")
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "big"))
    if code < 0:
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(address: str, imported: Sequence[str]) -> None:
    """Import the modules, then fork what launchers ask for, until standard input is closed."""
    import gc
    import importlib
    import select
    import threading

    # as a worker does
    gc.disable()
    sys.path[0] = str(ROOT)
    from lora_trainer import environment

    environment.activate()
    for name in imported:
        importlib.import_module(name)
    gc.freeze()
    assert threading.active_count() == 1, "a fork has the thread that forks, and no other"
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    launchers: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print(READY, flush=True)
        while True:
            ready, _, _ = select.select([0, woken, listener, *launchers.values()], [], [])
            if 0 in ready:
                break
            if woken in ready:
                os.read(woken, 4096)
                _tell_ends(launchers)
            for pid, launcher in launchers.items():
                if launcher in ready:
                    # it says nothing: it is gone
                    os.kill(pid, signal.SIGKILL)
            if listener in ready:
                launcher, _ = listener.accept()
                _fork(launcher, launchers, [listener, *launchers.values()])
    for pid in launchers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _tell_ends(launchers: dict[int, socket.socket]) -> None:
    """Tell the launchers of the processes that have ended."""
    while launchers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with launchers.pop(pid) as launcher, contextlib.suppress(OSError):
            launcher.sendall(status.to_bytes(8, "big"))


def _fork(
    launcher: socket.socket,
    launchers: dict[int, socket.socket],
    others: Sequence[socket.socket],
) -> None:
    length, streams, *_ = socket.recv_fds(launcher, 8, len(STREAMS))
    with launcher.makefile("rb") as reader:
        asked = reader.read(int.from_bytes(length, "big"))
    if len(streams) != len(STREAMS) or not asked:
        # the launcher is gone already
        launcher.close()
        for stream in streams:
            os.close(stream)
        return
    if pid := os.fork():
        launchers[pid] = launcher
        for stream in streams:
            os.close(stream)
        return
    try:
        _become(launcher, others, streams, asked)
    finally:
        os._exit(1)


def _become(
    launcher: socket.socket, others: Sequence[socket.socket], streams: Sequence[int], asked: bytes
) -> None:
    """Run what was asked, in the forked process, and end it."""
    for other in (launcher, *others):
        other.close()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, number in zip(streams, STREAMS, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os._exit(_run(asked))


def _run(asked: bytes) -> int:
    """The exit status of a script that is run as Python would."""
    import runpy
    import traceback

    try:
        command, environ, folder = json.loads(asked)
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(folder)
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        return 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        launch(sys.argv[2], sys.argv[3:])
