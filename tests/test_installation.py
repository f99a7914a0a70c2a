"""The installer's functions, driven with tiny wheels: by the real pip where that is the point, else
by a quick stand-in. Offline.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path

import pytest

from lora_trainer import environment, installation, packages
from lora_trainer.environment import Overlay
from lora_trainer.errors import SetupError
from lora_trainer.packages import TORCH_DEPENDENCIES, Package
from tests.wheels import listing, make_wheel, make_wheels, quick_pip, unpack

TRAINER = Package(name="trainer", version="1.0", modules=("trainer.core",))
NUMBERS = Package(
    name="numbers-lib", version="2.2", at_least="1.0", below="3", modules=("numbers_lib",)
)
WANTED = (TRAINER, NUMBERS)
UPDATED = (replace(TRAINER, version="1.1"),)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return make_wheels(tmp_path / "wheels", WANTED)


@pytest.fixture
def environ(wheels: Path) -> dict[str, str]:
    """This process's variables, with the wheels as the only source and nobody's pip
    configuration.
    """
    return from_wheels(wheels)


def from_wheels(wheels: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PIP_") and not name.endswith("INDEX_URL")
    }
    return {
        **kept,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
    }


@pytest.fixture
def quick(tmp_path: Path, environ: dict[str, str]) -> dict[str, str]:
    """The same with the quick stand-in for pip."""
    return {**environ, "PYTHONPATH": str(quick_pip(tmp_path / "quick"))}


def beside(environ: dict[str, str], folder: Path) -> dict[str, str]:
    """The same with the folder on the interpreter's path."""
    path = [str(folder), *filter(None, [environ.get("PYTHONPATH")])]
    return {**environ, "PYTHONPATH": os.pathsep.join(path)}


def look(home: Path, folders: Sequence[str] = (), wanted: Sequence[Package] = WANTED) -> Overlay:
    return environment.find_overlay(home, wanted=wanted, folders=folders)


def install(overlay: Overlay, environ: dict[str, str]) -> list[str]:
    """What it said."""
    lines: list[str] = []
    installation.install(overlay, environ=environ, echo=lines.append)
    return lines


def folder_content(overlay: Overlay) -> list[str]:
    return sorted(path.name for path in overlay.version_folder.iterdir() if path.name != "lock")


