"""Callbacks for the host. They never raise, because the host omits a tab whose callback does.

on_ui_tabs draws one mount point for javascript/lora_trainer.js, or an error report if the extension
cannot be imported. For that reason nothing of the extension is imported at the top, and the syntax
is that of Python 3.6.
"""

import html
import logging
import platform
import sys
import traceback
from typing import Any

log = logging.getLogger("lora_trainer.webui")

TITLE = "LoRA Trainer"
TAB_ID = "lora_trainer"
CANNOT_START = "LoRA Trainer cannot start"
UPDATE = (
    "Update the extension (Extensions, Check for updates), then restart the WebUI. If that does not"
    " help, please report it with these lines."
)
LOOK = "Look at the WebUI's console."
REPORT = "Report"


def on_ui_tabs() -> Any:
    """The result for the host's callback: [(blocks, title, tab id)]."""
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML(mount_point(), elem_id="lora_trainer_mount")
    return [(blocks, TITLE, TAB_ID)]


def mount_point() -> str:
    """The tab's HTML: an empty container for the script, or an error report."""
    try:
        from lora_trainer.webui import lazy_app  # noqa: F401
    except Exception as error:
        log.exception("LoRA Trainer cannot start")
        return failure(error)
    waiting = translated(
        "LoRA Trainer is loading. If this takes long, look at the WebUI's console and at the"
        " browser's (F12)."
    )
    return (
        '<div id="lora_trainer_root" class="lora-trainer"><p'
        f' class="lora-trainer-waiting">{html.escape(waiting, quote=False)}</p></div>'
    )


def on_app_started(demo: Any, app: Any) -> None:
    """Mount the routes and start the scheduler, when the host's server has started for the first
    time or after "Reload UI".
    """
    try:
        from lora_trainer.webui import lazy_app

        lazy_app.mount(app)
    except Exception:
        log.exception("LoRA Trainer's routes cannot be added")


def on_script_unloaded() -> None:
    """The host is about to unload its extensions."""
    try:
        from lora_trainer.webui import lazy_app

        lazy_app.unload()
    except Exception:
        log.exception("LoRA Trainer cannot restore the WebUI's queue")


def on_ui_settings() -> None:
    """Add the section on the host's Settings page."""
    try:
        from lora_trainer.webui import options

        options.add()
    except Exception:
        log.exception("LoRA Trainer's settings cannot be added")


def failure(error: Exception) -> str:
    """The error and a report to copy. javascript/lora_trainer.js draws the same for errors found
    later.
    """
    return (
        '<div id="lora_trainer_trouble" class="lora-trainer"'
        ' role="alert"><h2>{}</h2><p>{}</p><label for="lora_trainer_report">{}</label><textarea'
        ' id="lora_trainer_report" readonly rows="12" style="width:100%">{}</textarea></div>'
    ).format(
        *(
            html.escape(text, quote=False)
            for text in (
                translated(CANNOT_START),
                translated(UPDATE),
                translated(REPORT),
                report(error),
            )
        )
    )


def report(error: Exception) -> str:
    """A report for the developers."""
    return "\n".join(
        [
            f"LoRA Trainer cannot start: {type(error).__name__}: {error}",
            f"Python {sys.version.split()[0]} on {platform.platform()}",
            "gradio {}".format(getattr(sys.modules.get("gradio"), "__version__", "?")),
            "",
            *traceback.format_exception(type(error), error, error.__traceback__)[-6:],
        ]
    )


def translated(sentence: str) -> str:
    """The sentence in the host's language, if translations can be loaded."""
    try:
        from lora_trainer.hosts import find
        from lora_trainer.webui import texts

        return texts.translate(sentence, texts.choose(find().language()))
    except Exception:
        return sentence
