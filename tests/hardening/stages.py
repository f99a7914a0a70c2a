"""What is disturbed: the stages of the product in which something is written, each small enough to
be gone through a hundred times.

A stage is prepared in a folder of its own, acted out, and gone on with as a person would who starts
the program again or presses the button again. What then stands must be what stands when nobody
disturbed it, and nothing that was there before may be lost at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from safetensors import safe_open

from lora_trainer import environment, installation
from lora_trainer.dataset import caption_provenance
from lora_trainer.errors import LoraTrainerError
from lora_trainer.jobs import scheduler, trash
from lora_trainer.jobs.history import History
from lora_trainer.jobs.queue import Queue
from lora_trainer.jobs.start import note_death
from lora_trainer.packages import Package
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import captioning, training
from lora_trainer.tasks import caption as caption_task
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.http import routing
from lora_trainer.webui.images import uploads
from lora_trainer.webui.settings.presets import Presets
from lora_trainer.webui.settings.user_presets import UserPresets
from lora_trainer.worker import __main__ as worker
from lora_trainer.worker import job
from tests.made import draw_images, small_checkpoint
from tests.tasks.test_caption import Says

PLENTY = lambda path: 2**40  # noqa: E731


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    prepare: Callable[[Path], object]
    """What is there before, in an empty folder."""
    act: Callable[[Path], object]
    """What is disturbed."""
    go_on: Callable[[Path], object]
    """What a person does next: the same again, for most."""
    result: Callable[[Path], Any]
    """What stands at the end, to be compared."""
    lost: Callable[[Path], list[str]]
    """What has gone that was there before, at whatever moment it is looked at. One sentence each.
    """
    first: str = ""
    """Only what happens from the first operation on that names this: the stage before it has been
    disturbed elsewhere.
    """
    seconds: float = 60.0


# --- whatever the stage ---------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    """Every file below, but locks."""
    found = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    )
    return sorted(name for name in found if not name.endswith((".lock", "/lock")))


def rubbish(folder: Path) -> list[str]:
    """What a dead process left and nobody needs."""
    return [
        name
        for name in names(folder)
        if name.endswith(".part") or "/incoming/" in name or ".tmp" in name
    ]


@contextlib.contextmanager
def in_the_tab() -> Iterator[None]:
    """What the tab's routes make of an error of the system."""
    try:
        yield
    except OSError as error:
        raise routing._unexpected(error, False) from error


def _gone(folder: Path, *paths: str) -> list[str]:
    return [f"{path} is gone" for path in paths if not (folder / path).exists()]


# --- training and delivering ----------------------------------------------------------------------

IMAGES = 5


def training_settings(root: Path) -> training.RunConfig:
    values = {
        "train_data_dir": str(root / "images"),
        "base_model": str(small_checkpoint()),
        "output_dir": str(root / "runs" / "ink"),
        "lora_dir": str(root / "Lora"),
        "batch_size": 2,
        "epochs": 2,
        "save_steps": 2,
        "lora_rank": 2,
        "learning_rate": 1e-3,
        "sample_steps": 1,
        "sample_prompts": ["a red disc"],
        "sample_every": 3,
        "cache_latents": "disk",
        "device": "cpu",
        "target_modules": ["to_q", "to_v"],
    }
    return training.from_mapping(values)


def _prepare_training(root: Path) -> None:
    small_checkpoint()  # made here, once
    draw_images(root / "images", IMAGES)
    (root / "Lora").mkdir()
    (root / "Lora" / "other.safetensors").write_bytes(b"somebody else's")
    (root / "runs").mkdir()


def _train(root: Path) -> str:
    """Begin the run if it has not begun, and be its worker, as `start_worker` would start one.
    Raises what the run failed with.
    """
    folder = RunFolder(root / "runs" / "ink")
    if not folder.config.exists():
        folders.begin(folder.path, training.to_yaml(training_settings(root)))
    return "finished" if folder.read_state().status == "finished" else _work(folder)


