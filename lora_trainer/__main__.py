"""The command line: `python -m lora_trainer COMMAND`. Each command imports what it needs, so that
commands without the worker's packages start without them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer import __version__, environment, files
from lora_trainer.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    LoraFileError,
    LoraTrainerError,
    RunError,
)

if TYPE_CHECKING:
    from lora_trainer.lora.survival import Survival


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0 done, 1 error (printed), 2 usage error, 3 stopped
    by request.
    """
    # before parsing: the path and settings options need PyYAML, which may be in the overlay
    overlay = environment.activate()
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if not hasattr(asked, "command"):
        parser.print_help()
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a Windows console in a legacy code page cannot print every file name; that must not
            # end a run
            stream.reconfigure(errors="replace")
    try:
        if asked.needs_packages:
            overlay.require()
        return int(asked.command(asked) or 0)
    except LoraTrainerError as error:
        print(error.report(), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # the reader of the pipe has closed it (`inspect ... | head`); keep the interpreter from
        # failing again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # a folder without permission or a full disk needs no traceback
        if files.is_disk_full(error):
            place = f": {error.filename} could not be written" if error.filename else ""
            print(f"the disk is full{place}\nFree some space, then try again.", file=sys.stderr)
            return 1
        print(f"{error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


STOPPED = 3
"""The exit status of a run that was stopped by request."""


class CommandParser(argparse.ArgumentParser):
    """A subcommand's parser whose options are added on first use: making them may need PyYAML,
    which other commands run without.
    """

    def __init__(
        self, options: Callable[[argparse.ArgumentParser], None] | None = None, **more: Any
    ) -> None:
        super().__init__(**more)
        self._make_options = options

    def parse_known_args(self, *values: Any, **more: Any) -> Any:
        self.complete()
        return super().parse_known_args(*values, **more)

    def complete(self) -> CommandParser:
        """Add the deferred options, once; returns self."""
        make, self._make_options = self._make_options, None
        if make is not None:
            make(self)
        return self


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lora_trainer", description="Train a LoRA from your own images."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=CommandParser
    )

    def add(
        name: str,
        command: Any,
        summary: str,
        *,
        needs_packages: bool = True,
        options: Callable[[argparse.ArgumentParser], None] | None = None,
        **more: Any,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, options=options, **more)
        sub.set_defaults(command=command, needs_packages=needs_packages)
        return sub

    sub = add("train", train, "train a LoRA with the settings of a YAML file")
    sub.add_argument("--config", required=True, **FILE, help="the YAML file; `init` writes one")
    sub.add_argument("--set", **CHANGES, help="change a setting; may be given several times")

    summary = "predict the memory of a training, and what to change if a card has too little"
    sub = add("plan", plan, summary)
    sub.add_argument("--config", required=True, **FILE, help="the YAML file, as for `train`")
    text = "the memory of a card that is not here, such as 8GB (default: this machine's device)"
    sub.add_argument("--card", metavar="SIZE", help=text)
    sub.add_argument("--set", **CHANGES, help="change a setting; may be given several times")
    sub.add_argument("--json", **AS_JSON)

    sub = add("resume", resume, "continue a stopped or interrupted run from its last resume point")
    sub.add_argument("run_dir", **RUN)
    sub.add_argument("--set", **CHANGES, help="change a setting, such as max_train_steps=2000")

    summary = "train a run's LoRA further at twice the rank, with half the steps, as a new run"
    sub = add("grow", grow, summary)
    sub.add_argument("run_dir", **RUN)
    sub.add_argument("--set", **CHANGES, help="change a setting, such as lora_rank=32")

    summary = "caption a folder of images with a model; captions written by a person are kept"
    add("caption", caption, summary, options=add_caption)

    summary = (
        "torch's launcher, for several machines: torchrun --nproc-per-node 2 -m lora_trainer train"
        " --config FILE"
    )
    # its options are torchrun's: none is ours
    sub = add("torchrun", torchrun, summary, prefix_chars="\0", add_help=False)
    sub.add_argument("arguments", nargs="*", help="what torchrun takes")

    sub = add("ask", ask, "ask a trained language model questions")
    sub.add_argument("run_dir", **RUN)
    sub.add_argument("question", nargs="+")
    text = "strength of the LoRA; 0 is the base model (default: %(default)s)"
    sub.add_argument("--strength", type=float, default=1.0, help=text)
    sub.add_argument("--step", type=int, help="ask the LoRA of this saved step, not the newest")
    sub.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")

    summary = "write question and answer pairs about documents, for a person to correct"
    sub = add("pairs", pairs, summary)
    text = "a document (.txt, .md), or a folder of them"
    sub.add_argument("--input", required=True, type=given_path, metavar="DOCS", help=text)
    text = "a new file of JSON lines"
    sub.add_argument("--output", required=True, **FILE, help=text)
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-model", **DIR, help="the folder of a language model to ask")
    text = "or an OpenAI-compatible server, such as http://localhost:8080/v1"
    where.add_argument("--url", help=text)
    sub.add_argument("--model", default="default", help="the model's name on the server")
    text = "allow a server outside this machine, to which the documents are sent"
    sub.add_argument("--remote", action="store_true", help=text)
    text = "pairs for each passage of about half a page (default: %(default)s)"
    sub.add_argument("--count", type=int, default=4, metavar="N", help=text)

    sub = add("tell", tell, "send a request to a running training")
    sub.add_argument("run_dir", **RUN)
    sub.add_argument("request", choices=["stop", "save", "preview", "pause", "resume"])

    sub = add("status", status, "show the state of a run")
    sub.add_argument("run_dir", **RUN)
    sub.add_argument("--json", **AS_JSON)

    summary = "evaluate a run and write its report.html: best step, strength, curves, images"
    sub = add("report", write_report, summary)
    sub.add_argument("run_dir", **RUN)

    sub = add("init", init, "write a commented YAML file to start from")
    sub.add_argument("file", type=Path)

    sub = add("inspect", inspect, "describe a LoRA file from any trainer, and which WebUIs load it")
    sub.add_argument("file", type=given_path, help="the file, or a folder of PEFT or diffusers")
    text = (
        "also list the keys that match no layer of this checkpoint, and how much of the LoRA is"
        " left where a WebUI keeps the checkpoint in few bits (fp8, nf4, GGUF)"
    )
    sub.add_argument("--base", type=given_path, metavar="CHECKPOINT", help=text)
    text = "at this strength (default: the one that the file recommends, or 1)"
    sub.add_argument("--strength", type=given_strength, help=text)
    sub.add_argument("--json", **AS_JSON)
    text = "what this WebUI loads of it, what it drops and why, and what else makes it do nothing"
    hosts = ["a1111", "forge", "reforge", "classic", "neo"]
    sub.add_argument("--for", dest="host", choices=hosts, help=text)
    text = (
        "also write a copy that loads there, or without --for in every WebUI: other names, and the"
        " parts of fused layers put together, with the same effect"
    )
    sub.add_argument("--fix", "--convert", dest="fix", type=Path, metavar="COPY", help=text)

    summary = "check a dataset: blur, duplicates, borders, lettering, captions ..."
    add("check", check, summary, options=add_check)

    summary = (
        "copy images and captions into another folder, cropped and resized; originals are kept"
    )
    sub = add("crop", crop, summary)
    sub.add_argument("--input", required=True, **DIR, help="the images, as for train_data_dir")
    text = "where the copies go; nothing there is overwritten"
    sub.add_argument("--output", required=True, **DIR, help=text)
    text = "side of the squares, such as 512, 768 or 1024 (default: %(default)s)"
    sub.add_argument("--size", **PIXELS, default=512, help=text)
    text = "crop to the resolution buckets of this size instead of squares"
    sub.add_argument("--buckets", action="store_true", help=text)
    text = "keep the subject: its mask (fox_mask.png), else the area with most detail"
    sub.add_argument("--subject", action="store_true", help=text)
    sub.add_argument("--only", nargs="+", metavar="NAME", help="only these images")

    sub = add("env", env, "show the environment a worker would run in", needs_packages=False)
    sub.add_argument("--json", **AS_JSON)

    summary = (
        "measure how fast this machine trains models of published size, made of random weights,"
        " and how much memory that takes"
    )
    sub = add("bench", bench, summary)
    text = "the models to train: anima, flux1, klein4b, sd15, sd21, sdxl, zimage (default: sd15)"
    sub.add_argument("--model", nargs="+", default=["sd15"], metavar="NAME", help=text)
    text = "training resolution (default: the model's native one)"
    sub.add_argument("--resolution", **PIXELS, help=text)
    sub.add_argument("--batch", type=int, metavar="N", help="batch_size (default: 1)")
    sub.add_argument("--rank", type=int, metavar="N", help="lora_rank (default: 8)")
    text = "number of steps, of which the first two are not counted (default: %(default)s)"
    sub.add_argument("--steps", type=int, default=12, metavar="N", help=text)
    text = "keep the models' files here for the next time (default: a temporary folder)"
    sub.add_argument("--folder", **DIR, help=text)
    sub.add_argument("--set", **CHANGES, help="change a setting; may be given several times")
    sub.add_argument("--json", **AS_JSON)

    summary = "train a LoRA on generated images and a tiny checkpoint, and show its effect"
    sub = add("demo", demo, summary)
    text = "output folder (default: %(default)s)"
    sub.add_argument("--output", default=Path("output/demo"), **DIR, help=text)
    text = "what to train: two styles and a character (default: %(default)s)"
    sub.add_argument("--concept", choices=["ink", "neon", "zorbl"], default="ink", help=text)
    text = "train all three, and measure the effect of each at several strengths"
    sub.add_argument("--report", action="store_true", help=text)
    return parser


def given_path(text: str) -> Path:
    """A path argument without the quotes that Windows' "Copy as path" adds."""
    from lora_trainer.settings.schema import unquoted

    return Path(unquoted(text))


def given_strength(text: str) -> float:
    """A number that is not 0."""
    with contextlib.suppress(ValueError):
        strength = float(text)
        if strength and math.isfinite(strength):
            return strength
    raise argparse.ArgumentTypeError(f"{text} is not a number above or below 0")


DIR: dict[str, Any] = {"type": given_path, "metavar": "DIR"}
FILE: dict[str, Any] = {"type": given_path, "metavar": "FILE"}
PIXELS: dict[str, Any] = {"type": int, "metavar": "PIXELS"}
RUN: dict[str, Any] = {"type": given_path, "help": "the run's output_dir"}
AS_JSON: dict[str, Any] = {"action": "store_true", "help": "as JSON"}
CHANGES: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "KEY=VALUE",
    "dest": "changes",
}


