"""`python -m chatspace`: how rendered scripts call the command line."""

from __future__ import annotations

import sys

from chatspace.jobs.signals import exit_when_signalled, run_to_the_end


def _main() -> None:
    from chatspace.cli import main

    main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["task"]:
        exit_when_signalled()
        run_to_the_end(_main)
    else:
        _main()
