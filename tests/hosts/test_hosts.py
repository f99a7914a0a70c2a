"""The host, against the fake WebUI's modules: each test has a fresh host of its kind in this
process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import socket
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest

from lora_trainer import hosts
from lora_trainer.errors import LoraTrainerError
from lora_trainer.hosts import base, find, kinds
from lora_trainer.hosts.a1111 import A1111
from lora_trainer.hosts.base import GenerationCancelled, HostError, Txt2ImgRequest
from lora_trainer.hosts.on_demand import keep_lora_remark
from lora_trainer.lora.low_bits import CASES
from lora_trainer.webui import texts
from tests.webui.lora_files import write_lora

FAKE = Path(__file__).parent.parent / "webui" / "fake_host"
THEIRS = ("modules", "modules_forge", "backend", "ldm_patched", "networks", "launch", "gradio")


def forget_host():
    for name in [name for name in sys.modules if name.split(".")[0] in THEIRS]:
        del sys.modules[name]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start("a1111", "--listen") -> Host, in a data folder with two checkpoints."""
    stop = threading.Event()
    threads = []

    def begin(kind, *flags, checkpoints=("alpha.safetensors", "beta.safetensors"), loaded=False):
        forget_host()
        gradio = MagicMock()
        gradio.__version__ = "3.41.2"
        monkeypatch.setitem(sys.modules, "gradio", gradio)
        monkeypatch.setenv("FAKE_HOST_FLAVOUR", "forge" if kind in ("forge", "neo") else "a1111")
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "launch.py",
                "--data-dir",
                str(tmp_path / "data"),
                "--extension",
                str(tmp_path),
                *flags,
            ],
        )
        folders = [str(FAKE / "forge"), str(FAKE)] if kind in ("forge", "neo") else [str(FAKE)]
        monkeypatch.setattr(sys, "path", [*folders, *sys.path])
        models = tmp_path / "data" / "models"
        for name in checkpoints:
            (models / "Stable-diffusion").mkdir(parents=True, exist_ok=True)
            (models / "Stable-diffusion" / name).write_bytes(name.encode())
        (models / "Lora").mkdir(parents=True, exist_ok=True)
        if kind in ("reforge", "classic"):
            older_forge(monkeypatch, kind)
        if kind == "neo":
            import modules_forge.forge_version

            modules_forge.forge_version.version = "neo"
            modules_forge.forge_version.release = "2.26"
        import modules.sd_models

        modules.sd_models.list_models()
        if loaded:
            modules.sd_models.load_model()
        if kind != "a1111":
            threads.append(serve(stop))
        host = find()
        assert host.kind == kind
        return host

    yield begin
    stop.set()
    for thread in threads:
        thread.join()
    forget_host()


def older_forge(monkeypatch, kind):
    """What reForge and classic have beside A1111's modules: ldm_patched's ledger, one main thread,
    and a version.
    """
    manager = types.ModuleType("ldm_patched.modules.model_management")
    manager.current_loaded_models = ["unet"]
    manager.emptied = []
    manager.unload_all_models = lambda: manager.current_loaded_models.clear()
    manager.soft_empty_cache = (
        (lambda force=False: manager.emptied.append(force))
        if kind == "reforge"
        else (lambda: manager.emptied.append(None))
    )
    version = types.ModuleType("modules_forge.forge_version")
    version.version = "classic" if kind == "classic" else "1.0.0v2-v1.10.1RC"
    source = (FAKE / "forge" / "modules_forge" / "main_thread.py").read_text(encoding="utf-8")
    thread = types.ModuleType("modules_forge.main_thread")
    exec(compile(source, "main_thread.py", "exec"), thread.__dict__)
    for name, module in {
        "ldm_patched": types.ModuleType("ldm_patched"),
        "ldm_patched.modules": types.ModuleType("ldm_patched.modules"),
        "ldm_patched.modules.model_management": manager,
        "modules_forge": types.ModuleType("modules_forge"),
        "modules_forge.forge_version": version,
        "modules_forge.main_thread": thread,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)


def serve(stop):
    """Forge's loop over what waits for its main thread."""
    from modules_forge import main_thread

    def loop():
        while not stop.wait(0.002):
            if main_thread.waiting_list:
                task = main_thread.waiting_list.pop(0)
                task.work()
                main_thread.finished_list.append(task)

    thread = threading.Thread(target=loop, name="the main thread")
    thread.start()
    return thread


