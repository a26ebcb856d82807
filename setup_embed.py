"""Plans a run and writes its batch scripts: `python setup_embed.py --config setups/x.yaml`."""

from chatspace.cli import setup_main

if __name__ == "__main__":
    setup_main()
