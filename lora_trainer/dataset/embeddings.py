"""What an image encoder made of a dataset's images, kept in the dataset's folder: one vector an
image, by the content of the image.

    add(root, seen)             what a captioner's encoder saw, besides what is kept of it already
    read_all(root)              all that is kept, one Embedded an encoder
    covering(some, digests)     the encoder that has seen these images, if there is one

A caption job leaves them behind, since its model computes them anyway; the check asks them how much
variety a dataset has. An image whose content changed has another digest, and so no embedding until
it is captioned again. Each file, .lora_trainer/embeddings/NAME.bin, may be deleted at any time:

    one line of JSON        version, encoder, title, unrelated, width, and the digests in the order
                            of the rows
    the rows                width numbers each, float16, little-endian

A file that does not read so is as good as none. numpy only: it is read in the WebUI's process.
Called by tasks.caption and `check`.
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
"""In the dataset's folder of knowledge."""
VERSION = 1
"""Raised when anything is embedded differently: older files are then begun anew."""
COVERED = 0.9
"""An encoder must have seen this part of the images to be asked about all of them."""

Row = NDArray[np.float16]
"""One image's embedding, of length 1."""
_STORED = np.dtype("<f2")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What one encoder saw."""

    encoder: str
    """Which one, exactly: rows of two encoders cannot be compared. "CLIP
    openai/clip-vit-large-patch14".
    """
    title: str
    """What it is called to the user."""
    unrelated: float
    """1 - mean cosine of pictures that have nothing in common, as this encoder sees them: each
    encoder has a scale of its own.
    """
    by_digest: Mapping[str, Row]
    """dataset.images.digest of the file -> its row."""

    def rows(self, digests: Sequence[str]) -> NDArray[np.float32]:
        """(those of `digests` that were seen, width), in their order."""
        found = [self.by_digest[digest] for digest in digests if digest in self.by_digest]
        return np.stack(found).astype(np.float32) if found else np.zeros((0, 0), np.float32)


def spread(rows: NDArray[Any]) -> float:
    """1 - mean cosine of all pairs of rows, (count, width): 0 where all point the same way. At
    least two rows.
    """
    rows = np.asarray(rows, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    count, total = len(rows), rows.sum(axis=0)
    # the sum of all products is the square of the sum; the count of them are a row's with itself
    return 1 - float((total @ total - (rows * rows).sum()) / (count * (count - 1)))


def covering(some: Sequence[Embedded], digests: Sequence[str]) -> Embedded | None:
    """The one that has seen the most of these images, if it has seen nearly all of them."""
    counts = [sum(digest in one.by_digest for digest in digests) for one in some]
    best = max(counts, default=0)
    return some[counts.index(best)] if best and best >= COVERED * len(digests) else None


def read_all(root: Path) -> tuple[Embedded, ...]:
    """All that is kept of the dataset in `root`, in the order of their names; what cannot be read
    is left out.
    """
    try:
        paths = sorted((root / KNOWLEDGE / FOLDER).glob("*.bin"))
    except OSError:
        return ()
    return tuple(one for one in map(_read, paths) if one is not None)


def add(root: Path, seen: Embedded, keep: Collection[str] | None = None) -> None:
    """Keeps these besides what is kept of the same encoder. `keep`: of those, only these digests.
    Raises OSError.

    Two processes must not do this at once: call it within caption_provenance.changing_captions.
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
    """A name for a file: an encoder may be named by a path."""
    letters = "".join(
        letter for letter in seen.title.lower() if letter.isascii() and letter.isalnum()
    )
    digest = hashlib.sha256(seen.encoder.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{letters}-{digest[:12]}"


def _read(path: Path) -> Embedded | None:
    """A file as it was written, or nothing: it may be cut off, of another version, or something
    else altogether.
    """
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        told = files.parse_json(head)
        digests = [str(each) for each in told["digests"]]
        width = int(told["width"])
        unrelated = float(told["unrelated"])
        rows = np.frombuffer(body, _STORED).reshape(len(digests), width)
        sound = (
            told["version"] == VERSION
            and width > 0
            and math.isfinite(unrelated)
            and bool(np.isfinite(rows).all())
        )
        by_digest = dict(zip(digests, rows.astype(np.float16), strict=True))
        return (
            Embedded(
                encoder=str(told["encoder"]),
                title=str(told["title"]),
                unrelated=unrelated,
                by_digest=by_digest,
            )
            if sound
            else None
        )
    except files.UNREADABLE:
        return None
