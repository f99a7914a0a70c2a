"""What a caption job is: its settings, and the captioners there are. The file `caption.yaml` of its
run folder holds the settings.

    CAPTIONERS          name -> Captioner: what the tab and the command line offer, without loading
                        anything
    read(path)          -> CaptionSettings, checked; raises one ConfigError that lists everything
                        wrong
    from_mapping(dict)  -> CaptionSettings
    to_yaml(settings)   -> the text of caption.yaml
    fingerprint(settings) -> equal for settings that give equal captions

Needs PyYAML only; used by both processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lora_trainer.errors import ConfigError
from lora_trainer.settings import schema
from lora_trainer.settings.schema import Settings, device_problems, setting

CaptionerName = Literal["blip-large", "blip", "qwen", "clip", "wd"]
CaptionFormat = Literal["auto", "csv", "txt", "jsonl"]


@dataclass(frozen=True, kw_only=True)
class CaptionerInfo:
    """One captioner, as it is offered. Sizes are those of the model named; with another model they
    are another's.
    """

    name: CaptionerName
    title: str
    sentence: str
    """What it writes, in one sentence."""
    model: str
    """Its model's id on the hub."""
    download_bytes: int
    memory_bytes: int
    """Of the card's memory, about, with the default batch."""
    licence: str
    batch_size: int
    """Images at once, unless the settings say so."""
    writes: Literal["sentences", "tags"]
    needs: str = ""
    """What must be installed for it besides the worker's packages: a key of
    packages.CAPTIONER_PACKAGES, or nothing.
    """
    fp16_is_safe: bool = True
    """Whether its numbers stay within fp16's range; where not, bf16 is used, or float32."""


CAPTIONERS: Mapping[str, CaptionerInfo] = {
    info.name: info
    for info in (
        CaptionerInfo(
            name="blip-large",
            title="BLIP large",
            sentence="Writes one short, dry sentence: what is there and where.",
            model="Salesforce/blip-image-captioning-large",
            download_bytes=1_880_000_000,
            memory_bytes=2_000_000_000,
            licence="BSD-3-Clause",
            batch_size=8,
            writes="sentences",
        ),
        CaptionerInfo(
            name="blip",
            title="BLIP base",
            sentence=(
                "The same in a few words, quick on a processor too; the WebUI's own interrogator"
                " uses it."
            ),
            model="Salesforce/blip-image-captioning-base",
            download_bytes=990_000_000,
            memory_bytes=1_500_000_000,
            licence="BSD-3-Clause",
            batch_size=8,
            writes="sentences",
        ),
        CaptionerInfo(
            name="qwen",
            title="Qwen2-VL 2B",
            sentence=(
                "Writes a full sentence on subject, action, clothing, scene, style, light and"
                " colour."
            ),
            model="Qwen/Qwen2-VL-2B-Instruct",
            download_bytes=4_430_000_000,
            memory_bytes=6_500_000_000,
            licence="Apache-2.0",
            batch_size=4,
            writes="sentences",
            fp16_is_safe=False,
        ),
        CaptionerInfo(
            name="clip",
            title="CLIP with a vocabulary",
            sentence=(
                "Picks what fits from a list of words, so that all captions use the same ones."
            ),
            model="openai/clip-vit-large-patch14",
            download_bytes=1_710_000_000,
            memory_bytes=1_500_000_000,
            licence="MIT",
            batch_size=16,
            writes="tags",
        ),
        CaptionerInfo(
            name="wd",
            title="WD tagger v3",
            sentence="Writes Danbooru tags, for drawings and anime, characters by name included.",
            model="SmilingWolf/wd-swinv2-tagger-v3",
            download_bytes=467_000_000,
            memory_bytes=1_500_000_000,
            licence="Apache-2.0",
            batch_size=8,
            writes="tags",
            needs="wd",
        ),
    )
}

HOST_BLIP = "BLIP/model_base_caption_capfilt_large.pth"
"""In a WebUI's models folder: BLIP base, in Salesforce's own format, as its interrogator fetched
it.
"""

