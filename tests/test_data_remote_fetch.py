"""Fetching files of a split: cut lines and damage on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatspace.data import remote_fetch
from chatspace.data.remote import find_remote
from chatspace.data.remote_fetch import fetch_split
from chatspace.errors import InputError
from chatspace.errors import UnfitEnvironmentError as Unfit
from tests.stores import (
    gcs_store,
    parquet_bytes,
    s3_store,
)
from tests.test_data_remote import ROWS, section


@pytest.fixture
def s3() -> Iterator[Any]:
    with s3_store() as system:
        yield system


@pytest.fixture
def google() -> Iterator[Any]:
    with gcs_store() as system:
        yield system


def test_fetch_split_goes_on_where_it_was_killed(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_fetch, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(remote_fetch, "_SYNC_BYTES", 4 << 10)
    monkeypatch.setattr(remote_fetch, "_THREADS", 1)
    content = bytes(range(256)) * 80  # 20 KiB
    for name in ("a", "b"):
        s3.pipe(f"bucket/x/{name}.parquet", content + name.encode())
    found = find_remote(section("s3://bucket/x"), "train")

    class Cut:
        """Reads through a line that is cut after so many bytes."""

        def __init__(self, system: Any, allowed: int) -> None:
            self.system, self.left, self.asked = system, allowed, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.system, name)

        def open(self, path: str, mode: str, **options: Any) -> Any:
            file = self.system.open(path, mode, **options)
            read = file.read

            def limited(size: int) -> bytes:
                if self.left <= 0:
                    raise ConnectionResetError("cut")
                self.left -= size
                self.asked += 1
                return bytes(read(size))

            file.read = limited
            return file

    def through(system: Any) -> Any:
        fields = {name: getattr(found, name) for name in ("url", "protocol", "files", "revision")}
        return type(found)(system=system, **fields)

    with pytest.raises(Unfit, match=r"Out of reach: .*; cut"):
        fetch_split(through(Cut(s3, 31 << 10)), tmp_path)
    assert (tmp_path / "a.parquet").read_bytes() == content + b"a"
    rest = Cut(s3, 1 << 30)
    entries = fetch_split(through(rest), tmp_path)
    assert (tmp_path / "b.parquet").read_bytes() == content + b"b"
    assert rest.asked <= 14  # of 21 blocks; the first 8 KiB were on disk
    fresh = fetch_split(find_remote(section("s3://bucket/x"), "train"), tmp_path / "fresh")
    assert fresh == entries


def test_fetch_split_damaged_on_the_way_is_refused_and_fetched_again(
    google: Any, tmp_path: Path
) -> None:
    google.pipe("bucket/m/a.parquet", parquet_bytes(ROWS))
    found = find_remote(section("gs://bucket/m/a.parquet"), "train")
    (file,) = found.files
    assert file.checksum is not None
    assert file.checksum[0] == "md5"
    wrong = type(file)(path=file.path, name=file.name, bytes=file.bytes, version=file.version,
                       checksum=("md5", "0" * 32))  # fmt: skip
    bad = type(found)(system=found.system, url=found.url, protocol="gs", files=(wrong,),
                      revision=None)  # fmt: skip
    with pytest.raises(InputError, match=r"Damaged on the way: .*its checksum is not the store's"):
        fetch_split(bad, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["fetched.jsonl"]
    assert fetch_split(found, tmp_path)[0]["bytes"] == file.bytes
