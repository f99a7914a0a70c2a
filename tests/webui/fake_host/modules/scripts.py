"""Loading scripts/*.py as the hosts do, and the scripts that run along with each generation."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

from modules import errors, extensions, paths, script_callbacks, script_loading

AlwaysVisible = object()
current_basedir = paths.script_path
scripts_data: list[ScriptClassData] = []


class Script:
    name = None
    section = None
    filename = None
    args_from = None
    args_to = None
    alwayson = False
    is_txt2img = False
    is_img2img = False
    tabname = None
    group = None
    create_group = True
    infotext_fields = None
    paste_field_names = None

    def title(self):
        raise NotImplementedError()

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def run(self, p, *args):
        pass

    def setup(self, p, *args):
        pass

    def before_process(self, p, *args):
        pass

    def process(self, p, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass

    def elem_id(self, item_id):
        return f"script_{self.tabname}_{type(self).__name__}_{item_id}"


class ScriptClassData(NamedTuple):
    script_class: type[Script]
    path: str
    basedir: str
    module: Any


def basedir() -> str:
    """The folder of the extension whose script is being loaded."""
    return current_basedir


def list_scripts(
    scriptdirname: str, extension: str, *, include_extensions: bool = True
) -> list[extensions.ScriptFile]:
    return (
        [file for one in extensions.active() for file in one.list_files(scriptdirname, extension)]
        if include_extensions
        else []
    )


def list_files_with_name(filename: str) -> list[str]:
    folders = [paths.script_path, *(extension.path for extension in extensions.active())]
    return [str(Path(folder, filename)) for folder in folders if Path(folder, filename).is_file()]


def load_scripts() -> None:
    """Every scripts/*.py, by path, with its extension's folder on sys.path for as long as that
    takes.
    """
    global current_basedir, scripts_txt2img, scripts_img2img
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    syspath = sys.path
    for file in list_scripts("scripts", ".py"):
        try:
            sys.path = [file.basedir, *sys.path]
            current_basedir = file.basedir
            module = script_loading.load_module(file.path)
            for value in list(module.__dict__.values()):
                if inspect.isclass(value) and issubclass(value, Script) and value is not Script:
                    scripts_data.append(ScriptClassData(value, file.path, file.basedir, module))
        except Exception:
            errors.report(f"Error loading script: {file.filename}", exc_info=True)
        finally:
            sys.path = syspath
            current_basedir = paths.script_path
    scripts_txt2img, scripts_img2img = ScriptRunner(), ScriptRunner()


class ScriptRunner:
    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.alwayson_scripts: list[Script] = []
        self.inputs: list[Any] = [None]

    def initialize_scripts(self, is_img2img: bool) -> None:
        self.scripts.clear()
        self.alwayson_scripts.clear()
        for data in scripts_data:
            try:
                script = data.script_class()
            except Exception:
                errors.report(f"Error # failed to initialize Script {data.module}: ", exc_info=True)
                continue
            script.filename = data.path
            script.is_txt2img, script.is_img2img = not is_img2img, is_img2img
            script.tabname = "img2img" if is_img2img else "txt2img"
            visibility = script.show(is_img2img)
            if visibility is AlwaysVisible:
                script.alwayson = True
                self.alwayson_scripts.append(script)
            if visibility:
                self.scripts.append(script)

    def prepare_ui(self) -> None:
        self.inputs = [None]

    def setup_ui_for_section(
        self, section: str | None, scriptlist: list[Script] | None = None
    ) -> None:
        for script in self.alwayson_scripts if scriptlist is None else scriptlist:
            script.args_from = script.args_to = len(self.inputs)
            try:
                controls = script.ui(script.is_img2img)
            except Exception:
                errors.report(f"Error calling: {script.filename}/ui", exc_info=True)
                continue
            if controls:
                self.inputs += controls
                script.args_to = len(self.inputs)

    def _each(self, method: str, p: Any, *arguments: Any) -> None:
        for script in self.alwayson_scripts:
            try:
                getattr(script, method)(
                    p, *arguments, *p.script_args[script.args_from or 0 : script.args_to or 0]
                )
            except Exception:
                errors.report(f"Error running {method}: {script.filename}", exc_info=True)

    def before_process(self, p: Any) -> None:
        self._each("before_process", p)

    def process(self, p: Any) -> None:
        self._each("process", p)

    def postprocess(self, p: Any, processed: Any) -> None:
        self._each("postprocess", p, processed)

    def run(self, p: Any, *args: Any) -> None:
        return None


scripts_txt2img = ScriptRunner()
scripts_img2img = ScriptRunner()
