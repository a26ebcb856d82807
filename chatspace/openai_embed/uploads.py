"""Files of a run that lie at the endpoint: noted when they are made, deleted with their shard.

    runs/{run_id}/requests/{split}/shard-00042.files

A line for each file that a shard's batches were made of or gave. They hold the texts and vectors of
users, so they are deleted once the shard is committed, and never before. Not covered: a file whose
upload was cut short before its id was heard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from chatspace.atomic import output_error
from chatspace.errors import ChatspaceError
from chatspace.openai_embed.client import AgainError

log = logging.getLogger(__name__)


def note_files(path: Path, file_ids: Iterable[str | None]) -> None:
    """Adds files to those of a shard, durably.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{file_id}\n" for file_id in file_ids if file_id)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(error, path) from error


def delete_files(path: Path, delete: Callable[[str], None]) -> None:
    """Deletes the files of a shard at the endpoint; one that stays there is told in the log.

    Args:
        path: the shard's note of them; it is removed. There may be none.
        delete: deletes one at the endpoint.
    """
    try:
        file_ids = dict.fromkeys(path.read_text(encoding="utf-8").split())
    except FileNotFoundError:  # or another task has just dealt with it
        return
    for file_id in file_ids:
        try:
            delete(file_id)
        except (AgainError, ChatspaceError) as error:
            log.warning("file is left at the endpoint id=%s: %s", file_id, error)
    path.unlink(missing_ok=True)
