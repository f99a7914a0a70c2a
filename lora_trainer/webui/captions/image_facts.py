"""Facts about each image of a dataset: token count, review mark, author of the caption, findings.

ImageFacts implements image_query.Knowledge, and is shown beside each image. Created by
workbench.py; used by image_query.py and serialization.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_trainer import files
from lora_trainer.dataset import caption_provenance
from lora_trainer.dataset.caption_provenance import Author
from lora_trainer.errors import DatasetError
from lora_trainer.webui.captions.check import Findings, IdentifiedFinding
from lora_trainer.webui.datasets import token_counts
from lora_trainer.webui.datasets.caption_store import CaptionStore, Item
from lora_trainer.webui.datasets.token_counts import TokenCount


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """See the module. marks: {digest: the caption that was reviewed}; find: computes the
    findings.
    """

    store: CaptionStore
    marks: Mapping[str, str]
    authors_known: caption_provenance.Authors
    find: Callable[[], Findings]
    trigger: str
    limit: int
    times: dict[Path, float]

    @cached_property
    def findings(self) -> Findings:
        """The check's findings, computed on first use."""
        return self.find()

    @cached_property
    def _marked(self) -> frozenset[str]:
        return frozenset(self.marks.values())

    def length(self, item: Item) -> TokenCount:
        return token_counts.length(item.caption, self.trigger, self.limit)

    def tokens(self, item: Item) -> int:
        return self.length(item).count if item.caption else 0

    def is_long(self, item: Item) -> bool:
        return bool(item.caption) and self.length(item).over

    def reviewed(self, item: Item) -> bool:
        # the image is only hashed if its mark matters
        return item.caption in self._marked and self.marks.get(self._digest(item)) == item.caption

    def author(self, item: Item) -> Author:
        if not self.authors_known.by_digest or not item.caption:
            return "person" if item.caption else "nobody"
        return self.authors_known.author(self._digest(item), item.caption)

    def findings_of(self, item: Item) -> tuple[IdentifiedFinding, ...]:
        """The check's findings of an image."""
        return self.findings.of_images.get(item.path, ())

    def kinds(self, item: Item) -> Sequence[str]:
        found = self.findings.kinds.get(item.path, ())
        return [*(finding.kind for finding in item.findings), *found] if item.findings else found

    def edited(self, item: Item) -> float:
        if not item.caption_file:
            return 0.0
        path = self.store.path / item.caption_file
        if path not in self.times:
            self.times[path] = files.changed(path)
        return self.times[path]

    def _digest(self, item: Item) -> str:
        try:
            return self.store.digest_of(item)
        except DatasetError:
            return ""
