"""Plans a run and writes its batch scripts: `python setup_embed.py --config setups/x.yaml`."""

import sys

try:
    from chatspace.cli import setup_main
except ImportError as error:
    sys.stderr.write(f"setup_embed: {error}; run `source .venv/bin/activate` first.\n")
    sys.exit(4)

if __name__ == "__main__":
    setup_main()