DEFAULT_INSTRUCTION = (
    "Describe this picture in one or two plain English sentences of at most 50 words: the subject,"
    " what it does, its clothing or features, the scene, the style, the light and the colours. Say"
    ' only what is to be seen. Do not begin with words such as "The image shows".'
)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(Settings):
    """Captioning"""

    input: Path = setting()
    """The folder with your images; folders in it are looked through too."""
    output: Path | None = setting(None)
    """The metadata.csv or .jsonl the captions go into; what else is in it stays. auto: the one in
    the folder, or a new metadata.csv there.
    """
    format: CaptionFormat = setting("auto")
    """csv, jsonl, or txt: a text file beside each image. auto: as output's name says."""
    captioner: CaptionerName = setting(
        "blip-large", hint="`python -m lora_trainer caption --help` says what each does."
    )
    """Who writes: blip-large, blip, qwen (sentences), clip, wd (tags)."""
    model: str = setting("")
    """Another model of the same kind: an id on the hub, or a folder. Empty: the captioner's own."""
    prefix: str = setting("")
    """Put in front of each caption."""
    suffix: str = setting("")
    """Put at the end of each caption."""
    trigger: str = setting("")
    """The trigger word: put in front of each caption, the prefix included, unless the caption holds
    it.
    """
    only: tuple[str, ...] = setting(())
    """Caption only these images, named as they lie in input (portraits/fox.png). Empty: all."""
    only_missing: bool = setting(False)
    """Caption only images that have no caption at all. Off: what a captioner wrote with other
    settings is written anew.
    """
    overwrite: bool = setting(False)
    """Also replace captions that a person wrote or changed."""
    threshold: float | None = setting(
        None, at_least=0.0, at_most=1.0, hint="0.35 is usual for wd, 0.2 for clip."
    )
    """clip, wd: tags less sure than this are left out. auto: 0.35 for wd, 0.2 for clip."""
    character_threshold: float = setting(0.85, at_least=0.0, at_most=1.0)
    """wd: the same for names of characters, where a wrong one does more harm."""
    exclude: tuple[str, ...] = setting(())
    """clip, wd: tags never to be written."""
    vocabulary: Path | None = setting(None)
    """clip: a text file with one word or phrase a line, [headings] between groups. auto: the one
    that comes with the trainer.
    """
    top_k: int | None = setting(None, at_least=1, at_most=1000)
    """clip: at most so many from each group; wd: at most so many in all. auto: 2 for clip, no limit
    for wd.
    """
    instruction: str = setting("", advanced=True)
    """qwen: what the model is asked. Empty: a sentence or two on subject, action, clothing, scene,
    style, light and colour.
    """
    max_tokens: int = setting(75, at_least=5, at_most=500, advanced=True)
    """blip, qwen: longest caption in the model's tokens. The WebUI's text encoder takes 75 at once.
    """
    batch_size: int | None = setting(None, at_least=1, at_most=256, advanced=True)
    """Images at once. auto: as the captioner suggests; halved when memory runs out."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting("auto", advanced=True)
    """Number format of the model. auto: 16 bits where they are quick and safe."""
    device: str = setting("auto", advanced=True)
    """auto, cuda, cuda:1, mps or cpu."""
    host_models: Path | None = setting(None, advanced=True)
    """The WebUI's models folder, whose own BLIP is used where it is there. auto: that of the WebUI
    this extension lies in.
    """

    def contradictions(self) -> Iterator[ConfigError]:
        if self.only_missing and self.overwrite:
            yield ConfigError(
                "only_missing and overwrite contradict each other", hint="Give one of them."
            )
        if self.output is not None and self.format == "txt":
            hint = "Leave output out: each text file lies beside its image."
            yield ConfigError(
                "format is txt, but output is {output}", hint=hint, output=self.output
            )
        suffixes = {
            "csv": (".csv", ".tsv"),
            "jsonl": (".jsonl", ".ndjson"),
            "auto": (".csv", ".tsv", ".jsonl", ".ndjson"),
        }
        if (
            self.output is not None
            and self.format != "txt"
            and self.output.suffix.lower() not in suffixes[self.format]
        ):
            hint = (
                "Give a file such as metadata.csv or metadata.jsonl; for text files beside the"
                " images, leave output out and set format to txt."
            )
            ends = " or ".join(suffixes[self.format])
            yield ConfigError(
                "output {output} does not end in {ends}", hint=hint, output=self.output, ends=ends
            )
        yield from device_problems(self.device)

    @property
    def info(self) -> CaptionerInfo:
        return CAPTIONERS[self.captioner]

    @property
    def model_name(self) -> str:
        """The hub id or folder asked for."""
        return self.model or self.info.model


GROUPS: tuple[tuple[str, type[Settings]], ...] = (("captioning", CaptionSettings),)

WRITTEN_BY: Mapping[str, tuple[str, ...]] = {
    "sentences": ("max_tokens",),
    "qwen": ("instruction",),
    "tags": ("threshold", "exclude", "top_k"),
    "wd": ("character_threshold",),
    "clip": ("vocabulary",),
}
"""Captioner or kind of captioner -> the settings that its captions depend on, besides captioner,
model, prefix, suffix and trigger.
"""


def read(path: Path) -> CaptionSettings:
    """The settings in a caption.yaml. Raises ConfigError with every problem in it."""
    return from_mapping(schema.read_mapping(path), source=str(path))


def from_mapping(
    values: Mapping[str, Any], source: str = "the settings", base: Path | None = None
) -> CaptionSettings:
    """Keys -> CaptionSettings. Relative paths are resolved against `base` (the working directory).
    Raises one ConfigError with all problems.
    """
    return cast(
        "CaptionSettings", schema.groups_from_mapping(GROUPS, values, source, base)["captioning"]
    )


def to_yaml(settings: CaptionSettings) -> str:
    return schema.dump(schema.group_to_mapping(settings))


def fingerprint(settings: CaptionSettings, vocabulary: str = "") -> str:
    """The captioner's name and a hash of all that its captions depend on; `vocabulary`: the text of
    the file, where there is one.

    Equal for settings that give equal captions: what is recorded with this is not captioned again.
    """
    info = settings.info
    keys = (
        "model_name",
        "prefix",
        "suffix",
        "trigger",
        *WRITTEN_BY[info.writes],
        *WRITTEN_BY.get(info.name, ()),
    )
    values = {key: str(getattr(settings, key)) for key in keys if key != "vocabulary"}
    recipe = json.dumps([values, vocabulary], sort_keys=True, ensure_ascii=False)
    return f"{info.name} {hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
