from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class OptionInfo:
    def __init__(
        self,
        default=None,
        label="",
        component=None,
        component_args=None,
        onchange=None,
        section=None,
        refresh=None,
        comment_before="",
        comment_after="",
        infotext=None,
        restrict_api=False,
        category_id=None,
    ):
        self.default = default
        self.label = label
        self.component = component
        self.component_args = component_args
        self.onchange = onchange
        self.section = section
        self.category_id = category_id
        self.refresh = refresh
        self.do_not_save = False
        self.comment_before = comment_before
        self.comment_after = comment_after
        self.infotext = infotext
        self.restrict_api = restrict_api

    def link(self, label, url):
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def info(self, info):
        self.comment_after += f"<span class='info'>({info})</span>"
        return self

    def html(self, html):
        self.comment_after += html
        return self


class OptionHTML(OptionInfo):
    def __init__(self, text):
        super().__init__(str(text).strip(), label="")
        self.do_not_save = True


def options_section(section_identifier, options_dict):
    for option in options_dict.values():
        option.section = section_identifier[:2]
        if len(section_identifier) == 3:
            option.category_id = section_identifier[2]
    return options_dict


class Options:
    def __init__(self, data_labels: dict[str, OptionInfo]):
        self.data_labels = data_labels
        self.data = {
            key: option.default for key, option in data_labels.items() if not option.do_not_save
        }

    def __setattr__(self, key: str, value: Any) -> None:
        if key not in ("data_labels", "data") and (key in self.data or key in self.data_labels):
            self.data[key] = value
            return
        super().__setattr__(key, value)

    def __getattr__(self, item: str) -> Any:
        if item in ("data_labels", "data"):
            raise AttributeError(item)
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        raise AttributeError(item)

    def set(self, key, value, is_api=False, run_callbacks=True):
        if self.data.get(key) == value:
            return False
        setattr(self, key, value)
        option = self.data_labels[key]
        if run_callbacks and option.onchange is not None:
            option.onchange()
        return True

    def add_option(self, key, info):
        self.data_labels[key] = info
        if key not in self.data and not info.do_not_save:
            self.data[key] = info.default

    def onchange(self, key, func, call=True):
        self.data_labels[key].onchange = func
        if call:
            func()

    def load(self, filename: str) -> None:
        if Path(filename).is_file():
            self.data = json.loads(Path(filename).read_text(encoding="utf-8"))

    def save(self, filename: str) -> None:
        Path(filename).write_text(
            json.dumps(self.data, indent=4, ensure_ascii=False), encoding="utf-8"
        )

    def dumpjson(self) -> str:
        return json.dumps(
            {key: self.data.get(key, option.default) for key, option in self.data_labels.items()}
        )
