"""The training stages. Worker only.

images.py       image file -> tensor (3, H, W) in [-1, 1]
batches.py      cached latents and text states -> Batch
losses.py       Batch -> loss per image; losses and weightings, one entry each
optimizers.py   the optimizers, one entry each; adapters -> optimizer
rates.py        optimizer -> learning rate schedule
train.py        Trainer: one training step
loop.py         the loop of every task, and its hooks
processes.py    those that share a training: one, or several (joined.py)
resume.py       resume points on disk
preview.py      adapters -> preview images
device.py       device, dtype, memory
randomness.py   generators seeded by (seed, purpose, step): no random state to save
scalars.py      TensorBoard
"""
