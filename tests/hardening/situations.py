"""What can go wrong, what is seen then, what is kept and how to go on: the table behind docs/what-can-go-wrong.md. Each row names the test that holds it.

    python -m tests.hardening.situations        writes the page anew

Words in quotation marks are the product's own: a test looks for them in its sources, and for each test's name in its file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "what-can-go-wrong.md"


@dataclass(frozen=True, kw_only=True)
class Situation:
    what: str
    seen: str
    kept: str
    then: str
    test: str


TABLE: Mapping[str, Sequence[Situation]] = {
    "A training ends too soon": (
        Situation(
            what="You press *Stop and keep*, or Ctrl-C",
            seen="The step is finished and saved; the run says that it was stopped",
            kept="Everything up to that step: a LoRA that is ready to use, and the resume point",
            then="*Continue*, or `resume RUN_DIR`: the result is the same, bit for bit, as without the stop",
            test="tests/worker/test_training_job.py::test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit",
        ),
        Situation(
            what="The training process is killed, crashes, or the machine loses power",
            seen="\"the training process ended unexpectedly\", with its last words",
            kept="Everything up to the last save; half-written files are never used, and are cleared away",
            then="*Continue*: it goes on from the last save, exactly",
            test="tests/worker/test_training_job.py::test_a_run_that_was_killed_goes_on_from_its_last_save",
        ),
        Situation(
            what="Main memory runs out, and the system ends the process",
            seen="\"most likely because memory ran out\"",
            kept="Everything up to the last save",
            then="Close other programs, or lower `batch_size` or `resolution`; then *Continue*",
            test="tests/test_main.py::test_a_killed_worker_is_told_as_such",
        ),
        Situation(
            what="The graphics card's memory runs out",
            seen="\"memory ran out at step\", and which settings need less",
            kept="Everything up to the last save",
            then="Set `gradient_checkpointing: true` and `batch_size: 1`; then *Continue*",
            test="tests/training/test_device.py::test_running_out_of_memory_is_recognised",
        ),
        Situation(
            what="There is no memory for the preview pictures",
            seen="\"there was no memory for the previews of step\"",
            kept="The training, which goes on",
            then="Nothing, or a smaller `sample_size`",
            test="tests/worker/test_stop_and_resume.py::test_previews_without_memory_do_not_cost_the_training",
        ),
        Situation(
            what="The WebUI is closed, crashes, or its page is reloaded",
            seen="The training goes on; whoever opens the tab next finds it where it is",
            kept="Everything",
            then="Nothing. If it is to end with the WebUI, *Settings*, *LoRA Trainer* says so",
            test="tests/jobs/test_real_workers.py::test_a_worker_outlives_its_host_and_the_ctrl_c_in_its_terminal_or_ends_with_it_as_chosen",
        ),
        Situation(
            what="The WebUI stops while a picture is made, for which the training was paused",
            seen="The WebUI that starts next lets the training go on",
            kept="Everything",
            then="Nothing",
            test="tests/webui/test_handover.py::test_a_host_that_starts_again_lets_a_run_go_on_that_was_paused_for_a_picture",
        ),
        Situation(
            what="A loss or gradient is not a number",
            seen="\"not a finite number in its\" loss or gradients, for the step; after several in a row the run ends and names the images",
            kept="The weights: such a step changes nothing",
            then="A lower `learning_rate`, or `mixed_precision: no`; look at the images that are named",
            test="tests/worker/test_training_job.py::test_nan_never_reaches_the_weights_and_its_image_is_named",
        ),
        Situation(
            what="Images, captions or settings were changed before going on",
            seen="\"since the resume point\", with the names of what was changed",
            kept="What was learned",
            then="Nothing, if it was meant: the LoRA is then no longer what an uninterrupted run gives",
            test="tests/worker/test_stop_and_resume.py::test_a_dataset_that_changed_meanwhile_is_said",
        ),
        Situation(
            what="Two programs begin a run in one folder",
            seen="One gets it; the other is told \"a worker is already training in\" it",
            kept="The run of the first",
            then="Choose another `output_dir`",
            test="tests/runs/test_folder.py::test_two_workers_cannot_occupy_one_folder_and_the_lock_dies_with_its_holder",
        ),
    ),
    "The disk": (
        Situation(
            what="The disk is full at a save",
            seen="\"could not be saved: the disk is full\"; the training goes on",
            kept="Every earlier save, and what is in memory",
            then="Make room before the next save",
            test="tests/worker/test_training_job.py::test_a_full_disk_between_two_steps_costs_that_save_and_no_more",
        ),
        Situation(
            what="The disk is full at the end, or before the first step",
            seen="\"the disk is full\"",
            kept="Everything that was saved",
            then="Make room, then *Continue*",
            test="tests/worker/test_stop_and_resume.py::test_a_full_disk_is_named_whoever_finds_it",
        ),
        Situation(
            what="The disk is full while something is uploaded, edited, named or queued in the tab",
            seen="A sentence that names the file; what was asked for is not done",
            kept="Every picture, and every caption as it was or as it is to be, whole",
            then="Make room, and do it again",
            test="tests/hardening/test_hardening.py::test_on_a_full_disk_everything_is_told_and_nothing_is_lost",
        ),
        Situation(
            what="A run will need more room than there is",
            seen="It is told before the start, in *What will happen*",
            kept="Everything",
            then="Make room, save more rarely (`save_steps`), or keep fewer (`keep_last`)",
            test="tests/webui/test_plan.py::test_a_disk_that_is_too_small_is_told_before_the_start",
        ),
        Situation(
            what="You want to delete a dataset because the disk is full",
            seen="It works",
            kept="It lies in the trash until that is emptied",
            then="Empty the trash",
            test="tests/webui/test_datasets.py::test_a_dataset_is_deleted_on_a_full_disk_too",
        ),
        Situation(
            what="A model for captions does not fit on the disk",
            seen="It is told before anything is fetched",
            kept="Everything",
            then="Make room, or name another folder in HF_HOME",
            test="tests/captioning/test_source.py::test_a_disk_without_room_is_noticed_before_the_fetch",
        ),
    ),
    "The finished LoRA": (
        Situation(
            what="A LoRA of this name is in the WebUI's folder already",
            seen="\"so this one is called\" NAME-2",
            kept="Both",
            then="Nothing: the tag that the run shows names the new one",
            test="tests/lora/test_deliver.py::test_notes_and_pictures_of_a_lora_that_is_gone_are_kept",
        ),
        Situation(
            what="The WebUI's LoRA folder is missing or cannot be written",
            seen="\"there is no folder\", before the training; at its end, a warning",
            kept="The LoRA, in the run's folder",
            then="Correct `lora_dir`, or press *Put into the LoRA folder*",
            test="tests/lora/test_deliver.py::test_a_missing_folder_gets_a_sentence",
        ),
        Situation(
            what="A LoRA file is cut off, renamed from another format, or damaged",
            seen="What the file is instead, and what to do",
            kept="The other LoRAs stay in the list",
            then="Download or export it again",
            test="tests/lora/test_describe.py::test_a_missing_file_a_pickle_and_half_a_file_get_a_sentence",
        ),
    ),
    "Images and captions": (
        Situation(
            what="An image is damaged, cut off, or no image",
            seen="Its name and what is wrong, with all others that are, before the training",
            kept="The image stays where it is",
            then="Mend or remove it; or `on_bad_data: skip` trains without it",
            test="tests/dataset/test_scan.py::test_stop_refuses_them_all_at_once_and_skip_goes_on",
        ),
        Situation(
            what="A captions file is in an old encoding, or is damaged",
            seen="Which file, and which line; what was guessed is said",
            kept="The file, byte for byte",
            then="Save it as UTF-8",
            test="tests/dataset/test_text.py::test_one_broken_byte_does_not_turn_utf8_into_other_chinese",
        ),
        Situation(
            what="Another program saves a captions file while you edit it in the tab",
            seen="\"was changed by another program\"",
            kept="What the other program saved",
            then="Look at it, and do your edit again",
            test="tests/dataset/test_edits.py::test_a_file_saved_by_another_program_meanwhile_is_not_overwritten",
        ),
        Situation(
            what="An edit of many captions went wrong",
            seen="*Undo*, also after a restart",
            kept="Every caption as it was; what was changed since stays",
            then="*Undo*",
            test="tests/webui/test_workbench.py::test_everything_is_undone_step_by_step_after_a_restart",
        ),
        Situation(
            what="The program is killed while it changes captions, or removes pictures",
            seen="Nothing; the next start finds each caption old or new, never half",
            kept="Every picture, in its place or in the dataset's trash; every caption",
            then="Do it again, or *Undo*",
            test="tests/hardening/test_hardening.py::test_after_kills_going_on_comes_to_the_same_and_nothing_is_lost",
        ),
        Situation(
            what="The captioner is killed or stopped",
            seen="What was captioned until then is in the dataset",
            kept="All captions but those of the last seconds; every caption of a person",
            then="Start it again: it goes on where it was",
            test="tests/worker/test_caption_job.py::test_a_killed_worker_loses_no_more_than_seconds",
        ),
        Situation(
            what="A zip holds a damaged picture",
            seen="Its name, among what was left out",
            kept="The others, which are taken",
            then="Upload that one again",
            test="tests/webui/test_uploads.py::test_a_member_damaged_in_the_archive_leaves_the_others_alone",
        ),
        Situation(
            what="An upload is broken off",
            seen="Nothing of it is in the dataset",
            kept="What was there; what had arrived is cleared away after a day",
            then="Upload it again",
            test="tests/webui/test_uploads.py::test_what_a_crash_left_is_cleared_away_after_a_day",
        ),
    ),
    "Files of the trainer's own": (
        Situation(
            what="A file of a run is damaged: its settings, its events, a resume point",
            seen="A sentence at this run; all other runs are listed as ever",
            kept="The run's other files",
            then="As the sentence says; a run that cannot be read can be deleted",
            test="tests/hardening/test_hardening.py::test_whatever_a_file_holds_it_is_a_value_or_a_sentence",
        ),
        Situation(
            what="The queue's file is damaged",
            seen="The queue is empty",
            kept="The runs",
            then="Put them into the queue again",
            test="tests/jobs/test_queue.py::test_a_damaged_file_is_an_empty_queue",
        ),
        Situation(
            what="A run or a dataset was deleted by mistake",
            seen="It is in the trash",
            kept="All of it, until the trash is emptied",
            then="*Undo*",
            test="tests/jobs/test_trash.py::test_nothing_is_overwritten_in_the_trash_or_by_what_comes_out_of_it",
        ),
        Situation(
            what="The power fails while an edit is written down",
            seen="The edit cannot be undone any more; all others can",
            kept="The captions",
            then="Nothing",
            test="tests/webui/test_workbench.py::test_a_torn_journal_is_no_obstacle",
        ),
    ),
    "Setting up": (
        Situation(
            what="The installation is killed or broken off",
            seen="It is not used",
            kept="The set that was there before stays at work",
            then="Start it again",
            test="tests/test_install.py::test_an_installation_killed_midway_is_simply_done_again",
        ),
        Situation(
            what="The package index cannot be reached",
            seen="\"the package index cannot be reached\"",
            kept="The set that was there before; the WebUI starts all the same",
            then="Name a mirror in INDEX_URL, or a proxy in HTTPS_PROXY",
            test="tests/test_installation.py::test_an_unreachable_index_is_told_from_a_missing_package",
        ),
        Situation(
            what="The disk fills up during the installation",
            seen="\"is full\", with how much room is needed",
            kept="The set that was there before; nothing half-done stays",
            then="Make room, and start it again",
            test="tests/test_installation.py::test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind",
        ),
        Situation(
            what="A package does not work with this Python",
            seen="\"does not work with this Python's packages\", with its name",
            kept="The WebUI's own packages, which are never written",
            then="As the sentence says",
            test="tests/test_installation.py::test_a_package_that_does_not_import_is_never_used_and_is_named",
        ),
    ),
}


def page() -> str:
    """The page, in Markdown."""
    lines = [
        "# What can go wrong, and what happens then", "",
        "Made from the table in `tests/hardening/situations.py`, in which each row names the test that holds it. The harnesses beside it do these things",
        "to the product again and again: they kill it at every file operation, fill the disk at every write, damage every kind of file that is read, and",
        "attack the tab's routes.", "",
    ]  # fmt: skip
    for title, rows in TABLE.items():
        lines += [f"## {title}", "", "| What happens | What you see | What is kept | How to go on |", "| --- | --- | --- | --- |"]
        lines += [f"| {row.what} | {row.seen} | {row.kept} | {row.then} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    sys.exit(0)
