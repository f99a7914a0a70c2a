"""What a checkpoint's licence restricts, wherever it is stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_trainer.checkpoint.detect import detect
from lora_trainer.checkpoint.licence import RESTRICTIONS, Licence, named, read_licence
from tests.checkpoint.samples import full_shapes, header_of

FREE: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("name", "restrictions"),
    [
        ("CreativeML Open RAIL++-M License", FREE),
        ("creativeml-openrail-m", FREE),
        ("MIT", FREE),
        ("CC-BY-4.0", FREE),
        ("CC BY-NC 4.0", ("non-commercial",)),
        ("cc-by-nc-nd-4.0", ("non-commercial", "no-derivatives")),
        ("Attribution-NonCommercial-ShareAlike 4.0", ("non-commercial", "share-alike")),
        ("CC-BY-SA-4.0", ("share-alike",)),
        ("faipl-1.0-sd", ("share-alike",)),
        ("Fair AI Public License 1.0-SD", ("share-alike",)),
        ("sai-nc-community", ("non-commercial", "research")),
        (
            "STABILITY AI NON-COMMERCIAL RESEARCH COMMUNITY LICENSE AGREEMENT",
            ("non-commercial", "research"),
        ),
        ("stabilityai-ai-community", ("limited",)),
        ("playground-v2dot5-community", ("limited",)),
        ("Some Model Non-Commercial License", ("non-commercial",)),
        ("for research purposes", ("research",)),
        ("AGPL-3.0", ("share-alike",)),
    ],
)
def test_a_known_licence_has_its_restrictions(name: str, restrictions: tuple[str, ...]) -> None:
    assert named(name) == Licence(name=name, restrictions=restrictions)


def test_a_text_in_place_of_a_name_is_cut_and_nothing_is_no_licence() -> None:
    found = named("CC BY-NC\n4.0 \x1b[31m " + "and so on " * 100)
    assert found is not None and found.restrictions == ("non-commercial",)
    assert found.name.startswith("CC BY-NC 4.0 and so on") and len(found.name) <= 80
    assert named(" \n") is None


def test_every_restriction_is_a_sentence_about_the_checkpoint() -> None:
    licence = Licence(name="X-1.0", restrictions=tuple(RESTRICTIONS))
    sentences = [str(note) for note in licence.notes("ink")]
    assert sentences[0] == "ink is not for commercial use (X-1.0)"
    assert all("ink" in one and "(X-1.0)" in one for one in sentences)
    assert len(sentences) == len(RESTRICTIONS)


def test_the_metadata_of_a_file_states_it() -> None:
    header = header_of(full_shapes("sd1"), metadata={"modelspec.license": "cc-by-nc-4.0"})
    assert detect(header).licence == Licence(name="cc-by-nc-4.0", restrictions=("non-commercial",))
    assert detect(header_of(full_shapes("sd1"))).licence is None


@pytest.mark.parametrize(
    ("permissions", "restrictions"),
    [
        (
            {
                "allowCommercialUse": ["Image", "Sell"],
                "allowDerivatives": True,
                "allowDifferentLicense": True,
            },
            FREE,
        ),
        ({"allowCommercialUse": "None", "allowDerivatives": True}, ("non-commercial",)),
        (
            {
                "allowCommercialUse": [],
                "allowDerivatives": False,
                "allowDifferentLicense": False,
            },
            ("non-commercial", "no-derivatives", "share-alike"),
        ),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_civitais_permissions_beside_a_file_count(
    tmp_path: Path, permissions: dict[str, object], restrictions: tuple[str, ...], inside: bool
) -> None:
    content = {"id": 5, "model": permissions} if inside else permissions
    (tmp_path / "ink.civitai.info").write_text(json.dumps(content), encoding="utf-8")
    assert read_licence(tmp_path / "ink.safetensors", {}) == Licence(
        name="Civitai", restrictions=restrictions
    )


@pytest.mark.parametrize("content", ['{"model": {"name": "ink"}}', "[1]", "{", '{"model": 3}'])
def test_a_file_of_civitais_without_permissions_states_nothing(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "ink.civitai.info").write_text(content, encoding="utf-8")
    assert read_licence(tmp_path / "ink.safetensors", {}) is None


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: cc-by-nc-4.0\ntags: [a]\n---\n# Ink\n", "cc-by-nc-4.0"),
        (
            "---\nlicense: other\nlicense_name: sai-nc-community\n---\n",
            "sai-nc-community",
        ),
        ("---\nlicense: other\n---\n", "other"),
        ("# Ink\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("---\n- a list\n---\n", None),
    ],
)
def test_the_card_of_a_diffusers_folder_states_it(
    tmp_path: Path, card: str, name: str | None
) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    found = read_licence(tmp_path, {})
    assert (found and found.name) == name
