"""What a caption job is: the settings that every captioner has, and those of the chosen one. The
file `caption.yaml` of its run folder holds both, under flat keys.

    read(path)          -> CaptionSettings, checked; raises one ConfigError that lists everything
                        wrong
    from_mapping(dict)  -> CaptionSettings
    to_yaml(settings)   -> the text of caption.yaml
    option_groups()     -> the groups of settings as the command line offers them
    fingerprint(settings) -> equal for settings that give equal captions

What a captioner is, and its own settings, stands in its module in captioning/captioners/. Used by
both processes.
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
USUAL = "blip-large"


def _captioners_in_words() -> dict[str, NamedChoice]:
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
    """The metadata.csv or .jsonl the captions go into; what else is in it stays. auto: the one in
    the folder, or a new metadata.csv there.
    """
    format: CaptionFormat = setting("auto", label="Caption format", audience="elsewhere")
    """csv, jsonl, or txt: a text file beside each image. auto: as output's name says."""
    captioner: str = setting(
        USUAL,
        label="Captioner",
        audience="elsewhere",
        among=_captioners_in_words,
        hint="`python -m lora_trainer caption --help` says what each does.",
    )
    """Who writes."""
    prefix: str = setting("", label="Caption prefix", audience="everyone")
    """Put in front of each caption."""
    suffix: str = setting("", label="Caption suffix", audience="everyone")
    """Put at the end of each caption."""
    trigger: str = setting("", label="Trigger word", audience="elsewhere")
    """The trigger word: put in front of each caption, the prefix included, unless the caption holds
    it.
    """
    only: tuple[str, ...] = setting((), label="Only these", audience="elsewhere", entry="names")
    """Caption only these images, named as they lie in input (portraits/fox.png). Empty: all."""
    only_missing: bool = setting(False, label="Only missing", audience="elsewhere")
    """Caption only images that have no caption at all. Off: what a captioner wrote with other
    settings is written anew.
    """
    overwrite: bool = setting(False, label="Overwrite", audience="elsewhere")
    """Also replace captions that a person wrote or changed."""
    batch_size: int | None = setting(None, label="Batch size", at_least=1, at_most=256)
    """Images at once. auto: as the captioner suggests; halved when memory runs out."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto", label="Mixed precision", choices={"no": ProperName("float32")}
    )
    """Number format of the model. auto: 16 bits where they are quick and safe."""
    model: str = setting("", label="Another model", audience="local")
    """Another model of the same kind: an id on the hub, or a folder. Empty: the captioner's own."""
    device: str = setting("auto", label="Device", audience="elsewhere")
    """What computes: auto, cuda (an NVIDIA card), cuda:1 (the second one), mps (a Mac) or cpu."""
    host_models: Path | None = setting(None, label="Models folder", audience="elsewhere")
    """The WebUI's models folder, whose own BLIP is used where it is there. auto: that of the WebUI
    this extension lies in.
    """
    own: Settings = dataclasses.field(default_factory=NoSettings)
    """The settings that only this captioner, and those of its kind, have."""

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
        return captioners.every()[self.captioner]

    @property
    def model_name(self) -> str:
        """The hub id or folder asked for."""
        return self.model or self.info.model


def read(path: Path) -> CaptionSettings:
    """The settings in a caption.yaml. Raises ConfigError with every problem in it."""
    return from_mapping(schema.read_mapping(path), source=str(path))


def from_mapping(
    values: Mapping[str, Any], source: str = "the settings", base: Path | None = None
) -> CaptionSettings:
    """Keys -> CaptionSettings. Relative paths are resolved against `base` (the working directory).
    What is set for another captioner is checked, and left out. Raises one ConfigError with all
    problems.
    """
    made = schema.groups_from_mapping(groups(values), values, source, base)
    settings = cast("CaptionSettings", made["captioning"])
    return dataclasses.replace(settings, own=made[settings.captioner])


def groups(values: Mapping[str, Any]) -> tuple[tuple[str, type[Settings]], ...]:
    """The groups that the keys of a caption job belong to: those that every captioner has, the
    chosen one's, and then the others', whose keys may differ in meaning.
    """
    chosen = str(values.get("captioner", USUAL)).strip().lower()
    every = sorted(captioners.every().values(), key=lambda info: info.name != chosen)
    return (("captioning", CaptionSettings), *((info.name, info.settings) for info in every))


def option_groups() -> tuple[tuple[str, type[Settings]], ...]:
    """The groups for schema.add_options: every captioner's has its name."""
    every = captioners.every().values()
    return (("", CaptionSettings), *((info.name, info.settings) for info in every))


def to_yaml(settings: CaptionSettings) -> str:
    return schema.dump(
        {**schema.group_to_mapping(settings), **schema.group_to_mapping(settings.own)}
    )


def fingerprint(settings: CaptionSettings, content: str = "") -> str:
    """The captioner's name and a hash of all that its captions depend on; `content`: that of the
    files its settings name, where there are any.

    Equal for settings that give equal captions: what is recorded with this is not captioned again.
    """
    info = settings.info
    values = {
        key: str(getattr(settings, key)) for key in ("model_name", "prefix", "suffix", "trigger")
    }
    for item in schema.fields_of(settings.own):
        # a file counts by its content
        if schema.kind_of(type(settings.own), item)[0] is not Path:
            values[item.name] = str(getattr(settings.own, item.name))
    recipe = json.dumps([values, content], sort_keys=True, ensure_ascii=False)
    return f"{info.name} {hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
