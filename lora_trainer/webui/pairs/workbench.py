"""Edits a dataset of texts: each change is conflict-checked, recorded and undoable, as with
captions (captions/bench.py).

    bench.save(key, texts)               the texts of one entry
    bench.add(question, answer)          a new pair, in the first file that can hold pairs
    bench.remove(keys), .remove_file(name)
    bench.undo(), .redo()

Entries are identified by their text: one that someone else has changed is no longer found, and not
overwritten. Called by the routes.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

from lora_trainer.errors import DatasetError, Message
from lora_trainer.language import text_files
from lora_trainer.language.text_files import TextFile
from lora_trainer.webui.captions.bench import Bench, EditConflict, Outcome, content_of, put_content
from lora_trainer.webui.captions.journal import Direction, Edit, FileEdit, TextEdit
from lora_trainer.webui.common.safe_names import free_name
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.datasets.text_store import TextItem, TextStore
from lora_trainer.webui.http.routing import Conflict

NEW_FILE = "pairs.jsonl"
LONGEST_TEXT = 200_000
CHANGED_SINCE = Message("this text was changed elsewhere, and was left as it is")


class TextBenches:
    """One workbench per dataset of texts. Thread-safe."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets
        self._lock = threading.Lock()
        self._known: dict[str, TextBench] = {}

    def of(self, identity: str) -> TextBench:
        """Raises NotFound if there is no such dataset."""
        store = self._datasets.texts(identity)
        with self._lock:
            known = self._known.get(identity)
            if known is None or known.store is not store:
                known = self._known[identity] = TextBench(store)
            return known


