"""Predicts the memory and time of a training before it starts.

    accounting   counts every storage of a real training step on fake tensors; takes seconds
    formula      a closed formula fitted to that, for published architectures; without torch
    plan         settings, checkpoint header and free memory -> Plan: peak, fits, what to change
    throughput   seconds per image, from the events of earlier runs

Nothing is imported here, so that the tab can use formula and plan without torch.
"""
