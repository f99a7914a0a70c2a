"""Tokens of real tokenizers, and rows of several examples, whose loss must be that of each alone."""

import pytest
import torch

from lora_trainer.errors import DatasetError
from lora_trainer.language.conversations import ChatMessage, TextExample
from lora_trainer.language.detect import read_folder
from lora_trainer.language.model import load_model
from lora_trainer.language.objective import CompletionObjective
from lora_trainer.language.packing import pack
from lora_trainer.language.tokens import IGNORED, ChatTokenizer, load_tokenizer, too_long
from tests.language import made

CPU = torch.device("cpu")


def example(*turns, text=""):
    roles = ("user", "assistant") * len(turns)
    messages = tuple(ChatMessage(role, turn) for role, turn in zip(roles, turns, strict=False))
    return TextExample(path=None, name="pairs.jsonl, line 1", messages=messages, text=text)


def learned(tokenizer, row):
    """The learned stretches as text."""
    stretches, before = [], IGNORED
    for label in row.labels:
        if label != IGNORED:
            stretches = [*stretches, []] if before == IGNORED else stretches
            stretches[-1].append(label)
        before = label
    return [tokenizer.tokenizer.decode(each) for each in stretches]


@pytest.mark.parametrize(
    ("kind", "text", "answers"),
    [
        (
            "llama",
            "<s>Question: Who?\nAnswer: Ann.</s>\nQuestion: And how?\nAnswer: Slowly.</s>",
            [" Ann.</s>", " Slowly.</s>"],
        ),
        (
            "qwen2",
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAnn.<|im_end|>\n"
            "<|im_start|>user\nAnd how?<|im_end|>\n<|im_start|>assistant\nSlowly.<|im_end|>\n",
            ["Ann.<|im_end|>\n", "Slowly.<|im_end|>\n"],
        ),
    ],
)
def test_the_answers_alone_are_learned(kind, text, answers):
    tokenizer = load_tokenizer(made.base(kind))
    (row,) = tokenizer.rows(example("Who?", "Ann.", "And how?", "Slowly."), 64)
    assert tokenizer.tokenizer.decode(row.ids) == text
    assert learned(tokenizer, row) == answers
    assert row.learned == sum(label != IGNORED for label in row.labels)
    # what the model is asked later is what stood before the first answer
    prompt = tokenizer.prompt_ids("Who?")
    assert row.ids[: len(prompt)] == tuple(prompt) and row.labels[len(prompt)] != IGNORED


def test_an_answer_ends_with_the_templates_own_token():
    assert load_tokenizer(made.base("llama")).stop_ids == (1,)
    tokens = made.tokenizer(made.CHATML)
    tokens.eos_token = "</s>"
    assert ChatTokenizer(tokens).stop_ids == (1, 4)


def test_a_system_prompt_is_for_conversations_without_one():
    tokenizer = load_tokenizer(made.base("llama"), "Be brief.")
    own = [ChatMessage("system", "Be long."), ChatMessage("user", "Who?")]
    assert tokenizer.render(own[1:]) == "<s>Be brief.\n\nQuestion: Who?"
    assert tokenizer.render(own) == "<s>Be long.\n\nQuestion: Who?"


def test_a_template_that_refuses_a_conversation_is_explained():
    tokens = made.tokenizer("{{ raise_exception('no system role') }}")
    with pytest.raises(DatasetError, match="refuses a conversation: no system role"):
        ChatTokenizer(tokens)


def test_a_plain_text_is_learned_whole_in_rows_of_the_length():
    tokenizer = load_tokenizer(made.base("llama"))
    text = "Close hatch B, then call the bridge. " * 8
    rows = tokenizer.rows(example(text=text), 16)
    lengths = [len(row.ids) for row in rows]
    assert max(lengths) <= 16 and max(lengths) - min(lengths) <= len(rows)
    assert all(row.labels == row.ids for row in rows)
    tokens = [token for row in rows for token in row.ids]
    assert tokenizer.tokenizer.decode(tokens) == text + "</s>"
    assert rows[0].name == "pairs.jsonl, line 1 (1)"


def test_a_conversation_that_is_too_long_is_named():
    tokenizer = load_tokenizer(made.base("llama"))
    long = example("Who?", "Ann. " * 40)
    rows = tokenizer.rows(long, 32)
    count = len(rows[0].ids)
    assert str(too_long(long, rows, 32)) == (
        f"pairs.jsonl, line 1 has {count} tokens, {count - 32} more than max_length 32"
    )
    assert too_long(long, rows, count) is None


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_packed_examples_have_the_loss_of_each_alone(kind):
    tokenizer = load_tokenizer(made.base(kind))
    examples = [example(question, answer) for question, answer in made.FACTS.items()]
    rows = [row for each in examples for row in tokenizer.rows(each, 256)]
    packed = pack(rows, 64)
    assert [row.lengths for row in packed] == [
        (len(rows[0].ids), len(rows[1].ids)),
        (len(rows[2].ids),),
    ]
    model = load_model(read_folder(made.base(kind)), torch.float32, CPU)

    def losses(chosen):
        objective = CompletionObjective(
            model=model, rows=chosen, pad_id=tokenizer.pad_id, device=CPU, dtype=torch.float32
        )
        indices = range(len(chosen))
        return objective.losses(objective.batch(indices, 0, 0)), objective.names(indices)

    alone, names = losses(rows)
    together, joined = losses(packed)
    counts = torch.tensor([row.learned for row in rows[:2]])
    expected = (alone[:2] * counts).sum() / counts.sum()
    torch.testing.assert_close(together, torch.stack([expected, alone[2]]), rtol=1e-5, atol=1e-6)
    assert (names[0], joined[0]) == ("pairs.jsonl, line 1", "pairs.jsonl, line 1 and 1 more")


def test_packing_fills_rows_and_leaves_nothing_out():
    tokenizer = load_tokenizer(made.base("llama"))
    rows = [
        row
        for count in (5, 40, 9, 3, 30, 12, 1)
        for row in tokenizer.rows(example("Who?", "Ann. " * count), 512)
    ]
    packed = pack(rows, 100)
    assert sorted(length for row in packed for length in row.lengths) == sorted(
        len(row.ids) for row in rows
    )
    assert all(len(row.ids) <= 100 or len(row.lengths) == 1 for row in packed)
    assert len(packed) < len(rows)
