"""`python -m dagrun`, and the script `dagrun`."""

from __future__ import annotations

import gc
import os
import sys


def _forget_current_folder() -> None:
    """`python -m` looks for modules in the current folder first, which is where nodes write."""
    here = sys.path[0] or "."
    if sys.flags.safe_path or not os.path.exists(here) or not os.path.samefile(here, "."):
        return
    if not os.path.samefile(here, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))):
        del sys.path[0]


if __name__ == "__main__":
    _forget_current_folder()

# What a start makes stays for the whole of a short command: collecting it only costs time. What
# lives long (an engine, a follower) switches collection on again.
gc.disable()

from dagrun.cli.app import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
