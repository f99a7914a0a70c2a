"""Other programs' signs in captions and sample prompts: understood, or named."""

from __future__ import annotations

import pytest

from lora_trainer.dataset.check.caption_findings import caption_findings
from lora_trainer.dataset.check.image_findings import CheckedImage
from lora_trainer.dataset.syntax import foreign, prompt_syntax, unescaped
from tests.dataset.test_scan import draw, look, told, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat (smile:1.2), snow", {"emphasis": "(smile:1.2)"}),
        ("((best)), {{red}}", {"emphasis": "((best))"}),
        (
            "a photo of [trigger], {red|blue} hat",
            {"placeholder": "[trigger]", "wildcard": "{red|blue}"},
        ),
        ("fox, __color__ hat", {"wildcard": "__color__"}),
        ("a cat --ar 16:9 --n blurry", {"option": "--ar 16:9"}),
        ("a cat BREAK a dog", {"separator": "BREAK"}),
        ("[cat:dog:0.5]", {"editing": "[cat:dog:0.5]"}),
        (
            "a fox\nNegative prompt: bad hands\nSteps: 20, Sampler: Euler a, Size: 512x512",
            {"parameters": "Negative prompt:"},
        ),
        ("a fox\nSteps: 20, Sampler: Euler a, Size: 512x512", {"parameters": "Steps: 20, Sampler"}),
        ("<lora:ink:0.7> a fox", {"lora": "<lora:ink:0.7>"}),
        (
            (
                r"hatsune miku \(vocaloid\), looking_at_viewer, >:), (a fox), {sitting}, o_o,"
                r" rating: safe, 3:4, rock and roll -- live"
            ),
            {},
        ),
    ],
)
def test_syntax_is_told_from_words(text, expected):
    assert foreign(text) == expected


def test_captions_of_escaped_brackets_are_found_with_their_fix(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path / "a.txt", r"hatsune miku \(vocaloid\), (smile:1.2)")
    write(tmp_path / "b.txt", "a fox, (red:1.3)")
    write(tmp_path / "c.txt", "a fox (animal)")
    dataset = look(tmp_path)
    assert told(dataset) == [
        (
            "warning",
            "escaped-brackets",
            "a.png: the caption has escaped brackets, and the backslash is trained as well",
        ),
        (
            "warning",
            "foreign-syntax",
            (
                "captions contain emphasis (2, such as (smile:1.2) in a.png): it is trained as "
                "plain text, brackets and number included"
            ),
        ),
    ]
    assert unescaped(dataset.examples[0].caption) == "hatsune miku (vocaloid), (smile:1.2)"
    pictures = [CheckedImage(path=tmp_path / "a.png", name="a.png", caption=r"miku \(vocaloid\)")]
    assert [finding.fix for finding in caption_findings(pictures)] == [{"do": "unescape"}]


def test_sample_prompts_are_looked_at_too():
    found = prompt_syntax(["a fox --w 512", r"miku \(vocaloid\)", "a plain fox"])
    assert [(finding.kind, str(finding)) for finding in found] == [
        (
            "prompt-syntax",
            (
                "a sample prompt contains an escaped bracket, \\(: previews read the backslash as "
                "well"
            ),
        ),
        (
            "prompt-syntax",
            ("a sample prompt contains an option, --w 512: previews read it as plain text"),
        ),
    ]
