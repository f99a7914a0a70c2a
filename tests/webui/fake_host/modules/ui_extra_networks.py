from __future__ import annotations

import html
import urllib.parse
from pathlib import Path

from modules import extra_networks, shared

extra_pages = []


def initialize():
    extra_pages.clear()


def register_page(page):
    extra_pages.append(page)


def quote_js(s):
    escaped = s.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def add_pages_to_demo(app):
    app.add_api_route("/sd_extra_networks/thumb", fetch_file, methods=["GET"])


def fetch_file(filename: str = ""):
    from starlette.responses import FileResponse, Response

    path = Path(filename).absolute()
    allowed = [
        Path(folder).absolute()
        for page in extra_pages
        for folder in page.allowed_directories_for_previews()
    ]
    if not path.is_file() or not any(folder in path.parents for folder in allowed):
        return Response(status_code=404)
    return FileResponse(path)


class ExtraNetworksPage:
    def __init__(self, title):
        self.title = title
        self.name = title.lower()
        self.extra_networks_tabname = self.name.replace(" ", "_")
        self.allow_negative_prompt = False
        self.items = {}

    def refresh(self):
        pass

    def create_item(self, name, index=None, enable_filter=True):
        raise NotImplementedError()

    def list_items(self):
        raise NotImplementedError()

    def allowed_directories_for_previews(self):
        return []

    def read_user_metadata(self, item, use_cache=True):
        item["user_metadata"] = extra_networks.get_user_metadata(item["filename"])
        item["description"] = item["user_metadata"].get("description")

    def link_preview(self, filename):
        return f"./sd_extra_networks/thumb?filename={urllib.parse.quote(str(filename))}&mtime={Path(filename).stat().st_mtime}"

    def find_preview(self, path):
        found = (Path(f"{path}{ending}") for ending in (".png", ".jpg", ".webp", ".preview.png"))
        return next((self.link_preview(file) for file in found if file.is_file()), None)

    def create_html(self, tabname, *, empty=False):
        """All cards of the page; their click inserts the tag and the sidecar's text, as on the
        hosts.
        """
        self.items = {} if empty else {item["name"]: item for item in self.list_items()}
        cards = [self.create_item_html(tabname, item) for item in self.items.values()]
        return (
            f"<div id='{tabname}_{self.extra_networks_tabname}_cards'"
            f" class='extra-network-cards'>{''.join(cards)}</div>"
        )

    def create_item_html(self, tabname, item):
        click = (
            f"cardClicked('{tabname}', {item['prompt']}, {item['negative_prompt']},"
            f" {str(self.allow_negative_prompt).lower()});"
        )
        picture = (
            f"<img src='{html.escape(item['preview'])}' class='preview' alt=''>"
            if item["preview"]
            else ""
        )
        return (
            f"<div class='card' data-name='{html.escape(item['name'])}'"
            f" onclick='{html.escape(click)}'>{picture}<div class='actions'><span"
            f" class='name'>{html.escape(item['name'])}</span></div></div>"
        )


class ExtraNetworksPageLora(ExtraNetworksPage):
    def __init__(self):
        super().__init__("Lora")

    def refresh(self):
        import networks

        networks.list_available_networks()

    def create_item(self, name, index=None, enable_filter=True):
        import networks

        on_disk = networks.available_networks.get(name)
        if on_disk is None:
            return None
        item = {
            "name": name,
            "filename": on_disk.filename,
            "preview": self.find_preview(Path(on_disk.filename).with_suffix("")),
            "metadata": on_disk.metadata,
            "sort_keys": {"default": index},
        }
        self.read_user_metadata(item)
        text, weight = (
            item["user_metadata"].get("activation text"),
            item["user_metadata"].get("preferred weight", 0.0),
        )
        multiplier = str(weight) if weight else "opts.extra_networks_default_multiplier"
        item["prompt"] = (
            quote_js(f"<lora:{on_disk.get_alias()}:") + f" + {multiplier} + " + quote_js(">")
        )
        if text:
            item["prompt"] += " + " + quote_js(" " + text)
        negative = item["user_metadata"].get("negative text")
        item["negative_prompt"] = quote_js(f"({negative}:1)" if negative else "")
        return item

    def list_items(self):
        import networks

        return [
            item
            for index, name in enumerate(list(networks.available_networks))
            if (item := self.create_item(name, index))
        ]

    def allowed_directories_for_previews(self):
        return [shared.cmd_opts.lora_dir]
