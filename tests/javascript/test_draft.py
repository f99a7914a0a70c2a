"""settings/draft.js: two browsers' changes of one dataset's settings become one."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("scripts")

BASE = {
    "preset": "style",
    "checkpoint": "loaded",
    "init_lora": "",
    "name": "",
    "captioner": {},
    "changes": {"lora_rank": 8, "trigger_word": "zrb"},
}


def changed(**values):
    changes = {**BASE["changes"], **values.pop("changes", {})}
    return {
        **BASE,
        **values,
        "changes": {key: value for key, value in changes.items() if value is not None},
    }


@pytest.mark.parametrize(
    ("mine", "theirs", "both"),
    [
        (changed(), changed(name="fox"), changed(name="fox")),
        (changed(name="mine"), changed(name="theirs"), changed(name="mine")),
        (
            changed(changes={"trigger_word": "new"}),
            changed(changes={"lora_rank": 4}),
            changed(changes={"trigger_word": "new", "lora_rank": 4}),
        ),
        (
            changed(changes={"trigger_word": None}),
            changed(changes={"seed": 7}),
            changed(changes={"trigger_word": None, "seed": 7}),
        ),
        (changed(), changed(changes={"lora_rank": None}), changed(changes={"lora_rank": None})),
    ],
)
def test_what_each_has_changed_stays(call, mine, theirs, both):
    assert call("settings/draft.merged", BASE, mine, theirs) == both


@pytest.mark.parametrize(
    ("revision", "saved", "name", "shown"),
    [
        ("r0", 1, "", "second"),
        # the one that was being sent when the page was left has arrived
        ("r1", 2, "first", "second"),
        ("r2", 2, "theirs", "theirs"),
        # changed and changed back: a revision is of the content
        ("r0", 3, "", ""),
    ],
)
def test_what_a_page_could_not_send_is_the_next_ones_unless_another_has_changed_it(
    call, script_page, revision, saved, name, shown
):
    unsent = {
        "values": changed(name="second"),
        "sent": changed(name="first"),
        "revision": "r0",
        "saved": 1,
    }
    dataset = f"{revision}-{saved}"
    script_page.evaluate(
        "unsent => sessionStorage.setItem('lora-trainer-draft-unsent', JSON.stringify(unsent))",
        {dataset: unsent, "another": unsent},
    )
    view = {"values": changed(name=name), "revision": revision, "changed": saved}
    call("settings/draft.enter", dataset, view)
    assert (
        script_page.evaluate("import('/javascript/settings/draft.js').then((m) => m.draft.name)")
        == shown
    )
    left = script_page.evaluate("JSON.parse(sessionStorage.getItem('lora-trainer-draft-unsent'))")
    assert list(left) == ["another"]
