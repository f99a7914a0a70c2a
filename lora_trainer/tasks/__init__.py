"""What a worker can do, one module each. A task is a subclass of `base.Task` that names the
settings file it runs, and is found by it: another task is another module here, and nothing else.

    diffusion.py   config.yaml: a LoRA for a diffusion model
    caption.py     caption.yaml: captions for a folder of images

A task is stages and hooks. A stage takes values and returns one that says in its type what exists
from then on; what is done around the steps of the loop (training.loop) is a hook.

    base.py          Task, and how it is found
    control.py       pause and stop
    report.py        events out, requests in
    training_run.py  the values of a training: Prepared, Encoded, TrainingRun
    lora_output.py   the LoRA file, the resume point, the delivery
    hooks/           one module a hook of the training's loop
    lora_metadata.py, provenance.py, resolve.py
"""
