"""What a captioner says -> the text that is written into the dataset."""

from __future__ import annotations

from lora_trainer.captioning.captioner import CaptionerOutput, TagSettings
from lora_trainer.dataset.captions import tidy, with_trigger_word
from lora_trainer.dataset.edits import clean
from lora_trainer.settings.captioning import CaptionSettings


def postprocess(caption: CaptionerOutput, settings: CaptionSettings) -> str:
    """The caption as one line: without excluded tags, with prefix, suffix and trigger word. Empty
    when the captioner had nothing to say.

    It is as the file will hold it: what is recorded as a captioner's must be what is read back, or
    it would count as a person's change.
    """
    own = settings.own
    excluded = {_folded(tag) for tag in own.exclude} if isinstance(own, TagSettings) else set()
    said = caption.text or ", ".join(
        tag.text for tag in caption.tags if _folded(tag.text) not in excluded
    )
    # a model's marks that nobody sees are none of its words
    said = (
        tidy("".join(letter if letter.isprintable() else " " for letter in said)).strip(",").strip()
    )
    if not said:
        return ""
    text = said
    if settings.prefix.strip():
        text = _joined(settings.prefix.strip(), text)
    if settings.suffix.strip():
        text = _joined(
            text.rstrip(".") if settings.suffix.lstrip().startswith(",") else text,
            settings.suffix.strip(),
        )
    return clean(with_trigger_word(text, settings.trigger))


def _joined(front: str, back: str) -> str:
    """With a comma between, unless one of the two has its own sign there, or the front ends in a
    word that wants the next ("a photo of").
    """
    if front.endswith((",", ".", ":", ";", "，", "。")) or back.startswith((",", ".", "，", "。")):
        return f"{front}{'' if back[0] in ',.，。' else ' '}{back}"
    if front.split()[-1].casefold() in ("of", "a", "an", "the", "in", "by", "with", "showing"):
        return f"{front} {back}"
    return f"{front}, {back}"


def _folded(tag: str) -> str:
    return tag.replace("_", " ").strip().casefold()
