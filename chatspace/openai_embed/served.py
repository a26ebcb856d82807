"""What the endpoint served a run: noted with the first answer, compared with by all later ones.

    runs/{run_id}/served.json

Where a run goes on is not part of what it is, so a server may have moved; but it must serve the
model that the run began with. That is seen from the length of the vectors, and from the name that
the endpoint itself gives in its answers. Not covered: other weights of the same length that are
served under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from chatspace.atomic import create_text, read_json_object
from chatspace.errors import ModelError
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.records import shard_file_name
from chatspace.shards.store import shard_indexes
from chatspace.shards.vectors import encoding_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What an answer says of the model that it is of.

    Attributes:
        model: its name in the answer, None where there is none.
        dim: length of its vectors, before anything is cut off.
    """

    model: str | None
    dim: int

    def is_like(self, other: Served) -> bool:
        """Whether both may be of one model.

        Servers differ in whether a name has its owner before it, `BAAI/bge-small` or `bge-small`.
        """
        names = {_plain(name) for name in (self.model, other.model) if name}
        return self.dim == other.dim and len(names) < 2

    def __str__(self) -> str:
        """Returns it in words: `16 numbers (tiny)`."""
        return f"{self.dim} numbers" + (f" ({self.model})" if self.model else "")


def refuse_other(earlier: Served, found: Served, name: str) -> None:
    """Refuses answers of another model than the one that a run began with.

    Args:
        earlier: what the run began with.
        found: what is served now.
        name: the model, as the spec calls it.

    Raises:
        ModelError: they differ.
    """
    if not found.is_like(earlier):
        raise ModelError(
            f"Another model: model.name={name}; the endpoint now gives {found}, the run began with "
            f"{earlier}. Serve that model again, or give the run another workspace. If it is the "
            "same by another name, remove served.json from the run's folder."
        )


def read_served(plan: Plan) -> Served | None:
    """Returns what a run was served, None where it had no answer yet.

    Of a run whose note is missing, the length is that of its finished shards.
    """
    noted = read_json_object(_note(plan))
    if isinstance(dim := noted.get("dim"), int):
        return Served(model=noted.get("model"), dim=dim)
    if plan.spec["output"].get("truncate_dim") is not None:
        return None  # shards do not tell how long vectors were before
    dim = next(_dims_of_shards(plan), None)
    return Served(model=None, dim=dim) if dim else None


def keep_served(plan: Plan, found: Served) -> None:
    """Notes what a run is served, unless another of its tasks did so.

    Raises:
        ModelError: the other task is served another model.
        OutputError: the run's folder cannot be written.
    """
    name = plan.model["name"]
    refuse_other(read_served(plan) or found, found, name)
    if not create_text(_note(plan), json.dumps(asdict(found)) + "\n"):
        refuse_other(read_served(plan) or found, found, name)


def _plain(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _note(plan: Plan) -> Path:
    return Layout(Path(plan.workspace)).run(plan.run_id).served


def _dims_of_shards(plan: Plan) -> Iterator[int]:
    """Yields the length of the vectors of each finished shard, one after the other."""
    for split in plan.splits:
        folder = Path(plan.workspace) / split.output_dir
        for index in shard_indexes(folder):
            with suppress(OSError, ValueError):  # damaged: it is told and made again elsewhere
                yield encoding_of(pq.read_schema(folder / shard_file_name(index))).dim