def _work(folder: RunFolder) -> str:
    """Be the folder's worker; what it prints is in its log. Then say how it ended, as the scheduler
    does.
    """
    began = time.time()
    try:
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        # as the scheduler tells of a worker that cannot be started
        failure = scheduler._failure(error, began)
        raise LoraTrainerError(
            "{message} {todo}", message=failure.message, todo=failure.hint
        ) from error
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        status = worker.main([str(folder.path)])
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        status = 1
    failure = note_death(folder, status, since=began) or folder.read_state().failure
    if status in (job.FINISHED, job.STOPPED) or (
        failure is None and folder.read_state().status == "finished"
    ):
        # the disk may be full only after the last word: what is missing then is nobody's loss
        return folder.read_state().status
    assert failure is not None, "it failed and does not say why"
    raise LoraTrainerError("{message} {todo}", message=failure.message, todo=failure.hint)


def _weights(path: Path) -> str:
    """A hash of all tensors, whatever the metadata says of the time."""
    found = hashlib.sha256()
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            found.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    return found.hexdigest()


def _trained(root: Path) -> dict[str, Any]:
    folder = RunFolder(root / "runs" / "ink")
    state = folder.read_state()
    losses = {
        event.step: event.loss
        for event in folder.read_events()
        if isinstance(event, events.Progress) and event.loss is not None
    }
    files = [
        "runs/ink/ink.safetensors",
        "runs/ink/pytorch_lora_weights.safetensors",
        "runs/ink/checkpoints/ink-step00000002.safetensors",
        "Lora/ink.safetensors",
    ]
    return {
        "status": state.status,
        "losses": losses,
        "weights": {
            file: _weights(root / file) if (root / file).exists() else None for file in files
        },
        "Lora": names(root / "Lora"),
        "delivered": Path(state.delivered).name,
        "saved": names(folder.checkpoints),
        "states": names(folder.state),
        "rubbish": rubbish(root),
    }


def _lost_in_training(root: Path) -> list[str]:
    other = root / "Lora" / "other.safetensors"
    lost = (
        []
        if other.exists() and other.read_bytes() == b"somebody else's"
        else ["somebody else's LoRA"]
    )
    return lost + _gone(
        root, "images/metadata.csv", *(f"images/img{number:02d}.png" for number in range(IMAGES))
    )


TRAINING = Stage(
    name="training",
    prepare=_prepare_training,
    act=_train,
    go_on=_train,
    result=_trained,
    lost=_lost_in_training,
)
DELIVERING = Stage(
    name="delivering",
    prepare=_prepare_training,
    act=_train,
    go_on=_train,
    result=_trained,
    lost=_lost_in_training,
    first=" Lora/",
)

# --- captioning -----------------------------------------------------------------------------------

BY_HAND = "by a person: 山, and nothing else"


def _prepare_captioning(root: Path) -> None:
    images = root / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (number * 10,) * 3).save(images / f"img{number}.png")
    (images / "img3.txt").write_text(BY_HAND, encoding="utf-8")


def _caption(root: Path) -> str:
    """A caption job, as the worker does it, with a captioner that says how bright an image is; it
    writes after every batch.
    """
    settings = captioning.from_mapping(
        {"input": str(root / "images"), "captioner": "blip", "batch_size": 2, "device": "cpu"}
    )
    folder = folders.begin_captioning(root / "runs" / "captions", captioning.to_yaml(settings))

    with (
        mock.patch.object(caption_task.CaptionTask, "prepare_files", lambda task, selection: None),
        mock.patch.object(caption_task.CaptionTask, "load", lambda task, selection, files: Says()),
        mock.patch.object(caption_task, "WRITE_SECONDS", 0.0),
    ):
        return _work(folder)


def _captions(images: Path) -> dict[str, str]:
    return {
        item.name: item.caption for item in CaptionStore(images, follow_links=True).view().items
    }


