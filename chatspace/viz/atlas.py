"""Embedding Atlas, the interactive viewer, over the points of a run.

Source: https://apple.github.io/embedding-atlas/
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pyarrow.parquet as pq

from chatspace.errors import InputError
from chatspace.export.libraries import library

_N_PORTS = 10
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_ANY_HOST = ("0.0.0.0", "::")


def atlas_command(points: Path, *, host: str, port: int) -> list[str]:
    """Returns the command that serves a file of points until it is interrupted.

    The page, its data and its queries all come from this server; nothing is asked of another. What
    the command prints is for its own authors and may be dropped: errors go to stderr.

    Args:
        points: the file that `chatspace.viz.reduction.reduced` wrote.
        host: address to listen at.
        port: a port that is free.

    Raises:
        UnfitEnvironmentError: embedding-atlas is not installed.
    """
    library("embedding_atlas", "embedding-atlas", extra="maps")
    names = pq.read_schema(points).names
    neighbors = ["--neighbors", "neighbors"] if "neighbors" in names else []
    return [
        *(sys.executable, "-m", "embedding_atlas.cli", str(points)),
        *("--disable-projection", "--x", "x", "--y", "y", "--text", "text", *neighbors),
        *("--duckdb", "server", "--host", host, "--port", str(port), "--no-auto-port"),
    ]


def free_port(host: str, first: int) -> int:
    """Returns the first of ten ports from `first` on at which nobody listens yet.

    Raises:
        InputError: all are taken or not allowed, or `host` is no address of this machine.
    """
    for port in range(first, min(first + _N_PORTS, 65536)):
        if _is_free(host, port):
            return port
    raise InputError(
        f"No free port: --port {first}; it and those after it are taken. Choose another --port."
    )


def address_lines(host: str, port: int) -> list[str]:
    """Returns where the page is found, from here and from another machine."""
    here = "localhost" if host in _ANY_HOST else f"[{host}]" if ":" in host else host
    lines = [f"Embedding Atlas: http://{here}:{port} in a few seconds; Ctrl+C stops it."]
    if host in _OWN_NAMES:
        lines.append(f"From another machine: ssh -L {port}:localhost:{port} {socket.gethostname()}")
    elif host in _ANY_HOST:
        lines.append(f"From another machine: http://{socket.gethostname()}:{port}")
    return lines


def serve(command: list[str]) -> None:
    """Becomes the server of `atlas_command`, with nothing on stdout; does not return."""
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.execv(command[0], command)


def _is_free(host: str, port: int) -> bool:
    """Tells whether a server can listen at a port of each address that a host name stands for."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host) from error
    n_bound = 0
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
                n_bound += 1
        except PermissionError as error:
            raise InputError(
                f"Not allowed: --port {port}; ports below 1024 are the administrator's. Choose a "
                "higher one, such as 5055."
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    if not n_bound:
        raise _no_address(host)
    return True


def _no_address(host: str) -> InputError:
    return InputError(
        f"Not an address of this machine: --host {host}. Use localhost, or 0.0.0.0 for all of its "
        "addresses."
    )
