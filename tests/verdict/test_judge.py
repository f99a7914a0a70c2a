"""The verdict over made series with known answers."""

from __future__ import annotations

import json
import math

import pytest

from lora_trainer.errors import Message
from lora_trainer.settings import training
from lora_trainer.verdict import conclude, judge
from lora_trainer.verdict.conditions import CONDITIONS, listed
from lora_trainer.verdict.judge import from_mapping, to_mapping
from lora_trainer.verdict.measurements import PreviewScores
from lora_trainer.webui.common import form
from tests.verdict.made_series import BASE, approach, by_strength, measured


def overfitting(step):
    """Falls until step 800, then rises by a third of what it had gained."""
    lowest = BASE * 0.94
    if step <= 800:
        return BASE - (BASE - lowest) * step / 800
    return lowest + BASE * 0.03 * (step - 800) / 1200


def strengths_of(best):
    """Losses by strength of all steps; before training, no strength changes anything."""
    return lambda step, values: {"by_strength": by_strength(best, 0.06 if step else 0.0)}


def copying_from(step, *names):
    def change(at, values):
        return {"has_previews": True, "copied": names if at >= step else ()}

    return change


def found(measurements):
    """Name -> finding."""
    return {one.name: one for one in conclude(measurements).findings}


def said(measurements):
    return [str(sentence) for sentence in conclude(measurements).sentences]


def test_a_fine_run_is_best_where_it_has_levelled_off_and_has_nothing_wrong():
    fine = measured(approach(0.08), approach(0.07), strengths_of(1.0))
    verdict = conclude(fine)
    assert (verdict.best_step, verdict.strength, verdict.basis) == (2000, 0.75, "held_out")
    assert verdict.findings == ()
    assert verdict.text() == (
        "Step 2,000 of 2,000 at strength 0.75 is best. On images that it has not seen, its loss is"
        " 7 % below the checkpoint's."
    )
    assert len(verdict.table) == 11 and verdict.table[8] == {
        "step": 1600,
        "training_loss": pytest.approx(approach(0.08)(1600)),
        "validation_loss": pytest.approx(approach(0.07)(1600)),
        "quality": pytest.approx(0.988, abs=0.001),
        "strength": 0.75,
        "by_strength": {
            "0.5": pytest.approx(0.1146),
            "0.75": pytest.approx(0.11325),
            "1": pytest.approx(0.1128),
            "1.25": pytest.approx(0.11325),
        },
    }


def test_overfitting_is_best_before_the_loss_rises_again():
    run = measured(approach(0.5), overfitting, strengths_of(0.8))
    verdict = conclude(run)
    assert (verdict.best_step, verdict.strength) == (800, 0.75)
    assert said(run)[-1] == "By the last step, 50 % of this quality is lost again."
    assert [one.name for one in verdict.findings] == ["overfit"]
    one = verdict.findings[0]
    assert str(one.sentence) == (
        "After step 800 the loss on held-out images rises again, by 3 % of the "
        "checkpoint's, while that on the trained images does not: this is overfitting."
    )
    assert one.changes == {"max_train_steps": 800, "lora_dropout": 0.1}
    assert str(one.advice) == "Train 800 steps, with dropout. More images would help most."
    # whoever has dropout already is not told to change it
    again = measured(approach(0.5), overfitting, settings={"lora_dropout": 0.2})
    assert found(again)["overfit"].changes == {"max_train_steps": 800}


def test_a_few_images_that_were_trained_hundreds_of_times_are_learned_by_heart():
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2}
    few = measured(approach(0.08), None, settings=settings, image_count=3)
    one = found(few)["overfit"]
    assert str(one.sentence) == (
        "Each of the 3 images was trained 2,667 times, and none was held out for comparison: this "
        "is overfitting."
    )
    assert one.changes == {"max_train_steps": 75}
    assert found(measured(approach(0.08), None, image_count=19)) == {}
    # held-out images tell better
    assert found(measured(approach(0.08), approach(0.07), settings=settings, image_count=3)) == {}


