"""Files are damaged in every way that disks, downloads, editors and strangers do it. What is read
then is a value or a sentence, in time, in little memory.

    python -m tests.hardening.mutations --seed 1 --seconds 300
    python -m tests.hardening.mutations --only "config.yaml,LoRA"

Raised: anything but a LoraTrainerError. Hidden: a sound thing beside the broken one is not shown.
Escaped: something was written elsewhere. Slow, greedy: more than its bound of the processor's time
or of memory. Wrong: other than what was written, without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.errors import LoraTrainerError
from tests.hardening.harness import Run, in_child, main, rehearse
from tests.hardening.readers import READERS, Escaped, Hidden, Reader

KINDS = ("mutations", "raised", "hidden", "escaped", "slow", "greedy", "wrong")
BATCH = 25
"""Mutations that one child tries."""
BEYOND = 3 * 2**30
"""Bytes that a child may take before the system refuses: a reader without a bound meets it, and the
machine does not.
"""
VALUES = (
    "null",
    "true",
    "[]",
    "{}",
    "-1",
    "0",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "9" * 5000,
    "1" * 400,
    "[" * 3000,
    '{"a":' * 2000,
    '"\\ud800"',
    '"' + "x" * 300_000 + '"',
    '"../../../x"',
    '"/etc/passwd"',
    '""',
    "[[[[]]]]",
    '{"__proto__": 1}',
    "1.5",
    '"1"',
    "[null]",
    "2026-13-45",
    "2026-01-01",
    "!!python/object:os.system x",
    "&a [*a]",
    "0x" + "f" * 400,
)
TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:e-?\d+)?|true|false|null')


def attack(run: Run, readers: Sequence[Reader] = READERS, batch: int = BATCH) -> None:
    """Each kind of file in turn, until the time is over."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        for reader in readers:
            # its imports belong to nobody's time
            rehearse(lambda reader=reader: _sound(reader, Path(place)), reader.name)  # type: ignore[misc]
        number = 0
        while run.goes_on():
            _try_batch(
                run, readers[number % len(readers)], f"{run.seed}-{number}", Path(place), batch
            )
            number += 1


def _sound(reader: Reader, place: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=place))
    path = reader.make(folder)
    with contextlib.suppress(LoraTrainerError):
        reader.read(folder, path)


def _try_batch(run: Run, reader: Reader, seed: str, place: Path, batch: int) -> None:
    first, notes = 0, place / "notes"
    while first < batch:
        notes.write_bytes(b"")
        outcome = in_child(
            lambda first=first: _child(reader, seed, range(first, batch), place, notes),
            seconds=60 + batch * reader.seconds,
            memory=BEYOND,
        )  # type: ignore[misc]
        told = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
        for number, kind, what in told:
            if kind == "begun":
                first = number + 1
                run.count("mutations")
            else:
                run.fault(kind, f"{reader.name}, mutation {seed}-{number}: {what}")
        if outcome.how == "value":
            return
        assert outcome.how != "unexpected", (
            f"{reader.name}, mutation {seed}-{first - 1}: this harness fails: {outcome.text}"
        )
        kind = {"late": "slow", "killed": "greedy"}.get(outcome.how, "raised")
        run.fault(
            kind,
            f"{reader.name}, mutation {seed}-{first - 1}: {outcome.how}, status {outcome.status}"
            f" {outcome.text}",
        )


