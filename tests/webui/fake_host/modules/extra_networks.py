from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

re_extra_net = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items = items or []
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)


def parse_prompt(prompt):
    found = defaultdict(list)

    def take(match):
        found[match.group(1)].append(ExtraNetworkParams(items=match.group(2).split(":")))
        return ""

    return re.sub(re_extra_net, take, prompt), found


def get_user_metadata(filename, lister=None):
    """The card's sidecar: NAME.json beside the file."""
    if filename is None:
        return {}
    try:
        return json.loads(Path(filename).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