def _captioned(root: Path) -> dict[str, Any]:
    written = sorted(
        (one.text, one.by, one.before)
        for one in caption_provenance.read_authors(root / "images").by_digest.values()
    )
    return {"captions": _captions(root / "images"), "by": written, "rubbish": rubbish(root)}


def _lost_in_captioning(root: Path) -> list[str]:
    lost = _gone(root, *(f"images/img{number}.png" for number in range(6)))
    text = root / "images" / "img3.txt"
    if not text.exists() or text.read_text(encoding="utf-8") != BY_HAND:
        lost.append("what a person wrote of img3.png")
    if not lost:
        lost += [
            f"{name}: {caption!r}"
            for name, caption in _captions(root / "images").items()
            if caption not in ("", BY_HAND, f"level {int(name[3]) * 10}")
        ]
    return lost


CAPTIONING = Stage(
    name="captioning",
    prepare=_prepare_captioning,
    act=_caption,
    go_on=_caption,
    result=_captioned,
    lost=_lost_in_captioning,
)

# --- installing -----------------------------------------------------------------------------------

PACKAGE = Package(name="trainer", version="1.0", modules=("trainer",))
PIP = """
import sys
from pathlib import Path
target = Path(sys.argv[sys.argv.index("--target") + 1])
for name, text in (("trainer/__init__.py", ""), ("trainer-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: trainer\\nVersion: 1.0\\n")):
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text(text)
"""


def _overlay(root: Path) -> environment.Overlay:
    return environment.find_overlay(root / "overlay", wanted=(PACKAGE,), folders=())


def _prepare_installing(root: Path) -> None:
    (root / "pip").mkdir()
    (root / "pip" / "__init__.py").touch()
    (root / "pip" / "__main__.py").write_text(PIP, encoding="utf-8")
    old = root / "overlay" / environment.python_tag() / "0123456789"
    old.mkdir(parents=True)
    (old / "old.py").touch()


def _install(root: Path) -> str:
    installation.install(
        _overlay(root),
        environ={**os.environ, "PYTHONPATH": str(root)},
        echo=lambda line: None,
        free_space=PLENTY,
    )
    return _overlay(root).state


def _installed(root: Path) -> dict[str, Any]:
    overlay = _overlay(root)
    return {
        "state": overlay.state,
        "version_folder": sorted(path.name for path in overlay.version_folder.iterdir()),
        "rubbish": rubbish(root),
    }


def _lost_in_installing(root: Path) -> list[str]:
    overlay = _overlay(root)
    half = overlay.folder is not None and not (overlay.folder / "trainer" / "__init__.py").exists()
    return [f"half a set is taken for a whole one: {overlay.folder}"] if half else []


INSTALLING = Stage(
    name="installing",
    prepare=_prepare_installing,
    act=_install,
    go_on=_install,
    result=_installed,
    lost=_lost_in_installing,
)

# --- uploading ------------------------------------------------------------------------------------


def _picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {
            "fox.png": _picture("red"),
            "owl.png": _picture("blue"),
            "owl.txt": b"an owl",
            "a/elk.png": _picture("green"),
        }.items():
            archive.writestr(name, data)
    return buffer.getvalue()


UPLOADS: dict[str, bytes] = {
    "one.png": _picture("orange"),
    "all.zip": _archive(),
    "captions.csv": b"file_name,text\nfox.png,a fox\none.png,one\n",
}


def _prepare_uploading(root: Path) -> None:
    images = root / "images"
    images.mkdir()
    (images / "old.png").write_bytes(_picture("white"))
    (images / "metadata.csv").write_text("file_name,text\nold.png,an old one\n", encoding="utf-8")


