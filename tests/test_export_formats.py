from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from chatspace.errors import InputError, OutputError, UnfitEnvironmentError
from chatspace.export.formats import FORMATS, Export
from chatspace.export.libraries import library
from chatspace.export.place import new_folder
from chatspace.export.source import VectorSource, open_source, unit_rows
from chatspace.plan.model import Plan
from chatspace.run import Run
from tests.vector_runs import random_vectors, vector_run

ROWS, DIM = 600, 16
VECTORS = random_vectors(ROWS, DIM)
DTYPES = ("float32", "float16", "int8", "binary")
Runs = dict[str, Plan]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    return {
        dtype: vector_run(folder / dtype, VECTORS, dtype=dtype, rows_per_shard=100)
        for dtype in DTYPES
    }


@pytest.fixture(scope="module")
def two_splits(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    splits = {"train": random_vectors(40), "test": random_vectors(20, seed=1)}
    return vector_run(tmp_path_factory.mktemp("splits"), splits)


def write(plan: Plan, to: str, out: Path, **options: object) -> Path:
    Export(to=to, out=out, **options).write(open_source(plan))  # type: ignore[arg-type]
    return out


def ids_of(folder: Path) -> list[str]:
    table = pq.read_table(folder / "ids.parquet")
    assert table["position"].to_pylist() == list(range(len(table)))
    names: list[str] = table["id"].to_pylist()
    return names


def nearest(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return np.argsort(-(unit_rows(vectors) @ unit_rows(query[None])[0]))[:k].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_has_the_rows_as_they_are_stored(runs: Runs, tmp_path: Path, dtype: str) -> None:
    out = write(runs[dtype], "parquet", tmp_path / "all.parquet")
    table = pq.read_table(out)
    assert table.equals(Run(runs[dtype]).dataset().to_table())
    assert table.schema.field("embedding").equals(
        open_source(runs[dtype]).schema.field("embedding")
    )
    assert pq.read_metadata(out).num_row_groups == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_datasets_folder_is_loaded_by_the_library(runs: Runs, tmp_path: Path, dtype: str) -> None:
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(str(write(runs[dtype], "datasets", tmp_path / "d")))
    assert isinstance(loaded, Dataset) and loaded.split == "train"
    stored = Run(runs[dtype]).dataset().to_table()
    assert loaded.num_rows == ROWS and loaded.column_names == stored.column_names
    assert loaded[ROWS - 1]["id"] == "docs/train/599"
    assert loaded[7]["embedding"] == stored["embedding"][7].as_py()
    assert loaded.filter(lambda row: row["row_index"] < 3, keep_in_memory=True).num_rows == 3


def test_datasets_folder_of_several_splits_is_a_dict(two_splits: Plan, tmp_path: Path) -> None:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(write(two_splits, "datasets", tmp_path / "d")))
    assert isinstance(loaded, DatasetDict)
    assert {name: part.num_rows for name, part in loaded.items()} == {"train": 40, "test": 20}
    assert loaded["test"][3]["id"] == "docs/test/3"


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_file_is_a_memory_map_of_floats(runs: Runs, tmp_path: Path, dtype: str) -> None:
    folder = write(runs[dtype], "numpy", tmp_path / "n")
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    assert isinstance(vectors, np.memmap)
    assert vectors.dtype == ("float16" if dtype == "float16" else "float32")
    assert np.array_equal(vectors, Run(runs[dtype]).vectors())
    assert ids_of(folder) == [f"docs/train/{row}" for row in range(ROWS)]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_faiss_flat_finds_what_numpy_finds(
    runs: Runs, tmp_path: Path, dtype: str, metric: str
) -> None:
    import faiss

    folder = write(runs[dtype], "faiss", tmp_path / "f", metric=metric)
    index = faiss.read_index(str(folder / "index.faiss"))
    vectors = Run(runs[dtype]).vectors().astype(np.float32)
    stored = unit_rows(vectors) if metric == "cosine" else vectors
    assert (index.ntotal, index.d) == (ROWS, DIM)
    assert np.array_equal(index.reconstruct_n(0, ROWS), stored)
    scores = (
        -((stored - stored[5]) ** 2).sum(axis=1) if metric == "l2" else stored @ stored[5]
    )  # (rows,)
    found, rows = index.search(stored[5:6], 3)
    assert np.allclose(scores[rows[0]], -found[0] if metric == "l2" else found[0], atol=1e-4)
    assert np.allclose(scores[rows[0]], np.sort(scores)[::-1][:3], atol=1e-4)


@pytest.mark.parametrize("index", ["ivf", "hnsw", "IVF8,SQ8", "HNSW16,SQ8"])
def test_faiss_other_indexes_find_a_row_itself(runs: Runs, tmp_path: Path, index: str) -> None:
    import faiss

    folder = write(runs["float32"], "faiss", tmp_path / "f", index=index)
    found = faiss.read_index(str(folder / "index.faiss"))
    query = unit_rows(VECTORS[:50])
    assert found.ntotal == ROWS == len(ids_of(folder))
    assert (found.search(query, 1)[1][:, 0] == np.arange(50)).mean() > 0.8
    assert json.loads((folder / "export.json").read_text())["index"] == index


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_faiss_of_bits_compares_bits(runs: Runs, tmp_path: Path, index: str) -> None:
    import faiss

    folder = write(runs["binary"], "faiss", tmp_path / "f", index=index, metric="hamming")
    found = faiss.read_index_binary(str(folder / "index.faiss"))
    bits = np.packbits(VECTORS > 0, axis=1)
    distances, _ = found.search(bits[:5], 1)
    assert found.ntotal == ROWS and not distances.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_usearch_index_finds_a_row_itself(runs: Runs, tmp_path: Path, dtype: str) -> None:
    from usearch.index import Index

    folder = write(runs[dtype], "usearch", tmp_path / "u")
    index = Index.restore(str(folder / "index.usearch"))
    assert index is not None and len(index) == ROWS
    vectors = Run(runs[dtype]).vectors().astype(np.float32)
    match = index.search(vectors[9], 5)
    assert 9 in match.keys or match.distances[0] < 1e-3
    assert ids_of(folder)[9] == "docs/train/9"


def test_usearch_index_of_bits_compares_bits(runs: Runs, tmp_path: Path) -> None:
    from usearch.index import Index

    folder = write(runs["binary"], "usearch", tmp_path / "u", metric="hamming")
    index = Index.restore(str(folder / "index.usearch"))
    assert index is not None
    assert index.search(np.packbits(VECTORS[3] > 0), 1).distances[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_lancedb_table_is_searched_by_vector(runs: Runs, tmp_path: Path, dtype: str) -> None:
    import lancedb

    folder = write(runs[dtype], "lancedb", tmp_path / "l")
    table = lancedb.connect(folder).open_table("vectors")
    assert table.count_rows() == ROWS
    vectors = Run(runs[dtype]).vectors().astype(np.float32)
    hits = table.search(vectors[4]).distance_type("cosine").limit(3).to_list()
    assert hits[0]["_distance"] < 1e-3
    assert {hit["id"] for hit in hits} & {
        f"docs/train/{i}" for i in nearest(vectors, vectors[4], 3)
    }


@pytest.mark.parametrize("to", FORMATS)
def test_export_replaces_only_exports_and_only_when_told(
    runs: Runs, tmp_path: Path, to: str
) -> None:
    out = tmp_path / "out"
    write(runs["float32"], to, out)
    with pytest.raises(OutputError, match=r"An export is there already: .*--force"):
        write(runs["float32"], to, out)
    write(runs["float16"], to, out, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("years of work")
    for path in (mine, mine / "notes.txt"):
        for force in (False, True):
            with pytest.raises(OutputError, match=r"Not an export: .* another --out") as error:
                write(runs["float32"], to, path, force=force)
            assert "--force" not in str(error.value)
    assert (mine / "notes.txt").read_text() == "years of work"
    for note in ("{}", '{"format": "coco", "run_id": 3}', "[]", "no JSON"):
        (mine / "export.json").write_text(note)  # as other programs write it
        with pytest.raises(OutputError, match="Not an export"):
            write(runs["float32"], to, mine, force=True)
    assert (mine / "notes.txt").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_export_of_one_file_replaces_no_folder_and_advises_no_force(
    runs: Runs, tmp_path: Path, force: bool
) -> None:
    out = write(runs["float32"], "numpy", tmp_path / "out")
    with pytest.raises(OutputError, match=r"A folder is there: .* Name another --out\.$"):
        write(runs["float32"], "parquet", out, force=force)
    assert (out / "vectors.npy").is_file()


def test_export_never_replaces_a_shard(runs: Runs) -> None:
    shard = open_source(runs["float32"]).shards[0].path
    with pytest.raises(OutputError, match="Not an export"):
        write(runs["float32"], "parquet", shard, force=True)


@pytest.mark.parametrize("to", FORMATS)
def test_export_that_fails_leaves_nothing(runs: Runs, tmp_path: Path, to: str) -> None:
    whole = open_source(runs["float32"])
    gone = whole.shards[3]

    def read(shard, columns, batch_rows):  # type: ignore[no-untyped-def]
        if shard == gone:
            raise KeyboardInterrupt
        yield from whole.read(shard, columns, batch_rows)

    source = VectorSource(plan=whole.plan, shards=whole.shards, schema=whole.schema, read=read)
    with pytest.raises(KeyboardInterrupt):
        Export(to=to, out=tmp_path / "out").write(source)
    assert list(tmp_path.iterdir()) == []


def test_new_folder_removes_what_a_killed_export_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from chatspace.export.place import new_folder\n"
        "with new_folder(Path(sys.argv[1]), {}) as temp: (temp / 'x').touch(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], timeout=60, check=False)
    assert len(os.listdir(tmp_path)) == 1
    with new_folder(tmp_path / "out", {"a": 1}) as temp:
        (temp / "y").touch()
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["export.json", "y"]


def test_new_folder_on_a_full_disk_says_so(tmp_path: Path, small_disk) -> None:  # type: ignore[no-untyped-def]
    out = small_disk(64) / "out"
    with pytest.raises(OutputError, match="No space left"), new_folder(out, {}) as temp:
        (temp / "big").write_bytes(bytes(2**20))
    assert not out.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_new_folder_when_writing_fails_says_so(tmp_path: Path, code: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=re.escape(os.strerror(code))), new_folder(out, {}):
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


def test_new_folder_when_a_file_in_it_is_forbidden_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"Cannot write: .*denied"), new_folder(out, {}) as temp:
        raise PermissionError(errno.EACCES, "denied", str(temp / "vectors" / "0"))
    with pytest.raises(PermissionError), new_folder(out, {}):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "shard-00000.parquet"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "csv"}, "Unknown format: --to csv; known: parquet, datasets"),
        ({"to": "parquet", "index": "flat"}, "No choice of index"),
        ({"to": "usearch", "index": "flat"}, "No choice of index"),
        ({"to": "numpy", "metric": "l2"}, "No metric"),
        ({"to": "faiss", "metric": "cosin"}, "Unknown metric: --metric cosin; known: cosine"),
        ({"to": "faiss", "metric": "hamming"}, "No bits: --metric hamming; the run stores float32"),
        ({"to": "faiss", "index": "IVF9000,Flat"}, "FAISS refuses the index: --index IVF9000,Flat"),
        ({"to": "faiss", "index": "IDMap,Flat"}, "FAISS refuses the index: --index IDMap,Flat"),
        ({"to": "faiss", "index": "nonsense"}, "FAISS refuses the index: --index nonsense"),
    ],
)
def test_export_of_options_that_do_not_fit_is_refused(
    runs: Runs, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as error:
        Export(out=tmp_path / "out", **options).write(open_source(runs["float32"]))  # type: ignore[arg-type]
    assert str(error.value).startswith(words) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_library_that_is_missing_names_the_extra() -> None:
    with pytest.raises(UnfitEnvironmentError, match=r"faiss-cpu; .*pip install 'chatspace\[export"):
        library("no_such_module_at_all", "faiss-cpu")


def test_ids_of_several_splits_name_the_split(two_splits: Plan, tmp_path: Path) -> None:
    folder = write(two_splits, "numpy", tmp_path / "n")
    table = pq.read_table(folder / "ids.parquet")
    assert table["split"].to_pylist() == ["train"] * 40 + ["test"] * 20
    note = json.loads((folder / "export.json").read_text())
    assert (note["rows"], note["splits"], note["missing_shards"]) == (
        60, {"train": 40, "test": 20}, 0,
    )  # fmt: skip
