from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lora_trainer import environment
from lora_trainer.environment import Overlay, activate, find_overlay, worker_command, worker_environ
from lora_trainer.errors import SetupError
from lora_trainer.packages import TORCH, Package
from tests.wheels import copy_extension, make_wheel, unpack

TRAINER = Package(name="trainer", version="1.0", modules=("trainer",))
NUMBERS = Package(
    name="numbers-lib", version="2.2", at_least="1.0", below="3", modules=("numbers_lib",)
)
WANTED = (TRAINER, NUMBERS)


def have(tmp_path: Path, **versions: str) -> list[str]:
    """An interpreter's folder that holds these packages."""
    folder = tmp_path / "site" / "-".join([*versions, *versions.values()])
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in versions.items():
        unpack(make_wheel(tmp_path, name.replace("_", "-"), version, {}), folder)
    return [str(folder)]


def put_set(folder: Path, versions: dict[str, str], *, platform: str | None = None) -> Path:
    """A finished set, as the installer leaves it."""
    for name, version in versions.items():
        unpack(
            make_wheel(
                folder.parent,
                name,
                version,
                {f"{name.replace('-', '_')}/__init__.py": f"version = {version!r}\n"},
            ),
            folder,
        )
    (folder / environment.IN_USE).touch()
    metadata = sorted(path.name for path in folder.glob("*.dist-info"))
    stamp = {
        "versions": versions,
        "metadata": metadata,
        "interpreter": sys.prefix,
        "platform": platform or sysconfig.get_platform(),
        "checked": [],
    }
    (folder / environment.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return folder


def test_an_interpreter_that_has_everything_needs_no_overlay(tmp_path: Path) -> None:
    overlay = find_overlay(
        tmp_path / "overlay",
        wanted=WANTED,
        folders=have(tmp_path, trainer="1.0", numbers_lib="1.5"),
    )
    assert overlay.state == "ready"
    assert overlay.folder is None
    assert overlay.require() is overlay


def test_only_what_the_interpreter_lacks_is_wanted_from_the_overlay(tmp_path: Path) -> None:
    overlay = find_overlay(
        tmp_path / "overlay",
        wanted=WANTED,
        folders=have(tmp_path, trainer="0.9", numbers_lib="1.5"),
    )
    assert overlay.missing == (TRAINER,)
    assert overlay.state == "missing"
    put_set(overlay.wanted, {"trainer": "1.0"})
    assert overlay.state == "ready"
    assert overlay.folder == tmp_path / "overlay" / environment.python_tag() / overlay.wanted.name


def test_two_interpreters_of_one_version_share_a_checkout_without_disturbing_each_other(
    tmp_path: Path,
) -> None:
    lacks_one = find_overlay(
        tmp_path / "overlay", wanted=WANTED, folders=have(tmp_path, numbers_lib="1.5")
    )
    lacks_both = find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])
    put_set(lacks_one.wanted, {"trainer": "1.0"})
    assert (lacks_one.state, lacks_both.state) == ("ready", "missing")
    put_set(lacks_both.wanted, {"trainer": "1.0", "numbers-lib": "2.2"})
    assert lacks_one.folder == lacks_one.wanted
    assert lacks_both.folder == lacks_both.wanted


def test_the_wanted_set_changes_with_our_versions_and_not_with_the_interpreters(
    tmp_path: Path,
) -> None:
    before = find_overlay(tmp_path, wanted=WANTED, folders=have(tmp_path, numbers_lib="1.5"))
    other_host = find_overlay(tmp_path, wanted=WANTED, folders=have(tmp_path, numbers_lib="1.6"))
    update = find_overlay(
        tmp_path,
        wanted=(Package(name="trainer", version="1.1"), NUMBERS),
        folders=have(tmp_path, numbers_lib="1.5"),
    )
    assert other_host.wanted == before.wanted
    assert other_host.surroundings != before.surroundings
    assert update.wanted != before.wanted


def test_after_an_update_the_old_set_works_until_the_new_one_is_there(tmp_path: Path) -> None:
    old = find_overlay(
        tmp_path / "overlay", wanted=WANTED, folders=have(tmp_path, numbers_lib="1.5")
    )
    put_set(old.wanted, {"trainer": "1.0"})
    update = find_overlay(
        tmp_path / "overlay",
        wanted=(Package(name="trainer", version="1.1"), NUMBERS),
        folders=have(tmp_path, numbers_lib="1.5"),
    )
    assert update.state == "outdated"
    assert update.require().folder == old.wanted


