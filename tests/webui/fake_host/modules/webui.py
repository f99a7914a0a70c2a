"""Start, serve, reload: the order of things is the hosts'."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import gradio as gr
from fastapi.responses import HTMLResponse
from modules import (
    initialize,
    localization,
    paths,
    script_callbacks,
    scripts,
    shared,
    ui,
    ui_extra_networks,
)
from modules.shared_cmd_options import cmd_opts

PATIENCE = 15.0
"""Seconds that the server has for closing."""
template_response = gr.routes.templates.TemplateResponse


def run() -> None:
    """Serve until killed. A1111 serves from its main thread; Forge keeps that for making
    images.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if cmd_opts.lacking:
        pretend_to_lack(cmd_opts.lacking)
    if cmd_opts.forking:
        start_in_place(Path(cmd_opts.forking))
    initialize.initialize()
    if cmd_opts.flavour != "forge":
        webui()
        return
    from modules_forge import main_thread

    Thread(target=webui, daemon=True, name="webui").start()
    main_thread.loop()


def webui() -> None:
    # gradio makes its locks in this thread, and on Forge it is not the main one
    asyncio.set_event_loop(asyncio.new_event_loop())
    while True:
        script_callbacks.before_ui_callback()
        with without_apps():
            shared.demo = ui.create_ui()
            if not cmd_opts.no_gradio_queue:
                shared.demo.queue(64)
        gr.routes.templates.TemplateResponse = with_head
        login = [
            tuple(pair.strip().split(":", 1))
            for pair in (cmd_opts.gradio_auth or "").split(",")
            if pair.strip()
        ]
        app, _, _ = shared.demo.launch(
            share=False,
            server_name=cmd_opts.server_name or ("0.0.0.0" if cmd_opts.listen else None),
            server_port=cmd_opts.port,
            auth=login or None,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            allowed_paths=[
                *cmd_opts.gradio_allowed_path,
                paths.script_path,
                *(extension.path for extension in active_extensions()),
            ],
            root_path=f"/{cmd_opts.subpath}" if cmd_opts.subpath else "",
        )
        tidy_middleware(app)
        app.add_api_route("/internal/ping", ping, methods=["GET"])
        app.add_api_route("/internal/reload", shared.state.request_restart, methods=["POST"])
        app.add_api_route("/bare", bare_page, methods=["GET"], response_class=HTMLResponse)
        ui_extra_networks.add_pages_to_demo(app)
        script_callbacks.app_started_callback(shared.demo, app)
        print("Startup time: ready.", flush=True)
        while shared.state.wait_for_server_command(timeout=5) != "restart":
            pass
        print("Restarting UI...", flush=True)
        close(shared.demo)
        time.sleep(0.5)
        script_callbacks.app_reload_callback()
        script_callbacks.script_unloaded_callback()
        initialize.initialize_rest(reload_script_modules=True)


@contextlib.contextmanager
def without_apps() -> Iterator[None]:
    """gradio makes an app of each part of the page, and again when it has a queue; the only one
    that serves is made when it is launched. The others are half of a start.
    """
    make = gr.routes.App.__dict__["create_app"]
    gr.routes.App.create_app = staticmethod(lambda *given, **named: None)
    try:
        yield
    finally:
        gr.routes.App.create_app = make


def close(demo: Any) -> None:
    """uvicorn waits without an end for a connection that a browser holds open: after a while it is
    told not to, and the log says so.
    """

    def force() -> None:
        print("A connection was still open; closing all the same.", flush=True)
        demo.server.force_exit = True

    timer = Timer(PATIENCE, force)
    timer.daemon = True
    timer.start()
    demo.close()
    timer.cancel()


def ping() -> dict[str, str]:
    return {}


def active_extensions() -> list[Any]:
    from modules import extensions

    return extensions.active()


def tidy_middleware(app: Any) -> None:
    """The hosts replace gradio's open CORS policy, and compress."""
    from starlette.middleware.gzip import GZipMiddleware

    app.user_middleware = [
        one for one in app.user_middleware if one.cls.__name__ != "CORSMiddleware"
    ]
    app.middleware_stack = None
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.middleware_stack = app.build_middleware_stack()


def webpath(path: str) -> str:
    return html.escape(f"file={path}?{Path(path).stat().st_mtime}")


def bare_page() -> str:
    """The extensions' scripts and the trainer's mount point without a WebUI around them: what our
    own page does can be tested there, for a third of the work.
    """
    (mount,) = (
        block.value
        for block in shared.demo.blocks.values()
        if block.elem_id == "lora_trainer_mount"
    )
    return (
        f"<!doctype html><html><head>{head()}{foot()}</head><body>"
        '<div id="tabs"><div class="tab-nav"><button class="selected">LoRA Trainer</button></div>'
        f'<div class="tabitem" id="tab_lora_trainer">{mount}</div></div>'
        "<script>addEventListener('DOMContentLoaded', () => document.body.insertAdjacentHTML("
        "'beforeend', '<div id=txt2img_prompt><textarea></textarea></div>'));</script>"
        "</body></html>"
    )


def with_head(*args: Any, **kwargs: Any) -> Any:
    """The host's page with the scripts and style sheets of the host and of all extensions in it."""
    response = template_response(*args, **kwargs)
    response.body = response.body.replace(b"</head>", head().encode() + b"</head>").replace(
        b"</body>", foot().encode() + b"</body>"
    )
    response.init_headers()
    return response


def head() -> str:
    files = [
        str(Path(paths.script_path, "script.js")),
        *(file.path for file in scripts.list_scripts("javascript", ".js")),
    ]
    made = f"<script>{localization.localization_js(shared.opts.localization)}</script>\n"
    made += "".join(
        f'<script type="text/javascript" src="{webpath(path)}"></script>\n' for path in files
    )
    if cmd_opts.theme:
        made += f'<script>set_theme("{cmd_opts.theme}");</script>\n'
    return made


def foot() -> str:
    return "".join(
        f'<link rel="stylesheet" property="stylesheet" href="{webpath(path)}">'
        for path in scripts.list_files_with_name("style.css")
    )


def pretend_to_lack(name: str) -> None:
    """Let the extension's look at the worker's packages miss one that no index has."""
    environment = environment_of_the_extension()
    from lora_trainer import packages

    # first: the tab names only some
    lacking = (packages.Package(name=name, version="1.0"), *packages.WORKER_PACKAGES)
    assert environment.find_overlay.__kwdefaults__ is not None
    environment.find_overlay.__kwdefaults__["wanted"] = lacking
    environment.find_overlay.__defaults__ = (Path(paths.data_path, "overlay"),)


def start_in_place(file: Path) -> None:
    """Start the extension's processes with the command in that file, as soon as it is there, in an
    interpreter's place.
    """
    environment = environment_of_the_extension()
    entry = environment._entry

    def entry_in_place(name: str) -> list[str]:
        interpreter, *arguments = entry(name)
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else [interpreter]
        return [*found, *arguments]

    environment._entry = entry_in_place


def environment_of_the_extension() -> Any:
    """Its module of that name, before it imports it itself."""
    root = str(Path(__file__).resolve().parents[4])
    sys.path.insert(0, root)
    from lora_trainer import environment

    sys.path.remove(root)
    return environment
