"""What can go wrong, what is seen then, what is kept and how to go on: the table behind
docs/what-can-go-wrong.md. Each row names the test that holds it.

    python -m tests.hardening.situations        writes the page anew

Words in quotation marks are the product's own: a test looks for them in its sources, and for each
test's name in its file.
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
            then=(
                "*Continue*, or `resume RUN_DIR`: the result is the same, bit for bit, as without"
                " the stop"
            ),
            test="tests/tasks/test_diffusion.py::test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit",
        ),
        Situation(
            what="The training process is killed, crashes, or the machine loses power",
            seen='"the training process ended unexpectedly", with its last words',
            kept=(
                "Everything up to the last save; half-written files are never used, and are cleared"
                " away"
            ),
            then="*Continue*: it goes on from the last save, exactly",
            test="tests/tasks/test_diffusion.py::test_a_run_that_was_killed_goes_on_from_its_last_save",
        ),
        Situation(
            what="Of several processes that train together, one is killed, or its machine fails",
            seen='"was ended (" with how, or "one of the" processes "was ended"; all of them end',
            kept="Everything up to the last step, which is saved",
            then="*Continue*, also with another number of cards",
            test="tests/tasks/test_several.py::test_a_killed_process_ends_the_run_with_what_was_learned",
        ),
        Situation(
            what="Main memory runs out, and the system ends the process",
            seen='"most likely because it ran out of memory"',
            kept="Everything up to the last save",
            then="Close other programs, or lower `batch_size` or `resolution`; then *Continue*",
            test="tests/test_main.py::test_a_run_goes_on_after_a_kill_a_stop_and_two_ctrl_c",
        ),
        Situation(
            what="The graphics card's memory runs out",
            seen='"out of memory at step", and which settings need less',
            kept="Everything up to the last save",
            then="Set `gradient_checkpointing: true` and `batch_size: 1`; then *Continue*",
            test="tests/training/test_device.py::test_running_out_of_memory_is_recognised",
        ),
        Situation(
            what="There is no memory for the preview images",
            seen='"not enough memory for the previews of step"',
            kept="The training, which goes on",
            then="Nothing, or a smaller `sample_size`",
            test="tests/tasks/test_stop_and_resume.py::test_previews_without_memory_do_not_cost_the_training",
        ),
        Situation(
            what="The WebUI is closed, crashes, or its page is reloaded",
            seen="The training goes on; whoever opens the tab next finds it where it is",
            kept="Everything",
            then="Nothing. If it is to end with the WebUI, *Settings*, *LoRA Trainer* says so",
            test="tests/jobs/test_real_workers.py::test_a_worker_outlives_its_host_and_the_ctrl_c_in_its_terminal_or_ends_with_it_as_chosen",
        ),
        Situation(
            what="The WebUI stops while an image is made, for which the training was paused",
            seen="The WebUI that starts next lets the training go on",
            kept="Everything",
            then="Nothing",
            test="tests/hosts/test_gpu_lease.py::test_a_host_that_starts_again_lets_a_run_go_on_that_was_paused_for_a_picture",
        ),
        Situation(
            what="A loss or gradient is not a number",
            seen=(
                '"was skipped: its" loss or gradient "is NaN or infinite", for the step; after several'
                " in a row the run ends and names the images"
            ),
            kept="The weights: such a step changes nothing",
            then=(
                "A lower `learning_rate`, or `mixed_precision: no`; look at the images that are"
                " named"
            ),
            test="tests/tasks/test_diffusion.py::test_nan_never_reaches_the_weights_and_its_image_is_named",
        ),
        Situation(
            what="Images, captions or settings were changed before going on",
            seen='"since the resume point", with the names of what was changed',
            kept="What was learned",
            then=(
                "Nothing, if it was meant: the LoRA is then no longer what an uninterrupted run"
                " gives"
            ),
            test="tests/tasks/test_stop_and_resume.py::test_a_dataset_that_changed_meanwhile_is_said",
        ),
        Situation(
            what="Two programs begin a run in one folder",
            seen='One gets it; the other is told "a worker is already training in" it',
            kept="The run of the first",
            then="Choose another `output_dir`",
            test="tests/runs/test_folder.py::test_two_workers_cannot_occupy_one_folder_and_the_lock_dies_with_its_holder",
        ),
        Situation(
            what="The newest resume point is damaged: a disk has changed it, or it is cut off",
            seen='"is damaged (" with the reason, and the step from which the run goes on',
            kept="The resume point before it; the damaged one is kept under another name",
            then="Nothing: *Continue* goes on from the earlier step",
            test="tests/training/test_checksummed.py::test_a_damaged_newest_state_gives_way_to_the_one_before_and_is_told",
        ),
        Situation(
            what="No resume point of a run can be used",
            seen='"no resume point in" the folder "can be read", with the reason for each',
            kept="The LoRA files that were saved",
            then="Start a new run",
            test="tests/training/test_checksummed.py::test_a_state_that_no_run_can_go_on_from_is_a_sentence",
        ),
        Situation(
            what="An image or caption that was encoded in advance is damaged on the disk",
            seen="Nothing",
            kept="The run, which encodes it again",
            then="Nothing",
            test="tests/training/test_checksummed.py::test_what_is_damaged_or_something_else_counts_as_not_encoded",
        ),
        Situation(
            what="The checkpoint itself has NaN or infinite values",
            seen=('"has NaN or infinite values", with the tensor, before anything is encoded'),
            kept="The checkpoint, which is only read",
            then="Download the checkpoint again, or choose another",
            test="tests/tasks/test_diffusion.py::test_a_broken_checkpoint_is_named_before_anything_is_encoded",
        ),
        Situation(
            what="The VAE encodes images to NaN or infinite numbers",
            seen='"the VAE in" the file that it is, with the image, while images are encoded',
            kept="The images",
            then="Set `vae` to another VAE file for this kind of checkpoint",
            test="tests/tasks/test_diffusion.py::test_a_vae_whose_latents_are_not_finite_is_named_while_encoding",
        ),
    ),
    "The disk": (
        Situation(
            what="The disk is full at a save",
            seen='"could not be saved: the disk is full"; the training goes on',
            kept="Every earlier save, and what is in memory",
            then="Make room before the next save",
            test="tests/tasks/test_diffusion.py::test_a_full_disk_between_two_steps_costs_that_save_and_no_more",
        ),
        Situation(
            what="The disk is full at the end, or before the first step",
            seen='"the disk is full"',
            kept="Everything that was saved",
            then="Make room, then *Continue*",
            test="tests/tasks/test_stop_and_resume.py::test_a_full_disk_is_named_whoever_finds_it",
        ),
        Situation(
            what="The disk is full while something is uploaded, edited, named or queued in the tab",
            seen="A sentence that names the file; what was asked for is not done",
            kept="Every image, and every caption as it was or as it is to be, whole",
            then="Make room, and do it again",
            test="tests/hardening/test_hardening.py::test_on_a_full_disk_everything_is_told_and_nothing_is_lost",
        ),
        Situation(
            what="A run will need more room than there is",
            seen="It is told before the start, in *What will happen*",
            kept="Everything",
            then="Make room, save more rarely (`save_steps`), or keep fewer (`keep_last`)",
            test="tests/webui/settings/test_preflight.py::test_a_disk_that_is_too_small_is_told_before_the_start",
        ),
        Situation(
            what="You want to delete a dataset because the disk is full",
            seen="It works",
            kept="It lies in the trash until that is emptied",
            then="Empty the trash",
            test="tests/webui/datasets/test_registry.py::test_a_dataset_is_deleted_on_a_full_disk_too",
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
            seen='"so this one is called" NAME-2',
            kept="Both",
            then="Nothing: the tag that the run shows names the new one",
            test="tests/lora/test_deliver.py::test_notes_and_pictures_of_a_lora_that_is_gone_are_kept",
        ),
        Situation(
            what="The WebUI's LoRA folder is missing or cannot be written",
            seen='"there is no folder", before the training; at its end, a warning',
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
        Situation(
            what="The program is killed while it puts the LoRA into the WebUI's folder",
            seen="Nothing: the WebUI never lists a LoRA that is not whole",
            kept="The LoRA, in the run's folder",
            then=(
                "*Continue*, or *Put into the LoRA folder*: the delivery goes on under the name"
                " that it had claimed, and what was half-done is cleared away"
            ),
            test="tests/lora/test_deliver.py::test_a_kill_at_any_step_is_made_good_by_the_next_delivery_of_the_file",
        ),
        Situation(
            what=(
                "Another trainer's LoRA has a layout that the WebUI does not load, or only in part"
            ),
            seen=(
                '`inspect` says for each WebUI what it makes of the file, such as "loads none of'
                ' its" layers'
            ),
            kept="The file, which is only read",
            then="Convert it with the tool that `inspect` names, or use a WebUI that loads it",
            test="tests/lora/test_layouts.py::test_each_layout_is_known_by_name_and_what_each_webui_makes_of_it",
        ),
        Situation(
            what=(
                "A LoRA loads and hardly shows, because the WebUI keeps the model in 8 or 4 bits"
                " and rounds the LoRA away"
            ),
            seen=(
                'A small share before "of it is kept", by `inspect LORA --base CHECKPOINT` and *How'
                " much of it is kept?* in *Try it*"
            ),
            kept="The file; what is lost is lost in the WebUI's memory only",
            then=(
                "Choose the setting that is named, such as *(fp16 LoRA)* under *Diffusion in Low"
                " Bits*, or the model in 16 bits"
            ),
            test="tests/lora/test_survival.py::test_less_than_half_a_step_is_lost_and_a_whole_step_is_kept",
        ),
    ),
    "Images and captions": (
        Situation(
            what="An image is damaged, cut off, or no image",
            seen="Its name and what is wrong, with all others that are, before the training",
            kept="The image stays where it is",
            then="Fix or remove it; or `on_bad_data: skip` trains without it",
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
            seen='"was changed by another program"',
            kept="What the other program saved",
            then="Look at it, and do your edit again",
            test="tests/dataset/test_edits.py::test_a_file_saved_by_another_program_meanwhile_is_not_overwritten",
        ),
        Situation(
            what="An edit of many captions went wrong",
            seen="*Undo*, also after a restart",
            kept="Every caption as it was; what was changed since stays",
            then="*Undo*",
            test="tests/webui/captions/test_workbench.py::test_everything_is_undone_step_by_step_after_a_restart",
        ),
        Situation(
            what="The program is killed while it changes captions, or removes images",
            seen="Nothing; the next start finds each caption old or new, never half",
            kept="Every image, in its place or in the dataset's trash; every caption",
            then="Do it again, or *Undo*",
            test="tests/hardening/test_hardening.py::test_after_kills_going_on_comes_to_the_same_and_nothing_is_lost",
        ),
        Situation(
            what="The captioner is killed or stopped",
            seen="What was captioned until then is in the dataset",
            kept="All captions but those of the last seconds; every caption of a person",
            then="Start it again: it goes on where it was",
            test=("tests/tasks/test_caption.py::test_a_killed_worker_loses_no_more_than_seconds"),
        ),
        Situation(
            what="A zip holds a damaged image",
            seen="Its name, among what was left out",
            kept="The others, which are taken",
            then="Upload that one again",
            test="tests/webui/images/test_uploads.py::test_a_member_damaged_in_the_archive_leaves_the_others_alone",
        ),
        Situation(
            what="An upload is broken off",
            seen="Nothing of it is in the dataset",
            kept="What was there; what had arrived is cleared away after a day",
            then="Upload it again",
            test="tests/webui/images/test_uploads.py::test_what_a_crash_left_is_cleared_away_after_a_day",
        ),
        Situation(
            what=(
                "A photograph is HEIC, as phones write them, or AVIF where the WebUI's Pillow"
                " cannot read it"
            ),
            seen=(
                "When the worker's packages are installed, an upload becomes a JPEG or PNG of its"
                " name; in a folder that is yours the images are named, and converted at a click"
            ),
            kept=(
                "The original of an upload that cannot be converted yet; those of a folder come"
                " back by *Undo*"
            ),
            then="Install the worker's packages, then convert",
            test="tests/webui/datasets/test_image_conversion.py::test_what_cannot_be_converted_yet_is_kept_with_its_captions_and_converted_later",
        ),
        Situation(
            what="An image has more pixels than are read, or claims to",
            seen='"million pixels, and no more than" the limit, before it is decoded',
            kept="The image; no memory is taken for it",
            then=(
                "Make it smaller, or raise the limit in the environment variable that the hint"
                " names"
            ),
            test="tests/dataset/test_images.py::test_a_variable_sets_the_limit_of_pixels",
        ),
        Situation(
            what=(
                "Captions lie there in a form that is not read, and a trigger word or a folder's"
                " name could stand in for them"
            ),
            seen=(
                '"files that look like captions are not read", with their names; training does not'
                " begin"
            ),
            kept="The files",
            then="Save each as a .txt file of its image's name, or all in one metadata.csv",
            test="tests/dataset/test_other_tools.py::test_neither_the_trigger_word_nor_a_folders_name_stands_in_for_captions_that_are_there",
        ),
        Situation(
            what="Class images (regularisation images) lie beside the subject's",
            seen=(
                '"they are left out, and not trained as the subject", with the folder and how many'
                " there are"
            ),
            kept="The images",
            then="Nothing; if they are the subject, rename their folder",
            test="tests/dataset/test_other_tools.py::test_class_images_are_never_trained_as_the_subject",
        ),
        Situation(
            what="A captions file holds several captions, one per line",
            seen="Each step draws one of them",
            kept="The lines, also when one is edited in the tab",
            then="Nothing; a list of tags, one per line, is one caption",
            test="tests/dataset/test_caption_lines.py::test_each_of_several_captions_is_drawn_and_one_alone_draws_nothing",
        ),
        Situation(
            what="The quotation marks of a table's cell do not match",
            seen="The cell as the table's reader understands it; an edit writes it anew",
            kept="The other cells and rows, byte for byte",
            then="Look at the caption, and fix it",
            test="tests/dataset/test_edits.py::test_a_cell_whose_quotation_marks_do_not_match_is_written_anew",
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
            test="tests/webui/captions/test_workbench.py::test_a_torn_journal_is_no_obstacle",
        ),
        Situation(
            what="A file of what was measured or seen before is damaged, or made up",
            seen="Nothing; measuring takes as long as the first time",
            kept="Everything",
            then="Nothing",
            test="tests/dataset/test_check_measures.py::test_what_was_measured_before_must_be_what_is_measured",
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
            seen='"the package index cannot be reached"',
            kept="The set that was there before; the WebUI starts all the same",
            then="Name a mirror in INDEX_URL, or a proxy in HTTPS_PROXY",
            test="tests/test_installation.py::test_an_unreachable_index_is_told_from_a_missing_package",
        ),
        Situation(
            what="The disk fills up during the installation",
            seen='"is full", with how much room is needed',
            kept="The set that was there before; nothing half-done stays",
            then="Make room, and start it again",
            test="tests/test_installation.py::test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind",
        ),
        Situation(
            what="A package does not work with this Python",
            seen='"does not work with this Python\'s packages", with its name',
            kept="The WebUI's own packages, which are never written",
            then="As the sentence says",
            test="tests/test_installation.py::test_a_package_that_does_not_import_is_never_used_and_is_named",
        ),
    ),
    "Others reach the WebUI": (
        Situation(
            what=(
                "A page from elsewhere asks under a Host name of its own (DNS rebinding), or you"
                " use a name that the WebUI does not know"
            ),
            seen='"is not an allowed host name of this WebUI"',
            kept="Images and folders: nothing is answered",
            then=(
                "If the name is yours, enter it in *Settings*, *LoRA Trainer*, *Allowed host names*"
            ),
            test="tests/webui/http/test_routing.py::test_a_page_whose_name_was_pointed_at_this_machine_is_refused_and_told_what_to_set",
        ),
        Situation(
            what=(
                "The WebUI listens to the network because of `GRADIO_SERVER_NAME`, a share link or"
                " a tunnel, and not because of `--listen`"
            ),
            seen=(
                "The tab treats everybody as a visitor from elsewhere: no folder of this machine is"
                " opened"
            ),
            kept="Everything outside the extension's data folder",
            then="Use a login; or bind the WebUI to 127.0.0.1",
            test="tests/hosts/test_hosts.py::test_visitors_from_elsewhere_are_expected_where_the_server_really_listens",
        ),
    ),
}


def page() -> str:
    """The page, in Markdown."""
    lines = [
        "# What can go wrong, and what happens then",
        "",
        (
            "What you see when something goes wrong, what is kept of your work, and what to do"
            " then. Words in quotation marks are those of the message."
        ),
        "",
        (
            "For developers: this page is made from the table in `tests/hardening/situations.py`,"
            " in which each row names the test that holds it. The harnesses"
        ),
        (
            "beside it kill the product at file operations chosen at random, fill the disk at its"
            " writes, damage every kind of file that it reads, and attack"
        ),
        "the tab's routes.",
        "",
    ]
    for title, rows in TABLE.items():
        lines += [
            f"## {title}",
            "",
            "| What happens | What you see | What is kept | How to go on |",
            "| --- | --- | --- | --- |",
        ]
        lines += [f"| {row.what} | {row.seen} | {row.kept} | {row.then} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    sys.exit(0)
