"""Folders, read from the command line before anything else."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def normalized_filepath(filepath: str) -> str:
    return str(Path(filepath).absolute())


cwd = os.getcwd()  # noqa: PTH109
modules_path = str(Path(__file__).resolve().parent)
script_path = str(Path(modules_path).parent)

parser_pre = argparse.ArgumentParser(add_help=False)
parser_pre.add_argument("--data-dir", type=normalized_filepath, default=script_path)
parser_pre.add_argument("--models-dir", type=normalized_filepath, default=None)
cmd_opts_pre = parser_pre.parse_known_args(sys.argv[1:])[0]

data_path = cmd_opts_pre.data_dir
models_path = cmd_opts_pre.models_dir if cmd_opts_pre.models_dir else str(Path(data_path, "models"))
extensions_dir = str(Path(data_path, "extensions"))
extensions_builtin_dir = str(Path(script_path, "extensions-builtin"))
default_output_dir = str(Path(data_path, "outputs"))
