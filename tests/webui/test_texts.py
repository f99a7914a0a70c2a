from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lora_trainer.errors import ConfigError, DatasetError, LoraTrainerError, Message
from lora_trainer.webui import callbacks, options, texts
from tests import texts as sources


@pytest.mark.parametrize("code", sources.codes())
def test_a_table_holds_every_text_of_the_tab_and_nothing_else(code):
    needed, known = sources.needed(), set(sources.table(code))
    where = sources.file(code).relative_to(sources.ROOT).as_posix()
    assert sorted(needed - known) == [], f"{where} lacks these"
    assert sorted(known - needed) == [], f"{where} holds these, which nothing uses"


@pytest.mark.parametrize("code", sources.codes())
def test_a_translation_has_the_places_of_its_original(code):
    def places(text: str) -> list[str]:
        return sorted(re.findall(r"\{[^}]*\}", text))

    assert {
        text: known for text, known in sources.table(code).items() if places(text) != places(known)
    } == {}


@pytest.mark.parametrize("code", sources.codes())
def test_a_translation_spells_a_lora_tag_as_the_hosts_read_it(code):
    def tags(text: str) -> list[str]:
        return re.findall(r"<lora[^>]*>", text)

    assert {
        text: known for text, known in sources.table(code).items() if tags(text) != tags(known)
    } == {}


@pytest.mark.parametrize("code", sources.codes())
def test_a_translation_is_not_its_original(code):
    words = re.compile(r"[A-Za-z]{3,} [a-z]{2,} [a-z]{2,}")
    assert [
        text for text, known in sources.table(code).items() if text == known and words.search(text)
    ] == []


ONE_WORD_EACH = {
    "词元": "token",
    "周期": "轮",
    "轮次": "轮数",
    "秩": "rank",
    "损失": "loss",
    "交付": "放入 LoRA 文件夹",
    "备注": "问题",
    "离开显卡": "从显存卸载",
    "运行文件夹": "训练文件夹",
    "图片集": "数据集",
    "唤出": "触发",
    "负面提示词": "反向提示词",
    "检查点": "模型，或保存点",
}
"""What is not said -> what is: one thing has one name in the tab, the one that the field gives it.
"""


def test_the_chinese_table_has_one_word_for_one_thing():
    words = {
        wrong: [
            text
            for text in sources.table("zh_CN").values()
            if wrong in text.replace("梯度检查点", "").replace("损失少许", "")
        ]
        for wrong in ONE_WORD_EACH
    }
    assert {
        f"{wrong}: say {ONE_WORD_EACH[wrong]}": found for wrong, found in words.items() if found
    } == {}


def host_words() -> set[str]:
    """What the hosts' own pages say, as lists of labels (collected from their sources)."""
    lines = (Path(__file__).parent / "host_words.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_the_hosts_own_words_are_not_ours_to_translate():
    # the hosts merge every extension's localizations/*.json into their whole interface, by exact
    # match
    merged = {
        key
        for file in (sources.ROOT / "localizations").glob("*.json")
        for key in json.loads(file.read_text(encoding="utf-8"))
    }
    assert sorted(merged & host_words()) == [], (
        "localizations/ retranslates these words of the WebUI"
    )


@pytest.mark.parametrize("code", sources.codes())
def test_the_tabs_table_lies_where_no_host_looks_because_it_holds_their_words(code):
    assert {"Seed", "Settings", "Checkpoint", "Train", "Generate"} <= host_words() & set(
        sources.table(code)
    )
    assert "localizations" not in sources.file(code).relative_to(sources.ROOT).parts


def test_what_we_write_on_the_hosts_pages_is_not_among_their_words():
    # else the language pack of the host would overrule it
    assert (
        sorted({*options.LABELS.values(), callbacks.TITLE, options.SECTION[1]} & host_words()) == []
    )


def test_the_collector_sees_what_is_written(tmp_path, monkeypatch):
    package, scripts = tmp_path / "lora_trainer", tmp_path / "javascript"
    package.mkdir()
    (scripts / "images").mkdir(parents=True)
    (package / "one.py").write_text("""
HINT = "Try again."
LABELS: Texts = {"rank": "Size of it"}
def f(bad):
    template = "it is bad" if bad else "it is good"
    log.warning("not for visitors %s")
    raise DatasetError(template, hint=HINT, name="not this")
""")
    (scripts / "images" / "one.js").write_text(
        't("Start now"); plural(n, "{count} image", "{count} images"); t(x ? "On it" :'
        ' "Off it"); format("not this");'
    )
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert sources.python_texts() == {"Try again.", "Size of it", "it is bad", "it is good"}
    assert sources.javascript_texts() == {
        "Start now",
        "{count} image",
        "{count} images",
        "On it",
        "Off it",
    }


def test_a_sentence_is_translated_before_its_values_are_put_in():
    message = Message("there is no file {path}", {"path": "水墨.png"})
    assert texts.render(message, "en") == "There is no file 水墨.png"
    assert texts.render(message, "zh_CN") == "没有文件 水墨.png"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("there is no file {path}", "There is no file a.png"),
        ("{path} is empty", "a.png is empty"),
        ("lora_rank is {path}", "lora_rank is a.png"),
        ("metadata.csv lacks {path}", "metadata.csv lacks a.png"),
        ("fp16 does not work", "fp16 does not work"),
        ("a. b", "a. b"),
        ("Stop it", "Stop it"),
        ("", ""),
    ],
)
def test_a_sentence_begins_with_a_capital_unless_with_a_name(template, said):
    assert texts.render(Message(template, {"path": "a.png"}), "en") == said
    assert texts.render_error(LoraTrainerError(template, hint=template, path="a.png"), "en") == {
        "message": said,
        "hint": said,
    }


