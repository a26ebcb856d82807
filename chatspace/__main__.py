"""`python -m chatspace`: how rendered scripts call the command line."""

from __future__ import annotations

from chatspace.cli import main

if __name__ == "__main__":
    main()
