"""The command line: `python -m lora_trainer COMMAND`. Light: what needs the worker's packages is
imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_trainer import __version__, environment, files
from lora_trainer.errors import ConfigError, DatasetError, LoraTrainerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 an error with its sentence, 2 a wrong
    call, 3 stopped by request.
    """
    # before the arguments are read: what reads the paths and the settings among them needs PyYAML
    overlay = environment.activate()
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if not hasattr(asked, "command"):
        parser.print_help()
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a Windows console in a legacy code page must not stop a run over a Chinese file name
            stream.reconfigure(errors="replace")
    try:
        if asked.needs_packages:
            overlay.require()
        return int(asked.command(asked) or 0)
    except LoraTrainerError as error:
        print(error.report(), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `inspect ... | head` has read enough; nothing more can be printed, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # a folder without permission, a full disk: nothing that a traceback would say better
        if files.is_disk_full(error):
            place = f": {error.filename} could not be written" if error.filename else ""
            print(f"the disk is full{place}\nFree some space, then try again.", file=sys.stderr)
            return 1
        print(f"{error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class CommandParser(argparse.ArgumentParser):
    """The parser of one command, whose options may be made when they are first needed: other
    commands do not wait for what makes them, and run where it is not installed.
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
        """This parser with all its options."""
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
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, options=options)
        sub.set_defaults(command=command, needs_packages=needs_packages)
        return sub

    sub = add("train", train, "train what a YAML file asks for")
    sub.add_argument(
        "--config",
        required=True,
        type=given_path,
        metavar="FILE",
        help="the YAML file; `init` writes one",
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a setting; may be given several times",
    )

    sub = add(
        "resume", resume, "go on with a run that was stopped or interrupted, exactly where it was"
    )
    sub.add_argument("run_dir", type=given_path, help="the run's output_dir")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a setting, such as max_train_steps=2000",
    )

    add(
        "caption",
        caption,
        "write a first draft of the captions for a folder of images; what a person wrote stays",
        options=add_caption,
    )

    sub = add("tell", tell, "ask a running training for something")
    sub.add_argument("run_dir", type=given_path, help="the run's output_dir")
    sub.add_argument("request", choices=["stop", "save", "preview", "pause", "resume"])

    sub = add("status", status, "say where a run stands")
    sub.add_argument("run_dir", type=given_path, help="the run's output_dir")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("init", init, "write a commented YAML file to start from")
    sub.add_argument("file", type=Path)

    sub = add(
        "inspect", inspect, "say what a LoRA file is, whoever made it, and which WebUI loads it"
    )
    sub.add_argument("file", type=given_path, help="the file, or a folder of PEFT or diffusers")
    sub.add_argument(
        "--base",
        type=given_path,
        metavar="CHECKPOINT",
        help="also say which keys this checkpoint has no place for",
    )
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub.add_argument(
        "--convert",
        type=Path,
        metavar="COPY",
        help="also write a copy under the names that every WebUI loads",
    )

    add(
        "check",
        check,
        "look for what would spoil a training: blur, copies, borders, lettering, captions ...",
        options=add_check,
    )

    sub = add(
        "crop",
        crop,
        "copy pictures into another folder, cropped and resized; captions come along, originals"
        " stay as they are",
    )
    sub.add_argument(
        "--input",
        required=True,
        type=given_path,
        metavar="DIR",
        help="the images, as for train_data_dir",
    )
    sub.add_argument(
        "--output",
        required=True,
        type=given_path,
        metavar="DIR",
        help="where the copies go; nothing there is overwritten",
    )
    sub.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="PIXELS",
        help="side of the squares, such as 512, 768 or 1024 (default: %(default)s)",
    )
    sub.add_argument(
        "--buckets",
        action="store_true",
        help="not squares, but the shapes that training at this size would use",
    )
    sub.add_argument(
        "--subject",
        action="store_true",
        help="keep the subject: what a mask (fox_mask.png) says, else where most detail is",
    )
    sub.add_argument("--only", nargs="+", metavar="NAME", help="only these pictures")

    sub = add("env", env, "say what a worker would run on", needs_packages=False)
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add(
        "demo",
        demo,
        "train a LoRA on drawn images and an embedded checkpoint, and show what it does",
    )
    sub.add_argument(
        "--output",
        type=given_path,
        default=Path("output/demo"),
        metavar="DIR",
        help="where to put it (default: %(default)s)",
    )
    sub.add_argument(
        "--concept",
        choices=["ink", "neon", "zorbl"],
        default="ink",
        help="what to learn: two styles and a character (default: %(default)s)",
    )
    sub.add_argument(
        "--report",
        action="store_true",
        help="train all three and measure how much of each shows at each strength",
    )
    return parser


def given_path(text: str) -> Path:
    """A path as people paste it: the quotes of "Copy as path" may be a part of it."""
    from lora_trainer.settings.schema import unquoted

    return Path(unquoted(text))


def add_check(sub: argparse.ArgumentParser) -> None:
    """The options of `check`."""
    from lora_trainer.settings import schema
    from lora_trainer.settings.training import CheckpointSettings

    tokens = schema.field_named(CheckpointSettings, "max_token_length")
    sub.add_argument("folder", type=given_path, help="the images, as for train_data_dir")
    sub.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help="what will be trained at (default: 512, or as the checkpoint asks)",
    )
    sub.add_argument(
        "--checkpoint", type=given_path, metavar="FILE", help="the base model: tells the resolution"
    )
    sub.add_argument(
        "--trigger",
        default="",
        metavar="WORD",
        help="the trigger word: is it in each caption, and what does it mean already?",
    )
    sub.add_argument(
        "--tokens",
        type=int,
        choices=schema.choices_of(CheckpointSettings, tokens),
        default=tokens.default,
        help="longest caption, in tokens (default: %(default)s)",
    )
    sub.add_argument(
        "--json", type=given_path, metavar="FILE", help="also write everything as JSON"
    )
    sub.add_argument(
        "--cache",
        type=given_path,
        metavar="FILE",
        help="remember here what was measured: the next check is quick",
    )


def add_caption(sub: argparse.ArgumentParser) -> None:
    """The options of `caption`: the settings of a caption job, which are checked there."""
    from lora_trainer.settings import captioning, schema

    schema.add_options(sub, captioning.option_groups())


# --- commands -------------------------------------------------------------------------------------


def train(asked: argparse.Namespace) -> int:
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import training

    requested = training.read(asked.config, parse_changes(asked.changes))
    with folders.begun(requested.output.output_dir, training.to_yaml(requested)) as folder:
        return watch(folder)


def resume(asked: argparse.Namespace) -> int:
    from lora_trainer.jobs.resume import prepare
    from lora_trainer.runs import folder as folders

    folder = folders.existing(asked.run_dir.absolute())
    if folder.job == "caption":
        if asked.changes:
            raise ConfigError(
                "--set is for trainings", hint="Call `caption` again, with other options."
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


def caption(asked: argparse.Namespace) -> int:
    from lora_trainer.dataset.caption_provenance import FOLDER
    from lora_trainer.runs import folder as folders
    from lora_trainer.settings import captioning

    given = {
        key: value for key, value in vars(asked).items() if key not in ("command", "needs_packages")
    }
    if "model" in given and given_path(given["model"]).exists():
        given["model"] = str(
            given_path(given["model"]).absolute()
        )  # the worker may look from elsewhere
    settings = captioning.from_mapping(given, source="the call")
    if not settings.input.is_dir():
        raise DatasetError(
            "{folder} is not a folder",
            hint="Give the folder with your images.",
            folder=settings.input,
        )
    return watch(
        folders.begin_captioning(
            settings.input / FOLDER / "captioning", captioning.to_yaml(settings)
        )
    )


def tell(asked: argparse.Namespace) -> int:
    from lora_trainer.runs import folder as folders
    from lora_trainer.runs.requests import send_request

    folder = folders.existing(asked.run_dir.absolute())
    if not folder.is_alive:
        print("Nothing is training there at the moment.", file=sys.stderr)
        print(f'Go on with it: python -m lora_trainer resume "{folder.path}"', file=sys.stderr)
        return 1
    send_request(folder.requests, asked.request)
    print(f"Asked for `{asked.request}`. It is done after the present step.")
    return 0


def status(asked: argparse.Namespace) -> int:
    import dataclasses

    from lora_trainer.console import describe_state
    from lora_trainer.runs import folder as folders

    folder = folders.existing(asked.run_dir.absolute())
    state = folder.read_state()
    if asked.json:
        print(
            json.dumps(
                {**dataclasses.asdict(state), "alive": folder.is_alive},
                ensure_ascii=False,
                indent=1,
                default=str,
            )
        )
    else:
        print(describe_state(state, folder, alive=folder.is_alive))
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
    from lora_trainer.lora.convert import convert
    from lora_trainer.lora.describe import describe

    base = None
    if asked.base is not None:
        from lora_trainer.checkpoint.load import open_checkpoint
        from lora_trainer.lora.names import base_layers

        base = base_layers(open_checkpoint(asked.base).outline())
    description = describe(asked.file, base)
    print(description.to_json() if asked.json else description.to_text())
    if asked.convert is not None:
        convert(description.path, asked.convert)
        # beside the JSON, which others read
        print(f"Wrote {asked.convert}.", file=sys.stderr)
    return 0


def check(asked: argparse.Namespace) -> int:
    from lora_trainer.checkpoint.detect import detect_file
    from lora_trainer.checkpoint.tokenizer import count_tokens, tokenize
    from lora_trainer.console import counting
    from lora_trainer.dataset.check import check_folder
    from lora_trainer.dataset.template import read_vocabulary
    from lora_trainer.dataset.tokens import look_at_trigger
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
            cache=asked.cache,
            progress=progress,
        )
    print(report.to_text())
    if asked.trigger.strip():
        seen = look_at_trigger(asked.trigger, tokenize)
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
    print(f"Pictures written to {asked.output}: {len(done.written)}")
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
    """Start the run's worker and show its progress until it ends."""
    from lora_trainer.console import Console
    from lora_trainer.jobs.start import start_worker

    status = Console(folder, start_worker(folder)).watch()
    if status == 0 and folder.job == "train":
        print(how_to_use(folder))
    return status


def how_to_use(folder: Any) -> str:
    """What to type into a prompt, for a finished run."""
    from lora_trainer.settings import training

    state, used = folder.read_state(), training.read(folder.config)
    name = Path(state.delivered or state.file).stem
    words = f"{used.dataset.trigger_word} <lora:{name}:{used.output.preferred_weight:g}>".strip()
    return (
        f"In a prompt: {words}"
        if state.delivered
        else f"Copy it to the WebUI's models/Lora folder; then, in a prompt: {words}"
    )


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """["lora_rank=4"] -> {"lora_rank": 4}: values are read as YAML. Raises ConfigError for what is
    not KEY=VALUE.
    """
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
