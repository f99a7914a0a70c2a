from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lora_trainer import packages
from lora_trainer.packages import Package, found_versions, missing_packages
from tests.wheels import make_wheel, unpack


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("2.1.2+cu121", True),
        ("2.1", True),
        ("2.1.0", True),
        ("2.0.1", False),
        ("2.10.0a0+git1b2c", True),
        ("13.0", True),
        ("", False),
        (None, False),
        ("dev", False),
    ],
)
def test_a_version_is_compared_by_its_numbers(version: str | None, accepted: bool) -> None:
    assert Package(name="torch", version="2.13.0", at_least="2.1").accepts(version) is accepted


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("1.26.2", True), ("2.4.6", True), ("1.22.4", False), ("3.0.0", False), ("3.0.0rc1", False)],
)
def test_a_range_has_two_ends(version: str, accepted: bool) -> None:
    assert (
        Package(name="numpy", version="2.2.6", at_least="1.23", below="3").accepts(version)
        is accepted
    )


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("4.49.0", True), ("4.49.0+local", True), ("4.48.1", False), ("4.50.0", False)],
)
def test_without_a_range_only_our_own_version_is_accepted(version: str, accepted: bool) -> None:
    assert Package(name="transformers", version="4.49.0").accepts(version) is accepted


def test_what_is_found_is_what_would_be_imported(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    unpack(make_wheel(tmp_path, "open_clip_torch", "2.20.0", {}), first)
    unpack(make_wheel(tmp_path, "open_clip_torch", "3.0.0", {}), second)
    unpack(make_wheel(tmp_path, "PyYAML", "6.0.1", {}), second)
    wanted = [
        Package(name="open-clip-torch", version="3.2.0"),
        Package(name="pyyaml", version="6.0.3"),
        Package(name="numpy", version="2.2.6"),
    ]
    assert found_versions(wanted, [str(first), str(second)]) == {
        "open-clip-torch": "2.20.0",
        "pyyaml": "6.0.1",
    }


def test_the_remains_of_an_interrupted_uninstall_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "numpy-1.26.2.dist-info").mkdir()
    assert found_versions([Package(name="numpy", version="2.2.6")], [str(tmp_path)]) == {}


def test_missing_is_what_is_absent_or_does_not_do() -> None:
    kept = Package(name="numpy", version="2.2.6", at_least="1.23", below="3")
    replaced = Package(name="transformers", version="4.49.0")
    absent = Package(name="peft", version="0.17.1")
    elsewhere = Package(name="colorama", version="0.4.6", platform="another system")
    outgrown = Package(name="tomli", version="2.4.0", python_below=sys.version_info[:2])
    found = {"numpy": "1.26.2", "transformers": "4.30.2"}
    assert missing_packages([kept, replaced, absent, elsewhere, outgrown], found) == (
        replaced,
        absent,
    )


@pytest.mark.parametrize(
    ("host", "versions"),
    [
        (
            "A1111 1.10.1",
            {
                "torch": "2.1.2+cu121",
                "numpy": "1.26.2",
                "pillow": "9.5.0",
                "transformers": "4.30.2",
                "accelerate": "0.21.0",
            },
        ),
        (
            "Forge",
            {
                "torch": "2.3.1+cu121",
                "numpy": "1.26.2",
                "pillow": "9.5.0",
                "transformers": "4.46.1",
                "diffusers": "0.31.0",
                "peft": "0.13.2",
            },
        ),
        (
            "reForge",
            {
                "torch": "2.9.0+cu128",
                "numpy": "1.26.4",
                "pillow": "10.4.0",
                "transformers": "4.48.1",
                "diffusers": "0.32.2",
            },
        ),
    ],
)
def test_a_host_keeps_its_torch_and_numpy_and_gets_our_training_libraries(
    host: str, versions: dict[str, str]
) -> None:
    missing = {package.name for package in missing_packages(packages.WORKER_PACKAGES, versions)}
    assert not missing & {"torch", "numpy"}
    # their Pillow reads neither HEIC nor AVIF
    assert missing >= {
        "pillow",
        "pi-heif",
        "diffusers",
        "transformers",
        "tokenizers",
        "peft",
        "accelerate",
        "safetensors",
        "huggingface-hub",
    }


def test_every_package_is_pinned_to_one_exact_version_and_named_once() -> None:
    for group in (
        packages.WORKER_PACKAGES + packages.TORCH_DEPENDENCIES,
        packages.TEST_PACKAGES,
        *packages.WEBUI_PACKAGES.values(),
    ):
        assert all(re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", package.version) for package in group)
        assert len({package.key for package in group}) == len(group)
        assert all(
            package.at_least is None or package.accepts(package.version) for package in group
        )
