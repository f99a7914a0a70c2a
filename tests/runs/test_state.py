from lora_trainer.runs import events
from lora_trainer.runs.state import RunState, fold


def test_a_run_from_start_to_finish():
    history = [
        events.Started(time=1.0),
        events.Planned(
            name="ink", step_count=10, epoch_count=2, image_count=5, family="sd1", time=1.5
        ),
        events.Phase(phase="encoding", total=5, time=2.0),
        events.Progress(step=3, time=2.5),
        events.Phase(phase="training", total=10, time=3.0),
        events.Progress(
            step=4,
            epoch=1,
            loss=0.2,
            smoothed_loss=0.3,
            images_per_second=2.0,
            seconds_left=3.0,
            time=4.0,
        ),
    ]
    state = fold(history)
    assert (
        state.status,
        state.phase,
        state.phase_step,
        state.step,
        state.loss,
        state.seconds_left,
    ) == ("running", "training", 0, 4, 0.2, 3.0)
    assert state.started == 1.0 and state.changed == 4.0
    assert fold(history[4:], fold(history[:4])) == state
    done = fold(
        [
            events.Saved(step=10, file="a"),
            events.Finished(step=10, file="ink.safetensors", time=5.0),
        ],
        state,
    )
    assert (done.status, done.step, done.file, done.ended) == (
        "finished",
        10,
        "ink.safetensors",
        True,
    )


def test_progress_of_a_phase_is_not_progress_of_the_training():
    state = fold(
        [
            events.Started(),
            events.Planned(step_count=9),
            events.Phase(phase="encoding", total=5),
            events.Progress(step=3),
        ]
    )
    assert (state.step, state.phase_step, state.phase_total) == (0, 3, 5)


def test_resuming_takes_back_what_was_saved_after_the_resume_point_and_the_failure():
    history = [
        events.Started(),
        events.Planned(step_count=9),
        events.Saved(step=2, file="2"),
        events.Saved(step=4, file="4"),
        events.Failed(message="out of memory"),
    ]
    assert fold(history).failure is not None
    state = fold([*history, events.Started(resumed_from=2)])
    assert (
        state.status,
        state.step,
        [saved.step for saved in state.saved],
        state.failure,
        state.step_count,
    ) == ("running", 2, [2], None, 9)


def test_the_validation_curve_has_one_point_a_step_and_ends_at_the_resume_point():
    history = [
        events.Started(),
        *(events.Validated(step=step, validation_loss=step / 10) for step in (0, 2, 4, 4)),
    ]
    assert [one.step for one in fold(history).validations] == [0, 2, 4]
    resumed = fold([*history, events.Started(resumed_from=2)])
    assert [one.validation_loss for one in resumed.validations] == [0.0, 0.2]


def test_pause_and_resume():
    assert fold([events.Started(), events.Paused(step=2)]).status == "paused"
    assert (
        fold([events.Started(), events.Paused(step=2), events.Resumed(step=2)]).status == "running"
    )


def test_nothing_has_happened_in_a_new_run():
    assert fold([]) == RunState()
