"""Exports a dataset's captions: metadata.csv, metadata.jsonl, or a zip of .txt files. Pure; called
by the routes.

The file can be uploaded again: names are paths relative to the dataset's folder, with forward
slashes.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from lora_trainer.errors import DatasetError
from lora_trainer.webui.datasets.caption_store import Item

KINDS = {
    "csv": ("metadata.csv", "text/csv; charset=utf-8"),
    "jsonl": ("metadata.jsonl", "application/jsonl"),
    "txt": ("captions.zip", "application/zip"),
}
"""Kind -> (file name, media type)."""


def export(items: Sequence[Item], kind: str) -> bytes:
    """Captions of the images that have one. Raises DatasetError for an unknown kind."""
    # lone surrogates of file names that are not UTF-8 cannot be written into these files
    rows = [
        (item.name.encode("utf-8", "replace").decode("utf-8"), item.caption)
        for item in items
        if item.caption
    ]
    if kind == "csv":
        return _csv(rows)
    if kind == "jsonl":
        return "".join(
            json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) + "\n"
            for name, caption in rows
        ).encode()
    if kind == "txt":
        return _zip(rows)
    raise DatasetError(
        "{kind} is not a format for captions", hint="Use csv, jsonl or txt.", kind=kind
    )


def _csv(rows: Sequence[tuple[str, str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(("file_name", "text"))
    writer.writerows(rows)
    # with a byte order mark, Excel reads UTF-8
    return buffer.getvalue().encode("utf-8-sig")


def _zip(rows: Sequence[tuple[str, str]]) -> bytes:
    stems = Counter(str(PurePosixPath(name).with_suffix("")) for name, _ in rows)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, caption in rows:
            stem = str(PurePosixPath(name).with_suffix(""))
            # fox.png and fox.jpg would share fox.txt
            archive.writestr((name if stems[stem] > 1 else stem) + ".txt", caption + "\n")
    return buffer.getvalue()
