"""The hosts' callbacks. A callback that raises is reported on the console, and the host goes on
without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from modules import errors


class ScriptCallback(NamedTuple):
    script: str
    callback: Callable[..., Any]
    name: str | None


callback_map: dict[str, list[ScriptCallback]] = {
    f"callbacks_{category}": []
    for category in (
        "app_started",
        "model_loaded",
        "ui_tabs",
        "ui_settings",
        "before_image_saved",
        "image_saved",
        "before_component",
        "after_component",
        "infotext_pasted",
        "script_unloaded",
        "before_ui",
        "on_reload",
    )
}


def add_callback(category: str, callback: Callable[..., Any], name: str | None) -> None:
    filename = next(
        (frame.filename for frame in inspect.stack() if frame.filename != __file__), "unknown file"
    )
    callback_map[f"callbacks_{category}"].append(ScriptCallback(filename, callback, name))


def clear_callbacks() -> None:
    for callbacks in callback_map.values():
        callbacks.clear()


def _call(category: str, *arguments: Any, backwards: bool = False, **named: Any) -> list[Any]:
    results = []
    callbacks = list(callback_map[f"callbacks_{category}"])
    for entry in reversed(callbacks) if backwards else callbacks:
        try:
            results.append(entry.callback(*arguments, **named))
        except Exception:
            errors.report(f"Error executing callback {category} for {entry.script}", exc_info=True)
    return results


def app_started_callback(demo: Any, app: Any) -> None:
    _call("app_started", demo, app)


def app_reload_callback() -> None:
    _call("on_reload")


def ui_tabs_callback() -> list[Any]:
    return [tab for tabs in _call("ui_tabs") for tab in tabs or []]


def ui_settings_callback() -> None:
    _call("ui_settings")


def script_unloaded_callback() -> None:
    _call("script_unloaded", backwards=True)


def before_ui_callback() -> None:
    _call("before_ui", backwards=True)


def on_app_started(callback, *, name=None):
    add_callback("app_started", callback, name)


def on_ui_tabs(callback, *, name=None):
    add_callback("ui_tabs", callback, name)


def on_ui_settings(callback, *, name=None):
    add_callback("ui_settings", callback, name)


def on_script_unloaded(callback, *, name=None):
    add_callback("script_unloaded", callback, name)