def _child(reader: Reader, seed: str, numbers: range, place: Path, notes: Path) -> None:
    """In the child: make, damage, read, judge; one after the other."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    with notes.open("a", encoding="utf-8") as stream:

        def note(number: int, kind: str, what: str = "") -> None:
            stream.write(json.dumps([number, kind, what]) + "\n")
            stream.flush()

        folders = Path(tempfile.mkdtemp(dir=place))
        for number in numbers:
            source = random.Random(f"{seed}-{number}")
            note(number, "begun")
            # two deep: what escapes by ../ is still ours
            folder = folders / f"{number}" / "inner"
            folder.mkdir(parents=True)
            path = reader.make(folder)
            how, data = mutate(source, path.read_bytes(), reader.form)
            path.write_bytes(data)
            for kind, what in _judged(reader, folder, path):
                note(number, kind, f"{how}: {what}")
            shutil.rmtree(folders / f"{number}", ignore_errors=True)
        shutil.rmtree(folders, ignore_errors=True)


def _judged(reader: Reader, folder: Path, path: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    # in proportion to the size, a quarter of a megabyte in the bound that is given; not to its
    # square
    size, before = path.stat().st_size, _forget_height()
    began = time.process_time()
    try:
        reader.read(folder, path)
    except LoraTrainerError as error:
        report = error.report()
        report.encode("utf-8", "surrogatepass")
        if not report.strip():
            found.append(("raised", f"a sentence that says nothing: {error!r}"))
    except Hidden as error:
        found.append(("hidden", str(error)))
    except Escaped as error:
        found.append(("escaped", str(error)))
    except AssertionError as error:
        found.append(("wrong", str(error)))
    except MemoryError as error:
        found.append(("greedy", f"no memory left {_place(error)}"))
    except BaseException as error:
        found.append(("raised", f"{type(error).__name__}: {str(error)[:150]} {_place(error)}"))
    seconds, grown = time.process_time() - began, _height() - before
    if seconds > reader.seconds * max(1.0, size / 2**18):
        found.append(("slow", f"{seconds:.1f} s for {size:,} bytes"))
    if grown > reader.megabytes * 2**20:
        found.append(("greedy", f"{grown / 2**20:.0f} MB"))
    return found


def _place(error: BaseException) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "lora_trainer" in frame.filename
    ]
    return " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in reversed(frames[-3:])
    )


def _forget_height() -> int:
    """Bytes now; from here on the height is measured anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _height()


def _height() -> int:
    with (
        contextlib.suppress(OSError),
        Path("/proc/self/status").open(encoding="ascii") as stream,
    ):
        for line in stream:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- damage ---------------------------------------------------------------------------------------


def mutate(source: random.Random, data: bytes, form: str) -> tuple[str, bytes]:
    """(what was done, the damaged content)."""
    choices = [*ANY]
    if form in ("json", "text"):
        choices += [*TEXT, *TEXT]
    if form in ("json", "text", "safetensors"):
        choices += [_value] * 8
    if form == "picture":
        choices += [_claimed_size] * 3
    done = []
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        how = source.choice(choices)
        data = (
            _in_header(source, data, how)
            if form == "safetensors" and source.random() < 0.8
            else how(source, data)
        )
        done.append(how.__name__.strip("_"))
    return "+".join(done), data


Damage = Callable[[random.Random, bytes], bytes]


def _in_header(source: random.Random, data: bytes, how: Damage) -> bytes:
    """Damage to the JSON of a safetensors file alone, whose length is made right: a checksum or a
    length must not be what saves us.
    """
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        return how(source, data)
    header = how(source, data[8 : 8 + length])
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _flip(source: random.Random, data: bytes) -> bytes:
    content = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8, 40)) if content else 0):
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    return bytes(content)


def _cut(source: random.Random, data: bytes) -> bytes:
    return data[: source.randrange(len(data) + 1)]


def _cut_out(source: random.Random, data: bytes) -> bytes:
    start = source.randrange(len(data) + 1)
    return data[:start] + data[start + source.randrange(1, 64) :]


def _splice(source: random.Random, data: bytes) -> bytes:
    """A piece of the file at another place in it."""
    start, place = source.randrange(len(data) + 1), source.randrange(len(data) + 1)
    return data[:place] + data[start : start + source.randrange(1, 400)] + data[place:]


