"""CLIP's tokenizers: the ids the WebUI would use."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_trainer import families
from lora_trainer.checkpoint import tokenizer
from lora_trainer.checkpoint.tokenizer import count_tokens, load_tokenizers
from lora_trainer.dataset import clip_bpe
from lora_trainer.errors import SetupError

KNOWN_IDS = {
    "": [],
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "A PHOTO  of\n a\tCAT ": [320, 1125, 539, 320, 2368],
    "1girl, solo, (masterpiece:1.2), [bad hands], ((best quality))": [
        272,
        1611,
        267,
        5797,
        267,
        263,
        12066,
        281,
        272,
        269,
        273,
        2361,
        314,
        2103,
        3500,
        34067,
        13796,
        949,
        3027,
        5167,
    ],
    "it's I'll don't we've I'm he'd they're": [
        585,
        568,
        328,
        1342,
        847,
        713,
        649,
        1200,
        328,
        880,
        797,
        1896,
        889,
        982,
    ],
    "一只猫": [19759, 222, 34517, 103, 163, 234, 360],
    "一只穿着红色汉服的女孩，站在樱花树下。": [
        19759,
        222,
        34517,
        103,
        163,
        102,
        123,
        163,
        251,
        222,
        163,
        118,
        95,
        164,
        231,
        110,
        162,
        109,
        231,
        19277,
        235,
        163,
        248,
        226,
        29290,
        111,
        35751,
        358,
        267,
        163,
        104,
        247,
        37746,
        101,
        162,
        101,
        109,
        164,
        232,
        109,
        162,
        254,
        239,
        19759,
        489,
        38000,
    ],
    "中文，标点！“引号”（括号）": [
        19759,
        255,
        29032,
        485,
        267,
        162,
        254,
        229,
        163,
        224,
        373,
        2947,
        161,
        120,
        243,
        34517,
        371,
        32741,
        162,
        233,
        105,
        34517,
        371,
        264,
    ],
    "日本語": [39121, 44353, 34002, 508],
    "русский": [16370, 39729, 23669, 23669, 27152, 29503, 373],
    "naïve café": [1097, 35689, 563, 15304],
    "cafe\u0301": [15304],
    "🐱": [22979],
    "👩\u200d👩\u200d👧": [26304, 26304, 964, 356],
    "‘curly’ “quotes” — dash…": [262, 20795, 262, 257, 5808, 257, 2005, 10206, 959],
    "ＦＵＬＬ ｗｉｄｔｈ": [1476, 23571],
    "ﬁne": [3797],
    "â€œmojibakeâ€\x9d": [257, 617, 3252, 11878, 257],
    "Tom &amp; Jerry": [2435, 261, 9164],
    "3.14 2024-01-01 100%": [
        274,
        269,
        272,
        275,
        273,
        271,
        273,
        275,
        268,
        271,
        272,
        268,
        271,
        272,
        272,
        271,
        271,
        260,
    ],
    "_under_score_ C++ #tag": [318, 1798, 318, 4431, 318, 322, 19056, 258, 3640],
    "wow! great!!": [2781, 256, 830, 748],
    "<lora:style:0.8>": [283, 2179, 320, 281, 1844, 281, 271, 269, 279, 285],
    "a" * 100: [23126] * 12 + [19336],
}


@pytest.fixture(scope="module")
def clip_and_open_clip() -> tuple[Any, Any]:
    return load_tokenizers(("clip", "open_clip"))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def open_clips_own() -> Callable[[str], list[int]]:
    """open_clip's tokenizer, A1111's for SD2 and SDXL, without the package around it."""
    spec = importlib.util.find_spec("open_clip")
    file = Path(spec.submodule_search_locations[0], "tokenizer.py")  # type: ignore[union-attr, index]
    module_spec = importlib.util.spec_from_file_location("open_clip_tokenizer", file)
    module = importlib.util.module_from_spec(module_spec)  # type: ignore[arg-type]
    module_spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module.SimpleTokenizer().encode


@pytest.mark.parametrize("text", KNOWN_IDS)
def test_ids_are_those_of_the_reference(clip_and_open_clip: tuple[Any, Any], text: str) -> None:
    """Literal ids of openai/clip-vit-large-patch14's CLIPTokenizer, with ftfy, from its own
    vocab.json and merges.txt.
    """
    for each in clip_and_open_clip:
        assert each(text, add_special_tokens=False).input_ids == KNOWN_IDS[text]


@pytest.mark.parametrize("text", KNOWN_IDS)
def test_ids_are_those_of_open_clip(open_clips_own: Callable[[str], list[int]], text: str) -> None:
    assert open_clips_own(text) == KNOWN_IDS[text]


def test_a_short_text_is_filled_up_with_each_encoders_padding(
    clip_and_open_clip: tuple[Any, Any],
) -> None:
    ids = [
        each("wow!", padding="max_length", max_length=7).input_ids for each in clip_and_open_clip
    ]
    assert ids == [
        [49406, 2781, 256, 49407, 49407, 49407, 49407],
        [49406, 2781, 256, 49407, 0, 0, 0],
    ]


def test_a_long_text_is_neither_cut_nor_complained_about(
    clip_and_open_clip: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(clip_and_open_clip[0]("cat " * 200, add_special_tokens=False).input_ids) == 200
    assert caplog.records == []
    assert clip_and_open_clip[0].model_max_length == 77


def test_each_family_has_its_tokenizers() -> None:
    assert [
        [each.pad_token_id for each in families.get(family).tokenizers()]
        for family in ("sd1", "sd2", "sdxl")
    ] == [[49407], [0], [49407, 0]]


def test_tokens_are_counted_without_start_and_end() -> None:
    assert [count_tokens(text) for text in ("", "a photo of a cat", "cat, " * 50)] == [0, 5, 100]


def test_the_vocabulary_is_that_of_clip() -> None:
    vocabulary, merges = clip_bpe.read_vocabulary(clip_bpe.data_file())
    assert (len(vocabulary), len(merges), merges[0]) == (49408, 48894, "i n")
    assert (
        vocabulary["!"],
        vocabulary["!</w>"],
        vocabulary["cat</w>"],
        vocabulary["<|startoftext|>"],
    ) == (0, 256, 2368, 49406)


@pytest.fixture
def none_made_yet() -> None:
    """Tokenizers are made once a process."""
    tokenizer._tokenizer.cache_clear()


def test_a_missing_vocabulary_package_is_named(
    monkeypatch: pytest.MonkeyPatch, none_made_yet: None
) -> None:
    monkeypatch.setattr(clip_bpe, "DATA_FILE", "no such file")
    with pytest.raises(SetupError, match="open_clip_torch is not installed"):
        load_tokenizers(["clip"])


def test_a_missing_ftfy_is_named_rather_than_silently_changing_ids(
    monkeypatch: pytest.MonkeyPatch, none_made_yet: None
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "ftfy" else find_spec(name, *rest),
    )
    with pytest.raises(SetupError, match="ftfy is not installed"):
        load_tokenizers(["clip"])
