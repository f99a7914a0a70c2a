"""Embeddings of a dataset's images, stored in its folder by image content.

    add(root, seen)             adds a captioner's embeddings
    read_all(root)              all of them, one Embedded per encoder
    covering(some, digests)     the encoder that covers these images, if any

A caption job stores them, since its model computes them anyway; the check measures variety with
them. A changed image has another digest, and no embedding until it is captioned again. The files,
.lora_trainer/embeddings/NAME.bin, may be deleted at any time:

    one line of JSON        version, encoder, title, unrelated, width, and digests in the order of
    rows
    the rows                width numbers each, float16, little-endian

Invalid files are ignored. numpy only, for the WebUI's process.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_trainer import files
from lora_trainer.dataset.caption_provenance import FOLDER as KNOWLEDGE

FOLDER = "embeddings"
"""Inside the dataset's .lora_trainer folder."""
VERSION = 1
"""Increase when embeddings change: older files are then ignored."""
COVERED = 0.9
"""Share of the images that an encoder must cover."""

Row = NDArray[np.float16]
"""One image's normalized embedding."""
_STORED = np.dtype("<f2")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of one encoder."""

    encoder: str
    """Identifies the encoder exactly: "CLIP openai/clip-vit-large-patch14". Rows of different
    encoders cannot be compared.
    """
    title: str
    """Its name for the user."""
    unrelated: float
    """1 - mean cosine similarity of unrelated images, the scale of this encoder."""
    by_digest: Mapping[str, Row]
    """dataset.images.digest of the file -> its row."""

    def rows(self, digests: Sequence[str]) -> NDArray[np.float32]:
        """The rows of those `digests` that have one, in order, as (count, width)."""
        found = [self.by_digest[digest] for digest in digests if digest in self.by_digest]
        return np.stack(found).astype(np.float32) if found else np.zeros((0, 0), np.float32)


def spread(rows: NDArray[Any]) -> float:
    """1 - mean cosine similarity of all pairs of at least two rows, (count, width)."""
    rows = np.asarray(rows, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    count, total = len(rows), rows.sum(axis=0)
    # the sum over all pairs is the square of the sum, minus each row with itself
    return 1 - float((total @ total - (rows * rows).sum()) / (count * (count - 1)))


def covering(some: Sequence[Embedded], digests: Sequence[str]) -> Embedded | None:
    """The one with most of these images, if it has nearly all of them."""
    counts = [sum(digest in one.by_digest for digest in digests) for one in some]
    best = max(counts, default=0)
    return some[counts.index(best)] if best and best >= COVERED * len(digests) else None


def read_all(root: Path) -> tuple[Embedded, ...]:
    """All embeddings of the dataset in `root`, by file name, without unreadable files."""
    try:
        paths = sorted((root / KNOWLEDGE / FOLDER).glob("*.bin"))
    except OSError:
        return ()
    return tuple(one for one in map(_read, paths) if one is not None)


def add(root: Path, seen: Embedded, keep: Collection[str] | None = None) -> None:
    """Add embeddings to those of the same encoder; of these, `keep` only the given digests. Raises
    OSError. Call it within caption_provenance.changing_captions.
    """
    path = root / KNOWLEDGE / FOLDER / f"{_name(seen)}.bin"
    known = _read(path)
    rows = dict(known.by_digest) if known is not None and known.encoder == seen.encoder else {}
    if keep is not None:
        rows = {digest: row for digest, row in rows.items() if digest in keep}
    rows.update(seen.by_digest)
    width = len(next(iter(seen.by_digest.values()))) if seen.by_digest else 0
    rows = {digest: row for digest, row in rows.items() if len(row) == width}
    if not rows:
        return
    head = {
        "version": VERSION,
        "encoder": seen.encoder,
        "title": seen.title,
        "unrelated": seen.unrelated,
        "width": width,
        "digests": list(rows),
    }
    files.write_bytes(
        path,
        json.dumps(head).encode("ascii")
        + b"\n"
        + np.stack(list(rows.values())).astype(_STORED).tobytes(),
    )


def _name(seen: Embedded) -> str:
    """A file name for the encoder, which may be named by a path."""
    letters = "".join(
        letter for letter in seen.title.lower() if letter.isascii() and letter.isalnum()
    )
    digest = hashlib.sha256(seen.encoder.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{letters}-{digest[:12]}"


def _read(path: Path) -> Embedded | None:
    """A file's content, or None if it is truncated, of another version, or invalid."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        header = files.parse_json(head)
        digests = [str(each) for each in header["digests"]]
        width = int(header["width"])
        unrelated = float(header["unrelated"])
        rows = np.frombuffer(body, _STORED).reshape(len(digests), width)
        sound = (
            header["version"] == VERSION
            and width > 0
            and math.isfinite(unrelated)
            and bool(np.isfinite(rows).all())
        )
        by_digest = dict(zip(digests, rows.astype(np.float16), strict=True))
        if sound:
            return Embedded(
                encoder=str(header["encoder"]),
                title=str(header["title"]),
                unrelated=unrelated,
                by_digest=by_digest,
            )
        return None
    except files.UNREADABLE:
        return None
