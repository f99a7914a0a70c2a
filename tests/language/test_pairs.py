import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lora_trainer.__main__ import main
from lora_trainer.errors import ConfigError, DatasetError
from lora_trainer.language.conversations import read_texts
from lora_trainer.language.pairs import divided, open_server, parsed, read_passages
from lora_trainer.settings.training import DatasetSettings
from tests.language import made

RULES = "# Hatches\n\nClose hatch B first.\n\n# Filters\n\nChange them every 12 days.\n"
WANTED = [("Who?", "Ann."), ("How?", "Slowly.")]


@pytest.mark.parametrize(
    "reply",
    [
        '{"question": "Who?", "answer": "Ann."}\n{"question": "How?", "answer": "Slowly."}',
        'Sure:\n```json\n[{"Question": "Who?", "Answer": "Ann."}, {"q": "How?", "a": "Slowly."}]\n```',
        '{"pairs": [{"question": "Who?", "answer": "Ann."}, {"question": "How?", "answer": "Slowly."},'
        ' {"question": "Cut off',
        "Q: Who?\nA: Ann.\n\nQ: How?\nA: Slowly.\n",
        "**Question 1:** Who?\n**Answer 1:** Ann.\n**Question 2:** How?\n**Answer 2:** Slowly.",
        "问题：Who?\n答案：Ann.\n问题：How?\n答案：Slowly.",
    ],
)
def test_pairs_are_found_in_whatever_a_model_writes_around_them(reply):
    found = [(question.strip("* "), answer.strip("* ")) for question, answer in parsed(reply)]
    assert found == WANTED


def test_a_reply_without_pairs_has_none():
    assert parsed("I cannot help with that. {broken} [1, 2] {}") == []


def test_a_passage_is_some_paragraphs_under_a_heading():
    assert divided(RULES) == [
        "# Hatches\n\nClose hatch B first.",
        "# Filters\n\nChange them every 12 days.",
    ]
    assert divided("a" * 9 + "\n\n" + "b" * 9 + "\n \n" + "c" * 9, 20) == [
        "a" * 9 + "\n\n" + "b" * 9,
        "c" * 9,
    ]


def test_documents_are_read_from_a_folder_or_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rules.md").write_text(RULES, encoding="utf-8")
    (tmp_path / "in" / "rules.pdf").write_text("x", encoding="utf-8")
    assert [(each.source, each.text[:5]) for each in read_passages(tmp_path / "in")] == [
        ("rules.md", "# Hat"),
        ("rules.md", "# Fil"),
    ]
    assert len(read_passages(tmp_path / "in" / "rules.md")) == 2
    with pytest.raises(DatasetError, match="no texts in"):
        read_passages(tmp_path / "in" / "rules.pdf")
    with pytest.raises(DatasetError, match="there is no file or folder"):
        read_passages(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8080", "is not an address"),
        ("https://example.com/v1", "your documents would be sent there"),
        ("http://localhost.example.com/v1", "your documents would be sent there"),
    ],
)
def test_documents_stay_on_this_machine_unless_said_otherwise(url, message):
    with pytest.raises(ConfigError, match=message):
        open_server(url, "any")
    if "example" in url:
        assert open_server(url, "any", remote=True).url == url


class Chat(BaseHTTPRequestHandler):
    """Answers each passage with a pair of its own and one that is always the same."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.asked.append((self.path, body["model"], prompt))
        heading = prompt.split("# ")[1].split("\n")[0]
        pairs = [
            {"question": f"What about {heading}?", "answer": "See the rules."},
            {"question": "Who?", "answer": "Ann."},
        ]
        content = "\n".join(map(json.dumps, pairs))
        answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(200 if "choices" in self.server.says else 302)
        self.send_header("Location", "http://localhost:1/")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Chat) as made_server:
        made_server.asked, made_server.says = [], "choices"
        thread = threading.Thread(target=made_server.serve_forever, daemon=True)
        thread.start()
        yield made_server
        made_server.shutdown()


def test_a_server_writes_pairs_that_can_be_trained_on(tmp_path, server, capsys):
    (tmp_path / "rules.md").write_text(RULES, encoding="utf-8")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    output = tmp_path / "texts" / "pairs.jsonl"
    call = ["pairs", "--input", str(tmp_path / "rules.md"), "--output", str(output), "--url", url]
    assert main(call) == 0
    assert "Wrote 3 pairs" in capsys.readouterr().out
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == [
        "What about Hatches?",
        "Who?",
        "What about Filters?",
    ]
    assert {line["source"] for line in lines} == {"rules.md"}
    dataset = read_texts(DatasetSettings(train_data_dir=output.parent))
    assert len(dataset.examples) == 3 and not dataset.findings
    assert [asked[:2] for asked in server.asked] == [("/v1/chat/completions", "default")] * 2
    # what a person has corrected is not overwritten
    assert main(call) == 1
    assert "exists already" in capsys.readouterr().err
    # and nothing follows a server elsewhere
    server.says = "elsewhere"
    assert main([*call[:4], str(tmp_path / "other.jsonl"), *call[5:]]) == 1
    assert "does not answer as expected" in capsys.readouterr().err


def test_the_base_itself_is_asked_and_a_reply_without_pairs_is_named(tmp_path, capsys):
    (tmp_path / "rules.txt").write_text("Close hatch B first.", encoding="utf-8")
    call = ["pairs", "--input", str(tmp_path), "--output", str(tmp_path / "pairs.jsonl")]
    # a base of random weights writes none
    assert main([*call, "--base-model", str(made.base("llama")), "--count", "1"]) == 1
    said = capsys.readouterr()
    assert "No pair was written" in said.err and "a reply about: rules.txt" in said.err
    assert not (tmp_path / "pairs.jsonl").exists()
