"""Datasets of the Hugging Face hub: which commit, and their rows as Arrow batches."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.data.tables import Table
from chatspace.errors import InputError, SpecError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BATCH_ROWS = 8192
_TIMEOUT_S = 10.0


class ScriptDataset(Exception):
    """A dataset is made by a script of its own, which `datasets` does not run any more."""


def resolve_revision(dataset: DatasetSection) -> str | None:
    """Returns the commit that the revision names now, None where the hub is out of reach."""
    if dataset.revision is not None and _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    try:
        sha = _ask_hub(dataset)
    except Exception:
        # Whatever it is, loading says it better, or the cache has the dataset.
        return None
    return str(sha) if sha else None


def _ask_hub(dataset: DatasetSection) -> str | None:
    """Returns the commit that the revision names now; asks once, without retries."""
    from huggingface_hub import HfApi

    with quiet_hub():
        info = HfApi().dataset_info(
            str(dataset.name), revision=dataset.revision, timeout=_TIMEOUT_S
        )
    return info.sha


def _is_in_reach(dataset: DatasetSection) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        _ask_hub(dataset)
    except (HfHubHTTPError, ValueError):  # an answer, or a name that the hub is not asked about
        return True
    except Exception:
        return False
    return True


def read_hub(dataset: DatasetSection, split: str, revision: str | None) -> tuple[Table, str | None]:
    """Returns one split of a hub dataset, and the commit it is from as far as that is known.

    Raises:
        InputError: the dataset, its subset or its split does not exist, or the hub is out of reach
            and the cache does not have it.
        SpecError: `name` is a local folder.
        ScriptDataset: it has to be had in the form that the hub converted it to.
    """
    if Path(str(dataset.name)).exists():
        raise SpecError(
            f"Not a hub dataset: dataset.name={shown(dataset.name)} exists here. For local files "
            "write source: parquet (or jsonl, csv, arrow, text) and path."
        )
    # `datasets` itself tries again and again for half a minute before it looks into its cache.
    is_pinned = dataset.revision is not None and revision == dataset.revision
    in_reach = _is_in_reach(dataset) if revision is None or is_pinned else True
    with quiet_hub(), ExitStack() as stack:
        if not in_reach:
            stack.enter_context(_offline())
        loaded = _load(dataset, split, revision or dataset.revision)
    view = loaded.with_format("arrow")
    return (
        Table(
            schema=loaded.features.arrow_schema.remove_metadata(), batches=lambda: _batches(view)
        ),
        revision or _commit_in_cache(loaded),
    )


def _load(dataset: DatasetSection, split: str, revision: str | None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    place = f"dataset.name={shown(dataset.name)}"
    try:
        return load_dataset(str(dataset.name), dataset.subset, split=split, revision=revision)
    except DatasetNotFoundError as error:
        raise InputError(
            f"No such dataset: {place}; {first_line(error)}. Check name and revision; for a gated "
            "one, log in with `hf auth login`."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise InputError(
            f"Hub out of reach: {place}; {first_line(error)}. Run setup once where there is "
            "internet (the login node): it stages the dataset."
        ) from error
    except Exception as error:
        if isinstance(error, RuntimeError) and "scripts are no longer supported" in str(error):
            raise ScriptDataset from error
        raise InputError(
            f"Cannot load: {place}, subset {dataset.subset or 'default'}, split {split}; "
            f"{first_line(error)}. Check subset and split."
        ) from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silences the libraries' warnings and progress bars: what goes wrong, our one error says."""
    import datasets

    hub_utils: Any = import_module("huggingface_hub.utils")  # it exports the functions untyped
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = [
        enable
        for disabled, enable in (
            (datasets.are_progress_bars_disabled, datasets.enable_progress_bars),
            (hub_utils.are_progress_bars_disabled, hub_utils.enable_progress_bars),
        )
        if not disabled()
    ]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    hub_utils.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for enable in bars:
            enable()


@contextmanager
def _offline() -> Iterator[None]:
    """Lets the libraries look only into their caches.

    They read HF_HUB_OFFLINE once, at import, into these constants.
    """
    import datasets.config
    import huggingface_hub.constants

    holders: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def _batches(view: Any) -> Iterator[pa.RecordBatch]:
    for table in view.iter(batch_size=_BATCH_ROWS):
        yield from table.replace_schema_metadata(None).to_batches()


def _commit_in_cache(loaded: Any) -> str | None:
    """Returns the commit in the cache folder's name, where `datasets` puts it."""
    files = loaded.cache_files
    name = Path(files[0]["filename"]).parent.name if files else ""
    return name if _COMMIT.fullmatch(name) else None


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, not too long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")