def test_copied_images_are_named_and_the_step_before_is_best():
    run = measured(approach(0.08), None, copying_from(1600, "10_ink/img_07.png", "img_12.png"))
    verdict = conclude(run)
    assert (verdict.best_step, verdict.basis) == (1400, "trained")
    assert "After step 1,400 it copies img_07 and img_12." in said(run)
    one = found(run)["copies"]
    assert str(one.sentence) == "From step 1,600 on, previews copy img_07 and img_12."
    assert one.changes == {"max_train_steps": 1400} and one.section == "images"
    assert "No training image is copied." in said(
        measured(approach(0.08), None, copying_from(9999))
    )


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        (
            lambda step: BASE * (1 + step / 10_000),
            "At step 2,000 the loss on the trained images was 20 % above that of the checkpoint"
            " alone, with the same noise.",
        ),
        (
            lambda step: BASE * (0.9 if step % 400 else 0.97) if step else BASE,
            "From save to save the loss on the same images with the same noise oscillates:"
            " its rises add up to 350 % of its total decrease.",
        ),
    ],
)
def test_a_rate_that_is_too_high_is_known_by_the_loss_under_the_same_noise(trained, words):
    one = found(measured(trained, trained))
    assert list(one) == ["rate_too_high"]
    assert str(one["rate_too_high"].sentence) == words
    assert one["rate_too_high"].changes == {"learning_rate": 1e-4}
    assert str(one["rate_too_high"].advice) == (
        "The learning rate of 0.0003 is too high for this run. Try 0.0001."
    )


def test_a_rate_at_which_training_diverges_is_lowered_by_an_order_of_magnitude():
    one = found(measured(lambda step: 1.0 if step else BASE))["rate_too_high"]
    assert one.changes == {"learning_rate": 3e-5}
    assert conclude(measured(lambda step: 1.0 if step else BASE)).table[1]["quality"] == 1.0


def test_a_rate_that_is_too_high_is_known_by_losses_that_are_not_finite():
    losses = tuple((step, None if step % 10 == 0 else 0.1) for step in range(1, 101))
    one = found(measured(approach(0.08), losses=losses))["rate_too_high"]
    assert str(one.sentence) == "The loss was NaN or infinite in 10 of 100 steps."
    # a few at the start are loss scaling's
    few = tuple((step, None if step < 3 else 0.1) for step in range(1, 101))
    assert "rate_too_high" not in found(measured(approach(0.08), losses=few))


def test_a_run_of_which_only_the_steps_losses_are_known_is_judged_by_them():
    rising = tuple((step, 0.1 + step / 1000 + 0.01 * (-1) ** step) for step in range(1, 201))
    run = measured(None, losses=rising)
    verdict = conclude(run)
    assert (verdict.best_step, verdict.strength, verdict.basis) == (2000, None, "nothing")
    assert said(run) == [
        "Nothing was measured at the saves of this run, so the last one is used: step 2,000 of "
        "2,000."
    ]
    assert str(found(run)["rate_too_high"].sentence) == (
        "The loss of the last steps is 133 % above that of the first."
    )
    noisy = tuple((step, 0.1 * (1 + math.sin(step))) for step in range(1, 201))
    assert found(measured(None, losses=noisy)) == {}


def test_too_few_steps_are_known_by_a_loss_that_still_falls():
    def line(step):
        return BASE * (1 - 0.06 * step / 2000)

    run = measured(line, line, strengths_of(1.0))
    assert conclude(run).best_step == 2000
    assert said(run)[-1] == "It was still improving at the end."
    one = found(run)
    assert list(one) == ["too_few_steps"]
    assert str(one["too_few_steps"].sentence) == (
        "The loss was still falling at the end: 50 % of its decrease came in the last half of the"
        " steps."
    )
    assert one["too_few_steps"].changes == {"max_train_steps": 4000}


def test_captions_that_say_something_else_are_named():
    ratios = {f"img_{number:02d}.png": 0.8 + 0.01 * number for number in range(6)}

    def change(step, values):
        return {"per_image": {**ratios, "wrong.png": 0.99, "other.png": 0.98}} if step else {}

    one = found(measured(approach(0.2), approach(0.15), change))
    assert list(one) == ["captions_disagree"]
    assert str(one["captions_disagree"].sentence) == (
        "other and wrong: 98 % of the checkpoint's loss is left, against 84 % of the other images."
    )
    assert (one["captions_disagree"].changes, one["captions_disagree"].section) == (
        {},
        "captions",
    )


