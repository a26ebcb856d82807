"""From the keys of a dataset section to the rows that a run reads, when it is planned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chatspace.atomic import output_error, publish, temp_path
from chatspace.data.candidates import STRATUM, Candidates, find_candidates, strata
from chatspace.data.inputs import InputFile
from chatspace.data.sampling import Strata, draw, shares
from chatspace.data.scratch import Scratch, scratch_files
from chatspace.data.selection import SelectedRows, write_list
from chatspace.layout import Layout
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.sample import SampleSection

Ints = npt.NDArray[np.int64]


def choose_rows(
    files: Sequence[InputFile], dataset: DatasetSection, *, workspace: Path, folder: Path
) -> tuple[int, SelectedRows | None]:
    """Returns how many rows a run reads of a split, and which, where they are not the first ones.

    A list of rows is written to `folder` under a name that its content gives; where that lies
    already, nothing is written.

    Args:
        files: the split's files, in order.
        dataset: its section of the run spec.
        workspace: root of what is written.
        folder: where the list of rows goes, below the workspace.

    Raises:
        UserError: a condition or a column cannot be used, no row is left, or the list cannot be
            written.
    """
    candidates = find_candidates(files, dataset)
    n_candidates = len(candidates)
    wanted = n_candidates if dataset.sample is None else _wanted(dataset.sample, n_candidates)
    groups = _Groups(files)
    if wanted == n_candidates and candidates.bits is None:
        if candidates.start == 0:
            return n_candidates, None
        groups.add_range(candidates.start, candidates.stop)
        selected = SelectedRows(
            first_row=candidates.start, path=None, sha256=None, group_rows=groups.rows
        )
        return n_candidates, selected
    with _chosen(files, candidates, dataset.sample, (n_candidates, wanted), workspace) as blocks:
        digest, path = _write(folder, groups.counted(blocks))
    relative = str(path.relative_to(workspace))
    return wanted, SelectedRows(first_row=0, path=relative, sha256=digest, group_rows=groups.rows)


def _wanted(sample: SampleSection, n_rows: int) -> int:
    if sample.n is not None:
        return min(sample.n, n_rows)
    assert sample.fraction is not None
    return max(1, round(sample.fraction * n_rows))


@contextmanager
def _chosen(
    files: Sequence[InputFile],
    candidates: Candidates,
    sample: SampleSection | None,
    counts: tuple[int, int],
    workspace: Path,
) -> Iterator[Iterable[Ints]]:
    """Gives the rows that are read, in blocks."""
    n_candidates, wanted = counts
    if sample is None or wanted == n_candidates:
        yield candidates.blocks()
    elif sample.stratify_by is None:
        yield draw(
            lambda: ((rows, None) for rows in candidates.blocks()),
            np.array([n_candidates]),
            np.array([wanted]),
            sample.seed,
        )
    else:
        n_bytes = np.dtype(STRATUM).itemsize * sum(file.rows for file in files)
        with scratch_files(Layout(workspace).cache(), 1, n_bytes) as (codes,):
            n_strata = len(strata(files, sample.stratify_by, codes))
            yield _drawn_evenly(candidates, codes, (n_strata, wanted), sample.seed)


def _drawn_evenly(
    candidates: Candidates, codes: Scratch, counts: tuple[int, int], seed: int
) -> Iterable[Ints]:
    """Returns the rows of a draw that keeps the share of each stratum."""
    n_strata, wanted = counts

    def blocks() -> Iterator[tuple[Ints, Strata]]:
        for rows in candidates.blocks():
            if len(rows):
                first = int(rows[0])
                found = codes.read(STRATUM, first, int(rows[-1]) + 1)
                yield rows, found if len(found) == len(rows) else found[rows - first]

    sizes = np.zeros(n_strata, np.int64)
    for _, found in blocks():
        sizes += np.bincount(found, minlength=n_strata)
    return draw(blocks, sizes, shares(sizes, wanted), seed)


class _Groups:
    """Counts the rows that are read of each row group."""

    def __init__(self, files: Sequence[InputFile]) -> None:
        sizes = [n_rows for file in files for n_rows in file.row_groups]
        self._edges = np.concatenate(([0], np.cumsum(sizes)))  # (n_groups + 1,)
        self._rows = np.zeros(len(sizes), np.int64)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows that are read of each row group."""
        return tuple(self._rows.tolist())

    def add_range(self, start: int, stop: int) -> None:
        """Counts all rows from `start` up to `stop`."""
        self._rows += np.diff(np.clip(self._edges, start, stop))

    def counted(self, blocks: Iterable[Ints]) -> Iterator[Ints]:
        """Yields the blocks, ascending row numbers, and counts what is in them."""
        for block in blocks:
            self._rows += np.diff(np.searchsorted(block, self._edges))
            yield block


def _write(folder: Path, blocks: Iterable[Ints]) -> tuple[str, Path]:
    """Writes a list of rows, whole or not at all; returns its digest and its path."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[Ints]:
        for block in blocks:
            digest.update(block.astype("<i8").data)
            yield block

    temp = temp_path(folder / "rows.parquet")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_list(temp, hashed())
        path = folder / f"rows-{digest.hexdigest()[:16]}.parquet"
        publish(temp, path)
    except OSError as error:
        raise output_error(error, folder) from error
    finally:
        temp.unlink(missing_ok=True)
    return digest.hexdigest(), path