def add_check(sub: argparse.ArgumentParser) -> None:
    from lora_trainer.settings import schema
    from lora_trainer.settings.training import CheckpointSettings

    tokens = schema.field_named(CheckpointSettings, "max_token_length")
    sub.add_argument("folder", type=given_path, help="the images, as for train_data_dir")
    text = "training resolution (default: the checkpoint's native one, else 512)"
    sub.add_argument("--resolution", **PIXELS, help=text)
    text = "the base model; sets the default resolution"
    sub.add_argument("--checkpoint", **FILE, help=text)
    text = "the trigger word: check that each caption has it, and how CLIP tokenizes it"
    sub.add_argument("--trigger", default="", metavar="WORD", help=text)
    sub.add_argument(
        "--tokens",
        type=int,
        choices=schema.choices_of(CheckpointSettings, tokens),
        default=tokens.default,
        help="longest caption, in tokens (default: %(default)s)",
    )
    sub.add_argument("--json", **FILE, help="also write everything as JSON")
    text = "keep measurements here, so that the next check is quick (default: with the dataset)"
    sub.add_argument("--cache", **FILE, help=text)


def add_caption(sub: argparse.ArgumentParser) -> None:
    """The options of `caption`: the settings of a caption job, which validates them."""
    from lora_trainer.settings import captioning, schema

    schema.add_options(sub, captioning.option_groups())


