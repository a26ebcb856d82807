"""Datasets of the hub and `hf://`, against a server on this machine that speaks its endpoints.

The libraries read the hub's address when they are imported, so each look is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatspace.data.hub import no_such_subset
from tests.hub import Hub, serving
from tests.stores import jsonl_bytes, parquet_bytes

ROWS = [{"text": f"row {i}", "n": i} for i in range(5)]
SCRIPT = b"raise SystemExit('nobody runs this')\n"
STAGE = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
from chatspace.data.sources import dataset_label
from chatspace.data.staging import stage_split
from chatspace.errors import ChatspaceError
from chatspace.spec.dataset import DatasetSection

for asked in json.loads(sys.argv[1]):
    workspace = Path(asked.pop("workspace"))
    section = DatasetSection.model_validate(asked)
    try:
        staged = stage_split(section, section.split_names[0], workspace, dataset_label(section))
    except ChatspaceError as error:
        print(json.dumps({"error": f"{error.exit_code.value} {error}"}))
        continue
    texts = [text for f in staged.files for text in pq.read_table(f)["text"].to_pylist()]
    print(json.dumps({
        "texts": texts,
        "files": [str(f.relative_to(workspace)) for f in staged.files],
        "identity": staged.identity,
        "revision": staged.revision,
    }))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub()) as served:
        yield served


def environment(hub_url: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
    }


def stage(
    hub_url: str, home: Path, *asked: dict[str, Any], variables: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    values = [
        {"source": "huggingface", "workspace": str(home / "ws"), **section} for section in asked
    ]
    done = subprocess.run(
        [sys.executable, "-c", STAGE, json.dumps(values)],
        env=variables or environment(hub_url, home / "hf"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(asked), done.stdout
    return found


def test_stage_hub_dataset_is_pinned_and_read_as_the_hub_serves_it(
    hub: Hub, tmp_path: Path
) -> None:
    old = hub.add_dataset("org/plain", {"train.jsonl": jsonl_bytes(ROWS[:2]), "README.md": b""})
    new = hub.add_dataset("org/plain", {"train.jsonl": jsonl_bytes(ROWS), "README.md": b""})
    hub.gated.add("datasets/org/gated")
    newest, again, pinned, gone, split, gated, revision = stage(
        hub.url,
        tmp_path,
        {"name": "org/plain"},
        {"name": "org/plain"},
        {"name": "org/plain", "revision": old, "workspace": str(tmp_path / "w2")},
        {"name": "org/gone"},
        {"name": "org/plain", "split": "dev"},
        {"name": "org/gated"},
        {"name": "org/plain", "revision": "v9", "workspace": str(tmp_path / "w3")},
    )
    assert newest["revision"] == new
    assert newest["texts"] == [row["text"] for row in ROWS]
    assert newest["files"] == ["datasets/processed/org__plain/train/part-00000.parquet"]
    assert again == newest
    assert (pinned["revision"], len(pinned["texts"])) == (old, 2)
    assert gone["error"].startswith("2 No such dataset: dataset.name='org/gone'; ")
    assert split["error"].startswith("2 No such split: dataset.name='org/plain', subset default, ")
    assert "it has train." in split["error"]
    assert gated["error"].startswith("2 Gated dataset: dataset.name='org/gated'; ")
    assert "/datasets/org/gated, and set HF_TOKEN" in gated["error"]
    assert revision["error"].startswith("2 No such revision: dataset.name='org/plain', revision v9")


def test_stage_hub_dataset_with_a_script_comes_as_the_hub_converted_it(
    hub: Hub, tmp_path: Path
) -> None:
    first = hub.add_dataset("org/script", {"script.py": SCRIPT, "README.md": b"# old"})
    head = hub.add_dataset("org/script", {"script.py": SCRIPT, "README.md": b""})
    branch = hub.add_dataset(
        "org/script",
        {
            "en/train/0000.parquet": parquet_bytes(ROWS[:3]),
            "en/train/0001.parquet": parquet_bytes(ROWS[3:]),
            "en/partial-large/0000.parquet": parquet_bytes(ROWS),
            "de/train/0000.parquet": parquet_bytes(ROWS[:1]),
        },
        "refs/convert/parquet",
    )
    hub.add_dataset("org/never", {"never.py": SCRIPT})
    en = {"name": "org/script", "subset": "en"}
    one, again, named, pinned, earlier, subset, split, partial, never, wrong = stage(
        hub.url,
        tmp_path,
        en,
        en,
        {**en, "revision": "refs/convert/parquet", "workspace": str(tmp_path / "w2")},
        {**en, "revision": head, "workspace": str(tmp_path / "w3")},
        {**en, "revision": first, "workspace": str(tmp_path / "w4")},
        {"name": "org/script"},
        {**en, "split": "test"},
        {**en, "split": "large"},
        {"name": "org/never"},
        {"name": "org/script", "subset": "fr"},
    )
    assert one["texts"] == [row["text"] for row in ROWS]
    assert one["revision"] == branch
    assert one["identity"] == [
        {"name": "org/script", "subset": "en", "split": "train", "revision": branch}
    ]
    assert again == one
    assert one["files"] == [
        f"datasets/processed/org__script__en/train/000{i}.parquet" for i in range(2)
    ]
    assert named["identity"] == pinned["identity"] == one["identity"]
    assert earlier["error"].startswith("2 Not converted: ")
    assert "the hub converts the newest commit alone" in earlier["error"]
    assert "2 No such subset: " in subset["error"]
    assert "it has de, en." in subset["error"]
    assert "it has train." in split["error"]
    assert partial["error"].startswith("2 Converted in part: ")
    assert "the hub has not converted it" in never["error"]
    assert "subset fr; it has de, en." in wrong["error"]


def test_stage_hf_url_is_pinned_to_the_commit(hub: Hub, tmp_path: Path) -> None:
    files = {"data/train-0.parquet": parquet_bytes(ROWS), "extra.jsonl": jsonl_bytes(ROWS[:1])}
    commit = hub.add_dataset("org/files", files)
    url = "hf://datasets/org/files"
    parquet = {"source": "parquet", "path": f"{url}/data"}
    folder, again, pattern, lines, gone, repository, revision = stage(
        hub.url,
        tmp_path,
        parquet,
        parquet,
        {**parquet, "path": f"{url}@main/data/*.parquet", "workspace": str(tmp_path / "w2")},
        {"source": "jsonl", "path": f"{url}/extra.jsonl"},
        {"source": "parquet", "path": f"{url}/nothing"},
        {"source": "parquet", "path": "hf://datasets/org/nobody/data"},
        {"source": "parquet", "path": "hf://datasets/org/files@v9/data"},
    )
    assert folder["revision"] == commit
    assert folder["files"] == ["datasets/raw/hf/data/train/train-0.parquet"]
    assert again == folder
    assert pattern["identity"] == folder["identity"]
    assert lines["texts"] == ["row 0"]
    for missing in (gone, repository, revision):
        assert missing["error"].startswith("2 No such file or folder: dataset.path='hf://data")
    assert hub.fetched.count("data/train-0.parquet") >= 2
    (offline,) = stage("http://127.0.0.1:9", tmp_path, parquet)
    assert offline["identity"] == folder["identity"]
    (nothing,) = stage(
        "http://127.0.0.1:9", tmp_path, {**parquet, "workspace": str(tmp_path / "w9")}
    )
    assert nothing["error"].startswith("4 Out of reach: ")


def test_download_dataset_command_of_the_hub_writes_what_a_spec_reads(
    hub: Hub, tmp_path: Path
) -> None:
    commit = hub.add_dataset("org/down", {"train.csv": b"text,n\na,1\nb,2\n", "README.md": b""})
    command = [sys.executable, "-m", "chatspace", "download-dataset", "--name", "org/down"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--workspace", str(tmp_path / "ws"), *more],
            env=environment(hub.url, tmp_path / "hf"),
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = run()
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "ws/datasets/raw/huggingface/org__down" / commit / "train"
    record = json.loads((folder / "dataset.json").read_text())
    assert (record["rows"], record["revision"]) == (2, commit)
    assert record["features"] == {"text": "large_string", "n": "int64"}
    assert record["parts"][0]["sha256"]
    assert f"path: {folder.parent}, split: train" in done.stdout
    again = run()
    assert "was there already" in again.stdout
    for options, code, says in [
        (["--split", "dev"], 2, "No such split: "),
        (["--name", "org/nobody"], 2, "No such dataset: dataset.name='org/nobody'; "),
    ]:
        wrong = run(*options)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (code, 1)
        assert wrong.stderr.startswith(f"chatspace: {says}")


MULTI = b"""---
configs:
- config_name: a
  data_files: a/train.jsonl