def test_a_set_stays_the_right_one_when_another_extension_brings_a_part_of_it(
    tmp_path: Path,
) -> None:
    before = find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])
    put_set(before.wanted, {"trainer": "1.0", "numbers-lib": "2.2"})
    after = find_overlay(
        tmp_path / "overlay", wanted=WANTED, folders=have(tmp_path, numbers_lib="1.5")
    )
    assert after.wanted != before.wanted
    assert (after.state, after.folder, after.is_checked) == ("ready", before.wanted, False)
    assert not environment.has_leftovers(after)
    # in another version than ours it is only better than nothing
    update = find_overlay(
        tmp_path / "overlay",
        wanted=(Package(name="trainer", version="1.1"), NUMBERS),
        folders=have(tmp_path, numbers_lib="1.5"),
    )
    assert update.state == "outdated"


def test_a_set_with_a_torch_gives_way_when_the_interpreter_has_one_of_its_own(
    tmp_path: Path,
) -> None:
    wanted = (TRAINER, TORCH)
    before = find_overlay(tmp_path / "overlay", wanted=wanted, folders=[])
    put_set(before.wanted, {"trainer": "1.0", "torch": TORCH.version})
    after = find_overlay(tmp_path / "overlay", wanted=wanted, folders=have(tmp_path, torch="2.9.1"))
    assert after.state == "outdated"


def test_a_set_that_lacks_something_or_is_for_another_system_is_no_stand_in(tmp_path: Path) -> None:
    overlay = find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])
    put_set(overlay.version_folder / "partial", {"trainer": "1.0"})
    put_set(
        overlay.version_folder / "foreign",
        {"trainer": "1.0", "numbers-lib": "2.0"},
        platform="another-system",
    )
    assert overlay.state == "missing"


def test_a_set_that_lost_a_package_is_not_used(tmp_path: Path) -> None:
    overlay = find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])
    put_set(overlay.wanted, {"trainer": "1.0", "numbers-lib": "2.2"})
    for path in (overlay.wanted / "trainer-1.0.dist-info").iterdir():
        path.unlink()
    (overlay.wanted / "trainer-1.0.dist-info").rmdir()
    with pytest.raises(SetupError, match="incomplete"):
        overlay.require()


@pytest.mark.parametrize("stamp", ["", "{", "[]", "{}", '{"versions": 3}', "\ud800"])
def test_a_set_with_a_damaged_stamp_is_not_used(tmp_path: Path, stamp: str) -> None:
    overlay = find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])
    put_set(overlay.wanted, {"trainer": "1.0", "numbers-lib": "2.2"})
    (overlay.wanted / environment.STAMP).write_bytes(stamp.encode("utf-8", "surrogatepass"))
    assert overlay.state == "missing"


def test_without_an_overlay_the_sentence_names_what_is_missing_and_the_hint_the_command(
    tmp_path: Path,
) -> None:
    with pytest.raises(SetupError) as raised:
        find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[]).require()
    assert str(raised.value) == "the worker's packages are not installed: trainer, numbers-lib"
    assert str(raised.value.hint) == f'In {environment.ROOT} run: "{sys.executable}" install.py'


def test_an_overlay_of_another_python_is_named(tmp_path: Path) -> None:
    put_set(tmp_path / "overlay" / "cp39" / "abc", {"trainer": "1.0", "numbers-lib": "2.2"})
    with pytest.raises(
        SetupError, match=f"are installed for cp39, but this is {environment.python_tag()}"
    ):
        find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[]).require()


def test_activating_puts_the_overlay_and_the_extension_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])
    put_set(overlay.wanted, {"trainer": "1.0", "numbers-lib": "2.2"})
    worker = str(environment.ROOT / "lora_trainer" / "worker")
    monkeypatch.setattr(sys, "path", [worker, "/usr/lib/python", str(environment.ROOT)])
    monkeypatch.setenv("USE_TF", "1")
    monkeypatch.delenv("USE_TORCH", raising=False)
    activate(overlay)
    assert sys.path == [str(overlay.wanted), str(environment.ROOT), "/usr/lib/python"]
    assert (os.environ["USE_TF"], os.environ["USE_TORCH"]) == ("1", "1")
    activate(overlay)
    assert sys.path == [str(overlay.wanted), str(environment.ROOT), "/usr/lib/python"]