# --- commands -------------------------------------------------------------------------------------


def train(asked: argparse.Namespace) -> int:
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import training

    requested = training.read(asked.config, parse_changes(asked.changes))
    if environment.is_companion():
        return take_part(requested.output.output_dir, "train", training.to_yaml(requested))
    with folders.begun(requested.output.output_dir, training.to_yaml(requested)) as folder:
        return watch(folder)


def plan(asked: argparse.Namespace) -> int:
    from lora_trainer.checkpoint.packages import activate_for
    from lora_trainer.settings import training

    requested = training.read(asked.config, parse_changes(asked.changes))
    activate_for(requested.checkpoint.base_model)
    # needs torch
    from lora_trainer.planner.command import ask

    answer = ask(requested, asked.card)
    print(answer.to_json() if asked.json else answer.to_text())
    return 1 if answer.plan.fits is False else 0


def bench(asked: argparse.Namespace) -> int:
    from lora_trainer.bench.models import packages_of
    from lora_trainer.checkpoint.packages import activate_set

    activate_set(packages_of(asked.model))
    from lora_trainer.bench import command

    given = {
        "resolution": asked.resolution,
        "batch_size": asked.batch,
        "lora_rank": asked.rank,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    changes |= parse_changes(asked.changes)
    results = []
    for result in command.bench(asked.model, asked.steps, changes, asked.folder):
        results.append(result)
        print(f"{result.model}: {result.timing.seconds_per_step:.3f} s a step", file=sys.stderr)
    print(command.to_json(results) if asked.json else command.to_text(results))
    return 0


def resume(asked: argparse.Namespace) -> int:
    from lora_trainer.jobs.resume import prepare
    from lora_trainer.runs import folder as folders

    folder = folders.existing(asked.run_dir.absolute())
    if environment.is_companion():
        return take_part(folder.path)
    if folder.job == "caption":
        if asked.changes:
            raise ConfigError(
                "--set is only for trainings", hint="Call `caption` again, with other options."
            )
        return watch(folder)
    with folders.claimed(folder.path):
        folders.refuse_if_alive(folder)
        state = folder.read_state()
        if state.status == "finished" and not asked.changes:
            print(f"This run is finished: {folder.path / state.file}")
            print(
                f'To train it further: python -m lora_trainer resume "{folder.path}" --set'
                f" max_train_steps=N, with N above {state.step}."
            )
            print(how_to_use(folder))
            return 0
        prepare(folder, parse_changes(asked.changes))
        return watch(folder)


def grow(asked: argparse.Namespace) -> int:
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import training

    folder = folders.existing(asked.run_dir.absolute())
    saved = folder.read_state().saved if folder.job == "train" else ()
    if not saved:
        raise RunError(
            "no LoRA was saved in {path} yet",
            hint="Give the output_dir of a training that has saved at least one step.",
            path=folder.path,
        )
    done = training.read(folder.config)
    changes = {**training.growth(done), **parse_changes(asked.changes)}
    output = folder.path.with_name(f"{folder.path.name}-r{changes['lora_rank']}")
    requested = done.replace(
        **{
            "init_lora": folder.path / saved[-1].file,
            "output_dir": folders.free_name(output),
            "name": "",
            **changes,
        }
    )
    with folders.begun(requested.output.output_dir, training.to_yaml(requested)) as run:
        return watch(run)


def caption(asked: argparse.Namespace) -> int:
    from lora_trainer.dataset.caption_provenance import FOLDER
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import captioning

    given = {
        key: value for key, value in vars(asked).items() if key not in ("command", "needs_packages")
    }
    if "model" in given and given_path(given["model"]).exists():
        # absolute: the worker has another working directory
        given["model"] = str(given_path(given["model"]).absolute())
    settings = captioning.from_mapping(given, source="the call")
    if not settings.input.is_dir():
        raise DatasetError(
            "{folder} is not a folder",
            hint="Give the folder with your images.",
            folder=settings.input,
        )
    job = settings.input / FOLDER / "captioning"
    if environment.is_companion():
        return take_part(job, "caption", captioning.to_yaml(settings))
    return watch(folders.begin_captioning(job, captioning.to_yaml(settings)))


def ask(asked: argparse.Namespace) -> int:
    from lora_trainer.language import assistant
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import training

    folder = folders.existing(asked.run_dir.absolute())
    config = training.read(folder.config)
    loaded = assistant.of_run(folder, config, asked.step, asked.max_tokens)
    for question in asked.question:
        print(loaded.ask(question, asked.strength), flush=True)
    return 0


def pairs(asked: argparse.Namespace) -> int:
    from lora_trainer.console import counting
    from lora_trainer.language import pairs as making

    passages = making.read_passages(asked.input)
    if asked.url is None:
        from lora_trainer.language import assistant

        put: making.Ask = assistant.of_base(asked.base_model, making.TOKENS * asked.count).ask
    else:
        put = making.open_server(asked.url, asked.model, remote=asked.remote).ask
    with counting("Asking") as progress:
        count, without = making.write_pairs(passages, put, asked.count, asked.output, progress)
    if without:
        print("No pairs were found in a reply about: " + ", ".join(without), file=sys.stderr)
    if not count:
        asked.output.unlink(missing_ok=True)
        print(
            "No pair was written: the model does not answer in question and answer pairs. Try a"
            " larger one, or one made for instructions.",
            file=sys.stderr,
        )
        return 1
    print(f"Wrote {count} pairs to {asked.output}. Read and correct them before you train on them.")
    return 0


def tell(asked: argparse.Namespace) -> int:
    from lora_trainer.runs import folder as folders
    from lora_trainer.runs.requests import send_request

    folder = folders.existing(asked.run_dir.absolute())
    if not folder.is_alive:
        print("No worker is running there.", file=sys.stderr)
        print(f'Continue it with: python -m lora_trainer resume "{folder.path}"', file=sys.stderr)
        return 1
    send_request(folder.requests, asked.request)
    print(f"Sent `{asked.request}`; the worker acts on it after the current step.")
    return 0


def status(asked: argparse.Namespace) -> int:
    import dataclasses

    from lora_trainer.console import describe_state
    from lora_trainer.runs import folder as folders

    folder = folders.existing(asked.run_dir.absolute())
    state = folder.read_state()
    if asked.json:
        values = {**dataclasses.asdict(state), "alive": folder.is_alive}
        print(json.dumps(values, ensure_ascii=False, indent=1, default=str))
    else:
        print(describe_state(state, folder, alive=folder.is_alive))
    return 0


def write_report(asked: argparse.Namespace) -> int:
    from lora_trainer import report, verdict
    from lora_trainer.dataset.scan import Example, scan
    from lora_trainer.language.detect import is_language_model
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import training

    folder = folders.existing(asked.run_dir.absolute())
    if folder.job != "train":
        raise RunError(
            "{path} is the folder of a caption job",
            hint="Give the output_dir of a training.",
            path=folder.path,
        )
    judged = verdict.judge(folder)
    if judged is not None:
        verdict.write(folder, judged)
        print(judged.text())
        for finding in judged.findings:
            print(f"- {finding.sentence} {finding.advice}")
    else:
        print("Nothing was saved, so there is nothing to evaluate.")
    examples: tuple[Example, ...] = ()
    try:
        settings = training.read(folder.config)
        # a run that failed early has no event that says so; a base may be gone
        on_texts = folder.read_state().data == "texts"
        if not (on_texts or is_language_model(settings.checkpoint.base_model)):
            examples = scan(settings.dataset).examples
    except DatasetError as error:
        print(f"Without the images: {error}", file=sys.stderr)
    print(report.write(folder, examples, judged))
    return 0


def init(asked: argparse.Namespace) -> int:
    from lora_trainer.settings import training

    if asked.file.exists():
        raise ConfigError(
            "{file} exists already", hint="Choose another name, or move it away.", file=asked.file
        )
    files.write_text(asked.file, training.commented_yaml())
    print(
        f"Wrote {asked.file}. Set train_data_dir, base_model and output_dir, then: python -m"
        f' lora_trainer train --config "{asked.file}"'
    )
    return 0


def inspect(asked: argparse.Namespace) -> int:
    from lora_trainer.checkpoint.packages import activate_for

    if asked.base is not None:
        activate_for(asked.base)
    # need torch or safetensors
    from lora_trainer.lora.convert import convert
    from lora_trainer.lora.file import find_in_folder

    told, text = _certified(asked) if asked.host is not None else _described(asked)
    print(json.dumps(told, ensure_ascii=False, indent=2, allow_nan=False) if asked.json else text)
    if asked.fix is not None:
        done = convert(find_in_folder(asked.file), asked.fix, asked.host)
        # on stderr: stdout may be parsed as JSON
        print(f"Wrote {asked.fix}.", file=sys.stderr)
        for name in done.left_out:
            print(f"Left out, because the model has no such layer: {name}", file=sys.stderr)
        _warn_of_copy(asked)
    return 0


def _warn_of_copy(asked: argparse.Namespace) -> None:
    """What other names do not mend, such as weights of another size, is said of the copy too."""
    from lora_trainer.lora.certificate import certify

    if asked.host is not None:
        copy = certify(asked.fix, asked.host, base=asked.base)
        if copy.loaded == 0:
            print(f"The copy does not help: {copy.verdict}", file=sys.stderr)


def _certified(asked: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from lora_trainer.lora.certificate import certify

    certificate = certify(asked.file, asked.host, base=asked.base)
    told, text = certificate.to_mapping(), certificate.to_text()
    if asked.base is None:
        return told, text
    kept = _kept(asked)
    if isinstance(kept, LoraTrainerError):
        return told | {"kept": None}, f"{text}\n{_not_kept(kept)}"
    return (
        told | {"kept": kept.to_mapping(hosts=[asked.host])},
        f"{text}\n{kept.to_text(asked.host)}",
    )


def _not_kept(error: LoraTrainerError) -> str:
    from lora_trainer.lora.survival import kept_text

    return kept_text([f"not measured: {error}"])


def _described(asked: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from lora_trainer.checkpoint.load import open_checkpoint
    from lora_trainer.lora.describe import describe
    from lora_trainer.lora.names import base_layers

    if asked.base is None:
        description = describe(asked.file)
        return description.to_mapping(), description.to_text()
    kept = _kept(asked)
    try:
        base = base_layers(open_checkpoint(asked.base).outline())
    except CheckpointError as error:
        # quantised, or of a family that is not trained here
        if isinstance(kept, LoraTrainerError):
            raise
        base = None
        print(f"Its layers are not compared: {error}", file=sys.stderr)
    description = describe(asked.file, base)
    if isinstance(kept, LoraTrainerError):
        told = description.to_mapping() | {"kept": None}
        return told, f"{description.to_text()}\n{_not_kept(kept)}"
    return (
        description.to_mapping() | {"kept": kept.to_mapping()},
        f"{description.to_text()}\n{kept.to_text()}",
    )


def _kept(asked: argparse.Namespace) -> Survival | LoraTrainerError:
    """How much of the LoRA is left in few bits; the error where it cannot be measured, as on a
    folder, or a model that no WebUI runs.
    """
    from lora_trainer.lora.survival import survival

    try:
        return survival(asked.file, asked.base, [asked.strength] if asked.strength else ())
    except (CheckpointError, LoraFileError) as error:
        return error


def check(asked: argparse.Namespace) -> int:
    from lora_trainer.checkpoint.detect import detect_file
    from lora_trainer.checkpoint.tokenizer import count_tokens, tokenize
    from lora_trainer.console import counting
    from lora_trainer.dataset.check import check_folder
    from lora_trainer.dataset.check.store import kept_measures
    from lora_trainer.dataset.template import read_vocabulary
    from lora_trainer.dataset.tokens import check_trigger_word
    from lora_trainer.settings.training import DatasetSettings

    resolution = 512 if asked.resolution is None else asked.resolution
    if asked.checkpoint is not None and asked.resolution is None:
        resolution = detect_file(asked.checkpoint).native_resolution
    settings = DatasetSettings(
        train_data_dir=asked.folder, trigger_word=asked.trigger, resolution=resolution
    )
    with counting("Checking") as progress:
        report = check_folder(
            settings,
            resolution=resolution,
            count_tokens=count_tokens,
            token_limit=asked.tokens,
            vocabulary=read_vocabulary(asked.folder),
            cache=asked.cache or kept_measures(asked.folder),
            progress=progress,
        )
    print(report.to_text())
    if asked.trigger.strip():
        seen = check_trigger_word(asked.trigger, tokenize)
        print(" ".join(filter(None, [f"Trigger word: {seen.message}.", str(seen.hint)])))
    if asked.json is not None:
        files.write_text(asked.json, report.to_json(asked.folder))
    return 1 if report.stops_training else 0


def crop(asked: argparse.Namespace) -> int:
    from lora_trainer.console import counting
    from lora_trainer.dataset import findings
    from lora_trainer.dataset.crop import crop_folder
    from lora_trainer.settings.training import DatasetSettings

    settings = DatasetSettings(train_data_dir=asked.input, resolution=asked.size)
    with counting("Cropping") as progress:
        done = crop_folder(
            settings,
            asked.output,
            size=asked.size,
            into_buckets=asked.buckets,
            subject=asked.subject,
            only=asked.only,
            progress=progress,
        )
    print(f"Images written to {asked.output}: {len(done.written)}")
    if done.findings:
        print(findings.report(done.findings))
    return 1 if any(finding.severity == "error" for finding in done.findings) else 0


def env(asked: argparse.Namespace) -> int:
    from lora_trainer import diagnosis

    report = diagnosis.report()
    print(
        json.dumps(report, ensure_ascii=False, indent=1)
        if asked.json
        else diagnosis.report_text(report)
    )
    return 0


def demo(asked: argparse.Namespace) -> int:
    from lora_trainer.demo.run import run_demo

    if asked.report:
        from lora_trainer.demo.report import run_report

        return run_report(asked.output)
    return run_demo(asked.output, asked.concept)


def watch(folder: Any) -> int:
    """Start the run's worker and show its progress until it ends. Returns the exit status."""
    from lora_trainer.console import Console
    from lora_trainer.jobs.start import start_worker

    if environment.is_launched():
        # torchrun ends all when one has failed: there is time to say what the worker makes of that
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = Console(folder, start_worker(folder)).watch()
    if status == 0 and folder.job == "train":
        print(how_to_use(folder))
    # for torchrun anything but 0 is a failure
    return 0 if status == STOPPED and environment.is_launched() else status


def take_part(path: Path, job: Any = "", settings_yaml: str = "") -> int:
    """In a process that torchrun started and that is not its first one: the run's share. Returns
    the exit status. job, settings_yaml: what the folder is made with, where it is on this machine
    only.
    """
    from lora_trainer.jobs.start import start_companion
    from lora_trainer.runs.folder import SETTINGS_OF, RunFolder

    folder = RunFolder(path.absolute())
    if job and not folder.settings.exists():
        files.write_text(folder.path / SETTINGS_OF[job], settings_yaml)
    # the first process decides when all stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return start_companion(folder).wait()


def torchrun(asked: argparse.Namespace) -> int:
    """torch's own launcher, with the worker's torch."""
    # needs torch
    from lora_trainer.training.joined import launch

    failed = launch(asked.arguments)
    if failed:
        print(f"{failed}\nWhat happened: python -m lora_trainer status RUN_DIR", file=sys.stderr)
    return 1 if failed else 0


def how_to_use(folder: Any) -> str:
    """The prompt tag of a finished run's LoRA, and where to copy an undelivered file; where an
    earlier step was judged to be best, the same of that step's file.
    """
    from lora_trainer.settings import training

    state, used = folder.read_state(), training.read(folder.config)
    if state.data == "texts":
        return f'Ask it: python -m lora_trainer ask "{folder.path}" "..."'

    def prompt(file: str, step: int) -> str:
        measured = state.measured_strength(step) or training.DEFAULT_STRENGTH
        stated = used.output.preferred_weight
        tag = f"<lora:{Path(file).stem}:{measured if stated is None else stated:g}>"
        return f"{used.dataset.trigger_word} {tag}".strip()

    into = "to the WebUI's models/Lora folder; then, in a prompt:"
    last = prompt(state.delivered or state.file, state.step)
    said = f"In a prompt: {last}" if state.delivered else f"Copy it {into} {last}"
    best = state.judged.step if state.judged else state.step
    file = next((one.file for one in state.saved if one.step == best), "")
    if best == state.step or not (folder.path / file).is_file():
        return said
    return (
        f"{said}\nThat is the last step, and step {best:,} is best."
        f" Copy {folder.path / file} {into} {prompt(file, best)}"
    )


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """["lora_rank=4"] -> {"lora_rank": 4}; values are parsed as YAML. Raises ConfigError."""
    from lora_trainer.settings.schema import parse_yaml

    values: dict[str, Any] = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                "--set {change} is not KEY=VALUE",
                hint="For example: --set lora_rank=16",
                change=change,
            )
        try:
            values[key.strip()] = parse_yaml(text, Path("--set"))
        except ConfigError:
            values[key.strip()] = text
    return values


if __name__ == "__main__":
    sys.exit(main())
