"""install.py as it is run: by hand and by a host, in a copy of the extension, by an interpreter
that has pip and nothing else; a quick stand-in for pip, but in the tests of what pip itself does.
Offline.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_trainer import environment, files
from lora_trainer.packages import (
    CAPTIONER_PACKAGES,
    FAMILY_PACKAGES,
    TEST_PACKAGES,
    WEBUI_PACKAGES,
    WORKER_PACKAGES,
    Package,
)
from tests.wheels import (
    copy_extension,
    listing,
    make_interpreter,
    make_wheel,
    make_wheels,
    real_pip,
    site_packages,
    unpack,
)


@dataclass(frozen=True)
class Machine:
    """A fresh machine: an interpreter, the extension in a folder with an awkward name, and a
    package index of tiny wheels.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return (
            self.folder
            / "python"
            / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        )

    @property
    def site(self) -> Path:
        return site_packages(self.folder / "python")

    @property
    def extension(self) -> Path:
        return self.folder / "web ui 测试" / "extensions" / "my trainer"

    @property
    def host(self) -> Path:
        return self.folder / "web ui 测试"

    @property
    def version_folder(self) -> Path:
        return self.extension / "overlay" / environment.python_tag()

    @property
    def environ(self) -> dict[str, str]:
        dropped = ("PIP_", "PYTHON", "COMMANDLINE_ARGS", "INDEX_URL")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        source = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder / "wheels"),
            "PIP_CONFIG_FILE": os.devnull,
        }
        return {**kept, **source, "PYTHONIOENCODING": "utf-8"}

    @property
    def host_environ(self) -> dict[str, str]:
        """As A1111, Forge and reForge call an extension's installer."""
        return {**self.environ, "PYTHONPATH": str(self.host) + os.pathsep}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.python), str(self.extension / "install.py"), *arguments]

    def install(
        self, *arguments: str, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.host,
            env=environ or self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )

    def sets(self) -> list[str]:
        return (
            sorted(path.name for path in self.version_folder.iterdir() if path.name != "lock")
            if self.version_folder.exists()
            else []
        )


FEW = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")

# of two packages in the same version, the last one's wheel stays: what is imported is written there
EVERYTHING = (
    *(package for one in FAMILY_PACKAGES.values() for package in one if package.name != "torch"),
    *(package for host in WEBUI_PACKAGES.values() for package in host),
    *TEST_PACKAGES,
    *WORKER_PACKAGES,
)


def make_machine(folder: Path, *, packages: tuple[Package, ...], pip: Path | None) -> Machine:
    machine = Machine(folder)
    make_interpreter(folder / "python", pip=pip)
    make_wheels(folder / "wheels", packages)
    (machine.host / "modules").mkdir(parents=True)
    (machine.host / "modules" / "launch_utils.py").touch()
    copy_extension(machine.extension)
    return machine


def few_packages(folder: Path, *, pip: Path | None) -> Machine:
    """With a trainer that needs only a few packages."""
    packages = tuple(package for package in WORKER_PACKAGES if package.name in FEW)
    machine = make_machine(folder, packages=packages, pip=pip)
    with (machine.extension / "lora_trainer" / "packages.py").open("a", encoding="utf-8") as stream:
        stream.write(
            "\nWORKER_PACKAGES = tuple(package for package in WORKER_PACKAGES if package.name in"
            f" {FEW})\n"
        )
    return machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """With the quick stand-in for pip."""
    return few_packages(tmp_path, pip=None)


@pytest.fixture
def machine_with_pip(tmp_path: Path) -> Machine:
    return few_packages(tmp_path, pip=real_pip())


IN_ONE_PROCESS = pytest.mark.xdist_group("installed")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine after a successful first run, by pip. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("installed")
    machine = make_machine(folder, packages=WORKER_PACKAGES, pip=real_pip())
    before = listing(machine.site)
    result = machine.install()
    assert result.returncode == 0, result.stdout
    assert listing(machine.site) == before
    return machine