def _upload(root: Path) -> list[str]:
    """Three uploads, as the route takes them. Returns why what was left out was left out; raises it
    when it has no sentence for a person.
    """
    store, skipped = CaptionStore(root / "images", follow_links=False), []
    for name, data in UPLOADS.items():

        async def pieces(data: bytes = data) -> Any:
            yield data

        try:
            with in_the_tab():
                incoming = asyncio.run(uploads.receive(pieces(), store, name, len(data), PLENTY))
                skipped += [
                    str(one.message)
                    for one in uploads.accept(store, incoming, name, free=PLENTY).skipped
                ]
        except LoraTrainerError as error:
            skipped.append(error.report())
    told = [sentence for sentence in skipped if "is already in this dataset" not in sentence]
    if told:
        raise LoraTrainerError("{all}", all="; ".join(told))
    return skipped


def _uploaded(root: Path) -> dict[str, Any]:
    pictures = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (root / "images").glob("*.png")
    }
    # what lies in incoming may be another browser's, on its way: it goes after a day
    left = [name for name in rubbish(root) if "/incoming/" not in name]
    return {"pictures": pictures, "captions": _captions(root / "images"), "rubbish": left}


def _lost_in_uploading(root: Path) -> list[str]:
    lost = _gone(root, "images/old.png")
    if not lost and _captions(root / "images")["old.png"] != "an old one":
        lost.append("the caption of old.png")
    known = {
        hashlib.sha256(_picture(colour)).hexdigest()
        for colour in ("white", "orange", "red", "blue", "green")
    }
    pictures = (root / "images").glob("*.png")
    return lost + [
        f"{path.name} is half an image"
        for path in pictures
        if hashlib.sha256(path.read_bytes()).hexdigest() not in known
    ]


UPLOADING = Stage(
    name="uploading",
    prepare=_prepare_uploading,
    act=_upload,
    go_on=_upload,
    result=_uploaded,
    lost=_lost_in_uploading,
)

# --- editing captions, removing images ----------------------------------------------------------

BEFORE = {f"img{number:02d}.png": f"a disc, {number}" for number in range(4)}
AFTER = {name: caption.replace("disc", "ball") for name, caption in BEFORE.items()}
IN_TEXTS = ("img02.png", "img03.png")


def _prepare_editing(root: Path) -> None:
    images = draw_images(root / "images", len(BEFORE))
    rows = "".join(
        f'{name},"{caption}",kept\r\n' for name, caption in BEFORE.items() if name not in IN_TEXTS
    )
    (images / "metadata.csv").write_text(
        f"file_name,text,mark\r\n{rows}", encoding="utf-8", newline=""
    )
    for name in IN_TEXTS:
        (images / name).with_suffix(".txt").write_text(BEFORE[name], encoding="utf-8")


def _bench(root: Path) -> Workbench:
    return Workbench(CaptionStore(root / "images", follow_links=True))


def _edit(root: Path) -> int:
    """A bulk edit, taken back and made again; two captions are looked at; and one image goes to
    the trash and comes back.
    """
    bench = _bench(root)
    keys = [item.key for item in bench.store.view().items]
    with in_the_tab():
        bench.apply(bench.preview(keys, {"do": "replace", "find": "disc", "replace": "ball"}))
        bench.undo()
        bench.redo()
        bench.mark(keys[:2], reviewed=True)
        bench.remove(keys[:1])
        bench.restore(keys[:1])
    return len(keys)


def _edit_again(root: Path) -> None:
    bench = _bench(root)
    for removed in bench.store.removed():
        with contextlib.suppress(LoraTrainerError):
            bench.restore([removed.key])
    bench.apply(
        bench.preview(
            [item.key for item in bench.store.view().items],
            {"do": "replace", "find": "disc", "replace": "ball"},
        )
    )


def _edited(root: Path) -> dict[str, Any]:
    trash_left = (
        names(root / "images" / caption_provenance.FOLDER / "removed")
        if (root / "images" / caption_provenance.FOLDER / "removed").exists()
        else []
    )
    return {
        "captions": _captions(root / "images"),
        "table": sorted((root / "images" / "metadata.csv").read_bytes().split(b"\r\n")),
        "trash": trash_left,
        "rubbish": rubbish(root),
    }