class TextBench(Bench):
    """Thread-safe: changes are made under the store's lock."""

    def __init__(self, store: TextStore) -> None:
        super().__init__(store.path, store.lock)
        self.store = store

    def current_revision(self) -> str:
        return self.store.view().revision

    # --- changing ---------------------------------------------------------------------------------

    def save(self, key: str, texts: Sequence[str]) -> TextItem:
        """Save the texts of an entry, and return the new entry. Raises Conflict if it no longer
        exists, or DatasetError.
        """
        _require_length(texts)
        with self._lock:
            item = self._item(key)
            file = self._file(item)
            if len(texts) != len(item.fields):
                raise DatasetError(
                    "the request does not match {name}", hint="Reload the page.", name=item.name
                )
            raw = file.edited(item.number, texts)
            if raw != item.raw:
                title = Message("Text of {name}", {"name": item.name})
                self._change(title, file, item.file, item.number, raw)
            return self._at(item.file, item.number)

    def add(self, question: str, answer: str) -> tuple[TextItem, int]:
        """Append a pair to the first file that can hold pairs, or to a new one. Returns it and the
        edit's id. Raises DatasetError.
        """
        _require_length((question, answer))
        with self._lock:
            for texts in self.store.view().files:
                raw = texts.file.new_pair(question, answer) if texts.file else None
                if texts.file and raw is not None:
                    title = Message("Added to {name}", {"name": texts.name})
                    number = len(texts.file.entries)
                    edit = self._insert(title, texts.file, texts.name, number, raw)
                    return self._at(texts.name, number), edit.id
            # no file can hold pairs
            name = free_name(NEW_FILE, lambda name: (self.root / name).exists())
            title = Message("Added to {name}", {"name": name})
            content = text_files.pair_line(question, answer) + "\n"
            edit = self._change_files(title, {name: FileEdit(before=None, after=content)})
            return self._at(name, 0), edit.id

    def remove(self, keys: Sequence[str]) -> Outcome:
        """Remove entries; a file that is one entry is removed as a whole. Raises DatasetError."""
        with self._lock:
            view = self.store.view()
            items = [view.by_key[key] for key in dict.fromkeys(keys) if key in view.by_key]
            missing = len(set(keys)) - len(items)
            title = Message(
                "Removed: 1 text" if len(items) == 1 else "Removed: {count} texts",
                {"count": len(items)},
            )
            edit = Edit(title=title, time=self._clock())
            by_file: dict[str, list[TextItem]] = {}
            for item in items:
                by_file.setdefault(item.file, []).append(item)
            whole = {
                name: FileEdit(before=content_of(self.root / name), after=None)
                for name, found in by_file.items()
                if self._file(found[0]).form == "whole"
            }
            parts = {
                name: tuple(
                    TextEdit(number=item.number, before=item.raw, after=None)
                    # from the end, so that the other positions do not change
                    for item in sorted(found, key=lambda one: -one.number)
                )
                for name, found in by_file.items()
                if name not in whole
            }
            if items:
                edit = self.journal.add(dataclasses.replace(edit, texts=parts, files=whole))
                for name, changes in parts.items():
                    for change in changes:
                        file = text_files.read(self.root / name)
                        text_files.write(file, file.without(change.number))
                for name in whole:
                    self._put(name, None)
        conflicts = (
            (EditConflict(key="", name="", current="", message=CHANGED_SINCE),) if missing else ()
        )
        return Outcome(
            title=title,
            changed=len(items),
            conflicts=conflicts,
            edit=edit.id if items else None,
        )

    def remove_file(self, name: str) -> Outcome:
        """Remove a file with all of its entries. Raises NotFound, DatasetError."""
        with self._lock:
            texts = self.store.view().file(name)
            path = self.root / texts.name
            title = Message("Removed: {name}", {"name": texts.name})
            edit = self._change_files(
                title, {texts.name: FileEdit(before=content_of(path), after=None)}
            )
        return Outcome(title=title, changed=max(1, len(texts.examples)), edit=edit.id)

    def record_new(self, name: str) -> None:
        """Record that a file was added, to make that undoable."""
        edit = FileEdit(before=None, after=content_of(self.root / name))
        title = Message("Imported: {name}", {"name": name})
        self.journal.add(Edit(title=title, time=self._clock(), files={name: edit}))

    # --- undo -------------------------------------------------------------------------------------

    def _turn_back(self, edit: Edit, direction: Direction) -> Outcome:
        backwards = direction == "undo"
        conflicts: list[EditConflict] = []
        changed = self._turn_files(edit, backwards, conflicts)
        for name, changes in edit.texts.items():
            for change in reversed(changes) if backwards else changes:
                if self._turn_text(name, change, backwards):
                    changed += 1
                else:
                    conflicts.append(
                        EditConflict(key="", name=name, current="", message=CHANGED_SINCE)
                    )
        self.journal.mark(edit, undone=backwards)
        return Outcome(title=edit.title, changed=changed, conflicts=tuple(conflicts), edit=edit.id)

    def _turn_text(self, name: str, change: TextEdit, backwards: bool) -> bool:
        """Undo or redo the change of an entry. Returns False if the entry has changed since."""
        expected, wanted = (
            (change.after, change.before) if backwards else (change.before, change.after)
        )
        try:
            file = text_files.read(self.root / name)
        except DatasetError:
            return False
        number = change.number
        if expected is not None:
            places = [at for at, raw in enumerate(file.raws) if raw == expected]
            if not places:
                return False
            number = min(places, key=lambda at: abs(at - change.number))
        if expected is None:
            content = file.inserted(number, wanted or "")
        elif wanted is None:
            content = file.without(number)
        else:
            content = file.replaced(number, wanted)
        text_files.write(file, content)
        return True

    # --- parts ------------------------------------------------------------------------------------

    def _item(self, key: str) -> TextItem:
        item = self.store.view().by_key.get(key)
        if item is None:
            raise Conflict(
                "someone else has changed or removed this text",
                hint="Copy what you typed, and reload the page.",
            )
        return item

    def _file(self, item: TextItem) -> TextFile:
        file = self.store.view().file(item.file).file
        assert file is not None, "an item is of a file that was read"
        return file

    def _at(self, name: str, number: int) -> TextItem:
        found = [one for one in self.store.view().items if one.file == name]
        return found[min(number, len(found) - 1)]

    def _change(self, title: Message, file: TextFile, name: str, number: int, raw: str) -> None:
        """Replace an entry of a file. The caller holds the lock."""
        if file.form == "whole":
            before = content_of(file.path)
            edit = self.journal.add(Edit(title=title, time=self._clock(), files={}))
            text_files.write(file, file.replaced(number, raw))
            after = content_of(file.path)
            files = {name: FileEdit(before=before, after=after)}
            self.journal.mark(dataclasses.replace(edit, files=files), undone=False)
            return
        change = TextEdit(number=number, before=file.raws[number], after=raw)
        self.journal.add(Edit(title=title, time=self._clock(), texts={name: (change,)}))
        text_files.write(file, file.replaced(number, raw))

    def _insert(self, title: Message, file: TextFile, name: str, number: int, raw: str) -> Edit:
        change = TextEdit(number=number, before=None, after=raw)
        edit = self.journal.add(Edit(title=title, time=self._clock(), texts={name: (change,)}))
        text_files.write(file, file.inserted(number, raw))
        return edit

    def _change_files(self, title: Message, changes: dict[str, FileEdit]) -> Edit:
        edit = self.journal.add(Edit(title=title, time=self._clock(), files=changes))
        for name, change in changes.items():
            self._put(name, change.after)
        return edit

    def _put(self, name: str, content: str | None) -> None:
        try:
            put_content(self.root / name, content)
        except OSError as error:
            hint = "Check the free space and the folder's permissions."
            raise DatasetError.cannot_write(Path(name), error, hint) from error


def _require_length(texts: Sequence[str]) -> None:
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_TEXT:
        raise DatasetError(
            "a text of {count} characters cannot be saved here",
            hint="Edit its file in a text editor.",
            count=longest,
        )