def _repeat(source: random.Random, data: bytes) -> bytes:
    """A piece, until it is large."""
    start = source.randrange(len(data) + 1)
    piece = data[start : start + source.choice((1, 2, 16, 200))] or b"x"
    return (
        data[:start]
        + piece * (source.choice((2_000, 60_000, 400_000)) // len(piece))
        + data[start:]
    )


def _nothing(source: random.Random, data: bytes) -> bytes:
    return source.choice(
        (b"", b"\0" * len(data), b"\xff" * len(data), b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b" ")
    )


def _noise(source: random.Random, data: bytes) -> bytes:
    place = source.randrange(len(data) + 1)
    return data[:place] + source.randbytes(source.choice((1, 4, 100))) + data[place:]


def _value(source: random.Random, data: bytes) -> bytes:
    """One value of a text of JSON or YAML, or a key, becomes another."""
    tokens = list(TOKENS.finditer(data))
    if not tokens:
        return data + source.choice(VALUES).encode("utf-8")
    token = source.choice(tokens)
    return data[: token.start()] + source.choice(VALUES).encode("utf-8") + data[token.end() :]


def _insert(source: random.Random, data: bytes) -> bytes:
    """What is dear, or no character at all, between two bytes."""
    place = source.randrange(len(data) + 1)
    pieces = (
        b"[" * 3000,
        b'{"a":' * 2000,
        b"(" * 3000,
        b"9" * 5000,
        b"\\ud800",
        b"\xed\xa0\x80",
        "\u2028".encode(),
        "\x85".encode(),
        b"\0",
        b"\r",
        b"\t",
        b'"',
        b"'",
        b",",
        b"\n" * 4000,
        b'"' + b"\n" * 4000 + b'"',
        b"," * 40_000,
        b'"' * 5000,
        b"{" * 500,
        b"&a " * 50,
        b"*a",
        b": ",
        b"- " * 2000,
        b"\\" * 3000,
        b"%" * 1000,
        "𝄞é山".encode() * 50,
        b"<lora:x:1>" * 400,
    )
    return data[:place] + source.choice(pieces) + data[place:]


def _many_lines(source: random.Random, data: bytes) -> bytes:
    """A line again and again, as in a table of a whole collection."""
    lines = data.splitlines(keepends=True) or [b"x\n"]
    line = source.choice(lines)
    return data + line * (source.choice((3_000, 200_000)) // len(line))


def _claimed_size(source: random.Random, data: bytes) -> bytes:
    """A PNG that claims to be large, with its checksum right; of other formats, some bytes of the
    first hundred.
    """
    if data[12:16] == b"IHDR":
        width, height = source.choice(
            (
                (13_300, 13_300),
                (100_000, 1_700),
                (1, 2**31 - 1),
                (2**31 - 1, 2**31 - 1),
                (0, 0),
                (9_000, 9_000),
                (30_000, 30_000),
            )
        )
        body = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    content = bytearray(data)
    for _ in range(source.randrange(1, 6) if content else 0):
        content[source.randrange(min(100, len(content)))] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(content)


ANY: tuple[Damage, ...] = (_flip, _flip, _cut, _cut_out, _splice, _repeat, _nothing, _noise)
TEXT: tuple[Damage, ...] = (_insert, _insert, _many_lines)


def _chosen() -> Sequence[Reader]:
    """--only "a,b": some kinds of files."""
    if "--only" not in sys.argv:
        return READERS
    place = sys.argv.index("--only")
    names = [name.strip() for name in sys.argv[place + 1].split(",")]
    del sys.argv[place : place + 2]
    chosen = [reader for reader in READERS if reader.name in names]
    if not chosen:
        raise SystemExit("the kinds are: " + ", ".join(reader.name for reader in READERS))
    return chosen


def _attack_chosen(readers: Sequence[Reader]) -> Any:
    return lambda run: attack(run, readers)


if __name__ == "__main__":
    sys.exit(main("mutations", _attack_chosen(_chosen()), KINDS))
