"""What a worker can do, one module each: a subclass of `base.Task` with the name of its settings
file.

    diffusion.py   config.yaml: a LoRA for a diffusion model
    caption.py     caption.yaml: captions for a folder of images

A task consists of stages, which take values and return a value whose type says what exists from
then on, and of hooks around the steps of its loop.

    base.py          Task, and how it is found
    control.py       pause and stop
    report.py        writes events, reads requests
    training_run.py  the values of a training: Prepared, Encoded, TrainingRun
    lora_output.py   the LoRA file, the resume point, the delivery
    hooks/           one module per hook of the training loop
    lora_metadata.py, provenance.py, resolve.py
"""
