"""The command line as people use it: real processes, real files."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer import __main__ as command_line
from lora_trainer.captioning import captioners
from lora_trainer.jobs.resume import changed
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.worker import job
from tests.jobs.logs import TRAINED, write_run
from tests.made import SEED_1, SEED_2, draw_images, small_checkpoint, tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300
"""Seconds: a worker takes some to start, and many more on a machine that does something else."""


def call(*arguments, cwd):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lora_trainer", *map(str, arguments)],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def seed_folder(place, yaml):
    """What an article's YAML file names, in `place`: (settings, checkpoint)."""
    (place / "seed.yaml").write_text(yaml, encoding="utf-8")
    asked = training.read(place / "seed.yaml")
    draw_images(asked.dataset.train_data_dir, 4)
    base = asked.checkpoint.base_model
    base.parent.mkdir(parents=True)
    base.symlink_to(tiny_checkpoint("sd1"))
    return asked, base


def assert_trained(output, rank, modules):
    weights = load_file(output / f"{output.name}.safetensors")
    assert len(weights) == 3 * modules
    assert {
        tensor.shape[0] for name, tensor in weights.items() if name.endswith("lora_down.weight")
    } == {rank}
    assert (output / "pytorch_lora_weights.safetensors").exists()


def test_the_second_seeds_yaml_runs_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, _ = seed_folder(tmp_path, SEED_2)
    folder = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    assert job.run(folder.path) == 0
    assert_trained(folder.path, 16, 192)