- config_name: b
  data_files: b/train.jsonl
---
"""


def test_stage_hub_dataset_of_several_subsets_names_them(hub: Hub, tmp_path: Path) -> None:
    files = {f"{name}/train.jsonl": jsonl_bytes(ROWS[:n]) for name, n in (("a", 1), ("b", 2))}
    hub.add_dataset("org/multi", {**files, "README.md": MULTI})
    missing, wrong, named = stage(
        hub.url,
        tmp_path,
        {"name": "org/multi"},
        {"name": "org/multi", "subset": "c"},
        {"name": "org/multi", "subset": "b"},
    )
    assert missing["error"].startswith("2 No such subset: dataset.name='org/multi', subset not set")
    assert "it has a, b." in missing["error"]
    assert "subset c; it has a, b." in wrong["error"]
    assert named["texts"] == ["row 0", "row 1"]


def test_no_such_subset_of_many_names_a_few_and_the_count() -> None:
    text = str(no_such_subset("dataset.name='x'", None, [f"s{i}" for i in range(120)]))
    assert "it has s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, ... (120 in all)." in text


def own_cache(hub_url: str, home: Path, **variables: str) -> dict[str, str]:
    """Variables of somebody who sets no place for the libraries' caches."""
    kept = environment(hub_url, home)
    del kept["HF_HOME"]
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **variables}


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_stage_hub_dataset_writes_below_the_workspace_alone(hub: Hub, tmp_path: Path) -> None:
    both = {"train": jsonl_bytes(ROWS), "test": jsonl_bytes(ROWS[:2])}
    hub.add_dataset("org/lines", {f"{name}.jsonl": text for name, text in both.items()})
    parquet = {f"{name}-0.parquet": parquet_bytes(ROWS) for name in both}
    hub.add_dataset("org/parquet", {**parquet, "README.md": b""})
    home, workspace = tmp_path / "home", tmp_path / "ws"
    variables = own_cache(hub.url, home)
    hub.fetched.clear()
    lines, as_it_lies, wrong = stage(
        hub.url,
        tmp_path,
        {"name": "org/lines"},
        {"name": "org/parquet", "split": "test"},
        {"name": "org/lines", "split": "test", "text_field": "body"},
        variables=variables,
    )
    assert lines["texts"] == as_it_lies["texts"] == [row["text"] for row in ROWS]
    assert as_it_lies["files"] == ["datasets/processed/org__parquet/test/test-0.parquet"]
    assert (workspace / as_it_lies["files"][0]).read_bytes() == parquet["test-0.parquet"]
    assert wrong["error"].startswith("2 ")
    assert files_below(home) == []
    assert "train-0.parquet" not in hub.fetched
    left = [name for name in files_below(workspace) if "/." in name]
    assert left  # what came of the split whose column is not there, for the next try
    assert all(name.startswith("datasets/processed/org__lines/.test.hub/hub/") for name in left)
    (again,) = stage(hub.url, tmp_path, {"name": "org/lines", "split": "test"}, variables=variables)
    assert len(again["texts"]) == 2
    assert [name for name in files_below(workspace) if "/." in name] == []
    assert hub.fetched.count("test.jsonl") == 1


