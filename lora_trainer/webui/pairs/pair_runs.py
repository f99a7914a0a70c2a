"""Jobs that make question and answer pairs from the documents of a dataset, into a new dataset.

    begin(runs, datasets, dataset, ...)    creates and queues the job
    of_output(runs, folder)                the job whose pairs go into this dataset

Called by the routes.
"""

from __future__ import annotations

from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import CheckpointError, ConfigError, DatasetError
from lora_trainer.language.detect import read_folder
from lora_trainer.language.pairs import open_server
from lora_trainer.language.text_files import TEXT_SUFFIXES, list_files
from lora_trainer.settings import pairing
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES
from lora_trainer.webui.common.safe_names import safe_name
from lora_trainer.webui.datasets.registry import DatasetInfo, Datasets
from lora_trainer.webui.training.run_view import RunView
from lora_trainer.webui.training.runs import JobSettings, Runs

USUAL_COUNT = 3
FILE = "pairs.jsonl"


def begin(
    runs: Runs,
    datasets: Datasets,
    dataset: DatasetInfo,
    *,
    model: Path | None,
    url: str,
    served: str,
    count: int,
    token: str,
    language: str,
) -> tuple[RunView, DatasetInfo]:
    """The queued job, and the dataset for its pairs. Each token creates one. Raises DatasetError,
    CheckpointError, ConfigError.
    """
    documents = [path for path in list_files(dataset.path) if path.suffix.lower() in TEXT_SUFFIXES]
    if not documents:
        raise DatasetError(
            "there are no documents in {name}", hint="Add .txt or .md files.", name=dataset.name
        )
    if model is not None:
        read_folder(model)
    elif url:
        open_server(url, served)
    else:
        raise CheckpointError("no language model is chosen", hint="Choose one.")
    with runs.click(token, "now") as click:
        if not click.run_id:
            made = datasets.create(f"{dataset.name} pairs", "texts")
            try:
                settings = pairing.from_mapping(
                    {
                        "input": str(dataset.path),
                        "output": str(made.path / FILE),
                        "base_model": str(model) if model else None,
                        "url": url,
                        "model": served,
                        "count": count,
                    },
                    source="the request",
                )
            except ConfigError:
                datasets.delete(made.id)
                raise
            name = safe_name(f"pairs-{dataset.name}", forbidden=FORBIDDEN_IN_NAMES)
            job = JobSettings("pairs", pairing.to_yaml(settings))
            click.run_id = runs.make(name, job).path.name
    output = str(runs.entry(click.run_id).settings["output"])
    return runs.one(click.run_id, language), datasets.find(Path(output).parent.name)


def of_output(runs: Runs, folder: Path) -> str | None:
    """The id of the newest job for this dataset."""
    for entry in runs.history.listing():
        output = entry.settings.get("output") if entry.job == "pairs" else None
        if isinstance(output, str) and files.place(Path(output).parent) == files.place(folder):
            return entry.id
    return None
