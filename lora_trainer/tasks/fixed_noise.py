"""What the checks of a training on images measure: how many images, and which."""

from __future__ import annotations

import math

from lora_trainer.dataset.captions import variants
from lora_trainer.tasks.images import Encoded, PreparedImages
from lora_trainer.training.caption_fit import compared_captions
from lora_trainer.training.denoising import DenoisingObjective
from lora_trainer.training.randomness import number_generator
from lora_trainer.training.train import Trainer
from lora_trainer.training.validation import (
    LEVELS,
    FixedBatch,
    FixedNoiseValidation,
    amounts,
    fixed_batches,
    images_between,
)


def make_validation(
    prepared: PreparedImages, encoded: Encoded, trainer: Trainer
) -> FixedNoiseValidation | None:
    """The checks of this run; None if it is shorter than a check."""
    objective, settings = trainer.objective, trainer.settings
    assert isinstance(objective, DenoisingObjective)
    counts = (len(prepared.dataset.examples), len(prepared.held_out.examples))
    images_per_step = settings.batch_size * settings.gradient_accumulation_steps
    fewest_steps = math.ceil(images_between(*counts) / images_per_step)
    steps = max(prepared.config.output.save_steps or 1, fewest_steps)
    measured = amounts(min(steps, trainer.plan.step_count) * images_per_step, *counts)
    if measured is None:
        return None
    numbers = number_generator(settings.seed, "validation")
    training = fixed_batches(
        prepared.dataset.examples,
        encoded.images,
        numbers.sample(range(counts[0]), measured.training),
        objective.noise_process,
        settings.seed,
        "training images",
    )
    held_out = fixed_batches(
        prepared.held_out.examples,
        encoded.held_out,
        range(measured.held_out),
        objective.noise_process,
        settings.seed,
        "held-out images",
    )
    captioned, other_captions = _captions_to_compare(
        prepared, encoded, objective, trainer.plan.step_count * images_per_step
    )
    return FixedNoiseValidation(
        trainer,
        objective,
        training,
        held_out,
        captioned=captioned,
        other_captions=other_captions,
        models=(objective.unet, *prepared.parts.text_encoders),
        # without gradients, so many rows take no more memory than a step
        rows_at_once=settings.batch_size * (2 if settings.gradient_checkpointing else 4),
        fewest_steps=fewest_steps,
    )


def _captions_to_compare(
    prepared: PreparedImages, encoded: Encoded, objective: DenoisingObjective, trained: int
) -> tuple[list[FixedBatch], list[dict[str, str]]]:
    """Training images, and other captions for them. trained: images trained in the whole run."""
    examples, seed = prepared.dataset.examples, prepared.config.training.seed
    compared = compared_captions(
        [variants(example.caption)[0] for example in examples],
        trained,
        LEVELS,
        number_generator(seed, "caption fit"),
    )
    if compared is None:
        return [], []
    batches = fixed_batches(
        examples, encoded.images, compared.images, objective.noise_process, seed, "caption fit"
    )
    names = [examples[index].name for index in compared.images]
    others = [
        dict(zip(names, captions, strict=True)) for captions in zip(*compared.others, strict=True)
    ]
    return batches, others
