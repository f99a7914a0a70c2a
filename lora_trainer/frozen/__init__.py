"""How the weights of a frozen model are kept during training: 8 bits each, or in main memory.

    layers    Linear and Conv2d layers that make their weight for each use, in both passes
    blocks    which blocks are swapped
    swap      weights in main memory, copied to the device block by block before their use

diffusers' layerwise casting and group offloading exchange a layer's weight after its forward pass,
and so serve for inference: the backward pass of a convolution then finds the wrong weight, and that
of a linear layer keeps the whole one alive until it ran.
"""
