"""Published models that need the newer libraries, as `bench` makes them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from lora_trainer.bench import models
from lora_trainer.bench.tokenizers import write_tokenizers
from lora_trainer.families.z_image import TEMPLATE
from tests.benchmark.published_models import MODELS, NEWER


@pytest.mark.parametrize("name", NEWER)
def test_the_architectures_are_the_published_ones(name):
    stated = MODELS[name].stated()
    model = models.named(name)
    assert (model.title, model.resolution) == (stated["title"], stated["resolution"])
    assert model.tensors == stated["tensors"]


def test_a_made_tokenizer_has_the_templates_tokens(tmp_path):
    folder = write_tokenizers(tmp_path, ["qwen3", "t5"])
    tokenizer = Tokenizer.from_file(str(folder / "qwen3" / "tokenizer.json"))
    tokens = tokenizer.encode(TEMPLATE.format("ab"), add_special_tokens=False).tokens
    assert tokens[0] == "<|im_start|>" and tokens[6:9] == ["a", "b", "<|im_end|>"]
    letters = Tokenizer.from_file(str(folder / "t5" / "tokenizer.json")).encode("ab").tokens
    assert letters == ["▁", "a", "b"]
