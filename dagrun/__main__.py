"""`python -m dagrun`, and the script `dagrun`."""

from __future__ import annotations

import gc
import sys

# What a start makes stays for the whole of a short command: collecting it only costs time. What
# lives long (an engine, a follower) switches collection on again.
gc.disable()

from dagrun.cli.app import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