def test_stage_hub_dataset_uses_the_caches_that_somebody_set(hub: Hub, tmp_path: Path) -> None:
    hub.add_dataset("org/cached", {"train.jsonl": jsonl_bytes(ROWS), "README.md": b""})
    set_ = {"HF_HUB_CACHE": str(tmp_path / "h"), "HF_DATASETS_CACHE": str(tmp_path / "d")}
    variables = own_cache(hub.url, tmp_path / "home", **set_)
    (staged,) = stage(hub.url, tmp_path, {"name": "org/cached"}, variables=variables)
    assert len(staged["texts"]) == len(ROWS)
    assert any(name.endswith("train.jsonl") for name in files_below(tmp_path / "h"))
    assert any(name.endswith("-train.arrow") for name in files_below(tmp_path / "d"))
    assert files_below(tmp_path / "home") == []


def test_stage_hub_dataset_offline_is_read_from_the_own_cache(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add_dataset("org/earlier", {"train.jsonl": jsonl_bytes(ROWS), "README.md": b""})
    variables = own_cache(hub.url, tmp_path / "home")
    load = "import datasets; datasets.load_dataset('org/earlier')"
    subprocess.run([sys.executable, "-c", load], env=variables, check=True, timeout=120)
    before = files_below(tmp_path / "home")
    found, missing = stage(
        hub.url,
        tmp_path,
        {"name": "org/earlier"},
        {"name": "org/never-loaded"},
        variables={**variables, "HF_HUB_OFFLINE": "1"},
    )
    assert (len(found["texts"]), found["revision"]) == (len(ROWS), commit)
    assert missing["error"].startswith("4 Hub out of reach: dataset.name='org/never-loaded'; ")
    assert [n for n in files_below(tmp_path / "home") if not n.endswith(".lock")] == [
        n for n in before if not n.endswith(".lock")
    ]


def test_stage_hub_dataset_that_is_gone_is_used_as_it_was_staged(hub: Hub, tmp_path: Path) -> None:
    hub.add_dataset("org/leaves", {"train.jsonl": jsonl_bytes(ROWS), "README.md": b""})
    (first,) = stage(hub.url, tmp_path, {"name": "org/leaves"})
    del hub.commits["datasets/org/leaves"]
    kept, elsewhere = stage(
        hub.url,
        tmp_path,
        {"name": "org/leaves"},
        {"name": "org/leaves", "workspace": str(tmp_path / "w2")},
    )
    assert kept == first
    assert elsewhere["error"].startswith("2 No such dataset: ")
