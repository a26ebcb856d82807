"""What planning a very large split cannot hold in memory: files that end with the process."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatspace.atomic import output_error

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.integer]

# So much is kept in memory; a file is slower, and its folder need not be there.
_MEMORY_BYTES = 128 << 20
# Values that are sorted at once, and how many files there may be.
_PART_VALUES = 1 << 24
_MOST_PARTS = 256
# Values that are given at once where very many repeat.
_GIVEN = 1 << 16


class Scratch:
    """Whole numbers in a file without a name, or in memory.

    Raises:
        OutputError: they cannot be written or read back.
    """

    def __init__(self, file: io.BufferedRandom | io.BytesIO, place: Path) -> None:
        self._file = file
        self._place = place

    def append(self, values: Values) -> None:
        """Writes values behind those that are there."""
        try:
            self._file.seek(0, io.SEEK_END)
            self._file.write(values.data)
        except OSError as error:
            raise output_error(error, self._place) from error

    def read(self, type_: type[np.integer[Any]], start: int = 0, stop: int | None = None) -> Values:
        """Returns the values numbered from `start` up to, not including, `stop` [all]."""
        width = np.dtype(type_).itemsize
        try:
            stop = self._file.seek(0, io.SEEK_END) // width if stop is None else stop
            values = np.empty(stop - start, type_)
            self._file.seek(start * width)
            n_bytes = self._file.readinto(values.view(np.uint8).data)
        except OSError as error:
            raise output_error(error, self._place) from error
        assert n_bytes == values.nbytes, (n_bytes, values.nbytes)
        return values


@contextmanager
def scratch_files(folder: Path | None, n_files: int, n_bytes: int) -> Iterator[list[Scratch]]:
    """Gives files to write numbers to and read them back, which nothing can leave behind.

    Args:
        folder: where they take room, made if missing [where the system keeps temporary files].
        n_files: how many.
        n_bytes: what all of them may grow to; up to 128 MiB are kept in memory.

    Raises:
        OutputError: the folder cannot be written, or its disk is full.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    if n_bytes <= _MEMORY_BYTES:
        yield [Scratch(io.BytesIO(), place) for _ in range(n_files)]
        return
    with ExitStack() as opened:
        try:
            place.mkdir(parents=True, exist_ok=True)
            files = []
            for _ in range(n_files):
                file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115  # closed by the stack
                opened.callback(_close, file)
                files.append(Scratch(file, place))
        except OSError as error:
            raise output_error(error, place) from error
        yield files


def repeated_values(blocks: Iterable[Ints], n_values: int, folder: Path | None) -> Iterator[Ints]:
    """Yields the values that stand more than once, some at a time.

    Memory is a block and 384 MiB, up to 4 billion values. Beyond 16 million, 8 bytes for each value
    lie in `folder` meanwhile.

    Args:
        blocks: the values, evenly spread as hashes are.
        n_values: how many at most.
        folder: see `scratch_files`.

    Raises:
        OutputError: the folder cannot be written, or its disk is full.
    """
    n_parts = min(_MOST_PARTS, 1 + n_values // _PART_VALUES)
    with scratch_files(folder, n_parts, n_values * 8) as files:
        for values in blocks:
            for file, part in zip(files, _parted(values, n_parts), strict=True):
                file.append(part)
        for file in files:
            found = file.read(np.int64)
            found.sort()
            again = np.unique(found[1:][found[1:] == found[:-1]])
            for first in range(0, len(again), _GIVEN):
                yield again[first : first + _GIVEN]


def _parted(values: Ints, n_parts: int) -> list[Ints]:
    """Returns the values in parts by their first bits: equal ones are in the same part."""
    if n_parts == 1:
        return [values]
    first_bits = (values.view(np.uint64) >> np.uint64(56)).astype(np.uint16)
    parts = (first_bits * np.uint16(n_parts) >> np.uint16(8)).astype(np.uint8)
    order = np.argsort(parts, kind="stable")
    borders = np.searchsorted(parts[order], np.arange(1, n_parts))
    return np.split(values[order], borders)


def _close(file: io.BufferedRandom) -> None:
    with suppress(OSError):  # what a full disk did not take was told when it was written
        file.close()
