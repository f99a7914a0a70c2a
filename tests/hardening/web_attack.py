"""Hostile requests over real HTTP, to both WebUIs: every route, with ids, paths, bodies, headers
and Host names that nobody should send.

    python -m tests.hardening.web_attack --seed 1 --seconds 120

Crashed: an answer of 500, or none. Slow: longer than SLOW seconds. Let in: a secret, a traceback, a
foreign Host that was answered, or something changed around the data folder.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from lora_trainer.webui.http.routing import ROUTES, RouteEntry, find_routes
from tests.browser.running import HEADERS, FakeHost, missing_for_fake_hosts
from tests.hardening.harness import Run, main

find_routes()
KINDS = ("requests", "crashed", "slow", "let in")
SLOW = 10.0
SECRET = b"nobody outside may read this"
PARTS = (
    "inside",
    "..",
    "%2e%2e%2fsecret.txt",
    "..%5csecret.txt",
    "%00",
    "%ff%fe",
    "%c0%ae%c0%ae",
    "9" * 5000,
    "-1",
    "CON",
    "x" * 300,
    "link",
    "%ed%a0%80",
    "%0d%0aX:1",
    "~",
    "*",
    "inside%2f..",
    "%e2%80%ae",
)
QUERIES = (
    "",
    "?offset=" + "9" * 5000,
    "?offset=-1&limit=1e9&name=%ff",
    "?v=%00&q=" + "(" * 500,
    "?language=../../x&after=NaN",
)
BODIES = (
    b"",
    b"{",
    b"[]",
    b"7",
    b"null",
    b'"x"',
    b"NaN",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b'{"name":"\\ud800"}',
    b"\xff\xfe{}",
    b"{}" + b" " * 5_000_000,
)
VALUES = (
    None,
    7,
    -1,
    True,
    1e300,
    [],
    {},
    [[]],
    {"a": {}},
    "",
    "\x00",
    "../../secret.txt",
    "a" * 5000,
    10**300,
    ["x"] * 1000,
    "(a+)+$",
    {"where": {"text": "x"}},
)
NAMES = (
    "id key keys dataset checkpoint name lora loras folder token what was caption settings "
    "prompt seed steps width kind strengths strength when position changes values revision "
    "select captioner options find replace title"
).split()
"""Of the fields in requests."""


def attack(run: Run, flavours: tuple[str, ...] = ("a1111", "forge")) -> None:
    """In turn on each WebUI, which listens to the network and asks for no login."""
    with tempfile.TemporaryDirectory(prefix="web-") as place:
        hosts = [
            FakeHost(
                data=Path(place, flavour),
                flavour=flavour,
                variables={"GRADIO_SERVER_NAME": "0.0.0.0"},
            )
            for flavour in flavours
        ]
        try:
            for host in hosts:
                (host.trainer_folder / "datasets" / "inside").mkdir(parents=True)
                (host.data / "secret.txt").write_bytes(SECRET)
                (host.trainer_folder / "datasets" / "link").symlink_to(host.data)
                host.start()
            while run.goes_on():
                one(run, run.random.choice(hosts))
        finally:
            for host in hosts:
                host.kill()


def one(run: Run, host: FakeHost) -> None:
    """One request, and whether its answer is one that may be given."""
    random = run.random
    entry: RouteEntry = random.choice(
        [entry for entry in ROUTES if entry.path != "/setup" or entry.method == "GET"]
    )
    path = "lora-trainer" + re.sub(r"\{\w+\}", lambda found: random.choice(PARTS), entry.path)
    path += (
        random.choice(QUERIES)
        if entry.method == "GET" or not entry.upload
        else "?name=" + quote(random.choice(("../x.png", "x.zip", "\x00.csv", "a" * 400)))
    )
    method = random.choice((entry.method,) * 6 + ("DELETE", "PUT", "OPTIONS", "HEAD"))
    headers, foreign = dict(HEADERS), random.random() < 0.1
    if foreign:
        headers["Host"] = random.choice(
            ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "")
        )
    body = None if method in ("GET", "HEAD") else _body(run)
    what = f"{host.flavour} {method} /{path[:200]} {str(body)[:80]} {headers.get('Host', '')}"
    run.count("requests")
    begun = time.monotonic()
    try:
        answer = host.ask(method, path, body, headers, timeout=3 * SLOW)
    except OSError as error:
        run.fault("crashed", f"{what}: {type(error).__name__} {error}")
        return
    if time.monotonic() - begun > SLOW:
        run.fault("slow", f"{what}: {time.monotonic() - begun:.1f} s")
    if answer.status >= 500:
        run.fault("crashed", f"{what}: {answer.status} {answer.body[:200]!r}")
    told_too_much = (
        SECRET in answer.body or b"Traceback" in answer.body or b'File "/' in answer.body
    )
    if (
        told_too_much
        or (foreign and method == entry.method and answer.status < 400)
        or (host.data / "secret.txt").read_bytes() != SECRET
    ):
        run.fault("let in", f"{what}: {answer.status} {answer.body[:200]!r}")


def _body(run: Run) -> bytes:
    if run.random.random() < 0.4:
        return run.random.choice(BODIES)
    return json.dumps(
        {name: run.random.choice(VALUES) for name in run.random.sample(NAMES, 12)}
    ).encode()


if __name__ == "__main__":
    if missing_for_fake_hosts():
        sys.exit(missing_for_fake_hosts())
    sys.exit(main("web_attack", attack, KINDS))
