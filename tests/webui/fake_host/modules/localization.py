from __future__ import annotations

import json
from pathlib import Path

from modules import scripts

localizations: dict[str, list[str]] = {}


def list_localizations(dirname: str = "") -> None:
    localizations.clear()
    for file in scripts.list_scripts("localizations", ".json"):
        localizations.setdefault(Path(file.filename).stem, []).append(file.path)


def localization_js(current_localization_name: str) -> str:
    data = {}
    for path in localizations.get(current_localization_name) or []:
        data.update(json.loads(Path(path).read_text(encoding="utf-8")))
    return f"window.localization = {json.dumps(data)}"
