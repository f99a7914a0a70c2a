"""The house's rules: which package may import which, read from the source, so that a stray `import
torch` in the tab is seen at once.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from lora_trainer import families

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_trainer"
pytestmark = pytest.mark.xdist_group("house")  # one process: each source is parsed once

TORCH_STACK = {
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "bitsandbytes",
    "ftfy",
    "huggingface_hub",
    "tokenizers",
}
BASICS = {"errors", "files", "__init__"}
UP_TO_ADAPTERS = BASICS | {
    "settings",
    "runs",
    "dataset",
    "checkpoint",
    "families",
    "lora",
    "adapters",
}
LIGHT_CHECKPOINT = {
    "checkpoint.parts",
    "checkpoint.header",
    "checkpoint.detect",
    "checkpoint.architecture",
    "checkpoint.names",
    "checkpoint.folder",
    "checkpoint.licence",
    "checkpoint.packages",
    "checkpoint.part_files",
}

LIGHT_CAPTIONING = {"captioning.captioner", "captioning.captioners"}

# package or module of lora_trainer -> (what it may import from outside the standard library, what
# of lora_trainer)
RULES: dict[str, tuple[set[str], set[str]]] = {
    "__init__": (set(), set()),
    "errors": (set(), set()),
    "files": (set(), set()),
    "packages": (set(), BASICS),
    "deferred": (set(), set()),
    "environment": (set(), BASICS | {"packages", "deferred"}),
    "diagnosis": ({"psutil"}, BASICS | {"packages", "environment"}),
    "installation": (set(), BASICS | {"packages", "environment"}),
    "settings": (
        {"yaml"},
        BASICS | LIGHT_CAPTIONING | {"training.losses", "training.optimizers", "adapters.types"},
    ),
    "runs": (set(), BASICS),
    "dataset": (
        {"PIL", "numpy", "yaml", "ftfy", "charset_normalizer"},
        BASICS | {"settings"},
    ),
    "families": (TORCH_STACK, BASICS | {"settings", "dataset", "checkpoint"}),
    "frozen": ({"torch"}, BASICS),
    "cpu": ({"torch", "peft"}, BASICS | {"frozen", "adapters"}),
    "checkpoint": (
        TORCH_STACK | {"yaml"},
        BASICS
        | {
            "environment",
            "settings",
            "runs",
            "dataset",
            "families",
            "frozen",
            "cpu.convolutions",
        },
    ),
    "lora": (
        TORCH_STACK | {"PIL"},
        BASICS | {"settings", "runs", "dataset", "checkpoint", "families", "training.optimizers"},
    ),
    "adapters": (
        TORCH_STACK,
        BASICS | {"settings", "checkpoint", "families", "lora.names", "lora.file", "lora.changes"},
    ),
    "captioning": (
        TORCH_STACK | {"PIL", "onnxruntime"},
        BASICS | {"settings", "runs", "dataset", "checkpoint"},
    ),
    "language": (
        TORCH_STACK,
        BASICS
        | {
            "environment",
            "settings",
            "runs",
            "dataset",
            "checkpoint.header",
            "lora",
            "adapters",
            "training",
        },
    ),
    "training": (
        TORCH_STACK | {"PIL", "psutil", "tensorboardX"},
        UP_TO_ADAPTERS | {"environment"},
    ),
    "tasks": (
        TORCH_STACK | {"PIL", "psutil"},
        UP_TO_ADAPTERS
        | {
            "frozen",
            "cpu",
            "captioning",
            "language",
            "training",
            "environment",
            "verdict",
            "report",
        },
    ),
    "planner": (
        TORCH_STACK | {"psutil"},
        BASICS
        | {
            "settings",
            "runs",
            "dataset",
            "checkpoint",
            "families",
            "frozen",
            "cpu",
            "language.detect",
            "lora.changes",
            "adapters",
            "training",
            "tasks",
        },
    ),
    "bench": (
        {"torch", "tokenizers", "PIL", "numpy", "psutil"},
        BASICS
        | {
            "settings",
            "runs",
            "jobs",
            "checkpoint",
            "families.tokenizer_kinds",
            "training.device",
            "planner",
        },
    ),
    "worker": (
        {"PIL"},
        BASICS
        | {
            "settings",
            "runs",
            "dataset",
            "checkpoint.packages",
            "lora",
            "training",
            "tasks",
            "planner",
            "jobs.start",
            "environment",
        },
    ),
    "jobs": ({"psutil", "yaml"}, BASICS | {"settings", "runs", "environment"}),
    "verdict": (set(), BASICS | {"runs", "settings", "training.optimizers"}),
    "report": ({"PIL"}, BASICS | {"settings", "runs", "dataset", "verdict"}),
    "console": ({"tqdm"}, BASICS | {"runs", "jobs"}),
    "demo": (
        TORCH_STACK | {"PIL", "yaml"},
        UP_TO_ADAPTERS | {"training", "worker", "jobs", "console", "environment", "report"},
    ),
    "hosts": ({"PIL"}, BASICS | {"runs"}),
    "webui": (
        {"gradio", "fastapi", "starlette", "PIL", "yaml"},
        BASICS
        | {
            "jobs",
            "dataset",
            "settings",
            "runs",
            "environment",
            "packages",
            "hosts",
            "families",
            "lora.certificate",
            "lora.changes",
            "lora.credits",
            "lora.deliver",
            "lora.file",
            "lora.host_layers",
            "lora.training_adapter",
            "adapters.size",
            "language.conversations",
            "language.detect",
            "language.pairs",
            "language.text_files",
            "planner.formula",
            "planner.plan",
            "planner.throughput",
            "demo.EMBEDDED",
            "training.optimizers",
            "verdict",
        }
        | LIGHT_CHECKPOINT
        | LIGHT_CAPTIONING,
    ),
    "__main__": ({"yaml"}, {"*"}),
}
HOST = {"modules", "modules_forge", "backend", "ldm_patched", "launch"}


@cache
def parsed(path: Path) -> ast.Module:
    """A source, for reading only."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Full names of everything a file imports, inside functions too, but for what only type
    checkers see.
    """
    found: set[str] = set()
    left: list[ast.AST] = [parsed(path)]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts]


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def broken_rules(path: Path) -> list[str]:
    outside, inside = RULES[place(path)]
    problems = []
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "lora_trainer":
            target = name.removeprefix("lora_trainer.").split(".")
            own = target[0] == place(path) or target[0] in ("lora_trainer", "__version__")
            allowed = {target[0], ".".join(target[:2])} & inside
            if not own and not allowed and "*" not in inside:
                problems.append(f"{path.name} imports {name}")
        elif top in HOST:
            if place(path) != "hosts":
                problems.append(f"{path.name} imports the host: {name}")
        elif top not in sys.stdlib_module_names and top not in outside:
            problems.append(f"{path.name} imports {name}")
    return problems


@pytest.mark.parametrize("name", sorted({place(path) for path in sources()}))
def test_a_module_imports_only_what_its_place_allows(name):
    paths = [path for path in sources() if place(path) == name]
    assert [problem for path in paths for problem in broken_rules(path)] == []


def test_the_rules_notice_a_stray_import(tmp_path, monkeypatch):
    stray = PACKAGE / "webui" / "tab.py"
    monkeypatch.setattr(
        sys.modules[__name__],
        "imports_of",
        lambda path: {"torch", "lora_trainer.training.train", "modules.shared", "json"},
    )
    assert len(broken_rules(stray)) == 3


def test_what_the_tab_reads_of_the_torch_packages_stays_light():
    for name in LIGHT_CHECKPOINT | {"training.losses", "training.optimizers"}:
        path = PACKAGE / (name.replace(".", "/") + ".py")
        assert not {imported.split(".")[0] for imported in imports_of(path)} & TORCH_STACK, name
        ours = {imported for imported in imports_of(path) if imported.startswith("lora_trainer.")}
        assert all(
            imported.removeprefix("lora_trainer.").startswith(
                (*LIGHT_CHECKPOINT, "errors", "files", "environment", "settings", "families")
            )
            for imported in ours
        ), name


@pytest.mark.parametrize("package", ["lora_trainer.families", "lora_trainer.adapters.types"])
def test_what_the_tab_offers_is_asked_without_torch(package):
    # by the tab, whose process has none of ours
    heavy = sorted(TORCH_STACK)
    code = (
        f"import sys, {package} as registry; registry.every();"
        f" found = [name for name in {heavy} if name in sys.modules];"
        " sys.exit(str(found) if found else 0)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# tables of other trainers' LoRA files, among them models that cannot be trained here
OTHERS_FAMILIES = {"lora/layouts.py"}


# room of the tab -> what else of the tab it may import. Sections know shared rooms, and each other
# only where what one shows is what another makes
SHARED = {"texts", "common", "http", "datasets", "loras"}
TAB: dict[str, set[str]] = {
    "texts": set(),
    "common": {"texts"},
    "http": {"texts", "common", "lazy_app"},
    "datasets": {"texts", "common", "http"},
    "loras": {"common"},
    "settings": SHARED,
    # an earlier run fills the form again
    "training": SHARED | {"settings"},
    # a captioner's run stands in the queue with the trainings
    "captions": SHARED | {"training"},
    # what is uploaded or removed is undone in the workbench
    "images": SHARED | {"captions"},
    "comparing": SHARED,
    # a job that answers stands in the queue with the trainings
    "asking": SHARED | {"training"},
    # pairs are edited with the workbench's undo, and made by a job
    "pairs": SHARED | {"captions", "training"},
    # what the page needs when it opens has parts of the settings' types
    "tab": SHARED | {"settings"},
    "options": {"texts", "common", "settings"},
    "callbacks": {"texts", "options", "lazy_app"},
    "lazy_app": {"callbacks", "app", "http"},
    "app": {"*"},
}
ROUTES_TOO = {"app", "http", "lazy_app"}
"""What a routes.py may import besides: what it is given, and its address."""


def broken_tab_rules(path: Path) -> list[str]:
    room, *rest = path.relative_to(PACKAGE / "webui").with_suffix("").parts
    allowed = TAB[room] | {room} | (ROUTES_TOO if rest == ["routes"] else set())
    prefix = "lora_trainer.webui."
    names = {name for name in imports_of(path) if name.startswith(prefix)}
    others = {name.removeprefix(prefix).split(".")[0] for name in names} - allowed
    return [] if "*" in allowed else [f"{room} imports {other}" for other in sorted(others)]


def test_sections_of_the_tab_import_what_is_shared_and_not_each_other(monkeypatch):
    paths = [path for path in sources() if place(path) == "webui" and path.name != "__init__.py"]
    assert [problem for path in paths for problem in broken_tab_rules(path)] == []
    strays = {"lora_trainer.webui.training.runs", "lora_trainer.webui.app.App", "json"}
    monkeypatch.setattr(sys.modules[__name__], "imports_of", lambda path: strays)
    comparing = PACKAGE / "webui" / "comparing"
    assert broken_tab_rules(comparing / "generation.py") == [
        "comparing imports app",
        "comparing imports training",
    ]
    assert broken_tab_rules(comparing / "routes.py") == ["comparing imports training"]


def families_named_in(path: Path) -> set[str]:
    """Texts in a file that are a family's word, for comparing or as a table's key."""
    words = set()
    for family in families.every():
        kinds = (None, "epsilon", "v_prediction")
        words |= {family.id, family.name, family.sd_version}
        words |= {family.base_model_version(kind) for kind in kinds}
        words |= {family.spec_architecture(kind) for kind in kinds}
    tree = parsed(path)
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in words
    }


def test_no_familys_name_is_known_outside_its_module():
    for path in sources():
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("families/") and name not in OTHERS_FAMILIES:
            assert families_named_in(path) == set(), f"{name}: ask the family instead"


def test_a_familys_name_that_strays_is_noticed(tmp_path):
    path = tmp_path / "stray.py"
    path.write_text('"""SDXL and SD2."""\nTABLE = {"sdxl": 1}\nis_v2 = family == "sd2"\n')
    assert families_named_in(path) == {"sdxl", "sd2"}


# this one has to know where in the text each value stands
OTHERS_JSON = {"dataset/json_rows.py"}


# ten times as fast, and whatever it finds hard it leaves to settings.schema
FAST_YAML = {"jobs/history.py"}


def test_json_and_yaml_are_read_in_one_place_each():
    for path in sources():
        read = {
            ast.unparse(node)
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads", "safe_load")
        }
        name = path.relative_to(PACKAGE).as_posix()
        assert name in {"files.py", *OTHERS_JSON} or not read & {
            "json.loads",
            "json.load",
            "json.JSONDecoder",
        }, f"{name}: use files.parse_json"
        assert name in {"settings/schema.py", *FAST_YAML} or not read & {
            "yaml.load",
            "yaml.safe_load",
        }, f"{name}: use schema.parse_yaml"


def attributes_born_late(path: Path) -> list[str]:
    """What a class sets on itself in a method that neither its fields nor __init__ name."""
    late = []
    for definition in ast.walk(parsed(path)):
        if not isinstance(definition, ast.ClassDef):
            continue
        known = {
            ast.unparse(each.target) for each in definition.body if isinstance(each, ast.AnnAssign)
        }
        methods = [each for each in definition.body if isinstance(each, ast.FunctionDef)]
        for method in sorted(methods, key=lambda each: each.name != "__init__"):
            stored = {
                node.attr
                for node in ast.walk(method)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            }
            if method.name == "__init__":
                known |= stored
            late += [f"{path.name}: {definition.name}.{name}" for name in sorted(stored - known)]
    return late


def test_no_attribute_of_a_task_is_born_outside_its_init(tmp_path):
    for folder in ("tasks", "training"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert attributes_born_late(path) == []
    (tmp_path / "late.py").write_text(
        "class Job:\n    def __init__(self):\n        self.a = 1\n"
        "    def run(self):\n        self.a = 2\n        self.b = 3\n",
        encoding="utf-8",
    )
    assert attributes_born_late(tmp_path / "late.py") == ["late.py: Job.b"]


def classes_named_twice(paths: list[Path]) -> dict[str, list[str]]:
    """Name -> the files that define a class of this name, where they are several."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path.name)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_each_class_has_a_name_of_its_own(tmp_path):
    assert classes_named_twice(sources()) == {}
    (tmp_path / "one.py").write_text("class Plan: ...\nclass One: ...\n", encoding="utf-8")
    (tmp_path / "other.py").write_text("class Plan: ...\n", encoding="utf-8")
    assert classes_named_twice([tmp_path / "one.py", tmp_path / "other.py"]) == {
        "Plan": ["one.py", "other.py"]
    }


def test_no_file_speaks_of_one_machine():
    for path in [*sources(), *ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("tests/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text and str(Path.home()) + "/" not in text, path


def test_there_is_no_scripts_package():
    # the host executes each scripts/*.py by path; an __init__.py there shadows other extensions
    assert not (ROOT / "scripts" / "__init__.py").exists()


def test_the_files_that_the_architecture_names_are_there():
    text = (PACKAGE / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w-]+(?:/[\w-]+)*\.(?:py|js))`", text))
    there = ["/install.py"]
    there += ["/" + path.relative_to(ROOT).as_posix() for path in sources()]
    for folder in ("tests", "javascript", "scripts"):
        there += ["/" + path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*")]
    lost = [one for one in sorted(named) if not any(path.endswith(f"/{one}") for path in there)]
    assert len(named) > 30 and lost == [], lost