def test_activating_hides_what_the_libraries_would_import_because_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scipy.py").write_text("raise ImportError('built for another numpy')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in environment.UNUSED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert importlib.util.find_spec("scipy") is not None
    activate(find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[]))
    # what diffusers, transformers and accelerate ask
    assert [importlib.util.find_spec(name) for name in environment.UNUSED] == [None, None, None]
    environment.show("scipy")
    with pytest.raises(ImportError, match="built for another numpy"):
        importlib.import_module("scipy")


def test_activating_without_an_overlay_adds_the_extension_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", ["/usr/lib/python"])
    assert (
        activate(find_overlay(tmp_path / "overlay", wanted=WANTED, folders=[])).state == "missing"
    )
    assert sys.path == [str(environment.ROOT), "/usr/lib/python"]


def test_a_script_of_ours_finds_the_packages_where_pythonpath_and_the_working_directory_are_ignored(
    tmp_path: Path,
) -> None:
    extension = copy_extension(tmp_path / "web ui" / "扩展")
    script = extension / "lora_trainer" / "worker" / "probe.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nsys.path.insert(0,"
        " str(Path(__file__).resolve().parents[2]))\nfrom lora_trainer import environment\nfrom"
        " lora_trainer.packages import Package\noverlay ="
        " environment.find_overlay(wanted=[Package(name='trainer', version='1.0')], folders=[])\nif"
        " len(sys.argv) > 1: print(overlay.wanted)\nelse:\n    environment.activate(overlay)\n   "
        " import trainer\n    print(trainer.__file__)\n",
        encoding="utf-8",
    )
    away = tmp_path / "away"
    away.mkdir()

    def run(*arguments: str) -> str:
        command = [sys.executable, "-I", "-X", "utf8", str(script), *arguments]
        return subprocess.run(
            command, cwd=away, capture_output=True, check=True, encoding="utf-8"
        ).stdout.strip()

    wanted = put_set(Path(run("where")), {"trainer": "1.0"})
    assert wanted.is_relative_to(extension / "overlay")
    assert run() == str(wanted / "trainer" / "__init__.py")


def test_looking_imports_neither_torch_nor_pip() -> None:
    code = (
        "import sys; from lora_trainer import environment; environment.find_overlay().state; print('torch'"
        " in sys.modules, 'pip' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=environment.ROOT,
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert result.stdout.strip() == "False False"


def test_a_worker_is_started_by_the_path_of_its_entry_file(tmp_path: Path) -> None:
    entry = environment.ROOT / "lora_trainer" / "worker" / "__main__.py"
    assert worker_command(tmp_path / "my run 一") == [
        sys.executable,
        str(entry),
        str(tmp_path / "my run 一"),
    ]
    assert entry.is_file()


def test_the_workers_environment_keeps_the_hosts_and_speaks_utf8() -> None:
    environ = worker_environ(
        {"HF_ENDPOINT": "https://mirror.example", "PATH": "/bin", "USE_TF": "1"}
    )
    assert (environ["HF_ENDPOINT"], environ["PATH"], environ["USE_TF"]) == (
        "https://mirror.example",
        "/bin",
        "1",
    )
    assert (environ["PYTHONUTF8"], environ["PYTHONIOENCODING"]) == ("1", "utf-8")
    assert worker_environ({"GOMP_SPINCOUNT": "0"})["GOMP_SPINCOUNT"] == "0"
    assert 0 < int(environ["GOMP_SPINCOUNT"]) < 300_000, "GNU's own"
    assert "CUDA_VISIBLE_DEVICES" not in environ


@pytest.mark.parametrize(
    ("inherited", "device_id", "expected"),
    [
        (None, "1", "1"),
        ("2,3", "1", "3"),
        ("GPU-aaaa, GPU-bbbb", "0", "GPU-aaaa"),
        ("1", "1", "1"),
        ("", "0", ""),
        ("0,1", None, "0,1"),
        (None, None, None),
        ("2,3", " ", "2,3"),
        (None, "GPU-cccc", "GPU-cccc"),
    ],
    ids=[
        "alone",
        "counted in the list",
        "by name",
        "already applied by the host",
        "no card at all",
        "no id",
        "neither",
        "blank",
        "a name alone",
    ],
)
def test_the_hosts_device_id_is_composed_with_an_inherited_list(
    inherited: str | None, device_id: str | None, expected: str | None
) -> None:
    base = {} if inherited is None else {"CUDA_VISIBLE_DEVICES": inherited}
    assert worker_environ(base, device_id).get("CUDA_VISIBLE_DEVICES") == expected


def test_the_default_overlays_lie_in_the_extension() -> None:
    overlay, tests = find_overlay(), environment.find_tests_overlay()
    assert isinstance(overlay, Overlay)
    assert (overlay.home, tests.home) == (
        environment.ROOT / "overlay",
        environment.ROOT / "overlay-tests",
    )


def test_a_captioner_whose_packages_are_missing_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "interpreter_folders", list)
    monkeypatch.setitem(environment.CAPTIONER_OVERLAYS, "wd", tmp_path / "overlay-wd")
    with pytest.raises(
        SetupError,
        match="the captioner wd needs packages that are not installed: onnxruntime, numpy",
    ) as caught:
        environment.find_captioner_overlay("wd").require()
    assert str(caught.value.hint).endswith("install.py --captioner wd")


