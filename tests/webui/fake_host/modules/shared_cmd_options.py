"""The command line: the hosts' flags that an extension may look at, their extensions' (preload.py),
and a few of our own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modules import errors, script_loading
from modules.paths_internal import data_path, models_path, normalized_filepath

parser = argparse.ArgumentParser()
for flag in (
    "--listen",
    "--share",
    "--api",
    "--api-server-stop",
    "--no-gradio-queue",
    "--enable-insecure-extension-access",
    "--skip-install",
    "--nowebui",
    "--lowvram",
    "--medvram",
    "--no-half",
    "--no-hashing",
    "--hide-ui-dir-config",
    "--freeze-settings",
    "--skip-load-model-at-start",
):
    parser.add_argument(flag, action="store_true")
for flag in (
    "--server-name",
    "--gradio-auth",
    "--api-auth",
    "--theme",
    "--device-id",
    "--subpath",
    "--ngrok",
    "--cors-allow-origins",
):
    parser.add_argument(flag, type=str, default=None)
for flag in ("--models-dir", "--ckpt", "--ckpt-dir", "--vae-dir", "--gradio-auth-path"):
    parser.add_argument(flag, type=normalized_filepath, default=None)
parser.add_argument("--data-dir", type=normalized_filepath, default=data_path)
parser.add_argument("--lora-dir", type=normalized_filepath, default=str(Path(models_path, "Lora")))
parser.add_argument("--port", type=int, default=None)
parser.add_argument("--use-cpu", nargs="+", default=[], type=str.lower)
parser.add_argument("--gradio-allowed-path", action="append", default=[data_path])
parser.add_argument("--ui-settings-file", type=str, default=str(Path(data_path, "config.json")))
# the test's own: real hosts do not have them
parser.add_argument("--flavour", default="a1111")
parser.add_argument("--site-packages", default=None)
parser.add_argument(
    "--extension",
    type=normalized_filepath,
    action="append",
    default=None,
    help="an extension's folder, besides those in extensions/",
)
parser.add_argument("--localization", default=None, help="what the user chose in Settings")
parser.add_argument(
    "--fake-gpu", action="store_true", help="the model lies on a GPU of 8 GB, or not"
)
parser.add_argument(
    "--lacking",
    default=None,
    metavar="PACKAGE",
    help="let the extension find that the worker's packages are not installed",
)
parser.add_argument(
    "--forking",
    type=normalized_filepath,
    default=None,
    metavar="FILE",
    help="a file with the command that starts workers in an interpreter's place, once it is there",
)


def extension_folders() -> list[Path]:
    """Those in extensions/, and those that the test names (default: the one this file belongs
    to).
    """
    named, _ = parser.parse_known_args()
    own = [Path(folder) for folder in named.extension or [str(Path(__file__).resolve().parents[4])]]
    inside = Path(data_path, "extensions")
    return [
        *(
            sorted(folder for folder in inside.iterdir() if folder.is_dir())
            if inside.is_dir()
            else []
        ),
        *own,
    ]


for _folder in extension_folders():
    _path = _folder / "preload.py"
    if _path.is_file():
        try:
            _module = script_loading.load_module(str(_path))
            if hasattr(_module, "preload"):
                _module.preload(parser)
        except Exception:
            errors.report(f"Error running preload() for {_path}", exc_info=True)

cmd_opts = parser.parse_args()
cmd_opts.webui_is_non_local = any(
    [cmd_opts.share, cmd_opts.listen, cmd_opts.ngrok, cmd_opts.server_name]
)
cmd_opts.disable_extension_access = (
    cmd_opts.webui_is_non_local and not cmd_opts.enable_insecure_extension_access
)