@pytest.mark.parametrize("worse", [-0.06, -0.04])
def test_images_that_other_captions_fit_better_are_named(worse):
    fits = {f"img_{number:02d}.png": 0.3 for number in range(6)}

    def change(step, values):
        return {} if step else {"caption_fit": {**fits, "fox.png": worse, "owl.png": -0.2}}

    one = found(measured(approach(0.2), approach(0.15), change))
    if worse == -0.04:  # below 15 % of the usual distance, and one image alone is no sign
        assert one == {}
        return
    assert list(one) == ["captions_disagree"]
    assert str(one["captions_disagree"].sentence) == (
        "fox and owl: before training, the checkpoint recognizes them better by the captions of"
        " other images than by their own (2 of 8 images compared)."
    )


def test_previews_that_drift_are_told():
    def change(step, values):
        return {"has_previews": True, "likeness": 0.1 if step % 400 else 0.02} if step else {}

    one = found(measured(approach(0.08), approach(0.07), change))["captions_disagree"]
    assert str(one.sentence) == (
        "The style of the previews drifts: from save to save their similarity to the training "
        "images falls by 0.40 in total, and rises by 0.10."
    )


def early(step):
    return BASE * (1 - 0.05 * min(1.0, step / 150))


def test_a_loss_that_stands_still_at_once_wants_other_images():
    one = found(measured(early, early))
    assert list(one) == ["early_plateau"]
    assert str(one["early_plateau"].sentence) == (
        "From step 200 of 2,000 on, the loss no longer falls, on held-out images as on the trained"
        " ones."
    )
    assert one["early_plateau"].changes == {}


def test_a_low_rank_that_holds_no_more_is_told_to_double():
    one = found(measured(approach(0.1, 300), approach(0.09, 300), settings={"lora_rank": 4}))
    assert list(one) == ["detail_lost"]
    assert one["detail_lost"].changes == {"lora_rank": 8, "lora_alpha": None}
    assert str(one["detail_lost"].sentence) == (
        "From step 1,200 on, the loss stays at 91 % of the checkpoint's, without overfitting: "
        "rank 4 cannot store more detail."
    )


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"trigger_word": ""}, {}),
        (
            {"target_modules": ["to_q"]},
            {"target_modules": list(training.UNET_TARGETS)},
        ),
        ({}, {}),
    ],
)
def test_a_likeness_that_stays_low_though_the_loss_fell(settings, changes):
    def change(step, values):
        base = {0.0: PreviewScores(likeness=0.6)}
        return {"has_previews": True, "likeness": 0.01, "previews": base} if step else {}

    one = found(measured(approach(0.08), approach(0.07), change, settings))["likeness_low"]
    assert str(one.sentence) == (
        "The loss fell by 7 %, but the previews are no more similar to the training images than"
        " the checkpoint's own: 0.01."
    )
    assert one.changes == changes


@pytest.mark.parametrize(
    ("settings", "changes"),
    [({}, {"learning_rate": 1.5e-4}), ({"caption_dropout": 0.1}, {"caption_dropout": 0.0})],
)
def test_a_checkpoint_that_is_spoiled_without_the_trigger(settings, changes):
    def change(step, values):
        return {"unprompted_change": 0.62, "prompted_change": 0.7} if step else {}

    one = found(measured(approach(0.08), approach(0.07), change, settings))
    assert str(one["base_spoiled"].sentence) == (
        "Even without its trigger the LoRA changes the checkpoint's predictions by 62 %."
    )
    assert one["base_spoiled"].changes == changes


def test_pictures_decide_with_the_held_out_images_and_choose_the_strength():
    def change(step, values):
        if not step:
            return {}
        scores = {
            0.0: PreviewScores(likeness=0.6, obedience=0.3),
            0.5: PreviewScores(likeness=0.66, obedience=0.3),
            0.75: PreviewScores(likeness=0.7, obedience=0.27),
            1.0: PreviewScores(likeness=0.71, obedience=0.15),
        }
        best = step == 1200
        return {
            "has_previews": True,
            "likeness": 0.2 if best else 0.1,
            "obedience": 0.27,
            "previews": scores,
        }

    verdict = conclude(measured(approach(0.08), approach(0.07), change))
    assert (verdict.best_step, verdict.strength) == (1200, 0.75)
    assert str(verdict.sentences[2]) == (
        "Its previews are closer to the training images than the checkpoint's, by 0.20, and follow"
        " their prompts 90 % as well."
    )


