"""Where commands run and how they end: back ends, processes, logs, environment, the watchdog.

Nothing here knows of workflows, journals or states: only of argv, pids and files.
"""
