from __future__ import annotations

import pytest
from starlette.requests import Request

from lora_trainer.webui.http import visitors


def request(method="GET", client=("127.0.0.1", 5000), server=("127.0.0.1", 7860), **headers):
    sent = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, value in {"host": "127.0.0.1:7860", **headers}.items()
        if value is not None
    ]
    return Request(
        {
            "type": "http",
            "method": method,
            "path": "/",
            "headers": sent,
            "client": client,
            "server": server,
        }
    )


@pytest.mark.parametrize(
    "host",
    [
        "localhost:7860",
        "LOCALHOST",
        "webui.localhost",
        "127.0.0.1",
        "127.1.2.3:80",
        "[::1]:7860",
        "192.168.1.5:7860",
        "[fe80::1%25eth0]:7860",
        "localhost.",
    ],
)
def test_this_machine_and_addresses_in_digits_are_nobody_elses_name(host):
    assert visitors.foreign_name(request(host=host), ()) == ""


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("evil.example:7860", "evil.example"),
        ("localhost.evil.example", "localhost.evil.example"),
        ("127.0.0.1.evil.example", "127.0.0.1.evil.example"),
        ("evil.example@127.0.0.1", "evil.example@127.0.0.1"),
        ("", "-"),
        (None, "-"),
        ("127.0.0.1 evil.example", "127.0.0.1 evil.example"),
        ("[::1", "[::1"),
        ("2130706433", "2130706433"),
        ("127.0.0.1:7860:1", "127.0.0.1:7860:1"),
        ("evil.example.", "evil.example"),
    ],
)
def test_a_name_that_somebody_else_may_have_pointed_here_is_strange(host, told):
    assert visitors.foreign_name(request(host=host), {"mypc", "mypc.local"}) == told


def test_the_names_of_this_webui_are_known():
    names = {"mypc", "*.art.example"}
    for host, known in [
        ("mypc:7860", True),
        ("MyPC", True),
        ("a.art.example", True),
        ("art.example", False),
        ("evilart.example", False),
    ]:
        assert (visitors.foreign_name(request(host=host), names) == "") is known, host
    assert visitors.foreign_name(request(host="anything.example"), {"*"}) == ""


def test_a_page_whose_name_was_proven_by_a_certificate_needs_no_naming():
    assert (
        visitors.foreign_name(
            request(host="pod-7860.proxy.example", sec_fetch_site="same-origin"), ()
        )
        == ""
    )
    assert (
        visitors.foreign_name(
            request(host="pod-7860.proxy.example", sec_fetch_site="cross-site"), ()
        )
        == "pod-7860.proxy.example"
    )


def test_the_page_that_sends_is_looked_at_too():
    assert visitors.foreign_name(request("POST", origin="http://127.0.0.1:7860"), ()) == ""
    assert (
        visitors.foreign_name(request("POST", origin="http://evil.example"), ()) == "evil.example"
    )
    for odd in ("null", "file://", "http://[", ""):
        assert visitors.foreign_name(request("POST", origin=odd), ()) != "", odd
    # a proxy put its own address in place of the name, and says so
    assert (
        visitors.foreign_name(
            request("POST", origin="http://box.lan", x_forwarded_host="box.lan"), ()
        )
        == ""
    )


def test_what_other_sites_pages_send_is_told_by_the_browser():
    for site, mode, cross in [
        ("cross-site", "no-cors", True),
        ("same-site", "cors", True),
        ("cross-site", "navigate", False),
        ("same-origin", "cors", False),
        ("none", "navigate", False),
    ]:
        assert visitors.is_cross_site(request(sec_fetch_site=site, sec_fetch_mode=mode)) is cross, (
            site,
            mode,
        )
    assert visitors.is_cross_site(
        request("POST", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    )
    assert not visitors.is_cross_site(request())


@pytest.mark.parametrize(
    ("facts", "elsewhere"),
    [
        ({}, False),
        ({"client": ("192.168.1.7", 5000)}, True),
        ({"server": ("192.168.1.5", 7860)}, True),
        ({"client": ("::1", 5000, 0, 0)}, False),
        ({"client": ("::ffff:127.0.0.1", 5000)}, False),
        ({"client": ("::ffff:10.0.0.7", 5000)}, True),
        ({"client": None, "server": ("/run/webui.sock", None)}, False),
        ({"host": "0.0.0.0:7860"}, False),
        ({"host": "[::]:7860"}, False),
        ({"host": "0.0.0.0:7860", "client": ("192.168.1.7", 5000)}, True),
        ({"host": "art.example"}, True),
        ({"host": "192.168.1.5:7860"}, True),
        ({"x_forwarded_for": "203.0.113.9"}, True),
        ({"x_forwarded_for": "127.0.0.1"}, False),
        ({"x_forwarded_for": "203.0.113.9, 127.0.0.1"}, True),
        ({"cf_connecting_ip": "2001:db8::1"}, True),
        ({"forwarded": "for=203.0.113.9"}, True),
        ({"via": "1.1 proxy"}, True),
    ],
)
def test_signs_of_another_machine_are_seen(facts, elsewhere):
    assert visitors.is_remote_client(request(**facts)) is elsewhere
