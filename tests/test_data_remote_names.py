"""Names of remote files, which become names on this disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from chatspace.data.remote import find_remote
from chatspace.data.remote_fetch import fetch_split
from chatspace.errors import InputError
from tests.stores import parquet_bytes, s3_store
from tests.test_data_remote import ROWS, refused, section


@pytest.mark.parametrize(
    "name", ["a/../../../evil.parquet", "./b.parquet", "/b.parquet", "fetched.jsonl"]
)
def test_fetch_split_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().pipe("/x/a.parquet", parquet_bytes(ROWS))
    found = find_remote(section("memory://x/*.parquet"), "train")
    (file,) = found.files
    for other in (dataclasses.replace(file, name=name), file):
        with pytest.raises(InputError, match="Unfit name: "):
            fetch_split(dataclasses.replace(found, files=(file, other)), tmp_path / "in" / "x")
    assert not list(tmp_path.rglob("*"))


def test_stage_s3_key_with_dots_writes_nothing_outside(tmp_path: Path) -> None:
    with s3_store() as s3:
        for name in ("a.parquet", "y/../../../../../../evil.parquet"):
            s3.pipe(f"bucket/d/{name}", parquet_bytes(ROWS))
        assert "Unfit name: " in refused("s3://bucket/d/**", tmp_path / "ws", name="x")
    assert not list(tmp_path.rglob("*.parquet"))
