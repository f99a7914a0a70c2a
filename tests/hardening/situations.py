"""What can go wrong, what the user sees, what is kept and how to continue: the source of
docs/what-can-go-wrong.md. Each row names the test that verifies it.

    python -m tests.hardening.situations        writes the page

Words in quotation marks are quoted from messages: a test looks for them in the sources, and for
each test's name in its file.
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
                "Everything up to the last save; half-written files are never used, and are removed"
            ),
            then="*Continue*: it resumes exactly from the last save",
            test="tests/tasks/test_diffusion.py::test_a_run_that_was_killed_goes_on_from_its_last_save",
        ),
        Situation(
            what="One of several training processes is killed, or its machine fails",
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
            kept="The training, which continues",
            then="Nothing, or a smaller `sample_size`",
            test="tests/tasks/test_stop_and_resume.py::test_previews_without_memory_do_not_cost_the_training",
        ),
        Situation(
            what="The WebUI is closed, crashes, or its page is reloaded",
            seen="The training continues; the tab shows it when it is opened again",
            kept="Everything",
            then="Nothing. To end trainings with the WebUI, set it in *Settings*, *LoRA Trainer*",
            test="tests/jobs/test_real_workers.py::test_a_worker_outlives_its_host_and_the_ctrl_c_in_its_terminal_or_ends_with_it_as_chosen",
        ),
        Situation(
            what="The WebUI stops while it generates an image for which the training was paused",
            seen="When the WebUI starts again, the training is resumed",
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
            what="Images, captions or settings were changed before resuming",
            seen='"since the resume point", with the names of what was changed',
            kept="The training so far",
            then=(
                "Nothing, if it was intended: the LoRA then differs from that of an uninterrupted"
                " run"
            ),
            test="tests/tasks/test_stop_and_resume.py::test_a_dataset_that_changed_meanwhile_is_said",
        ),
        Situation(
            what="Two programs start a run in the same folder",
            seen='The second one gets the error "a worker is already training in"',
            kept="The run of the first",
            then="Choose another `output_dir`",
            test="tests/runs/test_folder.py::test_two_workers_cannot_occupy_one_folder_and_the_lock_dies_with_its_holder",
        ),
        Situation(
            what="The newest resume point is damaged: a disk has changed it, or it is cut off",
            seen='"is damaged (" with the reason, and the step from which the run continues',
            kept="The resume point before it; the damaged one is kept under another name",
            then="Nothing: *Continue* resumes from the earlier step",
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
            what="The cached encoding of an image or caption is damaged on the disk",
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
            seen='"the VAE in" its file, with the image, while images are encoded',
            kept="The images",
            then="Set `vae` to another VAE file for this kind of checkpoint",
            test="tests/tasks/test_diffusion.py::test_a_vae_whose_latents_are_not_finite_is_named_while_encoding",
        ),
    ),
    "The disk": (
        Situation(
            what="The disk is full at a save",
            seen='"could not be saved: the disk is full"; the training continues',
            kept="Every earlier save, and the state in memory",
            then="Free disk space before the next save",
            test="tests/tasks/test_diffusion.py::test_a_full_disk_between_two_steps_costs_that_save_and_no_more",
        ),
        Situation(
            what="The disk is full at the end, or before the first step",
            seen='"the disk is full"',
            kept="Everything that was saved",
            then="Free disk space, then *Continue*",
            test="tests/tasks/test_stop_and_resume.py::test_a_full_disk_is_named_whoever_finds_it",
        ),
        Situation(
            what="The disk is full while something is uploaded, edited, named or queued in the tab",
            seen="An error that names the file; the operation is not done",
            kept="Every image, and every caption: the old or the new one, complete",
            then="Free disk space, and do it again",
            test="tests/hardening/test_hardening.py::test_on_a_full_disk_everything_is_told_and_nothing_is_lost",
        ),
        Situation(
            what="A run will need more disk space than is free",
            seen="A warning before the start, in *What will happen*",
            kept="Everything",
            then="Free disk space, save less often (`save_steps`), or keep fewer (`keep_last`)",
            test="tests/webui/settings/test_preflight.py::test_a_disk_that_is_too_small_is_told_before_the_start",
        ),
        Situation(
            what="You want to delete a dataset because the disk is full",
            seen="It works",
            kept="The dataset, in the trash until you empty it",
            then="Empty the trash",
            test="tests/webui/datasets/test_registry.py::test_a_dataset_is_deleted_on_a_full_disk_too",
        ),
        Situation(
            what="A captioning model does not fit on the disk",
            seen="An error before anything is downloaded",
            kept="Everything",
            then="Free disk space, or set HF_HOME to another folder",
            test="tests/captioning/test_source.py::test_a_disk_without_room_is_noticed_before_the_fetch",
        ),
    ),
    "The finished LoRA": (
        Situation(
            what="The WebUI's folder already has a LoRA of this name",
            seen='"so this one is called" NAME-2',
            kept="Both",
            then="Nothing: the `<lora:...>` tag of the run has the new name",
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
            seen="Nothing: the WebUI never lists an incomplete LoRA",
            kept="The LoRA, in the run's folder",
            then=(
                "*Continue*, or *Put into the LoRA folder*: it is completed under the reserved"
                " name, and partial files are removed"
            ),
            test="tests/lora/test_deliver.py::test_a_kill_at_any_step_is_made_good_by_the_next_delivery_of_the_file",
        ),
        Situation(
            what=(
                "Another trainer's LoRA has a layout that the WebUI does not load, or only in part"
            ),
            seen=(
                '`inspect` says for each WebUI how it loads the file, such as "loads none of'
                ' its" layers'
            ),
            kept="The file, which is only read",
            then="Convert it with the tool that `inspect` names, or use a WebUI that loads it",
            test="tests/lora/test_layouts.py::test_each_layout_is_known_by_name_and_what_each_webui_makes_of_it",
        ),
        Situation(
            what=(
                "A LoRA loads but has little effect, because the WebUI stores the model in 8 or 4"
                " bits, and rounding removes the LoRA"
            ),
            seen=(
                'A small share before "of it is kept", by `inspect LORA --base CHECKPOINT` and *How'
                " much of it is kept?* in *Try it*"
            ),
            kept="The file; the loss is only in the WebUI's memory",
            then=(
                "Choose the suggested setting, such as *(fp16 LoRA)* under *Diffusion in Low"
                " Bits*, or the model in 16 bits"
            ),
            test="tests/lora/test_survival.py::test_less_than_half_a_step_is_lost_and_a_whole_step_is_kept",
        ),
    ),
    "Images and captions": (
        Situation(
            what="An image is damaged, truncated, or not an image",
            seen="A list of all such images, each with the reason, before the training",
            kept="The image stays where it is",
            then="Fix or remove it; or `on_bad_data: skip` trains without it",
            test="tests/dataset/test_scan.py::test_stop_refuses_them_all_at_once_and_skip_goes_on",
        ),
        Situation(
            what="A captions file is in an old encoding, or is damaged",
            seen="The file and the line, and the encoding that was guessed",
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
            kept="Every caption as it was; later changes are kept",
            then="*Undo*",
            test="tests/webui/captions/test_workbench.py::test_everything_is_undone_step_by_step_after_a_restart",
        ),
        Situation(
            what="The program is killed while it changes captions, or removes images",
            seen="Nothing; after a restart each caption is the old or the new one, never a part",
            kept="Every image, in its folder or in the dataset's trash; every caption",
            then="Do it again, or *Undo*",
            test="tests/hardening/test_hardening.py::test_after_kills_going_on_comes_to_the_same_and_nothing_is_lost",
        ),
        Situation(
            what="The captioner is killed or stopped",
            seen="The captions written until then are in the dataset",
            kept="All captions except those of the last seconds; every caption by a person",
            then="Start it again: it continues where it was",
            test=("tests/tasks/test_caption.py::test_a_killed_worker_loses_no_more_than_seconds"),
        ),
        Situation(
            what="A zip holds a damaged image",
            seen="Its name, in the list of skipped files",
            kept="The other images, which are added",
            then="Upload that one again",
            test="tests/webui/images/test_uploads.py::test_a_member_damaged_in_the_archive_leaves_the_others_alone",
        ),
        Situation(
            what="An upload is interrupted",
            seen="Nothing of it is in the dataset",
            kept="The dataset; the partial upload is deleted after a day",
            then="Upload it again",
            test="tests/webui/images/test_uploads.py::test_what_a_crash_left_is_cleared_away_after_a_day",
        ),
        Situation(
            what=(
                "A photo is HEIC, the format of phones, or AVIF, and the WebUI's Pillow cannot"
                " read it"
            ),
            seen=(
                "With the worker's packages installed, an upload is converted to a JPEG or PNG of"
                " the same name; in your own folder the images are listed, and converted with a"
                " click"
            ),
            kept=(
                "The original of an upload that cannot be converted yet; those of a folder are"
                " restored by *Undo*"
            ),
            then="Install the worker's packages, then convert",
            test="tests/webui/datasets/test_image_conversion.py::test_what_cannot_be_converted_yet_is_kept_with_its_captions_and_converted_later",
        ),
        Situation(
            what="An image has more pixels than the limit, or claims to",
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
                "Captions are in an unsupported format, and a trigger word or the folder's name"
                " could be used instead"
            ),
            seen=(
                '"files that look like captions are not read", with their names; training does not'
                " start"
            ),
            kept="The files",
            then="Save each as a .txt file named like its image, or all in one metadata.csv",
            test="tests/dataset/test_other_tools.py::test_neither_the_trigger_word_nor_a_folders_name_stands_in_for_captions_that_are_there",
        ),
        Situation(
            what="Class images (regularisation images) are in the dataset's folder",
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
            what="A table cell has unmatched quotation marks",
            seen="The cell as the CSV parser reads it; an edit rewrites it",
            kept="The other cells and rows, byte for byte",
            then="Look at the caption, and fix it",
            test="tests/dataset/test_edits.py::test_a_cell_whose_quotation_marks_do_not_match_is_written_anew",
        ),
    ),
    "Files of the trainer's own": (
        Situation(
            what="A file of a run is damaged: its settings, its events, a resume point",
            seen="An error at this run; all other runs are listed as usual",
            kept="The run's other files",
            then="As the error says; a run that cannot be read can be deleted",
            test="tests/hardening/test_hardening.py::test_whatever_a_file_holds_it_is_a_value_or_a_sentence",
        ),
        Situation(
            what="The queue's file is damaged",
            seen="The queue is empty",
            kept="The runs",
            then="Queue them again",
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
            seen="That edit can no longer be undone; all others can",
            kept="The captions",
            then="Nothing",
            test="tests/webui/captions/test_workbench.py::test_a_torn_journal_is_no_obstacle",
        ),
        Situation(
            what="A cache file with earlier measurements is damaged or forged",
            seen="Nothing; the check takes as long as the first time",
            kept="Everything",
            then="Nothing",
            test="tests/dataset/test_check_measures.py::test_what_was_measured_before_must_be_what_is_measured",
        ),
    ),
    "Setting up": (
        Situation(
            what="The installation is killed or interrupted",
            seen="It is not used",
            kept="The previous set of packages, which stays in use",
            then="Start it again",
            test="tests/test_install.py::test_an_installation_killed_midway_is_simply_done_again",
        ),
        Situation(
            what="The package index cannot be reached",
            seen='"the package index cannot be reached"',
            kept="The previous set of packages; the WebUI still starts",
            then="Set INDEX_URL to a mirror, or HTTPS_PROXY to a proxy",
            test="tests/test_installation.py::test_an_unreachable_index_is_told_from_a_missing_package",
        ),
        Situation(
            what="The disk fills up during the installation",
            seen='"is full", with the disk space that is needed',
            kept="The previous set of packages; partial files are removed",
            then="Free disk space, and start it again",
            test="tests/test_installation.py::test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind",
        ),
        Situation(
            what="A package does not work with this Python",
            seen='"does not work with this Python\'s packages", with its name',
            kept="The WebUI's own packages, which are never written",
            then="As the error says",
            test="tests/test_installation.py::test_a_package_that_does_not_import_is_never_used_and_is_named",
        ),
    ),
    "Others reach the WebUI": (
        Situation(
            what=(
                "Another site's page sends requests with its own Host name (DNS rebinding), or you"
                " use a host name that the WebUI does not know"
            ),
            seen='"is not an allowed host name of this WebUI"',
            kept="Images and folders: the request is refused",
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
                "The tab treats everybody as a remote visitor: folders of this machine cannot be"
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
            " then. Words in quotation marks are quoted from the message."
        ),
        "",
        (
            "For developers: this page is generated from the table in"
            " `tests/hardening/situations.py`, where each row names the test that verifies it."
        ),
        (
            "The harnesses beside it kill the product at random file operations, fill the disk"
            " while it writes, damage every kind of file that it reads, and attack"
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
