"""Shows a run on the terminal: a progress bar with loss and time left, and a line for each notable
event. Where stderr is not a terminal (a file, a pipe), periodic lines replace the bar. Reads events
only.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from tqdm import tqdm

from lora_trainer.jobs.start import note_death, tail
from lora_trainer.runs import events
from lora_trainer.runs.events import Event, read_events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import send_request
from lora_trainer.runs.state import EXIT_STATUSES, RunState, fold

POLL_SECONDS = 0.1
LINE_SECONDS = 60.0
LINES_A_PHASE = 20
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
PHASES = {
    "checking": "Checking the dataset",
    "encoding": "Encoding images",
    "loading": "Loading the model",
    "training": "Training",
    "installing": "Installing packages",
    "downloading": "Downloading the model, in MB",
    "captioning": "Captioning",
    "previewing": "Making previews",
    "saving": "Saving",
    "validating": "Validating",
    "exporting": "Writing the LoRA file",
    "merging": "Merging the LoRA into the base model",
    "concluding": "Evaluating the run",
    "delivering": "Copying it to the LoRA folder",
}


BETWEEN_STEPS = ("saving", "validating", "previewing")
"""Phases that interrupt the training."""


class Console:
    """Shows one worker's run until it ends."""

    def __init__(self, folder: RunFolder, worker: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._worker = worker
        # an earlier worker's events are not shown again
        history, self._offset = read_events(folder.events)
        self._state = fold(history)
        self._bar: Bar | Lines | None = None
        self._has_ended = False
        self._killed = False
        self._stop_requested = False
        self._last_hint = ""

    def watch(self) -> int:
        """Show the run until its worker exits. Returns the worker's exit status."""
        self._print(f"Starting in {self._folder.path}")
        with interrupts() as presses:
            while True:
                ended = self._worker.poll() is not None
                self._show_new_events()
                if ended:
                    return self._end()
                self._handle_interrupts(presses.count)
                time.sleep(POLL_SECONDS)

    def _handle_interrupts(self, interrupt_count: int) -> None:
        """First Ctrl-C: stop after this step and save. Second: kill the worker."""
        if interrupt_count >= 1 and not self._stop_requested:
            self._stop_requested = True
            what = "batch" if self._state.job == "caption" else "step"
            self._print(f"Stopping after this {what} and saving. Ctrl-C again: stop at once.")
            # in a terminal the worker gets SIGINT as well; a signal sent to this process alone does
            # not reach it
            with contextlib.suppress(OSError):
                send_request(self._folder.requests, "stop")
        if interrupt_count >= 2 and not self._killed:
            self._killed = True
            self._worker.kill()

    def _show_new_events(self) -> None:
        new, self._offset = read_events(self._folder.events, self._offset)
        for event in new:
            self._state = fold([event], self._state)
            self._has_ended = self._state.ended
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case events.Started() if event.resumed_from:
                self._print(f"Resuming from step {event.resumed_from}")
            case events.Planned() if self._state.job == "caption":
                self._close_bar()
                self._print(
                    f"{event.name}: {event.step_count} of {_count(event.image_count, 'image')} to"
                    f" caption, on {event.device}"
                )
            case events.Planned() if event.data == "texts":
                self._close_bar()
                self._print(
                    f"{event.name}: {event.family}, {_count(event.image_count, 'text')}"
                    f"{_held_out(event)} with"
                    f" {_count(event.token_count, 'token')} to learn,"
                    f" {_count(event.step_count, 'step')} in {_count(event.epoch_count, 'epoch')},"
                    f" on {event.device}, mixed_precision {event.precision}"
                )
            case events.Planned():
                self._close_bar()
                self._print(
                    f"{event.name}: {event.family_name or event.family},"
                    f" {_count(event.image_count, 'image')}"
                    f"{_held_out(event)} in {_count(event.bucket_count, 'bucket')} at"
                    f" {event.resolution} px, {_count(event.step_count, 'step')} in"
                    f" {_count(event.epoch_count, 'epoch')}, on {event.device}, mixed_precision"
                    f" {event.precision}"
                )
                if event.training_adapter:
                    self._print(f"Training adapter: {event.training_adapter}")
            case events.Phase() if event.phase == "training":
                self._open_bar(self._state.step_count, "Training", self._state.step)
            case events.Phase() if event.phase in BETWEEN_STEPS:
                # these interrupt the training: its bar stays and names them
                if self._bar is not None:
                    self._bar.show(self._state.step, PHASES[event.phase].lower())
            case events.Phase() if event.phase == "checking" and not event.total:
                # the next event has the total
                pass
            case events.Phase():
                self._close_bar()
                if event.total:
                    self._open_bar(event.total, PHASES.get(event.phase, event.phase), 0)
                else:
                    self._print(PHASES.get(event.phase, event.phase))
            case events.Progress() if self._bar is not None and self._state.phase in (
                "training",
                "captioning",
            ):
                self._bar.show(event.step, describe_pace(self._state))
            case events.Progress() if (
                self._bar is not None and self._state.phase not in BETWEEN_STEPS
            ):
                self._bar.show(event.step)
            case events.Saved():
                self._print(f"Saved step {event.step}: {event.file}")
            case events.Validated():
                self._print(describe_check(event, self._state.data))
            case events.Previewed():
                self._print(f"Preview at strength {event.strength:g}: {event.file}")
            case events.Answered():
                self._print(f"{event.prompt}\n  at strength {event.strength:g}: {event.answer}")
            case events.Judged():
                self._print(f"Verdict: {event.message}")
            case events.Warned():
                self._print(f"Note: {self._with_hint(event.message, event.hint)}")
            case events.Paused():
                self._print(
                    f"Paused at step {event.step}. Continue with: python -m lora_trainer tell"
                    f' "{self._folder.path}" resume'
                )
            case events.Resumed():
                self._print("Resumed")

    def _end(self) -> int:
        self._close_bar()
        status = int(self._worker.returncode)
        # after Ctrl-C during the worker's imports, before its signal handler is installed
        explained = self._killed or (
            self._stop_requested and tail(self._folder.log).endswith("KeyboardInterrupt")
        )
        if not self._state.ended and not explained:
            failure = note_death(self._folder, status)
            if failure is not None:
                self._state = fold([failure], self._state)
        print(describe_state(self._state, self._folder))
        if self._killed and self._has_ended:
            # it had already saved and reported its end when it was killed
            return EXIT_STATUSES[self._state.status]
        return status if status >= 0 else 1

    def _open_bar(self, total: int, title: str, done: int) -> None:
        if self._bar is not None and self._bar.title == title:
            return
        self._close_bar()
        self._bar = Bar(total, title, done) if sys.stderr.isatty() else Lines(total, title)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _with_hint(self, message: str, hint: str) -> str:
        """`message`, followed by its hint unless the message before had the same one."""
        repeated, self._last_hint = hint == self._last_hint, hint
        if not hint or repeated:
            return message
        return (
            f"{message} {hint}" if message.endswith((".", ":", "!", "?")) else f"{message}. {hint}"
        )

    def _print(self, text: str) -> None:
        tqdm.write(text)


@dataclass
class Interrupts:
    """How often Ctrl-C was pressed."""

    count: int = 0


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Count Ctrl-C (SIGINT) instead of raising KeyboardInterrupt. Main thread only."""
    presses = Interrupts()

    def count(number: int, frame: FrameType | None) -> None:
        presses.count += 1

    before = signal.getsignal(signal.SIGINT)
    # a shell starts background jobs with SIGINT ignored; keep that
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, count)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


class Bar:
    """A phase's progress as a tqdm bar."""

    def __init__(self, total: int, title: str, done: int) -> None:
        self.title = title
        # tqdm's own rate includes pauses and previews; `describe_pace` excludes them
        self._bar: tqdm[None] = tqdm(
            total=total, desc=title, initial=done, dynamic_ncols=True, bar_format=BAR
        )

    def show(self, done: int, details: str = "") -> None:
        self._bar.n = done
        self._bar.set_postfix_str(details, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A phase's progress for a file: a line for each twentieth, and at least one a minute."""

    def __init__(self, total: int, title: str) -> None:
        self.title = title
        self._total = total
        self._shown = -1
        self._shown_at = time.monotonic()

    def show(self, done: int, details: str = "") -> None:
        part = done * LINES_A_PHASE // max(1, self._total)
        now = time.monotonic()
        if part > self._shown or now - self._shown_at >= LINE_SECONDS:
            self._shown, self._shown_at = part, now
            print(
                f"{self.title}: {done} of {self._total}" + (f", {details}" if details else ""),
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        pass


@contextlib.contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that shows progress: a bar on a terminal, lines elsewhere."""
    bar: Bar | Lines | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = Bar(total, title, 0) if sys.stderr.isatty() else Lines(total, title)
        bar.show(done)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def describe_pace(state: RunState) -> str:
    """Loss, time left and speed, if known: "loss 0.1234, 12:30 left, 1.42 s/step"."""
    parts = [] if state.smoothed_loss is None else [f"loss {state.smoothed_loss:.4f}"]
    steps_left = state.step_count - state.step
    if state.seconds_left is not None and steps_left > 0:
        pace = state.seconds_left / steps_left
        unit = "image" if state.job == "caption" else "step"
        parts += [
            f"{_duration(state.seconds_left)} left",
            f"{pace:.2f} s/{unit}" if pace >= 1 else f"{1 / max(pace, 1e-9):.2f} {unit}s/s",
        ]
    return ", ".join(parts)


def describe_state(state: RunState, folder: RunFolder, *, alive: bool = False) -> str:
    """A run's state in a few lines, with the command that continues it."""
    go_on = f'Continue with: python -m lora_trainer resume "{folder.path}"'
    if state.job == "caption" and state.status in ("finished", "stopped"):
        end = "Finished" if state.status == "finished" else "Stopped"
        where = f", in {state.file}" if state.file else ""
        return f"{end}: {_count(state.step, 'caption')} written{where}" + (
            "" if end == "Finished" else f"\n{go_on}"
        )
    if state.job == "caption" and state.status in ("running", "paused") and not alive:
        return (
            f"Interrupted at image {state.step} of {state.step_count}; the captions that were"
            f" written stay\n{go_on}"
        )
    if state.status == "finished":
        loss = "" if state.smoothed_loss is None else f", loss {state.smoothed_loss:.4f}"
        lines = [
            f"Finished: {state.name}, {_count(state.step, 'step')}{loss}",
            f"  {folder.path / state.file}",
        ]
        if state.delivered:
            lines.append(f"  delivered: {state.delivered}")
    elif state.status == "stopped":
        # stopped before the first step, there is no file; before planning, no step count either
        saved = f"saved as {folder.path / state.file}" if state.file else "nothing was trained yet"
        total = f" of {state.step_count}" if state.step_count else ""
        lines = [f"Stopped at step {state.step}{total}; {saved}", go_on]
    elif state.status == "failed" and state.failure is not None:
        lines = [
            f"Failed: {state.failure.message}",
            *([state.failure.hint] if state.failure.hint else []),
            *([go_on] if state.saved else []),
        ]
    elif state.status in ("running", "paused") and not alive:
        kept = f"step {state.saved[-1].step} is" if state.saved else "nothing was"
        lines = [f"Interrupted at step {state.step} of {state.step_count}; {kept} saved", go_on]
    elif state.status == "new":
        start = f'. Start it with: python -m lora_trainer resume "{folder.path}"'
        lines = ["Not started yet" + ("" if alive else start)]
    else:
        pace = describe_pace(state) if state.phase == "training" else ""
        lines = [
            f"{state.status}: {PHASES.get(state.phase, state.phase)}, step {state.step} of"
            f" {state.step_count}" + (f", {pace}" if pace else "")
        ]
    return "\n".join(lines)


def describe_check(event: events.Validated, data: str) -> str:
    """ "Step 100: loss 0.0512 on training images, 0.0634 on held-out images (1.2 s)"."""
    losses = [
        f"{loss:.4f} on {which} {data}"
        for loss, which in ((event.training_loss, "training"), (event.validation_loss, "held-out"))
        if loss is not None
    ]
    return f"Step {event.step}: loss {', '.join(losses)} ({event.seconds:.1f} s)"


def _held_out(event: events.Planned) -> str:
    return f" ({event.held_out_count} more held out)" if event.held_out_count else ""


def _count(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
