"""Edits a dataset: all changes of captions and images in the tab are made here, so that each is
conflict-checked, recorded and undoable.

    bench.preview(keys, action) -> BulkEdit        a bulk edit that is not applied yet
    bench.apply(plan) -> Outcome                   applies it, except to captions that someone else
                                                   has changed meanwhile; those are reported
    bench.save(key, caption, was)                  one caption
    bench.remove(keys), .restore(keys), .fix(findings), .convert()
    bench.set_vocabulary(vocabulary), .set_template_order(order)
    bench.undo(), .redo()                          the newest edit, except what has changed since
    bench.known(view, ...) -> ImageFacts           facts about each image, for filters and the page

The state is in the dataset's folder: captions (caption_store.py), and in .lora_trainer the journal,
review marks (reviewed.json) and the check's results. Called by the routes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.dataset import caption_provenance, edits
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.syntax import unescaped
from lora_trainer.dataset.template import (
    FIELDS,
    VOCABULARY_FILE,
    Field,
    Vocabulary,
    read_vocabulary,
    write_vocabulary,
)
from lora_trainer.errors import DatasetError, LoraTrainerError, Message
from lora_trainer.runs.folder import RunFolder
from lora_trainer.webui.captions import bulk_edits, image_edits
from lora_trainer.webui.captions.bench import Bench, EditConflict, Outcome, content_of
from lora_trainer.webui.captions.check import Checker, IdentifiedFinding
from lora_trainer.webui.captions.image_facts import ImageFacts
from lora_trainer.webui.captions.journal import (
    CaptionEdit,
    Direction,
    Edit,
    FileEdit,
    Swap,
)
from lora_trainer.webui.common.safe_names import natural_order
from lora_trainer.webui.datasets.caption_store import CaptionChange, CaptionStore, Item, View
from lora_trainer.webui.datasets.image_conversion import Converter
from lora_trainer.webui.datasets.registry import Datasets

REVIEWED, TEMPLATE, EXPECTED = "reviewed.json", "template.json", "expected"
"""In the dataset's .lora_trainer folder."""
PLANS_KEPT = 10
NOT_THERE = Message("this image no longer exists")
CHANGED_SINCE = Message("this caption was changed elsewhere, and was left as it is")


@dataclass(frozen=True, kw_only=True)
class BulkEdit:
    """A bulk edit that is not applied yet."""

    id: str
    title: Message
    changes: tuple[CaptionChange, ...]
    """Only captions that change."""
    selected: int


@dataclass
class _EditParts:
    """The parts of an edit, while it is built."""

    captions: dict[str, CaptionEdit] = field(default_factory=dict)
    changes: list[CaptionChange] = field(default_factory=list)
    conflicts: list[EditConflict] = field(default_factory=list)
    unchanged: int = 0


class Workbenches:
    """One workbench per dataset. Thread-safe."""

    def __init__(
        self,
        datasets: Datasets,
        of_texts: Callable[[str], Bench] | None = None,
    ) -> None:
        """of_texts: returns the workbench of a dataset of texts."""
        self._datasets = datasets
        self._of_texts = of_texts
        self._converter = Converter()
        self._lock = threading.Lock()
        self._known: dict[str, Workbench] = {}

    def any_of(self, identity: str) -> Bench:
        """The workbench of a dataset of images or texts. Raises NotFound."""
        if self._of_texts is not None and self._datasets.find(identity).kind == "texts":
            return self._of_texts(identity)
        return self.of(identity)

    def at(self, folder: Path) -> Workbench | None:
        """The workbench of the dataset of images in a folder; None if there is no such dataset."""
        return next(
            (
                self.of(dataset.id)
                for dataset in self._datasets.all()
                if dataset.path == folder and dataset.kind == "images"
            ),
            None,
        )

    def of(self, identity: str) -> Workbench:
        """Raises NotFound if there is no such dataset."""
        store = self._datasets.store(identity)
        with self._lock:
            known = self._known.get(identity)
            if known is None or known.store is not store:
                # drop those of deleted datasets
                self._known = {key: one for key, one in self._known.items() if one.root.is_dir()}
                known = self._known[identity] = Workbench(store, converter=self._converter)
            return known


