"""A run on the terminal: a bar with loss and time left, and a line for everything that matters. Reads events; knows nothing of training."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from tqdm import tqdm

from lora_trainer.jobs.start import note_death
from lora_trainer.runs import events
from lora_trainer.runs.events import Event, read_events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.state import RunState, fold

POLL_SECONDS = 0.1
PHASES = {
    "checking": "Checking images and captions", "encoding": "Encoding images", "loading": "Loading the model", "training": "Training",
    "previewing": "Making previews", "saving": "Saving", "exporting": "Writing the LoRA file", "delivering": "Putting it into the LoRA folder",
}  # fmt: skip


class Console:
    """Shows one worker's run until it ends."""

    def __init__(self, folder: RunFolder, worker: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._worker = worker
        # what an earlier worker said is not shown again
        history, self._offset = read_events(folder.events)
        self._state = fold(history)
        self._bar: tqdm[None] | None = None

    def watch(self) -> int:
        """Returns the worker's exit status."""
        asked_to_stop = False
        while True:
            try:
                ended = self._worker.poll() is not None
                self._show_new_events()
                if ended:
                    return self._end()
                time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                if asked_to_stop:
                    self._worker.kill()
                    self._say("Stopped at once. What was saved before is kept; `resume` goes on from there.")
                else:
                    asked_to_stop = True
                    self._say("Stopping after this step and saving. Ctrl-C again: stop at once.")

    def _show_new_events(self) -> None:
        new, self._offset = read_events(self._folder.events, self._offset)
        for event in new:
            self._state = fold([event], self._state)
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case events.Started() if event.resumed_from:
                self._say(f"Going on from step {event.resumed_from}")
            case events.Planned():
                self._close_bar()
                self._say(
                    f"{event.name}: {event.family.upper()}, {event.image_count} images in {event.bucket_count} bucket(s) at {event.resolution} px, "
                    f"{event.step_count} steps in {event.epoch_count} epoch(s), on {event.device}, mixed_precision {event.precision}"
                )
            case events.Phase() if event.phase == "training":
                self._open_bar(self._state.step_count, "Training", self._state.step)
            case events.Phase() if event.phase in ("saving", "previewing"):
                pass
            case events.Phase():
                self._close_bar()
                if event.total:
                    self._open_bar(event.total, PHASES.get(event.phase, event.phase), 0)
                else:
                    self._say(PHASES.get(event.phase, event.phase))
            case events.Progress() if self._bar is not None:
                self._bar.n = event.step
                if event.loss is not None:
                    self._bar.set_postfix_str(f"loss {self._state.smoothed_loss or event.loss:.4f}", refresh=False)
                self._bar.refresh()
            case events.Saved():
                self._say(f"Saved step {event.step}: {event.file}")
            case events.Previewed():
                self._say(f"Preview at strength {event.strength:g}: {event.file}")
            case events.Warned():
                self._say(f"Note: {event.message}" + (f" {event.hint}" if event.hint else ""))
            case events.Paused():
                self._say(f"Paused at step {event.step}. `tell {self._folder.path} resume` goes on.")

    def _end(self) -> int:
        self._close_bar()
        status = int(self._worker.returncode)
        if not self._state.ended:
            failure = note_death(self._folder, status)
            if failure is not None:
                self._state = fold([failure], self._state)
        print(describe_state(self._state, folder=self._folder))
        return status if status >= 0 else 1

    def _open_bar(self, total: int, title: str, done: int) -> None:
        if self._bar is not None and self._bar.desc == title:
            return
        self._close_bar()
        self._bar = tqdm(total=total, desc=title, initial=done, dynamic_ncols=True, unit="")

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        tqdm.write(text)


def describe_state(state: RunState, *, folder: RunFolder | None = None, alive: bool = False) -> str:
    """Where a run stands, in a few lines."""
    where = f'"{folder.path}"' if folder else "RUN_DIR"
    lines: Sequence[str]
    if state.status == "finished":
        lines = [f"Finished: {state.name}, {state.step} steps, smoothed loss {_number(state.smoothed_loss)}"]
        lines.append(f"  {folder.path / state.file if folder else state.file}")
        if state.delivered:
            lines.append(f"  delivered: {state.delivered}")
    elif state.status == "stopped":
        lines = [
            f"Stopped at step {state.step} of {state.step_count}; what was learned is in {state.file}",
            f"Go on with: python -m lora_trainer resume {where}",
        ]
    elif state.status == "failed" and state.failure is not None:
        lines = [f"Failed: {state.failure.message}", *([state.failure.hint] if state.failure.hint else [])]
    elif state.status in ("running", "paused") and not alive:
        lines = [f"Interrupted at step {state.step} of {state.step_count}", f"Go on with: python -m lora_trainer resume {where}"]
    else:
        left = "" if state.seconds_left is None else f", {state.seconds_left:.0f} s left"
        lines = [
            f"{state.status}: {PHASES.get(state.phase, state.phase)}, step {state.step} of {state.step_count}, loss {_number(state.smoothed_loss)}{left}"
        ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