def _lost_in_editing(root: Path) -> list[str]:
    """An image is in its place or in the trash, and its caption is the old one or the new one,
    whole.
    """
    captions, store = (
        _captions(root / "images"),
        CaptionStore(root / "images", follow_links=True),
    )
    in_trash = {removed.name: removed for removed in store.removed()}
    lost = []
    for name, caption in BEFORE.items():
        if (root / "images" / name).exists():
            known = {caption, AFTER[name]} | ({""} if name in in_trash else set())
            if captions.get(name) not in known:
                lost.append(f"the caption of {name} is {captions.get(name)!r}")
        elif name not in in_trash or not (in_trash[name].folder / name).exists():
            lost.append(f"{name} is gone")
    return lost


EDITING = Stage(
    name="editing",
    prepare=_prepare_editing,
    act=_edit,
    go_on=_edit_again,
    result=_edited,
    lost=_lost_in_editing,
)

# --- the data folder: deleting, queueing, presets -------------------------------------------------


def _prepare_keeping(root: Path) -> None:
    for name in ("old", "new"):
        folder = root / "runs" / name
        (folder / "state").mkdir(parents=True)
        (folder / "config.yaml").write_text(
            training.to_yaml(training_settings(root)), encoding="utf-8"
        )
        (folder / "state" / "step00000002.pt").write_bytes(b"learned")
    draw_images(root / "datasets" / "fox", 2)
    draw_images(root / "datasets" / "owl", 2)


def _keep(root: Path) -> str:
    """Delete a run and a dataset, put the other run into the queue, name the other dataset, save a
    preset.
    """
    data, problems = DataFolder(root), []
    datasets = Datasets(data, lambda: False)
    acts: list[Callable[[], object]] = [
        lambda: (
            trash.discard(root / "runs" / "old", root / "trash", kind="run", now=1e9)
            if (root / "runs" / "old").exists()
            else None
        ),
        lambda: datasets.delete("fox") if (root / "datasets" / "fox").exists() else None,
        lambda: Queue(data.queue).add("new", token="click"),
        lambda: datasets.rename("owl", "My owl"),
        lambda: UserPresets(data, Presets()).save("Mine", "", {"lora_rank": 4}, replace=True),
    ]
    for act in acts:
        try:
            with in_the_tab():
                act()
        except LoraTrainerError as error:
            problems.append(error.report())
    if problems:
        raise LoraTrainerError("{all}", all="; ".join(problems))
    return "done"


def _held(root: Path) -> dict[str, Any]:
    data = DataFolder(root)
    return {
        "runs": [(entry.id, entry.resume_step) for entry in History(root / "runs").listing()],
        "discarded": [found.name for found in trash.contents(root / "trash", "run")],
        "datasets": [dataset.name for dataset in Datasets(data, lambda: False).all()],
        "queue": Queue(data.queue).read().waiting,
        "presets": [
            preset["title"] for preset in UserPresets(data, Presets()).listing("en")["presets"]
        ],
        "rubbish": rubbish(root),
    }


def _lost_in_keeping(root: Path) -> list[str]:
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    lost = []
    for wanted in ("state/step00000002.pt", "img00.png", "img01.png"):
        count = sum(name.endswith(wanted) for name in found)
        if count != 2:
            lost.append(f"there are {count} of {wanted}, in a folder or in the trash, for 2")
    entries = {entry.id: entry.problem for entry in History(root / "runs").listing()}
    return lost + [
        f"the run {name} cannot be read: {problem}" for name, problem in entries.items() if problem
    ]


KEEPING = Stage(
    name="keeping",
    prepare=_prepare_keeping,
    act=_keep,
    go_on=_keep,
    result=_held,
    lost=_lost_in_keeping,
)

STAGES = (DELIVERING, CAPTIONING, INSTALLING, UPLOADING, EDITING, KEEPING, TRAINING)
