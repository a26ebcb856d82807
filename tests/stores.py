"""Object stores on this machine, and files in the formats that datasets come in."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.cli import main

SECRET = "not-a-real-secret"


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Sets variables for a while; None removes one."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def s3_store() -> Iterator[Any]:
    """Serves S3 on a free port of the loopback and yields its file system; has `bucket`."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=10).close()  # of an earlier server of this process
    try:
        with environment(**variables):
            fsspec.filesystem("s3").clear_instance_cache()
            system = fsspec.filesystem("s3")
            system.mkdir("bucket")
            yield system
            system.clear_instance_cache()
    finally:
        server.stop()


@contextmanager
def gcs_store() -> Iterator[Any]:
    """Serves Google Cloud Storage on a free port of the loopback; has `bucket`."""
    import fsspec
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_address[1]
    variables = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "FSSPEC_GS_TOKEN": "anon"}
    try:
        with environment(**variables):
            fsspec.filesystem("gs").clear_instance_cache()
            yield fsspec.filesystem("gs")
            fsspec.filesystem("gs").clear_instance_cache()
    finally:
        server.stop()


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def arrow_bytes(rows: list[dict[str, Any]]) -> bytes:
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def jsonl_bytes(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def zstd_bytes(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue().to_pybytes())


def gzip_bytes(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def command(*words: str) -> tuple[int, str, str]:
    """Runs a command line in this process; returns exit code, output and errors."""
    out, errors = io.StringIO(), io.StringIO()
    before = sys.argv
    try:
        sys.argv = ["chatspace", *words]
        with redirect_stdout(out), redirect_stderr(errors):
            main()
    except SystemExit as done:
        return int(done.code or 0), out.getvalue(), errors.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("a command ends with an exit code")
