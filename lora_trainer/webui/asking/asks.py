"""Asks trained language models questions. A queued job loads the model, answers, and waits some
time for the next question.

    asking.listing(language)     the trained models
    asking.view(run, language)   the questions and answers so far, and the job's state
    asking.ask(run, ...)         sends a question to the job, or starts it
    asking.copy(run, ...)        the LoRA's folder, copied to where the user wants it

The job of a run always has the same folder, so that its answers are kept. Called by the routes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from lora_trainer import files
from lora_trainer.errors import LoraFileError, RunError
from lora_trainer.jobs.history import HistoryEntry
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import asking
from lora_trainer.settings.asking import AskSettings
from lora_trainer.webui.training import run_view
from lora_trainer.webui.training.run_view import AnswerView, RunView
from lora_trainer.webui.training.runs import JobSettings, Runs

LONGEST_QUESTION = 20_000
MOST_ANSWERS = 200
USUAL_STRENGTH = 1.0


class TrainedModel(TypedDict):
    """A run that can be asked. `steps`: the saved ones, oldest first; `strength`: the best one
    according to the verdict, or 1; `folder`: path of its newest LoRA, "" for remote users.
    """

    id: str
    name: str
    base: str
    steps: list[int]
    best_step: int | None
    strength: float
    folder: str
    changed: float | None


class AskView(TypedDict):
    """The last MOST_ANSWERS questions and answers, oldest first. `job`: the job that answers, if
    there was one; `count`: all answers.
    """

    model: TrainedModel
    job: RunView | None
    answers: list[AnswerView]
    count: int


class Asking:
    """The questions to the runs of a data folder."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def listing(self, *, remote: bool) -> list[TrainedModel]:
        """The runs that can be asked, newest first."""
        return [_model(entry, remote) for entry in self._runs.history.listing() if _can_ask(entry)]

    def view(self, run_id: str, language: str, *, remote: bool) -> AskView:
        """The questions and answers of a run. Raises NotFound, RunError."""
        entry = self._trained(run_id)
        job = self._job_of(entry)
        answers = job.state.answers if job else ()
        return {
            "model": _model(entry, remote),
            "job": self._runs.one(job.id, language) if job else None,
            "answers": [run_view.answer(event) for event in answers[-MOST_ANSWERS:]],
            "count": len(answers),
        }

    def ask(
        self, run_id: str, question: str, strength: float, step: int | None, token: str
    ) -> None:
        """Send a question to the job, or start the job with it. Each token starts one job. Raises
        NotFound, RunError.
        """
        entry = self._trained(run_id)
        question = question.strip()
        if not question or len(question) > LONGEST_QUESTION:
            raise RunError(
                "the question has {count} characters",
                hint="Write 1 to {most} characters.",
                count=len(question),
                most=LONGEST_QUESTION,
            )
        if not 0 <= strength <= 2:
            raise RunError("{strength} is not a strength", hint="Use 0 to 2.", strength=strength)
        if step is not None and step not in _steps(entry):
            raise RunError("step {step} is no longer saved", hint="Choose another.", step=step)
        job = self._job_of(entry)
        if job is not None and job.alive and not (job.heard and job.state.ended):
            values = {"question": question, "strength": strength, "step": step}
            send_request(job.folder.requests, "ask", **values)
            return
        line = self._runs.queue.read()
        if job is not None and (job.id in line or job.id == line.starting):
            raise RunError(
                "the previous question is waiting for the model",
                hint="It starts as soon as no training is running.",
            )
        settings = AskSettings(
            run=entry.folder.path, question=question, strength=strength, step=step
        )
        content = asking.to_yaml(settings)
        with self._runs.click(token, "now") as click:
            if not click.run_id:
                if job is None:
                    made = self._runs.make(f"ask-{entry.id}", JobSettings("ask", content))
                else:
                    made = folders.begin_job(job.folder.path, "ask", content)
                click.run_id = made.path.name

    def copy(self, run_id: str, step: int | None, target: str) -> Path:
        """Copy the LoRA of a step into a folder of this machine, which may be new. Returns the
        copy. Raises RunError, LoraFileError. For local users only.
        """
        entry = self._trained(run_id)
        source = _lora(entry, step)
        folder = Path(target.strip().strip("\"'")).expanduser()
        if source is None or not source.is_dir():
            raise RunError("this LoRA no longer exists", hint="Look in the run's folder.")
        if not target.strip() or not folder.is_absolute():
            raise RunError(
                "{path} is not the full path of a folder",
                hint="Give the full path, as your file manager shows it.",
                path=target[:200],
            )
        copy = folders.free_name(folder / source.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, copy)
        except OSError as error:
            hint = "Choose another folder, or free some disk space."
            raise LoraFileError.cannot_write(copy, error, hint) from error
        return copy

    def _trained(self, run_id: str) -> HistoryEntry:
        entry = self._runs.entry(run_id)
        if entry.problem is not None:
            raise entry.problem
        if not _can_ask(entry):
            raise RunError(
                "{name} is not a trained language model",
                hint="Choose a run that has saved a LoRA.",
                name=entry.id,
            )
        return entry

    def _job_of(self, trained: HistoryEntry) -> HistoryEntry | None:
        """The job that answers for a run, if there was one."""
        return next(self._jobs_of(trained), None)

    def _jobs_of(self, trained: HistoryEntry) -> Iterator[HistoryEntry]:
        name = f"ask-{trained.id}"
        for path in sorted(self._runs.history.runs.glob(f"{_escaped(name)}*")):
            if not (path / folders.SETTINGS_OF["ask"]).is_file():
                continue
            entry = self._runs.history.entry(path.name)
            run = entry.settings.get("run")
            if isinstance(run, str) and files.place(Path(run)) == files.place(trained.folder.path):
                yield entry


def _escaped(name: str) -> str:
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)


def _can_ask(entry: HistoryEntry) -> bool:
    return (
        entry.problem is None
        and entry.job == "train"
        and entry.state.data == "texts"
        and bool(entry.state.saved)
    )


def _steps(entry: HistoryEntry) -> list[int]:
    return list(dict.fromkeys(event.step for event in entry.state.saved))


def _lora(entry: HistoryEntry, step: int | None) -> Path | None:
    found = [event for event in entry.state.saved if step in (None, event.step)]
    return entry.folder.path / found[-1].file if found else None


def _model(entry: HistoryEntry, remote: bool) -> TrainedModel:
    steps, judged = _steps(entry), entry.state.judged
    best = judged.step if judged and judged.step in steps else None
    strength = entry.state.measured_strength(best or steps[-1])
    lora = _lora(entry, None)
    return {
        "id": entry.id,
        "name": run_view.title_of(entry, entry.state.name or run_view.name_of(entry)),
        "base": run_view.last_part(str(entry.settings.get("base_model") or "")),
        "steps": steps,
        "best_step": best,
        "strength": USUAL_STRENGTH if strength is None else strength,
        "folder": "" if remote or lora is None else str(lora),
        "changed": entry.state.changed or None,
    }