@pytest.fixture(scope="module")
def installed_for_tests(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine after `install.py --tests`."""
    machine = make_machine(tmp_path_factory.mktemp("tools"), packages=EVERYTHING, pip=None)
    result = machine.install("--tests")
    assert result.returncode == 0, result.stdout
    return machine


@IN_ONE_PROCESS
def test_a_fresh_machine_gets_everything_into_the_extensions_folder(installed: Machine) -> None:
    (name,) = installed.sets()
    stamp = environment.read_stamp(installed.version_folder / name)
    assert stamp is not None
    assert stamp.versions == {
        package.key: package.version for package in WORKER_PACKAGES if package.applies()
    }


@IN_ONE_PROCESS
def test_the_second_run_is_quick_and_imports_neither_torch_nor_pip(installed: Machine) -> None:
    result = installed.install()
    assert result.returncode == 0
    assert "ready" in result.stdout
    # what makes it quick: no seconds are asserted, for the machine may be busy
    command = [str(installed.python), "-X", "importtime", str(installed.extension / "install.py")]
    traced = subprocess.run(
        command, env=installed.environ, capture_output=True, encoding="utf-8", check=True
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in traced.stderr.splitlines()
    }
    assert "lora_trainer" in imported
    assert not imported & {"torch", "pip", "numpy", "subprocess"}


@IN_ONE_PROCESS
def test_a_host_hears_nothing_when_there_is_nothing_to_do(installed: Machine) -> None:
    result = installed.install(environ=installed.host_environ)
    assert (result.returncode, result.stdout) == (0, "")


@IN_ONE_PROCESS
def test_a_ready_host_starts_at_once_while_another_one_installs(installed: Machine) -> None:
    unfinished = installed.version_folder / "p1"
    unfinished.mkdir()
    with files.lock(installed.version_folder / "lock"):
        result = installed.install(environ=installed.host_environ)
        assert (result.returncode, result.stdout) == (0, "")
        assert unfinished.exists()
    assert installed.install(environ=installed.host_environ).returncode == 0
    assert not unfinished.exists()


@IN_ONE_PROCESS
def test_the_packages_reach_a_process_that_was_started_in_isolation(
    installed: Machine, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(installed.extension)!r})\n"
        "from lora_trainer import environment\nenvironment.activate().require()\n"
        "import diffusers, torch\nprint(diffusers.__version__, torch.__version__)"
    )
    command = [str(installed.python), "-I", "-c", code]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=installed.environ,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert result.stdout.split() == ["0.35.2", "2.13.0"]


def test_a_hosts_own_packages_stay_as_they_are_and_are_used(machine_with_pip: Machine) -> None:
    machine = machine_with_pip
    old = {
        "torch": "2.1.2+cu121",
        "numpy": "1.26.2",
        "pillow": "11.3.0",
        "transformers": "4.30.2",
        "accelerate": "0.21.0",
        "safetensors": "0.4.2",
    }
    for package in WORKER_PACKAGES:
        if package.key in old:
            wheel = make_wheel(
                machine.folder / "old",
                package.name,
                old[package.key],
                dict.fromkeys(_modules(package.modules), ""),
            )
            unpack(wheel, machine.site)
    before = listing(machine.site)
    result = machine.install(environ=machine.host_environ)
    assert result.returncode == 0, result.stdout
    assert listing(machine.site) == before
    (name,) = machine.sets()
    stamp = environment.read_stamp(machine.version_folder / name)
    assert stamp is not None
    assert not stamp.versions.keys() & {"torch", "numpy", "pillow"}
    assert (
        stamp.versions["transformers"],
        stamp.versions["accelerate"],
        stamp.versions["safetensors"],
    ) == ("4.49.0", "1.10.1", "0.5.3")


def _modules(modules: tuple[str, ...]) -> list[str]:
    return [f"{module.replace('.', '/')}/__init__.py" for module in modules]


def test_a_failure_by_hand_ends_with_code_1_and_a_hint(machine_with_pip: Machine) -> None:
    machine = machine_with_pip
    next((machine.folder / "wheels").glob("peft-*")).unlink()
    result = machine.install()
    assert result.returncode == 1
    assert "LoRA Trainer: the package index has no wheel of peft==0.17.1" in result.stdout
    assert "INDEX_URL" in result.stdout
    assert "Traceback" not in result.stdout
    assert machine.sets() == []


def test_a_failure_under_a_host_is_told_and_does_not_stop_it(machine: Machine) -> None:
    next((machine.folder / "wheels").glob("peft-*")).unlink()
    result = machine.install(environ=machine.host_environ)
    assert result.returncode == 0
    assert "LoRA Trainer: the package index has no wheel of peft==0.17.1" in result.stdout


def test_even_an_unforeseen_failure_does_not_stop_a_host(machine: Machine) -> None:
    (machine.extension / "lora_trainer" / "installation.py").write_text(
        "raise RuntimeError('unforeseen')", encoding="utf-8"
    )
    result = machine.install(environ=machine.host_environ)
    assert result.returncode == 0
    assert "RuntimeError: unforeseen" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_host_with_a_torch_too_old_is_not_given_a_second_one_unasked(machine: Machine) -> None:
    unpack(
        make_wheel(machine.folder / "old", "torch", "2.0.1+cu118", {"torch/__init__.py": ""}),
        machine.site,
    )
    result = machine.install(environ=machine.host_environ)
    assert result.returncode == 0
    assert "the WebUI's torch 2.0.1+cu118 is too old; 2.1 or newer is needed" in result.stdout
    assert machine.sets() == []
    assert machine.install("--by-hand", environ=machine.host_environ).returncode == 0
    assert len(machine.sets()) == 1


@pytest.mark.parametrize(
    "arguments", ["--xformers --skip-install --theme dark", '--skip-install --theme "unbalanced']
)
def test_a_host_told_to_skip_installing_is_obeyed(machine: Machine, arguments: str) -> None:
    result = machine.install(environ={**machine.host_environ, "COMMANDLINE_ARGS": arguments})
    assert (result.returncode, result.stdout) == (0, "")
    assert not machine.version_folder.exists()


def test_skip_install_by_hand_installs_nothing_and_says_so(machine: Machine) -> None:
    result = machine.install("--skip-install")
    assert (result.returncode, result.stdout.strip()) == (
        0,
        "Nothing installed, because of --skip-install.",
    )
    assert not machine.version_folder.exists()


@IN_ONE_PROCESS
def test_the_test_tools_go_into_a_folder_of_their_own(installed_for_tests: Machine) -> None:
    machine = installed_for_tests
    (folder,) = (
        path
        for path in (machine.extension / "overlay-tests" / environment.python_tag()).iterdir()
        if path.is_dir()
    )
    stamp = environment.read_stamp(folder)
    assert stamp is not None
    assert stamp.versions["pytest"] == next(
        package.version for package in TEST_PACKAGES if package.name == "pytest"
    )
    assert "pytest" not in {
        path.name for path in (machine.version_folder / machine.sets()[0]).iterdir()
    }


@IN_ONE_PROCESS
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the WebUIs' gradio does not work on this Python"
)
def test_each_webui_that_the_tests_play_gets_its_gradio_in_a_folder_of_its_own(
    installed_for_tests: Machine,
) -> None:
    for host, version in (("a1111", "3.41.2"), ("forge", "4.40.0")):
        version_folder = (
            installed_for_tests.extension / "overlay-tests" / host / environment.python_tag()
        )
        (folder,) = (path for path in version_folder.iterdir() if path.is_dir())
        stamp = environment.read_stamp(folder)
        assert stamp is not None
        assert stamp.versions["gradio"] == version


def test_without_the_test_tools_the_tests_say_how_to_get_them(machine: Machine) -> None:
    (machine.extension / "tests").mkdir()
    shutil.copy(environment.ROOT / "tests" / "__main__.py", machine.extension / "tests")
    command = [str(machine.python), "-m", "tests"]
    result = subprocess.run(
        command,
        cwd=machine.extension,
        env=machine.environ,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.strip().endswith(f'Run: "{machine.python}" install.py --tests')


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no kill -9; a closed console ends pip too"
)
def test_an_installation_killed_midway_is_simply_done_again(machine: Machine) -> None:
    fake = machine.folder / "fake"
    (fake / "pip").mkdir(parents=True)
    (fake / "pip" / "__init__.py").touch()
    (fake / "pip" / "__main__.py").write_text(
        "import os, sys, time\nfrom pathlib import Path\ntarget ="
        " Path(sys.argv[sys.argv.index('--target') + 1])\n"
        "(target /"
        " 'diffusers').mkdir(parents=True)\nPath(__file__).with_name('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    with subprocess.Popen(
        machine.command(),
        env={**machine.environ, "PYTHONPATH": str(fake)},
        stdout=subprocess.DEVNULL,
    ) as process:
        pid = fake / "pip" / "pid"
        for _ in range(600):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.05)
        process.kill()
    assert machine.sets() == [f"p{process.pid}"]
    result = machine.install()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert result.returncode == 0, result.stdout
    (name,) = machine.sets()
    assert name != f"p{process.pid}"


@pytest.mark.skipif(
    sys.platform == "win32", reason="a console event would reach the test process too"
)
def test_ctrl_c_ends_with_a_sentence_and_clears_up(machine: Machine) -> None:
    fake = machine.folder / "fake"
    (fake / "pip").mkdir(parents=True)
    (fake / "pip" / "__init__.py").touch()
    (fake / "pip" / "__main__.py").write_text(
        "import time\nprint('Collecting patience', flush=True)\ntime.sleep(60)\n", encoding="utf-8"
    )
    environ = {**machine.environ, "PYTHONPATH": str(fake)}
    with subprocess.Popen(
        machine.command(),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Collecting patience" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert "Interrupted. Nothing half-done is left in use" in lines[-1]
    assert machine.sets() == []


def test_two_installations_at_once_install_once(machine: Machine) -> None:
    processes = [
        subprocess.Popen(
            machine.command(),
            env=machine.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("Installing" in output for output in outputs) == 1
    assert all("ready" in output for output in outputs)
    assert len(machine.sets()) == 1


def test_an_older_python_gets_as_far_as_the_sentence_that_names_it() -> None:
    text = (environment.ROOT / "install.py").read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 6))
    names = [node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert set(names) <= {"argparse", "contextlib", "os", "shlex", "subprocess", "sys"}
    check = "if sys.version_info < OLDEST:"
    assert text.count(check) == 1
    code = text.replace(check, "sys.version_info = (3, 8, 1)\n" + check)
    result = subprocess.run(
        [sys.executable, "-c", "__file__ = 'install.py'\n" + code],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout.startswith(
        "LoRA Trainer needs Python 3.10 or newer, and this is Python 3.8 ("
    )


def test_the_host_flag_is_accepted() -> None:
    from argparse import ArgumentParser

    import preload

    parser = ArgumentParser()
    preload.preload(parser)
    assert parser.parse_args([]).lora_trainer_data_dir is None
    assert (
        parser.parse_args(["--lora-trainer-data-dir", "D:/my data"]).lora_trainer_data_dir
        == "D:/my data"
    )


def test_what_one_captioner_needs_comes_when_it_is_asked_for_into_an_overlay_of_its_own(
    machine: Machine,
) -> None:
    make_wheels(machine.folder / "wheels", CAPTIONER_PACKAGES["wd"])
    version_folder = machine.extension / "overlay-wd" / environment.python_tag()
    assert machine.install().returncode == 0
    workers = machine.sets()
    assert not version_folder.exists()
    result = machine.install("--captioner", "wd")
    assert result.returncode == 0, result.stdout
    assert "LoRA Trainer (overlay-wd): ready" in result.stdout and machine.sets() == workers
    (found,) = environment.sets(version_folder)
    assert (found / "onnxruntime" / "__init__.py").is_file()
    assert "invalid choice: 'blip'" in machine.install("--captioner", "blip").stdout


def test_the_libraries_of_some_families_come_when_asked_for_into_an_overlay_of_their_own(
    machine: Machine,
) -> None:
    newer = tuple(one for one in FAMILY_PACKAGES["newer"] if one.name != "torch")
    make_wheels(machine.folder / "wheels", newer)
    version_folder = machine.extension / "overlay-newer" / environment.python_tag()
    assert machine.install().returncode == 0
    workers = machine.sets()
    assert not version_folder.exists()
    result = machine.install("--packages", "newer")
    assert result.returncode == 0, result.stdout
    assert "LoRA Trainer (overlay-newer): ready, 7 packages" in result.stdout
    assert machine.sets() == workers
    (found,) = environment.sets(version_folder)
    stamp = environment.read_stamp(found)
    assert stamp is not None
    assert stamp.versions == {package.key: package.version for package in newer}
    assert "invalid choice: 'older'" in machine.install("--packages", "older").stdout


def test_the_libraries_of_some_families_are_not_installed_beside_an_old_torch(
    machine: Machine,
) -> None:
    unpack(make_wheel(machine.folder, "torch", "2.3.1", {"torch/__init__.py": ""}), machine.site)
    result = machine.install("--packages", "newer")
    assert result.returncode == 1
    assert "needs torch 2.6 or newer, and the torch here is 2.3.1" in result.stdout
    assert not (machine.extension / "overlay-newer").exists()
