"""The command line: one file per command group, `app.py` the door that no traceback passes."""
