"""The rows of Parquet files for which a DuckDB condition holds.

DuckDB is let read these files and no others, and writes none. What a condition gives has to be the
same tomorrow: functions that draw, and those that ask for the time or the machine, are refused.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatspace.data.inputs import InputFile
from chatspace.data.parquet import open_parquet
from chatspace.errors import InputError, SpecError
from chatspace.spec.document import shown

Ints = npt.NDArray[np.int64]

# Columns are those of the files, never those that a folder's name seems to say.
_QUERY = (
    "SELECT file_row_number FROM "
    "read_parquet($1, file_row_number = true, hive_partitioning = false) WHERE ({where}\n)"
)
_BATCH_ROWS = 1 << 17
_MEMORY = "1GB"
# Macros, and words that stand for functions, which DuckDB's own list does not call varying.
_VARYING = frozenset({"current_localtime", "current_localtimestamp", "today", "getvariable"})
_MOST_NAMES = 40


def matching_rows(files: Sequence[InputFile], where: str) -> npt.NDArray[np.uint8]:
    """Returns a bit for each row of the split, most significant first, set where `where` holds.

    Args:
        files: the split's files, in order.
        where: a condition over their columns; null counts as false.

    Raises:
        SpecError: it is no condition, names an unknown column, or varies.
        InputError: a file cannot be read, or has columns that DuckDB takes for one another.
    """
    import duckdb

    bits = np.zeros(-(-sum(file.rows for file in files) // 8), np.uint8)
    connection = _connection([file.path for file in files])
    first = 0
    for file in files:
        try:
            if first == 0:
                _refuse_varying(connection, where, file)
            for rows in _matching(connection, file, where):
                at = rows + first
                np.bitwise_or.at(bits, at >> 3, (128 >> (at & 7)).astype(np.uint8))
        except duckdb.Error as error:
            raise _refusal(error, where, file) from error
        first += file.rows
    return bits


def _connection(paths: Sequence[str]) -> Any:
    import duckdb

    connection = duckdb.connect(
        config={"memory_limit": _MEMORY, "autoinstall_known_extensions": "0"}
    )
    # DuckDB reads a path as a pattern, and asks whether both forms are allowed.
    allowed = [form for path in paths for form in (path, glob.escape(path))]
    listed = ", ".join("'{}'".format(path.replace("'", "''")) for path in allowed)
    connection.execute(f"SET allowed_paths = [{listed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _matching(connection: Any, file: InputFile, where: str) -> Iterator[Ints]:
    names = _column_names(file)
    if "file_row_number" in names or len({name.lower() for name in names}) < len(names):
        raise InputError(
            f"Ambiguous columns: {shown(Path(file.path))} has {_listed(names)}; dataset.where does "
            "not tell upper from lower case and needs the name file_row_number for itself. Rename "
            "them, or leave dataset.where out."
        )
    query = _QUERY.format(where=where)
    reader = connection.sql(query, params=[glob.escape(file.path)]).to_arrow_reader(_BATCH_ROWS)
    for batch in reader:
        yield batch.column(0).to_numpy()


def _refuse_varying(connection: Any, where: str, file: InputFile) -> None:
    """Refuses more than one condition, and functions that do not always give the same."""
    query = f"SELECT 1 WHERE ({where}\n)"
    alone = connection.extract_statements(f"SELECT 1 WHERE {where}")
    if len(alone) != 1 or len(connection.extract_statements(query)) != 1:
        raise SpecError(_bad_condition(where, "it is more than one condition", file))
    varying = {
        name
        for (name,) in connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
        ).fetchall()
    } | _VARYING
    ((tree,),) = connection.execute("SELECT json_serialize_sql($1)", [query]).fetchall()
    columns = {name.lower() for name in _column_names(file)}
    found = sorted((_asked(json.loads(tree)) - columns) & varying)
    if found:
        why = f"{found[0]} does not give the same every time, and so another run would be planned"
        raise SpecError(_bad_condition(where, why, file))


def _asked(tree: Any) -> set[str]:
    """Returns the names of functions, and of columns that may be functions without brackets."""
    if isinstance(tree, list):
        return {name for item in tree for name in _asked(item)}
    if not isinstance(tree, dict):
        return set()
    names = {name for value in tree.values() for name in _asked(value)}
    if isinstance(tree.get("function_name"), str):
        names.add(tree["function_name"].lower())
    columns = tree.get("column_names")
    if isinstance(columns, list) and columns:
        names.add(str(columns[-1]).lower())
    return names


def _refusal(error: Exception, where: str, file: InputFile) -> Exception:
    """Returns the one line for what DuckDB says: of the condition, or of the file."""
    import duckdb

    why = _first_lines(error)
    of_condition = (
        *(duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException),
        *(duckdb.ConversionException, duckdb.PermissionException, duckdb.SyntaxException),
    )
    if isinstance(error, of_condition):
        return SpecError(_bad_condition(where, why, file))
    return InputError(
        f"Cannot read for dataset.where: {shown(Path(file.path))}; {why}. Repair the file, or "
        "leave dataset.where out."
    )


def _bad_condition(where: str, why: str, file: InputFile) -> str:
    return (
        f"Invalid condition: dataset.where={shown(where)}; {why}; columns are "
        f"{_listed(_column_names(file))}. Write it as after WHERE in SQL."
    )


def _column_names(file: InputFile) -> list[str]:
    with open_parquet(file.path) as parquet:
        return [str(name) for name in parquet.schema_arrow.names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")


def _first_lines(error: Exception) -> str:
    """Returns what DuckDB says, without its picture of where in the query and its own names."""
    said = str(error).split("\n\n", maxsplit=1)[0].split("Candidate bindings")[0]
    return " ".join(said.split())[:200].rstrip(".! ")
