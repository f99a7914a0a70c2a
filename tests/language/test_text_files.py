"""What is edited in a file of texts is changed in place, and everything else stays byte for byte."""

import json

import pytest

from lora_trainer.errors import DatasetError
from lora_trainer.language import text_files
from lora_trainer.language.text_files import NoExample


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def edited(path, number, *texts):
    file = text_files.read(path)
    text_files.write(file, file.replaced(number, file.edited(number, texts)))
    return path.read_bytes().decode("utf-8-sig")


def test_a_line_of_json_keeps_the_keys_that_are_not_edited(tmp_path):
    first = '{"id": 7,  "Question": "Who?", "answer": 12, "tags": ["a", {"b": 1.0}]}'
    path = written(tmp_path, "pairs.jsonl", f"{first}\r\n\r\n{{broken\r\n{first}")
    kept = json.loads(first)
    after = edited(path, 0, "Who \u201cis\u201d it?", "12")
    assert after.split("\r\n")[1:] == ["", "{broken", first]
    assert json.loads(after.split("\r\n")[0]) == {**kept, "Question": "Who \u201cis\u201d it?"}
    # the same texts again: not a byte
    assert edited(path, 2, "Who?", "12") == after


def test_a_row_of_a_table_is_written_alone(tmp_path):
    text = 'id;question;answer;note\n1;"Who; she?";Ann.;"x ""y"""\n2;What?;"two\nlines";\n3;Why?\n'
    path = written(tmp_path, "pairs.csv", b"\xef\xbb\xbf" + text.encode())
    after = edited(path, 1, "What; now?", "two\nlines")
    assert after == text.replace("2;What?", '2;"What; now?"')
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with pytest.raises(NoExample):
        text_files.read(path).entries[2].fields()


def test_an_entry_of_an_indented_list_keeps_its_form(tmp_path):
    values = [{"instruction": "Who?", "input": "", "output": "Ann.", "n": 1}, {"text": "A text."}]
    text = json.dumps(values, indent=4)
    path = written(tmp_path, "pairs.json", text)
    assert edited(path, 0, "Who?", "", "Bo.") == text.replace("Ann.", "Bo.")
    assert edited(path, 1, "Another.") == text.replace("Ann.", "Bo.").replace("A text.", "Another.")


def test_messages_are_edited_one_by_one(tmp_path):
    parts = [{"type": "text", "text": "Who?"}]
    talk = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts, "id": 3},
            {"role": "assistant", "content": "Ann."},
        ]
    }
    path = written(tmp_path, "talk.jsonl", json.dumps(talk) + "\n")
    after = json.loads(edited(path, 0, "Be brief.", "Who is it?", "Ann."))
    talk["messages"][1]["content"] = [{"type": "text", "text": "Who is it?"}]
    assert after == talk


def test_a_plain_text_keeps_the_space_around_it(tmp_path):
    path = written(tmp_path, "rules.md", "\r\n# Rules\r\nOne.\r\n\r\n")
    assert edited(path, 0, "# Rules\nTwo.") == "\r\n# Rules\r\nTwo.\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"question": "1", "answer": "a"}\n{"question": "2", "answer": "b"}\n'),
        ("a.csv", "question,answer\n1,a\n2,b\n"),
        ("a.json", '[{"question": "1", "answer": "a"}, {"question": "2", "answer": "b"}]\n'),
        ("b.json", '[\n {"question": "1", "answer": "a"},\n {"question": "2", "answer": "b"}\n]'),
    ],
)
def test_what_is_removed_and_put_back_leaves_no_trace(tmp_path, name, text):
    for number in (0, 1):
        path = written(tmp_path, name, text)
        file = text_files.read(path)
        raw = file.raws[number]
        text_files.write(file, file.without(number))
        shorter = text_files.read(path)
        assert [each.fields()[0].text for each in shorter.entries] == ["2" if number == 0 else "1"]
        back = shorter.inserted(number, raw)
        text_files.write(shorter, back)
        assert text_files.read(path).raws == file.raws
    added = text_files.read(path)
    text_files.write(added, added.inserted(2, added.new_pair("3, new", "c")))
    last = text_files.read(path).entries[2].fields()
    assert [field.text for field in last] == ["3, new", "c"]


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"question": "1", "answer": "a"}\n')
    file = text_files.read(path)
    path.write_text('{"question": "1", "answer": "theirs"}\n')
    with pytest.raises(DatasetError, match="changed by another program"):
        text_files.write(file, file.without(0))
    assert "theirs" in path.read_text()
