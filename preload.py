"""The extension's own flags on the WebUI's command line. There is one, and there should hardly be
more.

The WebUI refuses to start on a flag that it does not know. A flag of ours that stays on somebody's
command line would stop their WebUI after this extension is uninstalled or switched off; so whatever
can be a setting is a setting.
"""

from argparse import ArgumentParser


def preload(parser: ArgumentParser) -> None:
    """Called by the WebUI before it reads its command line."""
    parser.add_argument(
        "--lora-trainer-data-dir",
        metavar="FOLDER",
        default=None,
        help="where LoRA Trainer keeps its datasets and runs",
    )