class Workbench(Bench):
    """Thread-safe: changes are made under the store's lock."""

    def __init__(
        self,
        store: CaptionStore,
        clock: Callable[[], float] = time.time,
        converter: Converter | None = None,
    ) -> None:
        super().__init__(store.path, store.lock, clock)
        self.store = store
        self.converter = converter or Converter()
        self.checker = Checker(store, self.vocabulary, clock)
        self._plans: OrderedDict[str, BulkEdit] = OrderedDict()
        self._reviewed: tuple[int, dict[str, str]] = (-1, {})
        files.remove_abandoned(store.path)

    # --- reading ----------------------------------------------------------------------------------

    def known(self, view: View, trigger: str = "", tokens: int = 75) -> ImageFacts:
        """Facts about the images of a view."""
        return ImageFacts(
            store=self.store,
            marks=self._marks(),
            authors_known=caption_provenance.read_authors(self.root),
            find=lambda: self.checker.findings(view),
            trigger=trigger,
            limit=tokens,
            times={},
        )

    def revision(self, view: View) -> str:
        """Changes whenever a page may have changed."""
        folder = self.root / caption_provenance.FOLDER
        stamps = [
            files.stamp(path)
            for path in (
                folder / caption_provenance.FILE,
                folder / REVIEWED,
                folder / TEMPLATE,
                self.root / VOCABULARY_FILE,
            )
        ]
        return hashlib.blake2b(
            repr((view.revision, stamps, self.checker.serial)).encode(), digest_size=12
        ).hexdigest()

    def current_revision(self) -> str:
        return self.revision(self.store.latest())

    def vocabulary(self) -> Vocabulary | None:
        """The dataset's vocabulary. None also if its file is unreadable; the vocabulary's own route
        reports that.
        """
        try:
            return read_vocabulary(self.root)
        except (DatasetError, OSError):
            return None

    def template_order(self) -> tuple[Field, ...]:
        """The order of the template's fields in this dataset's captions."""
        kept = files.read_json(
            self.root / caption_provenance.FOLDER / TEMPLATE, lambda values: values["order"], None
        )
        return (
            tuple(kept)
            if isinstance(kept, list) and sorted(map(str, kept)) == sorted(FIELDS)
            else FIELDS
        )

    def set_template_order(self, order: Sequence[Any]) -> None:
        """Raises DatasetError unless the order contains all fields."""
        if sorted(map(str, order)) != sorted(FIELDS):
            raise DatasetError(
                "the order must contain each field once",
                hint="Use: {known}.",
                known=", ".join(FIELDS),
            )
        with self._changing_file(
            self.root / caption_provenance.FOLDER / TEMPLATE, Message("Order of the fields changed")
        ):
            self._write_json(TEMPLATE, {"version": 1, "order": list(order)})

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raises DatasetError if it cannot be written."""
        try:
            with self._changing_file(self.root / VOCABULARY_FILE, Message("Vocabulary changed")):
                write_vocabulary(self.root, vocabulary)
        except OSError as error:
            hint = "Check the free space and the folder's permissions."
            raise DatasetError.cannot_write(VOCABULARY_FILE, error, hint) from error

    @contextlib.contextmanager
    def _changing_file(self, path: Path, title: Message) -> Iterator[None]:
        """Record the block's change of a small file."""
        with self.store.lock:
            before = content_of(path)
            yield
            after = content_of(path)
            if after != before:
                name = path.relative_to(self.root).as_posix()
                self.journal.add(
                    Edit(
                        title=title,
                        time=self._clock(),
                        files={name: FileEdit(before=before, after=after)},
                    )
                )

    # --- captions ---------------------------------------------------------------------------------

    def save(self, key: str, caption: str, was: str) -> Outcome:
        """Save a caption typed by a person, which also marks it as reviewed. Raises NotFound."""
        with self.store.lock:
            view = self.store.view_of(key)
            title = Message("Caption of {name}", {"name": view.item(key).name})
            outcome = self._write(title, [CaptionChange(key=key, caption=caption, was=was)], view)
            if not outcome.conflicts:
                self._mark(self.store.latest(), [key], reviewed=True)
            return outcome

    def preview(self, keys: Sequence[str], values: Mapping[str, Any]) -> BulkEdit:
        """Apply an action to these captions without writing. Raises DatasetError for an invalid
        action; unknown keys are ignored.
        """
        view = self.store.view()
        items = [view.by_key[key] for key in dict.fromkeys(keys) if key in view.by_key]
        edit = bulk_edits.action(
            values, [item.caption for item in items], self.vocabulary(), self.template_order()
        )
        changes = []
        for item in items:
            caption = edits.clean(edit(item.caption))
            if caption != item.caption:
                changes.append(CaptionChange(key=item.key, caption=caption, was=item.caption))
        plan = BulkEdit(
            id=uuid.uuid4().hex,
            title=bulk_edits.title(values),
            changes=tuple(changes),
            selected=len(items),
        )
        with self.store.lock:
            self._plans[plan.id] = plan
            while len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan

    def plan(self, identity: str) -> BulkEdit | None:
        """A bulk edit that was previewed recently and not applied."""
        with self.store.lock:
            return self._plans.get(identity)

    def apply(self, plan: BulkEdit) -> Outcome:
        """Apply a bulk edit, once; each caption file is written once."""
        with self.store.lock:
            self._plans.pop(plan.id, None)
            outcome = self._write(plan.title, plan.changes, self.store.view())
        return dataclasses.replace(
            outcome, unchanged=plan.selected - outcome.changed - len(outcome.conflicts)
        )

    @contextlib.contextmanager
    def recording(
        self, title: Message, added: Collection[str] = (), *, also_new: bool = True
    ) -> Iterator[None]:
        """Record the block's changes of captions as one edit, except those of the images `added`.
        Nobody else can save a caption meanwhile.

        also_new: also of images that had none. An import of 2,000 text files is one edit.
        """
        with self.store.lock:
            before = {
                name: stood
                for name, stood in self._standing().items()
                if name not in added and (also_new or stood[0])
            }
            try:
                yield
            finally:
                self._record_changes(title, before, lambda item: True)

    def expect(self, run: RunFolder, title: Message) -> None:
        """Record the captions before a caption run starts or is resumed, which is another process;
        when it has ended, its changes become an edit.
        """
        with self.store.lock:
            self.settle()
            values = {
                "run": str(run.path),
                "since": run.read_state().changed,
                "title": title.template,
                "values": dict(title.values),
                "captions": self._standing(),
            }
            name = f"{EXPECTED}/{run.path.name}.json"
            # one that is left is of a part of the run whose end was never recorded
            if not (self.root / caption_provenance.FOLDER / name).exists():
                self._write_json(name, values)

    def settle(self) -> None:
        """Record the changes of ended caption runs."""
        folder = self.root / caption_provenance.FOLDER / EXPECTED
        # fox before fox-2, which began later
        for path in sorted(folder.glob("*.json"), key=lambda path: natural_order(path.stem)):
            with contextlib.suppress(*files.UNREADABLE, DatasetError), self.store.lock:
                expected = files.load_json(path, names=True)
                run = RunFolder(Path(expected["run"]))
                state = run.read_state()
                # its process may still be there for a moment, but writes no caption after its end
                ended = state.ended and state.changed > float(expected.get("since", 0.0))
                if run.path.is_dir() and not ended:
                    continue
                known = caption_provenance.read_authors(self.root)
                stood = {
                    str(name): (str(caption), str(by))
                    for name, (caption, by) in expected["captions"].items()
                }
                title = Message(str(expected["title"]), dict(expected["values"]))

                def by_a_captioner(item: Item, known: caption_provenance.Authors = known) -> bool:
                    return self._writer(item, known) != caption_provenance.PERSON

                self._record_changes(title, stood, by_a_captioner)
                path.unlink()

    def _standing(self) -> dict[str, tuple[str, str]]:
        """{image: (caption, author)}."""
        known = caption_provenance.read_authors(self.root)
        return {
            item.name: (own(item), self._writer(item, known)) for item in self.store.view().items
        }

    def _record_changes(
        self, title: Message, before: Mapping[str, tuple[str, str]], counts: Callable[[Item], bool]
    ) -> None:
        known = caption_provenance.read_authors(self.root)
        changed = {
            item.name: CaptionEdit(
                before=before[item.name][0],
                after=own(item),
                by=before[item.name][1],
                now_by=self._writer(item, known),
            )
            for item in self.store.view().items
            if item.name in before and own(item) != before[item.name][0] and counts(item)
        }
        if changed:
            self.journal.add(Edit(title=title, time=self._clock(), captions=changed))

    def _write(self, title: Message, changes: Sequence[CaptionChange], view: View) -> Outcome:
        """Check for conflicts, record, write. The caller holds the lock."""
        draft = self._drafted(changes, view)
        if not draft.changes:
            return Outcome(
                title=title, changed=0, unchanged=draft.unchanged, conflicts=tuple(draft.conflicts)
            )
        edit = self.journal.add(Edit(title=title, time=self._clock(), captions=draft.captions))
        conflicts = self._write_drafted(draft, edit, view)
        return Outcome(
            title=title,
            changed=len(draft.changes) - conflicts,
            unchanged=draft.unchanged,
            conflicts=tuple(draft.conflicts),
            edit=edit.id,
        )

    def _drafted(self, changes: Sequence[CaptionChange], view: View) -> _EditParts:
        draft, known = _EditParts(), caption_provenance.read_authors(self.root)
        for change in changes:
            item, caption = view.by_key.get(change.key), edits.clean(change.caption)
            if item is None:
                draft.conflicts.append(
                    EditConflict(key=change.key, name="", current="", message=NOT_THERE)
                )
            elif item.caption == caption and own(item) == caption:
                draft.unchanged += 1
            elif item.caption != edits.clean(change.was):
                draft.conflicts.append(
                    EditConflict(
                        key=item.key, name=item.name, current=item.caption, message=CHANGED_SINCE
                    )
                )
            else:
                by = self._writer(item, known)
                draft.captions[item.name] = CaptionEdit(before=own(item), after=caption, by=by)
                draft.changes.append(dataclasses.replace(change, caption=caption, was=item.caption))
        return draft

    def _writer(self, item: Item, known: caption_provenance.Authors) -> str:
        if not known.by_digest or not item.caption:
            return caption_provenance.PERSON
        content = self.store.digest(item.path)
        return (
            known.by_digest[content].by
            if known.author(content, item.caption) == "machine"
            else caption_provenance.PERSON
        )

    def _write_drafted(self, draft: _EditParts, edit: Edit, view: View) -> int:
        """Write the captions of a draft. Those that someone else has just changed become conflicts;
        returns their number.
        """
        keep = self._reviewed_of([change.key for change in draft.changes], view)
        try:
            left = self.store.write_captions(draft.changes, view)
        except LoraTrainerError:
            if not self._has_begun(draft):
                self.journal.drop(edit)
            raise
        view = self.store.latest()
        for key, current in left.items():
            draft.conflicts.append(
                EditConflict(
                    key=key, name=view.item(key).name, current=current, message=CHANGED_SINCE
                )
            )
        self._mark(view, [key for key in keep if key not in left], reviewed=True)
        return len(left)

    def _has_begun(self, draft: _EditParts) -> bool:
        view = self.store.view()
        return any(
            change.key in view.by_key and view.by_key[change.key].caption == change.caption
            for change in draft.changes
        )

    # --- images -----------------------------------------------------------------------------------

    def remove(self, keys: Sequence[str]) -> Outcome:
        """Move images with their captions to the dataset's trash. Raises NotFound or
        DatasetError.
        """
        keys = tuple(dict.fromkeys(keys))
        with self.store.lock:
            self.store.remove(keys)
            title = Message(
                "Removed: 1 image" if len(keys) == 1 else "Removed: {count} images",
                {"count": len(keys)},
            )
            edit = self.journal.add(Edit(title=title, time=self._clock(), removed=keys))
        return Outcome(title=title, changed=len(keys), edit=edit.id)

    def restore(self, keys: Sequence[str]) -> Outcome:
        """Restore images from the trash. Raises NotFound or DatasetError."""
        keys = tuple(dict.fromkeys(keys))
        with self.store.lock:
            self.store.restore(keys)
            title = Message(
                "Restored: 1 image" if len(keys) == 1 else "Restored: {count} images",
                {"count": len(keys)},
            )
            edit = self.journal.add(Edit(title=title, time=self._clock(), restored=keys))
        return Outcome(title=title, changed=len(keys), edit=edit.id)

    # --- fixes ------------------------------------------------------------------------------------

    def fix(self, identified: Sequence[IdentifiedFinding]) -> Outcome:
        """Apply the fixes of these findings as one edit. Several fixes of one image are applied in
        turn, but it is cropped once.
        """
        with self.store.lock:
            view = self.store.view()
            found = [
                (view.by_path[each.finding.path], each)
                for each in identified
                if each.finding.path in view.by_path and each.finding.fix
            ]
            leaving = {item.key for item, each in found if _fix(each) == "leave_out"}
            crops = {
                item.key: (item, each)
                for item, each in found
                if _fix(each) in ("crop", "crop_subject") and item.key not in leaving
            }
            captions = _fixed_captions(
                [(item, each) for item, each in found if item.key not in leaving]
            )
            title = Message(
                "Fixed: 1 finding" if len(found) == 1 else "Fixed: {count} findings",
                {"count": len(found)},
            )
            draft = self._drafted(captions, view)
            edit = self.journal.add(Edit(title=title, time=self._clock(), captions=draft.captions))
            if draft.changes:
                self._write_drafted(draft, edit, view)
            edit, conflicts = self._crop_all(edit, list(crops.values()))
            if leaving:
                self.store.remove(sorted(leaving))
                edit = dataclasses.replace(edit, removed=tuple(sorted(leaving)))
            if edit.count:
                self.journal.mark(edit, undone=False)
            else:
                self.journal.drop(edit)
        return Outcome(
            title=title,
            changed=edit.count,
            conflicts=(*draft.conflicts, *conflicts),
            edit=edit.id if edit.count else None,
        )

    def _crop_all(
        self, edit: Edit, crops: Sequence[tuple[Item, IdentifiedFinding]]
    ) -> tuple[Edit, list[EditConflict]]:
        swaps: dict[str, Swap] = {}
        conflicts = []
        if crops:
            folder = self.journal.originals(edit.time)
            view = self.store.view()
            masks = {
                image: mask
                for mask, image in find_masks(view.listing.images, view.captions.by_image).items()
            }
            for number, (item, identified) in enumerate(crops):
                # two folders may each contain a fox.png
                place = folder / str(number)
                place.mkdir()
                try:
                    swaps |= image_edits.crop_in_place(
                        self.root,
                        item.path,
                        identified.finding.fix or {},
                        place,
                        masks.get(item.path),
                    )
                except DatasetError as problem:
                    conflicts.append(
                        EditConflict(
                            key=item.key,
                            name=item.name,
                            current=item.caption,
                            message=problem.message,
                        )
                    )
                    continue
                # immediately, so that after a crash every crop can be undone
                edit = self.journal.mark(dataclasses.replace(edit, swaps=dict(swaps)), undone=False)
        return edit, conflicts

    def convert(self) -> Outcome:
        """Replace images that the host cannot decode by converted copies. Raises DatasetError if
        none can be made.
        """
        waiting = self.store.waiting()
        if not waiting:
            raise DatasetError(
                "there is nothing left to convert here",
                hint="It may have been converted in another window.",
            )
        if not self.converter.is_ready:
            hint = "Press Set up at the top of the tab. When it is done, press Convert again."
            raise DatasetError(
                "converting images needs the training packages, which are not installed yet",
                hint=hint,
            )
        with self.store.scratch() as folder:
            # without the lock: conversion takes a second per image
            made = self.converter.convert(
                [(path, folder / str(number)) for number, path in enumerate(waiting)]
            )
            with self.store.lock:
                return self._put_in_place(list(zip(waiting, made, strict=True)))

    def _put_in_place(self, made: Sequence[tuple[Path, Path | DatasetError]]) -> Outcome:
        count = sum(isinstance(copy, Path) for _, copy in made)
        title = Message(
            "Converted: 1 image" if count == 1 else "Converted: {count} images",
            {"count": count},
        )
        edit, conflicts = self.journal.add(Edit(title=title, time=self._clock())), []
        folder, swaps = self.journal.originals(edit.time), {}
        for number, (original, copy) in enumerate(made):
            # two folders may each contain a fox.heic
            place = folder / str(number)
            try:
                if isinstance(copy, DatasetError):
                    raise copy
                name, swap = image_edits.converted_in_place(
                    self.root, original, copy, place / original.name
                )
            except DatasetError as problem:
                name = original.relative_to(self.root).as_posix()
                message = Message(
                    problem.message.template, {**problem.message.values, "path": name}
                )
                conflicts.append(EditConflict(key="", name=name, current="", message=message))
                continue
            swaps[name] = swap
            # immediately, so that after a crash every conversion can be undone
            edit = self.journal.mark(dataclasses.replace(edit, swaps=dict(swaps)), undone=False)
        if not swaps:
            self.journal.drop(edit)
            folder.rmdir()
        return Outcome(
            title=title,
            changed=len(swaps),
            conflicts=tuple(conflicts),
            edit=edit.id if swaps else None,
        )

    # --- undo and redo ----------------------------------------------------------------------------

    def _turn_back(self, edit: Edit, direction: Direction) -> Outcome:
        backwards = direction == "undo"
        conflicts: list[EditConflict] = []
        restoring, removing = (
            (edit.removed, edit.restored) if backwards else (edit.restored, edit.removed)
        )
        moved = self._move(restoring, removing, conflicts)
        swaps, swapped = self._swap_back(edit, conflicts)
        turned = self._turn_files(edit, backwards, conflicts)
        draft = self._turned_captions(edit, backwards)
        written = len(draft.changes)
        if draft.changes:
            left = self.store.write_captions(draft.changes)
            view = self.store.latest()
            conflicts += [
                EditConflict(key=key, name=view.item(key).name, current=now, message=CHANGED_SINCE)
                for key, now in left.items()
            ]
            written -= len(left)
        self.journal.mark(dataclasses.replace(edit, swaps=swaps), undone=backwards)
        conflicts = [*draft.conflicts, *conflicts]
        return Outcome(
            title=edit.title,
            changed=moved + swapped + turned + written,
            conflicts=tuple(conflicts),
            edit=edit.id,
        )

    def _turned_captions(self, edit: Edit, backwards: bool) -> _EditParts:
        by_name, draft = {item.name: item for item in self.store.view().items}, _EditParts()
        for name, change in edit.captions.items():
            expected, wanted = (
                (change.after, change.before) if backwards else (change.before, change.after)
            )
            item = by_name.get(name)
            if item is None:
                draft.conflicts.append(
                    EditConflict(key="", name=name, current="", message=NOT_THERE)
                )
            elif own(item) == wanted:
                draft.unchanged += 1
            elif own(item) != expected:
                draft.conflicts.append(
                    EditConflict(
                        key=item.key, name=name, current=item.caption, message=CHANGED_SINCE
                    )
                )
            else:
                by = change.by if backwards else change.now_by
                draft.changes.append(
                    CaptionChange(key=item.key, caption=wanted, was=item.caption, by=by)
                )
        return draft

    def _move(
        self, restoring: Sequence[str], removing: Sequence[str], conflicts: list[EditConflict]
    ) -> int:
        moved = 0
        for keys, move in ((restoring, self.store.restore), (removing, self.store.remove)):
            if not keys:
                continue
            try:
                move(keys)
                moved += len(keys)
            except LoraTrainerError:
                # one failing image stops the batch: move them one by one
                moved += sum(self._moved_alone(key, move, conflicts) for key in keys)
        return moved

    def _moved_alone(
        self, key: str, move: Callable[[Sequence[str]], None], conflicts: list[EditConflict]
    ) -> bool:
        try:
            move([key])
            return True
        except LoraTrainerError as problem:
            item = self.store.view().by_key.get(key)
            conflicts.append(
                EditConflict(
                    key=key, name=item.name if item else "", current="", message=problem.message
                )
            )
            return False

    def _swap_back(self, edit: Edit, conflicts: list[EditConflict]) -> tuple[dict[str, Swap], int]:
        swaps: dict[str, Swap] = {}
        swapped, left = 0, set()
        for name, swap in edit.swaps.items():
            if swap.mask_of in left:
                # a mask belongs to the current version of its image
                swaps[name] = swap
                continue
            try:
                turned, swaps_back = image_edits.swap_back(self.root, name, swap)
                swaps[turned] = swaps_back
                swapped += not swap.mask_of
            except DatasetError as problem:
                swaps[name] = swap
                left.add(name)
                conflicts.append(
                    EditConflict(key="", name=name, current="", message=problem.message)
                )
        return swaps, swapped

    # --- reviewed ---------------------------------------------------------------------------------

    def mark(self, keys: Sequence[str], *, reviewed: bool) -> int:
        """Set or remove the review mark of these captions. Returns the number changed. Raises
        DatasetError.
        """
        with self.store.lock:
            return self._mark(self.store.view(), keys, reviewed=reviewed)

    def _mark(self, view: View, keys: Sequence[str], *, reviewed: bool) -> int:
        if not keys:
            return 0
        marks, changed = dict(self._marks()), 0
        for item in (view.by_key[key] for key in keys if key in view.by_key):
            content = self.store.digest(item.path)
            now = item.caption if reviewed else None
            if marks.get(content) != now:
                changed += 1
                marks.pop(content, None) if now is None else marks.update({content: now})
        if changed:
            self._write_json(REVIEWED, {"version": 1, "images": marks})
            self._reviewed = (files.stamp(self.root / caption_provenance.FOLDER / REVIEWED), marks)
        return changed

    def _write_json(self, name: str, values: Mapping[str, Any]) -> None:
        target = self.root / caption_provenance.FOLDER / name
        try:
            # ASCII: file names may contain lone surrogates, which survive only escaped
            files.write_text(target, json.dumps(values, indent=0))
        except OSError as error:
            hint = "Check the free space and the folder's permissions."
            path = target.relative_to(self.root).as_posix()
            raise DatasetError.cannot_write(path, error, hint) from error

    def _marks(self) -> dict[str, str]:
        """{digest: the caption that was reviewed}."""
        path = self.root / caption_provenance.FOLDER / REVIEWED
        stamp = files.stamp(path)
        if stamp != self._reviewed[0]:
            nothing: dict[str, str] = {}
            marks = files.read_json(
                path,
                lambda values: {
                    str(content): str(caption) for content, caption in values["images"].items()
                },
                nothing,
            )
            self._reviewed = (stamp, marks)
        return self._reviewed[1]

    def _reviewed_of(self, keys: Sequence[str], view: View) -> list[str]:
        if not self._marks():
            return []
        known = self.known(view)
        return [key for key in keys if known.reviewed(view.item(key))]


def own(item: Item) -> str:
    """The caption in a file; "" if it follows from a folder's name."""
    return item.caption if item.source in ("metadata", "text") else ""


def _fix(identified: IdentifiedFinding) -> str:
    return str((identified.finding.fix or {}).get("do", ""))


def _fixed_captions(found: Sequence[tuple[Item, IdentifiedFinding]]) -> list[CaptionChange]:
    """The captions that fixes produce: the vocabulary's whole caption first, then without
    backslashes.
    """
    captions: dict[str, tuple[Item, str]] = {}
    for item, identified in sorted(found, key=lambda pair: _fix(pair[1]) == "unescape"):
        caption = captions.get(item.key, (item, item.caption))[1]
        if _fix(identified) == "set_caption":
            captions[item.key] = (item, str((identified.finding.fix or {})["caption"]))
        elif _fix(identified) == "unescape":
            captions[item.key] = (item, unescaped(caption))
    return [
        CaptionChange(key=key, caption=caption, was=item.caption)
        for key, (item, caption) in captions.items()
    ]
