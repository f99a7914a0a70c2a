"""The packages the worker needs, their versions, and which an interpreter already has.

Each package has the exact version that we install, and a range of versions accepted from the
interpreter. The training libraries (diffusers, transformers, PEFT and what they are tied to) have
no range: the overlay always has exactly that version. The versions are tested together on torch
2.1, 2.3 and 2.13; each has wheels for Python 3.10 to 3.13 on Linux, Windows and macOS. Model
families that need newer training libraries have a set of their own, FAMILY_PACKAGES.

Called by `environment` at each start, so it is quick and imports none of the packages. Standard
library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution


@dataclass(frozen=True, kw_only=True)
class Package:
    """A distribution: the version we install, and those accepted from the interpreter."""

    name: str
    """As on the package index."""
    version: str
    """The exact version installed into the overlay."""
    at_least: str | None = None
    """Oldest version accepted from the interpreter. None: only `version` itself."""
    below: str | None = None
    """First version not accepted. None: no known limit."""
    modules: tuple[str, ...] = ()
    """Imported once after installing, to check that it works here."""
    files: tuple[str, ...] = ()
    """Data files read from it without an import, as `top_level_package/file`."""
    python_below: tuple[int, int] | None = None
    """Required only on Python versions below this one."""
    platform: str | None = None
    """Required only where sys.platform is this."""
    with_dependencies: bool = False
    """Let pip install its dependencies: torch's CUDA libraries depend on the platform."""
    megabytes: int = 2
    """Installed size, rounded up, for the check of free disk space."""

    @property
    def key(self) -> str:
        return normal_name(self.name)

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def applies(self) -> bool:
        """Whether this interpreter and platform need it."""
        if self.platform is not None and self.platform != sys.platform:
            return False
        return self.python_below is None or sys.version_info[:2] < self.python_below

    def accepts(self, version: str | None) -> bool:
        """Whether the interpreter's version is accepted."""
        if version is None:
            return False
        if self.at_least is None:
            return same_version(version, self.version)
        release = _release(version)
        return release >= _release(self.at_least) and (
            self.below is None or release < _release(self.below)
        )


TORCH = Package(
    name="torch",
    version="2.13.0",
    at_least="2.1",
    modules=("torch",),
    with_dependencies=True,
    megabytes=800,
)

