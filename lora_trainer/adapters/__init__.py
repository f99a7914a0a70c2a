"""What learns: adapters of one of the `types`, in the model and in files.

types/          the types of LoRA, one module each (base.LoraType)
injected.py     types and settings -> adapters in the model
export.py       adapters -> a LoRA file, verified;  apply.py  a LoRA file -> its effect
size.py         how many weights there will be
"""
