"""CLIP's tokens in plain Python, against transformers' CLIPTokenizer with ftfy."""

from __future__ import annotations

import random

import pytest

from lora_trainer.checkpoint import tokenizer
from lora_trainer.dataset.clip_bpe import ClipBpe, data_file
from lora_trainer.dataset.tokens import read_end
from lora_trainer.errors import SetupError


@pytest.fixture(scope="module")
def clip():
    return ClipBpe.load()


def texts():
    """Sentences with all that is odd, and random ones of letters, signs and digits of many
    scripts.
    """
    yield from (
        "",
        " ",
        "a red fox, ink wash",
        "1girl's hair, don't, we'll",
        "café ＡＢＣ，你好。&amp; “q” ...",
        "it'ſ İstanbul K 12345 ½ ⅷ 一二",
        "a" * 300,
        "👩‍🚀 text ’s",
        "ﬁne ﬀ",
        "\u200b x \x1c y",
        "<|endoftext|>s",
        "sks_style, (masterpiece:1.2), <lora:fox:0.8>",
    )
    chance = random.Random(1)
    pool = (
        [chr(code) for code in range(32, 127)] * 4
        + [chr(chance.randrange(0xA0, 0x3000)) for _ in range(600)]
        + list("，。！？：；“”‘’《》　一水") * 5
    )
    plain = [chr(code) for code in range(32, 127)] + list("&'' ") * 6
    for letters in (pool, plain):
        for _ in range(300):
            yield "".join(chance.choice(letters) for _ in range(chance.randrange(40)))


def test_every_text_has_the_tokens_that_transformers_gives_it_at_the_same_places(clip):
    for text in texts():
        assert clip.tokenize(text) == tokenizer.tokenize(text), text
        assert clip.count(text) == len(clip.tokenize(text)), text


def test_the_end_of_a_long_caption_is_where_seventy_five_tokens_end(clip):
    assert read_end("fox " * 80, clip.tokenize, 75) == 75 * 4 - 1


def test_without_any_vocabulary_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match="it holds CLIP's vocabulary"):
        data_file([tmp_path])
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"x")
    assert data_file([tmp_path]) == tmp_path / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
