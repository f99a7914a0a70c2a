"""Author, licence and description in a LoRA file's metadata.

The keys are ModelSpec's and kohya's `ss_training_comment`, so that other trainers' files are read
too. Written by `metadata.build`; read by `describe`, `deliver` and the tab. Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

KEYS: Mapping[str, str] = {
    "author": "modelspec.author",
    "license": "modelspec.license",
    "description": "modelspec.description",
    "training_comment": "ss_training_comment",
}
"""Setting -> key of the metadata."""


@dataclass(frozen=True, kw_only=True)
class Credits:
    """Texts, empty where nothing is stated."""

    author: str = ""
    license: str = ""
    description: str = ""
    training_comment: str = ""

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Credits:
        """From a file's metadata. kohya writes "None" for an empty comment."""
        stated = {name: metadata.get(key, "").strip() for name, key in KEYS.items()}
        return cls(**{name: "" if text == "None" else text for name, text in stated.items()})

    def to_metadata(self) -> dict[str, str]:
        """Without empty texts."""
        return {
            KEYS[field.name]: text for field in fields(self) if (text := getattr(self, field.name))
        }

    def notes(self) -> str:
        """All but the description, as the notes of A1111's card."""
        lines = {
            "Author": self.author,
            "Licence": self.license,
            "Images": self.training_comment,
        }
        return "\n".join(f"{label}: {text}" for label, text in lines.items() if text)
