"""Batches of a run that were left with the endpoint: they go on there while no task waits for them.

What is known of them stands in the ledgers of the run's folder. The note that somebody wants one
cancelled is written before the endpoint is asked, so that the run goes on with the rest, whenever
it is killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatspace.errors import UserError
from chatspace.layout import Layout
from chatspace.openai_embed.ledger import TOKEN, Ledger, read_ledger, write_ledger
from chatspace.openai_embed.shard import LEDGER
from chatspace.openai_embed.work import Session, open_session
from chatspace.plan.model import Plan, SplitPlan

_ENDING = frozenset({"completed", "failed", "expired", "cancelled", "cancelling", "finalizing"})
ADVICE = "Look at the endpoint, then run this again: what is cancelled by now stays cancelled."


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBatch:
    """A batch that no task may be waiting for.

    Attributes:
        batch_id: None where the endpoint was asked for it and the answer was not heard.
        shard: index in the split of the shard that it is of.
        state: what the endpoint says of it; empty where it was not asked.
    """

    batch_id: str | None
    split: str
    shard: int
    state: str = ""

    def __str__(self) -> str:
        """Returns it in a line: `batch_67f8  train shard 3: cancelling`."""
        name = self.batch_id or "(may not have been made)"
        return f"{name}  {self.split} shard {self.shard}{': ' if self.state else ''}{self.state}"


def left_batches(plan: Plan) -> list[LeftBatch]:
    """Returns the batches that a run's ledgers know; looks at the disk alone."""
    return [found for _, _, found in _ledgers(plan)]


def cancel_batches(plan: Plan) -> Iterator[LeftBatch]:
    """Cancels the batches of a run at the endpoint, and yields each with what that says of it.

    What a batch has done by then is charged; the next run fetches it, and makes new batches of the
    rest. One that ends by itself is left alone.

    Raises:
        UnfitEnvironmentError: there is no key, or the endpoint does not answer.
    """
    ledgers = list(_ledgers(plan))
    if not ledgers:
        return
    session = open_session(plan, None)
    session.asker.advice = ADVICE
    try:
        for path, ledger, found in ledgers:
            yield _cancelled(path, ledger, found, session)
    finally:
        session.client.close()


def _cancelled(path: Path, ledger: Ledger, found: LeftBatch, session: Session) -> LeftBatch:
    client = session.client

    def attempt() -> Any:
        if ledger.batch_id is None:
            batch = client.find_batch(TOKEN, ledger.token, ledger.since)
        else:
            batch = client.batch(ledger.batch_id)
        if batch is None:
            return None
        if path.exists():  # else a task that is just ending has fetched it
            write_ledger(path, replace(ledger.made(str(batch.id)), is_cancelled=True))
        return batch if batch.status in _ENDING else client.cancel_batch(str(batch.id))

    try:
        batch = session.asker.patiently(attempt)
    except UserError as error:  # the others may be there all the same
        return replace(found, state=str(error).partition(". ")[0])
    if batch is None:
        return replace(found, state="not made")
    return replace(found, batch_id=str(batch.id), state=str(batch.status))


def _ledgers(plan: Plan) -> Iterator[tuple[Path, Ledger, LeftBatch]]:
    """Yields the ledgers of shards that are not there yet, in their order."""
    for split in plan.splits:
        folder = Layout(Path(plan.workspace)).run(plan.run_id).requests(split.name)
        for path in sorted(folder.glob(f"shard-*.{LEDGER}")):
            index = int(path.name.split(".")[0].removeprefix("shard-"))
            ledger = read_ledger(path, plan.plan_sha256)
            if ledger is not None and not _is_there(plan, split, index):
                yield (
                    path,
                    ledger,
                    LeftBatch(batch_id=ledger.batch_id, split=split.name, shard=index),
                )


def _is_there(plan: Plan, split: SplitPlan, index: int) -> bool:
    return (Path(plan.workspace) / split.output_dir / split.span(index).file_name).exists()
