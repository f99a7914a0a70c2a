"""Sending an image's text to a tab: on the hosts buttons are bound to a tab's fields after all
tabs are drawn.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import gradio as gr

sys.modules["modules.generation_parameters_copypaste"] = sys.modules[__name__]

JS = "js" if gr.__version__.startswith("4.") else "_js"
paste_fields: dict[str, dict[str, Any]] = {}
registered_param_bindings: list[ParamBinding] = []


class ParamBinding:
    def __init__(
        self,
        paste_button,
        tabname,
        source_text_component=None,
        source_image_component=None,
        source_tabname=None,
        override_settings_component=None,
        paste_field_names=None,
    ):
        self.paste_button = paste_button
        self.tabname = tabname
        self.source_text_component = source_text_component
        self.source_image_component = source_image_component
        self.source_tabname = source_tabname
        self.override_settings_component = override_settings_component
        self.paste_field_names = paste_field_names or []


def reset():
    paste_fields.clear()
    registered_param_bindings.clear()


def add_paste_fields(tabname, init_img, fields, override_settings_component=None):
    paste_fields[tabname] = {
        "init_img": init_img,
        "fields": fields,
        "override_settings_component": override_settings_component,
    }


def parse_generation_parameters(x: str, skip_fields=None) -> dict[str, str]:
    """Prompt, negative prompt, and the `Steps: 20, ...` of the last line."""
    *lines, last = x.strip().split("\n")
    found = dict(re.findall(r"\s*(\w[\w \-/]+):\s*([^,]*)(?:,|$)", last))
    if len(found) < 3:
        lines, found = [*lines, last], {}
    positive = [line for line in lines if not line.startswith("Negative prompt:")]
    negative = [
        line.removeprefix("Negative prompt:").strip()
        for line in lines
        if line.startswith("Negative prompt:")
    ]
    return {"Prompt": "\n".join(positive), "Negative prompt": "\n".join(negative), **found}


def connect_paste_params_buttons():
    for binding in registered_param_bindings:
        fields = paste_fields[binding.tabname]["fields"]
        if binding.source_text_component is not None:

            def paste(text, fields=fields):
                values = parse_generation_parameters(text or "")
                return [
                    gr.update(value=values[name]) if name in values else gr.update()
                    for _, name in fields
                ]

            outputs = [field for field, _ in fields]
            binding.paste_button.click(
                fn=paste,
                inputs=[binding.source_text_component],
                outputs=outputs,
                show_progress=False,
            )
        binding.paste_button.click(
            fn=None, inputs=None, outputs=None, **{JS: f"switch_to_{binding.tabname}"}
        )
