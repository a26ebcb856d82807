"""Full and read-only file systems, and files that are damaged or gone."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fault_kinds.arena import Arena, remove_quietly, unmount
from fault_kinds.round import Fault

FULL_UNTIL_S = 25.0
TMPFS_MB = 64


@contextmanager
def _small_file_system(arena: Arena, _: random.Random) -> Iterator[None]:
    """The workspace is a file system of its own, in memory."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m", "tmpfs", str(arena.workspace)],
        check=True, timeout=30,
    )  # fmt: skip
    shutil.copytree(arena.folder / "pristine", arena.workspace, symlinks=True, dirs_exist_ok=True)
    try:
        yield
    finally:
        unmount(arena.workspace)


def _fill_disk(arena: Arena, rng: random.Random) -> int:
    """Leaves no byte free until a task has said so, and a little longer."""
    filler = arena.workspace / "filler"
    said = _said(arena, "No space left")
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    hits = _wait_until_said(arena, "No space left", said)
    time.sleep(rng.uniform(0, 3))
    remove_quietly(filler)
    return hits


def _read_only(arena: Arena, rng: random.Random) -> int:
    """Makes the shards, or the whole workspace, read-only until a task has said so."""
    folder = rng.choice([arena.workspace, arena.workspace / "embeddings"])
    folder.mkdir(exist_ok=True)
    said = _said(arena, "Read-only file system")
    for words in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        subprocess.run(["mount", *words], check=True, timeout=30)
    hits = _wait_until_said(arena, "Read-only file system", said)
    time.sleep(rng.uniform(0, 3))
    unmount(folder)
    return hits


def _wait_until_said(arena: Arena, words: str, before: int) -> int:
    deadline = time.monotonic() + FULL_UNTIL_S
    while (hits := _said(arena, words) - before) == 0 and time.monotonic() < deadline:
        time.sleep(0.3)
    return hits


def _said(arena: Arena, words: str) -> int:
    """Returns how many executions ended with an error of these words, as their logs tell."""
    lines = [line for path in arena.job_logs for line in path.read_text("utf-8").splitlines()]
    return sum(words in line and line.startswith("chatspace: ") for line in lines)


def _corrupt_shard(arena: Arena, rng: random.Random) -> int:
    """Flips a byte in the middle, or cuts the file short."""
    path = _any(arena.shards, rng)
    if path is None:
        return 0
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        data[rng.randrange(4, len(data) - 4)] ^= 0xFF
    else:
        del data[rng.randrange(4, len(data)) :]
    path.write_bytes(data)
    return 1


def _delete_shard(arena: Arena, rng: random.Random) -> int:
    path = _any(arena.shards, rng)
    if path is None:
        return 0
    path.unlink()
    return 1


def _truncate_manifest(arena: Arena, rng: random.Random) -> int:
    path = _any(sorted((arena.run / "tasks").glob("*.json")), rng)
    size = path.stat().st_size if path else 0
    if path is None or size < 2:
        return 0
    with path.open("r+b") as file:
        file.truncate(rng.randrange(size - 1))
    return 1


def _any(paths: list[Path], rng: random.Random) -> Path | None:
    return rng.choice(paths) if paths else None


FAULTS = (
    Fault(name="disk-full", what="no byte free until a task fails, and up to 3 s longer",
          inject=_fill_disk, times=2, around=_small_file_system),
    Fault(name="read-only", what="shards or workspace read-only until a task fails, and up to 3 s",
          inject=_read_only, times=2),
    Fault(name="shard-corrupted", what="a byte of a shard flipped, or its end cut off",
          inject=_corrupt_shard),
    Fault(name="shard-deleted", what="a shard deleted", inject=_delete_shard),
    Fault(name="manifest-truncated", what="a task manifest cut short", inject=_truncate_manifest),
)  # fmt: skip
