"""Language models: what is particular to training one, as `families` is for diffusion models.

detect.py          the folder of a base model; without torch
conversations.py   files -> question and answer pairs, conversations, plain texts; without torch
tokens.py          chat template; text -> tokens, and which of them are learned
packing.py         several short examples in one row
model.py           loading the base, target layers
objective.py       the loss
validation.py      losses of held-out texts
answer.py          generating an answer
peft_file.py       PEFT's format: writing, reading, merging into the base
assistant.py       the model of a run, to be asked
pairs.py           documents -> pairs, by asking a model; without torch
"""
