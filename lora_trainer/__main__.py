"""The command line: `python -m lora_trainer COMMAND`. Light: what needs the worker's packages is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer import __version__, environment
from lora_trainer.errors import ConfigError, LoraTrainerError

def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 an error with its sentence, 2 a wrong call, 3 stopped by request."""
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
        overlay = environment.activate()
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
        print(f"{error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_trainer", description="Train a LoRA from your own images.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Any, summary: str, *, needs_packages: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command, needs_packages=needs_packages)
        return sub

    sub = add("train", train, "train what a YAML file asks for")
    sub.add_argument("--config", required=True, type=Path, metavar="FILE", help="the YAML file; `init` writes one")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change a setting; may be given several times")

    sub = add("resume", resume, "go on with a run that was stopped or interrupted, exactly where it was")
    sub.add_argument("run_dir", type=Path, help="the run's output_dir")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change a setting, such as max_train_steps=2000")

    sub = add("tell", tell, "ask a running training for something")
    sub.add_argument("run_dir", type=Path, help="the run's output_dir")
    sub.add_argument("request", choices=["stop", "save", "preview", "pause", "resume"])

    sub = add("status", status, "say where a run stands")
    sub.add_argument("run_dir", type=Path, help="the run's output_dir")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("init", init, "write a commented YAML file to start from")
    sub.add_argument("file", type=Path)

    sub = add("inspect", inspect, "say what a LoRA file is")
    sub.add_argument("file", type=Path)
    sub.add_argument("--base", type=Path, metavar="CHECKPOINT", help="also say which keys this checkpoint has no place for")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("env", env, "say what a worker would run on", needs_packages=False)
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("demo", demo, "train a LoRA on drawn images and an embedded checkpoint, and show what it does")
    sub.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="where to put it (default: %(default)s)")
    sub.add_argument(
        "--concept", choices=["ink", "neon", "zorbl"], default="ink", help="what to learn: two styles and a character (default: %(default)s)"
    )
    sub.add_argument("--report", action="store_true", help="train all three and measure how much of each shows at each strength")
    return parser


# --- commands ----------------------------------------------------------------------------------------------------------------------------


def train(asked: argparse.Namespace) -> int:
    from lora_trainer import config
    from lora_trainer.runs import folder as folders

    requested = config.read(asked.config, parse_changes(asked.changes))
    with folders.begun(requested.output.output_dir, config.to_yaml(requested)) as folder:
        return watch(folder)


def resume(asked: argparse.Namespace) -> int:
    from lora_trainer.jobs.resume import prepare
    from lora_trainer.runs import folder as folders

    folder = folders.existing(asked.run_dir.absolute())
    with folders.claimed(folder.path):
        folders.refuse_if_alive(folder)
        state = folder.read_state()
        if state.status == "finished" and not asked.changes:
            print(f"This run is finished: {folder.path / state.file}")
            print(f'To train it further: python -m lora_trainer resume "{folder.path}" --set max_train_steps=N, with N above {state.step}.')
            return 0
        prepare(folder, parse_changes(asked.changes))
        return watch(folder)


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
        print(json.dumps({**dataclasses.asdict(state), "alive": folder.is_alive}, ensure_ascii=False, indent=1, default=str))
    else:
        print(describe_state(state, folder, alive=folder.is_alive))
    return 0


def init(asked: argparse.Namespace) -> int:
    from lora_trainer import config, files

    if asked.file.exists():
        raise ConfigError("{file} exists already", hint="Choose another name, or move it away.", file=asked.file)
    files.write_text(asked.file, config.commented_yaml())
    print(f'Wrote {asked.file}. Set train_data_dir, base_model and output_dir, then: python -m lora_trainer train --config "{asked.file}"')
    return 0


def inspect(asked: argparse.Namespace) -> int:
    from lora_trainer.lora.describe import describe

    modules = None
    if asked.base is not None:
        from lora_trainer.checkpoint.load import open_checkpoint
        from lora_trainer.lora.names import module_names

        modules = module_names(open_checkpoint(asked.base).outline())
    description = describe(asked.file, modules)
    print(description.to_json() if asked.json else description.to_text())
    return 0


def env(asked: argparse.Namespace) -> int:
    from lora_trainer import diagnosis

    report = diagnosis.report()
    print(json.dumps(report, ensure_ascii=False, indent=1) if asked.json else diagnosis.report_text(report))
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
    if status == 0:
        print(how_to_use(folder))
    return status


def how_to_use(folder: Any) -> str:
    """What to type into a prompt, for a finished run."""
    from lora_trainer import config

    state, used = folder.read_state(), config.read(folder.config)
    name = Path(state.delivered or state.file).stem
    words = f"{used.dataset.trigger_word} <lora:{name}:{used.output.preferred_weight:g}>".strip()
    return f"In a prompt: {words}" if state.delivered else f"Copy it to the WebUI's models/Lora folder; then, in a prompt: {words}"


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """["lora_rank=4"] -> {"lora_rank": 4}: values are read as YAML. Raises ConfigError for what is not KEY=VALUE."""
    import yaml

    values: dict[str, Any] = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key.strip():
            raise ConfigError("--set {change} is not KEY=VALUE", hint="For example: --set lora_rank=16", change=change)
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            values[key.strip()] = text
    return values


if __name__ == "__main__":
    sys.exit(main())
