"""What the families say of themselves, and that each is found."""

import pytest

from lora_trainer import families
from lora_trainer.families.stable_diffusion import SD1, SD2


def test_families_are_found_by_their_ids():
    assert [family.id for family in families.every()] == [
        "anima",
        "flux",
        "klein4b",
        "klein9b",
        "sdxl",
        "sd1",
        "sd2",
        "zimage",
    ]
    assert families.get("sd1") is SD1
    assert families.find("sd9") is None and families.find(None) is None
    with pytest.raises(KeyError):
        families.get("sd9")


@pytest.mark.parametrize(
    ("version", "family"),
    [
        ("sd_v1", "sd1"),
        ("sd_v2_768_v", "sd2"),
        ("sdxl_base_v1-0", "sdxl"),
        ("flux1", "flux"),
        ("flux2", None),
        ("flux2_klein_4b", "klein4b"),
        ("flux-2-klein-base-9B", "klein9b"),
        ("", None),
    ],
)
def test_a_loras_metadata_names_its_family(version, family):
    found = families.of_metadata(version)
    assert (found.id if found else None) == family


@pytest.mark.parametrize("family", families.every(), ids=repr)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_a_family_writes_into_a_lora_is_read_as_its_own(family, kind):
    assert families.of_metadata(family.base_model_version(kind)) is family


def test_only_sd2s_size_follows_from_what_it_predicts():
    kinds = (None, "epsilon", "v_prediction")
    assert [SD2.native_resolution(kind) for kind in kinds] == [None, 512, 768]
    assert {SD1.native_resolution(kind) for kind in kinds} == {512}
    assert {family.id: family.largest_resolution for family in families.every()} == {
        "sd1": 512,
        "sd2": 768,
        "sdxl": 1024,
        "anima": 1024,
        "zimage": 1024,
        "flux": 1024,
        "klein4b": 1024,
        "klein9b": 1024,
    }


def test_encoded_images_and_captions_take_as_many_bytes_as_they_have_numbers():
    # 512 x 512 pixels: 8 x 64 x 64 numbers of 4 bytes; a caption: 77 x 2048 of them
    assert SD1.cache_bytes(512 * 512, 0, mirrored=False) == 131_072
    assert SD1.cache_bytes(512 * 512, 1, mirrored=True) == 262_144 + 630_784


@pytest.mark.parametrize(
    ("family", "repository"),
    [
        ("zimage", "Qwen/Qwen3-4B"),
        ("klein4b", "Qwen/Qwen3-4B"),
        ("klein9b", "Qwen/Qwen3-8B"),
        ("anima", "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_missing_tokenizer_is_asked_for_from_the_encoders_own_repository(family, repository):
    asked = []
    families.get(family).tokenizers_from(lambda kind: asked.append(kind) or kind)
    assert asked[0].repository == repository and "Qwen/Qwen3-0.6B" in (repository, *asked[0].alike)
