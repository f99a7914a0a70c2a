"""What a worker can do, one module each: a subclass of `base.Task` with the name of its settings
file.

    diffusion.py   config.yaml: a LoRA for a diffusion model
    language.py    config.yaml, whose base_model is a folder of a language model: a LoRA for that
    caption.py     caption.yaml: captions for a folder of images

A task consists of stages, which take values and return a value whose type says what exists from
then on, and of hooks around the steps of its loop.

    base.py          Task, and how it is found
    control.py       pause and stop
    report.py        writes events, reads requests
    training_task.py the course of every training
    training_run.py  its values, whatever it trains: Prepared, Assembled, TrainingRun
    lora_output.py   what it writes: LoRAs, resume points, the delivery
    hooks/           one module per hook of the training loop
    provenance.py    what a resume point was trained from

    images.py, previews.py, lora_file_output.py, lora_metadata.py, resolve.py    of diffusion.py
    answers.py, peft_output.py                                                   of language.py
"""
