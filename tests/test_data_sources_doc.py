"""Every example of docs/sources.md, as it stands there."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from chatspace.data.inventory import inventory
from chatspace.data.rows import SplitReader
from chatspace.data.selection import RowRange
from chatspace.data.sources import dataset_label
from chatspace.data.staging import stage_split
from chatspace.shards.records import ShardSpan
from chatspace.spec.dataset import DatasetSection
from tests.hub import Hub, serving
from tests.stores import (
    command,
    environment,
    gcs_store,
    gzip_bytes,
    jsonl_bytes,
    parquet_bytes,
    s3_store,
    zstd_bytes,
)
from tests.test_data_hub import stage

PAGE = (Path(__file__).parents[1] / "docs" / "sources.md").read_text(encoding="utf-8")
EXAMPLES = [
    yaml.safe_load(block)["dataset"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
ROWS = [{"id": str(i), "text": f"row {i}", "body": f"body {i}"} for i in range(4)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import datasets

    folder = tmp_path_factory.mktemp("data")
    nested = [{"meta": {"title": f"t{i}"}, "messages": TURNS} for i in range(4)]
    files = {
        "wiki/train.parquet": parquet_bytes(ROWS),
        "posts.jsonl.zst": zstd_bytes(jsonl_bytes(ROWS)),
        "table.csv": b"text\na\nb\n",
        "table.csv.gz": gzip_bytes(b"text\na\nb\n"),
        "books/one.txt": b"a\n\nb\nc\n",
        "nested/train.parquet": parquet_bytes(nested),
        "all.json": json.dumps({"train": ROWS, "test": ROWS[:1]}).encode(),
        "many/1.json": json.dumps(ROWS).encode(),
        "many/2.json": json.dumps(ROWS[0]).encode(),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(folder / "saved")
    with s3_store() as s3, gcs_store() as gcs, environment(DATA=str(folder)):
        s3.pipe("bucket/docs/train.parquet", parquet_bytes(ROWS))
        gcs.pipe("bucket/docs/1.jsonl", jsonl_bytes(ROWS))
        yield folder


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server on this machine that has what the page's own has."""
    folder = tmp_path_factory.mktemp("www")
    (folder / "posts.jsonl.gz").write_bytes(gzip_bytes(jsonl_bytes(ROWS)))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def is_of_hub(example: dict[str, Any]) -> bool:
    return example["source"] == "huggingface" or str(example["path"]).startswith("hf://")


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not is_of_hub(e)])
def test_sources_page_example_gives_texts(
    data: Path, web: str, tmp_path: Path, example: dict[str, Any]
) -> None:
    path = example["path"].replace("https://example.org", web)
    section = DatasetSection.model_validate({**example, "path": path})
    label = dataset_label(section)
    files = inventory(stage_split(section, "train", tmp_path, label).files, section)
    reader = SplitReader(
        section, label=label, split="train", files=files, selection=RowRange(), keep_columns=()
    )
    n_rows = sum(file.rows for file in files)
    found = reader.read(ShardSpan(index=0, row_start=0, row_stop=n_rows))
    assert len(found.texts) == n_rows > 0
    assert found.skipped == {}


def test_sources_page_examples_of_the_hub_give_texts(tmp_path: Path) -> None:
    hub = Hub()
    hub.add_dataset("org/plain", {"train.jsonl": jsonl_bytes(ROWS), "README.md": b""})
    hub.add_dataset("org/files", {"data/train.parquet": parquet_bytes(ROWS)})
    examples = [example for example in EXAMPLES if is_of_hub(example)]
    assert len(examples) == 2
    with serving(hub):
        for found in stage(hub.url, tmp_path, *examples):
            assert found["texts"] == [row["text"] for row in ROWS]


def test_sources_page_has_an_example_of_each_source_and_url() -> None:
    found = {str(example["source"]) for example in EXAMPLES}
    assert found == set(get_args(DatasetSection.model_fields["source"].annotation))
    urls = {str(e["path"]).partition("://")[0] for e in EXAMPLES if "://" in str(e.get("path"))}
    assert urls == {"s3", "gs", "hf", "https"}


def test_sources_page_commands_work(data: Path) -> None:
    assert len(COMMANDS) == 4
    for line in COMMANDS:
        assert line.startswith("chatspace ")
        words = [os.path.expandvars(word) for word in line.split()[1:]]
        code, out, errors = command(*words)
        assert (code, errors) == (0, "")
        assert "In a run spec:\n  dataset: {source: parquet, path: " in out
    assert len(list(data.glob("*/**/dataset.json"))) >= 5