def test_what_lies_in_a_captioners_overlay_is_not_the_interpreters_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = str(environment.CAPTIONER_OVERLAYS["wd"] / "cp311" / "0123456789")
    monkeypatch.setattr(sys, "path", [inside, *sys.path])
    assert inside not in environment.interpreter_folders()


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A worker's own set with a torch of 2.13, and no set of families."""
    put_set(
        find_overlay(tmp_path / "overlay", wanted=(TORCH, TRAINER), folders=[]).wanted,
        {"torch": TORCH.version, "trainer": "1.0"},
    )
    real = environment.find_overlay
    monkeypatch.setattr(
        environment,
        "find_overlay",
        lambda: real(tmp_path / "overlay", wanted=(TORCH, TRAINER), folders=[]),
    )
    monkeypatch.setattr(environment, "interpreter_folders", list)
    monkeypatch.setitem(environment.FAMILY_OVERLAYS, "newer", tmp_path / "overlay-newer")
    folder = environment.find_overlay().folder
    assert folder is not None
    return folder


def test_a_set_of_families_is_whole_and_lies_before_the_workers_own(below: Path) -> None:
    overlay = environment.find_family_overlay("newer")
    names = [package.name for package in overlay.missing]
    assert (overlay.state, overlay.below) == ("missing", below)
    assert "torch" not in names and names[:2] == ["diffusers", "transformers"]
    with pytest.raises(SetupError, match="needs packages that are not installed") as caught:
        overlay.require()
    assert str(caught.value.hint).endswith("install.py --packages newer")
    put_set(overlay.wanted, {package.name: package.version for package in overlay.missing})
    ready = environment.find_family_overlay("newer")
    assert ready.require().folder == overlay.wanted


def test_what_an_interpreter_has_of_a_set_of_families_is_installed_all_the_same(
    below: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = environment.find_family_overlay("newer").missing
    site = have(tmp_path, diffusers=wanted[0].version)
    monkeypatch.setattr(environment, "interpreter_folders", lambda: site)
    assert environment.find_family_overlay("newer").missing == wanted


def test_a_set_of_families_is_refused_where_torch_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = have(tmp_path, torch="2.3.1")
    monkeypatch.setattr(environment, "interpreter_folders", lambda: site)
    monkeypatch.setattr(
        environment, "find_overlay", lambda: find_overlay(tmp_path, wanted=(), folders=[])
    )
    with pytest.raises(
        SetupError, match=r"needs torch 2\.6 or newer, and the torch here is 2\.3\.1"
    ) as caught:
        environment.find_family_overlay("newer").require()
    assert "Forge Neo" in str(caught.value.hint)


def test_what_lies_in_a_set_of_families_is_not_the_interpreters_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = str(environment.FAMILY_OVERLAYS["newer"] / "cp311" / "0123456789")
    monkeypatch.setattr(sys, "path", [inside, *sys.path])
    assert inside not in environment.interpreter_folders()
