"""Evaluates a run by its measurements: the best step and strength, and advice for the next run.

    judge(folder)                 -> Verdict | None   from events.jsonl and config.yaml
    conclude(measurements)        -> Verdict | None   the same from Measurements
    write(folder, verdict), read(folder)              verdict.json in the run folder

measurements.py reads the events, choice.py chooses step and strength, conditions.py has the table
of problems, thresholds.py all thresholds. Without torch. The worker calls it at the end of a run,
as does `python -m lora_trainer report`; the tab reads the result.
"""

from lora_trainer.verdict.conditions import VerdictFinding
from lora_trainer.verdict.judge import Verdict, conclude, judge, read, write
from lora_trainer.verdict.measurements import MeasuredStep, Measurements

__all__ = [
    "MeasuredStep",
    "Measurements",
    "Verdict",
    "VerdictFinding",
    "conclude",
    "judge",
    "read",
    "write",
]
