"""Faster forms of what a training in bfloat16 computes, for processors that have bfloat16.

    convolutions  frozen ones of more than one pixel in oneDNN's layouts, others as matrix products
    attention     torch's attention, as blocks of matrix products
    adapters      a linear layer and its LoRA in one step of autograd

Results differ from torch's own by roundings to bfloat16. Attention has one that torch's kernel does
not have, of the scores, whose error grows with their size (BENCHMARKS.md). Trainings in float32 are
not changed.
"""