def test_the_first_seeds_yaml_runs_unchanged(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "我的 项目"
    folder.mkdir()
    monkeypatch.chdir(folder)
    asked, base = seed_folder(folder, SEED_1)
    done = call("train", "--config", "seed.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    output = asked.output.output_dir
    assert_trained(output, 8, 64)
    assert "Finished" in done.stdout and "Training" in done.stderr and "\r" not in done.stderr
    with safe_open(output / f"{output.name}.safetensors", "pt") as file:
        strength = file.metadata()["lora_trainer.strength"]
    assert done.stdout.rstrip().endswith(f"in a prompt: <lora:{output.name}:{strength}>")
    _, described, _ = run(
        capsys, "inspect", output / f"{output.name}.safetensors", "--base", base, "--json"
    )
    assert json.loads(described)["unmatched"] == []
    _, described, _ = run(
        capsys, "inspect", output / "pytorch_lora_weights.safetensors", "--base", base
    )
    assert "unmatched:       none: every layer fits the base model" in described
    again = call("train", "--config", "seed.yaml", cwd=folder)
    assert (
        again.returncode == 1 and "already holds a run" in again.stderr and "resume" in again.stderr
    )


def write_yaml(tmp_path, **changes):
    draw_images(tmp_path / "images", 3)
    values = {
        "train_data_dir": "images",
        "base_model": str(small_checkpoint()),
        "output_dir": "out",
        "lora_rank": 2,
        "save_steps": 1000,
        **changes,
    }
    (tmp_path / "run.yaml").write_text(
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items()), encoding="utf-8"
    )


@contextlib.contextmanager
def on_the_command_line(folder, *arguments):
    """A command in that folder: the process. Whatever a test comes to, neither it nor its worker
    goes on.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill() if os.name == "nt" else os.killpg(process.pid, signal.SIGKILL)


def kill_worker(folder, number):
    os.kill(json.loads(folder.worker.read_text())["pid"], number)


def is_running(folder, step):
    state = folder.read_state()
    return state.status == "running" and state.step >= step


def wait_for(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_run_goes_on_after_a_kill_a_stop_and_two_ctrl_c(tmp_path, capsys):
    write_yaml(tmp_path, epochs=10000)
    out = tmp_path / "out"
    folder = RunFolder(out)
    with on_the_command_line(tmp_path, "train", "--config", "run.yaml") as process:
        wait_for(lambda: folder.read_state().step >= 3)
        status, _, refused = run(capsys, "resume", out)
        assert status == 1 and "already training" in refused
        status, asked, _ = run(capsys, "tell", out, "save")
        assert status == 0 and "Sent `save`" in asked
        wait_for(lambda: folder.read_state().saved)
        kill_worker(folder, signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1 and not folder.is_alive
        assert "ended unexpectedly (signal 9)" in output and "memory" in output
        assert "INFO" not in output
    saved = folder.read_state().saved[-1].step
    with on_the_command_line(tmp_path, "resume", "out") as process:
        # the step alone may be the killed worker's
        wait_for(lambda: is_running(folder, saved + 2) and folder.is_alive)
        # a terminal sends Ctrl-C to every process in it
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
        stopped = folder.read_state()
        assert (process.returncode, stopped.status) == (3, "stopped") and stopped.step >= saved + 2
        assert f"Resuming from step {saved}" in output
        assert f"Stopped at step {stopped.step}" in output and "resume" in output
        assert load_file(folder.path / stopped.file)
    _, told, _ = run(capsys, "status", out)
    assert told.startswith(f"Stopped at step {stopped.step} of 30000")
    assert f'Continue with: python -m lora_trainer resume "{out}"' in told
    status, _, ended = run(capsys, "tell", out, "stop")
    assert status == 1 and "No worker is running there" in ended and f'resume "{out}"' in ended
    with on_the_command_line(tmp_path, "resume", "out") as process:
        wait_for(lambda: folder.read_state().status == "running")
        # the worker is held still, as if it were in the midst of something long: it cannot obey the
        # first one
        kill_worker(folder, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: any(folder.path.glob("requests/*")))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "Interrupted at step" in output and "memory" not in output


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "lora_trainer", "status", str(folder.path)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def run(capsys, *arguments):
    status = command_line.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_init_writes_a_file_that_train_reads(tmp_path, capsys):
    path = tmp_path / "my.yaml"
    status, out, _ = run(capsys, "init", path)
    assert status == 0 and str(path) in out
    assert training.read(path).lora.lora_rank is None
    status, _, err = run(capsys, "init", path)
    assert status == 1 and "exists already" in err


def test_grow_trains_a_runs_lora_further_at_twice_the_rank(tmp_path, capsys, monkeypatch):
    begun = []
    monkeypatch.setattr(command_line, "watch", lambda folder: begun.append(folder) or 0)
    saved = events.Saved(step=10, file="ink.safetensors")
    earlier = write_run(tmp_path / "ink", *TRAINED, saved, lora_rank=8, lora_alpha=4.0)
    assert run(capsys, "grow", earlier.path)[0] == 0
    assert run(capsys, "grow", earlier.path, "--set", "max_train_steps=7")[0] == 0
    first, second = (training.read(folder.config) for folder in begun)
    assert first.lora.init_lora == earlier.path / "ink.safetensors"
    assert (first.lora.lora_rank, first.lora.lora_alpha) == (16, None)
    assert (first.training.max_train_steps, second.training.max_train_steps) == (5, 7)
    assert [folder.path.name for folder in begun] == ["ink-r16", "ink-r16-2"]
    assert first.lora.name == ""
    status, _, err = run(capsys, "grow", write_run(tmp_path / "bare", *TRAINED).path)
    assert status == 1 and "no LoRA was saved in" in err


def test_set_is_read_as_yaml_and_checked(tmp_path, capsys):
    assert command_line.parse_changes(
        ["lora_rank=4", "sample_prompts=[a, b]", "learning_rate=2e-4", "name=x=y"]
    ) == {
        "lora_rank": 4,
        "sample_prompts": ["a", "b"],
        "learning_rate": "2e-4",
        "name": "x=y",
    }
    write_yaml(tmp_path)
    status, _, err = run(capsys, "train", "--config", tmp_path / "run.yaml", "--set", "lora_rank=0")
    assert status == 1 and "lora_rank is 0, but must be between 1 and 1024" in err
    status, _, err = run(capsys, "train", "--config", tmp_path / "run.yaml", "--set", "lora_rank")
    assert status == 1 and "--set lora_rank is not KEY=VALUE" in err


def test_resume_of_what_is_no_run_gets_a_sentence(tmp_path, capsys):
    status, _, err = run(capsys, "resume", tmp_path)
    assert status == 1 and "is not a run folder" in err


def test_no_command_shows_the_help(capsys):
    status, out, _ = run(capsys)
    assert status == 2 and "train" in out and "resume" in out


def test_readme_lists_every_setting_as_the_settings_themselves_do():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert part_of(readme, "settings") == training.readme_table().strip()


def test_readme_lists_every_captioner_as_they_say_of_themselves():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert part_of(readme, "captioners") == captioners.readme_table()


def test_the_commands_that_say_what_is_missing_run_where_pyyaml_is_not_installed():
    code = (
        "import sys; sys.modules['yaml'] = None; from lora_trainer import diagnosis;"
        # torch is asked in a process of its own, in tests/test_diagnosis.py
        " diagnosis._torch = lambda overlay: {'version': None};"
        " from lora_trainer.__main__ import main; sys.exit(main(['env', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and json.loads(done.stdout), done.stderr


def part_of(text, name):
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    return text[text.index(begin) + len(begin) : text.index(end)].strip()


def stopped_run(tmp_path):
    write_yaml(tmp_path, epochs=5, max_train_steps=15)
    folder = folders.begin(
        tmp_path / "out",
        training.to_yaml(
            training.read(tmp_path / "run.yaml", {"output_dir": str(tmp_path / "out")})
        ),
    )
    folder.state.mkdir()
    (folder.state / "step00000003.pt").write_bytes(b"")
    return folder


def test_resume_of_a_finished_run_says_how_its_file_gets_to_use(tmp_path, capsys):
    folder = write_run(
        tmp_path / "ink", *TRAINED, events.Finished(step=10, file="ink.safetensors", delivered="")
    )
    status, out, _ = run(capsys, "resume", folder.path)
    assert (
        status == 0
        and "This run is finished" in out
        and "Copy it to the WebUI's models/Lora folder; then, in a prompt:" in out
    )


def test_where_an_earlier_step_is_best_its_own_file_and_strength_are_told(tmp_path, capsys):
    early = "checkpoints/ink-step00000004.safetensors"
    folder = write_run(
        tmp_path / "ink",
        *TRAINED,
        events.Saved(step=4, file=early),
        events.Saved(step=10, file="ink.safetensors"),
        events.Judged(step=4, strength=0.5, strengths={"4": 0.5, "10": 0.75}),
        events.Finished(step=10, file="ink.safetensors", delivered="/webui/Lora/ink.safetensors"),
        preferred_weight="auto",
    )
    _, gone, _ = run(capsys, "resume", folder.path)
    assert "<lora:ink:0.75>" in gone and "is best" not in gone

    (folder.path / early).parent.mkdir()
    (folder.path / early).write_bytes(b"")
    _, out, _ = run(capsys, "resume", folder.path)
    *_, last, best = out.splitlines()
    assert last == "In a prompt: <lora:ink:0.75>"
    assert "step 4 is best" in best and str(folder.path / early) in best
    assert best.endswith(" <lora:ink-step00000004:0.5>")


def test_a_resume_cannot_change_the_shape_of_what_was_learned(tmp_path, capsys):
    folder = stopped_run(tmp_path)
    before = folder.config.read_text(encoding="utf-8")
    status, _, err = run(
        capsys, "resume", folder.path, "--set", "lora_rank=16", "--set", "target_modules=[to_q]"
    )
    assert status == 1 and "lora_rank, target_modules cannot be changed after the start" in err
    assert folder.config.read_text(encoding="utf-8") == before


def test_more_epochs_after_a_resume_are_more_steps(tmp_path):
    folder = stopped_run(tmp_path)
    training = changed(folder, {"epochs": 20}).training
    assert (training.epochs, training.max_train_steps) == (20, None)
    assert changed(folder, {"epochs": 20, "max_train_steps": 7}).training.max_train_steps == 7
    assert changed(folder, {"learning_rate": 1e-5}).training.max_train_steps == 15


def test_a_change_can_put_right_what_a_hand_has_broken(tmp_path):
    folder = stopped_run(tmp_path)
    text = folder.config.read_text(encoding="utf-8")
    folder.config.write_text(text.replace("batch_size: 1", "batch_size: many"), encoding="utf-8")
    assert changed(folder, {"batch_size": 2}).training.batch_size == 2


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "init", tmp_path / "file" / "run.yaml")
    assert status == 1 and "Traceback" not in err and str(tmp_path / "file") in err


def test_a_full_disk_is_told_as_that(tmp_path, monkeypatch, capsys):
    def full(target, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("lora_trainer.files.write_text", full)
    assert command_line.main(["init", str(tmp_path / "a.yaml")]) == 1
    assert (
        capsys.readouterr().err
        == f"the disk is full: {tmp_path / 'a.yaml'} could not be written\nFree some space, then"
        " try again.\n"
    )
