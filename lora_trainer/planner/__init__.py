"""The memory and the time of a training, before it starts.

    accounting   a real training step on tensors without memory, every storage counted: seconds
    formula      a closed formula fitted to that, for published architectures: without torch
    plan         settings, checkpoint header and free memory -> Plan: peak, fits, what to change
    throughput   seconds per image, from the events of earlier runs

Nothing is imported here, so that the tab can ask formula and plan.
"""
