"""Answers of a language model."""

import pytest

from lora_trainer.language.answer import answer
from lora_trainer.language.tokens import load_tokenizer
from tests.language import made


@pytest.mark.parametrize(
    ("positions", "asked", "given"), [(40, 1000, 20), (40, 7, 7), (10, 5, 1), (None, 900, 900)]
)
def test_an_answer_is_no_longer_than_the_model_has_positions_for(
    monkeypatch, positions, asked, given
):
    tokenizer = load_tokenizer(made.base("llama"))
    model = made.model("llama", 384)
    monkeypatch.setattr(type(tokenizer), "prompt_ids", lambda self, question: [5] * 20)
    monkeypatch.setattr(model.config, "max_position_embeddings", positions)
    lengths = []

    def generate(*, input_ids, max_new_tokens, **more):
        lengths.append(max_new_tokens)
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    assert answer(model, tokenizer, "Who?", asked) == ""
    assert lengths == [given]