WORKER_PACKAGES: tuple[Package, ...] = (
    TORCH,
    # always from the overlay
    Package(
        name="diffusers",
        version="0.35.2",
        megabytes=20,
        modules=(
            "diffusers.models.unets.unet_2d_condition",
            "diffusers.models.autoencoders.autoencoder_kl",
            "diffusers.loaders.lora_pipeline",
        ),
    ),
    Package(
        name="transformers",
        version="4.49.0",
        megabytes=50,
        modules=(
            "transformers.models.clip.modeling_clip",
            "transformers.models.clip.tokenization_clip",
        ),
    ),
    Package(name="tokenizers", version="0.21.4", modules=("tokenizers",), megabytes=10),
    Package(name="peft", version="0.17.1", modules=("peft",), megabytes=3),
    Package(name="accelerate", version="1.10.1", modules=("accelerate",)),
    Package(name="safetensors", version="0.5.3", modules=("safetensors.torch",)),
    Package(name="huggingface-hub", version="0.34.4", modules=("huggingface_hub",), megabytes=3),
    # from the interpreter, if it has an accepted version
    Package(
        name="numpy", version="2.2.6", at_least="1.23", below="3", modules=("numpy",), megabytes=65
    ),
    # AVIF since 11.3; pi-heif registers itself as its plugin
    Package(name="pillow", version="12.1.1", at_least="11.3", modules=("PIL.Image",), megabytes=20),
    # decodes HEIC; unlike pillow-heif's wheels it has no GPL encoder
    Package(name="pi-heif", version="1.4.0", at_least="1.0", modules=("pi_heif",), megabytes=6),
    # works with numpy 1 and 2
    Package(name="pandas", version="2.3.3", at_least="1.5", modules=("pandas",), megabytes=50),
    Package(name="python-dateutil", version="2.9.0.post0", at_least="2.8.2", modules=("dateutil",)),
    Package(name="six", version="1.17.0", at_least="1.5", modules=("six",)),
    Package(name="pytz", version="2025.2", at_least="2020.1", modules=("pytz",), megabytes=3),
    Package(name="tzdata", version="2025.3", at_least="2022.7", megabytes=3),
    Package(name="PyYAML", version="6.0.3", at_least="5.1", modules=("yaml",), megabytes=3),
    Package(name="psutil", version="7.1.3", at_least="5.6", modules=("psutil",)),
    Package(name="regex", version="2025.11.3", at_least="2021.1", modules=("regex",), megabytes=3),
    Package(name="ftfy", version="6.3.1", at_least="6.0", modules=("ftfy",)),
    Package(name="wcwidth", version="0.2.14", at_least="0.2.5", modules=("wcwidth",)),
    Package(name="requests", version="2.32.5", at_least="2.20", modules=("requests",)),
    Package(name="urllib3", version="2.6.3", at_least="1.21.1", modules=("urllib3",)),
    Package(name="idna", version="3.11", at_least="2.5", modules=("idna",)),
    Package(name="certifi", version="2026.1.4", at_least="2017.4.17", modules=("certifi",)),
    Package(
        name="charset-normalizer", version="3.4.4", at_least="2.0", modules=("charset_normalizer",)
    ),
    Package(name="tqdm", version="4.67.1", at_least="4.42.1", modules=("tqdm",)),
    Package(name="filelock", version="3.20.3", at_least="3.0", modules=("filelock",)),
    Package(name="fsspec", version="2025.12.0", at_least="2023.5.0", modules=("fsspec",)),
    Package(name="packaging", version="25.0", at_least="20.9", modules=("packaging.version",)),
    Package(
        name="typing-extensions", version="4.15.0", at_least="4.10", modules=("typing_extensions",)
    ),
    # Lion, Prodigy and schedule-free AdamW
    Package(name="pytorch-optimizer", version="4.1.0", modules=("pytorch_optimizer",), megabytes=4),
    # writes TensorBoard's event files
    Package(name="tensorboardX", version="2.6.4", at_least="2.6", modules=("tensorboardX",)),
    Package(name="protobuf", version="6.33.4", at_least="3.20", modules=("google.protobuf",)),
    # only for CLIP's vocabulary file: importing open_clip needs torchvision
    Package(
        name="open-clip-torch",
        version="3.2.0",
        at_least="2.0",
        files=("open_clip/bpe_simple_vocab_16e6.txt.gz",),
        megabytes=4,
    ),
)

TORCH_DEPENDENCIES: tuple[Package, ...] = (
    # torch's dependencies, pinned
    Package(name="sympy", version="1.14.0"),
    Package(name="mpmath", version="1.3.0"),
    Package(name="networkx", version="3.4.2"),
    Package(name="Jinja2", version="3.1.6"),
    Package(name="MarkupSafe", version="3.0.3"),
    Package(name="setuptools", version="80.9.0"),
)

FAMILY_PACKAGES: Mapping[str, tuple[Package, ...]] = {
    # Family.packages -> the training libraries in place of the worker's own, installed on first use
    "newer": (
        # never installed: these versions import from 2.6 on
        replace(TORCH, at_least="2.6", modules=()),
        # the last that transformers 4's huggingface-hub, below 1.0, satisfies
        Package(
            name="diffusers",
            version="0.39.0",
            megabytes=35,
            modules=(
                "diffusers.models.transformers.transformer_cosmos",
                "diffusers.models.autoencoders.autoencoder_kl",
                "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
                "diffusers.models.condition_embedders.condition_embedder_anima",
                "diffusers.models.unets.unet_2d_condition",
                "diffusers.loaders.lora_pipeline",
            ),
        ),
        Package(
            name="transformers",
            version="4.57.6",
            megabytes=55,
            modules=(
                "transformers.models.clip.modeling_clip",
                "transformers.models.qwen3.modeling_qwen3",
            ),
        ),
        Package(name="tokenizers", version="0.22.1", modules=("tokenizers",), megabytes=10),
        Package(name="peft", version="0.18.0", modules=("peft",), megabytes=3),
        Package(name="accelerate", version="1.12.0", modules=("accelerate",)),
        Package(name="safetensors", version="0.8.0", modules=("safetensors.torch",)),
        Package(
            name="huggingface-hub", version="0.36.2", modules=("huggingface_hub",), megabytes=3
        ),
    ),
}

