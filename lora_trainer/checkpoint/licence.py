"""A checkpoint's licence, and how it restricts what is made with the checkpoint.

Read from what belongs to the checkpoint, without torch, in this order:

    modelspec.license              in the metadata of a .safetensors file
    NAME.civitai.info              beside it: the permissions that downloaders save from Civitai
    README.md                      in a diffusers folder: the front matter of a Hugging Face card

The names of licences are those of Hugging Face's cards (hf.co/docs/hub/repositories-licenses) and
of the licences themselves. An unknown name has no known restriction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import ConfigError, Message
from lora_trainer.settings.schema import parse_yaml

CIVITAI_END = ".civitai.info"
MAX_NAME = 80
"""Characters of a stated licence that are kept: some files hold its whole text."""
MAX_CARD = 1 << 16
"""Characters of a model card that are read."""

RESTRICTIONS: Mapping[str, Message] = {
    "non-commercial": Message("{checkpoint} is not for commercial use ({licence})"),
    "limited": Message("{checkpoint} is free for commercial use up to a limit ({licence})"),
    "research": Message("{checkpoint} is for research only ({licence})"),
    "no-derivatives": Message("{checkpoint} must not be published in changed form ({licence})"),
    "share-alike": Message(
        "what is made from {checkpoint} may only be published under the same licence ({licence})"
    ),
}
"""Restriction -> its sentence, in the order of `Licence.restrictions`."""
HINT = Message("This may apply to the LoRA too. Read the licence before you publish it or sell.")

LICENCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"cc-by-nc-nd|noncommercial-noderiv", ("non-commercial", "no-derivatives")),
    (r"cc-by-nc-sa|noncommercial-sharealike", ("non-commercial", "share-alike")),
    (r"cc-by-nc|attribution-noncommercial", ("non-commercial",)),
    (r"cc-by-nd|attribution-noderiv", ("no-derivatives",)),
    (r"cc-by-sa|attribution-sharealike", ("share-alike",)),
    # Fair AI Public License: Animagine XL, Illustrious, NoobAI
    (r"faipl|fair-ai-public-license", ("share-alike",)),
    (r"a?gpl(-v?[0-9]|$)|gnu-(affero-)?general-public", ("share-alike",)),
    # SDXL Turbo, SD Turbo
    (r"sai-nc-community|noncommercial-research", ("non-commercial", "research")),
    # SD 3, and SDXL Turbo since 2024: free below a yearly revenue
    (r"stability-?ai-(ai-)?community|stability-community", ("limited",)),
    # Playground v2, v2.5: free below a number of users
    (r"playground-v2", ("limited",)),
    (r"noncommercial", ("non-commercial",)),
    (r"research-only|for-research|research-(purposes|licen[cs]e|use)", ("research",)),
    (r"noderiv|no-deriv", ("no-derivatives",)),
)
"""Part of a licence's name, in the form of `_normalized` -> its restrictions. The first counts."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A stated licence."""

    name: str
    restrictions: tuple[str, ...] = ()
    """Keys of `RESTRICTIONS`."""

    def notes(self, checkpoint: str) -> Iterator[Message]:
        """A sentence for each restriction."""
        for restriction in self.restrictions:
            template = RESTRICTIONS[restriction].template
            yield Message(template, {"checkpoint": checkpoint, "licence": self.name})


def named(name: str) -> Licence | None:
    """The licence of this name; None for an empty one."""
    words = (word for word in name.split() if word.isprintable())
    short = " ".join(words)[:MAX_NAME].strip()
    normal = _normalized(short)
    found = next((its for pattern, its in LICENCES if re.search(pattern, normal)), ())
    return Licence(name=short, restrictions=found) if short else None


def read_licence(path: Path, metadata: Mapping[str, str]) -> Licence | None:
    """The licence of a checkpoint file with this metadata, or of a diffusers folder. None if
    nothing readable states one.
    """
    if path.is_dir():
        return named(_of_card(path / "README.md"))
    return named(metadata.get("modelspec.license", "")) or _of_civitai(path)


def companions(path: Path) -> tuple[Path, ...]:
    """The files besides the checkpoint's own that may state its licence."""
    return (path / "README.md",) if path.is_dir() else (path.with_suffix(CIVITAI_END),)


def _normalized(name: str) -> str:
    """Lower case, words separated by hyphens, and the spellings of non-commercial alike."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return re.sub(r"non-commercial", "noncommercial", text.replace("share-alike", "sharealike"))


def _of_civitai(path: Path) -> Licence | None:
    """Civitai's permissions: `allowCommercialUse` is a list of Image, RentCivit, Rent and Sell;
    older files have one of them, or "None".
    """

    def parse(content: Any) -> Licence | None:
        model = content["model"] if "allowCommercialUse" in content.get("model", {}) else content
        uses = model["allowCommercialUse"]
        allowed = set([uses] if isinstance(uses, str) else uses) - {"None"}
        restrictions = {
            "non-commercial": not allowed,
            "no-derivatives": model.get("allowDerivatives") is False,
            "share-alike": model.get("allowDifferentLicense") is False,
        }
        return Licence(
            name="Civitai",
            restrictions=tuple(key for key, applies in restrictions.items() if applies),
        )

    return files.read_json(path.with_suffix(CIVITAI_END), parse, None)


def _of_card(card: Path) -> str:
    """The licence in a model card's front matter: `license`, or `license_name` if that is
    "other".
    """
    if not card.is_file():
        return ""
    try:
        with card.open(encoding="utf-8-sig") as stream:
            _, front, _ = stream.read(MAX_CARD).split("---", 2)
        values = parse_yaml(front, card)
        name = values["license"]
        return str(values.get("license_name") or name) if name == "other" else str(name)
    except (ConfigError, *files.UNREADABLE):
        return ""
