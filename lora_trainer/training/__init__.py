"""The training itself, as stages that take values and return values. Worker only.

images.py       image file -> tensor (3, H, W) in [-1, 1]
batches.py      cached latents and text states -> Batch
losses.py       Batch -> loss per image; the losses and their weightings, one entry each
optimizers.py   the optimizers, one entry each; adapters -> optimizer
rates.py        optimizer -> schedule of its learning rates
train.py        Trainer: what a step does
loop.py         the loop of every task, and its hooks
resume.py       what an exact resume needs, on disk
preview.py      adapters as they are -> pictures
device.py       which device, which number format, how much memory
randomness.py   every draw comes from (seed, what for, step): nothing to save, nothing to restore
scalars.py      TensorBoard
"""