CAPTIONER_PACKAGES: Mapping[str, tuple[Package, ...]] = {
    # captioner -> packages that only it needs, installed on first use
    "wd": (
        # the last with wheels for Python 3.10
        Package(
            name="onnxruntime",
            version="1.23.2",
            at_least="1.16",
            modules=("onnxruntime",),
            megabytes=60,
        ),
        next(package for package in WORKER_PACKAGES if package.name == "numpy"),
    )
}

TEST_PACKAGES: tuple[Package, ...] = (
    # with pytest 9.2, pytest-xdist 3.8 no longer keeps groups together
    Package(name="pytest", version="8.4.2", modules=("pytest",)),
    Package(name="pytest-timeout", version="2.4.0", modules=("pytest_timeout",)),
    Package(name="pytest-xdist", version="3.8.0", modules=("xdist",)),
    Package(name="execnet", version="2.1.2"),
    Package(name="iniconfig", version="2.3.1"),
    Package(name="pluggy", version="1.7.0"),
    Package(name="packaging", version="25.0", at_least="24"),
    Package(name="Pygments", version="2.21.0", megabytes=5),
    Package(name="exceptiongroup", version="1.3.1", python_below=(3, 11)),
    Package(name="tomli", version="2.4.0", python_below=(3, 11)),
    Package(name="colorama", version="0.4.6", platform="win32"),
    Package(name="onnxruntime", version="1.23.2", modules=("onnxruntime",), megabytes=60),
    Package(name="ruff", version="0.17.5", modules=("ruff",), megabytes=30),
    Package(name="mypy", version="2.4.1", modules=("mypy.api",), megabytes=60),
    Package(name="mypy-extensions", version="1.2.0"),
    Package(name="typing-extensions", version="4.15.0", at_least="4.10"),
    Package(name="pathspec", version="1.1.0"),
    Package(name="librt", version="0.16.0"),
    Package(name="ast-serialize", version="0.13.1", megabytes=3),
    Package(name="types-PyYAML", version="6.0.12.20261113"),
    Package(name="types-psutil", version="7.2.2.20261111"),
    Package(name="types-pytz", version="2025.2.0.20251108"),
    Package(name="pandas-stubs", version="2.3.3.260113"),
    # writes HEIC files for the tests
    Package(name="pillow-heif", version="1.4.0", megabytes=20),
    # for tests of the routes: Forge's versions (A1111's starlette is 0.26.1)
    Package(name="starlette", version="0.27.0", modules=("starlette.applications",)),
    Package(name="anyio", version="3.7.1"),
    Package(name="sniffio", version="1.3.1"),
    Package(name="httpx", version="0.24.1", modules=("httpx",)),
    Package(name="httpcore", version="0.17.3"),
    Package(name="h11", version="0.14.0"),
    Package(name="certifi", version="2026.1.4", at_least="2017.4.17"),
    Package(name="idna", version="3.11", at_least="2.8"),
    # for the browser tests
    Package(name="playwright", version="1.65.2", modules=("playwright.sync_api",), megabytes=165),
    Package(name="greenlet", version="3.5.6", modules=("greenlet",), megabytes=2),
)


def _pinned(requirements: str) -> tuple[Package, ...]:
    """`name==version` words -> packages."""
    pairs = (word.split("==") for word in requirements.split())
    return tuple(Package(name=name, version=version) for name, version in pairs)


