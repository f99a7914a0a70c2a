"""How fast this machine trains models of published size, and how much memory that takes.

models   a model of random weights in the published architecture, from its header alone
run      a training on it in a worker of its own -> phases, steps, memory
speed    this machine's matrix multiplications, beside which a step is judged
command  `python -m lora_trainer bench`
"""
