"""Every kind of file that is read, with a sound example and how it is read: what mutations.py
damages.

`make` fills a folder and returns the file that is damaged; `read` reads it as the product does.
Whatever the file holds, that is a value or a LoraTrainerError. Where it lies in a list, its sound
neighbour must still be there: `read` raises Hidden when it is not, and Escaped when something was
written outside the folder that it belongs in.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from lora_trainer import environment, families, report, verdict
from lora_trainer.captioning.captioners import clip, wd
from lora_trainer.checkpoint.detect import detect_file, read_sidecar
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.dataset import caption_provenance, embeddings
from lora_trainer.dataset.check.measure import Measures, measure_all
from lora_trainer.dataset.check.similarity import clusters
from lora_trainer.dataset.check.store import Store
from lora_trainer.dataset.images import examine, read_image, write_reduced
from lora_trainer.dataset.metadata import read_metadata
from lora_trainer.dataset.scan import scan
from lora_trainer.dataset.template import Vocabulary, read_vocabulary, write_vocabulary
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.hosts import gpu_lease
from lora_trainer.jobs import trash
from lora_trainer.jobs.history import History
from lora_trainer.jobs.queue import Queue
from lora_trainer.lora.deliver import deliver
from lora_trainer.lora.describe import describe
from lora_trainer.lora.file import encode_header
from lora_trainer.planner import throughput
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import send_request, take_requests
from lora_trainer.settings import captioning, training
from lora_trainer.settings.training import DatasetSettings
from lora_trainer.tasks.report import is_orphan
from lora_trainer.training import checksummed, resume
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.comparing import comparisons
from lora_trainer.webui.comparing.generation import ComparisonJobs
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.datasets.registry import Datasets
from lora_trainer.webui.images import uploads
from lora_trainer.webui.loras import sidecar
from lora_trainer.webui.loras.library import Loras
from lora_trainer.webui.settings import checkpoints, image_cache
from lora_trainer.webui.settings.checkpoints import Checkpoints
from lora_trainer.webui.settings.presets import Presets
from lora_trainer.webui.settings.user_presets import UserPresets
from lora_trainer.webui.training import run_view
from tests.made import draw_images
from tests.webui.lora_files import write_lora, write_run
from tests.webui.painting_host import PaintingHost

PLENTY = lambda path: 2**40  # noqa: E731
Form = Literal["text", "json", "safetensors", "picture", "binary"]


class Hidden(AssertionError):
    """One broken thing hides a sound one beside it."""


class Escaped(AssertionError):
    """What a file said led out of the folder."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path, Path], object]
    """(folder, file)"""
    form: Form = "json"
    seconds: float = 5.0
    """Of the processor's time; several times what a slow machine takes: this is to find what grows
    with the square of a file's size, which takes minutes.
    """
    megabytes: int = 400
    """What it may take at its height."""


def _require(there: bool, what: str) -> None:
    if not there:
        raise Hidden(what)


def _each(*reads: Callable[[], object]) -> None:
    """All of them: a sentence of one says nothing of the next."""
    for read in reads:
        with contextlib.suppress(LoraTrainerError):
            read()


# --- images -------------------------------------------------------------------------------------


def _picture(form: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"img.{form.lower()}"
        image = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(
            path, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}), **options
        )
        return path

    return make


def _look_at_picture(folder: Path, path: Path) -> None:
    _each(
        lambda: examine(path),
        lambda: read_image(path),
        lambda: write_reduced(path, folder / "small.webp", 256),
    )


def _mask(folder: Path) -> Path:
    draw_images(folder / "images", 3)
    path = folder / "images" / "img00-masklabel.png"
    Image.new("L", (64, 64), 255).save(path)
    return path


def _card(folder: Path) -> Path:
    write_lora(folder / "ink.safetensors")
    (folder / "Lora").mkdir()
    return _picture("PNG")(folder)


def _deliver_with_card(folder: Path, path: Path) -> None:
    deliver(
        folder / "ink.safetensors",
        folder / "Lora",
        "ink",
        trigger="",
        preferred_weight=0.7,
        family=families.get("sd1"),
        preview=path,
    )


# --- captions -------------------------------------------------------------------------------------


