"""prompt/lora_tags.js: tags are read as the hosts read them, and a change rewrites one number and
nothing else.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("scripts")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a fox", []),
        ("<lora:fox>", [("fox", 1, 1, False)]),
        ("<lora:fox:0.7>", [("fox", 0.7, 0.7, False)]),
        ("<lora:fox:.7>", [("fox", 0.7, 0.7, False)]),
        ("<lora:fox:-1.25>", [("fox", -1.25, -1.25, False)]),
        ("<lora:fox:1e-1>", [("fox", 0.1, 0.1, False)]),
        ("<lora:fox:0.7:0.5>", [("fox", 0.7, 0.5, True)]),
        ("<lora:fox:0.7:0.5:4>", [("fox", 0.7, 0.5, True)]),
        ("<lora:fox:te=0.2:unet=0.9>", [("fox", 0.2, 0.9, True)]),
        ("<lora:fox:unet=0.9>", [("fox", 1, 0.9, True)]),
        ("<lora:fox:0.7:unet=0.9>", [("fox", 0.7, 0.9, True)]),
        ("<lora:fox: 0.7 >", [("fox", 0.7, 0.7, False)]),
        ("<lora:狐 狸:0.7>", [("狐 狸", 0.7, 0.7, False)]),
        ("<lora:a(b)[c]:1>", [("a(b)[c]", 1, 1, False)]),
        ("<lora:fox:much>", [("fox", None, None, False)]),
        ("<lora:fox:>", [("fox", None, None, False)]),
        ("<lora:>", []),
        ("<lyco:fox:0.7>", []),
        ("<hypernet:fox:0.7> <lora:fox:0.2>", [("fox", 0.2, 0.2, False)]),
        (
            "a <lora:one:0.1>, b <lora:two:0.2>\n<lora:one:0.3>",
            [("one", 0.1, 0.1, False), ("two", 0.2, 0.2, False), ("one", 0.3, 0.3, False)],
        ),
        ("<lora:fox:0.7", []),
        ("< lora:fox:0.7>", []),
        ("<LORA:fox:0.7>", []),
        ("(<lora:fox:0.7>:1.3)", [("fox", 0.7, 0.7, False)]),
    ],
)
def test_tags_are_read_as_the_hosts_read_them(call, prompt, expected):
    assert [
        (tag["name"], tag["te"], tag["unet"], tag["separate"])
        for tag in call("prompt/lora_tags.find", prompt)
    ] == expected


def written(call, prompt, index, which, strength):
    return call(
        "prompt/lora_tags.apply",
        prompt,
        call(
            "prompt/lora_tags.edit", call("prompt/lora_tags.find", prompt)[index], which, strength
        ),
    )


@pytest.mark.parametrize(
    ("prompt", "index", "which", "strength", "expected"),
    [
        ("a fox <lora:fox:0.7>, ink", 0, "te", 0.35, "a fox <lora:fox:0.35>, ink"),
        ("<lora:fox:0.7>", 0, "te", 1, "<lora:fox:1>"),
        ("<lora:fox:0.7>", 0, "te", 0, "<lora:fox:0>"),
        ("<lora:fox>", 0, "te", 0.5, "<lora:fox:0.5>"),
        ("<lora:fox:0.7:0.5:4>", 0, "te", 1.5, "<lora:fox:1.5:0.5:4>"),
        ("<lora:fox:0.7:0.5:4>", 0, "unet", 0.05, "<lora:fox:0.7:0.05:4>"),
        ("<lora:fox:te=0.2:unet=0.9:dyn=8>", 0, "unet", 0.4, "<lora:fox:te=0.2:unet=0.4:dyn=8>"),
        ("<lora:fox:unet=0.9>", 0, "te", 0.4, "<lora:fox:te=0.4:unet=0.9>"),
        ("<lora:fox: 0.7 >", 0, "te", 0.2, "<lora:fox: 0.2 >"),
        ("<lora:one:0.1> <lora:one:0.1>", 1, "te", 0.9, "<lora:one:0.1> <lora:one:0.9>"),
        ("$& $1 <lora:fox:0.7> $'", 0, "te", 0.3, "$& $1 <lora:fox:0.3> $'"),
        ("<lora:fox:0.7>", 0, "te", 0.1 + 0.2, "<lora:fox:0.3>"),
    ],
)
def test_one_number_is_rewritten_in_place(call, prompt, index, which, strength, expected):
    assert written(call, prompt, index, which, strength) == expected


def test_a_strength_that_was_written_is_the_one_that_is_read(call):
    prompt = "x <lora:fox:0.7> y"
    for twentieth in range(31):
        strength = round(twentieth * 0.05, 2)
        (tag,) = call("prompt/lora_tags.find", written(call, prompt, 0, "te", strength))
        assert tag["te"] == strength


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox <lora:fox:0.7>", "a fox"),
        ("<lora:fox:0.7> a fox", "a fox"),
        ("a fox, <lora:fox:0.7>, ink", "a fox, ink"),
        ("a <lora:one:1> b <lora:two:1> c", "a b c"),
        ("a fox", "a fox"),
    ],
)
def test_a_prompt_without_its_tags_reads_as_if_they_had_never_been_there(call, prompt, expected):
    while tags := call("prompt/lora_tags.find", prompt):
        prompt = call(
            "prompt/lora_tags.apply", prompt, call("prompt/lora_tags.removal", prompt, tags[0])
        )
    assert prompt == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fox", 0.7), "<lora:fox:0.7>"),
        (("fox", 1), "<lora:fox:1>"),
        (("狐", 0.05), "<lora:狐:0.05>"),
    ],
)
def test_a_tag_is_spelled_as_the_hosts_read_it(call, arguments, expected):
    assert call("prompt/lora_tags.make", *arguments) == expected
