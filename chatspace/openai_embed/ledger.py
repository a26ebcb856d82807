"""What the run's folder remembers of a batch, from before it exists: none is forgotten.

    runs/{run_id}/requests/{split}/shard-00042.batch.json

First the intent is written, with a token drawn for it; then the batch is made, with the token in
its metadata; then its id is written down. Whoever finds an intent without an id asks the endpoint
for a batch with that token before it makes one, so that no batch is made twice.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chatspace.atomic import atomic_write_text, read_json_object
from chatspace.openai_embed.asking import Inputs

TOKEN = "chatspace_batch"
"""Name of the token in a batch's metadata."""
CLOCKS_DIFFER_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One batch of one shard.

    Attributes:
        texts_sha256: of the texts of the shard, to whose places rows refer; None in older files.
        groups: rows of each request, positions among the texts of the shard.
        cut: rows whose text was cut.
        attempt: 1 for the first batch of these rows.
        intent_at: Unix time of the intent.
        batch_id: None until the endpoint has said it.
        is_cancelled: whether the user wanted it cancelled: what it leaves is asked for again.
    """

    plan_sha256: str
    texts_sha256: str | None = None
    groups: tuple[tuple[int, ...], ...]
    cut: tuple[int, ...]
    attempt: int
    token: str
    intent_at: float
    batch_id: str | None = None
    is_cancelled: bool = False

    @property
    def since(self) -> float:
        """Unix time, of the endpoint's clock, before which the batch cannot have been made."""
        return self.intent_at - CLOCKS_DIFFER_S

    def is_about(self, texts_sha256: str) -> bool:
        """Returns whether the batch was made of these texts."""
        return self.texts_sha256 in (None, texts_sha256)

    def made(self, batch_id: str) -> Ledger:
        """Returns the same with the id of its batch."""
        return replace(self, batch_id=batch_id)


def new_ledger(plan_sha256: str, texts_sha256: str, groups: list[Inputs], attempt: int) -> Ledger:
    """Returns the intent to make a batch of some requests."""
    return Ledger(
        plan_sha256=plan_sha256,
        texts_sha256=texts_sha256,
        groups=tuple(inputs.rows for inputs in groups),
        cut=tuple(sorted(row for inputs in groups for row in inputs.cut)),
        attempt=attempt,
        token=uuid.uuid4().hex,
        intent_at=time.time(),
    )


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Writes a ledger by rename, durably.

    Raises:
        OutputError: the folder cannot be written.
    """
    atomic_write_text(path, json.dumps(asdict(ledger)) + "\n")


def read_ledger(path: Path, plan_sha256: str) -> Ledger | None:
    """Returns the ledger of a shard, None where there is none of this plan."""
    content: dict[str, Any] = read_json_object(path)
    if content.get("plan_sha256") != plan_sha256:
        return None
    groups = tuple(tuple(rows) for rows in content.pop("groups"))
    return Ledger(**{**content, "groups": groups, "cut": tuple(content["cut"])})