def _dataset(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        images = draw_images(folder / "images", 3)
        (images / "metadata.csv").unlink()
        (images / "img02.txt").write_text("the neighbour", encoding="utf-8")
        (images / name).write_text(text, encoding="utf-8")
        return images / name

    return make


def _work_with_captions(folder: Path, path: Path) -> None:
    """Scanned for training, shown in the tab, and edited there."""
    images = folder / "images"

    def show() -> None:
        view = CaptionStore(images, follow_links=True).view()
        found = {item.name: item for item in view.items}
        _require(
            set(found) >= {"img00.png", "img01.png", "img02.png"},
            f"images beside {path.name}: {sorted(found)}",
        )
        json.dumps(
            [str(finding.message) for item in view.items for finding in item.findings]
            + [item.caption for item in view.items]
        )

    def edit() -> None:
        bench = Workbench(CaptionStore(images, follow_links=True))
        keys = [item.key for item in bench.store.view().items]
        bench.apply(bench.preview(keys, {"do": "replace", "find": "disc", "replace": "ball"}))

    _each(lambda: scan(DatasetSettings(train_data_dir=images, trigger_word="zorb")), show, edit)


CSV = (
    'file_name,text,mark\nimg00.png,"a red disc, ""quoted""",1\nimg01.png,"a green disc\nin two'
    ' lines",2\n'
)
JSONL = (
    '{"file_name": "img00.png", "text": "a red disc"}\n{"file_name": "img01.png", "text": "a green'
    ' disc", "more": {"a": [1, 2.5e3]}}\n'
)

# --- runs -----------------------------------------------------------------------------------------


def _runs(folder: Path) -> RunFolder:
    write_run(folder / "runs", "sound")
    return write_run(folder / "runs", "hurt")


def _run_file(
    get: Callable[[RunFolder], Path], fill: Callable[[RunFolder], object] = lambda run: None
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run = _runs(folder)
        fill(run)
        return get(run)

    return make


def _full_config(run: RunFolder) -> None:
    values = {
        "train_data_dir": "images",
        "base_model": "base.safetensors",
        "output_dir": str(run.path),
        "sample_prompts": ["a fox"],
        "learning_rate": 1e-4,
    }
    run.config.write_text(training.to_yaml(training.from_mapping(values)), encoding="utf-8")


def _validated(run: RunFolder) -> None:
    """A run that was measured at its saves, so that it can be judged."""
    _full_config(run)
    writer = events.EventWriter(run.events)
    for step in (0, 100, 200):
        losses = {"0.5": 0.12 - step / 9000, "1": 0.12 - step / 8000}
        writer.write(
            events.Validated(
                step=step,
                training_loss=losses["1"],
                validation_loss=losses["1"],
                by_strength=losses,
                per_image={f"{number}.png": 0.9 for number in range(5)},
            )
        )
        writer.write(
            events.PicturesMeasured(
                step=step, likeness=0.1, copied=["0.png"], by_strength={"1": {"likeness": 0.1}}
            )
        )
    writer.close()


def _judged(run: RunFolder) -> None:
    _validated(run)
    found = verdict.judge(run)
    assert found is not None and found.findings
    verdict.write(run, found)


def _tell_verdict(run: RunFolder) -> None:
    found = verdict.read(run)
    if found is not None:
        json.dumps(run_view.verdict(found, "zh_CN"))


def _look_at_runs(folder: Path, path: Path) -> None:
    """As the tab lists them, and as the worker and the command line read this one."""
    history = History(folder / "runs")
    run = RunFolder(folder / "runs" / "hurt")

    def listing() -> None:
        found = {entry.id: entry for entry in history.listing()}
        _require(
            "sound" in found
            and found["sound"].problem is None
            and found["sound"].state.status == "finished",
            "the other run",
        )
        json.dumps([str(entry.problem) + str(dict(entry.settings)) for entry in found.values()])

    _each(
        listing,
        lambda: history.curve("hurt"),
        run.read_state,
        lambda: training.read(run.config),
        lambda: is_orphan(run),
        lambda: verdict.judge(run),
        lambda: report.write(run, (), verdict.read(run)),
        lambda: _tell_verdict(run),
        lambda: list(throughput.Throughput(folder / "runs")._records()),
        lambda: Loras(PaintingHost(folder), history).listing(),
    )


def _captions_run(folder: Path) -> Path:
    run = _runs(folder)
    run.config.unlink()
    values = {"input": str(folder), "captioner": "blip", "trigger": "zorb", "prefix": "a photo of"}
    run.caption_config.write_text(
        captioning.to_yaml(captioning.from_mapping(values)), encoding="utf-8"
    )
    return run.caption_config


def _write_json(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return path


def _request(folder: Path) -> Path:
    send_request(folder / "requests", "pause")
    (path,) = (folder / "requests").iterdir()
    send_request(folder / "requests", "save")
    return path


def _take(folder: Path, path: Path) -> None:
    kinds = [request.kind for request in take_requests(folder / "requests")]
    _require("save" in kinds, "the other request")


def _state(folder: Path) -> Path:
    for step in (2, 4):
        adapters = {f"layer{number}": torch.full((8, 4), float(number)) for number in range(4)}
        optimizer = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}
        values = {
            "adapters": adapters,
            "optimizer": optimizer,
            "rates": {},
            "smoothed_loss": {"value": 1.0},
            "skipped": 0,
            "scaler": None,
        }
        resume.write_state(folder / "state", {"step": step, **values})
    return folder / "state" / "step00000004.pt"


def _resume(folder: Path, path: Path) -> None:
    """A damaged newest state falls back to the one before; what is given is what was written."""
    try:
        found, _ = resume.read_state(folder / "state")
    except LoraTrainerError as error:
        raise Hidden("the state before it") from error
    _require(found["step"] in (2, 4), "both states")
    right = all(
        torch.equal(tensor, torch.full((8, 4), float(name[5:])))
        for name, tensor in found["adapters"].items()
    )
    if not right or len(found["adapters"]) != 4:
        raise AssertionError("other weights than were written, without a word")


# --- LoRA files and checkpoints -------------------------------------------------------------------


def _loras(folder: Path) -> Path:
    write_lora(folder / "models" / "Lora" / "sound.safetensors", trigger="zorb")
    path = folder / "models" / "Lora" / "hurt.safetensors"
    tensors = {
        f"lora_unet_{layer}.{part}": TensorInfo("F16", shape, 0, 0)
        for layer in (
            "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            "mid_block_attentions_0_proj_in",
        )
        for part, shape in (("lora_down.weight", (2, 4)), ("lora_up.weight", (4, 2)), ("alpha", ()))
    }
    end, placed = 0, {}
    for name, info in tensors.items():
        size = 2 * int(np.prod(info.shape))
        placed[name] = TensorInfo(info.dtype, info.shape, end, end + size)
        end += size
    metadata = {
        "ss_output_name": "hurt",
        "ss_base_model_version": "sd_v1",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_num_train_images": "20",
        "ss_resolution": "(512, 512)",
        "ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": [512, 512], "count": 4}}}),
        "ss_tag_frequency": json.dumps({"10_fox": {"fox": 4}}),
        "ss_dataset_dirs": json.dumps({"10_fox": {"n_repeats": 10, "img_count": 4}}),
        "modelspec.title": "hurt",
        "modelspec.resolution": "512x512",
        "modelspec.implementation_version": "sd-webui-lora-trainer/0.1",
        "ss_steps": "100",
        "ss_epoch": "4",
        "modelspec.trigger_phrase": "fox",
        "ss_datasets": json.dumps([{"resolution": [512, 512]}]),
    }
    path.write_bytes(encode_header(placed, metadata) + b"\x00\x3c" * (end // 2))
    return path


def _look_at_loras(folder: Path, path: Path) -> None:
    loras = Loras(PaintingHost(folder), History(folder / "runs"))

    def listing() -> None:
        _require("sound" in [lora.name for lora in loras.listing()], "the other LoRA")

    _each(
        lambda: describe(path).to_text(),
        lambda: describe(path).to_json(),
        listing,
        loras.insertable,
    )


def _lora_sidecar(folder: Path) -> Path:
    lora = _loras(folder)
    return _write_json(
        lora.with_suffix(".json"),
        {
            "activation text": "fox",
            "preferred weight": 0.8,
            "sd version": "SD1",
            "notes": "",
            "extra": [1, {"a": None}],
        },
    )


def _look_at_sidecar(folder: Path, path: Path) -> None:
    lora = path.with_suffix(".safetensors")
    _look_at_loras(folder, lora)
    _each(
        lambda: sidecar.weight(sidecar.read(lora)),
        lambda: sidecar.trigger(sidecar.read(lora)),
        lambda: sidecar.write_weight(lora, 0.5, otherwise={}),
    )


def _checkpoint(folder: Path) -> Path:
    path = folder / "base.safetensors"
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
        "model.diffusion_model.out.2.weight": (4, 32, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (16, 3, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (64, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (
            64,
            64,
        ),
    }
    end, placed = 0, {}
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        placed[name] = TensorInfo("F16", shape, end, end + size)
        end += size
    path.write_bytes(
        encode_header(
            placed,
            {
                "modelspec.resolution": "512x512",
                "modelspec.prediction_type": "epsilon",
                "format": "pt",
            },
        )
        + bytes(end)
    )
    return path


def _look_at_checkpoint(folder: Path, path: Path) -> None:
    host = PaintingHost(folder)
    found = Checkpoints(host, folder / "checkpoints.json")  # type: ignore[arg-type]
    _each(lambda: detect_file(path), lambda: found.facts(path), lambda: detect_any(path))


def _checkpoint_sidecar(folder: Path) -> Path:
    path = _checkpoint(folder).with_suffix(".yaml")
    path.write_text(
        "model:\n  params:\n    linear_start: 0.00085\n    linear_end: 0.0120\n   "
        ' parameterization: "v"\n',
        encoding="utf-8",
    )
    return path


def _diffusers(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        unet = {
            "_class_name": "UNet2DConditionModel",
            "in_channels": 4,
            "cross_attention_dim": 768,
            "block_out_channels": [320, 640],
        }
        _write_json(
            folder / "model_index.json",
            {
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
            },
        )
        _write_json(folder / "unet" / "config.json", unet)
        _write_json(
            folder / "text_encoder" / "config.json",
            {"hidden_act": "quick_gelu", "hidden_size": 768},
        )
        _write_json(
            folder / "scheduler" / "scheduler_config.json",
            {"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012},
        )
        write_lora(folder / "unet" / "diffusion_pytorch_model.safetensors")
        return folder / name

    return make


# --- what the tab keeps ---------------------------------------------------------------------------


def _removed(folder: Path) -> Path:
    images = draw_images(folder / "images", 3)
    store = CaptionStore(images, follow_links=True)
    store.remove([item.key for item in store.view().items[:2]])
    return next(
        path for path in sorted((images / ".lora_trainer" / "removed").glob("*/removed.json"))
    )


def _restore(folder: Path, path: Path) -> None:
    images = folder / "images"
    before = {found for found in folder.parent.rglob("*") if not found.is_relative_to(images)}
    store = CaptionStore(images, follow_links=True)

    def restore() -> None:
        removed = store.removed()
        _require(any(entry.folder != path.parent for entry in removed), "the other removed image")
        json.dumps([entry.name for entry in removed])
        for entry in removed:
            with contextlib.suppress(LoraTrainerError):
                store.restore([entry.key])

    _each(restore)
    beyond = {
        found for found in folder.parent.rglob("*") if not found.is_relative_to(images)
    } - before
    if beyond:
        raise Escaped(f"{sorted(map(str, beyond))}")


def _journal(folder: Path) -> Path:
    images = draw_images(folder / "images", 3)
    bench = Workbench(CaptionStore(images, follow_links=True))
    for word in ("ball", "ring"):
        keys = [item.key for item in bench.store.view().items]
        bench.apply(
            bench.preview(
                keys,
                {"do": "replace", "find": "disc" if word == "ball" else "ball", "replace": word},
            )
        )
    bench.remove([keys[0]])
    return images / ".lora_trainer" / "edits" / "00000002.json"


def _undo(folder: Path, path: Path) -> None:
    bench = Workbench(CaptionStore(folder / "images", follow_links=True))
    lines = bench.journal.lines()
    _require({1, 3} <= {line.id for line in lines}, "the other edits")
    _each(
        lambda: json.dumps([str(line.title) for line in lines]),
        bench.undo,
        bench.undo,
        bench.undo,
        bench.redo,
    )


def _knowledge(name: str, values: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        draw_images(folder / "images", 3)
        return _write_json(folder / "images" / ".lora_trainer" / name, values)

    return make


def _use_bench(folder: Path, path: Path) -> None:
    """What the tab knows of a dataset beside its captions."""
    images = folder / "images"
    bench = Workbench(CaptionStore(images, follow_links=True))
    view = bench.store.view()
    _require(len(view.items) == 3, "the images")
    known = bench.known(view)
    _each(
        lambda: caption_provenance.read_authors(images),
        lambda: [known.reviewed(item) for item in view.items],
        bench.template_order,
        bench.settle,
        lambda: bench.checker.status(view),
        lambda: bench.checker.findings(view),
        bench.vocabulary,
        lambda: bench.save(view.items[0].key, "new", view.items[0].caption),
        lambda: Store(images / ".lora_trainer" / "check-measures.json").known("0"),
        lambda: Store(images / ".lora_trainer" / "check-measures.json").digest(view.items[0].path),
    )


def _vocabulary(folder: Path) -> Path:
    images = draw_images(folder / "images", 2)
    return write_vocabulary(
        images, Vocabulary(opening="an image of", fields={"style": ("ink wash", "oil")})
    )


def _check_vocabulary(folder: Path, path: Path) -> None:
    bench = Workbench(CaptionStore(folder / "images", follow_links=True))
    _each(
        lambda: read_vocabulary(folder / "images"),
        lambda: bench.checker.findings(bench.store.view()),
    )


def _embedded(folder: Path) -> Path:
    rows = {"0" * 40: np.ones(8, np.float16), "1" * 40: np.ones(8, np.float16)}
    for title in ("BLIP", "CLIP"):
        embeddings.add(
            folder,
            embeddings.Embedded(
                encoder=f"{title} base", title=title, unrelated=0.5, by_digest=rows
            ),
        )
    return sorted((folder / ".lora_trainer").rglob("*.bin"))[0]


def _data(name: str, values: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        draw_images(folder / "datasets" / "fox", 1)
        draw_images(folder / "elsewhere", 1)
        return _write_json(folder / name, values)

    return make


def _use_data(folder: Path, path: Path) -> None:
    data = DataFolder(folder)
    datasets = Datasets(data, lambda: False)
    _require("fox" in [card["id"] for card in datasets.listing("en")], "the dataset fox")
    host = PaintingHost(folder)
    _each(
        lambda: Queue(data.queue).add("one", token="click"),
        lambda: Queue(data.queue).take(0.0),
        datasets.opened,
        lambda: datasets.rename("fox", "Fox"),
        lambda: gpu_lease._marked(folder / "handover.json"),
        lambda: Checkpoints(host, folder / "checkpoints.json").facts(folder / "x.safetensors"),  # type: ignore[arg-type]
        lambda: image_cache.ImageCache(folder / "images.json").examine(
            folder / "datasets" / "fox" / "img00.png"
        ),
    )


def _measured(folder: Path) -> Path:
    images = draw_images(folder / "images", 3)
    store = Store(folder / "check-measures.json")
    measure_all(sorted(images.glob("*.png")), store)
    store.save()
    return folder / "check-measures.json"


def _measure_again(folder: Path, path: Path) -> None:
    """What was measured of these very files is trusted only as far as it is what is measured."""
    store, paths = Store(path), sorted((folder / "images").glob("*.png"))
    measured = {
        image: found
        for image, found in measure_all(paths, store).items()
        if isinstance(found, Measures)
    }
    _require(len(measured) == 3, "the measures")
    clusters(list(measured.values()))
    store.save()


def _seen(folder: Path) -> Path:
    (image,) = draw_images(folder / "images", 1).glob("*.png")
    base, mark = _checkpoint(folder), image_cache._mark(image)
    facts = {
        "family": "sd1",
        "prediction_type": "epsilon",
        "stated_resolution": 512,
        "has_vae": True,
    }
    _write_json(
        folder / "checkpoints.json", {str(base): {"mark": checkpoints._mark(base), **facts}}
    )
    return _write_json(
        folder / "images.json",
        {str(image): {"mark": mark, "width": 64, "height": 64, "digest": "0"}},
    )


def _see_again(folder: Path, path: Path) -> None:
    (image,) = (folder / "images").glob("*.png")

    def examine() -> None:
        found = image_cache.ImageCache(folder / "images.json").examine(image)
        _require(isinstance(found.width, int) and isinstance(found.digest, str), "the image")

    found = Checkpoints(PaintingHost(folder), folder / "checkpoints.json")  # type: ignore[arg-type]
    _each(
        examine,
        lambda: json.dumps(
            checkpoints.summarize(found.facts(folder / "base.safetensors"), "zh_CN")
        ),
    )


def _encoded(folder: Path) -> Path:
    checksummed.write_tensors(
        folder / "latents.safetensors", {"latents": torch.arange(64.0).reshape(4, 4, 4)}
    )
    return folder / "latents.safetensors"


def _read_encoded(folder: Path, path: Path) -> None:
    """It is what was written, or counts as not encoded."""
    with contextlib.suppress(checksummed.Damaged):
        if not torch.equal(
            checksummed.read_tensors(path)["latents"], torch.arange(64.0).reshape(4, 4, 4)
        ):
            raise AssertionError("other latents than were written, without a word")


def _discarded(folder: Path) -> Path:
    for name in ("one", "two"):
        (folder / "runs" / name).mkdir(parents=True)
        trash.discard(folder / "runs" / name, folder / "trash", kind="run", now=1e9)
    return next((folder / "trash").glob("*-one")) / trash.NOTE


def _take_back(folder: Path, path: Path) -> None:
    found = trash.contents(folder / "trash", "run")
    _require("two" in [item.name for item in found], "the other run in the trash")
    for item in found:
        with contextlib.suppress(LoraTrainerError):
            place = trash.restore(item, folder / "runs")
            if place.parent != folder / "runs":
                raise Escaped(str(place))


def _preset(folder: Path) -> Path:
    for name in ("sound", "hurt"):
        (folder / "presets").mkdir(exist_ok=True)
        text = (
            f"title: {name}\nwhy: for a try\nvalues:\n  lora_rank: 4\n  learning_rate:"
            " 1.0e-4\nfamily_values:\n  sdxl:\n    resolution: 1024\n"
        )
        (folder / "presets" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "presets" / "hurt.yaml"


def _list_presets(folder: Path, path: Path) -> None:
    listing = UserPresets(DataFolder(folder), Presets()).listing("en")
    _require("sound" in [preset["title"] for preset in listing["presets"]], "the other preset")
    json.dumps(listing, allow_nan=False)


def _try(folder: Path) -> Path:
    for name in ("sound", "hurt"):
        wanted = comparisons.ComparisonRequest(
            kind="pair", prompt="a fox", loras=("ink",), strengths=(0.0, 1.0)
        )
        picture = comparisons.ComparisonImage(file="00.png", strength=1.0, step=None, lora="ink")
        job = comparisons.Comparison(
            id=name,
            wanted=wanted,
            total=1,
            started=1e9,
            pictures=[picture],
            seed=1,
            notes=[Message("a note")],
        )
        _write_json(folder / "tries" / name / "try.json", comparisons.to_file(job, "done"))
        Image.new("RGB", (8, 8)).save(folder / "tries" / name / "00.png")
    return folder / "tries" / "hurt" / "try.json"


def _list_tries(folder: Path, path: Path) -> None:
    host = PaintingHost(folder)
    jobs = ComparisonJobs(
        host, DataFolder(folder), Loras(host, History(folder / "runs")), lambda path: None
    )
    found = jobs.recent()
    _require("sound" in [job.id for job in found], "the other try")
    json.dumps([job.to_mapping(str, str) for job in found], allow_nan=False)


def _zip(folder: Path) -> Path:
    draw_images(folder / "images", 1)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {
            "fox.png": buffer.getvalue(),
            "fox.txt": b"a fox",
            "a/metadata.csv": b"fox.png,a fox\n",
            "山.png": buffer.getvalue(),
        }.items():
            archive.writestr(name, data)
    return folder / "all.zip"


def _accept(name: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, path: Path) -> None:
        before = {
            found
            for found in folder.parent.rglob("*")
            if not found.is_relative_to(folder / "images")
        }
        accepted = uploads.accept(
            CaptionStore(folder / "images", follow_links=False), path, name, free=PLENTY
        )
        json.dumps([[one.name, str(one.message)] for one in accepted.skipped])
        beyond = {
            found
            for found in folder.parent.rglob("*")
            if not found.is_relative_to(folder / "images")
        } - before
        if beyond:
            raise Escaped(f"{sorted(map(str, beyond))}")

    return read


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def _stamp(folder: Path) -> Path:
    values = {
        "versions": {"torch": "2.1"},
        "metadata": ["torch-2.1.dist-info"],
        "interpreter": "/usr",
        "platform": "linux",
        "checked": ["0"],
    }
    return _write_json(folder / environment.STAMP, values)


_MEASURES = {
    "version": 2,
    "measures": {"0": {"digest": "0", "width": 64}},
    "digests": {"img00.png": [1, 2, "0"]},
}
_EXPECTED = {
    "run": "/nowhere",
    "since": 1000.0,
    "title": "Captions by {name}",
    "values": {"name": "BLIP"},
    "captions": {"img00.png": ["a red disc", "person"]},
}
_ONE = {"text": "a red disc", "by": "blip 1"}

READERS: tuple[Reader, ...] = (
    *(
        Reader(
            name=f"image {form}",
            make=_picture(form),
            read=_look_at_picture,
            form="picture",
            megabytes=700,
        )
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    ),
    Reader(
        name="mask",
        make=_mask,
        read=_work_with_captions,
        form="picture",
        megabytes=700,
    ),
    Reader(
        name="card's image",
        make=_card,
        read=_deliver_with_card,
        form="picture",
        megabytes=700,
    ),
    Reader(
        name="caption .txt",
        make=_dataset("img00.txt", "a red disc,\nin two lines"),
        read=_work_with_captions,
        form="text",
    ),
    Reader(
        name="metadata.csv",
        make=_dataset("metadata.csv", CSV),
        read=_work_with_captions,
        form="text",
    ),
    Reader(name="metadata.jsonl", make=_dataset("metadata.jsonl", JSONL), read=_work_with_captions),
    Reader(name="metadata.json", make=_dataset("metadata.json", JSONL), read=_work_with_captions),
    Reader(
        name="metadata alone",
        make=_text("metadata.csv", CSV),
        read=lambda folder, path: read_metadata(path),
        form="text",
    ),
    Reader(
        name="config.yaml",
        make=_run_file(lambda run: run.config, _full_config),
        read=_look_at_runs,
        form="text",
    ),
    Reader(
        name="caption.yaml",
        make=_captions_run,
        read=lambda folder, path: _each(
            lambda: _look_at_runs(folder, path), lambda: captioning.read(path)
        ),
        form="text",
    ),
    Reader(
        name="events.jsonl", make=_run_file(lambda run: run.events, _validated), read=_look_at_runs
    ),
    Reader(
        name="verdict.json",
        make=_run_file(lambda run: run.path / "verdict.json", _judged),
        read=_look_at_runs,
    ),
    Reader(
        name="worker.json",
        make=_run_file(
            lambda run: run.worker,
            lambda run: _write_json(
                run.worker, {"pid": 1, "started": 1e9, "versions": {}, "heartbeat": 1e9}
            ),
        ),
        read=_look_at_runs,
    ),
    Reader(
        name="host.json",
        make=_run_file(
            lambda run: run.host, lambda run: _write_json(run.host, {"pid": 1, "started": 1e9})
        ),
        read=_look_at_runs,
    ),
    Reader(
        name="ended.json",
        make=_run_file(
            lambda run: run.death,
            lambda run: run.write_death(
                events.Failed(time=2e9, message="it died", values={"how": "x"})
            ),
        ),
        read=_look_at_runs,
    ),
    Reader(name="request", make=_request, read=_take),
    Reader(name="state", make=_state, read=_resume, form="binary"),
    Reader(name="LoRA", make=_loras, read=_look_at_loras, form="safetensors"),
    Reader(name="LoRA's sidecar", make=_lora_sidecar, read=_look_at_sidecar),
    Reader(name="checkpoint", make=_checkpoint, read=_look_at_checkpoint, form="safetensors"),
    Reader(
        name="checkpoint's yaml",
        make=_checkpoint_sidecar,
        read=lambda folder, path: read_sidecar(path.with_suffix(".safetensors")),
        form="text",
    ),
    *(
        Reader(
            name=f"diffusers {name}",
            make=_diffusers(name),
            read=lambda folder, path: detect_any(folder),
        )
        for name in (
            "model_index.json",
            "unet/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        )
    ),
    Reader(name="removed.json", make=_removed, read=_restore),
    Reader(name="edit", make=_journal, read=_undo),
    Reader(
        name="captions.json",
        make=_knowledge(
            caption_provenance.FILE,
            {"version": 1, "images": {"0" * 40: _ONE, "1" * 40: {**_ONE, "before": "x"}}},
        ),
        read=_use_bench,
    ),
    Reader(
        name="reviewed.json",
        make=_knowledge("reviewed.json", {"version": 1, "images": {"0" * 40: "a red disc"}}),
        read=_use_bench,
    ),
    Reader(
        name="template.json",
        make=_knowledge("template.json", {"version": 1, "order": ["style", "subject"]}),
        read=_use_bench,
    ),
    Reader(
        name="check.json",
        make=_knowledge(
            "check.json",
            {"settings": {"resolution": 512, "trigger": "", "tokens": 75}, "checked": 1e9},
        ),
        read=_use_bench,
    ),
    Reader(
        name="check-measures.json",
        make=_knowledge("check-measures.json", _MEASURES),
        read=_use_bench,
    ),
    Reader(name="expected", make=_knowledge("expected/1-0.json", _EXPECTED), read=_use_bench),
    Reader(name="vocabulary.yaml", make=_vocabulary, read=_check_vocabulary, form="text"),
    Reader(
        name="embeddings",
        make=_embedded,
        read=lambda folder, path: _require(
            bool(embeddings.read_all(folder)), "the other encoder's"
        ),
        form="binary",
    ),
    Reader(
        name="queue.json",
        make=_data(
            "queue.json",
            {"waiting": ["a", "b"], "starting": None, "taken": 0.0, "clicks": {"t": "a"}},
        ),
        read=_use_data,
    ),
    Reader(
        name="datasets.json",
        make=_data(
            "datasets.json",
            {"names": {"fox": "Fox"}, "folders": {"folder-0123456789abcdef": "/nowhere"}},
        ),
        read=_use_data,
    ),
    Reader(
        name="handover.json",
        make=_data("handover.json", {"paused_for_a_picture": ["/nowhere/run"]}),
        read=_use_data,
    ),
    Reader(
        name="checkpoints.json",
        make=_data("checkpoints.json", {"/x.safetensors": {"mark": [1, 2], "family": "sd1"}}),
        read=_use_data,
    ),
    Reader(
        name="images.json",
        make=_data(
            "images.json", {"/x.png": {"mark": [1, 2], "width": 8, "height": 8, "digest": "0"}}
        ),
        read=_use_data,
    ),
    Reader(name="check-measures.json of these files", make=_measured, read=_measure_again),
    Reader(name="images.json of these files", make=_seen, read=_see_again),
    Reader(
        name="checkpoints.json of these files",
        make=lambda folder: _seen(folder).with_name("checkpoints.json"),
        read=_see_again,
    ),
    Reader(name="latents", make=_encoded, read=_read_encoded, form="binary"),
    Reader(name="discarded.json", make=_discarded, read=_take_back),
    Reader(name="preset", make=_preset, read=_list_presets, form="text"),
    Reader(name="try.json", make=_try, read=_list_tries),
    Reader(name="upload .zip", make=_zip, read=_accept("all.zip"), form="binary"),
    Reader(name="upload .csv", make=_dataset("all.csv", CSV), read=_accept("all.csv"), form="text"),
    Reader(
        name="upload .txt",
        make=_dataset("one.txt", "a red disc"),
        read=_accept("img00.txt"),
        form="text",
    ),
    Reader(
        name="upload .png",
        make=_card,
        read=_accept("new.png"),
        form="picture",
        megabytes=700,
    ),
    Reader(
        name="clip's words",
        make=_text("words.txt", "[colour]\nred\ngreen\n"),
        read=lambda folder, path: clip.read_vocabulary(path),
        form="text",
    ),
    Reader(
        name="wd's tags",
        make=_text("selected_tags.csv", "tag_id,name,category,count\n1,1girl,0,5\n2,solo,0,4\n"),
        read=lambda folder, path: wd.read_tags(path),
        form="text",
    ),
    Reader(
        name="overlay's stamp",
        make=_stamp,
        read=lambda folder, path: environment.read_stamp(folder),
    ),
)


def named(names: Iterable[str]) -> tuple[Reader, ...]:
    wanted = set(names)
    return tuple(reader for reader in READERS if reader.name in wanted)
