"""`python -m covey`, the same as `covey`; the form that a launcher of several processes starts."""

from __future__ import annotations

import os
import sys

from covey.cli import main


def run() -> None:
    """Run the command and end the process with its exit code.

    One of several ranks ends at once, when all is written and closed: the communication library's threads may abort an
    interpreter that takes its time to shut down.
    """
    try:
        code = main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
