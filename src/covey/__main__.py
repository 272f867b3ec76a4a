"""`python -m covey`, the same as `covey`."""

from __future__ import annotations

import sys

from covey.cli import main

if __name__ == "__main__":
    sys.exit(main())
