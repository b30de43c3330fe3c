"""The pure core: no clock, disk, process, network, randomness or printing in here.

A staircase: a file imports only files below it. From the bottom: names, value, workflow (what was
written), expression (what `${{ }}` means), plan and check (the graph), event, retry, state, revise,
evolve, decide (a run), operation, patch, replan, undo (a change of it), trace, rehearse (what is
told of it). `pyproject.toml` holds the order, and CI checks it.
"""
