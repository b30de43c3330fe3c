"""`python -m dagrun`, and the script `dagrun`."""

from __future__ import annotations

import sys

from dagrun.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