def test_a_run_that_is_no_better_than_the_checkpoint_says_so():
    run = measured(approach(0.08), lambda step: BASE * (1 + step / 100_000))
    assert said(run)[0] == (
        "No saved step is better than the checkpoint alone; the best one is step 200 of 2,000."
    )
    assert conclude(run).strength is None


def test_a_strength_above_1_is_believed_of_held_out_images_only():
    strong = strengths_of(2.0)
    assert conclude(measured(approach(0.08), approach(0.07), strong)).strength == 1.25
    assert conclude(measured(approach(0.08), None, strong)).strength == 1.0


def test_only_steps_whose_file_is_there_are_chosen():
    assert conclude(measured(approach(0.08), overfitting, saved=(1800, 2000))).best_step == 1800
    assert conclude(measured(approach(0.08), saved=(), steps=())) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/b.png"], "b"),
        (["a.png", "b.png", "c.png"], "a, b and c"),
        ([f"{n}.png" for n in range(9)], "0, 1, 2, 3 and 5 more"),
    ],
)
def test_images_are_listed_by_their_names(names, words):
    assert str(listed(names, 4)) == words


def test_every_change_is_a_setting_of_the_form_that_the_run_can_take():
    runs = [
        measured(approach(0.5), overfitting),
        measured(approach(0.08), None, copying_from(1600, "a.png")),
        measured(lambda step: BASE * (1 + step / 10_000)),
        measured(lambda step: BASE * (1 - 0.06 * step / 2000)),
        measured(approach(0.1, 300), approach(0.09, 300), settings={"lora_rank": 4}),
        measured(early, early, lambda *_: {"unprompted_change": 0.9}),
        measured(approach(0.5), overfitting, data="texts"),
        measured(lambda step: BASE * (1 + step / 10_000), data="texts"),
    ]
    names = set()
    for run in runs:
        for one in conclude(run).findings:
            names.add(one.name)
            assert set(one.changes) <= form.KEYS
            run.config.replace(**one.changes)
    assert names == CONDITIONS.keys() - {"captions_disagree", "likeness_low"}


def test_a_verdict_is_the_same_after_its_file():
    run = measured(approach(0.5), overfitting, copying_from(1600, "a.png", "b.png"))
    verdict = conclude(run)
    kept = from_mapping(json.loads(json.dumps(to_mapping(verdict))))
    assert kept == verdict
    assert any(isinstance(value, Message) for value in kept.findings[1].sentence.values.values())


def test_a_folder_is_judged_by_its_events_alone(tmp_path):
    from tests.verdict.made_run import write_run

    folder = write_run(tmp_path / "run")
    verdict = judge(folder)
    assert (verdict.best_step, verdict.strength, verdict.step_count) == (60, 0.75, 100)
    assert "After step 60 it copies img01 and img03." in verdict.text()


def test_of_texts_other_things_are_said_and_none_of_images():
    fine = measured(approach(0.5), approach(0.4), strengths_of(1.0), data="texts")
    assert "On texts that it has not seen, its loss is 40 % below the base model's." in said(fine)
    assert found(fine) == {}
    by_heart = found(measured(approach(0.5), overfitting, strengths_of(1.0), data="texts"))
    assert list(by_heart) == ["texts_overfit"]
    assert by_heart["texts_overfit"].changes == {"max_train_steps": 800}
    worse = found(measured(lambda step: BASE * (1 + step / 2000), data="texts"))
    assert list(worse) == ["texts_rate_too_high"]
    assert worse["texts_rate_too_high"].changes == {"learning_rate": 0.0001}


def test_trained_texts_are_best_where_they_are_recalled_best_and_at_the_best_strength():
    texts = measured(approach(0.9), None, strengths_of(1.0), data="texts")
    images = measured(approach(0.9), None, strengths_of(1.0))
    chosen = [(one.best_step, one.strength) for one in map(conclude, (texts, images))]
    assert chosen == [(2000, 1.0), (2000, 0.75)]
