from __future__ import annotations

import pytest

from lora_trainer.captioning.captioner import Caption, Tag
from lora_trainer.captioning.postprocess import finish
from lora_trainer.settings.captioning import from_mapping

TAGS = Caption(
    tags=(
        Tag(text="some hero", score=0.9),
        Tag(text="solo", score=0.8),
        Tag(text="long hair", score=0.7),
    )
)


@pytest.mark.parametrize(
    ("caption", "settings", "text"),
    [
        (Caption(text=" a fox\n in snow "), {}, "a fox in snow"),
        (TAGS, {}, "some hero, solo, long hair"),
        (TAGS, {"exclude": "solo, Long_Hair"}, "some hero"),
        (TAGS, {"exclude": ["some hero", "solo", "long hair"], "prefix": "ink"}, ""),
        (Caption(text="a fox"), {"prefix": "ink wash painting"}, "ink wash painting, a fox"),
        (Caption(text="a fox"), {"prefix": "a photo of"}, "a photo of a fox"),
        (Caption(text="a fox."), {"suffix": "ink style"}, "a fox. ink style"),
        (Caption(text="a fox."), {"suffix": ", ink style"}, "a fox, ink style"),
        (Caption(text="a fox"), {"suffix": "ink style", "prefix": "art,"}, "art, a fox, ink style"),
        (Caption(text="a fox"), {"trigger": "zorb", "prefix": "ink"}, "zorb, ink, a fox"),
        (Caption(text="a Zorb fox"), {"trigger": "zorb"}, "a Zorb fox"),
        (Caption(), {"trigger": "zorb", "prefix": "ink"}, ""),
        (Caption(text="a fox\x00 \u200bin\u00adsnow"), {}, "a fox in snow"),
        (Caption(text="狐狸"), {"prefix": "水墨，"}, "水墨， 狐狸"),
    ],
)
def test_the_text_that_is_written(caption, settings, text):
    assert finish(caption, from_mapping({"input": "x", "captioner": "wd", **settings})) == text
