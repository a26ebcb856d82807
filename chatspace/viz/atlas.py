"""Embedding Atlas, the interactive viewer, over the points of a run.

Source: https://apple.github.io/embedding-atlas/
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from chatspace.export.libraries import library


def atlas_command(points: Path, *, host: str, port: int) -> list[str]:
    """Returns the command that serves a file of points until it is interrupted.

    The page, its data and its queries all come from this server; nothing is asked of another.

    Args:
        points: the file that `chatspace.viz.reduction.reduced` wrote.
        host: address to listen at.
        port: the first port to try.

    Raises:
        UnfitEnvironmentError: embedding-atlas is not installed.
    """
    library("embedding_atlas", "embedding-atlas", extra="maps")
    names = pq.read_schema(points).names
    neighbors = ["--neighbors", "neighbors"] if "neighbors" in names else []
    return [
        *(sys.executable, "-m", "embedding_atlas.cli", str(points)),
        *("--disable-projection", "--x", "x", "--y", "y", "--text", "text", *neighbors),
        *("--duckdb", "server", "--host", host, "--port", str(port)),
    ]