def fake_pip(folder: Path, code: str) -> dict[str, str]:
    """Variables under which `python -m pip` runs `code` instead. `target` is the folder to install
    into.
    """
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").touch()
    start = (
        "import os, sys, time\nfrom pathlib import Path\ntarget ="
        " Path(sys.argv[sys.argv.index('--target') + 1])\n"
    )
    (folder / "pip" / "__main__.py").write_text(start + code, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


IN_ONE_PROCESS = pytest.mark.xdist_group("installation")


@dataclass(frozen=True)
class Installed:
    """What an installation by pip came to."""

    home: Path
    overlay: Overlay
    environ: dict[str, str]
    before: object
    after: object
    """The interpreter's own packages."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """In a folder with an awkward name, with another version beside the wanted one."""
    folder = tmp_path_factory.mktemp("installed")
    wheels = make_wheels(folder / "wheels", WANTED)
    make_wheel(wheels, "trainer", "1.1", {"trainer/core.py": ""})
    home, environ = folder / "我的 web ui" / "扩 展 (1)" / "overlay", from_wheels(wheels)
    before = own_packages()
    overlay = look(home)
    install(overlay, environ)
    return Installed(home, overlay, environ, before, own_packages())


def own_packages() -> tuple[set[tuple[str, str]], dict[str, int]]:
    """This interpreter's packages, and when their folders were changed."""
    folders = [Path(entry) for entry in environment.interpreter_folders() if Path(entry).is_dir()]
    found = {
        (str(one.metadata["Name"]), str(one.version))
        for one in distributions(path=[str(folder) for folder in folders])
    }
    return found, {str(folder): folder.stat().st_mtime_ns for folder in folders}


@IN_ONE_PROCESS
def test_what_is_missing_is_installed_in_exactly_its_version_and_tried_out(
    installed: Installed,
) -> None:
    overlay = installed.overlay
    assert (overlay.state, overlay.is_checked) == ("ready", True)
    assert packages.found_versions(WANTED, [str(overlay.folder)]) == {
        "trainer": "1.0",
        "numbers-lib": "2.2",
    }
    assert folder_content(overlay) == [overlay.wanted.name]


@IN_ONE_PROCESS
def test_the_running_interpreters_packages_are_the_same_before_and_after(
    installed: Installed,
) -> None:
    assert installed.after == installed.before


@IN_ONE_PROCESS
def test_installing_again_does_nothing(installed: Installed) -> None:
    before = listing(installed.home)
    assert install(look(installed.home), installed.environ) == []
    assert listing(installed.home) == before


@IN_ONE_PROCESS
def test_folders_with_spaces_and_chinese_characters_work(installed: Installed) -> None:
    assert installed.overlay.state == "ready"
    assert "扩 展 (1)" in str(installed.overlay.folder)


def test_the_interpreters_own_package_is_kept_and_not_installed_again(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    own = tmp_path / "site"
    unpack(make_wheel(tmp_path, "numbers-lib", "1.26", {"numbers_lib.py": ""}), own)
    before = listing(own)
    overlay = look(tmp_path / "overlay", [str(own)])
    install(overlay, {**environ, "PYTHONPATH": str(own)})
    assert packages.found_versions(WANTED, [str(overlay.folder)]) == {"trainer": "1.0"}
    assert listing(own) == before


def test_pip_settings_that_point_elsewhere_have_no_say(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        f"[global]\nuser = true\nrequire-virtualenv = true\ntarget = {elsewhere}\nprefix ="
        f" {elsewhere}\n",
        encoding="utf-8",
    )
    hostile = {
        "PIP_CONFIG_FILE": str(configuration),
        "PIP_TARGET": str(elsewhere),
        "PIP_USER": "1",
        "PIP_PREFIX": str(elsewhere),
        "PIP_ROOT": str(elsewhere),
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_NO_BINARY": ":all:",
        "PIP_DRY_RUN": "1",
        "PIP_CONSTRAINT": str(tmp_path / "absent.txt"),
    }
    overlay = look(tmp_path / "overlay")
    install(overlay, {**environ, **hostile})
    assert overlay.state == "ready"
    assert not elsewhere.exists()


def test_a_mirror_named_in_the_hosts_way_is_given_to_pip(tmp_path: Path) -> None:
    both = {
        "INDEX_URL": "https://mirror.example/simple",
        "TORCH_INDEX_URL": "https://torch.example",
    }
    command = installation.pip_command(tmp_path, ["a==1"], environ=both)
    assert command[command.index("--index-url") + 1] == "https://mirror.example/simple"
    assert "--no-deps" in command
    assert "https://torch.example" not in command
    with_torch = installation.pip_command(
        tmp_path, ["torch==2"], environ=both, constraints=tmp_path / "c.txt"
    )
    assert with_torch[with_torch.index("--extra-index-url") + 1] == "https://torch.example"
    assert "--no-deps" not in with_torch


def test_pips_own_variables_for_mirror_proxy_and_cache_reach_it() -> None:
    kept = {
        "PIP_INDEX_URL": "https://m.example",
        "HTTPS_PROXY": "http://p:1",
        "PIP_CACHE_DIR": "/cache",
        "PIP_CERT": "/cert",
    }
    assert installation.pip_environ(kept).items() >= kept.items()


def test_torch_comes_with_its_dependencies_held_at_our_versions(
    tmp_path: Path, wheels: Path, environ: dict[str, str]
) -> None:
    torch = Package(name="torchlike", version="3.0", modules=("torchlike",), with_dependencies=True)
    # one that we pin, and one that only the platform's torch knows
    make_wheel(
        wheels,
        "torchlike",
        "3.0",
        {"torchlike.py": "import sympy, gpu_runtime"},
        requires=["sympy", "gpu-runtime==5"],
    )
    for version in (TORCH_DEPENDENCIES[0].version, "99.0"):
        make_wheel(wheels, "sympy", version, {"sympy.py": ""})
    make_wheel(wheels, "gpu-runtime", "5", {"gpu_runtime.py": ""})
    overlay = look(tmp_path / "overlay", wanted=(torch, TRAINER))
    install(overlay, environ)
    stamp = environment.read_stamp(overlay.wanted)
    assert stamp is not None
    assert stamp.versions == {
        "torchlike": "3.0",
        "trainer": "1.0",
        "sympy": TORCH_DEPENDENCIES[0].version,
    }
    assert (overlay.wanted / "gpu_runtime.py").is_file()


def test_a_missing_wheel_keeps_the_old_set_at_work_and_says_which(
    tmp_path: Path, environ: dict[str, str], quick: dict[str, str]
) -> None:
    old = look(tmp_path / "overlay")
    install(old, quick)
    update = look(tmp_path / "overlay", wanted=(Package(name="trainer", version="7.7"), NUMBERS))
    with pytest.raises(SetupError, match=r"no wheel of trainer==7\.7 for cp\d+ on") as raised:
        install(update, environ)
    assert "INDEX_URL" in str(raised.value.hint)
    assert update.state == "outdated"
    assert update.folder == old.wanted
    assert folder_content(old) == [old.wanted.name]


def test_an_unreachable_index_is_told_from_a_missing_package(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    del environ["PIP_NO_INDEX"], environ["PIP_FIND_LINKS"]
    unreachable = {
        **environ,
        "INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
        "PIP_DEFAULT_TIMEOUT": "2",
    }
    overlay = look(tmp_path / "overlay")
    with pytest.raises(SetupError, match="the package index cannot be reached") as raised:
        install(overlay, unreachable)
    assert "HTTPS_PROXY" in str(raised.value.hint)
    assert folder_content(overlay) == []


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """An index that takes a call and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@contextlib.contextmanager
def login_page() -> Iterator[str]:
    """A network that answers whatever is asked with its own page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(
                b"<html><body><h1>Hotel WLAN</h1><a href='/login'>Log in</a></body></html>"
            )

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
        server.shutdown()


def online(environ: dict[str, str], index: str) -> dict[str, str]:
    return {
        **{
            name: value
            for name, value in environ.items()
            if name not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")
        },
        "INDEX_URL": index,
        "NO_PROXY": "*",
    }


def test_a_silent_index_holds_up_nobody_who_waits(tmp_path: Path, environ: dict[str, str]) -> None:
    overlay = look(tmp_path / "overlay")
    with silent_server() as index:
        time_limit = installation.TimeLimit(seconds=60, timeout=1, retries=1)
        with pytest.raises(SetupError, match="the package index cannot be reached: .*timed out"):
            installation.install(
                overlay,
                environ=online(environ, index),
                echo=lambda line: None,
                time_limit=time_limit,
            )
        # and however it goes on, there is an end
        time_limit = installation.TimeLimit(seconds=0.5, timeout=600, retries=9)
        with pytest.raises(
            SetupError, match="not installed in time, so the WebUI starts without them"
        ) as raised:
            installation.install(
                overlay,
                environ=online(environ, index),
                echo=lambda line: None,
                time_limit=time_limit,
            )
    assert (
        "Continue the installation in the tab LoRA Trainer" in str(raised.value.hint)
        and folder_content(overlay) == []
    )


@pytest.mark.parametrize("by_host", [True, False])
def test_a_starting_webui_waits_for_minutes_at_most_and_a_person_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_host: bool
) -> None:
    told: dict[str, object] = {}
    overlay = look(tmp_path / "overlay")
    monkeypatch.setattr(environment, "find_overlay", lambda: overlay)
    monkeypatch.setattr(installation, "install", lambda overlay, **given: told.update(given))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launch_utils.py").touch()
    environ = {"PYTHONPATH": str(tmp_path)} if by_host else {}
    source = importlib.util.spec_from_file_location(
        "installer", Path(environment.__file__).parents[1] / "install.py"
    )
    assert source is not None and source.loader is not None
    installer = importlib.util.module_from_spec(source)
    source.loader.exec_module(installer)
    assert installer.main([], environ) == 0
    if by_host:
        assert (
            told["time_limit"] == installation.TimeLimit(seconds=300.0, timeout=10, retries=1)
            and told["patience"] == 60.0
        )
    else:
        assert told["time_limit"] is None and told["patience"] == installation.LOCK_TIMEOUT


def test_a_login_page_in_place_of_the_index_is_told_as_what_it_is(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    with (
        login_page() as index,
        pytest.raises(SetupError, match="not from a package index: it is a web page") as raised,
    ):
        install(look(tmp_path / "overlay"), online(environ, index))
    assert "log in to the network" in str(raised.value.hint)


def test_too_little_space_is_told_before_anything_is_fetched(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    overlay = look(tmp_path / "overlay")
    with pytest.raises(SetupError, match="has 10 MB free, and 56 MB are needed"):
        installation.install(
            overlay, environ=environ, echo=[].append, free_space=lambda _: 10 * 2**20
        )
    assert folder_content(overlay) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(
    tmp_path: Path, quick: dict[str, str]
) -> None:
    message = (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    code = f"target.mkdir(); (target / 'half').write_text('x')\nsys.exit({message!r})"
    overlay = look(tmp_path / "overlay")
    with pytest.raises(SetupError, match="is full"):
        install(overlay, {**quick, **fake_pip(tmp_path / "fake", code)})
    assert folder_content(overlay) == []
    install(overlay, quick)
    assert overlay.state == "ready"


def test_a_disk_that_is_full_when_the_stamp_is_written_leaves_nothing_behind(
    tmp_path: Path,
    quick: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(installation.files, "write_text", full)
    overlay = look(tmp_path / "overlay")
    with pytest.raises(SetupError, match="is full"):
        install(overlay, quick)
    assert folder_content(overlay) == []


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root and Windows may write anywhere"
)
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(SetupError, match="cannot be written"):
            install(look(tmp_path / "overlay"), environ)
    finally:
        tmp_path.chmod(0o755)


def test_a_file_where_the_overlay_should_be_is_named(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    (tmp_path / "overlay").write_text("not a folder", encoding="utf-8")
    with pytest.raises(SetupError, match="cannot be written"):
        install(look(tmp_path / "overlay"), environ)


def test_a_package_that_does_not_import_is_never_used_and_is_named(
    tmp_path: Path, wheels: Path, quick: dict[str, str]
) -> None:
    make_wheel(
        wheels,
        "trainer",
        "1.0",
        {
            "trainer/__init__.py": "",
            "trainer/core.py": "raise ImportError('multiarray failed to import')",
        },
    )
    overlay = look(tmp_path / "overlay")
    with pytest.raises(
        SetupError, match=r"trainer.core does not work .*: ImportError: multiarray failed to import"
    ):
        install(overlay, quick)
    assert overlay.state == "missing"
    assert folder_content(overlay) == []


def test_a_package_that_ends_the_interpreter_is_not_used_either(
    tmp_path: Path, wheels: Path, quick: dict[str, str]
) -> None:
    make_wheel(
        wheels,
        "trainer",
        "1.0",
        {"trainer/__init__.py": "", "trainer/core.py": "import os; os._exit(5)"},
    )
    with pytest.raises(SetupError, match="it ended with code 5"):
        install(look(tmp_path / "overlay"), quick)


def test_a_data_file_that_is_not_there_is_named(tmp_path: Path, quick: dict[str, str]) -> None:
    vocabulary = Package(
        name="trainer", version="1.0", modules=("trainer",), files=("trainer/words.txt.gz",)
    )
    with pytest.raises(
        SetupError, match=r"trainer/words.txt.gz does not work .*: the file is not there"
    ):
        install(look(tmp_path / "overlay", wanted=(vocabulary,)), quick)


def test_pip_that_succeeds_without_doing_its_work_is_noticed(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    with pytest.raises(SetupError, match=r"are not in .*: trainer==1\.0, numbers-lib==2\.2"):
        install(
            look(tmp_path / "overlay"), {**environ, **fake_pip(tmp_path / "fake", "target.mkdir()")}
        )


def test_another_torch_is_tried_out_without_installing_anew(
    tmp_path: Path, quick: dict[str, str]
) -> None:
    for version in ("1.26", "1.27"):
        unpack(
            make_wheel(tmp_path, "numbers-lib", version, {"numbers_lib.py": ""}), tmp_path / version
        )
    before = look(tmp_path / "overlay", [str(tmp_path / "1.26")])
    install(before, beside(quick, tmp_path / "1.26"))
    after = look(tmp_path / "overlay", [str(tmp_path / "1.27")])
    assert (after.state, after.is_checked) == ("ready", False)
    without_source = beside({**quick, "PIP_FIND_LINKS": str(tmp_path)}, tmp_path / "1.27")
    assert install(after, without_source) == [
        "Checking the packages with the interpreter's new ones ..."
    ]
    assert after.is_checked
    assert before.is_checked


def test_what_another_extension_brings_is_tried_out_without_installing_anew(
    tmp_path: Path, quick: dict[str, str]
) -> None:
    before = look(tmp_path / "overlay")
    install(before, quick)
    own = tmp_path / "own"
    unpack(make_wheel(tmp_path, "numbers-lib", "1.26", {"numbers_lib.py": ""}), own)
    after = look(tmp_path / "overlay", [str(own)])
    assert (after.state, after.is_checked) == ("ready", False)
    without_source = beside({**quick, "PIP_FIND_LINKS": str(own)}, own)
    assert install(after, without_source) == [
        "Checking the packages with the interpreter's new ones ..."
    ]
    assert (after.folder, after.is_checked) == (before.wanted, True)


def test_the_remains_of_a_killed_installation_are_cleared_away(
    tmp_path: Path, quick: dict[str, str]
) -> None:
    overlay = look(tmp_path / "overlay")
    (overlay.version_folder / "p4711" / "set" / "trainer").mkdir(parents=True)
    (overlay.wanted / "trainer").mkdir(parents=True)
    install(overlay, quick)
    assert overlay.state == "ready"
    assert folder_content(overlay) == [overlay.wanted.name]


def test_a_new_set_replaces_the_old_one_but_not_another_interpreters(
    tmp_path: Path, wheels: Path, quick: dict[str, str]
) -> None:
    make_wheels(wheels, UPDATED)
    old = look(tmp_path / "overlay")
    install(old, quick)
    stamp = environment.read_stamp(old.wanted)
    assert stamp is not None
    neighbour = old.version_folder / "neighbour"
    neighbour.mkdir()
    (tmp_path / "their-python").mkdir()
    installation._write_stamp(
        neighbour,
        installation.dataclasses.replace(stamp, interpreter=str(tmp_path / "their-python")),
    )
    update = look(tmp_path / "overlay", wanted=UPDATED)
    install(update, quick)
    assert folder_content(update) == sorted([update.wanted.name, "neighbour"])
    (tmp_path / "their-python").rmdir()
    installation.clear_leftovers(update)
    assert folder_content(update) == [update.wanted.name]


def test_a_set_in_use_is_kept_until_its_process_ends(
    tmp_path: Path, wheels: Path, quick: dict[str, str]
) -> None:
    make_wheels(wheels, UPDATED)
    old = look(tmp_path / "overlay")
    install(old, quick)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from lora_trainer"
        " import environment\nenvironment._mark_used(Path(sys.argv[2])); print('holding', flush=True);"
        " sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(environment.ROOT), str(old.wanted)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "holding\n"
        update = look(tmp_path / "overlay", wanted=UPDATED)
        install(update, quick)
        assert old.state == "ready"
        worker.communicate()
    installation.clear_leftovers(update)
    assert folder_content(update) == [update.wanted.name]


def test_pip_that_is_not_there_is_told(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="this Python has no pip") as raised:
        install(look(tmp_path / "overlay"), environ)
    assert "-m ensurepip" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            (
                "WARNING: Retrying ... NewConnectionError(...)\nERROR: No matching distribution"
                " found for torch"
            ),
            "the package index cannot be reached",
        ),
        (
            (
                "ERROR: Could not install packages due to an OSError: [WinError 112] There is not"
                " enough space on the disk"
            ),
            "is full",
        ),
        (
            (
                "ERROR: Could not install packages due to an OSError: [WinError 5] Access is"
                " denied: 'x'"
            ),
            "cannot be written",
        ),
        (
            (
                "HINT: This error might have occurred since this system does not have Windows Long"
                " Path support enabled."
            ),
            "is too long for Windows",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "a download is damaged",
        ),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "has no wheel of torch==2.13.0",
        ),
        (
            "ERROR: something {new}\nmore",
            "pip could not install the packages: ERROR: something {new}",
        ),
        ("", "pip could not install the packages: no output"),
        (
            (
                "ERROR: Cannot install torch==2.1 and numpy==3 because these package versions have"
                " conflicting dependencies.\n\nThe conflict is caused by:\n    The user requested"
                " numpy==3\n\nERROR: ResolutionImpossible: for help visit"
                " https://pip.pypa.io/en/latest/topics/dependency-resolution/"
            ),
            ("pip found no compatible versions: ERROR: Cannot install torch==2.1 and numpy==3"),
        ),
        (
            (
                "WARNING: Retrying (Retry(total=0)) after connection broken by '[Errno -2] Name or"
                " service not known': /simple/torch/\nERROR: Could not find a version that"
                " satisfies the requirement torch (from versions: none)\nERROR: No matching"
                " distribution found for torch"
            ),
            (
                "the package index cannot be reached: WARNING: Retrying (Retry(total=0)) after"
                " connection broken by '[Errno -2] Name or service not known'"
            ),
        ),
        (
            (
                "WARNING: ... [Errno 8] nodename nor servname provided, or not known\nERROR: No"
                " matching distribution found for x"
            ),
            "cannot be reached",
        ),
        (
            (
                "WARNING: ... [Errno 101] Network is unreachable\nERROR: No matching distribution"
                " found for x"
            ),
            "cannot be reached",
        ),
    ],
)
def test_what_pip_says_becomes_a_sentence_with_a_hint(
    tmp_path: Path, output: str, sentence: str
) -> None:
    error = installation.explain(output, tmp_path)
    assert sentence in str(error)
    assert str(error.hint)
