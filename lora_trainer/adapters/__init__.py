"""Adapters of a LoRA type: in the model, and in files.

types/          the LoRA types, one module each (base.LoraType)
injected.py     injects adapters into a model
export.py       adapters -> a verified LoRA file;  apply.py  LoRA files -> their effect
size.py         the number of weights of a LoRA
"""
