"""When an input row is done: when the last of its chunks is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chatspace.chunking.cutting import IntArray


class RowsLeft:
    """Counts the texts of a shard that are still to do of each of its input rows.

    Args:
        row: input row of each text: 0, then ascending, (n_texts,).
        is_open: which texts are still to do, (n_texts,).
    """

    def __init__(self, row: IntArray, is_open: npt.NDArray[np.bool_]) -> None:
        self._row = row
        self._n_open = np.bincount(row, weights=is_open).astype(np.int64)  # (n_rows,)

    @property
    def n_done(self) -> int:
        """Input rows without a text to do."""
        return int((self._n_open == 0).sum())

    @property
    def n_left(self) -> int:
        """Input rows with a text to do."""
        return len(self._n_open) - self.n_done

    def finish(self, texts: Sequence[int] | IntArray) -> int:
        """Counts some texts as done; returns how many input rows are done with them."""
        which, n_texts = np.unique(self._row[np.asarray(texts, np.int64)], return_counts=True)
        self._n_open[which] -= n_texts
        return int((self._n_open[which] == 0).sum())
