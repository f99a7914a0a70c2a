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
