"""The settings of a caption job: common ones, and those of the chosen captioner, under flat keys in
`caption.yaml`.

    read(path)          -> CaptionSettings, validated; raises one ConfigError with every problem
    from_mapping(dict)  -> CaptionSettings
    to_yaml(settings)   -> the content of caption.yaml
    option_groups()     -> the groups of settings for the command line
    fingerprint(settings) -> equal for settings that give equal captions

A captioner's own settings are in its module in captioning/captioners/. Used by both processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lora_trainer.captioning import captioners
from lora_trainer.captioning.captioner import CaptionerInfo, NoSettings
from lora_trainer.errors import ConfigError
from lora_trainer.settings import schema
from lora_trainer.settings.schema import NamedChoice, ProperName, Settings, device_problems, setting

CaptionFormat = Literal["auto", "csv", "txt", "jsonl"]
DEFAULT_CAPTIONER = "blip-large"


def _captioner_choices() -> dict[str, NamedChoice]:
    return {
        name: NamedChoice(title=info.title, sentence=info.sentence)
        for name, info in captioners.every().items()
    }


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(Settings):
    """Captioning"""

    input: Path = setting(label="Image folder", audience="elsewhere")
    """The folder with your images; folders in it are looked through too."""
    output: Path | None = setting(None, label="Caption table", audience="elsewhere")
    """The metadata.csv or .jsonl to write the captions to; its other content is kept. auto: the one
    in the folder, or a new metadata.csv there.
    """
    format: CaptionFormat = setting("auto", label="Caption format", audience="elsewhere")
    """csv, jsonl, or txt: a text file per image. auto: from output's suffix."""
    captioner: str = setting(
        DEFAULT_CAPTIONER,
        label="Captioner",
        audience="elsewhere",
        among=_captioner_choices,
        hint="`python -m lora_trainer caption --help` describes each.",
    )
    """The captioner."""
    prefix: str = setting("", label="Caption prefix", audience="everyone")
    """Added in front of each caption."""
    suffix: str = setting("", label="Caption suffix", audience="everyone")
    """Added at the end of each caption."""
    trigger: str = setting("", label="Trigger word", audience="elsewhere")
    """The trigger word: added in front of each caption and its prefix, unless the caption contains
    it.
    """
    only: tuple[str, ...] = setting((), label="Only these", audience="elsewhere", entry="names")
    """Caption only these images, by their path in input (portraits/fox.png). Empty: all."""
    only_missing: bool = setting(False, label="Only missing", audience="elsewhere")
    """Caption only images without any caption. Off: captions that a captioner wrote with other
    settings are written again.
    """
    overwrite: bool = setting(False, label="Overwrite", audience="elsewhere")
    """Also replace captions written or edited by a person."""
    batch_size: int | None = setting(None, label="Batch size", bounds=(1, 256))
    """Images per batch. auto: the captioner's default; halved when memory runs out."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto", label="Mixed precision", choices={"no": ProperName("float32")}
    )
    """Data type of the model. auto: 16 bits where that is fast and safe."""
    model: str = setting("", label="Another model", audience="local")
    """Another model of the same kind: an id on the hub, or a folder. Empty: the captioner's
    default.
    """
    device: str = setting("auto", label="Device", audience="elsewhere")
    """The device: auto, cuda (an NVIDIA card), cuda:1 (the second one), mps (a Mac) or cpu."""
    devices: str = setting(
        "auto",
        label="Graphics cards",
        choices={"auto": "one card", "all": "all of this machine"},
        hint="Use auto, all, or numbers of cards such as 0,1.",
    )
    """Captions on several graphics cards of this machine at once, each with its share of the
    images: all, or those with these numbers, as in 0,1. auto: one.
    """
    host_models: Path | None = setting(None, label="Models folder", audience="elsewhere")
    """The WebUI's models folder, whose BLIP is used if present. auto: that of the WebUI this
    extension is installed in.
    """
    own: Settings = dataclasses.field(default_factory=NoSettings)
    """The chosen captioner's own settings."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.only_missing and self.overwrite:
            yield ConfigError(
                "only_missing and overwrite contradict each other", hint="Give one of them."
            )
        if self.output is not None and self.format == "txt":
            hint = "Leave output out: each text file is written beside its image."
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
        yield from device_problems(self.device, self.devices)

    @property
    def info(self) -> CaptionerInfo:
        return captioners.every()[self.captioner]

    @property
    def model_name(self) -> str:
        """The hub id or folder of the model."""
        return self.model or self.info.model


def read(path: Path) -> CaptionSettings:
    """The settings in a caption.yaml. Raises ConfigError with every problem."""
    return from_mapping(schema.read_mapping(path), source=str(path))


def from_mapping(
    values: Mapping[str, Any], source: str = "the settings", base: Path | None = None
) -> CaptionSettings:
    """Keys -> CaptionSettings. Relative paths are resolved against `base` (default: the working
    directory). Other captioners' settings are validated and dropped. Raises ConfigError with every
    problem.
    """
    made = schema.groups_from_mapping(groups(values), values, source, base)
    settings = cast("CaptionSettings", made["captioning"])
    return dataclasses.replace(settings, own=made[settings.captioner])


def groups(values: Mapping[str, Any]) -> tuple[tuple[str, type[Settings]], ...]:
    """The groups of a caption job's keys: common ones, the chosen captioner's, then the others'."""
    chosen = str(values.get("captioner", DEFAULT_CAPTIONER)).strip().lower()
    every = sorted(captioners.every().values(), key=lambda info: info.name != chosen)
    return (("captioning", CaptionSettings), *((info.name, info.settings) for info in every))


def option_groups() -> tuple[tuple[str, type[Settings]], ...]:
    """The groups for schema.add_options, with the captioners' names."""
    every = captioners.every().values()
    return (("", CaptionSettings), *((info.name, info.settings) for info in every))


def to_yaml(settings: CaptionSettings) -> str:
    return schema.dump(
        {**schema.group_to_mapping(settings), **schema.group_to_mapping(settings.own)}
    )


def fingerprint(settings: CaptionSettings, content: str = "") -> str:
    """The captioner's name and a hash of all that its captions depend on; `content`: that of files
    named in its settings.

    Images with an equal recorded fingerprint are not captioned again.
    """
    info = settings.info
    values = {
        key: str(getattr(settings, key)) for key in ("model_name", "prefix", "suffix", "trigger")
    }
    for item in schema.fields_of(settings.own):
        # files count by their content
        if schema.kind_of(type(settings.own), item)[0] is not Path:
            values[item.name] = str(getattr(settings.own, item.name))
    recipe = json.dumps([values, content], sort_keys=True, ensure_ascii=False)
    return f"{info.name} {hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
