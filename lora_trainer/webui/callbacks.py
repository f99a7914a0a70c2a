"""The tab as the host sees it: callbacks that never raise, because the host leaves out a tab whose
callback does.

on_ui_tabs draws one mount point for javascript/lora_trainer.js; where the extension itself is in
trouble, the reason and what to report stand in it instead. This file imports nothing of ours at the
top, and its syntax is old (Python 3.6), so that there is a tab to say it even then.
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
    "Update the extension (Extensions, Check for updates), then restart the WebUI. If it stays,"
    " please report it with these lines."
)
LOOK = "Look at the WebUI's console."
REPORT = "Report"


def on_ui_tabs() -> Any:
    """What the host's callback of that name wants: [(blocks, title, id of the tab)]."""
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML(mount_point(), elem_id="lora_trainer_mount")
    return [(blocks, TITLE, TAB_ID)]


def mount_point() -> str:
    """The tab's HTML: an empty room for the script, or the reason why not even that can be."""
    try:
        from lora_trainer.webui import lazy_app  # noqa: F401
    except Exception as error:
        log.exception("LoRA Trainer cannot start")
        return trouble(error)
    waiting = say(
        "LoRA Trainer is loading. If this stays, look at the WebUI's console and at the browser's"
        " (F12)."
    )
    return (
        '<div id="lora_trainer_root" class="lora-trainer"><p'
        f' class="lora-trainer-waiting">{html.escape(waiting, quote=False)}</p></div>'
    )


def on_app_started(demo: Any, app: Any) -> None:
    """The host's server is up, for the first time or after "Reload UI": hang our routes into this
    app, and let the queue go on.
    """
    try:
        from lora_trainer.webui import lazy_app

        lazy_app.mount(app)
    except Exception:
        log.exception("LoRA Trainer's routes cannot be added")


def on_script_unloaded() -> None:
    """The host is about to load its extensions again ("Reload UI"), or to forget them."""
    try:
        from lora_trainer.webui import lazy_app

        lazy_app.unload()
    except Exception:
        log.exception("LoRA Trainer cannot let go of the WebUI's queue")


def on_ui_settings() -> None:
    """Our section on the host's Settings page."""
    try:
        from lora_trainer.webui import options

        options.add()
    except Exception:
        log.exception("LoRA Trainer's settings cannot be added")


def trouble(error: Exception) -> str:
    """What is wrong, in words and as a report to copy. javascript/lora_trainer.js draws the same
    where it is found later.
    """
    return (
        '<div id="lora_trainer_trouble" class="lora-trainer"'
        ' role="alert"><h2>{}</h2><p>{}</p><label for="lora_trainer_report">{}</label><textarea'
        ' id="lora_trainer_report" readonly rows="12" style="width:100%">{}</textarea></div>'
    ).format(
        *(
            html.escape(text, quote=False)
            for text in (say(CANNOT_START), say(UPDATE), say(REPORT), report(error))
        )
    )


def report(error: Exception) -> str:
    """For whoever is to mend it."""
    return "\n".join(
        [
            f"LoRA Trainer cannot start: {type(error).__name__}: {error}",
            f"Python {sys.version.split()[0]} on {platform.platform()}",
            "gradio {}".format(getattr(sys.modules.get("gradio"), "__version__", "?")),
            "",
            *traceback.format_exception(type(error), error, error.__traceback__)[-6:],
        ]
    )


def say(sentence: str) -> str:
    """In the language of the host's user, where so much still works."""
    try:
        from lora_trainer.hosts import find
        from lora_trainer.webui import texts

        return texts.translate(sentence, texts.choose(find().language()))
    except Exception:
        return sentence
