"""Caches the scans of datasets while nothing that they depend on changes. Of the form's fields,
only trigger word, repeats and max_token_length matter.

    scans.scan(store, settings, count_tokens, token_limit)     as dataset.scan
    scan.bucket_sums(examples, buckets, settings, resolution)  as dataset.buckets

Each call checks the folder (dataset.index), so that changes by other programs are seen. Called by
preflight.py.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.dataset.buckets import Bucket, bucket_findings
from lora_trainer.dataset.findings import Sum, sums
from lora_trainer.dataset.scan import Dataset, Example, scan
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.settings.image_cache import ImageCache

MOST_KEPT = 3
"""Number of datasets."""


class CachedScan:
    """A scan, with its findings grouped."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.sums = tuple(sums(dataset.findings))
        self._of_buckets: tuple[Any, tuple[Sum, ...]] = (None, ())

    def bucket_sums(
        self,
        examples: tuple[Example, ...],
        buckets: Mapping[Bucket, Sequence[int]],
        settings: DatasetSettings,
        resolution: int,
    ) -> tuple[Sum, ...]:
        """The findings about these of its images in these buckets."""
        key, known = (examples, settings, resolution), self._of_buckets
        if known[0] != key:
            found = bucket_findings(examples, buckets, settings, resolution)
            known = self._of_buckets = (key, tuple(sums(found)))
        return known[1]


class ScanCache:
    """Thread-safe; concurrent requests for one scan share it."""

    def __init__(self, images: ImageCache) -> None:
        self._images = images
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[Any, CachedScan | DatasetError]] = OrderedDict()

    def scan(
        self,
        store: CaptionStore,
        settings: DatasetSettings,
        count_tokens: Callable[[str], int] | None,
        token_limit: int,
    ) -> CachedScan:
        """Raises DatasetError if nothing can be trained."""
        reading, examine_image = store.reading(), self._images.examine
        if not reading.is_whole or settings.metadata_path is not None:
            # the worker follows symlinks that the tab does not show
            return CachedScan(
                scan(settings, count_tokens, token_limit, examine_image=examine_image)
            )
        with self._lock:
            key = (
                reading.serial,
                settings.trigger_word,
                settings.repeats,
                count_tokens,
                token_limit,
                self._images.serial,
            )
            known = self._kept.get(store.path)
            if known is None or known[0] != key:
                found: CachedScan | DatasetError
                try:
                    found = CachedScan(
                        scan(
                            settings,
                            count_tokens,
                            token_limit,
                            examine_image=examine_image,
                            reading=reading,
                        )
                    )
                except DatasetError as problem:
                    found = problem
                known = self._kept[store.path] = (key, found)
            self._kept.move_to_end(store.path)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        if isinstance(known[1], DatasetError):
            raise known[1].with_traceback(None)
        return known[1]
