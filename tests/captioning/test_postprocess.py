from __future__ import annotations

import pytest

from lora_trainer.captioning.captioner import CaptionerOutput, Tag
from lora_trainer.captioning.postprocess import postprocess
from lora_trainer.settings.captioning import from_mapping

TAGS = CaptionerOutput(
    tags=(
        Tag(text="some hero", score=0.9),
        Tag(text="solo", score=0.8),
        Tag(text="long hair", score=0.7),
    )
)


@pytest.mark.parametrize(
    ("caption", "settings", "text"),
    [
        (CaptionerOutput(text=" a fox\n in snow "), {}, "a fox in snow"),
        (TAGS, {}, "some hero, solo, long hair"),
        (TAGS, {"exclude": "solo, Long_Hair"}, "some hero"),
        (TAGS, {"exclude": ["some hero", "solo", "long hair"], "prefix": "ink"}, ""),
        (
            CaptionerOutput(text="a fox"),
            {"prefix": "ink wash painting"},
            "ink wash painting, a fox",
        ),
        (CaptionerOutput(text="a fox"), {"prefix": "a photo of"}, "a photo of a fox"),
        (CaptionerOutput(text="a fox."), {"suffix": "ink style"}, "a fox. ink style"),
        (CaptionerOutput(text="a fox."), {"suffix": ", ink style"}, "a fox, ink style"),
        (
            CaptionerOutput(text="a fox"),
            {"suffix": "ink style", "prefix": "art,"},
            "art, a fox, ink style",
        ),
        (CaptionerOutput(text="a fox"), {"trigger": "zorb", "prefix": "ink"}, "zorb, ink, a fox"),
        (CaptionerOutput(text="a Zorb fox"), {"trigger": "zorb"}, "a Zorb fox"),
        (CaptionerOutput(), {"trigger": "zorb", "prefix": "ink"}, ""),
        (CaptionerOutput(text="a fox\x00 \u200bin\u00adsnow"), {}, "a fox in snow"),
        (CaptionerOutput(text="狐狸"), {"prefix": "水墨，"}, "水墨， 狐狸"),
    ],
)
def test_the_text_that_is_written(caption, settings, text):
    assert postprocess(caption, from_mapping({"input": "x", "captioner": "wd", **settings})) == text
