"""`python -m ftsuite`: the same as the console script `ftsuite`."""

from __future__ import annotations

import sys

from ftsuite.cli import main as main

if __name__ == "__main__":
    sys.exit(main())
