import json

import pytest

from lora_trainer.dataset.findings import report
from lora_trainer.errors import DatasetError
from lora_trainer.language.conversations import ChatMessage, read_texts
from lora_trainer.settings.training import DatasetSettings

USER, ASSISTANT, SYSTEM = (
    lambda text: ChatMessage("user", text),
    lambda text: ChatMessage("assistant", text),
    lambda text: ChatMessage("system", text),
)
PAIR = (USER("Who?"), ASSISTANT("Ann."))


def read(folder, name, text, **settings):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return read_texts(DatasetSettings(train_data_dir=folder, **settings))


@pytest.mark.parametrize(
    ("entry", "messages"),
    [
        ({"question": "Who?", "answer": "Ann."}, PAIR),
        ({"Instruction": " Who? ", "input": "", "output": "Ann."}, PAIR),
        (
            {
                "instruction": "Who?",
                "input": "Ann and Bo",
                "output": "Both.",
                "system": "Be brief.",
            },
            (SYSTEM("Be brief."), USER("Who?\n\nAnn and Bo"), ASSISTANT("Both.")),
        ),
        ({"问题": "Who?", "答案": "Ann."}, PAIR),
        ({"question": "How many?", "answer": 12}, (USER("How many?"), ASSISTANT("12"))),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
                    {"role": "assistant", "content": "Ann."},
                ]
            },
            (SYSTEM("Be brief."), *PAIR),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Who?"},
                    {"from": "gpt", "value": "Ann."},
                ]
            },
            PAIR,
        ),
    ],
)
def test_each_form_of_an_entry_is_a_conversation(tmp_path, entry, messages):
    for name, text in (("a.jsonl", json.dumps(entry)), ("b.json", json.dumps([entry]))):
        dataset = read(tmp_path / name, name, text)
        assert [example.messages for example in dataset.examples] == [messages]
        assert dataset.findings == ()


@pytest.mark.parametrize(
    "text",
    [
        "question,answer\nWho?,Ann.\n",
        "Who?,Ann.\n",
        'answer;id;question\n"Ann.";7;"Who?"\n',
        "question\tanswer\nWho?\tAnn.\n",
        "\ufeffInstruction,Input,Output\nWho?,,Ann.\n",
    ],
)
def test_a_table_may_have_a_header_and_any_delimiter(tmp_path, text):
    dataset = read(tmp_path, "pairs.csv", text)
    assert [example.messages for example in dataset.examples] == [PAIR]


def test_plain_texts_and_tables_are_read_in_order_and_hidden_files_are_not(tmp_path):
    (tmp_path / ".notes.txt").write_text("not this", encoding="utf-8")
    read(tmp_path, "b.md", "# Rules\n\nClose the hatch.\n")
    dataset = read(
        tmp_path, "a.jsonl", '{"text": "One."}\n\n{"question": "Who?", "answer": "Ann."}'
    )
    assert [(each.name, each.text) for each in dataset.examples] == [
        ("a.jsonl, line 1", "One."),
        ("a.jsonl, line 3", ""),
        ("b.md", "# Rules\n\nClose the hatch."),
    ]
    table = read_texts(DatasetSettings(train_data_dir=tmp_path, metadata_path=tmp_path / "a.jsonl"))
    assert len(table.examples) == 2


def test_what_cannot_be_used_is_named_with_its_line(tmp_path):
    lines = [
        '{"question": "Who?", "answer": "Ann."}',
        '{"question": "Who?", "answer": " "}',
        '{"question": "Who?"}',
        "{broken",
        '{"messages": [{"role": "tool", "content": "x"}]}',
        '{"question": "Who?", "answer": "Ann."}',
        '{"question": "WHO?", "answer": "Bo."}',
    ]
    dataset = read(tmp_path, "pairs.jsonl", "\n".join(lines))
    assert [example.name[-1] for example in dataset.examples] == ["1", "6", "7"]
    assert [(one.kind, one.severity, str(one)) for one in dataset.findings] == [
        ("empty-text", "error", "pairs.jsonl, line 2 has an empty question or answer"),
        ("unreadable-text", "error", "pairs.jsonl, line 3 is not used: it has no answer"),
        (
            "unreadable-text",
            "error",
            "pairs.jsonl, line 4 is not used: it is not JSON (Expecting property name enclosed in"
            " double quotes: line 1 column 2 (char 1))",
        ),
        (
            "unreadable-text",
            "error",
            "pairs.jsonl, line 5 is not used: a message is from tool, not from user or assistant",
        ),
        ("duplicate-text", "warning", "pairs.jsonl, line 6 is the same as pairs.jsonl, line 1"),
        (
            "contradicting-text",
            "warning",
            "pairs.jsonl, line 7 asks the same as pairs.jsonl, line 1, but has another answer",
        ),
    ]
    assert "3 texts cannot be used" in report(dataset.findings)


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no texts in"):
        read_texts(DatasetSettings(train_data_dir=tmp_path))
    with pytest.raises(DatasetError, match="is not a folder"):
        read_texts(DatasetSettings(train_data_dir=tmp_path / "nothing"))
    with pytest.raises(DatasetError, match="there is no file"):
        read_texts(DatasetSettings(train_data_dir=tmp_path, metadata_path=tmp_path / "a.csv"))
