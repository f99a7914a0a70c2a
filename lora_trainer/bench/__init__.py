"""How fast this machine trains published architectures, and how much memory that takes.

models   checkpoints of random weights in a published architecture, from its header alone
run      a training on one in a worker process -> phases, steps, memory
speed    this machine's rate of matrix multiplications, the reference for a step
command  `python -m lora_trainer bench`
"""