def test_a_sentence_behind_another_one_begins_small():
    inner = DatasetError("there is no file {path}", path="a.png")
    assert (
        texts.render(Message("this run cannot be read: {reason}", {"reason": inner}), "en")
        == "This run cannot be read: there is no file a.png"
    )


def test_beside_its_image_a_sentence_does_not_name_it():
    message = Message("{name} is a copy of {original}", {"name": "a.png", "original": "b.png"})
    assert (
        texts.render_beside(message, "a.png", "en") == "Is a copy of b.png"
        and texts.render_beside(message, "a.png", "zh_CN") == "是 b.png 的副本"
    )
    assert texts.render_beside(message, "b.png", "en") == "a.png is a copy of b.png"


def test_a_sentence_without_a_translation_stays_english(monkeypatch):
    monkeypatch.setattr(texts, "table", lambda language: {"it is {value}": "{wrong}"})
    assert texts.render(Message("it was {value}", {"value": 3}), "zh_CN") == "It was 3"
    assert texts.render(Message("it is {value}", {"value": 3}), "zh_CN") == "It is 3"


def test_several_wrong_settings_are_each_translated():
    error = ConfigError.listing(
        [
            ConfigError("{key} is missing", key="epochs"),
            ConfigError("nothing would be trained", hint="Try again."),
        ],
        "x.yaml",
    )
    said = texts.render_error(error, "zh_CN")
    assert (
        "缺少 epochs" in said["message"]
        and "请重试。" in said["message"]
        and "2" in said["message"]
    )


def test_sentences_in_a_row_are_set_as_their_language_does():
    messages = (
        Message("The LoRA will be {target}.", {"target": "a"}),
        Message("Please try again."),
    )
    assert texts.render_all(messages, "en") == "The LoRA will be a. Please try again."
    assert " " not in texts.render_all((Message("Use auto."), Message("Use auto.")), "zh_CN")


def test_a_sentence_inside_a_sentence_is_translated_too():
    inner = DatasetError("{name} has no caption", name="a.png")
    assert (
        texts.render(Message("this run cannot be read: {reason}", {"reason": inner}), "zh_CN")
        == "无法读取这次训练：a.png 没有标注"
    )


@pytest.mark.parametrize(
    ("preferences", "language"),
    [
        (("", "", ""), "en"),
        (("zh_CN",), "zh_CN"),
        (("zh-Hans (Stable)",), "zh_CN"),
        (("", "None", "zh-TW,zh;q=0.9"), "zh_CN"),
        (("fr", "", "de-DE,de;q=0.9,en;q=0.8"), "en"),
        (("en", "zh_CN"), "en"),
        (("../../etc",), "en"),
    ],
)
def test_the_first_preference_that_can_be_met_counts(preferences, language):
    assert texts.choose(*preferences) == language


def test_the_tables_are_in_order_so_that_two_branches_rarely_touch_one_line():
    for code in sources.codes():
        keys = list(json.loads(sources.file(code).read_text(encoding="utf-8")))
        assert keys == sorted(keys)


@pytest.mark.parametrize("language", ["en", "zh_CN"])
def test_a_sentence_that_its_values_do_not_fit_is_shown_as_it_stands(language):
    assert (
        texts.render(Message("{file} is {what}", {"file": "fox.png"}), language)
        == "{file} is {what}"
    )
    assert texts.render(Message("a { is open", {"file": "fox.png"}), language) == "A { is open"
