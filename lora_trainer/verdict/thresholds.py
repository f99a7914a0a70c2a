"""The thresholds of a verdict, each with its reason.

All of them compare a run with itself: shares of its own gain, or of its checkpoint's loss on the
same images and noise. Absolute losses depend on images, checkpoint, resolution and weighting, and
mean nothing by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """gain: decrease of the loss from the checkpoint's own, on the same images and noise."""

    least_gain: float = 0.005
    """Share of the checkpoint's loss. A smaller gain counts as none, since nothing is visible."""
    step_tolerance: float = 0.05
    """Share of the best quality. Steps within it cannot be told apart with the few images that are
    measured; the latest of them has learned most. At a constant rate the gain of a save differs
    from that of the averaged weights by 0.036 of it (standard deviation), on the embedded
    checkpoint (BENCHMARKS), so two saves differ by 0.05 by chance.
    """
    strength_tolerance: float = 0.1
    """Share of the gain at the best strength, for images. The gain is nearly a parabola in it:
    three quarters of the best strength give nine tenths of the gain, and leave more influence to
    the prompt.
    """
    non_finite: float = 0.02
    """Share of the steps without a finite loss. Loss scaling (fp16) skips a few at its start."""
    rises_above_base: float = 0.02
    """Share of the checkpoint's loss. With fixed images and noise, the loss of trained images
    exceeds the checkpoint's only if the steps were too large.
    """
    diverged: float = 1.0
    """The same rise beyond which the rate is wrong by an order of magnitude."""
    swings: float = 0.5
    """Sum of all rises of the trained images' loss from save to save, as a share of its whole fall.
    The noise is fixed, so that a good run has almost none.
    """
    swing_saves: int = 4
    """Saves needed to tell swings from a single bump."""
    step_loss_rise: float = 0.1
    """Rise of the mean loss of the steps from the first to the last fifth of a run in which nothing
    was measured at the saves; by more than four standard errors too.
    """
    still_falling: float = 0.1
    """Share of the gain that came in the last half of the steps. Losses fall by about as much with
    each doubling of the steps; the share is 0.5 for a straight line, and 0.08 for an exponential
    approach of which five time constants were trained.
    """
    plateau_gain: float = 0.97
    """Share of the gain from which on a curve counts as flat. Good runs reach nine tenths in the
    first tenth of their steps: large shapes come first, details later.
    """
    early: float = 0.15
    """Share of the steps. A plateau reached before is early."""
    gap: float = 0.25
    """Gain of the trained images minus that of the held-out ones, as a share of the former. Below
    it the LoRA has learned what the images have in common.
    """
    overfit_rise: float = 0.25
    """Rise of the held-out images' loss above its minimum, as a share of its gain until then."""
    overfit_floor: float = 0.01
    """Share of the checkpoint's loss; the gain counts as at least this, so that a rise without any
    gain before is measured against it.
    """
    views: int = 250
    """Epochs from which on a run without held-out images counts as overfitted. Presets train each
    of 20 images about 90 times.
    """
    advised_views: int = 100
    """Epochs that are advised instead."""
    stubborn: float = 0.5
    """An image counts as not learned if it keeps this share of the loss that the median image has
    lost. Images differ in how much there is to learn; one with a wrong caption keeps nearly all.
    """
    stubborn_deviations: float = 3.0
    """It is also this many standard deviations (by the median absolute deviation) above the
    median.
    """
    stubborn_images: int = 4
    """Images needed to tell one from the others."""
    foreign_share: float = 0.15
    """Share of the usual distance between the losses with an image's own caption and with others.
    A caption that is worse by more belongs to another image.
    """
    foreign_floor: float = 0.01
    """Relative difference of losses. Below it captions are so similar that either describes the
    image.
    """
    foreign_images: int = 2
    """A single image may be one that the checkpoint does not understand."""
    drift: float = 1.0
    """Sum of all falls of the previews' likeness from save to save, as a share of its rise."""
    low_likeness: float = 0.02
    """Gain in cosine similarity of image embeddings over the checkpoint. Two images of one prompt
    with different seeds differ by more.
    """
    learned: float = 0.03
    """Gain from which on a run has learned something, as a share of the checkpoint's loss."""
    few_ranks: int = 4
    """Ranks up to this may lack the capacity for detail."""
    spoiled: float = 0.5
    """Change of the predictions without a caption, as a share of their size. Beyond it the LoRA
    changes the checkpoint's images, with or without its trigger word.
    """
    most_copied: int = 4
    """Images named in a sentence."""


THRESHOLDS = Thresholds()
