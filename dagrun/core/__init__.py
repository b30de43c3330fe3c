"""The pure core: no clock, disk, process, network, randomness or printing in here.

A staircase; a file imports only files above it:
names, expression, workflow, plan, event, retry, state, decide, trace.
"""