def aside(work):
    """Do something on a thread of its own, as the tab's requests do."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=120)


def calls(tmp_path):
    path = tmp_path / "data" / "calls.jsonl"
    return (
        [json.loads(line)["what"] for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


SMALL = Txt2ImgRequest(prompt="a fox", seed=3, steps=2, width=64, height=64)
ALL = pytest.mark.parametrize("kind", ["a1111", "forge", "neo", "reforge", "classic"])


def test_outside_a_webui_there_is_no_host():
    forget_host()
    with pytest.raises(HostError, match="this is not inside a WebUI"):
        find()


@ALL
def test_each_host_is_told_by_what_can_be_imported(start, kind):
    host = start(kind)
    names = {
        "a1111": "AUTOMATIC1111",
        "forge": "Forge",
        "neo": "Forge Neo",
        "reforge": "reForge",
        "classic": "Forge Classic",
    }
    versions = {
        "a1111": "v1.10.1",
        "forge": "2.0.1v1.10.1",
        "neo": "2.26",
        "reforge": "1.0.0v2-v1.10.1RC",
        "classic": "classic",
    }
    assert (host.name, host.version) == (names[kind], versions[kind])


@ALL
def test_facts_are_told_without_loading_a_model(start, kind, tmp_path):
    host = start(kind)
    assert [checkpoint.path.name for checkpoint in host.checkpoints()] == [
        "alpha.safetensors",
        "beta.safetensors",
    ]
    loaded = host.loaded()
    assert (loaded.path.name, loaded.clip_skip, loaded.vae) == ("alpha.safetensors", 1, None)
    # it is what the menu says: nothing is in memory before the first image
    assert not loaded.in_memory
    assert host.paths().lora_dir == tmp_path / "data" / "models" / "Lora"
    assert host.data_folder() == tmp_path / "data" / "lora-trainer"
    assert host.samplers()[:2] == ["DPM++ 2M", "Euler a"]
    assert (host.device().kind, host.memory(), host.is_remote(), host.language()) == (
        "cpu",
        None,
        True,
        "",
    )
    assert host.schedulers() == [] and host.model_on_device() is False and not host.is_generating()
    assert not {"load_model", "forge_model_reload", "shared.sd_model"} & set(calls(tmp_path))


def test_a_checkpoint_without_a_title_is_called_by_its_file(start):
    host = start("neo")
    for info in sys.modules["modules.sd_models"].checkpoints_list.values():
        info.title = ""
    found = [checkpoint.title for checkpoint in host.checkpoints()]
    assert found == ["alpha.safetensors", "beta.safetensors"]
    assert host.loaded().title == "alpha.safetensors"


def test_without_any_checkpoint_nothing_is_loaded(start):
    assert start("a1111", checkpoints=()).loaded() is None


def test_the_loaded_checkpoint_is_the_one_in_memory_with_its_vae_and_clip_skip(start, tmp_path):
    host = start("a1111", loaded=True)
    from modules import sd_vae, shared

    shared.opts.data["sd_model_checkpoint"] = "beta.safetensors"
    shared.opts.data["CLIP_stop_at_last_layers"] = 2
    sd_vae.loaded_vae_file = str(tmp_path / "kl.safetensors")
    loaded = host.loaded()
    assert (loaded.path.name, loaded.vae, loaded.clip_skip) == (
        "alpha.safetensors",
        tmp_path / "kl.safetensors",
        2,
    )
    assert loaded.in_memory


@pytest.mark.parametrize("kind", ["forge", "reforge", "classic"])
def test_what_is_loaded_is_told_from_what_is_chosen(start, kind):
    host = start(kind)
    from modules import sd_models

    sd_models.model_for_generation()
    assert (host.loaded().path.name, host.loaded().in_memory) == ("alpha.safetensors", True)
    if kind == "forge":
        # another one was chosen in the menu; it is loaded for the next image
        sd_models.model_data.forge_loading_parameters = {
            "checkpoint_info": sd_models.checkpoint_aliases["beta.safetensors"]
        }
        assert (host.loaded().path.name, host.loaded().in_memory) == ("beta.safetensors", False)
        # Neo forgets the choice when it unloads
        sd_models.model_data.forge_loading_parameters = {}
    sd_models.model_data.sd_model = None
    assert (host.loaded().path.name, host.loaded().in_memory) == ("alpha.safetensors", False)


def test_forge_tells_its_choice_and_the_vae_among_its_modules(start, tmp_path):
    host = start("forge")
    from modules import sd_models, shared

    sd_models.model_data.forge_loading_parameters = {
        "checkpoint_info": sd_models.checkpoint_aliases["beta.safetensors"]
    }
    vae = tmp_path / "data" / "models" / "VAE" / "kl.safetensors"
    shared.opts.data["forge_additional_modules"] = [
        str(tmp_path / "data" / "models" / "text_encoder" / "t5.safetensors"),
        str(vae),
    ]
    assert (host.loaded().path.name, host.loaded().vae) == ("beta.safetensors", vae)
    assert [path.name for path in host.part_files()] == ["t5.safetensors", "kl.safetensors"]
    shared.cmd_opts.text_encoder_dir = str(tmp_path / "encoders")
    models = host.paths().models
    assert host.part_folders() == [
        models / "text_encoder",
        tmp_path / "encoders",
        models / "VAE",
    ]


@pytest.mark.parametrize(
    ("kind", "options", "setting", "keeps"),
    [
        ("forge", {}, "", False),
        ("forge", {"forge_unet_storage_dtype": "Automatic (fp16 LoRA)"}, "", True),
        (
            "neo",
            {"forge_unet_storage_dtype": "bnb-nf4 (fp16 LoRA)"},
            "Diffusion in Low Bits: bnb-nf4",
            True,
        ),
        (
            "forge",
            {"forge_unet_storage_dtype": "float8-e5m2"},
            "Diffusion in Low Bits: float8-e5m2",
            False,
        ),
        ("a1111", {"fp8_storage": "Disable", "cache_fp16_weight": True}, "", False),
        ("a1111", {"fp8_storage": "Enable for SDXL"}, "", False),
        ("a1111", {"fp8_storage": "Enable"}, "FP8 weight: Enable", False),
        (
            "a1111",
            {"fp8_storage": "Enable", "cache_fp16_weight": True},
            "FP8 weight: Enable",
            True,
        ),
        ("classic", {"fp8_storage": True}, "Store UNet Weights in fp8", False),
        ("classic", {}, "", False),
        ("reforge", {}, "", False),
    ],
)
def test_in_how_many_bits_weights_are_kept(start, kind, options, setting, keeps):
    host = start(kind)
    from modules import shared

    shared.opts.data.update(options)
    found = host.low_bits()
    assert (found.setting, found.keeps_loras) == (setting, keeps)
    # under the name that the measure knows
    assert found.setting in {case.setting for case in CASES[kind]}


@pytest.mark.parametrize(
    ("flags", "remote"),
    [
        ([], False),
        (["--listen"], True),
        (["--share"], True),
        (["--ngrok", "x"], True),
        (["--subpath", "sd"], True),
        (["--server-name", "127.0.0.1"], False),
        (["--listen", "--enable-insecure-extension-access"], False),
    ],
)
def test_visitors_from_elsewhere_are_expected_as_the_flags_say(start, flags, remote):
    host = start("a1111", *flags)
    with serving("127.0.0.1"):
        assert host.is_remote() is remote


@contextlib.contextmanager
def serving(*addresses, **facts):
    """The host's page, served on these addresses as gradio keeps its server: uvicorn's, with
    asyncio's sockets.
    """
    from modules import shared

    with contextlib.ExitStack() as stack:
        bound = [
            stack.enter_context(
                socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            )
            for address in addresses
        ]
        for each, address in zip(bound, addresses, strict=True):
            each.bind((address, 0))
        shared.demo = SimpleNamespace(
            server=SimpleNamespace(servers=[SimpleNamespace(sockets=[each]) for each in bound]),
            **facts,
        )
        try:
            yield
        finally:
            shared.demo = None


@pytest.mark.parametrize("kind", ["a1111", "forge"])
def test_visitors_from_elsewhere_are_expected_where_the_server_really_listens(
    start, kind, monkeypatch
):
    host = start(kind)
    # what the environment says reaches gradio only, and no flag of the host's tells of it
    for addresses, remote in [
        (("127.0.0.1",), False),
        (("0.0.0.0",), True),
        (("127.0.0.1", "0.0.0.0"), True),
        (("127.0.0.2",), False),
    ]:
        with serving(*addresses):
            assert host.is_remote() is remote, addresses
    with serving("127.0.0.1", share=True):
        assert host.is_remote()
    with serving("127.0.0.1", share=False, share_url=None, is_colab=True):
        assert host.is_remote()
    with serving("127.0.0.1"):
        with monkeypatch.context() as changed:
            changed.setenv("GRADIO_SHARE", "True")
            assert host.is_remote()
            changed.setenv("GRADIO_SHARE", "False")
            assert not host.is_remote()
        with monkeypatch.context() as changed:
            changed.setitem(sys.modules, "pycloudflared", ModuleType("pycloudflared"))
            assert host.is_remote()
        from modules.shared_cmd_options import cmd_opts

        monkeypatch.setattr(cmd_opts, "remotemoe", True, raising=False)
        assert host.is_remote()


def test_in_doubt_visitors_from_elsewhere_are_expected(start, monkeypatch):
    host = start("a1111")
    assert host.is_remote(), "no server is to be seen: the API alone listens everywhere"
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    assert not host.is_remote()
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert host.is_remote()
    monkeypatch.delenv("GRADIO_SERVER_NAME")
    with serving("127.0.0.1"):
        assert not host.is_remote()
        host.expect_visitors()
        assert host.is_remote()


def test_the_names_of_a_webui_are_the_machines_its_share_links_and_the_users(start):
    host = start("a1111", "--server-name", "Art.Lan")
    machine = socket.gethostname().lower()
    with serving("127.0.0.1", share_url="https://abc.gradio.live", server_name="0.0.0.0"):
        assert {
            machine,
            f"{machine.partition('.')[0]}.local",
            "abc.gradio.live",
            "art.lan",
        } <= host.names()
    from modules import shared

    shared.opts.data["lora_trainer_host_names"] = (
        "https://Art.example.com/sd, *.Example.org; box:7860 *"
    )
    assert {
        "art.example.com",
        "*.example.org",
        "box",
        "*",
    } <= host.names() and "" not in host.names()


def test_options_flags_and_language_are_read(start, tmp_path):
    host = start(
        "a1111",
        "--localization",
        "zh_CN",
        "--api-auth",
        "me:a:b,you:c",
        "--lora-dir",
        str(tmp_path / "另 一个"),
        "--device-id",
        "1",
        "--fake-gpu",
    )
    assert host.language() == "zh_CN"
    assert host.api_credentials() == {"me": "a:b", "you": "c"}
    assert host.paths().lora_dir == tmp_path / "另 一个"
    assert (host.device().kind, host.device().device_id) == ("cuda", "1")
    assert host.option("samples_format") == "png" and host.option("no such option", 5) == 5


def test_a1111s_model_leaves_the_card_and_comes_back(start, monkeypatch):
    host = start("a1111", "--fake-gpu", loaded=True)
    from modules import devices, sd_models

    assert host.device().count == 1
    cards = SimpleNamespace(device_count=lambda: 3, get_device_name=lambda device: "a card")
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=cards), raising=False)
    assert (host.device().count, host.device().name) == (3, "a card")

    before = host.memory()
    assert host.model_on_device()
    aside(host.release_model)
    assert not host.model_on_device() and str(sd_models.model_data.sd_model.device) == "cpu"
    assert host.memory().free - before.free == 4 * 2**30
    aside(host.restore_model)
    assert host.model_on_device() and host.memory() == before


def test_releasing_before_anything_is_loaded_loads_nothing(start, tmp_path):
    host = start("a1111", "--fake-gpu")
    aside(host.release_model)
    aside(host.restore_model)
    assert not {"load_model", "shared.sd_model"} & set(calls(tmp_path))


def test_forges_models_are_unloaded_on_its_own_thread(start, tmp_path):
    host = start("forge", "--fake-gpu")
    aside(lambda: host.generate(SMALL))
    assert host.model_on_device()
    aside(host.release_model)
    assert not host.model_on_device()
    lines = [
        json.loads(line)
        for line in (tmp_path / "data" / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["thread"] for line in lines if line["what"] == "unload_all_models"] == [
        "the main thread"
    ]
    assert [line["force"] for line in lines if line["what"] == "soft_empty_cache"] == [True]
    aside(lambda: host.generate(SMALL))
    assert host.model_on_device()


@pytest.mark.parametrize(("kind", "emptied"), [("reforge", [True]), ("classic", [None])])
def test_reforge_and_classic_unload_through_their_own_ledger(start, kind, emptied):
    host = start(kind, "--fake-gpu")
    manager = sys.modules["ldm_patched.modules.model_management"]
    assert host.model_on_device()
    aside(host.release_model)
    assert manager.current_loaded_models == [] and manager.emptied == emptied


def test_a_model_that_cannot_be_moved_is_a_sentence(start, monkeypatch):
    host = start("a1111", "--fake-gpu", loaded=True)
    from modules import sd_models

    def fail(model):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(sd_models, "send_model_to_cpu", fail)
    with pytest.raises(
        HostError,
        match=(
            "the WebUI's model could not be moved off the graphics card: RuntimeError: CUDA error"
        ),
    ):
        aside(host.release_model)
    monkeypatch.setattr(sd_models, "send_model_to_device", fail)
    with pytest.raises(HostError, match="could not be moved back to the graphics card"):
        aside(host.restore_model)


def test_the_hosts_own_schedule_is_asked_for_by_its_name(start, monkeypatch):
    host = start("a1111")
    from modules import processing

    labels = [SimpleNamespace(label=label) for label in ("Automatic", "Karras")]
    monkeypatch.setitem(sys.modules, "modules.sd_schedulers", SimpleNamespace(schedulers=labels))
    asked, process = [], processing.process_images
    monkeypatch.setattr(
        processing, "process_images", lambda made: (asked.append(made.scheduler), process(made))[1]
    )
    aside(lambda: host.generate(SMALL))
    aside(lambda: host.generate(dataclasses.replace(SMALL, scheduler="Karras")))
    assert asked == ["Automatic", "Karras"]


@ALL
def test_a_picture_is_made_by_the_hosts_pipeline_and_saved_nowhere(start, kind, tmp_path):
    host = start(kind)
    made = aside(lambda: host.generate(SMALL))
    assert made.image.size == (64, 64) and made.image.mode == "RGB"
    assert (
        made.infotext.startswith("a fox\n")
        and "Seed: 3" in made.infotext
        and "Sampler: DPM++ 2M" in made.infotext
    )
    assert made.comments == ()
    again, other = (
        aside(lambda: host.generate(SMALL)),
        aside(lambda: host.generate(Txt2ImgRequest(**{**vars(SMALL), "seed": 4}))),
    )
    assert made.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    from modules import shared

    assert shared.state.job == "" and shared.state.job_count == 0
    assert not list((tmp_path / "data").rglob("*.png"))


@ALL
def test_a_lora_in_the_prompt_changes_the_picture(start, kind, tmp_path):
    host = start(kind)
    write_lora(tmp_path / "data" / "models" / "Lora" / "ink.safetensors")
    plain = aside(lambda: host.generate(SMALL))
    with_lora = aside(
        lambda: host.generate(Txt2ImgRequest(**{**vars(SMALL), "prompt": "a fox <lora:ink:0.7>"}))
    )
    assert plain.image.tobytes() != with_lora.image.tobytes()


def test_a_lora_that_is_not_there_is_remarked(start):
    host = start("a1111")
    made = aside(
        lambda: host.generate(Txt2ImgRequest(**{**vars(SMALL), "prompt": "a fox <lora:nowhere:1>"}))
    )
    assert made.comments == ("Networks not found: nowhere",)


def test_what_forge_prints_of_a_lora_is_heard_and_printed(start, capsys, monkeypatch):
    host = start("forge")
    from modules import processing

    def noisy(p):
        print("[LORA] Loaded ink for KModel-UNet with 192 keys at weight 1.0 (skipped 0 keys)")
        print("[LORA] Loading ink for KModel with unmatched keys ['a']")
        return original(p)

    original = processing.process_images
    monkeypatch.setattr(processing, "process_images", noisy)
    made = aside(lambda: host.generate(SMALL))
    assert made.comments == ("[LORA] Loading ink for KModel with unmatched keys ['a']",)
    assert capsys.readouterr().out.count("[LORA]") == 2
    print("afterwards")
    assert capsys.readouterr().out == "afterwards\n"


def test_what_neo_logs_of_a_lora_is_heard(start, monkeypatch):
    host = start("neo")
    from modules import processing

    logger = logging.getLogger("lora")
    monkeypatch.setattr(logger, "propagate", False)
    before = list(logger.handlers)

    def noisy(p):
        logger.warning("[LORA] Loaded ink for KModel-UNet with 192 keys at weight 1.0")
        logger.warning("[LORA] LoRA mismatch for KModel: ink")
        return original(p)

    original = processing.process_images
    monkeypatch.setattr(processing, "process_images", noisy)
    made = aside(lambda: host.generate(SMALL))
    assert made.comments == ("[LORA] LoRA mismatch for KModel: ink",)
    assert logger.handlers == before


def test_colours_of_what_a_host_prints_of_a_lora_are_left_out():
    remarks: list[str] = []
    keep_lora_remark(
        "\033[0;36m[LORA] \033[1;33mapparent version mismatch \033[0;36mink.safetensors ignoring 12"
        " keys\033[0m\n",
        remarks,
    )
    assert remarks == ["[LORA] apparent version mismatch ink.safetensors ignoring 12 keys"]


def test_keys_that_reforge_logs_as_not_loaded_are_one_remark(start, monkeypatch):
    host = start("reforge")
    from modules import processing

    root = logging.getLogger()
    before = list(root.handlers)

    def noisy(p):
        print("[LORA] Loaded ink for BaseModel with 190 keys (UNet: 190, CLIP: 0) at weight 1.0")
        for key in ("a.alpha", "a.lora_up.weight", "a.lora_down.weight"):
            logging.warning("lora key not loaded: %s", key)
        return original(p)

    original = processing.process_images
    monkeypatch.setattr(processing, "process_images", noisy)
    made = aside(lambda: host.generate(SMALL))
    assert made.comments == ("lora key not loaded: a.alpha (and 2 more)",)
    assert root.handlers == before


def test_neo_tells_the_vae_among_its_modules_by_its_list_of_folders(start, tmp_path, monkeypatch):
    host = start("neo")
    from modules import paths_internal, shared

    folder = tmp_path / "elsewhere" / "vae"
    shared.cmd_opts.vae_dirs = [str(folder)]
    shared.opts.data["forge_additional_modules"] = [str(folder / "kl.safetensors")]
    assert host.loaded().vae == folder / "kl.safetensors"
    shared.cmd_opts.text_encoder_dirs = [str(tmp_path / "a"), str(tmp_path / "b")]
    models = host.paths().models
    assert host.part_folders() == [
        models / "text_encoder",
        tmp_path / "a",
        tmp_path / "b",
        models / "VAE",
        folder,
    ]
    assert host.tokenizer_folder() is None
    monkeypatch.setattr(paths_internal, "script_path", str(tmp_path))
    own = tmp_path / "backend" / "huggingface"
    own.mkdir(parents=True)
    assert host.tokenizer_folder() == own


def test_a_host_is_one_module(start, tmp_path, monkeypatch):
    """A fork of A1111, from a single file."""
    (tmp_path / "toy.py").write_text(
        "from lora_trainer.hosts.a1111 import A1111\n"
        "from lora_trainer.hosts.base import has_module\n"
        "class Toy(A1111):\n"
        "    kind, name = 'toy', 'Toy WebUI'\n"
        "    @classmethod\n"
        "    def is_here(cls):\n"
        "        return super().is_here() and has_module('modules.toy')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(hosts, "__path__", [*hosts.__path__, str(tmp_path)])
    host = start("a1111")
    assert type(host) is A1111
    monkeypatch.setitem(sys.modules, "modules.toy", types.ModuleType("modules.toy"))
    toy = find()
    try:
        assert (toy.kind, toy.name, toy.paths()) == ("toy", "Toy WebUI", host.paths())
        assert {kind.kind for kind in kinds()} >= {"toy", "a1111", "forge", "neo", "reforge"}
    finally:
        del sys.modules["lora_trainer.hosts.toy"], hosts.toy


def test_an_image_waits_for_the_model_that_a1111_loads_while_it_starts(start, monkeypatch):
    host = start("a1111")
    from modules import processing, sd_models

    done = []
    wait, make = sd_models.model_data.get_sd_model, processing.process_images
    monkeypatch.setattr(
        sd_models.model_data, "get_sd_model", lambda: (done.append("model"), wait())[1]
    )
    monkeypatch.setattr(processing, "process_images", lambda p: (done.append("image"), make(p))[1])
    aside(lambda: host.generate(SMALL))
    assert done[0] == "model"
    assert "image" in done


def test_a1111_tells_how_many_layers_it_matched(start, monkeypatch):
    host = start("a1111")
    import networks

    networks.loaded_networks.append(types.SimpleNamespace(name="ink", modules={"a": 1, "b": 2}))
    assert aside(lambda: host.generate(SMALL)).matched_modules == {"ink": 2}


@ALL
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ValueError("Sampler X is not supported"),
            "the WebUI could not generate the image: ValueError: Sampler X is not supported",
        ),
        (
            RuntimeError("missing keys: " + "layer " * 1000),
            "the WebUI could not generate the image: RuntimeError: missing keys:"
            + " layer" * 44
            + " ...",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate"),
            "the graphics card ran out of memory while the WebUI generated the image",
        ),
    ],
)
def test_a_pipeline_that_fails_is_a_sentence_and_leaves_the_host_usable(
    start, kind, error, sentence, monkeypatch
):
    host = start(kind)
    from modules import processing, shared

    with monkeypatch.context() as patched:
        patched.setattr(processing, "process_images", MagicMock(side_effect=error))
        with pytest.raises(HostError) as failure:
            aside(lambda: host.generate(SMALL))
    assert str(failure.value) == sentence
    assert shared.state.job == ""
    assert aside(lambda: host.generate(SMALL)).image.size == (64, 64)


def test_steps_are_reported_and_a_stop_interrupts_our_picture_only(start, monkeypatch):
    host = start("a1111")
    from modules import processing, shared

    monkeypatch.setattr(processing, "STEP_SECONDS", 0.01)
    monkeypatch.setattr(base, "WATCH_SECONDS", 0.01)
    steps: list[tuple[int, int]] = []
    stop = threading.Event()
    request = Txt2ImgRequest(**{**vars(SMALL), "steps": 500})

    def note(step, count):
        steps.append((step, count))
        if step > 3:
            stop.set()

    with pytest.raises(GenerationCancelled):
        aside(lambda: host.generate(request, progress=note, stop_asked=stop.is_set))
    assert steps[-1][1] == 500 and 3 < steps[-1][0] < 400
    assert shared.state.interrupted is False
    with pytest.raises(GenerationCancelled):  # one that was given up before its turn came
        aside(lambda: host.generate(request, stop_asked=lambda: True))


# --- turns ----------------------------------------------------------------------------------------


@ALL
def test_whoever_uses_the_device_is_noticed(start, kind):
    host = start(kind)
    seen = []
    assert host.on_generation(lambda: seen.append("before"), lambda: seen.append("after"))
    from modules import call_queue

    aside(lambda: host.generate(SMALL))
    call_queue.wrap_queued_call(lambda: seen.append("a checkpoint is chosen"))()
    with call_queue.queue_lock:
        seen.append("the API")
        assert host.is_generating()
    assert seen == [
        "before",
        "after",
        "before",
        "a checkpoint is chosen",
        "after",
        "before",
        "the API",
        "after",
    ]
    assert not host.is_generating()


def test_the_end_is_noticed_when_a_generation_fails(start):
    host = start("a1111")
    seen = []
    host.on_generation(lambda: seen.append("before"), lambda: seen.append("after"))
    from modules import call_queue

    with pytest.raises(ZeroDivisionError):
        call_queue.wrap_queued_call(lambda: 1 / 0)()
    assert seen == ["before", "after"]


def test_a_refused_picture_leaves_the_queue_and_the_list_of_waiting_tasks(start, monkeypatch):
    host = start("forge")
    progress = types.ModuleType("modules.progress")
    progress.pending_tasks = {"task(mine)": 1.0, "task(next)": 2.0}
    progress.start_task = lambda task: progress.pending_tasks.pop(task)
    progress.finished = []
    progress.finish_task = progress.finished.append
    monkeypatch.setitem(sys.modules, "modules.progress", progress)
    from modules import call_queue
    from modules_forge import main_thread

    main_thread.last_exception = ValueError("of an earlier image")

    def refuse():
        raise LoraTrainerError("the training is still at {step}", hint="Wait.", step=7)

    host.on_generation(
        refuse, lambda: None, describe=lambda error: texts.render_in_one_line(error, "en")
    )
    with pytest.raises(LoraTrainerError) as refused:
        call_queue.wrap_queued_call(lambda: None)()
    # the host shows this and nothing else
    assert str(refused.value) == "The training is still at 7 (Wait.)"
    assert (str(refused.value.message), str(refused.value.hint)) == (
        "the training is still at 7",
        "Wait.",
    )
    assert progress.finished == ["task(mine)"] and list(progress.pending_tasks) == ["task(next)"]
    assert main_thread.last_exception is None and not host.is_generating()
    host.off_generation()
    assert call_queue.wrap_queued_call(lambda: 5)() == 5


def test_our_own_turns_are_not_noticed_and_may_be_nested(start):
    host = start("a1111")
    seen = []
    host.on_generation(lambda: seen.append("before"), lambda: seen.append("after"))
    with host.our_turn() as ours, host.our_turn(wait=False) as inner:
        assert ours and inner and not host.is_generating()
        assert aside(lambda: enter_without_waiting(host)) is False
    assert seen == []
    assert enter_without_waiting(host) is True


def enter_without_waiting(host):
    with host.our_turn(wait=False) as ours:
        return ours


def test_a_model_may_be_moved_inside_a_guests_turn(start):
    host = start("a1111", "--fake-gpu", loaded=True)
    aside(host.release_model)
    host.on_generation(host.restore_model, lambda: None)
    assert aside(lambda: host.generate(SMALL)).image.size == (64, 64)


def test_our_turn_waits_for_a_picture(start):
    host = start("a1111")
    host.on_generation(lambda: None, lambda: None)
    order = []
    from modules import call_queue

    with ThreadPoolExecutor(1) as pool:
        with call_queue.queue_lock:
            waiting = pool.submit(lambda: take_turn(host, order))
            time.sleep(0.05)
            order.append("picture")
        waiting.result(timeout=120)
    assert order == ["picture", "ours"]


def take_turn(host, order):
    with host.our_turn():
        order.append("ours")


def test_the_queue_is_left_as_it_was_found(start):
    host = start("a1111")
    from modules import call_queue, fifo_lock

    host.on_generation(lambda: None, lambda: None)
    host.on_generation(lambda: None, lambda: None)
    assert type(call_queue.queue_lock) is not fifo_lock.FIFOLock
    host.off_generation()
    assert type(call_queue.queue_lock) is fifo_lock.FIFOLock


# --- forks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lacking",
    ["sd_vae", "sd_samplers", "sd_schedulers", "ui_extra_networks", "launch_utils", "devices"],
)
def test_a_fork_that_lacks_a_module_gives_less_and_no_traceback(start, lacking, monkeypatch):
    host = start("a1111")
    version, samplers = host.version, host.samplers()
    monkeypatch.setitem(sys.modules, f"modules.{lacking}", None)
    assert host.loaded().path.name == "alpha.safetensors"
    assert (host.version, host.samplers()) == (
        "" if lacking == "launch_utils" else version,
        [] if lacking == "sd_samplers" else samplers,
    )
    assert host.device().kind == "cpu" and host.memory() is None
    host.refresh_loras()


def test_a_host_without_a_queue_says_so(start, monkeypatch):
    host = start("a1111")
    monkeypatch.setitem(sys.modules, "modules.call_queue", None)
    with pytest.raises(HostError, match="has no queue that the training could join"):
        host.our_turn()


def test_the_lora_page_is_refreshed(start, tmp_path):
    host = start("a1111")
    from modules import ui_extra_networks

    ui_extra_networks.extra_pages.append(ui_extra_networks.ExtraNetworksPageLora())
    write_lora(tmp_path / "data" / "models" / "Lora" / "ink.safetensors")
    host.refresh_loras()
    import networks

    assert list(networks.available_networks) == ["ink"]


def test_cards_that_the_host_has_drawn_and_kept_are_drawn_anew(start):
    host = start("a1111")
    from modules import ui_extra_networks

    class ExtraNetworksUi:
        pass

    ui_extra_networks.ExtraNetworksUi = ExtraNetworksUi
    txt2img, img2img = ExtraNetworksUi(), ExtraNetworksUi()
    txt2img.pages_contents, img2img.pages_contents = ["old cards"], ["old cards"]
    host.refresh_loras()
    assert (txt2img.pages_contents, img2img.pages_contents) == ([], [])