_WITH_EITHER_GRADIO: tuple[Package, ...] = (
    # as in A1111 1.10.1 and Forge; unpinned ones in a version for Python 3.10 and 3.11
    *_pinned(
        "aiofiles==23.2.1 anyio==3.7.1 certifi==2026.1.4 charset-normalizer==3.4.4 click==8.3.1"
        " contourpy==1.3.2 cycler==0.12.1 ffmpy==1.0.0 filelock==3.20.3 fonttools==4.65.0"
        " fsspec==2025.12.0 h11==0.12.0 httpcore==0.15.0 httpx==0.24.1 idna==3.11 Jinja2==3.1.6"
        " kiwisolver==1.5.1 MarkupSafe==2.1.5 matplotlib==3.10.9 numpy==1.26.2 orjson==3.13.0"
        " packaging==25.0 psutil==5.9.5 pydub==0.25.1 pyparsing==3.3.3 python-dateutil==2.9.0.post0"
        " python-multipart==0.0.32 pytz==2025.2 PyYAML==6.0.3 requests==2.32.5"
        " semantic-version==2.10.0 six==1.17.0 sniffio==1.3.1 tqdm==4.67.1"
        " typing-extensions==4.15.0 tzdata==2025.3 urllib3==2.6.3"
    ),
    Package(name="exceptiongroup", version="1.3.1", python_below=(3, 11)),
    Package(name="pandas", version="2.3.3", modules=("pandas",), megabytes=50),
    Package(name="Pillow", version="9.5.0", modules=("PIL.Image",), megabytes=12),
)

WEBUI_PACKAGES: Mapping[str, tuple[Package, ...]] = {
    "a1111": (
        Package(
            name="gradio", version="3.41.2", modules=("gradio", "gradio.routes"), megabytes=260
        ),
        *_pinned(
            "altair==5.5.0 attrs==26.1.0 fastapi==0.94.0 gradio-client==0.5.0"
            " huggingface-hub==0.36.2 importlib-resources==6.5.2 jsonschema==4.26.0"
            " jsonschema-specifications==2025.9.1 narwhals==2.28.0 pydantic==1.10.27"
            " referencing==0.37.0 rpds-py==0.30.0 starlette==0.26.1 uvicorn==0.54.0"
            " websockets==11.0.3"
        ),
        *_WITH_EITHER_GRADIO,
    ),
    "forge": (
        Package(
            name="gradio", version="4.40.0", modules=("gradio", "gradio.routes"), megabytes=240
        ),
        *_pinned(
            "annotated-doc==0.0.6 annotated-types==0.8.0 fastapi==0.104.1 gradio-client==1.2.0"
            " huggingface-hub==0.26.2 importlib-resources==6.5.2 markdown-it-py==4.3.0 mdurl==0.1.2"
            " pydantic==2.8.2 pydantic-core==2.20.1 Pygments==2.21.0 rich==15.0.0"
            " shellingham==1.5.4 starlette==0.27.0 tomlkit==0.12.0 typer==0.29.1 uvicorn==0.54.0"
            " websockets==12.0"
        ),
        *_WITH_EITHER_GRADIO,
    ),
}
"""The tests' WebUI: the gradio of each of the two hosts, in separate folders."""


def found_versions(packages: Iterable[Package], folders: Sequence[str]) -> dict[str, str]:
    """The versions installed in `folders`: normalized name -> version. Reads metadata only, in
    import order.
    """
    found: dict[str, str] = {}
    for package in packages:
        version = _found_version(package.key, folders)
        if version is not None:
            found[package.key] = version
    return found


def missing_packages(packages: Iterable[Package], found: Mapping[str, str]) -> tuple[Package, ...]:
    """The packages that are not installed, or in a version that is not accepted."""
    return tuple(
        package
        for package in packages
        if package.applies() and not package.accepts(found.get(package.key))
    )


def normal_name(name: str) -> str:
    """A distribution's normalized name: `Open_Clip.torch` -> `open-clip-torch`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def same_version(one: str, other: str) -> bool:
    """Whether two versions are equal without their local part: 2.13.0+cpu is 2.13.0."""
    return one.split("+")[0] == other.split("+")[0]


def _found_version(name: str, folders: Sequence[str]) -> str | None:
    for distribution in Distribution.discover(name=name, path=list(folders)):
        # an interrupted uninstall leaves a folder without METADATA behind
        metadata = distribution.metadata
        if metadata and "Version" in metadata:
            return metadata["Version"]
    return None


def _release(version: str) -> tuple[int, ...]:
    """The release segment without trailing zeros: 2.10.0a0+git1b2c -> (2, 10)."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(number) for number in numbers.group().split(".")] if numbers else [0]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
