"""Exports that keep all columns: one Parquet file, a folder of `datasets`, a LanceDB database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.export.libraries import library
from chatspace.export.place import NOTE_KEY, new_file, new_folder
from chatspace.export.source import VectorSource
from chatspace.layout import path_component

ARROW_FILE_BYTES = 512 * 2**20
LANCE_TABLE = "vectors"
# Dictionary pages pay for columns that repeat; these do not.
_DISTINCT = ("id", "text")


def write_parquet(source: VectorSource, out: Path, note: dict[str, Any]) -> None:
    """Writes all rows into one Parquet file, the vectors as they are stored."""
    schema = source.schema.with_metadata({NOTE_KEY: json.dumps(note)})
    repeating = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) and field.name not in _DISTINCT
    ]
    with (
        new_file(out) as temp,
        pq.ParquetWriter(temp, schema, compression="zstd", use_dictionary=repeating) as writer,
    ):
        for table in source.tables():
            writer.write_table(table)


def write_datasets(source: VectorSource, out: Path, note: dict[str, Any]) -> None:
    """Writes a folder for `datasets.load_from_disk`: a Dataset, or a DatasetDict of splits.

    Written as the library writes it, which has no way to save rows that arrive one by one.
    """
    splits = list(source.splits)
    with new_folder(out, note) as temp:
        if len(splits) == 1:
            _write_dataset(source, temp, splits[0])
            return
        for name in splits:
            folder = temp / path_component(name)
            folder.mkdir()
            _write_dataset(source.of_split(name), folder, name)
        names = [path_component(name) for name in splits]
        (temp / "dataset_dict.json").write_text(json.dumps({"splits": names}), encoding="utf-8")


def write_lancedb(source: VectorSource, out: Path, note: dict[str, Any]) -> None:
    """Writes a LanceDB database with one table, `vectors`; the vectors are floats in it."""
    lancedb = library("lancedb", "lancedb")
    schema = source.float_schema()

    failures: list[BaseException] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in source.float_tables():
                yield from table.combine_chunks().to_batches()
        except BaseException as error:
            failures.append(error)
            raise

    with new_folder(out, note) as temp:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        try:
            # Vectors that are missing stay so: of a document only the first chunk has its vector.
            lancedb.connect(temp).create_table(
                LANCE_TABLE, data=reader, schema=schema, on_bad_vectors="null"
            )
        except Exception:
            if failures:  # of which the library tells as text only
                raise failures[0] from None
            raise


def _write_dataset(source: VectorSource, folder: Path, split: str) -> None:
    from datasets import DatasetInfo, Features
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    features = Features.from_arrow_schema(source.schema)
    n_files = _write_arrow_files(source.tables(), features.arrow_schema, folder)
    names = []
    for index in range(n_files):
        name = f"data-{index:05d}-of-{n_files:05d}.arrow"
        _arrow_file(folder, index).rename(folder / name)
        names.append({"filename": name})
    state: dict[str, Any] = {
        "_data_files": names,
        "_fingerprint": source.plan.plan_sha256[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    DatasetInfo(features=features, dataset_name=source.plan.name).write_to_directory(str(folder))


def _write_arrow_files(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path) -> int:
    """Writes tables into files of about 512 MiB, and returns how many they are."""
    n_files, left, writer = 0, 0, None
    try:
        for table in tables:
            if left <= 0:
                if writer is not None:
                    writer.close()
                writer = pa.ipc.new_stream(str(_arrow_file(folder, n_files)), schema)
                n_files, left = n_files + 1, ARROW_FILE_BYTES
            assert writer is not None
            writer.write_table(table.cast(schema))
            left -= table.nbytes
    finally:
        if writer is not None:
            writer.close()
    return n_files


def _arrow_file(folder: Path, index: int) -> Path:
    return folder / f"data-{index:05d}.part"
