"""A captioner's output -> the text for the dataset."""

from __future__ import annotations

from lora_trainer.captioning.captioner import CaptionerOutput, TagSettings
from lora_trainer.dataset.captions import tidy, with_trigger_word
from lora_trainer.dataset.edits import clean
from lora_trainer.settings.captioning import CaptionSettings


def postprocess(caption: CaptionerOutput, settings: CaptionSettings) -> str:
    """The caption as one line: without excluded tags, with prefix, suffix and trigger word; empty
    if there is none.

    It must equal what is read back from the file, or it would count as edited by a person.
    """
    own = settings.own
    excluded = {_folded(tag) for tag in own.exclude} if isinstance(own, TagSettings) else set()
    text = caption.text or ", ".join(
        tag.text for tag in caption.tags if _folded(tag.text) not in excluded
    )
    # remove control and invisible characters
    text = (
        tidy("".join(letter if letter.isprintable() else " " for letter in text)).strip(",").strip()
    )
    if not text:
        return ""
    if settings.prefix.strip():
        text = _joined(settings.prefix.strip(), text)
    if settings.suffix.strip():
        text = _joined(
            text.rstrip(".") if settings.suffix.lstrip().startswith(",") else text,
            settings.suffix.strip(),
        )
    return clean(with_trigger_word(text, settings.trigger))


def _joined(front: str, back: str) -> str:
    """Joined with a comma, unless there is punctuation, or `front` ends with a word such as
    "of".
    """
    if front.endswith((",", ".", ":", ";", "，", "。")) or back.startswith((",", ".", "，", "。")):
        return f"{front}{'' if back[0] in ',.，。' else ' '}{back}"
    if front.split()[-1].casefold() in ("of", "a", "an", "the", "in", "by", "with", "showing"):
        return f"{front} {back}"
    return f"{front}, {back}"


def _folded(tag: str) -> str:
    return tag.replace("_", " ").strip().casefold()
